"""Network outputs to probabilities and boxes, and relative boxes to pixels of a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_boxes", "pixel_boxes", "softmax"]

CENTRE_VARIANCE = 0.1
SIZE_VARIANCE = 0.2


def softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Class probabilities.

    Args:
        logits: [..., C] of any float type; computed in float32.

    Returns:
        float32 [..., C], each row summing to 1; a row that holds NaN is NaN throughout.
    """
    values = np.asarray(logits, np.float32)
    with np.errstate(invalid="ignore"):
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def decode_boxes(loc: NDArray[Any], priors: NDArray[Any]) -> NDArray[np.float32]:
    """Box regressions to corners (the SSD parametrisation that YOLACT uses, variances 0.1 and 0.2).

    ``centre = prior + loc * 0.1 * size``, ``size' = size * exp(loc * 0.2)``, in this order of float32 operations; then the
    upper left corner is ``centre - size' / 2`` and the lower right one is that corner plus ``size'``.

    Args:
        loc: [P, 4], the box head's output (dx, dy, dw, dh).
        priors: [P, 4], (cx, cy, w, h) relative to the picture.

    Returns:
        float32 [P, 4], x1, y1, x2, y2 relative to the picture, not clipped to it.

    Raises:
        ValueError: the two shapes differ or are not [P, 4].
    """
    offsets, anchors = np.asarray(loc, np.float32), np.asarray(priors, np.float32)
    if offsets.ndim != 2 or offsets.shape[1] != 4 or offsets.shape != anchors.shape:
        raise ValueError(f"loc {list(offsets.shape)} and priors {list(anchors.shape)} were given, both must be [P, 4]")
    boxes = np.empty_like(offsets)
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = anchors[:, 2:] * np.exp(offsets[:, 2:] * np.float32(SIZE_VARIANCE))
        centres = anchors[:, :2] + offsets[:, :2] * np.float32(CENTRE_VARIANCE) * anchors[:, 2:]
        boxes[:, :2] = centres - sizes / 2
        boxes[:, 2:] = sizes + boxes[:, :2]
    return boxes


def pixel_boxes(boxes: NDArray[Any], width: int, height: int) -> NDArray[np.float32]:
    """Relative boxes in pixels of a picture, as the original implementation has them before it truncates to integers.

    Corners are put in order; then only the smaller coordinate is raised to 0 and only the larger cut to the picture's size, so a
    box wholly outside ends with x1 > x2 or y1 > y2.

    Args:
        boxes: [N, 4], x1, y1, x2, y2 relative to the picture.
        width: the picture's, in pixels.
        height: the picture's, in pixels.

    Returns:
        float32 [N, 4], x1, y1, x2, y2 in pixels.
    """
    size = np.array([width, height], np.float32)
    corners = np.asarray(boxes, np.float32).reshape(-1, 2, 2) * size
    with np.errstate(invalid="ignore"):
        low = np.maximum(corners.min(axis=1), np.float32(0))
        high = np.minimum(corners.max(axis=1), size)
    return np.concatenate([low, high], axis=1)
