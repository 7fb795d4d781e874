"""Detection by detection: which of the reference's have a partner in an artifact's, and why the others have none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from yolact_deploy.assembly import Heads
from yolact_deploy.detections import Detections
from yolact_deploy.postprocess import PostprocessSettings, crop_probabilities, pixel_boxes

__all__ = ["FLOAT16", "FLOAT32", "DetectionMatch", "Tolerance", "box_gaps", "mask_ious", "match_detections"]

Floats = NDArray[np.float32]
_UNDECIDED = "its mask differs only where the probability lies at one half or the crop's edge on a prototype pixel"
_EDGE = 0.01  # share of the box tolerance by which a crop's edge may move
_RESIZING = 1e-4  # by which OpenCV's bilinear resizing may differ from the masks' own


@dataclass(frozen=True)
class Tolerance:
    """How far an artifact may be from the reference.

    Attributes:
        outputs: largest difference of an output, relative to the reference's largest absolute value.
        score: largest difference of a partner's score, and the distance to a cut within which a detection may fall out.
        iou: distance of an IoU to the NMS threshold within which a detection may fall out.
        mask_iou: least IoU of a partner's mask, unless it differs by at most `pixels`.
        pixels: differing mask pixels that are always forgiven, for small masks.
        box: largest difference of a partner's coordinate, relative to the picture's longer side.
    """

    outputs: float
    score: float
    iou: float
    mask_iou: float
    pixels: int
    box: float


FLOAT32 = Tolerance(outputs=1e-4, score=1e-4, iou=1e-4, mask_iou=0.98, pixels=2, box=1e-3)
"""What a float32 graph is held to."""
FLOAT16 = Tolerance(outputs=3e-2, score=3e-2, iou=2e-2, mask_iou=0.9, pixels=16, box=2e-2)
"""What a float16 graph is held to."""


@dataclass(frozen=True)
class DetectionMatch:
    """The outcome of a comparison.

    Attributes:
        reference, candidate: numbers of detections.
        partners: how many of the reference's have a partner: same class; box, mask and score close enough.
        excused: sentences, one for each detection without partner that a numeric cut explains.
        unexplained: sentences, one for each without partner that nothing explains.
        largest_score_difference, largest_mask_score_difference: over partners.
        smallest_mask_iou: over partners.
        largest_box_difference: pixels, over partners.
        pairs: index in the reference to index in the candidate, of the partners.
        missing: index in the reference to the reason, ``""`` where there is none, of those without partner.
        surplus: index in the candidate to the reason, likewise.
    """

    reference: int
    candidate: int
    partners: int
    excused: tuple[str, ...]
    unexplained: tuple[str, ...]
    largest_score_difference: float
    largest_mask_score_difference: float
    smallest_mask_iou: float
    largest_box_difference: float
    pairs: dict[int, int] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)
    surplus: dict[int, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True where every detection has its partner or its reason."""
        return not self.unexplained

    def summary(self) -> dict[str, Any]:
        """Numbers alone, for JSON."""
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            "partners": self.partners,
            "excused": len(self.excused),
            "unexplained": len(self.unexplained),
            "largest_score_difference": self.largest_score_difference,
            "largest_mask_score_difference": self.largest_mask_score_difference,
            "largest_box_difference": self.largest_box_difference,
            "smallest_mask_iou": self.smallest_mask_iou,
        }


def match_detections(
    reference: Detections,
    candidate: Detections,
    heads: Heads,
    tolerance: Tolerance,
    settings: PostprocessSettings | None = None,
) -> DetectionMatch:
    """Pair each of `reference` with one of `candidate`; explain the rest from the reference's head outputs.

    A detection may miss its partner where its score lies within ``tolerance.score`` of the last one kept or of a rival's, its
    prior's best score within that of the threshold, its IoU with a better box within ``tolerance.iou`` of the NMS threshold, or
    wherever its masks differ, the probability within ``tolerance.score`` of one half or the crop's edge on a prototype pixel.
    """
    settings = settings or PostprocessSettings()
    overlap = mask_ious(reference, candidate)
    same = reference.labels[:, None] == candidate.labels[None, :]
    gap = np.abs(reference.scores[:, None] - candidate.scores[None, :])
    moved = box_gaps(reference, candidate)
    near = moved <= tolerance.box * max(reference.width, reference.height)
    alike = (overlap >= tolerance.mask_iou) | (_differing_pixels(reference, candidate, overlap) <= tolerance.pixels)
    rescored = np.abs(reference.mask_scores[:, None] - candidate.mask_scores[None, :])
    pairs = _pair(same & near & alike & (gap <= tolerance.score) & (rescored <= 10 * tolerance.score), gap, moved)
    explain = _Explainer(heads, reference, len(candidate), settings, tolerance)
    missing = [i for i in range(len(reference)) if i not in pairs]
    surplus = [j for j in range(len(candidate)) if j not in set(pairs.values())]
    excused: list[str] = []
    unexplained: list[str] = []
    close = same & near & (gap <= tolerance.score) & (rescored <= 10 * tolerance.score)
    twins = [(i, j) for i in missing for j in surplus if close[i, j] and explain.undecided(i, candidate, j)]
    reasons: tuple[dict[int, str], dict[int, str]] = ({}, {})
    for who, source, indices, alike_but_mask, kept in (
        ("missing", reference, missing, {i for i, _ in twins}, reasons[0]),
        ("surplus", candidate, surplus, {j for _, j in twins}, reasons[1]),
    ):
        for index in indices:
            reason = _UNDECIDED if index in alike_but_mask else explain(source, index)
            kept[index] = reason
            where = ", ".join(f"{value:.1f}" for value in source.boxes[index])
            line = f"{who} {source.names[index]} {source.scores[index]:.6f} at [{where}]"
            (excused if reason else unexplained).append(f"{line}: {reason or 'no reason found'}")
    left, right = np.array(list(pairs), int), np.array(list(pairs.values()), int)
    return DetectionMatch(
        len(reference),
        len(candidate),
        len(pairs),
        tuple(excused),
        tuple(unexplained),
        float(gap[left, right].max(initial=0.0)),
        float(rescored[left, right].max(initial=0.0)),
        float(overlap[left, right].min(initial=1.0)),
        float(moved[left, right].max(initial=0.0)),
        pairs,
        *reasons,
    )


def mask_ious(reference: Detections, candidate: Detections) -> NDArray[np.float64]:
    """float64 [N, M]; two empty masks are equal."""
    if not len(reference) or not len(candidate):
        return np.zeros((len(reference), len(candidate)))
    ious = np.asarray(coco_mask.iou(candidate.rles, reference.rles, [False] * len(reference)), float).T
    both_empty = (reference.areas == 0)[:, None] & (candidate.areas == 0)[None, :]
    return np.where(both_empty, 1.0, ious)


def _differing_pixels(reference: Detections, candidate: Detections, ious: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [N, M]: pixels in one mask alone, from the areas a + b and the IoU: (a + b) (1 - IoU) / (1 + IoU)."""
    pixels: NDArray[np.float64] = np.rint((reference.areas[:, None] + candidate.areas[None, :]) * (1 - ious) / (1 + ious))
    return pixels


def box_gaps(reference: Detections, candidate: Detections) -> NDArray[np.float32]:
    """float32 [N, M]: the largest difference of a coordinate, in pixels."""
    gaps: Floats = np.abs(reference.boxes[:, None] - candidate.boxes[None, :]).max(-1, initial=0.0)
    return gaps


def _pair(possible: NDArray[np.bool_], gap: Floats, box_gap: Floats) -> dict[int, int]:
    """Reference index to candidate index, nearest boxes first, each used once."""
    rows, columns = np.nonzero(possible)
    pairs: dict[int, int] = {}
    used: set[int] = set()
    for at in np.lexsort((gap[rows, columns], box_gap[rows, columns])):
        row, column = int(rows[at]), int(columns[at])
        if row not in pairs and column not in used:
            pairs[row] = column
            used.add(column)
    return pairs


class _Explainer:
    """Finds the numeric cut that a detection without partner sits on, in the reference's head outputs."""

    def __init__(self, heads: Heads, reference: Detections, candidates: int, settings: PostprocessSettings, tolerance: Tolerance) -> None:
        self.heads, self.reference, self.settings, self.tolerance = heads, reference, settings, tolerance
        self.size = np.array([reference.width, reference.height] * 2, np.float32)
        full = min(len(reference), candidates) >= settings.max_detections
        self.cut = float(reference.scores.min()) if full else None
        self.best = heads.scores[:, 1:].max(1)

    def __call__(self, detections: Detections, index: int) -> str:
        """The reason, or nothing. A detection that is no prior's of the reference has no reason."""
        prior, slack = self._prior_of(detections, index), self.tolerance.score
        if prior is None:
            return ""
        label = int(detections.labels[index])
        column = self.heads.scores[:, label + 1]
        own, limits = column[prior], self.settings
        if self.cut is not None and abs(own - self.cut) <= slack:
            return f"its score is within {slack:g} of the last one kept"
        if abs(self.best[prior] - limits.score_threshold) <= slack:
            return f"its prior's best score is within {slack:g} of the threshold"
        ranked = np.argsort(-column, kind="stable")
        ranked = ranked[self.best[ranked] > limits.score_threshold - slack][: limits.top_k + 1]
        if len(ranked) > limits.top_k and abs(own - column[ranked[-1]]) <= slack:
            return f"its score is within {slack:g} of the class's place {limits.top_k}"
        rivals = ranked[(column[ranked] >= own - slack) & (ranked != prior)]
        ious = _ious(self.heads.boxes[prior], self.heads.boxes[rivals])
        if np.any(np.abs(ious - limits.iou_threshold) <= self.tolerance.iou):
            return f"an IoU with a better box is within {self.tolerance.iou:g} of the threshold"
        if np.any((ious > limits.iou_threshold) & (np.abs(column[rivals] - own) <= slack)):
            return f"a rival that overlaps it has a score within {slack:g} of its own"
        return ""

    def undecided(self, index: int, candidate: Detections, other: int) -> bool:
        """Whether the masks of reference `index` and candidate `other` differ only where rounding decides.

        That is where the probability is one half within tolerance (whole regions, where all prototypes are nearly zero), or where
        a prototype row or column is in or out because the crop's edge lies on it: between a slightly smaller and a slightly larger
        crop the pixel may be on either side.
        """
        prior = self._prior_of(self.reference, index)
        if prior is None:
            return False
        x, y = (np.sort(self.heads.boxes[prior, axis::2]) for axis in (0, 1))
        box, margin = np.array([x[0], y[0], x[1], y[1]], np.float32), _EDGE * self.tolerance.box * np.array([-1, -1, 1, 1], np.float32)
        crops = crop_probabilities(
            self.heads.prototypes, self.heads.coefficients[[prior, prior]], np.stack([box - margin, box + margin]).astype(np.float32)
        )
        smaller, larger = (cv2.resize(crop, (candidate.width, candidate.height), interpolation=cv2.INTER_LINEAR) for crop in crops)
        differing = self.reference.bitmap(index) != candidate.bitmap(other)
        slack = self.tolerance.score + _RESIZING
        return bool(np.all((smaller[differing] <= 0.5 + slack) & (larger[differing] >= 0.5 - slack)))

    def _prior_of(self, detections: Detections, index: int) -> int | None:
        """The reference's prior that this detection comes from: score and box within tolerance, the nearest box."""
        column = self.heads.scores[:, int(detections.labels[index]) + 1]
        near = np.nonzero(np.abs(column - detections.scores[index]) <= self.tolerance.score)[0]
        if not len(near):
            return None
        gaps = np.abs(pixel_boxes(self.heads.boxes[near], detections.width, detections.height) - detections.boxes[index]).max(1)
        nearest = int(np.argmin(gaps))
        return int(near[nearest]) if gaps[nearest] <= self.tolerance.box * self.size.max() else None


def _ious(box: Floats, others: Floats) -> Floats:
    """float32 [N]: IoU of one corner box [4] with others [N, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    overlap = np.clip(high - low, 0, None).prod(1)
    area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - overlap
    ious: Floats = np.divide(overlap, area, out=np.zeros_like(overlap), where=area > 0)
    return ious
