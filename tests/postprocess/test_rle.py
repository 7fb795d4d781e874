"""Run lengths and their compression against pycocotools, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from yolact_deploy.postprocess.rle import compressed_counts


def encode(masks: np.ndarray) -> list[bytes]:
    """pycocotools' counts of bool [N, height, width]."""
    return [rle["counts"] for rle in coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))]


def places_of(masks: np.ndarray) -> np.ndarray:
    """The places that `compressed_counts` takes, of bool [N, height, width]."""
    n = len(masks)
    pixels = masks.transpose(0, 2, 1).reshape(n, -1).astype(np.int8)
    edge = np.zeros((n, 1), np.int8)
    return np.flatnonzero(np.diff(np.concatenate([edge, pixels, edge], axis=1), axis=1))


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 4),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    density=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]),
)
def test_random_masks(seed: int, count: int, size: tuple[int, int], density: float) -> None:
    masks = np.random.default_rng(seed).random((count, *size)) < density
    assert compressed_counts(places_of(masks), count, size[0] * size[1]) == encode(masks)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), changes=st.integers(0, 12))
def test_runs_of_all_lengths(seed: int, changes: int) -> None:
    """Differences that need one to five groups of bits, of both signs, and the values at which a group is added."""
    rng = np.random.default_rng(seed)
    steps = rng.choice([1, 15, 16, 17, 31, 32, 511, 512, 513, 16_383, 16_384, 16_385, 200_000, 600_000], 2 * changes)
    places = np.cumsum(steps)
    pixels = int(steps.sum()) + int(rng.integers(0, 600_000)) + 1
    flat = np.zeros(pixels + 1, np.int8)
    np.add.at(flat, places, np.where(np.arange(len(places)) % 2, -1, 1))
    mask = np.cumsum(flat[:-1]).astype(bool).reshape(1, pixels, 1)
    assert compressed_counts(places, 1, pixels) == encode(mask)


def test_each_mask_starts_anew_and_an_empty_one_is_one_run() -> None:
    masks = np.zeros((5, 4, 3), bool)
    masks[0, 1:3] = True
    masks[2] = True
    masks[3, 0, 0] = masks[4, 3, 2] = True
    assert compressed_counts(places_of(masks), 5, 12) == encode(masks)
    assert compressed_counts(np.zeros(0, np.int64), 0, 12) == []


@pytest.mark.parametrize("pixels", [2**31 - 1, 2**31 + 5])
def test_runs_beyond_31_bits(pixels: int) -> None:
    mask = {"size": [pixels, 1], "counts": compressed_counts(np.array([10, 20]), 1, pixels)[0]}
    assert coco_mask.area(mask) == 10
    assert coco_mask.frPyObjects({"size": [pixels, 1], "counts": [10, 10, pixels - 20]}, pixels, 1)["counts"] == mask["counts"]
