"""Leakage and localization failure on rectangles whose pixels can be counted by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.evaluation.stored import HEIGHT, WIDTH, Stored, dataset_of, found, rectangle
from yolact_deploy.errors import DatasetError
from yolact_deploy.evaluation.failures import Failures, analyse

CAT, DOG = 0, 1
BOX = (10, 10, 30, 30)


def analysed(objects: Sequence[tuple[Any, ...]], detections: Sequence[tuple[Any, ...]], **options: Any) -> Failures:
    return analyse(dataset_of({1: objects}), Stored({1: found(detections)}), [1], **options)


def test_thirty_of_a_hundred_pixels_of_error_leaked() -> None:
    own = rectangle((10, 10, 20, 30))  # 200 pixels
    mask = rectangle((10, 17, 20, 30), (20, 10, 23, 20))  # lacks 70, has 30 more beside it
    failures = analysed([(CAT, BOX, own)], [(CAT, 0.9, BOX, mask)])
    assert (failures.matched, failures.imperfect) == (1, 1)
    assert (failures.error_pixels, failures.leaked_pixels, failures.leaked_on_others) == (100, 30, 0)
    assert failures.leakage == failures.mean_leakage == pytest.approx(0.3)
    assert failures.leakage_on_others == 0


def test_what_lies_outside_the_box_is_error_but_did_not_leak() -> None:
    own = rectangle((10, 10, 20, 30))
    mask = rectangle((10, 10, 20, 30), (20, 10, 24, 20), (6, 10, 10, 30))  # 40 more inside the box, 80 outside
    failures = analysed([(CAT, BOX, own)], [(CAT, 0.9, BOX, mask)])
    assert (failures.error_pixels, failures.leaked_pixels) == (120, 40)


@pytest.mark.parametrize(("right", "leaked"), [(23.0, 60), (22.6, 60), (22.5, 40), (22.4, 40), (20.0, 0)])
def test_a_pixel_is_inside_the_box_where_its_centre_is(right: float, leaked: int) -> None:
    own = rectangle((10, 10, 20, 30))
    mask = rectangle((10, 10, 23, 30))  # three columns of 20 pixels more
    failures = analysed([(CAT, (10, 10, 20, 30), own)], [(CAT, 0.9, (10, 10, right, 30), mask)])
    assert (failures.error_pixels, failures.leaked_pixels) == (60, leaked)


@pytest.mark.parametrize("crowd", [False, True])
def test_leaks_on_other_objects_are_told_from_background(crowd: bool) -> None:
    own = rectangle((10, 10, 20, 30))
    other = rectangle((22, 10, 30, 20), (10, 10, 12, 30))  # the second part lies on the first object: that is no leak
    mask = rectangle((10, 10, 25, 20), (10, 20, 20, 30))  # 5 columns of 10 more, 3 of them on the other object
    failures = analysed([(CAT, BOX, own), (DOG, (22, 10, 30, 20), other, crowd)], [(CAT, 0.9, BOX, mask)])
    assert (failures.error_pixels, failures.leaked_pixels, failures.leaked_on_others) == (50, 50, 30)
    assert (failures.leakage, failures.leakage_on_others) == (1.0, pytest.approx(0.6))


def test_the_pooled_share_weighs_pixels_and_the_mean_weighs_detections() -> None:
    big, small = (0, 0, 20, 40), (40, 0, 50, 20)
    detections = [
        (CAT, 0.9, big, rectangle((0, 0, 20, 30))),  # 200 missing, none leaked
        (CAT, 0.8, (40, 0, 52, 20), rectangle((40, 0, 52, 20))),  # 40 leaked, none missing
        (DOG, 0.7, (30, 30, 40, 40)),  # perfect
    ]
    failures = analysed([(CAT, big), (CAT, small), (DOG, (30, 30, 40, 40))], detections)
    assert (failures.matched, failures.imperfect) == (3, 2)
    assert failures.leakage == pytest.approx(40 / 240)
    assert failures.mean_leakage == pytest.approx(0.5)


def test_only_matched_detections_above_the_score_count() -> None:
    objects = [(CAT, BOX), (DOG, (40, 10, 60, 30), rectangle((40, 10, 60, 30)), True)]
    detections = [
        (CAT, 0.9, BOX),
        (CAT, 0.8, BOX),  # the object is taken
        (DOG, 0.8, BOX),  # another class
        (DOG, 0.7, (40, 10, 60, 30)),  # a crowd is no object
        (CAT, 0.2, BOX),
    ]
    failures = analysed(objects, detections)
    assert (failures.pictures, failures.objects, failures.detections, failures.matched) == (1, 1, 4, 1)
    assert analysed(objects, detections, score=0.1).detections == 5


@pytest.mark.parametrize(("right", "matched"), [(50, 1), (51, 0)])
def test_the_boxes_iou_decides_from_one_half_on(right: int, matched: int) -> None:
    assert analysed([(CAT, (10, 10, 30, 30))], [(CAT, 0.9, (10, 10, right, 30))]).matched == matched


def test_the_best_score_takes_the_object_it_overlaps_most() -> None:
    left, right = (10, 10, 30, 30), (14, 10, 34, 30)
    failures = analysed([(CAT, left), (CAT, right)], [(CAT, 0.9, right), (CAT, 0.8, left)])
    assert (failures.matched, failures.error_pixels) == (2, 0)


def test_the_best_score_comes_first_and_the_class_must_be_right() -> None:
    worse, better = (CAT, 0.9, (10, 10, 30, 26)), (CAT, 0.8, BOX)
    assert analysed([(CAT, BOX)], [worse, better]).error_pixels == 80
    assert analysed([(CAT, BOX)], [(DOG, 0.9, BOX)]).matched == 0


LEFT, RIGHT = (10, 10, 20, 30), (22, 10, 32, 30)


def test_one_mask_over_two_objects_is_shared() -> None:
    wide = (10, 10, 30, 30)
    foreground = rectangle((10, 10, 20, 30), (22, 10, 30, 30))  # holds 8 of the 10 columns of the right object
    failures = analysed([(CAT, LEFT), (CAT, RIGHT)], [(CAT, 0.9, wide, foreground)])
    assert (failures.matched, failures.exposed, failures.shared, failures.merged) == (1, 1, 1, 0)
    assert (failures.shared_of_matched, failures.shared_of_exposed, failures.examples) == (1.0, 1.0, (1,))


@pytest.mark.parametrize(
    ("change", "exposed", "shared"),
    [
        ({"other": DOG}, 0, 0),
        ({"crowd": True}, 0, 0),
        ({"mask": rectangle((10, 10, 20, 30), (22, 10, 27, 30))}, 1, 1),  # 5 columns are half
        ({"mask": rectangle((10, 10, 20, 30), (22, 10, 26, 30))}, 1, 0),
        ({"mask": rectangle((10, 10, 14, 30), (22, 10, 30, 30))}, 1, 0),  # less than half of its own
        ({"box": (10, 10, 26, 30)}, 0, 0),  # the box holds 4 columns of the other
        ({"box": (10, 10, 28, 30), "mask": rectangle((10, 10, 20, 30), (24, 10, 32, 30))}, 1, 0),  # 4 of its columns inside the box
        ({"nested": rectangle((10, 10, 20, 30))}, 0, 0),  # annotated on top of the first
    ],
    ids=[
        "another class",
        "a crowd",
        "half",
        "less than half",
        "not its own",
        "outside the box",
        "half outside the box",
        "one on the other",
    ],
)
def test_what_is_no_shared_mask(change: dict[str, Any], exposed: int, shared: int) -> None:
    mask = change.get("mask", rectangle((10, 10, 20, 30), (22, 10, 30, 30)))
    other = (change.get("other", CAT), RIGHT, change.get("nested", rectangle(RIGHT)), change.get("crowd", False))
    failures = analysed([(CAT, LEFT), other], [(CAT, 0.9, change.get("box", (10, 10, 30, 30)), mask)])
    assert failures.matched == 1
    assert (failures.exposed, failures.shared) == (exposed, shared)


def test_two_detections_with_one_mask_are_twins() -> None:
    foreground = rectangle((14, 10, 28, 30))
    objects = [(CAT, (10, 10, 22, 30)), (CAT, (20, 10, 32, 30))]
    detections = [(CAT, 0.9, (10, 10, 22, 30), foreground), (CAT, 0.8, (20, 10, 32, 30), foreground)]
    failures = analysed(objects, detections)
    assert (failures.matched, failures.near_pairs, failures.twins, failures.twins_of_near_pairs) == (2, 1, 1, 1.0)
    fine = analysed(objects, [row[:3] for row in detections])
    assert (fine.near_pairs, fine.twins, fine.twins_of_near_pairs) == (1, 0, 0.0)
    apart = analysed([(CAT, LEFT), (CAT, RIGHT)], [(CAT, 0.9, LEFT, foreground), (CAT, 0.8, RIGHT, foreground)])
    assert (apart.near_pairs, apart.twins_of_near_pairs) == (0, None)
    two_classes = analysed([objects[0], (DOG, objects[1][1])], [detections[0], (DOG, *detections[1][1:])])
    assert two_classes.near_pairs == 0


def test_objects_that_are_annotated_alike_make_no_twins() -> None:
    mask = rectangle((14, 10, 28, 30))
    boxes = ((10, 10, 22, 30), (20, 10, 32, 30))
    failures = analysed([(CAT, box, mask) for box in boxes], [(CAT, 0.9, box, mask) for box in boxes])
    assert (failures.matched, failures.near_pairs, failures.twins) == (2, 0, 0)


def test_a_detection_of_nothing_that_covers_two_objects_is_merged() -> None:
    both = (0, 0, 60, 46)  # its box is no object's
    foreground = rectangle(LEFT, RIGHT)
    failures = analysed([(CAT, LEFT), (CAT, RIGHT)], [(CAT, 0.9, both, foreground)])
    assert (failures.matched, failures.merged, failures.merged_of_detections) == (0, 1, 1.0)
    assert analysed([(CAT, LEFT), (DOG, RIGHT)], [(CAT, 0.9, both, foreground)]).merged == 0
    assert analysed([(CAT, LEFT), (CAT, RIGHT)], [(CAT, 0.9, both, rectangle(LEFT))]).merged == 0
    on_top = [(CAT, LEFT), (CAT, LEFT, rectangle((10, 10, 20, 28)))]
    assert analysed(on_top, [(CAT, 0.9, both, foreground)]).merged == 0


def test_nothing_to_divide_by_is_none() -> None:
    for failures in (
        analysed([], []),
        analysed([(CAT, BOX)], []),
        analysed([], [(CAT, 0.9, BOX)]),
        analysed([(CAT, BOX, rectangle())], []),
        analyse(dataset_of({}), Stored(), []),
    ):
        assert (failures.leakage, failures.mean_leakage, failures.shared_of_matched, failures.twins_of_near_pairs) == (None,) * 4
        assert json.loads(json.dumps(failures.to_json()))["leakage"] is None
    perfect = analysed([(CAT, BOX)], [(CAT, 0.9, BOX)])
    assert (perfect.matched, perfect.error_pixels, perfect.leakage, perfect.shared_of_matched) == (1, 0, None, 0.0)


def test_empty_masks_are_counted_as_they_are() -> None:
    empty = rectangle()
    failures = analysed([(CAT, BOX, empty)], [(CAT, 0.9, BOX)])
    assert (failures.matched, failures.error_pixels, failures.leaked_pixels, failures.leakage) == (1, 400, 400, 1.0)
    lost = analysed([(CAT, BOX), (CAT, (12, 12, 30, 30), empty)], [(CAT, 0.9, BOX, empty)])
    assert (lost.error_pixels, lost.leaked_pixels, lost.exposed, lost.shared) == (400, 0, 0, 0)


def test_boxes_beyond_the_picture_or_turned_round_hold_no_pixels() -> None:
    objects = [(CAT, (0, 0, WIDTH, HEIGHT))]
    failures = analysed(objects, [(CAT, 0.9, (-5, -5, WIDTH + 5, HEIGHT + 5), rectangle((0, 0, WIDTH, HEIGHT)))])
    assert (failures.matched, failures.error_pixels) == (1, 0)
    assert analysed(objects, [(CAT, 0.9, (30, 30, 10, 10), rectangle(BOX))]).matched == 0


def test_pictures_add_up() -> None:
    own, mask = rectangle((10, 10, 20, 30)), rectangle((10, 10, 22, 30))
    dataset = dataset_of({1: [(CAT, BOX, own)], 2: [(CAT, BOX, own)], 3: []})
    store = Stored({1: found([(CAT, 0.9, BOX, mask)]), 2: found([(CAT, 0.9, BOX, own)]), 3: found([])})
    failures = analyse(dataset, store, [1, 2, 3])
    assert (failures.pictures, failures.objects, failures.matched, failures.imperfect, failures.leaked_pixels) == (3, 2, 2, 1, 40)


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(DatasetError, match=f"{WIDTH + 1} x {HEIGHT} pixels, its annotations are for {WIDTH} x {HEIGHT}"):
        analyse(dataset_of({1: []}), Stored({1: replace(found([]), width=WIDTH + 1)}), [1])
