"""Runs the float network over the calibration pictures and takes down what every calibrated value holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from yolact_deploy.errors import ModelFileError
from yolact_deploy.manifest import InputSpec, Manifest

from .doctor import swap_channels
from .graph import GraphView
from .pictures import CalibrationPictures, PictureRecord
from .scoring import open_session
from .statistics import Observation, Statistics

__all__ = ["MEMORY", "Collector", "collect", "highest_score", "value_bytes"]

MEMORY = 512 << 20
"""Bytes of values that are held at once, at most; more are fetched by running the network again."""

_SWAPPED = 16  # pictures that are also run with red and blue swapped
_SAVED_EVERY = 10.0  # seconds

Progress = Callable[[int, int], None]
"""Called with the number of pictures done and of all."""


def value_bytes(view: GraphView, names: list[str]) -> int:
    """Bytes of the float32 values `names` for one picture; :class:`ModelFileError` for one whose shape is not known."""
    unknown = [name for name in names if name not in view.shapes]
    if unknown:
        raise ModelFileError(f"The shape of {unknown[0]} is not known before it runs.", "Export the checkpoint again.")
    return sum(4 * int(np.prod(view.shapes[name][1:])) for name in names)


def highest_score(outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """[B]: the highest score of a class in each picture; `outputs` holds ``scores`` [B, P, C] or ``detections_scores`` [B, D]."""
    scores = outputs["scores"][..., 1:] if "scores" in outputs else outputs["detections_scores"]
    highest: NDArray[np.float64] = np.asarray(scores, np.float64).reshape(len(scores), -1).max(axis=1)
    return highest


class Collector:
    """The float network with its calibrated values as further outputs, in ONNX Runtime on the CPU.

    `memory` bounds the bytes of values fetched at once. Raises :class:`ModelFileError` where ONNX Runtime refuses the graph.
    """

    def __init__(self, view: GraphView, manifest: Manifest, values: list[str], *, threads: int = 0, memory: int = MEMORY) -> None:
        self.view, self.manifest = view, manifest
        axis = manifest.inputs[0].shape[0]
        self.batch = axis if isinstance(axis, int) else 1
        self.input = manifest.inputs[0].name
        self.scores = "scores" if manifest.postprocess == "none" else "detections_scores"
        self.groups = self._groups([name for name in values if name != self.input], memory // self.batch)
        self.images_too = self.input in values and manifest.input.layout == "float"
        self.session = self._open(threads)

    def _groups(self, names: list[str], memory: int) -> list[list[str]]:
        groups: list[list[str]] = [[]]
        held = 0
        for name in names:
            size = value_bytes(self.view, [name])
            if groups[-1] and held + size > memory:
                groups.append([])
                held = 0
            groups[-1].append(name)
            held += size
        return groups

    @property
    def held_bytes(self) -> int:
        """Largest number of bytes of values that are held at once."""
        return self.batch * max(value_bytes(self.view, group) for group in self.groups)

    def _open(self, threads: int) -> onnxruntime.InferenceSession:
        model = onnx.ModelProto()
        model.CopyFrom(self.view.model)
        there = {value.name for value in model.graph.output}
        for name in dict.fromkeys(name for group in self.groups for name in group):
            if name not in there:
                model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        return open_session(model.SerializeToString(), threads)

    def run(self, images: NDArray[Any]) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.float64]]]:
        """Of `images`, as many as the batch: each group of values, with the highest scores [B]."""
        for group in self.groups:
            names = list(dict.fromkeys([*group, self.scores]))
            found: dict[str, Any] = dict(zip(names, self.session.run(names, {self.input: images}), strict=True))
            scores = highest_score({self.scores: found[self.scores]})
            if self.scores not in group:
                del found[self.scores]
            if self.images_too and group is self.groups[0]:
                found = {self.input: images, **found}
            yield found, scores

    def scores_of(self, images: NDArray[Any]) -> NDArray[np.float64]:
        """[B]: the highest scores alone."""
        (scores,) = self.session.run([self.scores], {self.input: images})
        return highest_score({self.scores: scores})


def collect(
    collector: Collector,
    pictures: CalibrationPictures,
    statistics: Statistics,
    *,
    save_to: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Add to `statistics` the pictures that are not in it; the file `save_to` is kept up to date, also where the run is interrupted.

    Raises :class:`ModelFileError` where a value is not finite, naming the layer and the picture.
    """
    spec = collector.manifest.input
    done = {record.name for record in statistics.pictures}
    whole, saved, last_saved = True, len(done), time.perf_counter()
    try:
        for records, images in _batches(pictures, spec, done, collector.batch):
            seen = _observe(collector, statistics, records, images)
            whole = False
            _take(statistics, records, seen)
            whole = True
            progress(len(statistics.pictures), pictures.count)
            if save_to is not None and time.perf_counter() - last_saved > _SAVED_EVERY:
                statistics.save(save_to)
                saved, last_saved = len(statistics.pictures), time.perf_counter()
    finally:
        if save_to is not None and whole and len(statistics.pictures) > saved:
            statistics.save(save_to)


def _batches(
    pictures: CalibrationPictures, spec: InputSpec, done: set[str], batch: int
) -> Iterator[tuple[list[PictureRecord], NDArray[Any]]]:
    """Pictures as the graph takes them; the last batch repeats its last picture where it is not full."""
    records: list[PictureRecord] = []
    images: list[NDArray[Any]] = []
    for record, image in pictures.stream(spec, skip=done):
        records.append(record)
        images.append(image)
        if len(records) == batch:
            yield records, np.concatenate(images)
            records, images = [], []
    if records:
        yield records, np.concatenate([*images, *[images[-1]] * (batch - len(images))])


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a batch showed: of each value an observation a picture, the highest scores, and those with red and blue swapped."""

    values: dict[str, list[Observation]]
    best: list[float]
    swapped_best: list[float]


def _observe(collector: Collector, statistics: Statistics, records: list[PictureRecord], images: NDArray[Any]) -> _Seen:
    values: dict[str, list[Observation]] = {}
    best: list[float] = []
    for found, scores in collector.run(images):
        best = scores[: len(records)].tolist()
        for name, batch in found.items():
            for record, one in zip(records, batch, strict=False):
                observed = Observation.of(one)
                if observed is None:
                    raise _not_finite(statistics, name, record)
                values.setdefault(name, []).append(observed)
    swapped: list[float] = []
    room = _SWAPPED - len(statistics.pictures)
    if room > 0:
        other = np.stack([swap_channels(image, collector.manifest.input) for image in images])
        swapped = collector.scores_of(other)[: len(records)][:room].tolist()
    return _Seen(values, best, swapped)


def _take(statistics: Statistics, records: list[PictureRecord], seen: _Seen) -> None:
    for name, observations in seen.values.items():
        for observed in observations:
            statistics.values[name].add(observed)
    statistics.best += seen.best
    statistics.swapped_best += seen.swapped_best
    statistics.pictures += records


def _not_finite(statistics: Statistics, name: str, record: PictureRecord) -> ModelFileError:
    node = statistics.values[name].node
    return ModelFileError(
        f"The layer {node} makes values that are not finite (NaN or infinite) of the picture {record.name}.",
        "Check the checkpoint's weights: this model detects nothing in float32 either.",
    )
