"""Modules, kernels, copies within the GPU and clearing on a stand-in for NVIDIA's driver library; the tests run each in another process."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.cuda.scenarios import STALE, pattern
from tests.helpers.stub_cuda import calls, fail, launches, library, live
from yolact_deploy.engines.cuda import Driver, open_driver
from yolact_deploy.engines.cuda.driver import Kernel
from yolact_deploy.errors import DeviceError

IMAGE = b"STUB 89 add:16 nothing:8 fill:24"


class Foreign(Kernel):
    """Of another implementation."""

    name = "foreign"


class Add(ctypes.Structure):
    """What the kernel `add` of :data:`KERNELS` takes."""

    _fields_ = [("values", ctypes.c_void_p), ("count", ctypes.c_int), ("amount", ctypes.c_int)]


KERNELS = r"""
#include <string.h>
struct Add { int *values; int count, amount; };
const char *shim_launch(const char *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned threads, unsigned shared, int order,
                        unsigned seed, const void *argument) {
    const struct Add *add = argument;
    if (strcmp(kernel, "add")) return "the kernel failed";
    if (order != 2 || seed != 7 || gx * gy * gz * threads < (unsigned)add->count || shared > 99 << 10) return "wrong launch";
    for (int i = 0; i < add->count; i++) add->values[i] += add->amount;
    return 0;
}
"""


def read(driver: Driver, pointer: int, count: int, stream: Any) -> list[int]:
    got = np.zeros(count, np.int32)
    driver.copy_to_host(got, pointer, stream)
    stream.synchronize()
    return [int(value) for value in got]


def copies_and_clearing_run_in_the_streams_order() -> None:
    driver = open_driver()
    sent, got = pattern(100), np.ones(100, np.uint8)
    with driver.create_stream() as stream, driver.allocate(100) as first, driver.allocate(100) as second:
        driver.copy_to_device(first.pointer, sent, stream)
        driver.copy(second.pointer + 10, first.pointer, 50, stream)
        driver.clear(second.pointer + 20, 30, stream)
        driver.copy_to_host(got, second.pointer, stream)
        assert set(got) == {1}
        stream.synchronize()
        with pytest.raises(DeviceError, match="cuMemcpyDtoDAsync failed with CUDA_ERROR_INVALID_VALUE"):
            driver.copy(second.pointer, first.pointer, 101, stream)
        with pytest.raises(DeviceError, match="cuMemsetD8Async failed with CUDA_ERROR_INVALID_VALUE"):
            driver.clear(second.pointer + 1, 100, stream)
    wanted = np.full(100, STALE, np.uint8)
    wanted[10:60] = sent[:50]
    wanted[20:50] = 0
    np.testing.assert_array_equal(got, wanted)


def a_launch_is_noted_when_the_stream_gets_there() -> None:
    driver = open_driver()
    before, attributes = len(launches()), calls("cuFuncSetAttribute")
    with driver.load_module(IMAGE) as module, driver.create_stream() as stream:
        add, nothing = module.kernel("add"), module.kernel("nothing")
        assert (add.name, nothing.name) == ("add", "nothing")
        driver.launch(add, (3, 2, 1), 64, bytes(16), stream)
        driver.launch(nothing, (1, 1, 4), 1024, bytes(8), stream, shared=96 << 10)
        driver.launch(nothing, (1, 1, 1), 32, bytes(8), stream, shared=64 << 10)
        assert len(launches()) == before
        stream.synchronize()
        driver.launch(add, (1, 1, 1), 1, bytes(16), stream)
        assert launches()[before:] == [
            ("add", (3, 2, 1), 64, 0),
            ("nothing", (1, 1, 4), 1024, 96 << 10),
            ("nothing", (1, 1, 1), 32, 64 << 10),
        ]
    assert calls("cuFuncSetAttribute") == attributes + 1  # only where more is wanted than before


def a_kernel_computes() -> None:
    driver = open_driver()
    with (
        driver.load_module(IMAGE) as module,
        driver.create_stream() as stream,
        driver.allocate(40) as buffer,
        driver.allocate_pinned(40) as pinned,
    ):
        add = module.kernel("add")
        pinned.array[:] = 0
        driver.clear(buffer.pointer, 40, stream)
        for address in (buffer.pointer, pinned.array.ctypes.data):  # page-locked memory has one address for host and GPU
            argument = Add(address, 10, 5)
            driver.launch(add, (1, 1, 1), 32, bytes(argument), stream)
            argument.amount = 9  # no matter: it was read
        assert read(driver, buffer.pointer, 10, stream) == [5] * 10
        assert pinned.array.view(np.int32).tolist() == [5] * 10

        def work() -> None:
            driver.launch(add, (1, 1, 1), 32, bytes(Add(buffer.pointer, 10, 1)), stream, shared=50 << 10)
            driver.launch(add, (1, 1, 1), 32, bytes(Add(buffer.pointer, 5, 10)), stream)

        with driver.capture(stream, work) as graph:
            assert read(driver, buffer.pointer, 10, stream) == [5] * 10
            for _ in range(3):
                graph.launch(stream)
            assert read(driver, buffer.pointer, 10, stream) == [38] * 5 + [8] * 5


def a_kernel_that_fails_loses_the_gpu() -> None:
    driver = open_driver()
    with driver.load_module(IMAGE) as module, driver.create_stream() as stream:
        driver.launch(module.kernel("fill"), (1, 1, 1), 32, bytes(24), stream)
        with pytest.raises(DeviceError, match=r"cuStreamSynchronize failed with CUDA_ERROR_LAUNCH_FAILED\. The GPU's state is lost"):
            stream.synchronize()
        with pytest.raises(DeviceError, match="start the program again"):
            driver.launch(module.kernel("fill"), (1, 1, 1), 32, bytes(24), stream)
        with driver.active():
            fail(0)


def what_does_not_load_is_told() -> None:
    driver = open_driver()
    where = "GPU 0 (Stub GPU 0): "
    for image, message in (
        (b"STUB 90 add:16", "it was compiled for another GPU architecture (cuModuleLoadData: CUDA_ERROR_NO_BINARY_FOR_GPU)."),
        (b"no compiled code", "it is damaged or no compiled code (cuModuleLoadData: CUDA_ERROR_INVALID_IMAGE)."),
    ):
        with pytest.raises(DeviceError) as told:
            driver.load_module(image)
        assert told.value.message == f"{where}the compiled code does not load, {message}"
        assert told.value.mend == "Compile it for sm_89."
    with pytest.raises(ValueError, match="no bytes were given"):
        driver.load_module(b"")
    driver.load_module(b"STUB 80 add:16").close()
    with driver.load_module(IMAGE) as module, pytest.raises(DeviceError) as told:
        module.kernel("ad")
    assert told.value.message == f"{where}the loaded module has no kernel 'ad'."


def what_does_not_launch_is_told() -> None:
    driver, other, before = open_driver(), open_driver(), len(launches())
    with driver.load_module(IMAGE) as module, driver.create_stream() as stream:
        add = module.kernel("add")
        with pytest.raises(ValueError, match="kernel add takes 16 bytes, 15 were given"):
            driver.launch(add, (1, 1, 1), 32, bytes(15), stream)
        with pytest.raises(TypeError, match="add is no kernel of a module that this driver loaded"):
            other.launch(add, (1, 1, 1), 32, bytes(16), stream)
        with pytest.raises(TypeError, match="foreign is no kernel of a module that this driver loaded"):
            driver.launch(Foreign(), (1, 1, 1), 32, bytes(16), stream)
        with pytest.raises(DeviceError) as told:
            driver.launch(add, (1, 2, 3), 2000, bytes(16), stream, shared=100)
        assert told.value.message == (
            "GPU 0 (Stub GPU 0): kernel add was not launched with 1 x 2 x 3 blocks of 2000 threads and 100 bytes of shared memory: "
            "CUDA_ERROR_INVALID_VALUE."
        )
        with pytest.raises(
            DeviceError, match=r"kernel add wants 102400 bytes of shared memory for each block: CUDA_ERROR_INVALID_VALUE\.$"
        ):
            driver.launch(add, (1, 1, 1), 32, bytes(16), stream, shared=100 << 10)
        stream.close()
        with pytest.raises(DeviceError, match=r"^The stream is closed\.$"):
            driver.launch(add, (1, 1, 1), 32, bytes(16), stream)
    assert len(launches()) == before


def a_module_lives_as_long_as_its_kernels() -> None:
    driver = open_driver()
    with driver.create_stream() as stream:
        add = driver.load_module(IMAGE).kernel("add")
        gc.collect()
        assert live()["modules"] == 1
        driver.launch(add, (1, 1, 1), 32, bytes(16), stream)
        del add
        gc.collect()
        assert live()["modules"] == 0
        stream.synchronize()
        module = driver.load_module(IMAGE)
        add = module.kernel("add")
        for _ in range(2):
            module.close()
            assert live()["modules"] == 0
        for use in (lambda: module.kernel("add"), lambda: driver.launch(add, (1, 1, 1), 32, bytes(16), stream)):
            with pytest.raises(DeviceError, match=r"^The module is closed\.$"):
                use()


def compiled_code_is_read(path: str) -> None:
    """A cubin from NVRTC: its kernels, and the size of what they take."""
    driver = open_driver()
    with driver.load_module(Path(path).read_bytes()) as module, driver.create_stream() as stream:
        kernel = module.kernel("add")
        driver.launch(kernel, (1, 1, 1), 32, bytes(16), stream)
        with pytest.raises(ValueError, match="kernel add takes 16 bytes, 24 were given"):
            driver.launch(kernel, (1, 1, 1), 32, bytes(24), stream)
        with pytest.raises(DeviceError, match="has no kernel 'sub'"):
            module.kernel("sub")
        stream.synchronize()


def a_launch_costs_little(most: float) -> None:
    """Microseconds of the host, less what the stand-in itself takes."""
    driver = open_driver()
    with driver.load_module(IMAGE) as module, driver.create_stream() as stream, driver.active():
        kernel, argument, times = module.kernel("nothing"), bytes(8), []
        for _ in range(300):
            start = time.perf_counter()
            driver.launch(kernel, (1, 1, 1), 32, argument, stream)
            times.append(time.perf_counter() - start)
        stream.synchronize()
    library().stub_cuda_forget()
    assert statistics.median(times) * 1e6 < most, statistics.median(times) * 1e6
