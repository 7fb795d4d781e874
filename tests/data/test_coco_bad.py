"""Annotation files that are broken, foreign or hostile: one error that says what was found and how to mend it, never a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.coco_files import annotation, content, read, write
from yolact_deploy.data import coco as coco_module
from yolact_deploy.data import read_dataset
from yolact_deploy.errors import DatasetError

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 12, "height": 10}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (b"", "is empty. Give a COCO annotation file"),
        (b" \n", "is empty"),
        (b"\xff\xd8\xff\xe0 a picture", "is not JSON"),
        (b"{'images': []}", "is not JSON"),
        (b'{"images": [], ', "is not JSON"),
        (b"[" * 100_000, "is not JSON (nested too deeply)"),
        (b'{"images": ' + b"1" * 10_000 + b"}", "is not JSON"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "a JSON list, as files of detection results do"),
        (b"3.5", "holds 3.5, a JSON object was wanted"),
        (b"null", "holds None, a JSON object was wanted"),
        ({}, "'categories' is missing, a list was wanted"),
        (content(categories=[]), "'categories' is empty"),
        (content(categories={"1": "cat"}), "'categories' is an object, a list was wanted"),
        (content(categories=["cat"]), "'categories' holds 'cat', where JSON objects were wanted"),
        (content(categories=[{"id": 1}]), "a category's name is None, a printable text was wanted"),
        (content(categories=[{"id": 1, "name": " "}]), "a category's name is ' '"),
        (content(categories=[{"id": 1, "name": "a\nb"}]), r"a category's name is 'a\nb'"),
        (content(categories=[{"id": 1, "name": "\ud800"}]), r"a category's name is '\ud800'"),
        (content(categories=[{"name": "cat"}]), "the id of category 'cat' is missing, a whole number below 2^53 was wanted"),
        (content(categories=[{"id": 1.0, "name": "cat"}]), "the id of category 'cat' is 1.0"),
        (content(categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]), "the category id 1 is given twice"),
        (content(categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]), "the category name 'cat' is given twice"),
        ({"categories": content()["categories"]}, "'images' is missing"),
        (content(images=None), "'images' is None, a list was wanted"),
        (content(images=[]), "'images' is empty"),
        (content(images=[None]), "'images' holds None"),
        (content(images=[{**IMAGE, "id": True}]), "the id of an image is True"),
        (content(images=[{**IMAGE, "id": "1"}]), "the id of an image is '1'"),
        (content(images=[{**IMAGE, "id": 2**53}]), "the id of an image is 9007199254740992"),
        (content(images=[IMAGE, IMAGE]), "the image id 1 is given to several images"),
        (content(images=[{"id": 1, "file_name": "a.jpg", "height": 10}]), "image 1 has width x height None x 10, whole numbers"),
        (content(images=[{**IMAGE, "width": 0}]), "width x height 0 x 10"),
        (content(images=[{**IMAGE, "width": 1.5}]), "width x height 1.5 x 10"),
        (content(images=[{**IMAGE, "width": 10**400}]), "image 1 has width x height"),
        (content(images=[{**IMAGE, "width": float("inf")}]), "width x height inf x 10"),
        (content(images=[{**IMAGE, "width": 100_000, "height": 100_000}]), "at most 200,000,000 pixels were wanted"),
        (content(annotations={}), "'annotations' is an object, a list was wanted"),
        (content(annotations=None), "'annotations' is None, a list was wanted"),
        (content(3), "'annotations' holds 3"),
        (content(annotation("a")), "the id of annotation number 1 is 'a'"),
        (content(annotation(1, image_id=None)), "the image_id of annotation 1 is missing"),
        (content(annotation(1, image_id="1")), "the image_id of annotation 1 is '1'"),
        (content(annotation(1, category_id=False)), "the category_id of annotation 1 is False"),
        (content(annotation(1, iscrowd=2)), "the iscrowd of annotation 1 is 2, 0 or 1 was wanted"),
        (content(annotation(1, iscrowd="no")), "the iscrowd of annotation 1 is 'no'"),
        (content(annotation("x" * 1000)), "is '" + "x" * 56 + "..., a whole"),
    ],
)
def test_what_is_said_of_a_bad_file(tmp_path: Path, found: Any, message: str) -> None:
    path = write(tmp_path, found)
    with pytest.raises(DatasetError) as caught:
        read_dataset(path, tmp_path)
    assert message in str(caught.value)
    assert str(path) in caught.value.message
    assert caught.value.mend


@pytest.mark.parametrize(
    "name",
    ["../a.jpg", "a/../../b.jpg", "/etc/a.jpg", "C:a.jpg", "C:\\a.jpg", "\\a.jpg", "a\\..\\..\\b.jpg", "", ".", "a\0b", "\ud800", 3, None],
)
def test_pictures_outside_the_folder_are_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(DatasetError, match="a path below the picture folder was wanted"):
        read(tmp_path, images=[{**IMAGE, "file_name": name}])


@pytest.mark.parametrize("name", ["COCO_val2014_000000000042.jpg", "val/a b/ü.jpg", "a..b.jpg", "x" * 300 + ".jpg", "a/./b.jpg"])
def test_other_names_are_taken(tmp_path: Path, name: str) -> None:
    data = read(tmp_path, images=[{**IMAGE, "file_name": name}])
    assert data.images[0].file_name == name
    assert len(data.missing_pictures()) == 1


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in (("no.json", "does not exist"), (".", "is a folder"), ("a\0b", "cannot be read"), ("x" * 300, "cannot be read")):
        with pytest.raises(DatasetError, match=message):
            read_dataset(f"{tmp_path}/{name}")
    path = write(tmp_path, content())
    for folder in ("no", "instances.json", "x" * 300):
        with pytest.raises(DatasetError, match=r"picture folder .* does not exist"):
            read_dataset(path, tmp_path / folder)
    monkeypatch.setattr(coco_module, "_MAX_FILE", 100)
    with pytest.raises(DatasetError, match="bytes, at most 100 are read"):
        read_dataset(path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 130)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["PPYo1", "a.jpg"]),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from(["size", "counts", "id", "name"]), inner, max_size=4)
    ),
    max_leaves=12,
)
POLYGONS = st.lists(st.lists(st.integers(-140, 140) | st.floats(-130, 130), min_size=4, max_size=12), max_size=3)
RLES = st.fixed_dictionaries(
    {"size": st.just([10, 12]), "counts": st.lists(st.integers(0, 60), max_size=9) | st.text("0123456789PQRTokm", max_size=9)}
)


def changed(good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """`good` with some values replaced by anything, and some keys missing."""
    return st.builds(
        lambda changes, lost: {key: value for key, value in {**good, **changes}.items() if key not in lost},
        st.dictionaries(st.sampled_from(sorted(good)), JSON, max_size=2),
        st.sets(st.sampled_from(sorted(good)), max_size=1),
    )


ANNOTATIONS = st.builds(lambda found, segmentation: {**found, "segmentation": segmentation}, changed(annotation()), POLYGONS | RLES | JSON)
RUNS = st.builds(lambda cuts: np.diff(sorted(cuts), prepend=0, append=120).tolist(), st.lists(st.integers(0, 120), max_size=8))
USABLE = st.builds(
    lambda segmentation, changes: annotation(1, **{"bbox": None, "area": None, "segmentation": segmentation, **changes}),
    POLYGONS | RUNS.map(lambda runs: {"size": [10, 12], "counts": runs}),
    st.dictionaries(
        st.sampled_from(["bbox", "area", "iscrowd"]), st.lists(st.integers(-3, 12), min_size=4, max_size=4) | st.integers(0, 1), max_size=1
    ),
)
FILES = st.one_of(
    st.builds(lambda found: content(*found), st.lists(USABLE, max_size=4)),
    JSON,
    changed(content()),
    st.builds(lambda image: content(annotation(), images=[image]), changed(IMAGE)),
    st.builds(lambda category: content(annotation(), categories=[category]), changed({"id": 3, "name": "cat"})),
    st.builds(lambda found: content(*found), st.lists(ANNOTATIONS, max_size=3)),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(FILES)
def test_any_json_is_read_or_refused(tmp_path: Path, found: Any) -> None:
    try:
        data = read_dataset(write(tmp_path, found), tmp_path)
    except DatasetError:
        return
    truth = data.ground_truth()
    json.dumps(truth)
    assert len({entry["id"] for entry in truth["annotations"]} - {0}) == len(truth["annotations"])
    for image in data.images:
        instances = data.instances(image.id)
        assert len(instances) <= len(found.get("annotations", ()))
        if image.width * image.height < 10_000:
            masks = data.masks(image, instances)
            assert masks.shape == (len(instances), image.height, image.width)
            assert np.isin(masks, (0, 1)).all()
        for instance in instances:
            assert instance.box[2] > 0
            assert instance.box[3] > 0
            assert np.isfinite([*instance.box, instance.area]).all()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path: Path, found: bytes) -> None:
    with pytest.raises(DatasetError):
        read_dataset(write(tmp_path, found), tmp_path)
