"""How the C++ library runs: batches, CUDA graphs, streams, kernels, warming up, and what it does after errors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.cpp.test_detect import CASES, RESCORED, SMALL, recorded
from tests.engines.cpp.truth import NMS, Recorded, noise, picture_line, same
from tests.helpers.cpp_library import CppLibrary, run_commands
from tests.helpers.host_driver import HostDriver
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.cuda.preprocess import DevicePreprocessor

PICTURES = [noise(*size) for size in ((40, 30), (21, 50), (9, 9), (64, 3), (33, 32), (1, 70), (50, 50))]


class Session:
    """Commands with the pictures above; their answers, and what Python says to them."""

    def __init__(self, library: CppLibrary, folder: Path, engine: Recorded, options: str = "", **settings: Any) -> None:
        self.library, self.engine, self.settings = library, engine, settings
        self.lines = [f"load path={engine.engine} {options}"]
        self.lines += [picture_line(folder, f"{index}.raw", picture) for index, picture in enumerate(PICTURES)]
        self.asked: list[tuple[str, Any]] = []

    def detect(self, *pictures: int, times: int = 1, more: str = "results=1") -> Session:
        self.asked += [(f"detect pictures={','.join(map(str, pictures))} {more}", pictures)] * times
        return self

    def counts(self) -> Session:
        self.asked.append(("counts", None))
        return self

    def run(self) -> list[dict[str, Any]]:
        """The counts that were asked for; every answer is held against Python's."""
        _, *answers, left = run_commands(self.library, [*self.lines, *(line for line, _ in self.asked)], **self.settings)
        assert left == ""
        counts = []
        for (line, pictures), answer in zip(self.asked, answers[len(PICTURES) :], strict=True):
            if pictures is None:
                counts.append(answer)
                continue
            assert isinstance(answer, list), (line, answer)
            assert len(answer) == len(pictures)
            for place, (picture, found) in enumerate(zip(pictures, answer, strict=True)):
                same(found, self.engine.detections(PICTURES[picture], place % 4))
        return counts


# Batches


@pytest.mark.parametrize("choose", ["value", "index"])
@pytest.mark.parametrize("batch", [BatchRange(1, 2, 4), BatchRange(2, 3, 4), BatchRange(4, 4, 4)], ids=str)
@pytest.mark.parametrize("masks", [1, 3])
def test_any_number_of_pictures(library: CppLibrary, tmp_path: Path, batch: BatchRange, choose: str, masks: int) -> None:
    session = Session(library, tmp_path, recorded(library, tmp_path, SMALL, batch=batch, choose=choose), f"masks={masks} contexts=1")
    for pictures in ((0,), (0, 1, 2, 3, 4, 5, 6), (), (6, 5, 4, 3, 2), (1, 1, 1), (3, 0, 2, 1), (2,)):
        session.detect(*pictures)
    session.counts().run()


def test_masks_on_the_device_are_of_one_batch(library: CppLibrary, tmp_path: Path) -> None:
    engine = recorded(library, tmp_path, SMALL)
    lines = [f"load path={engine.engine} masks=4", *(picture_line(tmp_path, f"{index}", picture) for index, picture in enumerate(PICTURES))]
    *_, refused, taken, left = run_commands(library, [*lines, "detect results=1 pictures=0,1,2,3,4", "detect results=1 pictures=0,1,2,3"])
    assert refused["code"] == 1
    assert "5 pictures were given, masks on the device are kept of 4 at once" in refused["error"]
    assert len(taken) == 4
    assert left == ""


def test_submitted_batches(library: CppLibrary, tmp_path: Path) -> None:
    engine = recorded(library, tmp_path, SMALL)
    lines = [f"load path={engine.engine}", *(picture_line(tmp_path, f"{index}", picture) for index, picture in enumerate(PICTURES))]
    *_, none, many, four, left = run_commands(library, [*lines, "submit pictures=", "submit pictures=0,1,2,3,4", "submit pictures=3,2,1,0"])
    assert left == ""
    assert none["code"] == many["code"] == 1
    assert "0 pictures were submitted, 1 to 4 were wanted" in none["error"]
    assert "5 pictures were submitted" in many["error"]
    for found, picture in zip(four, (3, 2, 1, 0), strict=True):
        same(found, engine.detections(PICTURES[picture]))


# CUDA graphs


def steps(counts: list[dict[str, Any]]) -> list[tuple[int, ...]]:
    """Between the counts: executions queued and captured, graphs launched."""
    names = ("enqueued", "captured", "cuGraphLaunch")
    return [tuple(later[name] - earlier[name] for name in names) for earlier, later in pairwise(counts)]


def test_the_second_run_of_a_batch_is_captured(library: CppLibrary, tmp_path: Path) -> None:
    session = Session(library, tmp_path, recorded(library, tmp_path, SMALL), "contexts=1").counts()
    for pictures in ((0,), (1,), (2,), (0, 1), (2, 3), (4, 5), (6,), (6,)):
        session.detect(*pictures).counts()
    run, captured, replayed = (1, 0, 0), (0, 1, 1), (0, 0, 1)
    assert steps(session.run()) == [run, captured, replayed, run, captured, replayed, run, captured]


def test_fewer_than_the_smallest_batch_are_the_smallest(library: CppLibrary, tmp_path: Path) -> None:
    session = Session(library, tmp_path, recorded(library, tmp_path, SMALL, batch=BatchRange(2, 2, 4)), "contexts=1").counts()
    for pictures in ((0,), (1, 2), (3,), (0, 1, 2)):
        session.detect(*pictures).counts()
    assert steps(session.run()) == [(1, 0, 0), (0, 1, 1), (0, 0, 1), (1, 0, 0)]


@pytest.mark.parametrize("masks", [2, 3, 4, 7])
def test_larger_bits_are_captured_anew(library: CppLibrary, tmp_path: Path, masks: int) -> None:
    session = Session(library, tmp_path, recorded(library, tmp_path, SMALL), f"masks={masks} contexts=1").counts()
    for picture in (2, 2, 2, 6, 2, 6, 4):  # 9, then 100 words
        session.detect(picture).counts()
    assert steps(session.run()) == [(1, 0, 0), (0, 1, 1), (0, 0, 1), (1, 0, 0), (0, 1, 1), (0, 0, 1), (0, 0, 1)]


@pytest.mark.parametrize("rle", [1, 100, 400])
def test_a_grown_arena_is_captured_anew(library: CppLibrary, tmp_path: Path, rle: int) -> None:
    engine = recorded(library, tmp_path, {**SMALL, "num_classes": 9})
    session = Session(library, tmp_path, engine, f"masks=3 contexts=1 rle={rle}").counts()
    order = (2, 2, 2, 6, 6, 1, 0, 5, 6, 2)
    for picture in order:
        session.detect(picture).counts()
    session.detect(0, 1, 2, 6, times=3)
    found = session.run()
    assert steps(found)[0][0] == 1
    assert any(later["cuMemAlloc_v2"] > earlier["cuMemAlloc_v2"] for earlier, later in pairwise(found[1:]))  # it grew
    assert steps(found)[-1] == (0, 0, 1)  # once nothing grows, graphs are replayed


def test_without_graphs(library: CppLibrary, tmp_path: Path) -> None:
    session = Session(library, tmp_path, recorded(library, tmp_path, SMALL), "contexts=1 graphs=0").counts()
    assert steps(session.detect(0, times=3).counts().run()) == [(3, 0, 0)]


@pytest.mark.parametrize("which", ["network", "mask IoU"])
def test_what_cannot_be_captured_runs_as_before(library: CppLibrary, tmp_path: Path, which: str) -> None:
    lines = {"lines": ("capturable 0",)}
    options: dict[str, Any] = lines if which == "network" else {"mask_iou": lines, "batch": 1}
    engine = recorded(library, tmp_path, SMALL if which == "network" else RESCORED, **options)
    found = Session(library, tmp_path, engine, "contexts=1").detect(0).counts().detect(1, times=3).counts().run()
    assert found[1]["cuGraphLaunch"] == 0
    (queued, _, _), *_ = steps(found)
    assert queued == 3 * found[0]["enqueued"]


def test_a_capture_that_fails(library: CppLibrary, tmp_path: Path) -> None:
    engine = recorded(library, tmp_path, SMALL, lines=("fail enqueue 2",))
    found = Session(library, tmp_path, engine, "contexts=1").counts().detect(0, times=4).counts().run()
    assert steps(found) == [(4, 0, 0)]


@pytest.mark.parametrize("dynamic", [True, False])
def test_tensorrt_rtx_captures_static_shapes_alone(library_of: Callable[[str], CppLibrary], tmp_path: Path, dynamic: bool) -> None:
    library = library_of("rtx")
    engine = recorded(library, tmp_path, SMALL, batch=BatchRange(1, 1, 2) if dynamic else 1)
    found = Session(library, tmp_path, engine, "contexts=1").counts().detect(0, times=4).counts().run()
    assert steps(found) == [(4, 0, 0)] if dynamic else [(1, 1, 3)]


def test_a_rescored_engine_is_captured_with_its_net(library: CppLibrary, tmp_path: Path) -> None:
    engine = recorded(library, tmp_path, RESCORED, mask_iou_batch=BatchRange(1, 30, 40))
    found = Session(library, tmp_path, engine, "contexts=1").counts().detect(0).counts().detect(1, 2).detect(0).counts()
    found = found.detect(2, times=2).counts().run()
    runs = 1 + 10  # of the network, and of 4 x 100 slots by forties
    assert found[1]["enqueued"] - found[0]["enqueued"] == 1 + 3  # 100 slots of one picture
    assert found[2]["enqueued"] - found[1]["enqueued"] == 1 + 5 + 1 + 3
    assert (found[3]["captured"], found[3]["cuGraphLaunch"]) == (4, 2)
    assert found[3]["run"] < 100 * runs


# Streams


def answers_of(library: CppLibrary, lines: list[str], **settings: Any) -> list[Any]:
    *answers, left = run_commands(library, lines, **settings)
    assert left == ""
    return answers


@pytest.mark.parametrize("stream", ["own", "made", "default"])
@pytest.mark.parametrize("command", ["detect", "submit"])
def test_pictures_that_are_still_being_made(library: CppLibrary, tmp_path: Path, stream: str, command: str) -> None:
    engine, (first, second, third) = recorded(library, tmp_path, SMALL), (noise(30, 20, seed) for seed in range(3))
    before = "default" if stream == "own" else stream  # that a stream of the detector's own waits for
    lines = [f"load path={engine.engine} contexts=1", picture_line(tmp_path, "first", first, device=0)]
    for name, picture in (("second", second), ("third", third), ("first", first), ("second", second)):
        (tmp_path / name).write_bytes(picture.tobytes())
        lines += [f"late file={tmp_path / name} stream={before}", f"{command} pictures=0 stream={stream}"]
    answers = answers_of(library, lines)
    assert len({engine.row(picture) for picture in (first, second, third)}) > 1
    for answer, picture in zip(answers[3::2], (second, third, first, second), strict=True):
        same(answer[0], engine.detections(picture))


def test_the_default_stream_is_waited_for_by_pictures_on_the_device_alone(library: CppLibrary, tmp_path: Path) -> None:
    engine = recorded(library, tmp_path, SMALL)
    lines = [f"load path={engine.engine}", picture_line(tmp_path, "a", PICTURES[0]), picture_line(tmp_path, "b", PICTURES[1], device=0)]
    asked = [("0", "own"), ("0,0", "own"), ("1", "made"), ("1", "default"), ("0,1", "own"), ("1", "own")]
    lines += [line for pictures, stream in asked for line in (f"detect pictures={pictures} stream={stream}", "counts")]
    waits = [answer["cuStreamWaitEvent"] for answer in answers_of(library, lines) if isinstance(answer, dict)]
    assert waits == [0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize("command", ["detect results=1", "submit"])
def test_refused_streams(library: CppLibrary, tmp_path: Path, command: str) -> None:
    if command == "submit":
        streams = {"foreign": "not one of GPU 0 (Stub GPU 0)", "bogus": "not one of GPU 0 (Stub GPU 0)"}
    else:
        streams = {"foreign": "not one of GPU 0 (Stub GPU 0)", "capturing": "being captured", "bogus": "not one of GPU 0 (Stub GPU 0)"}
    engine = recorded(library, tmp_path, SMALL)
    lines = [f"load path={engine.engine} contexts=1", picture_line(tmp_path, "a", PICTURES[0])]
    for stream in streams:
        lines += [f"{command} pictures=0 stream={stream}", f"{command} pictures=0 stream=made"]
    answers = answers_of(library, [*lines, "counts"], devices=2)
    for told, refused, right in zip(streams.values(), answers[2::2], answers[3::2], strict=False):
        assert refused["code"] == 1
        assert told in refused["error"]
        same(right[0], engine.detections(PICTURES[0]))
    assert answers[-1]["run"] == len(streams)


def test_another_gpu(library: CppLibrary, tmp_path: Path) -> None:
    engine = recorded(library, tmp_path, SMALL, target={"gpu": "Stub GPU 1"})
    lines = [
        f"load path={engine.engine}",
        f"load path={engine.engine} device=2",
        f"load path={engine.engine} device=-1",
        f"load path={engine.engine} device=1",
        picture_line(tmp_path, "a", PICTURES[0], device=1),
        picture_line(tmp_path, "b", PICTURES[1]),
        "detect pictures=0,1",
        "detect pictures=0,1 stream=foreign",
        "info",
    ]
    first, missing, negative, loaded, *_, own, given, info = answers_of(library, lines, devices=2)
    assert (first["code"], missing["code"], negative["code"], loaded) == (2, 3, 3, None)
    assert info[2] == "Stub GPU 1"
    for answer in (own, given):
        for found, picture in zip(answer, PICTURES[:2], strict=True):
            same(found, engine.detections(picture))


# Kernels


def python_launches(engine: Recorded, pictures: list[np.ndarray[Any, Any]], **changed: Any) -> list[Any]:
    """What Python's preparation and post-processing launch for a batch."""
    driver = HostDriver()
    size = engine.spec.size
    with (
        driver.create_stream() as stream,
        driver.allocate(len(pictures) * 12 * size * size) as target,
        DevicePreprocessor(driver, driver.load_module(driver.image), engine.spec, 4) as preprocessor,
    ):
        preprocessor.enqueue(pictures, target.pointer, stream, half=engine.half_input)
    engine.on_gpu(pictures, driver, **changed)
    return [[name, *grid, threads, shared] for name, grid, threads, shared in driver.launches]


@pytest.mark.parametrize("case", [*CASES, *NMS])
def test_the_kernels_are_launched_as_pythons(library: CppLibrary, tmp_path: Path, case: str) -> None:
    fields, options = CASES.get(case, (SMALL, {"half": case == "traditional"}))
    engine, nms = recorded(library, tmp_path, fields, **{**options, "choose": "index"}), f"nms={NMS.index(case)}" if case in NMS else ""
    batch = options.get("batch", BatchRange(1, 2, 4))
    count = batch if isinstance(batch, int) else 3
    wanted = python_launches(engine, PICTURES[:count], **({"nms": case} if case in NMS else {}))
    chosen = ",".join(map(str, range(count)))
    parts = {
        0: ("pack_bits", "encode_rle", "deliver"),
        1: ("pack_bits",),
        2: ("encode_rle", "deliver"),
        3: (),
        4: ("encode_rle", "deliver"),
    }
    for masks, absent in parts.items():
        lines = [f"load path={engine.engine} masks={masks} {nms}"]
        lines += [picture_line(tmp_path, f"{index}", picture) for index, picture in enumerate(PICTURES[:count])]
        found = answers_of(library, [*lines, f"detect pictures={chosen}", "launches"])[-1]
        assert found == [launch for launch in wanted if launch[0] not in absent], masks


# Warming up, and what it is


@pytest.mark.parametrize("graphs", [0, 1])
@pytest.mark.parametrize("masks", [1, 7])
def test_warming_up(library: CppLibrary, tmp_path: Path, graphs: int, masks: int) -> None:
    engine = recorded(library, tmp_path, SMALL)
    lines = [
        f"load path={engine.engine} contexts=2 masks={masks} graphs={graphs}",
        *(picture_line(tmp_path, f"{i}", PICTURES[i]) for i in (6, 0)),
    ]
    lines += [
        "counts",
        "warm_up width=50 height=50 batch=2",
        "counts",
        "detect pictures=0,1",
        "detect results=1 pictures=0,1",
        "counts",
        "info",
    ]
    *answers, info = answers_of(library, lines)
    before, ready, done = (answer for answer in answers if isinstance(answer, dict))
    assert ready["run"] - before["run"] == 6
    assert (ready["captured"], ready["cuGraphLaunch"]) == (2 * graphs, 4 * graphs)
    assert done["cuMemAlloc_v2"] == ready["cuMemAlloc_v2"]
    assert done["captured"] == ready["captured"]
    if masks == 1:
        assert done["cuMemHostAlloc"] == ready["cuMemHostAlloc"]
    assert info[:4] == ["tiny", "fp32", "Stub GPU 0", "TensorRT 11.4.0.106"]
    assert info[4:7] == [64, 1, 4]
    assert info[8:] == [4, 4, engine.classes.names[0], engine.classes.category_ids[0]]


@pytest.mark.parametrize("before", [False, True])
def test_a_picture_that_finds_no_memory_changes_nothing(library: CppLibrary, tmp_path: Path, before: bool) -> None:
    engine = recorded(library, tmp_path, SMALL)
    small, large = noise(1, 1), noise(2000, 2000)  # whose bits are 200 MB for 400 masks
    lines = [f"load path={engine.engine} masks=7 contexts=1 rle=1000"]
    lines += [picture_line(tmp_path, "small", small), picture_line(tmp_path, "large", large)]
    lines += ["detect results=1 pictures=0"] * before + ["detect results=1 pictures=1", *["detect results=1 pictures=0"] * 4]
    answers = answers_of(library, lines, memory=100_000_000)
    refused = answers.pop(3 + before)
    assert refused["code"] == 3
    assert "bytes of GPU memory were asked for: CUDA_ERROR_OUT_OF_MEMORY" in refused["error"]
    for answer in answers[3:]:
        same(answer[0], engine.detections(small))


@pytest.mark.parametrize("command", ["detect", "submit"])
def test_a_failed_call_leaves_nothing_on_the_callers_stream(library: CppLibrary, tmp_path: Path, command: str) -> None:
    failing, sound = recorded(library, tmp_path, SMALL, name="failing", lines=("fail enqueue 1",)), recorded(library, tmp_path, SMALL)
    lines = [f"load path={failing.engine}", picture_line(tmp_path, "a", PICTURES[0]), f"{command} pictures=0 stream=made", "unload"]
    answers = answers_of(library, [*lines, f"load path={sound.engine}", "detect pictures=0 stream=made", "detect pictures=0 stream=made"])
    assert answers[2]["code"] == 3
    for answer in answers[5:]:
        same(answer[0], sound.detections(PICTURES[0]))
