"""Fake quantization and the INT8 graph round the same tensors: what the network observes is what runs through the graph's pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.training.test_quantization import MINMAX, VARIANTS, network_of, pictures
from yolact_deploy.calibration.graph import GraphView
from yolact_deploy.calibration.placement import place_tensorrt
from yolact_deploy.classes import numbered_classes
from yolact_deploy.export import export_checkpoint
from yolact_deploy.model import load_checkpoint
from yolact_deploy.model.embedded import save_checkpoint
from yolact_deploy.training.quantization import FakeQuantization


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_int8_graph_has_pairs_in_these_places(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(name)
    save_checkpoint(tmp_path / "a.safetensors", network.state_dict(), network.variant, numbered_classes(4))
    export_checkpoint(load_checkpoint(tmp_path / "a.safetensors"), tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    values = [value for value in place_tensorrt(GraphView(model)).pairs if value != "images"]
    model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    picture = pictures(network, 1)
    wanted = [float(picture.abs().max()), *(float(np.abs(one).max()) for one in session.run(values, {"images": picture.numpy()}))]

    monkeypatch.setattr("yolact_deploy.training.quantization.fake_quantize_weight", lambda weight: weight)
    made = FakeQuantization(network, MINMAX)
    made.observe([picture])
    found = {**made.ranges}
    assert found.pop("proto_net.8") == found["resized@2"], "a ReLU between the two changes nothing"
    assert sorted(found.values()) == pytest.approx(sorted(wanted), rel=1e-3)
