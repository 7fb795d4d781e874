"""A full disk, Ctrl-C and a request to terminate: one line, no half file, and what was there before stays as it was."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.commands import complaint, run, start
from tests.export.artifacts import Artifacts
from yolact_deploy.data import sample_picture


def no_file_above(size: int) -> Callable[[], None]:
    """For a new process: its files cannot grow beyond `size` bytes, as on a disk that is full."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("plus", [False, True])
def test_export_on_a_full_disk(artifacts: Artifacts, tmp_path: Path, plus: bool) -> None:
    shutil.copy(artifacts.onnx(batch="dynamic", opset=17), tmp_path / "a.onnx")
    before = contents(tmp_path)
    weights = (artifacts.plus_weights, "--config", artifacts.plus_config) if plus else (artifacts.weights,)
    done = run("export", *weights, "-o", "a.onnx", "--quiet", cwd=tmp_path, preexec_fn=no_file_above(50_000))
    message = complaint(done)
    names = "a.onnx, a.maskiou.onnx" if plus else "a.onnx"
    assert message.startswith(f"{names} could not be written: File too large.")
    assert message.endswith("Free some space or choose another folder; nothing was changed.")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["results", "overlay"])
def test_predict_on_a_full_disk(artifacts: Artifacts, tmp_path: Path, kind: str) -> None:
    model = artifacts.onnx(batch="dynamic", opset=17)
    Image.fromarray(sample_picture(160, 120)).save(tmp_path / "a.png")
    options = {"results": ("--no-overlays", "--json", "a.json"), "overlay": ("--save", ".")}[kind]
    arguments = ("predict", model, "a.png", *options, "--quiet")
    assert run(*arguments, "--score-threshold", "0.9", cwd=tmp_path).returncode == 0
    before = contents(tmp_path)
    assert len(before) == 2
    done = run(*arguments, "--score-threshold", "0", cwd=tmp_path, preexec_fn=no_file_above(1_000))
    assert "could not be written: File too large." in complaint(done)
    assert contents(tmp_path) == before


def interrupted(artifacts: Artifacts, folder: Path, number: signal.Signals, pause: float) -> subprocess.CompletedProcess[str]:
    """An export that gets the signal `pause` seconds after its temporary file appeared."""
    process = start(
        "export",
        artifacts.weights,
        "--batch",
        "16",
        "-o",
        "a.onnx",
        cwd=folder,
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob(".*.part*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(pause)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize(("name", "pause"), [("SIGINT", 0.0), ("SIGINT", 0.5), ("SIGTERM", 0.2)])
def test_an_interrupted_export_leaves_what_was_there(artifacts: Artifacts, tmp_path: Path, name: str, pause: float) -> None:
    shutil.copy(artifacts.onnx(batch="dynamic", opset=17), tmp_path / "a.onnx")
    before = contents(tmp_path)
    done = interrupted(artifacts, tmp_path, signal.Signals[name], pause)
    assert complaint(done) == "Interrupted. Nothing was left half-written."
    assert contents(tmp_path) == before
