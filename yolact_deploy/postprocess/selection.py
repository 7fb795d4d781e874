"""Scores and boxes of all priors to the detections of one picture: the candidate filter and the three kinds of NMS.

Fast and traditional NMS are done best first: the survivors among the first thousand entries of the order of `ranking` are
survivors of the whole, so once they are enough, the rest need not be looked at. Where they are not (most boxes suppress each
other), the classes are gone through one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.postprocess.ranking import Entries, best_entries, class_entries, first_ranked
from yolact_deploy.postprocess.settings import PostprocessSettings
from yolact_deploy.postprocess.suppression import fast_survivors, greedy_survivors

__all__ = ["Selection", "cross_class_fast_nms", "fast_nms", "select", "traditional_nms"]

PREFIXES = (1024, 8192)
ROWS_AT_ONCE = 4096

Survivors = Callable[[Entries], NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Selection:
    """N detections of one picture, best first (equal scores: lower prior, then lower class).

    Attributes:
        priors: int64 [N], the prior that each comes from; one prior can give several detections of different classes.
        labels: int64 [N], 0-based without background.
        scores: float32 [N].
        boxes: float32 [N, 4], x1, y1, x2, y2 relative to the picture, as they were given.
    """

    priors: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    boxes: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.priors)


@dataclass(frozen=True)
class _Candidates:
    """What NMS starts from: all priors' boxes and foreground scores, each prior's best score, and which priors pass."""

    boxes: NDArray[np.float32]
    foreground: NDArray[np.float32]
    best: NDArray[np.float32]
    priors: NDArray[np.int64]

    def select(self, entries: Entries) -> Selection:
        return Selection(entries.priors, entries.labels, entries.scores, self.boxes[entries.priors])


def select(boxes: NDArray[Any], scores: NDArray[Any], settings: PostprocessSettings | None = None, input_size: int = 550) -> Selection:
    """The detections of one picture by the NMS that `settings` name.

    Args:
        boxes: [P, 4], x1, y1, x2, y2 relative to the picture, any P >= 0.
        scores: [P, C], class probabilities, column 0 is background, C >= 2. A prior with a NaN among them is left out.
        settings: None for the defaults.
        input_size: the network's input in pixels; traditional NMS measures boxes in it.

    Raises:
        ValueError: shapes that do not fit.
    """
    settings = settings or PostprocessSettings()
    if settings.nms == "cross-class":
        return cross_class_fast_nms(boxes, scores, settings)
    if settings.nms == "traditional":
        return traditional_nms(boxes, scores, settings, input_size)
    return fast_nms(boxes, scores, settings)


def fast_nms(boxes: NDArray[Any], scores: NDArray[Any], settings: PostprocessSettings) -> Selection:
    """Fast NMS for each class (YOLACT, section 3.2), then the best `max_detections` over all classes.

    Only candidates are filtered by score: one takes part with all its classes, whatever their scores. Arguments as in :func:`select`.
    """
    found = _candidates(boxes, scores, settings)

    def survivors(entries: Entries) -> NDArray[np.bool_]:
        return fast_survivors(found.boxes[entries.priors], entries.labels, settings.iou_threshold, settings.top_k)

    return _best_first(found, survivors, settings, limit=settings.top_k)


def cross_class_fast_nms(boxes: NDArray[Any], scores: NDArray[Any], settings: PostprocessSettings) -> Selection:
    """Fast NMS once over the `top_k` best priors, each with its best class; up to `top_k` remain. Arguments as in :func:`select`."""
    found = _candidates(boxes, scores, settings)
    priors = found.priors[first_ranked(found.best[found.priors], settings.top_k)]
    priors = priors[np.argsort(-found.best[priors], kind="stable")]
    entries = Entries(priors, found.foreground[priors].argmax(axis=1), found.best[priors])
    group = np.zeros(len(priors), np.int64)
    return found.select(entries[fast_survivors(found.boxes[priors], group, settings.iou_threshold, settings.top_k)])


def traditional_nms(boxes: NDArray[Any], scores: NDArray[Any], settings: PostprocessSettings, input_size: int) -> Selection:
    """Greedy NMS for each class over scores above the threshold, then the best `max_detections`. Arguments as in :func:`select`."""
    found = _candidates(boxes, scores, settings)

    def survivors(entries: Entries) -> NDArray[np.bool_]:
        pixels = found.boxes[entries.priors] * np.float32(input_size)
        return greedy_survivors(pixels, entries.labels, settings.iou_threshold, settings.max_detections)

    above = np.nextafter(np.float32(settings.score_threshold), np.float32(np.inf))
    return _best_first(found, survivors, settings, limit=None, least=float(above))


def _candidates(boxes: NDArray[Any], scores: NDArray[Any], settings: PostprocessSettings) -> _Candidates:
    corners, probabilities = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise ValueError(f"boxes have shape {list(corners.shape)}, [P, 4] was wanted")
    if probabilities.ndim != 2 or probabilities.shape[0] != len(corners) or probabilities.shape[1] < 2:
        raise ValueError(f"scores have shape {list(probabilities.shape)}, [{len(corners)}, C] with C >= 2 was wanted")
    foreground = probabilities[:, 1:]
    best = foreground.max(axis=1)
    return _Candidates(corners, foreground, best, np.flatnonzero(best > np.float32(settings.score_threshold)))


def _best_first(
    found: _Candidates, survivors: Survivors, settings: PostprocessSettings, limit: int | None, least: float = -np.inf
) -> Selection:
    """The first `max_detections` survivors of all entries; only entries that score at least `least` exist."""
    for size in PREFIXES:
        count = max(size, settings.max_detections)
        entries = best_entries(found.foreground, found.best, found.priors, count, least)
        kept = np.flatnonzero(survivors(entries))[: settings.max_detections]
        if len(kept) == settings.max_detections or len(entries) < count:
            return found.select(entries[kept])
    return found.select(_class_by_class(found, survivors, settings, limit, least))


def _class_by_class(found: _Candidates, survivors: Survivors, settings: PostprocessSettings, limit: int | None, least: float) -> Entries:
    """The same for any input: each class's entries alone, as far down as they can still be among the best `max_detections`."""
    class_best = _class_maxima(found)
    kept = Entries(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    for label in np.argsort(-class_best, kind="stable").tolist():
        if class_best[label] < least:
            break
        entries = class_entries(found.foreground, found.priors, label, least, limit)
        kept = kept.merged(entries[survivors(entries)])[: settings.max_detections]
        if len(kept) == settings.max_detections:
            least = float(kept.scores[-1])
    return kept


def _class_maxima(found: _Candidates) -> NDArray[np.float32]:
    """float32 [C - 1], each class's best score among the candidates, without a copy of the whole table."""
    maxima = np.full(found.foreground.shape[1], -np.inf, np.float32)
    for first in range(0, len(found.priors), ROWS_AT_ONCE):
        np.maximum(maxima, found.foreground[found.priors[first : first + ROWS_AT_ONCE]].max(axis=0), out=maxima)
    return maxima
