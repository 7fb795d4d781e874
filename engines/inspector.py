"""What a deserialized engine says of its layers, and the precision of each module read from that."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from yolact_deploy.export.passes.names import MODULES

from .versions import TensorRT

__all__ = ["Layer", "built_precision", "engine_layers", "layer_precision"]

_MODULES = (*dict.fromkeys(MODULES.values()), "outputs")
_DTYPES = {
    "half": "float16",
    "fp16": "float16",
    "float": "float32",
    "fp32": "float32",
    "int8": "int8",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp8": "float8",
}
_MOVES = {"Reformat", "NoOp"}


@dataclass(frozen=True)
class Layer:
    """One layer of an engine, several of the graph's nodes fused as a rule.

    Attributes:
        name: TensorRT's.
        kind: TensorRT's layer type; empty where the engine keeps names alone.
        modules: of the graph that it computes for.
        precision: dtype of its floating or INT8 outputs; empty where the engine does not tell.
    """

    name: str
    kind: str
    modules: tuple[str, ...]
    precision: str


def engine_layers(tensorrt: TensorRT, engine: Any) -> list[Layer]:
    """All layers of an ``ICudaEngine``; with names alone unless it was built with ``--detailed``.

    An engine of many batch sizes tells its formats for one alone: that of its profile's optimum.
    """
    inspector = engine.create_engine_inspector()
    shapes = _dynamic_inputs(tensorrt, engine)
    context = engine.create_execution_context() if shapes else None
    if context is not None:
        for name, shape in shapes.items():
            context.set_input_shape(name, shape)
        inspector.execution_context = context
    document = json.loads(inspector.get_engine_information(tensorrt.module.LayerInformationFormat.JSON))
    return [_layer(entry) for entry in document.get("Layers", [])]


def _dynamic_inputs(tensorrt: TensorRT, engine: Any) -> dict[str, tuple[int, ...]]:
    """Inputs whose shapes vary, with the best shape of the engine's profile."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.module.TensorIOMode.INPUT]
    varying = [name for name in inputs if any(size < 0 for size in engine.get_tensor_shape(name))]
    return {name: tuple(engine.get_tensor_profile_shape(name, 0)[1]) for name in varying}


def built_precision(tensorrt: TensorRT, plan: Any, logger: Any) -> dict[str, str]:
    """Module to the precisions of its layers in a plan that was just built; the plan is deserialized for it."""
    engine = tensorrt.module.Runtime(logger).deserialize_cuda_engine(plan)
    return layer_precision(engine_layers(tensorrt, engine)) if engine is not None else {}


def layer_precision(layers: list[Layer]) -> dict[str, str]:
    """Module name to the precisions of its layers, the most frequent first, joined by ``+``; fused layers count for each module.

    Layers that only bring values from one format to another are left out.
    """
    counted: dict[str, Counter[str]] = {}
    for layer in layers:
        for module in layer.modules:
            if layer.precision and layer.kind not in _MOVES:
                counted.setdefault(module, Counter())[layer.precision] += 1
    return {module: "+".join(kind for kind, _ in sorted(found.items(), key=_most)) for module, found in sorted(counted.items())}


def _most(entry: tuple[str, int]) -> tuple[int, str]:
    return -entry[1], entry[0]


def _layer(entry: Any) -> Layer:
    if not isinstance(entry, dict):
        return Layer(str(entry), "", _modules(str(entry)), "")
    name = str(entry.get("Name", ""))
    origin = str(entry.get("Metadata") or "")
    formats = [str(output.get("Format/Datatype", "")) for output in entry.get("Outputs") or [] if isinstance(output, dict)]
    kinds = [kind for kind in map(_dtype, formats) if kind]
    return Layer(name, str(entry.get("LayerType", "")), _modules(origin) or _modules(name), kinds[0] if kinds else "")


def _modules(text: str) -> tuple[str, ...]:
    """Modules whose nodes' names (``backbone/layers.0/Conv``) occur in `text`; ``...`` stands before the last node of a long fusion."""
    return tuple(module for module in _MODULES if re.search(rf"(?:(?<![\w./])|(?<=\.\.\.)){module}/", text))


def _dtype(text: str) -> str:
    """``float16`` of ``Half``, ``FP16 NCHW`` or ``Channel major FP16 format where channel % 4 == 0``; empty for integers."""
    for word in re.findall(r"[a-z]+\d*", text.lower()):
        if word in _DTYPES:
            return _DTYPES[word]
    return ""
