"""YOLACT's post-processing as formulas on whole tensors in PyTorch, as a user of the paper's equations would run it on a GPU.

Candidates, Fast NMS over a [classes, top k, top k] IoU matrix, the best detections, then full-size masks: sigmoid(P C^T), crop, bilinear
resizing, > 0.5. It is the baseline of the benchmarks; the detections are the package's, but for the order of equal scores.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

__all__ = ["assemble_masks", "fast_nms", "post_process"]


def fast_nms(boxes: Tensor, scores: Tensor, *, score_threshold: float, iou_threshold: float, top_k: int, max_detections: int) -> Tensor:
    """int64 [N], ``prior * (C - 1) + label`` of each detection, best first; `boxes` [P, 4], `scores` [P, C] (YOLACT, section 3.2)."""
    foreground = scores[:, 1:]
    candidates = torch.nonzero(foreground.max(dim=1).values > score_threshold).squeeze(1)
    if not len(candidates):
        return candidates
    ranked, order = foreground[candidates].T.sort(dim=1, descending=True, stable=True)
    ranked, order = ranked[:, :top_k], candidates[order[:, :top_k]]
    overlap = _iou(boxes[order]).triu_(diagonal=1).amax(dim=1)
    entries = order * foreground.shape[1] + torch.arange(foreground.shape[1], device=boxes.device)[:, None]
    kept = overlap <= iou_threshold
    survivors, values = entries[kept], ranked[kept]
    return survivors[values.argsort(descending=True, stable=True)[:max_detections]]


def _iou(boxes: Tensor) -> Tensor:
    """[C, n, n] of [C, n, 4]."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    common = (high - low).clamp_(min=0).prod(dim=3)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=2)
    return common / (area[:, :, None] + area[:, None] - common)


def assemble_masks(prototypes: Tensor, coefficients: Tensor, boxes: Tensor, width: int, height: int) -> Tensor:
    """bool [N, height, width] of `prototypes` [K, h, w], `coefficients` [N, K] and `boxes` [N, 4] (YOLACT, section 3.1)."""
    high, wide = prototypes.shape[1:]
    masks = torch.sigmoid(torch.einsum("khw,nk->nhw", prototypes, coefficients))
    for first, second, size, axis in ((0, 2, wide, 2), (1, 3, high, 1)):
        ends = boxes[:, [first, second]] * size
        at = torch.arange(size, device=boxes.device, dtype=boxes.dtype)
        kept = (at >= ends.amin(dim=1, keepdim=True) - 1) & (at < ends.amax(dim=1, keepdim=True) + 1)
        masks = masks * (kept[:, None, :] if axis == 2 else kept[:, :, None])
    return functional.interpolate(masks[None], (height, width), mode="bilinear", align_corners=False)[0] > 0.5


def post_process(
    boxes: Tensor, scores: Tensor, coefficients: Tensor, prototypes: Tensor, width: int, height: int, limits: dict[str, float | int]
) -> tuple[Tensor, Tensor]:
    """One picture: what :func:`fast_nms` and :func:`assemble_masks` answer; `limits` are the former's."""
    found = fast_nms(boxes, scores, **limits)
    priors = found // (scores.shape[1] - 1)
    if not len(found):
        return found, torch.zeros((0, height, width), dtype=torch.bool, device=boxes.device)
    return found, assemble_masks(prototypes, coefficients[priors], boxes[priors], width, height)
