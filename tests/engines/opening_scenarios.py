"""What stands between a plan and an engine; test_session.py runs each in another process."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from tests.engines.session_scenarios import assert_doubled, double_plan, open_engine
from tests.helpers import fake_tensorrt as trt
from yolact_deploy.engines.cuda import open_driver
from yolact_deploy.engines.session import Context
from yolact_deploy.errors import DeviceError, ModelFileError


def plans_that_do_not_load() -> None:
    driver = open_driver()
    for plan, reason in (
        (b"ftrt", r"Serialization assertion failed: the plan is damaged or foreign\."),
        (double_plan(version="10.1"), r"The engine plan file was made by version 10\.1"),
        (double_plan(host_code=True), "The engine holds host code"),
    ):
        with pytest.raises(ModelFileError, match=rf"TensorRT 11\.4\.0\.106 refuses the engine a\.engine: {reason}") as caught:
            open_engine(plan, driver)
        assert caught.value.mend == "Rebuild it on this machine."

    def starved(self: Any, plan: bytes) -> None:
        self._refuse("Something before that")
        self._refuse("[defaultAllocator] Out of Memory trying to allocate 7 bytes")

    with (
        mock.patch.object(trt.Runtime, "deserialize_cuda_engine", starved),
        pytest.raises(DeviceError, match=r"cannot load a\.engine with 4,096 MiB free: .* Out of Memory trying to allocate 7 bytes"),
    ):
        open_engine(driver=driver)
    with (
        mock.patch.object(trt.Runtime, "deserialize_cuda_engine", return_value=None),
        pytest.raises(ModelFileError, match=r"refuses the engine a\.engine: it gives no reason"),
    ):
        open_engine(driver=driver)


def tensors_that_only_the_batch_may_vary_in() -> None:
    trt.register("none", lambda inputs: {})
    for inputs, outputs, message in (
        ({"x": ("FLOAT", (-1, 3))}, {"y": ("FLOAT", (-1, -1))}, r"the tensor y has the shape \[-1, -1\], only its batch may vary"),
        ({"x": ("FLOAT", (1, 3, -1))}, {"y": ("FLOAT", (1,))}, r"the tensor x has the shape \[1, 3, -1\], only its batch may vary"),
        ({"x": ("FLOAT", (1, 3))}, {"y": ("FLOAT", ())}, r"the tensor y has the shape \[\], only its batch may vary"),
        ({"x": ("FLOAT", (1, 3))}, {"y": ("FLOAT", (200, 4))}, r"begin with different sizes \(x 1, y 200\), one batch was wanted"),
        ({"x": ("FLOAT", (-1, 3))}, {"y": ("FLOAT", (1, 4))}, r"begin with different sizes \(x -1, y 1\)"),
        ({}, {"y": ("FLOAT", (1, 4))}, r"begin with different sizes \(y 1\)"),
    ):
        with pytest.raises(ModelFileError, match=rf"^a\.engine: .*{message}"):
            open_engine(trt.make_plan(inputs, outputs, "none"))


def tensors_of_other_formats_and_places() -> None:
    trt.register("none", lambda inputs: {})
    plan = trt.make_plan({"x": ("HALF", (1, 3, 8, 8))}, {"y": ("HALF", (1, 3, 8, 8))}, "none", formats={"y": "CHW32"})
    with pytest.raises(ModelFileError, match=r"the tensor y is TensorFormat.CHW32 in .*DEVICE, plain rows in device memory were wanted"):
        open_engine(plan)
    with (
        mock.patch.object(trt.Engine, "get_tensor_location", return_value=trt.TensorLocation.HOST),
        pytest.raises(ModelFileError, match=r"the tensor x is .*LINEAR in TensorLocation.HOST"),
    ):
        open_engine(double_plan())
    with pytest.raises(ModelFileError, match=r"the tensor x is DataType.BF16, which NumPy does not have"):
        open_engine(trt.make_plan({"x": ("BF16", (1, 3))}, {"y": ("FLOAT", (1, 3))}, "none"))


def no_runtime_is_told() -> None:
    with (
        mock.patch.object(trt, "Runtime", side_effect=TypeError("factory function returned nullptr")),
        pytest.raises(DeviceError, match=r"TensorRT 11\.4\.0\.106 cannot start: it gives no reason"),
    ):
        open_engine()


def a_lean_runtime_loads_what_it_is_for(path: str) -> None:
    asked: list[str] = []
    load = trt.Runtime.load_runtime

    def spy(self: Any, given: str) -> Any:
        asked.append(given)
        loaded = load(self, given)
        if loaded is not None:
            assert not loaded.engine_host_code_allowed
        return loaded

    with mock.patch.object(trt.Runtime, "load_runtime", spy):
        with Context(open_engine()) as context:
            assert_doubled(context.run, 1)
        assert asked == []
        with Context(open_engine(lean_runtime=path)) as context:
            assert_doubled(context.run, 1)
        with pytest.raises(ModelFileError, match=r"cannot load the lean runtime gone\.so: Unable to open library: gone\.so") as caught:
            open_engine(lean_runtime="gone.so")
    assert asked == [path, "gone.so"]
    assert caught.value.mend == "Check its path."
