"""Help, version, usage errors, and the commands that only tell: inspect and doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import complaint, invoke, ok, run
from tests.export.artifacts import Artifacts
from yolact_deploy import __version__
from yolact_deploy.cli.common import console

COMMANDS = (
    *("quickstart", "export", "build-engine", "predict", "evaluate", "train", "make-shapes", "inspect", "adopt", "selftest", "sdk"),
    "doctor",
)


def test_help_lists_the_commands() -> None:
    for arguments in ((), ("--help",), ("-h",)):
        done = invoke(*arguments)
        assert all(name in done.output for name in COMMANDS)
    assert invoke("--help").exit_code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    text = ok(invoke(command, "--help"))
    assert f"yolact-deploy {command}" in text.replace("\n", " ") or command in text
    assert "Usage" in text


def test_version() -> None:
    assert ok(invoke("--version")) == f"yolact-deploy {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("export", "--nonsense"),
        ("export", "--postprocess", "everything"),
        ("export", "--input", "grey"),
        ("export", "--opset", "new"),
        ("predict", "a.onnx", "b.png", "--score-threshold", "1.5"),
        ("predict", "a.onnx", "b.png", "--threads", "-1"),
        ("predict", "a.onnx", "b.png", "c.png"),
        ("inspect",),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Usage" in done.stderr


def test_the_real_command_tells_its_version_and_its_errors(tmp_path: Path) -> None:
    assert ok(run("--version", cwd=tmp_path)) == f"yolact-deploy {__version__}\n"
    assert complaint(run("inspect", "no.onnx", cwd=tmp_path)) == "The model no.onnx does not exist. Check the path."
    assert run("inspect", cwd=tmp_path).returncode == 2


def test_inspect_an_onnx_file(artifacts: Artifacts) -> None:
    path = artifacts.onnx()
    facts = json.loads(ok(invoke("inspect", path, "--json")))
    assert facts["variant"] == "yolact_nano"
    assert facts["kind"].startswith("ONNX, opset 17, ")
    assert facts["tensors"]["images"] == "input float32 [1, 3, 256, 256]"
    assert facts["tensors"]["scores"] == "output float32 [1, 4092, 81]"
    assert facts["made from"] == {"file": artifacts.weights.name, "sha256": artifacts.nano.sha256}
    assert facts["precision"]["backbone"] == "float32"
    assert facts["operators"]["Softmax"] == 1
    text = ok(invoke("inspect", path))
    for told in ("yolact_nano", "80 in all", "input float32 [1, 3, 256, 256]", artifacts.nano.sha256):
        assert told in text


@pytest.mark.parametrize("plus", [False, True])
def test_inspect_a_checkpoint(artifacts: Artifacts, plus: bool) -> None:
    arguments: tuple[Any, ...] = (artifacts.plus_weights, "--config", artifacts.plus_config) if plus else (artifacts.weights,)
    facts = json.loads(ok(invoke("inspect", *arguments, "--json")))
    assert facts["kind"] == "YOLACT checkpoint"
    assert facts["variant"] == ("tiny_plus" if plus else "yolact_nano")
    assert facts["classes"] == (5 if plus else 80)
    assert facts["sha256"] == (artifacts.plus if plus else artifacts.nano).sha256
    assert facts["configuration"]["mask_rescoring"] == plus
    assert facts["parameters"]["all"] > 100_000
    assert facts["variant"] in ok(invoke("inspect", *arguments))


def test_inspect_what_is_no_model(tmp_path: Path) -> None:
    assert "ends in .txt" in complaint(invoke("inspect", tmp_path / "a.txt"))
    assert "do not exist" in complaint(invoke("inspect", tmp_path / "yolact_nano_1_1.pth"))


def test_doctor_tells_the_machine_the_packages_and_what_works() -> None:
    facts = json.loads(ok(invoke("doctor", "--json")))
    assert set(facts) == {"machine", "packages", "GPU", "engines", "what works here"}
    assert facts["machine"]["yolact-deploy"] == __version__
    assert facts["packages"]["torch"] != "not installed"
    assert facts["what works here"]["predict with an ONNX file"] == "yes"
    assert facts["what works here"]["export, and predict with a checkpoint"] == "yes"
    assert "CPU" in facts["what works here"]["ONNX Runtime providers"]
    text = ok(invoke("doctor"))
    assert "what works here" in text
    assert "predict with an ONNX file" in text


def test_doctor_names_the_mend_for_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    version = metadata.version

    def without_torch(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_torch)
    facts = json.loads(ok(invoke("doctor", "--json")))
    assert facts["packages"]["torch"] == "not installed"
    told = facts["what works here"]["export, and predict with a checkpoint"]
    assert told == 'no. Run: pip install "yolact-deploy[torch]" (missing: torch)'
    assert facts["what works here"]["train"] == 'no. Run: pip install "yolact-deploy[torch]"'
    assert facts["what works here"]["evaluate"] == "yes"


def test_a_quiet_console_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    console(quiet=True).print("a")
    assert capsys.readouterr() == ("", "")
