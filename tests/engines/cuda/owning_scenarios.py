"""Memory, ends, threads, several GPUs and failures on a stand-in for NVIDIA's driver library; test_cuda_core.py runs each elsewhere."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.engines.cuda.scenarios import STALE, pattern, round_trip
from tests.helpers.stub_cuda import calls, fail, library, live
from yolact_deploy.engines.cuda import open_driver
from yolact_deploy.engines.cuda.arrays import device_array
from yolact_deploy.errors import ConfigError, DeviceError


def too_much_memory_is_refused_with_numbers() -> None:
    driver = open_driver()
    with driver.allocate(1000) as kept:
        with pytest.raises(DeviceError) as told:
            driver.allocate(1 << 20)
        assert driver.free_memory() == (1 << 20) - 1000
    assert kept.size == 0
    assert str(told.value) == (
        "GPU 0 (Stub GPU 0): 1048576 bytes of GPU memory were asked for: CUDA_ERROR_OUT_OF_MEMORY, 1047576 of its 1048576 bytes are free. "
        "Close other programs, or use a smaller batch."
    )
    with driver.allocate(1 << 20):
        assert driver.free_memory() == 0
    with pytest.raises(DeviceError) as told:
        driver.allocate_pinned(2 << 20)
    assert told.value.message == "GPU 0 (Stub GPU 0): 2097152 bytes of page-locked host memory were asked for: CUDA_ERROR_OUT_OF_MEMORY."


def closing_twice_is_closing_once() -> None:
    driver = open_driver()
    stream = driver.create_stream()
    kept = (
        driver.capture(stream, lambda: None),
        driver.create_event(),
        driver.allocate(5),
        driver.allocate_pinned(5),
        driver.borrow_stream(stream.handle),
        stream,
    )
    freed = ("cuMemFree_v2", "cuMemFreeHost", "cuGraphExecDestroy", "cuStreamDestroy_v2", "cuEventDestroy_v2")
    before = [calls(name) for name in freed]
    for _ in range(2):
        for one in kept:
            one.close()
        assert not any(live().values()), live()
    assert [calls(name) - count for name, count in zip(freed, before)] == [1] * 5


def what_is_closed_is_not_used() -> None:
    driver = open_driver()
    stream, event, buffer, pinned = driver.create_stream(), driver.create_event(), driver.allocate(5), driver.allocate_pinned(5)
    address = buffer.pointer
    with driver.create_stream() as other:
        for one in (stream, event, buffer, pinned):
            one.close()
        assert (buffer.pointer, pinned.array.size, stream.handle) == (0, 0, 0)
        for use in (stream.synchronize, lambda: event.record(stream), lambda: stream.wait(event)):
            with pytest.raises(DeviceError, match=r"^The (stream|event) is closed\.$"):
                use()
        with pytest.raises(DeviceError, match=r"^The event is closed\.$"):
            other.wait(event)
        for use in (lambda: driver.capture(stream, lambda: None), lambda: driver.copy_to_host(np.zeros(1), 1, stream)):
            with pytest.raises(DeviceError, match=r"^The stream is closed\.$"):
                use()
        for pointer in (buffer.pointer, address):
            with pytest.raises(DeviceError, match="cuMemcpyDtoHAsync failed with CUDA_ERROR_INVALID_VALUE"):
                driver.copy_to_host(np.zeros(5, np.uint8), pointer, other)


def what_is_dropped_is_given_back() -> None:
    driver = open_driver()
    stream, view = driver.create_stream(), driver.allocate_pinned(10).array[2:]
    ring: list[Any] = [driver.allocate(5), driver.create_event(), driver.capture(stream, lambda: None), stream]
    ring.append(ring)
    view[:] = 7  # a view keeps the memory
    assert [live()[kind] for kind in ("device memory", "pinned memory", "streams", "events", "executable graphs")] == [1] * 5

    def collect() -> None:  # on a thread that never saw the GPU
        nonlocal ring, stream, view
        del ring, stream, view
        gc.collect()

    thread = threading.Thread(target=collect)
    thread.start()
    thread.join()
    assert not any(live().values()), live()


def any_thread_may_call() -> None:
    driver = open_driver()
    with ThreadPoolExecutor(4) as pool:
        for seed, got in enumerate(pool.map(lambda seed: round_trip(driver, pattern(seed=seed)), range(40))):
            np.testing.assert_array_equal(got, pattern(seed=seed))

    def everything(stream: Any, event: Any, graph: Any) -> int:
        event.record(stream)
        stream.wait(event)
        graph.launch(stream)
        stream.synchronize()
        event.synchronize()
        assert event.milliseconds_since(event) == 0
        driver.create_stream().close()
        driver.create_event().close()
        driver.allocate_pinned(1).close()
        driver.borrow_stream(stream.handle).close()
        driver.capture(stream, lambda: None).close()
        return driver.free_memory()

    with driver.create_stream() as stream, driver.create_event(timing=True) as event, driver.capture(stream, lambda: None) as graph:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(everything(stream, event, graph)))
        thread.start()
        thread.join()
        assert found == [4 << 30]


def a_foreign_stream_stays_the_callers() -> None:
    driver = open_driver()

    class Foreign:
        def __init__(self, handle: int) -> None:
            self.handle = handle

        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, self.handle

    with driver.create_stream() as owner, driver.allocate(100) as buffer:

        class Older:  # torch's before 2.10, CuPy's
            def __init__(self, **handle: int) -> None:
                vars(self).update(handle)

        older = Older(cuda_stream=owner.handle), Older(ptr=owner.handle)
        for foreign in (owner.handle, Foreign(owner.handle), *older):
            got = np.zeros(100, np.uint8)
            with driver.borrow_stream(foreign) as stream:
                assert stream.handle == owner.handle
                driver.copy_to_host(got, buffer.pointer, stream)
                stream.synchronize()
                assert set(got) == {STALE}
            with pytest.raises(DeviceError, match="closed"):
                stream.synchronize()
            assert live()["streams"] == 1
        for given in (Foreign(owner.handle), Older(cuda_stream=owner.handle)):
            watch, stream = weakref.ref(given), driver.borrow_stream(given)
            del given
            assert watch() is not None  # kept as long as it is borrowed
            stream.close()
        assert watch() is None
        owner.synchronize()
    with driver.borrow_stream(0) as default:
        assert default.handle == 1
        default.synchronize()
    with pytest.raises(TypeError, match="a stream is a CUstream as an integer or has __cuda_stream__; str is neither"):
        driver.borrow_stream("stream")


def current() -> int | None:
    """Number of the calling thread's current GPU."""
    from cuda.bindings import driver as cuda

    code, device = cuda.cuCtxGetDevice()
    return None if code else int(device)


def the_callers_gpu_stays_current() -> None:
    from cuda.core import Device

    driver, other = open_driver(0), open_driver(1)
    assert current() is None
    round_trip(driver, pattern())
    assert current() is None
    with driver.active():
        assert current() == 0
        with other.active(), driver.active(), other.active():
            assert current() == 1
        assert current() == 0
        Device(1).set_current()
        with driver.allocate(100):
            assert current() == 1
            assert (driver.free_memory(), other.free_memory()) == ((4 << 30) - 100, 4 << 30)
            round_trip(driver, pattern())
        assert current() == 1
    with pytest.raises(ZeroDivisionError), driver.active():
        raise ZeroDivisionError
    assert current() is None


def a_stream_of_another_gpu_is_refused() -> None:
    driver, other = open_driver(0), open_driver(1)
    with other.create_stream() as stream:
        with pytest.raises(DeviceError, match=r"^The given stream is not one of GPU 0 \(Stub GPU 0\)\. Give a stream of the GPU that"):
            driver.borrow_stream(stream.handle)
        stream.synchronize()


def arrays_of_another_gpu_are_refused() -> None:
    """By the driver, where the array does not say which GPU it is on."""
    driver, other = open_driver(0), open_driver(1)
    with driver.allocate(64) as own, other.allocate(64) as foreign, driver.create_stream() as stream:
        assert (driver.device_of(own.pointer + 63), driver.device_of(foreign.pointer), driver.device_of(own.pointer - 1)) == (0, 1, None)

        def array(pointer: int) -> object:
            interface = {"shape": (4,), "typestr": "<f4", "data": (pointer, False), "version": 3}
            return SimpleNamespace(__cuda_array_interface__=interface)

        assert device_array(array(own.pointer), device=0, stream=stream).pointer == own.pointer
        with pytest.raises(ConfigError, match=r"is on GPU 1, one on GPU 0 was wanted\. Copy it to GPU 0"):
            device_array(array(foreign.pointer), device=0, stream=stream)
        with pytest.raises(ConfigError, match=r"does not lie in a GPU's memory"):
            device_array(array(id(own)), device=0, stream=stream)


def a_lost_gpu_is_told_and_closing_goes_on() -> None:
    driver = open_driver()
    with driver.create_stream() as stream, driver.allocate(10), driver.allocate_pinned(10):
        with driver.active():
            fail(700)
        with pytest.raises(DeviceError) as told:
            stream.synchronize()
        with pytest.raises(DeviceError, match="10 bytes of GPU memory were asked for: CUDA_ERROR_ILLEGAL_ADDRESS"):
            driver.allocate(10)
    with driver.active():
        fail(0)
    assert str(told.value) == (
        "GPU 0 (Stub GPU 0): cuStreamSynchronize failed with CUDA_ERROR_ILLEGAL_ADDRESS. "
        "The GPU's state is lost for this process: start the program again."
    )
    assert live()["device memory"] == live()["pinned memory"] == 1  # nothing can be given back
    library().stub_cuda_forget()


def opening_fails(index: int, message: str, mend: str) -> None:
    with pytest.raises(DeviceError) as told:
        open_driver(index)
    assert told.value.message.startswith(message)
    assert told.value.mend == mend


def the_stand_in_tells_misuse() -> None:
    from cuda.bindings import driver as cuda

    driver = open_driver()
    buffer = driver.allocate(10)
    with driver.active(), driver.create_stream() as stream:
        address, got = buffer.pointer, np.zeros(10, np.uint8)
        graph = driver.capture(stream, lambda: driver.copy_to_host(got, address, stream))
        buffer.close()
        assert cuda.cuMemFree(address)[0].name == "CUDA_ERROR_INVALID_VALUE"
        graph.launch(stream)
        with pytest.raises(DeviceError, match="cuStreamSynchronize failed with CUDA_ERROR_ILLEGAL_ADDRESS"):
            stream.synchronize()
        fail(0)
        graph.close()
