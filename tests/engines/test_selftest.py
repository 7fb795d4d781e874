"""The self-test's document: what it holds, and everything in it that a reader refuses."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tests.engines.made_selftest import HEIGHT, WIDTH, assert_equal, counts_of, made
from yolact_deploy.detections import Detections
from yolact_deploy.engines.selftest import TOLERANCES, Selftest, SelftestTolerance, tolerance_of
from yolact_deploy.errors import ModelFileError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def read(fields: object) -> Selftest:
    return Selftest.from_json(json.dumps(fields), "here", "Mend it.")


def test_the_document() -> None:
    fields = json.loads(made().to_json())
    assert list(fields) == [
        *("schema", "reference", "score_threshold", "score_tolerance", "mask_iou", "box_iou", "detections", "picture"),
    ]
    assert (fields["schema"], fields["reference"]) == (1, "ONNX Runtime 1 on a CPU from a.onnx")
    assert [fields[name] for name in ("score_threshold", "score_tolerance", "mask_iou", "box_iou")] == [0.25, 0.125, 0.75, 0.5]
    assert fields["detections"][0] == {
        "label": 3,
        "score": float(np.float32(0.9)),
        "mask_score": float(np.float32(0.8)),
        "box": [1.0, 0.0, 5.0, 3.0],
        "counts": counts_of(1, 0, 5, 3).decode(),
    }
    picture = fields["picture"]
    assert (picture["width"], picture["height"]) == (8, 4)
    assert base64.b64decode(picture["rgb"]) == bytes(range(96))


def test_it_is_read_back() -> None:
    assert_equal(Selftest.from_json(made().to_json(), "here", ""), made())
    sliced = made(picture=np.zeros((HEIGHT, 2 * WIDTH, 3), np.uint8)[:, ::2])
    assert_equal(Selftest.from_json(sliced.to_json(), "here", ""), sliced)


def test_what_must_be_found_is_above_threshold_and_tolerance() -> None:
    assert (made().limit, made().wanted) == (0.375, 2)
    at_the_limit = replace(made().expected, scores=np.array([0.9, 0.375], np.float32))
    assert made(expected=at_the_limit).wanted == 1


def test_tolerances_grow_with_what_a_precision_loses() -> None:
    assert tolerance_of("fp32") == SelftestTolerance(1e-3, 0.95, 0.95)
    assert tolerance_of("fp16") == tolerance_of("fp32", tf32=True) == tolerance_of("fp16", tf32=True) == SelftestTolerance(3e-2, 0.9, 0.9)
    assert tolerance_of("int8") == tolerance_of("int8", tf32=True) == SelftestTolerance(0.15, 0.65, 0.75)
    assert all(one.box_iou >= 0.75 for one in TOLERANCES.values()), "so that nothing has two possible partners: see SelftestTolerance"


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """What puts `value` at ``a.0.b``, or takes it away where it is `...`."""

    def act(fields: dict[str, Any]) -> None:
        *way, last = (int(step) if step.isdecimal() else step for step in path.split("."))
        place: Any = fields
        for step in way:
            place = place[step]
        if value is ...:
            del place[last]
        else:
            place[last] = value

    return act


PIXELS = base64.b64encode(bytes(96)).decode()


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("reference", 7, "the reference is no text"),
        ("reference", ..., "'reference'"),
        ("score_threshold", -0.01, "score_threshold is -0.01, a number from 0 to 1 was wanted"),
        ("score_threshold", 1.01, "score_threshold is 1.01"),
        ("score_threshold", 0.775, "it wants nothing found"),
        ("score_threshold", True, "score_threshold is True"),
        ("score_threshold", float("nan"), "score_threshold is nan"),
        ("score_tolerance", -0.01, "score_tolerance is -0.01"),
        ("score_tolerance", 1.01, "score_tolerance is 1.01"),
        ("score_tolerance", "0.1", "score_tolerance is 0.1"),
        ("mask_iou", 1.01, "mask_iou is 1.01"),
        ("mask_iou", -0.01, "mask_iou is -0.01"),
        ("mask_iou", ..., "'mask_iou'"),
        ("box_iou", 1.01, "box_iou is 1.01"),
        ("box_iou", -0.01, "box_iou is -0.01"),
        ("box_iou", float("inf"), "box_iou is inf"),
        ("detections", [], "it wants nothing found"),
        ("detections", {}, "the detections are no list"),
        ("detections", None, "the detections are no list"),
        ("detections.0", 3, ""),
        ("detections.0.label", -1, "label is -1, a whole number from 0 to 1048576 was wanted"),
        ("detections.0.label", 1.0, "label is 1.0, a whole number"),
        ("detections.0.label", True, "label is True"),
        ("detections.0.label", (1 << 20) + 1, "label is 1048577"),
        ("detections.0.score", -0.01, "score is -0.01"),
        ("detections.0.score", 1.01, "score is 1.01"),
        ("detections.0.score", float("nan"), "score is nan"),
        ("detections.0.score", 0.3, "the detections are not ordered by their scores"),
        ("detections.0.mask_score", -0.01, "mask_score is -0.01"),
        ("detections.0.mask_score", 1e300, "mask_score is 1e+300"),
        ("detections.0.box", [0, 0, 1], ""),
        ("detections.0.box", [0, 0, 1, 1, 1], ""),
        ("detections.0.box", None, ""),
        ("detections.0.box", [2, 0, 1, 1], "is no box"),
        ("detections.0.box", [0, 2, 1, 1], "is no box"),
        ("detections.0.box", [0, 0, 8.01, 1], "x2 is 8.01, a number from 0 to 8 was wanted"),
        ("detections.0.box", [0, 0, 1, 4.01], "y2 is 4.01, a number from 0 to 4 was wanted"),
        ("detections.0.box", [-0.01, 0, 1, 1], "x1 is -0.01"),
        ("detections.0.box", [0, -0.01, 1, 1], "y1 is -0.01"),
        ("detections.0.box", [0, 0, "1", 1], "x2 is 1, a number"),
        ("detections.0.counts", ..., "'counts'"),
        ("detections.0.counts", [32], "counts are no text"),
        ("detections.0.counts", "", "do not add up"),
        ("detections.0.counts", "~~~", "corrupt"),
        ("detections.0.counts", "01", "do not add up"),
        ("detections.0.counts", "é", "corrupt"),
        ("picture", [], ""),
        ("picture.width", 0, "width is 0, a whole number from 1 to 4096 was wanted"),
        ("picture.width", -8, "width is -8"),
        ("picture.width", 4097, "width is 4097"),
        ("picture.width", 8.0, "width is 8.0, a whole number"),
        ("picture.width", 4, "the picture has 96 bytes of 4 x 4 x 3"),
        ("picture.height", -4, "height is -4"),
        ("picture.height", 0, "height is 0"),
        ("picture.height", 4097, "height is 4097"),
        ("picture.height", 5, "the picture has 96 bytes of 8 x 5 x 3"),
        ("picture.rgb", PIXELS[:-4], "the picture has 93 bytes of 8 x 4 x 3"),
        ("picture.rgb", PIXELS + "AAAA", "the picture has 99 bytes"),
        ("picture.rgb", PIXELS[:-1], "padding"),
        ("picture.rgb", "é" + PIXELS[1:], "ASCII"),
        ("picture.rgb", " " + PIXELS, ""),
        ("picture.rgb", 7, "the picture's rgb is no text"),
        ("picture.rgb", ..., "'rgb'"),
    ],
)
def test_what_is_damaged(path: str, value: object, reason: str) -> None:
    fields = json.loads(made().to_json())
    change(path, value)(fields)
    with pytest.raises(ModelFileError) as caught:
        read(fields)
    assert caught.value.message.startswith("The self-test here is damaged (")
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.mend == "Mend it."


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("score_threshold", 0),
        ("score_tolerance", 0),
        ("mask_iou", 1),
        ("mask_iou", 0),
        ("box_iou", 1),
        ("box_iou", 0),
        ("detections.0.score", 1),
        ("detections.0.score", 0.4),
        ("detections.1.score", 0),
        ("detections.0.mask_score", 0),
        ("detections.0.label", 0),
        ("detections.0.label", 1 << 20),
        ("detections.0.box", [0, 0, 8, 4]),
        ("detections.0.box", [8, 4, 8, 4]),
        ("detections.0.counts", counts_of(0, 0, 0, 0).decode()),
        ("more", "of a later version"),
    ],
)
def test_what_lies_at_a_bound_is_read(path: str, value: object) -> None:
    fields = json.loads(made().to_json())
    change(path, value)(fields)
    assert read(fields).wanted >= 1


def test_a_score_threshold_of_one_wants_nothing() -> None:
    fields = json.loads(made().to_json()) | {"score_threshold": 1}
    with pytest.raises(ModelFileError, match="it wants nothing found"):
        read(fields)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"a": 1}', "[" * 100_000])
def test_what_is_no_document(text: str) -> None:
    with pytest.raises(ModelFileError, match=r"^The self-test here is damaged\. Mend it\.$"):
        Selftest.from_json(text, "here", "Mend it.")


@pytest.mark.parametrize("schema", [0, 2, True, "1", None, [1]])
def test_another_schema(schema: object) -> None:
    with pytest.raises(ModelFileError, match=r"has schema .*, this version reads up to 1\. Upgrade: pip install -U yolact-deploy"):
        read(json.loads(made().to_json()) | {"schema": schema})


def paths(value: object, here: str = "") -> list[str]:
    """Every place in a document."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in entries for place in (f"{here}{key}", *paths(inner, f"{here}{key}."))]


DOCUMENT = json.loads(made().to_json())


@settings(max_examples=300)
@given(st.sampled_from(paths(DOCUMENT)), JSON | st.just(...))
def test_one_hostile_value_is_an_error_of_ours_or_read(path: str, value: object) -> None:
    fields = copy.deepcopy(DOCUMENT)
    change(path, value)(fields)
    try:
        found = Selftest.from_json(json.dumps(fields), "here", "Mend it.")
    except ModelFileError:
        return
    assert found.picture.shape == (found.expected.height, found.expected.width, 3)
    assert_equal(Selftest.from_json(found.to_json(), "here", ""), found)


@settings(max_examples=200)
@given(JSON)
@example({"schema": 1})
def test_hostile_documents_are_errors_of_ours(value: object) -> None:
    with pytest.raises(ModelFileError):
        read(value)


@settings(max_examples=200)
@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=40))
def test_hostile_masks_never_reach_pycocotools(counts: str) -> None:
    fields = copy.deepcopy(DOCUMENT)
    fields["detections"][0]["counts"] = counts
    try:
        found = read(fields)
    except ModelFileError:
        return
    assert 0 <= found.expected.areas[0] <= WIDTH * HEIGHT


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(0, 1 << 32))
def test_any_self_test_is_read_back(width: int, height: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((count, 2, 2)), 1).reshape(-1, 4) * [width, height, width, height]
    scores = -np.sort(-rng.random(count)).astype(np.float32)
    scores[0] = 1
    masks = np.asfortranarray(rng.integers(0, 2, (height, width, count), np.uint8))
    counts = tuple(bytes(rle["counts"]) for rle in coco_mask.encode(masks))
    labels = rng.integers(0, 80, count)
    expected = Detections(corners.astype(np.float32), scores, scores, labels, counts, width, height, (), ())
    picture = rng.integers(0, 256, (height, width, 3), np.uint8)
    wanted = Selftest(picture, expected, "r", rng.random() / 2, SelftestTolerance(rng.random() / 2.1, rng.random(), rng.random()))
    assert_equal(Selftest.from_json(wanted.to_json(), "here", ""), wanted)
