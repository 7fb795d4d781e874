"""Mask assembly, bit-packed masks and COCO RLE against the literal formulas and pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tests.engines.cuda.kernel_runs import GivenHeads, Outcome, Runner, coco_counts
from tests.helpers.host_driver import ORDERS
from tests.reference import masks as literal
from yolact_deploy.postprocess import PostprocessSettings, mask_rles

PROTOTYPES = ("noise", "smooth", "near one half", "saturated", "all one half", "not finite")
BOXES = ("inside", "any corners", "thin", "on samples", "not finite", "whole")
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")


def all_kept(count: int) -> tuple[np.ndarray, PostprocessSettings]:
    """Scores [N, N + 1] and settings by which detection i is prior i, whatever its box: each is the best of a class of its own."""
    scores = np.zeros((count, count + 1), np.float32)
    scores[np.arange(count), np.arange(count) + 1] = np.linspace(0.9, 0.5, count, dtype=np.float32)
    return scores, PostprocessSettings(max_detections=count)


def some_boxes(random: np.random.Generator, count: int, kind: str, size: tuple[int, int]) -> np.ndarray:
    boxes = random.random((count, 4), dtype=np.float32)
    if kind == "any corners":
        return boxes * 3 - 1
    if kind == "on samples":
        return np.round(boxes * np.tile(size[::-1], 2)).astype(np.float32) / np.tile(size[::-1], 2).astype(np.float32)
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    if kind == "thin":
        boxes[:, 2] = boxes[:, 0]
    if kind == "not finite":
        boxes[np.arange(count), random.integers(0, 4, count)] = random.choice([np.nan, np.inf, -np.inf, 1e30, -1e30], count)
    if kind == "whole":
        boxes[:] = (0, 0, 1, 1)
    return boxes


def some_prototypes(random: np.random.Generator, count: int, size: tuple[int, int], kind: str) -> np.ndarray:
    values = random.normal(0, 1, (count, *size)).astype(np.float32)
    if kind == "smooth":
        down, across = np.meshgrid(np.linspace(0, 6, size[0]), np.linspace(0, 6, size[1]), indexing="ij")
        values = np.stack([np.sin(down * (1 + k % 3) + across + k) for k in range(count)]).astype(np.float32)
    if kind == "near one half":
        values *= np.float32(3e-7) / count
    if kind == "saturated":
        values *= np.float32(1e4)
    if kind == "all one half":
        values[:] = 0
    if kind == "not finite":
        places = random.integers(0, values.size, 6)
        values.reshape(-1)[places] = random.choice([np.nan, np.inf, -np.inf], 6)
    return values


def assert_masks(found: Outcome, given: GivenHeads, width: int, height: int) -> None:
    """Of one picture: probabilities, masks and run lengths, each from what the stage before made, and the whole against torch."""
    order = found.priors
    parts = given.prototypes[0].astype(np.float32), given.coefficients[0][order].astype(np.float32), given.boxes[0][order]
    truth = literal.crop_probabilities(*(torch.from_numpy(part) for part in parts)).numpy()
    # The transcription multiplies by the crop, which lets NaN through; outside the crop is 0.
    kept = literal.crop(torch.ones(truth.shape), torch.from_numpy(parts[2])).numpy() > 0
    wanted = np.where(kept, truth, 0)
    # Sums of large terms are rounded differently in another order; a sigmoid is nowhere steeper than 1 / 4.
    sizes = np.abs(parts[0]).reshape(len(parts[0]), -1)
    rounding = (np.abs(parts[1]) @ sizes).reshape(wanted.shape) * np.float32(len(sizes) * 2**-23 / 4)
    np.testing.assert_array_equal(np.isnan(found.probabilities), np.isnan(wanted))
    differs = np.abs(found.probabilities - wanted) > 3e-6 + rounding
    assert not differs.any(), (found.probabilities[differs], wanted[differs])
    inside = literal.resize_in_float32(found.probabilities, width, height) > 0.5
    assert found.masks is not None
    np.testing.assert_array_equal(found.masks, inside)
    assert found.detections.counts == coco_counts(inside)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    count=st.sampled_from([1, 3, 34]),
    prototypes=st.tuples(st.sampled_from([1, 4, 31, 32, 33, 64]), st.sampled_from(PROTOTYPES)),
    size=st.tuples(st.sampled_from([1, 2, 7, 32, 33, 64, 70]), st.sampled_from([1, 2, 9, 31, 40])),
    picture=st.tuples(st.sampled_from([1, 2, 31, 32, 33, 64, 65, 131, 300]), st.sampled_from([1, 2, 5, 64, 97, 150])),
    boxes=st.sampled_from(BOXES),
    order=st.sampled_from(ORDERS),
    half=st.sampled_from([(np.float32, np.float32), (np.float16, np.float32), (np.float32, np.float16), (np.float16, np.float16)]),
)
def test_as_the_literal_formulas(
    runner: Runner,
    seed: int,
    count: int,
    prototypes: tuple[int, str],
    size: tuple[int, int],
    picture: tuple[int, int],
    boxes: str,
    order: str,
    half: tuple[type, type],
) -> None:
    random = np.random.default_rng(seed)
    scores, wanted = all_kept(count)
    coefficients = np.tanh(random.normal(0, 1, (1, count, prototypes[0]))).astype(half[0])
    made = some_prototypes(random, prototypes[0], size, prototypes[1])
    with np.errstate(over="ignore"):
        samples = made[None].astype(half[1])
    heads = GivenHeads(some_boxes(random, count, boxes, size)[None], scores[None], coefficients, samples)
    (found,) = runner.ordered(order, seed % 1000).run(heads, [picture], wanted)
    np.testing.assert_array_equal(found.priors, np.arange(count))
    assert_masks(found, heads, *picture)


@pytest.mark.parametrize("picture", [(5000, 3), (3, 5000), (2000, 40), (1, 1), (699, 701)])
def test_pictures_of_odd_sizes(runner: Runner, picture: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    scores, wanted = all_kept(5)
    coefficients = np.tanh(random.normal(0, 1, (1, 5, 8))).astype(np.float32)
    for kind in ("noise", "smooth", "near one half"):  # the last: rounding changes the side of pixels within a cell more than once
        prototypes = some_prototypes(random, 8, (33, 41), kind)[None]
        heads = GivenHeads(some_boxes(random, 5, "whole", (33, 41))[None], scores[None], coefficients, prototypes)
        (found,) = runner.ordered("shuffled", 1).run(heads, [picture], wanted)
        assert_masks(found, heads, *picture)
        assert sum(map(len, found.detections.counts)) > 5


@pytest.mark.parametrize("order", ORDERS)
def test_more_changes_than_a_window_holds(runner: Runner, order: str) -> None:
    """Each column of the picture changes sides at nearly every row of samples, in 256 columns at once."""
    scores, wanted = all_kept(2)
    board = (np.indices((70, 40)).sum(0) % 2 * 2 - 1).astype(np.float32) * 8
    stripes = np.repeat((np.arange(70) % 2 * 2 - 1).astype(np.float32)[:, None], 40, axis=1) * 8
    coefficients = np.eye(2, dtype=np.float32)[None]
    heads = GivenHeads(np.tile([0, 0, 1, 1], (1, 2, 1)).astype(np.float32), scores[None], coefficients, np.stack([board, stripes])[None])
    (found,) = runner.ordered(order, 2).run(heads, [(300, 350)], wanted)
    assert_masks(found, heads, 300, 350)
    runs = [len(np.flatnonzero(np.diff(mask.T.reshape(-1)))) for mask in found.masks]
    assert min(runs) > 15 * 1024


def test_a_mask_from_edge_to_edge(runner: Runner) -> None:
    """All inside; inside in the first, last or every other column; runs that go on from one column to the next."""
    scores, wanted = all_kept(4)
    prototypes = np.full((4, 6, 6), -9, np.float32)
    prototypes[0] = 9
    prototypes[1, :, 0] = 9
    prototypes[2, :, -1] = 9
    prototypes[3, 3:] = 9
    heads = GivenHeads(
        np.tile([0, 0, 1, 1], (1, 4, 1)).astype(np.float32), scores[None], np.eye(4, dtype=np.float32)[None], prototypes[None]
    )
    for picture in ((6, 6), (12, 18), (5, 4), (300, 7)):
        (found,) = runner.ordered("forward").run(heads, [picture], wanted)
        assert_masks(found, heads, *picture)
        assert found.masks[0].all()


@pytest.mark.parametrize("room", [1, 20, 64, 100, 4000])
def test_masks_without_room_are_encoded_on_the_host(runner: Runner, room: int) -> None:
    random = np.random.default_rng(3)
    scores, wanted = all_kept(6)
    coefficients = np.tanh(random.normal(0, 1, (2, 6, 8))).astype(np.float32)
    prototypes = np.stack([some_prototypes(random, 8, (20, 24), "noise"), some_prototypes(random, 8, (20, 24), "smooth")])
    boxes = np.stack([some_boxes(random, 6, "inside", (20, 24)), some_boxes(random, 6, "not finite", (20, 24))])
    heads = GivenHeads(boxes, np.stack([scores] * 2), coefficients, prototypes)
    found = runner.ordered("reverse").run(heads, [(90, 70), (40, 50)], wanted, rle_bytes=room)
    for each in found:
        assert each.detections.counts == coco_counts(each.masks)
    needed = sum(len(counts) for each in found for counts in each.detections.counts)
    assert needed > 200  # so that the smaller rooms are too small


def test_pictures_of_different_sizes_in_a_batch(runner: Runner) -> None:
    random = np.random.default_rng(4)
    scores, wanted = all_kept(3)
    sizes = [(64, 48), (33, 70), (1, 9), (200, 100)]
    prototypes = np.stack([some_prototypes(random, 5, (13, 17), "noise") for _ in sizes])
    coefficients = np.tanh(random.normal(0, 1, (4, 3, 5))).astype(np.float32)
    boxes = np.stack([some_boxes(random, 3, "inside", (13, 17)) for _ in sizes])
    together = runner.ordered("shuffled", 4).run(
        GivenHeads(boxes, np.stack([scores] * 4), coefficients, prototypes), sizes, wanted, batch=5
    )
    for place, (found, size) in enumerate(zip(together, sizes, strict=True)):
        own = slice(place, place + 1)
        heads = GivenHeads(boxes[own], scores[None], coefficients[own], prototypes[own])
        assert_masks(found, heads, *size)
        (alone,) = runner.run(heads, [size], wanted)
        assert alone.detections.counts == found.detections.counts


@pytest.mark.parametrize("count", [1, 31, 33, 63])
def test_what_is_not_a_number_stays_with_its_detection(runner: Runner, count: int) -> None:
    """Coefficients are padded to whole vectors; the padding holds nothing of a neighbour's."""
    random = np.random.default_rng(6)
    scores, wanted = all_kept(3)
    coefficients = np.tanh(random.normal(0, 1, (1, 3, count))).astype(np.float32)
    coefficients[0, 1] = np.nan
    prototypes = some_prototypes(random, count, (9, 8), "noise")[None]
    heads = GivenHeads(some_boxes(random, 3, "whole", (9, 8))[None], scores[None], coefficients, prototypes)
    (found,) = runner.ordered("forward").run(heads, [(30, 20)], wanted)
    assert_masks(found, heads, 30, 20)
    assert np.isnan(found.probabilities).any(axis=(1, 2)).tolist() == [False, True, False]


def test_masks_nearly_those_of_the_cpu(runner: Runner) -> None:
    """Sums are rounded in another order than NumPy's; the masks may differ by two pixels."""
    random = np.random.default_rng(5)
    scores, wanted = all_kept(40)
    prototypes = np.maximum(some_prototypes(random, 32, (138, 138), "smooth"), 0)
    coefficients = np.tanh(random.normal(0, 1, (40, 32))).astype(np.float32)
    boxes = some_boxes(random, 40, "inside", (138, 138))
    (found,) = runner.ordered("forward").run(
        GivenHeads(boxes[None], scores[None], coefficients[None], prototypes[None]), [(640, 427)], wanted
    )

    counts = mask_rles(prototypes, coefficients, boxes, 640, 427)
    assert found.masks.any(axis=(1, 2)).sum() > 30
    for ours, theirs in zip(found.masks, counts, strict=True):
        other = coco_mask.decode({"size": [427, 640], "counts": theirs}).astype(bool)
        assert (ours ^ other).sum() <= 2
