"""Traditional NMS where its rules differ from Fast NMS, and what its buffers hold; test_nms_kernels.py holds it to the transcription."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engines.cuda.kernel_runs import GivenHeads, Outcome, Runner
from tests.engines.cuda.test_nms_kernels import heads_of
from tests.helpers.host_driver import ORDERS
from tests.postprocess.test_selection import clusters, one_class, random_scores
from yolact_deploy.engines.cuda.heads import Heads
from yolact_deploy.postprocess import PostprocessSettings, select
from yolact_deploy.postprocess.suppression import _pixel_iou

TRADITIONAL = PostprocessSettings(nms="traditional")


def assert_as_on_the_cpu(
    runner: Runner, boxes: np.ndarray, scores: np.ndarray, wanted: PostprocessSettings = TRADITIONAL, input_size: int = 550
) -> Outcome:
    (found,) = runner.run(heads_of(boxes, scores), [(4, 3)], wanted, bits=False, input_size=input_size)
    chosen = select(boxes, scores, wanted, input_size)
    for name in ("priors", "labels", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(chosen, name))
    return found


def test_a_suppressed_box_does_not_suppress(runner: Runner) -> None:
    boxes = np.array([[0, 0, 1, 1], [0.3, 0, 1.3, 1], [0.6, 0, 1.6, 1]], np.float32)
    assert assert_as_on_the_cpu(runner, boxes, one_class([0.9, 0.8, 0.7])).priors.tolist() == [0, 2]


@pytest.mark.parametrize("threshold", [0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.499])
def test_an_overlap_of_exactly_the_threshold_removes(runner: Runner, threshold: float) -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0]], np.float32)  # 2 x 2 and 2 x 1 pixels
    wanted = PostprocessSettings(nms="traditional", iou_threshold=float(threshold))
    found = assert_as_on_the_cpu(runner, boxes, one_class([0.9, 0.8]), wanted, input_size=1)
    assert len(found.priors) == (1 if threshold <= 0.5 else 2)


def test_an_overlap_is_rounded_as_on_the_cpu(runner: Runner) -> None:
    """To the last bit: a threshold of it removes, the next larger number does not."""
    random = np.random.default_rng(3)
    for _ in range(40):
        corner = random.random((2, 2), np.float32) * np.float32(0.2)
        boxes = np.concatenate([corner, corner + np.float32(0.5) + random.random((2, 2), np.float32) * np.float32(0.3)], axis=1)
        pixels = boxes * np.float32(550)
        (overlap,) = _pixel_iou(pixels[0, :, None], pixels[1:].T)
        for threshold, left in ((overlap, 1), (np.nextafter(overlap, np.float32(1)), 2)):
            wanted = PostprocessSettings(nms="traditional", iou_threshold=float(threshold))
            assert len(assert_as_on_the_cpu(runner, boxes, one_class([0.9, 0.8]), wanted).priors) == left


def test_boxes_are_measured_in_the_networks_pixels(runner: Runner) -> None:
    """Side by side, two boxes of few pixels share the line between them."""
    boxes = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]], np.float32)
    for input_size, left in ((2, 1), (5, 2), (550, 2)):
        wanted = PostprocessSettings(nms="traditional", iou_threshold=0.25)
        assert len(assert_as_on_the_cpu(runner, boxes, one_class([0.9, 0.8]), wanted, input_size).priors) == left


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_iou_that_is_not_a_number_removes_nothing(runner: Runner, value: float, order: str) -> None:
    """Each of these boxes is found once, though its IoU with itself is no number either."""
    boxes = np.full((40, 4), value, np.float32)
    found = assert_as_on_the_cpu(runner.ordered(order, 1), boxes, one_class([0.5] * 40), PostprocessSettings(nms="traditional"))
    assert found.priors.tolist() == list(range(40))


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5])
def test_a_score_of_exactly_the_threshold_does_not_pass(runner: Runner, threshold: float) -> None:
    """Though its prior is a candidate by another class."""
    least = np.float32(threshold)
    scores = np.array([[0, 0.9, least, np.nextafter(least, np.float32(1)), 0]], np.float32)
    wanted = PostprocessSettings(threshold, nms="traditional")
    found = assert_as_on_the_cpu(runner, np.array([[0, 0, 1, 1]], np.float32), scores, wanted)
    assert found.labels.tolist() == [0, 2]


def test_corners_in_any_order(runner: Runner) -> None:
    """Negative areas, whose sum decides the sign of the IoU."""
    random = np.random.default_rng(1)
    boxes = random.normal(0, 1, (300, 4)).astype(np.float32)
    for threshold in (0.0, 0.3):
        wanted = PostprocessSettings(nms="traditional", iou_threshold=threshold)
        found = assert_as_on_the_cpu(runner, boxes, random_scores(random, 300, 4, "ties"), wanted)
        assert 0 < len(found.priors) <= 100


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [31, 32, 33, 511, 512, 513, 16 * 512 + 5])
def test_lists_around_a_word_and_a_pass(runner: Runner, count: int, order: str) -> None:
    random = np.random.default_rng(count)
    scores = random_scores(random, count, 3, "ties")
    scores[-1, 1] = 1.5  # the last of the list is the best
    found = assert_as_on_the_cpu(runner.ordered(order, count), clusters(random, count, 20), scores)
    assert found.priors[0] == count - 1
    assert len(found.priors) > 10


def test_a_class_hands_on_no_more_than_can_be_kept(runner: Runner) -> None:
    """Of 200 boxes that do not overlap the best 45 of each class; all of a class whose scores do not pass the threshold stay out."""
    count, limit = 200, 45
    left = np.arange(count, dtype=np.float32) / count
    boxes = np.stack([left, np.zeros_like(left), left + 0.2 / count, np.ones_like(left)], axis=1)
    high, low = np.linspace(0.9, 0.5, count), np.linspace(0.1, 0.4, count)
    scores = np.stack([np.zeros_like(left), high, low, np.full(count, 0.04)], axis=1).astype(np.float32)
    wanted = PostprocessSettings(nms="traditional", max_detections=limit)
    with runner.opened(heads_of(boxes, scores), wanted, input_size=2000) as (post, arrays, stream):
        post.set_pictures([(4, 3)], 1)
        post.enqueue(Heads(*arrays), stream)
        (handed_on,) = runner.download(post.workspace.problem.survivor_counts, (1,), np.uint32, stream)
        keys = runner.download(post.workspace.problem.survivors, (handed_on,), np.uint64, stream)
    assert handed_on == 2 * limit
    entries = ~keys.astype(np.uint32)
    assert sorted(entries.tolist()) == sorted([3 * prior for prior in range(45)] + [3 * prior + 1 for prior in range(155, 200)])


def test_each_class_has_words_of_its_own(runner: Runner) -> None:
    """Blocks of a GPU run at the same time, which the shim's do not: two classes must share no word. After one pass of each class the
    bits tell which candidates do not score above the threshold."""
    random = np.random.default_rng(4)
    scores = random.random((2, 70, 5), dtype=np.float32) ** 3
    scores[:, :40, 3] = 0.9  # 40 candidates at least: more than a word
    given = GivenHeads(np.zeros((2, 70, 4), np.float32), scores, np.ones((2, 70, 1), np.float32), np.ones((2, 1, 2, 2), np.float32))
    wanted = PostprocessSettings(0.3, nms="traditional", max_detections=1)
    with runner.ordered("shuffled", 5).opened(given, wanted, batch=2) as (post, arrays, stream):
        post.set_pictures([(4, 3)] * 2, 2)
        post.enqueue(Heads(*arrays), stream)
        problem = post.workspace.problem
        counts = runner.download(problem.candidate_counts, (2,), np.uint32, stream)
        candidates = runner.download(problem.candidates, (2, 70), np.uint32, stream)
        removed = runner.download(problem.removed, (2, 4, 3), np.uint32, stream)
    for picture, count in enumerate(counts):
        assert 40 <= count < 70
        for group in range(4):
            bits = np.unpackbits(removed[picture, group].view(np.uint8), bitorder="little")[:count]
            np.testing.assert_array_equal(bits == 0, scores[picture, candidates[picture, :count], group + 1] > np.float32(0.3))


@pytest.mark.parametrize("order", ORDERS)
def test_what_the_run_before_removed_does_not_matter(runner: Runner, order: str) -> None:
    """Two pictures in one batch, then swapped, then fewer candidates: the bits of each run are its own."""
    random = np.random.default_rng(2)
    boxes = np.stack([clusters(random, 150, 9), clusters(random, 150, 60)])
    scores = np.stack([random_scores(random, 150, 4, kind) for kind in ("any", "mostly low")])
    given = GivenHeads(boxes, scores, np.ones((2, 150, 1), np.float32), np.ones((2, 1, 2, 2), np.float32))
    with runner.ordered(order, 2).opened(given, TRADITIONAL, batch=2) as (post, arrays, stream):
        heads = Heads(*arrays)
        for turn in ([0, 1], [1, 0], [1, 1]):
            for array, content in zip(arrays, (boxes, scores), strict=False):
                runner.driver.copy_to_device(array.pointer, np.ascontiguousarray(content[turn]), stream)
            post.set_pictures([(4, 3)] * 2, 2)
            post.enqueue(heads, stream)
            stream.synchronize()
            for place, own in enumerate(turn):
                chosen = select(boxes[own], scores[own], TRADITIONAL)
                assert len(chosen) > 5
                count = post.workspace.result("counts")[place]
                np.testing.assert_array_equal(post.workspace.result("priors")[place][:count], chosen.priors)
                np.testing.assert_array_equal(post.workspace.result("labels")[place][:count], chosen.labels)


def test_buffers_of_its_own(runner: Runner) -> None:
    """A bit for each prior of each class, and no rankings; top_k, which it does not know, may be any number."""
    wanted = PostprocessSettings(nms="traditional", max_detections=7, top_k=5000)
    with runner.postprocessor(heads_of(np.zeros((65, 4), np.float32), np.zeros((65, 5), np.float32)), wanted, input_size=300) as post:
        problem = post.workspace.problem
        assert (problem.top_k, problem.max_detections, problem.groups, problem.input_size) == (7, 7, 4, 300)
        assert problem.removed
        assert not problem.ranked
        assert not problem.ranked_counts
        traditional = post.device_bytes
    fast = PostprocessSettings(max_detections=7, top_k=7)
    with runner.postprocessor(heads_of(np.zeros((65, 4), np.float32), np.zeros((65, 5), np.float32)), fast) as post:
        assert not post.workspace.problem.removed
        assert traditional - post.device_bytes == 4 * (4 * 3) - 8 * 4 * 7 - 4 * 4
