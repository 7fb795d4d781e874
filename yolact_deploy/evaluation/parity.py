"""Detection by detection: which of a reference's have a partner in another artifact's, and how far the partners are apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.errors import ConfigError
from yolact_deploy.matching import box_gaps, mask_ious

__all__ = ["Lone", "Parity", "PictureParity", "Results", "compare"]

_RELATED = 0.5  # mask IoU from which on two detections are of one object


class Results(Protocol):
    """Stored detections, by image id: a :class:`yolact_deploy.evaluation.store.ResultStore`."""

    def detections(self, image_id: int, /) -> Detections:
        """Those of one picture, all that NMS left."""


@dataclass(frozen=True)
class Lone:
    """A detection above the score without a partner.

    Attributes:
        image_id, picture: where; `picture` is its name.
        side: ``missing`` is the reference's and lacks in the candidate; ``surplus`` is the candidate's and lacks in the reference.
        index: among that side's detections of the picture, all scores counted.
        name, score, box: its class name, score and x1, y1, x2, y2 in pixels.
        counterpart: what comes nearest to it on the other side, in words.
        reason: the numeric cut that explains it, ``""`` where there is none or nobody looked.
    """

    image_id: int
    picture: str
    side: Literal["missing", "surplus"]
    index: int
    name: str
    score: float
    box: tuple[float, float, float, float]
    counterpart: str
    reason: str = ""

    def __str__(self) -> str:
        where = ", ".join(f"{value:.1f}" for value in self.box)
        because = f" ({self.reason})" if self.reason else ""
        return f"{self.picture}: {self.side} {self.name} {self.score:.4f} at [{where}]: {self.counterpart}{because}"


@dataclass(frozen=True)
class PictureParity:
    """One picture's numbers.

    Attributes:
        image_id, name: of the picture.
        reference, candidate: detections above the score.
        partners: of them, pairs.
        smallest_iou: of the partners' masks, None without partners.
        largest_difference: of the partners' scores, absolute, None without partners.
        distance: over partners, the sum of 1 - mask IoU and of the absolute score differences.
    """

    image_id: int
    name: str
    reference: int
    candidate: int
    partners: int
    smallest_iou: float | None
    largest_difference: float | None
    distance: float

    @property
    def missing(self) -> int:
        """Detections of the reference without partner."""
        return self.reference - self.partners

    @property
    def surplus(self) -> int:
        """Detections of the candidate without partner."""
        return self.candidate - self.partners


@dataclass(frozen=True, eq=False)
class Parity:
    """The outcome of :func:`compare`, for all pictures.

    Attributes:
        score, mask_iou: the cuts: detections count above `score`, partners have a mask IoU above `mask_iou`.
        pictures: how many were compared.
        reference, candidate: detections above the score.
        image_ids: int64 [n], of each pair of partners, as the following.
        labels: int64 [n].
        reference_scores, candidate_scores: float32 [n].
        mask_ious: float64 [n].
        worst: the pictures that differ most, the worst first: most detections without partner, then the largest distance.
        lone: detections without partner, by picture.
        explained: whether reasons were looked for in the reference's head outputs.
        notes: sentences on what the numbers do not show.
    """

    score: float
    mask_iou: float
    pictures: int
    reference: int
    candidate: int
    image_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    reference_scores: NDArray[np.float32]
    candidate_scores: NDArray[np.float32]
    mask_ious: NDArray[np.float64]
    worst: tuple[PictureParity, ...] = ()
    lone: tuple[Lone, ...] = ()
    explained: bool = False
    notes: tuple[str, ...] = ()

    @property
    def partners(self) -> int:
        """How many of the reference's detections have a partner."""
        return len(self.labels)

    @property
    def missing(self) -> int:
        """How many of the reference's detections have none."""
        return self.reference - self.partners

    @property
    def surplus(self) -> int:
        """How many of the candidate's detections above the score are nobody's partner."""
        return self.candidate - self.partners

    @property
    def share(self) -> float | None:
        """Partners of the reference's detections, 0 … 1; None where the reference has no detection above the score."""
        return self.partners / self.reference if self.reference else None

    @property
    def excused(self) -> tuple[str, ...]:
        """A sentence for each detection without partner that a numeric cut explains."""
        return tuple(str(lone) for lone in self.lone if lone.reason)

    @property
    def unexplained(self) -> tuple[str, ...]:
        """A sentence for each detection without partner and without reason; all of them where nobody looked."""
        return tuple(str(lone) for lone in self.lone if not lone.reason)

    @property
    def passed(self) -> bool:
        """True where every detection has its partner or its reason."""
        return not self.unexplained

    @property
    def smallest_iou(self) -> float | None:
        """Of the partners' masks; None without partners."""
        return float(self.mask_ious.min()) if self.partners else None

    def differences(self) -> dict[str, float] | None:
        """Of the partners' scores, candidate minus reference: ``mean`` with its sign; ``mean_absolute``, ``largest`` and the
        percentiles ``p50``, ``p90``, ``p99`` of the absolute difference. None without partners.
        """
        if not self.partners:
            return None
        signed = self.candidate_scores.astype(np.float64) - self.reference_scores
        absolute = np.abs(signed)
        percentiles = {f"p{place}": float(np.percentile(absolute, place)) for place in (50, 90, 99)}
        return {"mean": float(signed.mean()), "mean_absolute": float(absolute.mean()), "largest": float(absolute.max()), **percentiles}

    def summary(self) -> str:
        """One line: ``412 of 412 partners`` and what the others are; ``no detections above 0.3`` is no 100 %."""
        surplus = f", {self.surplus} surplus" if self.surplus else ""
        if not self.reference:
            return f"no detections above {self.score:g} in the reference{surplus}"
        excused = f", {len(self.excused)} at a cut" if self.excused else ""
        return f"{self.partners} of {self.reference} partners{surplus}{excused}"

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, fit for :mod:`json`."""
        return {
            "score": self.score,
            "mask_iou": self.mask_iou,
            "pictures": self.pictures,
            "reference": self.reference,
            "candidate": self.candidate,
            "partners": self.partners,
            "missing": self.missing,
            "surplus": self.surplus,
            "share": self.share,
            "smallest_iou": self.smallest_iou,
            "score_differences": self.differences(),
            "explained": self.explained,
            "excused": list(self.excused),
            "unexplained": list(self.unexplained),
            "worst": [{**vars(picture), "missing": picture.missing, "surplus": picture.surplus} for picture in self.worst],
            "notes": list(self.notes),
        }


def compare(
    reference: Results,
    candidate: Results,
    image_ids: Iterable[int],
    *,
    score: float = 0.3,
    mask_iou: float = 0.9,
    names: Mapping[int, str] | None = None,
    worst: int = 20,
) -> Parity:
    """Pair the detections above `score` of two artifacts, picture by picture.

    Partners are of one class and their masks' IoU is above `mask_iou` (two empty masks are equal). Each detection is used once;
    the pair with the highest IoU comes first, then the one with the nearest boxes, then the nearest scores.
    `names` are the pictures' names; without them the ids stand in.

    Raises :class:`ConfigError` where the two are of different classes or a picture's size differs.
    """
    found = _Findings()
    for image_id in image_ids:
        _compare_picture(found, reference.detections(image_id), candidate.detections(image_id), image_id, names or {}, score, mask_iou)
    ranked = sorted(found.pictures, key=lambda one: (-(one.missing + one.surplus), -one.distance, one.image_id))
    differing = [one for one in ranked if one.missing or one.surplus or one.distance > 0]
    pairs = np.array(found.pairs, np.float64).reshape(-1, 5)
    return Parity(
        score,
        mask_iou,
        len(found.pictures),
        sum(one.reference for one in found.pictures),
        sum(one.candidate for one in found.pictures),
        pairs[:, 0].astype(np.int64),
        pairs[:, 1].astype(np.int64),
        pairs[:, 2].astype(np.float32),
        pairs[:, 3].astype(np.float32),
        pairs[:, 4].copy(),
        tuple(differing[:worst]),
        tuple(found.lone),
    )


@dataclass
class _Findings:
    """What :func:`compare` gathers: pairs are (image id, label, reference's score, candidate's score, mask IoU)."""

    pairs: list[tuple[float, ...]] = field(default_factory=list)
    lone: list[Lone] = field(default_factory=list)
    pictures: list[PictureParity] = field(default_factory=list)


def _compare_picture(
    found: _Findings,
    reference: Detections,
    candidate: Detections,
    image_id: int,
    names: Mapping[int, str],
    score: float,
    mask_iou: float,
) -> None:
    name = names.get(image_id, str(image_id))
    _check_alike(reference, candidate, name)
    rows, columns = np.flatnonzero(reference.scores > score), np.flatnonzero(candidate.scores > score)
    ours, theirs = reference[rows], candidate[columns]
    ious = np.where(ours.labels[:, None] == theirs.labels[None, :], mask_ious(ours, theirs), -1.0)
    pairs = _best_pairs(ious, mask_iou, box_gaps(ours, theirs), np.abs(ours.scores[:, None] - theirs.scores[None, :]))
    differences = [abs(float(ours.scores[i]) - float(theirs.scores[j])) for i, j in pairs.items()]
    overlaps = [float(ious[i, j]) for i, j in pairs.items()]
    for (i, j), overlap in zip(pairs.items(), overlaps, strict=True):
        found.pairs.append((image_id, int(ours.labels[i]), float(ours.scores[i]), float(theirs.scores[j]), overlap))
    used = {int(rows[i]) for i in pairs}, {int(columns[j]) for j in pairs.values()}
    sides: tuple[tuple[Literal["missing", "surplus"], NDArray[Any], Detections, set[int], Detections, set[int]], ...] = (
        ("missing", rows, reference, used[0], candidate, used[1]),
        ("surplus", columns, candidate, used[1], reference, used[0]),
    )
    for side, above, own, own_used, other, other_used in sides:
        for index in (int(index) for index in above if int(index) not in own_used):
            x1, y1, x2, y2 = (float(value) for value in own.boxes[index])
            nearest = _counterpart(own[index], other, other_used, score, mask_iou)
            found.lone.append(Lone(image_id, name, side, index, own.names[index], float(own.scores[index]), (x1, y1, x2, y2), nearest))
    distance = sum(differences) + sum(1 - overlap for overlap in overlaps)
    found.pictures.append(
        PictureParity(
            image_id, name, len(ours), len(theirs), len(pairs), min(overlaps, default=None), max(differences, default=None), distance
        )
    )


def _check_alike(reference: Detections, candidate: Detections, name: str) -> None:
    if (reference.width, reference.height) != (candidate.width, candidate.height):
        raise ConfigError(
            f"The picture {name} has {candidate.width} x {candidate.height} pixels in one result and {reference.width} x "
            f"{reference.height} in the other.",
            "Evaluate both artifacts on the same pictures.",
        )
    if reference.category_ids != candidate.category_ids:
        raise ConfigError(
            f"The artifacts have different classes ({len(reference.category_ids)} and {len(candidate.category_ids)}, "
            f"first category ids {list(reference.category_ids[:3])} and {list(candidate.category_ids[:3])}).",
            "Compare artifacts of one model, or give --classes.",
        )


def _best_pairs(ious: NDArray[Any], cut: float, gaps: NDArray[Any], differences: NDArray[Any]) -> dict[int, int]:
    """Row to column where `ious` [N, M] is above `cut`: the highest first, then the smallest gap, then the smallest difference."""
    rows, columns = np.nonzero(ious > cut)
    pairs: dict[int, int] = {}
    used: set[int] = set()
    for at in np.lexsort((differences[rows, columns], gaps[rows, columns], -ious[rows, columns])):
        row, column = int(rows[at]), int(columns[at])
        if row not in pairs and column not in used:
            pairs[row] = column
            used.add(column)
    return pairs


def _counterpart(one: Detections, others: Detections, used: set[int], score: float, mask_iou: float) -> str:
    """What comes nearest to `one` (of length 1) among the detections of the other side that are nobody's partner, of any score."""
    free = others[[index for index in range(len(others)) if index not in used]]
    if not len(free):
        return "no counterpart"
    ious, above = mask_ious(one, free)[0], free.scores > score
    same = np.flatnonzero((free.labels == one.labels[0]) & (ious >= _RELATED))
    if len(same):
        nearest = same[np.argmax(ious[same])]
        faults = [f"mask IoU is {ious[nearest]:.3f}"] if ious[nearest] <= mask_iou else []
        faults += [f"score is {free.scores[nearest]:.4f}"] if not above[nearest] else []
        return f"its counterpart's {' and '.join(faults)}"
    nearest = int(np.argmax(np.where(above, ious, -1.0)))
    if above[nearest] and ious[nearest] >= _RELATED:
        return f"its counterpart is a {free.names[nearest]} ({free.scores[nearest]:.4f}, mask IoU {ious[nearest]:.3f})"
    return "no counterpart"
