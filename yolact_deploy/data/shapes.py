"""The synthetic shapes set: its scenes, and the folder in COCO format that holds many of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from yolact_deploy.data.scenes import SHAPES, SIZES, Scene, shapes_scene
from yolact_deploy.errors import ConfigError, OutputError
from yolact_deploy.files import atomic_output, write_text

__all__ = ["SHAPES", "SIZES", "Scene", "shapes_scene", "write_shapes"]

_DESCRIPTION = "yolact-deploy make-shapes"
_LEFT_ASIDE = re.compile(r"\.shapes-.*\.part")  # what a killed run leaves
_MOST = 999_999  # six digits in a picture's name


def write_shapes(
    folder: Path,
    count: int,
    *,
    seed: int = 0,
    size: int = 256,
    progress: Callable[[int, int], None] | None = None,
    force: bool = False,
) -> Path:
    """Write scenes 0 … `count` - 1 as ``images/000001.png`` … and ``annotations.json`` (COCO format) into `folder`.

    Args:
        folder: made when missing. A set of this command in it is replaced; a set that was changed since, and a folder with
            anything else, needs `force`, which replaces files of the same names and leaves all others.
        count: how many, 1 … 999,999. Scene i is the same whatever `count` is.
        seed: names the set; 0 or more.
        size: side of the pictures, pixels.
        progress: called with how many pictures are drawn and `count`.

    Returns the annotation file's path; segmentations in it are compressed RLE, ``area`` and ``bbox`` those of the visible mask.
    The pictures are drawn aside and moved into place at the end, so that an interrupted run leaves what was there. Raises
    :class:`ConfigError` for numbers out of range and :class:`OutputError` where the folder is foreign or cannot be written.
    """
    _check(count, seed, size)
    annotations, pictures = folder / "annotations.json", folder / "images"
    content = _content(seed, size, count)
    try:
        stale = _own_pictures(folder, force)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".shapes-", suffix=".part", dir=folder) as aside:
            for index in range(count):
                scene = shapes_scene(index, seed=seed, size=size)
                name = f"{index + 1:06}.png"
                Image.fromarray(scene.picture).save(Path(aside, name), compress_level=3)
                content["images"].append({"id": index + 1, "file_name": name, "width": size, "height": size})
                content["annotations"] += _annotations(scene, index + 1, len(content["annotations"]))
                if progress is not None:
                    progress(index + 1, count)
            with atomic_output(annotations) as part:
                part.write_text(_sealed(content), encoding="utf-8")
                # While pictures are moved the set names none of them, and still says whose they are.
                write_text(annotations, _sealed(_content(seed, size, max(count, len(stale)))))
                _move(Path(aside), pictures, stale)
    except OSError as error:
        raise OutputError(f"{folder} could not be written: {error.strerror or error}.", "Free some space or choose another.") from error
    return annotations


def _content(seed: int, size: int, count: int) -> dict[str, Any]:
    """An annotation file that names no picture yet."""
    return {
        "info": {"description": _DESCRIPTION, "version": "1", "seed": seed, "size": size, "count": count},
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in zip(SHAPES.category_ids, SHAPES.names, strict=True)],
    }


def _digest(content: dict[str, Any]) -> str:
    parts = [content[name] for name in ("images", "annotations", "categories")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sealed(content: dict[str, Any]) -> str:
    """The file's text, with a digest that tells whether somebody has changed it since."""
    return json.dumps({**content, "info": {**content["info"], "digest": _digest(content)}})


def _check(count: int, seed: int, size: int) -> None:
    if not 1 <= count <= _MOST:
        raise ConfigError(f"{count} pictures were asked for, 1 to {_MOST:,} are possible.", "Mend the count.")
    if seed < 0:
        raise ConfigError(f"The seed is {seed}, a number from 0 on was wanted.", "Mend the seed.")
    if size not in SIZES:
        raise ConfigError(f"Pictures of {size} px were asked for, {SIZES[0]} to {SIZES[-1]} px are possible.", "Mend the size.")


def _own_pictures(folder: Path, force: bool) -> set[str]:
    """Names of the pictures that an earlier run left; raises :class:`OutputError` for a folder that is not to be written into."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, a folder was wanted.", "Choose another name.")
    try:
        content = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
        if content["info"]["description"] == _DESCRIPTION:
            if not force and content["info"]["digest"] != _digest(content):
                raise OutputError(
                    f"{folder}/annotations.json was changed since make-shapes wrote it.", "Choose another folder, or pass --force."
                )
            return {f"{number:06}.png" for number in range(1, min(content["info"]["count"], _MOST) + 1)}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    if not force and folder.is_dir() and any(not _LEFT_ASIDE.fullmatch(path.name) for path in folder.iterdir()):
        raise OutputError(f"{folder} holds files that this command did not write.", "Choose another folder, or pass --force.")
    return set()


def _annotations(scene: Scene, image_id: int, before: int) -> list[dict[str, Any]]:
    rles = coco_mask.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0)))
    return [
        {
            "id": before + place,
            "image_id": image_id,
            "category_id": SHAPES.category_ids[label],
            "bbox": coco_mask.toBbox(rle).tolist(),
            "area": int(coco_mask.area(rle)),
            "iscrowd": 0,
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        }
        for place, (label, rle) in enumerate(zip(scene.labels.tolist(), rles, strict=True), 1)
    ]


def _move(aside: Path, pictures: Path, stale: set[str]) -> None:
    """Move the pictures in `aside` to `pictures`, and remove there what is `stale`."""
    pictures.mkdir(exist_ok=True)
    fresh = {path.name for path in aside.iterdir()}
    for name in fresh:
        os.replace(aside / name, pictures / name)
    for name in stale - fresh:
        (pictures / name).unlink(missing_ok=True)
