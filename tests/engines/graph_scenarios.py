"""CUDA graphs of engines; test_session.py runs each in another process, for they count the driver's calls."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from tests.engines.session_scenarios import assert_clean, assert_doubled, double_plan, open_engine
from tests.helpers import fake_tensorrt as trt
from tests.helpers.stub_cuda import calls, live
from yolact_deploy.engines.cuda import Driver, open_driver
from yolact_deploy.engines.session import Context, Session
from yolact_deploy.errors import DeviceError


def graphs_begin_with_the_second_run_and_take_new_contents() -> None:
    with Context(open_engine()) as context:
        for seed in range(5):
            assert_doubled(context.run, 2, seed)
            assert calls("cuGraphLaunch") == seed
            assert calls("cuStreamBeginCapture_v2") == min(seed, 1)
            assert live()["executable graphs"] == min(seed, 1)
    assert_clean()


def a_graph_ends_with_its_batch() -> None:
    with Context(open_engine()) as context:
        launched = 0
        for seed, (count, replayed) in enumerate([(2, 0), (2, 1), (2, 1), (3, 0), (3, 1), (2, 0), (2, 1), (4, 0), (4, 1)]):
            assert_doubled(context.run, count, seed)
            launched += replayed
            assert calls("cuGraphLaunch") == launched
            assert live()["executable graphs"] == replayed
        assert calls("cuStreamBeginCapture_v2") == 4
    assert_clean()


def what_says_that_it_cannot_be_captured_is_not() -> None:
    """TensorRT-RTX tells, by a method that the others do not have."""
    for answer in (False, True):
        with Context(open_engine()) as context:
            asked: list[int] = []
            context.handle.is_stream_capturable = lambda stream, asked=asked, answer=answer: asked.append(stream) or answer
            before = calls("cuGraphLaunch")
            for seed in range(4):
                assert_doubled(context.run, 2, seed)
            assert calls("cuGraphLaunch") - before == (3 if answer else 0)
            assert asked == [context._own.handle]
    assert_clean()


def sizes_that_alternate_are_never_captured() -> None:
    with Context(open_engine()) as context:
        for seed in range(6):
            assert_doubled(context.run, 1 + seed % 2, seed)
    assert calls("cuStreamBeginCapture_v2") == calls("cuGraphLaunch") == 0


def without_graphs_nothing_is_captured() -> None:
    session = Session(open_engine(), graphs=False)
    for seed in range(4):
        assert_doubled(session.run, 2, seed)
    assert calls("cuStreamBeginCapture_v2") == 0
    session.close()
    assert_clean()


def capture_fails(*, spoil: bool) -> None:
    """The engine refuses to be recorded, or (`spoil`) has a layer that waits for the GPU, which the driver refuses."""
    began = calls("cuStreamBeginCapture_v2")
    with Context(open_engine()) as context:
        execute, own = context.handle.execute_async_v3, context._own

        def picky(handle: int) -> bool:
            if calls("cuStreamEndCapture") < calls("cuStreamBeginCapture_v2"):
                if not spoil:
                    return False
                with pytest.raises(DeviceError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
                    own.synchronize()
            return bool(execute(handle))

        context.handle.execute_async_v3 = picky
        for seed in range(4):
            assert_doubled(context.run, 2, seed)
        assert calls("cuStreamBeginCapture_v2") == began + 1
        for seed in range(2):
            assert_doubled(context.run, 3, seed)
        assert calls("cuStreamBeginCapture_v2") == began + 1


def what_cannot_be_captured_runs_as_before() -> None:
    for spoil in (False, True):
        capture_fails(spoil=spoil)
        gc.collect()
        assert_clean()
    assert calls("cuGraphLaunch") == 0


def the_first_run_is_over_before_the_second_is_captured() -> None:
    driver, ran, seen = open_driver(), [], []
    plan = double_plan()
    trt.register("double", lambda inputs: ran.append(1) or {"y": inputs["x"] * 2})
    capture: Callable[..., Any] = type(driver).capture

    def watched(self: Driver, *arguments: Any) -> Any:
        seen.append(len(ran))
        return capture(self, *arguments)

    with driver.create_stream() as mine, mock.patch.object(type(driver), "capture", watched):
        for stream in (None, mine.handle):
            ran.clear()
            with Context(open_engine(plan, driver), stream=stream) as context:
                for _ in range(3):
                    context.enqueue(2)
                assert seen.pop() == 1
                context.stream.synchronize()
                assert len(ran) == 3
    assert seen == []


def graphs_run_on_the_default_stream_too() -> None:
    """Which cannot be captured itself."""
    with Context(open_engine(), stream=0) as context:
        for seed in range(4):
            assert_doubled(context.run, 2, seed)
    assert calls("cuGraphLaunch") == 3
    assert_clean()
