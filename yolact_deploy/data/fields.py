"""Integer arithmetic on pixel grids, shared by the pictures that the package draws: the same bytes on every machine.

Lengths are in 1/256 pixel, parts and coverages in 0 … 256.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["ONE", "Field", "root", "smooth_steps", "span"]

Field = NDArray[np.int64]
"""int64, one number a pixel."""
ONE = 256
"""One pixel, or the whole of something."""


def root(square: Field) -> Field:
    """Integer square root; float64 is exact to the last bit on every machine, and the result is floored."""
    return np.sqrt(square.astype(np.float64)).astype(np.int64)


def smooth_steps(length: int, cell: int) -> tuple[Field, Field]:
    """For each of `length` pixels its cell of `cell` pixels and how far it has passed it, 0 … 256, eased at both ends (3t² - 2t³)."""
    places = np.arange(length, dtype=np.int64)
    part = places % cell * ONE // cell
    return places // cell, part * part * (3 * ONE - 2 * part) // (ONE * ONE)


def span(centre: int, reach: int, length: int) -> tuple[int, int]:
    """First and one past the last of the pixels within `reach` of `centre` that 0 … `length` holds."""
    return max(centre - reach, 0), min(centre + reach + 1, length)
