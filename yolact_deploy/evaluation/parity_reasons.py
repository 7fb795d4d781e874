"""Why detections have no partner: the numeric cut that each of them lies on, found in the reference's own head outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby

import numpy as np

from yolact_deploy.assembly import Heads
from yolact_deploy.data.coco import CocoDataset
from yolact_deploy.detections import Detections
from yolact_deploy.evaluation.jobs import ClassMap
from yolact_deploy.evaluation.parity import Lone, Parity, Results
from yolact_deploy.manifest import Manifest
from yolact_deploy.matching import FLOAT16, FLOAT32, DetectionMatch, Tolerance, mask_ious, match_detections
from yolact_deploy.pictures import read_picture
from yolact_deploy.postprocess import PostprocessSettings
from yolact_deploy.preprocess import prepare
from yolact_deploy.runtime import Detector

__all__ = ["HeadsOf", "explain", "heads_of", "tolerance_between"]

HeadsOf = Callable[[int], Heads]
"""The reference's head outputs for the picture of an id, its columns in the order of the stored labels."""
_NO_HEADS = "Reasons were not looked for: the head outputs of the reference cannot be had ({why})."


def tolerance_between(*manifests: Manifest | None) -> Tolerance:
    """What artifacts may differ by: :data:`FLOAT32` where all compute in float32 throughout, else :data:`FLOAT16`.

    None stands for a results file, which says nothing of its precision and earns no slack.
    """
    kinds = {kind for manifest in manifests if manifest is not None for kind in manifest.precision.values()}
    return FLOAT32 if kinds <= {"float32"} else FLOAT16


def heads_of(detector: Detector | None, dataset: CocoDataset) -> tuple[HeadsOf | None, str]:
    """How to compute head outputs again, picture by picture; or None, and why not.

    Columns of `scores` are put in the order of the data set's classes, as the labels of stored detections are; classes that the
    model does not know have zeros, those that only the model knows come last.
    """
    if detector is None:
        return None, _NO_HEADS.format(why="it is a results file")
    if detector.manifest.postprocess != "none":
        return None, _NO_HEADS.format(why=f"its graph ends in detections, --postprocess {detector.manifest.postprocess}")
    labels = ClassMap.of(detector.classes, dataset.classes, "The reference").labels
    places = {label: column for column, label in enumerate(labels, 1) if label >= 0}
    columns = [0, *(places.get(label, -1) for label in range(len(dataset.classes)))]
    columns += [column for column, label in enumerate(labels, 1) if label < 0]

    def compute(image_id: int) -> Heads:
        picture = read_picture(dataset.picture_path(dataset.image(image_id)))
        images = prepare(picture, detector.manifest.input)[None]
        images = np.concatenate([images, np.zeros(((detector.backend.batch or 1) - 1, *images.shape[1:]), images.dtype)])
        outputs = detector.backend.infer(images)
        heads = Heads(*(outputs[name][0].astype(np.float32, copy=False) for name in ("boxes", "scores", "coefficients", "prototypes")))
        return heads._replace(scores=np.pad(heads.scores, ((0, 0), (0, 1)))[:, columns])

    return compute, ""


def explain(
    parity: Parity,
    reference: Results,
    candidate: Results,
    heads: HeadsOf | None,
    tolerance: Tolerance,
    settings: PostprocessSettings | None = None,
    *,
    why_not: str = "",
) -> Parity:
    """`parity` with the reason of each detection without partner, where there is one.

    Only pictures that hold such a detection are computed again. A detection is excused where :func:`match_detections` finds the
    numeric cut that it lies on, or pairs it within `tolerance` although it misses one of parity's own cuts: the other's score is on
    the other side of ``parity.score`` by no more than ``tolerance.score``, or its small mask differs by at most ``tolerance.pixels``.
    Without `heads` nothing is excused, and the notes say `why_not`.
    """
    if heads is None:
        return replace(parity, notes=(*parity.notes, why_not or _NO_HEADS.format(why="none were given")))
    explained: list[Lone] = []
    for image_id, lone in groupby(parity.lone, key=lambda one: one.image_id):
        ours, theirs = reference.detections(image_id), candidate.detections(image_id)
        match = match_detections(ours, theirs, heads(image_id), tolerance, settings)
        explained += [replace(one, reason=_reason(one, match, ours, theirs, parity, tolerance)) for one in lone]
    return replace(parity, lone=tuple(explained), explained=True)


def _reason(one: Lone, match: DetectionMatch, ours: Detections, theirs: Detections, parity: Parity, tolerance: Tolerance) -> str:
    if one.side == "missing":
        partner, own, others, reasons = match.pairs.get(one.index), ours, theirs, match.missing
    else:
        partner = next((i for i, j in match.pairs.items() if j == one.index), None)
        own, others, reasons = theirs, ours, match.surplus
    if partner is None:
        return reasons[one.index]
    if not (others.scores > parity.score)[partner]:
        gap = abs(float(own.scores[one.index]) - float(others.scores[partner]))
        return f"its partner's score is {others.scores[partner]:.4f}, {gap:.1e} away and on the other side of {parity.score:g}"
    if mask_ious(own[one.index], others[partner])[0, 0] <= parity.mask_iou:
        return f"its mask differs from its partner's by at most {tolerance.pixels} pixels"
    return "its partner has a nearer one"
