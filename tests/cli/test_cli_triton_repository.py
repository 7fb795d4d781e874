"""``triton-repository``: what it prints and writes, whole configurations, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import complaint, invoke, ok, run
from tests.export.artifacts import Artifacts
from tests.helpers import fake_tensorrt
from tests.helpers.fake_engines import write_engine
from tests.house.tree import ROOT
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.serving.config import check_config, parse_config

GOLDEN = ROOT / "tests" / "cli" / "triton_golden"


def test_what_it_prints(artifacts: Artifacts, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    said = ok(invoke("triton-repository", artifacts.onnx(artifacts.plus), "-o", folder, "--name", "plus")).splitlines()
    assert [line.partition(" (")[0] for line in said] == [
        "plus: the server does not batch",
        f"Saved {folder}/plus/config.pbtxt",
        f"Saved {folder}/plus/labels.txt",
        f"Saved {folder}/plus/1/model.onnx",
        f"Saved {folder}/plus/yolact_deploy.json",
        "plus_maskiou: the server batches up to 100",
        f"Saved {folder}/plus_maskiou/config.pbtxt",
        f"Saved {folder}/plus_maskiou/1/model.onnx",
        f"Saved {folder}/plus_maskiou/yolact_deploy.json",
        f"Next: tritonserver --model-repository={folder}",
    ]
    arguments = ("triton-repository", artifacts.onnx(artifacts.plus), "-o", folder, "--name", "plus")
    assert ok(invoke(*arguments, "--quiet")) == ""
    told = json.loads(ok(invoke(*arguments, "--json", "--instances", "2")))
    assert told["folder"] == str(folder)
    assert [model["name"] for model in told["models"]] == ["plus", "plus_maskiou"]
    for model in told["models"]:
        assert all(Path(file).is_file() for file in model["files"])
        assert parse_config(model["config"]).instance_group[0].count == 2


def test_the_configuration_of_an_onnx_file(artifacts: Artifacts, tmp_path: Path) -> None:
    model = artifacts.onnx(batch="dynamic")
    options = ("--gpus", "0,1", "--instances", "2", "--max-queue-delay-us", "500", "--preferred-batch", "4,2", "--max-batch", "6")
    ok(invoke("triton-repository", model, "-o", tmp_path, "--name", "nano", *options))
    text = (tmp_path / "nano" / "config.pbtxt").read_text(encoding="utf-8")
    assert text == (GOLDEN / "onnx.pbtxt").read_text(encoding="utf-8")
    check_config(parse_config(text))


def test_the_configuration_of_an_engine(artifacts: Artifacts, tmp_path: Path) -> None:
    source = artifacts.onnx(batch=3, opset=18, postprocess="nms", layout="raw")
    engine = write_engine(source, tmp_path)
    ok(invoke("triton-repository", engine, "-o", tmp_path / "models", "--name", "engine"))
    text = (tmp_path / "models" / "engine" / "config.pbtxt").read_text(encoding="utf-8")
    wanted = (GOLDEN / "engine.pbtxt").read_text(encoding="utf-8").replace("TENSORRT_VERSION", fake_tensorrt.__version__)
    assert text == wanted
    check_config(parse_config(text))


def test_several_models(artifacts: Artifacts, tmp_path: Path) -> None:
    first, second = artifacts.onnx(), artifacts.onnx(batch="dynamic")
    ok(invoke("triton-repository", first, second, "-o", tmp_path / "a"))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted([first.stem, second.stem])
    ok(invoke("triton-repository", first, second, "-o", tmp_path / "b", "--name", "x", "--name", "y"))
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["x", "y"]
    told = complaint(invoke("triton-repository", first, first, "-o", tmp_path / "c"))
    assert told == f"Two models would be called {first.stem}. Give each a name of its own: --name A --name B."
    assert complaint(invoke("triton-repository", first, second, "-o", tmp_path / "c", "--name", "x")).startswith("1 names were given")
    assert not (tmp_path / "c").exists()


def test_what_is_refused_writes_nothing(artifacts: Artifacts, tmp_path: Path) -> None:
    dynamic, out = artifacts.onnx(batch="dynamic"), tmp_path / "models"
    engine = write_engine(dynamic, tmp_path, BatchRange(1, 2, 4))
    cases = [
        ((artifacts.weights,), "is a checkpoint"),
        ((dynamic, "--gpus", "-1"), "--gpus is -1, a whole number from 0 on was wanted"),
        ((dynamic, "--gpus", "0;1"), "--gpus is '0;1', whole numbers separated by commas were wanted. Mend --gpus, such as 1,2."),
        ((dynamic, "--gpus", ""), "--gpus is ''"),
        ((dynamic, "--preferred-batch", "4,x"), "--preferred-batch is '4,x'"),
        ((dynamic, "--preferred-batch", "2,2"), "--preferred-batch names 2 twice"),
        ((engine, "--preferred-batch", "2,8"), "--preferred-batch is 8, at most 4 pictures"),
        ((engine, "--max-batch", "5"), "--max-batch is 5"),
        ((dynamic, "--instances", "-2"), "--instances is -2"),
        ((dynamic, "--max-queue-delay-us", "-5"), "--max-queue-delay-us is -5"),
        ((artifacts.onnx(), "--max-queue-delay-us", "5"), "the server does not batch for"),
        ((dynamic, "--name", "../x"), "The name '../x' was given"),
        ((dynamic, tmp_path / "missing.onnx"), "does not exist"),
    ]
    for arguments, told in cases:
        assert told in complaint(invoke("triton-repository", *arguments, "-o", out))
        assert not out.exists()


def test_folders_of_others_stay(artifacts: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_text("mine")
    arguments = ("triton-repository", artifacts.onnx(), "-o", tmp_path, "--name", "m")
    told = complaint(invoke(*arguments))
    assert told.startswith(
        f"{tmp_path / 'm'} exists, and was not written by this command. Choose another folder or --name, or pass --force"
    )
    assert (tmp_path / "m" / "1" / "model.onnx").read_text() == "mine"
    ok(invoke(*arguments, "--force"))
    ok(invoke(*arguments))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="for the superuser every folder is writable")
def test_a_folder_that_cannot_be_written(artifacts: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir(mode=0o500)
    assert "could not be written: Permission denied" in complaint(invoke("triton-repository", artifacts.onnx(), "-o", tmp_path / "r"))


def test_the_demo_model_by_default(tmp_path: Path) -> None:
    said = ok(run("triton-repository", "--quiet", cwd=tmp_path))
    assert said == ""
    (folder,) = (tmp_path / "artifacts" / "triton").iterdir()
    assert folder.name == "yolact_nano_shapes"
    assert len((folder / "labels.txt").read_text(encoding="utf-8").splitlines()) == 8


def test_a_client_loads_nothing_heavy() -> None:
    program = "import sys\nfrom yolact_deploy.serving import ClientSpec\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert not {"onnx", "onnxruntime", "torch", "tritonclient", "tensorrt", "rich"} & set(done.stdout.split())
