"""Result files of others as artifacts: what is good counts exactly as pycocotools counts it, and nothing bad gets that far."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tests.evaluation.made import by_hand, filled_store, header_of, make_dataset
from yolact_deploy.data import CocoDataset
from yolact_deploy.errors import ModelFileError, OutputError
from yolact_deploy.evaluation.metrics import measure
from yolact_deploy.evaluation.results_file import store_results
from yolact_deploy.evaluation.store import ResultStore

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return make_dataset(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def entries(dataset: CocoDataset) -> list[dict[str, Any]]:
    """Results with fractional boxes and scores that float32 cannot hold, in no order."""
    store = filled_store(dataset.annotations.parent / "s.jsonl", dataset)
    generator = np.random.default_rng(3)
    result = []
    for entry in store.results("segm"):
        box = np.array(coco_mask.toBbox(entry["segmentation"])) + generator.uniform(0, 1, 4)
        result.append({**entry, "bbox": box.round(3).tolist(), "score": entry["score"] + 1e-9 * generator.random()})
    return [result[place] for place in generator.permutation(len(result))]


def read(path: Path, found: Any, dataset: CocoDataset, **options: Any) -> tuple[ResultStore, tuple[str, ...]]:
    path.write_bytes(found if isinstance(found, bytes) else json.dumps(found).encode())
    ids = options.pop("image_ids", [image.id for image in dataset.images])
    return store_results(path, dataset, header_of(dataset), path.with_suffix(".jsonl"), ids, **options)


def test_figures_equal_pycocotools_on_the_file_itself(dataset: CocoDataset, entries: list[dict[str, Any]], tmp_path: Path) -> None:
    store, notes = read(tmp_path / "found.json", entries, dataset)
    assert notes == ("Sizes (small, medium, large) are those of the masks; pycocotools takes those of the boxes where a file has both.",)
    ids = [image.id for image in dataset.images]
    bare = [{key: value for key, value in entry.items() if key != "bbox"} for entry in entries]
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    for iou_type, file in (("bbox", "found.json"), ("segm", "bare.json")):
        expected = by_hand(dataset.annotations, tmp_path / file, iou_type).stats
        found = measure(dataset.ground_truth, dataset.classes, store, iou_type, ids)
        values = (found.ap, found.ap50, found.ap75, found.small, found.medium, found.large)
        recalls = (found.ar1, found.ar10, found.ar100, found.ar_small, found.ar_medium, found.ar_large)
        np.testing.assert_allclose([*values, *recalls], 100 * expected, rtol=0, atol=1e-10)
    for image_id, detections in store:
        assert (np.diff(detections.scores) <= 0).all()
        x, y, w, h = np.array([entry["bbox"] for entry in store.results("bbox", [image_id])]).T
        np.testing.assert_allclose(detections.boxes, np.stack([x, y, x + w, y + h], 1), rtol=1e-6)


def test_without_boxes_those_of_the_masks_stand_in(dataset: CocoDataset, entries: list[dict[str, Any]], tmp_path: Path) -> None:
    bare = [{key: value for key, value in entry.items() if key != "bbox"} for entry in entries]
    store, notes = read(tmp_path / "found.json", bare, dataset)
    assert notes == (f"{len(bare)} of {len(bare)} results have no bbox: the box around the mask stands in.",)
    masks = {(entry["image_id"], entry["score"]): entry["segmentation"] for entry in store.results("segm")}
    for entry in store.results("bbox"):
        assert entry["bbox"] == coco_mask.toBbox(masks[entry["image_id"], entry["score"]]).tolist()


def test_pictures_by_name_and_pictures_left_out(dataset: CocoDataset, entries: list[dict[str, Any]], tmp_path: Path) -> None:
    named = [{**entry, "image_id": f"{entry['image_id']}.png"} for entry in entries]
    by_name, _ = read(tmp_path / "named.json", named, dataset)
    by_id, _ = read(tmp_path / "found.json", entries, dataset)
    assert by_name.results("segm") == by_id.results("segm")
    some, notes = read(tmp_path / "found.json", entries, dataset, image_ids=[1, 2])
    assert some.image_ids == (1, 2)
    assert some.results("segm") == by_id.results("segm", [1, 2])
    assert notes[-1] == "Results for 10 pictures that are not evaluated were left out."


def test_no_results_at_all(dataset: CocoDataset, tmp_path: Path) -> None:
    store, notes = read(tmp_path / "found.json", [], dataset)
    assert (len(store), store.detection_count, notes) == (12, 0, ())


def good(dataset: CocoDataset) -> dict[str, Any]:
    image = dataset.images[0]
    counts = [5, 10, image.width * image.height - 15]
    rle = coco_mask.frPyObjects({"size": [image.height, image.width], "counts": counts}, image.height, image.width)
    return {"image_id": image.id, "category_id": 3, "segmentation": {**rle, "counts": rle["counts"].decode()}, "score": 0.5}


def segmentation(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda entry: {**entry, "segmentation": {**entry["segmentation"], **changes}}


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda entry: {name: value for name, value in entry.items() if name != key}


def having(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda entry: {**entry, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: 3, "is a number, an object was wanted"),
        (without("image_id"), "names the picture None, which the data set"),
        (having(image_id=3), "names the picture 3, which the data set"),
        (having(image_id=1.0), r"names the picture 1\.0"),
        (having(image_id=True), "names the picture True"),
        (having(image_id="other.png"), r"names the picture 'other\.png'"),
        (having(image_id=[1]), r"names the picture \[1\]"),
        (without("category_id"), "has the category id None, which the data set lacks; it has 3, 7, 12, 90"),
        (having(category_id=1), "has the category id 1, which"),
        (having(category_id=3.0), r"has the category id 3\.0"),
        (having(category_id={}), "has the category id {}"),
        (without("score"), "has the score None, a finite number was wanted"),
        (having(score=float("nan")), "has the score nan, a finite"),
        (having(score=float("-inf")), "has the score -inf, a finite"),
        (having(score="0.5"), "has the score '0.5'"),
        (having(score=1e39), "which float32 cannot hold"),
        (without("segmentation"), "has no segmentation: boxes alone tell nothing about masks"),
        (having(segmentation=None), "has no segmentation"),
        (having(segmentation={}), "an RLE without a size"),
        (segmentation(counts="zz~~"), "an RLE whose compressed counts are corrupt"),
        (segmentation(counts="5"), "do not add up"),
        (segmentation(counts="`" * 400), "corrupt"),
        (segmentation(counts=[1, 2]), "do not add up"),
        (segmentation(counts=None), "an RLE without counts"),
        (segmentation(size=[10, 10]), "an RLE of another size than its image's"),
        (having(bbox=[1, 2, 3]), r"has the bbox \[1, 2, 3\], x, y, width and height"),
        (having(bbox=[1, 2, -3, 4]), "has the bbox"),
        (having(bbox=[1, 2, float("nan"), 4]), "has the bbox"),
        (having(bbox=[1e300, 2, 3, 4]), "has the bbox"),
        (having(bbox="1234"), "has the bbox"),
    ],
)
def test_a_bad_result_is_told(dataset: CocoDataset, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    entry = good(dataset)
    assert len(read(tmp_path / "found.json", [entry], dataset)[0].detections(1)) == 1
    with pytest.raises(ModelFileError, match=rf"Result 2 of 3 in .*found\.json .*{message}"):
        read(tmp_path / "found.json", [entry, change(entry), entry], dataset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no readable JSON"),
        (b"\xff\xfe[", "is no readable JSON"),
        (b"[" * 200_000, "is no readable JSON"),
        (b"[1,", "is no readable JSON"),
        (b'{"annotations": []}', "holds an object, a list of COCO results was wanted"),
        (b"null", "holds null"),
    ],
)
def test_a_bad_file_is_told(dataset: CocoDataset, tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read(tmp_path / "found.json", content, dataset)


def test_a_file_that_is_not_there(dataset: CocoDataset, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        store_results(tmp_path / "none.json", dataset, header_of(dataset), tmp_path / "s.jsonl", [1])


def test_a_foreign_file_in_the_stores_place_is_kept(dataset: CocoDataset, tmp_path: Path) -> None:
    (tmp_path / "found.jsonl").write_text("my notes")
    with pytest.raises(OutputError, match="--force"):
        read(tmp_path / "found.json", [], dataset)
    assert (tmp_path / "found.jsonl").read_text() == "my notes"
    assert len(read(tmp_path / "found.json", [], dataset, force=True)[0]) == 12


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = ("image_id", "category_id", "segmentation", "score", "bbox")
SEGMENTATION = st.fixed_dictionaries({"size": st.just([240, 249]) | JSON, "counts": st.text(st.characters(max_codepoint=127)) | JSON})


@settings(deadline=None, max_examples=150)
@given(found=st.data())
def test_whatever_json_it_holds_only_our_errors_come(dataset: CocoDataset, found: st.DataObject) -> None:
    size = [dataset.images[0].height, dataset.images[0].width]
    rle = SEGMENTATION.map(lambda value: {**value, "size": size} if value["size"] == [240, 249] else value)
    values = {"image_id": st.just(1), "category_id": st.just(3), "segmentation": rle, "score": st.floats()}
    entry = st.fixed_dictionaries({name: value | JSON for name, value in values.items()}, optional={"bbox": JSON})
    content = found.draw(st.lists(entry | JSON, max_size=3) | JSON)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ModelFileError):
        store, _ = read(Path(folder, "found.json"), content, dataset)
        for iou_type in ("bbox", "segm"):
            measure(dataset.ground_truth, dataset.classes, store, iou_type, store.image_ids)
