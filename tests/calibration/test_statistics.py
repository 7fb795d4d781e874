"""What was seen of each value: against NumPy, and there and back through its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.calibration.made_statistics import SHAPES, assert_same, observed, statistics_over, values_of
from yolact_deploy.calibration.histograms import BINS
from yolact_deploy.calibration.pictures import PictureRecord
from yolact_deploy.calibration.statistics import Observation, Statistics, ValueStatistics
from yolact_deploy.errors import OutputError


def test_an_observation_is_what_numpy_finds() -> None:
    for name in SHAPES:
        values = values_of(1, name)
        found = observed(values)
        rows = values.reshape(len(values), -1)
        assert (found.low, found.high) == (values.min(), values.max())
        assert type(found.low) is type(found.high) is float
        np.testing.assert_array_equal(found.channel_largest, np.abs(rows).max(axis=1))
        np.testing.assert_array_equal(found.channel_means, rows.astype(np.float64).mean(axis=1))
        assert found.channel_largest.dtype == np.float32
        assert found.channel_means.dtype == np.float64
        edges = np.linspace(-found.histogram.limit, found.histogram.limit, BINS + 1)
        np.testing.assert_array_equal(found.histogram.counts, np.histogram(values.astype(np.float64), edges)[0])
        assert found.histogram.limit / 2 <= np.abs(values).max() < found.histogram.limit


def test_means_are_summed_in_float64() -> None:
    values = np.full((1, 1 << 20), 0.1, np.float32)
    assert observed(values).channel_means[0] == pytest.approx(float(np.float32(0.1)), rel=1e-14)


def test_the_largest_magnitude_may_be_negative_or_not() -> None:
    found = observed(np.array([[-5.0, 1.0], [-1.0, 4.0], [-3.0, -2.0]], np.float32))
    assert found.channel_largest.tolist() == [5, 4, 3]
    assert observed(np.array([[-5.0, 1.0]], np.float32)).histogram.exponent == 3
    assert observed(np.array([[-9.0, -5.0]], np.float32)).channel_largest.tolist() == [9]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_observations_are_finite(bad: float) -> None:
    for place in [(0, 0, 0), (2, 3, 4), (1, 2, 3)]:
        values = values_of(0, "images")
        values[place] = bad
        assert Observation.of(values) is None
    values[:] = bad
    assert Observation.of(values) is None
    assert Observation.of(np.full((2, 2), np.finfo(np.float32).max, np.float32)) is not None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_values_over_pictures_are_what_numpy_finds(count: int) -> None:
    found = statistics_over(count)
    for name, value in found.values.items():
        seen = np.stack([values_of(index, name) for index in range(count)])
        rows = seen.reshape(count, len(seen[0]), -1)
        assert value.lows == [float(one.min()) for one in seen]
        assert value.highs == [float(one.max()) for one in seen]
        assert (value.low, value.high) == (float(seen.min()), float(seen.max()))
        np.testing.assert_array_equal(value.channel_largest, np.abs(rows).max(axis=(0, 2)))
        assert value.channel_largest.dtype == np.float32
        np.testing.assert_allclose(value.channel_means, rows.astype(np.float64).mean(axis=(0, 2)), rtol=1e-12)
        limit = value.histogram.limit
        np.testing.assert_array_equal(
            value.histogram.counts, np.histogram(seen.astype(np.float64), np.linspace(-limit, limit, BINS + 1))[0]
        )


def test_adding_leaves_the_observation() -> None:
    seen = observed(values_of(0, "images"))
    largest, means = seen.channel_largest.copy(), seen.channel_means.copy()
    first, second = ValueStatistics("a", "b"), ValueStatistics("a", "b")
    for value in (first, second):
        value.add(seen)
    first.add(observed(values_of(4, "images")))
    np.testing.assert_array_equal(seen.channel_largest, largest)
    np.testing.assert_array_equal(seen.channel_means, means)
    assert second.histogram.counts.sum() == first.histogram.counts.sum() / 2 == 60
    assert second.highs == [seen.high]


def test_empty_statistics() -> None:
    found = Statistics.empty("ab", [("x", "layer"), ("y", "other")])
    assert [(value.name, value.node, value.lows) for value in found.values.values()] == [("x", "layer", []), ("y", "other", [])]
    assert (found.model_sha256, found.pictures, found.best, found.swapped_best) == ("ab", [], [], [])
    assert found.values["x"].histogram is not found.values["y"].histogram


def test_what_fits() -> None:
    one = Statistics.empty("ab", [("x", "layer"), ("y", "other")])
    assert one.fits(Statistics.empty("ab", [("x", "renamed"), ("y", "other")]))
    assert not one.fits(Statistics.empty("cd", [("x", "layer"), ("y", "other")]))
    assert not one.fits(Statistics.empty("ab", [("y", "other"), ("x", "layer")]))
    assert not one.fits(Statistics.empty("ab", [("x", "layer")]))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_there_and_back(tmp_path: Path, count: int) -> None:
    wanted = statistics_over(count)
    wanted.save(tmp_path / "new" / "a.npz")
    found = Statistics.load(tmp_path / "new" / "a.npz")
    assert_same(found, wanted)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.npz"]
    for value in wanted.values.values():
        value.add(observed(values_of(7, value.name)))
    for value in found.values.values():
        value.add(observed(values_of(7, value.name)))
    assert_same(found, wanted)
    assert all(type(entry) is float for entry in [*found.best, *found.swapped_best, *found.values["relu"].lows])


def test_saving_replaces_the_file_and_loading_leaves_it(tmp_path: Path) -> None:
    statistics_over(5).save(tmp_path / "a.npz")
    statistics_over(2).save(tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()
    assert_same(Statistics.load(tmp_path / "a.npz"), statistics_over(2))
    assert (tmp_path / "a.npz").read_bytes() == before


def test_an_interrupted_saving_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics_over(1).save(tmp_path / "a.npz")

    def half(handle: Any, **arrays: Any) -> None:
        handle.write(b"PK half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(KeyboardInterrupt):
        statistics_over(2).save(tmp_path / "a.npz")
    monkeypatch.undo()
    assert_same(Statistics.load(tmp_path / "a.npz"), statistics_over(1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        statistics_over(1).save(tmp_path / "file" / "a.npz")


def test_the_first_and_last_exponent_are_read(tmp_path: Path) -> None:
    for value in (0.0, float(np.finfo(np.float32).max)):
        wanted = Statistics.empty("ab", [("x", "layer")])
        wanted.values["x"].add(observed(np.full((2, 3), value, np.float32)))
        wanted.pictures.append(PictureRecord("a.png", "0f" * 32, 4, 3, 5, (0.0, 0.0, 0.0)))
        wanted.best.append(0.5)
        wanted.save(tmp_path / "a.npz")
        assert_same(Statistics.load(tmp_path / "a.npz"), wanted)


def test_histograms_are_those_of_the_pictures() -> None:
    found = statistics_over(4)
    assert all(value.histogram.counts.sum() == 4 * np.prod(SHAPES[name]) for name, value in found.values.items())
