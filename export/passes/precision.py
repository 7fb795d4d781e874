"""What a graph computes in, module by module, read from the graph itself."""

from __future__ import annotations

import onnx

from .names import module_of

__all__ = ["graph_precision", "module_precision"]

_NAMES: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}


def module_precision(model: onnx.ModelProto) -> dict[str, str]:
    """Module name to the dtype of its weights, or of the graph's arithmetic where it has none; ``int8`` behind Q/DQ pairs."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    dequantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    found: dict[str, set[str]] = {}
    for node in model.graph.node:
        used = found.setdefault(module_of(node.name), set())
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if dequantized.intersection(node.input):
            used.add("int8")
            continue
        used.update(_NAMES[kinds[name]] for name in node.input if kinds.get(name) in _NAMES)
    return {module: "+".join(sorted(used)) or "float32" for module, used in sorted(found.items())}


def graph_precision(model: onnx.ModelProto) -> str:
    """``int8`` for a graph with Q/DQ pairs, ``fp16`` for one with float16 weights, else ``fp32``."""
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return "fp16" if half else "fp32"
