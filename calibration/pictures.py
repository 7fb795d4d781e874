"""The pictures that a calibration sees: which of a folder or data set are taken, in what order, and what each of them is.

The choice depends on the names and the seed alone, and pictures are read one at a time, so that an interrupted run can go on
where it stopped and see what an uninterrupted one would have seen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.data import CocoDataset
from yolact_deploy.drawing import is_overlay
from yolact_deploy.errors import ConfigError, DatasetError, PictureError
from yolact_deploy.files import sha256_of
from yolact_deploy.manifest import InputSpec
from yolact_deploy.pictures import PICTURE_SUFFIXES, Picture, list_pictures, read_picture
from yolact_deploy.preprocess import prepare

__all__ = ["CalibrationPictures", "PictureRecord", "fingerprint_of"]

_Made = TypeVar("_Made")
_COLUMNS, _ROWS = 9, 8
_FINE = 16  # samples a cell and side, from which the cells' means are taken: no rounding to whole grey levels is left in them
_STEP = 1.0  # grey levels between two cells that count as a difference; less is what a recompression alters
_BLANK, _GRAIN = 2.0, 6.0  # standard deviations in levels, of averaged and of single pixels: below both, a picture is one colour with noise
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_HEXADECIMAL = set("0123456789abcdef")


@dataclass(frozen=True)
class PictureRecord:
    """What is remembered of a picture.

    Attributes:
        name: its path relative to the folder, with ``/``.
        sha256: of the file's bytes, hexadecimal.
        width, height: in pixels, upright.
        fingerprint: see :func:`fingerprint_of`.
        mean: of red, green and blue, in 0 … 255.
    """

    name: str
    sha256: str
    width: int
    height: int
    fingerprint: int
    mean: tuple[float, float, float]

    @classmethod
    def of(cls, path: Path, name: str, picture: Picture) -> PictureRecord:
        """The record of `picture`, which was read from `path`. Raises :class:`OSError` where the file cannot be read again."""
        height, width = picture.shape[:2]
        red, green, blue = (round(value, 3) for value in cv2.mean(picture)[:3])
        return cls(name, sha256_of(path), width, height, fingerprint_of(picture), (red, green, blue))

    def to_json(self) -> dict[str, Any]:
        """Fields fit for JSON; the fingerprint as 16 hexadecimal digits, for not every reader of JSON keeps 64 bits of a number."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**named, "fingerprint": f"{self.fingerprint:016x}", "mean": list(self.mean)}

    @classmethod
    def from_json(cls, found: Any) -> PictureRecord:
        """What :meth:`to_json` wrote; :class:`ValueError` for anything else."""
        wanted = {field.name for field in fields(cls)}
        if not isinstance(found, Mapping) or set(found) != wanted:
            raise ValueError(f"a picture's record is {_short(found)}, an object with {', '.join(sorted(wanted))} was wanted")
        name, width, height, mean = found["name"], found["width"], found["height"], found["mean"]
        sane = {
            "name": isinstance(name, str) and bool(name) and not PurePosixPath(name).is_absolute() and ".." not in name.split("/"),
            "sha256": _is_hexadecimal(found["sha256"], 64),
            "width": type(width) is int and width >= 1,
            "height": type(height) is int and height >= 1,
            "fingerprint": _is_hexadecimal(found["fingerprint"], 16),
            "mean": isinstance(mean, (list, tuple)) and len(mean) == 3 and all(map(_is_level, mean)),
        }
        for key, good in sane.items():
            if not good:
                raise ValueError(f"the {key} of a picture's record is {_short(found[key])}")
        red, green, blue = map(float, mean)
        return cls(name, found["sha256"], width, height, int(found["fingerprint"], 16), (red, green, blue))


def fingerprint_of(picture: Picture) -> int:
    """A difference hash, 64 bits: row by row of 9 x 8 cells, whether a cell is brighter than its left neighbour.

    Copies that were resized or recompressed differ in 4 bits at most. 0 is kept for blank pictures, and no other one has it. `picture`
    is uint8 RGB [H, W, 3].
    """
    height, width = picture.shape[:2]
    size = (min(width, _COLUMNS * _FINE), min(height, _ROWS * _FINE))
    fine = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    if fine.std(axis=(0, 1)).max() < _BLANK and cv2.meanStdDev(picture)[1].max() < _GRAIN:
        return 0
    cells = cv2.resize(fine @ _LUMA, (_COLUMNS, _ROWS), interpolation=cv2.INTER_AREA)
    brighter = np.diff(cells, axis=1) > _STEP
    return int.from_bytes(np.packbits(brighter).tobytes(), "big") or 1


class CalibrationPictures:
    """`count` pictures of a folder or data set, drawn with a seed; :meth:`of_folder` and :meth:`of_dataset` make it.

    The sorted names are permuted with the seed, and the first `count` that can be read are taken. One that cannot be read is
    skipped, and the next in the permutation takes its place.

    Attributes:
        folder: where the pictures lie.
        found: how many there are to choose from.
        seed: of the permutation.
        count: how many are taken; fewer come where not so many can be read.
    """

    def __init__(self, folder: Path, names: Iterable[str], count: int | None, seed: int) -> None:
        if (count is not None and count < 1) or seed < 0:
            what, found, least = ("seed", seed, 0) if seed < 0 else ("count of calibration pictures", count, 1)
            raise ConfigError(f"The {what} is {found}, at least {least} was wanted.", f"Name a {what.split()[0]} of {least} or more.")
        ordered = sorted(set(names))
        if not ordered:
            raise DatasetError(
                f"The folder {folder} and the folders below it hold no picture ({' '.join(PICTURE_SUFFIXES)}).",
                "Name a folder with pictures as the network will meet them.",
            )
        self.folder, self.seed, self.found = folder, seed, len(ordered)
        self.count = self.found if count is None else min(count, self.found)
        self._names = [ordered[index] for index in np.random.default_rng(seed).permutation(self.found)]
        self._skipped: dict[str, str] = {}

    @classmethod
    def of_folder(cls, folder: Path, count: int | None, seed: int) -> CalibrationPictures:
        """Of the pictures in `folder` and the folders below it, all for `count` None.

        Taken are those that :func:`yolact_deploy.pictures.list_pictures` finds, without the overlays that ``predict`` saved; hidden folders
        are left out, and those that cannot be listed are among :attr:`skipped`. Raises :class:`DatasetError` for a folder that is missing
        or holds no picture, :class:`ConfigError` for a `count` below 1 or a negative `seed`.
        """
        unlisted: dict[str, str] = {}
        made = cls(folder, _walk(folder, unlisted), count, seed)
        made._skipped.update(unlisted)
        return made

    @classmethod
    def of_dataset(cls, dataset: CocoDataset, count: int | None, seed: int) -> CalibrationPictures:
        """Of the pictures that `dataset` lists, all for `count` None; annotations are not looked at. Raises as :meth:`of_folder`."""
        return cls(dataset.folder, (image.file_name for image in dataset.images), count, seed)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of what could not be read so far, in the order that it was met."""
        return list(self._skipped.items())

    def __repr__(self) -> str:
        return f"CalibrationPictures({str(self.folder)!r}, {self.count:,} of {self.found:,} pictures, seed {self.seed})"

    def paths(self) -> list[Path]:
        """All pictures in the order in which they are tried; the first `count` that can be read are taken."""
        return [self.folder / name for name in self._names]

    def stream(
        self,
        spec: InputSpec,
        known: Mapping[str, PictureRecord] | None = None,
        skip: Collection[str] = (),
        failed: Collection[str] = (),
    ) -> Iterator[tuple[PictureRecord, NDArray[Any]]]:
        """Each picture's record and the network's input, float32 [1, 3, S, S] or uint8 [1, S, S, 3], one picture in memory at a time.

        Every stream of one object gives the same pictures in the same order. To resume an interrupted run, hand in what that run
        had done:

        Args:
            spec: of the network's input; :func:`yolact_deploy.preprocess.prepare` makes it.
            known: records by name. Such a picture has to be what it was, and its record is not made anew.
            skip: names of pictures that are done. They are not read, and count.
            failed: names of pictures that could not be read, as a mapping with the reasons. They are passed over.

        Raises :class:`DatasetError` where no picture can be read, where `skip` is not what a run of this choice began with, and
        where one of `known` was altered.
        """
        return self._each(lambda picture: prepare(picture, spec)[None], known or {}, skip, failed)

    def records(self, known: Mapping[str, PictureRecord] | None = None) -> Iterator[PictureRecord]:
        """The records alone, of the pictures that :meth:`stream` gives; raises as it does."""
        return (record for record, _ in self._each(lambda picture: None, known or {}, (), ()))

    def _each(
        self, make: Callable[[Picture], _Made], known: Mapping[str, PictureRecord], skip: Collection[str], failed: Collection[str]
    ) -> Iterator[tuple[PictureRecord, _Made]]:
        done, reasons = set(skip), failed if isinstance(failed, Mapping) else dict.fromkeys(failed, "It could not be read before.")
        last = self._last(done)
        taken = 0
        for place, name in enumerate(self._names):
            if taken == self.count:
                return
            if name not in done:
                if name in reasons:
                    self._skipped.setdefault(name, reasons[name])
                if name in self._skipped:
                    continue
                try:
                    result = self._read(name, known.get(name), make)
                except (PictureError, OSError) as error:
                    self._skip(name, error, before=name in known)
                    continue
                if place < last:
                    raise self._other(f"which went past {name} without using it")
                yield result
                del result  # else it would stay in memory beside the next
            taken += 1
        if not taken:
            reason = next(iter(self._skipped.values()))
            raise DatasetError(
                f"None of the {self.found:,} pictures in {self.folder} can be read. The first: {reason}",
                "Name a folder with sound pictures.",
            )

    def _last(self, done: Collection[str]) -> int:
        """Place of the last name in `done`, -1 for none; :class:`DatasetError` where no run of this choice can have taken them."""
        if lost := sorted(set(done).difference(self._names)):
            raise self._other(f"which used {lost[0]}, now missing")
        if len(done) > self.count:
            raise self._other(f"which used {len(done):,} pictures")
        return max((place for place, name in enumerate(self._names) if name in done), default=-1)

    def _other(self, run: str) -> DatasetError:
        return DatasetError(
            f"{self!r} cannot go on with the interrupted run, {run}: the pictures, their count or the seed are others now.",
            "Calibrate with what that run was given, or start anew.",
        )

    def _read(self, name: str, known: PictureRecord | None, make: Callable[[Picture], _Made]) -> tuple[PictureRecord, _Made]:
        path = self.folder / name
        picture = read_picture(path)
        if known is None:
            return PictureRecord.of(path, name, picture), make(picture)
        if sha256_of(path) != known.sha256:
            raise _altered(path, "it has another SHA-256")
        return known, make(picture)

    def _skip(self, name: str, error: PictureError | OSError, *, before: bool) -> None:
        """Remember why `name` is skipped, unless it could be read before: then other pictures would come than came then."""
        path = self.folder / name
        if before:
            raise _altered(path, "it can no longer be read") from error
        self._skipped[name] = str(error) if isinstance(error, PictureError) else f"The picture {path} cannot be read: {error}."


def _altered(path: Path, reason: str) -> DatasetError:
    return DatasetError(f"The picture {path} was altered while the calibration used it: {reason}.", "Start the calibration anew.")


def _walk(folder: Path, unlisted: dict[str, str]) -> Iterator[str]:
    """Names of the pictures in `folder` and below, links followed, no folder twice; `unlisted` takes those that cannot be listed."""
    if not folder.is_dir():
        found = "is no folder" if folder.exists() else "does not exist"
        raise DatasetError(f"The picture folder {folder} {found}.", "Name the folder that holds the calibration pictures.")

    def refused(error: OSError) -> None:
        place = Path(error.filename)
        if place == folder:
            raise DatasetError(f"The folder {folder} cannot be listed: {error.strerror}.", "Check its permissions.") from None
        unlisted[place.relative_to(folder).as_posix()] = f"The folder {place} cannot be listed: {error.strerror}."

    seen: set[str] = set()
    for place, folders, _ in os.walk(folder, onerror=refused, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        with contextlib.suppress(PictureError):  # it holds none
            for path in list_pictures(place):
                if not (".overlay." in path.name and is_overlay(path)):
                    yield path.relative_to(folder).as_posix()


def _is_hexadecimal(value: object, digits: int) -> bool:
    return isinstance(value, str) and len(value) == digits and set(value) <= _HEXADECIMAL


def _is_level(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 255


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
