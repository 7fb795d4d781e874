"""Boxes in training: corner and centre form, IoU, and the regression targets that decoding inverts (SSD, arXiv:1512.02325, section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CENTRE_VARIANCE", "SIZE_VARIANCE", "corners", "encode", "overlaps"]

CENTRE_VARIANCE = 0.1
SIZE_VARIANCE = 0.2


def corners(priors: Tensor) -> Tensor:
    """(cx, cy, w, h) [P, 4] -> (x1, y1, x2, y2) [P, 4]."""
    return torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)


def overlaps(boxes: Tensor, others: Tensor, *, over_first: bool = False) -> Tensor:
    """IoU of each of `boxes` [N, 4] with each of `others` [M, 4], corner form: [N, M].

    With `over_first` the intersection is divided by the area of `boxes` alone, as crowds are compared. Where the divisor is 0 the
    result is 0.
    """
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None]
    divisor = area.expand_as(shared) if over_first else area + (others[:, 2:] - others[:, :2]).prod(1)[None] - shared
    return torch.where(divisor > 0, shared / divisor, torch.zeros_like(shared))


def encode(boxes: Tensor, priors: Tensor) -> Tensor:
    """Regression targets [P, 4] of `boxes` (corner form, [P, 4]) against `priors` (centre form, [P, 4]).

    Centre: (box centre - prior centre) / (0.1 prior size); size: log(box size / prior size) / 0.2. Boxes without a width or height
    are taken as 1e-6 wide or high, so that the target stays finite.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 - priors[:, :2]
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    return torch.cat([centre / (CENTRE_VARIANCE * priors[:, 2:]), torch.log(size / priors[:, 2:]) / SIZE_VARIANCE], 1)
