"""The training losses (arXiv:1904.02689, section 3; the mask-IoU loss: arXiv:1912.06218, section 3.4), held to the original's numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from yolact_deploy.model.network import HeadOutputs
from yolact_deploy.training.targets import PriorTargets, Target, match_priors

__all__ = ["LossSettings", "MultiBoxLoss", "NetworkWithLoss"]


@dataclass(frozen=True)
class LossSettings:
    """Weights and limits of the losses.

    Attributes:
        box, mask, semantic, mask_iou: factors of the terms; the class term has factor 1.
        negatives: background priors that are trained for each positive one of a picture.
        masks_per_picture: positive priors of a picture whose masks are trained, chosen at random.
        least_mask_area: prototype pixels above which a ground-truth mask takes part in the mask-IoU loss.
    """

    box: float = 1.5
    mask: float = 6.125
    semantic: float = 1.0
    mask_iou: float = 25.0
    negatives: int = 3
    masks_per_picture: int = 100
    least_mask_area: int = 25


class MultiBoxLoss:
    """All terms for a batch; `mask_iou_net` is the network's, for variants with mask rescoring."""

    def __init__(self, settings: LossSettings | None = None, mask_iou_net: Callable[[Tensor], Tensor] | None = None) -> None:
        self.settings = settings or LossSettings()
        self.mask_iou_net = mask_iou_net

    def __call__(
        self, outputs: HeadOutputs, priors: Tensor, targets: Sequence[Target], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Scalars by name: ``box``, ``mask``, ``class``, ``semantic`` and, with a mask-IoU net, ``mask_iou``.

        Each but ``semantic`` is divided by the batch's positive priors (at least 1), ``semantic`` by the number of pictures.
        `generator` (of the CPU) draws the masks that are trained. Everything is computed in float32.
        """
        loc, logits = outputs.loc.float(), outputs.logits.float()
        with torch.no_grad():
            matched = [match_priors(target, priors) for target in targets]
            classes = torch.stack([found.classes for found in matched])
            positive = classes > 0
            positives = positive.sum().clamp(min=1)
            wanted = torch.stack([found.loc for found in matched])[positive]
        result = {
            "box": self.settings.box * functional.smooth_l1_loss(loc[positive], wanted, reduction="sum") / positives,
            "class": class_loss(logits, classes, self.settings.negatives) / positives,
        }
        mask, rescored = self._masks(outputs, matched, targets, generator)
        result["mask"] = self.settings.mask * mask / positives
        if outputs.semantic is not None:
            result["semantic"] = self.settings.semantic * semantic_loss(outputs.semantic.float(), targets) / len(targets)
        if self.mask_iou_net is not None:
            result["mask_iou"] = self.settings.mask_iou * self._rescoring(rescored) / positives
        return result

    def _masks(
        self, outputs: HeadOutputs, matched: Sequence[PriorTargets], targets: Sequence[Target], generator: torch.Generator | None
    ) -> tuple[Tensor, list[_Rescored]]:
        # Data-parallel training waits for a gradient of every output, also where nothing is positive; and what is not finite in one
        # must become the loss, so that the step is skipped.
        total = (outputs.coefficients.float().sum() + outputs.prototypes.float().sum()) * 0
        rescored = []
        for place, (found, target) in enumerate(zip(matched, targets, strict=True)):
            priors = torch.nonzero(found.classes > 0)[:, 0]
            if not len(priors):
                continue
            scale = 1.0
            if len(priors) > self.settings.masks_per_picture:
                chosen = torch.randperm(len(priors), generator=generator)[: self.settings.masks_per_picture]
                scale = len(priors) / len(chosen)
                priors = priors[chosen.to(priors.device)]
            prototypes = outputs.prototypes[place].float()
            truths = reduced_masks(target.masks, prototypes.shape[-2:])
            objects = found.objects[priors]
            boxes, truth = target.boxes[objects], truths[objects]
            predicted = torch.einsum("nk,khw->nhw", outputs.coefficients[place, priors].float(), prototypes).sigmoid()
            predicted = predicted * crop_window(boxes, prototypes.shape[-2:])
            predicted = torch.where(torch.isfinite(predicted), predicted, 0.5)  # at NaN the next operator would stop the program
            error = functional.binary_cross_entropy(predicted, truth, reduction="none").sum((1, 2))
            area = (boxes[:, 2:] - boxes[:, :2]).prod(1) * prototypes[0].numel()
            total = total + scale * (error / area)[area > 0].sum()
            if self.mask_iou_net is not None:
                rescored.append(_Rescored.of(predicted, truth, target.labels[objects], self.settings.least_mask_area))
        return total, rescored

    def _rescoring(self, rescored: Sequence[_Rescored]) -> Tensor:
        """Sum of smooth L1 between the mask-IoU net's answer for the true class and the IoU that the mask has."""
        assert self.mask_iou_net is not None
        masks, ious, labels = (torch.cat([getattr(one, name) for one in rescored]) if rescored else None for name in _Rescored.FIELDS)
        if masks is None or ious is None or labels is None or not len(masks):
            parameters = self.mask_iou_net.parameters() if isinstance(self.mask_iou_net, nn.Module) else ()
            return sum((value.sum() * 0 for value in parameters), torch.zeros(()))
        found = self.mask_iou_net(masks[:, None]).float().gather(1, labels[:, None])[:, 0]
        return functional.smooth_l1_loss(found, ious, reduction="sum")


@dataclass(frozen=True)
class _Rescored:
    """Masks of one picture for the mask-IoU loss: probabilities [n, h, w], IoU [n] at one half, labels [n]."""

    masks: Tensor
    ious: Tensor
    labels: Tensor
    FIELDS = ("masks", "ious", "labels")

    @classmethod
    def of(cls, predicted: Tensor, truth: Tensor, labels: Tensor, least_area: int) -> _Rescored:
        large = truth.sum((1, 2)) > least_area
        predicted, truth = predicted[large], truth[large]
        binary = (predicted.detach() > 0.5).float()
        shared = (binary * truth).sum((1, 2))
        union = binary.sum((1, 2)) + truth.sum((1, 2)) - shared
        return cls(predicted, shared / union, labels[large])


def class_loss(logits: Tensor, classes: Tensor, negatives: int) -> Tensor:
    """Cross-entropy summed over the positive priors and, for each picture, `negatives` times as many hard background ones.

    `logits` [B, P, C], `classes` [B, P]. Hardness is logsumexp(logits) - logits[background].
    """
    positive = classes > 0
    with torch.no_grad():
        hardness = torch.logsumexp(logits, 2) - logits[..., 0]
        hardness[classes != 0] = 0
        rank = hardness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        wanted = (negatives * positive.sum(1, keepdim=True)).clamp(max=classes.shape[1] - 1)
        chosen = positive | ((rank < wanted) & (classes == 0))
    return functional.cross_entropy(logits[chosen], classes[chosen], reduction="sum")


def semantic_loss(logits: Tensor, targets: Sequence[Target]) -> Tensor:
    """Sigmoid cross-entropy of `logits` [B, C-1, g, g] against each class's union mask: summed over pictures, a mean over pixels."""
    with torch.no_grad():
        wanted = torch.zeros_like(logits)
        for place, target in enumerate(targets):
            masks = reduced_masks(target.masks, logits.shape[-2:])
            wanted[place].index_add_(0, target.labels, masks).clamp_(max=1)  # a union
    return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / (logits.shape[-2] * logits.shape[-1])


def reduced_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks uint8 [N, S, S] bilinearly reduced to float32 [N, h, w] of 0 and 1, binarised above 0.5."""
    if not len(masks):
        return torch.zeros((0, *size), device=masks.device)
    reduced = functional.interpolate(masks[None].float(), tuple(size), mode="bilinear", align_corners=False)[0]
    return (reduced > 0.5).float()


def crop_window(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """float32 [N, h, w]: 1 inside each box (relative, [N, 4]) with one prototype pixel of padding, 0 outside, as detection crops."""
    height, width = size
    edges = []
    for axis, length in ((0, width), (1, height)):
        first, last = boxes[:, axis] * length, boxes[:, axis + 2] * length
        low = (torch.minimum(first, last) - 1).clamp(min=0)
        high = (torch.maximum(first, last) + 1).clamp(max=length)
        places = torch.arange(length, device=boxes.device, dtype=boxes.dtype)
        edges.append((places >= low[:, None]) & (places < high[:, None]))
    return (edges[0][:, None, :] & edges[1][:, :, None]).float()


class NetworkWithLoss(nn.Module):
    """Network and loss as one module, so that data-parallel training sees one forward pass."""

    def __init__(
        self, network: nn.Module, settings: LossSettings, *, autocast: Callable[[], AbstractContextManager[Any]] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = MultiBoxLoss(settings, getattr(network, "maskiou_net", None))
        self.autocast = autocast

    def forward(self, images: Tensor, targets: Sequence[Target], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Normalised pictures [B, 3, S, S] and their targets -> the loss terms."""
        if self.autocast is None:
            outputs = self.network(images)
        else:
            with self.autocast():
                outputs = self.network(images)
        return self.loss(outputs, cast(Tensor, self.network.priors), targets, generator)
