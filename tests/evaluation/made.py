"""A random data set on disk, random detections for it, and what pycocotools makes of both by hand."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolact_deploy.data import CocoDataset, read_dataset
from yolact_deploy.detections import Detections
from yolact_deploy.evaluation.store import ResultStore, StoreHeader

__all__ = ["by_hand", "filled_store", "header_of", "jittered", "make_dataset"]

_CATEGORIES = ((7, "dog"), (3, "cat"), (90, "bird"), (12, "fish"))  # fish has no instance
_BARE = (4, 900)  # pictures without annotations
_CROWDED = 17  # a picture with more than 100 detections of one class


def make_dataset(folder: Path, *, seed: int = 0, pictures: bool = False, category_names: tuple[str, ...] = ()) -> CocoDataset:
    """12 pictures of several sizes with up to 7 rectangles each, of all of COCO's sizes, crowds among them."""
    generator = np.random.default_rng(seed)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": i, "name": name} for i, name in _CATEGORIES]}
    for place, name in enumerate(category_names):
        content["categories"][place]["name"] = name
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for image_id in (1, 2, 4, 5, 17, 23, 24, 100, 101, 900, 901, 70000):
        width, height = (int(value) for value in generator.integers(120, 260, 2))
        content["images"].append({"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height})
        if pictures:
            noise = generator.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(noise).save(folder / "images" / f"{image_id}.png", compress_level=1)
        for _ in range(0 if image_id in _BARE else int(generator.integers(1, 8))):
            content["annotations"].append(_annotation(generator, content, image_id, width, height))
    path = folder / "annotations.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_dataset(path)


def _annotation(generator: np.random.Generator, content: dict[str, Any], image_id: int, width: int, height: int) -> dict[str, Any]:
    size = int(generator.choice([12, 24, 60, 110]))
    x, y = (int(generator.integers(0, limit - size)) for limit in (width, height))
    bitmap = np.zeros((height, width), np.uint8, order="F")
    bitmap[y : y + size, x : x + size] = 1
    bitmap[y : y + size // 3, x : x + size // 3] = 0
    rle = coco_mask.encode(bitmap)
    return {
        "id": len(content["annotations"]) + 1,
        "image_id": image_id,
        "category_id": int(generator.choice([7, 3, 90])),
        "bbox": [x, y, size, size],
        "area": int(coco_mask.area(rle)),
        "iscrowd": int(generator.random() < 0.15),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


def jittered(dataset: CocoDataset, image_id: int, *, seed: int = 0, rescored: bool = True) -> Detections:
    """The picture's objects, somewhat moved, some of another class, some twice, and some that are not there; scores of few digits,
    so that several are equal."""
    generator = np.random.default_rng([seed, image_id])
    image = dataset.image(image_id)
    instances = [*dataset.instances(image_id), *dataset.instances(image_id)[:2]]
    boxes, labels, counts = [], [], []
    for instance in instances:
        x, y, w, h = (int(value) for value in instance.box)
        right, down = (int(value) for value in generator.integers(-4, 5, 2))
        boxes.append((x + right, y + down, x + right + w, y + down + h))
        labels.append(instance.label if generator.random() < 0.8 else int(generator.integers(0, 4)))
    crowded = image_id == _CROWDED
    for _ in range(110 if crowded else 3):
        x, y = (int(value) for value in generator.integers(0, 90, 2))
        boxes.append((x, y, x + 20, y + 13))
        labels.append(instances[0].label if crowded else int(generator.integers(0, 4)))
    order = generator.permutation(len(boxes))
    boxes, labels = [boxes[place] for place in order], [labels[place] for place in order]
    for x1, y1, x2, y2 in boxes:
        bitmap = np.zeros((image.height, image.width), np.uint8, order="F")
        bitmap[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = 1
        counts.append(coco_mask.encode(bitmap)["counts"])
    clipped = np.clip(np.array(boxes, np.float32) + np.float32(0.3), 0, [image.width, image.height] * 2).astype(np.float32)
    scores = np.sort(generator.integers(1, 12, len(boxes)).astype(np.float32) / np.float32(12))[::-1].copy()
    mask_scores = (scores * generator.random(len(boxes), np.float32)).astype(np.float32) if rescored else scores
    names, identifiers = dataset.classes.names, dataset.classes.category_ids
    spent = {"inference": float(generator.random()), "read": 0.1}
    size = (image.width, image.height)
    return Detections(clipped, scores, mask_scores, np.array(labels, np.int64), tuple(counts), *size, names, identifiers, spent)


def header_of(dataset: CocoDataset, **changes: Any) -> StoreHeader:
    """A header for a model that does not exist."""
    fields: dict[str, Any] = {"settings": {"group": 8}, "versions": {"numpy": "1"}, "model": "made", "model_sha256": "a" * 64, **changes}
    return StoreHeader(data_sha256=dataset.sha256, classes=dataset.classes, **fields)


def filled_store(path: Path, dataset: CocoDataset, **options: Any) -> ResultStore:
    """A store of :func:`jittered` detections of all pictures."""
    store = ResultStore.create(path, header_of(dataset))
    for image in dataset.images:
        store.append(image.id, jittered(dataset, image.id, **options))
    return store


def by_hand(annotations: Path, results: Path, iou_type: str, image_ids: list[int] | None = None) -> COCOeval:
    """pycocotools on two files, as its own demo does it."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), iou_type)
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
