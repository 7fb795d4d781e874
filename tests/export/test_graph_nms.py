"""Fast NMS in the graph gives what the post-processing gives for the same head outputs: the same detections in the same order."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.graph_modules import Run, graph_nms
from yolact_deploy.errors import ConfigError
from yolact_deploy.export.nms import FastNms
from yolact_deploy.postprocess import PostprocessSettings, select

DEFAULT = PostprocessSettings()
SMALL = PostprocessSettings(score_threshold=0.3, iou_threshold=0.4, top_k=12, max_detections=20)
GRAPHS = {  # priors, classes with background, settings
    "one class": (40, 2, SMALL),
    "three classes": (60, 4, SMALL),
    "more priors than are ranked": (260, 4, DEFAULT),
    "many classes": (230, 41, DEFAULT),
    "fewer places than detections": (9, 3, DEFAULT),
    "one prior": (1, 2, DEFAULT),
}
BOXES = ("ordered", "any corners", "on a coarse grid", "all equal", "without area", "not finite")
SCORES = ("softmax", "ties", "all equal", "mostly low", "none", "NaN")


@cache
def built(name: str) -> Run:
    return graph_nms(*GRAPHS[name])


def make_boxes(rng: np.random.Generator, priors: int, kind: str) -> np.ndarray:
    boxes = rng.random((priors, 4), dtype=np.float32)
    if kind != "any corners":
        boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] * np.float32(0.3)
    if kind == "on a coarse grid":  # equal boxes, boxes without area, an IoU of exactly one half
        boxes = np.round(boxes * 4) / np.float32(4)
    if kind == "all equal":
        boxes[:] = boxes[:1]
    if kind == "without area":
        boxes[:, 2:] = boxes[:, :2]
    if kind == "not finite":
        for value in (np.nan, np.inf, -np.inf):
            boxes[rng.integers(0, priors, 4), rng.integers(0, 4, 4)] = value
    return boxes


def make_scores(rng: np.random.Generator, priors: int, classes: int, kind: str) -> np.ndarray:
    scores = rng.random((priors, classes), dtype=np.float32)
    if kind == "softmax":
        powers = np.exp(scores * 8)
        scores = powers / powers.sum(1, keepdims=True)
    if kind == "ties":
        scores = np.round(scores * 5) / np.float32(5)
    if kind == "all equal":
        scores[:] = 0.5
    if kind == "mostly low":
        scores = scores**16
    if kind == "none":
        scores *= np.float32(0.05)
    if kind == "NaN":  # softmax gives whole rows of it or none
        scores[rng.integers(0, priors, 3)] = np.nan
    return scores.astype(np.float32)


def assert_same(name: str, boxes: np.ndarray, scores: np.ndarray) -> None:
    """Each picture of the batch on its own; the coefficients say which prior a row came from."""
    coefficients = np.broadcast_to(np.arange(boxes.shape[1], dtype=np.float32)[None, :, None] + 1, (*boxes.shape[:2], 2))
    found = built(name)(boxes, scores, coefficients)
    for place in range(len(boxes)):
        wanted = select(boxes[place], scores[place], GRAPHS[name][2])
        rows_boxes, rows_scores, rows_labels, rows_coefficients = (output[place] for output in found)
        count = len(wanted)
        np.testing.assert_array_equal(rows_labels, [*wanted.labels, *[-1] * (len(rows_labels) - count)])
        np.testing.assert_array_equal(rows_coefficients[:count, 0] - 1, wanted.priors)
        np.testing.assert_array_equal(rows_scores[:count], wanted.scores)
        np.testing.assert_array_equal(rows_boxes[:count], wanted.boxes)
        for padding in (rows_boxes, rows_scores, rows_coefficients):
            assert not padding[count:].any()


@pytest.mark.parametrize("name", GRAPHS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), kinds=st.tuples(st.sampled_from(BOXES), st.sampled_from(SCORES)), batch=st.sampled_from([1, 2, 3]))
def test_the_same_detections_in_the_same_order(name: str, seed: int, kinds: tuple[str, str], batch: int) -> None:
    rng = np.random.default_rng(seed)
    priors, classes, _ = GRAPHS[name]
    boxes = np.stack([make_boxes(rng, priors, kinds[0]) for _ in range(batch)])
    scores = np.stack([make_scores(rng, priors, classes, kinds[1]) for _ in range(batch)])
    assert_same(name, boxes, scores)


@pytest.mark.parametrize("boxes", BOXES)
@pytest.mark.parametrize("scores", SCORES)
def test_every_kind_of_boxes_meets_every_kind_of_scores(boxes: str, scores: str) -> None:
    rng = np.random.default_rng(len(boxes) * 100 + len(scores))
    for name in ("three classes", "more priors than are ranked"):
        priors, classes, _ = GRAPHS[name]
        assert_same(name, make_boxes(rng, priors, boxes)[None], make_scores(rng, priors, classes, scores)[None])


def apart(priors: int) -> np.ndarray:
    """Boxes that do not touch each other."""
    left = np.arange(priors, dtype=np.float32)[:, None] * 2
    return np.concatenate([left, left, left + 1, left + 1], 1)[None]


def test_a_tie_at_the_cut_goes_to_the_lower_prior_whatever_its_class() -> None:
    scores = np.full((1, 60, 4), 0.5, np.float32)
    scores[..., 0] = 0
    labels = built("three classes")(apart(60), scores, np.zeros((1, 60, 2), np.float32))[2][0]
    assert labels.tolist() == [0, 1, 2] * 6 + [0, 1]
    assert_same("three classes", apart(60), scores)


def test_a_tie_among_the_ranked_goes_to_the_lower_prior() -> None:
    scores = np.full((1, 40, 2), 0.5, np.float32)
    assert_same("one class", apart(40), scores)
    coefficients = np.arange(80, dtype=np.float32).reshape(1, 40, 2)
    assert built("one class")(apart(40), scores, coefficients)[3][0, :12, 0].tolist() == list(range(0, 24, 2))


def test_a_score_equal_to_the_threshold_is_no_candidate() -> None:
    scores = np.zeros((1, 40, 2), np.float32)
    scores[0, :2, 1] = np.float32(0.3), np.nextafter(np.float32(0.3), np.float32(1))
    assert built("one class")(apart(40), scores, np.zeros((1, 40, 2), np.float32))[2][0].tolist() == [0] + [-1] * 11
    assert_same("one class", apart(40), scores)


def test_an_overlap_equal_to_the_threshold_passes_and_one_above_does_not() -> None:
    boxes = apart(260)
    boxes[0, 0], boxes[0, 1], boxes[0, 2] = [0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0, 1, 0.51]
    scores = np.zeros((1, 260, 4), np.float32)
    scores[0, :3, 1] = 0.9, 0.8, 0.7
    assert_same("more priors than are ranked", boxes, scores)
    kept = built("more priors than are ranked")(boxes, scores, np.zeros((1, 260, 2), np.float32))[1][0]
    assert kept[:3].tolist() == [np.float32(0.9), np.float32(0.8), 0]


def test_the_graph_has_no_other_kind_of_nms() -> None:
    with pytest.raises(ConfigError, match="Fast NMS alone, 'traditional' was asked for"):
        FastNms(PostprocessSettings(nms="traditional"))
