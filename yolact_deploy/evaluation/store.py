"""Detections of one artifact on one data set, on disk: written as they come, one line a picture, read back by image id.

The file holds JSON lines. The first is the header; each further one is a picture. What an interruption leaves of a last line is cut
off when the file is opened again, so a run goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from yolact_deploy.classes import ClassList
from yolact_deploy.detections import Detections
from yolact_deploy.errors import ConfigError, DatasetError, ModelFileError, OutputError
from yolact_deploy.files import atomic_output

__all__ = ["ResultStore", "StoreHeader", "merge_stores"]

_FORMAT = "yolact-deploy detections 1"
_REMOVE = "Delete the file, or run with --fresh."
IouType = Literal["bbox", "segm"]


class _Place(NamedTuple):
    """Where a picture's line lies, and what is asked of it often."""

    offset: int
    length: int
    stamp: str
    found: int
    milliseconds: dict[str, float]


class _Line(NamedTuple):
    """A picture's line; `given` are float64 [N, 5], x, y, w, h, score as a results file gave them."""

    image_id: int
    detections: Detections
    stamp: str
    given: list[list[float]] | None


@dataclass(frozen=True)
class StoreHeader:
    """Whose detections these are: a file whose header differs in anything is another run's.

    Attributes:
        model: name of the artifact; `model_sha256` of its file.
        data_sha256: of the annotation file.
        classes: the data set's, which labels and category ids of the stored detections refer to.
        settings: everything that alters detections.
        versions: package name to version, of what computed them.
    """

    model: str
    model_sha256: str
    data_sha256: str
    classes: ClassList
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: bytes | str) -> StoreHeader:
        """Raises :class:`ValueError` for a line that is no header."""
        try:
            fields = json.loads(text)
            if fields.pop("format") != _FORMAT:
                raise ValueError("another format")
            classes = fields.pop("classes")
            names, identifiers = tuple(map(str, classes["names"])), tuple(map(int, classes["category_ids"]))
            found = cls(**fields, classes=ClassList(names, identifiers))
        except (ValueError, TypeError, KeyError, AttributeError, ConfigError, RecursionError) as error:
            raise ValueError(f"no header ({error})") from None
        texts = (found.model, found.model_sha256, found.data_sha256)
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(part, dict) for part in (found.settings, found.versions)):
            raise ValueError("no header (a field has another type)")
        return found

    def difference(self, other: StoreHeader) -> str:
        """What differs first between this run and the `other`'s, in words; empty where they are the same."""
        if self.model_sha256 != other.model_sha256:
            return f"another model (SHA-256 {other.model_sha256[:12]}, now {self.model_sha256[:12]})"
        if self.data_sha256 != other.data_sha256:
            return f"another annotation file (SHA-256 {other.data_sha256[:12]}, now {self.data_sha256[:12]})"
        if self.classes != other.classes:
            return "other categories"
        for name, mine, its in (("settings", self.settings, other.settings), ("versions", self.versions, other.versions)):
            for key in sorted({*mine, *its}):
                if mine.get(key) != its.get(key):
                    return f"other {name} ({key} {its.get(key)}, now {mine.get(key)})"
        return ""


class ResultStore:
    """Detections of one artifact on one data set: append-only, read by image id, nothing but an index in memory.

    Made by :meth:`create` (a new file), :meth:`open` (an existing one, as it is) or :meth:`resume` (either).

    Attributes:
        path: the file.
        header: its first line.
        damaged: lines that were cut off on opening because they were not whole.
    """

    def __init__(self, path: Path, header: StoreHeader) -> None:
        self.path, self.header = path, header
        self.damaged = 0
        self._index: dict[int, _Place] = {}
        self._size = 0

    @classmethod
    def create(cls, path: Path, header: StoreHeader) -> ResultStore:
        """A new, empty file in place of whatever was there; :class:`OutputError` where it cannot be written."""
        with atomic_output(path) as part:
            part.write_text(f"{header.to_json()}\n", encoding="utf-8")
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> ResultStore:
        """What the file holds; lines from the first damaged one on are left out, and cut off by the next :meth:`append`.

        Raises :class:`DatasetError` for a file that is missing or no store.
        """
        try:
            with open(path, "rb") as handle:
                first = handle.readline()
                if not first.endswith(b"\n"):
                    raise ValueError("no whole first line")
                store = cls(path, StoreHeader.from_json(first))
                store._read(handle, len(first))
        except OSError as error:
            raise DatasetError(f"The stored detections {path} cannot be read: {error.strerror or error}.", "Check the path.") from None
        except ValueError as error:
            raise DatasetError(f"{path} holds no detections of yolact-deploy evaluate: {error}.", _REMOVE) from None
        return store

    @classmethod
    def resume(cls, path: Path, header: StoreHeader, *, force: bool = False) -> tuple[ResultStore, str]:
        """The store of the run that `header` describes, and a sentence on what became of the file that was there (empty: none was).

        A file of another run is begun anew. Raises :class:`OutputError` for a foreign file unless `force`.
        """
        if not path.exists():
            return cls.create(path, header), ""
        try:
            found = cls.open(path)
        except DatasetError:
            if force and not path.is_dir():
                return cls.create(path, header), f"{path} was no file of this command and was replaced."
            raise OutputError(
                f"{path} exists and holds no detections of yolact-deploy evaluate.", "Move it away, or pass --force to replace it."
            ) from None
        if difference := header.difference(found.header):
            return cls.create(path, header), f"{path} came from {difference}: begun anew."
        cut = f", {found.damaged} damaged lines cut off" if found.damaged else ""
        return found, f"{path} holds {len(found)} pictures of an earlier run, which are not run again{cut}."

    def _read(self, handle: Any, offset: int) -> None:
        for line in handle:
            try:
                found = _parse(line, self.header.classes)
            except ValueError:
                self.damaged = 1 + sum(1 for _ in handle)
                break
            self._note(found, offset, len(line))
            offset += len(line)
        self._size = offset

    def _note(self, found: _Line, offset: int, length: int) -> None:
        if found.image_id not in self._index:  # else two runs wrote at once, and the first line holds
            place = _Place(offset, length, found.stamp, len(found.detections), found.detections.milliseconds)
            self._index[found.image_id] = place

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._index

    def __repr__(self) -> str:
        return f"ResultStore({self.path.name}: {len(self)} pictures, {self.detection_count} detections, {self._size} bytes)"

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Ids of the pictures done so far, ascending."""
        return tuple(sorted(self._index))

    @property
    def detection_count(self) -> int:
        """Detections in all pictures together."""
        return sum(place.found for place in self._index.values())

    @property
    def bytes_per_picture(self) -> float:
        """Mean length of a picture's line in bytes; 0 where there is none."""
        return sum(place.length for place in self._index.values()) / len(self) if len(self) else 0.0

    @property
    def milliseconds(self) -> dict[str, float]:
        """Mean wall time a picture of each stage, over the pictures that were measured."""
        measured = [place.milliseconds for place in self._index.values() if place.milliseconds]
        return {stage: sum(spent.get(stage, 0.0) for spent in measured) / len(measured) for stage in (measured[0] if measured else ())}

    def stamp(self, image_id: int) -> str:
        """What :meth:`append` was told of the picture's file."""
        return self._index[image_id].stamp

    def append(self, image_id: int, detections: Detections, *, stamp: str = "", given: list[list[float]] | None = None) -> None:
        """Write one picture's detections to the end of the file.

        `stamp` tells later whether the picture's file is still the same. `given` are x, y, w, h and score of each detection of a
        results file: :meth:`results` then returns them as they were, neither rounded to float32 nor truncated to pixels.

        Raises :class:`ModelFileError` for scores or boxes that are not finite, :class:`OutputError` where the disk is full,
        :class:`ValueError` for an id that is there already or labels of other classes.
        """
        if image_id in self._index:
            raise ValueError(f"picture {image_id} is in {self.path} already")
        if (detections.class_names, detections.category_ids) != (self.header.classes.names, self.header.classes.category_ids):
            raise ValueError(f"picture {image_id} has detections of other classes than {self.path}")
        for name in ("scores", "mask_scores", "boxes"):
            values = getattr(detections, name)
            if not np.isfinite(values).all():
                wrong = values[~np.isfinite(values)].ravel()
                raise ModelFileError(
                    f"{self.header.model} finds {name} that are no finite numbers in picture {image_id} "
                    f"({len(wrong)} of {values.size}, the first is {wrong[0]}).",
                    "Its arithmetic overflows: export it in float32, or check the weights.",
                )
        entry = _Line(int(image_id), detections, stamp, given)
        line = _line(entry)
        try:
            with open(self.path, "r+b") as handle:
                handle.truncate(self._size)
                handle.seek(self._size)
                handle.write(line)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._size)
            raise OutputError(
                f"{self.path} could not be written: {error.strerror or error}.",
                f"Free some space and run the same command again: it goes on after the {len(self)} pictures that are done.",
            ) from error
        self.damaged = 0
        self._note(entry, self._size, len(line))
        self._size += len(line)

    def detections(self, image_id: int) -> Detections:
        """One picture's detections, equal to those that were appended to the last bit.

        Raises :class:`KeyError` for a picture that is not there, :class:`DatasetError` where the file was changed meanwhile.
        """
        return self._at(image_id).detections

    def _at(self, image_id: int) -> _Line:
        place = self._index[image_id]
        try:
            with open(self.path, "rb") as handle:
                handle.seek(place.offset)
                found = _parse(handle.read(place.length), self.header.classes)
            if found.image_id != image_id:
                raise ValueError(f"picture {found.image_id} stands where {image_id} stood")
        except (OSError, ValueError) as error:
            raise DatasetError(f"The stored detections {self.path} were changed by another program ({error}).", _REMOVE) from None
        return found

    def __iter__(self) -> Iterator[tuple[int, Detections]]:
        """Image id and detections of each picture, by ascending id, one at a time in memory."""
        return ((image_id, self.detections(image_id)) for image_id in self.image_ids)

    def without(self, image_ids: Collection[int]) -> ResultStore:
        """The store, its file written anew, without these pictures; this object is of no use afterwards."""
        return merge_stores(self.path, self.header, [self], without=image_ids)

    def of(self, image_ids: Collection[int]) -> ResultStore:
        """The same file seen as if it held these pictures alone, for reading; :class:`KeyError` for one that is not there."""
        view = ResultStore(self.path, self.header)
        view._index = {image_id: self._index[image_id] for image_id in sorted(image_ids)}
        view._size = self._size
        return view

    def results(self, iou_type: IouType, image_ids: Collection[int] | None = None) -> list[dict[str, Any]]:
        """COCO results of these pictures (default: all), by ascending id: see :meth:`Detections.to_coco`.

        ``segm`` results carry no ``bbox``, as the official format has it: where one is there, pycocotools takes an object's size
        from it and not from the mask.
        """
        wanted = self.image_ids if image_ids is None else sorted(image_ids)
        return [entry for image_id in wanted for entry in _entries(self._at(image_id), iou_type)]

    def write_results(self, path: Path, iou_type: IouType, image_ids: Collection[int] | None = None) -> int:
        """Write a COCO result file that the official server accepts, one picture in memory at a time; returns the number of results."""
        count = 0
        with atomic_output(path) as part, open(part, "w", encoding="utf-8") as handle:
            handle.write("[")
            for image_id in self.image_ids if image_ids is None else sorted(image_ids):
                for entry in _entries(self._at(image_id), iou_type):
                    handle.write(f"{',' if count else ''}\n {json.dumps(entry)}")
                    count += 1
            handle.write("\n]\n")
        return count


def merge_stores(path: Path, header: StoreHeader, parts: Sequence[ResultStore], *, without: Collection[int] = ()) -> ResultStore:
    """Write all pictures of `parts` but `without` into one file, by ascending id; it may be one of the parts, which stay as they are."""
    owner = {image_id: store for store in reversed(parts) for image_id in store._index if image_id not in without}
    with atomic_output(path) as part, open(part, "wb") as handle:
        handle.write(f"{header.to_json()}\n".encode())
        for image_id in sorted(owner):
            handle.write(_line(owner[image_id]._at(image_id)))
    return ResultStore.open(path)


def _entries(line: _Line, iou_type: IouType) -> list[dict[str, Any]]:
    if line.given is not None:
        return [_given_entry(line, index, iou_type) for index in range(len(line.detections))]
    entries = line.detections.to_coco(line.image_id, iou_type=iou_type)
    if iou_type == "segm":
        for entry in entries:
            del entry["bbox"]
    return entries


def _given_entry(line: _Line, index: int, iou_type: IouType) -> dict[str, Any]:
    found, (*box, score) = line.detections, (line.given or [])[index]
    mask = {"size": [found.height, found.width], "counts": found.counts[index].decode("ascii")}
    shape = {"segmentation": mask} if iou_type == "segm" else {"bbox": box}
    return {"image_id": line.image_id, "category_id": found.category_ids[int(found.labels[index])], **shape, "score": score}


def _numbers(values: np.ndarray[Any, np.dtype[np.float32]]) -> list[float]:
    """The shortest decimals that give the same float32 again."""
    return [float(str(value)) for value in values.astype(np.float32, copy=False).ravel()]


def _line(line: _Line) -> bytes:
    found = line.detections
    fields = {
        "image_id": line.image_id,
        "size": [found.width, found.height],
        "stamp": line.stamp,
        "milliseconds": {stage: float(spent) for stage, spent in found.milliseconds.items()},
        "labels": found.labels.tolist(),
        "scores": _numbers(found.scores),
        "mask_scores": None if found.mask_scores.tobytes() == found.scores.tobytes() else _numbers(found.mask_scores),
        "boxes": _numbers(found.boxes),
        "counts": [counts.decode("ascii") for counts in found.counts],
        "given": line.given,
    }
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes, classes: ClassList) -> _Line:
    """:class:`ValueError` for a line that is not whole."""
    try:
        fields = json.loads(line)
        if not line.endswith(b"\n"):
            raise ValueError("half a line")
        scores = np.asarray(fields["scores"], np.float32).reshape(-1)
        mask_scores = scores if fields["mask_scores"] is None else np.asarray(fields["mask_scores"], np.float32).reshape(-1)
        labels = np.asarray(fields["labels"], np.int64).reshape(-1)
        boxes = np.asarray(fields["boxes"], np.float32).reshape(-1, 4)
        counts = tuple(str(text).encode("ascii") for text in fields["counts"])
        width, height = map(int, fields["size"])
        spent = {str(stage): float(value) for stage, value in fields["milliseconds"].items()}
        found = Detections(boxes, scores, mask_scores, labels, counts, width, height, classes.names, classes.category_ids, spent)
        if not all(np.isfinite(values).all() for values in (scores, mask_scores, boxes)):
            raise ValueError("a value that is not finite")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            raise ValueError("a label of no class")
        given = fields["given"]
        if given is not None and [len(row) for row in given] != [5] * len(found):
            raise ValueError("given values of another length")
        return _Line(int(fields["image_id"]), found, str(fields["stamp"]), given)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"a damaged line ({error})") from None
