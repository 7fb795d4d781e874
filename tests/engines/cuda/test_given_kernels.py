"""Detections that a graph with NMS inside gives, and masks that it has assembled, against what the CPU makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engines.cuda.kernel_runs import GivenHeads, GivenRows, Outcome, Runner, class_list, coco_counts
from tests.engines.cuda.test_mask_kernels import BOXES, assert_masks, some_boxes, some_prototypes
from tests.engines.cuda.test_postprocessor import Foreign, random_heads
from tests.helpers.host_driver import ORDERS
from yolact_deploy.assembly import detections_from_nms
from yolact_deploy.detections import Detections
from yolact_deploy.engines.cuda.arrays import DeviceArray
from yolact_deploy.engines.cuda.driver import Stream
from yolact_deploy.engines.cuda.heads import GivenDetections
from yolact_deploy.engines.cuda.postprocessor import Postprocessor
from yolact_deploy.engines.cuda.workspace import HeadShapes
from yolact_deploy.errors import ConfigError, ModelFileError

PADS = ("none", "at the end", "in the middle", "all")
CLASSES = 7
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")


def some_labels(random: np.random.Generator, rows: int, pads: str) -> np.ndarray:
    labels = random.integers(0, CLASSES - 1, rows).astype(np.int32)
    if pads == "at the end":
        labels[random.integers(0, rows) :] = -1
    if pads == "in the middle":
        labels[random.random(rows) < 0.4] = -1
        labels[rows // 2] = -7  # any negative number
    if pads == "all":
        labels[:] = -1
    return labels


def some_rows(
    random: np.random.Generator, batch: int, rows: int, pads: str, boxes: str = "inside", size: tuple[int, int] = (20, 24)
) -> dict[str, np.ndarray]:
    scores = random.random((batch, rows), np.float32)
    scores[random.random((batch, rows)) < 0.1] = np.nan
    return {
        "boxes": np.stack([some_boxes(random, rows, boxes, size) for _ in range(batch)]),
        "scores": scores,
        "labels": np.stack([some_labels(random, rows, pads) for _ in range(batch)]),
    }


def with_prototypes(
    random: np.random.Generator, rows: dict[str, np.ndarray], count: int = 8, size: tuple[int, int] = (20, 24)
) -> dict[str, np.ndarray]:
    batch, slots = rows["labels"].shape
    prototypes = np.stack([some_prototypes(random, count, size, "noise") for _ in range(batch)])
    return {**rows, "coefficients": np.tanh(random.normal(0, 1, (batch, slots, count))).astype(np.float32), "prototypes": prototypes}


def with_masks(
    random: np.random.Generator, rows: dict[str, np.ndarray], size: tuple[int, int] = (20, 24), mask_scores: bool = True
) -> dict[str, np.ndarray]:
    """Masks that go on outside the boxes, where they have to be cut."""
    shape = rows["labels"].shape
    found = {**rows, "masks": random.random((*shape, *size), np.float32)}
    return {**found, "mask_scores": random.random(shape, np.float32)} if mask_scores else found


def on_the_cpu(rows: GivenRows, picture: int, size: tuple[int, int]) -> Detections:
    return detections_from_nms(rows.of(picture), *size, class_list(rows.classes - 1))


def assert_tables(found: Outcome, wanted: Detections) -> None:
    for name in ("boxes", "scores", "mask_scores", "labels"):
        np.testing.assert_array_equal(getattr(found.detections, name), getattr(wanted, name))
    np.testing.assert_array_equal(found.priors, np.full(len(wanted), -1))


EXAMPLES = {
    "seed": st.integers(0, 2**32),
    "shape": st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 2, 31, 100, 255, 256, 257])),
    "kinds": st.tuples(st.sampled_from(PADS), st.sampled_from(BOXES)),
    "size": st.tuples(st.sampled_from([1, 2, 7, 33]), st.sampled_from([1, 9, 31])),
    "half": st.tuples(st.booleans(), st.booleans(), st.booleans()),
    "order": st.sampled_from(ORDERS),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**EXAMPLES)
def test_nms_in_the_graph(
    runner: Runner,
    seed: int,
    shape: tuple[int, int],
    kinds: tuple[str, str],
    size: tuple[int, int],
    half: tuple[bool, bool, bool],
    order: str,
) -> None:
    random = np.random.default_rng(seed)
    outputs = with_prototypes(random, some_rows(random, *shape, *kinds, size), 5, size)
    for name, halved in zip(("boxes", "coefficients", "prototypes"), half, strict=True):
        with np.errstate(over="ignore"):
            outputs[name] = outputs[name].astype(np.float16 if halved else np.float32)
    rows, pictures = GivenRows(CLASSES, outputs), [(31 + 9 * place, 20 + place) for place in range(shape[0])]
    found = runner.ordered(order, seed % 1000).run_rows(rows, pictures, batch=shape[0] + 1)
    for picture, (each, picture_size) in enumerate(zip(found, pictures, strict=True)):
        assert_tables(each, on_the_cpu(rows, picture, picture_size))
        kept = outputs["labels"][picture] >= 0
        own = {name: outputs[name][picture][kept][None] for name in ("boxes", "coefficients")}
        own["boxes"] = own["boxes"].astype(np.float32)
        heads = GivenHeads(**own, scores=np.zeros((1, 0, 0)), prototypes=outputs["prototypes"][picture][None])
        assert_masks(replace(each, priors=np.arange(kept.sum())), heads, *picture_size)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**EXAMPLES)
def test_masks_in_the_graph(
    runner: Runner,
    seed: int,
    shape: tuple[int, int],
    kinds: tuple[str, str],
    size: tuple[int, int],
    half: tuple[bool, bool, bool],
    order: str,
) -> None:
    random = np.random.default_rng(seed)
    outputs = with_masks(random, some_rows(random, *shape, *kinds, size), size, half[2])
    for name, halved in zip(("boxes", "masks"), half):
        with np.errstate(over="ignore"):
            outputs[name] = outputs[name].astype(np.float16 if halved else np.float32)
    rows, pictures = GivenRows(CLASSES, outputs), [(31 + 9 * place, 20 + place) for place in range(shape[0])]
    found = runner.ordered(order, seed % 1000).run_rows(rows, pictures, batch=shape[0] + 1)
    for picture, (each, picture_size) in enumerate(zip(found, pictures, strict=True)):
        wanted = on_the_cpu(rows, picture, picture_size)
        assert_tables(each, wanted)
        assert each.detections.counts == wanted.counts == coco_counts(each.masks)


@pytest.mark.parametrize("order", ORDERS)
def test_more_rows_than_a_block_has_threads(runner: Runner, order: str) -> None:
    """They stay in their order, pads between them or not."""
    random = np.random.default_rng(1)
    rows = some_rows(random, 2, 1500, "in the middle")
    for outputs in (with_prototypes(random, rows, 3, (5, 6)), with_masks(random, rows, (5, 6))):
        given_rows = GivenRows(CLASSES, outputs)
        for picture, found in enumerate(runner.ordered(order, 3).run_rows(given_rows, [(9, 8)] * 2)):
            wanted = on_the_cpu(given_rows, picture, (9, 8))
            assert 500 < len(wanted) < 1400
            assert_tables(found, wanted)
            assert found.detections.counts == wanted.counts


def test_masks_larger_than_the_blocks_that_share_one(runner: Runner) -> None:
    random = np.random.default_rng(2)
    for boxes in ("whole", "inside"):
        outputs = with_masks(random, some_rows(random, 1, 4, "at the end", boxes, (138, 141)), (138, 141))
        outputs["labels"][0, :2] = 3
        rows = GivenRows(CLASSES, outputs)
        (found,) = runner.ordered("shuffled", 2).run_rows(rows, [(200, 170)])
        assert len(found.labels) > 1
        assert found.detections.counts == on_the_cpu(rows, 0, (200, 170)).counts


def test_given_masks_without_room_are_encoded_on_the_host(runner: Runner) -> None:
    random = np.random.default_rng(3)
    rows = GivenRows(CLASSES, with_masks(random, some_rows(random, 2, 6, "in the middle")))
    for picture, found in enumerate(runner.run_rows(rows, [(90, 70)] * 2, rle_bytes=40)):
        assert found.detections.counts == on_the_cpu(rows, picture, (90, 70)).counts


class Ious:
    """Says the same of each mask: of class c the IoU (c + 1) / 10."""

    def __init__(self, runner: Runner, slots: int) -> None:
        self.runner, self.slots = runner, slots
        self.values = np.tile((np.arange(1, CLASSES, dtype=np.float32)) / 10, (slots, 1))
        self.buffer = runner.driver.allocate(self.values.nbytes)

    def enqueue(self, masks: int, count: int, stream: Stream) -> int:
        assert count == self.slots
        self.runner.driver.copy_to_device(self.buffer.pointer, self.values, stream)
        return self.buffer.pointer


def test_masks_are_rescored_behind_nms_in_the_graph(runner: Runner) -> None:
    random = np.random.default_rng(4)
    rows = GivenRows(CLASSES, with_prototypes(random, some_rows(random, 2, 9, "in the middle")))
    net = Ious(runner, 18)
    with net.buffer:
        found = runner.run_rows(rows, [(30, 20)] * 2, mask_iou=net)
    for picture, each in enumerate(found):
        plain = on_the_cpu(rows, picture, (30, 20))
        assert len(plain) > 2
        np.testing.assert_array_equal(each.mask_scores, plain.scores * net.values[0][plain.labels])
        np.testing.assert_array_equal(each.scores, plain.scores)


@pytest.mark.parametrize("label", [CLASSES - 1, CLASSES, 2**20, 2**31 - 1])
@pytest.mark.parametrize("place", [0, 8])
def test_a_label_that_there_is_no_class_for(runner: Runner, label: int, place: int) -> None:
    """Nothing is read beyond the classes' IoUs for it, and the host refuses it as the CPU's post-processing does."""
    random = np.random.default_rng(5)
    outputs = with_prototypes(random, some_rows(random, 1, 9, "none"))
    outputs["labels"][0, place] = label
    rows, message = GivenRows(CLASSES, outputs), f"The graph finds the label {label}, its manifest names 6 classes"
    with pytest.raises(ModelFileError, match=message) as refused:
        on_the_cpu(rows, 0, (30, 20))
    net = Ious(runner, 9)
    with net.buffer, pytest.raises(ModelFileError, match=message) as caught:
        runner.run_rows(rows, [(30, 20)], mask_iou=net)
    assert str(caught.value) == str(refused.value)
    masked = GivenRows(CLASSES, with_masks(random, {name: outputs[name] for name in ("boxes", "scores", "labels")}))
    with pytest.raises(ModelFileError, match=message):
        runner.run_rows(masked, [(30, 20)])


def test_a_label_of_an_unused_row_does_not_matter(runner: Runner) -> None:
    """Slots behind the last detection hold what was there before."""
    random = np.random.default_rng(6)
    outputs = with_masks(random, some_rows(random, 1, 9, "none"))
    with runner.driver.create_stream() as stream, runner.uploaded(*outputs.values(), stream=stream) as arrays:
        rows = GivenDetections(CLASSES, **dict(zip(outputs, arrays, strict=True)))
        with Postprocessor(rows.shapes, driver=runner.driver, module=runner.module) as post:
            for labels, refused in ((np.full((1, 9), 1000, np.int32), True), (np.array([[2] + [-1] * 8], np.int32), False)):
                runner.driver.copy_to_device(rows.arrays["labels"].pointer, labels, stream)
                post.set_pictures([(9, 9)], 1)
                post.enqueue(rows, stream)
                stream.synchronize()
                if refused:
                    with pytest.raises(ModelFileError, match="label 1000"):
                        post.detections(1, class_list(CLASSES - 1))
                else:
                    assert post.detections(1, class_list(CLASSES - 1))[0].labels.tolist() == [2]


def test_what_takes_other_outputs(runner: Runner) -> None:
    """Head outputs behind an engine with NMS inside, and the other way round."""
    heads, rows = random_heads(1), with_prototypes(np.random.default_rng(7), some_rows(np.random.default_rng(7), 1, 60, "none"))
    shapes = HeadShapes(60, 5, 8, 20, 24, "nms")
    with (
        runner.opened(heads) as (post, arrays, stream),
        Postprocessor(shapes, driver=runner.driver, module=runner.module) as other,
        runner.uploaded(*rows.values(), stream=stream) as given_arrays,
    ):
        with pytest.raises(ConfigError, match=r"graph='none'.* was given, at most 1 of .*graph='nms'.* was wanted"):
            other(*map(Foreign, arrays), [(5, 5)])
        with pytest.raises(ConfigError, match=r"graph='nms'.* was given, at most 1 of .*graph='none'.* was wanted"):
            post.enqueue(GivenDetections(5, **dict(zip(rows, given_arrays, strict=True))), stream)


USUAL = {
    "boxes": ((2, 9, 4), np.float32),
    "scores": ((2, 9), np.float32),
    "labels": ((2, 9), np.int32),
    "coefficients": ((2, 9, 8), np.float32),
    "prototypes": ((2, 8, 20, 24), np.float32),
    "masks": ((2, 9, 20, 24), np.float32),
    "mask_scores": ((2, 9), np.float32),
}
NMS, MASKS = ("boxes", "scores", "labels", "coefficients", "prototypes"), ("boxes", "scores", "labels", "masks", "mask_scores")


def _given(names: tuple[str, ...], pointer: int = 64, **changes: tuple[tuple[int, ...], type]) -> GivenDetections:
    chosen = {name: changes.get(name, USUAL[name]) for name in names}
    return GivenDetections(5, **{name: DeviceArray(pointer, shape, np.dtype(dtype), 0, None) for name, (shape, dtype) in chosen.items()})


@pytest.mark.parametrize("names", [NMS, MASKS])
def test_what_the_shapes_say(names: tuple[str, ...]) -> None:
    found = _given(names)
    assert found.batch == 2
    assert found.shapes == (HeadShapes(9, 5, 8, 20, 24, "nms") if names is NMS else HeadShapes(9, 5, 0, 20, 24, "masks"))


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (NMS, {"labels": ((2, 9), np.int64)}, "labels is int64, int32 was wanted"),
        (NMS, {"scores": ((2, 9), np.float16)}, "scores is float16, float32 was wanted"),
        (NMS, {"boxes": ((2, 9, 4), np.float64)}, "boxes is float64, float32 or float16 was wanted"),
        (MASKS, {"masks": ((2, 9, 20, 24), np.uint8)}, "masks is uint8"),
        (MASKS, {"mask_scores": ((2, 9), np.float16)}, "mask_scores is float16"),
        (NMS, {"boxes": ((2, 9, 5), np.float32)}, r"boxes \[2, 9, 5\]; .* do not fit together"),
        (NMS, {"scores": ((2, 8), np.float32)}, r"scores \[2, 8\]"),
        (NMS, {"labels": ((2, 8), np.int32)}, r"labels \[2, 8\]"),
        (NMS, {"labels": ((18,), np.int32)}, r"labels \[18\]"),
        (NMS, {"coefficients": ((2, 9, 7), np.float32)}, r"coefficients \[2, 9, 7\]"),
        (NMS, {"prototypes": ((1, 8, 20, 24), np.float32)}, r"prototypes \[1, 8, 20, 24\]"),
        (NMS, {"prototypes": ((2, 8, 20), np.float32)}, r"prototypes \[2, 8, 20\]"),
        (MASKS, {"masks": ((2, 8, 20, 24), np.float32)}, r"masks \[2, 8, 20, 24\]"),
        (MASKS, {"mask_scores": ((2,), np.float32)}, r"mask_scores \[2\]"),
        (MASKS, {name: ((0, *USUAL[name][0][1:]), USUAL[name][1]) for name in MASKS}, r"labels \[0, 9\]"),
        (NMS[:4], {}, "Masks come from coefficients and prototypes"),
        ((*NMS[:3], "prototypes"), {}, "Masks come from coefficients and prototypes"),
        ((*NMS, "mask_scores"), {}, "or from masks with or without mask_scores"),
    ],
)
def test_detections_that_do_not_fit(names: tuple[str, ...], changes: dict[str, tuple[tuple[int, ...], type]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _given(names, **changes)


def test_an_address_that_a_gpu_would_fault_on() -> None:
    with pytest.raises(ConfigError, match="boxes begins at 0x42, a multiple of 4"):
        _given(NMS, pointer=66)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((65_536, 5, 8, 20, 24, "nms"), "The graph gives 65536 detections, at most 65535 were wanted"),
        ((9, 5, 0, 20, 24, "nms"), "prototypes is 0, at least 1 was wanted"),
        ((9, 5, 0, 600, 600, "masks"), "600 x 600 samples need"),
        ((0, 5, 0, 20, 24, "masks"), "priors is 0"),
    ],
)
def test_graphs_that_the_kernels_do_not_take(shapes: tuple[int, int, int, int, int, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HeadShapes(*shapes)
    assert HeadShapes(65_535, 5, 0, 20, 24, "masks").prototypes == 0
