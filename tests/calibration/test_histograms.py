"""Growing histograms: the counts of a slow count, whatever the order, the pieces and the magnitudes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from yolact_deploy.calibration import histograms as module
from yolact_deploy.calibration.histograms import BINS, LARGEST, SMALLEST, Histogram

MAX = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).smallest_subnormal)
HALF = BINS // 2

any_float = st.floats(width=32, allow_nan=False, allow_infinity=False)
similar = st.floats(-10, 10, width=32).filter(lambda value: value == 0 or abs(value) > 1e-6)
arrays = st.lists(similar, max_size=40).map(lambda values: np.array(values, np.float32))
wild_arrays = st.lists(any_float, max_size=20).map(lambda values: np.array(values, np.float32))


def seen(values: Any) -> Histogram:
    values = np.asarray(values, np.float32)
    found = Histogram()
    found.add(values, float(np.abs(values).max(initial=0.0)))
    return found


def merged(parts: Iterable[NDArray[np.float32]]) -> Histogram:
    found = Histogram()
    for part in parts:
        found.merge(seen(part))
    return found


def filled(histogram: Histogram) -> dict[int, int]:
    """Count of each bin that is not empty, bin 0 starting at zero."""
    return {int(place) - HALF: int(histogram.counts[place]) for place in np.flatnonzero(histogram.counts)}


def slowly(values: Any, exponent: int) -> dict[int, int]:
    """The same in rational numbers; what is nearer to zero than 2 ** -42 bins is zero."""
    width = Fraction(2) ** exponent / HALF
    places = [Fraction(float(value)) / width for value in np.asarray(values).flat]
    return dict(sorted(Counter(0 if abs(place) <= Fraction(2) ** -42 else math.floor(place) for place in places).items()))


def exponent_for(values: Any) -> int:
    """The least power of two above every magnitude, not below the smallest."""
    exponent = SMALLEST
    while np.asarray(values).size and Fraction(2) ** exponent <= max(abs(Fraction(float(value))) for value in np.asarray(values).flat):
        exponent += 1
    return exponent


def test_at_least_2048_bins_cover_the_magnitudes() -> None:
    assert (BINS, SMALLEST, LARGEST) == (8192, -60, 128)
    assert seen([1.0]).exponent == 1
    assert seen([np.nextafter(np.float32(1), np.float32(0))]).exponent == 0
    for value in (0.5, 0.75, 1.0, 3.7, 1e-9, 1e30):
        histogram = seen([value])
        assert 2048 <= value / histogram.width <= 4096
        assert histogram.limit == histogram.width * HALF == 2.0**histogram.exponent


@given(arrays)
def test_counts_are_those_of_numpy(values: NDArray[np.float32]) -> None:
    histogram = seen(values)
    edges = np.linspace(-histogram.limit, histogram.limit, BINS + 1)
    assert np.array_equal(np.diff(edges), np.full(BINS, histogram.width)), "the edges are exact"
    np.testing.assert_array_equal(histogram.counts, np.histogram(values.astype(np.float64), edges)[0])
    assert histogram.counts.dtype == np.int64


@given(wild_arrays)
def test_counts_of_any_magnitudes(values: NDArray[np.float32]) -> None:
    histogram = seen(values)
    assert histogram.exponent == exponent_for(values)
    assert filled(histogram) == slowly(values, histogram.exponent)
    assert histogram.counts.sum() == values.size


@given(st.lists(wild_arrays, max_size=5), st.randoms(use_true_random=False))
def test_order_does_not_matter(parts: list[NDArray[np.float32]], random: Any) -> None:
    first = merged(parts)
    random.shuffle(parts)
    second = merged(parts)
    assert first.exponent == second.exponent == max((exponent_for(part) for part in parts if part.size), default=SMALLEST)
    np.testing.assert_array_equal(first.counts, second.counts)
    assert first.counts.sum() == sum(part.size for part in parts)
    assert first.counts.dtype == np.int64


@given(st.lists(arrays, min_size=1, max_size=5))
def test_merging_is_counting_at_once(parts: list[NDArray[np.float32]]) -> None:
    whole = seen(np.concatenate(parts))
    found = merged(parts)
    assert found.exponent == whole.exponent
    np.testing.assert_array_equal(found.counts, whole.counts)


@given(st.lists(arrays, min_size=1, max_size=4))
def test_adding_is_counting_at_once(parts: list[NDArray[np.float32]]) -> None:
    found = Histogram()
    for part in parts:
        found.add(part, float(np.abs(part).max(initial=0.0)))
    np.testing.assert_array_equal(found.counts, seen(np.concatenate(parts)).counts)


@given(arrays.filter(len), st.integers(0, 14))
def test_growing_is_counting_in_wider_bins(values: NDArray[np.float32], more: int) -> None:
    histogram = seen(values)
    before = histogram.exponent
    histogram.grow(before - 3)
    assert (histogram.exponent, histogram.counts.sum()) == (before, len(values)), "a histogram never shrinks"
    histogram.grow(before + more)
    assert histogram.exponent == before + more
    assert filled(histogram) == slowly(values, before + more)


def test_merging_keeps_what_is_merged() -> None:
    wide, narrow = seen([100.0, -3.0]), seen([0.25])
    narrow.merge(wide)
    assert filled(narrow) == slowly([100.0, -3.0, 0.25], 7)
    assert filled(wide) == slowly([100.0, -3.0], 7)
    narrow.counts += 1
    assert filled(wide) == slowly([100.0, -3.0], 7), "the two share no memory"
    empty = Histogram()
    empty.merge(wide)
    empty.counts += 1
    assert filled(wide) == slowly([100.0, -3.0], 7)


def test_two_histograms_share_no_counts() -> None:
    first, second = Histogram(), Histogram()
    first.add(np.ones(3, np.float32), 1.0)
    assert second.counts.sum() == 0


@pytest.mark.parametrize("exponent", [SMALLEST, -20, 0, 1, 64, 127, LARGEST])
def test_values_at_the_borders_of_bins(exponent: int) -> None:
    limit = np.float64(2.0) ** exponent
    places = np.array([-HALF, -HALF + 1, -2049, -2, -1, 0, 1, 2, 4093.5, HALF - 1])
    values = (places[1 if exponent == LARGEST else 0 :] / HALF * limit).astype(np.float32)
    inside = np.concatenate([values, np.nextafter(values[values != 0], np.float32(0)), np.nextafter(values[1:], np.float32(-np.inf))])
    histogram = Histogram()
    histogram.add(inside, float(np.abs(inside[np.abs(inside) < limit]).max()))
    assert histogram.exponent == exponent
    assert filled(histogram) == slowly(inside, exponent)


def test_zeros() -> None:
    histogram = seen(np.array([0.0, -0.0, 0.0], np.float32))
    assert (histogram.exponent, filled(histogram)) == (SMALLEST, {0: 3})
    histogram.merge(seen([-5.0]))
    assert (histogram.exponent, filled(histogram)) == (3, {0: 3, -2560: 1})


def test_nothing() -> None:
    assert filled(seen(np.zeros((0, 3), np.float32))) == {}
    assert filled(Histogram()) == {}
    assert Histogram().exponent == SMALLEST
    histogram = Histogram()
    histogram.grow(5)
    assert histogram.exponent == 5


@pytest.mark.parametrize("value", [MAX, -MAX, 2.0**127, -(2.0**127), 1e38, 2.0**-60, 2.0**-61, TINY, -TINY, 1e-30, 1.0])
def test_single_values_of_all_magnitudes(value: float) -> None:
    histogram = seen([value])
    assert filled(histogram) == slowly([value], histogram.exponent)
    assert value <= histogram.limit
    assert abs(value) < histogram.limit
    assert histogram.magnitudes().sum() == 1


def test_huge_beside_tiny_values() -> None:
    histogram = seen([MAX, -MAX, 1.0, 0.0, TINY])
    assert (histogram.exponent, filled(histogram)) == (LARGEST, {-HALF: 1, 0: 3, HALF - 1: 1})
    narrow = seen([TINY, 1e-20])
    narrow.merge(histogram)
    assert filled(narrow) == {-HALF: 1, 0: 5, HALF - 1: 1}


def test_any_layout_of_the_values() -> None:
    values = np.random.default_rng(0).standard_normal((3, 4, 5, 6)).astype(np.float32)
    whole = seen(values)
    for other in (values[::-1, :, ::-1], values.transpose(2, 0, 3, 1), np.asfortranarray(values), values.reshape(-1)):
        np.testing.assert_array_equal(seen(other).counts, whole.counts)
    assert filled(seen(values[:, 1:3, ::2])) == slowly(values[:, 1:3, ::2], seen(values[:, 1:3, ::2]).exponent)
    assert filled(seen(np.float32(2.5))) == {2560: 1}


@pytest.mark.parametrize("piece", [1, 2, 7, 100])
def test_pieces(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    values = np.random.default_rng(1).standard_normal(100).astype(np.float32)
    whole = seen(values)
    monkeypatch.setattr(module, "_PIECE", piece)
    np.testing.assert_array_equal(seen(values).counts, whole.counts)


def test_more_zeros_than_float32_counts() -> None:
    histogram = seen(np.zeros((1 << 24) + 3, np.float32))
    assert filled(histogram) == {0: (1 << 24) + 3}
    for _ in range(3):
        histogram.merge(histogram)
    assert filled(histogram) == {0: 8 * ((1 << 24) + 3)}


@settings(max_examples=50)
@given(wild_arrays)
def test_magnitudes_are_counts_of_both_signs(values: NDArray[np.float32]) -> None:
    histogram = seen(values)
    magnitudes = histogram.magnitudes()
    assert magnitudes.shape == (HALF,)
    assert magnitudes.dtype == np.int64
    folded: Counter[int] = Counter()
    for place, count in slowly(values, histogram.exponent).items():
        folded[place if place >= 0 else -place - 1] += count
    assert {int(place): int(magnitudes[place]) for place in np.flatnonzero(magnitudes)} == folded


def test_magnitudes_leave_the_counts() -> None:
    histogram = seen([1.0, -1.5, 0.25])
    before = histogram.counts.copy()
    histogram.magnitudes()[:] = 7
    np.testing.assert_array_equal(histogram.counts, before)


def test_inputs_are_not_altered() -> None:
    values = np.array([MAX, 1.0], np.float32)
    seen(values)
    assert values.tolist() == [MAX, 1.0]
