"""The store: nothing of a detection gets lost, half lines are cut off, other runs' files are not mixed in."""

from __future__ import annotations

import json
import re
import resource
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.evaluation.made import filled_store, header_of, jittered, make_dataset
from yolact_deploy.classes import ClassList
from yolact_deploy.data import CocoDataset
from yolact_deploy.detections import Detections
from yolact_deploy.errors import DatasetError, ModelFileError, OutputError
from yolact_deploy.evaluation.store import ResultStore, StoreHeader, merge_stores

CLASSES = ClassList(("cat", 'do"g', "b\\ird"), (3, 7, 90))
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return make_dataset(tmp_path_factory.mktemp("made"))


def same(one: Detections, other: Detections) -> None:
    for name in ("boxes", "scores", "mask_scores", "labels"):
        mine, its = getattr(one, name), getattr(other, name)
        assert (mine.dtype, mine.shape, mine.tobytes()) == (its.dtype, its.shape, its.tobytes())
    for name in ("counts", "width", "height", "class_names", "category_ids", "milliseconds"):
        assert getattr(one, name) == getattr(other, name)


@st.composite
def some_detections(draw: st.DrawFn) -> Detections:
    n = draw(st.integers(0, 4))
    boxes = draw(arrays.arrays(np.float32, (n, 4), elements=FLOATS))
    scores, mask_scores = (draw(arrays.arrays(np.float32, n, elements=FLOATS)) for _ in range(2))
    labels = draw(arrays.arrays(np.int64, n, elements=st.integers(0, 2)))
    counts = tuple(draw(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=9)).encode() for _ in range(n))
    spent = draw(st.dictionaries(st.sampled_from(["read", "inference"]), st.floats(0, 1e9)))
    size = draw(st.tuples(st.integers(1, 9999), st.integers(1, 9999)))
    return Detections(boxes, scores, mask_scores, labels, counts, *size, CLASSES.names, CLASSES.category_ids, spent)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.integers(0, 1 << 53), some_detections(), max_size=4), st.text(max_size=5))
def test_what_goes_in_comes_out(found: dict[int, Detections], stamp: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s.jsonl")
        store = ResultStore.create(path, StoreHeader("m", "0", "1", CLASSES))
        for image_id, detections in found.items():
            store.append(image_id, detections, stamp=stamp)
        for read in (store, ResultStore.open(path)):
            assert read.image_ids == tuple(sorted(found))
            assert read.detection_count == sum(map(len, found.values()))
            assert [image_id for image_id, _ in read] == sorted(found)
            for image_id, detections in found.items():
                same(read.detections(image_id), detections)
                assert read.stamp(image_id) == stamp


def test_means(dataset: CocoDataset, tmp_path: Path) -> None:
    store = ResultStore.create(tmp_path / "s.jsonl", header_of(dataset))
    assert (len(store), store.milliseconds, store.bytes_per_picture) == (0, {}, 0)
    one = jittered(dataset, 1)
    for image_id, spent in ((1, {"read": 1.0, "inference": 5.0}), (2, {"read": 2.0, "inference": 1.0}), (4, {})):
        store.append(image_id, replace(one, milliseconds=spent))
    assert store.milliseconds == {"read": 1.5, "inference": 3.0}
    lines = store.path.read_bytes().splitlines(keepends=True)
    assert store.bytes_per_picture == pytest.approx(np.mean([len(line) for line in lines[1:]]))
    assert "3 pictures" in repr(store)
    view = store.of([2])
    assert (view.image_ids, view.milliseconds, view.detection_count) == ((2,), {"read": 2.0, "inference": 1.0}, len(one))
    with pytest.raises(KeyError):
        view.detections(1)
    with pytest.raises(KeyError):
        store.of([3])


@pytest.mark.parametrize("kept", [1, 40, -2, -1])
def test_a_half_line_is_cut_off_and_written_again(dataset: CocoDataset, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "s.jsonl"
    whole = filled_store(path, dataset)
    content = path.read_bytes()
    *lines, last = content.splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + last[:kept])
    store, told = ResultStore.resume(path, whole.header)
    assert store.image_ids == whole.image_ids[:-1]
    assert store.damaged == 1
    assert told.endswith("11 pictures of an earlier run, which are not run again, 1 damaged lines cut off.")
    store.append(70000, jittered(dataset, 70000))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: re.sub(rb'"labels":\[\d+', b'"labels":[4', line),
        lambda line: re.sub(rb'"labels":\[\d+', b'"labels":[-1', line),
        lambda line: line.replace(b'"scores":[', b'"scores":[NaN,'),
        lambda line: line.replace(b'"boxes":[', b'"boxes":[1.5,'),
        lambda line: line.replace(b'"size"', b'"site"'),
        lambda line: line.replace(b'"given":null', b'"given":[[1]]'),
        lambda line: b"\0" * len(line) + b"\n",
        lambda line: b"[]\n",
        lambda line: b"[" * 100_000 + b"\n",
    ],
)
def test_from_a_damaged_line_on_all_is_left_out(dataset: CocoDataset, tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "s.jsonl"
    whole = filled_store(path, dataset)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = damage(lines[4])
    path.write_bytes(b"".join(lines))
    store = ResultStore.open(path)
    assert store.image_ids == whole.image_ids[:3]
    assert store.damaged == 9
    for number, image_id in enumerate(whole.image_ids[3:], 4):
        store.append(image_id, jittered(dataset, image_id))
        again = ResultStore.open(path)
        assert (len(again), again.damaged) == (number, 0)
    assert store.damaged == 0
    for image_id in whole.image_ids:
        same(ResultStore.open(path).detections(image_id), jittered(dataset, image_id))


def test_another_runs_file_is_begun_anew(dataset: CocoDataset, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    mine = header_of(dataset)
    others = {
        f"another model (SHA-256 {'b' * 12}, now {'a' * 12})": replace(mine, model_sha256="b" * 64),
        f"another annotation file (SHA-256 {'c' * 12}, now {dataset.sha256[:12]})": replace(mine, data_sha256="c" * 64),
        "other categories": replace(mine, classes=ClassList(("a",), (1,))),
        "other settings (group 1, now 8)": replace(mine, settings={"group": 1}),
        "other settings (extra None, now 2)": replace(mine, settings={"group": 8}),
        "other versions (numpy 2, now 1)": replace(mine, versions={"numpy": "2"}),
    }
    for what, other in others.items():
        now = replace(mine, settings={"group": 8, "extra": 2}) if "extra" in what else mine
        ResultStore.create(path, other)
        store, told = ResultStore.resume(path, now)
        assert told == f"{path} came from {what}: begun anew."
        assert (len(store), ResultStore.open(path).header) == (0, now)
    assert mine.difference(replace(mine, model="another name")) == ""
    assert ResultStore.resume(tmp_path / "new.jsonl", mine)[1] == ""


@pytest.mark.parametrize(
    "content", [b"", b"my notes\n", b"{}\n", b'{"format": "yolact-deploy detections 1"}\n', b"[]\n", b"\xff\n", b"[" * 99999 + b"\n"]
)
def test_a_foreign_file_is_kept_unless_forced(dataset: CocoDataset, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="holds no detections of yolact-deploy evaluate"):
        ResultStore.open(path)
    with pytest.raises(OutputError, match="pass --force to replace it"):
        ResultStore.resume(path, header_of(dataset))
    assert path.read_bytes() == content
    store, told = ResultStore.resume(path, header_of(dataset), force=True)
    assert "was replaced" in told
    assert len(store) == 0


def test_headers_of_a_wrong_type_are_foreign(dataset: CocoDataset) -> None:
    fields = json.loads(header_of(dataset).to_json())
    assert StoreHeader.from_json(json.dumps(fields)) == header_of(dataset)
    for changes in ({"model": 1}, {"settings": []}, {"classes": {"names": ["a"], "category_ids": []}}, {"extra": 1}, {"format": "2"}):
        with pytest.raises(ValueError, match="no header"):
            StoreHeader.from_json(json.dumps({**fields, **changes}))


def test_of_two_lines_for_a_picture_the_first_holds(dataset: CocoDataset, tmp_path: Path) -> None:
    store = filled_store(tmp_path / "s.jsonl", dataset)
    lines = store.path.read_bytes().splitlines(keepends=True)
    store.path.write_bytes(b"".join([*lines, lines[2].replace(b'"image_id":2,', b'"image_id":1,')]))
    again = ResultStore.open(store.path)
    same(again.detections(1), jittered(dataset, 1))
    assert (len(again), again.damaged) == (12, 0)


@pytest.mark.parametrize("name", ["scores", "mask_scores", "boxes"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(dataset: CocoDataset, tmp_path: Path, name: str, value: float) -> None:
    store = ResultStore.create(tmp_path / "s.jsonl", header_of(dataset))
    found = jittered(dataset, 1)
    values = getattr(found, name).copy()
    values.ravel()[2] = value
    with pytest.raises(ModelFileError, match=f"made finds {name} that are no finite numbers in picture 1 \\(1 of {values.size}, the first"):
        store.append(1, replace(found, **{name: values}))
    assert len(ResultStore.open(store.path)) == 0


def test_what_a_caller_must_not_do(dataset: CocoDataset, tmp_path: Path) -> None:
    store = filled_store(tmp_path / "s.jsonl", dataset)
    with pytest.raises(ValueError, match=r"picture 1 is in .* already"):
        store.append(1, jittered(dataset, 1))
    with pytest.raises(ValueError, match="detections of other classes"):
        store.append(3, replace(jittered(dataset, 1), category_ids=(1, 2, 3, 4)))
    with pytest.raises(KeyError):
        store.detections(3)


def test_a_file_that_changes_underneath_is_told(dataset: CocoDataset, tmp_path: Path) -> None:
    store = filled_store(tmp_path / "s.jsonl", dataset)
    first, second, *rest = store.path.read_bytes().splitlines(keepends=True)
    store.path.write_bytes(first + second.replace(b'"image_id":1,', b'"image_id":3,') + b"".join(rest))
    with pytest.raises(DatasetError, match="changed by another program"):
        store.detections(1)
    store.path.unlink()
    with pytest.raises(DatasetError, match="changed by another program"):
        store.detections(2)
    with pytest.raises(DatasetError, match="cannot be read"):
        ResultStore.open(store.path)


def test_a_full_disk_leaves_whole_lines(dataset: CocoDataset, tmp_path: Path) -> None:
    store = filled_store(tmp_path / "s.jsonl", dataset)
    content = store.path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 100, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"could not be written: File too large\..*goes on after the 12 pictures"):
            store.append(3, jittered(dataset, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert store.path.read_bytes() == content
    store.append(3, jittered(dataset, 1))
    assert len(ResultStore.open(store.path)) == 13


def test_results_are_those_of_the_detections(dataset: CocoDataset, tmp_path: Path) -> None:
    store = filled_store(tmp_path / "s.jsonl", dataset)
    flat = [entry for image_id in store.image_ids for entry in jittered(dataset, image_id).to_coco(image_id, iou_type="bbox")]
    assert store.results("bbox") == flat
    assert all(set(entry) == {"image_id", "category_id", "bbox", "score"} for entry in flat)
    masks = [entry for image_id in store.image_ids for entry in jittered(dataset, image_id).to_coco(image_id, iou_type="segm")]
    assert store.results("segm") == [{key: value for key, value in entry.items() if key != "bbox"} for entry in masks]
    assert [entry["image_id"] for entry in store.results("bbox", [17, 2])][:1] == [2]
    for iou_type in ("bbox", "segm"):
        count = store.write_results(tmp_path / "found.json", iou_type)
        assert json.loads((tmp_path / "found.json").read_text()) == store.results(iou_type)
        assert count == len(store.results(iou_type))
    assert store.write_results(tmp_path / "none.json", "segm", []) == 0
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_given_values_are_kept_as_they_are(dataset: CocoDataset, tmp_path: Path) -> None:
    store = ResultStore.create(tmp_path / "s.jsonl", header_of(dataset))
    found = jittered(dataset, 1)[:2]
    given = [[0.1, 0.25, 3.3333333333333335, 0.0, 0.12345678901234568], [1, 2, 3, 4, 0.5]]
    store.append(1, found, given=given)
    boxes = ResultStore.open(store.path).results("bbox")
    assert [[*entry["bbox"], entry["score"]] for entry in boxes] == given
    masks = store.results("segm")
    assert [entry["score"] for entry in masks] == [0.12345678901234568, 0.5]
    assert [entry["segmentation"]["counts"].encode() for entry in masks] == list(found.counts)
    assert not any("bbox" in entry for entry in masks)


def test_parts_merge_by_id(dataset: CocoDataset, tmp_path: Path) -> None:
    whole = filled_store(tmp_path / "whole.jsonl", dataset)
    parts = [ResultStore.create(tmp_path / f"{number}.jsonl", whole.header) for number in range(2)]
    for place, image_id in enumerate(reversed(whole.image_ids)):
        parts[place % 2].append(image_id, jittered(dataset, image_id))
    parts[1].append(whole.image_ids[1], jittered(dataset, 70000))  # which parts[0] has too: the first holds
    merged = merge_stores(tmp_path / "merged.jsonl", whole.header, [whole, *parts])
    assert merged.path.read_bytes() == whole.path.read_bytes()
    again = merge_stores(whole.path, whole.header, [whole], without=[1, 2])
    assert again.image_ids == whole.image_ids[2:]
    assert ResultStore.open(whole.path).without([4]).image_ids == whole.image_ids[3:]
