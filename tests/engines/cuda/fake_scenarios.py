"""What the fake TensorRT does on the stand-in for NVIDIA's driver library; test_fake_tensorrt.py runs each in another process."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.helpers import fake_tensorrt as trt
from tests.helpers.stub_cuda import fail
from yolact_deploy.engines.cuda import Driver, open_driver
from yolact_deploy.errors import DeviceError


class Log(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        assert severity == trt.ILogger.ERROR
        self.errors.append(message)


def plan(**options: Any) -> bytes:
    trt.register("double", lambda inputs: {"y": inputs["x"] * 2, "n": np.array([len(inputs["x"])], np.int32)})
    profiles = [{"x": [(1, 3), (2, 3), (4, 3)]}, {"x": [(8, 3), (8, 3), (8, 3)]}]
    outputs = {"y": ("FLOAT", (-1, 3)), "n": ("INT32", (1,))}
    return trt.make_plan({"x": ("FLOAT", (-1, 3))}, outputs, "double", **{"profiles": profiles, **options})


def load(content: bytes, log: Log | None = None) -> Any:
    engine = trt.Runtime(log or Log()).deserialize_cuda_engine(content)
    assert engine is not None
    return engine


class Ready:
    """A context with buffers of eight rows, set for two."""

    def __init__(self, driver: Driver) -> None:
        self.log = Log()
        with driver.active():
            self.context = load(plan(), self.log).create_execution_context()
        self.stream = driver.create_stream()
        self.buffers = {name: driver.allocate(96) for name in "xyn"}
        assert self.context.set_input_shape("x", (2, 3))
        for name, buffer in self.buffers.items():
            assert self.context.set_tensor_address(name, buffer.pointer)


def an_engine_describes_itself() -> None:
    engine = load(plan(header=b"vtrt", layers=[{"Name": "conv"}], memory=77))
    assert [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)] == ["x", "y", "n"]
    assert [engine.get_tensor_mode(name).name for name in "xyn?"] == ["INPUT", "OUTPUT", "OUTPUT", "NONE"]
    assert engine.get_tensor_dtype("n") == trt.DataType.INT32
    assert tuple(engine.get_tensor_shape("y")) == (-1, 3)
    assert [tuple(shape) for shape in engine.get_tensor_profile_shape("x", 0)] == [(1, 3), (2, 3), (4, 3)]
    assert (engine.num_optimization_profiles, engine.device_memory_size_v2) == (2, 77)
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    assert json.loads(told)["Layers"] == [{"Name": "conv"}]


def what_does_not_load_is_told() -> None:
    log = Log()
    runtime = trt.Runtime(log)
    for content, message in (
        (b"", "damaged"),
        (plan()[:-5], "damaged"),
        (plan(version="10.1"), "made by version 10.1"),
        (plan(host_code=True), "host code"),
    ):
        assert runtime.deserialize_cuda_engine(content) is None
        assert message in log.errors.pop()
    runtime.engine_host_code_allowed = True
    assert runtime.deserialize_cuda_engine(plan(host_code=True)) is not None
    assert runtime.load_runtime("no such file") is None
    assert log.errors == ["Unable to open library: no such file"]
    assert runtime.load_runtime(__file__).deserialize_cuda_engine(plan()) is not None


def an_engine_runs_when_its_stream_gets_there() -> None:
    driver = open_driver()
    ready = Ready(driver)
    x, y = np.arange(6, dtype=np.float32), np.zeros((2, 3), np.float32)
    driver.copy_to_device(ready.buffers["x"].pointer, x, ready.stream)
    with driver.active():
        assert ready.context.execute_async_v3(ready.stream.handle)
    driver.copy_to_host(y, ready.buffers["y"].pointer, ready.stream)
    assert not y.any()
    ready.stream.synchronize()
    assert y.ravel().tolist() == [0, 2, 4, 6, 8, 10]
    assert trt.misuse == ready.log.errors == []


def a_graph_keeps_addresses_and_shapes() -> None:
    driver = open_driver()
    ready = Ready(driver)
    x, y, n = np.ones((2, 3), np.float32), np.zeros((4, 3), np.float32), np.zeros(1, np.int32)
    with driver.capture(ready.stream, lambda: ready.context.execute_async_v3(ready.stream.handle)) as graph:
        assert ready.context.set_input_shape("x", (4, 3))
        assert ready.context.set_tensor_address("y", ready.buffers["n"].pointer)
        for factor in (1, 2):
            driver.copy_to_device(ready.buffers["x"].pointer, x * factor, ready.stream)
            graph.launch(ready.stream)
            driver.copy_to_host(y[:2], ready.buffers["y"].pointer, ready.stream)
            driver.copy_to_host(n, ready.buffers["n"].pointer, ready.stream)
            ready.stream.synchronize()
            assert y[:2].tolist() == [[2 * factor] * 3] * 2
            assert n.tolist() == [2]
    assert trt.misuse == []


def what_is_not_set_is_told() -> None:
    driver = open_driver()
    ready = Ready(driver)
    context, log, handle = ready.context, ready.log, ready.stream.handle
    assert not context.execute_async_v3(handle)
    assert log.errors.pop() == "IExecutionContext: CUDA error 201."  # no GPU is current
    with driver.active():
        fresh = load(plan(), log).create_execution_context()
        assert (fresh.infer_shapes(), tuple(fresh.get_tensor_shape("y"))) == (["x"], (-1, 3))
        assert not fresh.execute_async_v3(handle)
        assert "no shape is set for x" in log.errors.pop()
        assert not fresh.set_input_shape("x", (5, 3))
        assert "outside (1, 3) to (4, 3) of profile 0" in log.errors.pop()
        assert fresh.set_optimization_profile_async(1, handle)
        assert fresh.set_input_shape("x", (8, 3))
        assert (fresh.infer_shapes(), tuple(fresh.get_tensor_shape("y"))) == ([], (8, 3))
        assert not fresh.execute_async_v3(handle)
        assert "no address is set for x, y, n" in log.errors.pop()
        assert not fresh.set_tensor_address("x", ready.buffers["x"].pointer + 4)
        assert "not a multiple of 256" in log.errors.pop()
        assert not fresh.set_optimization_profile_async(2, handle)
        assert fresh.set_optimization_profile_async(0, handle)
        assert fresh.infer_shapes() == ["x"]  # another profile, another shape
        assert not fresh.set_tensor_address("z", 256)
        assert len(log.errors) == 2
        assert load(plan(memory=1 << 40), log).create_execution_context() is None
        assert "CUDA error 2 for 1099511627776 bytes" in log.errors.pop()


def two_threads_in_one_context_are_told() -> None:
    ready = Ready(open_driver())
    results: list[bool] = []
    ready.context.pause = 0.1
    threads = [threading.Thread(target=lambda: results.append(ready.context.set_input_shape("x", (1, 3)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, True]
    assert trt.misuse == ["an execution context was used by two threads at once"]
    trt.misuse.clear()


def engines_run_from_several_threads() -> None:
    driver = open_driver()

    def use(seed: int) -> None:
        ready = Ready(driver)
        x, y = np.full((2, 3), seed, np.float32), np.zeros((2, 3), np.float32)
        with driver.capture(ready.stream, lambda: ready.context.execute_async_v3(ready.stream.handle)) as graph:
            for step in range(10):
                driver.copy_to_device(ready.buffers["x"].pointer, x + step, ready.stream)
                graph.launch(ready.stream)
                driver.copy_to_host(y, ready.buffers["y"].pointer, ready.stream)
                ready.stream.synchronize()
                assert y.tolist() == [[2 * (seed + step)] * 3] * 2

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(8)))
    assert trt.misuse == []


def an_engine_on_freed_memory_loses_the_gpu() -> None:
    driver = open_driver()
    ready = Ready(driver)
    ready.buffers["y"].close()
    with driver.active():
        assert ready.context.execute_async_v3(ready.stream.handle)
        with pytest.raises(DeviceError, match="cuStreamSynchronize failed with CUDA_ERROR_LAUNCH_FAILED"):
            ready.stream.synchronize()
        fail(0)
    assert "MemoryError: the 24 bytes of y are not the GPU's" in trt.misuse.pop()
