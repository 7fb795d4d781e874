"""ModelOpt as the quantizer: what it is asked for, what becomes of its answer, and that it fails and ends without a trace.

A stand-in answers, in a process as the real one does; the last test asks the real one where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.calibration.graphs import KINDS, export_unverified, exported, images_of, run, view_of
from tests.cli.commands import complaint, invoke, ok
from tests.evaluation.models import Models, tiny_models
from tests.helpers import fake_modelopt
from tests.helpers.tiny import tiny_variant
from yolact_deploy.calibration import modelopt, modelopt_process, pipeline, ranges
from yolact_deploy.calibration.graph import GraphView
from yolact_deploy.calibration.modelopt import Opinion, quantize_with_modelopt, read_opinion
from yolact_deploy.calibration.options import CalibrationOptions, CalibrationResult
from yolact_deploy.calibration.pipeline import Calibrator
from yolact_deploy.calibration.roles import assign_roles, opened
from yolact_deploy.engines.conversion import int8_with_float16
from yolact_deploy.errors import ConfigError, MissingDependencyError, ModelFileError, PictureError
from yolact_deploy.onnx_file import read_manifest
from yolact_deploy.pictures import read_picture
from yolact_deploy.preprocess import prepare


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return tiny_models(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = [folder / f"{place}.png" for place in range(3)]
    for place, path in enumerate(paths):
        Image.fromarray(generator.integers(0, 80 * (place + 1), (50, 40, 3), np.uint8)).save(path)
    return paths


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_folder: Path) -> Callable[[], dict[str, Any]]:
    """The stand-in is installed, and temporary files go to ``tmp_path/temporary``; calling it tells what ModelOpt was asked for."""
    exported(run_folder, "resnet")  # now: an export prints, and leaves temporary files
    monkeypatch.syspath_prepend(fake_modelopt.installed(tmp_path))
    monkeypatch.setenv(fake_modelopt.RECORD, str(tmp_path / "record.json"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(modelopt, "modelopt_version", lambda: "0.1")
    return lambda: json.loads((tmp_path / "record.json").read_text())


def ask(path: Path, pictures: list[Path], method: str = "minmax", **options: Any) -> Opinion:
    return quantize_with_modelopt(view_of(path), read_manifest(path).input, pictures, method, **options)


def quantized_of(path: Path) -> onnx.ModelProto:
    """What the stand-in makes of a graph where nothing is excluded but what is not the network."""
    view = view_of(path)
    return fake_modelopt._with_pairs(onnx.load(path), [f"{re.escape(name)}$" for name in modelopt._excluded(view, ())], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_its_decisions_in_our_graph(asked: Callable[[], Any], run_folder: Path, pictures: list[Path], kind: str) -> None:
    """Names, opset, inputs and outputs are the float graph's, and it computes what ModelOpt's graph computes."""
    path = exported(run_folder, kind)
    view, before = view_of(path), path.read_bytes()
    opinion = ask(path, pictures)
    onnx.checker.check_model(opinion.model, full_check=True)
    assert opinion.left == ()
    assert opinion.model.opset_import == view.model.opset_import
    assert (opinion.model.graph.input, opinion.model.graph.output) == (view.model.graph.input, view.model.graph.output)
    added = ("QuantizeLinear", "DequantizeLinear")
    assert [node.name for node in opinion.model.graph.node if node.op_type not in added] == [node.name for node in view.nodes]
    assert {found.scale for found in opinion.ranges.values()} == {fake_modelopt.SCALE}
    images = images_of(view)
    found, wanted = run(opinion.model, images), run(quantized_of(path), images)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
    onnx.checker.check_model(int8_with_float16(opinion.model), full_check=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("method", "theirs"), [("minmax", "max"), ("entropy", "entropy")])
def test_what_it_is_asked_for(
    asked: Callable[[], Any], run_folder: Path, pictures: list[Path], method: str, theirs: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = exported(run_folder, "resnet")
    view, told = view_of(path), list[tuple[int, int]]()
    opinion = ask(path, pictures, method, kept=("heads/bbox_layer",), progress=lambda done, total: told.append((done, total)))
    found = asked()
    assert found["quantize_mode"] == "int8"
    assert found["calibration_method"] == theirs
    assert found["calibration_eps"] == ["cpu"]
    assert found["high_precision_dtype"] == "fp32"
    excluded = [node.name for node in view.nodes if any(re.match(pattern, node.name) for pattern in found["exclude"])]
    expected = [node.name for place, node in enumerate(view.nodes) if "bbox_layer" in node.name or not view.in_network(place)]
    assert excluded == expected, "each pattern matches its node alone"
    assert opinion.left == ("heads/bbox_layer",)
    spec = read_manifest(path).input
    means = [float(prepare(read_picture(picture), spec)[None].mean()) for picture in pictures]
    assert [batch["images"] for batch in found["batches"]] == [[[1, 3, spec.size, spec.size], "float32", mean] for mean in means]
    assert found["first"] == means[0]
    assert told[-1] == (3, 3)
    assert capfd.readouterr() == ("", "")
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


def test_batches_are_filled_up(run_folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    spec = read_manifest(exported(run_folder, "plus")).input
    job = modelopt_process.Job("max", ("a",), "images", 2, tuple(map(str, pictures)), spec)
    job.save(tmp_path)
    assert modelopt_process.Job.load(tmp_path) == job
    reader = modelopt_process.PictureReader(job, tmp_path / "done")
    batches = list(iter(reader.get_next, None))
    assert [batch["images"].shape for batch in batches] == [(2, 3, spec.size, spec.size)] * 2
    np.testing.assert_array_equal(batches[1]["images"][0], batches[1]["images"][1])
    assert (tmp_path / "done").stat().st_size == 2
    reader.rewind()
    np.testing.assert_array_equal(reader.get_next()["images"], reader.get_first()["images"])


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        ("raise", ModelFileError, "ModelOpt 0.1 cannot quantize the graph: ValueError: the graph is too odd Take --quantizer own."),
        ("import", MissingDependencyError, 'needs onnx_graphsurgeon .*Run: pip install "yolact-deploy\\[modelopt\\]"'),
        ("exit", ModelFileError, "its process ended with code 3: terminate called"),
        ("kill", ModelFileError, "ended with code -9"),
        ("nothing written", ModelFileError, "ended with code 0"),
        ("asymmetric", ModelFileError, "is not symmetric int8"),
    ],
)
def test_its_failures(
    asked: Callable[[], Any],
    run_folder: Path,
    pictures: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault: str,
    error: type[Exception],
    sentence: str,
) -> None:
    monkeypatch.setenv(fake_modelopt.FAULT, fault)
    with pytest.raises(error, match=sentence) as caught:
        ask(exported(run_folder, "resnet"), pictures)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


def test_a_picture_that_is_gone(asked: Callable[[], Any], run_folder: Path, pictures: list[Path]) -> None:
    with pytest.raises(PictureError, match=r"gone\.png does not exist"):
        ask(exported(run_folder, "resnet"), [*pictures, pictures[0].with_name("gone.png")])


def test_ctrl_c_ends_it(asked: Callable[[], Any], run_folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fake_modelopt.FAULT, "sleep")
    record = Path(os.environ[fake_modelopt.RECORD])

    def interrupt(done: int, total: int) -> None:
        if record.exists() and record.stat().st_size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(exported(run_folder, "resnet"), pictures, progress=interrupt)
    if os.name != "nt":
        with pytest.raises(ProcessLookupError):
            os.kill(asked()["pid"], 0)
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


def test_graphs_that_are_not_ours_any_more(run_folder: Path) -> None:
    path = exported(run_folder, "resnet")
    view, renamed = view_of(path), quantized_of(path)
    next(node for node in renamed.graph.node if node.op_type == "Conv").name = "other"
    with pytest.raises(ModelFileError, match="is not in ModelOpt's graph any more"):
        read_opinion(view, renamed)
    with pytest.raises(ModelFileError, match="quantized no convolution"):
        read_opinion(view, onnx.load(path))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "percentile"}, "ModelOpt has no method 'percentile', it has minmax and entropy"),
        ({"method": "mse"}, "ModelOpt has no method 'mse'"),
        ({"max_drop": 0.5}, "--max-drop was asked for with --quantizer modelopt"),
        ({"sensitivity": True}, "--sensitivity was asked for with --quantizer modelopt"),
        ({"bias_correction": True}, "--bias-correction was asked for with --quantizer modelopt"),
        ({"quantizer": "guess"}, "no quantizer 'guess'"),
    ],
)
def test_what_it_does_not_have(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        CalibrationOptions(**{"quantizer": "modelopt", "method": "minmax", **options})


def test_it_is_not_installed(models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "modelopt", None)
    monkeypatch.chdir(tmp_path)
    arguments = ("calibrate", models.onnx, "--images", models.dataset.folder, "--quantizer", "modelopt")
    told = complaint(invoke(*arguments))
    assert "--quantizer modelopt needs nvidia-modelopt[onnx], which is not installed." in told
    assert 'pip install "yolact-deploy[modelopt]"' in told
    assert "which has no search" in complaint(invoke(*arguments, "--max-drop", 1))
    assert not list(tmp_path.rglob("*.npz")), "it is told before the network runs"


def test_the_command(models: Models, asked: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("calibrate", models.onnx, "--images", models.dataset.folder, "--count", 5, "--quantizer", "modelopt")
    assert "compare it with --method minmax" in ok(invoke(*arguments, "--method", "entropy"))
    told = ok(invoke(*arguments))
    assert "ranges by minmax" in told, "the method that both have"
    assert "ModelOpt 0.1 chose pairs and ranges of the graph for TensorRT." in told
    assert "compare it with" not in told
    assert "INT8 for TensorRT by --quantizer own" in told
    assert "quantizer: modelopt 0.1" in ok(invoke("inspect", "artifacts/tiny_1_2.int8.onnx"))
    assert "quantizer: own" in ok(invoke("inspect", "artifacts/tiny_1_2.int8.ort.onnx"))


def calibrate(models: Models, folder: Path, **options: Any) -> CalibrationResult:
    calibrator = Calibrator(models.onnx, folder / "calibration", CalibrationOptions(**{"method": "minmax", "threads": 1, **options}))
    roles = assign_roles(models.dataset.folder, models.dataset, None, count=6, measured=6, seed=0, searching=False)
    with opened(roles.report, calibrator.source, calibrator.folder, threads=1) as report:
        return calibrator.run(roles.pictures, report=report)


def test_files_and_what_they_say(models: Models, asked: Callable[[], Any], tmp_path: Path) -> None:
    own = calibrate(models, tmp_path / "own")
    other = calibrate(models, tmp_path / "other", quantizer="modelopt", keep=("protonet",))
    assert len(asked()["batches"]) == 6
    document = json.loads(other.report.read_text())
    assert document["quantizers"] == {"tiny_1_2.int8.onnx": "modelopt 0.1", "tiny_1_2.int8.ort.onnx": "own"}
    assert set(json.loads(own.report.read_text())["quantizers"].values()) == {"own"}
    theirs, ours = (read_manifest(path).calibration for path in (other.tensorrt, other.onnxruntime))
    assert (theirs["quantizer"], ours["quantizer"]) == ("modelopt 0.1", "own")
    assert theirs["kept"] == ours["kept"] == list(other.kept)
    assert theirs["ranges_sha256"] != ours["ranges_sha256"]
    assert ours["ranges_sha256"] == document["ranges_sha256"]
    assert read_manifest(other.tensorrt).precision["protonet"] == "float32"
    largest = 127 * fake_modelopt.SCALE
    assert document["ranges"]["images"]["modelopt"] == [-largest, largest]
    rows = {row.name: row.score for row in other.accuracy}
    last = "INT8 for TensorRT by --quantizer own, FP32 between"
    assert list(rows)[-1] == last
    assert rows[last].sha256 != rows["INT8 for TensorRT, FP32 between"].sha256
    assert last not in {row.name for row in own.accuracy}
    assert "findings" in document
    assert document["seconds"]["running ModelOpt"] > 0


def test_channels_equalized_first(models: Models, asked: Callable[[], Any], tmp_path: Path) -> None:
    plain = calibrate(models, tmp_path / "plain", quantizer="modelopt")
    equalized = calibrate(models, tmp_path / "equalized", quantizer="modelopt", equalization=True)
    assert plain.tensorrt.read_bytes() != equalized.tensorrt.read_bytes()


def test_an_onnxruntime_that_rounds_wrongly(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ModelOpt's environment has one: what it would measure says nothing of TensorRT."""
    monkeypatch.setattr(pipeline, "rounds_float16", lambda: False)
    result = calibrate(models, tmp_path)
    assert [row.name for row in result.accuracy] == ["FP32", "FP16", "INT8 for TensorRT, FP32 between", "INT8 for ONNX Runtime"]
    assert any("rounds float16 wrongly" in note for note in result.notes)


def exact(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method"), [("resnet", "minmax"), ("darknet", "entropy"), ("plus", "minmax")])
def test_the_real_one(tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, kind: str, method: str) -> None:
    """It takes these arguments; with its scales as they are, our graph computes to the bit what its own computes."""
    if importlib.util.find_spec("modelopt") is None:
        pytest.skip('nvidia-modelopt is not installed: pip install "yolact-deploy[modelopt]", in an environment of its own')
    theirs: list[onnx.ModelProto] = []

    def keeping(view: GraphView, quantized: onnx.ModelProto) -> Opinion:
        theirs.append(quantized)
        return read_opinion(view, quantized)

    monkeypatch.setattr(modelopt, "read_opinion", keeping)
    monkeypatch.setattr(modelopt, "float16_above", exact)
    monkeypatch.setattr(ranges.Range, "scale", property(lambda found: found.high / 127))
    fields, options = KINDS[kind]
    path = export_unverified(tiny_variant(**fields), tmp_path / "model.onnx", **options, opset=18)  # the onnx that it wants makes no 17
    opinion = ask(path, pictures, method)
    onnx.checker.check_model(opinion.model, full_check=True)
    assert len(opinion.left) < len(view_of(path).layers) / 4, opinion.left
    images = images_of(view_of(path))
    found, wanted = run(opinion.model, images), run(theirs[0], images)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
