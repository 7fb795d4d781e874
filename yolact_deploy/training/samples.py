"""Training samples from a COCO-format data set: which picture comes when, and what is made of it, both following from the seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from yolact_deploy.data.coco import CocoDataset, CocoImage
from yolact_deploy.errors import DatasetError
from yolact_deploy.pictures import read_picture
from yolact_deploy.training.augment import AugmentSettings, Scene, augment
from yolact_deploy.training.targets import Target
from yolact_deploy.variants import IMAGENET_MEAN, IMAGENET_STD, Variant

__all__ = ["BatchKeys", "Samples", "collate", "load_scene", "normalised", "trainable"]

Key = tuple[int, int]
"""Position in the whole training's sequence of pictures, and index of the picture."""


def trainable(dataset: CocoDataset) -> tuple[CocoImage, ...]:
    """The pictures with at least one object that is no crowd; :class:`DatasetError` where there is none or a file is missing."""
    missing = dataset.missing_pictures()
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(dataset.images)} pictures of {dataset.annotations} are not in {dataset.folder}, "
            f"the first is {missing[0].file_name}.",
            "Name the right folder with --images.",
        )
    images = tuple(image for image in dataset.images if any(not found.crowd for found in dataset.instances(image.id)))
    if not images:
        raise DatasetError(f"{dataset.annotations} holds no picture with an object that is no crowd.", "Give an annotated data set.")
    return images


def load_scene(dataset: CocoDataset, image: CocoImage) -> Scene:
    """The picture and its annotations; :class:`DatasetError` where the file's size is not the annotated one."""
    picture = read_picture(dataset.picture_path(image))
    if picture.shape[:2] != (image.height, image.width):
        found = f"{picture.shape[1]}x{picture.shape[0]}"
        raise DatasetError(
            f"The picture {image.file_name} has {found} pixels, its annotations say {image.width}x{image.height}.",
            "Take the pictures that the annotations were made on.",
        )
    instances = dataset.instances(image.id)
    objects = [found for found in instances if not found.crowd]
    boxes = np.array([found.box for found in instances], np.float32).reshape(-1, 4)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).astype(np.float32)
    crowd = np.array([found.crowd for found in instances], bool)
    labels = np.array([found.label for found in objects], np.int64)
    return Scene(picture, corners[~crowd], labels, dataset.masks(image, objects), corners[crowd])


def normalised(picture: NDArray[np.float32], variant: Variant) -> Tensor:
    """float32 RGB [S, S, 3] in 0 … 255 -> float32 [3, S, S] as the network takes it."""
    if variant.normalization == "imagenet":
        mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
        picture = np.asarray((picture - mean) / std, np.float32)
    else:
        picture = picture / np.float32(255)
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32))


class Samples(Dataset[tuple[Tensor, Target]]):
    """Augmented pictures by :data:`Key`. The same key, seed and data set give the same sample, in any process and order."""

    def __init__(
        self, dataset: CocoDataset, images: Sequence[CocoImage], variant: Variant, settings: AugmentSettings, seed: int = 0
    ) -> None:
        self.dataset, self.images, self.variant, self.settings, self.seed = dataset, images, variant, settings, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[Tensor, Target]:
        """Normalised picture float32 [3, S, S] and its target."""
        position, index = key
        size = self.variant.input_size
        random = np.random.Generator(np.random.PCG64([self.seed, position]))
        scene = augment(load_scene(self.dataset, self.images[index]), size, random, self.settings)
        target = Target(
            torch.from_numpy(scene.boxes / np.float32(size)),
            torch.from_numpy(scene.labels),
            torch.from_numpy(scene.masks),
            torch.from_numpy(scene.crowd_boxes / np.float32(size)),
        )
        return normalised(np.asarray(scene.picture, np.float32), self.variant), target


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """Pictures float32 [B, 3, S, S] and B targets."""
    return torch.stack([picture for picture, _ in samples]), [target for _, target in samples]


class BatchKeys(Sampler[list[Key]]):
    """Batches of keys from iteration `start` to `stop`: each epoch is a new permutation of all pictures, batches run across its end.

    Of each batch of ``batch * world`` pictures the process `rank` takes its own `batch`.
    """

    def __init__(self, count: int, batch: int, start: int, stop: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.count, self.batch, self.start, self.stop = count, batch, start, stop
        self.seed, self.rank, self.world = seed, rank, world

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, np.zeros(0, np.int64)
        for iteration in range(self.start, self.stop):
            keys = []
            for place in range(self.batch):
                position = (iteration * self.world + self.rank) * self.batch + place
                if position // self.count != epoch:
                    epoch = position // self.count
                    order = np.random.Generator(np.random.PCG64([self.seed, 1, epoch])).permutation(self.count)
                keys.append((position, int(order[position % self.count])))
            yield keys
