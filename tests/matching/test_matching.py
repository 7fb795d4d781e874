"""Which differences between two sets of detections have a reason, and which have none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from yolact_deploy.assembly import Heads, detect
from yolact_deploy.classes import numbered_classes
from yolact_deploy.detections import Detections
from yolact_deploy.matching import DetectionMatch, Tolerance, match_detections
from yolact_deploy.postprocess import PostprocessSettings, rles_from_probabilities

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools

WIDTH, HEIGHT = 320, 240
TOLERANCE = Tolerance(outputs=1e-4, score=1e-3, iou=1e-2, mask_iou=0.98, pixels=2, box=1e-2)
SCORES = (0.9, 0.8, 0.7, 0.6, 0.5)


def heads_of(scores: tuple[float, ...], boxes: Any = None, labels: tuple[int, ...] = ()) -> Heads:
    """A prior for each score; without `boxes` they stand apart. Masks fill their boxes. Without `labels` there is one class."""
    count = len(scores)
    if boxes is None:
        left = np.arange(count, dtype=np.float32) / count
        boxes = np.stack([left, np.full(count, 0.2), left + 0.7 / count, np.full(count, 0.6)], 1)
    table = np.zeros((count, max(labels, default=0) + 2), np.float32)
    table[np.arange(count), np.asarray(labels or (0,) * count) + 1] = scores
    table[:, 0] = 1 - table.sum(1)
    return Heads(np.asarray(boxes, np.float32), table, np.full((count, 1), 9, np.float32), np.ones((1, 60, 80), np.float32))


def found_in(heads: Heads, settings: PostprocessSettings | None = None) -> Detections:
    return detect(heads, WIDTH, HEIGHT, numbered_classes(heads.scores.shape[1] - 1), settings)


def compare(
    candidate: Detections, heads: Heads, reference: Detections | None = None, settings: PostprocessSettings | None = None
) -> DetectionMatch:
    return match_detections(found_in(heads, settings) if reference is None else reference, candidate, heads, TOLERANCE, settings)


def test_the_same_detections_are_all_partners() -> None:
    heads = heads_of(SCORES)
    match = compare(found_in(heads), heads)
    assert match.passed
    assert (match.reference, match.candidate, match.partners) == (5, 5, 5)
    assert (match.largest_score_difference, match.largest_box_difference, match.smallest_mask_iou) == (0, 0, 1)
    assert match.summary()["unexplained"] == match.summary()["excused"] == 0


def test_pairs_and_reasons_are_kept_by_index() -> None:
    heads = heads_of((0.9, 0.8, 0.0505))
    found = found_in(heads)
    match = compare(found[[1]], heads)
    assert (match.pairs, match.surplus) == ({1: 0}, {})
    assert match.missing[0] == ""
    assert "of the threshold" in match.missing[2]
    assert list(compare(found, heads, found[:0]).surplus) == [0, 1, 2]


def test_another_order_is_no_difference() -> None:
    heads = heads_of(SCORES)
    assert compare(found_in(heads)[::-1], heads).partners == 5


def test_each_candidate_is_a_partner_once() -> None:
    heads = heads_of(SCORES)
    found = found_in(heads)
    match = compare(found[[0, 1, 2, 3, 3]], heads)
    assert match.partners == 4
    assert [line.split()[0] for line in match.unexplained] == ["missing", "surplus"]


@pytest.mark.parametrize("lost", range(5))
def test_one_lost_without_a_reason_is_unexplained(lost: int) -> None:
    heads = heads_of(SCORES)
    match = compare(found_in(heads)[[i for i in range(5) if i != lost]], heads)
    assert not match.passed
    assert not match.excused
    assert len(match.unexplained) == 1
    assert match.unexplained[0].startswith(f"missing class 1 {SCORES[lost]:.6f} at ")
    assert match.unexplained[0].endswith("no reason found")


def test_two_swapped_classes_are_four_unexplained() -> None:
    heads = heads_of(SCORES, labels=(0, 1, 2, 0, 1))
    found = found_in(heads)[:5]  # each prior brings its other classes too, with a score of 0
    match = compare(replace(found, labels=found.labels[[1, 0, 2, 3, 4]]), heads, found)
    assert match.partners == 3
    assert len(match.unexplained) == 4


def test_one_lost_at_the_cut_is_excused() -> None:
    heads = heads_of((0.9, 0.8, 0.6, 0.5995))
    settings = PostprocessSettings(max_detections=3)
    moved = heads._replace(scores=heads.scores.copy())
    moved.scores[3, 1] = 0.6005
    match = compare(found_in(moved, settings), heads, settings=settings)
    assert match.passed
    assert match.partners == 2
    assert [line.split()[0] for line in match.excused] == ["missing", "surplus"]
    assert all("of the last one kept" in line for line in match.excused)


def test_one_lost_near_the_cut_but_not_at_it_is_unexplained() -> None:
    heads = heads_of((0.9, 0.8, 0.6, 0.59))
    settings = PostprocessSettings(max_detections=3)
    reference = found_in(heads, settings)
    everything = found_in(heads)
    assert not compare(everything[[0, 1, 3]], heads, reference, settings).passed


def test_there_is_no_cut_where_fewer_are_found() -> None:
    heads = heads_of(SCORES)
    assert not compare(found_in(heads)[:4], heads).passed


@pytest.mark.parametrize(("score", "excused"), [(0.0505, True), (0.053, False)])
def test_one_lost_at_the_score_threshold_is_excused(score: float, excused: bool) -> None:
    heads = heads_of((0.9, score))
    match = compare(found_in(heads)[:1], heads)
    assert match.passed == excused
    assert len(match.excused) == int(excused)


@pytest.mark.parametrize(("bottom", "excused"), [(0.505, True), (0.45, False)])
def test_one_lost_to_an_overlap_at_the_threshold_is_excused(bottom: float, excused: bool) -> None:
    heads = heads_of((0.9, 0.8), boxes=[[0, 0, 0.5, 1], [0, 0, 0.5, bottom]])
    reference = found_in(heads, PostprocessSettings(iou_threshold=0.6))
    assert len(reference) == 2
    match = compare(reference[:1], heads, reference)
    assert match.passed == excused


@pytest.mark.parametrize(("score", "excused"), [(0.8995, True), (0.85, False)])
def test_overlapping_rivals_may_change_places_where_their_scores_are_near(score: float, excused: bool) -> None:
    heads = heads_of((0.9, score), boxes=[[0, 0, 0.5, 1], [0, 0, 0.5, 0.9]])
    other = heads._replace(scores=heads.scores[::-1].copy())
    match = compare(found_in(other), heads)
    assert len(found_in(other)) == 1
    assert match.passed == excused
    assert match.partners == 0


def test_one_that_is_no_priors_is_unexplained() -> None:
    heads = heads_of((0.9, 0.8))
    more = heads_of((0.9, 0.8, 0.7), boxes=[*heads.boxes, [0.05, 0.7, 0.2, 0.95]])
    match = compare(found_in(more), heads)
    assert match.partners == 2
    assert len(match.unexplained) == 1
    assert match.unexplained[0].startswith("surplus class 1 0.700000")


def test_one_that_should_have_been_suppressed_is_unexplained() -> None:
    heads = heads_of((0.9, 0.8), boxes=[[0, 0, 0.5, 1], [0, 0, 0.5, 0.9]])
    match = compare(found_in(heads, PostprocessSettings(iou_threshold=1.0)), heads)
    assert (match.reference, match.candidate) == (1, 2)
    assert not match.passed


@pytest.mark.parametrize("found", ["reference", "candidate"])
def test_nothing_against_something_is_unexplained(found: str) -> None:
    heads = heads_of(SCORES)
    full = found_in(heads)
    match = compare(full[:0], heads, full) if found == "reference" else compare(full, heads, full[:0])
    assert len(match.unexplained) == 5
    assert match.partners == 0


def test_nothing_against_nothing_passes() -> None:
    heads = heads_of((0.01, 0.02))
    assert compare(found_in(heads), heads).passed


@pytest.mark.parametrize(
    ("change", "value"),
    [("scores", 0.002), ("scores", -0.002), ("mask_scores", 0.02), ("boxes", 4.0), ("boxes", np.nan)],
)
def test_a_partner_must_be_near_in_everything(change: str, value: float) -> None:
    heads = heads_of(SCORES)
    found = found_in(heads)
    values = getattr(found, change).copy()
    values[2] += np.float32(value)
    match = compare(replace(found, **{change: values}), heads)
    assert match.partners == 4
    assert not match.passed


@pytest.mark.parametrize(("change", "value"), [("scores", 0.0005), ("mask_scores", 0.005), ("boxes", 2.0)])
def test_a_partner_may_differ_within_the_tolerance(change: str, value: float) -> None:
    heads = heads_of(SCORES)
    found = found_in(heads)
    values = getattr(found, change).copy()
    values[2] += np.float32(value)
    match = compare(replace(found, **{change: values}), heads)
    assert match.passed
    name = {"scores": "largest_score_difference", "mask_scores": "largest_mask_score_difference", "boxes": "largest_box_difference"}[change]
    assert getattr(match, name) == pytest.approx(value, rel=1e-2)


def with_pixels(found: Detections, index: int, remove: int) -> Detections:
    """Take `remove` pixels away from one mask."""
    bitmap = found.bitmap(index)
    rows, columns = np.nonzero(bitmap)
    bitmap[rows[:remove], columns[:remove]] = False
    counts = list(found.counts)
    (counts[index],) = rles_from_probabilities(bitmap[None].astype(np.float32), None, WIDTH, HEIGHT)
    return replace(found, counts=tuple(counts))


def test_masks_may_differ_by_an_iou_or_by_a_few_pixels() -> None:
    heads = heads_of(SCORES)
    found = found_in(heads)
    area = int(found.areas[1])
    assert compare(with_pixels(found, 1, area // 100), heads).passed
    match = compare(with_pixels(found, 1, area // 10), heads)
    assert match.partners == 4
    assert not match.passed
    assert compare(with_pixels(found, 1, area // 100), heads).smallest_mask_iou == pytest.approx(0.99, abs=0.002)


def test_small_and_empty_masks_are_forgiven_two_pixels() -> None:
    heads = heads_of(SCORES)
    found = found_in(heads)
    area = int(found.areas[1])
    empty, two, three = (with_pixels(found, 1, area - left) for left in (0, 2, 3))
    assert compare(empty, heads, empty).partners == 5
    assert compare(two, heads, empty).partners == 5
    assert compare(three, heads, empty).partners == 4


def test_two_pixels_of_a_small_mask_are_two_pixels() -> None:
    heads = heads_of((0.9,), boxes=[[0.1, 0.1, 0.11, 0.11]])
    found = found_in(heads)
    for area in range(20, 60):  # of some areas the IoU gives 2.0000000000000018 pixels
        bitmap = np.zeros((1, HEIGHT, WIDTH), np.float32)
        bitmap[0, 100, :area] = 1
        full = replace(found, counts=tuple(rles_from_probabilities(bitmap, None, WIDTH, HEIGHT)))
        assert compare(with_pixels(full, 0, 2), heads, full).partners == 1
        assert compare(with_pixels(full, 0, 3), heads, full).partners == int(1 - 3 / area >= TOLERANCE.mask_iou)


def half_plane(right_half: float, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> Heads:
    """One prior whose mask is sure in the left half and has the logit `right_half` in the right."""
    prototypes = np.full((1, 16, 16), right_half, np.float32)
    prototypes[0, :, :8] = 4
    return Heads(np.array([box], np.float32), np.array([[0.1, 0.9]], np.float32), np.ones((1, 1), np.float32), prototypes)


@pytest.mark.parametrize(
    ("one", "other", "explained"),
    [
        (half_plane(0), half_plane(1e-6), True),
        (half_plane(1), half_plane(0), False),
        (half_plane(4, (0, 0, 0.5, 1)), half_plane(4, (0, 0, 0.500001, 1)), True),
        (half_plane(4, (0, 0, 0.51, 1)), half_plane(4, (0, 0, 0.499, 1)), False),
    ],
    ids=["at one half", "above one half", "crop on a column", "crop between columns"],
)
def test_masks_may_differ_only_where_rounding_decides(one: Heads, other: Heads, explained: bool) -> None:
    reference, candidate = (detect(heads, 64, 64, numbered_classes(1)) for heads in (one, other))
    assert (reference.bitmap(0) != candidate.bitmap(0)).sum() > 100
    match = match_detections(reference, candidate, one, TOLERANCE)
    assert match.passed is explained
    assert len(match.excused) == (2 if explained else 0)
