"""Ranges by each method, against the values themselves and a literal transcription of the published entropy method."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from yolact_deploy.calibration.histograms import BINS, Histogram
from yolact_deploy.calibration.ranges import METHODS, Method, Range, find_range
from yolact_deploy.errors import ConfigError

SIZE = 1 << 15
RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(SIZE)
DRAWN: dict[str, NDArray[np.float32]] = {
    name: values.astype(np.float32)
    for name, values in {
        "normal": NORMAL,
        "shifted": NORMAL + 1,
        "relu": np.maximum(NORMAL, 0),
        "leaky": np.where(NORMAL < 0, NORMAL / 10, NORMAL),
        "uniform": RNG.uniform(0, 1, SIZE),
        "laplace": RNG.laplace(size=SIZE),
        "heavy": RNG.standard_t(3, SIZE),
        "lognormal": RNG.lognormal(0, 1, SIZE),
        "negative": -RNG.exponential(2.0, SIZE),
        "outlier": np.append(np.maximum(NORMAL, 0), 30.0),
        "levels": RNG.choice([0.0, 0.1, 5.0], SIZE, p=[0.5, 0.4, 0.1]),
        "huge": NORMAL * 5e37,
        "tiny": NORMAL * 1e-15,
    }.items()
}
each = pytest.mark.parametrize("name", list(DRAWN))
magnitudes = st.floats(0, 2.0**100, width=32)


def counted(values: NDArray[np.float32]) -> Histogram:
    found = Histogram()
    found.add(values, float(np.abs(values).max()))
    return found


def found_for(values: NDArray[np.float32], method: Method, **more: Any) -> Range:
    return find_range(counted(values), float(values.min()), float(values.max()), method, **more)


def threshold(found: Range) -> float:
    return max(-found.low, found.high)


@each
def test_minmax_keeps_everything(name: str) -> None:
    values = DRAWN[name]
    assert found_for(values, "minmax") == Range(min(float(values.min()), 0.0), max(float(values.max()), 0.0))


@each
@pytest.mark.parametrize("method", METHODS)
def test_ranges_hold_zero_and_stay_within_what_was_seen(name: str, method: Method) -> None:
    values = DRAWN[name]
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    found = found_for(values, method)
    assert low <= found.low <= 0 <= found.high <= high
    clip = threshold(found)
    assert (found.low, found.high) == (max(low, -clip), min(high, clip)), "clipping is symmetric"
    assert type(found.low) is type(found.high) is float


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ends", [(0.5, 2.0), (-2.0, -0.5), (-0.5, 2.0), (-2.0, 0.5)])
def test_the_side_that_is_nearer_keeps_its_end(method: Method, ends: tuple[float, float]) -> None:
    values = np.linspace(*ends, 5000).astype(np.float32)
    found = found_for(values, method)
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    if high > -low:
        assert found.low == low
        assert found.high == pytest.approx(high, rel=0.02)
    else:
        assert found.high == high
        assert found.low == pytest.approx(low, rel=0.02)


@each
@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.9, 99.99, 100.0])
def test_percentile_against_sorted_magnitudes(name: str, percentile: float) -> None:
    values = DRAWN[name]
    histogram = counted(values)
    ordered = np.sort(np.abs(values.astype(np.float64)))
    wanted = ordered[max(math.ceil(len(ordered) * percentile / 100), 1) - 1]
    found = threshold(found_for(values, "percentile", percentile=percentile))
    assert wanted <= found <= wanted + histogram.width * (1 + 1e-9)


def test_percentile_counts_to_the_bin() -> None:
    histogram = Histogram(0)
    histogram.counts[BINS // 2 + np.arange(10)] = 10
    ends = [
        threshold(find_range(histogram, 0.0, 0.9, "percentile", share)) / histogram.width for share in (50, 50.5, 60, 61, 90, 90.1, 100)
    ]
    assert ends == [5, 6, 6, 7, 9, 10, 10]
    histogram.counts[BINS // 2 + 4000] = 1
    assert threshold(find_range(histogram, 0.0, 0.9, "percentile")) == 0.9, "not beyond what was seen"
    assert threshold(find_range(histogram, 0.0, 0.9, "percentile", 99)) == 10 * histogram.width


@pytest.mark.parametrize("percentile", [49.9, 0.0, -1.0, 100.1, float("nan"), float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_bad_percentiles(percentile: float, method: Method) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"The percentile is {percentile:g}, 50 to 100 was wanted. Mend --percentile.")):
        find_range(counted(DRAWN["normal"]), -4.0, 4.0, method, percentile)


def rounding_error(values: NDArray[np.float64], clip: float) -> float:
    """Mean squared error of the values in steps of clip / 127, -127 … 127."""
    step = clip / 127
    return float(np.mean((np.clip(np.round(values / step), -127, 127) * step - values) ** 2))


@each
def test_mse_against_all_thresholds_on_the_values(name: str) -> None:
    values = DRAWN[name].astype(np.float64)
    largest = np.abs(values).max()
    best = min(rounding_error(values, share * largest) for share in np.linspace(0.03, 1, 195))
    found = threshold(found_for(DRAWN[name], "mse"))
    assert rounding_error(values, found) <= 1.02 * best


def test_mse_of_many_values_with_one_outlier() -> None:
    """Counts as of hundreds of pictures: the outlier's own error no longer decides."""
    values = np.append(NORMAL, 40.0)
    histogram = counted(values.astype(np.float32))
    histogram.counts[np.flatnonzero(histogram.counts)[:-1]] *= 3000
    many, weights = np.unique(values.astype(np.float32)), 3000.0

    def error(clip: float) -> float:
        step = clip / 127
        squares = (np.clip(np.round(many / step), -127, 127) * step - many) ** 2
        return float(np.sum(squares[:-1]) * weights + squares[-1])

    found = threshold(find_range(histogram, float(many.min()), 40.0, "mse"))
    assert error(found) <= 1.02 * min(error(clip) for clip in np.linspace(1, 40, 300))
    assert found < 0.15 * 40


def test_mse_takes_a_relus_zeros_for_exact() -> None:
    """Were they taken for the middle of their bin, the finest steps would win: their errors are all of the sum."""
    values = np.append(np.zeros(10_000_000), np.linspace(0.9, 1.0, 1000)).astype(np.float32)
    assert threshold(found_for(values, "mse")) >= 0.99


@pytest.mark.parametrize("name", ["normal", "relu", "laplace", "negative"])
@pytest.mark.parametrize("factor", [5, 20, 100])
def test_outliers_are_clipped_by_all_but_minmax(name: str, factor: int) -> None:
    values = DRAWN[name]
    largest = float(np.abs(values).max()) * factor
    many = np.append(np.tile(values, 100), largest if values.max() > 0 else -largest).astype(np.float32)
    assert threshold(found_for(many, "minmax")) == pytest.approx(largest)
    for method in ("percentile", "entropy", "mse"):
        assert threshold(found_for(many, method)) < 0.6 * largest, method


# S. Migacz, "8-bit inference with TensorRT", GTC 2017, "Entropy calibration - pseudocode", word for word, but that the first bin has the
# second one's count, and that Q is not scaled to the values it lacks, the clipped ones: generalised divergence, sum P log(P / Q) - P + Q.
def published(counts: list[float]) -> dict[int, float]:
    """Divergence for each number of bins that are kept, of at most 2048 bins that end with the largest magnitude."""
    bins = [counts[1], *counts[1:]]
    divergence = {}
    for i in range(128, len(bins) + 1):
        reference = bins[:i]
        outliers = sum(bins[i:])
        reference[i - 1] += outliers
        levels = [[place for place in range(i) if level * i // 128 <= place < (level + 1) * i // 128] for level in range(128)]
        candidate = [0.0] * i
        for level in levels:
            holding = [place for place in level if bins[place] != 0]
            for place in holding:
                candidate[place] = sum(bins[other] for other in level) / len(holding)
        divergence[i] = leibler(reference, candidate)
    return divergence


def leibler(p: list[float], q: list[float]) -> float:
    all_values = sum(p)
    total = 0.0
    for own, other in zip(p, q, strict=True):
        if own > 0:
            total += own / all_values * math.log((own / all_values) / max(other / all_values, 1e-12))
        total += other / all_values - own / all_values
    return total


def bins_kept(counts: list[int]) -> int:
    """What :func:`find_range` keeps of magnitudes that lie so in the first bins, the last of them the largest."""
    histogram = Histogram(0)
    for place, count in enumerate(counts):
        below = count // 3
        histogram.counts[BINS // 2 + place], histogram.counts[BINS // 2 - 1 - place] = count - below, below
    largest = (len(counts) - 0.5) * histogram.width
    found = threshold(find_range(histogram, -largest, largest, "entropy")) / histogram.width
    return len(counts) if found == len(counts) - 0.5 else round(found)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(129, 160).flatmap(lambda used: st.tuples(st.integers(1, 60), st.lists(st.integers(0, 500), min_size=used, max_size=used))),
    st.integers(0, 10**6),
)
@example((40, [0] * 140), 5)
@example((1, [1000] * 129), 10**6)
def test_entropy_is_as_published(drawn: tuple[int, list[int]], zeros: int) -> None:
    decay, counts = drawn
    counts = [math.ceil(count * math.exp(-place / decay)) for place, count in enumerate(counts)]
    counts[0] += zeros
    counts[-1] += 1
    divergence = published([float(count) for count in counts])
    found = bins_kept(counts)
    assert divergence[found] <= min(divergence.values()) + 1e-12
    assert found == next(end for end, loss in divergence.items() if loss <= divergence[found] + 1e-15), "the first of equals"


def divergences_of_many(counts: NDArray[np.int64]) -> dict[int, float]:
    """:func:`published` by cumulated counts."""
    bins = counts.astype(np.float64)
    bins[0] = bins[1]
    below, holding_below = (np.concatenate([[0], np.cumsum(entry)]) for entry in (bins, bins > 0))
    losses = {}
    for i in range(128, len(bins) + 1):
        reference = bins[:i].copy()
        reference[-1] += below[-1] - below[i]
        borders = [level * i // 128 for level in range(129)]
        means = np.diff(below[borders]) / np.maximum(np.diff(holding_below[borders]), 1)
        candidate = np.repeat(means, np.diff(borders)) * (bins[:i] > 0)
        p, q = reference / below[-1], candidate / below[-1]
        own = p > 0
        losses[i] = float((p[own] * np.log(p[own] / np.maximum(q[own], 1e-12))).sum() - p.sum() + q.sum())
    return losses


@pytest.mark.parametrize("name", ["laplace", "lognormal", "outlier"])
def test_entropy_of_all_bins(name: str) -> None:
    values = DRAWN[name]
    histogram = counted(values)
    largest = float(np.abs(values).max())
    pairs = histogram.magnitudes().reshape(-1, 2).sum(axis=1)
    used = math.floor(largest / (2 * histogram.width)) + 1
    assert 1024 < used <= 2048
    losses = divergences_of_many(pairs[:used])
    found = threshold(found_for(values, "entropy")) / (2 * histogram.width)
    assert found == round(found) < used, "it clips"
    assert losses[round(found)] <= min(losses.values()) + 1e-12


def test_entropy_does_not_make_all_values_one() -> None:
    """The published divergence is 0 for a threshold at the least magnitude, where nothing lies below it."""
    for values in (np.linspace(0.5, 2, 5000), RNG.choice([0.0, 0.5, 5.0], SIZE, p=[0.5, 0.4, 0.1]), RNG.uniform(3, 3.5, SIZE)):
        found = found_for(values.astype(np.float32), "entropy")
        assert threshold(found) == pytest.approx(values.max(), rel=0.01)


@pytest.mark.parametrize("largest", [0.51, 0.5001, 0.75, 0.9999, 1.0, 1.01])
def test_entropy_counts_bins_in_pairs_to_2048(largest: float) -> None:
    """All bins are alike: nothing is clipped, and what is alone in the last one counts."""
    values = np.linspace(0, largest, 40_001, dtype=np.float32)
    assert threshold(found_for(values, "entropy")) == pytest.approx(largest, rel=0.01)


def test_zeros_of_a_relu_do_not_decide() -> None:
    values = np.maximum(DRAWN["laplace"], 0)
    alone = found_for(values[values > 0], "entropy")
    assert found_for(np.append(values, np.zeros(10_000_000, np.float32)), "entropy") == alone
    assert threshold(alone) < 0.95 * values.max()


@pytest.mark.parametrize("method", METHODS)
def test_single_values(method: Method) -> None:
    for value in (3.0, -3.0, 1e-30, 1e38, -3e38, 2.0**-140):
        found = found_for(np.full(100, value, np.float32), method)
        assert threshold(found) == pytest.approx(abs(value))
        assert (found.low if value > 0 else found.high) == 0


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_zeros(method: Method) -> None:
    found = found_for(np.zeros(100, np.float32), method)
    assert found == Range(0.0, 0.0)
    assert (found.scale, found.affine) == (1.0, (1.0, 0))


@pytest.mark.parametrize(
    "ends", [(0.1, 1.0), (-1.0, -0.1), (1.0, -1.0), (-1.0, math.inf), (-math.inf, 0.0), (math.nan, 1.0), (-1.0, math.nan)]
)
def test_ranges_without_zero_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"The range .* … .* does not hold zero\. Calibrate again"):
        Range(*ends)


@given(magnitudes, magnitudes)
@example(1e-44, 0.0)
@example(127 * 65504.0, 1.0)
@example(float(np.nextafter(np.float32(127 * 65504.0), np.float32(np.inf))), 0.0)
@example(float(np.nextafter(np.float32(127.0), np.float32(200))), 0.0)
@example(float(np.nextafter(np.float32(127 * 1.5), np.float32(200))), 0.0)
def test_the_symmetric_scale_is_a_float16_that_clips_nothing(below: float, above: float) -> None:
    found = Range(-below, above)
    largest = max(below, above)
    assert type(found.scale) is float
    if not largest:
        assert found.scale == 1.0
        return
    assert found.scale > 0
    if largest <= 127 * 65504:
        half = np.float16(found.scale)
        assert float(half) == found.scale
        assert found.scale >= largest / 127
        assert float(np.nextafter(half, np.float16(0))) < largest / 127, "the least such number"
    else:
        assert found.scale == np.float32(largest / 127)


@given(magnitudes, magnitudes)
@example(1e-44, 0.0)
@example(0.0, 1e-44)
@example(3e38, 3e38)
@example(0.0, 1.0)
@example(1.0, 0.0)
def test_the_affine_scale_gives_both_ends(below: float, above: float) -> None:
    low, high = -below, above
    scale, zero = Range(low, high).affine
    assert type(scale) is float
    assert type(zero) is int
    if low == high == 0:
        assert (scale, zero) == (1.0, 0)
        return
    assert np.float32(scale) > 0
    assert np.float32(scale) * np.float32(2.0**-24) > 0, "the scale of a bias: times the least scale of a weight"
    assert 0 <= zero <= 255, "zero is a step"
    step = float(np.float32(scale))
    for end in (low, high):
        nearest = (min(max(round(end / step) + zero, 0), 255) - zero) * step
        assert abs(nearest - end) <= step * (0.5 + 1e-4)
    if high - low > 1e-20:
        assert scale == pytest.approx((high - low) / 255)


@pytest.mark.parametrize(
    ("ends", "wanted"), [((-1.0, 1.0), 128), ((0.0, 2.0), 0), ((-2.0, 0.0), 255), ((-0.1, 25.4), 1), ((-64.0, 191.0), 64)]
)
def test_zero_points(ends: tuple[float, float], wanted: int) -> None:
    assert Range(*ends).affine[1] == wanted
    assert Range(*ends).affine[0] == pytest.approx((ends[1] - ends[0]) / 255)
