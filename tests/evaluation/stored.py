"""Made-up detections and annotations of rectangles, and a store that holds them in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from yolact_deploy.classes import ClassList
from yolact_deploy.data.coco import CocoDataset, CocoImage, Instance
from yolact_deploy.detections import Detections

__all__ = ["CLASSES", "HEIGHT", "WIDTH", "Stored", "dataset_of", "found", "rectangle", "rle"]

WIDTH, HEIGHT = 64, 48
CLASSES = ClassList(("cat", "dog", "<script>alert(1)</script>"), (1, 7, 9))
Rectangle = tuple[int, int, int, int]


class Stored(dict[int, Detections]):
    """Detections by image id, as a ResultStore gives them."""

    def detections(self, image_id: int, /) -> Detections:
        return self[image_id]


def rectangle(*parts: Rectangle) -> np.ndarray[Any, Any]:
    """uint8 [HEIGHT, WIDTH]: 1 in the rectangles x1, y1, x2, y2, the last two exclusive."""
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
    for x1, y1, x2, y2 in parts:
        bitmap[y1:y2, x1:x2] = 1
    return bitmap


def rle(bitmap: np.ndarray[Any, Any]) -> dict[str, Any]:
    coded: dict[str, Any] = coco_mask.encode(np.asfortranarray(bitmap))
    return coded


def found(rows: Iterable[tuple[Any, ...]]) -> Detections:
    """Detections from (label, score, box) or (label, score, box, mask), best first as a detector gives them; masks fill their boxes."""
    rows = sorted(rows, key=lambda row: -row[1])
    boxes = np.array([row[2] for row in rows], np.float32).reshape(-1, 4)
    masks = [row[3] if len(row) > 3 else rectangle(row[2]) for row in rows]
    scores = np.array([row[1] for row in rows], np.float32)
    labels = np.array([row[0] for row in rows], np.int64)
    counts = tuple(rle(mask)["counts"] for mask in masks)
    return Detections(boxes, scores, scores, labels, counts, WIDTH, HEIGHT, *(CLASSES.names, CLASSES.category_ids))


def dataset_of(objects: dict[int, Sequence[tuple[Any, ...]]], folder: Path = Path("."), names: dict[int, str] | None = None) -> CocoDataset:
    """A data set with (label, box) or (label, box, mask) or (label, box, mask, crowd) of each picture, by image id."""
    instances: dict[int, list[Instance]] = {}
    number = 0
    for image_id, rows in objects.items():
        for label, (x1, y1, x2, y2), *more in rows:
            number += 1
            mask = more[0] if more else rectangle((x1, y1, x2, y2))
            box = (float(x1), float(y1), float(x2 - x1), float(y2 - y1))
            crowd = bool(more[1:] and more[1])
            instances.setdefault(image_id, []).append(Instance(number, label, box, float(mask.sum()), crowd, rle(mask)))
    images = [CocoImage(image_id, (names or {}).get(image_id, f"{image_id:03}.png"), WIDTH, HEIGHT) for image_id in objects]
    return CocoDataset(folder / "annotations.json", folder, CLASSES, images, instances, sha256="0" * 64)
