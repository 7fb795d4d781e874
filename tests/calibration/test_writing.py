"""Both written graphs compute what a literal transcription does: the float graph, node by node, with values rounded where pairs are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.calibration.graphs import KINDS, exported, images_of, ranges_of, run, view_of
from yolact_deploy.calibration.graph import GraphView
from yolact_deploy.calibration.placement import Placement, place_onnxruntime, place_tensorrt
from yolact_deploy.calibration.ranges import Range
from yolact_deploy.calibration.writing import write_onnxruntime, write_tensorrt

kinds = pytest.mark.parametrize("kind", KINDS)
Array = NDArray[Any]


class Transcription:
    """`images` through the float graph of `view`; integers as ``int8`` or ``uint8`` has them. What is not given is rounded here."""

    def __init__(self, view: GraphView, placement: Placement, ranges: Mapping[str, Range], kind: str) -> None:
        self.view, self.placement, self.ranges, self.kind = view, placement, ranges, kind
        self.rounded: Mapping[str, tuple[Array, Array]] = {}
        self.biases: Mapping[int, Array] = {}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in view.model.graph.initializer}

    def run(self, images: Array) -> dict[str, Array]:
        values = {self.view.inputs[0]: images, **self.constants}
        for place, node in enumerate(self.view.nodes):
            inputs = [values[name] if name else None for name in node.input]
            for index, name in enumerate(node.input):
                if (place, index) in self.placement.pairs.get(name, ()):
                    inputs[index] = self.fake(name, values[name])
            if place in self.placement.convolutions:
                inputs[1:] = self.weights(place, inputs)
                node = helper.make_node("Conv", ["x", "w", "b"][: len(inputs)], list(node.output))
                node.attribute.extend(self.view.nodes[place].attribute)
            values.update(zip(node.output, run_node(node, inputs, [name in self.constants for name in node.input])))
        names = [output.name for output in self.view.model.graph.output]
        return {name: self.fake(name, values[name]) if name in self.placement.pairs else values[name] for name in names}

    def fake(self, name: str, values: Array) -> Array:
        scale, zero = self.grid(name)
        low, high = (-128, 127) if self.kind == "int8" else (0, 255)
        steps = np.clip(np.rint(values / scale) + np.float32(zero), low, high)
        return (steps - np.float32(zero)) * scale

    def grid(self, name: str) -> tuple[Any, int]:
        low, high = self.ranges[name].low, self.ranges[name].high
        if self.kind == "int8":
            return float16_up(np.float32(max(-low, high) / 127)), 0
        return np.float32((high - low) / 255), round(-low * 255 / (high - low))

    def weights(self, place: int, inputs: list[Array | None]) -> list[Array | None]:
        node = self.view.nodes[place]
        weight, bias = inputs[1], inputs[2] if len(inputs) > 2 else None
        assert weight is not None
        if node.input[1] in self.rounded:
            steps, scales = self.rounded[node.input[1]]
        else:
            scales = np.array([float16_up(np.abs(channel).max() / np.float32(127)) or np.float32(1) for channel in weight])
            steps = np.stack([np.clip(np.rint(channel / scale), -127, 127) for channel, scale in zip(weight, scales)])
        bias = self.biases.get(place, bias)
        if bias is not None and self.kind == "uint8":
            step = scales * self.grid(node.input[0])[0]
            bias = np.rint(bias.astype(np.float64) / step).astype(np.float32) * step
        return [np.stack([channel * scale for channel, scale in zip(steps.astype(np.float32), scales)]), *([] if bias is None else [bias])]


def float16_up(value: Any) -> Any:
    half = np.float16(value)
    return np.float32(half if np.float32(half) >= value else np.nextafter(half, np.float16(np.inf)))


def run_node(node: onnx.NodeProto, inputs: list[Array | None], constant: list[bool]) -> list[Array]:
    """One operator in ONNX Runtime, so that it rounds as the whole graph does there."""
    named = {name: value for name, value in zip(node.input, inputs) if value is not None}
    fixed = {name for name, kept in zip(node.input, constant) if kept and node.op_type != "Conv"}
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in named.items()
        if name not in fixed
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    weights = [numpy_helper.from_array(named[name], name) for name in fixed if name]
    model = helper.make_model(helper.make_graph([node], "one", values, outputs, weights), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {name: value for name, value in named.items() if name not in fixed}))


def some_layers(view: GraphView) -> tuple[str, ...]:
    """Every third one."""
    return tuple(view.layers)[1::3]


def given_weights(view: GraphView) -> tuple[dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]], dict[int, NDArray[np.float32]]]:
    """Rounded weights that are not the nearest, for two layers, and biases for every fourth convolution."""
    generator = np.random.default_rng(1)
    rounded, biases = {}, {}
    for layer in list(view.layers.values())[::9]:
        weight = view.weight(layer)
        scales = (np.abs(weight).max(axis=(1, 2, 3)) / 100).astype(np.float16).astype(np.float32)
        floor = np.floor(weight / scales[:, None, None, None])
        rounded[layer.weight] = np.clip(floor, -127, 127).astype(np.int8), scales
    for place in place_tensorrt(view).convolutions[::4]:
        biases[place] = generator.normal(0, 0.5, view.initializers[view.nodes[place].input[1]].dims[0]).astype(np.float32)
    return rounded, biases


def equal(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("given", ["nothing", "weights", "kept"])
@kinds
def test_what_the_graphs_compute(kind: str, given: str, run_folder: Path) -> None:
    path = exported(run_folder, kind)
    view, ranges, images = view_of(path), ranges_of(path), images_of(view_of(path), 3)
    kept = some_layers(view) if given == "kept" else ()
    rounded, biases = given_weights(view) if given == "weights" else ({}, {})
    for place, write, steps in ((place_tensorrt, write_tensorrt, "int8"), (place_onnxruntime, write_onnxruntime, "uint8")):
        placement = place(view, kept)
        wanted = Transcription(view, placement, ranges, steps)
        wanted.rounded, wanted.biases = rounded, biases
        equal(run(write(view, placement, ranges, rounded=rounded, biases=biases), images), wanted.run(images))


def test_the_transcription_is_told_from_the_float_graph(run_folder: Path) -> None:
    """And each kind from the other: else the comparison above would say nothing."""
    path = exported(run_folder, "resnet")
    view, images = view_of(path), images_of(view_of(path), 3)
    placement = place_tensorrt(view)
    first = Transcription(view, placement, ranges_of(path), "int8").run(images)
    second = Transcription(view, placement, ranges_of(path), "uint8").run(images)
    floats = Transcription(view, Placement((), {}), {}, "int8").run(images)
    equal(floats, run(view.model, images))
    for name, values in floats.items():
        assert (first[name] != values).mean() > 0.5
        assert (first[name] != second[name]).mean() > 0.5
        assert np.abs(first[name] - values).mean() < 0.5 * np.abs(values).mean()


@kinds
def test_the_optimized_graph_computes_nearly_the_same(kind: str, run_folder: Path) -> None:
    """ONNX Runtime's integer kernels round once, the graph as it is written twice."""
    path = exported(run_folder, kind)
    view = view_of(path)
    graph = write_onnxruntime(view, place_onnxruntime(view), ranges_of(path))
    written, fast = (run(graph, images_of(view, 4), ("prototypes",), as_written=way)["prototypes"] for way in (True, False))
    assert np.abs(written - fast).mean() < 0.05 * np.abs(written).mean()


@kinds
def test_graphs_are_whole(kind: str, run_folder: Path) -> None:
    path = exported(run_folder, kind)
    view = view_of(path)
    before = view.model.SerializeToString(deterministic=True)
    for kept in ((), some_layers(view), tuple(view.layers)):
        for graph in (
            write_tensorrt(view, place_tensorrt(view, kept), ranges_of(path)),
            write_onnxruntime(view, place_onnxruntime(view, kept), ranges_of(path)),
        ):
            onnx.checker.check_model(graph, full_check=True)
            assert graph.opset_import == view.model.opset_import
            assert graph.metadata_props == view.model.metadata_props
            if kept == tuple(view.layers):
                assert list(graph.graph.node) == view.nodes
    rounded, biases = given_weights(view)
    write_tensorrt(view, place_tensorrt(view), ranges_of(path), rounded=rounded, biases=biases)
    assert view.model.SerializeToString(deterministic=True) == before


def test_outputs_with_a_pair_keep_their_names(run_folder: Path) -> None:
    """Masks in the graph read the prototypes beside the output: they get the same values."""
    for kind in KINDS:
        path = exported(run_folder, kind)
        view = view_of(path)
        graph = write_onnxruntime(view, place_onnxruntime(view), ranges_of(path)).graph
        (maker,) = [node for node in graph.node if "prototypes" in node.output]
        assert maker.op_type == "DequantizeLinear"
        (inside,) = [node for node in graph.node if "prototypes_float" in node.output]
        assert inside.op_type == "Relu"
        assert [node.op_type for node in graph.node if "prototypes_float" in node.input] == ["QuantizeLinear"]
        assert any("prototypes" in node.input for node in graph.node) == (kind == "plus")
        assert [value.name for value in graph.output] == [value.name for value in view.model.graph.output]
        for graph in (write_tensorrt(view, place_tensorrt(view), ranges_of(path)).graph,):
            (maker,) = [node for node in graph.node if "prototypes" in node.output]
            assert maker.op_type == "Relu"


def two_convolutions(*, bias: bool = True, weight: float = 1.0, output: str = "y") -> onnx.ModelProto:
    """A convolution of 1 x 1, an activation and another one of three channels; the first one's weight and bias as given."""
    nodes = [
        helper.make_node("Conv", ["x", "w", *(["b"] if bias else [])], ["c"], "backbone/first/Conv"),
        helper.make_node("Relu", ["c"], ["r"], "backbone/Relu"),
        helper.make_node("Conv", ["r", "v"], [output], "backbone/second/Conv"),
    ]
    generator = np.random.default_rng(0)
    first = generator.normal(0, 1, (3, 2, 1, 1)).astype(np.float32)
    first[1] *= weight
    constants = {"w": first, "v": generator.normal(0, 1, (2, 3, 1, 1)).astype(np.float32), "b": np.array([0.5, 3.0, -1], np.float32)}
    if not bias:
        del constants["b"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in ("x", output)]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], initializers), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    return model


def test_an_output_with_a_pair_that_a_float_convolution_reads_too() -> None:
    """That one reads the value as it was, under another name."""
    model = two_convolutions()
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 3, 4, 4]))
    view = GraphView(model)
    placement = place_onnxruntime(view, ["backbone/second"])
    assert placement.pairs == {"x": ((0, 0),), "r": ()}
    graph = write_onnxruntime(view, placement, RANGES)
    onnx.checker.check_model(graph, full_check=True)
    images = images_of(view, 2)
    equal(run(graph, images), Transcription(view, placement, RANGES, "uint8").run(images))


RANGES = {"x": Range(-2.0, 2.0), "r": Range(0.0, 6.0), "y": Range(-10.0, 10.0)}


def test_convolutions_without_a_bias_get_one_where_one_is_given() -> None:
    view = GraphView(two_convolutions(bias=False))
    images = images_of(view, 2)
    for biases in ({}, {0: np.array([0.5, -0.25, 1], np.float32)}, {2: np.array([3, -4], np.float32)}):
        for place, write, steps in ((place_tensorrt, write_tensorrt, "int8"), (place_onnxruntime, write_onnxruntime, "uint8")):
            graph = write(view, place(view), RANGES, biases=biases)
            onnx.checker.check_model(graph, full_check=True)
            convs = [node for node in graph.graph.node if node.op_type == "Conv"]
            assert [len(node.input) for node in convs] == [2 + (0 in biases), 2 + (2 in biases)]
            wanted = Transcription(view, place(view), RANGES, steps)
            wanted.biases = biases
            equal(run(graph, images), wanted.run(images))


@pytest.mark.parametrize("smaller", [1.0, 1e-6, 1e-12, 0.0])
def test_a_channel_that_is_nearly_dead_keeps_its_bias(smaller: float) -> None:
    """Its weights' steps are so small that an int32 could not count its bias in them."""
    view = GraphView(two_convolutions(weight=smaller))
    ranges = {**RANGES, "x": Range(-0.01, 0.01)}
    images = images_of(view, 2) * np.float32(0.005)
    graph = write_onnxruntime(view, place_onnxruntime(view), ranges)
    wanted = Transcription(view, place_tensorrt(view), ranges, "int8").run(images)["y"]
    for way in (True, False):
        found = run(graph, images, as_written=way)["y"]
        np.testing.assert_allclose(found, wanted, atol=0.15)
    steps = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    counted = [value for name, value in steps.items() if value.dtype == np.int32]
    assert all(np.abs(value.astype(np.int64)).max() <= 2**30 for value in counted)
    exact = [value * steps[name.replace("_bias_steps", "_bias_scale")] for name, value in steps.items() if name.endswith("_bias_steps")]
    np.testing.assert_allclose(exact[0], [0.5, 3.0, -1], rtol=1e-3)
    if smaller == 1.0:
        scales = np.abs(numpy_helper.to_array(view.initializers["w"])).max(axis=(1, 2, 3)) / np.float32(127)
        np.testing.assert_array_equal(steps["w_scale"], [float16_up(scale) for scale in scales])


def test_weights_that_levels_share_are_there_once(run_folder: Path) -> None:
    path = exported(run_folder, "resnet")
    view = view_of(path)
    first, second = (
        write_tensorrt(view, place_tensorrt(view), ranges_of(path)),
        write_onnxruntime(view, place_onnxruntime(view), ranges_of(path)),
    )
    for graph, suffix in ((first, "_on_grid"), (second, "_steps")):
        names = [tensor.name for tensor in graph.graph.initializer]
        weights = [name for name in names if name.endswith(suffix) and "/" not in name]
        assert sorted(weights) == sorted(f"{layer.weight}{suffix}" for layer in view.layers.values())
        assert not {layer.weight for layer in view.layers.values()} & set(names)
    kept = ("heads/bbox_layer",)
    names = [tensor.name for tensor in write_tensorrt(view, place_tensorrt(view, kept), ranges_of(path)).graph.initializer]
    assert view.layers["heads/bbox_layer"].weight in names
    assert view.layers["heads/conf_layer"].weight not in names
    sizes = [len(graph.SerializeToString()) for graph in (view.model, first, second)]
    others = sizes[0] - 4 * sum(layer.parameters for layer in view.layers.values())
    assert sizes[0] < sizes[1] < sizes[0] + 100_000
    assert sizes[2] < others + sum(layer.parameters for layer in view.layers.values()) + 100_000
