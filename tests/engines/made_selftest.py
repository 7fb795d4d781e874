"""A small self-test, and whether two are equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from yolact_deploy.detections import Detections
from yolact_deploy.engines.selftest import Selftest, SelftestTolerance

__all__ = ["HEIGHT", "WIDTH", "assert_equal", "counts_of", "made"]

WIDTH, HEIGHT = 8, 4


def counts_of(x1: int, y1: int, x2: int, y2: int) -> bytes:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y1:y2, x1:x2] = 1
    return bytes(coco_mask.encode(mask)["counts"])


def made(**changes: Any) -> Selftest:
    """Two detections in a small picture."""
    expected = Detections(
        boxes=np.array([[1, 0, 5, 3], [0.5, 1, 8, 4]], np.float32),
        scores=np.array([0.9, 0.4], np.float32),
        mask_scores=np.array([0.8, 1.5], np.float32),
        labels=np.array([3, 0], np.int64),
        counts=(counts_of(1, 0, 5, 3), counts_of(1, 1, 8, 4)),
        width=WIDTH,
        height=HEIGHT,
        class_names=(),
        category_ids=(),
    )
    picture = np.arange(WIDTH * HEIGHT * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)
    return replace(Selftest(picture, expected, "ONNX Runtime 1 on a CPU from a.onnx", 0.25, SelftestTolerance(0.125, 0.75, 0.5)), **changes)


def assert_equal(found: Selftest, wanted: Selftest) -> None:
    np.testing.assert_array_equal(found.picture, wanted.picture)
    for name in ("boxes", "scores", "mask_scores", "labels"):
        np.testing.assert_array_equal(getattr(found.expected, name), getattr(wanted.expected, name))
        assert getattr(found.expected, name).dtype == getattr(wanted.expected, name).dtype
    assert found.expected.counts == wanted.expected.counts
    assert (found.expected.width, found.expected.height) == (wanted.expected.width, wanted.expected.height)
    assert (found.reference, found.score_threshold, found.tolerance) == (wanted.reference, wanted.score_threshold, wanted.tolerance)
