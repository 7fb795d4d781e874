"""Mask assembly and its run lengths against full-size masks made pixel by pixel, and its memory."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tests.reference import masks as reference
from yolact_deploy.postprocess import contours, crop_probabilities, mask_rles, masks, rles_from_probabilities
from yolact_deploy.postprocess.interpolation import bilinear_axis

# pycocotools' compiled part predates NumPy 2's `copy` argument and says so on each decode.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZES = st.sampled_from([1, 2, 3, 7, 13, 20, 64, 101, 138, 333])


def encode(bitmaps: np.ndarray) -> list[bytes]:
    """pycocotools' counts of bool [N, height, width]."""
    return [rle["counts"] for rle in coco_mask.encode(np.asfortranarray(bitmaps.transpose(1, 2, 0).astype(np.uint8)))]


def decode(counts: list[bytes], width: int, height: int) -> np.ndarray:
    return np.stack([coco_mask.decode({"size": [height, width], "counts": one}) for one in counts]).astype(bool)


def probabilities(rng: np.random.Generator, shape: tuple[int, int, int], kind: str) -> np.ndarray:
    values = rng.random(shape, dtype=np.float32)
    if kind == "quarters":
        values = np.round(values * 4) / 4
    if kind == "zeros and ones":
        values = np.round(values)
    if kind == "close to one half":
        values = 0.5 + (values - 0.5) * 1e-6
    if kind == "float32 neighbours of one half":
        values = 0.5 + np.round((values - 0.5) * 8) * 2.0**-24
    if kind == "with NaN":
        values[rng.random(shape) < 0.1] = np.nan
    return values.astype(np.float32)


@settings(max_examples=500, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    kind=st.sampled_from(["any", "quarters", "zeros and ones", "close to one half", "float32 neighbours of one half", "with NaN"]),
    width=SIZES,
    height=SIZES,
    portion=st.sampled_from([1, 40, 1 << 17]),
)
def test_runs_equal_those_of_every_pixel_evaluated(
    seed: int, shape: tuple[int, int, int], kind: str, width: int, height: int, portion: int
) -> None:
    rng = np.random.default_rng(seed)
    values = probabilities(rng, shape, kind)
    if seed % 3 == 0:
        values[:, rng.integers(shape[1]) :, rng.integers(shape[2]) :] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contours, "COLUMNS_AT_ONCE", portion)
        patch.setattr(contours, "ROWS_AT_ONCE", portion)
        patch.setattr(masks, "SAMPLES_AT_ONCE", portion)
        found = rles_from_probabilities(values, None, width, height)
    with np.errstate(invalid="ignore"):
        assert found == encode(reference.resize_in_float32(values, width, height) > 0.5)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 4),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    width=SIZES,
    height=SIZES,
    spread=st.sampled_from([0.2, 1.0, 4.0]),
)
def test_masks_match_the_formula(seed: int, count: int, shape: tuple[int, int], width: int, height: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    prototypes = np.maximum(rng.normal(0, spread, (4, *shape)), 0).astype(np.float32)
    coefficients = np.tanh(rng.normal(0, 1, (count, 4))).astype(np.float32)
    boxes = rng.normal(0.5, 0.5, (count, 4)).astype(np.float32)
    arguments = [torch.from_numpy(part) for part in (prototypes, coefficients, boxes)]
    np.testing.assert_allclose(
        crop_probabilities(prototypes, coefficients, boxes), reference.crop_probabilities(*arguments).numpy(), rtol=5e-5, atol=1e-30
    )
    found = decode(mask_rles(prototypes, coefficients, boxes, width, height), width, height)
    values = reference.resize(reference.crop_probabilities(*arguments), width, height).numpy()
    clear = np.abs(values - 0.5) > 1e-5  # closer, float32 rounding decides; the test above holds that case
    np.testing.assert_array_equal(found[clear], (values > 0.5)[clear])
    np.testing.assert_array_equal(values > 0.5, reference.assemble(*arguments, width, height).numpy())


@pytest.mark.parametrize(
    ("box", "columns"),
    [
        ([0.25, 0, 0.5, 1], range(1, 5)),  # 2 - 1 <= j < 4 + 1
        ([0.5, 0, 0.25, 1], range(1, 5)),
        ([0.2, 0, 0.45, 1], range(1, 5)),  # 0.6 <= j < 4.6
        ([-0.5, 0, 0.1, 1], range(2)),
        ([0.9, 0, 1.7, 1], range(7, 8)),
        ([1.2, 0, 1.5, 1], range(0)),
        ([np.nan, 0, 0.5, 1], range(0)),
        ([-np.inf, 0, np.inf, 1], range(8)),
    ],
)
def test_the_crop_keeps_one_sample_around_the_box(box: list[float], columns: range) -> None:
    across = crop_probabilities(np.ones((1, 8, 8), np.float32), np.ones((1, 1), np.float32), np.float32([box]))[0]
    assert np.flatnonzero(across.any(axis=0)).tolist() == list(columns)
    down = crop_probabilities(np.ones((1, 8, 8), np.float32), np.ones((1, 1), np.float32), np.float32([[box[1], box[0], box[3], box[2]]]))[
        0
    ]
    assert np.flatnonzero(down.any(axis=1)).tolist() == list(columns)
    assert across[across > 0] == pytest.approx(1 / (1 + np.exp(-1)))


def test_a_probability_of_one_half_is_outside() -> None:
    """Prototypes after ReLU are zero over whole regions: sigmoid(0) = 0.5 must not become mask by rounding."""
    values = np.full((1, 10, 10), 0.5, np.float32)
    assert rles_from_probabilities(values, None, 97, 61) == encode(np.zeros((1, 61, 97), bool))
    nothing = mask_rles(np.zeros((4, 10, 10), np.float32), np.ones((1, 4), np.float32), np.float32([[0, 0, 1, 1]]), 97, 61)
    assert nothing == encode(np.zeros((1, 61, 97), bool))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 20_000), (20_000, 1), (3, 5000), (5000, 3), (138, 138), (137, 139), (12, 11)])
def test_pictures_of_extreme_shapes(width: int, height: int) -> None:
    rng = np.random.default_rng(3)
    values = probabilities(rng, (3, 23, 29), "any")
    values[1] = 1
    found = rles_from_probabilities(values, np.float32([[0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9], [0.4, 0, 0.5, 1]]), width, height)
    wanted = reference.crop(torch.from_numpy(values), torch.tensor([[0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9], [0.4, 0, 0.5, 1]])).numpy()
    assert found == encode(reference.resize_in_float32(wanted, width, height) > 0.5)


def test_a_mask_that_fills_the_picture_is_one_run() -> None:
    assert rles_from_probabilities(np.ones((1, 5, 5), np.float32), None, 40, 30) == encode(np.ones((1, 30, 40), bool))


def test_given_probabilities_are_not_written_to() -> None:
    values = np.ones((2, 6, 6), np.float32)
    rles_from_probabilities(values, np.float32([[0, 0, 0.1, 0.1]] * 2), 30, 30)
    assert (values == 1).all()


def test_half_precision_inputs_equal_their_float32_values() -> None:
    rng = np.random.default_rng(4)
    prototypes = np.maximum(rng.normal(0, 1, (8, 20, 20)), 0).astype(np.float16)
    coefficients = np.tanh(rng.normal(0, 1, (5, 8))).astype(np.float16)
    boxes = np.tile(np.float32([0.1, 0.2, 0.8, 0.9]), (5, 1))
    found = mask_rles(prototypes, coefficients, boxes, 100, 80)
    assert found == mask_rles(prototypes.astype(np.float32), coefficients.astype(np.float32), boxes, 100, 80)


def test_no_detections_give_no_masks() -> None:
    nothing = np.zeros((0, 4), np.float32)
    assert mask_rles(np.ones((4, 5, 5), np.float32), nothing, nothing, 10, 10) == []
    assert rles_from_probabilities(np.zeros((0, 5, 5), np.float32), None, 10, 10) == []
    assert crop_probabilities(np.ones((4, 5, 5), np.float32), nothing, nothing).shape == (0, 5, 5)


def test_what_does_not_fit_is_refused() -> None:
    prototypes, boxes = np.ones((4, 5, 5), np.float32), np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"must be \[K, h, w\] and \[N, K\]"):
        crop_probabilities(prototypes, np.ones((2, 3), np.float32), boxes)
    with pytest.raises(ValueError, match="boxes have shape"):
        mask_rles(prototypes, np.ones((3, 4), np.float32), boxes, 10, 10)
    with pytest.raises(ValueError, match="at least 1 x 1"):
        mask_rles(prototypes, np.ones((2, 4), np.float32), boxes, 10, 0)
    with pytest.raises(ValueError, match="three dimensions"):
        rles_from_probabilities(prototypes[0], None, 10, 10)


def peak_bytes(count: int, width: int, height: int, side: float) -> int:
    rng = np.random.default_rng(5)
    prototypes = np.maximum(rng.normal(0, 1, (32, 138, 138)), 0).astype(np.float32)
    coefficients = np.tanh(rng.normal(0, 1, (count, 32))).astype(np.float32)
    corners = rng.uniform(0, 1 - side, (count, 2))
    boxes = np.concatenate([corners, corners + side], axis=1).astype(np.float32)
    tracemalloc.start()
    mask_rles(prototypes, coefficients, boxes, width, height)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_memory_follows_neither_the_picture_nor_the_number_of_masks() -> None:
    small = peak_bytes(100, 1280, 960, 0.1)
    assert small < 0.25 * 100 * 1280 * 960
    assert peak_bytes(200, 1280, 960, 0.1) < 1.2 * small
    assert peak_bytes(100, 5120, 3840, 0.1) < 3 * small
    assert peak_bytes(100, 5120, 3840, 0.8) < 0.1 * 100 * 5120 * 3840


def test_noise_everywhere_takes_bounded_time() -> None:
    rng = np.random.default_rng(6)
    values = rng.random((40, 138, 138), dtype=np.float32)
    start = time.perf_counter()
    found = rles_from_probabilities(values, None, 1280, 960)
    assert time.perf_counter() - start < 20
    for first in range(0, 40, 4):
        portion = slice(first, first + 4)
        assert found[portion] == encode(reference.resize_in_float32(values[portion], 1280, 960) > 0.5)


def test_interpolating_between_samples_of_one_side_stays_on_it() -> None:
    """What lets whole cells be passed over, for every weight that there can be."""
    for size_in, size_out in [(138, 1280), (138, 427), (138, 20_000), (69, 7), (5, 5), (176, 3001), (1, 100)]:
        upper = bilinear_axis(size_in, size_out).upper.astype(np.float64)
        assert (upper * 2**24 == np.rint(upper * 2**24)).all()
        assert 0 <= upper.min() <= upper.max() <= 1
    upper = np.arange(2**24 + 1).astype(np.float32) / np.float32(2**24)
    lower = np.float32(1) - upper
    half = np.float32(0.5)
    above = np.nextafter(half, np.float32(1))
    assert (lower * half + upper * half == half).all()
    assert (lower * above + upper * above > half).all()


def test_noise_beside_one_half_takes_bounded_time_and_memory() -> None:
    """Each pixel must be computed here: rounding decides all of them."""
    values = probabilities(np.random.default_rng(7), (4, 138, 138), "float32 neighbours of one half")
    tracemalloc.start()
    start = time.perf_counter()
    found = rles_from_probabilities(values, None, 640, 427)
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 20
    assert peak < 200e6
    assert found == encode(reference.resize_in_float32(values, 640, 427) > 0.5)
