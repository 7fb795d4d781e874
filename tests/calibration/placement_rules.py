"""The rules of where pairs stand, checked on a written graph from its nodes alone: nothing here knows how placement finds its places."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

NETWORK = ("backbone/", "fpn/", "protonet/", "heads/")
ACTIVATIONS = ("Relu", "LeakyRelu")


class Written:
    """A float graph and what was written of it, its layers `kept` in floats."""

    def __init__(self, before: onnx.ModelProto, model: onnx.ModelProto, kept: Collection[str]) -> None:
        self.before, self.model = before, model
        self.nodes = {node.name: node for node in model.graph.node if node.name}
        assert len(self.nodes) == sum(bool(node.name) for node in model.graph.node)  # ONNX's converter makes some without
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in model.graph.output}
        convs = [node for node in before.graph.node if node.op_type == "Conv"]
        self.quantized = [node.name for node in convs if quantizable(node.name) and node.name.rsplit("/", 1)[0] not in kept]
        self.float_convs = [node.name for node in convs if node.name not in self.quantized]
        self.float_readers: dict[str, list[onnx.NodeProto]] = {}
        for node in before.graph.node:
            for name in node.input:
                self.float_readers.setdefault(name, []).append(node)
        self.made = {name: node for node in before.graph.node for name in node.output}
        self.fixed = {tensor.name for tensor in before.graph.initializer}
        self.order = {node.name: place for place, node in enumerate(before.graph.node)}

    def constant(self, name: str) -> NDArray[np.generic]:
        return numpy_helper.to_array(self.constants[name])

    def kind(self, name: str) -> str:
        """The operator that makes the value; nothing for an input or a constant."""
        maker = self.makers.get(name)
        return "" if maker is None else maker.op_type

    def behind(self, name: str) -> str:
        """The value that a DequantizeLinear gives back."""
        steps = self.makers[name].input[0]
        assert self.kind(steps) == "QuantizeLinear"
        return self.makers[steps].input[0]

    def pairs(self) -> dict[str, tuple[onnx.NodeProto, onnx.NodeProto]]:
        """Of activations: the value to its pair."""
        found = {}
        for node in self.model.graph.node:
            if node.op_type == "QuantizeLinear" and node.input[0] not in self.constants:
                (reader,) = self.readers[node.output[0]]
                assert reader.op_type == "DequantizeLinear"
                assert node.input[0] not in found, f"two pairs of {node.input[0]}"
                found[node.input[0]] = (node, reader)
        return found

    def additions(self) -> list[onnx.NodeProto]:
        """Of two feature maps."""
        return [node for node in self.before.graph.node if node.op_type == "Add" and self.of_features(node)]

    def of_features(self, node: onnx.NodeProto) -> bool:
        return in_network(node.name) and not self.fixed.intersection(node.input)

    def last_convolution(self, addition: onnx.NodeProto) -> str | None:
        """The side of an addition that a quantized convolution makes for it alone, the last one where there are two."""
        made = self.made
        fusing = [
            (self.order[made[side].name], side)
            for side in addition.input
            if side in made and made[side].name in self.quantized and len(self.float_readers[side]) == 1
        ]
        return max(fusing)[1] if fusing else None

    def result(self, value: str) -> str:
        """The value behind the activation that alone reads `value`, or `value`."""
        readers = self.float_readers.get(value, [])
        return readers[0].output[0] if len(readers) == 1 and readers[0].op_type in ACTIVATIONS else value


def in_network(name: str) -> bool:
    return name.startswith(NETWORK) and ".sampling" not in name and "conv_offset_mask" not in name


def quantizable(name: str) -> bool:
    return in_network(name)


def check_tensorrt(before: onnx.ModelProto, model: onnx.ModelProto, kept: Collection[str] = (), *, floats: str = "float32") -> None:
    """All rules of the graph for TensorRT; `floats` is what stands between the pairs."""
    found = Written(before, model, kept)
    if floats == "float32":
        nothing_else_has_changed(found)
    convolutions(found, floats)
    activations(found)
    additions(found)
    resizes(found)
    no_islands(found)


def nothing_else_has_changed(found: Written) -> None:
    """All nodes of the float graph are there in their order, with what they read but for pairs; no constant is left over or there twice."""
    rest = [node for node in found.model.graph.node if not node.op_type.endswith("eLinear")]
    assert [node.name for node in rest] == [node.name for node in found.before.graph.node]
    for old, new in zip(found.before.graph.node, rest):
        assert (old.op_type, list(old.attribute)) == (new.op_type, list(new.attribute))
        for index, name in enumerate(new.input):
            if found.kind(name) == "DequantizeLinear":
                continue
            if old.op_type == "Conv" and old.name in found.quantized and index == 2:
                continue
            assert name.removesuffix("_float") == old.input[index]
    used = {name for node in found.model.graph.node for name in node.input}
    assert set(found.constants) <= used
    assert len(found.constants) == len(found.model.graph.initializer)
    assert list(found.model.graph.input) == list(found.before.graph.input)
    assert list(found.model.graph.output) == list(found.before.graph.output)
    kept = {tensor.name: tensor for tensor in found.before.graph.initializer}
    assert all(found.constants[name] == kept[name] for name in found.constants if name in kept)


def convolutions(found: Written, floats: str) -> None:
    for name in found.quantized:
        node = found.nodes[name]
        assert [found.kind(value) for value in node.input[:2]] == ["DequantizeLinear"] * 2, name
        found.behind(node.input[0])
        weight = found.behind(node.input[1])
        pair = (found.makers[found.makers[node.input[1]].input[0]], found.makers[node.input[1]])
        values = found.constant(weight)
        assert values.dtype == floats
        for each in pair:
            assert [(entry.name, entry.i) for entry in each.attribute if entry.name == "axis"] == [("axis", 0)]
            scale, zero = (found.constant(value) for value in each.input[1:])
            assert scale.shape == zero.shape == (len(values),)
            assert (scale.dtype, zero.dtype) == (floats, "int8")
            assert not zero.any()
            assert (scale > 0).all()
        assert list(pair[0].input[1:]) == list(pair[1].input[1:])
        assert all(bias in found.constants and found.constant(bias).dtype == floats for bias in node.input[2:])
    for name in found.float_convs:
        node = found.nodes[name]
        assert "DequantizeLinear" not in [found.kind(value) for value in node.input], name
        assert all(value in found.constants for value in node.input[1:])


def activations(found: Written) -> None:
    """Each pair is symmetric, of one scale, behind what fuses; only float convolutions read beside a pair; none is paired twice."""
    assert not found.outputs & {node.output[0] for node in found.model.graph.node if node.op_type == "DequantizeLinear"}
    for value, (quantize, dequantize) in found.pairs().items():
        assert list(quantize.input[1:]) == list(dequantize.input[1:])
        assert not quantize.attribute
        scale, zero = (found.constant(name) for name in quantize.input[1:])
        assert scale.shape == zero.shape == ()
        assert zero.dtype == np.int8
        assert zero == 0
        assert scale > 0
        assert found.kind(value) not in ("DequantizeLinear", "QuantizeLinear", "Transpose", "Tanh", "Softmax", "Concat")
        beside = [node for node in found.readers[value] if node is not quantize]
        assert all(node.name in found.float_convs for node in beside), value
        assert {node.op_type for node in found.readers[dequantize.output[0]]} <= {"Conv", "Add", "Resize", "Shape"}, value
        assert in_network(quantize.name)
        assert in_network(dequantize.name)


def additions(found: Written) -> None:
    """One side is read through a pair, not the one that the last convolution makes; where no convolution fuses, no pair is there for it."""
    for old in found.additions():
        new = found.nodes[old.name]
        through = [found.kind(value) == "DequantizeLinear" for value in new.input]
        last = found.last_convolution(old)
        if last is not None:
            assert through == [side != last for side in old.input], old.name
            continue
        for value, paired in zip(new.input, through):
            if paired:
                assert any(node.name in found.quantized or node.op_type == "Resize" for node in found.readers[value]), old.name


def resizes(found: Written) -> None:
    """Between two quantized values a resize reads a pair."""
    made = found.made
    for old in found.before.graph.node:
        if old.op_type != "Resize" or not in_network(old.name):
            continue
        source = old.input[0]
        while made[source].op_type in (*ACTIVATIONS, "MaxPool"):
            source = made[source].input[0]
        maker = made[source]
        quantized = maker.name in found.quantized or (maker.op_type == "Add" and found.last_convolution(maker) is not None)
        read = found.nodes[old.name].input[0]
        if quantized and found.result(old.output[0]) in found.pairs():
            assert found.kind(read) == "DequantizeLinear", old.name
        elif found.kind(read) == "DequantizeLinear":  # for another reader
            assert any(node.name in found.quantized for node in found.readers[read]), old.name


def no_islands(found: Written) -> None:
    pairs = found.pairs()
    for value, (_, dequantize) in pairs.items():
        served = False
        for node in found.readers[dequantize.output[0]]:
            if node.op_type == "Add":
                old = next(each for each in found.before.graph.node if each.name == node.name)
                served |= found.last_convolution(old) is not None
            elif node.op_type == "Resize":
                served |= found.result(node.output[0]) in pairs
            else:
                served |= node.name in found.quantized
        assert served, f"an island at {value}"


def check_onnxruntime(before: onnx.ModelProto, model: onnx.ModelProto, kept: Collection[str] = ()) -> None:
    """All rules of the graph for ONNX Runtime."""
    found = Written(before, model, kept)
    for name in found.quantized:
        integer_convolution(found, name)
    for name in found.float_convs:
        assert "DequantizeLinear" not in [found.kind(value) for value in found.nodes[name].input]
    for node in found.model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        scale, zero = (found.constant(value) for value in node.input[1:])
        assert (scale.shape, scale.dtype, zero.shape, zero.dtype) == ((), "float32", (), "uint8")
        assert scale > 0
        (reader,) = found.readers[node.output[0]]
        assert list(reader.input[1:]) == list(node.input[1:])
        assert found.kind(node.input[0]) not in ("DequantizeLinear", "Tanh", "Softmax", "Concat")
        read = {each.op_type for each in found.readers.get(reader.output[0], [])}
        assert read or reader.output[0] in found.outputs, f"nobody reads {node.input[0]}"
    for old in found.additions():
        if integer_addition(found, old):
            assert [found.kind(value) for value in found.nodes[old.name].input] == ["DequantizeLinear"] * 2
            assert paired(found, found.result(old.output[0]))
    for old in before.graph.node:
        if old.op_type in ("Resize", "MaxPool") and in_network(old.name) and integer(found, old.input[0]):
            assert found.kind(found.nodes[old.name].input[0]) == "DequantizeLinear", old.name
            assert paired(found, found.result(old.output[0])), old.name
    for value in (name.removesuffix("_float") for name in found.pairs()):
        readers = [node for node in found.float_readers.get(value, ()) if in_network(node.name)]
        served = any(node.name in found.quantized or integer_addition(found, node) for node in readers)
        assert served or integer(found, value), f"an island at {value}"
    used = {name for node in found.model.graph.node for name in node.input}
    assert set(found.constants) <= used


def source(found: Written, value: str) -> onnx.NodeProto | None:
    """The node that makes a value of the float graph, looked at through activations and pooling."""
    made = found.made
    while value in made and made[value].op_type in (*ACTIVATIONS, "MaxPool"):
        value = made[value].input[0]
    return made.get(value)


def integer_addition(found: Written, node: onnx.NodeProto) -> bool:
    """Whether it adds what a quantized convolution makes."""
    makers = [source(found, side) for side in node.input] if node.op_type == "Add" and found.of_features(node) else []
    return any(maker is not None and maker.name in found.quantized for maker in makers)


def integer(found: Written, value: str) -> bool:
    """Whether a quantized convolution or an addition of one makes the value, or what runs in integers behind it."""
    maker = source(found, value)
    if maker is None:
        return False
    if maker.op_type == "Resize" and in_network(maker.name):
        return integer(found, maker.input[0])
    return maker.name in found.quantized or integer_addition(found, maker)


def paired(found: Written, value: str) -> bool:
    """Whether everything but float convolutions reads the float graph's `value` through a pair."""
    inside = f"{value}_float" if value in found.outputs else value
    beside = [node for node in found.readers[inside] if node.op_type != "QuantizeLinear" and node.name not in found.float_convs]
    floats = [node for node in found.float_readers.get(value, []) if node.name not in found.float_convs]
    return not beside and (not (floats or value in found.outputs) or any(n.op_type == "QuantizeLinear" for n in found.readers[inside]))


def integer_convolution(found: Written, name: str) -> None:
    """It reads a uint8 pair, int8 weights and an int32 bias in steps of their scales' product, and its result is paired."""
    node = found.nodes[name]
    assert [found.kind(value) for value in node.input] == ["DequantizeLinear"] * len(node.input), name
    source = found.makers[node.input[0]]
    found.behind(node.input[0])
    weight = found.makers[node.input[1]]
    steps, scales, zeros = (found.constant(value) for value in weight.input)
    assert (steps.dtype, zeros.dtype) == ("int8", "int8")
    assert not zeros.any()
    assert scales.shape == zeros.shape == (len(steps),)
    assert [(entry.name, entry.i) for entry in weight.attribute] == [("axis", 0)]
    old = next(each for each in found.before.graph.node if each.name == name)
    assert len(node.input) == len(old.input)
    if len(node.input) > 2:
        bias = found.makers[node.input[2]]
        assert len(bias.input) == 2
        assert [(entry.name, entry.i) for entry in bias.attribute] == [("axis", 0)]
        assert found.constant(bias.input[0]).dtype == np.int32
        wanted = scales.astype(np.float32) * found.constant(source.input[1])
        np.testing.assert_array_equal(found.constant(bias.input[1]), wanted)
    value = old.output[0]
    result = found.result(value)
    assert paired(found, result), name
    if result != value and found.float_readers[value][0].op_type == "LeakyRelu":
        assert paired(found, value), name
