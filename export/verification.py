"""The proof that an ONNX file equals the PyTorch model: outputs within a tolerance, and the same detections."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from yolact_deploy.assembly import Heads, detect, detections_from_nms
from yolact_deploy.errors import ModelFileError
from yolact_deploy.manifest import InputSpec, Manifest
from yolact_deploy.matching import DetectionMatch, Tolerance, match_detections
from yolact_deploy.model import Checkpoint
from yolact_deploy.postprocess import decode_boxes, softmax
from yolact_deploy.preprocess import prepare

from .graph import HEADS

__all__ = ["Comparison", "VerificationReport", "verify"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """One output on one input: largest absolute difference, the same relative to the reference's largest value, the verdict."""

    case: str
    output: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False also where a value is NaN."""
        return self.relative <= self.tolerance


@dataclass(frozen=True)
class VerificationReport:
    """All comparisons of one file."""

    outputs: tuple[Comparison, ...]
    detections: dict[str, DetectionMatch] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Every output within tolerance and no detection lost or invented without a reason."""
        return all(row.passed for row in self.outputs) and all(match.passed for match in self.detections.values())

    def summary(self) -> dict[str, Any]:
        """For the manifest: largest differences and the count of partners."""
        names = dict.fromkeys(row.output for row in self.outputs)
        return {
            "largest_relative_difference": {name: max(row.relative for row in self.outputs if row.output == name) for name in names},
            "detections": {case: match.summary() for case, match in self.detections.items()},
        }


def verify(
    path: Path, checkpoint: Checkpoint, manifest: Manifest, pictures: dict[str, NDArray[np.uint8]], tolerance: Tolerance, batch: int
) -> VerificationReport:
    """Run the file in ONNX Runtime on the CPU and the checkpoint in PyTorch on the same `pictures` (uint8 RGB), and compare.

    Each picture fills a batch of `batch`, mirrored in every second place. Raises :class:`ModelFileError` where ONNX Runtime
    cannot load or run the file.
    """
    run = _runner(path)
    rows: list[Comparison] = []
    matches: dict[str, DetectionMatch] = {}
    for case, picture in pictures.items():
        variants = [np.ascontiguousarray(picture[:, ::-1]) if place % 2 else picture for place in range(batch)]
        images = np.stack([prepare(variant, manifest.input) for variant in variants])
        truth = _truth(checkpoint, manifest.input, images)
        found = run(images)
        for place in range(batch):
            heads = truth[place]
            outputs = {name: value[place] for name, value in found.items()}
            label = case if batch == 1 else f"{case}[{place}]"
            rows += _compare_heads(label, heads, outputs, tolerance)
            matches[label] = _compare_detections(heads, outputs, checkpoint, manifest, picture.shape[:2], tolerance)
    return VerificationReport(tuple(rows), matches)


def _truth(checkpoint: Checkpoint, spec: InputSpec, images: Array) -> list[Heads]:
    """The network's own outputs, normalised and decoded here rather than by the modules that were exported."""
    if spec.layout == "raw":
        rgb = images if spec.channels == "rgb" else images[..., ::-1]
        mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
        images = ((rgb - mean) / std).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        found = checkpoint.network(torch.from_numpy(np.ascontiguousarray(images, np.float32)))
    priors = checkpoint.network.priors.numpy()
    loc, logits, coefficients, prototypes = (tensor.numpy() for tensor in found[:4])
    return [
        Heads(decode_boxes(loc[place], priors), softmax(logits[place]), coefficients[place], prototypes[place])
        for place in range(len(images))
    ]


def _runner(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - its exceptions share no public base
        raise ModelFileError(f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0][:200]}", "Try another --opset.") from None
    names = [output.name for output in session.get_outputs()]

    def run(images: Array) -> dict[str, Array]:
        return dict(zip(names, cast("list[Array]", session.run(None, {session.get_inputs()[0].name: images})), strict=True))

    return run


def _difference(case: str, name: str, truth: Array, found: Array, tolerance: Tolerance) -> Comparison:
    absolute = float(np.abs(truth.astype(np.float64) - found.astype(np.float64)).max(initial=0.0))
    if not np.isfinite(found.astype(np.float64)).all():
        absolute = float("inf")
    largest = float(np.abs(truth).max(initial=0.0))
    return Comparison(case, name, absolute, absolute / largest if largest else absolute, tolerance.outputs)


def _compare_heads(case: str, heads: Heads, outputs: dict[str, Array], tolerance: Tolerance) -> list[Comparison]:
    named = dict(zip(HEADS, heads, strict=True))
    return [_difference(case, name, named[name], outputs[name], tolerance) for name in HEADS if name in outputs]


def _compare_detections(
    heads: Heads, outputs: dict[str, Array], checkpoint: Checkpoint, manifest: Manifest, size: tuple[int, ...], tolerance: Tolerance
) -> DetectionMatch:
    height, width = size
    mask_iou = _torch_mask_iou(checkpoint) if checkpoint.variant.mask_rescoring else None
    reference = detect(heads, width, height, checkpoint.classes, mask_iou=mask_iou)
    if "boxes" in outputs:
        candidate = detect(
            Heads(*(outputs[name].astype(np.float32) for name in HEADS)), width, height, checkpoint.classes, mask_iou=mask_iou
        )
    else:
        candidate = detections_from_nms(outputs, width, height, checkpoint.classes, mask_iou=mask_iou)
    return match_detections(reference, candidate, heads, tolerance)


def _torch_mask_iou(checkpoint: Checkpoint) -> Any:
    def run(masks: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return cast("NDArray[np.float32]", checkpoint.network.maskiou_net(torch.from_numpy(masks)).numpy())

    return run
