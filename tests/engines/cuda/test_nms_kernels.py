"""Selection, ranking, suppression and the best over all classes, against the literal transcription."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engines.cuda.kernel_runs import GivenHeads, Outcome, Runner
from tests.helpers.host_driver import ORDERS
from tests.postprocess.test_selection import BOXES, INPUT_SIZE, SCORES, random_boxes, random_scores
from tests.reference import detection
from yolact_deploy.engines.cuda.heads import Heads
from yolact_deploy.postprocess import PostprocessSettings, select

KINDS = ("fast", "cross-class", "traditional")


def heads_of(boxes: np.ndarray, scores: np.ndarray) -> GivenHeads:
    """One picture with a single tiny prototype."""
    count = len(boxes)
    return GivenHeads(boxes[None], scores[None], np.ones((1, count, 1), np.float32), np.ones((1, 1, 2, 2), np.float32))


def reference(boxes: np.ndarray, scores: np.ndarray, wanted: PostprocessSettings) -> detection.Kept:
    tensors, limits = (torch.from_numpy(boxes), torch.from_numpy(scores)), (wanted.score_threshold, wanted.iou_threshold, wanted.top_k)
    if wanted.nms == "cross-class":
        return detection.cross_class_fast_nms(*tensors, *limits)
    if wanted.nms == "traditional":
        return detection.traditional_nms(*tensors, INPUT_SIZE, *limits[:2], wanted.max_detections)
    return detection.fast_nms(*tensors, *limits, wanted.max_detections)


def assert_equal(found: Outcome, priors: np.ndarray, labels: np.ndarray, scores: np.ndarray, boxes: np.ndarray) -> None:
    np.testing.assert_array_equal(found.priors, priors)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.mask_scores, scores)
    np.testing.assert_array_equal(found.boxes, boxes)


def nms(runner: Runner, boxes: np.ndarray, scores: np.ndarray, wanted: PostprocessSettings) -> Outcome:
    return runner.run(heads_of(boxes, scores), [(4, 3)], wanted, bits=False, input_size=INPUT_SIZE)[0]


def assert_as_on_the_cpu(runner: Runner, boxes: np.ndarray, scores: np.ndarray, wanted: PostprocessSettings) -> int:
    found, chosen = nms(runner, boxes, scores, wanted), select(boxes, scores, wanted, INPUT_SIZE)
    assert_equal(found, chosen.priors, chosen.labels, chosen.scores, chosen.boxes)
    return len(chosen)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    count=st.sampled_from([1, 2, 5, 33, 150]),
    classes=st.sampled_from([2, 3, 9, 17]),
    kinds=st.tuples(st.sampled_from(BOXES), st.sampled_from(SCORES), st.sampled_from(KINDS)),
    thresholds=st.tuples(st.sampled_from([0.0, 0.05, 0.2, 0.9]), st.sampled_from([0.0, 0.3, 0.5, 1.0])),
    limits=st.tuples(st.sampled_from([1, 3, 20, 200]), st.sampled_from([1, 2, 10, 100])),
    order=st.sampled_from(ORDERS),
)
def test_as_the_literal_transcription(
    runner: Runner,
    seed: int,
    count: int,
    classes: int,
    kinds: tuple[str, str, str],
    thresholds: tuple[float, float],
    limits: tuple[int, int],
    order: str,
) -> None:
    random = np.random.default_rng(seed)
    boxes, scores = random_boxes(random, count, kinds[0]), random_scores(random, count, classes, kinds[1])
    wanted = PostprocessSettings(*thresholds, *limits, nms=kinds[2])
    truth = reference(boxes, scores, wanted)
    found = nms(runner.ordered(order, seed % 1000), boxes, scores, wanted)
    assert_equal(found, *(part.numpy() for part in (truth.priors, truth.labels, truth.scores, truth.boxes)))


@pytest.mark.parametrize("nms_kind", KINDS)
@pytest.mark.parametrize("kind", ["any", "ties", "all equal", "one class first", "NaN"])
@pytest.mark.parametrize(("count", "classes"), [(2047, 3), (2048, 4), (2049, 3), (6000, 9)])
def test_more_candidates_than_shared_memory_holds(runner: Runner, count: int, classes: int, kind: str, nms_kind: str) -> None:
    random = np.random.default_rng(count)
    boxes, scores = random_boxes(random, count, "ordered"), random_scores(random, count, classes, kind)
    wanted = PostprocessSettings(0.0, nms=nms_kind)
    assert assert_as_on_the_cpu(runner.ordered("shuffled", count), boxes, scores, wanted)


def test_a_ranking_hands_on_no_more_than_can_be_kept(runner: Runner) -> None:
    """Of 200 boxes that do not overlap the best 45 of each class, whatever words of 32 they lie in."""
    count, limit = 200, 45
    left = np.arange(count, dtype=np.float32) / count
    boxes = np.stack([left, np.zeros_like(left), left + 0.5 / count, np.ones_like(left)], axis=1)
    scores = np.stack([np.zeros_like(left), np.linspace(0.9, 0.5, count), np.linspace(0.1, 0.4, count)], axis=1).astype(np.float32)
    given = heads_of(boxes, scores)
    with runner.opened(given, PostprocessSettings(max_detections=limit)) as (post, arrays, stream):
        post.set_pictures([(4, 3)], 1)
        post.enqueue(Heads(*arrays), stream)
        (handed_on,) = runner.download(post.workspace.problem.survivor_counts, (1,), np.uint32, stream)
    assert handed_on == 2 * limit


@pytest.mark.parametrize("nms_kind", KINDS)
def test_all_priors_of_a_plus_variant(runner: Runner, nms_kind: str) -> None:
    random = np.random.default_rng(1)
    classes = 41 if nms_kind == "traditional" else 81  # every entry takes part a hundred times, which for all classes takes the shim 11 s
    scores = random.random((57_744, classes), dtype=np.float32) ** 4 + np.float32(0.06)
    boxes = random_boxes(random, len(scores), "ordered")
    assert assert_as_on_the_cpu(runner.ordered("forward"), boxes, scores, PostprocessSettings(nms=nms_kind)) >= 100


@pytest.mark.parametrize("nms_kind", KINDS)
def test_a_thousand_classes(runner: Runner, nms_kind: str) -> None:
    random = np.random.default_rng(2)
    boxes, scores = random_boxes(random, 300, "ordered"), random_scores(random, 300, 1001, "ties")
    assert assert_as_on_the_cpu(runner.ordered("reverse"), boxes, scores, PostprocessSettings(nms=nms_kind))


@pytest.mark.parametrize("nms_kind", KINDS)
def test_the_largest_limits(runner: Runner, nms_kind: str) -> None:
    random = np.random.default_rng(3)
    boxes, scores = random_boxes(random, 3000, "ordered"), random_scores(random, 3000, 4, "any")
    wanted = PostprocessSettings(0.1, 0.9, top_k=1024, max_detections=1024, nms=nms_kind)
    assert assert_as_on_the_cpu(runner.ordered("shuffled", 3), boxes, scores, wanted) > 500


@pytest.mark.parametrize("nms_kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 0.05, np.nan, -1.0, -np.inf])
def test_no_candidates(runner: Runner, value: float, nms_kind: str) -> None:
    scores = np.full((70, 5), value, np.float32)
    scores[:, 0] = 1
    found = nms(runner.ordered("forward"), np.zeros((70, 4), np.float32), scores, PostprocessSettings(nms=nms_kind))
    assert len(found.detections) == 0
    assert found.priors.shape == (0,)


@pytest.mark.parametrize("nms_kind", KINDS)
def test_scores_that_are_no_probabilities(runner: Runner, nms_kind: str) -> None:
    random = np.random.default_rng(4)
    scores = random.normal(0, 3, (400, 6)).astype(np.float32)
    scores[random.integers(0, 400, 30), random.integers(1, 6, 30)] = np.inf
    scores[random.integers(0, 400, 30), random.integers(1, 6, 30)] = -np.inf
    scores[random.integers(0, 400, 90), random.integers(1, 6, 90)] = -0.0
    scores[random.integers(0, 400, 90), random.integers(1, 6, 90)] = 0.0
    assert assert_as_on_the_cpu(runner, random_boxes(random, 400, "ordered"), scores, PostprocessSettings(0.0, nms=nms_kind))


@pytest.mark.parametrize("nms_kind", KINDS)
def test_zero_has_no_sign(runner: Runner, nms_kind: str) -> None:
    """Of the scores 0 and -0 of one class none is higher: the lower prior is ranked before, and suppresses the other."""
    scores = np.array([[0.1, 0.9, -0.0], [0.1, 0.8, 0.0], [0.1, 0.7, 0.0], [0.1, 0.6, -0.0]], np.float32)
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]], np.float32)
    found = assert_as_on_the_cpu(runner.ordered("reverse"), boxes, scores, PostprocessSettings(nms=nms_kind))
    assert found == (4 if nms_kind == "fast" else 2)  # traditional NMS takes no score of 0


def test_background_alone_does_not_matter(runner: Runner) -> None:
    random = np.random.default_rng(5)
    boxes, scores = random_boxes(random, 90, "ordered"), random_scores(random, 90, 5, "any")
    with_nan = scores.copy()
    with_nan[:, 0] = np.nan
    found, wanted = nms(runner, boxes, with_nan, PostprocessSettings()), nms(runner, boxes, scores, PostprocessSettings())
    assert len(wanted.priors) > 10
    assert_equal(found, wanted.priors, wanted.labels, wanted.scores, wanted.boxes)


@pytest.mark.parametrize("nms_kind", KINDS)
def test_half_precision(runner: Runner, nms_kind: str) -> None:
    random = np.random.default_rng(6)
    boxes = random_boxes(random, 500, "ordered").astype(np.float16)
    scores = random_scores(random, 500, 11, "mostly low").astype(np.float16)  # subnormal halves among them
    assert np.any((scores > 0) & (scores < np.finfo(np.float16).tiny))
    wanted = PostprocessSettings(nms=nms_kind)
    chosen = select(boxes.astype(np.float32), scores.astype(np.float32), wanted, INPUT_SIZE)
    for given_boxes, given_scores in ((boxes, scores), (boxes.astype(np.float32), scores), (boxes, scores.astype(np.float32))):
        found = nms(runner, given_boxes, given_scores, wanted)
        assert_equal(found, chosen.priors, chosen.labels, chosen.scores, chosen.boxes)
    assert len(chosen) > 50


@pytest.mark.parametrize("nms_kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_batch_is_its_pictures(runner: Runner, order: str, nms_kind: str) -> None:
    random = np.random.default_rng(7)
    pictures = [(random_boxes(random, 120, "ordered"), random_scores(random, 120, 6, kind)) for kind in ("any", "mostly low", "NaN")]
    pictures.append((pictures[0][0], np.zeros_like(pictures[0][1])))
    boxes, scores = (np.stack(part) for part in zip(*pictures))
    wanted = PostprocessSettings(nms=nms_kind)
    coefficients, prototypes = np.ones((4, 120, 1), np.float32), np.ones((4, 1, 2, 2), np.float32)
    given = GivenHeads(boxes, scores, coefficients, prototypes)
    together = runner.ordered(order, 7).run(given, [(5, 5)] * 4, wanted, bits=False, batch=6, input_size=INPUT_SIZE)
    for found, (own_boxes, own_scores) in zip(together, pictures, strict=True):
        chosen = select(own_boxes, own_scores, wanted, INPUT_SIZE)
        assert_equal(found, chosen.priors, chosen.labels, chosen.scores, chosen.boxes)
