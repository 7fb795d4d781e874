"""Detections: shapes, slices, masks on demand, COCO results."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from yolact_deploy.detections import Detections

WIDTH, HEIGHT = 60, 40


def masks(n: int = 3) -> NDArray[np.bool_]:
    found = np.zeros((n, HEIGHT, WIDTH), bool)
    for index in range(n):
        found[index, 3 + index : 20, 5 : 30 + 2 * index] = True
    return found


def detections(n: int = 3) -> Detections:
    boxes = np.array([[5, 3 + i, 30 + 2 * i, 20] for i in range(n)], np.float32).reshape(n, 4) + np.float32(0.7)
    scores = np.linspace(0.9, 0.3, n, dtype=np.float32)
    counts = tuple(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for mask in masks(n))
    labels = np.arange(n, dtype=np.int64) % 2
    return Detections(boxes, scores, scores * np.float32(0.5), labels, counts, WIDTH, HEIGHT, ("cat", "dog"), (17, 18), {"nms": 1.0})


def test_masks_come_back() -> None:
    found = detections()
    np.testing.assert_array_equal(found.bitmaps(), masks())
    for index in range(3):
        np.testing.assert_array_equal(found.bitmap(index), masks()[index])
    np.testing.assert_array_equal(found.areas, masks().sum((1, 2)))
    assert found.areas.dtype == np.int64
    assert found.rles[1] == {"size": [HEIGHT, WIDTH], "counts": found.counts[1]}


def test_nothing() -> None:
    found = detections(0)
    assert len(found) == 0
    assert found.bitmaps().shape == (0, HEIGHT, WIDTH)
    assert found.areas.shape == (0,)
    assert (found.polygons(), found.to_coco(1), found.names, list(found), found.rles) == ([], [], [], [], [])
    assert len(found.above(0)) == 0


@pytest.mark.parametrize(
    ("index", "wanted"),
    [
        (1, [1]),
        (-1, [2]),
        (np.int64(2), [2]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0], [2, 0]),
        ([], []),
        (np.array([True, False, True]), [0, 2]),
        (np.array([], np.int64), []),
        ([True, False, False], [0]),
    ],
)
def test_slicing(index: object, wanted: list[int]) -> None:
    whole = detections()
    part = whole[index]
    assert len(part) == len(wanted)
    np.testing.assert_array_equal(part.boxes, whole.boxes[wanted].reshape(-1, 4))
    np.testing.assert_array_equal(part.scores, whole.scores[wanted])
    np.testing.assert_array_equal(part.mask_scores, whole.mask_scores[wanted])
    np.testing.assert_array_equal(part.labels, whole.labels[wanted])
    assert part.counts == tuple(whole.counts[i] for i in wanted)
    assert (part.width, part.height, part.class_names, part.category_ids) == (WIDTH, HEIGHT, ("cat", "dog"), (17, 18))


@pytest.mark.parametrize("index", [3, -4, [3], np.array([True])])
def test_out_of_range(index: object) -> None:
    with pytest.raises(IndexError):
        detections()[index]


def test_iteration_and_names() -> None:
    assert [one.names for one in detections()] == [["cat"], ["dog"], ["cat"]]


def test_above_is_strict() -> None:
    found = detections()
    assert len(found.above(float(found.scores[1]))) == 1
    assert len(found.above(0)) == 3
    assert len(found.above(1)) == 0


def test_the_repr_shows_shapes() -> None:
    assert repr(detections()) == (
        "Detections(3 in 60x40: boxes [3, 4] float32, scores [3] float32, labels [3] int64, masks [3, 40, 60] as RLE)"
    )


@pytest.mark.parametrize("field", ["boxes", "scores", "mask_scores", "labels"])
def test_lengths_must_agree(field: str) -> None:
    fields = {name: getattr(detections(), name) for name in ("boxes", "scores", "mask_scores", "labels")}
    fields[field] = fields[field][:2]
    with pytest.raises(ValueError, match=rf"Detections\.{field} has shape .*for 3 masks"):
        Detections(**fields, counts=detections().counts, width=WIDTH, height=HEIGHT, class_names=("cat", "dog"), category_ids=(17, 18))


def test_coco_results() -> None:
    found = detections()
    results = found.to_coco(7)
    assert results[1] == {
        "image_id": 7,
        "category_id": 18,
        "bbox": [5, 4, 27, 16],
        "score": pytest.approx(0.3),
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": found.counts[1].decode()},
    }
    boxes = found.to_coco("name", iou_type="bbox")
    assert [result["score"] for result in boxes] == pytest.approx([0.9, 0.6, 0.3])
    assert "segmentation" not in boxes[0]
    assert json.loads(json.dumps(results)) == results


def test_coco_results_truncate_and_drop_what_has_no_area() -> None:
    boxes = np.array([[1.9, 2.9, 5.1, 6.999], [3.1, 3, 3.9, 9], [4, 4.2, 9, 4.8]], np.float32)
    whole = detections()
    found = Detections(
        boxes, whole.scores, whole.mask_scores, whole.labels, whole.counts, WIDTH, HEIGHT, whole.class_names, whole.category_ids
    )
    assert [result["bbox"] for result in found.to_coco(1)] == [[1, 2, 4, 4]]


def test_polygons_enclose_the_mask() -> None:
    for index, outlines in enumerate(detections().polygons()):
        (outline,) = outlines
        assert outline.dtype == np.int32
        assert outline.min(0).tolist() == [5, 3 + index]
        assert outline.max(0).tolist() == [29 + 2 * index, 19]


def test_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    found = detections()
    other = found.to_supervision()
    assert isinstance(other, supervision.Detections)
    np.testing.assert_array_equal(other.xyxy, found.boxes)
    np.testing.assert_array_equal(other.mask, masks())
    np.testing.assert_array_equal(other.class_id, found.labels)
    np.testing.assert_array_equal(other.confidence, found.scores)
