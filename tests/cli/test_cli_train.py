"""``yolact-deploy train``: what it is called with, what it says, and how it goes on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.cli.commands import complaint, invoke, ok, start
from tests.helpers.weights import write_checkpoint
from yolact_deploy.data import write_shapes
from yolact_deploy.model import load_checkpoint
from yolact_deploy.training.state import RESUME_FILE, read_progress

TINY = 'base = "yolact_nano"\ninput_size = 64\nblocks = [1, 1, 1, 1]\nbackbone_width = 8\nfpn_width = 16\n'


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), 6, size=64)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


def test_it_trains_evaluates_and_tells(shapes: Path, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    given = ("--config", config, "--annotations", shapes, "--val-annotations", shapes, "-o", folder, "--batch", 6, "--device", "cpu")
    told = ok(invoke("train", *given, "--iterations", 4, "--evaluate-every", 2, "--steps", "2,3", "--rate", 0.002))
    assert "Training tiny (64 px, 8 classes) from fresh weights (seed 0) on 6 pictures: 4 iterations of 6 in fp32 on cpu" in told
    assert "tiny_2_2.safetensors: box AP" in told
    assert "tiny_4_4.safetensors: box AP" in told
    assert "4/4 box " in told
    assert f"Saved {folder / 'tiny_4_4.safetensors'}" in told
    assert "Best mask AP" in told
    found = load_checkpoint(folder / "tiny_4_4.safetensors")
    assert found.classes.names[:2] == ("disc", "ring")
    rates = [json.loads(line)["rate"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([1e-4, 1e-4 + 0.0019 / 500, 2e-4, 2e-5])
    assert "Going on from iteration 4." in ok(invoke("train", *given, "--iterations", 4, "--steps", "2,3", "--rate", 0.002))


def test_every_option_reaches_the_training(shapes: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yolact_deploy.training import loop

    seen: list[loop.TrainSettings] = []

    class StopError(Exception):
        pass

    def remember(*given: object, **_: object) -> None:
        settings = given[-1]
        assert isinstance(settings, loop.TrainSettings)
        seen.append(settings)
        raise StopError

    monkeypatch.setattr(loop.Trainer, "__init__", remember)
    given = ("train", "--config", config, "--annotations", shapes, "--device", "cpu", "-o", tmp_path / "x")
    options = (
        *("--iterations", 90, "--batch", 3, "--rate", 0.5, "--warmup", 7, "--gamma", 0.3, "--clip", 2.5, "--precision", "bf16"),
        *("--workers", 2, "--seed", 5, "--save-every", 11, "--keep", 4, "--optimizer", "adamw", "--decay", 0.01),
        *("--no-photometric", "--no-expand", "--no-crop", "--no-mirror"),
    )
    for extra in (options, ("--batch", 16)):
        with pytest.raises(StopError):
            invoke(*given, *extra)
    first, second = seen
    assert (first.iterations, first.batch, first.clip, first.precision, first.workers) == (90, 3, 2.5, "bf16", 2)
    assert (first.seed, first.save_every, first.keep, first.optimizer, first.decay) == (5, 11, 4, "adamw", 0.01)
    assert (first.schedule.rate, first.schedule.warmup, first.schedule.gamma) == (0.5, 7, 0.3)
    assert first.schedule.steps == (), "a short training keeps its rate"
    augment = first.augment
    assert (augment.photometric, augment.expand, augment.crop, augment.mirror) == (False, False, False, False)
    assert second.iterations == 400_000, "as many pictures as 800,000 iterations of 8"
    assert second.schedule.rate == pytest.approx(2e-3)
    assert second.schedule.steps == (140_000, 300_000, 350_000, 375_000)
    assert (second.optimizer, second.clip, second.decay, second.precision) == ("sgd", 0.0, 5e-4, "fp32")


def test_fine_tuning_fits_the_classes(shapes: Path, tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, "yolact_nano_1_10.pth")
    given = ("--weights", weights, "--annotations", shapes, "-o", tmp_path / "out", "--batch", 1, "--device", "cpu")
    told = ok(invoke("train", *given, "--iterations", 1))
    assert "4 class layers fitted to the new classes" in told
    assert "Batch norm is frozen: 1 at once" in told
    assert "Fresh weights" not in told
    found = load_checkpoint(tmp_path / "out" / "yolact_nano_0_1.safetensors")
    assert found.variant.num_classes == 9
    before = load_checkpoint(weights).network.state_dict()["backbone.conv1.weight"]
    assert float((found.network.state_dict()["backbone.conv1.weight"] - before).abs().max()) < 1e-2


def test_ctrl_c_saves_and_the_same_command_goes_on(shapes: Path, config: Path, tmp_path: Path) -> None:
    given = ("train", "--config", config, "--annotations", shapes, "-o", "out", "--batch", 6, "--iterations", 100_000, "--device", "cpu")
    process = start(*given, cwd=tmp_path)
    log = tmp_path / "out" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the same command goes on from there" in out
    assert "Interrupted" in err
    done = read_progress(tmp_path / "out" / RESUME_FILE).iteration
    assert done >= 1
    assert len(log.read_text().splitlines()) == done


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        (("--steps", "a,b"), "--steps is 'a,b'"),
        (("--steps", "5,3"), "do not ascend"),
        (("--rate", "-1"), "rate -1"),
        (("--precision", "fp16", "--device", "cpu"), "--precision fp16 was given for cpu"),
        (("--device", "nonsense"), "cannot use the device 'nonsense'"),
        (("--weights", "a.pth", "--backbone", "b.pth"), "--weights and --backbone were both given"),
        (("--weights", "a.pth"), "The weights a.pth do not exist"),
        (("--weights", "resume.safetensors"), "is the state of a training, no checkpoint"),
        (("--val-images", "x"), "--val-images was given without --val-annotations"),
    ],
)
def test_wrong_options_are_told(shapes: Path, config: Path, tmp_path: Path, extra: tuple[str, ...], wanted: str) -> None:
    given = ("train", "--config", config, "--annotations", shapes, "-o", tmp_path / "out", "--iterations", 1)
    if "--weights" in extra:
        given = ("train", "yolact_nano", "--annotations", shapes, "-o", tmp_path / "out", "--iterations", 1)
    assert wanted in complaint(invoke(*given, *extra))
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_objects_is_refused(shapes: Path, config: Path, tmp_path: Path) -> None:
    document = json.loads(shapes.read_text(encoding="utf-8"))
    path = tmp_path / "bare.json"
    path.write_text(json.dumps({**document, "annotations": []}), encoding="utf-8")
    done = invoke("train", "--config", config, "--annotations", path, "--images", shapes.parent / "images", "-o", tmp_path / "out")
    assert "no picture with an object" in complaint(done)


def test_it_starts_under_python_m(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "yolact_deploy", "train", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "torchrun" in done.stdout
    assert torch.__version__ not in done.stdout
