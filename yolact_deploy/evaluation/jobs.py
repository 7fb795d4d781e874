"""What running an artifact over a data set means: the model's file, its pictures in groups, its classes in terms of the data set's."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import yolact_deploy
from yolact_deploy.classes import ClassList, numbered_classes
from yolact_deploy.data.coco import CocoDataset
from yolact_deploy.detections import Detections
from yolact_deploy.errors import ConfigError, DatasetError
from yolact_deploy.evaluation.store import ResultStore, StoreHeader
from yolact_deploy.files import sha256_of

if TYPE_CHECKING:
    from yolact_deploy.runtime import Detector

__all__ = ["ClassMap", "Job", "ModelSource", "Picture", "cores", "run_groups"]

_GROUP = 8  # pictures run at once where the model takes any number


@dataclass(frozen=True)
class ModelSource:
    """A model file and how to load it; the arguments are :func:`yolact_deploy.runtime.load`'s."""

    path: Path
    device: str | None = None
    providers: tuple[str, ...] | None = None
    threads: int = 0
    variant: str | None = None
    config: Path | None = None
    classes: str | None = None
    trust: bool = False
    lean_runtime: str | None = None

    @property
    def is_results(self) -> bool:
        """Whether it is a COCO result file and no model."""
        return self.path.suffix.lower() == ".json"

    def open(self, threads: int | None = None) -> Detector:
        """The detector; `threads` overrides. Options that concern the other kinds of file are left out."""
        from yolact_deploy.runtime import ENGINES, load

        if self.path.suffix.lower() in ENGINES:
            return load(self.path, device=self.device, trust=self.trust, lean_runtime=self.lean_runtime)
        options: dict[str, Any] = {"threads": self.threads if threads is None else threads}
        if self.path.suffix.lower() == ".onnx":
            options["providers"] = self.providers
        else:
            options |= {"device": self.device, "variant": self.variant, "config": self.config, "classes": self.classes}
        return load(self.path, **options)


@dataclass(frozen=True)
class Picture:
    """A picture to run: its id, its file, its annotated size in pixels and a stamp that changes with the file."""

    image_id: int
    path: Path
    width: int
    height: int
    stamp: str

    @classmethod
    def of(cls, dataset: CocoDataset, image_id: int) -> Picture:
        """The data set's picture of that id. Raises :class:`DatasetError` where the file is gone."""
        image = dataset.image(image_id)
        path = dataset.picture_path(image)
        try:
            status = path.stat()
        except OSError as error:
            raise DatasetError(f"The picture {path} cannot be read: {error.strerror or error}.", "Check the picture folder.") from None
        return cls(image.id, path, image.width, image.height, f"{status.st_size}:{status.st_mtime_ns}")


@dataclass(frozen=True)
class ClassMap:
    """A model's labels in terms of the data set's categories.

    Attributes:
        labels: for each of the model's labels the data set's, -1 where it has none of that name.
        notes: what does not fit, one sentence each.
    """

    labels: tuple[int, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, model: ClassList, data: ClassList, name: str) -> ClassMap:
        """Match by name. Stand-in names (``class 1`` …) of as many classes are matched in order, said in the notes.

        Classes that the data set lacks cannot be right or wrong: their detections are left out. Categories that the model does not
        know stay in the mean, as in pycocotools, with nothing found. Raises :class:`ConfigError` where no name is common.
        """
        if model.names != data.names and model == numbered_classes(len(model)) and len(model) == len(data):
            return cls(
                tuple(range(len(data))), (f"{name} names no classes: its {len(model)} labels are taken for the categories in order.",)
            )
        place = {category: label for label, category in enumerate(data.names)}
        labels = tuple(place.get(category, -1) for category in model.names)
        if max(labels, default=-1) < 0:
            raise ConfigError(
                f"{name} and the data set have no class in common: it finds {_some(model.names)}; the data set has {_some(data.names)}.",
                "Name the model's classes with --classes if they are the same, or evaluate on its own data set.",
            )
        notes = []
        if surplus := [category for category in model.names if category not in place]:
            notes.append(f"Detections of {len(surplus)} classes that the data set lacks are left out: {_some(surplus)}.")
        if unknown := [category for category in data.names if category not in model.names]:
            notes.append(f"{len(unknown)} of {len(data)} categories are unknown to {name} and count with AP 0: {_some(unknown)}.")
        return cls(labels, tuple(notes))

    def apply(self, detections: Detections, data: ClassList) -> Detections:
        """`detections` with the labels, names and ids of the data set; those without a counterpart are left out."""
        table: NDArray[np.int64] = np.asarray(self.labels, np.int64)
        labels = table[detections.labels]
        chosen = detections[labels >= 0]
        return replace(chosen, labels=labels[labels >= 0], class_names=data.names, category_ids=data.category_ids)


@dataclass(frozen=True)
class Job:
    """What running an artifact needs beside its detector.

    Attributes:
        header: of the store.
        class_map: the model's labels to the data set's.
        groups: pictures that go through the network together, whichever of them are done already, so that an interruption or
            another number of workers alters no result.
    """

    header: StoreHeader
    class_map: ClassMap
    groups: tuple[tuple[Picture, ...], ...]

    @classmethod
    def of(cls, source: ModelSource, detector: Detector, dataset: CocoDataset, pictures: Sequence[Picture]) -> Job:
        """The job of running `detector`, opened from `source`, over `pictures`. Raises :class:`ConfigError`: see :class:`ClassMap`."""
        step = detector.backend.batch or _GROUP
        groups = tuple(tuple(pictures[start : start + step]) for start in range(0, len(pictures), step))
        class_map = ClassMap.of(detector.classes, dataset.classes, source.path.name)
        return cls(_header(source, detector, class_map, dataset), class_map, groups)

    def left(self, done: ResultStore) -> tuple[tuple[Picture, ...], ...]:
        """The groups of which a picture is not in `done`."""
        return tuple(group for group in self.groups if any(picture.image_id not in done for picture in group))


def run_groups(detector: Detector, job: Job, done: ResultStore, store: ResultStore, tell: Callable[[], None]) -> None:
    """Run the groups of `job` and append to `store` the pictures that are not in `done`, calling `tell` after each.

    The first group runs once more before, unrecorded, so that nobody measures a cold start. Raises :class:`DatasetError` for a
    picture whose size is not the annotated one.
    """
    next(detector.stream([picture.path for picture in job.groups[0]]))
    for group in job.groups:
        found = detector.stream([picture.path for picture in group], score_threshold=0.0)
        for picture, detections in zip(group, found, strict=True):
            if picture.image_id in done:
                continue
            if (detections.width, detections.height) != (picture.width, picture.height):
                raise DatasetError(
                    f"The picture {picture.path} has {detections.width}x{detections.height} pixels, its annotation says "
                    f"{picture.width}x{picture.height}.",
                    "Give the pictures that were annotated; ones that EXIF data turn are taken upright.",
                )
            store.append(picture.image_id, job.class_map.apply(detections, job.header.classes), stamp=picture.stamp)
            tell()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _header(source: ModelSource, detector: Detector, class_map: ClassMap, dataset: CocoDataset) -> StoreHeader:
    backend = detector.backend
    settings = {
        "backend": backend.name,
        "device": backend.device,
        "manifest": hashlib.sha256(backend.manifest.to_json().encode()).hexdigest(),
        "labels": list(class_map.labels),
        "group": backend.batch or _GROUP,
    }
    modules = {"yolact-deploy": yolact_deploy, "numpy": np, backend.name: sys.modules.get(backend.name)}
    versions = {name: str(getattr(module, "__version__", "unknown")) for name, module in modules.items()}
    return StoreHeader(source.path.name, sha256_of(source.path), dataset.sha256, dataset.classes, settings, versions)


def _some(names: Sequence[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (f", … ({len(names)} in all)" if len(names) > shown else "")
