"""Which boxes of a ranking survive: Fast NMS (YOLACT, section 3.2) and the classical greedy NMS, for all classes at once.

Boxes come ranked, best first; a box meets only boxes of its own group (its class). A box's fate depends on better ranked ones
alone, so the first part of a ranking can be decided without the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["fast_survivors", "greedy_survivors"]

Boxes = NDArray[np.float32]
Indices = NDArray[np.int64]

PAIRS_AT_ONCE = 1 << 17


def fast_survivors(boxes: Boxes, groups: Indices, iou_threshold: float, top_k: int) -> NDArray[np.bool_]:
    """Fast NMS: of each group's first `top_k`, those whose IoU with every better one is at most `iou_threshold`.

    A suppressed box still suppresses. An IoU that is NaN (0/0 of boxes without area, infinite boxes) is not at most the
    threshold: the lower ranked box goes.

    Args:
        boxes: float32 [E, 4], x1, y1, x2, y2, best first.
        groups: int64 [E].
        iou_threshold: the largest overlap at which both stay.
        top_k: boxes of each group that take part.

    Returns:
        bool [E].
    """
    order, starts, ranks = _by_group(groups)
    grouped = boxes[order]
    alive = ranks < top_k
    for better, worse in _pairs(starts, np.where(alive, ranks, 0)):
        passes = _iou(grouped[better], grouped[worse]) <= np.float32(iou_threshold)
        alive[worse[~passes]] = False
    survivors = np.empty_like(alive)
    survivors[order] = alive
    return survivors


def greedy_survivors(boxes: Boxes, groups: Indices, iou_threshold: float, limit: int) -> NDArray[np.bool_]:
    """Greedy NMS: the best box left stays and removes those of its group whose IoU with it is at least `iou_threshold`.

    Widths and heights are counted in whole pixels (``x2 - x1 + 1``), as Fast R-CNN's NMS does; an IoU of NaN removes nothing.

    Args:
        boxes: float32 [E, 4], x1, y1, x2, y2 in pixels of the network's input, best first.
        groups: int64 [E].
        iou_threshold: the smallest overlap that removes.
        limit: stop after so many survivors.

    Returns:
        bool [E], True for the first `limit` survivors.
    """
    order, starts, _ = _by_group(groups)
    grouped = np.ascontiguousarray(boxes[order].T)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    ends = starts + np.bincount(starts, minlength=len(order))[starts]
    alive = np.ones(len(order), bool)
    survivors = np.zeros(len(order), bool)
    at = 0
    for _ in range(limit):
        ahead = alive[at:]
        if not ahead.any():
            break
        at += int(ahead.argmax())
        survivors[at] = True
        alive[at] = False
        first, end = place[at] + 1, ends[place[at]]
        hit = _pixel_iou(grouped[:, first - 1, None], grouped[:, first:end]) >= np.float32(iou_threshold)
        alive[order[first:end][hit]] = False
    return survivors


def _by_group(groups: Indices) -> tuple[Indices, Indices, Indices]:
    """The order that gathers each group (rank kept), and for each place of it the group's first place and the rank."""
    order = np.argsort(groups, kind="stable")
    places = np.arange(len(order))
    is_first = np.ones(len(order), bool)
    is_first[1:] = np.diff(groups[order]) != 0
    starts = np.maximum.accumulate(np.where(is_first, places, 0))
    return order, starts, places - starts


def _pairs(starts: Indices, counts: Indices) -> Iterator[tuple[Indices, Indices]]:
    """All (better, worse) places of one group, where the place p meets the `counts[p]` places from `starts[p]` on; in portions."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, done + PAIRS_AT_ONCE, side="right")), first + 1)
        portion = counts[first:last]
        worse = np.repeat(np.arange(first, last), portion)
        better = np.arange(len(worse)) - (ends[first:last] - portion - done)[worse - first] + starts[worse]
        yield better, worse
        first = last


def _iou(better: Boxes, worse: Boxes) -> NDArray[np.float32]:
    """IoU of n pairs, float32 [n]: intersection / (area + area - intersection), NaN where that is 0/0."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        sides = np.minimum(better[:, 2:], worse[:, 2:]) - np.maximum(better[:, :2], worse[:, :2])
        sides = np.maximum(sides, np.float32(0))
        common = sides[:, 0] * sides[:, 1]
        return np.asarray(common / (_areas(better) + _areas(worse) - common), np.float32)


def _areas(boxes: Boxes) -> NDArray[np.float32]:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), np.float32)


def _pixel_iou(box: Boxes, others: Boxes) -> NDArray[np.float32]:
    """IoU of one box [4, 1] with n others [4, n], float32 [n], both ends of a side counted."""
    one = np.float32(1)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        wide = np.maximum(np.minimum(box[2], others[2]) - np.maximum(box[0], others[0]) + one, np.float32(0))
        high = np.maximum(np.minimum(box[3], others[3]) - np.maximum(box[1], others[1]) + one, np.float32(0))
        common = wide * high
        area = (box[2] - box[0] + one) * (box[3] - box[1] + one)
        areas = (others[2] - others[0] + one) * (others[3] - others[1] + one)
        return np.asarray(common / (area + areas - common), np.float32)
