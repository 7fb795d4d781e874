"""Sessions called from several threads; test_session.py runs each in another process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.engines.session_scenarios import assert_clean, assert_doubled, double_plan, open_engine, rows
from tests.helpers import fake_tensorrt as trt
from tests.helpers.stub_cuda import NOTHING, live
from yolact_deploy.engines.cuda import open_driver
from yolact_deploy.engines.session import Context, Session
from yolact_deploy.errors import ConfigError, DeviceError

LONG = 30  # seconds: a hang is told, not waited for


def started(action: Callable[[], Any]) -> Future[Any]:
    """What `action` gives, on a thread that does not keep the process alive."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # noqa: BLE001 - told by the future
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def contexts_are_used_by_one_thread_each() -> None:
    for contexts in (1, 2, 4):
        session = Session(open_engine(), contexts=contexts)

        def use(seed: int, session: Session = session) -> None:
            for step in range(6):
                assert_doubled(session.run, 1 + (seed + step // 3) % 4, 10 * seed + step)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(use, range(6)))
        assert 1 <= live()["streams"] <= contexts
        session.close()
        assert_clean()


def contexts_are_made_when_they_are_needed() -> None:
    session = Session(open_engine(), contexts=3)
    assert live() == NOTHING
    for seed in range(3):
        assert_doubled(session.run, 2, seed)
        assert live()["streams"] == 1
    with session.context() as first:
        with session.context() as second:
            assert first is not second
            assert live()["streams"] == 2
        with session.context() as third:
            assert third is second
    session.close()
    session.close()
    assert live() == NOTHING


def a_thread_beyond_the_contexts_waits() -> None:
    session = Session(open_engine(), contexts=2)
    with session.context() as mine:
        with session.context():
            waiting = started(lambda: session.run(rows(2)))
            time.sleep(0.1)
            assert not waiting.done()
        np.testing.assert_array_equal(waiting.result(LONG)["y"], rows(2)["x"] * 2)
        assert_doubled(mine.run, 3)
    session.close()
    assert_clean()


def a_block_that_raises_gives_its_context_back() -> None:
    session = Session(open_engine())
    with pytest.raises(ZeroDivisionError), session.context() as first:
        raise ZeroDivisionError
    with session.context() as second:
        assert first is second
    with pytest.raises(ConfigError, match="A batch of 9 was given"):
        session.run(rows(9))
    assert_doubled(session.run, 2)
    session.close()


def closing_waits_for_the_running_and_refuses_the_waiting() -> None:
    for contexts in (1, 2):
        session = Session(open_engine(), contexts=contexts)
        blocks = [session.context() for _ in range(contexts)]
        held = [block.__enter__() for block in blocks]
        waiting = [started(lambda session=session: session.run(rows(2))) for _ in range(3)]
        time.sleep(0.05)
        closing = [started(session.close) for _ in range(2)]
        time.sleep(0.05)
        assert not any(one.done() for one in (*waiting, *closing))
        for context in held:
            assert isinstance(context, Context)
            assert_doubled(context.run, 2)  # who has a context may finish
        for block in blocks:
            block.__exit__(None, None, None)
        for one in closing:
            one.result(LONG)
        for one in waiting:
            with pytest.raises(DeviceError, match=r"The engine a\.engine is closed\. Load it again\."):
                one.result(LONG)
        assert_clean()


def after_closing_every_call_raises() -> None:
    session = Session(open_engine(), contexts=2)
    assert_doubled(session.run, 2)
    session.close()
    assert session.engine.handle is None
    for _ in range(5):
        with pytest.raises(DeviceError, match=r"The engine a\.engine is closed"):
            session.run(rows(2))
        with pytest.raises(DeviceError, match="is closed"), session.context():
            pass
    session.close()
    assert_clean()
    unused = Session(open_engine())
    unused.close()
    with pytest.raises(DeviceError, match="is closed"):
        unused.run(rows(1))


def closing_after_the_gpu_was_lost_wakes_who_waits() -> None:
    from tests.helpers.stub_cuda import fail, library

    plan = double_plan()
    trt.register("double", lambda inputs: {})  # lacks its output: the run fails on the GPU
    session = Session(open_engine(plan), contexts=1)
    block = session.context()
    context = block.__enter__()
    waiting = started(lambda: session.run(rows(2)))
    with pytest.raises(DeviceError, match="CUDA_ERROR_LAUNCH_FAILED"):
        context.run(rows(2))
    closing = started(session.close)
    time.sleep(0.05)
    block.__exit__(None, None, None)
    closing.result(LONG)
    with pytest.raises(DeviceError):
        waiting.result(LONG)
    with pytest.raises(DeviceError, match="is closed"):
        session.run(rows(1))
    trt.misuse.clear()
    with open_driver().active():
        fail(0)
    library().stub_cuda_forget()


def how_many_contexts_there_may_be() -> None:
    driver = open_driver()
    engine = open_engine(driver=driver)
    with driver.create_stream() as mine:
        for contexts, stream in ((0, None), (-1, None), (2, mine.handle)):
            with pytest.raises(ConfigError, match=f"^{contexts} contexts were asked for"):
                Session(engine, contexts=contexts, stream=stream)
        session = Session(engine, contexts=1, stream=mine.handle)
        with session.context() as context:
            assert context.stream.handle == mine.handle
        assert_doubled(session.run, 2)
        session.close()
        assert_clean("streams")
