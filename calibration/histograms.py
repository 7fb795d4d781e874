"""Histograms that grow with what they see: no first pass over the pictures, and the same counts in whatever order these come.

Bins end at multiples of a power of two, so that the histogram of a wider range is that of a narrower one with bins added in pairs: exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "LARGEST", "SMALLEST", "Histogram"]

BINS = 8192
"""Bins of a histogram, half of them below zero: at least 2048 of them cover 0 … the largest magnitude."""

_PIECE = 1 << 23  # values counted at once: counts come as float32, which is exact so far
SMALLEST, LARGEST = -60, 128
"""Exponents of the limit: where nothing but zeros was seen, and where float32 ends."""


@dataclass
class Histogram:
    """Counts of float values in :data:`BINS` bins of equal width over [-limit, limit).

    Attributes:
        exponent: the limit is 2 ** exponent, above every magnitude seen.
        counts: int64 [BINS]; bin BINS / 2 starts at zero.
    """

    exponent: int = SMALLEST
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def limit(self) -> float:
        """Where the last bin ends."""
        return math.ldexp(1.0, self.exponent)

    @property
    def width(self) -> float:
        """Of a bin."""
        return math.ldexp(1.0, self.exponent + 1) / BINS

    def add(self, values: NDArray[np.float32], largest: float) -> None:
        """Count `values`, float32 of any shape, none of a larger magnitude than `largest`, all of them finite."""
        self.grow(_exponent_above(largest))
        flat: NDArray[Any] = np.ascontiguousarray(values, np.float32).reshape(1, -1)
        share = 0.5 if self.exponent == LARGEST else 1.0  # OpenCV takes the limits as float32
        for start in range(0, flat.shape[1], _PIECE):
            piece = flat[:, start : start + _PIECE] * np.float32(share) if share < 1 else flat[:, start : start + _PIECE]
            found = cv2.calcHist([piece], [0], None, [BINS], [-self.limit * share, self.limit * share])
            self.counts += found.reshape(-1).astype(np.int64)

    def merge(self, other: Histogram) -> None:
        """Add the counts of `other`, which may be widened for that."""
        self.grow(other.exponent)
        other.grow(self.exponent)
        self.counts = self.counts + other.counts

    def grow(self, exponent: int) -> None:
        """Widen to 2 ** `exponent`, where that is more: bins are added in pairs."""
        while self.exponent < exponent:
            if not self.counts.any():
                self.exponent = exponent
                return
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : 3 * BINS // 4] = merged
            self.exponent += 1

    def magnitudes(self) -> NDArray[np.int64]:
        """int64 [BINS / 2]: how many values have a magnitude in each bin above zero."""
        half = BINS // 2
        return self.counts[half:] + self.counts[half - 1 :: -1]


def _exponent_above(largest: float) -> int:
    return max(math.frexp(largest)[1], SMALLEST) if largest > 0 else SMALLEST
