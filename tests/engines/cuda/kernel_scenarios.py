"""Runs of the kernels' tests for the build with AddressSanitizer and UndefinedBehaviorSanitizer; test_kernels_sanitized.py starts them."""

from __future__ import annotations

import numpy as np

from tests.engines.cuda import test_given_kernels as given
from tests.engines.cuda import test_mask_kernels as masks
from tests.engines.cuda import test_nms_kernels as nms
from tests.engines.cuda import test_postprocessor as whole
from tests.engines.cuda.kernel_runs import GivenHeads, Runner
from tests.helpers.host_driver import ORDERS, HostDriver
from yolact_deploy.postprocess import PostprocessSettings


def _runner() -> Runner:
    driver = HostDriver()
    return Runner(driver, driver.load_module(driver.image))


def nms_worst_cases() -> None:
    """Full lists, ties, limits, nothing at all."""
    runner, random = _runner(), np.random.default_rng(1)
    boxes, scores = nms.random_boxes(random, 1100, "ordered"), nms.random_scores(random, 1100, 3, "any")
    for kind in nms.KINDS:
        nms.test_more_candidates_than_shared_memory_holds(runner, 2049, 3, "ties", kind)
        largest = PostprocessSettings(0.1, 0.9, top_k=1024, max_detections=1024, nms=kind)
        assert nms.assert_as_on_the_cpu(runner.ordered("shuffled", 1), boxes, scores, largest) > 500
        nms.test_no_candidates(runner, 0.0, kind)
        nms.test_half_precision(runner, kind)
        nms.test_a_batch_is_its_pictures(runner, "reverse", kind)


def mask_worst_cases() -> None:
    """Every kind of prototypes and boxes, at sizes around a word and a tile; windows and rooms that are too small."""
    runner, random = _runner(), np.random.default_rng(0)
    scores, wanted = masks.all_kept(3)
    for number, kind in enumerate(masks.PROTOTYPES):
        for place, boxes in enumerate(masks.BOXES):
            size, picture = [(32, 16), (33, 17), (1, 1), (7, 40)][(number + place) % 4], [(32, 8), (33, 5), (1, 1), (65, 97)][place % 4]
            count = (1, 32, 33, 64)[place % 4]
            coefficients = np.tanh(random.normal(0, 1, (1, 3, count))).astype(np.float32)
            with np.errstate(over="ignore"):
                prototypes = masks.some_prototypes(random, count, size, kind)[None].astype((np.float32, np.float16)[place % 2])
            heads = GivenHeads(masks.some_boxes(random, 3, boxes, size)[None], scores[None], coefficients, prototypes)
            (found,) = runner.ordered(ORDERS[number % 3], number).run(heads, [picture], wanted)
            with np.errstate(all="ignore"):
                masks.assert_masks(found, heads, *picture)
    masks.test_more_changes_than_a_window_holds(runner, "shuffled")
    masks.test_a_mask_from_edge_to_edge(runner)
    for room in (1, 20, 64):
        masks.test_masks_without_room_are_encoded_on_the_host(runner, room)
    masks.test_pictures_of_different_sizes_in_a_batch(runner)


def given_worst_cases() -> None:
    """Rows and pads around a block, labels beyond the classes, rooms that are too small."""
    runner, random = _runner(), np.random.default_rng(2)
    for number, (pads, count) in enumerate(zip(given.PADS * 2, (1, 255, 256, 257, 33, 1, 300, 512), strict=True)):
        rows = given.some_rows(random, 2, count, pads, masks.BOXES[number % len(masks.BOXES)], (7, 9))
        for outputs in (given.with_prototypes(random, rows, 3, (7, 9)), given.with_masks(random, rows, (7, 9), number % 4 < 2)):
            if number % 2:
                halved = ("boxes", "masks", "coefficients", "prototypes")
                outputs |= {name: outputs[name].astype(np.float16) for name in halved if name in outputs}
            sample = given.GivenRows(given.CLASSES, outputs)
            for picture, found in enumerate(runner.ordered(ORDERS[number % 3], number).run_rows(sample, [(9, 8), (33, 5)])):
                given.assert_tables(found, given.on_the_cpu(sample, picture, [(9, 8), (33, 5)][picture]))
    given.test_given_masks_without_room_are_encoded_on_the_host(runner)
    for place in (0, 8):
        for label in (given.CLASSES - 1, 2**31 - 1):
            given.test_a_label_that_there_is_no_class_for(runner, label, place)


def golden_heads() -> None:
    """Sizes as they are in use, and a second network on the masks."""
    runner = _runner()
    whole.test_golden_heads(runner, "large", "fast", (640, 427))
    whole.test_golden_heads(runner, "typical", "cross-class", (640, 427))
    whole.test_golden_heads(runner, "large", "traditional", (640, 427))
    whole.test_mask_rescoring(runner, "fast")
