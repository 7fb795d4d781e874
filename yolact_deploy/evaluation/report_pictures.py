"""The report's pictures: what the reference found, what the artifact found and what is annotated, side by side, as JPEG data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from yolact_deploy.data.coco import CocoDataset
from yolact_deploy.detections import Detections
from yolact_deploy.drawing import draw_detections
from yolact_deploy.errors import PictureError
from yolact_deploy.evaluation.parity import Parity, PictureParity
from yolact_deploy.evaluation.records import ArtifactEvaluation, Evaluation
from yolact_deploy.pictures import Picture, read_picture

__all__ = ["BUDGET", "SIDE", "Panel", "ShownPicture", "shown_pictures"]

SIDE = 480
"""Pixels of the longer side at most."""
BUDGET = 3_400_000
"""Bytes of all the report's pictures together; as base64 a third more."""
_QUALITY = 80
_GREY = 96
_TOLD = 8


@dataclass(frozen=True)
class Panel:
    """One overlay: `title`, the text `alt` for those who do not see it, and `uri`, a data URI."""

    title: str
    alt: str
    uri: str


@dataclass(frozen=True)
class ShownPicture:
    """A picture of the data set with its overlays.

    Attributes:
        name: the file's, below the picture folder.
        parity: its numbers, None where there is no reference.
        panels: reference, artifact, ground truth; without the first where there is no reference.
        lone: sentences on the first detections without partner.
        note: what is amiss with the picture, mostly empty.
    """

    name: str
    parity: PictureParity | None
    panels: tuple[Panel, ...]
    lone: tuple[str, ...]
    note: str


@dataclass
class _Album:
    """Draws overlays and counts their bytes."""

    dataset: CocoDataset
    left: int
    drawn: dict[int, tuple[Picture, str]] = field(default_factory=dict)

    def picture(self, image_id: int) -> tuple[Picture, str]:
        """The picture; where its file cannot be read a grey one, and why. The latest alone is kept."""
        if image_id not in self.drawn:
            image, note = self.dataset.image(image_id), ""
            grey = np.full((image.height, image.width, 3), _GREY, np.uint8)
            try:
                picture = read_picture(self.dataset.picture_path(image))
            except PictureError as error:
                picture, note = grey, error.message
            if picture.shape != grey.shape:
                note = f"The picture has {picture.shape[1]} x {picture.shape[0]} pixels, {image.width} x {image.height} were annotated."
                picture = grey
            self.drawn = {image_id: (picture, note)}
        return self.drawn[image_id]

    def panel(self, title: str, image_id: int, detections: Detections, *, show_scores: bool) -> Panel:
        """`detections` over the picture."""
        drawn = draw_detections(self.picture(image_id)[0], detections, show_scores=show_scores)
        scale = min(SIDE / max(drawn.shape[:2]), 1.0)
        size = max(round(drawn.shape[1] * scale), 1), max(round(drawn.shape[0] * scale), 1)
        stream = io.BytesIO()
        Image.fromarray(cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)).save(stream, "JPEG", quality=_QUALITY, optimize=True)
        self.left -= len(stream.getvalue())
        uri = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
        return Panel(title, f"{title}: {_listed(detections)}", uri)


def shown_pictures(
    evaluation: Evaluation, dataset: CocoDataset, artifact: ArtifactEvaluation, most: int, budget: int = BUDGET
) -> tuple[tuple[ShownPicture, ...], str]:
    """Overlays of the pictures that say most about `artifact`, at most `most` and `budget` bytes; and a sentence on which they are.

    With a parity these are its worst pictures; else those where objects share a mask, and without any the first of the data set.
    Detections above the parity's score (0.3 without one) are drawn.
    """
    reference = next((one for one in evaluation.artifacts if one.name == evaluation.reference and one is not artifact), None)
    parity = artifact.parity if reference is not None and isinstance(artifact.parity, Parity) else None
    ids, sentence = _chosen(evaluation, artifact, parity, most)
    album = _Album(dataset, budget)
    found: list[ShownPicture] = []
    score = 0.3 if parity is None else parity.score
    numbers = {} if parity is None else {picture.image_id: picture for picture in parity.worst}
    for image_id in ids:
        panels = [] if reference is None else [("reference", reference.store.detections(image_id).above(score))]
        panels.append((artifact.name, artifact.store.detections(image_id).above(score)))
        drawn = [album.panel(title, image_id, detections, show_scores=True) for title, detections in panels]
        drawn.append(album.panel("ground truth", image_id, _annotated(dataset, image_id), show_scores=False))
        if album.left < 0:
            return tuple(found), f"{sentence} {len(ids) - len(found)} more would make this page too large."
        lone = [] if parity is None else [str(one).removeprefix(f"{one.picture}: ") for one in parity.lone if one.image_id == image_id]
        name, note = dataset.image(image_id).file_name, album.picture(image_id)[1]
        found.append(ShownPicture(name, numbers.get(image_id), tuple(drawn), tuple(lone[:_TOLD]), note))
    return tuple(found), sentence


def _chosen(evaluation: Evaluation, artifact: ArtifactEvaluation, parity: Parity | None, most: int) -> tuple[tuple[int, ...], str]:
    """Which pictures, and a sentence on them."""
    if parity is not None:
        if not parity.worst:
            return (), "No picture differs from the reference."
        return tuple(picture.image_id for picture in parity.worst[:most]), "Those that differ most from the reference, the worst first."
    examples = tuple(getattr(artifact.failures, "examples", ()))[:most]
    if examples:
        return examples, "The first pictures in which objects of one class share a mask."
    return evaluation.dataset.image_ids[:most], "The first pictures of the data set."


def _annotated(dataset: CocoDataset, image_id: int) -> Detections:
    """The annotated objects, crowds left out, as detections."""
    image = dataset.image(image_id)
    objects = [instance for instance in dataset.instances(image_id) if not instance.crowd]
    boxes = np.array([instance.box for instance in objects], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    certain = np.ones(len(objects), np.float32)
    labels = np.array([instance.label for instance in objects], np.int64)
    counts = tuple(rle["counts"] for rle in dataset.rles(image, objects))
    names, identifiers = dataset.classes.names, dataset.classes.category_ids
    return Detections(boxes, certain, certain, labels, counts, image.width, image.height, names, identifiers)


def _listed(detections: Detections) -> str:
    """What is to be seen: ``2 person, 1 dog``."""
    names = detections.names
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nothing"
