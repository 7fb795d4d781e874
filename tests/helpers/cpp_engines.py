"""Engines for C++ programs that are linked with the stand-in for TensorRT of ``tests/engines/cpp/standin``: recorded outputs, no network.

An engine's rows are one picture's outputs each; which picture of a batch gets which row is the plan's rule (see ``plan.hpp``)::

    variant = tiny_variant()
    engine = write_recorded_engine(folder, variant, made_outputs(variant, rows=3), batch=BatchRange(1, 2, 4), choose="value")
    standin = build_standin()                                    # or version="8.6.1.6", rtx=True, sanitize="address,undefined"
    program = compile_program(standin, [source], folder / "program")
    subprocess.run([program, engine], env=standin.environment(kernels=build_library()), check=True)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.helpers.stub_cuda import stub_environment
from yolact_deploy.classes import COCO, PASCAL, ClassList, numbered_classes
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.builder import engine_manifest
from yolact_deploy.engines.sidecar import EngineTarget, sidecar_path, write_sidecar
from yolact_deploy.engines.source import GraphSource
from yolact_deploy.files import sha256_of
from yolact_deploy.manifest import InputSpec, Manifest, TensorSpec
from yolact_deploy.variants import Variant

__all__ = [
    "RTX_VERSION",
    "VERSION",
    "StandIn",
    "build_standin",
    "chosen_rows",
    "compile_program",
    "made_manifest",
    "mask_ious",
    "missing",
    "plan_bytes",
    "write_lean_runtime",
    "write_recorded_engine",
]

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "engines" / "cpp" / "standin"
VERSION, RTX_VERSION = "11.4.0.106", "1.7.1.116"
STUB_GPU = "Stub GPU 0"
_KINDS = {"float32": "FLOAT", "float16": "HALF", "int8": "INT8", "int32": "INT32", "uint8": "UINT8", "int64": "INT64", "bool": "BOOL"}
_WARNINGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]

Backend = Literal["tensorrt", "tensorrt-rtx"]
Arrays = Mapping[str, NDArray[Any]]


# The stand-in's library


def missing(compiler: str = "g++") -> str:
    """Why programs cannot be compiled and run here; empty where they can."""
    if not (os.name == "posix" and hasattr(os, "uname") and os.uname().sysname == "Linux"):
        return "the stand-in for TensorRT is for Linux"
    return "" if shutil.which(compiler) and shutil.which("gcc") else f"the stand-in for TensorRT needs gcc and {compiler}"


@dataclass(frozen=True)
class StandIn:
    """A made stand-in, laid out as TensorRT is.

    Attributes:
        root: has ``include`` and ``lib``; its header plays `version` without being told.
        version, rtx: what it plays.
        sanitize: for -fsanitize=, what it was made with; a program has to be made with the same.
        compiler: that it was made with.
    """

    root: Path
    version: str = VERSION
    rtx: bool = False
    sanitize: str = ""
    compiler: str = "g++"

    @property
    def library(self) -> Path:
        """``libnvinfer.so`` or ``libtensorrt_rtx.so``."""
        return self.root / "lib" / ("libtensorrt_rtx.so" if self.rtx else "libnvinfer.so")

    @property
    def compile_flags(self) -> list[str]:
        """For the compiler, before the sources; what is sanitized is not optimised, which takes long."""
        sanitizers = [f"-fsanitize={self.sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] if self.sanitize else []
        return ["-g", "-O0" if sanitizers else "-O1", "-I", str(self.root / "include"), *sanitizers]

    @property
    def link_flags(self) -> list[str]:
        """For the linker, after the sources."""
        return ["-L", str(self.library.parent), f"-l{self.library.stem.removeprefix('lib')}", "-ldl", "-pthread"]

    def environment(self, *, kernels: Path | None = None, **settings: object) -> dict[str, str]:
        """Of a process that finds this library and the stand-in for libcuda; `kernels` is what ``build_library`` returns.

        `settings` are those of :func:`tests.helpers.stub_cuda.stub_environment`.
        """
        given = stub_environment(None, **({**settings, "kernels": kernels} if kernels else settings))
        given["LD_LIBRARY_PATH"] = os.pathsep.join([str(self.library.parent), given["LD_LIBRARY_PATH"]])
        given["UBSAN_OPTIONS"] = "print_stacktrace=1"
        return given


def build_standin(version: str = VERSION, *, rtx: bool = False, sanitize: str = "", compiler: str = "g++") -> StandIn:
    """The stand-in as TensorRT `version`, made once for each state of its sources; `rtx` makes it TensorRT-RTX, 1.7.1.116 by default."""
    version = RTX_VERSION if rtx and version == VERSION else version
    files = sorted([Path(__file__), *SOURCES.glob("*.[ch]pp"), *(SOURCES / "include").iterdir()])
    digest = hashlib.sha256(json.dumps([version, rtx, sanitize, compiler, _WARNINGS]).encode())
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    root = Path(tempfile.gettempdir()) / f"yolact-deploy-standin-{os.getuid()}-{digest.hexdigest()[:16]}"
    made = StandIn(root, version, rtx, sanitize, compiler)
    root.mkdir(mode=0o700, exist_ok=True)
    with open(root / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.library.exists():
            _build(made)
    return made


def _build(standin: StandIn) -> None:
    include = standin.root / "include"
    shutil.copytree(SOURCES / "include", include, dirs_exist_ok=True)
    numbers = dict(zip(("MAJOR", "MINOR", "PATCH", "BUILD"), standin.version.split("."), strict=True))
    named = "RTX" if standin.rtx else "ENTERPRISE" if _numbers(standin.version) >= (10, 11) else ""
    lines = ["#pragma once"]
    for part, number in numbers.items():
        lines += [f"#define TRT_{part}_{named} {number}"] if named else []
        lines += [f"#define NV_TENSORRT_{part} {f'TRT_{part}_{named}' if named else number}"]
    (include / "NvInferVersion.h").write_text("\n".join(lines) + "\n")  # as the real one has it
    library, soname = standin.library, f"{standin.library.name}.{standin.version.split('.')[0]}"
    library.parent.mkdir(exist_ok=True)
    unfinished = library.with_name("unfinished")
    shared = ["-fPIC", "-shared", "-fvisibility=hidden", f"-Wl,-soname,{soname}"]
    sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
    _compile([standin.compiler, *_WARNINGS, *shared, *standin.compile_flags, "-o", str(unfinished), *sources, "-ldl", "-pthread"])
    unfinished.replace(library.with_name(soname))
    library.symlink_to(soname)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def compile_program(standin: StandIn, sources: Iterable[Path], output: Path, *flags: str) -> Path:
    """A program of C++17 sources, linked with the stand-in; AssertionError has the compiler's words where it refuses."""
    units = [str(path) for path in sources]
    _compile([standin.compiler, *_WARNINGS, *standin.compile_flags, *flags, "-o", str(output), *units, *standin.link_flags])
    return output


def _compile(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise AssertionError(f"{command[0]} refuses it:\n{done.stderr[-6000:]}")


def write_lean_runtime(path: Path, version: str) -> Path:
    """A file that the stand-in's ``loadRuntime`` takes for the lean runtime of `version`, whose plans alone it then reads."""
    path.write_text(f"yolact stand-in lean runtime 1\n{version}\n")
    return path


# Plans


def plan_bytes(
    inputs: Mapping[str, tuple[str, Sequence[int]]],
    outputs: Arrays,
    batch: BatchRange | int = 1,
    *,
    mean_columns: Mapping[str, int] | None = None,
    backend: Backend = "tensorrt",
    version: str | None = None,
    choose: Literal["index", "input", "value"] = "index",
    formats: Mapping[str, str] | None = None,
    weights: int = 0,
    memory: int = 1024,
    mask: int = 1 << 3,
    lines: Sequence[str] = (),
) -> bytes:
    """A plan of the stand-in.

    `inputs`: name to NumPy dtype and shape without the batch. `outputs`: name to recorded rows [rows, …]; or, with `mean_columns`, none.
    `batch`: a number makes a static engine, a range a dynamic one. `mean_columns`: outputs that are means (``compute mean``) to their
    columns. `formats`: tensor to the name of its format. `mask`: of the capabilities in the head of a TensorRT-RTX plan (8.9).
    `lines`: more of the plan's lines, as in ``fail run 2``.
    """
    version = version or (RTX_VERSION if backend == "tensorrt-rtx" else VERSION)
    first = batch if isinstance(batch, int) else -1
    text = [f"version {version}", f"weights {weights}", f"memory {memory}", f"choose by {choose}"]

    def tensor(name: str, mode: str, dtype: str, shape: Sequence[int]) -> str:
        sizes = " ".join(map(str, (first, *shape)))
        return f"tensor {name} {mode} {_KINDS.get(dtype, dtype)} {(formats or {}).get(name, 'LINEAR')} {sizes}"

    for name, (dtype, shape) in inputs.items():
        text.append(tensor(name, "INPUT", dtype, shape))
        if not isinstance(batch, int):
            text.append(f"profile {name} {batch.minimum} {batch.optimum} {batch.maximum}")
    text += [tensor(name, "OUTPUT", "float32", (columns,)) for name, columns in (mean_columns or {}).items()]
    text += ["compute mean"] if mean_columns else []
    data = b""
    for name, rows in outputs.items():
        text.append(tensor(name, "OUTPUT", rows.dtype.name, rows.shape[1:]))
        text.append(f"data {name} {len(data)} {rows.nbytes}")
        data += np.ascontiguousarray(rows).tobytes()
    counts = {len(rows) for rows in outputs.values()} or {1}
    if len(counts) > 1:
        raise ValueError(f"the outputs have {sorted(counts)} rows, one number was wanted")
    text += [f"rows {counts.pop()}", *lines, "end"]
    body = b"yolact stand-in plan 1\n" + "\n".join(text).encode() + b"\n" + data
    return _head(b"vtrt" if backend == "tensorrt-rtx" else b"ftrt", version, 64 + len(body), mask) + body


def _head(magic: bytes, version: str, size: int, mask: int) -> bytes:
    """As ``fake_engines.head``, without that module's needs."""
    told = size if magic == b"vtrt" else 0
    return (
        magic + bytes(12) + struct.pack("<Q", told) + bytes(_numbers(version)) + magic + struct.pack("<Q", mask if told else 0) + bytes(24)
    )


def chosen_rows(images: NDArray[Any], rows: int, choose: Literal["index", "input", "value"]) -> list[int]:
    """The recorded row of each picture of a prepared batch, as the plan's rule gives it."""
    if choose == "index":
        return [index % rows for index in range(len(images))]
    if choose == "input":
        return [np.ascontiguousarray(image).tobytes()[0] % rows for image in images]
    values = [float(image.ravel()[0]) for image in images]
    return [int(np.copysign(np.floor(abs(value) + 0.5), value)) % rows for value in values]


def mask_ious(masks: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """What the stand-in's mask-IoU engine gives: masks [N, 1, h, w] -> [N, columns], to the last bit."""
    flat = masks.reshape(len(masks), -1)
    means = (np.cumsum(flat, axis=1, dtype=np.float64)[:, -1] / flat.shape[1]).astype(np.float32)
    places = np.arange(1, columns + 1, dtype=np.float32)
    found: NDArray[np.float32] = means[:, None] * places / np.float32(columns)
    return found


# Engines


def made_manifest(
    variant: Variant,
    outputs: Arrays,
    *,
    spec: InputSpec | None = None,
    postprocess: Literal["none", "nms", "masks"] = "none",
    batch: BatchRange | int = 1,
    precision: str = "float32",
    input_dtype: str | None = None,
) -> Manifest:
    """The manifest of an ONNX file with these outputs, rows [rows, …] each, that was never made."""
    spec = spec or InputSpec.of(variant)
    axis: int | str = batch if isinstance(batch, int) else "batch"
    raw, size = spec.layout == "raw", spec.size
    dtype = input_dtype or ("uint8" if raw else "float32")
    image = TensorSpec("images", dtype, (axis, size, size, 3) if raw else (axis, 3, size, size))
    return Manifest(
        kind="onnx",
        variant=variant,
        classes=_classes(variant.num_classes - 1),
        input=spec,
        postprocess=postprocess,
        inputs=(image,),
        outputs=tuple(TensorSpec(name, rows.dtype.name, (axis, *rows.shape[1:])) for name, rows in outputs.items()),
        precision=dict.fromkeys(("backbone", "fpn", "protonet", "heads"), precision),
        source={"file": f"{variant.name}.pth", "sha256": "0" * 64},
        versions={"torch": "2.6", "opset": "17"},
    )


def _classes(count: int) -> ClassList:
    return {len(COCO): COCO, len(PASCAL): PASCAL}.get(count) or numbered_classes(count)


def write_recorded_engine(
    folder: Path,
    of: Manifest | Variant,
    outputs: Arrays,
    spec: InputSpec | None = None,
    *,
    name: str = "recorded",
    postprocess: Literal["none", "nms", "masks"] = "none",
    batch: BatchRange | int = 1,
    precision: str = "fp32",
    input_dtype: str | None = None,
    backend: Backend = "tensorrt",
    version: str | None = None,
    mask_iou_batch: BatchRange | None = None,
    mask_iou: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """``NAME.engine`` and its sidecar, which passes the project's own checks on the stand-in's GPU; the engine's path.

    Where the variant rescores masks and `postprocess` is not ``masks``, ``NAME.maskiou.engine`` too, for `mask_iou_batch` masks (1:2:4);
    `mask_iou` are options of its plan. `of`, a variant, becomes a manifest by :func:`made_manifest`. `options` are those of
    :func:`plan_bytes`; `target` changes fields of the :class:`EngineTarget`.
    """
    if isinstance(of, Variant):
        kind = "float16" if precision == "fp16" else "float32"
        of = made_manifest(of, outputs, spec=spec, postprocess=postprocess, batch=batch, precision=kind, input_dtype=input_dtype)
    version = version or (RTX_VERSION if backend == "tensorrt-rtx" else VERSION)
    inputs = {one.name: (one.dtype, [int(size) for size in one.shape[1:]]) for one in of.inputs}
    engine, manifest = folder / f"{name}.engine", of
    engine.write_bytes(plan_bytes(inputs, outputs, batch, backend=backend, version=version, **options))
    if of.variant.mask_rescoring and of.postprocess != "masks":
        side = of.variant.prototype_size
        beside = engine.with_name(f"{name}.maskiou.engine")
        given = {"backend": backend, "version": version, "mean_columns": {"mask_ious": of.variant.num_classes - 1}, **(mask_iou or {})}
        beside.write_bytes(plan_bytes({"masks": ("float32", (1, side, side))}, {}, mask_iou_batch or BatchRange(1, 2, 4), **given))
        manifest = replace(of, mask_iou={"file": beside.name, "sha256": sha256_of(beside)})
    fields: dict[str, Any] = {
        "backend": backend,
        "tensorrt_version": version,
        "precision": precision,
        "sha256": sha256_of(engine),
        "size": engine.stat().st_size,
        "batch": BatchRange(batch, batch, batch) if isinstance(batch, int) else batch,
        "capabilities": ((8, 9),),
        "gpu": STUB_GPU if backend == "tensorrt" else "",
        "rebuild": f"yolact-deploy build-engine {name}.onnx --backend {backend}",
    }
    graph = GraphSource(Path(f"{name}.onnx"), "0" * 64, manifest, onnx.ModelProto(), precision, converted=False, mask_iou=None)
    write_sidecar(engine_manifest(manifest, graph, EngineTarget(**{**fields, **(target or {})})), sidecar_path(engine))
    return engine
