"""``build-engine`` as users run it: the two commands of the README, every refusal in one line, real signals and a really full disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.commands import complaint, invoke, ok, run, start
from tests.export.artifacts import Artifacts
from yolact_deploy.engines.sidecar import read_plan, read_sidecar
from yolact_deploy.engines.versions import load_tensorrt

VERSION = str(load_tensorrt("tensorrt-rtx"))


def test_export_and_build_engine_need_nothing_but_their_names(tmp_path: Path) -> None:
    ok(run("export", cwd=tmp_path))
    said = ok(run("build-engine", "--fp16", cwd=tmp_path))
    engine = tmp_path / "artifacts" / "yolact_nano_shapes.fp16.rtx-portable.engine"
    assert f"{VERSION}: this machine has no GPU, and TensorRT-RTX builds without one." in said
    assert "Built FP16, converted from the FP32 graph for compute capability 8.0, 8.6, 8.9, 12.0 and newer, batch 1:1:1: engine" in said
    assert f"Saved artifacts/{engine.name} (" in said
    assert f"Saved artifacts/{engine.name}.json (" in said
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert read_plan(engine, sidecar)[:4] == b"vtrt"
    assert sidecar[0].classes.names[0] == "disc"
    assert complaint(run("predict", engine, cwd=tmp_path)).startswith(f"{VERSION} needs a GPU, no NVIDIA driver was found.")


def test_without_a_model_the_demo_is_exported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = ok(invoke("build-engine", "--sm", "89"))
    assert "Exporting artifacts/yolact_nano_shapes.onnx" in said
    assert (tmp_path / "artifacts" / "yolact_nano_shapes.fp32.rtx-sm89.engine").is_file()
    assert "Exporting" not in ok(invoke("build-engine", "--sm", "86"))


def test_json_and_quiet(artifacts: Artifacts, tmp_path: Path) -> None:
    output = tmp_path / "a.engine"
    said = json.loads(ok(invoke("build-engine", artifacts.onnx(), "-o", output, "--sm", "89,8.6", "--sm", "sm_120", "--json")))
    assert said["files"] == [str(output), f"{output}.json"]
    assert said["manifest"]["target"]["capabilities"] == ["8.6", "8.9", "12.0"]
    assert said["manifest"] == json.loads((tmp_path / "a.engine.json").read_text())
    assert ok(invoke("build-engine", artifacts.onnx(), "-o", output, "--quiet")) == ""


def test_verbose_prints_what_tensorrt_says(artifacts: Artifacts, tmp_path: Path) -> None:
    done = run("build-engine", artifacts.onnx(), "-o", "a.engine", "--verbose", cwd=tmp_path)
    assert done.returncode == 0
    assert "[MemUsage" in done.stderr or "Parser" in done.stderr or "IBuilder" in done.stderr or len(done.stderr.splitlines()) > 3


def test_a_yolact_plus_file_makes_two_engines(artifacts: Artifacts, tmp_path: Path) -> None:
    said = ok(invoke("build-engine", artifacts.onnx(artifacts.plus), "--fp16", "-o", tmp_path / "p.engine"))
    assert re.search(r"batch 1:1:1: engine \d+\.\d s, mask-IoU net \d+\.\d s", said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.engine", "p.engine.json", "p.maskiou.engine"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sm", "90"], f"{VERSION} builds for compute capability 7.5, 8.0, 8.6, 8.9, 12.0, 12.1; not for 9.0 (H100, H200)."),
        (["--sm", "ada"], "The compute capability is 'ada', a number such as 89 or 8.9 was wanted. Mend --sm."),
        (["--batch", "4"], "has the fixed batch 1, 4:4:4 was asked for. Export with --batch dynamic, or drop --batch."),
        (["--batch", "8:4:1"], "The batches are 8:4:1, smallest <= best <= largest from 1 to 1024 was wanted."),
        (["--batch", "many"], "The batch is 'many', a number or smallest:best:largest was wanted."),
        (["--int8"], "--int8 wants a graph with Q/DQ pairs, "),
        (["--int8", "--fp16"], "Both --fp16 and --int8 were given."),
        (["--workspace", "0"], "The workspace is 0 MiB, 1 to 1048576 was wanted."),
        (["--hardware-compatible", "ampere+"], "has no hardware-compatible builds"),
        (["--version-compatible"], "builds no version-compatible engines without a GPU."),
        (["-o", "x.onnx"], "The output x.onnx ends in .onnx, an engine's name was wanted."),
        (["--backend", "tensorrt"], 'TensorRT is not installed. Run: pip install "yolact-deploy[tensorrt]"'),
    ],
)
def test_what_cannot_be(arguments: list[str], sentence: str, artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in complaint(invoke("build-engine", artifacts.onnx(), *arguments))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_usage_errors_exit_2(artifacts: Artifacts) -> None:
    assert invoke("build-engine", artifacts.onnx(), "--backend", "openvino").exit_code == 2
    assert invoke("build-engine", artifacts.onnx(), "--optimization-level", "9").exit_code == 2


def test_without_the_package_the_command_says_what_to_install(artifacts: Artifacts, tmp_path: Path) -> None:
    """A process in which neither TensorRT can be found."""
    program = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('tensorrt', 'tensorrt_rtx'): raise ModuleNotFoundError(name=name.partition('.')[0])\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "from yolact_deploy.engines import versions\n"
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "def find_spec(name, *rest):\n"
        "    return None if name in ('tensorrt', 'tensorrt_rtx') else found(name, *rest)\n"
        "importlib.util.find_spec = find_spec\n"
        "from yolact_deploy.cli import main\n"
        "main()\n"
    )
    for backend, sentence in {
        "auto": "Neither TensorRT nor TensorRT-RTX is installed.",
        "tensorrt-rtx": 'TensorRT-RTX is not installed. Run: pip install "yolact-deploy[rtx]"',
    }.items():
        command = [sys.executable, "-c", program, "build-engine", str(artifacts.onnx()), "--backend", backend]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert sentence in complaint(done)
    assert list(tmp_path.iterdir()) == []


def unwritable(tmp_path: Path) -> Path:
    """A folder that even root cannot write to, as far as the system lets a test make one."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    if (
        os.access(folder, os.W_OK)
        and shutil.which("chattr")
        and subprocess.run(["chattr", "+i", str(folder)], capture_output=True).returncode
    ):
        pytest.skip("root writes everywhere here, and chattr +i does not work on this file system")
    return folder


def test_a_read_only_folder(artifacts: Artifacts, tmp_path: Path) -> None:
    folder = unwritable(tmp_path)
    try:
        done = run("build-engine", artifacts.onnx(), "-o", folder / "a.engine", cwd=tmp_path)
        assert "could not be written" in complaint(done)
        assert list(folder.iterdir()) == []
    finally:
        if shutil.which("chattr"):
            subprocess.run(["chattr", "-i", str(folder)], capture_output=True)
        folder.chmod(0o755)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="/proc is Linux's")
def test_a_file_system_that_takes_no_files(artifacts: Artifacts, tmp_path: Path) -> None:
    """Read-only for every user, root too, so this holds where the test above cannot be made."""
    done = run("build-engine", artifacts.onnx(), "-o", "/proc/yolact-deploy/a.engine", cwd=tmp_path)
    assert "/proc/yolact-deploy/a.engine" in complaint(done)
    assert "could not be written" in complaint(done)


def test_a_full_disk_leaves_no_half_engine(artifacts: Artifacts, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:  # it takes root; the file size limit below fails the same writes for every user
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        done = run("build-engine", artifacts.onnx(), "-o", disk / "a.engine", cwd=tmp_path)
        assert "could not be written: No space left on device" in complaint(done)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_size_limit_leaves_no_half_engine(artifacts: Artifacts, tmp_path: Path) -> None:
    """What ``ulimit -f`` does; it stands in for a full disk where none can be mounted."""
    import resource

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))

    done = run("build-engine", artifacts.onnx(), "-o", tmp_path / "a.engine", cwd=tmp_path, preexec_fn=limit)
    assert "could not be written: File too large" in complaint(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_build_cancels_it(number: signal.Signals, artifacts: Artifacts, tmp_path: Path) -> None:
    """Built for five capabilities with a wide profile, so that there is time to interrupt it."""
    model = artifacts.onnx(artifacts.plus, batch="dynamic", postprocess="nms")
    process = start("build-engine", model, "--sm", "80,86,89,120,121", "--batch", "1:8:64", "-o", "a.engine", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.glob(".a*.part*")):
        time.sleep(0.005)
    assert process.poll() is None, "the build was over before the signal"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, (out, err)
    assert err == "yolact-deploy: error: Interrupted. Nothing was left half-written.\n"
    assert list(tmp_path.iterdir()) == []


def test_two_builds_at_once_into_one_folder(artifacts: Artifacts, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    commands = [("--fp16",), ("--fp16",), ()]
    processes = [start("build-engine", artifacts.onnx(), *extra, "--timing-cache", cache, cwd=tmp_path) for extra in commands]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert f"measures nothing while it builds, so the timing cache {cache} is not used." in out
    made = sorted((tmp_path / "artifacts").iterdir())
    assert len(made) == 4
    for engine in made[::2]:
        assert read_plan(engine, read_sidecar(engine))
