"""The error analysis of the YOLACT paper as numbers: leakage and localization failure (arXiv:1904.02689, "Discussion").

A detection above the score is *matched* to the object (an annotation that is no crowd) of its class that its box overlaps most, by
an IoU of at least 0.5, the best scores first, each object once. Then, for a matched detection with the mask D, its object's mask A
and its box, whose pixels are those with their centre inside:

*Leakage.* Masks are cropped after assembly, so nothing teaches the network to keep clear of what lies outside the box: where a
predicted box is too large, or reaches over other objects, that becomes part of the mask. The error are the pixels of D or A alone;
leaked are those of D outside A yet inside the box. The leakage is their share, over all matched detections at once and as a mean of
each one's. It is split into pixels that another annotated object (crowds included) holds, and background. What the mask lacks, and
what bilinear upsampling adds outside the box, is error that did not leak.

*Localization failure.* With many objects in one spot the prototypes may not tell each from the next, and the answer is a foreground
mask of several. Two objects of one class then share a mask, which shows in three ways. B is another object of the class that A does
not mostly cover in the annotations already, B' its pixels outside A.

- shared: D, inside its box, covers at least half of A and at least half of B'. It can happen only where the box holds at least
  half of B', so the rate is over these detections (`exposed`); over all matched ones it says how often it matters.
- twins: two matched detections of one class whose masks have an IoU of at least 0.5, though their objects' have less; the rate is
  over such pairs whose boxes overlap (`near_pairs`).
- merged: a detection that matches no object, whose mask covers at least half of each of two objects of its class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from yolact_deploy.data.coco import CocoDataset, Instance
from yolact_deploy.data.segmentation import Rle
from yolact_deploy.detections import Detections
from yolact_deploy.errors import DatasetError
from yolact_deploy.evaluation.parity import Results

__all__ = ["Failures", "analyse"]

_MATCHED = 0.5  # box IoU
_HALF = 0.5  # of an object's pixels
_ALIKE = 0.5  # mask IoU
_EXAMPLES = 10


@dataclass(frozen=True)
class Failures:
    """Counts over all pictures; the rates are None where there is nothing to divide by. Terms: see the module.

    Attributes:
        score: detections above it are looked at.
        pictures, objects: looked at; crowds are no objects.
        detections, matched: detections above the score, and those with an object.
        imperfect: matched detections with at least one pixel of error.
        error_pixels: of the matched detections, their sum.
        leaked_pixels: of these, outside the object and inside the box.
        leaked_on_others: of these, on other annotated objects.
        mean_leakage: mean over the imperfect of leaked over error pixels, 0 … 1.
        exposed: matched detections whose box holds at least half of another object of the class.
        shared: of these, whose mask covers at least half of both.
        near_pairs: pairs of matched detections of one class whose boxes overlap.
        twins: of these, whose masks are alike though their objects' are not.
        merged: detections without object whose mask covers at least half of two of its class.
        examples: ids of the first pictures with one of the last three.
    """

    score: float
    pictures: int = 0
    objects: int = 0
    detections: int = 0
    matched: int = 0
    imperfect: int = 0
    error_pixels: int = 0
    leaked_pixels: int = 0
    leaked_on_others: int = 0
    mean_leakage: float | None = None
    exposed: int = 0
    shared: int = 0
    near_pairs: int = 0
    twins: int = 0
    merged: int = 0
    examples: tuple[int, ...] = ()

    @property
    def leakage(self) -> float | None:
        """Leaked over error pixels, 0 … 1, all matched detections at once."""
        return _ratio(self.leaked_pixels, self.error_pixels)

    @property
    def leakage_on_others(self) -> float | None:
        """The part of :attr:`leakage` that lies on other annotated objects; the rest lies on background."""
        return _ratio(self.leaked_on_others, self.error_pixels)

    @property
    def shared_of_matched(self) -> float | None:
        """Shared masks, of all matched detections."""
        return _ratio(self.shared, self.matched)

    @property
    def shared_of_exposed(self) -> float | None:
        """Shared masks, of the detections where it can happen."""
        return _ratio(self.shared, self.exposed)

    @property
    def twins_of_near_pairs(self) -> float | None:
        """Twins, of the pairs whose boxes overlap."""
        return _ratio(self.twins, self.near_pairs)

    @property
    def merged_of_detections(self) -> float | None:
        """Merged masks, of all detections above the score."""
        return _ratio(self.merged, self.detections)

    def to_json(self) -> dict[str, Any]:
        """Counts and rates, fit for :mod:`json`."""
        rates = ("leakage", "leakage_on_others", "shared_of_matched", "shared_of_exposed", "twins_of_near_pairs", "merged_of_detections")
        return {**asdict(self), "examples": list(self.examples), **{name: getattr(self, name) for name in rates}}


def analyse(dataset: CocoDataset, store: Results, image_ids: Iterable[int], *, score: float = 0.3) -> Failures:
    """The error analysis of stored detections; their labels are the data set's. One picture at a time, masks as run lengths.

    Raises :class:`DatasetError` where a picture's size is not the annotated one.
    """
    counts: dict[str, int] = {}
    shares: list[float] = []
    examples: list[int] = []
    for image_id in image_ids:
        picture = _Picture(dataset, image_id, store.detections(image_id).above(score))
        found = picture.counts(shares)
        if found["shared"] or found["twins"] or found["merged"]:
            examples.append(image_id)
        for name, value in found.items():
            counts[name] = counts.get(name, 0) + value
    mean = float(np.mean(shares)) if shares else None
    return Failures(score, mean_leakage=mean, imperfect=len(shares), examples=tuple(examples[:_EXAMPLES]), **counts)


class _Picture:
    """One picture's detections with the objects that they are matched to."""

    def __init__(self, dataset: CocoDataset, image_id: int, detections: Detections) -> None:
        image = dataset.image(image_id)
        if (detections.width, detections.height) != (image.width, image.height):
            raise DatasetError(
                f"The picture {image.file_name} has {detections.width} x {detections.height} pixels, "
                f"its annotations are for {image.width} x {image.height}.",
                "Use the pictures that were annotated.",
            )
        self.instances = dataset.instances(image_id)
        self.objects = [place for place, instance in enumerate(self.instances) if not instance.crowd]
        self.masks = dataset.rles(image, self.instances)
        self.areas = [_area(mask) for mask in self.masks]
        self.found, self.rles = detections, detections.rles
        self.boxes = [_box_rle(box, image.width, image.height) for box in detections.boxes]
        self.pairs = _matches(detections, self.instances)

    def counts(self, shares: list[float]) -> dict[str, int]:
        """The picture's part of :class:`Failures`; the leakage of each imperfect detection goes to `shares`."""
        total = {"pictures": 1, "objects": len(self.objects), "detections": len(self.found), "matched": len(self.pairs)}
        for index, place in self.pairs.items():
            error, leaked, on_others = self._leak(index, place)
            total["error_pixels"] = total.get("error_pixels", 0) + error
            total["leaked_pixels"] = total.get("leaked_pixels", 0) + leaked
            total["leaked_on_others"] = total.get("leaked_on_others", 0) + on_others
            if error:
                shares.append(leaked / error)
        sharing = [self._sharing(index, place) for index, place in self.pairs.items()]
        near = self._near_pairs()
        total["exposed"], total["shared"] = sum(exposed for exposed, _ in sharing), sum(shared for _, shared in sharing)
        total["near_pairs"], total["twins"] = len(near), sum(self._alike(one, other) for one, other in near)
        total["merged"] = sum(self._merged(index) for index in range(len(self.found)) if index not in self.pairs)
        return total

    def _leak(self, index: int, place: int) -> tuple[int, int, int]:
        """Pixels of error, leaked ones, and those of them on other objects."""
        mask, own = self.rles[index], self.masks[place]
        inside = _both(mask, self.boxes[index])
        error = _area(mask) + self.areas[place] - 2 * _area(_both(mask, own))
        leaked = _area(inside) - _area(_both(inside, own))
        rest = [other for at, other in enumerate(self.masks) if at != place]
        if not leaked or not rest:
            return error, leaked, 0
        on_others = _both(inside, coco_mask.merge(rest))
        return error, leaked, _area(on_others) - _area(_both(on_others, own))

    def _sharing(self, index: int, place: int) -> tuple[bool, bool]:
        """Whether the detection could share its mask with another object of its class, and whether it does."""
        own, box = self.masks[place], self.boxes[index]
        inside = _both(self.rles[index], box)
        covers_own = self.areas[place] > 0 and _area(_both(inside, own)) >= _HALF * self.areas[place]
        exposed = shared = False
        for other in self._others_of_class(place):
            common = _both(own, self.masks[other])
            rest = self.areas[other] - _area(common)
            if rest < _HALF * self.areas[other]:
                continue
            if _area(_both(box, self.masks[other])) - _area(_both(box, common)) >= _HALF * rest:
                exposed = True
                covered = _area(_both(inside, self.masks[other])) - _area(_both(inside, common))
                shared |= covers_own and covered >= _HALF * rest
        return exposed, shared

    def _others_of_class(self, place: int) -> list[int]:
        label = self.instances[place].label
        return [at for at in self.objects if at != place and self.instances[at].label == label and self.areas[at]]

    def _near_pairs(self) -> list[tuple[int, int]]:
        """Pairs of matched detections of one class whose boxes overlap and whose objects' masks are not alike."""
        return [
            (one, other)
            for one, other in combinations(self.pairs, 2)
            if self.found.labels[one] == self.found.labels[other]
            and _box_ious(self.found.boxes[one], self.found.boxes[[other]])[0] > 0
            and not _mask_iou(self.masks[self.pairs[one]], self.masks[self.pairs[other]]) >= _ALIKE
        ]

    def _alike(self, one: int, other: int) -> bool:
        return _mask_iou(self.rles[one], self.rles[other]) >= _ALIKE

    def _merged(self, index: int) -> bool:
        label = int(self.found.labels[index])
        covered = [
            at
            for at in self.objects
            if self.instances[at].label == label
            and self.areas[at]
            and _area(_both(self.rles[index], self.masks[at])) >= _HALF * self.areas[at]
        ]
        return any(
            _area(_both(self.masks[one], self.masks[other])) < _HALF * min(self.areas[one], self.areas[other])
            for one, other in combinations(covered, 2)
        )


def _matches(detections: Detections, instances: tuple[Instance, ...]) -> dict[int, int]:
    """Index of a detection to that of its object among `instances`."""
    corners = np.array([instance.box for instance in instances], np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    free = np.array([not instance.crowd for instance in instances], bool)
    labels = np.array([instance.label for instance in instances], np.int64)
    pairs: dict[int, int] = {}
    for index in np.argsort(-detections.scores, kind="stable").tolist():
        allowed = free & (labels == detections.labels[index])
        if not allowed.any():
            continue
        ious = np.where(allowed, _box_ious(detections.boxes[index], corners), -1.0)
        best = int(np.argmax(ious))
        if ious[best] >= _MATCHED:
            pairs[index] = best
            free[best] = False
    return pairs


def _box_ious(box: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """float64 [N]: IoU of one corner box [4] with others [N, 4]; 0 where neither has an area."""
    one, many = box.astype(np.float64), others.astype(np.float64)
    common = np.clip(np.minimum(one[2:], many[:, 2:]) - np.maximum(one[:2], many[:, :2]), 0, None).prod(1)
    union = np.clip(one[2:] - one[:2], 0, None).prod() + np.clip(many[:, 2:] - many[:, :2], 0, None).prod(1) - common
    ious: NDArray[np.float64] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return ious


def _box_rle(box: NDArray[np.float32], width: int, height: int) -> Rle:
    """The pixels of the picture whose centre lies in the box, left and top edge included."""
    left, right = (min(max(int(value), 0), width) for value in np.ceil(box[0::2].astype(np.float64) - 0.5))
    top, bottom = (min(max(int(value), 0), height) for value in np.ceil(box[1::2].astype(np.float64) - 0.5))
    bitmap = np.zeros((height, width), np.uint8, order="F")
    bitmap[top:bottom, left:right] = 1
    rle: Rle = coco_mask.encode(bitmap)
    return rle


def _both(one: Rle, other: Rle) -> Rle:
    common: Rle = coco_mask.merge([one, other], intersect=True)
    return common


def _area(rle: Rle) -> int:
    return int(coco_mask.area(rle))


def _mask_iou(one: Rle, other: Rle) -> float:
    """0 for two empty masks: nothing is shared."""
    common = _area(_both(one, other))
    return common / (_area(one) + _area(other) - common) if common else 0.0


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
