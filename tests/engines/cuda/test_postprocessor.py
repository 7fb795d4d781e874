"""The whole of GPU post-processing through its public call: golden heads, foreign arrays, graphs, rescoring and bad input."""

from __future__ import annotations

import gc
import re
import weakref
from functools import cache

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.engines.cuda.kernel_runs import GivenHeads, Runner, class_list, coco_counts
from tests.engines.cuda.test_mask_kernels import all_kept, some_boxes, some_prototypes
from tests.helpers.host_driver import ORDERS, HostDriver
from tests.reference.golden_heads import CASES, golden_archive, golden_heads
from yolact_deploy.detections import Detections
from yolact_deploy.engines.cuda.arrays import DeviceArray
from yolact_deploy.engines.cuda.compiler import kernel_sources
from yolact_deploy.engines.cuda.draw import DeviceFrame, MaskPainter
from yolact_deploy.engines.cuda.driver import Stream
from yolact_deploy.engines.cuda.found import Found
from yolact_deploy.engines.cuda.heads import Heads
from yolact_deploy.engines.cuda.postprocessor import Postprocessor
from yolact_deploy.engines.cuda.problem import POINTERS, Problem
from yolact_deploy.engines.cuda.workspace import HeadShapes
from yolact_deploy.errors import ConfigError, DeviceError
from yolact_deploy.postprocess import PostprocessSettings, decode_boxes, mask_rles, select, softmax

KINDS = ("fast", "cross-class", "traditional")
PICTURES = ((640, 427), (1280, 960))


@cache
def golden(case: str) -> GivenHeads:
    heads = golden_heads(case)
    parts = decode_boxes(heads.loc, heads.priors), softmax(heads.logits), heads.coefficients, heads.prototypes
    return GivenHeads(*(part[None] for part in parts))


def random_heads(seed: int, batch: int = 1, priors: int = 60, classes: int = 5) -> GivenHeads:
    random = np.random.default_rng(seed)
    boxes = np.stack([some_boxes(random, priors, "inside", (20, 24)) for _ in range(batch)])
    prototypes = np.stack([some_prototypes(random, 8, (20, 24), "noise") for _ in range(batch)])
    coefficients = np.tanh(random.normal(0, 1, (batch, priors, 8))).astype(np.float32)
    return GivenHeads(boxes, random.random((batch, priors, classes), np.float32), coefficients, prototypes)


class Foreign:
    """What another library's array looks like."""

    def __init__(self, array: DeviceArray) -> None:
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.pointer, False),
            "version": 3,
        }


def on_the_cpu(given: GivenHeads, size: tuple[int, int], settings: PostprocessSettings | None = None) -> tuple[np.ndarray, list[bytes]]:
    chosen = select(given.boxes[0], given.scores[0], settings)
    return chosen.priors, mask_rles(given.prototypes[0], given.coefficients[0][chosen.priors], chosen.boxes, *size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", PICTURES)
def test_golden_heads(runner: Runner, case: str, kind: str, size: tuple[int, int]) -> None:
    given, settings = golden(case), PostprocessSettings(nms=kind)
    (outcome,) = runner.ordered(ORDERS[len(case) % 3], 5).run(given, [size], settings, bits=False, rle_bytes=1 << 22)
    chosen = select(given.boxes[0], given.scores[0], settings)
    found = outcome.detections
    np.testing.assert_array_equal(outcome.priors, chosen.priors)
    np.testing.assert_array_equal(found.labels, chosen.labels)
    np.testing.assert_array_equal(found.scores, chosen.scores)
    stem = f"{case}_{kind.replace('-', '_')}_{size[0]}x{size[1]}"
    archive = golden_archive()
    np.testing.assert_allclose(found.scores, archive[f"{stem}_score"], rtol=0, atol=1e-6)
    # The original's own masks, by place, but for the few places whose scores are equal to within rounding.
    theirs = [counts.encode() for counts in archive[f"{stem}_rle"].tolist()]
    differing = [place for place, (ours, other) in enumerate(zip(found.counts, theirs, strict=True)) if ours != other]
    assert len(differing) < 0.3 * len(theirs)
    for place in differing:
        near = np.flatnonzero(np.abs(archive[f"{stem}_score"] - found.scores[place]) <= 1e-6)
        assert any(_alike(found, place, theirs[other]) for other in near), place


def _alike(found: Detections, place: int, counts: bytes) -> bool:
    """IoU of at least 0.995, or at most two pixels that differ."""
    ours, other = found.bitmap(place), coco_mask.decode({"size": [found.height, found.width], "counts": counts}).astype(bool)
    return int((ours ^ other).sum()) <= 2 or float((ours & other).sum()) >= 0.995 * float((ours | other).sum())


def test_arrays_of_other_libraries(runner: Runner) -> None:
    given = random_heads(0, batch=2)
    with runner.opened(given, batch=3, bits=(50, 40)) as (post, arrays, stream):
        for own in (None, stream.handle):
            found = post(*map(Foreign, arrays), [(50, 40), (31, 33)], stream=own, bits=True)
            assert isinstance(found, Found)
            detections = found.detections(class_list(4))
            wanted = runner.run(given, [(50, 40), (31, 33)])
            assert [each.counts for each in detections] == [each.detections.counts for each in wanted]
            counts = _download(runner, found.counts, stream)
            assert counts.tolist() == [len(each) for each in detections]
            for picture, each in enumerate(detections):
                for name, truth in (("scores", each.scores), ("mask_scores", each.mask_scores), ("labels", each.labels)):
                    np.testing.assert_array_equal(_download(runner, getattr(found, name), stream)[picture, : len(each)], truth)
                np.testing.assert_array_equal(_download(runner, found.boxes, stream)[picture, : len(each)], wanted[picture].boxes)
                np.testing.assert_array_equal(_download(runner, found.priors, stream)[picture, : len(each)], wanted[picture].priors)
            bits = _download(runner, found.bits, stream)[1, : len(detections[1]), : 33 * 1].reshape(-1, 33, 1)
            masks = np.unpackbits(bits.view(np.uint8), axis=2, bitorder="little")[..., :31]
            assert coco_counts(masks) == detections[1].counts


def _download(runner: Runner, view: object, stream: Stream) -> np.ndarray:
    interface = view.__cuda_array_interface__
    return runner.download(interface["data"][0], interface["shape"], np.dtype(interface["typestr"]).type, stream)


def test_a_call_overwrites_the_last_one(runner: Runner) -> None:
    given = random_heads(1)
    with runner.opened(given) as (post, arrays, _):
        foreign = [Foreign(array) for array in arrays]
        first = post(*foreign, [(30, 30)])
        second = post(*foreign, [(40, 30)])
        for use in (lambda: first.detections(class_list(4)), lambda: first.boxes, first.synchronize):
            with pytest.raises(DeviceError, match="overwritten by a later call"):
                use()
        assert second.detections(class_list(4))[0].width == 40
        with pytest.raises(ConfigError, match="no bits"):
            _ = second.bits
        third = post(*foreign, [(40, 30)], rle=False)
        with pytest.raises(ConfigError, match="no rle"):
            third.detections(class_list(4))
        third.synchronize()


@pytest.mark.parametrize("order", ORDERS)
def test_a_graph_replays_with_new_contents_and_sizes(runner: Runner, order: str) -> None:
    first, second = random_heads(2, batch=2), random_heads(3, batch=2)
    sizes = [[(50, 40), (31, 33)], [(33, 20), (90, 61)]]
    wanted = [[each.detections.counts for each in runner.run(given, size)] for given, size in zip((first, second), sizes, strict=True)]
    runner.ordered(order, 8)
    with runner.opened(first, batch=2) as (post, arrays, stream):
        heads = Heads(*arrays)
        post.set_pictures(sizes[0], 2)
        with runner.driver.capture(stream, lambda: post.enqueue(heads, stream)) as graph:
            for _ in range(2):
                for given, size, counts in zip((first, second), sizes, wanted, strict=True):
                    for array, content in zip(arrays, given.arrays(), strict=True):
                        runner.driver.copy_to_device(array.pointer, content, stream)
                    post.set_pictures(size, 2)
                    graph.launch(stream)
                    stream.synchronize()
                    assert [each.counts for each in post.detections(2, class_list(4))] == counts


def test_two_at_a_time(runner: Runner) -> None:
    """Two objects on two streams; neither waits for the other or touches what is the other's."""
    given = [random_heads(seed, batch=2, priors=300) for seed in (4, 5)]
    sizes = [(120, 90), (61, 67)]
    wanted = [[each.detections.counts for each in runner.run(each_given, sizes)] for each_given in given]
    options = {"batch": 2}
    with runner.opened(given[0], **options) as left, runner.opened(given[1], **options) as right:
        for _ in range(20):
            found = [post(*map(Foreign, arrays), sizes, stream=stream.handle) for post, arrays, stream in (left, right)]
            assert [[each.counts for each in one.detections(class_list(4))] for one in found] == wanted


def test_masks_are_painted_where_they_are(runner: Runner) -> None:
    """Of each picture of a batch its own, the best detection on top."""
    given, sizes = random_heads(11, batch=2), [(50, 40), (33, 29)]
    given.scores[0, 1:] = 0  # the pictures have different counts
    colours = np.array([[200, 0, 0], [0, 190, 0], [0, 0, 180], [90, 80, 70]], np.uint8)
    with runner.opened(given, PostprocessSettings(max_detections=6), batch=2, bits=(50, 40)) as (post, arrays, stream):
        found = post(*map(Foreign, arrays), sizes, stream=stream.handle, bits=True)
        detections = found.detections(class_list(4))
        assert len(detections[0]) < len(detections[1])
        painter = MaskPainter(runner.driver, runner.module, colours)
        for picture, (width, height) in enumerate(sizes):
            with runner.driver.allocate(3 * width * height) as frame:
                runner.driver.clear(frame.pointer, frame.size, stream)
                painter.enqueue(DeviceFrame(frame.pointer, width, height, 3 * width), found.masks(picture), stream, alpha=1.0)
                painted = runner.download(frame.pointer, (height, width, 3), np.uint8, stream)
            wanted = np.zeros_like(painted)
            for place in reversed(range(len(detections[picture]))):
                wanted[detections[picture].bitmap(place)] = colours[detections[picture].labels[place]]
            assert wanted.any()
            np.testing.assert_array_equal(painted, wanted)
        painter.close()


def test_a_refused_call_leaves_the_last_one_alone(runner: Runner) -> None:
    with runner.opened(random_heads(1), bits=(50, 40)) as (post, arrays, _):
        foreign = [Foreign(array) for array in arrays]
        found = post(*foreign, [(50, 40)])
        for sizes, message in (([(500, 400)], "there is room for"), ([(0, 400)], "0 x 400 pixels"), ([(3, 4)] * 2, "2 sizes")):
            with pytest.raises(ConfigError, match=message):
                post(*foreign, sizes, bits=True)
        (detections,) = found.detections(class_list(4))
        assert (detections.width, detections.height) == (50, 40)


def test_inputs_live_until_the_gpu_has_read_them(runner: Runner) -> None:
    """Whoever drops them, and the result, at once must not have their memory given to somebody else."""
    with runner.opened(random_heads(1)) as (post, arrays, _):
        foreign = [Foreign(array) for array in arrays]
        owners = [weakref.ref(array) for array in foreign]
        counts = post(*foreign, [(30, 30)]).counts
        del foreign
        gc.collect()
        assert all(owner() is not None for owner in owners)
        assert counts.shape == (1,)
        post(*[Foreign(array) for array in arrays], [(30, 30)]).synchronize()
        gc.collect()
        assert all(owner() is None for owner in owners)


def test_sizes_wait_for_the_run_before(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    with runner.opened(random_heads(1)) as (post, arrays, stream):
        done: list[str] = []
        wait = post._done.synchronize
        monkeypatch.setattr(post._done, "synchronize", lambda: (done.append("waited"), wait()))
        heads = Heads(*arrays)
        post.set_pictures([(30, 20)], 1)
        post.enqueue(heads, stream)
        post.queued(stream)
        post.set_pictures([(20, 30)], 1)
        assert done == ["waited"] * 2


def test_nothing_is_allocated_by_a_call(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    given = random_heads(6)
    with runner.opened(given, bits=(64, 64)) as (post, arrays, stream):
        foreign = [Foreign(array) for array in arrays]
        post(*foreign, [(30, 30)], stream=stream.handle, bits=True).detections(class_list(4))

        def refuse(size: int) -> None:
            raise AssertionError(f"{size} bytes were asked for")

        monkeypatch.setattr(runner.driver, "allocate", refuse)
        monkeypatch.setattr(runner.driver, "allocate_pinned", refuse)
        for size in ((30, 30), (64, 64), (1, 1)):
            assert post(*foreign, [size], stream=stream.handle, bits=True).detections(class_list(4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("priors", [19_248, 57_744])
def test_memory_for_one_picture_at_550(priors: int, kind: str) -> None:
    driver = HostDriver()
    shapes, settings = HeadShapes(priors, 81, 32, 138, 138), PostprocessSettings(nms=kind)
    with Postprocessor(shapes, driver=driver, settings=settings, module=driver.load_module(driver.image)) as post:
        assert post.device_bytes <= 64e6
        assert post.device_bytes > 4 * post.workspace.slots * 138 * 138
    assert driver.live() == 0


class _Ious:
    """Says of slot i and class c the IoU (i * classes + c) / 1000, and keeps what it was given."""

    def __init__(self, runner: Runner, slots: int, classes: int, plane: tuple[int, int]) -> None:
        self.runner, self.plane = runner, plane
        self.values = (np.arange(slots * classes, dtype=np.float32) / 1000).reshape(slots, classes)
        self.buffer = runner.driver.allocate(self.values.nbytes)
        self.copy = runner.driver.allocate(4 * slots * plane[0] * plane[1])

    def enqueue(self, masks: int, count: int, stream: Stream) -> int:
        assert count == len(self.values)
        self.runner.driver.copy_to_device(self.buffer.pointer, self.values, stream)
        self.runner.driver.copy(self.copy.pointer, masks, self.copy.size, stream)
        return self.buffer.pointer


@pytest.mark.parametrize("kind", KINDS)
def test_mask_rescoring(runner: Runner, kind: str) -> None:
    given, settings = random_heads(7, batch=2), PostprocessSettings(nms=kind, top_k=12, max_detections=9)
    given.boxes[:, ::3] = (0, 0, 1, 1)  # up to the edges, where a row ends and the next begins
    slots = 12 if kind == "cross-class" else 9
    net = _Ious(runner, 2 * slots, 4, (20, 24))
    plain = runner.run(given, [(50, 40)] * 2, settings)
    found = runner.ordered("reverse").run(given, [(50, 40)] * 2, settings, mask_iou=net)
    with runner.driver.create_stream() as stream:
        masks = runner.download(net.copy.pointer, (2, slots, 20, 24), np.float32, stream)
    for picture in range(2):
        count = len(found[picture].priors)
        assert count > 3
        ious = net.values.reshape(2, slots, 4)[picture, np.arange(count), found[picture].labels]
        np.testing.assert_array_equal(found[picture].mask_scores, found[picture].scores * ious)
        np.testing.assert_array_equal(found[picture].scores, plain[picture].scores)
        np.testing.assert_array_equal(found[picture].detections.mask_scores, found[picture].mask_scores)
        assert found[picture].detections.counts == plain[picture].detections.counts
        np.testing.assert_array_equal(masks[picture, :count], plain[picture].probabilities)  # zero outside the crops
    net.buffer.close()
    net.copy.close()


def test_too_little_memory_leaves_nothing_behind() -> None:
    driver = HostDriver(memory=1 << 20)
    module = driver.load_module(driver.image)
    for memory in (1 << 10, 1 << 20, 3 << 20):
        driver.memory = memory
        with pytest.raises(DeviceError, match="were asked for"):
            Postprocessor(HeadShapes(19_248, 81, 32, 138, 138), driver=driver, module=module)
        assert driver.live() == 0


def test_the_structure_is_the_kernels() -> None:
    """Names, order and kinds of the fields, as problem.cuh has them."""
    text = kernel_sources()["problem.cuh"]
    body = re.sub(r"//.*", "", text[text.index("struct Problem {") : text.index("};")])
    pointers = re.findall(r"\*(\w+);|\*(\w+),|, \*(\w+)", body)
    names = [next(filter(None, found)) for found in pointers]
    assert tuple(names) == POINTERS
    numbers = [
        (name.strip(), kind)
        for kind, listed in re.findall(r"^\s*(int|float|u32) ([\w, ]+);", body, re.MULTILINE)
        for name in listed.split(",")
    ]
    kinds = {"c_int": "int", "c_float": "float", "c_uint": "u32"}
    assert [(name, kinds[kind.__name__]) for name, kind in Problem._fields_[len(POINTERS) :]] == numbers


def test_everything_is_given_back() -> None:
    driver = HostDriver()
    module = driver.load_module(driver.image)
    runner, given = Runner(driver, module), random_heads(10)
    runner.run(given, [(20, 20)])
    assert driver.live() == 0
    scores, settings = all_kept(3)
    assert scores.shape == (3, 4)
    post = runner.postprocessor(given, settings)
    assert driver.live() > 0
    post.close()
    post.close()
    assert driver.live() == 0
