"""Reading COCO files: what pycocotools makes of the same file, and the oddities that are told instead of hidden."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.data.coco_files import SQUARE, annotation, content, read, write
from yolact_deploy.data import CocoImage, read_dataset
from yolact_deploy.errors import DatasetError

BITMAP = np.zeros((10, 12), np.uint8)
BITMAP[1:5, 2:7] = 1
RUNS = [21, 4, 6, 4, 6, 4, 6, 4, 6, 4, 55]


def test_what_a_file_says(tmp_path: Path) -> None:
    data = read(tmp_path, annotation(4), annotation(9, category_id=7, area=2.5, bbox=[0, 0.5, 3, 4]))
    assert data.classes.names == ("dog", "cat")
    assert data.classes.category_ids == (3, 7)
    assert data.images == (CocoImage(1, "a.jpg", 12, 10), CocoImage(5, "sub/b.jpg", 12, 10))
    first, second = data.instances(1)
    assert (first.id, first.label, first.box, first.area, first.crowd) == (4, 0, (2.0, 1.0, 5.0, 4.0), 20.0, False)
    assert (second.id, second.label, second.box, second.area) == (9, 1, (0.0, 0.5, 3.0, 4.0), 2.5)
    assert data.unannotated == (5,)
    assert data.instances(5) == ()
    assert data.notes == ()
    assert data.sha256 == hashlib.sha256((tmp_path / "instances.json").read_bytes()).hexdigest()
    assert repr(data).endswith("2 images, 2 instances, 2 classes)")
    with pytest.raises(DatasetError, match="no image of the id 2"):
        data.instances(2)


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE,
        {"size": [10, 12], "counts": RUNS},
        {"size": [10, 12], "counts": [*RUNS[:-1], 50, 0, 5, 0]},
        {"size": [10, 12], "counts": [20, 0, 1, *RUNS[1:]]},
        {"size": [10, 12], "counts": coco_mask.encode(np.asfortranarray(BITMAP))["counts"].decode()},
    ],
)
def test_every_kind_of_segmentation_is_the_same_mask(tmp_path: Path, segmentation: Any) -> None:
    data = read(tmp_path, annotation(segmentation=segmentation))
    masks = data.masks(data.images[0], data.instances(1))
    assert (masks.shape, masks.dtype, masks.flags.c_contiguous) == ((1, 10, 12), np.uint8, True)
    np.testing.assert_array_equal(masks[0], BITMAP)
    (rle,) = data.rles(data.images[0], data.instances(1))
    assert rle == coco_mask.encode(np.asfortranarray(BITMAP))
    assert data.masks(data.images[1], data.instances(5)).shape == (0, 10, 12)


def test_runs_that_start_inside(tmp_path: Path) -> None:
    data = read(tmp_path, annotation(segmentation={"size": [10, 12], "counts": [0, 0, 0, 7, 113]}, bbox=None, area=None))
    (found,) = data.instances(1)
    assert (found.box, found.area) == ((0.0, 0.0, 1.0, 7.0), 7.0)
    assert data.masks(data.images[0], [found]).sum() == 7


def test_parts_of_a_polygon_are_one_mask(tmp_path: Path) -> None:
    parts = [[0, 0, 3, 0, 3, 3, 0, 3], [1, 1], [6, 6, 9, 6, 9, 9, 6, 9], [2, 2, 3, 3]]
    data = read(tmp_path, annotation(segmentation=parts))
    expected = np.zeros((10, 12), np.uint8)
    expected[:3, :3] = expected[6:9, 6:9] = 1
    np.testing.assert_array_equal(data.masks(data.images[0], data.instances(1))[0], expected)
    assert data.notes == ("Polygon parts of fewer than three points, left out of their masks: 2.",)


def test_crowds_come_last(tmp_path: Path) -> None:
    data = read(tmp_path, annotation(1, iscrowd=1), annotation(2), annotation(3, iscrowd=True), annotation(4, iscrowd=None))
    assert [(found.id, found.crowd) for found in data.instances(1)] == [(2, False), (4, False), (1, True), (3, True)]


def test_masks_are_what_pycocotools_makes_of_the_file(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    annotations = []
    for identifier in range(1, 40):
        polygons = [(random.random(2 * random.integers(3, 9)) * 14 - 1).round(2).tolist() for _ in range(random.integers(1, 4))]
        bitmap = np.asfortranarray(random.random((10, 12)) < random.random(), np.uint8)
        rle = coco_mask.encode(bitmap)
        kinds = (polygons, {**rle, "counts": rle["counts"].decode()}, {"size": [10, 12], "counts": runs(bitmap)})
        annotations.append(annotation(identifier, segmentation=kinds[identifier % 3]))
    data = read(tmp_path, *annotations)
    with contextlib.redirect_stdout(io.StringIO()):
        original = COCO(str(tmp_path / "instances.json"))
    found = data.instances(1)
    assert len(found) == 39
    for instance, mask, rle in zip(found, data.masks(data.images[0], found), data.rles(data.images[0], found), strict=True):
        np.testing.assert_array_equal(mask, original.annToMask(original.anns[instance.id]))
        assert coco_mask.decode(rle).tolist() == mask.tolist()


def runs(bitmap: np.ndarray) -> list[int]:
    flat = np.concatenate([[0], bitmap.ravel("F"), [0]]).astype(int)
    places = np.flatnonzero(np.diff(flat))
    return np.diff(places, prepend=0, append=max(bitmap.size, *places)).tolist()[: None if places[-1] < bitmap.size else -1]


def test_what_is_missing_is_taken_from_the_mask(tmp_path: Path) -> None:
    data = read(
        tmp_path,
        annotation(1, bbox=None),
        annotation(2, area=None),
        annotation(3, area=-1),
        annotation(4, area=float("nan")),
        annotation(5, area="big"),
    )
    assert [(found.box, found.area) for found in data.instances(1)] == [((2.0, 1.0, 5.0, 4.0), 20.0)] * 5
    assert data.notes == (
        "Annotations without a bbox, given that of their mask: 1.",
        "Annotations without a usable area, given that of their mask: 4.",
    )


def test_ids_are_made_unique(tmp_path: Path) -> None:
    data = read(tmp_path, annotation(2), annotation(0), annotation(2), annotation(None), annotation(1), annotation(-4))
    assert [found.id for found in data.instances(1)] == [2, 3, 4, 5, 1, -4]
    assert data.notes == (
        "Annotations with an id that another one has, given a new one: 1.",
        "Annotations with no id, given a new one: 1.",
        "Annotations with the id 0, given a new one: 1.",
    )


UNUSABLE = {
    "an image_id that no image has": {"image_id": 2},
    "a category_id that no category has": {"category_id": 1},
    "no segmentation": {"segmentation": None},
    "no segmentation ": {"segmentation": []},
    "a segmentation that is neither a list of polygons nor an RLE": {"segmentation": "square"},
    "a segmentation that is neither a list of polygons nor an RLE ": {"segmentation": [1, 2, 3, 4, 5, 6]},
    "a polygon that is no list of x, y pairs": {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
    "a polygon that is no list of x, y pairs ": {"segmentation": [[1, 2, 3, 4, 5, None]]},
    "a polygon that is no list of x, y pairs  ": {"segmentation": [[1, 2, 3, 4, 5, True]]},
    "only polygons of fewer than three points": {"segmentation": [[1, 2, 3, 4], []]},
    "a polygon that reaches far outside its image": {"segmentation": [[1, 2, 3, 4, 5, 1e300]]},
    "a polygon that reaches far outside its image ": {"segmentation": [[1, 2, 3, 4, 5, float("nan")]]},
    "a polygon that reaches far outside its image  ": {"segmentation": [[1, 2, 3, 4, 5, 10**400]]},
    "a polygon that reaches far outside its image   ": {"segmentation": [[-121, 2, 3, 4, 5, 6]]},
    "an RLE of another size than its image's": {"segmentation": {"size": [12, 10], "counts": RUNS}},
    "an RLE without a size of two whole numbers": {"segmentation": {"size": [10, 12.0], "counts": RUNS}},
    "an RLE without a size of two whole numbers ": {"segmentation": {"counts": RUNS}},
    "an RLE without counts": {"segmentation": {"size": [10, 12]}},
    "an RLE with run lengths that are no whole numbers of pixels": {"segmentation": {"size": [10, 12], "counts": [121, -1]}},
    "an RLE with run lengths that are no whole numbers of pixels ": {"segmentation": {"size": [10, 12], "counts": [60.0, 60]}},
    "an RLE whose run lengths do not add up to its image's pixels": {"segmentation": {"size": [10, 12], "counts": [60, 61]}},
    "an RLE whose run lengths do not add up to its image's pixels ": {"segmentation": {"size": [10, 12], "counts": []}},
    "an RLE whose run lengths do not add up to its image's pixels  ": {"segmentation": {"size": [10, 12], "counts": ""}},
    "an RLE whose compressed counts are corrupt": {"segmentation": {"size": [10, 12], "counts": "PPPPPPPPPPP0"}},
    "a bbox that is not four finite numbers": {"bbox": [1, 2, 3]},
    "a bbox that is not four finite numbers ": {"bbox": [1, 2, 3, float("nan")]},
    "a bbox that is not four finite numbers  ": {"bbox": [1, 2, 3, 10**400]},
    "a bbox that is not four finite numbers   ": {"bbox": "1 2 3 4"},
    "a bbox without width or height": {"bbox": [1, 2, 0, 3]},
    "a bbox without width or height ": {"bbox": [1, 2, 3, -3]},
    "a bbox without width or height  ": {"bbox": None, "segmentation": [[50, 50, 51, 50, 51, 51]]},
    "a bbox outside its image": {"bbox": [12, 2, 3, 3]},
    "a bbox outside its image ": {"bbox": [1, -4, 3, 4]},
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_unusable_annotations_are_left_out_and_told(tmp_path: Path, fault: str) -> None:
    data = read(tmp_path, annotation(1, **UNUSABLE[fault]), annotation(2))
    assert [found.id for found in data.instances(1)] == [2]
    assert f"Annotations left out for having {fault.strip()}: 1." in data.notes


def test_a_null_is_as_good_as_nothing(tmp_path: Path) -> None:
    data = read(tmp_path, {**annotation(1), "bbox": None, "area": None})
    assert data.instances(1)[0].box == (2.0, 1.0, 5.0, 4.0)


def test_a_file_of_a_test_split(tmp_path: Path) -> None:
    found = content()
    del found["annotations"]
    data = read_dataset(write(tmp_path, found), tmp_path)
    assert data.unannotated == (1, 5)
    assert data.notes == ("The file has no list of annotations, as those of a test split; images without any: 2.",)


def test_images_that_share_a_file_are_told(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": "a.jpg", "width": 12, "height": 10.0} for i in range(3)]
    data = read(tmp_path, images=images)
    assert data.notes == ("Images with a file name that another image has too: 2.",)
    assert data.images[0] == CocoImage(0, "a.jpg", 12, 10)


def test_where_the_pictures_are(tmp_path: Path) -> None:
    path = write(tmp_path, content())
    assert read_dataset(path).folder == tmp_path
    (tmp_path / "images").mkdir()
    assert read_dataset(str(path)).folder == tmp_path / "images"
    (tmp_path / "a.jpg").touch()
    assert read_dataset(path).folder == tmp_path
    (tmp_path / "images" / "a.jpg").touch()
    data = read_dataset(path)
    assert data.folder == tmp_path / "images"
    assert data.picture_path(data.images[1]) == tmp_path / "images" / "sub" / "b.jpg"
    assert [image.id for image in data.missing_pictures()] == [5]
    assert read_dataset(path, tmp_path).folder == tmp_path


def test_ground_truth_is_a_file_again(tmp_path: Path) -> None:
    data = read(tmp_path, annotation(0), annotation(2, iscrowd=1, category_id=7), annotation(3, image_id=5))
    again = read_dataset(write(tmp_path, data.ground_truth()), tmp_path)
    assert again.ground_truth() == data.ground_truth()
    assert again.classes == data.classes
    assert again.images == data.images
    assert [(found["id"], found["category_id"], found["iscrowd"]) for found in data.ground_truth()["annotations"]] == [
        (1, 3, 0),
        (2, 7, 1),
        (3, 3, 0),
    ]
    assert again.notes == ()
    some = data.ground_truth([5, 5])
    assert [image["id"] for image in some["images"]] == [5]
    assert [found["id"] for found in some["annotations"]] == [3]
    assert json.loads(json.dumps(some)) == some
    with pytest.raises(DatasetError, match="no image of the id 6"):
        data.ground_truth([6])


def test_ground_truth_measures_itself_as_perfect(tmp_path: Path) -> None:
    truth = read(tmp_path, annotation(0), annotation(2, category_id=7), annotation(3, image_id=5)).ground_truth()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        results = coco.loadRes([{**found, "score": 0.5} for found in truth["annotations"]])
        for kind in ("bbox", "segm"):
            measured = COCOeval(coco, results, kind)
            measured.evaluate()
            measured.accumulate()
            measured.summarize()
            assert measured.stats[0] == pytest.approx(1.0)


def test_a_data_set_crosses_process_borders(tmp_path: Path) -> None:
    data = read(tmp_path, annotation())
    again = pickle.loads(pickle.dumps(data))  # noqa: TID251 - our own bytes
    assert again.ground_truth() == data.ground_truth()


def test_real_annotations(coco_mini: Path) -> None:
    data = read_dataset(coco_mini / "instances_val.json", coco_mini / "images" / "val")
    with contextlib.redirect_stdout(io.StringIO()):
        original = COCO(str(coco_mini / "instances_val.json"))
    assert data.notes == ()
    assert data.missing_pictures() == []
    assert sum(len(data.instances(image.id)) for image in data.images) == len(original.anns)
    for image in data.images[:10]:
        found = data.instances(image.id)
        for instance, mask in zip(found, data.masks(image, found), strict=True):
            np.testing.assert_array_equal(mask, original.annToMask(original.anns[instance.id]))
