"""What an evaluation found: the figures of one artifact and of all together, as small frozen records that turn into JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from yolact_deploy.evaluation.failures import Failures
    from yolact_deploy.evaluation.parity import Parity
    from yolact_deploy.evaluation.store import ResultStore

__all__ = ["ArtifactEvaluation", "ClassMetrics", "DatasetFacts", "Evaluation", "Metrics", "mask_differences"]


@dataclass(frozen=True)
class ClassMetrics:
    """One category's figures.

    Attributes:
        ap, ap50, ap75: average precision in percent points, 0 … 100; None where the category has no ground truth.
        ground_truth: instances that count (crowds do not).
        detections: how many the artifact found, at most 100 a picture.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ground_truth: int
    detections: int


@dataclass(frozen=True)
class Metrics:
    """COCO's figures of one artifact, in percent points, 0 … 100; None where there is no ground truth to measure with.

    Attributes:
        iou_type: ``bbox`` or ``segm``.
        ap: mean over the IoU thresholds 0.50 … 0.95 and the categories that have ground truth, 100 detections a picture.
        by_threshold: AP at each threshold, keys ``"0.50"``, ``"0.55"`` … ``"0.95"``.
        small, medium, large: AP of objects below 32², up to 96² and above, in pixels of the original picture.
        ar1, ar10, ar100: average recall with so many detections a picture.
        ar_small, ar_medium, ar_large: average recall by size, 100 detections.
        per_class: by category name; every category of the data set is there.
        ground_truth: instances that count (crowds do not).
        detections: results that went in.
        notes: what a reader has to know about these figures, one sentence each.
    """

    iou_type: Literal["bbox", "segm"]
    ap: float | None
    by_threshold: dict[str, float | None]
    small: float | None
    medium: float | None
    large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: dict[str, ClassMetrics]
    ground_truth: int
    detections: int
    notes: tuple[str, ...] = ()

    @property
    def ap50(self) -> float | None:
        """AP at IoU 0.50."""
        return self.by_threshold["0.50"]

    @property
    def ap75(self) -> float | None:
        """AP at IoU 0.75."""
        return self.by_threshold["0.75"]


@dataclass(frozen=True)
class ArtifactEvaluation:
    """One artifact on the data set.

    Attributes:
        name: unique among the artifacts of an evaluation; the file's stem, lengthened where two are alike.
        path: the file as it was named.
        kind: in words: ``PyTorch``, ``ONNX FP32``, ``ONNX FP16``, ``results file``, …
        sha256: of the file.
        box, mask: COCO's figures.
        milliseconds: mean wall time a picture of each stage (``read``, ``preprocess``, ``inference``, ``postprocess``); empty for a
            results file.
        pictures, detections: how many were evaluated and found.
        bytes_per_picture: of the store on disk.
        store: the detections themselves, labels and category ids being the data set's.
        notes: what a reader has to know, one sentence each.
        failures: the error analysis, where it was made.
        parity: detection by detection against the reference, None for the reference itself and where there is none.
        hop: the same against the artifact before.
    """

    name: str
    path: str
    kind: str
    sha256: str
    box: Metrics
    mask: Metrics
    milliseconds: dict[str, float]
    pictures: int
    detections: int
    bytes_per_picture: float
    store: ResultStore
    notes: tuple[str, ...] = ()
    failures: Failures | None = None
    parity: Parity | None = None
    hop: Parity | None = None


@dataclass(frozen=True)
class DatasetFacts:
    """What was evaluated on.

    Attributes:
        annotations: the annotation file as it was named; `sha256` of its bytes.
        pictures: evaluated pictures; `image_ids` are theirs, ascending.
        unannotated: those among them that have no annotations; they count as evaluated unless `like_original`.
        left_out: pictures without annotations that were left out, as the original does (`like_original`).
        missing: names of pictures that are not in the folder and were skipped.
        instances, crowds: annotations of the evaluated pictures, crowds counted apart.
        categories: names, in the order of the labels.
        like_original: whether pictures without annotations were left out.
        notes: of the reader of the annotations, one sentence each.
    """

    annotations: str
    sha256: str
    pictures: int
    image_ids: tuple[int, ...]
    unannotated: int
    left_out: int
    missing: tuple[str, ...]
    instances: int
    crowds: int
    categories: tuple[str, ...]
    like_original: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Several artifacts on one data set, in the order of the hops.

    Attributes:
        dataset: what was evaluated on.
        artifacts: the reference first, then the hops in the order they were named.
        reference: name of the reference among `artifacts`, None where there is none.
        max_drop: the allowed drop of mask AP in points, None where none was set.
        command: the command line that makes it again, as far as it is known.
        versions: package name to version.
        machine: facts of the machine: ``cpu``, ``cores``, ``system``, …
        date: UTC, ISO 8601, seconds.
        settings: those of the run, as the command took them.
    """

    dataset: DatasetFacts
    artifacts: tuple[ArtifactEvaluation, ...]
    reference: str | None
    max_drop: float | None
    command: str
    versions: dict[str, str]
    machine: dict[str, str]
    date: str
    settings: dict[str, Any] = field(default_factory=dict)


def mask_differences(evaluation: Evaluation, place: int) -> tuple[float | None, float | None]:
    """Mask AP of the artifact at `place` less that of the reference, and less that of the artifact before it, in percent points.

    None where there is no reference or no artifact before, for the reference itself, and where an AP is not defined.
    """
    artifacts = evaluation.artifacts
    here = artifacts[place]
    reference = next((one for one in artifacts if one.name == evaluation.reference), None)
    before = artifacts[place - 1] if place else None
    return _less(here, reference), _less(here, before)


def _less(here: ArtifactEvaluation, other: ArtifactEvaluation | None) -> float | None:
    if other is None or other is here or here.mask.ap is None or other.mask.ap is None:
        return None
    return here.mask.ap - other.mask.ap
