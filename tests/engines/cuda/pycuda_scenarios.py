"""The scenarios of cuda-core's driver with PyCUDA's, and those of PyCUDA programs; test_pycuda_driver.py runs each in another process.

With PyCUDA itself where it is installed, otherwise with the stand-in for it.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.helpers import fake_pycuda
from tests.helpers.stub_cuda import live
from yolact_deploy.engines.cuda import Driver, open_driver
from yolact_deploy.engines.cuda.arrays import device_array
from yolact_deploy.engines.cuda.pycuda_driver import PyCudaDriver
from yolact_deploy.errors import DeviceError

SHARED = ("scenarios", "owning_scenarios", "module_scenarios", "post_processing_scenarios")
NOT_INSTALLED: Any = None
_KEPT: list[Any] = []  # contexts, which PyCUDA cannot end on the stand-in


def pycuda() -> Any:
    """``pycuda.driver``, ready for use."""
    if hasattr(os, "RTLD_LAZY"):
        sys.setdlopenflags(os.RTLD_LAZY)  # the stand-in for the driver has only some of the functions that PyCUDA names
    try:
        driver = importlib.import_module("pycuda.driver")
    except ModuleNotFoundError:
        fake_pycuda.install()
        driver = fake_pycuda
    driver.init()
    return driver


def open_pycuda(index: int = 0) -> Driver:
    pycuda()
    driver = open_driver(index, "pycuda")
    assert isinstance(driver, PyCudaDriver)
    return driver


def __getattr__(name: str) -> Callable[..., None]:
    """A scenario of the shared modules, with PyCUDA's driver."""
    for module in (importlib.import_module(f"tests.engines.cuda.{shared}") for shared in SHARED):
        if hasattr(module, name):
            vars(module)["open_driver"] = open_pycuda
            scenario: Callable[..., None] = getattr(module, name)
            return scenario
    raise AttributeError(name)


class GpuArray:
    """As PyCUDA's GPUArray describes itself."""

    def __init__(self, pointer: int, shape: tuple[int, ...]) -> None:
        strides = tuple(4 * int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        self.__cuda_array_interface__ = {
            "shape": shape,
            "strides": strides,
            "data": (pointer, False),
            "typestr": "<f4",
            "stream": None,
            "version": 3,
        }


def within_a_program_its_context_and_streams_are_used() -> None:
    cuda = pycuda()
    context = cuda.Device(0).retain_primary_context()
    _KEPT.append(context)
    context.push()
    stream = cuda.Stream()
    driver = open_driver(0, "pycuda")
    assert isinstance(driver, PyCudaDriver)
    assert driver.context == context.handle
    assert driver._program is not None
    sent, got = np.arange(6, dtype=np.float32), np.zeros(6, np.float32)
    with driver.allocate(24) as buffer, driver.borrow_stream(stream) as borrowed:
        assert borrowed.handle == stream.handle
        array = device_array(GpuArray(buffer.pointer, (2, 3)), device=0, stream=borrowed)
        assert (array.pointer, array.shape) == (buffer.pointer, (2, 3))
        driver.copy_to_device(array.pointer, sent, borrowed)
        driver.copy_to_host(got, array.pointer, borrowed)
        assert not got.any()
        stream.synchronize()
        assert got.tolist() == sent.tolist()
    assert cuda.Context.get_current().handle == context.handle
    stream.synchronize()
    assert live()["streams"] == 1
    del stream, borrowed
    gc.collect()
    cuda.Context.pop()


def without_a_program_the_primary_context_is_used() -> None:
    cuda = pycuda()
    driver = open_driver(0, "pycuda")
    assert isinstance(driver, PyCudaDriver)
    context = cuda.Device(0).retain_primary_context()
    _KEPT.append(context)
    assert driver._program is None
    assert driver.context == context.handle
    assert cuda.Context.get_current() is None


def a_program_on_another_gpu_is_left_alone() -> None:
    cuda = pycuda()
    context = cuda.Device(1).retain_primary_context()
    _KEPT.append(context)
    context.push()
    driver = open_driver(0, "pycuda")
    assert isinstance(driver, PyCudaDriver)
    assert driver._program is None
    assert driver.context != context.handle
    with driver.allocate(10):
        assert cuda.Context.get_device() == cuda.Device(1)
        foreign = cuda.Stream()
        with pytest.raises(DeviceError, match="The given stream is not one of GPU 0"):
            driver.borrow_stream(foreign)
        del foreign
        gc.collect()
    cuda.Context.pop()


def pycuda_is_taken_where_only_that_is_installed() -> None:
    pycuda()
    assert type(open_driver()).__name__ == "CudaCoreDriver"
    sys.modules.update({"cuda.core": NOT_INSTALLED})
    assert isinstance(open_driver(), PyCudaDriver)


def opening_fails(index: int, message: str, mend: str) -> None:
    fake_pycuda.install()
    with pytest.raises(DeviceError) as told:
        open_driver(index, "pycuda")
    assert told.value.message.startswith(message)
    assert told.value.mend == mend


def what_pycuda_raises_is_told() -> None:
    cuda = pycuda()

    def refuse(index: int) -> None:
        cuda.Context.get_device()

    cuda.Device = refuse
    with pytest.raises(DeviceError, match=r"^GPU 0: cuCtxGetDevice failed: CUDA_ERROR_INVALID_CONTEXT"):
        open_driver(0, "pycuda")


def a_missing_function_is_told() -> None:
    driver = open_pycuda()
    from yolact_deploy.engines.cuda import pycuda_driver

    assert isinstance(driver, PyCudaDriver)
    pycuda_driver._FUNCTIONS["cuNothing"] = ("cuNothing_v2", ())
    with pytest.raises(DeviceError, match=r"^NVIDIA's driver has no cuNothing_v2\. Update NVIDIA's driver\.$"):
        driver.call("cuNothing")
