"""The manifest: it comes back whole, and a damaged one is one sentence."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact_deploy.classes import COCO
from yolact_deploy.errors import ModelFileError
from yolact_deploy.manifest import SCHEMA, InputSpec, Manifest, TensorSpec, Thresholds
from yolact_deploy.variants import IMAGENET_MEAN, IMAGENET_STD, get_variant

MANIFEST = Manifest(
    kind="onnx",
    variant=get_variant("yolact_plus_base"),
    classes=COCO,
    input=InputSpec(550, "raw", "bgr"),
    postprocess="nms",
    inputs=(TensorSpec("images", "uint8", ("batch", 550, 550, 3)),),
    outputs=(TensorSpec("boxes", "float32", (1, 57744, 4)), TensorSpec("scores", "float32", (1, 57744, 81))),
    precision={"backbone": "float16"},
    source={"file": "ü.pth", "sha256": "0" * 64},
    versions={"torch": "2.6"},
    thresholds=Thresholds(0.1, 0.6, 150, 50),
    mask_iou={"file": "a.maskiou.onnx", "sha256": "1" * 64},
    verification={"boxes": 1e-6},
)


def test_it_comes_back() -> None:
    text = MANIFEST.to_json()
    again = Manifest.from_json(text, "a.onnx")
    assert again == MANIFEST
    assert again.to_json() == text
    assert json.loads(text)["schema"] == SCHEMA
    assert "ü.pth" in text


def test_equal_manifests_are_equal_text() -> None:
    other = dataclasses.replace(MANIFEST, versions={"b": "1", "a": "2"})
    assert other.to_json() == dataclasses.replace(MANIFEST, versions={"a": "2", "b": "1"}).to_json()


def test_the_input_of_a_variant() -> None:
    assert InputSpec.of(get_variant("yolact_base")) == InputSpec(550, "float", "rgb", IMAGENET_MEAN, IMAGENET_STD)
    assert InputSpec.of(get_variant("yolact_darknet53"), "raw", "bgr") == InputSpec(550, "raw", "bgr", (0, 0, 0), (255, 255, 255))
    assert IMAGENET_MEAN == (123.68, 116.78, 103.94)
    assert IMAGENET_STD == (58.40, 57.12, 57.38)


def fault(text: str) -> str:
    with pytest.raises(ModelFileError) as caught:
        Manifest.from_json(text, "a.onnx")
    assert caught.value.mend
    assert "a.onnx" in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"schema": 1}', "[" * 100_000, '{"schema": null}', '"x"'])
def test_damaged_documents(text: str) -> None:
    fault(text)


def test_a_newer_schema_says_upgrade() -> None:
    fields = {**json.loads(MANIFEST.to_json()), "schema": SCHEMA + 1}
    assert f"has schema {SCHEMA + 1}, this version reads up to {SCHEMA}" in fault(json.dumps(fields))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kind",), "plan"),
        (("postprocess",), "all"),
        (("input", "layout"), "nchw"),
        (("input", "channels"), "grb"),
        (("input", "mean"), [1, 2]),
        (("input", "std"), [1, 0, 1]),
        (("classes", "names"), ["a"]),
        (("variant", "input_size"), 3),
        (("variant", "num_classes"), 5),
        (("thresholds", "score"), "high"),
        (("inputs",), [{}]),
        (("unknown",), 1),
    ],
)
def test_damaged_fields(path: tuple[str, ...], value: Any) -> None:
    fields = json.loads(MANIFEST.to_json())
    place = fields
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert "is damaged" in fault(json.dumps(fields))


@pytest.mark.parametrize("name", ["kind", "variant", "classes", "input", "postprocess", "inputs", "outputs", "precision", "thresholds"])
def test_missing_fields(name: str) -> None:
    fields = json.loads(MANIFEST.to_json())
    del fields[name]
    fault(json.dumps(fields))


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [here, *(path for key, inner in items for path in paths(inner, (*here, key)))]


DOCUMENT = json.loads(MANIFEST.to_json())
PATHS = paths(DOCUMENT)[1:]


@pytest.mark.parametrize("path", [("input", "size"), ("thresholds", "top_k"), ("classes", "category_ids", 0)])
def test_infinite_numbers_are_damage(path: tuple[Any, ...]) -> None:
    fields = copy.deepcopy(DOCUMENT)
    place = fields
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = float("inf")
    fault(json.dumps(fields))


JUNK = st.sampled_from([None, True, -1, 0, 1, 10**30, 1.5, float("nan"), "", "x", [], [1], [None], {}, {"a": 1}, [[[1]]]])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PATHS), JUNK)
def test_any_damaged_value_is_read_or_refused_by_its_own_error(path: tuple[Any, ...], junk: Any) -> None:
    fields = copy.deepcopy(DOCUMENT)
    place = fields
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = junk
    with contextlib.suppress(ModelFileError):
        Manifest.from_json(json.dumps(fields), "a.onnx")
