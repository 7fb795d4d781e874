"""Copies, streams, events and graphs on a stand-in for NVIDIA's driver library; test_cuda_core.py runs each in another process."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.helpers.stub_cuda import HostFunction, live, queue_call
from yolact_deploy.engines.cuda import Driver, open_driver
from yolact_deploy.errors import DeviceError

STALE = 0xA5  # what the stand-in fills memory with


def pattern(size: int = 1000, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def round_trip(driver: Driver, sent: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`sent`, through GPU memory."""
    got = np.zeros_like(sent)
    with driver.create_stream() as stream, driver.allocate(sent.nbytes) as buffer:
        driver.copy_to_device(buffer.pointer, sent, stream)
        driver.copy_to_host(got, buffer.pointer, stream)
        stream.synchronize()
    return got


def the_gpu_is_described() -> None:
    info = open_driver().info
    assert (info.index, info.name, info.compute_capability, info.total_memory) == (0, "Stub GPU 0", (8, 9), 4 << 30)


def copies_run_when_the_stream_gets_to_them() -> None:
    driver = open_driver()
    sent, got = pattern().view(np.float32).reshape(5, 50), np.zeros((5, 50), np.float32)
    wanted = sent.copy()
    with driver.create_stream() as stream, driver.allocate(sent.nbytes) as buffer:
        driver.copy_to_device(buffer.pointer, sent, stream)
        sent[:] = 0  # not page-locked: free for use once the call is back
        driver.copy_to_host(got, buffer.pointer, stream)
        assert not got.any()
        stream.synchronize()
    np.testing.assert_array_equal(got.view(np.uint8), wanted.view(np.uint8))


def page_locked_memory_is_read_and_written_by_the_gpu() -> None:
    driver = open_driver()
    with driver.create_stream() as stream, driver.allocate(8) as buffer, driver.allocate_pinned(8) as pinned:
        assert pinned.array.shape == (8,)
        assert pinned.array.dtype == np.uint8
        assert live()["pinned memory"] == 1
        pinned.array[:] = 1
        driver.copy_to_device(buffer.pointer, pinned.array, stream)
        pinned.array[:] = 2  # before the stream got there
        stream.synchronize()
        pinned.array[:] = 3
        driver.copy_to_host(pinned.array, buffer.pointer, stream)
        stream.synchronize()
        assert pinned.array.tolist() == [2] * 8


def only_fitting_arrays_are_copied() -> None:
    driver = open_driver()
    fixed = np.zeros(4, np.uint8)
    fixed.flags.writeable = False
    with driver.create_stream() as stream, driver.allocate(64) as buffer:
        with pytest.raises(ValueError, match="C-contiguous"):
            driver.copy_to_device(buffer.pointer, np.zeros((4, 4), np.uint8).T[1:], stream)
        with pytest.raises(ValueError, match="C-contiguous"):
            driver.copy_to_host(np.zeros(8, np.uint8)[::2], buffer.pointer, stream)
        with pytest.raises(ValueError, match="writable"):
            driver.copy_to_host(fixed, buffer.pointer, stream)
        with pytest.raises(DeviceError, match=r"GPU 0 \(Stub GPU 0\): cuMemcpyHtoDAsync failed with CUDA_ERROR_INVALID_VALUE\.$"):
            driver.copy_to_device(buffer.pointer, np.zeros(65, np.uint8), stream)
    for make in (driver.allocate, driver.allocate_pinned):
        with pytest.raises(ValueError, match="at least one byte is wanted, not 0"):
            make(0)


def a_stream_waits_for_an_event_of_another() -> None:
    driver = open_driver()
    got, early = np.zeros(100, np.uint8), np.zeros(100, np.uint8)
    with (
        driver.create_stream() as first,
        driver.create_stream() as second,
        driver.create_event() as ready,
        driver.allocate(100) as buffer,
    ):
        driver.copy_to_device(buffer.pointer, pattern(100), first)
        driver.copy_to_host(early, buffer.pointer, second)
        second.synchronize()
        assert set(early) == {STALE}  # streams do not wait for each other by themselves
        ready.record(first)
        second.wait(ready)
        driver.copy_to_host(got, buffer.pointer, second)
        second.synchronize()
    np.testing.assert_array_equal(got, pattern(100))


def an_event_is_a_mark() -> None:
    driver = open_driver()
    before, after = np.zeros(100, np.uint8), np.zeros(100, np.uint8)
    with driver.create_stream() as stream, driver.create_event() as mark, driver.allocate(100) as buffer:
        driver.copy_to_host(before, buffer.pointer, stream)
        mark.record(stream)
        driver.copy_to_host(after, buffer.pointer, stream)
        mark.synchronize()
        assert set(before) == {STALE}
        assert not after.any()
        stream.synchronize()


def time_passes_between_events() -> None:
    driver = open_driver()
    pause = HostFunction(lambda _: time.sleep(0.03))
    with (
        driver.create_stream() as stream,
        driver.create_event(timing=True) as start,
        driver.create_event(timing=True) as end,
        driver.create_event() as plain,
    ):
        for event in (start, plain):
            event.record(stream)
        with driver.active():
            assert queue_call(pause, stream.handle) == 0
        end.record(stream)
        with pytest.raises(DeviceError, match="cuEventElapsedTime failed with CUDA_ERROR_NOT_READY"):
            end.milliseconds_since(start)
        end.synchronize()
        assert 29 <= end.milliseconds_since(start) < 3000
        with pytest.raises(DeviceError, match="CUDA_ERROR_INVALID_HANDLE"):
            end.milliseconds_since(plain)


def streams_do_not_wait_for_the_default_stream() -> None:
    driver = open_driver()
    done: list[str] = []
    note = HostFunction(lambda _: done.append("default stream"))
    with driver.active(), driver.create_stream() as stream, driver.borrow_stream(0) as default:
        assert queue_call(note, default.handle) == 0
        stream.synchronize()
        assert done == []
        default.synchronize()
        assert done == ["default stream"]


def a_graph_replays_with_new_contents() -> None:
    driver = open_driver()
    with (
        driver.create_stream() as stream,
        driver.allocate(100) as buffer,
        driver.allocate_pinned(100) as source,
        driver.allocate_pinned(100) as target,
    ):

        def work() -> None:
            driver.copy_to_device(buffer.pointer, source.array, stream)
            driver.copy_to_host(target.array, buffer.pointer, stream)

        target.array[:] = 0
        with driver.capture(stream, work) as graph:
            stream.synchronize()
            assert not target.array.any()  # recorded, not run
            for seed in (1, 2):
                source.array[:] = pattern(100, seed)
                graph.launch(stream)
                assert not np.array_equal(target.array, pattern(100, seed))
                stream.synchronize()
                np.testing.assert_array_equal(target.array, pattern(100, seed))
            assert live()["graphs"] == 0
        with pytest.raises(DeviceError, match=r"^The graph is closed\.$"):
            graph.launch(stream)


def a_capture_that_raises_is_ended() -> None:
    driver = open_driver()
    got = np.zeros(100, np.uint8)
    with driver.create_stream() as stream, driver.allocate(100) as buffer:
        for kind in (ZeroDivisionError, KeyboardInterrupt):

            def work(kind: type[BaseException] = kind) -> None:
                driver.copy_to_host(got, buffer.pointer, stream)
                raise kind

            with pytest.raises(kind):
                driver.capture(stream, work)
            assert live()["graphs"] == 0
        driver.copy_to_host(got, buffer.pointer, stream)
        stream.synchronize()
        assert set(got) == {STALE}


def a_spoilt_capture_is_told() -> None:
    driver = open_driver()

    with driver.create_stream() as stream:

        def work() -> None:
            with pytest.raises(DeviceError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
                stream.synchronize()

        with pytest.raises(DeviceError, match="cuStreamEndCapture failed with CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
            driver.capture(stream, work)
        stream.synchronize()
        with driver.capture(stream, lambda: None) as graph:
            graph.launch(stream)
            stream.synchronize()


def memory_comes_and_goes_during_a_capture() -> None:
    driver = open_driver()

    def allocate() -> None:
        driver.allocate(10).close()
        driver.allocate_pinned(10).close()

    def work() -> None:
        allocate()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(allocate).result()

    with driver.create_stream() as stream, driver.capture(stream, work):
        pass
