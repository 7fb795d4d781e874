"""Mask assembly in the graph gives the probabilities of the post-processing, whatever the boxes are."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from tests.export.graph_modules import Run, graph_masks
from yolact_deploy.postprocess import crop_probabilities

ROWS, PROTOTYPES, SIZE = 30, 4, (20, 24)


@lru_cache(maxsize=1)
def built() -> Run:
    return graph_masks(ROWS, PROTOTYPES, SIZE)


def boxes_of(kind: str, rng: np.random.Generator) -> np.ndarray:
    boxes = rng.uniform(-0.3, 1.3, (ROWS, 4)).astype(np.float32)
    if kind == "on prototype pixels":
        boxes = np.round(boxes * 24) / np.float32(24)
    if kind == "without area":
        boxes[:, 2:] = boxes[:, :2]
    if kind == "outside":
        boxes += np.float32(3)
    if kind == "not finite":
        boxes[np.arange(ROWS), rng.integers(0, 4, ROWS)] = rng.choice(np.array([np.nan, np.inf, -np.inf], np.float32), ROWS)
    if kind == "whole":
        boxes[:] = [0, 0, 1, 1]
    return boxes


@pytest.mark.parametrize("kind", ["any corners", "on prototype pixels", "without area", "outside", "not finite", "whole"])
def test_the_same_probabilities_and_the_same_crop(kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    boxes = np.stack([boxes_of(kind, rng) for _ in range(2)])
    coefficients = rng.uniform(-1, 1, (2, ROWS, PROTOTYPES)).astype(np.float32)
    samples = rng.exponential(0.5, (2, PROTOTYPES, *SIZE)).astype(np.float32)  # no sigmoid of these is zero
    (found,) = built()(boxes, coefficients, samples)
    assert found.shape == (2, ROWS, *SIZE)
    for place in range(2):
        wanted = crop_probabilities(samples[place], coefficients[place], boxes[place])
        np.testing.assert_array_equal(found[place] > 0, wanted > 0)
        np.testing.assert_allclose(found[place], wanted, rtol=0, atol=1e-6)


def test_a_box_keeps_one_prototype_pixel_around_it() -> None:
    boxes = np.zeros((1, ROWS, 4), np.float32)
    boxes[0, 0] = [6 / 24, 5 / 20, 12 / 24, 10 / 20]
    (found,) = built()(boxes, np.zeros((1, ROWS, PROTOTYPES), np.float32), np.zeros((1, PROTOTYPES, *SIZE), np.float32))
    rows, columns = np.nonzero(found[0, 0])
    assert (columns.min(), columns.max()) == (5, 12)
    assert (rows.min(), rows.max()) == (4, 10)
