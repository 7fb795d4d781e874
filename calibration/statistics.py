"""What was seen of every calibrated value, picture by picture, and its file: an interrupted run goes on from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import ModelFileError
from yolact_deploy.files import atomic_output

from .histograms import BINS, LARGEST, SMALLEST, Histogram
from .pictures import PictureRecord

__all__ = ["SCHEMA", "Observation", "Statistics", "ValueStatistics"]

SCHEMA = 1
"""Version of the file's layout."""


@dataclass(frozen=True, eq=False)
class Observation:
    """One value in one picture: see :class:`ValueStatistics`."""

    low: float
    high: float
    channel_largest: NDArray[np.float32]
    channel_means: NDArray[np.float64]
    histogram: Histogram

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Observation | None:
        """Of [C, ...]; None where an element is not finite."""
        rows = values.reshape(len(values), -1)
        low, high = rows.min(axis=1), rows.max(axis=1)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return None
        largest = np.maximum(np.abs(low), np.abs(high))
        histogram = Histogram()
        histogram.add(values, float(largest.max()))
        return cls(float(low.min()), float(high.max()), largest, rows.mean(axis=1, dtype=np.float64), histogram)


@dataclass
class ValueStatistics:
    """One value over N pictures.

    Attributes:
        name: of the value in the graph.
        node: of what makes it, for people.
        lows, highs: least and largest element in each picture.
        channel_largest: float32 [C], largest magnitude of each channel over all pictures; empty before the first.
        channel_means: float64 [C], the mean of each channel over all pictures.
        histogram: of all elements.
    """

    name: str
    node: str
    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)
    channel_largest: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    channel_means: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    histogram: Histogram = field(default_factory=Histogram)

    @property
    def low(self) -> float:
        """Over all pictures."""
        return min(self.lows)

    @property
    def high(self) -> float:
        """Over all pictures."""
        return max(self.highs)

    def add(self, seen: Observation) -> None:
        """Take in one more picture."""
        if not self.lows:
            self.channel_largest, self.channel_means = np.zeros_like(seen.channel_largest), np.zeros(len(seen.channel_means))
        self.channel_largest = np.maximum(self.channel_largest, seen.channel_largest)
        self.channel_means = self.channel_means + (seen.channel_means - self.channel_means) / (len(self.lows) + 1)
        self.lows.append(seen.low)
        self.highs.append(seen.high)
        self.histogram.merge(seen.histogram)


@dataclass
class Statistics:
    """All values of one model over the pictures seen so far.

    Attributes:
        model_sha256: of the float ONNX file.
        values: by name, in the graph's order.
        pictures: those seen, in order.
        best, swapped_best: the highest score in each picture, and in the first ones with red and blue swapped.
    """

    model_sha256: str
    values: dict[str, ValueStatistics]
    pictures: list[PictureRecord] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    swapped_best: list[float] = field(default_factory=list)

    @classmethod
    def empty(cls, model_sha256: str, values: Sequence[tuple[str, str]]) -> Statistics:
        """Nothing seen yet of `values`, pairs of a value and the node that makes it."""
        return cls(model_sha256, {name: ValueStatistics(name, node) for name, node in values})

    def fits(self, other: Statistics) -> bool:
        """Whether both are of the same model and values."""
        return self.model_sha256 == other.model_sha256 and list(self.values) == list(other.values)

    def save(self, path: Path) -> None:
        """Write a ``.npz`` file, whole or not at all."""
        header = {
            "schema": SCHEMA,
            "model_sha256": self.model_sha256,
            "pictures": [picture.to_json() for picture in self.pictures],
            "values": [[value.name, value.node, value.histogram.exponent] for value in self.values.values()],
        }
        arrays: dict[str, Any] = {
            "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
            "best": np.array(self.best),
            "swapped_best": np.array(self.swapped_best),
        }
        for place, value in enumerate(self.values.values()):
            arrays[f"range_{place}"] = np.array([value.lows, value.highs])
            arrays[f"largest_{place}"] = value.channel_largest
            arrays[f"means_{place}"] = value.channel_means
            arrays[f"counts_{place}"] = value.histogram.counts
        with atomic_output(path) as part, open(part, "wb") as handle:
            np.savez(handle, **arrays)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """What :meth:`save` wrote. Raises :class:`ModelFileError` for any other file."""
        try:
            with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as arrays:  # given a path, it leaves broken files open
                return cls._from_arrays(arrays)
        except Exception as error:  # noqa: BLE001 - NumPy, zipfile and zlib have kinds of their own for what can be wrong with a file
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise ModelFileError(
                f"{path} holds no statistics of a calibration ({reason}).", "Remove it, or calibrate with --fresh."
            ) from None

    @classmethod
    def _from_arrays(cls, arrays: Any) -> Statistics:
        header = json.loads(arrays["header"].tobytes())
        if header["schema"] != SCHEMA:
            raise ValueError(f"schema {header['schema']}")
        pictures = [PictureRecord.from_json(entry) for entry in header["pictures"]]
        values = {}
        for place, (name, node, exponent) in enumerate(header["values"]):
            if type(exponent) is not int or not SMALLEST <= exponent <= LARGEST:
                raise ValueError(f"the exponent of {name} is {exponent}")
            lows, highs = _checked(arrays, f"range_{place}", np.float64, (2, len(pictures)))
            largest = _checked(arrays, f"largest_{place}", np.float32, (None,))
            means = _checked(arrays, f"means_{place}", np.float64, largest.shape)
            counts = _checked(arrays, f"counts_{place}", np.int64, (BINS,))
            if (lows > highs).any() or (largest < 0).any() or (counts < 0).any():
                raise ValueError(f"negative counts or ranges of {name}")
            values[str(name)] = ValueStatistics(
                str(name), str(node), lows.tolist(), highs.tolist(), largest, means, Histogram(exponent, counts)
            )
        best = _checked(arrays, "best", np.float64, (len(pictures),))
        swapped = _checked(arrays, "swapped_best", np.float64, (None,))
        if len(swapped) > len(best):
            raise ValueError(f"{len(swapped)} scores with red and blue swapped, of {len(best)} pictures")
        return cls(str(header["model_sha256"]), values, pictures, best.tolist(), swapped.tolist())


def _checked(arrays: Any, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> NDArray[Any]:
    """The array of that name, finite and of that type and shape; None stands for any length."""
    found: NDArray[Any] = arrays[name]
    fits = len(found.shape) == len(shape) and all(want in (None, have) for want, have in zip(shape, found.shape))
    if found.dtype != dtype or not fits or not np.isfinite(found).all():
        raise ValueError(f"{name} is {found.dtype} {list(found.shape)}, or not finite")
    return found
