"""Which pictures do what: those that are calibrated with, those that the search looks at, and those that the accuracy is told on.

What the search looked at says nothing of the accuracy any more, so an annotated set is divided where it has to serve both.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yolact_deploy.data.coco import CocoDataset
from yolact_deploy.engines.source import GraphSource
from yolact_deploy.errors import ConfigError, DatasetError

from .pictures import CalibrationPictures, PictureRecord
from .scoring import Judge

__all__ = ["Part", "Roles", "assign_roles", "opened"]

_WITHOUT_ANNOTATIONS = 32  # pictures that graphs are compared on, where nothing is annotated
_FEWEST = 4  # annotated pictures that can be divided


@dataclass(frozen=True)
class Part:
    """Pictures to measure on.

    Attributes:
        dataset: with annotations; None where the float model's own detections stand in for them.
        image_ids: of these pictures in the data set.
        paths: of the pictures, in the order of `image_ids`.
    """

    dataset: CocoDataset | None
    image_ids: tuple[int, ...]
    paths: tuple[Path, ...]

    @property
    def truth(self) -> str:
        """What the pictures are compared with, in words."""
        return "annotations" if self.dataset is not None else "what the float model finds"

    def records(self) -> list[PictureRecord]:
        """For the doctor; pictures that cannot be read are left out."""
        if not self.paths:
            return []
        folder = self.paths[0].parent if self.dataset is None else self.dataset.folder
        names = [path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path) for path in self.paths]
        with contextlib.suppress(DatasetError):
            return list(CalibrationPictures(folder, names, None, 0).records())
        return []


@dataclass(frozen=True)
class Roles:
    """Every picture's role; `notes` tell what one might not expect."""

    pictures: CalibrationPictures
    report: Part
    search: Part | None
    notes: tuple[str, ...]


def assign_roles(
    images: Path | None,
    report: CocoDataset | None,
    search: CocoDataset | None,
    *,
    count: int,
    measured: int,
    seed: int,
    searching: bool,
) -> Roles:
    """Give each picture its role.

    Args:
        images: folder to calibrate with; None takes annotated pictures that the accuracy is not told on.
        report: the annotated set to tell the accuracy on; None for the float model's own detections.
        search: the annotated set for the search; None divides `report`.
        count: pictures to calibrate with.
        measured: pictures to tell the accuracy on, at most, and as many for the search.
        seed: of all choices.
        searching: whether there is a search.

    Raises :class:`DatasetError` for sets without pictures, :class:`ConfigError` where nothing was given.
    """
    notes: list[str] = []
    told = _present(report, notes)
    sought = _present(search, notes)
    divided = report is not None and search is None and (searching or images is None)
    if divided and len(told) < _FEWEST:
        raise DatasetError(
            f"{len(told)} annotated pictures cannot serve the accuracy and what it is told of.",
            "Give --images to calibrate with, and --search-annotations where layers are searched.",
        )
    if divided and report is not None:
        order = np.random.default_rng(seed).permutation(len(told))
        half = min(measured, len(told) // 2)
        sought = [told[place] for place in sorted(order[half:])]
        told = [told[place] for place in sorted(order[:half])]
        notes.append(f"The annotated pictures are divided: the accuracy is told on {half}, the other {len(sought)} are free for the rest.")
    other = search if search is not None else report
    if images is not None:
        pictures = CalibrationPictures.of_folder(images, count, seed)
    elif other is not None and sought:
        files = {image.id: image.file_name for image in other.images}
        pictures = CalibrationPictures(other.folder, [files[image_id] for image_id in sought], count, seed)
    else:
        raise ConfigError("No pictures were named to calibrate with.", "Name a folder of pictures: --images DIR")
    if report is None:
        return Roles(pictures, *_unannotated(pictures, other, sought, measured, searching=searching), notes=tuple(notes))
    looked_at = _part(other, sought[:measured]) if searching and other is not None else None
    return Roles(pictures, _part(report, told[:measured]), looked_at, tuple(notes))


def _present(dataset: CocoDataset | None, notes: list[str]) -> list[int]:
    """Ids of the pictures that are there."""
    if dataset is None:
        return []
    missing = {image.id for image in dataset.missing_pictures()}
    if missing:
        notes.append(f"{len(missing)} of {len(dataset.images)} annotated pictures are not in {dataset.folder} and left out.")
    found = sorted(image.id for image in dataset.images if image.id not in missing)
    if not found:
        raise DatasetError(f"None of the annotated pictures is in {dataset.folder}.", "Check the picture folder.")
    return found


def _part(dataset: CocoDataset, image_ids: Sequence[int]) -> Part:
    images = {image.id: image for image in dataset.images}
    return Part(dataset, tuple(image_ids), tuple(dataset.picture_path(images[image_id]) for image_id in image_ids))


def _unannotated(
    pictures: CalibrationPictures, other: CocoDataset | None, sought: Sequence[int], measured: int, *, searching: bool
) -> tuple[Part, Part | None]:
    """Parts for the report and the search where the report has no annotations: pictures that are not calibrated with, if there are."""
    paths = pictures.paths()
    free = paths[pictures.count :] or paths
    few = min(measured, _WITHOUT_ANNOTATIONS)
    report = Part(None, (), tuple(free[:few]))
    if not searching:
        return report, None
    if other is not None:
        return report, _part(other, sought[:measured])
    return report, Part(None, (), tuple(free[few : 2 * few] or free[:few]))


@contextlib.contextmanager
def opened(
    part: Part | None,
    source: GraphSource,
    folder: Path,
    *,
    threads: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Judge | None]:
    """A judge on the pictures of `part`; what it keeps in `folder` is removed afterwards."""
    if part is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="inputs-", dir=folder) as name:
        where = Path(name)
        if part.dataset is not None:
            judge = Judge.of_dataset(
                source.manifest, part.dataset, part.image_ids, where, mask_iou=source.mask_iou, threads=threads, progress=progress
            )
        else:
            model = source.model.SerializeToString()
            judge = Judge.of_float_model(
                source.manifest, model, part.paths, where, mask_iou=source.mask_iou, threads=threads, progress=progress
            )
        yield judge
        judge.close()
