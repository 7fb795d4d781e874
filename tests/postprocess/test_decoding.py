"""Softmax, box decoding, boxes in pixels and the settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import detection, masks
from yolact_deploy.errors import ConfigError
from yolact_deploy.postprocess import PostprocessSettings, decode_boxes, pixel_boxes, softmax


@given(seed=st.integers(0, 10**6), count=st.integers(0, 50), spread=st.sampled_from([0.5, 3.0, 30.0]))
def test_decoding_matches_the_formula(seed: int, count: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    loc = rng.normal(0, spread, (count, 4)).astype(np.float32)
    priors = rng.uniform(0.02, 1, (count, 4)).astype(np.float32)
    boxes = decode_boxes(loc, priors)
    wanted = detection.decode(torch.from_numpy(loc), torch.from_numpy(priors)).numpy()
    assert boxes.dtype == np.float32
    assert boxes.shape == (count, 4)
    np.testing.assert_allclose(boxes, wanted, rtol=1e-6, atol=1e-7 * max(1.0, float(np.abs(wanted).max(initial=0))))


def test_decoding_by_hand() -> None:
    boxes = decode_boxes(np.array([[1, -2, 0, 5]], np.float32), np.array([[0.5, 0.25, 0.2, 0.1]], np.float32))
    height = 0.1 * np.e
    np.testing.assert_allclose(boxes[0], [0.42, 0.23 - height / 2, 0.62, 0.23 + height / 2], rtol=1e-6)


def test_a_size_beyond_float32_is_infinite_without_a_warning() -> None:
    boxes = decode_boxes(np.array([[0, 0, 1000, 0]], np.float32), np.full((1, 4), 0.5, np.float32))
    assert boxes[0, 0] == -np.inf


@pytest.mark.parametrize(("loc", "priors"), [((3, 4), (2, 4)), ((3, 5), (3, 5)), ((4,), (4,))])
def test_decoding_refuses_other_shapes(loc: tuple[int, ...], priors: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"both must be \[P, 4\]"):
        decode_boxes(np.zeros(loc, np.float32), np.zeros(priors, np.float32))


@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1.0, 200.0]))
def test_softmax_matches_torch(seed: int, spread: float) -> None:
    logits = np.random.default_rng(seed).normal(0, spread, (7, 5)).astype(np.float32)
    found = softmax(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, detection.softmax(torch.from_numpy(logits)).numpy(), rtol=2e-6, atol=1e-30)


def test_softmax_of_a_row_with_nan_is_nan_and_of_no_rows_empty() -> None:
    assert np.isnan(softmax(np.array([[0, np.nan, 1]]))).all()
    assert softmax(np.zeros((0, 81), np.float32)).shape == (0, 81)


@given(seed=st.integers(0, 10**6), width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_pixel_boxes_match_the_formula(seed: int, width: int, height: int) -> None:
    boxes = np.random.default_rng(seed).normal(0.5, 0.6, (20, 4)).astype(np.float32)
    found = pixel_boxes(boxes, width, height)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, masks.pixel_boxes(torch.from_numpy(boxes), width, height).numpy())


def test_a_box_outside_the_picture_ends_reversed_as_in_the_original() -> None:
    found = pixel_boxes(np.array([[1.5, -0.6, 1.25, -0.2]], np.float32), 100, 200)
    np.testing.assert_array_equal(found, [[125, 0, 100, -40]])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score_threshold", -0.1),
        ("score_threshold", float("nan")),
        ("iou_threshold", 1.5),
        ("top_k", 0),
        ("top_k", True),
        ("max_detections", 0),
        ("max_detections", 2.5),
        ("nms", "soft"),
    ],
)
def test_settings_refuse_what_they_cannot_mean(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        PostprocessSettings(**{name: value})


def test_the_default_settings_are_the_published_ones() -> None:
    assert PostprocessSettings() == PostprocessSettings(0.05, 0.5, 200, 100, "fast")
