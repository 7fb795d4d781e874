"""The three kinds of NMS against the literal transcription, and inputs that would make a careless one slow or large."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import detection
from yolact_deploy.postprocess import PostprocessSettings, Selection, select, selection, suppression

KINDS = ("fast", "cross-class", "traditional")
INPUT_SIZE = 50


def reference(boxes: np.ndarray, scores: np.ndarray, wanted: PostprocessSettings) -> detection.Kept:
    given_boxes, given_scores = torch.from_numpy(boxes), torch.from_numpy(scores)
    limits = (wanted.score_threshold, wanted.iou_threshold)
    if wanted.nms == "cross-class":
        return detection.cross_class_fast_nms(given_boxes, given_scores, *limits, wanted.top_k)
    if wanted.nms == "traditional":
        return detection.traditional_nms(given_boxes, given_scores, INPUT_SIZE, *limits, wanted.max_detections)
    return detection.fast_nms(given_boxes, given_scores, *limits, wanted.top_k, wanted.max_detections)


def assert_equal(found: Selection, wanted: detection.Kept) -> None:
    assert (found.priors.dtype, found.labels.dtype) == (np.int64, np.int64)
    assert (found.scores.dtype, found.boxes.dtype) == (np.float32, np.float32)
    assert found.boxes.shape == (len(found), 4)
    for ours, theirs in zip((found.priors, found.labels, found.scores, found.boxes), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


def random_boxes(rng: np.random.Generator, count: int, kind: str) -> np.ndarray:
    boxes = rng.random((count, 4), dtype=np.float32)
    if kind != "any corners":
        boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] * np.float32(rng.choice([0.05, 0.3, 1]))
    if kind == "on a coarse grid":  # boxes without area, equal boxes, IoU of exactly 0.5
        boxes = np.round(boxes * 4) / np.float32(4)
    if kind == "all equal":
        boxes[:] = boxes[:1]
    if kind == "not finite" and count:
        for value in (np.nan, np.inf, -np.inf):
            boxes[rng.integers(0, count, 3), rng.integers(0, 4, 3)] = value
    return boxes


def random_scores(rng: np.random.Generator, count: int, classes: int, kind: str) -> np.ndarray:
    scores = rng.random((count, classes), dtype=np.float32)
    if kind == "ties":
        scores = np.round(scores * 5) / np.float32(5)
    if kind == "all equal":
        scores[:] = 0.5
    if kind == "mostly low":
        scores = scores**16
    if kind == "one class first":
        scores[:, 1:] *= np.float32(0.5)
        scores[:, 1] += np.float32(0.5)
    if kind == "NaN" and count:
        scores[rng.integers(0, count, 5), rng.integers(0, classes, 5)] = np.nan
    return scores


BOXES = ("any corners", "ordered", "on a coarse grid", "all equal", "not finite")
SCORES = ("any", "ties", "all equal", "mostly low", "one class first", "NaN")


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.sampled_from([0, 1, 2, 5, 40, 150]),
    classes=st.sampled_from([2, 3, 8]),
    kinds=st.tuples(st.sampled_from(BOXES), st.sampled_from(SCORES), st.sampled_from(KINDS)),
    thresholds=st.tuples(st.sampled_from([0.0, 0.05, 0.2, 0.9]), st.sampled_from([0.0, 0.3, 0.5, 1.0])),
    limits=st.tuples(st.sampled_from([1, 3, 20, 200]), st.sampled_from([1, 2, 10, 100])),
    prefixes=st.sampled_from([(1024, 8192), (3, 9), (16, 64), ()]),
)
def test_the_same_detections_in_the_same_order(
    seed: int,
    count: int,
    classes: int,
    kinds: tuple[str, str, str],
    thresholds: tuple[float, float],
    limits: tuple[int, int],
    prefixes: tuple[int, ...],
) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, count, kinds[0]), random_scores(rng, count, classes, kinds[1])
    wanted = PostprocessSettings(*thresholds, *limits, nms=kinds[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "PREFIXES", prefixes)
        patch.setattr(selection, "ROWS_AT_ONCE", 7)
        patch.setattr(suppression, "PAIRS_AT_ONCE", 50)
        found = select(boxes, scores, wanted, INPUT_SIZE)
    assert_equal(found, reference(boxes, scores, wanted))


def one_class(scores: list[float]) -> np.ndarray:
    return np.array([[0, score] for score in scores], np.float32)


def test_a_suppressed_box_still_suppresses_in_fast_nms_only() -> None:
    boxes = np.array([[0, 0, 1, 1], [0.3, 0, 1.3, 1], [0.6, 0, 1.6, 1]], np.float32)
    scores = one_class([0.9, 0.8, 0.7])
    assert select(boxes, scores, PostprocessSettings(nms="fast")).priors.tolist() == [0]
    assert select(boxes, scores, PostprocessSettings(nms="cross-class")).priors.tolist() == [0]
    assert select(boxes, scores, PostprocessSettings(nms="traditional")).priors.tolist() == [0, 2]


def test_an_overlap_of_exactly_one_half_passes_in_fast_nms() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.5]], np.float32)
    assert len(select(boxes, one_class([0.9, 0.8]))) == 2


def test_an_overlap_of_exactly_one_half_goes_in_traditional_nms() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0]], np.float32)  # 2 x 2 and 2 x 1 pixels
    assert len(select(boxes, one_class([0.9, 0.8]), PostprocessSettings(nms="traditional"), input_size=1)) == 1


def test_of_two_boxes_without_area_the_lower_scoring_one_goes() -> None:
    boxes = np.array([[0.5, 0.5, 0.5, 0.5]] * 2, np.float32)
    assert select(boxes, one_class([0.6, 0.7])).priors.tolist() == [1]


def test_a_candidate_brings_all_its_classes_whatever_their_scores() -> None:
    scores = np.array([[0.1, 0.8, 0.04, 0.06, 0.05]], np.float32)
    boxes = np.array([[0, 0, 1, 1]], np.float32)
    assert select(boxes, scores).labels.tolist() == [0, 2, 3, 1]
    assert select(boxes, scores, PostprocessSettings(nms="traditional")).labels.tolist() == [0, 2]
    assert select(boxes, scores, PostprocessSettings(nms="cross-class")).labels.tolist() == [0]


def test_a_score_equal_to_the_threshold_does_not_pass() -> None:
    boxes = np.array([[0, 0, 1, 1]], np.float32)
    for kind in KINDS:
        assert len(select(boxes, one_class([0.05]), PostprocessSettings(nms=kind))) == 0
        assert len(select(boxes, one_class([0.05000001]), PostprocessSettings(nms=kind))) == 1


def test_cross_class_nms_keeps_top_k_not_max_detections() -> None:
    rng = np.random.default_rng(0)
    corners = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2).astype(np.float32) / 20
    boxes = np.concatenate([corners, corners + np.float32(0.04)], axis=1)
    scores = rng.random((400, 4), dtype=np.float32)
    assert len(select(boxes, scores, PostprocessSettings(nms="cross-class"))) == 200
    assert len(select(boxes, scores)) == 100


@pytest.mark.parametrize(
    ("boxes", "scores"), [((3, 4), (2, 5)), ((3, 4), (3, 1)), ((3, 5), (3, 5)), ((4,), (1, 2)), ((1, 3, 4), (1, 3, 2))]
)
def test_shapes_that_do_not_fit_are_refused(boxes: tuple[int, ...], scores: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"was wanted|were wanted"):
        select(np.zeros(boxes, np.float32), np.zeros(scores, np.float32))


def test_other_dtypes_and_strides_give_the_same() -> None:
    rng = np.random.default_rng(1)
    boxes, scores = random_boxes(rng, 60, "ordered"), random_scores(rng, 60, 5, "ties")
    wanted = select(boxes, scores)
    found = select(np.asfortranarray(boxes.astype(np.float64)), np.asfortranarray(scores))
    np.testing.assert_array_equal(found.priors, wanted.priors)
    np.testing.assert_array_equal(found.scores, wanted.scores)


def clusters(rng: np.random.Generator, count: int, centres: int) -> np.ndarray:
    """Boxes of which all but a few suppress each other."""
    corner = rng.random((centres, 2), dtype=np.float32)[rng.integers(0, centres, count)]
    return np.concatenate([corner, corner + np.float32(0.2)], axis=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("priors", "classes", "boxes", "scores"),
    [
        (57_744, 81, "random", "random"),
        (57_744, 81, "random", "all equal"),
        (57_744, 2, "random", "random"),
        (57_744, 2, "clustered", "all equal"),
        (57_744, 81, "one", "random"),
        (57_744, 81, "one", "skewed"),
        (19_248, 1001, "random", "all equal"),
        (19_248, 1001, "clustered", "skewed"),
        (19_248, 1001, "not finite", "random"),
    ],
)
def test_the_worst_inputs_take_bounded_time_and_memory(kind: str, priors: int, classes: int, boxes: str, scores: str) -> None:
    rng = np.random.default_rng(2)
    corners = {
        "random": lambda: random_boxes(rng, priors, "ordered"),
        "clustered": lambda: clusters(rng, priors, 30),
        "one": lambda: np.tile(np.float32([0.1, 0.1, 0.7, 0.8]), (priors, 1)),
        "not finite": lambda: np.full((priors, 4), np.nan, np.float32),
    }[boxes]()
    table = np.full((priors, classes), 0.5, np.float32)
    if scores != "all equal":
        rng.random(out=table, dtype=np.float32)
        np.maximum(table, np.float32(0.06), out=table)
    if scores == "skewed":  # one class above all others, entry by entry
        table[:, 1:] *= np.float32(0.5)
        table[:, 1] += np.float32(0.5)
    tracemalloc.start()
    start = time.perf_counter()
    found = select(corners, table, PostprocessSettings(nms=kind))
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    if boxes == "one":
        assert sorted(found.labels.tolist()) == (list(range(classes - 1)) if kind != "cross-class" else [found.labels[0]])
    assert 1 <= len(found) <= 200
    assert (np.diff(found.scores) <= 0).all()
    assert seconds < 10
    assert peak < 150e6
