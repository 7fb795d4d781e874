"""Which picture comes when, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.tiny import tiny_variant
from yolact_deploy.data import read_dataset, write_shapes
from yolact_deploy.data.coco import CocoDataset
from yolact_deploy.errors import DatasetError
from yolact_deploy.training.augment import AugmentSettings
from yolact_deploy.training.samples import BatchKeys, Samples, collate, load_scene, normalised, trainable
from yolact_deploy.variants import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return read_dataset(write_shapes(tmp_path_factory.mktemp("shapes"), 6, size=96))


def changed(shapes: CocoDataset, tmp_path: Path, **fields: object) -> CocoDataset:
    """The data set with parts of its annotation file replaced."""
    document = {**json.loads(shapes.annotations.read_text(encoding="utf-8")), **fields}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return read_dataset(path, shapes.folder)


def test_every_epoch_is_a_new_order_of_all_pictures() -> None:
    keys = [key for batch in BatchKeys(10, 4, 0, 5, seed=3) for key in batch]
    first, second = [index for _, index in keys[:10]], [index for _, index in keys[10:]]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert [position for position, _ in keys] == list(range(20))
    assert [index for _, index in next(iter(BatchKeys(10, 4, 0, 5, seed=4)))] != first[:4]


def test_going_on_gives_the_batches_that_were_left() -> None:
    assert list(BatchKeys(7, 3, 0, 9, seed=1))[4:] == list(BatchKeys(7, 3, 4, 9, seed=1))
    assert len(BatchKeys(7, 3, 4, 9)) == 5
    assert len(BatchKeys(7, 3, 9, 4)) == 0


def test_processes_share_each_step() -> None:
    whole = list(BatchKeys(9, 4, 0, 6, seed=2))
    halves = [list(BatchKeys(9, 2, 0, 6, seed=2, rank=rank, world=2)) for rank in (0, 1)]
    assert [one + other for one, other in zip(*halves, strict=True)] == whole


def test_samples_follow_from_their_key_alone(shapes: CocoDataset) -> None:
    variant = tiny_variant()
    images = trainable(shapes)
    one, other = (Samples(shapes, images, variant, AugmentSettings(), seed) for seed in (5, 6))
    (picture, target), (again, same) = one[(17, 2)], one[(17, 2)]
    assert torch.equal(picture, again)
    assert all(torch.equal(a, b) for a, b in zip(target, same, strict=True))
    assert not torch.equal(picture, one[(18, 2)][0])
    assert not torch.equal(picture, other[(17, 2)][0])
    assert picture.shape == (3, 128, 128)
    assert len(one) == 6


def test_targets_are_relative_and_in_the_networks_size(shapes: CocoDataset) -> None:
    plain = AugmentSettings(photometric=False, expand=False, crop=False, mirror=False)
    images = trainable(shapes)
    picture, target = Samples(shapes, images, tiny_variant(), plain)[(0, 1)]
    instances = shapes.instances(images[1].id)
    boxes = np.array([found.box for found in instances], np.float32)
    np.testing.assert_allclose(target.boxes, np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) / 96, rtol=1e-5)
    assert target.labels.tolist() == [found.label for found in instances]
    assert target.masks.shape == (len(instances), 128, 128)
    assert target.masks.dtype == torch.uint8
    batch, targets = collate([(picture, target), (picture, target)])
    assert batch.shape == (2, 3, 128, 128)
    assert len(targets) == 2


def test_normalisation() -> None:
    picture = np.zeros((2, 2, 3), np.float32) + np.float32(IMAGENET_MEAN) + np.float32(IMAGENET_STD) * np.float32([1, 2, 3])
    np.testing.assert_allclose(normalised(picture, tiny_variant())[:, 0, 0], [1, 2, 3], rtol=1e-5)
    unit = normalised(np.full((2, 2, 3), 51, np.float32), tiny_variant(backbone="darknet", normalization="unit"))
    np.testing.assert_allclose(unit, 0.2)


def test_pictures_without_objects_are_left_out(shapes: CocoDataset, tmp_path: Path) -> None:
    document = json.loads(shapes.annotations.read_text(encoding="utf-8"))
    kept = [one for one in document["annotations"] if one["image_id"] not in (2, 5)]
    crowds = [{**one, "iscrowd": 1} for one in document["annotations"] if one["image_id"] == 5]
    found = trainable(changed(shapes, tmp_path, annotations=kept + crowds))
    assert [image.id for image in found] == [1, 3, 4, 6]
    with pytest.raises(DatasetError, match="no picture with an object"):
        trainable(changed(shapes, tmp_path, annotations=[]))


def test_crowds_are_regions_and_no_objects(shapes: CocoDataset, tmp_path: Path) -> None:
    document = json.loads(shapes.annotations.read_text(encoding="utf-8"))
    first = next(image for image in shapes.images if len(shapes.instances(image.id)) > 1)
    own = [one for one in document["annotations"] if one["image_id"] == first.id]
    own[0] = {**own[0], "iscrowd": 1}
    scene = load_scene(changed(shapes, tmp_path, annotations=own), first)
    x, y, width, height = own[0]["bbox"]
    assert scene.crowd_boxes.tolist() == [[x, y, x + width, y + height]]
    assert len(scene.labels) == len(scene.masks) == len(scene.boxes) == len(own) - 1


def test_missing_pictures_are_counted(shapes: CocoDataset, tmp_path: Path) -> None:
    document = json.loads(shapes.annotations.read_text(encoding="utf-8"))
    document["images"][3]["file_name"] = "gone.png"
    with pytest.raises(DatasetError, match=r"1 of 6 pictures .* gone\.png"):
        trainable(changed(shapes, tmp_path, images=document["images"]))


def test_a_picture_of_another_size_is_refused(shapes: CocoDataset, tmp_path: Path) -> None:
    document = json.loads(shapes.annotations.read_text(encoding="utf-8"))
    images = [{**image, "width": 97} for image in document["images"]]
    masks = [{**one, "segmentation": [[1, 1, 20, 1, 20, 20]]} for one in document["annotations"]]
    dataset = changed(shapes, tmp_path, images=images, annotations=masks)
    with pytest.raises(DatasetError, match="has 96x96 pixels, its annotations say 97x96"):
        load_scene(dataset, dataset.images[0])
