"""From what was seen to the range that is kept: minmax, percentile, entropy and mean squared error.

A range is symmetric in what it clips: a threshold T on the magnitude, then ``max(low, -T)`` and ``min(high, T)``. Both graphs take their
scales from it: int8 ``max(|low|, |high|) / 127``, uint8 ``(high - low) / 255``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import ConfigError

from .histograms import Histogram
from .weights import float16_above

__all__ = ["METHODS", "Method", "Range", "find_range"]

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

_LEVELS = 128  # of int8 above zero, zero included
_ENTROPY_BINS = 2048  # at most: as the method was published
_LEAST_SCALE = 2.0**-80  # so that float32 holds it, and its products with the scales of weights
_CANDIDATES = np.geomspace(1 / 16, 1.0, 171)  # thresholds as shares of the largest magnitude; below, a step is narrower than a bin


@dataclass(frozen=True)
class Range:
    """Values from `low` to `high` are kept, others clipped; `low` <= 0 <= `high`, so that zero is exact."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= 0 <= self.high or not np.isfinite([self.low, self.high]).all():
            raise ConfigError(f"The range {self.low:g} … {self.high:g} does not hold zero.", "Calibrate again.")

    @property
    def scale(self) -> float:
        """Of symmetric int8, a float16 number: see :mod:`.weights`; 1 where the range is empty."""
        largest = max(-self.low, self.high)
        return float(float16_above(np.array(largest / 127))) if largest else 1.0

    @property
    def affine(self) -> tuple[float, int]:
        """Scale and zero point of uint8; (1, 0) where the range is empty."""
        span = self.high - self.low
        scale = max(span / 255, _LEAST_SCALE)
        return (scale, round(-self.low / scale)) if span else (1.0, 0)


def find_range(histogram: Histogram, low: float, high: float, method: Method, percentile: float = 99.99) -> Range:
    """The range of a value seen between `low` and `high`, by `method`; `percentile` of the magnitudes is kept by that method.

    Raises :class:`ConfigError` for a percentile that is none.
    """
    if not 50 <= percentile <= 100:
        raise ConfigError(f"The percentile is {percentile:g}, 50 to 100 was wanted.", "Mend --percentile.")
    low, high = min(low, 0.0), max(high, 0.0)
    largest = max(-low, high)
    if not largest or method == "minmax":
        return Range(low, high)
    counts = histogram.magnitudes()
    if method == "percentile":
        threshold = _percentile(counts, percentile) * histogram.width
    elif method == "entropy":
        threshold = _entropy(counts, histogram.width, largest)
    else:
        threshold = _mean_squared_error(counts, histogram.width, largest)
    threshold = min(threshold, largest)
    return Range(max(low, -threshold), min(high, threshold))


def _percentile(counts: NDArray[np.int64], percentile: float) -> int:
    """Bins that hold so many percent of the values."""
    cumulated = np.cumsum(counts)
    return int(np.searchsorted(cumulated, cumulated[-1] * (percentile / 100))) + 1


def _entropy(counts: NDArray[np.int64], width: float, largest: float) -> float:
    """The threshold whose 128 levels lose the least information: the divergence of Kullback and Leibler.

    S. Migacz, "8-bit inference with TensorRT", GTC 2017, but for two things. Zeros are exact whatever the scale, and a ReLU makes most
    values zero: the first bin is given the second one's count, so that they do not decide. And what is clipped is missing in Q: as
    published, both are normalised, and a threshold at the least magnitude, which makes all values one, loses nothing.
    """
    used = min(int(largest / width) + 1, len(counts))
    while used > _ENTROPY_BINS:
        counts, width = counts.reshape(-1, 2).sum(axis=1), 2 * width
        used = -(-used // 2)
    seen = counts[:used].astype(np.float64)
    if used > 1:
        seen[0] = seen[1]
    if used <= _LEVELS or not seen.any():
        return largest
    beyond = np.concatenate([np.cumsum(seen[::-1])[::-1], [0.0]])
    ends = range(_LEVELS, used + 1)
    losses = [_divergence(seen[:end], beyond[end]) for end in ends]
    return (ends[int(np.argmin(losses))]) * width


def _divergence(seen: NDArray[np.float64], clipped: float) -> float:
    """KL(P || Q): P is `seen` with the clipped in its last bin, Q is `seen` in 128 levels, each spread over its bins that are not empty.

    Both as shares of all values: ``sum P log(P / Q) - sum P + sum Q``.
    """
    starts = np.arange(_LEVELS) * len(seen) // _LEVELS
    holds = seen > 0
    sums = np.add.reduceat(seen, starts)
    kinds = np.add.reduceat(holds, starts, dtype=np.int64)
    means = np.divide(sums, kinds, out=np.zeros_like(sums), where=kinds > 0)
    given = np.where(holds, np.repeat(means, np.diff(np.append(starts, len(seen)))), 0.0)
    wanted = seen.copy()
    wanted[-1] += clipped
    wanted, given = wanted / wanted.sum(), given / wanted.sum()
    present = wanted > 0
    lost = np.sum(wanted[present] * np.log(wanted[present] / np.maximum(given[present], 1e-12)))
    return float(lost - 1 + given.sum())


def _mean_squared_error(counts: NDArray[np.int64], width: float, largest: float) -> float:
    """The threshold with the least mean squared error of rounding and clipping, values taken at the middle of their bins."""
    used = min(int(largest / width) + 1, len(counts))
    values = (np.arange(used) + 0.5) * width
    values[0] = 0.0  # the zeros of a ReLU are exact
    thresholds = _CANDIDATES * largest
    scales = (thresholds / 127)[:, None]
    rounded = np.minimum(np.rint(values / scales), 127) * scales
    errors = ((rounded - values) ** 2) @ counts[:used].astype(np.float64)
    return float(thresholds[int(np.argmin(errors))])
