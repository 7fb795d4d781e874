"""INT8 graphs as engines are made from them: read, brought to float16 between their pairs, pinned for TensorRT 8, and really built."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tests.calibration.graphs import KINDS, exported, ranges_of, run, view_of
from tests.calibration.placement_rules import check_tensorrt
from tests.engines.bindings.run import run_in
from tests.helpers.weights import keyed_state, write_checkpoint
from yolact_deploy.calibration.document import stamp
from yolact_deploy.calibration.graph import GraphView
from yolact_deploy.calibration.placement import calibrated_values, place_onnxruntime, place_tensorrt
from yolact_deploy.calibration.ranges import Range
from yolact_deploy.calibration.writing import write_onnxruntime, write_tensorrt
from yolact_deploy.data.sample import sample_picture
from yolact_deploy.engines import conversion
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.builder import build_engine
from yolact_deploy.engines.conversion import check_int8_with_float16, int8_with_float16
from yolact_deploy.engines.options import BuildOptions
from yolact_deploy.engines.sidecar import read_plan, read_sidecar
from yolact_deploy.engines.source import read_source
from yolact_deploy.engines.weak_typing import node_precisions
from yolact_deploy.errors import ConfigError, VerificationError
from yolact_deploy.export import VerificationReport, export_checkpoint, exporter
from yolact_deploy.model import load_checkpoint
from yolact_deploy.preprocess import prepare

kinds = pytest.mark.parametrize("kind", KINDS)
KEPT = ("backbone/layers.0.0.conv2", "protonet/4", "heads/mask_layer")
Quantized = Callable[..., Path]


@pytest.fixture
def quantized(run_folder: Path, tmp_path: Path) -> Quantized:
    """An INT8 graph for TensorRT of that kind: what lies between its pairs, and the layers that are kept."""

    def write(
        kind: str, rest: str = "float16", kept: tuple[str, ...] = (), change: Callable[[onnx.ModelProto], None] | None = None
    ) -> Path:
        path = exported(run_folder, kind)
        view = view_of(path)
        model = write_tensorrt(view, place_tensorrt(view, kept), ranges_of(path))
        stamp(model, read_source(path), {"rest": rest, "method": "minmax"})
        if change is not None:
            change(model)
        target = tmp_path / f"{kind}.int8.onnx"
        target.write_bytes(model.SerializeToString())
        return target

    return write


def opset_of(model: onnx.ModelProto) -> int:
    return next(entry.version for entry in model.opset_import if entry.domain == "")


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    values = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


def scale_of(model: onnx.ModelProto, value: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == f"{value}_scale")


def test_a_float_graph_has_to_be_calibrated_first(run_folder: Path) -> None:
    path = exported(run_folder, "resnet")
    with pytest.raises(ConfigError, match=r"--int8 wants a graph with Q/DQ pairs, .* is fp32") as caught:
        read_source(path, "int8")
    assert caught.value.mend == f"Make one: yolact-deploy calibrate {path}"


def test_the_graph_for_onnx_runtime_is_none_for_tensorrt(run_folder: Path, tmp_path: Path) -> None:
    path = exported(run_folder, "resnet")
    view = view_of(path)
    graph = write_onnxruntime(view, place_onnxruntime(view), ranges_of(path))
    stamp(graph, read_source(path), {"rest": "float16"})
    fast = tmp_path / "resnet.int8.ort.onnx"
    fast.write_bytes(graph.SerializeToString())
    for precision in ("graph", "int8"):
        with pytest.raises(ConfigError, match=r"resnet.int8.ort.onnx is the INT8 graph for ONNX Runtime on a CPU") as caught:
            read_source(fast, "int8" if precision == "int8" else "graph")
        assert caught.value.mend == "Take the one for TensorRT, resnet.int8.onnx."


@pytest.mark.parametrize("precision", ["graph", "int8"])
def test_float32_between_the_pairs_stays(precision: Any, quantized: Quantized) -> None:
    path = quantized("resnet", "float32")
    steps: list[str] = []
    for weakly_typed in (False, True):
        found = read_source(path, precision, lambda step, done: steps.append(step), weakly_typed=weakly_typed)
        assert (found.precision, found.converted, found.typed, found.opset) == ("int8", False, None, 17)
        assert found.model == onnx.load(path)
        assert found.manifest.verification == {}
    assert steps == []
    assert found.manifest.precision["backbone"] == "int8"
    assert found.manifest.calibration["rest"] == "float32"


@kinds
@pytest.mark.parametrize("kept", [(), KEPT[1:]])
def test_float16_between_the_pairs(kind: str, kept: tuple[str, ...], quantized: Quantized, run_folder: Path) -> None:
    """The rules of placement hold: no cast comes between a pair and its reader. What --fp16 leaves in float32 stays so."""
    path = quantized(kind, kept=kept)
    steps: list[str] = []
    found = read_source(path, "int8", lambda step, done: steps.append(step))
    assert steps == ["checking FP16 between the Q/DQ pairs"]
    assert (found.precision, found.converted, found.typed, found.opset) == ("int8", True, None, 19)
    onnx.checker.check_model(found.model, full_check=True)
    before = view_of(exported(run_folder, kind)).model
    check_tensorrt(before, found.model, kept, floats="float16")
    types = types_of(found.model)
    assert [types[value.name] for value in before.graph.output] == [types_of(before)[value.name] for value in before.graph.output]
    for node in found.model.graph.node:
        kinds_there = {types[name] for name in node.output if types.get(name) in (TensorProto.FLOAT, TensorProto.FLOAT16)}
        if node.op_type in ("Exp", "Softmax", "GridSample") or node.name.startswith(("input/", "decode/", "nms/", "masks/", "maskiou/")):
            assert TensorProto.FLOAT16 not in kinds_there or node.op_type == "Cast", node.name
        elif node.op_type in ("Conv", "Add", "Relu", "LeakyRelu", "Resize", "Tanh") and "sampling" not in node.name:
            assert kinds_there == {TensorProto.FLOAT16}, node.name
    casts = [node for node in found.model.graph.node if node.op_type == "Cast"]
    makers = {name: node for node in found.model.graph.node for name in node.output}
    assert not [node.name for node in casts if node.input[0] in makers and makers[node.input[0]].op_type == "DequantizeLinear"]
    assert found.manifest.verification["compared"].startswith("float16 with float32 between the Q/DQ pairs")
    names = {value.name for value in before.graph.output} & {"boxes", "scores", "coefficients", "prototypes"}
    differences = found.manifest.verification["mean_relative_difference"]
    assert set(differences) == names
    assert all(0 < value < 0.1 for value in differences.values())
    assert found.manifest.precision == {name: kind for name, kind in found.manifest.precision.items() if name}
    assert found.manifest.precision["decode"] == found.manifest.precision["outputs"] == "float32"
    assert found.manifest.precision["protonet"] == ("float16+int8" if kept else "int8")
    assert read_source(path, "graph").model == found.model


@kinds
def test_tensorrt_8_is_given_float32_pairs_and_told_the_types(kind: str, quantized: Quantized) -> None:
    kept = KEPT if kind == "resnet" else KEPT[1:]
    path = quantized(kind, kept=kept)
    found = read_source(path, "int8", weakly_typed=True)
    assert found.model == onnx.load(path)
    assert (found.opset, found.converted) == (17, True)
    assert found.typed is not None
    assert found.typed == read_source(path, "int8").model
    assert found.manifest.precision == read_source(path, "int8").manifest.precision
    precisions = node_precisions(found.typed)
    nodes = {node.name: node for node in found.model.graph.node}
    types = types_of(found.model)
    floats = {name for name, node in nodes.items() if any(types.get(value) == TensorProto.FLOAT for value in node.output)}
    floats |= {name for name, node in nodes.items() if node.op_type == "QuantizeLinear"}
    assert {name for name in precisions if name in nodes and nodes[name].op_type != "Shape"} == floats
    dequantized = {name for node in nodes.values() if node.op_type == "DequantizeLinear" for name in node.output}
    steps = {node.input[0] for node in nodes.values() if node.op_type == "QuantizeLinear"}
    for name, node in nodes.items():
        if name not in precisions:
            continue
        pair = node.op_type.endswith("eLinear") or dequantized.intersection(node.input) or steps.intersection(node.output)
        module = name.split("/")[0]
        if pair and module != "input":  # what comes before the cast of a float16 graph is the input's own
            assert precisions[name] is None, name
        elif module in ("input", "decode", "nms", "masks", "maskiou", "outputs") or ".sampling" in name:
            assert precisions[name] == "float32", name
        else:
            assert precisions[name] == "float16", name
    in_floats = [name for name, node in nodes.items() if node.op_type == "Conv" and name.rsplit("/", 1)[0] in kept]
    assert len(in_floats) == len(kept) + 4  # the head's on five levels
    assert {precisions[name] for name in in_floats} == {"float16"}


def test_a_layer_in_floats_that_reads_beside_a_pair_is_pinned() -> None:
    """Of two convolutions that read one value one is quantized: the other reads no pair, and none stands behind it."""
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a"], name="before"),
        onnx.helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], name="q"),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        onnx.helper.make_node("Relu", ["d"], ["y"], name="quantized"),
        onnx.helper.make_node("Relu", ["a"], ["w"], name="kept"),
    ]
    values = [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xyw"]
    constants = [onnx.helper.make_tensor("s", TensorProto.FLOAT, [], [0.1]), onnx.helper.make_tensor("z", TensorProto.INT8, [], [0])]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    found = node_precisions(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))
    assert found == {"before": None, "q": None, "dq": None, "quantized": None, "kept": "float32"}


@pytest.mark.parametrize("version", ["8.6.1", "11.4"])
@pytest.mark.parametrize("rest", ["float16", "float32"])
def test_what_tensorrt_is_asked_for(version: str, rest: str, quantized: Quantized, tmp_path: Path) -> None:
    path = quantized("resnet", rest, KEPT)
    (tmp_path / "built").mkdir()
    said: dict[str, Any] = run_in(
        version, "tests.engines.building_probes:build", str(path), str(tmp_path / "built"), {"precision": "int8"}, {}
    )
    assert "error" not in said
    asked = [(name, next(iter(arguments.values()))) for _, name, arguments in said["journal"] if len(arguments) == 1]
    flags = [value.removeprefix("BuilderFlag.") for name, value in asked if name == "IBuilderConfig.set_flag"]
    parsed = [value for name, value in asked if name == "OnnxParser.parse"]
    source = read_source(path, "int8", weakly_typed=version == "8.6.1")
    assert parsed == [f"{len(source.model.SerializeToString())} bytes"]
    assert said["sidecar"]["target"]["precision"] == "int8"
    if version != "8.6.1":
        assert flags == []
        assert source.opset == (19 if rest == "float16" else 17)
        return
    assert sorted(flags) == sorted(["OBEY_PRECISION_CONSTRAINTS", "INT8", *(["FP16"] if rest == "float16" else [])])
    typed = source.typed if source.typed is not None else source.model
    names = {node.name for node in source.model.graph.node}
    wanted = Counter(kind for name, kind in node_precisions(typed).items() if name in names)
    counted = said["sidecar"]["target"]["build"]["pinned_layers"]
    assert (counted["float32"], counted["float16"]) == (wanted["float32"], wanted["float16"])
    assert (counted["float16"] > 20) == (rest == "float16")


def test_a_scale_or_a_weight_that_float16_does_not_hold(quantized: Quantized) -> None:
    def wide(model: onnx.ModelProto) -> None:
        scale_of(model, "relu_3").CopyFrom(numpy_helper.from_array(np.float32(1e5), "relu_3_scale"))

    def heavy(model: onnx.ModelProto) -> None:
        name = next(tensor.name for tensor in model.graph.initializer if tensor.name.startswith("fpn") and tensor.name.endswith("_on_grid"))
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e7), name))

    for change, sentence in ((wide, "relu_3_scale reaches 1e.05, float16 ends at 65504"), (heavy, "fpn.* float16 ends at 65504")):
        path = quantized("resnet", change=change)
        with pytest.raises(ConfigError, match=sentence) as caught:
            read_source(path, "int8")
        assert caught.value.mend == "FP16 does not hold this network's values: calibrate with --rest float32."
        assert read_source(quantized("resnet", "float32", change=change), "int8").opset == 17


def larger(layer: str, by: float, bias: float) -> Callable[[onnx.ModelProto], None]:
    """Weights of the layer `by` times as large, biases of that size."""

    def change(model: onnx.ModelProto) -> None:
        conv = next(node for node in model.graph.node if node.name == layer)
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if tensor.name == conv.input[2]:
                tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, bias), tensor.name))
            if tensor.name in ("proto_net.10.weight_scale", "proto_net.10.weight_on_grid"):
                tensor.CopyFrom(numpy_helper.from_array(values * np.float32(by), tensor.name))

    return change


@pytest.mark.parametrize(("by", "bias"), [(4e4, 0.0), (1e3, 6.6e4)])
def test_values_that_float16_does_not_hold(by: float, bias: float, quantized: Quantized) -> None:
    """Weights and scales fit: what they sum up to does not, which ONNX Runtime's float32 kernels would not show."""
    if bias:
        with pytest.raises(ConfigError, match=r"proto_net.10.bias reaches 6.6e.04, float16 ends at 65504"):
            read_source(quantized("resnet", change=larger("protonet/10/Conv", by, bias)), "int8")
        bias = 6.5e4
    path = quantized("resnet", change=larger("protonet/10/Conv", by, bias))
    with pytest.raises(VerificationError, match=r"The value conv2d_\d+ of the INT8 graph reaches .*, float16 ends at 65504") as caught:
        read_source(path, "int8", weakly_typed=not bias)
    assert "calibrate with --rest float32" in caught.value.mend
    assert read_source(quantized("resnet", change=larger("protonet/10/Conv", by / 1e3, bias / 1e3)), "int8").converted


def test_the_check_sees_every_output_and_the_worst_of_both_pictures(quantized: Quantized, monkeypatch: pytest.MonkeyPatch) -> None:
    source = read_source(quantized("resnet", "float32"))
    right = {name: np.full((1, 4), 2.0, np.float32) for name in ("boxes", "scores", "coefficients", "prototypes", "other")}
    told: list[list[dict[str, Any]]] = []

    def answers(model: onnx.ModelProto, images: list[Any], *, as_written: bool) -> list[dict[str, Any]]:
        assert as_written
        assert len(images) == 2
        assert not np.array_equal(*images)
        return told.pop(0)

    monkeypatch.setattr(conversion, "_run", answers)
    monkeypatch.setattr(conversion, "_check_magnitudes", lambda *_: None)
    for name in ("boxes", "scores", "coefficients", "prototypes"):
        for amount, passes in ((0.1, True), (1.38, True), (1.42, False), (-1.42, False), (np.nan, False), (np.inf, False)):
            for place in (0, 1):
                wrong = [dict(right), dict(right)]
                wrong[place][name] = right[name] + np.float32(amount)
                told[:] = [[right, right], wrong]
                if passes:
                    found = check_int8_with_float16(source.model, source.model, source.manifest)["mean_relative_difference"]
                    assert found == {**dict.fromkeys(found, 0.0), name: pytest.approx(amount / 2, rel=1e-5)}
                    assert "other" not in found
                else:
                    with pytest.raises(VerificationError, match=f"{name} by (7.1e-01|inf)"):
                        check_int8_with_float16(source.model, source.model, source.manifest)
    few = [dict(right), dict(right)]
    few[1]["boxes"] = right["boxes"] + np.array([[0, 0, 0, 1.0]], np.float32)  # one element by half its size
    told[:] = [[right, right], few]
    assert check_int8_with_float16(source.model, source.model, source.manifest)["mean_relative_difference"]["boxes"] == pytest.approx(0.125)


def test_float16_is_made_in_a_copy(quantized: Quantized) -> None:
    model = onnx.load(quantized("darknet"))
    before = model.SerializeToString(deterministic=True)
    first = int8_with_float16(model)
    assert model.SerializeToString(deterministic=True) == before
    assert opset_of(first) == 19
    newer = onnx.ModelProto()
    newer.CopyFrom(first)
    assert opset_of(int8_with_float16(onnx.version_converter.convert_version(model, 20))) == 20


def test_scales_keep_their_values_in_float16(quantized: Quantized, run_folder: Path) -> None:
    """And so the steps of weights and of values are the same with either type between the pairs."""
    model = onnx.load(quantized("resnet"))
    half = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8_with_float16(model).graph.initializer}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name.endswith("_scale"):
            np.testing.assert_array_equal(half[f"{tensor.name}_half"].astype(np.float32), values)
        elif tensor.name.endswith("_on_grid"):
            name = tensor.name.replace("_on_grid", "_scale")
            scale = numpy_helper.to_array(scale_of(model, tensor.name.removesuffix("_on_grid")))[:, None, None, None]
            halved = np.rint(half[f"{tensor.name}_half"] / half[f"{name}_half"][:, None, None, None]).astype(np.int8)
            np.testing.assert_array_equal(halved, np.rint(values / scale).astype(np.int8))


@pytest.mark.parametrize("sm", [(8, 6), (8, 9)])
@kinds
def test_engines_are_built(kind: str, sm: tuple[int, int], quantized: Quantized, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    kept = {(8, 6): (), (8, 9): KEPT[1:]}[sm]
    rest = {(8, 6): "float16", (8, 9): "float32" if kind == "resnet" else "float16"}[sm]
    result = build_engine(quantized(kind, rest, kept), folder=tmp_path, options=BuildOptions("int8", "tensorrt-rtx", sm=(sm,)))
    assert result.path.name == f"{kind}.int8.rtx-sm{sm[0]}{sm[1]}.engine"
    assert read_plan(result.path, read_sidecar(result.path))
    assert result.target.precision == "int8"
    assert result.target.batch == (BatchRange(1, 1, 8) if kind == "darknet" else BatchRange(*[KINDS[kind][1].get("batch", 1)] * 3))
    assert result.manifest.calibration == {"rest": rest, "method": "minmax"}
    assert result.converted == (rest == "float16")
    sidecar = json.loads(result.sidecar.read_text())
    assert "--int8" in sidecar["target"]["rebuild"]


@pytest.mark.slow
def test_the_golden_yolact_resnet50_becomes_a_small_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the float32 one's size and a little: weights are what an engine holds."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(exporter, "_verified", lambda *_: VerificationReport(()))
    weights = write_checkpoint(tmp_path, "yolact_resnet50_0_0.safetensors", keyed_state("yolact_resnet50"))
    path = export_checkpoint(load_checkpoint(weights), tmp_path / "yolact_resnet50.onnx").path
    source = read_source(path)
    view = GraphView(source.model)
    names = calibrated_values(view)
    images = prepare(sample_picture(), source.manifest.input)[None]
    seen = {"images": images, **run(view.model, images, tuple(name for name in names if name != "images"), as_written=False)}
    ranges = {name: Range(min(float(values.min()), 0.0), max(float(values.max()), 0.0)) for name, values in seen.items()}
    del seen
    model = write_tensorrt(view, place_tensorrt(view), ranges)
    check_tensorrt(source.model, model)
    stamp(model, source, {"rest": "float16"})
    quantized = tmp_path / "yolact_resnet50.int8.onnx"
    quantized.write_bytes(model.SerializeToString())
    whole = build_engine(path, tmp_path / "whole.engine", BuildOptions(sm=((8, 9),))).target.size
    for sm in ((8, 6), (8, 9)):
        result = build_engine(quantized, folder=tmp_path, options=BuildOptions("int8", sm=(sm,)))
        assert read_plan(result.path, read_sidecar(result.path))
        assert 0.2 * whole < result.target.size < 0.35 * whole
