"""The picture that the package draws itself: the same bytes everywhere, and something to see on it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact_deploy.data import sample_picture


def test_the_bytes_are_known() -> None:
    picture = sample_picture()
    assert picture.shape == (480, 640, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    assert hashlib.sha256(picture.tobytes()).hexdigest() == "a889c1740d80bee4f497412399af351e0df1976dd1509d77ff4d9b7a6fc3f879"
    assert (
        hashlib.sha256(sample_picture(97, 61, 5).tobytes()).hexdigest()
        == "6be213da296a417145d9aa78b5dae6029a913f9bf26ddab2ca3ee74ebec32552"
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**32))
def test_any_size_and_seed(width: int, height: int, seed: int) -> None:
    picture = sample_picture(width, height, seed)
    assert picture.shape == (height, width, 3)
    np.testing.assert_array_equal(picture, sample_picture(width, height, seed))


@pytest.mark.parametrize("seed", range(6))
def test_there_is_something_to_see(seed: int) -> None:
    picture = sample_picture(320, 240, seed).astype(int)
    assert 60 < picture.mean() < 200
    assert picture.std() > 25
    assert (np.ptp(picture, axis=-1) > 90).mean() > 0.02, "no vivid colours"
    assert len(np.unique(picture // 16 @ [256, 16, 1])) > 200
    assert np.abs(np.diff(picture, axis=1)).mean() < 20, "nothing but noise"


def test_seeds_differ() -> None:
    assert (sample_picture(64, 48, 0) != sample_picture(64, 48, 1)).mean() > 0.5


@pytest.mark.parametrize(("width", "height", "seed"), [(0, 5, 0), (5, -1, 0), (5, 5, -1)])
def test_refuses(width: int, height: int, seed: int) -> None:
    with pytest.raises(ValueError, match=r"wanted|non-negative"):
        sample_picture(width, height, seed)
