"""Running a model over a data set: interrupted, resumed and shared out among processes, the results are the same to the last byte."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.models import Models
from yolact_deploy.classes import ClassList, numbered_classes
from yolact_deploy.data import CocoDataset, read_dataset
from yolact_deploy.errors import ConfigError, DatasetError, OutputError, PictureError, YolactDeployError
from yolact_deploy.evaluation.jobs import ClassMap, Job, ModelSource, Picture
from yolact_deploy.evaluation.runner import run_model
from yolact_deploy.evaluation.store import ResultStore

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
Counts = list[tuple[int, int]]


def run(
    source: ModelSource, dataset: CocoDataset, path: Path, *, limit: int | None = None, stop: int = 0, **options: Any
) -> tuple[ResultStore, tuple[str, ...], Counts]:
    """The store, what was told, and the progress; `stop` interrupts after so many pictures, as Ctrl-C would."""
    detector = source.open()
    pictures = [Picture.of(dataset, image.id) for image in dataset.images][:limit]
    seen: Counts = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == stop:
            raise KeyboardInterrupt

    store, told = run_model(source, detector, Job.of(source, detector, dataset, pictures), path, progress=progress, **options)
    return store, told, seen


def written(store: ResultStore) -> tuple[bytes, bytes]:
    """The bytes of both result files."""
    texts = []
    for iou_type in ("bbox", "segm"):
        path = store.path.with_suffix(f".{iou_type}.json")
        store.write_results(path, iou_type)
        texts.append(path.read_bytes())
    return texts[0], texts[1]


@pytest.fixture(scope="module")
def whole(models: Models, tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    return run(models.onnx_source, models.dataset, tmp_path_factory.mktemp("whole") / "s.jsonl")[0]


@pytest.fixture
def own_data(models: Models, tmp_path: Path) -> CocoDataset:
    """A copy that a test may change."""
    shutil.copytree(models.dataset.folder.parent, tmp_path / "data")
    return read_dataset(tmp_path / "data" / "annotations.json")


def test_every_picture_is_run_and_told(models: Models, whole: ResultStore, tmp_path: Path) -> None:
    store, told, seen = run(models.onnx_source, models.dataset, tmp_path / "s.jsonl")
    assert store.image_ids == tuple(image.id for image in models.dataset.images)
    assert (told, seen) == ((), [(number, 12) for number in range(1, 13)])
    assert store.detection_count == 1200
    assert set(store.milliseconds) == {"read", "preprocess", "inference", "postprocess"}
    assert written(store) == written(whole)
    for image in models.dataset.images:
        found = store.detections(image.id)
        assert (found.width, found.height) == (image.width, image.height)
        assert (found.class_names, found.category_ids) == (("cat", "dog", "fish", "bird"), (3, 7, 12, 90))


def test_detections_are_the_detectors_in_the_data_sets_terms(models: Models, whole: ResultStore) -> None:
    image = models.dataset.images[0]
    pictures = [models.dataset.picture_path(one) for one in models.dataset.images[:8]]
    raw = next(models.onnx_source.open().stream(pictures))
    found = whole.detections(image.id)
    np.testing.assert_array_equal(found.boxes, raw.boxes)
    np.testing.assert_array_equal(found.scores, raw.scores)
    assert found.counts == raw.counts
    assert found.names == raw.names
    assert found.scores.min() < 0.2  # nothing is cut away
    assert set(raw.names) >= {"bird", "cat"}  # whose labels differ between the two
    assert raw.class_names != found.class_names


@pytest.mark.parametrize("stop", [1, 5, 8, 11])
def test_an_interrupted_run_goes_on_where_it_was(models: Models, whole: ResultStore, tmp_path: Path, stop: int) -> None:
    path = tmp_path / "s.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(models.onnx_source, models.dataset, path, stop=stop)
    with open(path, "ab") as handle:
        handle.write(b'{"image_id":')  # what a kill would leave
    store, told, seen = run(models.onnx_source, models.dataset, path)
    assert told == (f"{path} holds {stop} pictures of an earlier run, which are not run again, 1 damaged lines cut off.",)
    assert seen == [(number, 12) for number in range(stop + 1, 13)]
    assert written(store) == written(whole)


def test_what_is_done_is_not_run_again_unless_asked(models: Models, whole: ResultStore, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    run(models.onnx_source, models.dataset, path, limit=3)
    assert len(run(models.onnx_source, models.dataset, path)[2]) == 9
    assert run(models.onnx_source, models.dataset, path)[2] == []
    store, told, seen = run(models.onnx_source, models.dataset, path, fresh=True)
    assert told == (f"{path} was begun anew.",)
    assert len(seen) == 12
    assert len(store) == 12


def test_changed_pictures_are_run_again(models: Models, own_data: CocoDataset, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    before = run(models.onnx_source, own_data, path)[0].detections(5)
    file = own_data.picture_path(own_data.image(5))
    size = (own_data.image(5).width, own_data.image(5).height)
    Image.new("RGB", size, (10, 200, 90)).save(file)
    store, told, seen = run(models.onnx_source, own_data, path)
    assert told[1] == "1 pictures have changed since an earlier run and are run again."
    assert seen == [(12, 12)]
    assert not np.array_equal(store.detections(5).boxes, before.boxes)


def test_another_model_begins_anew(models: Models, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    run(models.onnx_source, models.dataset, path, limit=2)
    _, told, seen = run(models.checkpoint_source, models.dataset, path, limit=2)
    assert "came from another model" in told[0]
    assert seen == [(1, 2), (2, 2)]
    path.write_text("my notes")
    with pytest.raises(OutputError, match="--force"):
        run(models.onnx_source, models.dataset, path)


def test_what_alters_detections_alters_the_header(models: Models, tmp_path: Path) -> None:
    pictures = [Picture.of(models.dataset, image.id) for image in models.dataset.images]

    def job(source: ModelSource) -> Job:
        return Job.of(source, source.open(), models.dataset, pictures)

    checkpoint = job(models.checkpoint_source)
    assert [len(group) for group in checkpoint.groups] == [8, 4]
    assert checkpoint.header.settings["group"] == 8
    other = tmp_path / "other.toml"
    other.write_text(models.config.read_text().replace("[60]", "[50]"))
    changed = job(replace(models.checkpoint_source, config=other)).header
    assert changed.difference(checkpoint.header).startswith("other settings (manifest ")
    assert "another model" in job(models.onnx_source).header.difference(checkpoint.header)


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_find_the_same(models: Models, whole: ResultStore, tmp_path: Path, workers: int) -> None:
    path = tmp_path / "s.jsonl"
    store, _, seen = run(models.onnx_source, models.dataset, path, workers=workers)
    assert seen == [(number, 12) for number in range(1, 13)]
    assert written(store) == written(whole)
    assert store.image_ids == whole.image_ids
    assert [file.name for file in tmp_path.glob("*.jsonl")] == ["s.jsonl"]


def test_a_worker_that_dies_is_told_and_its_work_is_kept(models: Models, whole: ResultStore, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    detector = models.onnx_source.open()
    pictures = [Picture.of(models.dataset, image.id) for image in models.dataset.images]
    job = Job.of(models.onnx_source, detector, models.dataset, pictures)

    def kill(done: int, total: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(YolactDeployError, match=r"evaluation worker \d died \(signal SIGKILL\)\. Use fewer --workers"):
        run_model(models.onnx_source, detector, job, path, workers=2, progress=kill)
    assert multiprocessing.active_children() == []
    parts = list(tmp_path.glob("s.part*.jsonl"))
    assert parts
    kept = sum(len(ResultStore.open(part)) for part in parts)
    assert kept
    store, _, seen = run(models.onnx_source, models.dataset, path)
    assert len(seen) == 12 - kept
    assert written(store) == written(whole)
    assert [file.name for file in tmp_path.glob("*.jsonl")] == ["s.jsonl"]


def test_interrupted_workers_end(models: Models, whole: ResultStore, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(models.onnx_source, models.dataset, path, workers=2, stop=3)
    assert multiprocessing.active_children() == []
    assert written(run(models.onnx_source, models.dataset, path, workers=2)[0]) == written(whole)


def test_parts_of_another_run_are_not_mixed_in(models: Models, whole: ResultStore, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    other = ResultStore.create(tmp_path / "s.part0.jsonl", replace(whole.header, model_sha256="b" * 64))
    other.append(1, whole.detections(2))
    foreign = tmp_path / "s.part7.jsonl"
    foreign.write_text("my notes")
    assert written(run(models.onnx_source, models.dataset, path)[0]) == written(whole)
    assert not other.path.exists()
    assert foreign.read_text() == "my notes"


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def of_another_size(path: Path) -> None:
    Image.new("RGB", (30, 20)).save(path)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (broken, PictureError, r"901\.png is truncated or damaged"),
        (of_another_size, DatasetError, r"901\.png has 30x20 pixels, its annotation says \d+x\d+\. Give the pictures that were annotated"),
    ],
)
def test_a_bad_picture_stops_the_run(
    models: Models, own_data: CocoDataset, tmp_path: Path, change: Callable[[Path], None], kind: type, message: str, workers: int
) -> None:
    file = own_data.picture_path(own_data.image(901))
    good = file.read_bytes()
    change(file)
    with pytest.raises(kind, match=message):
        run(models.onnx_source, own_data, tmp_path / "s.jsonl", workers=workers)
    file.write_bytes(good)
    assert len(run(models.onnx_source, own_data, tmp_path / "s.jsonl")[0]) == 12


def test_a_picture_that_is_gone(own_data: CocoDataset) -> None:
    own_data.picture_path(own_data.image(901)).unlink()
    with pytest.raises(DatasetError, match=r"901\.png cannot be read: No such file"):
        Picture.of(own_data, 901)


def test_a_checkpoint_runs_too(models: Models, whole: ResultStore, tmp_path: Path) -> None:
    store = run(models.checkpoint_source, models.dataset, tmp_path / "s.jsonl", limit=2)[0]
    for image_id, found in store:
        np.testing.assert_allclose(found.scores, whole.detections(image_id).scores, atol=1e-5)


DATA = ClassList(("cat", "dog", "fish"), (3, 7, 12))


def test_classes_are_matched_by_name() -> None:
    assert ClassMap.of(DATA, DATA, "m") == ClassMap((0, 1, 2), ())
    assert ClassMap.of(ClassList(("fish", "cat", "dog"), (1, 2, 3)), DATA, "m") == ClassMap((2, 0, 1), ())


def test_classes_that_only_one_side_knows_are_told() -> None:
    found = ClassMap.of(ClassList(("cow", "fish", "cat"), (1, 2, 3)), DATA, "m.onnx")
    assert found.labels == (-1, 2, 0)
    assert found.notes == (
        "Detections of 1 classes that the data set lacks are left out: cow.",
        "1 of 3 categories are unknown to m.onnx and count with AP 0: dog.",
    )


def test_stand_in_names_are_matched_in_order() -> None:
    found = ClassMap.of(numbered_classes(3), DATA, "m.pth")
    assert found == ClassMap((0, 1, 2), ("m.pth names no classes: its 3 labels are taken for the categories in order.",))
    for count, names in ((2, "class 1, class 2"), (4, "class 1, class 2, class 3, class 4")):
        with pytest.raises(ConfigError, match=rf"no class in common: it finds {names}; the data set has cat, dog, fish\. Name"):
            ClassMap.of(numbered_classes(count), DATA, "m.pth")
    assert ClassMap.of(numbered_classes(3), numbered_classes(3), "m").notes == ()


def test_an_artifact_of_another_data_set_is_refused() -> None:
    many = ClassList(tuple(f"thing {number}" for number in range(20)), tuple(range(20)))
    with pytest.raises(ConfigError, match=r"m and the data set have no class in common: .*thing 7, … \(20 in all\); the data set has cat"):
        ClassMap.of(many, DATA, "m")


def test_detections_of_unknown_classes_are_left_out(models: Models, whole: ResultStore) -> None:
    raw = models.onnx_source.open().predict(models.dataset.picture_path(models.dataset.images[0]))
    mapped = ClassMap((-1, 2, 0, -1), ()).apply(raw, DATA)
    kept = np.isin(raw.labels, [1, 2])
    assert 0 < kept.sum() < len(raw)
    np.testing.assert_array_equal(mapped.scores, raw.scores[kept])
    np.testing.assert_array_equal(mapped.labels, np.array([-1, 2, 0, -1])[raw.labels[kept]])
    assert (mapped.class_names, mapped.category_ids) == (DATA.names, DATA.category_ids)
    assert len(ClassMap((0, 1, 2, 2), ()).apply(raw[:0], DATA)) == 0


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == [], os.getpid()
