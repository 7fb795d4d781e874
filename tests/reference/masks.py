"""Mask assembly and boxes in pixels written out in torch, with full-size masks: the truth that the fast implementations are held to.

It shares no code with the package and must not import it. `prototypes` are [K, h, w], `coefficients` [N, K], `boxes` [N, 4]
(x1, y1, x2, y2 relative).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

__all__ = ["assemble", "crop", "crop_probabilities", "pixel_boxes", "resize", "resize_in_float32", "truncated_boxes"]


def crop(masks: Tensor, boxes: Tensor) -> Tensor:
    """[N, h, w] times 1 in the box and one sample around it, 0 elsewhere."""
    _, h, w = masks.shape
    kept = []
    for first, second, size in ((boxes[:, 0], boxes[:, 2], w), (boxes[:, 1], boxes[:, 3], h)):
        low = torch.clamp(torch.minimum(first * size, second * size) - 1, min=0)[:, None]
        high = torch.clamp(torch.maximum(first * size, second * size) + 1, max=size)[:, None]
        j = torch.arange(size, dtype=torch.float32)[None]
        kept.append((j >= low) & (j < high))
    return masks * (kept[1][:, :, None] & kept[0][:, None, :]).float()


def crop_probabilities(prototypes: Tensor, coefficients: Tensor, boxes: Tensor) -> Tensor:
    """[N, h, w]: sigmoid of the linear combination, cropped."""
    combined = prototypes.permute(1, 2, 0) @ coefficients.T
    return crop(torch.sigmoid(combined).permute(2, 0, 1), boxes)


def resize(probabilities: Tensor, width: int, height: int) -> Tensor:
    """[N, height, width] float32."""
    return functional.interpolate(probabilities[None], (height, width), mode="bilinear", align_corners=False)[0]


def assemble(prototypes: Tensor, coefficients: Tensor, boxes: Tensor, width: int, height: int) -> Tensor:
    """bool [N, height, width]."""
    return resize(crop_probabilities(prototypes, coefficients, boxes), width, height) > 0.5


def pixel_boxes(boxes: Tensor, width: int, height: int) -> Tensor:
    """Ordered; the smaller coordinate not below 0, the larger not above the size."""
    x1, y1, x2, y2 = boxes[:, 0] * width, boxes[:, 1] * height, boxes[:, 2] * width, boxes[:, 3] * height
    return torch.stack(
        [
            torch.clamp(torch.minimum(x1, x2), min=0),
            torch.clamp(torch.minimum(y1, y2), min=0),
            torch.clamp(torch.maximum(x1, x2), max=width),
            torch.clamp(torch.maximum(y1, y2), max=height),
        ],
        dim=1,
    )


def truncated_boxes(boxes: Tensor, width: int, height: int) -> Tensor:
    return pixel_boxes(boxes, width, height).long()


def resize_in_float32(probabilities: np.ndarray, width: int, height: int) -> np.ndarray:
    """float32 [N, height, width]: each pixel from its four samples, across first, each step rounded to float32.

    torch.nn.functional.interpolate takes the same weights, but may fuse a product and a sum: where a value lies within
    float32 rounding of 0.5 the two can fall on different sides.
    """
    left, right, to_left, to_right = _axis(probabilities.shape[2], width)
    upper, lower, to_upper, to_lower = _axis(probabilities.shape[1], height)
    across = to_left * probabilities[:, :, left] + to_right * probabilities[:, :, right]
    return to_upper[:, None] * across[:, upper] + to_lower[:, None] * across[:, lower]


def _axis(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Both samples of each pixel and their weights."""
    one, half = np.float32(1), np.float32(0.5)
    scale = np.float32(size_in) / np.float32(size_out)
    source = np.maximum((np.arange(size_out).astype(np.float32) + half) * scale - half, np.float32(0))
    first = np.minimum(np.floor(source).astype(int), size_in - 1)
    weight = source - first.astype(np.float32)
    return first, np.minimum(first + 1, size_in - 1), one - weight, weight
