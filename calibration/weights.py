"""Weights on their int8 grids: symmetric, a scale for each output channel.

Scales are float16 numbers, rounded up: the steps are then the same whether float32 or float16 stands around the Q/DQ pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["float16_above", "snapped", "weight_integers", "weight_scales"]


def float16_above(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """float32 of the same shape: the least float16 numbers that are not below positive `values`; those beyond float16 stay as they are."""
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float16)
        above = np.where(nearest.astype(np.float64) < values, np.nextafter(nearest, np.float16(np.inf)), nearest).astype(np.float32)
    return np.where(np.isfinite(above), above, values).astype(np.float32)


def weight_scales(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [out]: the largest magnitude of each output channel of [out, in, kh, kw] / 127, as float16; 1 where all are zero."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1).astype(np.float64)
    return np.where(largest > 0, float16_above(largest / 127), np.float32(1)).astype(np.float32)


def weight_integers(weight: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """int8 of the same shape: the nearest step, -127 … 127; halves go to the even one, as QuantizeLinear rounds."""
    steps = np.rint(weight / scales.reshape(-1, *[1] * (weight.ndim - 1)))
    clipped: NDArray[np.int8] = np.clip(steps, -127, 127).astype(np.int8)
    return clipped


def snapped(integers: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32: the steps as values. Quantizing them again, in float32 or, where it holds them, float16, gives the same steps."""
    return (integers * scales.reshape(-1, *[1] * (integers.ndim - 1))).astype(np.float32)
