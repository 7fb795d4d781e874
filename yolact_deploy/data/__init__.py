"""Pictures to learn from, to measure on, to calibrate with and to try things on."""

from __future__ import annotations

from yolact_deploy.data.coco import CocoDataset, CocoImage, Instance, read_dataset
from yolact_deploy.data.sample import sample_picture
from yolact_deploy.data.shapes import SHAPES, Scene, shapes_scene, write_shapes

__all__ = [
    "SHAPES",
    "CocoDataset",
    "CocoImage",
    "Instance",
    "Scene",
    "read_dataset",
    "sample_picture",
    "shapes_scene",
    "write_shapes",
]
