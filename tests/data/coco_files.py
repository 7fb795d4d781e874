"""COCO annotation files made for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yolact_deploy.data import CocoDataset, read_dataset

__all__ = ["SQUARE", "annotation", "content", "read", "write"]

SQUARE = [[2, 1, 7, 1, 7, 5, 2, 5]]
"""A polygon in a picture of 12 x 10 pixels (width x height)."""


def annotation(identifier: int | None = 1, **changes: Any) -> dict[str, Any]:
    """A good annotation of :data:`SQUARE`; a change to None takes the key away."""
    made: dict[str, Any] = {"image_id": 1, "category_id": 3, "bbox": [2, 1, 5, 4], "area": 20, "iscrowd": 0, "segmentation": SQUARE}
    made = {"id": identifier, **made, **changes}
    return {key: value for key, value in made.items() if value is not None}


def content(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A good file with the images 1 (a.jpg) and 5 (sub/b.jpg), and the categories 7 (cat) and 3 (dog)."""
    images = [{"id": i, "file_name": name, "width": 12, "height": 10} for i, name in ((5, "sub/b.jpg"), (1, "a.jpg"))]
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    return {"images": images, "annotations": list(annotations), "categories": categories, **changes}


def write(folder: Path, found: Any) -> Path:
    """Write `found` as JSON, or as it is where it is bytes."""
    path = folder / "instances.json"
    path.write_bytes(found if isinstance(found, bytes) else json.dumps(found).encode())
    return path


def read(folder: Path, *annotations: dict[str, Any], **changes: Any) -> CocoDataset:
    """Write :func:`content` and read it."""
    return read_dataset(write(folder, content(*annotations, **changes)), folder)
