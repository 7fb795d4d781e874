"""Small random training problems: a grid of priors, a few objects with masks, and predictions for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.reference.losses import Objects
from yolact_deploy.model.network import HeadOutputs
from yolact_deploy.training.targets import Target

__all__ = ["Problem", "as_target", "make_objects", "make_priors", "make_problem"]

CLASSES, PROTOTYPES, GRID, SIZE = 4, 3, 8, 32


@dataclass(frozen=True)
class Problem:
    """Predictions for B pictures and what they show."""

    outputs: HeadOutputs
    priors: np.ndarray
    objects: list[Objects]

    @property
    def targets(self) -> list[Target]:
        return [as_target(one) for one in self.objects]


def as_target(objects: Objects) -> Target:
    return Target(
        torch.from_numpy(objects.boxes.astype(np.float32)),
        torch.tensor(objects.labels, dtype=torch.int64),
        torch.from_numpy(objects.masks),
        torch.from_numpy(objects.crowds.astype(np.float32)),
    )


def make_priors(random: np.random.Generator, count: int = 40) -> np.ndarray:
    return np.concatenate([random.uniform(0.1, 0.9, (count, 2)), random.uniform(0.15, 0.6, (count, 2))], 1).astype(np.float32)


def make_objects(random: np.random.Generator, count: int, crowds: int = 0) -> Objects:
    """Ellipses in their boxes, and crowds' boxes."""

    def boxes(number: int) -> np.ndarray:
        centre, half = random.uniform(0.3, 0.7, (number, 2)), random.uniform(0.1, 0.29, (number, 2))
        return np.concatenate([centre - half, centre + half], 1).astype(np.float32).astype(float)

    found = boxes(count)
    rows, columns = (np.mgrid[0:SIZE, 0:SIZE] + 0.5) / SIZE
    masks = np.zeros((count, SIZE, SIZE), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, found, strict=True):
        mask[:] = ((columns - (x1 + x2) / 2) / (x2 - x1) * 2) ** 2 + ((rows - (y1 + y2) / 2) / (y2 - y1) * 2) ** 2 <= 1
    return Objects(found, random.integers(0, CLASSES - 1, count).tolist(), masks, boxes(crowds))


def make_problem(seed: int, counts: tuple[int, ...] = (3, 2), crowds: tuple[int, ...] = (1, 0)) -> Problem:
    random = np.random.Generator(np.random.PCG64(seed))
    priors = make_priors(random)

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(random.standard_normal((len(counts), *shape)).astype(np.float32))

    outputs = HeadOutputs(
        draw(len(priors), 4),
        draw(len(priors), CLASSES),
        torch.tanh(draw(len(priors), PROTOTYPES)),
        torch.relu(draw(PROTOTYPES, 2 * GRID, 2 * GRID)),
        draw(CLASSES - 1, GRID, GRID),
    )
    return Problem(outputs, priors, [make_objects(random, *numbers) for numbers in zip(counts, crowds, strict=True)])
