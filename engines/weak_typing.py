"""TensorRT 8 alone: pin every layer to the precision that the ONNX graph says, because its networks are not typed by the graph.

With the FP16 flag TensorRT 8 may run any layer in float16, box decoding and softmax too. Under OBEY_PRECISION_CONSTRAINTS a pinned layer
stays where it was put or the build fails. The parser names layers after their ONNX nodes; what it adds around them (broadcasts,
transpositions) has names of its own and follows its neighbours: next to a float32 layer it carries float32 values.
"""

from __future__ import annotations

from typing import Any, Literal

import onnx
from onnx import TensorProto

__all__ = ["node_precisions", "pin_layers"]

Precision = Literal["float32", "float16"]
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_KINDS: dict[int, Precision] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}


def node_precisions(model: onnx.ModelProto) -> dict[str, Precision | None]:
    """Node name to the dtype of its floating outputs; float32 where it has both.

    None for a node that a Q/DQ pair stands behind or before, whose precision the pair decides; what reads a value beside its pair, as
    layers kept in floats do, has its own. Nodes without floating outputs are left out.
    """
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    values = (*typed.value_info, *typed.input, *typed.output)
    kinds = {value.name: _KINDS.get(value.type.tensor_type.elem_type) for value in values}
    found: dict[str, Precision | None] = {}
    quantized = {name for node in model.graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1]}
    dequantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    for node in model.graph.node:
        if node.op_type in _PAIR or quantized.intersection(node.output) or dequantized.intersection(node.input):
            found[node.name] = None
            continue
        own = {kinds.get(name) for name in node.output} - {None}
        if own:
            found[node.name] = "float32" if "float32" in own else "float16"
    return found


def pin_layers(module: Any, network: Any, wanted: dict[str, Precision | None]) -> dict[str, int]:
    """Pin the layers of a parsed `network` (``INetworkDefinition`` of TensorRT 8's `module`) and tell how many of each kind there are.

    Constants hold their own type, casts are what changes it, and integer layers have no precision: those are left.
    """
    floating = {module.float32, module.float16}
    fixed = {module.LayerType.CONSTANT, module.LayerType.CAST, module.LayerType.IDENTITY, module.LayerType.SHAPE}
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    free = [layer for layer in layers if layer.type not in fixed and any(tensor.dtype in floating for tensor in _outputs(layer))]
    chosen: dict[int, Precision | None] = {}
    for place, layer in enumerate(free):
        if layer.name in wanted:
            chosen[place] = wanted[layer.name]
    _follow_neighbours(free, chosen)
    kinds = {"float32": module.float32, "float16": module.float16}
    for place, precision in chosen.items():
        if precision is None:
            continue
        layer = free[place]
        layer.precision = kinds[precision]
        for index, tensor in enumerate(_outputs(layer)):
            if tensor.dtype in floating:
                layer.set_output_type(index, kinds[precision])
    counted = [precision for precision in chosen.values() if precision is not None]
    return {"float32": counted.count("float32"), "float16": counted.count("float16"), "free": len(free) - len(counted)}


def _follow_neighbours(layers: list[Any], chosen: dict[int, Precision | None]) -> None:
    """Float32 spreads from pinned layers through those that have no node of their own, whichever way the values flow."""
    touching: dict[str, list[int]] = {}
    for place, layer in enumerate(layers):
        for tensor in (*_inputs(layer), *_outputs(layer)):
            touching.setdefault(tensor.name, []).append(place)
    waiting = [place for place, precision in chosen.items() if precision == "float32"]
    while waiting:
        layer = layers[waiting.pop()]
        for tensor in (*_inputs(layer), *_outputs(layer)):
            for place in touching[tensor.name]:
                if place not in chosen:
                    chosen[place] = "float32"
                    waiting.append(place)


def _inputs(layer: Any) -> list[Any]:
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in tensors if tensor is not None]


def _outputs(layer: Any) -> list[Any]:
    return [layer.get_output(index) for index in range(layer.num_outputs)]
