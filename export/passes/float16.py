"""FP16 decided in the graph: weights and activations become float16, decoding, softmax and whatever holds positions stay float32.

TensorRT 11 and TensorRT-RTX are strongly typed, so what stands here is what runs. Precision goes by module: each node of a
float16 module reads and writes float16, and a Cast stands wherever a value crosses to a module of the other kind.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from yolact_deploy.errors import ConfigError

from .names import module_of

__all__ = ["FLOAT32_MODULES", "convert_to_float16", "stays_float32"]

FLOAT32_MODULES = ("input", "outputs", "decode", "nms", "masks", "maskiou")
"""Modules that stay float32: normalisation of raw input, softmax, box decoding, NMS, mask assembly and rescoring."""

_FLOAT32_PART = "sampling"  # of a deformable convolution: positions in pixels, which float16 rounds to sixteenths
_LARGEST = 65504.0  # of float16
_ALWAYS_FLOAT32_INPUTS = {"Resize": (1, 2)}  # roi and scales


def stays_float32(node_name: str) -> bool:
    """Whether the node of that name keeps float32 in a float16 graph."""
    return module_of(node_name) in FLOAT32_MODULES or _FLOAT32_PART in node_name.replace("/", ".").split(".")


def convert_to_float16(model: onnx.ModelProto, keep: list[str]) -> onnx.ModelProto:
    """`model` with float16 inside; inputs stay float32, and so do the outputs named in `keep`.

    Raises :class:`ConfigError` for a weight that float16 cannot hold, instead of clipping it.
    """
    return _Converter(model).run(set(keep))


class _Converter:
    """One conversion: which values are float16 now, and the casts made so far."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        typed = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
        values = (*typed.value_info, *typed.input, *typed.output)
        self.floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
        self.half: set[str] = set()
        self.halved_weights: dict[str, TensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.casts: dict[tuple[str, int], str] = {}

    def run(self, keep: set[str]) -> onnx.ModelProto:
        for node in self.model.graph.node:
            if stays_float32(node.name):
                self._float32_node(node)
            else:
                self._float16_node(node)
        self._outputs(keep)
        graph = self.model.graph
        used = {name for node in self.nodes for name in node.input}
        weights = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend([*weights, *self.halved_weights.values()])
        return self.model

    def _float32_node(self, node: onnx.NodeProto) -> None:
        for index, name in enumerate(node.input):
            if name in self.half:
                node.input[index] = self._cast(name, TensorProto.FLOAT, node)
        self.nodes.append(node)

    def _float16_node(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Constant":
            raise ValueError(f"{node.name}: constants are expected as initializers")
        for index, name in enumerate(node.input):
            if index in _ALWAYS_FLOAT32_INPUTS.get(node.op_type, ()):
                continue
            if name in self.weights:
                node.input[index] = self._halved(name)
            elif name in self.floats and name not in self.half:
                node.input[index] = self._cast(name, TensorProto.FLOAT16, node)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        self.half.update(name for name in node.output if name in self.floats)
        self.nodes.append(node)

    def _cast(self, name: str, kind: int, reader: onnx.NodeProto) -> str:
        """The name of `name` as `kind`, made right before its first reader."""
        if (name, kind) not in self.casts:
            suffix = "half" if kind == TensorProto.FLOAT16 else "float"
            path = f"{module_of(reader.name)}/precision/Cast_{len(self.casts) + 1}"
            self.nodes.append(helper.make_node("Cast", [name], [f"{name}_{suffix}"], path, to=kind))
            self.casts[name, kind] = f"{name}_{suffix}"
        return self.casts[name, kind]

    def _halved(self, name: str) -> str:
        if name not in self.halved_weights:
            values = numpy_helper.to_array(self.weights[name])
            largest = float(np.abs(values).max(initial=0.0))
            if largest > _LARGEST:
                raise ConfigError(f"The weight {name} reaches {largest:.3g}, float16 ends at {_LARGEST:.0f}.", "Export without --fp16.")
            self.halved_weights[name] = numpy_helper.from_array(values.astype(np.float16), f"{name}_half")
        return f"{name}_half"

    def _outputs(self, keep: set[str]) -> None:
        """Outputs made in float16 are declared so, or renamed inside and cast back under their own name."""
        for output in self.model.graph.output:
            name = output.name
            if name not in self.half:
                continue
            if name not in keep:
                output.type.tensor_type.elem_type = TensorProto.FLOAT16
                continue
            inside = f"{name}_half"
            for node in self.nodes:
                for names in (node.input, node.output):
                    for index, value in enumerate(names):
                        if value == name:
                            names[index] = inside
            self.nodes.append(helper.make_node("Cast", [inside], [name], f"outputs/precision/Cast_{name}", to=TensorProto.FLOAT))
