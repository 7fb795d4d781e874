"""Compressed COCO run lengths of many masks at once, byte for byte what pycocotools writes.

Runs go down the columns and begin with the pixels outside. From the fourth on, a run is written as the difference to the one
two before; each number in groups of five bits, lowest first, bit 5 set where another follows, as characters from 48 on
(cocoapi, common/maskApi.c).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["compressed_counts"]

Indices = NDArray[np.int64]


def compressed_counts(places: Indices, masks: int, pixels: int) -> list[bytes]:
    """COCO ``counts`` of each mask.

    Args:
        places: int64 [T], strictly ascending, ``mask * (pixels + 1) + place`` for each place in 0 .. pixels at which a mask changes
            sides, the first of them from outside to inside, an even number for each mask.
        masks: how many there are.
        pixels: pixels of one mask.
    """
    if not masks:
        return []
    runs, starts = _runs(places, masks, pixels)
    numbers = _differences(runs, starts)
    text, ends = _characters(numbers)
    cuts = [0, *ends[starts[1:] - 1].tolist()]
    return [text[first:last] for first, last in pairwise(cuts)]


def _runs(places: Indices, masks: int, pixels: int) -> tuple[Indices, Indices]:
    """All run lengths, int64 [R], and the first run of each mask and R, int64 [masks + 1]."""
    owner, place = np.divmod(places, pixels + 1)
    owner, place = owner[place < pixels], place[place < pixels]
    ends = np.cumsum(np.bincount(owner, minlength=masks) + 1)
    bounds = np.full(ends[-1], pixels, np.int64)
    bounds[np.arange(len(place)) + owner] = place
    runs = np.diff(bounds, prepend=0)
    runs[ends[:-1]] = bounds[ends[:-1]]
    return runs, np.concatenate([[0], ends])


def _differences(runs: Indices, starts: Indices) -> Indices:
    """Each mask's runs, those from the fourth on less the run two before."""
    numbers = runs.copy()
    numbers[2:] -= runs[:-2]
    heads = starts[:-1, None] + np.arange(3)
    heads = heads[heads < starts[1:, None]]
    numbers[heads] = runs[heads]
    return numbers


def _characters(numbers: Indices) -> tuple[bytes, Indices]:
    """All numbers' characters in one, and where each number's end, int64."""
    magnitudes = np.where(numbers < 0, ~numbers, numbers)
    lengths = np.ones(len(numbers), np.int64)
    limit, largest = 1 << 4, int(magnitudes.max())
    while limit <= largest:
        lengths += magnitudes >= limit
        limit <<= 5
    ends = np.cumsum(lengths)
    text = np.empty(ends[-1], np.uint8)
    group, left, places = numbers, lengths, ends - lengths
    while len(group):
        text[places] = (group & 31) + np.where(left > 1, 32, 0) + 48
        more = left > 1
        group, left, places = group[more] >> 5, left[more] - 1, places[more] + 1
    return text.tobytes(), ends
