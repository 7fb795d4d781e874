"""COCO's figures, computed by pycocotools' COCOeval itself, a group of pictures at a time.

COCOeval matches each picture by itself and puts the matches together afterwards, so matching in groups gives the same figures to the
last bit, while only one group's masks are in memory.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolact_deploy.classes import ClassList
from yolact_deploy.evaluation.records import ClassMetrics, Metrics
from yolact_deploy.evaluation.store import IouType

__all__ = ["GroundTruth", "Results", "measure"]

GroundTruth = Callable[[Sequence[int]], dict[str, Any]]
"""Image ids -> ``images``, ``annotations`` and ``categories`` of a COCO annotation file."""


class Results(Protocol):
    """Detections as COCO results; :class:`yolact_deploy.evaluation.store.ResultStore` is one."""

    def results(self, iou_type: IouType, image_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Those of these pictures, by ascending id."""


_GROUP = 64  # pictures matched at once
_AREAS = ("all", "small", "medium", "large")  # the order of COCOeval's area ranges
_LIMITS = (1, 10, 100)  # detections a picture


def measure(ground_truth: GroundTruth, classes: ClassList, store: Results, iou_type: IouType, image_ids: Sequence[int]) -> Metrics:
    """Figures of the detections in `store` over the pictures `image_ids`.

    Equal to COCOeval on all these pictures and a file of the store's results. `classes` are the data set's
    categories; annotation ids must not be 0, which COCOeval takes for "no match".
    Raises :class:`KeyError` for a picture that the store lacks.
    """
    wanted = sorted(image_ids)
    order = np.argsort(classes.category_ids, kind="stable")
    cells = [_Cell() for _ in order]
    for start in range(0, len(wanted), _GROUP):
        group = wanted[start : start + _GROUP]
        found = _matched(ground_truth(group), store.results(iou_type, group), iou_type, group, classes)
        for place, cell in enumerate(cells):
            areas = [found[(place * len(_AREAS) + area) * len(group) :][: len(group)] for area in range(len(_AREAS))]
            cell.add(areas)
    return _figures(cells, [classes.names[place] for place in order], len(wanted), iou_type)


class _Cell:
    """What COCOeval.evaluateImg found for one category in all pictures so far: no more than COCOeval.accumulate reads, packed."""

    def __init__(self) -> None:
        self.lengths: list[int] = []  # detections of each picture that has the category
        self.truth: list[NDArray[np.int64]] = []  # of each such picture, [A], instances that count
        self.scores: list[NDArray[np.float64]] = []  # of each group of pictures, [D]
        self.matched: list[NDArray[np.bool_]] = []  # of each group, [A, T, D]
        self.ignored: list[NDArray[np.bool_]] = []

    def add(self, areas: list[list[dict[str, Any] | None]]) -> None:
        """The entries of COCOeval.evalImgs of one group, [areas][pictures]; None where the category is nowhere in a picture."""
        present = [[entry for entry in area if entry is not None] for area in areas]
        if not present[0]:
            return
        self.lengths += [len(entry["dtScores"]) for entry in present[0]]
        self.truth += [np.array([np.count_nonzero(entry["gtIgnore"] == 0) for entry in row]) for row in zip(*present, strict=True)]
        self.scores.append(np.concatenate([np.asarray(entry["dtScores"], np.float64) for entry in present[0]]))
        for name, kept in (("dtMatches", self.matched), ("dtIgnore", self.ignored)):
            kept.append(np.stack([np.concatenate([entry[name].astype(bool) for entry in area], axis=1) for area in present]))

    def entries(self) -> list[dict[str, Any]]:
        """COCOeval.evalImgs again, of the pictures that have the category, [areas x pictures]."""
        if not self.lengths:
            return []
        ends = np.cumsum(self.lengths)[:-1]
        scores = np.split(np.concatenate(self.scores), ends)
        result = []
        for area in range(len(_AREAS)):
            matched, ignored = (
                np.split(np.concatenate([group[area] for group in kept], axis=1), ends, axis=1) for kept in (self.matched, self.ignored)
            )
            for place, row in enumerate(self.truth):
                entry = {"dtScores": scores[place], "dtMatches": matched[place], "dtIgnore": ignored[place]}
                result.append({**entry, "gtIgnore": np.zeros(row[area])})
        return result

    @property
    def instances(self) -> int:
        """Those that count, of any size."""
        return int(sum(row[0] for row in self.truth))

    @property
    def detections(self) -> int:
        """At most 100 a picture."""
        return sum(self.lengths)


def _matched(
    truth: dict[str, Any], results: list[dict[str, Any]], iou_type: IouType, image_ids: Sequence[int], classes: ClassList
) -> list[dict[str, Any] | None]:
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO()
        expected.dataset = truth
        expected.createIndex()
        evaluation = COCOeval(expected, _loaded(expected, results), iou_type)
        evaluation.params.imgIds = list(image_ids)
        evaluation.params.catIds = sorted(classes.category_ids)
        evaluation.evaluate()
    found: list[dict[str, Any] | None] = evaluation.evalImgs
    return found


def _loaded(expected: Any, results: list[dict[str, Any]]) -> Any:
    """``expected.loadRes(results)``, which fails where there are none."""
    if results:
        return expected.loadRes(results)
    empty = COCO()
    empty.dataset = {"images": expected.dataset["images"], "categories": expected.dataset["categories"], "annotations": []}
    empty.createIndex()
    return empty


def _accumulated(cell: _Cell, iou_type: IouType) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """COCOeval.accumulate's precision [T, R, 1, A, M] and recall [T, 1, A, M] of one category; -1 where they are not defined."""
    evaluation = COCOeval(iouType=iou_type)
    evaluation.params.imgIds, evaluation.params.catIds = list(range(len(cell.lengths))), [1]
    evaluation.params.maxDets = list(_LIMITS)
    evaluation.evalImgs = cell.entries()
    evaluation._paramsEval = copy.deepcopy(evaluation.params)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _figures(cells: Sequence[_Cell], names: Sequence[str], pictures: int, iou_type: IouType) -> Metrics:
    precisions, recalls = zip(*(_accumulated(cell, iou_type) for cell in cells), strict=True)
    precision, recall = np.concatenate(precisions, axis=2), np.concatenate(recalls, axis=1)  # [T, R, K, A, M], [T, K, A, M]
    thresholds = [f"{threshold:.2f}" for threshold in COCOeval(iouType=iou_type).params.iouThrs]
    per_class = {
        name: ClassMetrics(
            _mean(precision[:, :, place, 0, -1]),
            _mean(precision[thresholds.index("0.50"), :, place, 0, -1]),
            _mean(precision[thresholds.index("0.75"), :, place, 0, -1]),
            cells[place].instances,
            cells[place].detections,
        )
        for place, name in enumerate(names)
    }
    return Metrics(
        iou_type,
        ap=_mean(precision[:, :, :, 0, -1]),
        by_threshold={name: _mean(precision[place, :, :, 0, -1]) for place, name in enumerate(thresholds)},
        small=_mean(precision[:, :, :, 1, -1]),
        medium=_mean(precision[:, :, :, 2, -1]),
        large=_mean(precision[:, :, :, 3, -1]),
        ar1=_mean(recall[:, :, 0, 0]),
        ar10=_mean(recall[:, :, 0, 1]),
        ar100=_mean(recall[:, :, 0, 2]),
        ar_small=_mean(recall[:, :, 1, -1]),
        ar_medium=_mean(recall[:, :, 2, -1]),
        ar_large=_mean(recall[:, :, 3, -1]),
        per_class=per_class,
        ground_truth=sum(cell.instances for cell in cells),
        detections=sum(cell.detections for cell in cells),
        notes=_notes(pictures, per_class),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    """COCOeval's summary, in percent: the mean over what is defined (-1 marks what is not); None where nothing is."""
    defined = values[values > -1]
    return 100 * float(defined.mean()) if defined.size else None


def _notes(pictures: int, per_class: dict[str, ClassMetrics]) -> tuple[str, ...]:
    notes = []
    bare = [name for name, found in per_class.items() if not found.ground_truth]
    if len(bare) == len(per_class):
        notes.append(f"No instance counts in the {pictures} pictures: AP and AR are not defined.")
    elif bare:
        shown = ", ".join(bare[:10]) + (", …" if len(bare) > 10 else "")
        notes.append(
            f"{len(bare)} of {len(per_class)} categories have no instance in these pictures and are left out of the means: {shown}."
        )
    if not any(found.detections for found in per_class.values()):
        notes.append(f"Nothing was found in the {pictures} pictures{'' if len(bare) == len(per_class) else ': AP is 0 for that reason'}.")
    return tuple(notes)
