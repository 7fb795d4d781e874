"""The three stages at once: order, overlap, bounds, and every way to stop, after which no thread is left."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from yolact_deploy.errors import PictureError
from yolact_deploy.video import Frame, run_pipeline

LONG = 20.0  # seconds that a machine may take to wake a thread


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def frame(number: int) -> Frame:
    return Frame(number, np.full((1, 1, 3), number, np.uint8))


def frames(count: int) -> Iterator[Frame]:
    yield from map(frame, range(count))


def echo(pictures: list[Any]) -> list[Any]:
    """Stands in for detection: the number in each picture."""
    return [int(picture[0, 0, 0]) for picture in pictures]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("group", [1, 3, 8])
def test_all_frames_in_order(group: int, live: bool) -> None:
    written: list[tuple[int, Any]] = []
    outcome = run_pipeline(frames(50), echo, lambda one, found: written.append((one.number, found)), group=group, live=live)
    assert written == [(number, number) for number in range(50)]
    assert (outcome.frames, outcome.error, outcome.interrupted) == (50, None, False)


def test_no_frame() -> None:
    outcome = run_pipeline(frames(0), echo, lambda *_: pytest.fail("nothing was there"))
    assert outcome.frames == 0


def test_batches_are_full_but_for_the_last() -> None:
    sizes: list[int] = []

    def detect(pictures: list[Any]) -> list[Any]:
        sizes.append(len(pictures))
        return echo(pictures)

    run_pipeline(frames(10), detect, lambda *_: None, group=4)
    assert sizes == [4, 4, 2]
    sizes.clear()
    run_pipeline(frames(8), detect, lambda *_: None, group=4)
    assert sizes == [4, 4]


def test_a_camera_is_not_waited_for() -> None:
    """Each frame comes only after the one before was detected: a full batch would never come."""
    detected = [threading.Event() for _ in range(6)]

    def source() -> Iterator[Frame]:
        for number in range(6):
            if number:
                assert detected[number - 1].wait(LONG)
            yield frame(number)

    def detect(pictures: list[Any]) -> list[Any]:
        for number in echo(pictures):
            detected[number].set()
        return echo(pictures)

    assert run_pipeline(source(), detect, lambda *_: None, group=4, live=True).frames == 6


def test_a_camera_faster_than_detection_fills_batches() -> None:
    ready, sizes = threading.Event(), []

    def source() -> Iterator[Frame]:
        for number in range(12):
            if number == 4:
                ready.set()
            yield frame(number)

    def detect(pictures: list[Any]) -> list[Any]:
        assert ready.wait(LONG)
        sizes.append(len(pictures))
        return echo(pictures)

    run_pipeline(source(), detect, lambda *_: None, group=3, live=True)
    assert max(sizes) == 3


def test_a_frame_is_decoded_while_another_is_detected_and_a_third_written() -> None:
    """Frame n is detected only once n + 1 is decoded, and written only once n + 1 is being detected."""
    decoded, detecting = ([threading.Event() for _ in range(21)] for _ in range(2))

    def source() -> Iterator[Frame]:
        for number in range(20):
            decoded[number].set()
            yield frame(number)

    def detect(pictures: list[Any]) -> list[Any]:
        (number,) = echo(pictures)
        detecting[number].set()
        assert number == 19 or decoded[number + 1].wait(LONG)
        return [number]

    def write(one: Frame, found: Any) -> None:
        assert found == 19 or detecting[found + 1].wait(LONG)

    assert run_pipeline(source(), detect, write).frames == 20


def test_threads_are_the_callers_own_and_two_others() -> None:
    names: dict[str, set[str]] = {"decode": set(), "detect": set(), "write": set()}

    def source() -> Iterator[Frame]:
        for number in range(3):
            names["decode"].add(threading.current_thread().name)
            yield frame(number)

    def detect(pictures: list[Any]) -> list[Any]:
        names["detect"].add(threading.current_thread().name)
        return echo(pictures)

    run_pipeline(source(), detect, lambda *_: names["write"].add(threading.current_thread().name))
    assert names == {"decode": {"decode"}, "detect": {threading.current_thread().name}, "write": {"write"}}


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("slow", ["detect", "write"])
def test_memory_is_bounded(group: int, slow: str) -> None:
    seen = {"decoded": 0, "written": 0, "most": 0}

    def source() -> Iterator[Frame]:
        for number in range(60):
            seen["decoded"] += 1
            seen["most"] = max(seen["most"], seen["decoded"] - seen["written"])
            yield frame(number)

    def detect(pictures: list[Any]) -> list[Any]:
        time.sleep(0.01 if slow == "detect" else 0)
        return echo(pictures)

    def write(*_: Any) -> None:
        time.sleep(0.01 if slow == "write" else 0)
        seen["written"] += 1

    run_pipeline(source(), detect, write, group=group)
    assert seen["most"] <= 3 * group + 4


def test_each_stage_is_timed() -> None:
    def source() -> Iterator[Frame]:
        for number in range(10):
            time.sleep(0.005)
            yield frame(number)

    def detect(pictures: list[Any]) -> list[Any]:
        time.sleep(0.03)
        return echo(pictures)

    outcome = run_pipeline(source(), detect, lambda *_: time.sleep(0.01))
    assert outcome.busy["decode"] >= 0.05
    assert outcome.busy["detect"] >= 0.3
    assert outcome.busy["write"] >= 0.1
    assert outcome.seconds >= outcome.busy["detect"] > max(outcome.busy["decode"], outcome.busy["write"])


@pytest.mark.parametrize("stage", ["decode", "detect", "write"])
@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError(), OSError(28, "No space left on device")])
def test_an_error_in_any_stage_stops_all_and_is_raised_once(stage: str, error: Exception) -> None:
    calls = {"decode": 0, "detect": 0, "write": 0}

    def tick(name: str) -> None:
        calls[name] += 1
        if name == stage and calls[name] == 5:
            raise error

    def source() -> Iterator[Frame]:
        for number in range(100_000):
            tick("decode")
            yield frame(number % 200)

    def detect(pictures: list[Any]) -> list[Any]:
        tick("detect")
        return echo(pictures)

    with pytest.raises(type(error)) as caught:
        run_pipeline(source(), detect, lambda *_: tick("write"))
    assert caught.value is error
    assert calls[stage] == 5
    assert calls["decode"] < 100_000


def test_what_ends_a_source_early_comes_after_its_frames() -> None:
    def source() -> Iterator[Frame]:
        yield from frames(7)
        raise PictureError("cut off")

    written: list[int] = []
    outcome = run_pipeline(source(), echo, lambda one, _: written.append(one.number), group=4)
    assert written == list(range(7))
    assert outcome.frames == 7
    assert str(outcome.error) == "cut off"


def test_a_picture_error_of_another_stage_is_no_end_of_the_source() -> None:
    def write(*_: Any) -> None:
        raise PictureError("of another size")

    with pytest.raises(PictureError, match="of another size"):
        run_pipeline(frames(5), echo, write)


def endless() -> Iterator[Frame]:
    while True:
        yield from frames(200)


def test_an_interruption_keeps_what_was_detected() -> None:
    calls, written = [0], []

    def detect(pictures: list[Any]) -> list[Any]:
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        return echo(pictures)

    def write(one: Frame, _: Any) -> None:
        time.sleep(0.02)  # the queue is full when the interruption comes
        written.append(one.number)

    outcome = run_pipeline(endless(), detect, write, group=2)
    assert outcome.interrupted
    assert written == list(range(10))
    assert outcome.frames == 10


@pytest.mark.parametrize("stage", ["decode", "write"])
def test_an_interruption_while_the_caller_waits_for_another_stage(stage: str) -> None:
    released, calls = threading.Event(), {"decode": 0, "write": 0}

    def tick(name: str) -> None:
        calls[name] += 1
        if name == stage and calls[name] == 10:
            time.sleep(0.2)  # the caller runs out of frames, or of room
            _thread.interrupt_main()
            released.wait(0.3)

    def source() -> Iterator[Frame]:
        for one in endless():
            tick("decode")
            yield one

    outcome = run_pipeline(source(), echo, lambda *_: tick("write"))
    assert outcome.interrupted
    assert 5 < outcome.frames < 30


def test_a_second_interruption_does_not_wait_for_the_writing() -> None:
    written: list[int] = []

    def detect(pictures: list[Any]) -> list[Any]:
        if len(written) or echo(pictures)[0] >= 2:
            raise KeyboardInterrupt
        return echo(pictures)

    def write(one: Frame, _: Any) -> None:
        time.sleep(0.3)  # the caller waits for the end of the writing
        written.append(one.number)
        _thread.interrupt_main()
        time.sleep(0.3)

    with pytest.raises(KeyboardInterrupt):
        run_pipeline(endless(), detect, write)
    assert written == [0]
