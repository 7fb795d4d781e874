"""Environments without torch: the base dependencies predict with an ONNX file and say what else is missing; `rtx` builds engines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.helpers.weights import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def closure(name: str, found: dict[str, metadata.Distribution], extra: str = "") -> None:
    """All distributions that `name` requires without extras but `extra`, itself included."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return
    found[key] = metadata.distribution(name)
    for line in found[key].requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            closure(requirement.name, found)


def make_site(site: Path, extra: str = "") -> Path:
    """A folder with links to what `pip install yolact-deploy[extra]` brings, and nothing else."""
    site.mkdir()
    found: dict[str, metadata.Distribution] = {}
    closure("yolact-deploy", found, extra)
    assert "torch" not in found
    for name, distribution in found.items():
        if name == "yolact-deploy":
            continue
        for entry in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            source = Path(str(distribution.locate_file(entry)))
            if source.exists() and not (site / entry).exists():
                (site / entry).symlink_to(source)
    (site / "yolact_deploy").symlink_to(ROOT / "yolact_deploy")
    return site


@pytest.fixture(scope="module")
def base_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("base") / "site")


@pytest.fixture(scope="module")
def rtx_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("rtx") / "site", "rtx")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported small model."""
    from yolact_deploy.export import export_checkpoint
    from yolact_deploy.model import load_checkpoint

    folder = tmp_path_factory.mktemp("model")
    return export_checkpoint(load_checkpoint(write_checkpoint(folder, "yolact_nano")), folder / "nano.onnx").path


def run(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-c", "from yolact_deploy.cli import main; main()", *arguments]
    environment = {"PYTHONPATH": str(site), "PATH": os.environ["PATH"], "HOME": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_torch_is_not_in_the_base_environment(base_site: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-S", "-c", "import torch"],
        env={"PYTHONPATH": str(base_site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No module named 'torch'" in result.stderr


def test_predict_runs_on_the_base_dependencies_alone(base_site: Path, model: Path, tmp_path: Path) -> None:
    result = run(base_site, "predict", str(model), "--json", "found.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "found.json").read_text().startswith('[{"image_id"')
    assert list((tmp_path / "artifacts" / "predictions").iterdir())


@pytest.mark.parametrize(
    "command", [["export", "x.pth"], ["quickstart"], ["predict", "yolact_nano.pth", "x.jpg"], ["inspect", "yolact_nano.pth"]]
)
def test_what_needs_torch_says_how_to_install_it(base_site: Path, command: list[str], tmp_path: Path) -> None:
    result = run(base_site, *command, cwd=tmp_path)
    assert result.returncode == 1
    assert 'pip install "yolact-deploy[torch]"' in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_inspect_and_doctor_work_without_torch(base_site: Path, model: Path, tmp_path: Path) -> None:
    assert "yolact_nano" in run(base_site, "inspect", str(model), cwd=tmp_path).stdout
    assert "torch" in run(base_site, "doctor", cwd=tmp_path).stdout


def test_an_engine_is_built_without_torch(rtx_site: Path, model: Path, tmp_path: Path) -> None:
    result = run(rtx_site, "build-engine", str(model), "--fp16", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (engine,) = (tmp_path / "artifacts").glob("*.engine")
    assert f"Saved artifacts/{engine.name} (" in result.stdout
    assert "built as" in run(rtx_site, "inspect", str(engine), cwd=tmp_path).stdout


def test_without_a_tensorrt_building_says_how_to_install_one(base_site: Path, model: Path, tmp_path: Path) -> None:
    result = run(base_site, "build-engine", str(model), cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip() == (
        "yolact-deploy: error: Neither TensorRT nor TensorRT-RTX is installed. "
        'Run: pip install "yolact-deploy[rtx]" (builds without a GPU), or pip install "yolact-deploy[tensorrt]"'
    )
    assert not (tmp_path / "artifacts").exists()
    said = run(base_site, "doctor", cwd=tmp_path).stdout
    assert 'pip install "yolact-deploy[rtx]"' in said
    assert 'pip install "yolact-deploy[tensorrt]"' in said
