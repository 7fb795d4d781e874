"""The check after writing: it finds a wrong file, and a wrong file is never kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.export.artifacts import Artifacts
from yolact_deploy.data import sample_picture
from yolact_deploy.errors import ConfigError, ModelFileError, OutputError, VerificationError
from yolact_deploy.export import ExportOptions, ExportResult, VerificationReport, export_checkpoint, exporter, graph
from yolact_deploy.export.verification import Comparison, verify
from yolact_deploy.matching import FLOAT32
from yolact_deploy.model import Checkpoint, load_checkpoint

Change = Callable[[np.ndarray], np.ndarray]


def altered(model: onnx.ModelProto, ending: str, change: Change) -> onnx.ModelProto:
    """The same graph with one weight changed."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name.endswith(ending))
    values = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), tensor.name))
    return model


def checked(artifacts: Artifacts, result: ExportResult, path: Path) -> VerificationReport:
    return verify(path, artifacts.nano, result.manifest, {"picture": sample_picture()}, FLOAT32, 1)


def shifted(values: np.ndarray) -> np.ndarray:
    return values + 0.01


def swapped(values: np.ndarray) -> np.ndarray:
    values[[5, 6]] = values[[6, 5]]
    return values


def not_a_number(values: np.ndarray) -> np.ndarray:
    values.flat[0] = np.nan
    return values


@pytest.mark.parametrize(
    ("ending", "change", "output"),
    [
        ("conf_layer.bias", shifted, None),  # a softmax does not see it
        ("conf_layer.bias", swapped, "scores"),
        ("bbox_layer.bias", shifted, "boxes"),
        ("mask_layer.bias", shifted, "coefficients"),
        ("proto_net.10.bias", shifted, "prototypes"),
        ("proto_net.10.bias", not_a_number, "prototypes"),
        ("backbone.conv1.weight", not_a_number, "boxes"),
    ],
)
def test_a_changed_weight_is_found_in_the_output_it_feeds(
    artifacts: Artifacts, tmp_path: Path, ending: str, change: Change, output: str | None
) -> None:
    result = artifacts.export()
    onnx.save(altered(onnx.load(result.path), ending, change), tmp_path / "a.onnx")
    report = checked(artifacts, result, tmp_path / "a.onnx")
    assert report.passed == (output is None)
    if output is not None:
        assert output in {row.output for row in report.outputs if not row.passed}


@pytest.mark.parametrize("postprocess", ["nms", "masks"])
def test_with_nms_inside_the_detections_are_compared(artifacts: Artifacts, tmp_path: Path, postprocess: str) -> None:
    result = artifacts.export(postprocess=postprocess)
    assert checked(artifacts, result, result.path).passed
    onnx.save(altered(onnx.load(result.path), "conf_layer.bias", np.flip), tmp_path / "a.onnx")
    report = checked(artifacts, result, tmp_path / "a.onnx")
    assert not report.passed
    assert all(row.passed for row in report.outputs)
    assert report.detections["picture"].unexplained


def test_a_report_sums_up_what_was_found(artifacts: Artifacts) -> None:
    report = artifacts.export().report
    assert {row.output for row in report.outputs} == {"boxes", "scores", "coefficients", "prototypes"}
    assert {row.case for row in report.outputs} == {"picture", "noise"}
    summary = report.summary()
    assert set(summary["largest_relative_difference"]) == {"boxes", "scores", "coefficients", "prototypes"}
    assert max(summary["largest_relative_difference"].values()) < 1e-4
    assert summary["detections"]["picture"]["partners"] > 0


def test_a_difference_that_is_not_a_number_does_not_pass() -> None:
    assert Comparison("a", "boxes", 0.0, 1e-4, 1e-4).passed
    assert not Comparison("a", "boxes", 0.0, 1.1e-4, 1e-4).passed
    assert not Comparison("a", "boxes", float("nan"), float("nan"), 1e-4).passed


def test_a_file_that_onnx_runtime_refuses_is_one_sentence(artifacts: Artifacts, tmp_path: Path) -> None:
    result = artifacts.export()
    model = onnx.load(result.path)
    model.graph.node[3].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ModelFileError, match=r"ONNX Runtime cannot load .*a\.onnx") as caught:
        checked(artifacts, result, tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that damages the graph."""
    convert = exporter.convert_opset
    monkeypatch.setattr(exporter, "convert_opset", lambda model, opset: altered(convert(model, opset), "mask_layer.bias", shifted))


@pytest.mark.usefixtures("wrong")
def test_a_wrong_file_is_not_kept(artifacts: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"differs from PyTorch: coefficients on picture \d\.\d\de-\d\d > 1e-04") as caught:
        export_checkpoint(artifacts.nano, tmp_path / "a.onnx")
    assert caught.value.exit_code == 1
    assert not caught.value.report.passed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("wrong")
def test_a_wrong_file_does_not_replace_an_earlier_one(artifacts: Artifacts, tmp_path: Path) -> None:
    target = tmp_path / "a.onnx"
    target.write_bytes(artifacts.onnx().read_bytes())
    with pytest.raises(VerificationError):
        export_checkpoint(artifacts.nano, target)
    assert target.read_bytes() == artifacts.onnx().read_bytes()
    assert list(tmp_path.iterdir()) == [target]


def test_its_own_output_is_replaced_and_nobody_elses(artifacts: Artifacts, tmp_path: Path) -> None:
    target = tmp_path / "a.onnx"
    target.write_bytes(artifacts.onnx().read_bytes() + b"")
    result = export_checkpoint(artifacts.nano, target, ExportOptions(batch=2))
    assert result.manifest.inputs[0].shape[0] == 2
    target.write_bytes(b"mine")
    steps: list[str] = []
    with pytest.raises(OutputError, match="was not written by this command"):
        export_checkpoint(artifacts.nano, target, progress=steps.append)
    assert steps == []
    assert target.read_bytes() == b"mine"
    export_checkpoint(artifacts.nano, target, force=True, progress=steps.append)
    assert steps == ["tracing", "graph passes", "writing", "checking against PyTorch"]
    assert len(target.read_bytes()) > 1_000_000


def overflowing(artifacts: Artifacts) -> Checkpoint:
    checkpoint = load_checkpoint(artifacts.weights)
    checkpoint.network.state_dict()["prediction_layers.0.bbox_layer.weight"].view(-1)[7] = 70_000
    return checkpoint


def test_a_weight_that_float16_cannot_hold_is_refused_by_name(artifacts: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The weight prediction_layers\.0\.bbox_layer\.weight reaches 7e\+04, float16 ends at 65504"):
        export_checkpoint(overflowing(artifacts), tmp_path / "a.onnx", ExportOptions(fp16=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "A batch of 0 was asked for"),
        ({"batch": 1025}, "A batch of 1025 was asked for"),
        ({"opset": 16}, "Opset 16 was asked for, 17 to 20 are supported"),
        ({"opset": 21}, "Opset 21 was asked for, 17 to 20 are supported"),
        ({"fp16_io": True}, "--io fp16 was asked for without --fp16"),
        ({"channels": "bgr"}, "Float input is always RGB, BGR was asked for"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ExportOptions(**options)
    assert caught.value.mend


@pytest.mark.parametrize("layout", ["float", "raw"])
def test_a_fault_of_the_exported_modules_themselves_is_found(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """The reference decodes and normalises by itself, so that a wrong module in the graph cannot agree with itself."""
    module = graph.Decode if layout == "float" else graph.RawInput
    right = module.forward
    monkeypatch.setattr(module, "forward", lambda self, x: right(self, x) + 0.05)
    with pytest.raises(VerificationError, match="boxes on picture"):
        export_checkpoint(artifacts.nano, tmp_path / "wrong.onnx", ExportOptions(layout=layout))
    assert not list(tmp_path.iterdir())
