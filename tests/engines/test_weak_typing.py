"""TensorRT 8 keeps each layer in the precision that the ONNX graph says: nodes read from real exports, layers on its own bindings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.engines.bindings.run import run_in
from yolact_deploy.engines.weak_typing import node_precisions, pin_layers

if TYPE_CHECKING:
    from tests.export.artifacts import Artifacts

KINDS = {"float": TensorProto.FLOAT, "half": TensorProto.FLOAT16, "int": TensorProto.INT32}
Layers = list[tuple[str, str, list[str], list[str]]]


def by_module(model: onnx.ModelProto) -> dict[str, set[str | None]]:
    """The precisions that each module's nodes have; None for nodes that are left out."""
    found = node_precisions(model)
    modules: dict[str, set[str | None]] = {}
    for node in model.graph.node:
        modules.setdefault(node.name.split("/")[0], set()).add(found.get(node.name))
    return modules


def test_a_float32_graph_is_float32_throughout(artifacts: Artifacts) -> None:
    modules = by_module(onnx.load(artifacts.onnx()))
    assert set(modules) == {"backbone", "fpn", "protonet", "heads", "decode", "outputs"}
    assert all(kinds == {"float32"} for kinds in modules.values())


def test_decoding_and_softmax_of_a_float16_graph_are_float32(artifacts: Artifacts) -> None:
    model = onnx.load(artifacts.onnx(fp16=True))
    modules = by_module(model)
    assert modules["backbone"] == modules["fpn"] == modules["protonet"] == modules["heads"] == {"float16"}
    assert modules["decode"] == modules["outputs"] == {"float32"}
    found = node_precisions(model)
    assert {found[node.name] for node in model.graph.node if node.op_type == "Softmax"} == {"float32"}
    assert {found[node.name] for node in model.graph.node if node.op_type == "Conv"} == {"float16"}
    assert len(found) == len(model.graph.node)  # every node has a name of its own


def test_nms_in_the_graph_is_float32_or_has_no_precision(artifacts: Artifacts) -> None:
    model = onnx.load(artifacts.onnx(fp16=True, postprocess="nms"))
    modules = by_module(model)
    assert modules["backbone"] == modules["heads"] == {"float16"}
    assert modules["decode"] == {"float32"}
    assert modules["nms"] == {"float32", None}
    found = node_precisions(model)
    for node in model.graph.node:
        if node.op_type in ("TopK", "Exp", "Min", "Max"):
            assert found[node.name] == "float32", node.name  # TopK has indices too
        if node.op_type in ("Greater", "And", "Or", "Not"):
            assert node.name not in found


def test_a_cast_has_the_precision_that_it_makes() -> None:
    nodes = [helper.make_node("Split", ["x"], ["a", "b"], name="split", axis=0), helper.make_node("Cast", ["a"], ["c"], name="cast", to=10)]
    values = [
        helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in (("x", 1, [2, 2]), ("b", 1, [1, 2]), ("c", 10, [1, 2]))
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=[helper.make_opsetid("", 17)])
    assert node_precisions(model) == {"split": "float32", "cast": "float16"}


def test_both_kinds_in_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operator of today's exports gives both; shape inference is stood in for."""
    node = helper.make_node("Anything", ["x"], ["a", "b", "i"], name="both")
    whole = helper.make_node("Anything", ["x"], ["i"], name="integers")
    values = [helper.make_tensor_value_info(name, kind, [1]) for name, kind in (("a", 10), ("b", 1), ("i", 6), ("x", 1))]
    model = helper.make_model(helper.make_graph([node, whole], "g", values[3:], values[:1], value_info=values[1:3]))
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda model, **_: model)
    assert node_precisions(model) == {"both": "float32"}


def pin(layers: Layers, kinds: dict[str, str], wanted: dict[str, Any]) -> dict[str, Any]:
    """In the child process: what becomes of these layers (name, type, inputs, outputs)."""
    from tests.engines.bindings import stand_ins
    from tests.engines.building_probes import Network

    network = Network()
    codes = {tensor: KINDS[kind] for tensor, kind in kinds.items()}
    for layer in layers:
        network.add(*layer, codes)
    counted = pin_layers(stand_ins.now().real, stand_ins.stand_in("INetworkDefinition"), wanted)
    pinned = {entry.owner.name: stand_ins.plain(entry.arguments["value"]) for entry in stand_ins.journal("ILayer.precision")}
    typed: dict[str, dict[str, Any]] = {}
    for entry in stand_ins.journal("ILayer.set_output_type"):
        typed.setdefault(entry.owner.name, {})[str(entry.arguments["index"])] = stand_ins.plain(entry.arguments["dtype"])
    return {"pinned": pinned, "typed": typed, "counted": counted}


def pinned(layers: Layers, kinds: dict[str, str], wanted: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any], dict[str, int]]:
    said = run_in("8.6.1", f"{__name__}:pin", layers, kinds, wanted)
    short = {"DataType.FLOAT": "float32", "DataType.HALF": "float16"}
    return (
        {name: short[kind] for name, kind in said["pinned"].items()},
        {name: {index: short[kind] for index, kind in outputs.items()} for name, outputs in said["typed"].items()},
        said["counted"],
    )


def chain(*layers: tuple[str, str]) -> tuple[Layers, dict[str, str]]:
    """Layers (name, type) one behind the other; float32 values between them."""
    made: Layers = [(name, kind, [f"t{place}"], [f"t{place + 1}"]) for place, (name, kind) in enumerate(layers)]
    return made, {f"t{place}": "float" for place in range(len(layers) + 1)}


def test_named_layers_are_pinned_as_the_graph_says() -> None:
    layers, kinds = chain(("conv", "CONVOLUTION"), ("relu", "ACTIVATION"), ("softmax", "SOFTMAX"))
    precisions, types, counts = pinned(layers, kinds, {"conv": "float16", "relu": "float16", "softmax": "float32", "gone": "float32"})
    assert precisions == {"conv": "float16", "relu": "float16", "softmax": "float32"}
    assert types == {"conv": {"0": "float16"}, "relu": {"0": "float16"}, "softmax": {"0": "float32"}}
    assert counts == {"float32": 1, "float16": 2, "free": 0}


def test_helpers_follow_float32_neighbours_both_ways_and_through_chains() -> None:
    layers, kinds = chain(
        ("conv", "CONVOLUTION"),
        ("(Unnamed Layer* 1) [Shuffle]", "SHUFFLE"),
        ("(Unnamed Layer* 2) [Shuffle]", "SHUFFLE"),
        ("decode", "ELEMENTWISE"),
        ("(Unnamed Layer* 4) [Shuffle]", "SHUFFLE"),
        ("(Unnamed Layer* 5) [Slice]", "SLICE"),
    )
    precisions, _, counts = pinned(layers, kinds, {"conv": "float16", "decode": "float32"})
    assert precisions == {"conv": "float16", "decode": "float32"} | {layers[place][0]: "float32" for place in (1, 2, 4, 5)}
    assert counts == {"float32": 5, "float16": 1, "free": 0}


def test_helpers_among_float16_layers_are_free() -> None:
    layers, kinds = chain(("a", "CONVOLUTION"), ("helper", "SHUFFLE"), ("b", "CONVOLUTION"), ("far", "SHUFFLE"))
    precisions, types, counts = pinned(layers, kinds, {"a": "float16", "b": "float16"})
    assert precisions == {"a": "float16", "b": "float16"}
    assert set(types) == {"a", "b"}
    assert counts == {"float32": 0, "float16": 2, "free": 2}


def test_float32_does_not_pass_a_float16_layer() -> None:
    layers, kinds = chain(("decode", "ELEMENTWISE"), ("conv", "CONVOLUTION"), ("helper", "SHUFFLE"))
    assert pinned(layers, kinds, {"decode": "float32", "conv": "float16"})[0] == {"decode": "float32", "conv": "float16"}


def test_a_helper_of_a_second_input_follows() -> None:
    """A broadcast of a constant beside a float32 sum; the constant stays as it is."""
    layers: Layers = [
        ("anchors", "CONSTANT", [], ["c"]),
        ("broadcast", "SHUFFLE", ["c"], ["d"]),
        ("sum", "ELEMENTWISE", ["x", "d"], ["y"]),
        ("behind", "REDUCE", ["y"], ["z"]),
    ]
    precisions, _, counts = pinned(layers, dict.fromkeys("cdxyz", "float"), {"sum": "float32", "anchors": "float32"})
    assert precisions == {"broadcast": "float32", "sum": "float32", "behind": "float32"}
    assert counts == {"float32": 3, "float16": 0, "free": 0}


@pytest.mark.parametrize("kind", ["CONSTANT", "CAST", "IDENTITY", "SHAPE"])
def test_what_makes_types_itself_is_left_and_passes_nothing_on(kind: str) -> None:
    layers, kinds = chain(("decode", "ELEMENTWISE"), ("special", kind), ("helper", "SHUFFLE"))
    precisions, types, counts = pinned(layers, kinds, {"decode": "float32", "special": "float16"})
    assert set(precisions) == set(types) == {"decode"}
    assert counts == {"float32": 1, "float16": 0, "free": 1}


def test_integers_are_left() -> None:
    layers: Layers = [
        ("indices", "GATHER", ["i"], ["j"]),
        ("topk", "TOPK", ["x"], ["values", "k"]),
        ("half", "TOPK", ["h"], ["l", "m"]),
        ("behind the indices", "SHUFFLE", ["k"], ["n"]),
    ]
    kinds = {**dict.fromkeys(("i", "j", "k", "l", "n"), "int"), "x": "float", "values": "float", "h": "half", "m": "half"}
    precisions, types, counts = pinned(
        layers, kinds, {"indices": "float32", "topk": "float32", "half": "float16", "behind the indices": "float32"}
    )
    assert precisions == {"topk": "float32", "half": "float16"}
    assert types == {"topk": {"0": "float32"}, "half": {"1": "float16"}}
    assert counts == {"float32": 1, "float16": 1, "free": 0}


def missing_inputs() -> dict[str, int]:
    """In the child process: layers with optional inputs, which TensorRT gives as None."""
    from tests.engines.bindings import stand_ins
    from tests.engines.building_probes import Network

    network = Network()
    real = stand_ins.now().real
    network.add("decode", "ELEMENTWISE", ["x"], ["y"], {"x": 1, "y": 1})
    tensors = [network.tensor("y", 1), None]
    result = network.tensor("z", 1)
    slicing: Any = stand_ins.stand_in(
        "ISliceLayer",
        name="slice",
        type=real.LayerType.SLICE,
        num_inputs=2,
        num_outputs=1,
        get_input=tensors.__getitem__,
        get_output=lambda index: result,
    )
    network.layers.append(slicing)
    return pin_layers(real, stand_ins.stand_in("INetworkDefinition"), {"decode": "float32"})


def test_inputs_that_are_not_there() -> None:
    assert run_in("8.6.1", f"{__name__}:missing_inputs") == {"float32": 2, "float16": 0, "free": 0}


def whole(path: str) -> dict[str, Any]:
    """In the child process: a real graph with two helpers around each Mul and Concat, as TensorRT's parser adds them."""
    from tests.engines.bindings import stand_ins
    from tests.engines.building_probes import Network

    model = onnx.load(path)
    network = Network()
    network.parse(model.SerializeToString())
    real = stand_ins.now().real
    floats = dict.fromkeys(network.tensors, 1)
    for number, node in enumerate(list(model.graph.node)):
        if node.op_type in ("Mul", "Concat"):
            network.add(
                f"(Unnamed Layer* {number}) [Shuffle]", "SHUFFLE", [node.output[0]], [f"helped {number}"], {**floats, f"helped {number}": 1}
            )
    wanted = node_precisions(model)
    counted = pin_layers(real, stand_ins.stand_in("INetworkDefinition"), wanted)
    values = {"float32": real.float32, "float16": real.float16}
    entries = stand_ins.journal("ILayer.precision")
    wrong = [
        entry.owner.name for entry in entries if entry.owner.name in wanted and entry.arguments["value"] != values[wanted[entry.owner.name]]
    ]
    helpers = [network.tensors[entry.owner.get_input(0).name].name for entry in entries if entry.owner.name.startswith("(Unnamed")]
    producers = {name: node.name for node in model.graph.node for name in node.output}
    return {"counted": counted, "wrong": wrong, "helped": sorted({producers[name].split("/")[0] for name in helpers})}


def test_a_whole_float16_graph(artifacts: Artifacts) -> None:
    said = run_in("8.6.1", f"{__name__}:whole", str(artifacts.onnx(fp16=True)))
    model = onnx.load(artifacts.onnx(fp16=True))
    nodes = [node for node in model.graph.node if node.op_type not in ("Cast", "Constant")]
    precisions = [node_precisions(model)[node.name] for node in nodes]
    assert said["wrong"] == []
    assert said["helped"] == ["decode"]  # helpers of the heads' float16 Concats are free
    assert said["counted"]["float16"] == precisions.count("float16")
    assert said["counted"]["float32"] == precisions.count("float32") + sum(
        node.op_type in ("Mul", "Concat") and kind == "float32" for node, kind in zip(nodes, precisions, strict=True)
    )
    assert said["counted"]["free"] == np.count_nonzero(
        [node.op_type == "Concat" and kind == "float16" for node, kind in zip(nodes, precisions)]
    )


def test_what_stands_at_a_qdq_pair_is_the_pairs_to_decide() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="before"),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        helper.make_node("Relu", ["d"], ["b"], name="inside"),
        helper.make_node("Relu", ["b"], ["y"], name="behind"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    constants = [helper.make_tensor("s", TensorProto.FLOAT, [], [0.1]), helper.make_tensor("z", TensorProto.INT8, [], [0])]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], constants), opset_imports=[helper.make_opsetid("", 17)])
    assert node_precisions(model) == {"before": None, "q": None, "dq": None, "inside": None, "behind": "float32"}


def test_quantized_layers_are_free_and_stop_float32() -> None:
    layers, kinds = chain(("decode", "ELEMENTWISE"), ("conv", "CONVOLUTION"), ("helper", "SHUFFLE"))
    precisions, types, counts = pinned(layers, kinds, {"decode": "float32", "conv": None})
    assert precisions == {"decode": "float32"}
    assert set(types) == {"decode"}
    assert counts == {"float32": 1, "float16": 0, "free": 2}
