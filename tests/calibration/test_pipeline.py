"""The whole calibration on a tiny model: files, what they say of themselves, resuming, corrections, what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.evaluation.models import Models, tiny_models
from yolact_deploy.calibration import pipeline
from yolact_deploy.calibration.document import report_of
from yolact_deploy.calibration.options import CalibrationOptions, CalibrationResult, artifact_paths
from yolact_deploy.calibration.pipeline import Calibrator
from yolact_deploy.calibration.roles import assign_roles, opened
from yolact_deploy.errors import ConfigError, DatasetError, ModelFileError, OutputError
from yolact_deploy.export.passes import graph_precision
from yolact_deploy.files import sha256_of
from yolact_deploy.onnx_file import read_manifest
from yolact_deploy.runtime import load


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return tiny_models(tmp_path_factory.getbasetemp())


def calibrate(
    models: Models, folder: Path, *, measure: bool = False, searching: bool = False, count: int = 6, seed: int = 0, **options: Any
) -> CalibrationResult:
    calibrator = Calibrator(models.onnx, folder / "calibration", CalibrationOptions(**{"method": "minmax", "threads": 1, **options}))
    roles = assign_roles(models.dataset.folder, models.dataset, None, count=count, measured=6, seed=seed, searching=searching)
    with (
        opened(roles.report if measure else None, calibrator.source, calibrator.folder, threads=1) as report,
        opened(roles.search, calibrator.source, calibrator.folder, threads=1) as search,
    ):
        return calibrator.run(roles.pictures, report=report, search=search, measured=roles.report.records())


def test_both_graphs_and_the_report(models: Models, tmp_path: Path) -> None:
    result = calibrate(models, tmp_path, measure=True)
    assert [path.name for path in (result.tensorrt, result.onnxruntime, result.report)] == [
        "tiny_1_2.int8.onnx",
        "tiny_1_2.int8.ort.onnx",
        "tiny_1_2.calibration.json",
    ]
    document = json.loads(result.report.read_text())
    for path, target in ((result.tensorrt, "tensorrt"), (result.onnxruntime, "onnxruntime")):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert graph_precision(model) == "int8"
        manifest = read_manifest(path)
        assert manifest.calibration["target"] == target
        assert manifest.calibration["pictures"]["count"] == 6
        assert manifest.precision["backbone"] == manifest.precision["protonet"] == manifest.precision["heads"] == "int8"
        assert manifest.precision["decode"] == "float32"
        assert manifest.source["sha256"] == sha256_of(models.onnx)
        assert manifest.source["checkpoint_sha256"] == sha256_of(models.weights)
        assert document["files"][path.name] == sha256_of(path)
        assert report_of(path, sha256_of(path)) == document
        assert len(load(path, threads=1).predict(np.zeros((40, 50, 3), np.uint8), channels="rgb")) >= 0
    rows = {row["name"]: row for row in document["accuracy"]}
    assert list(rows) == [
        "FP32",
        "FP16",
        "INT8 for TensorRT, FP32 between",
        "INT8 for TensorRT, FP16 between",
        "INT8 for ONNX Runtime",
    ]
    assert rows["FP32"]["drop"] == 0
    assert rows["INT8 for TensorRT, FP32 between"]["sha256"] == sha256_of(result.tensorrt)
    assert rows["INT8 for ONNX Runtime"]["sha256"] == sha256_of(result.onnxruntime)
    assert {row["pictures"] for row in rows.values()} == {6}
    assert document["ranges"]["images"]["node"] == "the input"
    assert document["held_bytes"] > 0
    assert "few" in {finding["code"] for finding in document["findings"]}
    assert "evaluation-overlap" in {finding["code"] for finding in document["findings"]}


def test_two_runs_are_equal_and_the_second_is_quick(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = calibrate(models, tmp_path)
    contents = [path.read_bytes() for path in (first.tensorrt, first.onnxruntime)]
    ran: list[int] = []
    monkeypatch.setattr(pipeline.Collector, "run", lambda *_: ran.append(1))
    again = calibrate(models, tmp_path)
    assert [path.read_bytes() for path in (again.tensorrt, again.onnxruntime)] == contents
    assert ran == []
    assert "6 of 6 pictures were run before" in again.notes[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda models, folder: {"count": 4}, "they are of other pictures"),
        (lambda models, folder: {"seed": 3}, "they are of other pictures"),
        (lambda models, folder: next(folder.glob("calibration/*.npz")).write_bytes(b"PK broken") and {}, "gathered anew"),
        (lambda models, folder: {"fresh": True}, ""),
    ],
)
def test_statistics_of_something_else_are_not_taken(
    models: Models, tmp_path: Path, change: Callable[[Models, Path], dict[str, Any]], sentence: str
) -> None:
    calibrate(models, tmp_path)
    options = change(models, tmp_path)
    result = calibrate(models, tmp_path, **options)
    assert not any("run before" in note for note in result.notes)
    assert any(sentence in note for note in result.notes) or not sentence
    alone = tmp_path / "alone"
    wanted = calibrate(models, alone, **options)
    assert result.tensorrt.read_bytes() == wanted.tensorrt.read_bytes()


def test_more_pictures_go_on_from_fewer(models: Models, tmp_path: Path) -> None:
    calibrate(models, tmp_path, count=4)
    result = calibrate(models, tmp_path, count=6)
    assert "4 of 6 pictures were run before" in result.notes[0]
    wanted = calibrate(models, tmp_path / "alone", count=6)
    assert result.tensorrt.read_bytes() == wanted.tensorrt.read_bytes()


def test_an_interrupted_run_goes_on(models: Models, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if done == 3 and "float network" in what:
            raise KeyboardInterrupt

    roles = assign_roles(models.dataset.folder, None, None, count=6, measured=6, seed=0, searching=False)
    options = CalibrationOptions(method="minmax", threads=1)
    with pytest.raises(KeyboardInterrupt):
        Calibrator(models.onnx, tmp_path / "calibration", options, interrupt).run(roles.pictures)
    assert not (tmp_path / "tiny_1_2.int8.onnx").exists()
    result = calibrate(models, tmp_path)
    assert "3 of 6 pictures were run before" in result.notes[0]
    assert result.tensorrt.read_bytes() == calibrate(models, tmp_path / "alone").tensorrt.read_bytes()


def test_kept_layers_stay_in_floats(models: Models, tmp_path: Path) -> None:
    result = calibrate(models, tmp_path, keep=("protonet", "heads/mask_layer"))
    assert {name.split("/")[0] for name in result.kept} == {"protonet", "heads"}
    assert "heads/mask_layer" in result.kept
    for path in (result.tensorrt, result.onnxruntime):
        manifest = read_manifest(path)
        assert manifest.calibration["kept"] == list(result.kept)
        assert manifest.precision["protonet"] == "float32"
        assert manifest.precision["heads"] == "float32+int8"
    with pytest.raises(ConfigError, match=r"no layer or module 'neck'; modules are backbone stem, backbone stage 1"):
        calibrate(models, tmp_path, keep=("neck",))


def test_corrections_are_switches(models: Models, tmp_path: Path) -> None:
    """Each alters the graph, says so, and the float model stays what it was."""
    before = models.onnx.read_bytes()
    plain = calibrate(models, tmp_path / "plain")
    equalized = calibrate(models, tmp_path / "equalized", equalization=True)
    corrected = calibrate(models, tmp_path / "corrected", bias_correction=True)
    contents = {path.tensorrt.read_bytes() for path in (plain, equalized, corrected)}
    assert len(contents) == 3
    assert json.loads(equalized.report.read_text())["corrections"] == ["equalization"]
    assert read_manifest(corrected.tensorrt).calibration["corrections"] == ["bias_correction"]
    assert any("Equalized" in note for note in equalized.notes)
    assert len(list((tmp_path / "equalized/calibration").glob("*.npz"))) == 2
    assert models.onnx.read_bytes() == before


def test_methods_give_other_ranges(models: Models, tmp_path: Path) -> None:
    kept = {}
    for method in ("minmax", "percentile", "entropy", "mse"):
        result = calibrate(models, tmp_path, method=method, percentile=99.0)
        ranges = result.document["ranges"]
        kept[method] = [found["kept"] for found in ranges.values()]
        for found in ranges.values():
            assert found["low"] <= found["kept"][0] <= 0 <= found["kept"][1] <= found["high"] or found["low"] >= 0 or found["high"] <= 0
    assert len({json.dumps(found) for found in kept.values()}) == 4


def test_a_search_is_told(models: Models, tmp_path: Path) -> None:
    result = calibrate(models, tmp_path, measure=True, searching=True, max_drop=100.0, sensitivity=True, budget=None)
    assert result.plan is not None
    assert result.plan.met
    modules = [row for row in result.plan.rows if row.kind == "module"]
    assert len(modules) == 13
    document = json.loads(result.report.read_text())
    assert [row["name"] for row in document["rows"] if row["kind"] == "module"] == [row.name for row in modules]
    assert all(len(row["sha256"]) == 64 and row["pictures"] == 6 for row in document["rows"])
    stored = read_manifest(result.tensorrt).calibration["search"]
    assert [row["name"] for row in stored["modules"]] == [row.name for row in modules]
    assert stored["reference"]["pictures"] == 6


def test_floats_between_as_asked(models: Models, tmp_path: Path) -> None:
    result = calibrate(models, tmp_path, measure=True, rest="float32")
    assert [row.name for row in result.accuracy] == ["FP32", "FP16", "INT8 for TensorRT, FP32 between", "INT8 for ONNX Runtime"]
    assert read_manifest(result.tensorrt).calibration["rest"] == "float32"


def test_models_that_are_quantized_already(models: Models, tmp_path: Path) -> None:
    result = calibrate(models, tmp_path)
    for path in (result.tensorrt, result.onnxruntime):
        with pytest.raises(ConfigError, match="is quantized already"):
            Calibrator(path, tmp_path / "calibration", CalibrationOptions())


def test_foreign_files_are_not_replaced(models: Models, tmp_path: Path) -> None:
    for name in ("tiny_1_2.int8.onnx", "tiny_1_2.int8.ort.onnx", "tiny_1_2.calibration.json"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(OutputError, match="exists"):
            calibrate(models, folder)
        assert (folder / name).read_text() == "mine"
        calibrate(models, folder, force=True)
        assert (folder / name).read_bytes() != b"mine"


def test_names_of_the_files(tmp_path: Path) -> None:
    assert [path.name for path in artifact_paths(Path("a/b.onnx"), None, tmp_path)] == [
        "b.int8.onnx",
        "b.int8.ort.onnx",
        "b.calibration.json",
    ]
    assert artifact_paths(Path("b.onnx"), tmp_path / "c.onnx", Path())[1] == tmp_path / "c.int8.ort.onnx"
    assert artifact_paths(Path("b.onnx"), tmp_path / "c.onnx", Path())[0] == tmp_path / "c.onnx"
    with pytest.raises(ConfigError, match=r"ends in \.engine"):
        artifact_paths(Path("b.onnx"), Path("c.engine"), tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "guess"}, "no method 'guess'"),
        ({"max_drop": -1.0}, "allowed drop is -1"),
        ({"max_drop": float("nan")}, "allowed drop is nan"),
        ({"budget": 0.0}, "budget is 0 seconds"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        CalibrationOptions(**options)


def test_a_percentile_out_of_range(models: Models, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="percentile is 101"):
        calibrate(models, tmp_path, method="percentile", percentile=101.0)


def test_unreadable_pictures_among_many(models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for place in range(5):
        Image.fromarray(np.full((40, 50, 3), 40 * place, np.uint8)).save(folder / f"{place}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    calibrator = Calibrator(models.onnx, tmp_path / "calibration", CalibrationOptions(method="minmax", threads=1))
    roles = assign_roles(folder, None, None, count=6, measured=2, seed=0, searching=False)
    result = calibrator.run(roles.pictures)
    assert [name for name, _ in result.skipped] == ["broken.png"]
    assert result.document["pictures"]["count"] == 5
    for path in folder.glob("?.png"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="None of the 6 pictures"):
        Calibrator(models.onnx, tmp_path / "other", CalibrationOptions()).run(
            assign_roles(folder, None, None, count=6, measured=2, seed=0, searching=False).pictures
        )


def test_a_model_without_its_manifest(tmp_path: Path, models: Models) -> None:
    model = onnx.load(models.onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(ModelFileError, match="has no yolact-deploy manifest"):
        Calibrator(tmp_path / "bare.onnx", tmp_path, CalibrationOptions())
