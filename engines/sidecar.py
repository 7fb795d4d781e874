"""The JSON beside an engine, and every check that is made before the engine is handed to TensorRT, because a plan is executable code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.manifest import Manifest

from .batches import BatchRange
from .gpu import Gpu
from .plan_file import PlanFile, identify
from .targets import BACKENDS, TITLES, BackendName, Capability, capability_text, parse_capability
from .versions import HardwareLevel, TensorRT

__all__ = ["EngineTarget", "check_machine", "read_mask_iou", "read_plan", "read_sidecar", "sidecar_path", "write_sidecar"]

_LARGEST_SIDECAR = 16 << 20
_RTX_PORTABLE: tuple[Capability, ...] = ((8, 0), (8, 6), (8, 9))  # and everything from 12.0 on: TensorRT-RTX's support matrix
_RTX_NEWER: Capability = (12, 0)
_ADOPT = "If trtexec built it from our ONNX: yolact-deploy adopt {engine} --onnx MODEL.onnx; else rebuild it with build-engine."


@dataclass(frozen=True)
class EngineTarget:
    """What an engine was built for and how; stands in the manifest's ``target``.

    Attributes:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        tensorrt_version: that built it.
        precision: ``fp32``, ``fp16``, ``int8``, or ``unknown`` for an adopted engine.
        sha256, size: of the plan, size in bytes.
        batch: pictures at once.
        capabilities: that it runs on; none for a portable TensorRT-RTX engine.
        gpu: name of the GPU that it was built on; empty where it was built without one.
        hardware_level, version_compatible: wider compatibility, where asked for.
        rebuild: the command that makes it again.
        options: of the builder, as given.
        build: ``seconds`` and other readings of the build.
        selftest: ``file`` and ``sha256`` of the self-test beside it, empty where there is none.
    """

    backend: BackendName
    tensorrt_version: str
    precision: str
    sha256: str
    size: int
    batch: BatchRange
    capabilities: tuple[Capability, ...]
    gpu: str
    rebuild: str
    hardware_level: HardwareLevel = "none"
    version_compatible: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    selftest: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """``TensorRT-RTX 1.7.1.116``."""
        return f"{TITLES[self.backend]} {self.tensorrt_version}"

    @property
    def where(self) -> str:
        """The GPUs that it runs on, in words."""
        named = f"compute capability {', '.join(capability_text(one) for one in self.capabilities)}"
        if self.backend == "tensorrt-rtx":
            return named if self.capabilities else "compute capability 8.0, 8.6, 8.9, 12.0 and newer"
        level = {"none": "", "ampere+": " and any of compute capability 8.0 and newer"}.get(
            self.hardware_level, " and any of the same compute capability"
        )
        return f"{self.gpu or named}{level}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; :meth:`from_dict` reads it."""
        fields = dataclasses.asdict(self)
        fields["batch"] = [self.batch.minimum, self.batch.optimum, self.batch.maximum]
        fields["capabilities"] = [capability_text(one) for one in self.capabilities]
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any], where: str) -> EngineTarget:
        """Read :meth:`to_dict`'s fields; :class:`ModelFileError` where they are damaged."""
        try:
            minimum, optimum, maximum = fields["batch"]
            found = cls(
                **{
                    **fields,
                    "size": int(fields["size"]),
                    "batch": BatchRange(int(minimum), int(optimum), int(maximum)),
                    "capabilities": tuple(parse_capability(str(one)) for one in fields["capabilities"]),
                }
            )
            texts = (found.tensorrt_version, found.precision, found.sha256, found.gpu, found.rebuild)
            kinds = [type(value) for value in (found.options, found.build, found.selftest, found.version_compatible)]
            if kinds != [dict, dict, dict, bool] or not all(isinstance(text, str) for text in texts) or len(found.sha256) != 64:
                raise ValueError("wrong fields")
            if found.backend not in BACKENDS or found.hardware_level not in get_args(HardwareLevel):
                raise ValueError(f"backend {found.backend!r}, hardware level {found.hardware_level!r}")
            if found.selftest and not _names_a_file(found.selftest):
                raise ValueError(f"selftest {found.selftest}")
        except (AttributeError, ConfigError, KeyError, OverflowError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0][:120]
            raise ModelFileError(f"The sidecar {where} does not describe an engine ({reason}).", "Build the engine again.") from None
        return found


def _names_a_file(named: dict[str, Any]) -> bool:
    """Whether `named` has a name and a digest, and nothing else."""
    file, digest = named.get("file"), named.get("sha256")
    return len(named) == 2 and isinstance(file, str) and file != "" and isinstance(digest, str) and len(digest) == 64


def sidecar_path(engine: Path) -> Path:
    """``name.engine.json`` of ``name.engine``."""
    return engine.with_name(f"{engine.name}.json")


def write_sidecar(manifest: Manifest, path: Path) -> None:
    """Write the manifest as indented JSON."""
    path.write_text(json.dumps(json.loads(manifest.to_json()), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_sidecar(engine: Path) -> tuple[Manifest, EngineTarget] | None:
    """The manifest beside an engine; None where there is none. Raises :class:`ModelFileError` for a damaged one."""
    path = sidecar_path(engine)
    if not path.is_file():
        return None
    mend = f"Build the engine again, or remove {path.name} and adopt it."
    try:
        if path.stat().st_size > _LARGEST_SIDECAR:
            raise ModelFileError(f"The sidecar {path} is larger than {_LARGEST_SIDECAR >> 20} MiB.", mend)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"The sidecar {path} cannot be read ({error}).", mend) from None
    manifest = Manifest.from_json(text, str(path))
    if manifest.kind != "engine":
        raise ModelFileError(f"{path} is the manifest of a file of kind {manifest.kind}, an engine's was wanted.", mend)
    return manifest, EngineTarget.from_dict(manifest.target, str(path))


def read_plan(engine: Path, sidecar: tuple[Manifest, EngineTarget] | None, *, trust: bool = False) -> bytes:
    """The bytes of a plan that is whole and is the one that its sidecar describes.

    Raises :class:`ModelFileError` with the command that rebuilds it; also for one without a sidecar, unless `trust` is given.
    """
    found = identify(engine)
    target = sidecar[1] if sidecar else None
    rebuild = f"Rebuild it: {target.rebuild}" if target else _ADOPT.format(engine=engine)
    _check_kind(engine, found, target, rebuild)
    if target is None and found.declared_size is not None and found.declared_size != found.size:
        raise ModelFileError(
            f"The engine {engine} is cut short: it has {found.size:,} bytes of {found.declared_size:,}.", f"Copy it again. {rebuild}"
        )
    if target is None and not trust:
        raise ModelFileError(
            f"{engine} has no sidecar {sidecar_path(engine).name}, and a plan is code that would run on this machine.",
            f"Copy both files. {rebuild} Or pass --trust if you know who built it.",
        )
    if target is not None and found.size != target.size:
        raise ModelFileError(
            f"The engine {engine} has {found.size:,} bytes, its sidecar says {target.size:,}.", f"Copy both files again. {rebuild}"
        )
    plan = _bytes(engine)
    if target is not None and _sha256(plan) != target.sha256:
        raise ModelFileError(
            f"{engine} is not the engine that {sidecar_path(engine).name} describes: its SHA-256 differs.",
            f"Copy both files again. {rebuild}",
        )
    return plan


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"The engine {path} cannot be read: {error.strerror}.", "Check its permissions.") from None


def _sha256(plan: bytes) -> str:
    return hashlib.sha256(plan).hexdigest()


def _check_kind(engine: Path, found: PlanFile, target: EngineTarget | None, rebuild: str) -> None:
    if found.kind == "empty":
        raise ModelFileError(f"The engine {engine} is empty.", rebuild)
    if found.kind == "onnx":
        raise ModelFileError(
            f"{engine} is an ONNX file, an engine was wanted.", f"Rename it to .onnx and run: yolact-deploy build-engine {engine.stem}.onnx"
        )
    if found.kind == "checkpoint":
        raise ModelFileError(f"{engine} is a checkpoint, an engine was wanted.", "Run: yolact-deploy export, then build-engine.")
    if not found.is_plan:
        raise ModelFileError(f"{engine} is no TensorRT engine: it starts with none of their marks.", rebuild)
    if target is not None and found.kind != target.backend:
        raise ModelFileError(
            f"{engine} is a plan of {TITLES[found.kind]}, its sidecar says {TITLES[target.backend]}.", f"Copy both files again. {rebuild}"
        )


def check_machine(engine: Path, target: EngineTarget, tensorrt: TensorRT, gpu: Gpu) -> None:
    """That this TensorRT and this GPU run what was built; :class:`ModelFileError` with the command that rebuilds it."""
    rebuild = f"Rebuild it here: {target.rebuild}"
    if tensorrt.backend != target.backend:
        raise ModelFileError(f"{engine} was built by {target.title}, {tensorrt} was to run it.", f"Install that backend. {rebuild}")
    if not tensorrt.reads(target.tensorrt_version, version_compatible=target.version_compatible):
        raise ModelFileError(f"{engine} was built by {target.title}, {tensorrt} is installed and does not read it.", rebuild)
    if not _runs_on(target, gpu):
        raise ModelFileError(
            f"{engine} was built for {target.where}; this machine has {gpu.name}, compute capability "
            f"{capability_text(gpu.compute_capability)}.",
            f"Rebuild it for this GPU: {_rebuild_for(target, gpu.compute_capability)}",
        )


def _rebuild_for(target: EngineTarget, capability: Capability) -> str:
    """The rebuild command for another GPU: TensorRT builds for the one here; TensorRT-RTX is told, or left where it does not know it."""
    command = re.sub(r" --sm \S+", "", target.rebuild)
    if target.backend == "tensorrt":
        return command
    if capability in (*_RTX_PORTABLE, (7, 5)) or capability >= _RTX_NEWER:
        return f"{command} --sm {capability[0]}{capability[1]}"
    return command.replace("--backend tensorrt-rtx", "--backend tensorrt")


def _runs_on(target: EngineTarget, gpu: Gpu) -> bool:
    """The hardware compatibility rules of both products: TensorRT's engines stay on their GPU model unless built for more."""
    here = gpu.compute_capability
    if target.backend == "tensorrt-rtx":
        return here in (target.capabilities or _RTX_PORTABLE) or (not target.capabilities and here >= _RTX_NEWER)
    if target.hardware_level == "ampere+":
        return here >= (8, 0)
    if target.hardware_level == "same-compute-capability" or not target.gpu:
        return here in target.capabilities
    return here in target.capabilities and gpu.name == target.gpu


def read_mask_iou(engine: Path, manifest: Manifest, target: EngineTarget) -> bytes | None:
    """The mask-IoU engine beside `engine`, checked like it; None for a variant without, or with the rescoring in the graph.

    It has no sidecar of its own: the main engine's names its SHA-256.
    """
    named = manifest.mask_iou
    if not named:
        return None
    beside, rebuild = engine.parent / Path(named["file"]).name, f"Copy both files, or rebuild: {target.rebuild}"
    if not beside.is_file():
        raise ModelFileError(f"{engine} needs its mask-IoU engine {beside.name} beside it, which is missing.", rebuild)
    _check_kind(beside, identify(beside), target, rebuild)
    plan = _bytes(beside)
    if _sha256(plan) != named["sha256"]:
        raise ModelFileError(f"{beside} is not the mask-IoU engine that {engine.name} was built with.", rebuild)
    return plan
