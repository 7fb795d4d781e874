"""Mask assembly: prototypes and coefficients to cropped probabilities, and to COCO RLE at the picture's size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.postprocess.contours import Grid, transitions
from yolact_deploy.postprocess.rle import compressed_counts

__all__ = ["crop_probabilities", "mask_rles", "rles_from_probabilities"]

Floats = NDArray[np.float32]

CROP_PADDING = np.float32(1)
SAMPLES_AT_ONCE = 1 << 19
COLUMNS_AT_ONCE = 1 << 22
PRODUCTS_AT_ONCE = 1 << 18  # OpenBLAS starts threads from here on
SAMPLES_IN_BLOCK = 32


def crop_probabilities(prototypes: NDArray[Any], coefficients: NDArray[Any], boxes: NDArray[Any]) -> Floats:
    """Mask probabilities at prototype size, zero outside the box with one sample of padding (YOLACT, section 3.1).

    Args:
        prototypes: [K, h, w], float32 or float16.
        coefficients: [N, K], after tanh.
        boxes: [N, 4], x1, y1, x2, y2 relative to the picture.

    Returns:
        float32 [N, h, w]: ``sigmoid(coefficients . prototypes)`` where ``max(x1 * w - 1, 0) <= column < min(x2 * w + 1, w)`` and
        rows alike, x1 <= x2 enforced, nothing rounded.

    Raises:
        ValueError: shapes that do not fit.
    """
    samples, weights = np.asarray(prototypes, np.float32), np.asarray(coefficients, np.float32)
    if samples.ndim != 3 or weights.ndim != 2 or samples.shape[0] != weights.shape[1] or 0 in samples.shape[1:]:
        raise ValueError(f"prototypes {list(samples.shape)} and coefficients {list(weights.shape)} must be [K, h, w] and [N, K]")
    _, h, w = samples.shape
    masks = _combined(weights, samples.reshape(len(samples), h * w))
    with np.errstate(over="ignore", invalid="ignore"):
        np.negative(masks, out=masks)
        np.exp(masks, out=masks)
        masks += np.float32(1)
        np.reciprocal(masks, out=masks)
    return _cropped(masks.reshape(-1, h, w), _checked_boxes(boxes, len(weights)))


def mask_rles(prototypes: NDArray[Any], coefficients: NDArray[Any], boxes: NDArray[Any], width: int, height: int) -> list[bytes]:
    """Compressed COCO RLE of each detection's mask at the picture's size: assembled, cropped, resized bilinearly, > 0.5.

    Memory does not grow with the picture's area: full-size masks are never made.

    Args:
        prototypes: [K, h, w], float32 or float16.
        coefficients: [N, K], after tanh.
        boxes: [N, 4], x1, y1, x2, y2 relative to the picture.
        width: the picture's, in pixels.
        height: the picture's, in pixels.

    Returns:
        N byte strings, ``counts`` of pycocotools for ``size`` [height, width].

    Raises:
        ValueError: shapes that do not fit, or a picture without pixels.
    """
    samples, weights = np.asarray(prototypes, np.float32), np.asarray(coefficients, np.float32)
    corners = _checked_boxes(boxes, len(weights))
    grid = _grid(samples.shape, width, height)
    found: list[bytes] = []
    for portion in _portions(len(weights), samples.shape, width):
        found += _rles(crop_probabilities(samples, weights[portion], corners[portion]), grid)
    return found


def rles_from_probabilities(probabilities: NDArray[Any], boxes: NDArray[Any] | None, width: int, height: int) -> list[bytes]:
    """Compressed COCO RLE of masks given at prototype size: resized bilinearly to the picture, > 0.5.

    Args:
        probabilities: [N, h, w] in [0, 1], float32 or float16.
        boxes: [N, 4] relative to crop to first (again changes nothing), or None where `probabilities` are cropped already.
        width: the picture's, in pixels.
        height: the picture's, in pixels.

    Returns:
        N byte strings as of :func:`mask_rles`.

    Raises:
        ValueError: shapes that do not fit, or a picture without pixels.
    """
    masks = np.asarray(probabilities)
    corners = None if boxes is None else _checked_boxes(boxes, len(masks))
    grid = _grid(masks.shape, width, height)
    found: list[bytes] = []
    for portion in _portions(len(masks), masks.shape, width):
        chosen = masks[portion].astype(np.float32)
        found += _rles(chosen if corners is None else _cropped(chosen, corners[portion]), grid)
    return found


def _combined(weights: Floats, samples: Floats) -> Floats:
    """`weights` [N, K] times `samples` [K, S], in blocks that BLAS does with one thread.

    Of two cores, a second thread gained 0.2 ms while the other was idle and cost 16 ms of waiting while it was busy (27 masks).
    """
    combined = np.empty((len(weights), samples.shape[1]), np.float32)
    step = max(PRODUCTS_AT_ONCE // max(weights.size, 1), SAMPLES_IN_BLOCK)
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, samples.shape[1], step):
            np.matmul(weights, samples[:, first : first + step], out=combined[:, first : first + step])
    return combined


def _cropped(masks: Floats, boxes: Floats) -> Floats:
    """`masks` [N, h, w], set to zero outside the padded boxes, in place."""
    _, h, w = masks.shape
    columns = _kept(boxes[:, 0], boxes[:, 2], w)
    rows = _kept(boxes[:, 1], boxes[:, 3], h)
    masks[~(rows[:, :, None] & columns[:, None, :])] = 0
    return masks


def _kept(ends: Floats, other_ends: Floats, size: int) -> NDArray[np.bool_]:
    """bool [N, size]: the samples of one axis that a padded box keeps."""
    with np.errstate(invalid="ignore", over="ignore"):
        ends, other_ends = ends * np.float32(size), other_ends * np.float32(size)
        low = np.minimum(ends, other_ends) - CROP_PADDING
        high = np.maximum(ends, other_ends) + CROP_PADDING
        samples = np.arange(size, dtype=np.float32)
        return np.asarray((samples >= low[:, None]) & (samples < high[:, None]))


def _rles(masks: Floats, grid: Grid) -> list[bytes]:
    return compressed_counts(transitions(masks, grid), len(masks), grid.width * grid.height)


def _grid(shape: tuple[int, ...], width: int, height: int) -> Grid:
    if len(shape) != 3 or 0 in shape[1:]:
        raise ValueError(f"masks at prototype size have shape {list(shape)}, three dimensions [.., h, w] were wanted")
    if width < 1 or height < 1:
        raise ValueError(f"the picture is {width} x {height} pixels, at least 1 x 1 was wanted")
    return Grid.over((shape[1], shape[2]), width, height)


def _portions(count: int, shape: tuple[int, ...], width: int) -> list[slice]:
    """Masks to do at once, so that neither their samples nor, where all of it is outline, their columns take much memory."""
    h, w = shape[1:]
    step = max(min(SAMPLES_AT_ONCE // (h * w), COLUMNS_AT_ONCE // (h * width)), 1)
    return [slice(first, first + step) for first in range(0, count, step)]


def _checked_boxes(boxes: NDArray[Any], count: int) -> Floats:
    corners = np.asarray(boxes, np.float32)
    if corners.shape != (count, 4):
        raise ValueError(f"boxes have shape {list(corners.shape)}, [{count}, 4] was wanted")
    return corners
