"""``yolact-deploy calibrate``, and the engine that is built of what it writes."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.cli.commands import complaint, invoke, ok, run, start
from tests.evaluation.models import Models, tiny_models
from yolact_deploy.cli.calibrate import parse_budget
from yolact_deploy.errors import ConfigError
from yolact_deploy.onnx_file import read_manifest


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return tiny_models(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def annotations(models: Models) -> Path:
    return models.dataset.folder.parent / "annotations.json"


@pytest.mark.slow
def test_the_demo_model_with_no_argument_and_its_engine(tmp_path: Path) -> None:
    """The two commands, typed one after the other."""
    pytest.importorskip("tensorrt_rtx")
    told = ok(run("calibrate", cwd=tmp_path))
    assert "taking the demo model" in told
    for name in ("FP32", "FP16", "INT8 for TensorRT, FP16 between", "INT8 for ONNX Runtime"):
        assert name in told
    report = json.loads((tmp_path / "artifacts/yolact_nano_shapes.calibration.json").read_text())
    rows = {row["name"]: row for row in report["accuracy"]}
    assert rows["FP32"]["mask_ap"] == pytest.approx(51.8, abs=0.3)
    assert {row["pictures"] for row in rows.values()} == {200}
    assert all(abs(row["drop"]) < 1.0 for row in rows.values()), rows
    assert "Next: yolact-deploy build-engine artifacts/yolact_nano_shapes.int8.onnx --int8" in told
    built = run("build-engine", "--int8", "--backend", "tensorrt-rtx", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert "Built INT8 with FP16" in built.stdout
    (sidecar,) = (tmp_path / "artifacts").glob("*.int8.*.engine.json")
    manifest = json.loads(sidecar.read_text())
    assert manifest["target"]["precision"] == "int8"
    assert manifest["calibration"]["target"] == "tensorrt"
    assert manifest["verification"]["mean_relative_difference"].keys() == {"boxes", "scores", "coefficients", "prototypes"}


def test_a_folder_alone(models: Models) -> None:
    told = ok(invoke("calibrate", models.onnx, "--images", models.dataset.folder, "--count", 5, "--method", "mse", "--threads", 1))
    assert "Calibrated with 5 pictures of 12" in told
    assert "ranges by mse" in told
    assert "against what the float model finds, 7 pictures" in " ".join(told.split())
    assert "Warning (few):" in told
    assert read_manifest(Path("artifacts/tiny_1_2.int8.onnx")).calibration["method"] == "mse"
    assert Path("artifacts/tiny_1_2.int8.ort.onnx").is_file()


def test_annotations_json_and_another_name(models: Models, tmp_path: Path) -> None:
    arguments = ("calibrate", models.onnx, "--annotations", annotations(models), "--measured", 4, "-o", tmp_path / "mine.onnx", "--json")
    found = json.loads(ok(invoke(*arguments, "--method", "minmax", "--threads", 1)))
    assert found["pictures"]["count"] == 8
    assert found["pictures"]["measured_against"] == "annotations"
    assert found["files"].keys() == {"mine.onnx", "mine.int8.ort.onnx"}
    assert [row["pictures"] for row in found["accuracy"]] == [4] * 5
    assert any("divided" in note for note in found["notes"])


def test_sensitivity_and_search(models: Models) -> None:
    arguments = ("calibrate", models.onnx, "--images", models.dataset.folder, "--annotations", annotations(models), "--threads", 1)
    told = ok(invoke(*arguments, "--sensitivity", "--max-drop", 50, "--method", "minmax"))
    assert "Drop of mask AP where that alone is quantized" in told
    for module in ("backbone stem", "FPN lateral", "protonet", "head mask"):
        assert module in told
    assert "everything quantized" in told
    assert "taken" in told
    assert "search pictures: 6" in " ".join(told.split())


def test_quiet(models: Models) -> None:
    assert ok(invoke("calibrate", models.onnx, "--images", models.dataset.folder, "--method", "minmax", "-q")) == ""


def test_usage(models: Models, tmp_path: Path) -> None:
    onnx, folder = models.onnx, models.dataset.folder
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, sentence in (
        ((onnx,), "No pictures were named to calibrate with. Name a folder of pictures"),
        ((onnx, "--images", empty), "hold no picture"),
        ((onnx, "--images", tmp_path / "nowhere"), "does not exist"),
        ((onnx, "--images", folder, "--val-images", folder), "were given without their annotations"),
        ((onnx, "--images", folder, "--search-images", folder), "were given without their annotations"),
        ((onnx, "--images", folder, "--budget", "soon"), "The budget is 'soon', a time such as 90s, 10m or 2h was wanted."),
        ((onnx, "--images", folder, "--keep", "neck"), "There is no layer or module 'neck'"),
        ((onnx, "--images", folder, "--method", "percentile", "--percentile", "10"), "The percentile is 10"),
        ((models.weights, "--images", folder), "is no readable ONNX file"),
        ((tmp_path / "none.onnx", "--images", folder), "does not exist"),
    ):
        assert sentence in complaint(invoke("calibrate", *arguments)), arguments
    assert not list(tmp_path.glob("artifacts/*.onnx"))


def test_float16_and_quantized_models_are_refused(models: Models, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    ok(invoke("export", models.weights, "--config", models.config, "--classes", models.classes, "--fp16", "-o", half, "-q"))
    assert "is float16, a float32 graph was wanted" in complaint(invoke("calibrate", half, "--images", models.dataset.folder))
    ok(invoke("calibrate", models.onnx, "--images", models.dataset.folder, "--method", "minmax", "-q"))
    quantized = Path("artifacts/tiny_1_2.int8.onnx")
    assert "is quantized already" in complaint(invoke("calibrate", quantized, "--images", models.dataset.folder))


def test_the_wrong_graph_for_an_engine(models: Models) -> None:
    pytest.importorskip("tensorrt_rtx")
    found = complaint(invoke("build-engine", models.onnx, "--int8", "--backend", "tensorrt-rtx"))
    assert f"Make one: yolact-deploy calibrate {models.onnx}" in found
    assert "Run: yolact-deploy calibrate" in complaint(invoke("build-engine", "--int8", "--backend", "tensorrt-rtx"))
    ok(invoke("calibrate", models.onnx, "--images", models.dataset.folder, "--method", "minmax", "-q"))
    found = complaint(invoke("build-engine", "artifacts/tiny_1_2.int8.ort.onnx", "--int8", "--backend", "tensorrt-rtx"))
    assert "the INT8 graph for ONNX Runtime on a CPU" in found
    assert "tiny_1_2.int8.onnx" in found


def test_inspect_tells_of_it(models: Models) -> None:
    ok(invoke("calibrate", models.onnx, "--images", models.dataset.folder, "--keep", "heads/conf_layer", "--method", "minmax", "-q"))
    told = ok(invoke("inspect", "artifacts/tiny_1_2.int8.onnx"))
    assert "ranges: minmax, of 12 pictures" in told
    assert "in floats: heads/conf_layer" in told
    assert "INT8 for ONNX Runtime: mask AP" in told
    facts = json.loads(ok(invoke("inspect", "artifacts/tiny_1_2.int8.ort.onnx", "--json")))
    assert facts["calibration"]["for"] == "ONNX Runtime on a CPU"
    assert len(facts["measured"]) == 5
    Path("artifacts/tiny_1_2.calibration.json").unlink()
    assert "measured" not in json.loads(ok(invoke("inspect", "artifacts/tiny_1_2.int8.ort.onnx", "--json")))


def test_ctrl_c_keeps_what_is_done(models: Models, tmp_path: Path) -> None:
    process = start("calibrate", models.onnx, "--images", models.dataset.folder, "--method", "minmax", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("artifacts/calibration/inputs-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, (out, err)
    assert "the same command goes on from there" in out
    assert not list(tmp_path.glob("artifacts/*.onnx"))
    assert not list(tmp_path.glob("artifacts/calibration/inputs-*")), "prepared pictures are removed"
    assert "Traceback" not in err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("10m", 600.0), ("2h", 7200.0), ("45", 45.0), ("1.5m", 90.0), ("none", None)])
def test_budgets(text: str, seconds: float | None) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-3m", "10 m", "10d", "nan"])
def test_odd_budgets(text: str) -> None:
    with pytest.raises(ConfigError, match="a time such as 90s"):
        parse_budget(text)
