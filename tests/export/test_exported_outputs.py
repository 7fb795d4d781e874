"""The exported file computes what PyTorch computes, at batch sizes that were not traced."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.export.artifacts import Artifacts, run_onnx
from yolact_deploy.data import sample_picture
from yolact_deploy.export.graph import DeployGraph
from yolact_deploy.manifest import InputSpec
from yolact_deploy.model.priors import make_priors
from yolact_deploy.postprocess import crop_probabilities, decode_boxes, select, softmax
from yolact_deploy.preprocess import prepare

HEADS = ("boxes", "scores", "coefficients", "prototypes")


def pictures(count: int, spec: InputSpec) -> np.ndarray:
    return np.stack([prepare(sample_picture(120 + 30 * index, 100, seed=index), spec) for index in range(count)])


def in_torch(artifacts: Artifacts, images: np.ndarray) -> dict[str, np.ndarray]:
    graph = DeployGraph(artifacts.nano.network, InputSpec.of(artifacts.nano.variant)).eval()
    with torch.inference_mode():
        return dict(zip(HEADS, (output.numpy() for output in graph(torch.from_numpy(images)))))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_head_outputs_equal_torchs(artifacts: Artifacts, batch: int) -> None:
    result = artifacts.export(batch="dynamic", opset=17)
    images = pictures(batch, result.manifest.input)
    found, wanted = run_onnx(result.path)(images), in_torch(artifacts, images)
    assert list(found) == list(wanted)
    for name in HEADS:
        assert found[name].shape == wanted[name].shape
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=2e-5 * float(np.abs(wanted[name]).max()), err_msg=name)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_detections_and_masks_follow_from_torchs_head_outputs(artifacts: Artifacts, batch: int) -> None:
    result = artifacts.export(batch="dynamic", postprocess="masks", opset=17)
    images = pictures(batch, result.manifest.input)
    found, heads = run_onnx(result.path)(images), in_torch(artifacts, images)
    for place in range(batch):
        chosen = select(heads["boxes"][place], heads["scores"][place])
        assert (found["detections_labels"][place] == chosen.labels).mean() > 0.9  # neighbours in rank may swap
        np.testing.assert_allclose(found["detections_scores"][place], chosen.scores, rtol=0, atol=1e-6)
        masks = crop_probabilities(found["prototypes"][place], found["detections_coefficients"][place], found["detections_boxes"][place])
        np.testing.assert_allclose(found["detections_masks"][place], masks, rtol=0, atol=1e-5)


def test_the_pictures_of_a_batch_do_not_touch_each_other(artifacts: Artifacts) -> None:
    run = run_onnx(artifacts.onnx(batch="dynamic", postprocess="masks", opset=17))
    images = pictures(3, InputSpec.of(artifacts.nano.variant))
    together, turned = run(images), run(images[::-1])
    for name, values in together.items():
        np.testing.assert_allclose(values, turned[name][::-1], rtol=0, atol=1e-5 * float(np.abs(values).max()), err_msg=name)


def test_boxes_and_scores_follow_from_the_networks_raw_outputs(artifacts: Artifacts) -> None:
    """Decoding and softmax, which the check's reference shares with the graph, against the post-processing's own."""
    images = pictures(2, InputSpec.of(artifacts.nano.variant))
    found = run_onnx(artifacts.onnx(batch="dynamic", opset=17))(images)
    with torch.inference_mode():
        raw = artifacts.nano.network(torch.from_numpy(images))
    for place in range(2):
        boxes = decode_boxes(raw.loc[place].numpy(), make_priors(artifacts.nano.variant))
        np.testing.assert_allclose(found["boxes"][place], boxes, rtol=0, atol=2e-5)
        np.testing.assert_allclose(found["scores"][place], softmax(raw.logits[place].numpy()), rtol=0, atol=2e-5)
