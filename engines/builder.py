"""ONNX -> engine: one builder for every TensorRT, with the sidecar that lets the engine be checked before it is loaded."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yolact_deploy import __version__
from yolact_deploy.errors import ConfigError, YolactDeployError
from yolact_deploy.files import atomic_outputs, refuse_overwrite, sha256_of
from yolact_deploy.manifest import Manifest

from .batches import DEFAULT_BATCHES, BatchRange
from .choice import choose_tensorrt
from .gpu import Gpu, driver_cuda_version, gpus
from .options import BuildOptions
from .plans import PlanBuilder
from .selftest import selftest_path, tolerance_of
from .sidecar import EngineTarget, read_sidecar, sidecar_path, write_sidecar
from .source import GraphSource, Progress, read_mask_iou_net, read_source
from .targets import ENGINE_SUFFIXES, Capability
from .versions import TensorRT

__all__ = ["BuildResult", "build_engine", "engine_manifest", "engine_name", "rebuild_command"]

_MASK_IOU_BATCHES = BatchRange(1, 50, 100)  # detections of one picture


@dataclass(frozen=True)
class BuildResult:
    """The files written and what they are.

    Attributes:
        reason: why that backend, in one sentence.
        converted: whether float16 was made here rather than read from the file.
        notes: sentences worth knowing.
        seconds: of each plan's build.
        selftest_path: the self-test, None without.
    """

    path: Path
    sidecar: Path
    mask_iou_path: Path | None
    manifest: Manifest
    target: EngineTarget
    reason: str
    converted: bool = False
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    selftest_path: Path | None = None


def engine_name(source: Path, precision: str, tensorrt: TensorRT, sm: tuple[Capability, ...], gpu: Gpu | None) -> str:
    """``<name>.<precision>.<target>.engine``; the target is ``rtx-sm89``, ``rtx-portable`` or ``trt10.16-sm90``."""
    stem = source.stem.removesuffix(".fp16").removesuffix(".int8").removesuffix(".fp32")
    if tensorrt.is_rtx:
        named = "-".join(f"sm{major}{minor}" for major, minor in sm) or "portable"
        return f"{stem}.{precision}.rtx-{named}.engine"
    major, minor = gpu.compute_capability if gpu else (0, 0)
    return f"{stem}.{precision}.trt{'.'.join(map(str, tensorrt.number[:2]))}-sm{major}{minor}.engine"


def build_engine(
    source: Path,
    output: Path | None = None,
    options: BuildOptions | None = None,
    *,
    folder: Path = Path(),
    force: bool = False,
    progress: Progress = lambda step, done: None,
    log: Callable[[str], None] | None = None,
) -> BuildResult:
    """Build the engine of an ONNX file that ``yolact-deploy export`` wrote, and its sidecar; for a YOLACT++ file its mask-IoU engine too;
    and the self-test that ``options.selftest`` makes.

    `output` is the engine's path (default: :func:`engine_name` in `folder`). `progress` is told the step and how much of it is done,
    0 … 1; `log` gets TensorRT's own messages. Ctrl-C stops the build and leaves no file (TensorRT 8 finishes its build first).

    Raises :class:`yolact_deploy.errors.ModelFileError` for a file that will not do, :class:`ConfigError` for options that contradict it or
    the backend, :class:`MissingDependencyError` and :class:`DeviceError` where TensorRT or a GPU is missing,
    :class:`EngineBuildError` where TensorRT fails, :class:`OutputError` where the files cannot be written.
    """
    options = options or BuildOptions()
    progress("reading", 0.0)
    tensorrt, reason = choose_tensorrt(options.backend, options.sm)  # before a conversion that would be for nothing
    graph = read_source(source, options.precision, progress, weakly_typed=tensorrt.weakly_typed)
    _check_opset(graph, tensorrt)
    batch = _batches(graph, options.batch)
    here = gpus()
    gpu = here[0] if here and not tensorrt.is_rtx else None
    sm = options.sm if gpu is None else (gpu.compute_capability,)
    output = output or folder / engine_name(source, graph.precision, tensorrt, sm, gpu)
    if output.suffix not in ENGINE_SUFFIXES and not output.is_dir():
        raise ConfigError(f"The output {output} ends in {output.suffix or 'nothing'}, an engine's name was wanted.", "Name it .engine.")
    mask_iou_path = output.with_name(f"{output.stem}.maskiou.engine") if graph.mask_iou else None
    selftest = selftest_path(output) if options.selftest else None
    targets = [path for path in (output, sidecar_path(output), mask_iou_path, selftest) if path is not None]
    ours = _is_ours(output)
    for path in targets:
        refuse_overwrite(path, ours=ours, force=force)
    document = _selftest(options, graph, progress)
    job = PlanBuilder(tensorrt, options, gpu, progress, log)
    with atomic_outputs(*targets) as parts:
        part = dict(zip(targets, parts, strict=True))
        spent = job.build(graph.model, graph.manifest.inputs[0].name, batch, part[output], typed=graph.typed)
        manifest = graph.manifest
        if graph.mask_iou is not None and mask_iou_path is not None:
            net = read_mask_iou_net(graph.mask_iou)
            job.build(net, net.graph.input[0].name, _MASK_IOU_BATCHES, part[mask_iou_path], title="mask-IoU net")
            manifest = replace(manifest, mask_iou={"file": mask_iou_path.name, "sha256": sha256_of(part[mask_iou_path])})
        if selftest is not None:
            part[selftest].write_text(document, encoding="utf-8")
        target = EngineTarget(
            backend=tensorrt.backend,
            tensorrt_version=tensorrt.version,
            precision=graph.precision,
            sha256=sha256_of(part[output]),
            size=part[output].stat().st_size,
            batch=batch,
            capabilities=sm,
            gpu=gpu.name if gpu else "",
            rebuild=rebuild_command(graph, tensorrt, options, batch),
            hardware_level=options.hardware_level,
            version_compatible=options.version_compatible,
            options=_told(options),
            build={"seconds": round(spent, 2), "machine": platform.machine(), "system": platform.system(), **_driver(gpu), **job.facts},
            selftest={} if selftest is None else {"file": selftest.name, "sha256": sha256_of(part[selftest])},
        )
        manifest = engine_manifest(manifest, graph, target, job.precision)
        write_sidecar(manifest, part[sidecar_path(output)])
    return BuildResult(
        output, sidecar_path(output), mask_iou_path, manifest, target, reason, graph.converted, tuple(job.notes), job.seconds, selftest
    )


def engine_manifest(manifest: Manifest, graph: GraphSource, target: EngineTarget, measured: dict[str, str] | None = None) -> Manifest:
    """The ONNX file's manifest as that of an engine made from it; `measured` is what the engine says of its modules' precision."""
    shape = target.batch
    batch = shape.minimum if shape.fixed else "batch"
    inputs, outputs = (
        tuple(replace(spec, shape=(batch, *spec.shape[1:])) for spec in specs) for specs in (manifest.inputs, manifest.outputs)
    )
    origin = {f"checkpoint_{key}": value for key, value in manifest.source.items()}
    return replace(
        manifest,
        kind="engine",
        inputs=inputs,
        outputs=outputs,
        precision=measured or manifest.precision,
        source={"file": graph.path.name, "sha256": graph.sha256, **origin},
        versions={**manifest.versions, "yolact_deploy": __version__, target.backend: target.tensorrt_version},
        target=target.to_dict(),
    )


def rebuild_command(graph: GraphSource, tensorrt: TensorRT, options: BuildOptions, batch: BatchRange) -> str:
    """The command line that builds the same engine again."""
    words = ["yolact-deploy build-engine", shlex.quote(graph.path.name)]
    if options.precision != "graph":
        words.append(f"--{options.precision}")
    words.append(f"--backend {tensorrt.backend}")
    if options.sm:
        words.append(f"--sm {','.join(f'{major}{minor}' for major, minor in options.sm)}")
    if not isinstance(graph.manifest.inputs[0].shape[0], int):
        words.append(f"--batch {batch}")
    if options.workspace is not None:
        words.append(f"--workspace {options.workspace}")
    if options.optimization_level is not None:
        words.append(f"--optimization-level {options.optimization_level}")
    if options.hardware_level != "none":
        words.append(f"--hardware-compatible {options.hardware_level}")
    switches = {"--version-compatible": options.version_compatible, "--tf32": options.tf32, "--detailed": options.detailed}
    words += [flag for flag, given in switches.items() if given]
    if options.selftest is not None:
        words.append(options.selftest.flags)
    return " ".join(words)


def _check_opset(graph: GraphSource, tensorrt: TensorRT) -> None:
    if graph.opset > tensorrt.newest_opset:
        raise ConfigError(
            f"{graph.path} has opset {graph.opset}, {tensorrt} reads up to {tensorrt.newest_opset}.",
            f"Export with --opset {tensorrt.newest_opset}.",
        )


def _batches(graph: GraphSource, wanted: BatchRange | None) -> BatchRange:
    own = graph.manifest.inputs[0].shape[0]
    if isinstance(own, int):
        if wanted is not None and wanted != BatchRange(own, own, own):
            raise ConfigError(
                f"{graph.path} has the fixed batch {own}, {wanted} was asked for.", "Export with --batch dynamic, or drop --batch."
            )
        return BatchRange(own, own, own)
    return wanted or DEFAULT_BATCHES


def _selftest(options: BuildOptions, graph: GraphSource, progress: Progress) -> str:
    """The self-test's document, made before a build that would be for nothing; empty where none is wanted."""
    if options.selftest is None:
        return ""
    progress("running the self-test's picture", 0.0)
    return options.selftest.make(graph.path, tolerance_of(graph.precision, tf32=options.tf32)).to_json()


def _is_ours(output: Path) -> bool:
    """Whether an existing engine is an earlier output of this command: one with a sidecar that reads, and that was not adopted."""
    try:
        sidecar = read_sidecar(output)
    except YolactDeployError:
        return False
    return sidecar is not None and not sidecar[1].options.get("adopted")


def _told(options: BuildOptions) -> dict[str, Any]:
    return {
        "workspace_mib": options.workspace,
        "optimization_level": options.optimization_level,
        "tf32": options.tf32,
        "detailed": options.detailed,
    }


def _driver(gpu: Gpu | None) -> dict[str, str]:
    version = driver_cuda_version() if gpu is not None else None
    return {"driver": f"CUDA {version[0]}.{version[1]}"} if version else {}
