"""Fast NMS (arXiv:1904.02689, section 3.4) in standard ONNX operators: no NonMaxSuppression, no NonZero, no plugin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from yolact_deploy.errors import ConfigError
from yolact_deploy.postprocess import PostprocessSettings

__all__ = ["FastNms", "NmsOutputs"]

_ABSENT = -1.0  # score of a place that holds no detection; real scores are not negative


class NmsOutputs(NamedTuple):
    """Best first: boxes [B, D, 4], scores [B, D], labels int32 [B, D] (-1 pads), coefficients [B, D, K]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    coefficients: Tensor


class FastNms(nn.Module):
    """Per-class Fast NMS, then the best D over all classes; ties go to the lower prior index, then to the lower class."""

    def __init__(self, settings: PostprocessSettings) -> None:
        super().__init__()
        if settings.nms != "fast":
            raise ConfigError(f"The graph holds Fast NMS alone, {settings.nms!r} was asked for.", "Export with --postprocess none.")
        self.settings = settings

    def forward(self, boxes: Tensor, scores: Tensor, coefficients: Tensor) -> NmsOutputs:
        """[B, P, 4] relative, [B, P, C] with background first, [B, P, K]."""
        limits = self.settings
        foreground = scores[..., 1:]
        confident = foreground.amax(-1, keepdim=True) > limits.score_threshold
        ranked = torch.where(confident, foreground, torch.full_like(foreground, _ABSENT)).transpose(1, 2)
        best, priors = ranked.topk(min(limits.top_k, boxes.shape[1]), -1)  # [B, C-1, T], TopK prefers the lower index
        classes, top = best.shape[1:]
        flat_priors = priors.flatten(1)
        candidates = _rows(boxes, flat_priors).reshape(-1, classes, top, 4)
        kept = ~_suppressed(candidates, limits.iou_threshold) & (best > _ABSENT)
        survivors = torch.where(kept, best, torch.full_like(best, _ABSENT)).flatten(1)
        places = _best_places(survivors, flat_priors, min(limits.max_detections, classes * top))
        top_scores, top_priors = survivors.gather(1, places), flat_priors.gather(1, places)
        labels = torch.div(places, top, rounding_mode="floor")
        order = _order(top_scores, top_priors, labels)
        top_scores, top_priors, labels = (values.gather(1, order) for values in (top_scores, top_priors, labels))
        present = top_scores > _ABSENT
        return NmsOutputs(
            _present_rows(boxes, top_priors, present),
            top_scores.clamp(min=0),
            torch.where(present, labels, torch.full_like(labels, -1)).int(),
            _present_rows(coefficients, top_priors, present),
        )


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """[B, P, n] and [B, m] -> [B, m, n]: the named rows of each picture."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _present_rows(values: Tensor, index: Tensor, present: Tensor) -> Tensor:
    rows = _rows(values, index)
    return torch.where(present[..., None], rows, torch.zeros_like(rows))


def _suppressed(boxes: Tensor, threshold: float) -> Tensor:
    """bool [B, C-1, T]: boxes [B, C-1, T, 4] whose IoU with a better one of the class is not at most `threshold` (NaN is not)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    area = (x2 - x1) * (y2 - y1)

    def overlap(low: Tensor, high: Tensor) -> Tensor:
        extent = torch.minimum(high[..., :, None], high[..., None, :]) - torch.maximum(low[..., :, None], low[..., None, :])
        return extent.clamp(min=0)

    intersection = overlap(x1, x2) * overlap(y1, y2)
    iou = intersection / (area[..., :, None] + area[..., None, :] - intersection)
    rank = torch.arange(boxes.shape[2], device=boxes.device)
    better = rank[:, None] < rank[None, :]
    return (~(iou <= threshold) & better).float().amax(-2) > 0


def _best_places(scores: Tensor, priors: Tensor, count: int) -> Tensor:
    """int64 [B, count]: places of the best among scores [B, n]; where scores tie at the cut, the lower prior index is in."""
    cut = scores.topk(count, -1).values[:, -1:]
    tied = torch.where(scores == cut, -1.0 - priors.float(), torch.full_like(scores, -(2.0**30)))
    return torch.where(scores > cut, torch.ones_like(scores), tied).topk(count, -1).indices


def _order(scores: Tensor, priors: Tensor, labels: Tensor) -> Tensor:
    """int64 [B, D]: the order by score downwards, prior upwards, class upwards, from the number of rivals before each."""

    def pair(values: Tensor) -> tuple[Tensor, Tensor]:
        return values[..., None, :], values[..., :, None]

    (score, own_score), (prior, own_prior), (label, own_label) = pair(scores), pair(priors), pair(labels)
    nearer = (prior < own_prior) | ((prior == own_prior) & (label < own_label))
    before = (score > own_score) | ((score == own_score) & nearer)
    return (-before.float().sum(-1)).topk(scores.shape[1], -1).indices
