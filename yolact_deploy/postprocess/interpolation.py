"""Bilinear resizing along one axis, the way torch.nn.functional.interpolate does it with align_corners false."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Axis", "bilinear_axis"]


@dataclass(frozen=True, eq=False)
class Axis:
    """How `size_out` pixels mix `size_in` samples: pixel i is ``lower[i] * sample[j] + upper[i] * sample[min(j + 1, size_in - 1)]``.

    Attributes:
        lower, upper: float32 [size_out].
        starts: int64 [size_in + 1]; the pixels of sample j are ``starts[j] .. starts[j + 1] - 1``, perhaps none.
        scale: samples a pixel (float32 precision).
    """

    lower: NDArray[np.float32]
    upper: NDArray[np.float32]
    starts: NDArray[np.int64]
    scale: float

    def tables(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`lower` and `upper` by sample: float32 [size_in, widest], zero behind a sample's last pixel."""
        counts = np.diff(self.starts)
        offsets = np.arange(max(int(counts.max()), 1))
        within = offsets < counts[:, None]
        pixels = np.minimum(self.starts[:-1, None] + offsets, len(self.lower) - 1)
        zero = np.float32(0)
        return np.where(within, self.lower[pixels], zero), np.where(within, self.upper[pixels], zero)


def bilinear_axis(size_in: int, size_out: int) -> Axis:
    """Source position ``(i + 0.5) * size_in / size_out - 0.5``, not below 0, each step rounded to float32 as torch does."""
    scale = np.float32(size_in) / np.float32(size_out)
    source = (np.arange(size_out, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    source = np.maximum(source, np.float32(0))
    sample = np.minimum(source.astype(np.int64), size_in - 1)
    upper = np.minimum(source - sample.astype(np.float32), np.float32(1))
    starts = np.searchsorted(sample, np.arange(size_in + 1))
    return Axis(np.float32(1) - upper, upper, starts.astype(np.int64), float(scale))
