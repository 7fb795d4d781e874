"""Run lengths in Python against pycocotools' C code, and what keeps hostile ones away from it."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from yolact_deploy.data import segmentation as segmentation_module
from yolact_deploy.data.segmentation import UnusableError, check_segmentation, rle_of, run_lengths

BITMAPS = st.builds(
    lambda height, width, seed, part: np.asfortranarray(np.random.default_rng(seed).random((height, width)) < part, np.uint8),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(0, 1000),
    st.sampled_from([0, 0.02, 0.5, 0.98, 1]),
)


def runs_of(bitmap: np.ndarray) -> list[int]:
    """The definition: pixels down the columns, in runs that begin outside."""
    groups = [(inside, len(list(run))) for inside, run in groupby(bitmap.ravel("F").tolist())]
    return [0] * groups[0][0] + [length for _, length in groups]


@settings(max_examples=200, deadline=None)
@given(BITMAPS)
def test_bitmaps_come_back(bitmap: np.ndarray) -> None:
    compressed = coco_mask.encode(bitmap)
    assert run_lengths(compressed["counts"].decode(), bitmap.size).tolist() == runs_of(bitmap)
    for counts in (compressed["counts"].decode(), runs_of(bitmap)):
        checked, left_out = check_segmentation({"size": list(bitmap.shape), "counts": counts}, *bitmap.shape)
        assert left_out == 0
        np.testing.assert_array_equal(coco_mask.decode(rle_of(checked, *bitmap.shape)), bitmap)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=40))
def test_long_runs_come_back(runs: list[int]) -> None:
    runs = [runs[0], *(run + 1 for run in runs[1:])]
    compressed = coco_mask.frPyObjects({"size": [sum(runs), 1], "counts": runs}, sum(runs), 1)
    assert run_lengths(compressed["counts"].decode(), sum(runs)).tolist() == runs


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=20))
def test_empty_runs_are_joined(runs: list[int]) -> None:
    pixels = sum(runs)
    if pixels == 0:
        return
    bitmap = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)[:, None]
    text = coco_mask.frPyObjects({"size": [pixels, 1], "counts": runs}, pixels, 1)["counts"].decode()
    for counts in (runs, text):
        checked, _ = check_segmentation({"size": [pixels, 1], "counts": counts}, pixels, 1)
        assert rle_of(checked, pixels, 1) == coco_mask.encode(np.asfortranarray(bitmap))


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=20) | st.text([chr(code) for code in range(48, 112)], max_size=20), st.integers(1, 2000))
def test_any_text_is_run_lengths_or_refused(counts: str, pixels: int) -> None:
    try:
        runs = run_lengths(counts, pixels)
    except UnusableError:
        return
    assert ((runs >= 0) & (runs <= pixels)).all()
    if runs.sum() == pixels:
        decoded = coco_mask.decode({"size": [pixels, 1], "counts": counts.encode()})
        np.testing.assert_array_equal(decoded[:, 0], np.repeat(np.arange(len(runs)) % 2, runs))


@pytest.mark.parametrize(
    "counts",
    [
        "P",  # goes on, and does not
        "PPPPPPPPP0",  # more bits than a run has
        "TSPPPP0",  # 100 in seven groups, the last of which pycocotools shifts out of its integers
        "\x143",  # before the alphabet, but for that 100
        "T3p",  # behind it, but for that 100 and 0
        "é",
        "oo7",  # 255 of 100 pixels
        "O",  # -1
        "001O0",  # the fourth, 1 less than the second
        "3033333",  # adds up beyond the picture
    ],
)
def test_corrupt_counts(counts: str) -> None:
    with pytest.raises(UnusableError):
        check_segmentation({"size": [10, 10], "counts": counts}, 10, 10)


def test_the_longest_number() -> None:
    assert run_lengths("TSPPP0", 100).tolist() == [100]


def test_endless_polygons_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    there_and_back = [0.0, 0.0, 99.0, 0.0] * 100
    assert check_segmentation([there_and_back], 10, 10) == ([there_and_back], 0)
    monkeypatch.setattr(segmentation_module, "_LONGEST_PATH", 10_000)
    with pytest.raises(UnusableError, match="a polygon longer than 10,000 pixels"):
        check_segmentation([there_and_back], 10, 10)
