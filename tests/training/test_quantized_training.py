"""Training with fake quantization: it learns, leaves ordinary checkpoints, and goes on after an interruption with the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.tiny import tiny_variant
from yolact_deploy.data import read_dataset, write_shapes
from yolact_deploy.data.coco import CocoDataset
from yolact_deploy.errors import CheckpointError, ConfigError
from yolact_deploy.model import Yolact, load_checkpoint
from yolact_deploy.training.augment import AugmentSettings
from yolact_deploy.training.initial import initialise
from yolact_deploy.training.loop import StepReport, Trainer, TrainSettings
from yolact_deploy.training.processes import Processes
from yolact_deploy.training.quantization import FakeQuantization, QuantizationSettings
from yolact_deploy.training.samples import BatchKeys, Samples, collate, trainable
from yolact_deploy.training.schedule import Schedule
from yolact_deploy.training.state import RESUME_FILE, Progress, load_state, read_progress, save_state

SETTINGS = TrainSettings(
    iterations=4,
    batch=6,
    schedule=Schedule(2e-3, warmup=0, steps=(3,)),
    clip=10,
    save_every=2,
    augment=AugmentSettings(photometric=False, expand=False, crop=False),
    quantization=QuantizationSettings(batches=2, method="minmax"),
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return read_dataset(write_shapes(tmp_path_factory.mktemp("shapes"), 8, size=128))


@pytest.fixture(scope="module")
def trained(shapes: CocoDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = Yolact(tiny_variant(num_classes=9))
    initialise(network, 1)
    settings = replace(SETTINGS, iterations=25, schedule=Schedule(0.01, warmup=5, steps=()), quantization=None, save_every=100)
    return Trainer(network, shapes.classes, shapes, tmp_path_factory.mktemp("trained"), settings).run()


def trainer(trained: Path, shapes: CocoDataset, folder: Path, settings: TrainSettings = SETTINGS) -> Trainer:
    return Trainer(load_checkpoint(trained).network, shapes.classes, shapes, folder, settings)


def test_training_lowers_the_quantized_networks_loss(trained: Path, shapes: CocoDataset, tmp_path: Path) -> None:
    plain = AugmentSettings(photometric=False, expand=False, crop=False, mirror=False)
    settings = replace(SETTINGS, iterations=20, schedule=Schedule(5e-3, warmup=0, steps=()), augment=plain, save_every=100)
    made = trainer(trained, shapes, tmp_path, settings)
    statistics = made.network.backbone.bn1.running_mean.clone()
    reports: list[StepReport] = []

    def note(found: StepReport) -> None:
        reports.append(found)
        assert made.quantization is not None
        assert made.quantization.attached

    made.run(note)
    first, last = (sum(sum(one.losses.values()) for one in part) / 4 for part in (reports[:4], reports[-4:]))
    assert last < 0.9 * first
    assert made.quantization is not None
    assert not made.quantization.attached
    assert made.norms_frozen
    assert torch.equal(made.network.backbone.bn1.running_mean, statistics)


def test_an_interrupted_training_goes_on_with_the_same_ranges_and_bits(
    trained: Path, shapes: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def kill(found: StepReport) -> None:
        if found.iteration == 3:
            raise KilledError

    whole = trainer(trained, shapes, tmp_path / "whole")
    ended = load_checkpoint(whole.run()).network.state_dict()
    with pytest.raises(KilledError):
        trainer(trained, shapes, tmp_path / "parted").run(kill)
    ranges = read_progress(tmp_path / "parted" / RESUME_FILE).ranges
    assert ranges == whole.progress.ranges
    monkeypatch.setattr(FakeQuantization, "observe", None)
    going_on = trainer(trained, shapes, tmp_path / "parted")
    assert going_on.progress.iteration == 2
    found = load_checkpoint(going_on.run()).network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in ended.items())
    with pytest.raises(ConfigError, match=r"other settings \(quantization\)"):
        trainer(trained, shapes, tmp_path / "parted", replace(SETTINGS, quantization=None))


class Alone(Processes):
    """One of several processes, whose others are not there."""

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        return module

    def all_agree(self, answer: bool, device: torch.device) -> bool:
        return answer

    def wait(self) -> None:
        pass


def test_the_ranges_are_those_of_the_first_process_first_batches(trained: Path, shapes: CocoDataset, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained)
    samples = Samples(shapes, trainable(shapes), checkpoint.variant, SETTINGS.augment, SETTINGS.seed)
    wanted = FakeQuantization(checkpoint.network, SETTINGS.quantization)
    wanted.observe(collate([samples[key] for key in keys])[0] for keys in BatchKeys(8, 6, 0, 2, world=2))
    for rank in (0, 1):
        network = load_checkpoint(trained).network
        given = replace(SETTINGS, iterations=1)
        made = Trainer(network, shapes.classes, shapes, tmp_path / str(rank), given, processes=Alone(rank, 0, 2))
        made.run()
        assert made.progress.ranges == pytest.approx(wanted.ranges, rel=1e-5)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf"), "1", None, [1.0]])
def test_damaged_ranges_are_refused(tmp_path: Path, wrong: Any) -> None:
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for ranges in ({"a": 1.0, "b": wrong}, wrong):
        save_state(tmp_path / RESUME_FILE, network, optimizer, Progress(ranges=ranges))
        with pytest.raises(CheckpointError, match="no training state"):
            load_state(tmp_path / RESUME_FILE, network, optimizer)
    save_state(tmp_path / RESUME_FILE, network, optimizer, Progress(ranges={"a": 1.0}))
    assert load_state(tmp_path / RESUME_FILE, network, optimizer).ranges == {"a": 1.0}


def test_the_state_of_an_earlier_version_has_no_ranges(tmp_path: Path) -> None:
    from safetensors.torch import save

    fields = {key: value for key, value in vars(Progress(iteration=3)).items() if key != "ranges"}
    (tmp_path / RESUME_FILE).write_bytes(save({"a": torch.zeros(1)}, {"yolact_deploy_training": json.dumps(fields)}))
    assert read_progress(tmp_path / RESUME_FILE) == Progress(iteration=3)
