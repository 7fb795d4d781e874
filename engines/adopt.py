"""Writing the sidecar of an engine that another tool, trtexec as a rule, built from an ONNX file of ours."""

from __future__ import annotations

import hashlib
import platform
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.files import atomic_output, refuse_overwrite
from yolact_deploy.manifest import Manifest

from .batches import BatchRange
from .builder import engine_manifest
from .cuda import open_driver
from .gpu import Gpu, gpus
from .plan_file import PlanFile, identify
from .session import Engine
from .sidecar import EngineTarget, read_mask_iou, read_plan, read_sidecar, sidecar_path, write_sidecar
from .source import GraphSource, read_source
from .targets import BackendName, Capability, capability_text
from .versions import TensorRT, check_driver, load_tensorrt

__all__ = ["AdoptResult", "adopt_engine"]


@dataclass(frozen=True)
class AdoptResult:
    """The sidecar written, and whether the engine was opened and its tensors compared, which takes a GPU."""

    sidecar: Path
    manifest: Manifest
    target: EngineTarget
    opened: bool


def adopt_engine(
    engine: Path,
    onnx_file: Path,
    *,
    mask_iou: Path | None = None,
    sm: tuple[Capability, ...] = (),
    batch: BatchRange | None = None,
    tensorrt_version: str = "",
    force: bool = False,
) -> AdoptResult:
    """Write the sidecar of `engine`, which was built from `onnx_file`.

    With a GPU here the engine is opened (adopting it says that it may run), its tensors are compared with the
    ONNX file's and its batches read. Elsewhere `sm`, and `batch` for a dynamic graph, have to say what it was built for; its
    version is read off its header, or given. A YOLACT++ engine takes `mask_iou`, the engine of its mask-IoU net, in the same folder.

    Raises :class:`ModelFileError` for files that do not belong together, :class:`ConfigError` for what has to be said and was not, and
    :class:`yolact_deploy.errors.MissingDependencyError` where there is a GPU but not the engine's TensorRT.
    """
    graph = read_source(onnx_file)
    plan = read_plan(engine, None, trust=True)
    found = identify(engine)
    target_path = sidecar_path(engine)
    refuse_overwrite(target_path, ours=_is_adopted(engine), force=force)
    tensorrt, gpu = _runnable(found)
    manifest = graph.manifest
    opened = tensorrt is not None
    if tensorrt is not None:
        batch = _compared(engine, plan, tensorrt, graph)
        version = tensorrt.version
    else:
        version = found.version or tensorrt_version
        batch = _said(graph, batch)
        sm = _built_for(engine, found, sm)
        if not version:
            raise ConfigError(f"The header of {engine} does not tell which TensorRT built it.", "Pass --tensorrt-version.")
        if not sm and found.kind == "tensorrt":
            raise ConfigError(f"There is no GPU here to open {engine} on.", "Pass --sm, the compute capability that it was built for.")
    if manifest.mask_iou:
        manifest = _with_mask_iou(engine, manifest, mask_iou)
    backend: BackendName = "tensorrt-rtx" if found.kind == "tensorrt-rtx" else "tensorrt"
    target = EngineTarget(
        backend=backend,
        tensorrt_version=version,
        precision="unknown",
        sha256=hashlib.sha256(plan).hexdigest(),
        size=len(plan),
        batch=batch,
        capabilities=(gpu.compute_capability,) if gpu and found.kind == "tensorrt" else found.capabilities or sm,
        gpu=gpu.name if gpu and found.kind == "tensorrt" else "",
        rebuild=f"yolact-deploy build-engine {shlex.quote(onnx_file.name)} --backend {backend}",
        options={"adopted": True, "opened": opened},
        build={"machine": platform.machine(), "system": platform.system()},
    )
    manifest = replace(engine_manifest(manifest, graph, target), precision={"all": "as its builder chose"})
    read_mask_iou(engine, manifest, target)
    with atomic_output(target_path) as part:
        write_sidecar(manifest, part)
    return AdoptResult(target_path, manifest, target, opened)


def _is_adopted(engine: Path) -> bool:
    """Whether its sidecar is an earlier one of this function's; that of a build says more and stays."""
    try:
        sidecar = read_sidecar(engine)
    except ModelFileError:
        return False
    return sidecar is not None and sidecar[1].options.get("adopted") is True


def _runnable(found: PlanFile) -> tuple[TensorRT | None, Gpu | None]:
    """The TensorRT and the GPU that open the plan here; None where there is no GPU."""
    here = gpus()
    if not here:
        return None, None
    tensorrt = load_tensorrt("tensorrt-rtx" if found.kind == "tensorrt-rtx" else "tensorrt")
    check_driver(tensorrt)
    return tensorrt, here[0]


def _compared(engine: Path, plan: bytes, tensorrt: TensorRT, graph: GraphSource) -> BatchRange:
    """Open the engine, compare its tensors with the graph's, and tell its batches."""
    opened = Engine(tensorrt, open_driver(), plan, engine.name)
    try:
        found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in opened.tensors}
        wanted = {spec.name: (spec.dtype, tuple(spec.shape[1:])) for spec in (*graph.manifest.inputs, *graph.manifest.outputs)}
        if found != wanted:
            name = next(name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name))
            told = [f"{spec[0]} [B, {', '.join(map(str, spec[1]))}]" if spec else "missing" for spec in (found.get(name), wanted.get(name))]
            raise ModelFileError(
                f"The tensor {name} of {engine} is {told[0]}, that of {graph.path} {told[1]}: it was built from another file.",
                "Name the ONNX file that it was built from, or build it with yolact-deploy build-engine.",
            )
        return opened.batch
    finally:
        opened.close()


def _built_for(engine: Path, found: PlanFile, sm: tuple[Capability, ...]) -> tuple[Capability, ...]:
    if sm and found.capabilities and set(sm) != set(found.capabilities):
        told = ", ".join(map(capability_text, found.capabilities))
        raise ConfigError(f"The header of {engine} says that it was built for compute capability {told}.", "Drop --sm.")
    return found.capabilities or sm


def _said(graph: GraphSource, batch: BatchRange | None) -> BatchRange:
    own = graph.manifest.inputs[0].shape[0]
    if isinstance(own, int):
        return BatchRange(own, own, own)
    if batch is None:
        raise ConfigError(
            f"There is no GPU here to read the batches of the engine off, and {graph.path} has a dynamic one.", "Pass --batch."
        )
    return batch


def _with_mask_iou(engine: Path, manifest: Manifest, mask_iou: Path | None) -> Manifest:
    if mask_iou is None:
        raise ConfigError(
            f"{manifest.variant.name} rescores its masks with a second net, whose engine was not named.",
            f"Build {manifest.mask_iou['file']} as well and pass --mask-iou ENGINE.",
        )
    if mask_iou.resolve().parent != engine.resolve().parent:
        raise ConfigError(f"{mask_iou} lies in another folder than {engine}.", "Put both engines into one folder.")
    plan = read_plan(mask_iou, None, trust=True)
    return replace(manifest, mask_iou={"file": mask_iou.name, "sha256": hashlib.sha256(plan).hexdigest()})
