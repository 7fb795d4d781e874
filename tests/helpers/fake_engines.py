"""Engines of ONNX files for the fake TensorRT: what they compute is the file in ONNX Runtime, so an engine's results can be told exactly.

For scenarios of `stub_cuda`, in a process whose ``tensorrt`` or ``tensorrt_rtx`` is the fake.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.helpers import fake_tensorrt as trt
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.builder import engine_manifest
from yolact_deploy.engines.sidecar import EngineTarget, sidecar_path, write_sidecar
from yolact_deploy.engines.source import read_source
from yolact_deploy.files import sha256_of

VERSION = tuple(int(part) for part in trt.__version__.split("."))
KINDS = {"float32": "FLOAT", "float16": "HALF", "uint8": "UINT8", "int32": "INT32"}
RTX_CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
STUB_GPU = "Stub GPU 0"


def install(*backends: str) -> None:
    """From now on these modules, ``tensorrt`` or ``tensorrt_rtx``, are the fake in this process."""
    trt.ComputeCapability = SimpleNamespace(**dict.fromkeys(RTX_CAPABILITIES))
    for backend in backends:
        sys.modules[backend] = trt


def head(magic: bytes, version: Sequence[int] = VERSION, size: int = 0, mask: int = 0) -> bytes:
    """The first 64 bytes of a real plan: its mark, its version, and for ``vtrt`` its size and mask of capabilities."""
    return magic + bytes(12) + struct.pack("<Q", size) + bytes(version) + magic + struct.pack("<Q", mask) + bytes(24)


def plan(onnx_file: Path, batch: BatchRange | None = None, *, magic: bytes = b"ftrt", mask: int = 0, **options: Any) -> bytes:
    """A plan that computes `onnx_file`; a graph with a dynamic batch takes `batch`, and is computed row by row."""
    graph = onnx.load(onnx_file, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs, outputs = (
        {value.name: _tensor(value) for value in values if value.name not in weights} for values in (graph.input, graph.output)
    )
    key = sha256_of(onnx_file)
    trt.register(key, _computation(onnx_file, rowwise=batch is not None))
    profiles = [] if batch is None else [{name: [(size, *shape[1:]) for size in _three(batch)] for name, (_, shape) in inputs.items()}]
    body = trt.make_plan(inputs, outputs, key, profiles=profiles, **options)
    return head(magic, size=64 + len(body), mask=mask) + body


def write_engine(
    onnx_file: Path,
    folder: Path,
    batch: BatchRange | None = None,
    *,
    mask_iou_batch: BatchRange | None = None,
    mask: int = 0,
    backend: str = "tensorrt",
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """``<stem>.engine`` with its sidecar in `folder`, for the stand-in's GPU; `options` are the plan's, `changes` the target's."""
    engine = folder / f"{onnx_file.stem}.engine"
    magic = b"vtrt" if backend == "tensorrt-rtx" else b"ftrt"
    content = plan(onnx_file, batch, magic=magic, mask=mask, **(options or {}))
    engine.write_bytes(content)
    graph = read_source(onnx_file)
    manifest = graph.manifest
    if graph.mask_iou is not None:
        beside = engine.with_name(f"{engine.stem}.maskiou.engine")
        beside.write_bytes(plan(graph.mask_iou, mask_iou_batch or BatchRange(1, 2, 4), magic=magic, mask=mask))
        manifest = replace(manifest, mask_iou={"file": beside.name, "sha256": sha256_of(beside)})
    own = manifest.inputs[0].shape[0]
    fields: dict[str, Any] = {
        "backend": backend,
        "tensorrt_version": trt.__version__,
        "precision": graph.precision,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "batch": BatchRange(own, own, own) if isinstance(own, int) else batch,
        "capabilities": ((8, 9),),
        "gpu": STUB_GPU if backend == "tensorrt" else "",
        "rebuild": "yolact-deploy build-engine a.onnx",
    }
    target = EngineTarget(**{**fields, **changes})
    write_sidecar(engine_manifest(manifest, graph, target), sidecar_path(engine))
    return engine


def _three(batch: BatchRange) -> tuple[int, int, int]:
    return batch.minimum, batch.optimum, batch.maximum


def _tensor(value: Any) -> tuple[str, list[int]]:
    kind = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    return KINDS[dtype], [-1 if axis.dim_param else axis.dim_value for axis in kind.shape.dim]


def _computation(onnx_file: Path, *, rowwise: bool) -> trt.Compute:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(onnx_file), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def compute(inputs: trt.Arrays) -> trt.Arrays:
        count = len(next(iter(inputs.values())))
        pieces = [slice(row, row + 1) for row in range(count)] if rowwise else [slice(0, count)]
        parts = [session.run(names, {name: array[piece].copy() for name, array in inputs.items()}) for piece in pieces]
        return {name: np.concatenate([part[place] for part in parts]) for place, name in enumerate(names)}

    return compute
