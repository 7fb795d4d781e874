"""ONNX files that an engine cannot be made from, each told in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.export.artifacts import Artifacts
from yolact_deploy.engines.source import read_source
from yolact_deploy.errors import ConfigError, ModelFileError, VerificationError
from yolact_deploy.manifest import METADATA_KEY


def refused(path: Path, sentence: str, precision: str = "graph") -> None:
    with pytest.raises(ModelFileError, match=sentence):
        read_source(path, precision)


def save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def changed_manifest(model: onnx.ModelProto, **changes: object) -> onnx.ModelProto:
    prop = next(prop for prop in model.metadata_props if prop.key == METADATA_KEY)
    prop.value = json.dumps({**json.loads(prop.value), **changes})
    return model


def test_another_tools_model(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:]))
    refused(save(model, tmp_path), r"has no yolact-deploy manifest \(its outputs are y\): it is an ONNX of another model or tool")


def test_a_manifest_of_another_kind_or_another_graph(artifacts: Artifacts, tmp_path: Path) -> None:
    model = onnx.load(artifacts.onnx())
    refused(save(changed_manifest(model, kind="engine"), tmp_path), "is that of a file of kind engine")
    model = onnx.load(artifacts.onnx())
    model.graph.output[1].name = "probabilities"
    refused(save(model, tmp_path), r"has probabilities float32 \[1, 4092, 81\], its manifest says scores")
    model = onnx.load(artifacts.onnx())
    del model.graph.output[3]
    refused(save(model, tmp_path), "has 4 tensors of 5")


def test_no_file_no_onnx_and_a_mask_iou_net_that_is_missing(artifacts: Artifacts, tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "does not exist")
    (tmp_path / "text.onnx").write_text("hello")
    refused(tmp_path / "text.onnx", "is no readable ONNX file")
    plus = artifacts.export(artifacts.plus)
    alone = Path(shutil.copy(plus.path, tmp_path))
    refused(alone, "needs its mask-IoU net .* beside it, which is missing")
    assert plus.mask_iou_path is not None
    shutil.copy(artifacts.onnx(), tmp_path / plus.mask_iou_path.name)
    refused(alone, "is not the mask-IoU net that .* was exported with")


def with_outside_weights(source: Path, location: str, **entries: str) -> onnx.ModelProto:
    """The first large weight lies in the file `location`, which holds all of it unless `entries` say otherwise."""
    model = onnx.load(source)
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    for key, value in {"location": location, "length": str(len(tensor.raw_data)), **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    return model


def weights(source: Path) -> bytes:
    return max((tensor.raw_data for tensor in onnx.load(source).graph.initializer), key=len)


@pytest.mark.parametrize("location", ["../weights.bin", "/tmp/weights.bin", "a/../../weights.bin", "C:\\weights.bin"])
def test_weights_outside_the_folder(artifacts: Artifacts, tmp_path: Path, location: str) -> None:
    (tmp_path / "weights.bin").write_bytes(weights(artifacts.onnx()))
    (tmp_path / "inside").mkdir()
    refused(save(with_outside_weights(artifacts.onnx(), location), tmp_path / "inside"), "refers to data outside its folder")


def test_a_link_that_leads_outside_the_folder(artifacts: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(weights(artifacts.onnx()))
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "weights.bin").symlink_to("../secret.bin")
    refused(save(with_outside_weights(artifacts.onnx(), "weights.bin"), tmp_path / "inside"), r"outside its folder \(weights.bin\)")


def test_weights_beside_the_file_are_read(artifacts: Artifacts, tmp_path: Path) -> None:
    path = save(with_outside_weights(artifacts.onnx(), "weights.bin"), tmp_path)
    refused(path, r"needs its weights weights.bin beside it, which are missing")
    (tmp_path / "weights.bin").write_bytes(weights(artifacts.onnx())[:100])
    refused(path, r"The weights weights.bin of .* cannot be read")
    (tmp_path / "weights.bin").write_bytes(weights(artifacts.onnx()))
    found, wanted = read_source(path).model.graph.initializer, onnx.load(artifacts.onnx()).graph.initializer
    assert [tensor.name for tensor in found] == [tensor.name for tensor in wanted]
    assert all(np.array_equal(*map(numpy_helper.to_array, pair)) for pair in zip(found, wanted))
    assert not any(tensor.external_data for tensor in found)


def test_float16_that_the_values_do_not_fit(artifacts: Artifacts, tmp_path: Path) -> None:
    model = onnx.load(artifacts.onnx())
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.startswith("backbone") and tensor.name.endswith("weight"))
    values = numpy_helper.to_array(tensor) * np.float32(1e9)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ConfigError, match="float16 ends at 65504"):
        read_source(save(model, tmp_path), "fp16")
    tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1e-6), tensor.name))
    with pytest.raises(VerificationError, match="The float16 graph differs from the float32 one by more than 3e-02"):
        read_source(save(model, tmp_path), "fp16")


def test_precisions(artifacts: Artifacts) -> None:
    whole, half = artifacts.onnx(), artifacts.onnx(fp16=True)
    assert [read_source(whole).precision, read_source(half).precision, read_source(half, "fp16").precision] == ["fp32", "fp16", "fp16"]
    assert read_source(whole, "fp16").converted
    assert not read_source(half, "fp16").converted
    assert read_source(whole).opset == 17


def test_a_graph_with_qdq_is_int8(artifacts: Artifacts, tmp_path: Path) -> None:
    model = onnx.load(artifacts.onnx())
    conv = next(node for node in model.graph.node if node.op_type == "Conv" and node.name.startswith("protonet"))
    scale = [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.int8(0), "zero")]
    model.graph.initializer.extend(scale)
    place = list(model.graph.node).index(conv)
    pair = [
        helper.make_node("QuantizeLinear", [conv.input[0], "scale", "zero"], ["q"], "protonet/Q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], "protonet/DQ"),
    ]
    conv.input[0] = "dq"
    for offset, node in enumerate(pair):
        model.graph.node.insert(place + offset, node)
    path = save(model, tmp_path)
    found = read_source(path, "int8")
    assert found.precision == "int8"
    assert found.manifest.precision["protonet"] == "float32+int8"
    assert found.manifest.precision["backbone"] == "float32"
    with pytest.raises(ConfigError, match=r"--fp16 was asked for, .* is an INT8 graph"):
        read_source(path, "fp16")
