"""COCO result files as artifacts, whoever wrote them: checked whole before anything of them reaches pycocotools."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from yolact_deploy.data.coco import CocoDataset, CocoImage
from yolact_deploy.data.segmentation import Rle, as_number, check_segmentation, rle_of
from yolact_deploy.detections import Detections
from yolact_deploy.errors import ModelFileError
from yolact_deploy.evaluation.store import ResultStore, StoreHeader

__all__ = ["store_results"]

_LARGEST = 4 << 30  # bytes
_LARGEST_SCORE = float(np.finfo(np.float32).max)
_MEND = 'A result is {"image_id": …, "category_id": …, "segmentation": RLE, "score": …}, and may have a "bbox".'


class _Result(NamedTuple):
    """One checked result; `box` is None where the file gives none."""

    label: int
    rle: Rle
    box: list[float] | None
    score: float


def store_results(
    path: Path, dataset: CocoDataset, header: StoreHeader, target: Path, image_ids: Sequence[int], *, force: bool = False
) -> tuple[ResultStore, tuple[str, ...]]:
    """Write the results in the file `path` for the pictures `image_ids` into a new store at `target`; also notes about the file.

    A picture may be named by its id or by its file name. Scores and boxes are kept as the file gives them; where it gives no
    ``bbox``, the mask's own box stands in. Raises :class:`ModelFileError`, naming the first faulty entry, for a file that is no
    list of results, for pictures and categories that the data set lacks, for scores and boxes that are no finite numbers, and for
    masks that are missing, broken or of another size than their picture; :class:`OutputError` for a foreign file at `target`
    unless `force`.
    """
    found = _checked(path, _read(path), dataset)
    wanted = set(image_ids)
    ResultStore.resume(target, header, force=force)  # refuses a foreign file
    store = ResultStore.create(target, header)
    for image_id in sorted(wanted):
        _append(store, dataset.image(image_id), found.get(image_id, []), dataset)
    return store, _notes(found, wanted)


def _read(path: Path) -> list[Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise ModelFileError(f"{path} has {path.stat().st_size:,} bytes, at most {_LARGEST:,} are read.", "Evaluate it in parts.")
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"The results file {path} cannot be read: {error.strerror or error}.", "Check the path.") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"The results file {path} is no readable JSON ({error}).", _MEND) from None
    if not isinstance(entries, list):
        raise ModelFileError(f"{path} holds {_kind(entries)}, a list of COCO results was wanted.", _MEND)
    return entries


def _checked(path: Path, entries: list[Any], dataset: CocoDataset) -> dict[int, list[_Result]]:
    images = {image.id: image for image in dataset.images}
    by_name = {image.file_name: image for image in dataset.images}
    labels = {category: label for label, category in enumerate(dataset.classes.category_ids)}
    found: dict[int, list[_Result]] = {}
    for place, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise ValueError(f"is {_kind(entry)}, an object was wanted")
            named = entry.get("image_id")
            image = by_name.get(named) if isinstance(named, str) else images.get(named) if type(named) is int else None
            if image is None:
                raise ValueError(f"names the picture {named!r}, which the data set {dataset.annotations} lacks")
            found.setdefault(image.id, []).append(_result(entry, image, labels))
        except ValueError as error:
            raise ModelFileError(f"Result {place + 1} of {len(entries)} in {path} {error}.", _MEND) from None
    return found


def _result(entry: dict[str, Any], image: CocoImage, labels: dict[int, int]) -> _Result:
    category = entry.get("category_id")
    if type(category) is not int or category not in labels:
        known = ", ".join(map(str, list(labels)[:12])) + (", …" if len(labels) > 12 else "")
        raise ValueError(f"has the category id {category!r}, which the data set lacks; it has {known}")
    score = as_number(entry.get("score"))
    if not math.isfinite(score):
        raise ValueError(f"has the score {entry.get('score')!r}, a finite number was wanted")
    if abs(score) > _LARGEST_SCORE:
        raise ValueError(f"has the score {score}, which float32 cannot hold")
    if "segmentation" not in entry:
        raise ValueError("has no segmentation: boxes alone tell nothing about masks")
    try:
        segmentation, _ = check_segmentation(entry["segmentation"], image.height, image.width)
    except ValueError as error:
        raise ValueError(f"(picture {image.file_name}, {image.width}x{image.height}) has {error}") from None
    return _Result(labels[category], rle_of(segmentation, image.height, image.width), _box(entry.get("bbox")), score)


def _box(value: object) -> list[float] | None:
    if value is None:
        return None
    numbers = [as_number(number) for number in value] if isinstance(value, list) else []
    if len(numbers) != 4 or not all(abs(number) < 1e9 for number in numbers) or min(numbers[2:]) < 0:
        raise ValueError(f"has the bbox {value!r}, x, y, width and height of at least 0 were wanted")
    return numbers


def _append(store: ResultStore, image: CocoImage, results: list[_Result], dataset: CocoDataset) -> None:
    """Best first, equal scores in the file's order: what COCOeval makes of the file's order too."""
    ranked = sorted(results, key=lambda result: -result.score)
    boxes = [coco_mask.toBbox(result.rle).tolist() if result.box is None else result.box for result in ranked]
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    scores = np.asarray([result.score for result in ranked], np.float32)
    found = Detections(
        corners,
        scores,
        scores,
        np.asarray([result.label for result in ranked], np.int64),
        tuple(result.rle["counts"] for result in ranked),
        image.width,
        image.height,
        dataset.classes.names,
        dataset.classes.category_ids,
    )
    store.append(image.id, found, given=[[*box, result.score] for box, result in zip(boxes, ranked, strict=True)])


def _notes(found: dict[int, list[_Result]], wanted: set[int]) -> tuple[str, ...]:
    every = [result for results in found.values() for result in results]
    notes = []
    if derived := sum(result.box is None for result in every):
        notes.append(f"{derived} of {len(every)} results have no bbox: the box around the mask stands in.")
    if derived < len(every):
        notes.append("Sizes (small, medium, large) are those of the masks; pycocotools takes those of the boxes where a file has both.")
    if surplus := found.keys() - wanted:
        notes.append(f"Results for {len(surplus)} pictures that are not evaluated were left out.")
    return tuple(notes)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
    return names.get(type(value), "null")
