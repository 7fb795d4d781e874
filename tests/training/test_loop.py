"""The loop: it learns, it goes on after an interruption with the same bits, and it survives what is not finite."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import tiny_variant
from yolact_deploy.data import read_dataset, write_shapes
from yolact_deploy.data.coco import CocoDataset
from yolact_deploy.errors import CheckpointError, ConfigError, TrainingError
from yolact_deploy.model import Yolact, load_checkpoint
from yolact_deploy.training.augment import AugmentSettings
from yolact_deploy.training.initial import initialise
from yolact_deploy.training.loop import StepReport, Trainer, TrainSettings
from yolact_deploy.training.schedule import Schedule
from yolact_deploy.training.state import RESUME_FILE, read_progress

PLAIN = AugmentSettings(photometric=False, expand=False, crop=False, mirror=False)
SETTINGS = TrainSettings(
    iterations=6, batch=6, schedule=Schedule(2e-3, warmup=2, steps=(4,)), clip=10, save_every=2, augment=replace(PLAIN, mirror=True)
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return read_dataset(write_shapes(tmp_path_factory.mktemp("shapes"), 8, size=128))


def trainer(shapes: CocoDataset, folder: Path, settings: TrainSettings = SETTINGS, **fields: Any) -> Trainer:
    network = Yolact(tiny_variant(num_classes=9, **fields))
    initialise(network, 1)
    return Trainer(network, shapes.classes, shapes, folder, settings)


def tensors(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path).network.state_dict()


def assert_same(one: Path, other: Path) -> None:
    found, wanted = tensors(one), tensors(other)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_learns_a_handful_of_pictures(shapes: CocoDataset, tmp_path: Path, optimizer: Any) -> None:
    rate = {"sgd": 0.02, "adamw": 2e-3}[optimizer]
    settings = replace(
        SETTINGS, iterations=45, optimizer=optimizer, schedule=Schedule(rate, warmup=5, steps=()), save_every=100, augment=PLAIN
    )
    reports: list[StepReport] = []
    trainer(shapes, tmp_path, settings).run(reports.append)
    first, last = (sum(sum(one.losses.values()) for one in part) / 5 for part in (reports[:5], reports[-5:]))
    assert last < 0.6 * first
    assert set(reports[0].losses) == {"box", "mask", "class", "semantic"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_interrupted_training_ends_with_the_same_bits(shapes: CocoDataset, tmp_path: Path, optimizer: Any) -> None:
    settings = replace(SETTINGS, optimizer=optimizer)
    whole = trainer(shapes, tmp_path / "whole", settings).run()

    def interrupt(found: StepReport) -> None:
        if found.iteration == 3:
            os.kill(os.getpid(), signal.SIGINT)

    parted = trainer(shapes, tmp_path / "parted", settings)
    with pytest.raises(KeyboardInterrupt):
        parted.run(interrupt)
    assert read_progress(tmp_path / "parted" / RESUME_FILE).iteration == 3
    going_on = trainer(shapes, tmp_path / "parted", settings)
    assert going_on.progress.iteration == 3
    assert_same(going_on.run(), whole)
    lines = [json.loads(line) for line in (tmp_path / "parted" / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["rate"] for line in lines] == pytest.approx([SETTINGS.schedule.at(i) for i in range(6)])


def test_a_killed_training_loses_no_more_than_an_interval(shapes: CocoDataset, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(found: StepReport) -> None:
        if found.iteration == 5:
            raise KilledError

    with pytest.raises(KilledError):
        trainer(shapes, tmp_path / "parted").run(kill)
    going_on = trainer(shapes, tmp_path / "parted")
    assert going_on.progress.iteration == 4
    assert_same(going_on.run(), trainer(shapes, tmp_path / "whole").run())
    lines = [json.loads(line)["iteration"] for line in (tmp_path / "parted" / "log.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5, 6]


def test_the_checkpoint_explains_itself(shapes: CocoDataset, tmp_path: Path) -> None:
    saved = trainer(shapes, tmp_path).run()
    assert saved.name == "tiny_4_6.safetensors"
    found = load_checkpoint(saved)
    assert found.variant == tiny_variant(num_classes=9)
    assert found.classes == shapes.classes


def test_only_the_newest_checkpoints_are_kept(shapes: CocoDataset, tmp_path: Path) -> None:
    (tmp_path / "tiny_other.safetensors").write_bytes(b"not ours")
    trainer(shapes, tmp_path, replace(SETTINGS, save_every=1, keep=2)).run()
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == ["resume.safetensors", "tiny_3_5.safetensors", "tiny_4_6.safetensors", "tiny_other.safetensors"]


def test_the_best_evaluation_is_kept(shapes: CocoDataset, tmp_path: Path) -> None:
    answers = {2: 10.0, 4: 30.0, 6: 20.0}
    asked: list[int] = []

    def evaluate(path: Path) -> float:
        asked.append(int(path.stem.rsplit("_", 1)[1]))
        return answers[asked[-1]]

    made = trainer(shapes, tmp_path, replace(SETTINGS, save_every=100, keep=0))
    made.run(evaluate=evaluate, evaluate_every=2)
    assert asked == [2, 4, 6]
    assert made.progress.best == 30.0
    assert_same(tmp_path / "best.safetensors", tmp_path / "tiny_3_4.safetensors")


def test_other_settings_are_refused(shapes: CocoDataset, tmp_path: Path) -> None:
    trainer(shapes, tmp_path).run()
    with pytest.raises(ConfigError, match=r"other settings \(iterations, seed\)"):
        trainer(shapes, tmp_path, replace(SETTINGS, iterations=9, seed=4, workers=1, save_every=5, keep=9))


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x10\0\0\0\0\0\0\0{}              "])
def test_a_damaged_state_is_refused(shapes: CocoDataset, tmp_path: Path, content: bytes) -> None:
    (tmp_path / RESUME_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="no training state"):
        trainer(shapes, tmp_path)


def test_another_networks_state_is_refused(shapes: CocoDataset, tmp_path: Path) -> None:
    trainer(shapes, tmp_path).run()
    with pytest.raises(CheckpointError, match="does not fit the network"):
        trainer(shapes, tmp_path, fpn_width=16)


@pytest.mark.parametrize(("batch", "frozen"), [(5, True), (6, False)])
def test_batch_norm_is_frozen_below_six_pictures(shapes: CocoDataset, tmp_path: Path, batch: int, frozen: bool) -> None:
    made = trainer(shapes, tmp_path, replace(SETTINGS, batch=batch, iterations=1))
    before = made.network.backbone.bn1.running_mean.clone()
    weight = made.network.backbone.bn1.weight.detach().clone()
    made.run()
    assert made.norms_frozen is frozen
    assert torch.equal(made.network.backbone.bn1.running_mean, before) is frozen
    assert torch.equal(made.network.backbone.bn1.weight, weight) is frozen


def poison(made: Trainer, iterations: set[int], value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of these iterations hold `value` everywhere."""
    step = made._step

    def poisoned(images: Tensor, targets: Any) -> StepReport:
        if made.progress.iteration in iterations:
            images = torch.full_like(images, value)
        return step(images, targets)

    monkeypatch.setattr(made, "_step", poisoned)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    shapes: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(shapes, tmp_path)
    poison(made, {2, 4}, float("nan"), monkeypatch)
    states: dict[int, dict[str, Tensor]] = {}

    def keep(found: StepReport) -> None:
        states[found.iteration] = {key: value.clone() for key, value in made.network.state_dict().items()}
        assert bool(found.losses) is (found.iteration not in (3, 5))

    made.run(keep)
    assert made.progress.skipped == 2
    assert all(torch.equal(states[2][key], states[3][key]) for key in states[2])
    assert not all(torch.equal(states[3][key], states[4][key]) for key in states[3])
    assert all(bool(torch.isfinite(value).all()) for value in states[6].values())
    assert read_progress(tmp_path / RESUME_FILE).skipped == 2


def test_a_gradient_that_is_not_finite_is_skipped_too(shapes: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(shapes, tmp_path)
    made.network.backbone.conv1.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = made.network.fpn.lat_layers[0].weight.detach().clone()
    made.run()
    assert made.progress.skipped == 6
    assert torch.equal(made.network.fpn.lat_layers[0].weight, before)


def test_divergence_ends_the_training(shapes: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(shapes, tmp_path, replace(SETTINGS, iterations=80, batch=1))
    poison(made, set(range(1, 80)), float("nan"), monkeypatch)
    with pytest.raises(TrainingError, match=r"50 steps in a row .* up to iteration 51"):
        made.run()


def test_skipped_steps_that_are_not_in_a_row_end_nothing(shapes: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolact_deploy.training.loop._MOST_SKIPPED", 3)
    made = trainer(shapes, tmp_path, replace(SETTINGS, iterations=6))
    poison(made, {0, 1, 3, 4}, float("nan"), monkeypatch)
    made.run()
    assert made.progress.skipped == 4


def test_clipping_limits_the_step(shapes: CocoDataset, tmp_path: Path) -> None:
    settings = replace(SETTINGS, iterations=1, decay=0.0, schedule=Schedule(1.0, 0.5, warmup=10, steps=()), clip=0.01)
    made = trainer(shapes, tmp_path, settings)
    before = [value.detach().clone() for value in made.network.parameters()]
    made.run()
    moved = sum(float((value.detach() - old).double().square().sum()) for value, old in zip(made.network.parameters(), before, strict=True))
    assert moved**0.5 == pytest.approx(0.5 * 0.01, rel=1e-3), "the rate of iteration 0 times the clipped norm"


def test_bfloat16_trains(shapes: CocoDataset, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    made = trainer(shapes, tmp_path, replace(SETTINGS, precision="bf16", iterations=2))
    made.run(reports.append)
    assert all(report.losses for report in reports)
    assert all(value.dtype == torch.float32 for value in made.network.parameters())


def test_workers_give_the_same_bits(shapes: CocoDataset, tmp_path: Path) -> None:
    one = trainer(shapes, tmp_path / "one", replace(SETTINGS, iterations=2)).run()
    other = trainer(shapes, tmp_path / "other", replace(SETTINGS, iterations=2, workers=1)).run()
    assert_same(one, other)


def test_the_rescoring_net_is_trained_too(shapes: CocoDataset, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    fields = {
        "input_size": 256,
        "prior_sizes": ((16,), (32,), (64,), (128,), (224,)),
        "mask_rescoring": True,
        "backbone_width": 8,
        "fpn_width": 16,
    }
    made = trainer(shapes, tmp_path, replace(SETTINGS, iterations=2, batch=2), **fields)
    before = made.network.maskiou_net.maskiou_net[0].weight.detach().clone()
    made.run(reports.append)
    assert reports[0].losses["mask_iou"] > 0
    assert not torch.equal(made.network.maskiou_net.maskiou_net[0].weight, before)


@pytest.mark.parametrize("field", ["iterations", "batch", "save_every"])
def test_zero_of_anything_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is 0"):
        replace(SETTINGS, **{field: 0})
