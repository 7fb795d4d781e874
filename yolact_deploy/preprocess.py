"""Pictures to the network's input: resize as float, normalise, channels first (the original's ``FastBaseTransform``).

The bilinear weights are computed here and not left to ``cv2.resize``: OpenCV's own positions move away from those that the
reference network was trained and tested with (``torch.nn.functional.interpolate``), the further the wider the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import PictureError
from yolact_deploy.manifest import InputSpec
from yolact_deploy.pictures import Picture, require_picture

__all__ = ["prepare", "prepare_batch"]

_BAND = 64  # output rows at a time: the intermediate values then stay in the processor's cache


def prepare(picture: Picture, spec: InputSpec) -> NDArray[Any]:
    """One picture as the network's input, without the batch axis.

    Args:
        picture: uint8 RGB [H, W, 3], any size; the aspect ratio is not kept.
        spec: S, layout, channel order and normalisation.

    Returns:
        ``float``: float32 [3, S, S], RGB, ``(x - mean) / std`` of the resized picture; ``raw``: uint8 [S, S, 3] in the order of
        ``spec.channels``, the resized picture rounded to the nearest integer.

    The resizing is bilinear, ``align_corners=False``, without antialiasing, in float32: in 0 … 255 as near to torch
    as its own kernels are to each other (2e-3 for photographs' sizes). Raises :class:`PictureError` for any other array.
    """
    require_picture(picture)
    if spec.layout == "raw":
        return _raw(picture, spec)
    result = np.empty((3, spec.size, spec.size), np.float32)
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    for rows, channel, values in _resized(picture, spec.size):
        values -= mean[channel]
        np.divide(values, std[channel], out=result[channel, rows])
    return result


def prepare_batch(pictures: Sequence[Picture], spec: InputSpec) -> NDArray[Any]:
    """:func:`prepare` for B pictures of any sizes: float32 [B, 3, S, S] or uint8 [B, S, S, 3]."""
    if not len(pictures):
        raise PictureError("A batch of 0 pictures was given, at least one was wanted.", "Leave the call out for an empty batch.")
    return np.stack([prepare(picture, spec) for picture in pictures])


def _raw(picture: Picture, spec: InputSpec) -> NDArray[np.uint8]:
    result = np.empty((spec.size, spec.size, 3), np.uint8)
    for rows, channel, values in _resized(picture, spec.size):
        place = channel if spec.channels == "rgb" else 2 - channel
        result[rows, :, place] = np.clip(np.rint(values, out=values), 0, 255)
    return result


def _resized(picture: Picture, size: int) -> Iterator[tuple[slice, int, NDArray[np.float32]]]:
    """The resized picture in pieces: the rows, the channel, and its float32 [rows, size] in 0 … 255, free to be overwritten."""
    height, width = picture.shape[:2]
    columns, lines = _Axis.of(width, size), _Axis.of(height, size)
    for first in range(0, size, _BAND):
        rows = slice(first, min(first + _BAND, size))
        used, above, below = _compact(lines.lower[rows], lines.upper[rows])
        band = picture[used]
        down = lines.weight[rows, None]
        for channel in range(3):
            plane = columns.mix(band[..., channel])
            values, other = plane.take(above, axis=0), plane.take(below, axis=0)
            other -= values
            other *= down
            values += other
            yield rows, channel, values


def _compact(lower: NDArray[np.int64], upper: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The samples that `lower` and `upper` name, each once and ascending, and both as positions among these."""
    used = np.unique(np.concatenate([lower, upper]))
    return used, np.searchsorted(used, lower), np.searchsorted(used, upper)


@dataclass(frozen=True, eq=False)
class _Axis:
    """Pixel i of `size` is ``sample[lower[i]] + weight[i] * (sample[upper[i]] - sample[lower[i]])``."""

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weight: NDArray[np.float32]

    @classmethod
    def of(cls, samples: int, size: int) -> _Axis:
        """Position ``(i + 0.5) * samples / size - 0.5``, not below 0, each step rounded to float32 as torch does with several threads.

        (With one thread, for some small outputs and on a GPU, torch leaves out the rounding of the product.)
        """
        scale = np.float32(samples) / np.float32(size)
        position = np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0))
        lower = np.minimum(position.astype(np.int64), samples - 1)
        return cls(lower, np.minimum(lower + 1, samples - 1), np.minimum(position - lower.astype(np.float32), np.float32(1)))

    def mix(self, plane: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [rows, size] of uint8 [rows, samples]."""
        samples = plane.astype(np.float32)
        values, other = samples.take(self.lower, axis=1), samples.take(self.upper, axis=1)
        other -= values
        other *= self.weight
        values += other
        return values
