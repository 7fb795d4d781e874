"""Engines and contexts on the fake TensorRT and the stand-in for NVIDIA's driver; test_session.py runs each in another process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tests.helpers import fake_tensorrt as trt
from tests.helpers.stub_cuda import NOTHING, HostFunction, calls, fail, live, queue_call
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.cuda import Driver, open_driver
from yolact_deploy.engines.session import Context, Engine, EngineTensor, Session
from yolact_deploy.engines.versions import TensorRT
from yolact_deploy.errors import ConfigError, DeviceError
from yolact_deploy.manifest import TensorSpec

TENSORRT = TensorRT("tensorrt", trt, trt.__version__)
PROFILE = [{"x": [(1, 3), (2, 3), (4, 3)]}]


def double_plan(batch: int = -1, profiles: Any = PROFILE, **options: Any) -> bytes:
    trt.register("double", lambda inputs: {"y": inputs["x"] * 2})
    return trt.make_plan({"x": ("FLOAT", (batch, 3))}, {"y": ("FLOAT", (batch, 3))}, "double", profiles=profiles, **options)


def open_engine(plan: bytes | None = None, driver: Driver | None = None, **options: Any) -> Engine:
    return Engine(TENSORRT, driver or open_driver(), plan or double_plan(), "a.engine", **options)


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(seed).random((count, 3), np.float32)}


def assert_doubled(run: Callable[..., Any], count: int, seed: int = 0) -> None:
    given = rows(count, seed)
    np.testing.assert_array_equal(run(given)["y"], given["x"] * 2)


def assert_clean(*leftovers: str) -> None:
    assert trt.misuse == []
    assert {kind for kind, count in live().items() if count} == set(leftovers)


def each_batch_of_a_dynamic_engine() -> None:
    engine = open_engine()
    assert (engine.batch, engine.dynamic) == (BatchRange(1, 2, 4), True)
    with Context(engine) as context:
        for seed, count in enumerate((1, 2, 3, 4, 4, 1)):
            assert_doubled(context.run, count, seed)
    assert_clean()


def a_fixed_engine() -> None:
    engine = open_engine(double_plan(3, ()))
    assert (engine.batch, engine.dynamic) == (BatchRange(3, 3, 3), False)
    launched = calls("cuGraphLaunch")
    with Context(engine) as context:
        for seed in range(4):
            assert_doubled(context.run, 3, seed)
    assert calls("cuGraphLaunch") == launched + 3
    assert_clean()


def a_dynamic_engine_of_one_size() -> None:
    engine = open_engine(double_plan(profiles=[{"x": [(4, 3)] * 3}]))
    assert (engine.batch, engine.dynamic) == (BatchRange(4, 4, 4), True)
    assert engine.specs(engine.inputs) == (TensorSpec("x", "float32", (4, 3)),)
    with Context(engine) as context:
        assert_doubled(context.run, 4)
        with pytest.raises(ConfigError, match=r"A batch of 3 was given, the engine .* takes 4:4:4"):
            context.run(rows(3))


MIXED = {"f": ("FLOAT", (-1, 3)), "h": ("HALF", (-1, 2, 2)), "u": ("UINT8", (-1, 5)), "i": ("INT32", (-1,))}


def mixed_plan() -> bytes:
    def compute(inputs: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        return {
            "half": (inputs["h"] * np.float16(2)).astype(np.float16),
            "sums": inputs["u"].sum(axis=1, dtype=np.int32) + inputs["i"],
            "bytes": inputs["u"][:, ::-1],
            "single": inputs["f"] + inputs["i"][:, None].astype(np.float32),
        }

    trt.register("mixed", compute)
    outputs = {"half": ("HALF", (-1, 2, 2)), "sums": ("INT32", (-1,)), "bytes": ("UINT8", (-1, 5)), "single": ("FLOAT", (-1, 3))}
    profile = {name: [(size, *shape[1:]) for size in (1, 1, 3)] for name, (_, shape) in MIXED.items()}
    return trt.make_plan(MIXED, outputs, "mixed", profiles=[profile])


def several_tensors_of_every_dtype() -> None:
    plan = mixed_plan()
    fields = json.loads(plan.removeprefix(trt.MAGIC))
    fields["tensors"] = [fields["tensors"][place] for place in (4, 0, 5, 1, 2, 6, 3, 7)]
    engine = open_engine(trt.MAGIC + json.dumps(fields).encode())
    assert [tensor.name for tensor in engine.tensors] == ["f", "h", "u", "i", "half", "sums", "bytes", "single"]
    assert [tensor.name for tensor in engine.inputs] == list(MIXED)
    assert engine.inputs[1] == EngineTensor("h", True, "float16", (2, 2))
    assert engine.outputs[1] == EngineTensor("sums", False, "int32", ())
    assert (engine.inputs[1].nbytes(3), engine.outputs[1].nbytes(3)) == (24, 12)
    assert engine.specs(engine.outputs)[2] == TensorSpec("bytes", "uint8", ("batch", 5))
    with Context(engine) as context:
        assert context.device_bytes == sum(buffer.size for buffer in context.buffers.values()) == 3 * 2 * (12 + 8 + 5 + 4)
        for count in (1, 3, 3, 3, 2):
            given = mixed(count)
            found = context.run(dict(reversed(given.items())))
            assert {name: (array.dtype.name, array.shape) for name, array in found.items()} == {
                "half": ("float16", (count, 2, 2)),
                "sums": ("int32", (count,)),
                "bytes": ("uint8", (count, 5)),
                "single": ("float32", (count, 3)),
            }
            np.testing.assert_array_equal(found["half"], given["h"] * 2)
            np.testing.assert_array_equal(found["sums"], given["u"].sum(axis=1) + given["i"])
            np.testing.assert_array_equal(found["bytes"], given["u"][:, ::-1])
            np.testing.assert_array_equal(found["single"], given["f"] + given["i"][:, None].astype(np.float32))
    assert_clean()


def mixed(count: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {
        "f": random.random((count, 3), np.float32),
        "h": random.integers(0, 9, (count, 2, 2)).astype(np.float16),
        "u": random.integers(0, 256, (count, 5), np.uint8),
        "i": random.integers(-99, 99, count, np.int32),
    }


def inputs_that_do_not_fit_are_refused_before_anything_is_queued() -> None:
    with Context(open_engine()) as context:
        copied, x = calls("cuMemcpyHtoDAsync_v2"), rows(2)["x"]
        for given, message in (
            ({}, r"The input x is nothing, float32 \[B, 3\] was wanted\."),
            ({"z": x}, "The input x is nothing"),
            ({"x": x.astype(np.float64)}, r"The input x is float64 \[2, 3\], float32 \[B, 3\] was wanted\."),
            ({"x": x[:, :2]}, r"The input x is float32 \[2, 2\]"),
            ({"x": x[0]}, r"The input x is float32 \[3\]"),
            ({"x": np.float32(1).reshape(())}, r"The input x is float32 \[\]"),
            ({"x": x[:0]}, r"A batch of 0 was given, the engine a.engine takes 1:2:4\."),
            (rows(5), r"A batch of 5 was given, the engine a.engine takes 1:2:4\."),
        ):
            with pytest.raises(ConfigError, match=message):
                context.run(given)
        for size in (0, 5, -1):
            with pytest.raises(ConfigError, match=f"A batch of {size} was given"):
                context.enqueue(size)
        assert calls("cuMemcpyHtoDAsync_v2") == copied
        assert_doubled(context.run, 4)
        strided = np.asfortranarray(rows(4)["x"])
        np.testing.assert_array_equal(context.run({"x": strided})["y"], strided * 2)
    with Context(open_engine(mixed_plan())) as context, pytest.raises(ConfigError, match=r"The input i is int32 \[1\], int32 \[B\] was"):
        context.run({**mixed(2), "i": mixed(1)["i"]})
    assert_clean()


def results_are_the_callers() -> None:
    with Context(open_engine()) as context:
        first = context.run(rows(2, 1))["y"]
        kept = first.copy()
        context.run(rows(2, 2))
        np.testing.assert_array_equal(first, kept)
    first[:] = 0


class Foreign:
    """A stream as torch or CuPy show theirs."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def work_goes_to_the_callers_stream() -> None:
    driver = open_driver()
    mine = driver.create_stream()
    for given in (mine.handle, Foreign(mine.handle)):
        context = Context(open_engine(driver=driver), stream=given)
        assert context.stream.handle == mine.handle
        for seed in range(3):
            assert_doubled(context.run, 2, seed)
        launched, found = calls("cuGraphLaunch"), np.zeros((2, 3), np.float32)
        driver.copy_to_device(context.buffers["x"].pointer, np.ones((2, 3), np.float32), mine)
        context.enqueue(2)
        driver.copy_to_host(found, context.buffers["y"].pointer, mine)
        context._own.synchronize()
        assert not found.any()
        mine.synchronize()
        assert found.tolist() == [[2] * 3] * 2
        assert calls("cuGraphLaunch") == launched + 1
        context.enqueue(2)
        context.close()  # which waits for that
        assert_clean("streams")
        mine.synchronize()
    with pytest.raises(TypeError, match="a stream is a CUstream"):
        Context(open_engine(driver=driver), stream="default")
    assert_clean("streams")
    mine.close()


def everything_is_given_back() -> None:
    engine = open_engine()
    context = Context(engine)
    for _ in range(2):
        context.run(rows(2))
    assert live() == {**NOTHING, "device memory": 3, "pinned memory": 2, "streams": 1, "executable graphs": 1}
    context.close()
    context.close()
    assert live() == NOTHING
    for use in (lambda: context.run(rows(2)), lambda: context.enqueue(2)):
        with pytest.raises(DeviceError, match=r"The context of a.engine is closed\."):
            use()
    engine.close()
    assert engine.handle is None


def too_little_memory_leaves_nothing_behind(used: str) -> None:
    """On a GPU, or with page-locked memory, of 1 MiB."""
    plan = double_plan(profiles=[{"x": [(1, 3), (1, 3), (1024, 3)]}])
    driver = open_driver()
    engine = open_engine(plan, driver)
    taken = (driver.allocate if used == "GPU" else driver.allocate_pinned)((1 << 20) - (1024 if used == "GPU" else 0) - 12288 - 100)
    kinds = {"device memory"} if used == "GPU" else {"pinned memory"}
    message = "12288 bytes of GPU memory" if used == "GPU" else "12288 bytes of page-locked host memory"
    session = Session(engine)
    for _ in range(2):
        with pytest.raises(DeviceError, match=f"{message} were asked for: CUDA_ERROR_OUT_OF_MEMORY") as caught:
            session.run(rows(1))
        assert_clean(*kinds)  # at once, not when nobody looks at the error any more
        del caught
    taken.close()
    assert_doubled(session.run, 1024)
    session.close()
    large = Session(open_engine(double_plan(memory=1 << 40), driver))
    with pytest.raises(
        DeviceError, match=r"cannot make an execution context with .* MiB of GPU memory free, engine a.engine: .* for 1099511627776 bytes"
    ):
        large.run(rows(1))
    assert_clean()


def what_tensorrt_refuses_is_told() -> None:
    engine = open_engine()
    for name, message in (
        ("set_tensor_address", r"TensorRT 11\.4\.0\.106 refuses a buffer for x, engine a\.engine\."),
        ("set_optimization_profile_async", r"refuses the engine's optimization profile, engine a\.engine\."),
    ):
        with mock.patch.object(trt.Context, name, return_value=False), pytest.raises(DeviceError, match=message):
            Context(engine)
        assert_clean()
    with Context(engine) as context:
        assert_doubled(context.run, 1)
        with mock.patch.object(trt.Context, "set_input_shape", return_value=False):
            for _ in range(2):
                with pytest.raises(DeviceError, match=r"refuses the shape \[2, 3\] of x"):
                    context.run(rows(2))
        assert_doubled(context.run, 2)
        context.handle._addresses["y"] = 0
        with pytest.raises(DeviceError, match=r"failed to run, engine a\.engine: IExecutionContext: no address is set for y\. yolact"):
            context.enqueue(2)


def shapes_that_were_half_set_are_set_again() -> None:
    set_shape = trt.Context.set_input_shape

    def first_alone(self: Any, name: str, shape: Any) -> bool:
        return bool(set_shape(self, name, shape)) if name == "f" else False

    with Context(open_engine(mixed_plan())) as context:
        context.run(mixed(1))
        with (
            mock.patch.object(trt.Context, "set_input_shape", first_alone),
            pytest.raises(DeviceError, match=r"refuses the shape \[3, 2, 2\] of h"),
        ):
            context.run(mixed(3))
        np.testing.assert_array_equal(context.run(mixed(1, 5))["bytes"], mixed(1, 5)["u"][:, ::-1])
    assert_clean()


def the_profile_is_chosen_before_another_stream_runs() -> None:
    driver = open_driver()
    chosen: list[int] = []
    note = HostFunction(lambda _: chosen.append(1))

    def choose(self: Any, profile: int, stream: int) -> bool:
        return profile == 0 and queue_call(note, stream) == 0

    with driver.create_stream() as mine, mock.patch.object(trt.Context, "set_optimization_profile_async", choose):
        with Context(open_engine(driver=driver), stream=mine.handle):
            assert chosen == [1]
        with Context(open_engine(double_plan(2, ()), driver)):
            assert chosen == [1]  # nothing to choose


def a_failure_on_the_gpu_is_told_and_closing_goes_on() -> None:
    def broken(inputs: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        if inputs["x"].max() > 50:
            raise ArithmeticError("a kernel's fault")
        return {"y": inputs["x"] * 2}

    plan = double_plan()
    trt.register("double", broken)
    session = Session(open_engine(plan), contexts=2)
    for _ in range(2):
        assert_doubled(session.run, 2)
    with pytest.raises(DeviceError, match="cuStreamSynchronize failed with CUDA_ERROR_LAUNCH_FAILED"):
        session.run({"x": np.full((2, 3), 99, np.float32)})
    with pytest.raises(DeviceError, match="CUDA_ERROR_LAUNCH_FAILED"):
        session.run(rows(2))
    session.close()
    with pytest.raises(DeviceError, match=r"The engine a\.engine is closed"):
        session.run(rows(2))
    assert "a kernel's fault" in trt.misuse.pop()
    with open_driver().active():
        fail(0)
    from tests.helpers.stub_cuda import library

    library().stub_cuda_forget()  # a lost GPU takes nothing back
