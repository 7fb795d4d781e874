"""What the float network shows of the calibration's pictures: against NumPy, whatever the batch, the memory, and interruptions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.calibration.graphs import exported
from tests.calibration.made_network import SIZE, made_view, manifest_of, plainly, poisoned
from tests.calibration.made_statistics import assert_same
from yolact_deploy.calibration import collect as module
from yolact_deploy.calibration.collect import MEMORY, Collector, collect, highest_score, value_bytes
from yolact_deploy.calibration.graph import GraphView
from yolact_deploy.calibration.histograms import BINS
from yolact_deploy.calibration.pictures import CalibrationPictures
from yolact_deploy.calibration.placement import calibrated_values
from yolact_deploy.calibration.statistics import Observation, Statistics, ValueStatistics
from yolact_deploy.data import sample_picture
from yolact_deploy.errors import DatasetError, ModelFileError
from yolact_deploy.manifest import Manifest
from yolact_deploy.onnx_file import read_manifest
from yolact_deploy.pictures import read_picture

COUNT = 7
VALUES = ["images", "stem", "middle", "last"]
each_graph = pytest.mark.parametrize(
    ("batch", "layout", "end"),
    [(batch, layout, end) for batch in (1, 2, 3, "dynamic") for layout, end in (("float", "none"), ("raw", "nms"))],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures, and one that is none."""
    place = tmp_path_factory.mktemp("pictures")
    for index in range(COUNT):
        Image.fromarray(sample_picture(30, 20 + index, index)).save(place / f"{index}.png")
    (place / "broken.png").write_bytes(b"no picture")
    return place


def pictures_of(folder: Path, count: int | None = None) -> CalibrationPictures:
    return CalibrationPictures.of_folder(folder, count, 0)


def empty(view: GraphView, values: list[str]) -> Statistics:
    return Statistics.empty(
        "ab" * 32, [(name, view.nodes[view.producers[name]].name if name in view.producers else "the input") for name in values]
    )


def collected(folder: Path, view: GraphView, manifest: Manifest, count: int | None = None, memory: int = MEMORY, **more: Any) -> Statistics:
    """With every calibrated value."""
    values = list(calibrated_values(view))
    statistics = more.pop("statistics", None) or empty(view, values)
    collect(Collector(view, manifest, values, threads=1, memory=memory), pictures_of(folder, count), statistics, **more)
    return statistics


def best_of(value: NDArray[Any]) -> float:
    return float(value[:, 1:].max() if value.ndim == 2 else value.max())


def assert_seen(statistics: Statistics, view: GraphView, manifest: Manifest, folder: Path) -> None:
    """Everything in `statistics` is what NumPy makes of plain sessions' values."""
    names = list(statistics.values)
    shown = [plainly(view, manifest.input, names, read_picture(folder / record.name)) for record in statistics.pictures]
    for name, value in statistics.values.items():
        seen = [one[name].astype(np.float64) for one in shown]
        np.testing.assert_allclose(value.lows, [one.min() for one in seen], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(value.highs, [one.max() for one in seen], rtol=1e-5, atol=1e-5)
        rows = np.stack([one.reshape(len(one), -1) for one in seen])
        np.testing.assert_allclose(value.channel_largest, np.abs(rows).max(axis=(0, 2)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(value.channel_means, rows.mean(axis=(0, 2)), rtol=1e-5, atol=1e-5)
        histogram = value.histogram
        counts = np.histogram(rows, np.linspace(-histogram.limit, histogram.limit, BINS + 1))[0]
        assert histogram.counts.sum() == rows.size
        moved = np.abs(np.cumsum(histogram.counts - counts))
        assert moved.max() <= 1 + rows.size // 1000, "a value near a bin's border may lie in the next"
    np.testing.assert_allclose(statistics.best, [best_of(one["scores"]) for one in shown], rtol=1e-5)
    swapped = [
        plainly(view, manifest.input, [], np.ascontiguousarray(read_picture(folder / record.name)[..., ::-1]))["scores"]
        for record in statistics.pictures[:16]
    ]
    np.testing.assert_allclose(statistics.swapped_best, [best_of(one) for one in swapped], rtol=1e-4)


@each_graph
def test_what_is_collected_is_what_numpy_finds(folder: Path, batch: Any, layout: Any, end: Any) -> None:
    view, manifest = made_view(batch, layout, end), manifest_of(batch, layout, end)
    told: list[tuple[int, int]] = []
    found = collected(folder, view, manifest, progress=lambda done, total: told.append((done, total)))
    assert list(found.values) == (VALUES if layout == "float" else ["normalised", *VALUES[1:]])
    order = [path.name for path in pictures_of(folder).paths() if path.name != "broken.png"]
    assert [record.name for record in found.pictures] == order
    assert (len(found.best), len(found.swapped_best)) == (COUNT, COUNT)
    assert len({*found.best, *found.swapped_best}) == 2 * COUNT, "the pictures show nothing"
    assert_seen(found, view, manifest, folder)
    step = batch if isinstance(batch, int) else 1
    assert told == [(min(done, COUNT), COUNT + 1) for done in range(step, COUNT + step, step)]


@pytest.mark.parametrize("kind", ["darknet", "resnet"])
def test_exports(folder: Path, run_folder: Path, kind: str) -> None:
    """Of a real one, every calibrated value."""
    path = exported(run_folder, kind)
    view, manifest = GraphView(onnx.load(path)), read_manifest(path)
    found = collected(folder, view, manifest, 2, memory=200_000)
    assert len(found.values) > 30
    assert_seen(found, view, manifest, folder)


@each_graph
@pytest.mark.parametrize("memory", [0, 1, 4 * 4 * SIZE**2, 20_000, 30_000])
def test_less_memory_gives_the_same(folder: Path, batch: Any, layout: Any, end: Any, memory: int) -> None:
    view, manifest = made_view(batch, layout, end), manifest_of(batch, layout, end)
    assert_same(collected(folder, view, manifest, 3, memory), collected(folder, view, manifest, 3))


def held(collector: Collector, count: int) -> list[int]:
    """Bytes of each group of values that :meth:`Collector.run` gives, without the input."""
    images = np.zeros((count, 3, SIZE, SIZE), np.float32)
    return [sum(value.nbytes for name, value in found.items() if name != "images") for found, _ in collector.run(images)]


@pytest.mark.parametrize("batch", [1, 2, 3, "dynamic"])
def test_memory_is_what_is_held(batch: Any) -> None:
    view, manifest = made_view(batch), manifest_of(batch)
    count = batch if isinstance(batch, int) else 1
    sizes = {name: 4 * int(np.prod(view.shapes[name][1:])) for name in VALUES[1:]}
    assert sizes == {"stem": 4096, "middle": 1536, "last": 2560}
    assert {name: value_bytes(view, [name]) for name in sizes} == sizes
    assert value_bytes(view, list(sizes)) == 8192
    for memory, groups in {
        MEMORY: [VALUES[1:]],
        8192 * count: [VALUES[1:]],
        8192 * count - 1: [["stem", "middle"], ["last"]],
        5632 * count: [["stem", "middle"], ["last"]],
        5632 * count - 1: [["stem"], ["middle", "last"]],
        4096 * count: [["stem"], ["middle", "last"]],
        4096 * count - 1: [["stem"], ["middle"], ["last"]],
        0: [["stem"], ["middle"], ["last"]],
    }.items():
        collector = Collector(view, manifest, VALUES, threads=1, memory=memory)
        assert collector.groups == groups
        assert collector.held_bytes == max(held(collector, count))
        assert collector.held_bytes <= max(memory, 4096 * count)


def test_the_input_comes_once(folder: Path) -> None:
    view, manifest = made_view(2), manifest_of(2)
    images = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    found = [dict(values) for values, _ in Collector(view, manifest, VALUES, threads=1, memory=0).run(images)]
    assert [list(values) for values in found] == [["images", "stem"], ["middle"], ["last"]]
    assert found[0]["images"] is images
    alone = Collector(view, manifest, ["images"], threads=1)
    assert alone.held_bytes == 0
    ((values, scores),) = alone.run(images)
    assert list(values) == ["images"]
    np.testing.assert_array_equal(scores, alone.scores_of(images))
    without = Collector(view, manifest, ["last"], threads=1)
    assert [list(values) for values, _ in without.run(images)] == [["last"]]


def test_scores_that_are_calibrated_too(folder: Path) -> None:
    view, manifest = made_view(), manifest_of()
    collector = Collector(view, manifest, ["last", "scores"], threads=1)
    ((values, scores),) = collector.run(np.zeros((1, 3, SIZE, SIZE), np.float32))
    assert list(values) == ["last", "scores"]
    assert scores == highest_score(values)


def test_the_highest_score_is_not_the_backgrounds() -> None:
    scores = np.zeros((2, 4, 3), np.float32)
    scores[:, :, 0] = 0.9
    scores[0, 3, 2], scores[1, 0, 1] = 0.25, 0.5
    found = highest_score({"scores": scores, "boxes": scores})
    assert found.tolist() == [0.25, 0.5]
    assert found.dtype == np.float64
    assert highest_score({"detections_scores": np.array([[0.5, 0.25], [0.0, 0.0]], np.float32)}).tolist() == [0.5, 0.0]


@pytest.mark.parametrize(("batch", "end"), [(1, "none"), (3, "none"), ("dynamic", "nms")])
def test_only_the_first_pictures_are_swapped(folder: Path, monkeypatch: pytest.MonkeyPatch, batch: Any, end: Any) -> None:
    view, manifest = made_view(batch, "float", end), manifest_of(batch, "float", end)
    whole = collected(folder, view, manifest)
    monkeypatch.setattr(module, "_SWAPPED", 4)
    asked: list[int] = []
    scores_of = Collector.scores_of

    def counted(self: Collector, images: NDArray[Any]) -> NDArray[np.float64]:
        asked.append(len(images))
        return scores_of(self, images)

    monkeypatch.setattr(Collector, "scores_of", counted)
    found = collected(folder, view, manifest)
    assert found.swapped_best == whole.swapped_best[:4]
    assert found.best == whole.best
    assert len(asked) == (2 if batch == 3 else 4), "no further picture is run"


def test_sixteen_pictures_are_swapped(tmp_path: Path) -> None:
    for index in range(18):
        Image.fromarray(sample_picture(20, 20, index)).save(tmp_path / f"{index:02}.png")
    found = collected(tmp_path, made_view(3), manifest_of(3))
    assert (len(found.best), len(found.swapped_best)) == (18, 16)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("weight", "place", "node"),
    [
        ("stem_weight", (1, 0, 1, 1), "backbone/conv1/Relu"),
        ("middle_weight", (2, 3, 0, 0), "backbone/layers.0.0.conv1/Relu"),
        ("last_bias", (4,), "heads/conf_layer/Conv"),
    ],
)
@pytest.mark.parametrize("memory", [MEMORY, 0])
def test_values_that_are_not_finite_are_named(
    folder: Path, weight: str, place: tuple[int, ...], value: float, node: str, memory: int
) -> None:
    view = poisoned(weight, place, value, 2)
    first = next(path.name for path in pictures_of(folder).paths() if path.name != "broken.png")
    with pytest.raises(ModelFileError) as caught:
        collected(folder, view, manifest_of(2), memory=memory)
    said = f"The layer {node} makes values that are not finite (NaN or infinite) of the picture {first}. Check the checkpoint's weights"
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(("batch", "seen"), [(1, 5), (2, 4), (3, 3)])
def test_the_picture_that_makes_them_is_named(tmp_path: Path, batch: int, seen: int) -> None:
    """Only bright pixels run over; what came before is kept."""
    for index in range(8):
        Image.new("RGB", (8, 8), (255, 255, 255) if index == 5 else (index, 0, 0)).save(tmp_path / f"{index}.png")
    view = poisoned("stem_weight", (1, slice(None), 1, 1), 3e38, batch)
    pictures = CalibrationPictures.of_folder(tmp_path, None, 0)
    pictures._names = [f"{index}.png" for index in range(8)]
    statistics = empty(view, VALUES)
    with pytest.raises(ModelFileError, match=r"The layer backbone/conv1/Relu makes .* of the picture 5\.png\."):
        collect(Collector(view, manifest_of(batch), VALUES, threads=1), pictures, statistics, save_to=tmp_path / "kept.npz")
    found = Statistics.load(tmp_path / "kept.npz")
    assert [record.name for record in found.pictures] == [f"{index}.png" for index in range(seen)]
    assert_same(found, statistics)


def halting(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, calls: int) -> None:
    """`owner.name` raises at its call number `calls`."""
    counted, original = iter(range(calls)), owner.__dict__[name]
    call: Callable[..., Any] = original.__func__ if isinstance(original, classmethod) else original

    def counting(*args: Any) -> Any:
        if next(counted, None) is None:
            raise ZeroDivisionError
        return call(*args)

    monkeypatch.setattr(owner, name, classmethod(counting) if isinstance(original, classmethod) else counting)


def resumed(folder: Path, file: Path, view: GraphView, manifest: Manifest) -> Statistics:
    statistics = Statistics.load(file) if file.exists() else None
    found = collected(folder, view, manifest, statistics=statistics, save_to=file)
    assert_same(Statistics.load(file), found)
    return found


@pytest.mark.parametrize("batch", [1, 2, 3, "dynamic"])
def test_an_interruption_keeps_what_was_seen(folder: Path, tmp_path: Path, batch: Any) -> None:
    view, manifest = made_view(batch), manifest_of(batch)
    wanted = collected(folder, view, manifest)
    step = batch if isinstance(batch, int) else 1
    for stop in range(step, COUNT + 1, step):
        file = tmp_path / f"{stop}.npz"

        def interrupt(done: int, total: int, stop: int = stop) -> None:
            if done >= stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            collected(folder, view, manifest, save_to=file, progress=interrupt)
        assert len(Statistics.load(file).pictures) == stop
        assert_same(resumed(folder, file, view, manifest), wanted)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("saved_every", [10.0, -1.0])
@pytest.mark.parametrize(("owner", "name"), [(Observation, "of"), (ValueStatistics, "add"), (Collector, "scores_of")])
def test_an_error_in_the_middle_of_a_picture_keeps_a_whole_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, saved_every: float, batch: int
) -> None:
    view, manifest = made_view(batch), manifest_of(batch)
    wanted = collected(folder, view, manifest)
    monkeypatch.setattr(module, "_SAVED_EVERY", saved_every)
    sizes = []
    for calls in range(0, 28, 3) if name != "scores_of" else range(3):
        file = tmp_path / f"{calls}.npz"
        with monkeypatch.context() as patch:
            halting(patch, owner, name, calls)
            with pytest.raises(ZeroDivisionError):
                collected(folder, view, manifest, save_to=file)
        kept = Statistics.load(file) if file.exists() else empty(view, VALUES)
        sizes.append(len(kept.pictures))
        for value in kept.values.values():
            assert len(value.lows) == len(kept.pictures) == len(kept.best) == len(kept.swapped_best)
        assert_same(resumed(folder, file, view, manifest), wanted)
    if name == "add" and saved_every > 0:
        assert max(sizes) == 0, "half a picture was taken in, and is not written"
    else:
        assert max(sizes) > 1
        assert sizes[0] == 0


def test_the_file_is_written_now_and_then(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, manifest, file = made_view(), manifest_of(), tmp_path / "a.npz"
    saved: list[int] = []
    save = Statistics.save

    def noted(self: Statistics, path: Path) -> None:
        saved.append(len(self.pictures))
        save(self, path)

    monkeypatch.setattr(Statistics, "save", noted)
    collected(folder, view, manifest, save_to=file)
    assert saved == [COUNT], "once, at the end"
    saved.clear()
    collected(folder, view, manifest, statistics=Statistics.load(file), save_to=file)
    assert saved == [], "nothing is new"
    times = iter(range(0, 1000, 6))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(times)))
    collected(folder, view, manifest, save_to=file)
    assert saved == [2, 4, 6, 7], "after more than ten seconds, and at the end"
    saved.clear()
    collected(folder, view, manifest)
    assert saved == []


def test_what_is_complete_is_not_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, manifest = made_view(2), manifest_of(2)
    found = collected(folder, view, manifest)
    monkeypatch.setattr(Collector, "run", lambda self, images: pytest.fail("it was run again"))
    assert_same(collected(folder, view, manifest, statistics=found), found)


def test_more_pictures_than_before(folder: Path) -> None:
    view, manifest = made_view(), manifest_of()
    assert_same(collected(folder, view, manifest, statistics=collected(folder, view, manifest, 3)), collected(folder, view, manifest))


def test_no_picture_can_be_read(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"none")
    statistics = empty(made_view(), VALUES)
    with pytest.raises(DatasetError, match="None of the 3 pictures"):
        collected(tmp_path, made_view(), manifest_of(), statistics=statistics, save_to=tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()
    assert statistics.pictures == []


def test_graphs_that_onnx_runtime_refuses() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(made_view().model)
    view = GraphView(model)
    view.model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(
        ModelFileError, match=rf"^ONNX Runtime {re.escape(onnxruntime.__version__)} cannot load the model: .*NoSuchOperator"
    ) as caught:
        Collector(view, manifest_of(), VALUES)
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("Export it again.")
    assert len(str(caught.value)) < 300


def test_values_without_a_shape() -> None:
    with pytest.raises(ModelFileError, match=r"The shape of nothing is not known before it runs\. Export"):
        Collector(made_view(), manifest_of(), ["stem", "nothing"])


def test_the_graph_itself_is_left_alone() -> None:
    view = made_view()
    before = view.model.SerializeToString()
    Collector(view, manifest_of(), VALUES)
    assert view.model.SerializeToString() == before
