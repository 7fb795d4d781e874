"""From a loaded checkpoint to a verified ONNX file (and, for YOLACT++, its mask-IoU net) with the manifest inside."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from yolact_deploy import __version__
from yolact_deploy.data import sample_picture
from yolact_deploy.errors import ConfigError, VerificationError, YolactDeployError
from yolact_deploy.files import atomic_outputs, refuse_overwrite, sha256_of
from yolact_deploy.manifest import METADATA_KEY, InputSpec, Manifest, TensorSpec
from yolact_deploy.matching import FLOAT16, FLOAT32
from yolact_deploy.model import Checkpoint, Yolact
from yolact_deploy.onnx_file import read_onnx

from .graph import DeployGraph, output_names
from .maskiou import MASK_IOU_KEY, export_mask_iou
from .passes import convert_opset, convert_to_float16, module_precision, rename_by_module
from .passes.opset import NEWEST_OPSET, OLDEST_OPSET
from .prepare import prepare_network
from .tracing import TORCH_OPSET, to_onnx
from .verification import VerificationReport, verify

__all__ = ["ExportOptions", "ExportResult", "artifact_name", "export_checkpoint"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What to export; see the command's options.

    Attributes:
        postprocess: ``none``, ``nms`` or ``masks`` in the graph.
        batch: a fixed number, or ``dynamic``.
        opset: 17 to 20.
        fp16: float16 inside.
        fp16_io: also float16 `coefficients` and `prototypes` outputs.
        layout, channels: float input (RGB, normalised), or raw uint8 in that channel order.

    Raises :class:`ConfigError` for options that contradict each other.
    """

    postprocess: Literal["none", "nms", "masks"] = "none"
    batch: int | Literal["dynamic"] = 1
    opset: int = 17
    fp16: bool = False
    fp16_io: bool = False
    layout: Literal["float", "raw"] = "float"
    channels: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        if isinstance(self.batch, int) and not 1 <= self.batch <= 1024:
            raise ConfigError(f"A batch of {self.batch} was asked for, 1 to 1024 or 'dynamic' is supported.", "Mend --batch.")
        if not OLDEST_OPSET <= self.opset <= NEWEST_OPSET:
            raise ConfigError(
                f"Opset {self.opset} was asked for, {OLDEST_OPSET} to {NEWEST_OPSET} are supported.", "Choose one of these with --opset."
            )
        if self.fp16_io and not self.fp16:
            raise ConfigError("--io fp16 was asked for without --fp16.", "Add --fp16, or drop --io fp16.")
        if self.layout == "float" and self.channels == "bgr":
            raise ConfigError("Float input is always RGB, BGR was asked for.", "Add --input raw, or drop --channels bgr.")


@dataclass(frozen=True)
class ExportResult:
    """The files written, the manifest inside, what the check found, and the seconds of each step."""

    path: Path
    mask_iou_path: Path | None
    manifest: Manifest
    report: VerificationReport
    seconds: dict[str, float] = field(default_factory=dict)


def artifact_name(weights: Path, options: ExportOptions) -> str:
    """``<stem>.onnx``, with ``.fp16`` before it for float16."""
    return f"{weights.stem}{'.fp16' if options.fp16 else ''}.onnx"


def export_checkpoint(
    checkpoint: Checkpoint,
    output: Path,
    options: ExportOptions | None = None,
    *,
    picture: NDArray[np.uint8] | None = None,
    force: bool = False,
    progress: Progress = lambda step: None,
) -> ExportResult:
    """Write `output`, check it against the checkpoint on a picture and on noise, and only then give it its name.

    `picture` is a uint8 RGB [H, W, 3] picture for the check (default: one that the package draws). A YOLACT++ checkpoint also
    writes ``<stem>.maskiou.onnx`` unless the masks are assembled in the graph. `progress` is told each step.

    Raises :class:`VerificationError` where the file differs from the model (no file is left), :class:`OutputError` where it
    cannot be written, :class:`MissingDependencyError` without the torch extra.
    """
    options = options or ExportOptions()
    clock = _Clock(progress)
    separate = checkpoint.variant.mask_rescoring and options.postprocess != "masks"
    mask_iou_path = output.with_name(f"{output.stem}.maskiou.onnx") if separate else None
    targets = [output, *([mask_iou_path] if mask_iou_path else [])]
    for target in targets:
        refuse_overwrite(target, ours=_is_ours(target), force=force)
    clock("tracing")
    model, spec = _trace(checkpoint.network, options)
    clock("graph passes")
    model = convert_opset(rename_by_module(model), options.opset)
    if options.fp16:
        model = _to_float16(model, options)
    with atomic_outputs(*targets) as parts:
        mask_iou = {}
        if mask_iou_path is not None:
            export_mask_iou(checkpoint, parts[1], options.opset)
            mask_iou = {"file": mask_iou_path.name, "sha256": sha256_of(parts[1])}
        manifest = _manifest(checkpoint, model, spec, options, mask_iou)
        clock("writing")
        _write(model, manifest, parts[0])
        clock("checking against PyTorch")
        report = _verified(parts[0], checkpoint, manifest, options, picture)
        manifest = _manifest(checkpoint, model, spec, options, mask_iou, report.summary())
        _write(model, manifest, parts[0])
    clock("")
    return ExportResult(output, mask_iou_path, manifest, report, clock.seconds)


class _Clock:
    """Tells a step's start to the listener and keeps how long each took."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.seconds = progress, {}  # type: Progress, dict[str, float]
        self.step, self.start = "", time.perf_counter()

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        if self.step:
            self.seconds[self.step] = now - self.start
        self.step, self.start = step, now
        if step:
            self.progress(step)


def _is_ours(path: Path) -> bool:
    """Whether an existing file is an earlier output of this command."""
    if not path.is_file():
        return False
    try:
        keys = {prop.key for prop in read_onnx(path).metadata_props}
    except YolactDeployError:
        return False
    return bool(keys & {METADATA_KEY, MASK_IOU_KEY})


def _trace(network: Yolact, options: ExportOptions) -> tuple[onnx.ModelProto, InputSpec]:
    spec = InputSpec.of(network.variant, options.layout, options.channels)
    graph = DeployGraph(prepare_network(network), spec, options.postprocess).eval().requires_grad_(False)
    dynamic = options.batch == "dynamic"
    batch = 2 if isinstance(options.batch, str) else options.batch
    size = spec.size
    example = torch.zeros(batch, size, size, 3, dtype=torch.uint8) if spec.layout == "raw" else torch.zeros(batch, 3, size, size)
    names = list(output_names(options.postprocess, rescoring=network.variant.mask_rescoring))
    return to_onnx(graph, example, names, opset=max(options.opset, TORCH_OPSET), dynamic=dynamic), spec


def _to_float16(model: onnx.ModelProto, options: ExportOptions) -> onnx.ModelProto:
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    halved = {"coefficients", "prototypes"} if options.fp16_io else set()
    return convert_to_float16(model, [name for name in names if name not in halved])


def _tensor_specs(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            value.name,
            np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name,
            tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def _manifest(
    checkpoint: Checkpoint,
    model: onnx.ModelProto,
    spec: InputSpec,
    options: ExportOptions,
    mask_iou: dict[str, str],
    verification: dict[str, Any] | None = None,
) -> Manifest:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx")}
    return Manifest(
        kind="onnx",
        variant=checkpoint.variant,
        classes=checkpoint.classes,
        input=spec,
        postprocess=options.postprocess,
        inputs=_tensor_specs(model.graph.input),
        outputs=_tensor_specs(model.graph.output),
        precision=module_precision(model),
        source={"file": checkpoint.path.name, "sha256": checkpoint.sha256},
        versions={"yolact_deploy": __version__, **versions, "opset": str(options.opset)},
        mask_iou=mask_iou,
        verification=verification or {},
    )


def _write(model: onnx.ModelProto, manifest: Manifest, path: Path) -> None:
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
    model.producer_name, model.producer_version = "yolact-deploy", __version__
    path.write_bytes(model.SerializeToString())


def _verified(
    part: Path, checkpoint: Checkpoint, manifest: Manifest, options: ExportOptions, picture: NDArray[np.uint8] | None
) -> VerificationReport:
    noise = np.random.default_rng(0).integers(0, 256, (427, 640, 3), np.uint8)
    pictures = {"picture": sample_picture() if picture is None else picture, "noise": noise}
    batch = 2 if isinstance(options.batch, str) else options.batch
    report = verify(part, checkpoint, manifest, pictures, FLOAT16 if options.fp16 else FLOAT32, batch)
    if not report.passed:
        failed = [f"{row.output} on {row.case} {row.relative:.2e} > {row.tolerance:.0e}" for row in report.outputs if not row.passed]
        lost = [line for match in report.detections.values() for line in match.unexplained]
        mend = (
            "FP16 does not hold this network's values: export without --fp16."
            if options.fp16
            else "Please report this with the checkpoint."
        )
        raise FileDiffersError(report, f"The ONNX file differs from PyTorch: {'; '.join([*failed, *lost][:4])}.", mend)
    return report


class FileDiffersError(VerificationError):
    """A :class:`VerificationError` with the `report` that it comes from."""

    def __init__(self, report: VerificationReport, message: str, mend: str) -> None:
        super().__init__(message, mend)
        self.report = report
