"""Statistics of drawn values, and whether two are the same to the last bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.calibration.pictures import PictureRecord
from yolact_deploy.calibration.statistics import Observation, Statistics

__all__ = ["SHAPES", "assert_same", "observed", "statistics_over", "values_of"]

SHAPES = {"images": (3, 4, 5), "relu": (6, 2, 2), "flat": (4,)}


def values_of(picture: int, name: str) -> NDArray[np.float32]:
    generator = np.random.default_rng([picture, *name.encode()])
    drawn = generator.standard_normal(SHAPES[name]) * 3.0**picture
    return (np.maximum(drawn, 0) if name == "relu" else drawn).astype(np.float32)


def observed(values: NDArray[np.float32]) -> Observation:
    found = Observation.of(values)
    assert found is not None
    return found


def record(index: int) -> PictureRecord:
    return PictureRecord(f"sub/ä{index}\udcff.png", f"{index:064x}", 640, 480, 2**63 + index, (1.5, 0.0, 255.0))


def statistics_over(count: int) -> Statistics:
    found = Statistics.empty("ab" * 32, [(name, f"backbone/{name}/Relu") for name in SHAPES])
    for index in range(count):
        for name, value in found.values.items():
            value.add(observed(values_of(index, name)))
        found.pictures.append(record(index))
        found.best.append(0.1 * index)
        if index < 2:
            found.swapped_best.append(0.3 * index)
    return found


def assert_same(found: Statistics, wanted: Statistics) -> None:
    assert found.model_sha256 == wanted.model_sha256
    assert found.pictures == wanted.pictures
    assert (found.best, found.swapped_best) == (wanted.best, wanted.swapped_best)
    assert list(found.values) == list(wanted.values)
    for name, value in found.values.items():
        other = wanted.values[name]
        assert (value.name, value.node, value.lows, value.highs) == (other.name, other.node, other.lows, other.highs)
        assert value.histogram.exponent == other.histogram.exponent
        pairs = [(getattr(value, key), getattr(other, key)) for key in ("channel_largest", "channel_means")]
        for mine, its in [*pairs, (value.histogram.counts, other.histogram.counts)]:
            assert mine.dtype == its.dtype
            np.testing.assert_array_equal(mine, its)
