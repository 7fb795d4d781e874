"""``yolact-deploy train --qat``: what it starts from, with which settings, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.commands import complaint, invoke, ok
from tests.helpers.weights import write_checkpoint
from yolact_deploy.cli.common import demo_weights
from yolact_deploy.data import read_dataset, write_shapes
from yolact_deploy.model import Yolact, load_checkpoint
from yolact_deploy.training import loop
from yolact_deploy.training.processes import Processes
from yolact_deploy.training.quantization import QuantizationSettings
from yolact_deploy.training.state import RESUME_FILE, read_progress

TINY = 'base = "yolact_nano"\ninput_size = 64\nblocks = [1, 1, 1, 1]\nbackbone_width = 8\nfpn_width = 16\n'


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), 6, size=64)


@pytest.fixture(scope="module")
def weights(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    given = ("--config", folder / "tiny.toml", "--annotations", shapes, "--batch", 6, "--device", "cpu", "--iterations", 2)
    ok(invoke("train", *given, "-o", folder / "out"))
    return folder / "out" / "tiny_2_2.safetensors"


class StopError(Exception):
    pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Yolact, Path, loop.TrainSettings]]:
    """Network, folder and settings of each training, which ends right there."""
    seen: list[tuple[Yolact, Path, loop.TrainSettings]] = []

    def remember(_: loop.Trainer, *given: Any, **__: object) -> None:
        seen.append((given[0], given[3], given[4]))
        raise StopError

    monkeypatch.setattr(loop.Trainer, "__init__", remember)
    return seen


def test_it_fine_tunes_and_goes_on(shapes: Path, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    given = ("train", "--qat", "--weights", weights, "--annotations", shapes, "--val-annotations", shapes, "-o", folder, "--device", "cpu")
    told = ok(invoke(*given, "--iterations", 2, "--batch", 6))
    assert f"Training tiny (64 px, 8 classes) from {weights} on 6 pictures: 2 iterations of 6 in fp32 on cpu, into {folder}" in told
    assert "Rounding as the INT8 graph will" in told
    assert "tiny_2_2.safetensors: box AP" in told
    assert f"Next: yolact-deploy export {folder / 'tiny_2_2.safetensors'}" in told
    found, before = (load_checkpoint(path).network.state_dict() for path in (folder / "tiny_2_2.safetensors", weights))
    assert list(found) == list(before)
    assert torch.equal(found["backbone.bn1.running_mean"], before["backbone.bn1.running_mean"])
    assert not torch.equal(found["backbone.conv1.weight"], before["backbone.conv1.weight"])
    rates = [json.loads(line)["rate"] for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rates == pytest.approx([7.5e-5, 7.5e-5])
    assert len(read_progress(folder / RESUME_FILE).ranges) > 30
    assert "Going on from iteration 2." in ok(invoke(*given, "--iterations", 2, "--batch", 6))


def test_its_defaults(shapes: Path, weights: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("train", "--qat", "--weights", weights, "--annotations", shapes, "--device", "cpu")
    for extra in ((), ("--batch", 16, "--rate", 0.5, "--warmup", 7, "--iterations", 90, "--precision", "fp32")):
        with pytest.raises(StopError):
            invoke(*given, *extra)
    with pytest.raises(StopError):
        invoke(*(part for part in given if part != "--qat"))
    monkeypatch.setattr("yolact_deploy.training.processes.join", lambda: Processes(0, 0, 4))
    monkeypatch.setattr("yolact_deploy.cli.train._precision", lambda *_: "bf16")  # as on a GPU
    with pytest.raises(StopError):
        invoke(*given)
    (_, folder, first), (_, _, second), (_, other_folder, without), (_, _, fourfold) = started
    assert first.quantization == QuantizationSettings()
    assert (first.iterations, first.batch, first.precision) == (20_000, 8, "fp32")
    assert (first.schedule.rate, first.schedule.warmup, first.schedule.at(0)) == pytest.approx((1e-4, 0, 1e-4))
    assert folder == Path("artifacts/qat-tiny")
    assert (fourfold.schedule.rate, fourfold.iterations) == pytest.approx((4e-4, 5000)), "four processes see four times the pictures"
    assert fourfold.precision == "fp32"
    assert (second.schedule.rate, second.schedule.warmup, second.iterations) == (0.5, 7, 90)
    assert without.quantization is None
    assert (without.schedule.rate, without.schedule.warmup, without.iterations) == (1e-3, 500, 800_000)
    assert other_folder == Path("artifacts/train-tiny")


def test_without_anything_it_takes_the_demo_model(shapes: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolact_deploy.cli.train.shapes_set", lambda *_: read_dataset(shapes))
    with pytest.raises(StopError):
        invoke("train", "--qat")
    network, folder, settings = started[0]
    assert settings.iterations == 2000
    assert settings.schedule.steps == (700, 1500, 1750, 1875)
    assert folder == Path("artifacts/qat-yolact_nano")
    wanted = load_checkpoint(demo_weights()).network.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        ((), "--qat was given without --weights"),
        (("--backbone", "b.pth"), "--qat and --backbone were both given"),
        (("--precision", "bf16", "--weights", "a.pth"), "--qat was given with --precision bf16"),
        (("--weights", "a.pth"), "The weights a.pth do not exist"),
    ],
)
def test_wrong_options_are_told(shapes: Path, tmp_path: Path, extra: tuple[str, ...], wanted: str) -> None:
    done = invoke("train", "--qat", "--annotations", shapes, "-o", tmp_path / "out", "--iterations", 1, "--device", "cpu", *extra)
    assert wanted in complaint(done)
    assert not (tmp_path / "out").exists()


def test_weights_of_other_classes_are_refused(shapes: Path, tmp_path: Path) -> None:
    given = ("--weights", write_checkpoint(tmp_path, "yolact_nano_1_10.pth"), "--annotations", shapes, "-o", tmp_path / "out")
    told = complaint(invoke("train", "--qat", *given, "--iterations", 1, "--batch", 1, "--device", "cpu"))
    assert "are not the 8 of the data set, and --qat was given" in told
    assert "train without --qat" in told
    assert not (tmp_path / "out").exists()
