"""``yolact-deploy export`` and ``quickstart``: what they print, write and refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from tests.cli.commands import complaint, invoke, ok, run
from tests.export.artifacts import Artifacts
from tests.helpers.weights import write_checkpoint
from yolact_deploy.export import exporter
from yolact_deploy.model.seeded import seeded_state
from yolact_deploy.onnx_file import read_manifest
from yolact_deploy.variants import get_variant


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return seeded_state(get_variant("yolact_nano"), 1)


def test_the_real_command_writes_a_checked_file_and_says_what_is_next(artifacts: Artifacts, tmp_path: Path) -> None:
    text = ok(run("export", artifacts.weights, cwd=tmp_path))
    written = Path("artifacts", artifacts.weights.stem + ".onnx")
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == [written.name]
    assert read_manifest(tmp_path / written).variant.name == "yolact_nano"
    for told in (
        f"Exporting {artifacts.weights} (yolact_nano, 256 px, 80 classes) to ONNX opset 17",
        "ONNX Runtime against PyTorch",
        "PASSED",
        "checking against PyTorch",
        f"Saved {written} (",
        f"Next: yolact-deploy predict {written} PICTURE_OR_FOLDER",
    ):
        assert told in text
    assert "FAILED" not in text
    assert "\x1b" not in text


def test_json_and_quiet_print_nothing_else(artifacts: Artifacts, tmp_path: Path) -> None:
    target = tmp_path / "a.onnx"
    told = json.loads(ok(invoke("export", artifacts.weights, "-o", target, "--json")))
    assert told["files"] == [str(target)]
    assert told["manifest"] == json.loads(read_manifest(target).to_json())
    assert told["manifest"]["verification"]["detections"]["picture"]["unexplained"] == 0
    assert ok(invoke("export", artifacts.weights, "-o", target, "--quiet")) == ""


def test_every_option_reaches_the_file(artifacts: Artifacts, tmp_path: Path) -> None:
    names = [f"thing {index}" for index in range(80)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(tmp_path / "a.png")
    arguments = ["--fp16", "--batch", "dynamic", "--opset", "18", "--input", "raw", "--channels", "bgr", "--postprocess", "nms"]
    arguments += ["--io", "fp16", "--classes", str(tmp_path / "names.txt"), "--picture", str(tmp_path / "a.png")]
    ok(invoke("export", artifacts.weights, *arguments, "-o", tmp_path / "a.onnx"))
    manifest = read_manifest(tmp_path / "a.onnx")
    assert (manifest.input.layout, manifest.input.channels, manifest.postprocess) == ("raw", "bgr", "nms")
    assert manifest.inputs[0].shape[0] == "batch"
    assert manifest.versions["opset"] == "18"
    assert manifest.precision["backbone"] == "float16"
    assert {spec.name: spec.dtype for spec in manifest.outputs}["prototypes"] == "float16"
    assert list(manifest.classes.names) == names


def test_a_configuration_of_ones_own_and_its_mask_iou_net(artifacts: Artifacts, tmp_path: Path) -> None:
    target = tmp_path / "tiny.onnx"
    text = ok(invoke("export", artifacts.plus_weights, "--config", artifacts.plus_config, "-o", target))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.maskiou.onnx", "tiny.onnx"]
    assert "tiny.maskiou.onnx" in text
    assert "(tiny_plus, 256 px, 5 classes)" in text


def test_paths_are_printed_as_they_are(artifacts: Artifacts, tmp_path: Path) -> None:
    weights = tmp_path / "odd [" / "bold] [red]" / artifacts.weights.name
    weights.parent.mkdir(parents=True)
    shutil.copy(artifacts.weights, weights)
    text = ok(invoke("export", weights, "-o", weights.with_suffix(".onnx")))
    assert f"Saved {weights.with_suffix('.onnx')} (" in text
    picture = weights.parent / "a.png"
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(picture)
    told = ok(
        invoke("predict", weights.with_suffix(".onnx"), picture, "--save", weights.parent / "out", "--json", weights.parent / "a.json")
    )
    assert f"Saved {weights.parent / 'a.json'} (" in told
    assert f"in {weights.parent / 'out'}" in told
    assert str(weights.name) in ok(invoke("inspect", weights.with_suffix(".onnx")))


def test_a_file_of_somebody_elses_is_not_replaced(artifacts: Artifacts, tmp_path: Path) -> None:
    target = tmp_path / "a.onnx"
    target.write_text("mine")
    message = complaint(invoke("export", artifacts.weights, "-o", target, "--quiet"))
    assert message == f"{target} exists and was not written by this command. Choose another name, or pass --force to replace it."
    assert target.read_text() == "mine"
    assert f"{tmp_path} is a folder" in complaint(invoke("export", artifacts.weights, "-o", tmp_path, "--quiet"))


def test_its_own_file_is_replaced(artifacts: Artifacts, tmp_path: Path) -> None:
    target = tmp_path / "a.onnx"
    shutil.copy(artifacts.onnx(batch="dynamic", opset=17), target)
    ok(invoke("export", artifacts.weights, "-o", target, "--quiet"))
    assert read_manifest(target).inputs[0].shape[0] == 1


def test_a_file_that_differs_is_shown_and_not_kept(artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = exporter.convert_opset

    def damaging(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        model = convert(model, opset)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("bbox_layer.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.5), bias.name))
        return model

    monkeypatch.setattr(exporter, "convert_opset", damaging)
    done = invoke("export", artifacts.weights, "-o", tmp_path / "a.onnx")
    assert complaint(done).startswith("The ONNX file differs from PyTorch: boxes on picture ")
    assert "FAILED" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--batch", "many"), "The batch is 'many', a number or 'dynamic' was wanted. Mend --batch."),
        (("--batch", "0"), "A batch of 0 was asked for"),
        (("--opset", "16"), "Opset 16 was asked for, 17 to 20 are supported."),
        (("--io", "fp16"), "--io fp16 was asked for without --fp16. Add --fp16, or drop --io fp16."),
        (("--channels", "bgr"), "Float input is always RGB, BGR was asked for."),
        (("--variant", "yolact_giant"), "There is no variant 'yolact_giant'"),
        (("--config", "no.toml"), "The configuration no.toml does not exist."),
        (("--classes", "no.txt"), "The class list no.txt does not exist."),
        (("--classes", "pascal"), "pascal names 20 classes, the weights have 80"),
        (("--picture", "no.png"), "The picture no.png does not exist."),
        (("--variant", "yolact_resnet50"), "do not fit yolact_resnet50"),
    ],
)
def test_options_that_do_not_do(artifacts: Artifacts, tmp_path: Path, arguments: tuple[str, ...], wanted: str) -> None:
    done = invoke("export", artifacts.weights, "-o", tmp_path / "a.onnx", "--quiet", *arguments)
    assert wanted in complaint(done)
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


class Command:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("missing", "do not exist"),
        ("empty", "too few for weights"),
        ("text", "is no readable weights file"),
        ("truncated", "is no readable weights file"),
        ("onnx", "is no readable weights file"),
        ("code", "holds Python objects beside tensors, which are not unpickled because they can run code"),
        ("whole model", "plain tensors alone were wanted"),
        ("NaN", "holds NaN or infinity in backbone.conv1.weight"),
        ("foreign tensors", "They look like no variant of YOLACT at all"),
        ("another variant", "do not fit yolact_nano"),
    ],
)
def test_weights_that_do_not_do(artifacts: Artifacts, state: dict[str, Any], tmp_path: Path, kind: str, wanted: str) -> None:
    path = tmp_path / "yolact_nano_1_1.pth"
    if kind == "empty":
        path.touch()
    if kind == "text":
        path.write_text("these are no weights\n" * 20)
    if kind == "onnx":
        shutil.copy(artifacts.onnx(), path)
    if kind == "truncated":
        content = write_checkpoint(tmp_path, path.name, state).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    if kind == "code":
        torch.save({"weight": Command(tmp_path / "ran")}, path)
    if kind == "whole model":
        torch.save({"state_dict": state, "epoch": 3}, path)
    if kind == "NaN":
        spoiled = {**state, "backbone.conv1.weight": state["backbone.conv1.weight"] * float("nan")}
        write_checkpoint(tmp_path, path.name, spoiled)
    if kind == "foreign tensors":
        torch.save({"fc.weight": torch.zeros(3, 4)}, path)
    if kind == "another variant":
        write_checkpoint(tmp_path, path.name, {key: value for key, value in state.items() if not key.startswith("fpn")})
    before = sorted(tmp_path.iterdir())
    done = invoke("export", path, "-o", tmp_path / "a.onnx", "--quiet")
    assert wanted in complaint(done)
    assert sorted(tmp_path.iterdir()) == before
    assert not (tmp_path / "ran").exists()


def test_a_name_that_says_no_variant_is_not_guessed(artifacts: Artifacts, tmp_path: Path) -> None:
    shutil.copy(artifacts.weights, tmp_path / "best.safetensors")
    message = complaint(invoke("export", tmp_path / "best.safetensors", "-o", tmp_path / "a.onnx", "--quiet"))
    assert "The file name best.safetensors does not say a known variant" in message
    assert "Pass --variant (one of yolact_base" in message


def test_an_output_without_the_suffix_is_refused_before_the_work(artifacts: Artifacts, tmp_path: Path) -> None:
    said = complaint(invoke("export", artifacts.weights, "-o", tmp_path / "model"))
    assert "does not end in .onnx" in said
    assert not list(tmp_path.iterdir())
