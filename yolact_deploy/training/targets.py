"""Which prior learns which object: the matching of SSD (arXiv:1512.02325, section 2.2) with YOLACT's thresholds and crowds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yolact_deploy.training.boxes import corners, encode, overlaps

__all__ = ["NEUTRAL", "PriorTargets", "Target", "match_priors"]

NEUTRAL = -1
"""Class of a prior that is neither an object nor background."""
_POSITIVE_IOU, _BACKGROUND_IOU, _CROWD_SHARE = 0.5, 0.4, 0.7


class Target(NamedTuple):
    """What one training picture of S x S pixels shows.

    Attributes:
        boxes: float32 [N, 4], x1, y1, x2, y2 relative to the picture.
        labels: int64 [N], 0-based without background.
        masks: uint8 [N, S, S] of 0 and 1.
        crowd_boxes: float32 [M, 4], regions that hold a crowd: no object, no background.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    crowd_boxes: Tensor

    def to(self, device: torch.device) -> Target:
        """The same on `device`."""
        return Target(*(value.to(device, non_blocking=True) for value in self))


class PriorTargets(NamedTuple):
    """What each of P priors learns.

    Attributes:
        classes: int64 [P], 0 background, label + 1 of an object, :data:`NEUTRAL`.
        objects: int64 [P], index of the object that the prior fits best.
        loc: float32 [P, 4], the regression target for it.
    """

    classes: Tensor
    objects: Tensor
    loc: Tensor


def match_priors(target: Target, priors: Tensor) -> PriorTargets:
    """Match `priors` (centre form, [P, 4]) with the objects of one picture.

    A prior is positive from an IoU of 0.5 with its best object, background below 0.4, else neutral. Each object in addition gets a
    prior of its own: the best pair of all first, its object and prior taken out, then the next. Of the rest, priors that lie in a
    crowd by more than 0.7 of their area are neutral. A picture without objects is all background.
    """
    count = len(priors)
    if not len(target.boxes):
        classes = torch.zeros(count, dtype=torch.int64, device=priors.device)
        objects, loc = torch.zeros_like(classes), torch.zeros_like(priors)
    else:
        table = overlaps(target.boxes, corners(priors))
        best, objects = table.max(0)
        best, objects = best.clone(), objects.clone()
        for _ in range(min(len(target.boxes), count)):
            pair = int(table.argmax())
            chosen, prior = divmod(pair, count)
            table[:, prior] = -1
            table[chosen] = -1
            best[prior], objects[prior] = 2.0, chosen
        classes = target.labels[objects] + 1
        classes[best < _POSITIVE_IOU] = NEUTRAL
        classes[best < _BACKGROUND_IOU] = 0
        loc = encode(target.boxes[objects], priors)
    if len(target.crowd_boxes):
        share = overlaps(corners(priors), target.crowd_boxes, over_first=True).amax(1)
        classes[(classes <= 0) & (share > _CROWD_SHARE)] = NEUTRAL
    return PriorTargets(classes, objects, loc)
