"""Pairs stand where TensorRT and ONNX Runtime fuse them, in every kind of variant and whatever layers are kept in floats."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.calibration.graphs import KINDS, export_unverified, exported, ranges_of, session_of, view_of
from tests.calibration.placement_rules import Written, check_onnxruntime, check_tensorrt
from yolact_deploy.calibration.graph import GraphView, float_graph, group_of
from yolact_deploy.calibration.placement import calibrated_values, place_onnxruntime, place_tensorrt
from yolact_deploy.calibration.ranges import Range
from yolact_deploy.calibration.writing import write_onnxruntime, write_tensorrt
from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.export.passes import convert_to_float16
from yolact_deploy.variants import VARIANTS, get_variant

kinds = pytest.mark.parametrize("kind", KINDS)


def both(view: GraphView, ranges: dict[str, Range], kept: tuple[str, ...] = ()) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    return (
        write_tensorrt(view, place_tensorrt(view, kept), ranges),
        write_onnxruntime(view, place_onnxruntime(view, kept), ranges),
    )


def check(view: GraphView, ranges: dict[str, Range], kept: tuple[str, ...] = ()) -> None:
    first, second = both(view, ranges, kept)
    check_tensorrt(view.model, first, kept)
    check_onnxruntime(view.model, second, kept)


@kinds
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_rules_hold_whatever_is_kept(kind: str, run_folder: Path, seed: int) -> None:
    path = exported(run_folder, kind)
    view = view_of(path)
    generator = np.random.default_rng(seed)
    share = generator.uniform(0, 1)
    check(view, ranges_of(path), tuple(name for name in view.layers if generator.random() < share))


@kinds
def test_the_rules_hold_with_all_none_or_one_kept(kind: str, run_folder: Path) -> None:
    path = exported(run_folder, kind)
    names = tuple(view_of(path).layers)
    for kept in ((), names, names[1:], names[:-1]):
        check(view_of(path), ranges_of(path), kept)


@kinds
def test_each_layer_and_each_module_can_be_kept_alone_or_quantized_alone(kind: str, run_folder: Path) -> None:
    path = exported(run_folder, kind)
    view = view_of(path)
    wanted = set(calibrated_values(view))
    groups = {layer.group for layer in view.layers.values()}
    alone = [{name} for name in view.layers] + [{layer.name for layer in view.layers.values() if layer.group == group} for group in groups]
    for chosen in alone:
        for kept in (tuple(chosen), tuple(set(view.layers) - chosen)):
            placed = place_tensorrt(view, kept)
            assert {view.nodes[place].name.rsplit("/", 1)[0] for place in placed.convolutions} == set(view.layers) - set(kept)
            check_tensorrt(view.model, write_tensorrt(view, placed, ranges_of(path)), kept)
            fast = place_onnxruntime(view, kept)
            assert fast.convolutions == placed.convolutions
            assert {*placed.pairs, *fast.pairs} <= wanted  # no search asks for a range that was not gathered
            if len(chosen) > 1:
                check_onnxruntime(view.model, write_onnxruntime(view, fast, ranges_of(path)), kept)
    assert list(calibrated_values(view)) == sorted(wanted, key=lambda name: view.producers.get(name, -1))


def test_where_the_pairs_of_a_resnet_stand(run_folder: Path) -> None:
    """By hand, so that a rule that both sides misread is seen."""
    view = view_of(exported(run_folder, "resnet"))
    found = {
        view.nodes[view.producers[name]].name if name in view.producers else name: [view.nodes[place].name for place, _ in readers]
        for name, readers in place_tensorrt(view).pairs.items()
    }
    assert found["images"] == ["backbone/conv1/Conv"]
    assert "backbone/Relu" not in found
    assert found["backbone/maxpool/MaxPool"] == ["backbone/layers.0.0.downsample.0/Conv", "backbone/layers.0.0.conv1/Conv"]
    assert found["backbone/layers.0.0.downsample.0/Conv"] == ["backbone/layers.0.0/Add"]
    assert "backbone/layers.0.0.conv3/Conv" not in found
    assert found["backbone/layers.0.0/Relu_3"] == ["backbone/layers.0.1.conv1/Conv", "backbone/layers.0.1/Add"]
    assert found["fpn/lat_layers.0/Conv"] == ["fpn/Resize", "fpn/pred_layers.0/Conv"]
    assert found["fpn/Resize"] == ["fpn/Add"]
    assert "fpn/lat_layers.1/Conv" not in found
    assert found["protonet/5/Relu"] == ["protonet/6/Resize"]
    assert found["protonet/7/Relu"] == ["protonet/8/Conv"]
    assert found["heads/upfeature.1/Relu_5"] == ["heads/bbox_layer/Conv_5", "heads/conf_layer/Conv_5", "heads/mask_layer/Conv_5"]
    assert not [name for name in found if name.startswith(("protonet/11", "heads/bbox", "heads/conf", "heads/mask"))]


@kinds
def test_onnx_runtime_makes_an_integer_convolution_of_each_quantized_one(kind: str, run_folder: Path, tmp_path: Path) -> None:
    path = exported(run_folder, kind)
    view = view_of(path)
    graph = write_onnxruntime(view, place_onnxruntime(view), ranges_of(path))
    session_of(graph, as_written=False, saved=tmp_path / "optimized.onnx")
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    written = Written(view.model, graph, ())
    # A deformable convolution's offsets are computed in floats from what the convolution before it makes.
    float_results = {name.replace("conv2.conv_offset_mask", "conv1") for name in written.float_convs if "offset" in name}
    assert len(float_results) == {"plus": 3}.get(kind, 0)
    assert found["QLinearConv"] == len(written.quantized) - len(float_results)
    assert found["QLinearAdd"] == len(written.additions()) == {"resnet": 7, "darknet": 7, "plus": 6}[kind]
    assert found["QLinearLeakyRelu"] == {"darknet": 16}.get(kind, 0)


@kinds
def test_layers(kind: str, run_folder: Path) -> None:
    """Every convolution of the network is in one layer and one group; the head's five levels share theirs."""
    view = view_of(exported(run_folder, kind))
    found = [place for layer in view.layers.values() for place in layer.nodes]
    assert sorted(view.nodes[place].name for place in found) == sorted(Written(view.model, view.model, ()).quantized)
    head = view.layers["heads/bbox_layer"]
    assert [view.nodes[place].name[-7:] for place in head.nodes] == ["er/Conv", *(f"/Conv_{level}" for level in range(2, 6))]
    assert head.group == "head box"
    weight = view.weight(head)
    assert weight.shape == (12, 32, 3, 3)
    assert head.parameters == weight.size
    size = view.shapes[view.model.graph.output[0].name]
    assert size
    assert head.multiplications == weight.size * sum((view.shapes[view.nodes[place].output[0]][2]) ** 2 for place in head.nodes)
    stages = {"resnet": 4, "darknet": 5, "plus": 4}[kind]
    groups = [f"backbone stage {number}" for number in range(1, stages + 1)]
    rest = ["FPN lateral", "FPN prediction", "FPN downsampling", "protonet", "head upfeature", "head box", "head class", "head mask"]
    assert list(dict.fromkeys(layer.group for layer in view.layers.values())) == ["backbone stem", *groups, *rest] or kind != "darknet"
    assert {layer.group for layer in view.layers.values()} == {"backbone stem", *groups, *rest}


def test_a_layer_without_a_group_is_one_of_its_own() -> None:
    assert group_of("backbone/extra") == "backbone/extra"
    assert group_of("backbone/layers.3.1.conv2") == "backbone stage 4"


def test_graphs_that_have_nothing_to_quantize_are_refused() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "backbone/Relu")], "g", values[:1], values[1:])
    with pytest.raises(ModelFileError, match="no convolution that could be quantized"):
        GraphView(helper.make_model(graph))
    graph.node[0].op_type = "Concat"
    with pytest.raises(ModelFileError, match="shapes of the graph cannot be inferred"):
        GraphView(helper.make_model(graph))


@pytest.mark.parametrize(
    ("beside", "wanted"),
    [
        ("", {"x": "first last", "c1": "addition", "s": "behind"}),
        ("reader", {"x": "first last", "c2": "addition other", "s": "behind"}),
        ("output", {"x": "first last", "c2": "addition", "s": "behind"}),
        ("readers of both", {"x": "first last", "c2": "addition other", "s": "behind"}),
        ("kept", {"x": "last", "c1": "addition", "s": "behind"}),
        ("the last kept", {"x": "first", "c2": "addition", "s": "behind"}),
        ("both kept", {"s": "behind"}),
    ],
)
def test_the_side_of_an_addition_that_is_paired(beside: str, wanted: dict[str, str]) -> None:
    """What an addition fuses into is the last convolution that makes its value for it alone."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "backbone/first/Conv"),
        helper.make_node("Conv", ["x", "w2"], ["c2"], "backbone/last/Conv"),
        helper.make_node("Add", ["c1", "c2"], ["s"], "backbone/addition/Add"),
        helper.make_node("Conv", ["s", "w3"], ["y"], "backbone/behind/Conv"),
    ]
    if beside.startswith("reader"):
        nodes.append(helper.make_node("Conv", ["c2", "w4"], ["z"], "backbone/other/Conv"))
    if beside == "readers of both":
        nodes.append(helper.make_node("Tanh", ["c1"], ["t"], "backbone/tanh/Tanh"))
    results = ["y", *{"output": ["c2"], "reader": ["z"], "readers of both": ["z", "t"]}.get(beside, [])]
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 3, 3]) for name in ("x", *results)}
    weights = [helper.make_tensor(f"w{place}", TensorProto.FLOAT, [2, 2, 1, 1], [1.0, 2, 3, 4]) for place in (1, 2, 3, 4)]
    graph = helper.make_graph(nodes, "g", [values["x"]], [values[name] for name in results], weights)
    view = GraphView(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    kept = {"kept": ["first"], "the last kept": ["last"], "both kept": ["first", "last"]}.get(beside, [])
    found = place_tensorrt(view, [f"backbone/{name}" for name in kept]).pairs
    told = {name: " ".join(view.nodes[place].name.split("/")[1] for place, _ in readers) for name, readers in found.items()}
    assert told == wanted


def made(nodes: list[onnx.NodeProto], results: dict[str, list[int]], *extra_inputs: str) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 3, 3])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2, 1, 1]) for name in extra_inputs]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in results.items()]
    weights = [helper.make_tensor("w", TensorProto.FLOAT, [2, 2, 1, 1], [1.0, 2, 3, 4])]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, weights), opset_imports=[helper.make_opsetid("", 17)])


def test_what_fuses_into_a_convolution() -> None:
    """The activation that alone reads its value; what two nodes read, or a user, has to be there without it."""
    first = helper.make_node("Conv", ["x", "w"], ["c"], "backbone/first/Conv")
    relu, tanh = (helper.make_node(kind, ["c"], [kind.lower()], f"backbone/{kind}") for kind in ("Relu", "Tanh"))
    shape = [2, 3, 3]
    for nodes, results, wanted in (
        ([first, relu], {"relu": shape}, "relu"),
        ([first, relu], {"relu": shape, "c": shape}, "c"),
        ([first, relu, tanh], {"relu": shape, "tanh": shape}, "c"),
        ([first, tanh], {"tanh": shape}, "c"),
    ):
        view = GraphView(made(nodes, results))
        assert view.result_of(0) == wanted
        assert view.activation_after(0) == (1 if wanted == "relu" else None)
    assert view.shapes == {"x": (1, 2, 3, 3), "c": (1, 2, 3, 3), "tanh": (1, 2, 3, 3)}


def test_inputs_and_weights_that_are_computed() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "backbone/first/Conv"),
        helper.make_node("Relu", ["w"], ["v"], "backbone/Relu"),
        helper.make_node("Conv", ["c", "v"], ["y"], "backbone/second/Conv"),
    ]
    view = GraphView(made(nodes, {"y": [2, 3, 3]}, "w"))  # older exporters list weights as inputs too
    assert list(view.layers) == ["backbone/first"]
    assert view.inputs == ["x"]
    assert view.layers["backbone/first"].multiplications == 36
    assert list(place_tensorrt(view).pairs) == ["x"]


def test_only_float32_graphs_are_calibrated(run_folder: Path) -> None:
    path = exported(run_folder, "resnet")
    view = view_of(path)
    float_graph(view.model, path)
    with pytest.raises(ConfigError, match=r"resnet.onnx is quantized already"):
        float_graph(write_tensorrt(view, place_tensorrt(view), ranges_of(path)), path)
    half = onnx.ModelProto()
    half.CopyFrom(view.model)
    with pytest.raises(ConfigError, match=r"resnet.onnx is float16, a float32 graph was wanted"):
        float_graph(convert_to_float16(half, ["images"]), path)


def test_ranges_that_are_missing_are_told(run_folder: Path) -> None:
    path = exported(run_folder, "resnet")
    view = view_of(path)
    ranges = dict(ranges_of(path))
    del ranges["images"], ranges[view.nodes[1].output[0]]  # the second one only ONNX Runtime's graph needs
    with pytest.raises(ConfigError, match="no range for images and 0 other values"):
        write_tensorrt(view, place_tensorrt(view), ranges)
    with pytest.raises(ConfigError, match="no range for images and 1 other values"):
        write_onnxruntime(view, place_onnxruntime(view), ranges)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if "im" not in name and "pascal" not in name and "nano" not in name])
def test_the_rules_hold_for_the_layout_of_each_published_variant(name: str, tmp_path: Path) -> None:
    """With few channels; those that are left out differ in their size and classes alone."""
    published = get_variant(name)
    size = 254 if published.mask_rescoring else 138
    variant = replace(published, backbone_width=8, fpn_width=16, input_size=size)
    path = export_unverified(variant, tmp_path / "layout.onnx")
    view = GraphView(onnx.load(path))
    ranges = dict.fromkeys(calibrated_values(view), Range(-1.0, 1.0))
    groups = {layer.group for layer in view.layers.values()}
    for group in (None, *sorted(groups)):
        check(view, ranges, tuple(layer.name for layer in view.layers.values() if layer.group == group))
