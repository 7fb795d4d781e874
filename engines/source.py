"""The ONNX file that an engine is made from: checked to be one of ours, whole, and brought to the precision that was asked for."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.export.passes import convert_to_float16, graph_precision, module_precision
from yolact_deploy.files import sha256_of
from yolact_deploy.manifest import Manifest, TensorSpec
from yolact_deploy.onnx_file import manifest_of, read_onnx

from .conversion import check_float16, check_int8_with_float16, int8_with_float16

__all__ = ["GraphSource", "Precision", "Progress", "read_mask_iou_net", "read_source"]

Precision = Literal["graph", "fp16", "int8"]
Progress = Callable[[str, float], None]
"""Told the step and how much of it is done, 0 … 1."""


@dataclass(frozen=True)
class GraphSource:
    """A graph ready to be parsed.

    Attributes:
        path: the ONNX file.
        sha256: of the file.
        manifest: inside it, with the precision of each module as it is in `model`.
        model: the graph, everything in it.
        precision: ``fp32``, ``fp16`` or ``int8``.
        converted: whether float16 was made here rather than read from the file.
        mask_iou: path of the mask-IoU net beside it, None without.
        typed: for TensorRT 8, the graph whose dtypes say what each layer computes in, where that is not `model`: it reads no float16
            Q/DQ pairs, so an INT8 graph is parsed in float32 and its layers are told.
    """

    path: Path
    sha256: str
    manifest: Manifest
    model: onnx.ModelProto
    precision: str
    converted: bool
    mask_iou: Path | None
    typed: onnx.ModelProto | None = None

    @property
    def opset(self) -> int:
        """Of ONNX's own operators."""
        return next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def read_source(
    path: Path, precision: Precision = "graph", progress: Progress = lambda step, done: None, *, weakly_typed: bool = False
) -> GraphSource:
    """Read and check `path`; ``graph`` keeps its precision, ``fp16`` converts a float32 graph, ``int8`` wants one with Q/DQ pairs.

    What an INT8 graph leaves in floats becomes float16 where its manifest says so; for a `weakly_typed` TensorRT see
    :attr:`GraphSource.typed`.

    What is converted is compared with the file in ONNX Runtime; `progress` is told when that begins.

    Raises :class:`ModelFileError` for a file that is missing, broken, another tool's, at odds with its own manifest, or that lacks data
    or its mask-IoU net; :class:`ConfigError` for a precision that does not fit the graph; :class:`VerificationError` where float16 does
    not hold its values.
    """
    model = read_onnx(path)
    manifest = manifest_of(model, path)
    _load_external_data(model, path)
    _check_tensors(model, manifest, path)
    found = graph_precision(model)
    converted = False
    if precision == "int8" and found != "int8":
        raise ConfigError(
            f"--int8 wants a graph with Q/DQ pairs, {path} is {found}.", f"Make one: yolact-deploy calibrate {shlex.quote(str(path))}"
        )
    if found == "int8" and _has_integer_biases(model):
        raise ConfigError(
            f"{path} is the INT8 graph for ONNX Runtime on a CPU, which no TensorRT reads.",
            f"Take the one for TensorRT, {path.name.replace('.int8.ort.onnx', '.int8.onnx')}.",
        )
    typed = None
    if precision == "fp16" and found == "int8":
        raise ConfigError(f"--fp16 was asked for, {path} is an INT8 graph with Q/DQ pairs.", "Use --int8.")
    if precision == "fp16" and found == "fp32":
        original = onnx.ModelProto()
        original.CopyFrom(model)
        model = convert_to_float16(model, [value.name for value in (*model.graph.input, *model.graph.output)])
        found, converted = "fp16", True
        progress("checking FP16 against FP32", 0.0)
        manifest = dataclasses.replace(manifest, verification=check_float16(original, model, manifest))
    if found == "int8" and manifest.calibration.get("rest") == "float16":
        half = int8_with_float16(model)
        progress("checking FP16 between the Q/DQ pairs", 0.0)
        manifest = dataclasses.replace(manifest, verification=check_int8_with_float16(model, half, manifest))
        model, typed, converted = (model, half, True) if weakly_typed else (half, None, True)
    manifest = _with_precision(manifest, model if typed is None else typed)
    return GraphSource(path, sha256_of(path), manifest, model, found, converted, _mask_iou(path, manifest), typed)


def _has_integer_biases(model: onnx.ModelProto) -> bool:
    wide = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT32}
    return any(node.op_type == "DequantizeLinear" and node.input[0] in wide for node in model.graph.node)


def read_mask_iou_net(path: Path) -> onnx.ModelProto:
    """The mask-IoU net that stands beside an export, with the checks that the export had. Raises :class:`ModelFileError`."""
    model = read_onnx(path)
    _load_external_data(model, path)
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        raise ModelFileError(f"{path} is no mask-IoU net: it has {len(model.graph.input)} inputs, one was wanted.", "Export it again.")
    return model


def _with_precision(manifest: Manifest, model: onnx.ModelProto) -> Manifest:
    return dataclasses.replace(manifest, precision=module_precision(model))


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Bring weights that lie beside the file into it; no file outside its folder is read, whatever links say."""
    folder = Path(os.path.realpath(path.parent))
    for tensor in model.graph.initializer:
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
        if location is None:
            continue
        data = Path(os.path.realpath(folder / location))
        if not data.is_relative_to(folder):
            raise ModelFileError(f"{path} refers to data outside its folder ({location}).", "Do not use this file.")
        if not data.is_file():
            raise ModelFileError(f"{path} needs its weights {location} beside it, which are missing.", "Copy both files, or export again.")
        try:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:  # noqa: BLE001 - onnx raises several kinds for offsets that do not fit the file
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise ModelFileError(f"The weights {location} of {path} cannot be read ({reason}).", "Export again.") from None
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _check_tensors(model: onnx.ModelProto, manifest: Manifest, path: Path) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    found = [_spec(value) for value in (*model.graph.input, *model.graph.output) if value.name not in weights]
    wanted = [*manifest.inputs, *manifest.outputs]
    if found != wanted:
        pair = next((pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]), None)
        told = f"has {_told(pair[0])}, its manifest says {_told(pair[1])}" if pair else f"has {len(found)} tensors of {len(wanted)}"
        raise ModelFileError(f"{path} {told}.", "Export it again.")
    if len(manifest.inputs) != 1:
        raise ModelFileError(f"{path} has {len(manifest.inputs)} inputs, one was wanted.", "Export it again.")


def _spec(value: Any) -> TensorSpec:
    kind = value.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    except (KeyError, TypeError):
        dtype = f"type {kind.elem_type}"
    return TensorSpec(value.name, dtype, tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim))


def _told(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} {list(spec.shape)}"


def _mask_iou(path: Path, manifest: Manifest) -> Path | None:
    """The mask-IoU net beside the file, checked."""
    named = manifest.mask_iou
    if not named:
        return None
    beside = path.parent / Path(named["file"]).name
    if not beside.is_file():
        raise ModelFileError(
            f"{path} needs its mask-IoU net {beside.name} beside it, which is missing.", "Copy both files, or export again."
        )
    if sha256_of(beside) != named["sha256"]:
        raise ModelFileError(f"{beside} is not the mask-IoU net that {path.name} was exported with.", "Copy both files, or export again.")
    return beside
