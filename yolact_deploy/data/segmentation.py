"""The segmentations of COCO annotation files: polygons and run lengths, checked before pycocotools' C code sees them.

pycocotools trusts what it is given: run lengths that do not add up and polygons with far-away points make it write outside its
buffers or ask for endless memory.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

__all__ = ["Rle", "Segmentation", "UnusableError", "as_number", "check_segmentation", "rle_of", "run_lengths"]

Rle: TypeAlias = dict[str, Any]
"""``{"size": [height, width], "counts": bytes}``, compressed as pycocotools writes it."""
Segmentation: TypeAlias = "list[list[float]] | Rle"
"""Polygons (x, y, x, y, … of each part, pixels) or a compressed RLE."""

_REACH = 10  # how many picture sizes away from the picture a polygon's points may lie
_LONGEST_PATH = 10_000_000  # pixels; pycocotools allocates 40 bytes for each


class UnusableError(ValueError):
    """An annotation that nothing can be learnt from or measured on; the text names the kind of fault, as in "it has …"."""


def check_segmentation(value: object, height: int, width: int) -> tuple[Segmentation, int]:
    """What `value` (an annotation's ``segmentation``) says, fit for :func:`rle_of`, and how many polygon parts had to be left out.

    Polygon parts with fewer than three points are left out; RLE comes back compressed and without empty runs. Raises
    :class:`UnusableError` for all else that is no mask of a picture of `height` x `width` pixels.
    """
    if value is None or value == []:
        raise UnusableError("no segmentation")
    if isinstance(value, list):
        return _polygons(value, height, width)
    if isinstance(value, dict):
        return _checked_rle(value, height, width), 0
    raise UnusableError("a segmentation that is neither a list of polygons nor an RLE")


def rle_of(segmentation: Segmentation, height: int, width: int) -> Rle:
    """The compressed RLE of a segmentation that :func:`check_segmentation` returned; the parts of a polygon are merged."""
    if isinstance(segmentation, dict):
        return segmentation
    merged: Rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return merged


def as_number(value: object) -> float:
    """A JSON number as float, NaN for everything else (booleans, texts, integers beyond float's range)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _polygons(parts: list[Any], height: int, width: int) -> tuple[Segmentation, int]:
    kept = []
    for part in parts:
        if not isinstance(part, list):
            raise UnusableError("a segmentation that is neither a list of polygons nor an RLE")
        if len(part) % 2 or not set(map(type, part)) <= {int, float}:
            raise UnusableError("a polygon that is no list of x, y pairs")
        if len(part) >= 6:
            _check_reach(part, max(height, width))
            kept.append(part)
    if not kept:
        raise UnusableError("only polygons of fewer than three points")
    return kept, len(parts) - len(kept)


def _check_reach(numbers: list[float], size: int) -> None:
    try:
        points = np.array(numbers, np.float64).reshape(-1, 2)
    except OverflowError:
        raise UnusableError("a polygon that reaches far outside its image") from None
    if not (np.abs(points) <= _REACH * size).all():  # NaN is not, either
        raise UnusableError("a polygon that reaches far outside its image")
    if np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum() > _LONGEST_PATH:
        raise UnusableError(f"a polygon longer than {_LONGEST_PATH:,} pixels")


def _checked_rle(value: dict[str, Any], height: int, width: int) -> Rle:
    size, counts = value.get("size"), value.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(number) is int for number in size)):
        raise UnusableError("an RLE without a size of two whole numbers")
    if size != [height, width]:
        raise UnusableError("an RLE of another size than its image's")
    if isinstance(counts, list):
        if not all(type(number) is int and 0 <= number <= height * width for number in counts):
            raise UnusableError("an RLE with run lengths that are no whole numbers of pixels")
        runs = np.array(counts, np.int64)
    elif isinstance(counts, str):
        runs = run_lengths(counts, height * width)
    else:
        raise UnusableError("an RLE without counts")
    if not len(runs) or int(runs.sum()) != height * width:
        raise UnusableError("an RLE whose run lengths do not add up to its image's pixels")
    if isinstance(counts, str) and (runs[1:] > 0).all():
        return {"size": size, "counts": counts.encode("ascii")}
    compressed: Rle = coco_mask.frPyObjects({"size": size, "counts": _without_empty_runs(runs)}, height, width)
    return compressed


def run_lengths(counts: str, pixels: int) -> NDArray[np.int64]:
    """int64 [R], the run lengths that compressed ``counts`` stand for: pixels outside, inside, outside …

    Groups of five bits, lowest first, as characters from 48 on, bit 5 set where the number goes on, the last group's bit 4 its
    sign; from the fourth on, numbers are differences to the run two before (cocoapi, common/maskApi.c, rleFrString). Raises
    :class:`UnusableError` for anything else and for runs outside 0 … `pixels`.
    """
    fault = UnusableError("an RLE whose compressed counts are corrupt")
    try:
        groups = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise fault from None
    if not len(groups):
        return groups
    ends = np.flatnonzero((groups & 32) == 0)
    if groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise fault
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 6:  # 30 bits; a seventh group overflows in pycocotools
        raise fault
    shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((groups & 31) << shifts, starts)
    numbers -= np.where(groups[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    if runs.min() < 0 or runs.max() > pixels:
        raise fault
    return runs


def _without_empty_runs(runs: NDArray[np.int64]) -> list[int]:
    """The same mask in runs of which only the first may be empty; pycocotools' IoU stops early where two empty runs meet."""
    pixels = int(runs.sum())
    places, times = np.unique(np.cumsum(runs[:-1]), return_counts=True)
    places = places[(times % 2 == 1) & (places < pixels)]
    joined: list[int] = np.diff(places, prepend=0, append=pixels).tolist()
    return joined
