"""YOLACT++: deformable convolutions in standard operators, the mask-IoU net beside the file or inside the graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.export.artifacts import Artifacts, run_onnx
from yolact_deploy.data import sample_picture
from yolact_deploy.errors import VerificationError
from yolact_deploy.export import export_checkpoint, maskiou
from yolact_deploy.export.maskiou import MASK_IOU_KEY
from yolact_deploy.files import sha256_of
from yolact_deploy.postprocess import crop_probabilities
from yolact_deploy.preprocess import prepare


def test_deformable_convolutions_become_grid_samples(artifacts: Artifacts) -> None:
    model = onnx.load(artifacts.onnx(artifacts.plus))
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("GridSample") == 3
    assert "DeformConv" not in operators
    assert "Split" not in operators


@pytest.mark.parametrize("postprocess", ["none", "nms"])
def test_the_mask_iou_net_is_a_file_of_its_own_named_in_the_manifest(artifacts: Artifacts, postprocess: str) -> None:
    result = artifacts.export(artifacts.plus, postprocess=postprocess)
    beside = result.mask_iou_path
    assert beside is not None
    assert beside.name == f"{result.path.stem}.maskiou.onnx"
    assert result.manifest.mask_iou == {"file": beside.name, "sha256": sha256_of(beside)}
    model = onnx.load(beside)
    onnx.checker.check_model(model, full_check=True)
    about = json.loads({prop.key: prop.value for prop in model.metadata_props}[MASK_IOU_KEY])
    assert about == {"schema": 1, "variant": "tiny_plus", "source": artifacts.plus.sha256}
    assert [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 1, 64, 64]


@pytest.mark.parametrize("count", [1, 7])
def test_the_mask_iou_net_computes_what_torch_computes(artifacts: Artifacts, count: int) -> None:
    import onnxruntime

    path = artifacts.export(artifacts.plus).mask_iou_path
    masks = np.random.default_rng(count).random((count, 1, 64, 64), np.float32)
    found = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["mask_ious"], {"masks": masks})[0]
    with torch.inference_mode():
        wanted = artifacts.plus.network.maskiou_net(torch.from_numpy(masks)).numpy()
    assert found.shape == (count, 5)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_mask_scores_in_the_graph_equal_the_hosts(artifacts: Artifacts, batch: int) -> None:
    result = artifacts.export(artifacts.plus, postprocess="masks", batch="dynamic")
    assert result.mask_iou_path is None
    assert not result.manifest.mask_iou
    assert result.manifest.outputs[-1].name == "detections_mask_scores"
    images = np.stack([prepare(sample_picture(200, 150, seed=seed), result.manifest.input) for seed in range(batch)])
    found = run_onnx(result.path)(images)
    rescored = 0
    for place in range(batch):
        labels, scores = found["detections_labels"][place], found["detections_scores"][place]
        present = labels >= 0
        masks = crop_probabilities(
            found["prototypes"][place], found["detections_coefficients"][place][present], found["detections_boxes"][place][present]
        )
        with torch.inference_mode():
            ious = artifacts.plus.network.maskiou_net(torch.from_numpy(masks[:, None])).numpy()
        wanted = scores[present] * ious[np.arange(present.sum()), labels[present]]
        np.testing.assert_allclose(found["detections_mask_scores"][place][present], wanted, rtol=0, atol=1e-5)
        assert not found["detections_mask_scores"][place][~present].any()
        rescored += int((wanted > 0).sum())
    assert rescored > 0


def test_float16_keeps_sampling_positions_in_float32(artifacts: Artifacts) -> None:
    result = artifacts.export(artifacts.plus, fp16=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(result.path), strict_mode=True, data_prop=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    samplers = [node for node in model.graph.node if node.op_type == "GridSample"]
    assert len(samplers) == 3
    for node in samplers:
        assert {kinds[name] for name in node.input} == {onnx.TensorProto.FLOAT}
    assert result.manifest.precision["backbone"] == "float16+float32"
    assert result.report.passed


def test_a_mask_iou_net_that_differs_leaves_neither_file(artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
        return model

    monkeypatch.setattr(maskiou, "convert_opset", shifted)
    with pytest.raises(VerificationError, match="The mask-IoU net in ONNX differs from PyTorch by"):
        export_checkpoint(artifacts.plus, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
