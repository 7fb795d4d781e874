"""COCO-format data sets: an annotation file and a folder of pictures, read once, checked whole, oddities counted and told."""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from yolact_deploy.classes import ClassList
from yolact_deploy.data.annotations import CocoImage, Instance, Reader
from yolact_deploy.data.segmentation import Rle, rle_of
from yolact_deploy.errors import DatasetError

__all__ = ["CocoDataset", "CocoImage", "Instance", "read_dataset"]

_MAX_FILE = 2 << 30  # bytes; annotation files of COCO itself reach 450 MB


class CocoDataset:
    """Pictures with their annotated instances; :func:`read_dataset` makes it.

    Attributes:
        annotations: the annotation file.
        folder: where the pictures lie.
        classes: names and category ids, ordered by id.
        sha256: of the annotation file's bytes, hexadecimal.
        images: ordered by id.
        notes: one sentence for each kind of oddity that was met, with how often.
    """

    def __init__(
        self,
        annotations: Path,
        folder: Path,
        classes: ClassList,
        images: Sequence[CocoImage],
        instances: Mapping[int, Sequence[Instance]],
        *,
        sha256: str,
        notes: Sequence[str] = (),
    ) -> None:
        self.annotations = annotations
        self.folder = folder
        self.classes = classes
        self.sha256 = sha256
        self.images = tuple(images)
        self.notes = tuple(notes)
        self._images = {image.id: image for image in self.images}
        self._instances = {identifier: tuple(found) for identifier, found in instances.items()}

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        count = sum(map(len, self._instances.values()))
        return f"CocoDataset({str(self.annotations)!r}, {len(self)} images, {count} instances, {len(self.classes)} classes)"

    def picture_path(self, image: CocoImage) -> Path:
        """Where the picture of `image` should lie."""
        return self.folder / image.file_name

    def image(self, image_id: int) -> CocoImage:
        """The image of that id. Raises :class:`DatasetError` where there is none."""
        try:
            return self._images[image_id]
        except KeyError:
            raise DatasetError(f"{self.annotations} has no image of the id {image_id!r}.", "Take ids from its images.") from None

    def instances(self, image_id: int) -> tuple[Instance, ...]:
        """The annotations of an image, crowds last. Raises :class:`DatasetError` for an id that no image has."""
        return self._instances.get(self.image(image_id).id, ())

    def rles(self, image: CocoImage, instances: Sequence[Instance]) -> list[Rle]:
        """The masks of `instances` of `image` as compressed RLE, ``{"size": [H, W], "counts": bytes}`` each."""
        return [rle_of(instance.segmentation, image.height, image.width) for instance in instances]

    def masks(self, image: CocoImage, instances: Sequence[Instance]) -> NDArray[np.uint8]:
        """uint8 [N, H, W] of 0 and 1, C-contiguous. A mask may be empty, where a polygon holds no pixel's centre."""
        if not instances:
            return np.zeros((0, image.height, image.width), np.uint8)
        return np.ascontiguousarray(coco_mask.decode(self.rles(image, instances)).transpose(2, 0, 1))

    @property
    def unannotated(self) -> tuple[int, ...]:
        """Ids of the images without any annotation, in order."""
        return tuple(image.id for image in self.images if image.id not in self._instances)

    def missing_pictures(self) -> list[CocoImage]:
        """The images whose picture is no file, in order of ids."""
        return [image for image in self.images if not os.path.isfile(self.picture_path(image))]

    def ground_truth(self, image_ids: Sequence[int] | None = None) -> dict[str, Any]:
        """A COCO dictionary of the images `image_ids` (all by default), fit for ``pycocotools.coco.COCO().dataset`` and for JSON.

        Segmentations are RLE with ``counts`` as text. Raises :class:`DatasetError` for an id that no image has.
        """
        images = self.images if image_ids is None else [self.image(image_id) for image_id in dict.fromkeys(image_ids)]
        ids = self.classes.category_ids
        annotations = []
        for image in images:
            instances = self._instances.get(image.id, ())
            for instance, rle in zip(instances, self.rles(image, instances), strict=True):
                annotations.append(
                    {
                        "id": instance.id,
                        "image_id": image.id,
                        "category_id": ids[instance.label],
                        "bbox": list(instance.box),
                        "area": instance.area,
                        "iscrowd": int(instance.crowd),
                        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
                    }
                )
        return {
            "info": {},
            "images": [{"id": i.id, "file_name": i.file_name, "width": i.width, "height": i.height} for i in images],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in zip(ids, self.classes.names, strict=True)],
        }


def read_dataset(annotations: str | Path, folder: str | Path | None = None) -> CocoDataset:
    """Read a COCO annotation file: polygons, RLE compressed or not, crowds, gaps in ids, images without annotations.

    Args:
        annotations: the JSON file; without ``annotations`` in it, as test splits have it, no image is annotated.
        folder: where the pictures lie. By default ``images/`` beside the file, or the file's own folder: whichever holds the
            first picture. Pictures are not opened.

    Annotations that cannot be used (no segmentation, corrupt RLE, a bbox without area, an unknown image or category …) are left
    out and counted in ``notes``. Raises :class:`DatasetError` for a file that is missing, no COCO annotation file, or contradicts
    itself, for pictures named outside the folder, and for a folder that does not exist.
    """
    path = Path(annotations)
    data = _read(path)
    reader = Reader(path, data)
    digest = hashlib.sha256(data).hexdigest()
    del data
    classes, images = reader.classes(), reader.images()
    place = _folder(path, images) if folder is None else Path(folder)
    if not os.path.isdir(place):
        raise DatasetError(f"The picture folder {place} does not exist.", "Name the folder that holds the pictures.")
    instances = reader.instances({image.id: image for image in images}, classes)
    return CocoDataset(path, place, classes, images, instances, sha256=digest, notes=reader.notes())


def _read(path: Path) -> bytes:
    mend = "Name a COCO annotation file."
    try:
        if path.is_dir():
            raise DatasetError(f"{path} is a folder, an annotation file was wanted.", mend)
        size = path.stat().st_size
        if size > _MAX_FILE:
            raise DatasetError(f"The annotation file {path} has {size:,} bytes, at most {_MAX_FILE:,} are read.", "Split it.")
        return path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"The annotation file {path} does not exist.", mend) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise DatasetError(f"The annotation file {path} cannot be read ({error}).", mend) from None


def _folder(path: Path, images: Sequence[CocoImage]) -> Path:
    beside = path.parent / "images"
    if os.path.isfile(path.parent / images[0].file_name) and not os.path.isfile(beside / images[0].file_name):
        return path.parent
    return beside if os.path.isdir(beside) else path.parent
