"""A small training that tests and the processes that they start make alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.helpers.tiny import tiny_variant
from yolact_deploy.data import read_dataset, write_shapes
from yolact_deploy.data.coco import CocoDataset
from yolact_deploy.model import Yolact
from yolact_deploy.training.augment import AugmentSettings
from yolact_deploy.training.initial import initialise
from yolact_deploy.training.loop import Trainer, TrainSettings
from yolact_deploy.training.processes import Processes
from yolact_deploy.training.schedule import Schedule

__all__ = ["settings", "trainer"]


def settings(**fields: Any) -> TrainSettings:
    plain = AugmentSettings(photometric=False, expand=False, crop=False)
    return replace(TrainSettings(iterations=3, schedule=Schedule(2e-3, warmup=2, steps=(4,)), clip=10, augment=plain), **fields)


def trainer(folder: Path, given: TrainSettings, processes: Processes) -> Trainer:
    """A tiny network on eight synthetic pictures; the first process draws them."""
    shapes = folder / "shapes"
    if processes.first:
        write_shapes(shapes, 8, size=128)
    processes.wait()
    dataset: CocoDataset = read_dataset(shapes / "annotations.json")
    network = Yolact(tiny_variant(num_classes=9))
    initialise(network, 1)
    return Trainer(network, dataset.classes, dataset, folder, given, processes=processes)
