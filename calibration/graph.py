"""An ONNX graph as calibration sees it: who makes and reads each value, and which convolutions can be quantized."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.export.passes.names import module_of
from yolact_deploy.export.passes.precision import graph_precision

__all__ = ["ACTIVATIONS", "NETWORK", "GraphView", "Layer", "float_graph", "group_of", "layer_of"]

NETWORK = ("backbone", "fpn", "protonet", "heads")
"""Modules with convolutions; what follows them (decoding, softmax, NMS, masks) keeps its floats."""
ACTIVATIONS = ("Relu", "LeakyRelu")
"""Operators that fuse into the convolution or addition before them."""

_GROUPS = (
    (r"backbone/(conv1|_preconv).*", "backbone stem"),
    (r"backbone/layers\.(\d+)\..*", "backbone stage {}"),
    (r"fpn/lat_layers.*", "FPN lateral"),
    (r"fpn/pred_layers.*", "FPN prediction"),
    (r"fpn/downsample_layers.*", "FPN downsampling"),
    (r"protonet/.*", "protonet"),
    (r"heads/upfeature.*", "head upfeature"),
    (r"heads/bbox_layer.*", "head box"),
    (r"heads/conf_layer.*", "head class"),
    (r"heads/mask_layer.*", "head mask"),
)
_FLOAT_PARTS = ("sampling", "conv_offset_mask")  # of a deformable convolution: what computes positions


def layer_of(node_name: str) -> str:
    """The layer of a node: ``heads/bbox_layer`` of ``heads/bbox_layer/Conv_3``, which all levels share."""
    return node_name.rsplit("/", 1)[0]


def group_of(layer: str) -> str:
    """The group of layers, of those that the search tries together, that `layer` belongs to; the layer itself where it has none."""
    for pattern, group in _GROUPS:
        found = re.fullmatch(pattern, layer)
        if found:
            return group.format(*(int(number) + 1 for number in found.groups() if number.isdigit()))
    return layer


@dataclass(frozen=True)
class Layer:
    """A convolution with its weights, run once or on several levels.

    Attributes:
        name: module and place in it, such as ``backbone/layers.0.0.conv1``.
        group: see :func:`group_of`.
        nodes: indices of its nodes in the graph.
        weight: the initializer, float32 [out, in, kh, kw].
        multiplications: of one picture, all nodes together.
        parameters: elements of the weight.
    """

    name: str
    group: str
    nodes: tuple[int, ...]
    weight: str
    multiplications: int
    parameters: int


def float_graph(model: onnx.ModelProto, path: Path) -> None:
    """Raise :class:`ConfigError` for a graph that is quantized already or float16: calibration wants the float32 export."""
    found = graph_precision(model)
    if found == "int8":
        raise ConfigError(f"{path} is quantized already.", "Calibrate the float32 export that it was made from.")
    if found == "fp16":
        raise ConfigError(
            f"{path} is float16, a float32 graph was wanted.", "Export without --fp16; what INT8 leaves becomes float16 later."
        )


class GraphView:
    """`model` indexed; shapes are those of its own inference, a dynamic batch counted as 1.

    Raises :class:`ModelFileError` for a graph whose shapes cannot be inferred or that holds no convolution to quantize.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {name: place for place, node in enumerate(self.nodes) for name in node.output if name}
        self.consumers: dict[str, list[tuple[int, int]]] = {}
        for place, node in enumerate(self.nodes):
            for index, name in enumerate(node.input):
                self.consumers.setdefault(name, []).append((place, index))
        self.inputs = [value.name for value in model.graph.input if value.name not in self.initializers]
        self.outputs = {value.name for value in model.graph.output}
        self.shapes = _shapes(model)
        self.layers = {layer.name: layer for layer in self._layers()}
        if not self.layers:
            raise ModelFileError(
                "The graph has no convolution that could be quantized.", "Export your checkpoint with yolact-deploy export."
            )

    def weight(self, layer: Layer) -> NDArray[np.float32]:
        """float32 [out, in, kh, kw]."""
        return numpy_helper.to_array(self.initializers[layer.weight]).astype(np.float32)

    def in_network(self, place: int) -> bool:
        """Whether the node stands in a module with convolutions and computes no positions."""
        name = self.nodes[place].name
        return module_of(name) in NETWORK and not any(part in name.replace("/", ".").split(".") for part in _FLOAT_PARTS)

    def readers(self, value: str) -> list[int]:
        """Indices of the nodes that read `value`, in order, each once."""
        return sorted({place for place, _ in self.consumers.get(value, ())})

    def activation_after(self, place: int) -> int | None:
        """The activation that is the only reader of the node's value, and no output of the graph; else None."""
        (value,) = self.nodes[place].output[:1]
        readers = self.readers(value)
        if value in self.outputs or len(readers) != 1 or self.nodes[readers[0]].op_type not in ACTIVATIONS:
            return None
        return readers[0]

    def result_of(self, place: int) -> str:
        """The value that leaves the node and the activation fused into it."""
        after = self.activation_after(place)
        value: str = self.nodes[place if after is None else after].output[0]
        return value

    def _layers(self) -> list[Layer]:
        found: dict[str, list[int]] = {}
        for place, node in enumerate(self.nodes):
            if node.op_type == "Conv" and self.in_network(place) and node.input[1] in self.initializers:
                found.setdefault(layer_of(node.name), []).append(place)
        layers = []
        for name, places in found.items():
            weight = self.nodes[places[0]].input[1]
            parameters = int(np.prod(self.initializers[weight].dims))
            area = sum(int(np.prod(self.shapes[self.nodes[place].output[0]][2:])) for place in places)
            layers.append(Layer(name, group_of(name), tuple(places), weight, parameters * area, parameters))
        return layers


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of each float value that has one."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except Exception as error:  # noqa: BLE001 - onnx raises its own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ModelFileError(f"The shapes of the graph cannot be inferred ({reason}).", "Export it again.") from None
    found = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type == onnx.TensorProto.FLOAT:
            found[value.name] = tuple(axis.dim_value or 1 for axis in kind.shape.dim)
    return found
