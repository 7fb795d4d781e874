"""One call that tells whether an engine is right on the machine that runs it; and what such a test is made from.

An engine that ``yolact-deploy build-engine --with-selftest`` built carries a picture and what ONNX Runtime, on a CPU, found in it with the
ONNX file that the engine was built from. Both run with the NMS settings of the manifest.

The rule, with the numbers that stand in the self-test:

* A found detection can be the partner of an expected one of the same label, where their boxes have an IoU of at least ``box_iou``, their
  masks one of at least ``mask_iou``, and their scores differ by no more than ``score_tolerance``. Of two boxes or masks without area the
  IoU is 1. Numbers are compared in float64.
* The expected ones, best first, each take the partner with the highest mask IoU (the better one, where two have it) that none took before.
* An expected detection with a score above ``score_threshold + score_tolerance`` must have a partner, and a found one with such a score
  must be one. Those below may miss theirs, whose score could lie below the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.engines.plan_file import identify
from yolact_deploy.engines.selftest import Selftest, SelftestTolerance, read_selftest
from yolact_deploy.engines.sidecar import read_sidecar
from yolact_deploy.engines.targets import ENGINE_SUFFIXES
from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.matching import mask_ious
from yolact_deploy.pictures import Picture
from yolact_deploy.runtime.detector import Detector, load
from yolact_deploy.runtime.onnx_backend import OnnxBackend

__all__ = ["KEPT_SIDE", "SCORE_THRESHOLD", "SelftestResult", "compare", "fit_picture", "make_selftest", "selftest"]

SCORE_THRESHOLD = 0.3
"""Detections below it are not in a self-test: many hang on a hair."""
KEPT_SIDE = 1280
"""Pixels: larger pictures are made smaller, so that a self-test has no more than 6.6 MB."""
_RUNS = 2  # the second replays the CUDA graph that the first recorded


@dataclass(frozen=True)
class SelftestResult:
    """Whether an engine finds what it should.

    Attributes:
        passed: whether there is no problem.
        checked: how many expected detections had to be found.
        problems: a sentence for each that is missing or one too many; detections are numbered from 1, best first.
    """

    passed: bool
    checked: int
    problems: tuple[str, ...]


def selftest(
    path: str | Path,
    *,
    device: str | None = None,
    lean_runtime: str | None = None,
    postprocess: Literal["auto", "gpu", "cpu"] = "auto",
) -> SelftestResult:
    """Run an engine on the picture that it carries and compare what it finds with what it should.

    `device`, `lean_runtime` and `postprocess` are those of :func:`yolact_deploy.runtime.load`, whose errors this raises too;
    :class:`ModelFileError` for an engine without a self-test, or with a damaged or foreign one.
    """
    path = Path(path)
    if path.suffix.lower() not in ENGINE_SUFFIXES:
        raise ModelFileError(
            f"{path} ends in {path.suffix or 'nothing'}, .engine was wanted.", "Name an engine: others carry no self-test."
        )
    identify(path)  # which says where there is no such file
    sidecar = read_sidecar(path)
    test = read_selftest(path, sidecar[1] if sidecar else None)
    with load(path, device=device, lean_runtime=lean_runtime, postprocess=postprocess) as detector:
        strange = [label for label in test.expected.labels.tolist() if label >= len(detector.classes)]
        if strange:
            raise ModelFileError(
                f"The self-test of {path} expects the label {strange[0]}, its model has {len(detector.classes)} classes.",
                "Build the engine again.",
            )
        for _ in range(_RUNS):
            result = compare(test, detector.predict(test.picture, channels="rgb", score_threshold=test.score_threshold))
            if not result.passed:
                break
    return result


def make_selftest(
    model: Path, picture: Picture, tolerance: SelftestTolerance, *, score_threshold: float = SCORE_THRESHOLD, threads: int = 0
) -> Selftest:
    """The self-test of an engine of the ONNX file `model`: what that finds in `picture`, uint8 RGB [H, W, 3].

    Raises :class:`ConfigError` where it finds nothing that an engine would have to find.
    """
    detector = Detector(_AsWritten(model, ["cpu"], threads))
    found = detector.predict(picture, channels="rgb", score_threshold=score_threshold)
    found = found[np.argsort(-found.scores, kind="stable")]
    test = Selftest(picture, found, f"ONNX Runtime {onnxruntime.__version__} on a CPU from {model.name}", score_threshold, tolerance)
    if not test.wanted:
        raise ConfigError(
            f"{model} finds nothing above {test.limit:.2f} in the self-test's picture, so that it would tell nothing.",
            "Name a picture with objects that the model knows: --selftest-picture FILE.",
        )
    return test


class _AsWritten(OnnxBackend):
    """Without ONNX Runtime's optimizations: those for Q/DQ pairs make integer kernels of them, which TensorRT does not."""

    def _open(self, path: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = self.threads
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=self.providers)
        except Exception as error:  # noqa: BLE001 - its exceptions share no public base
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ModelFileError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {reason}", "Export it again.") from None


def fit_picture(picture: Picture, side: int = KEPT_SIDE) -> Picture:
    """`picture`, made smaller where its longer side has more than `side` pixels."""
    height, width = picture.shape[:2]
    if max(height, width) <= side:
        return picture
    columns, rows = (max(1, round(length * side / max(height, width))) for length in (width, height))
    return np.asarray(cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)


def compare(test: Selftest, found: Detections) -> SelftestResult:
    """`found` held against what `test` expects, by the rule that this module opens with."""
    pair = _Pair(test, found)
    partners = pair.partners()
    problems = [
        f"expected {pair.told(test.expected, row)} has no partner; nearest: {pair.nearest(row, None)}"
        for row in _demanded(test.expected, test.limit)
        if row not in partners
    ]
    problems += [
        f"found {pair.told(found, column)} is not expected; nearest: {pair.nearest(None, column)}"
        for column in _demanded(found, test.limit)
        if column not in partners.values()
    ]
    return SelftestResult(not problems, test.wanted, tuple(problems))


def _demanded(detections: Detections, limit: float) -> Sequence[int]:
    return [place for place, score in enumerate(detections.scores.tolist()) if score > limit]


class _Pair:
    """Expected detections as rows, found ones as columns, and how near each is to each."""

    def __init__(self, test: Selftest, found: Detections) -> None:
        self.expected, self.found, self.tolerance = test.expected, found, test.tolerance
        self.boxes = _box_ious(test.expected.boxes.astype(np.float64), found.boxes.astype(np.float64))
        self.masks = mask_ious(test.expected, found)
        self.gaps = np.abs(test.expected.scores[:, None].astype(np.float64) - found.scores[None, :])
        self.same = test.expected.labels[:, None] == found.labels[None, :]

    def partners(self) -> dict[int, int]:
        """Row to column."""
        near = self.tolerance
        possible = self.same & (self.boxes >= near.box_iou) & (self.masks >= near.mask_iou) & (self.gaps <= near.score)
        taken: dict[int, int] = {}
        for row in range(len(self.expected)):
            free = [int(column) for column in np.flatnonzero(possible[row]) if column not in taken.values()]
            if free:
                taken[row] = max(free, key=lambda column: (self.masks[row, column], -column))
        return taken

    @staticmethod
    def told(detections: Detections, place: int) -> str:
        """``detection 3 (label 17, score 0.83)``."""
        return f"detection {place + 1} (label {detections.labels[place]}, score {detections.scores[place]:.4g})"

    def nearest(self, row: int | None, column: int | None) -> str:
        """What comes nearest to this row's or column's detection: of its label rather than of another, then by its box."""
        others = self.found if column is None else self.expected
        if not len(others):
            return "nothing was found" if column is None else "nothing"
        line = np.s_[row, :] if column is None else np.s_[:, column]
        boxes, masks, gaps, same = self.boxes[line], self.masks[line], self.gaps[line], self.same[line]
        place = max(range(len(others)), key=lambda other: (boxes[other] > 0 and same[other], boxes[other], -gaps[other]))
        if not boxes[place] > 0:
            return "nothing overlaps it"
        near = self.tolerance
        return (
            f"{self.told(others, place)}, box IoU {boxes[place]:.3f} (least: {near.box_iou:g}), mask IoU {masks[place]:.3f} "
            f"(least: {near.mask_iou:g}), score difference {gaps[place]:.2g} (most: {near.score:g})"
        )


def _box_ious(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [N, M] of corner boxes [N, 4] and [M, 4]; 1 for two without area."""
    low, high = np.maximum(rows[:, None, :2], columns[None, :, :2]), np.minimum(rows[:, None, 2:], columns[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (rows, columns)]
    union = areas[0][:, None] + areas[1][None, :] - overlap
    ious: NDArray[np.float64] = np.divide(overlap, union, out=np.ones_like(overlap), where=union > 0)
    return ious
