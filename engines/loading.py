"""From an engine's path to a session: every check in its order, then TensorRT."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.errors import MissingDependencyError, ModelFileError
from yolact_deploy.manifest import Manifest

from .cuda import open_driver
from .gpu import gpus
from .plan_file import identify
from .session import Engine, Session
from .sidecar import EngineTarget, check_machine, read_mask_iou, read_plan, read_sidecar
from .targets import BackendName
from .versions import TensorRT, check_driver, load_tensorrt

__all__ = ["LoadedEngine", "check_mask_iou_tensors", "load_engine"]


@dataclass(frozen=True)
class LoadedEngine:
    """An engine ready to run, with what its sidecar says; `target` is None for one that was only trusted."""

    manifest: Manifest
    target: EngineTarget | None
    session: Session
    mask_iou: Session | None

    def close(self) -> None:
        """Release both sessions."""
        for session in (self.session, self.mask_iou):
            if session is not None:
                session.close()


def load_engine(
    path: Path,
    *,
    device: int = 0,
    contexts: int = 1,
    graphs: bool = True,
    stream: object | None = None,
    trust: bool = False,
    lean_runtime: str | None = None,
) -> LoadedEngine:
    """Check the engine at `path` and its sidecar, then deserialize it on GPU number `device`.

    Raises :class:`ModelFileError` for a file or sidecar that does not do or does not fit this machine, :class:`MissingDependencyError`
    where the backend is not installed, :class:`yolact_deploy.errors.DeviceError` without a GPU or with too old a driver.
    """
    sidecar = read_sidecar(path)
    plan = read_plan(path, sidecar, trust=trust)
    mask_iou_plan = read_mask_iou(path, *sidecar) if sidecar else None
    tensorrt = _backend(path, sidecar[1] if sidecar else None)
    if sidecar and sidecar[1].version_compatible and lean_runtime is None:
        raise ModelFileError(
            f"{path} is a version-compatible engine, which brings no runtime of its own.",
            f"Name libnvinfer_lean.so of TensorRT {sidecar[1].tensorrt_version}: --lean-runtime, or load(lean_runtime=…).",
        )
    check_driver(tensorrt)
    here = gpus()
    if sidecar and device < len(here):
        check_machine(path, sidecar[1], tensorrt, here[device])
    driver = open_driver(device)
    with contextlib.ExitStack() as release:
        engine = Engine(tensorrt, driver, plan, path.name, lean_runtime=lean_runtime)
        release.callback(engine.close)
        if sidecar:
            manifest, target = sidecar
            _check_tensors(path, engine, manifest, target)
        else:
            from .foreign import assumed_manifest

            manifest, target = assumed_manifest(path, engine), None
        session = Session(engine, contexts=contexts, stream=stream, graphs=graphs)
        rescoring = None
        if mask_iou_plan is not None:
            net = Engine(tensorrt, driver, mask_iou_plan, manifest.mask_iou["file"], lean_runtime=lean_runtime)
            release.callback(net.close)
            check_mask_iou_tensors(net, manifest)
            rescoring = Session(net, contexts=contexts, stream=stream, graphs=False)  # another number of masks each time
        release.pop_all()
    return LoadedEngine(manifest, target, session, rescoring)


def check_mask_iou_tensors(net: Engine, manifest: Manifest) -> None:
    """Raise :class:`ModelFileError` unless `net` takes float32 masks [B, 1, h, w] and gives float32 [B, C-1]."""
    size = manifest.variant.prototype_size
    wanted = [("float32", (1, size, size)), ("float32", (manifest.variant.num_classes - 1,))]
    found = [(tensor.dtype, tensor.shape) for tensor in net.tensors]
    if found != wanted or len(net.inputs) != 1:
        told, right = ("; ".join(f"{dtype} [B, {', '.join(map(str, shape))}]" for dtype, shape in each) for each in (found, wanted))
        raise ModelFileError(f"{net.name} has the tensors {told}; a mask-IoU net has {right}.", "Build both engines again.")


def _backend(path: Path, target: EngineTarget | None) -> TensorRT:
    """The TensorRT that `path` is for: what its sidecar says, or its header where it is only trusted."""
    header = identify(path)
    backend: BackendName = target.backend if target else "tensorrt-rtx" if header.kind == "tensorrt-rtx" else "tensorrt"
    try:
        found = load_tensorrt(backend)
    except MissingDependencyError as error:
        if target is None:
            raise
        raise MissingDependencyError(f"{path} was built by {target.title}. {error.message}", error.mend) from None
    if target is not None and not found.reads(target.tensorrt_version, version_compatible=target.version_compatible):
        raise ModelFileError(
            f"{path} was built by {target.title}, {found} is installed and does not read it.", f"Rebuild it here: {target.rebuild}"
        )
    if target is None and header.version and not found.reads(header.version, version_compatible=not found.is_rtx):
        raise ModelFileError(
            f"The header of {path} says version {header.version}, {found} is installed and does not read it.", "Build it again here."
        )
    return found


def _check_tensors(path: Path, engine: Engine, manifest: Manifest, target: EngineTarget) -> None:
    wanted = {spec.name: spec for spec in (*manifest.inputs, *manifest.outputs)}
    found = {spec.name: spec for spec in (*engine.specs(engine.inputs), *engine.specs(engine.outputs))}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            told = [f"{spec.dtype} {list(spec.shape)}" if spec else "missing" for spec in (found.get(name), wanted.get(name))]
            raise ModelFileError(f"The tensor {name} of {path} is {told[0]}, its sidecar says {told[1]}.", f"Rebuild it: {target.rebuild}")
