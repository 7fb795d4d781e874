"""Equalization alters no output and brings channels closer; corrected biases take back the mean error of rounded weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.calibration.graphs import KINDS, exported, images_of, run, statistics_of, view_of
from yolact_deploy.calibration.correction import corrected_biases, equalizable, equalize
from yolact_deploy.calibration.graph import GraphView
from yolact_deploy.calibration.placement import place_tensorrt
from yolact_deploy.calibration.statistics import Observation, Statistics
from yolact_deploy.calibration.weights import weight_integers, weight_scales

kinds = pytest.mark.parametrize("kind", KINDS)
Array = NDArray[Any]
Quantized = dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]]


def built(
    nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]], outputs: tuple[str, ...] = ("y",), *, spread: float = 4.0
) -> GraphView:
    """A graph of 4 channels from `x`, its weights drawn with channels of very different sizes."""
    generator = np.random.default_rng(len(weights))
    constants = []
    for name, shape in weights.items():
        values = generator.normal(0, 1, shape)
        if len(shape) == 4:
            values *= np.exp2(generator.uniform(-spread, spread, (shape[0], 1, 1, 1)))
        constants.append(numpy_helper.from_array(values.astype(np.float32), name))
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    model = helper.make_model(helper.make_graph(nodes, "g", values, results, constants), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    inferred = onnx.shape_inference.infer_shapes(model)
    del inferred.graph.value_info[:]
    return GraphView(inferred)


def conv(layer: str, inputs: list[str], output: str, number: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", inputs, [output], f"backbone/{layer}/Conv{number}", **attributes)


def act(kind: str, source: str, output: str) -> onnx.NodeProto:
    return helper.make_node(kind, [source], [output], f"backbone/{output}/{kind}", **({"alpha": 0.1} if kind == "LeakyRelu" else {}))


def seen(view: GraphView, images: Array) -> Statistics:
    """Of every value that a convolution reads or an activation makes."""
    names = [node.input[0] for node in view.nodes if node.op_type == "Conv"] + [
        node.output[0] for node in view.nodes if node.op_type != "Conv"
    ]
    names = list(dict.fromkeys(names))
    values = {"x": images, **run(view.model, images, tuple(name for name in names if name != "x"))}
    statistics = Statistics.empty("0" * 64, [(name, name) for name in names])
    for name in names:
        observed = Observation.of(values[name][0])
        assert observed is not None
        statistics.values[name].add(observed)
    return statistics


def rounded(view: GraphView) -> Quantized:
    found = {}
    for layer in view.layers.values():
        scales = weight_scales(view.weight(layer))
        found[layer.weight] = weight_integers(view.weight(layer), scales), scales
    return found


@kinds
def test_equalized_graphs_give_the_same_bits(kind: str, run_folder: Path) -> None:
    """Factors are powers of two: every product and sum is scaled as a whole."""
    path = exported(run_folder, kind)
    view = view_of(path)
    before = view.model.SerializeToString(deterministic=True)
    model, channels = equalize(view, statistics_of(path))
    assert view.model.SerializeToString(deterministic=True) == before
    groups = equalizable(view)
    assert channels == sum(view.initializers[made[0]].dims[0] for _, made, _ in groups)
    images = images_of(view, 5)
    wanted, found = run(view.model, images), run(model, images)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    changed = [old.name for old, new in zip(view.model.graph.initializer, model.graph.initializer) if old != new]
    assert changed
    assert {name for name in changed if name.endswith("weight")} <= {name for _, made, read in groups for name in (*made, *read)}
    assert list(model.graph.node) == view.nodes
    assert model.metadata_props == view.model.metadata_props


@kinds
def test_channels_come_closer(kind: str, run_folder: Path) -> None:
    """What int8 loses of a convolution: an activation has one scale, so small channels have few steps; a weight has one a row."""
    path = exported(run_folder, kind)
    view, statistics = view_of(path), statistics_of(path)
    model, _ = equalize(view, statistics)
    images = images_of(view)
    closer = []
    for values, _, _ in equalizable(view):
        before, after = (run(graph, images, values) for graph in (view.model, model))
        spreads = []
        for found in (before, after):
            largest = np.max([np.abs(value).max(axis=(0, 2, 3)) for value in found.values()], axis=0)
            alive = largest[largest > 0]
            spreads.append(np.log2(alive).std())
        closer.append(spreads[1] < spreads[0])
    assert np.mean(closer) > 0.9


def test_groups_of_a_network(run_folder: Path) -> None:
    """Activations that anything but convolutions reads are in none; what the head's five levels read is one group."""
    view = view_of(exported(run_folder, "resnet"))
    groups = [(set(values), set(made), set(read)) for values, made, read in equalizable(view)]
    backbone = [group for group in groups if any(name.startswith("backbone") for name in group[1])]
    blocks = ["0.0", "0.1", "1.0", "2.0", "3.0"]
    assert len(backbone) == 2 * len(blocks)
    for block in blocks:
        for first, second in ((1, 2), (2, 3)):
            name = f"backbone.layers.{block}.conv{first}.weight"
            (group,) = [group for group in backbone if name in group[1]]
            assert group[1:] == ({name}, {f"backbone.layers.{block}.conv{second}.weight"})
            assert len(group[0]) == 1
    (head,) = [group for group in groups if any("upfeature" in name for name in group[1])]
    heads = {f"prediction_layers.0.{name}_layer.weight" for name in ("bbox", "conf", "mask")}
    assert head == (head[0], {"prediction_layers.0.upfeature.0.weight"}, heads)
    assert len(head[0]) == 5
    rest = [made for _, made, _ in groups if not any(name.startswith(("backbone", "prediction_layers")) for name in made)]
    assert rest == [{"proto_net.0.weight"}, {"proto_net.2.weight"}, {"proto_net.8.weight"}]


def test_groups_of_darknet(run_folder: Path) -> None:
    """Leaky activations commute with positive factors; those that an addition reads are in none."""
    view = view_of(exported(run_folder, "darknet"))
    pairs = [(made[0], read) for _, made, read in equalizable(view) if made[0].startswith("backbone")]
    wanted = [(f"backbone.layers.{stage}.1.conv1.0.weight", (f"backbone.layers.{stage}.1.conv2.0.weight",)) for stage in range(5)]
    assert pairs == [("backbone._preconv.0.weight", ("backbone.layers.0.0.0.weight",)), *wanted]


def test_groups_of_deformable_convolutions(run_folder: Path) -> None:
    """Their positions are computed from the value, which is sampled too: it stays as it is."""
    view = view_of(exported(run_folder, "plus"))
    made = [name for _, names, _ in equalizable(view) for name in names if name.startswith("backbone")]
    assert sorted(made) == [
        "backbone.layers.0.0.conv1.weight",
        "backbone.layers.0.0.conv2.weight",
        *(f"backbone.layers.{stage}.0.conv2.weight" for stage in (1, 2, 3)),
    ]


def test_factors_by_hand() -> None:
    """sqrt(activation / weight) to the next power of two, their geometric mean taken out, 64 at most, dead channels left alone."""
    nodes = [conv("a", ["x", "w", "b"], "c"), act("Relu", "c", "r"), conv("b", ["r", "v"], "y")]
    view = built(nodes, {"w": (5, 4, 1, 1), "b": (5,), "v": (2, 5, 3, 3)})
    statistics = seen(view, images_of(view))
    statistics.values["r"].channel_largest = np.array([4.0, 1.0, 2.0**20, 0.0, 2.0**-20], np.float32)
    weight = np.full((2, 5, 3, 3), 0.01, np.float32)
    weight[:, :, 1, 1] = [[1, -4, 1, 1, 1], [0.5, 2, 0.5, 0.5, 0.5]]
    view.initializers["v"].CopyFrom(numpy_helper.from_array(weight, "v"))
    wanted = np.array([2.0, 0.5, 64.0, 1.0, 1 / 64], np.float32)  # sqrt of 4, 1/4, 2 ** 20 and 2 ** -20: the mean of them is 1
    model, channels = equalize(view, statistics)
    assert channels == 5
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    old = {name: numpy_helper.to_array(tensor) for name, tensor in view.initializers.items()}
    np.testing.assert_array_equal(found["v"], old["v"] * wanted[None, :, None, None])
    np.testing.assert_array_equal(found["w"], old["w"] / wanted[:, None, None, None])
    np.testing.assert_array_equal(found["b"], old["b"] / wanted)
    statistics.values["r"].channel_largest = np.array([4.0, 1.0, 16.0, 0.0, 0.0], np.float32)  # sqrt of 4, 1/4 and 16: a mean of 4 ** (1/3)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in equalize(view, statistics)[0].graph.initializer}
    np.testing.assert_array_equal(found["v"], old["v"] * np.array([1, 0.25, 2, 1, 1], np.float32)[None, :, None, None])
    statistics.values["r"].channel_largest[:] = 0
    assert equalize(view, statistics)[0] == view.model


@pytest.mark.parametrize(
    "case",
    ["not activated", "tanh", "an output", "added", "pooled", "grouped reader", "shared bias", "the same weight", "positions", "unread"],
)
def test_what_cannot_be_scaled(case: str) -> None:
    first, last = conv("a", ["x", "w", "b"], "c"), conv("b", ["r", "v"], "y")
    nodes, weights, outputs = [first, act("Relu", "c", "r"), last], {"w": (4, 4, 1, 1), "b": (4,), "v": (4, 4, 1, 1)}, ["y"]
    if case == "not activated":
        nodes = [conv("a", ["x", "w", "b"], "r"), last]
    elif case == "tanh":
        nodes[1] = act("Tanh", "c", "r")
    elif case == "an output":
        outputs.append("r")
    elif case == "added":
        nodes.append(helper.make_node("Add", ["r", "y"], ["z"], "backbone/Add"))
    elif case == "pooled":
        nodes.append(helper.make_node("MaxPool", ["r"], ["z"], "backbone/MaxPool", kernel_shape=[2, 2]))
    elif case == "grouped reader":
        nodes[2] = conv("b", ["r", "v"], "y", group=2)
        weights["v"] = (4, 2, 1, 1)
    elif case == "shared bias":
        nodes.append(conv("d", ["x", "u", "b"], "z"))
        weights["u"] = (4, 4, 1, 1)
        outputs.append("z")
    elif case == "the same weight":
        nodes[2] = conv("b", ["r", "w"], "y")
    elif case == "positions":
        nodes.append(conv("d.conv_offset_mask", ["r", "u"], "z"))
        weights["u"] = (4, 4, 1, 1)
    elif case == "unread":
        nodes = [first, act("Relu", "c", "r"), conv("b", ["x", "v"], "y")]
    view = built(nodes, weights, tuple(outputs))
    if "z" in [name for node in nodes for name in node.output] and "z" not in outputs:
        view = built(nodes, weights, (*outputs, "z"))
    assert equalizable(view) == []
    model, channels = equalize(view, seen(view, images_of(view)))
    assert (model, channels) == (view.model, 0)


def test_a_second_reader_and_a_second_maker_belong_to_the_group() -> None:
    """Two levels share `w`; one of them is also read by `u`, whose other input joins with the weight that makes it."""
    nodes = [
        conv("a", ["x", "w", "b"], "c1"),
        act("Relu", "c1", "r1"),
        conv("pre", ["x", "p"], "q"),
        act("LeakyRelu", "q", "rq"),
        conv("a", ["rq", "w", "b"], "c2", "_2"),
        act("Relu", "c2", "r2"),
        conv("b", ["r1", "v"], "y1"),
        conv("u", ["r2", "u"], "y2"),
        conv("other", ["x", "o", "b"], "c3"),
        act("LeakyRelu", "c3", "r3"),
        conv("u", ["r3", "u"], "y3", "_2"),
    ]
    weights = {"w": (4, 4, 1, 1), "b": (4,), "v": (3, 4, 1, 1), "u": (2, 4, 1, 1), "o": (4, 4, 1, 1), "p": (4, 4, 3, 3)}
    view = built(nodes, weights, ("y1", "y2", "y3"))
    assert equalizable(view) == [(("r1", "r2", "r3"), ("w", "o"), ("v", "u"))]  # `rq` cannot be: `w` reads pictures too
    images = images_of(view)
    model, channels = equalize(view, seen(view, images))
    assert channels == 4
    assert model != view.model
    found, wanted = run(model, images), run(view.model, images)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


def test_corrected_biases_take_back_the_mean_error() -> None:
    """A 1 x 1 convolution has no border: from exact means the mean of each output is exact too, whatever the input."""
    nodes = [conv("a", ["x", "w", "b"], "c"), act("Relu", "c", "r"), conv("b", ["r", "v"], "y")]
    view = built(nodes, {"w": (6, 4, 1, 1), "b": (6,), "v": (3, 6, 1, 1)})
    images = images_of(view) + np.float32(0.7)
    statistics = seen(view, images)
    weights = {name: (steps // 8, scales * np.float32(8)) for name, (steps, scales) in rounded(view).items()}  # coarse, and always down
    biases = corrected_biases(view, place_tensorrt(view), weights, statistics)
    assert sorted(biases) == [0, 2]
    for place, value, source in ((0, "c", "x"), (2, "y", "r")):
        model = onnx.ModelProto()
        model.CopyFrom(view.model)
        for tensor in model.graph.initializer:
            name = view.nodes[place].input[1]
            if tensor.name == name:
                steps, scales = weights[name]
                tensor.CopyFrom(numpy_helper.from_array((steps * scales[:, None, None, None]).astype(np.float32), name))
        wanted, plain = (run(each, images, (value,))[value].mean(axis=(0, 2, 3)) for each in (view.model, model))
        node = model.graph.node[place]
        model.graph.initializer.append(numpy_helper.from_array(biases[place], "corrected"))
        if len(node.input) > 2:
            node.input[2] = "corrected"
        else:
            node.input.append("corrected")
        mended = run(model, images, (value,))[value].mean(axis=(0, 2, 3))
        assert np.abs(plain - wanted).max() > 0.1, source
        np.testing.assert_allclose(mended, wanted, atol=1e-4)
        assert biases[place].dtype == np.float32


def test_corrected_biases_of_larger_kernels_sum_over_them() -> None:
    view = built([conv("a", ["x", "w"], "y", pads=[1, 1, 1, 1])], {"w": (3, 4, 3, 3)})
    statistics = seen(view, images_of(view))
    statistics.values["x"].channel_means = np.array([1.0, 2.0, -1.0, 0.0])
    steps, scales = rounded(view)["w"]
    (bias,) = corrected_biases(view, place_tensorrt(view), {"w": (steps, scales)}, statistics).values()
    weight = numpy_helper.to_array(view.initializers["w"]).astype(np.float64)
    for out in range(3):
        error = sum(
            (int(steps[out, each, row, column]) * float(scales[out]) - weight[out, each, row, column]) * mean
            for each, mean in enumerate([1.0, 2.0, -1.0, 0.0])
            for row in range(3)
            for column in range(3)
        )
        np.testing.assert_allclose(bias[out], -error, rtol=1e-5)


def test_grouped_and_kept_convolutions_keep_their_biases() -> None:
    nodes = [conv("a", ["x", "w", "b"], "c", group=2), act("Relu", "c", "r"), conv("b", ["r", "v"], "y")]
    view = built(nodes, {"w": (4, 2, 1, 1), "b": (4,), "v": (3, 4, 1, 1)})
    statistics = seen(view, images_of(view))
    assert list(corrected_biases(view, place_tensorrt(view), rounded(view), statistics)) == [2]
    assert list(corrected_biases(view, place_tensorrt(view, ["backbone/b"]), rounded(view), statistics)) == []


@kinds
def test_corrected_biases_of_a_network(kind: str, run_folder: Path) -> None:
    """One for each quantized convolution: levels that share weights see different values."""
    path = exported(run_folder, kind)
    view = view_of(path)
    placement = place_tensorrt(view)
    biases = corrected_biases(view, placement, rounded(view), statistics_of(path))
    assert tuple(biases) == placement.convolutions
    levels = [biases[place] for place in view.layers["heads/bbox_layer"].nodes]
    assert len({level.tobytes() for level in levels}) == 5
