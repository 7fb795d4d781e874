"""ONNX files that are broken, foreign, damaged or hostile: one line that says what is wrong, and a mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.export.artifacts import Artifacts
from yolact_deploy.data import sample_picture
from yolact_deploy.errors import ConfigError, ModelFileError, YolactDeployError
from yolact_deploy.onnx_file import read_onnx
from yolact_deploy.runtime import load


def fault(path: Path, error: type[YolactDeployError] = ModelFileError) -> str:
    """What loading the file, or else detecting with it, raises: one line and a mend."""
    with pytest.raises(error) as caught:
        load(path, providers=["cpu"]).predict(sample_picture(40, 30), channels="rgb")
    assert "\n" not in str(caught.value)
    assert caught.value.mend
    return caught.value.message


def foreign() -> onnx.ModelProto:
    """A small model of somebody else's."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def damaged(artifacts: Artifacts, folder: Path, change: Callable[[dict[str, Any]], object], **options: Any) -> Path:
    """A copy of our own file whose manifest was altered."""
    model = onnx.load(artifacts.onnx(**options))
    fields = json.loads(model.metadata_props[0].value)
    change(fields)
    model.metadata_props[0].value = json.dumps(fields)
    onnx.save(model, folder / "a.onnx")
    return folder / "a.onnx"


def test_missing_folder_and_other_suffixes(tmp_path: Path) -> None:
    assert fault(tmp_path / "no.onnx") == f"The model {tmp_path / 'no.onnx'} does not exist."
    (tmp_path / "a.onnx").mkdir()
    assert fault(tmp_path / "a.onnx") == f"The model {tmp_path / 'a.onnx'} is a folder."
    assert fault(tmp_path / "a.tflite") == f"{tmp_path / 'a.tflite'} ends in .tflite, .onnx, .engine, .pth or .safetensors was wanted."
    assert "ends in nothing" in fault(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00", b"hello, this is text\n", b"\x89PNG\r\n\x1a\n" + b"0" * 500, b"\xff" * 1000])
def test_what_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    message = fault(tmp_path / "a.onnx")
    assert "a.onnx is no readable ONNX file (" in message or "a.onnx is no ONNX model: it holds no graph" in message


def test_a_graph_without_nodes(tmp_path: Path) -> None:
    model = foreign()
    del model.graph.node[:]
    onnx.save(model, tmp_path / "a.onnx")
    assert fault(tmp_path / "a.onnx") == f"{tmp_path / 'a.onnx'} is no ONNX model: it holds no graph."


def test_a_model_of_somebody_else_names_its_outputs(tmp_path: Path) -> None:
    onnx.save(foreign(), tmp_path / "a.onnx")
    assert "has no yolact-deploy manifest (its outputs are y): it is an ONNX of another model or tool" in fault(tmp_path / "a.onnx")


def test_the_mask_iou_net_is_no_model_to_run(artifacts: Artifacts) -> None:
    path = artifacts.export(artifacts.plus).mask_iou_path
    assert path is not None
    assert "has no yolact-deploy manifest (its outputs are mask_ious)" in fault(path)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(artifacts: Artifacts, tmp_path: Path, part: float) -> None:
    content = artifacts.onnx().read_bytes()
    (tmp_path / "a.onnx").write_bytes(content[: int(len(content) * part)])
    assert "a.onnx" in fault(tmp_path / "a.onnx")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 60))
def test_noise_is_refused_or_parsed_but_never_leaks(tmp_path: Path, noise: bytes, place: int) -> None:
    good = foreign().SerializeToString()
    (tmp_path / "noise.onnx").write_bytes(good[:place] + noise + good[place:])
    with pytest.raises(ModelFileError):
        load(tmp_path / "noise.onnx", providers=["cpu"])


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '{"schema": 1}', "[" * 100_000, '{"schema": "new"}'])
def test_a_manifest_that_is_no_manifest(artifacts: Artifacts, tmp_path: Path, text: str) -> None:
    model = onnx.load(artifacts.onnx())
    model.metadata_props[0].value = text
    onnx.save(model, tmp_path / "a.onnx")
    assert fault(tmp_path / "a.onnx").startswith(f"The manifest of {tmp_path / 'a.onnx'} ")


def test_a_newer_schema_says_to_upgrade(artifacts: Artifacts, tmp_path: Path) -> None:
    path = damaged(artifacts, tmp_path, lambda fields: fields.update(schema=2))
    with pytest.raises(ModelFileError, match=r"has schema 2, .* Upgrade: pip install -U yolact-deploy"):
        load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("variant", {"name": "x", "nonsense": 1}),
        ("variant", None),
        ("classes", {"names": ["a"], "category_ids": [1]}),
        ("classes", {"names": ["a"]}),
        ("input", {"size": 128}),
        ("mask_iou", "file"),
        ("mask_iou", {"file": 3, "sha256": "0"}),
        ("mask_iou", {"sha256": "0"}),
        ("precision", []),
        ("versions", 5),
        ("thresholds", {"score": "high"}),
        ("thresholds", []),
        ("postprocess", "everything"),
        ("kind", "toaster"),
        ("inputs", 3),
        ("outputs", [{"name": "boxes"}]),
        ("outputs", [{"name": "boxes", "dtype": "float32", "shape": None}]),
        ("surprise", 1),
    ],
)
def test_a_damaged_manifest(artifacts: Artifacts, tmp_path: Path, name: str, value: Any) -> None:
    path = damaged(artifacts, tmp_path, lambda fields: fields.update({name: value}))
    assert fault(path).startswith(f"The manifest of {path} is damaged")


@pytest.mark.parametrize(
    ("name", "value"), [("size", 128), ("size", 0), ("layout", "grey"), ("channels", "gbr"), ("std", [0, 1, 1]), ("mean", [1, 2])]
)
def test_a_damaged_input_specification(artifacts: Artifacts, tmp_path: Path, name: str, value: Any) -> None:
    path = damaged(artifacts, tmp_path, lambda fields: fields["input"].update({name: value}))
    assert fault(path).startswith(f"The manifest of {path} is damaged")


def test_thresholds_out_of_range(artifacts: Artifacts, tmp_path: Path) -> None:
    path = damaged(artifacts, tmp_path, lambda fields: fields["thresholds"].update(score=7))
    assert "score_threshold is 7.0" in fault(path, ConfigError)


@pytest.mark.parametrize(
    ("place", "change", "wanted"),
    [
        ("inputs", {"name": "pictures"}, "has the tensor images float32 [1, 3, 256, 256], its manifest says pictures float32"),
        ("inputs", {"shape": [1, 3, 128, 128]}, "its manifest says images float32 [1, 3, 128, 128]"),
        ("inputs", {"dtype": "uint8"}, "its manifest says images uint8 [1, 3, 256, 256]"),
        ("inputs", {"shape": ["batch", 3, 256, 256]}, "its manifest says images float32 ['batch', 3, 256, 256]"),
        ("outputs", {"shape": [1, 7, 4]}, "its manifest says boxes float32 [1, 7, 4]"),
    ],
)
def test_tensors_that_are_not_the_manifests(artifacts: Artifacts, tmp_path: Path, place: str, change: dict[str, Any], wanted: str) -> None:
    path = damaged(artifacts, tmp_path, lambda fields: fields[place][0].update(change))
    assert wanted in fault(path)


@pytest.mark.parametrize("count", [0, 3])
def test_a_manifest_that_lists_fewer_tensors(artifacts: Artifacts, tmp_path: Path, count: int) -> None:
    path = damaged(artifacts, tmp_path, lambda fields: fields.update(outputs=fields["outputs"][:count]))
    assert "has the tensor" in fault(path)


def test_a_manifest_of_another_kind_of_graph(artifacts: Artifacts, tmp_path: Path) -> None:
    path = damaged(artifacts, tmp_path, lambda fields: fields.update(postprocess="nms"))
    assert "lacks detections_boxes, detections_coefficients, detections_labels, detections_scores" in fault(path)


def two_classes(fields: dict[str, Any]) -> None:
    fields["variant"]["num_classes"] = 3
    fields["classes"] = {"names": ["a", "b"], "category_ids": [1, 2]}


def test_class_names_that_are_too_few_for_the_scores(artifacts: Artifacts, tmp_path: Path) -> None:
    assert "scores 81 classes, which does not fit its manifest" in fault(damaged(artifacts, tmp_path, two_classes))


def test_class_names_that_are_too_few_for_the_labels(artifacts: Artifacts, tmp_path: Path) -> None:
    path = damaged(artifacts, tmp_path, two_classes, postprocess="nms", batch=1)
    assert "its manifest names 2 classes" in fault(path)


def test_mask_rescoring_without_a_net_for_it(artifacts: Artifacts, tmp_path: Path) -> None:
    path = damaged(artifacts, tmp_path, lambda fields: fields["variant"].update(mask_rescoring=True))
    assert "has no mask-IoU net" in fault(path)


@pytest.mark.parametrize("how", ["missing", "altered", "another", "no onnx", "outside"])
def test_a_mask_iou_net_that_is_missing_or_altered(artifacts: Artifacts, tmp_path: Path, how: str) -> None:
    result = artifacts.export(artifacts.plus)
    assert result.mask_iou_path is not None
    path, beside = tmp_path / "a.onnx", tmp_path / result.mask_iou_path.name
    path.write_bytes(result.path.read_bytes())
    content = result.mask_iou_path.read_bytes()
    if how == "altered":
        beside.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if how == "another":
        beside.write_bytes(artifacts.onnx().read_bytes())
    if how == "no onnx":
        beside.write_bytes(b"")
    if how == "outside":  # a manifest may not point to another folder
        model = onnx.load(path)
        fields = json.loads(model.metadata_props[0].value)
        fields["mask_iou"]["file"] = str(result.mask_iou_path)
        model.metadata_props[0].value = json.dumps(fields)
        onnx.save(model, path)
    wanted = "beside it, which is missing" if how in ("missing", "outside") else "is not the mask-IoU net that a.onnx was exported with"
    assert wanted in fault(path)
    beside.write_bytes(content)
    load(path)


def with_external(where: str, location: str) -> onnx.ModelProto:
    """A model one of whose constants lies in a file."""
    model = foreign()
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    graph = model.graph
    if where == "initializer":
        graph.initializer.append(tensor)
    if where == "sparse initializer":
        graph.sparse_initializer.add().values.CopyFrom(tensor)
    constant = helper.make_node("Constant", [], ["weight"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [])
    if where == "constant":
        graph.node.append(constant)
    if where == "subgraph":
        graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))
    if where == "function":
        model.functions.append(helper.make_function("custom", "F", [], ["weight"], [constant], [helper.make_opsetid("", 17)]))
    return model


@pytest.mark.parametrize("where", ["initializer", "sparse initializer", "constant", "subgraph", "function"])
@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "data/../../secret", "C:\\secret", "..\\secret", "\\\\host\\share"])
def test_data_outside_the_models_folder_is_never_named(tmp_path: Path, where: str, location: str) -> None:
    onnx.save(with_external(where, location), tmp_path / "a.onnx")
    assert f"refers to data outside its folder ({location})" in fault(tmp_path / "a.onnx")


def test_data_inside_the_models_folder_may_be_named(tmp_path: Path) -> None:
    onnx.save(with_external("initializer", "weights/a.bin"), tmp_path / "a.onnx")
    assert len(read_onnx(tmp_path / "a.onnx").graph.initializer) == 1


def test_a_graph_that_onnx_runtime_cannot_load(artifacts: Artifacts, tmp_path: Path) -> None:
    model = onnx.load(artifacts.onnx())
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "a.onnx")
    assert "cannot load" in fault(tmp_path / "a.onnx")


def test_a_graph_that_fails_while_it_runs(artifacts: Artifacts, tmp_path: Path) -> None:
    """It takes the eighth picture of a batch of one, which only running it shows."""
    model = onnx.load(artifacts.onnx())
    nodes = model.graph.node
    reader = next(node for node in nodes if "images" in node.input)
    reader.input[list(reader.input).index("images")] = "eighth"
    model.graph.initializer.append(numpy_helper.from_array(np.array([7], np.int64), "seven"))
    nodes.insert(0, helper.make_node("Gather", ["images", "seven"], ["eighth"], axis=0))
    onnx.save(model, tmp_path / "a.onnx")
    assert "cannot run the model" in fault(tmp_path / "a.onnx")
