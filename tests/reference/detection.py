"""The detection formulas of YOLACT written out in torch, slow and literal: the truth that the fast implementations are held to.

It shares no code with the package and must not import it. Everything is for one picture. Ties: higher score, lower prior, lower
class. `boxes` are [P, 4] float32 (x1, y1, x2, y2 relative), `scores` [P, C] with background in column 0, `labels` count without it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Kept", "cross_class_fast_nms", "decode", "fast_nms", "iou_matrix", "pixel_iou", "softmax", "traditional_nms"]


class Kept(NamedTuple):
    """What NMS keeps, best first: prior [N], label [N], score [N], box [N, 4]."""

    priors: Tensor
    labels: Tensor
    scores: Tensor
    boxes: Tensor


def softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=-1)


def decode(loc: Tensor, priors: Tensor) -> Tensor:
    """centre = prior + 0.1 loc size, size' = size exp(0.2 loc); corners from both."""
    cx = priors[:, 0] + loc[:, 0] * 0.1 * priors[:, 2]
    cy = priors[:, 1] + loc[:, 1] * 0.1 * priors[:, 3]
    w = priors[:, 2] * torch.exp(loc[:, 2] * 0.2)
    h = priors[:, 3] * torch.exp(loc[:, 3] * 0.2)
    x1, y1 = cx - w / 2, cy - h / 2
    return torch.stack([x1, y1, w + x1, h + y1], dim=1)


def iou_matrix(boxes: Tensor) -> Tensor:
    """IoU of each box with each, [n, n]."""
    x1, y1, x2, y2 = boxes.unbind(1)
    wide = (torch.minimum(x2[:, None], x2[None]) - torch.maximum(x1[:, None], x1[None])).clamp(min=0)
    high = (torch.minimum(y2[:, None], y2[None]) - torch.maximum(y1[:, None], y1[None])).clamp(min=0)
    area = (x2 - x1) * (y2 - y1)
    return wide * high / (area[:, None] + area[None] - wide * high)


def _candidates(scores: Tensor, threshold: float) -> Tensor:
    return torch.nonzero(scores[:, 1:].max(dim=1).values > threshold).squeeze(1)


def _ranked(entries: list[tuple[float, int, int]], boxes: Tensor) -> Kept:
    """(score, prior, label) entries in rank order."""
    entries = sorted(entries, key=lambda entry: (-entry[0], entry[1], entry[2]))
    priors = torch.tensor([entry[1] for entry in entries], dtype=torch.int64)
    labels = torch.tensor([entry[2] for entry in entries], dtype=torch.int64)
    return Kept(priors, labels, torch.tensor([entry[0] for entry in entries], dtype=torch.float32), boxes[priors])


def _unsuppressed(boxes: Tensor, iou_threshold: float) -> Tensor:
    """Fast NMS of boxes that come best first: the column maximum of the upper triangle is at most the threshold."""
    upper = torch.triu(iou_matrix(boxes), diagonal=1)
    return upper.max(dim=0).values <= iou_threshold


def fast_nms(
    boxes: Tensor, scores: Tensor, score_threshold: float = 0.05, iou_threshold: float = 0.5, top_k: int = 200, max_detections: int = 100
) -> Kept:
    chosen = _candidates(scores, score_threshold)
    entries: list[tuple[float, int, int]] = []
    for label in range(scores.shape[1] - 1 if len(chosen) else 0):
        values, order = torch.sort(scores[chosen, label + 1], descending=True, stable=True)
        values, order = values[:top_k], chosen[order[:top_k]]
        keep = _unsuppressed(boxes[order], iou_threshold)
        entries += [(score, prior, label) for score, prior in zip(values[keep].tolist(), order[keep].tolist(), strict=True)]
    return Kept(*(part[:max_detections] for part in _ranked(entries, boxes)))


def cross_class_fast_nms(
    boxes: Tensor, scores: Tensor, score_threshold: float = 0.05, iou_threshold: float = 0.5, top_k: int = 200
) -> Kept:
    chosen = _candidates(scores, score_threshold)
    entries = []
    for prior in chosen.tolist():
        row = scores[prior, 1:].tolist()
        entries.append((max(row), prior, row.index(max(row))))
    ranked = Kept(*(part[:top_k] for part in _ranked(entries, boxes)))
    if not entries:
        return ranked
    keep = _unsuppressed(ranked.boxes, iou_threshold)
    return Kept(*(part[keep] for part in ranked))


def pixel_iou(box: Tensor, others: Tensor) -> Tensor:
    """IoU of a box [4] in pixels with others [n, 4], where a side from x1 to x2 is x2 - x1 + 1 long."""
    wide = (torch.minimum(box[2], others[:, 2]) - torch.maximum(box[0], others[:, 0]) + 1).clamp(min=0)
    high = (torch.minimum(box[3], others[:, 3]) - torch.maximum(box[1], others[:, 1]) + 1).clamp(min=0)
    area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
    areas = (others[:, 2] - others[:, 0] + 1) * (others[:, 3] - others[:, 1] + 1)
    return wide * high / (area + areas - wide * high)


def traditional_nms(
    boxes: Tensor,
    scores: Tensor,
    input_size: int = 550,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
) -> Kept:
    chosen = _candidates(scores, score_threshold)
    pixels = boxes * input_size
    entries: list[tuple[float, int, int]] = []
    for label in range(scores.shape[1] - 1):
        values = scores[chosen, label + 1]
        values, order = torch.sort(values[values > score_threshold], descending=True, stable=True)
        order = chosen[scores[chosen, label + 1] > score_threshold][order]
        gone = torch.zeros(len(order), dtype=torch.bool)
        for i in range(len(order)):
            if not gone[i]:
                entries.append((float(values[i]), int(order[i]), label))
                gone[i + 1 :] |= pixel_iou(pixels[order[i]], pixels[order[i + 1 :]]) >= iou_threshold
    return Kept(*(part[:max_detections] for part in _ranked(entries, boxes)))
