"""The half of TensorRT's Python API that runs engines, for use as ``trt`` in a process whose driver is the stand-in of `stub_cuda`.

An engine's plan is a line of JSON; what it computes is a registered Python function that runs where a kernel would: on the stream, on
the addresses and shapes that were set when it was queued, and again at each launch of a graph that recorded it::

    register("double", lambda inputs: {"y": inputs["x"] * 2})
    plan = make_plan({"x": ("FLOAT", (-1, 3))}, {"y": ("FLOAT", (-1, 3))}, "double", profiles=[{"x": [(1, 3), (2, 3), (4, 3)]}])
    engine = Runtime(logger).deserialize_cuda_engine(plan)

Failures are told as TensorRT tells them: an ERROR to the logger, and False or None. What TensorRT cannot notice, but a test should, goes
to `misuse` as well. An engine that fails while it runs leaves the GPU as a failed kernel does, with CUDA_ERROR_LAUNCH_FAILED.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import math
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorrt_rtx import (
    DataType,
    Dims,
    ExecutionContextAllocationStrategy,
    ILogger,
    LayerInformationFormat,
    Logger,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
    nptype,
)

from tests.helpers.stub_cuda import HostFunction, accessible, fail, library, queue_call

__all__ = [
    "DataType",
    "Dims",
    "ExecutionContextAllocationStrategy",
    "ILogger",
    "LayerInformationFormat",
    "Logger",
    "Runtime",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
    "make_plan",
    "misuse",
    "nptype",
    "register",
]

__version__ = "11.4.0.106"
MAGIC = b"fake TensorRT plan\n"
ALIGNMENT = 256  # bytes, of every address
LAUNCH_FAILED = 719

Arrays = dict[str, np.ndarray[Any, Any]]
Compute = Callable[[Arrays], Mapping[str, np.ndarray[Any, Any]]]

misuse: list[str] = []
_computes: dict[str, Compute] = {}
_jobs: dict[int, Callable[[], None]] = {}
_numbers = itertools.count(1)


def register(name: str, compute: Compute) -> None:
    """Let plans made for `name` run `compute`: arrays of the inputs, which lie on the GPU and are not to be kept, to the outputs'."""
    _computes[name] = compute


def make_plan(
    inputs: Mapping[str, tuple[str, Sequence[int]]],
    outputs: Mapping[str, tuple[str, Sequence[int]]],
    compute: str,
    *,
    profiles: Iterable[Mapping[str, Sequence[Sequence[int]]]] = (),
    header: bytes = b"",
    memory: int = 1024,
    layers: Sequence[Any] = (),
    host_code: bool = False,
    version: str | None = None,
    name: str = "fake engine",
    formats: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of an engine.

    `inputs` and `outputs`: name to the name of a `DataType` and the shape; -1 as the first size is the batch, which outputs take from the
    first input. `profiles`: for each, input name to its smallest, best and largest shape. `header` stands before everything else.
    `memory`: bytes of GPU memory of each execution context. `layers`: what the inspector tells. `host_code`: refuse to load unless allowed.
    `formats`: tensor to the name of its `TensorFormat`, LINEAR where it is not named.
    """
    tensors = [[key, "INPUT", kind, list(shape)] for key, (kind, shape) in inputs.items()]
    tensors += [[key, "OUTPUT", kind, list(shape)] for key, (kind, shape) in outputs.items()]
    plan = {
        "tensors": tensors,
        "compute": compute,
        "profiles": [{key: [list(shape) for shape in shapes] for key, shapes in profile.items()} for profile in profiles] or [{}],
        "memory": memory,
        "layers": list(layers),
        "host_code": host_code,
        "version": version or __version__,
        "name": name,
        "formats": dict(formats or {}),
    }
    return header + MAGIC + json.dumps(plan).encode()


@HostFunction
def _run(number: int) -> None:
    gc.disable()  # what it collects could want to call the driver, which is forbidden here
    try:
        _jobs[number]()
    except BaseException:  # noqa: BLE001 - nothing may be raised into the driver
        misuse.append(traceback.format_exc())
        fail(LAUNCH_FAILED)
    finally:
        gc.enable()


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
        content = bytes(serialized_engine)
        try:
            plan = json.loads(content[content.index(MAGIC) + len(MAGIC) :])
        except ValueError:
            return self._refuse("Serialization assertion failed: the plan is damaged or foreign.")
        if plan["version"] != __version__:
            return self._refuse(f"The engine plan file was made by version {plan['version']}, version {__version__} was expected.")
        if plan["host_code"] and not self.engine_host_code_allowed:
            return self._refuse("The engine holds host code, which engine_host_code_allowed does not allow.")
        return Engine(plan, self.logger)

    def load_runtime(self, path: str) -> Runtime | None:
        return Runtime(self.logger) if Path(path).is_file() else self._refuse(f"Unable to open library: {path}")

    def _refuse(self, message: str) -> None:
        self.logger.log(ILogger.ERROR, message)


class Engine:
    def __init__(self, plan: dict[str, Any], logger: Any) -> None:
        self._plan = plan
        self._logger = logger
        self._tensors = {
            key: (getattr(TensorIOMode, mode), getattr(DataType, kind), tuple(shape)) for key, mode, kind, shape in plan["tensors"]
        }
        self.name = plan["name"]
        self.formats: dict[str, str] = plan["formats"]
        self.num_io_tensors = len(self._tensors)
        self.num_layers = len(plan["layers"])
        self.num_optimization_profiles = len(plan["profiles"])
        self.num_aux_streams = 0
        self.device_memory_size_v2 = plan["memory"]

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._tensors[name][0] if name in self._tensors else TensorIOMode.NONE

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._tensors[name][1]

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._tensors[name][2])

    def get_tensor_format(self, name: str) -> TensorFormat:
        return getattr(TensorFormat, self.formats.get(name, "LINEAR"))

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        fixed = [self._tensors[name][2]] * 3
        return [Dims(tuple(shape)) for shape in self._plan["profiles"][profile_index].get(name, fixed)]

    def create_execution_context(self, strategy: Any = ExecutionContextAllocationStrategy.STATIC) -> Context | None:
        memory, size = ctypes.c_void_p(), self._plan["memory"]
        code = library().cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(size)) if size else 0
        if code:
            self._logger.log(ILogger.ERROR, f"Error in creating an execution context: CUDA error {code} for {size} bytes.")
            return None
        return Context(self, memory)

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self._plan)


class Inspector:
    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self.execution_context = None

    def get_engine_information(self, format: LayerInformationFormat) -> str:  # noqa: A002 - TensorRT's own name
        names = [key for key, *_ in self._plan["tensors"]]
        return json.dumps({"Layers": self._plan["layers"], "I/O Tensors": names})

    def get_layer_information(self, layer_index: int, format: LayerInformationFormat) -> str:  # noqa: A002 - TensorRT's own name
        return json.dumps(self._plan["layers"][layer_index])


def _free(memory: ctypes.c_void_p, context: ctypes.c_void_p) -> None:
    library().cuCtxPushCurrent_v2(context)
    library().cuMemFree_v2(memory)
    library().cuCtxPopCurrent_v2(None)


class Context:
    """One thread at a time may use it; another one that does is told."""

    def __init__(self, engine: Engine, memory: ctypes.c_void_p) -> None:
        self.engine = engine
        self.active_optimization_profile = 0
        self.pause = 0.0005  # seconds that each call takes at least, so that calls that overlap meet
        self._logger = engine._logger
        self._busy = threading.Lock()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        if memory.value:
            context = ctypes.c_void_p()
            library().cuCtxGetCurrent(ctypes.byref(context))
            weakref.finalize(self, _free, memory, context).atexit = False

    def _alone(self, action: Callable[[], bool]) -> bool:
        if not self._busy.acquire(blocking=False):
            misuse.append("an execution context was used by two threads at once")
            return self._error(misuse[-1])
        try:
            time.sleep(self.pause)
            return action()
        finally:
            self._busy.release()

    def _error(self, message: str) -> bool:
        self._logger.log(ILogger.ERROR, f"IExecutionContext: {message}.")
        return False

    def _mode(self, name: str) -> TensorIOMode:
        return self.engine.get_tensor_mode(name)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        def action() -> bool:
            if not 0 <= profile_index < self.engine.num_optimization_profiles:
                return self._error(f"there is no optimization profile {profile_index}")
            if profile_index != self.active_optimization_profile:
                self._shapes.clear()
            self.active_optimization_profile = profile_index
            return True

        return self._alone(action)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        def action() -> bool:
            given = tuple(int(size) for size in shape)
            if self._mode(name) != TensorIOMode.INPUT:
                return self._error(f"{name} is not an input")
            low, _, high = (tuple(dims) for dims in self.engine.get_tensor_profile_shape(name, self.active_optimization_profile))
            if len(given) != len(low) or not all(a <= b <= c for a, b, c in zip(low, given, high)):
                return self._error(f"the shape {given} of {name} is outside {low} to {high} of profile {self.active_optimization_profile}")
            self._shapes[name] = given
            return True

        return self._alone(action)

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._shape(name))

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self._shapes.get(name, tuple(self.engine.get_tensor_shape(name)))
        if self._mode(name) == TensorIOMode.OUTPUT and shape and shape[0] == -1:
            first = next(key for key in self.engine._tensors if self._mode(key) == TensorIOMode.INPUT)
            shape = (self._shape(first)[0], *shape[1:])
        return shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        def action() -> bool:
            if self._mode(name) == TensorIOMode.NONE:
                return self._error(f"there is no tensor {name}")
            if memory % ALIGNMENT:
                return self._error(f"the address of {name} is not a multiple of {ALIGNMENT}")
            self._addresses[name] = int(memory)
            return True

        return self._alone(action)

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine._tensors if self._mode(name) == TensorIOMode.INPUT and -1 in self._shape(name)]

    def execute_async_v3(self, stream_handle: int) -> bool:
        def action() -> bool:
            if unknown := self.infer_shapes():
                return self._error(f"no shape is set for {', '.join(unknown)}")
            if without := [name for name in self.engine._tensors if not self._addresses.get(name)]:
                return self._error(f"no address is set for {', '.join(without)}")
            number, recording = next(_numbers), ctypes.c_int(0)
            library().cuStreamIsCapturing(ctypes.c_void_p(stream_handle), ctypes.byref(recording))
            _jobs[number] = self._job(number if not recording.value else None)
            if code := queue_call(_run, stream_handle, number):
                return self._error(f"CUDA error {code}")
            return True

        return self._alone(action)

    def _job(self, once: int | None) -> Callable[[], None]:
        """The computation, with what is set now; `once`: its number, where it is not kept for a graph's further launches."""
        engine = self.engine
        tensors = [
            (key, self._mode(key), nptype(engine.get_tensor_dtype(key)), self._shape(key), self._addresses[key]) for key in engine._tensors
        ]
        compute = _computes[engine._plan["compute"]]

        def run() -> None:
            if once is not None:
                del _jobs[once]
            arrays = {key: _array(key, dtype, shape, address) for key, _, dtype, shape, address in tensors}
            results = compute({key: arrays[key] for key, mode, *_ in tensors if mode == TensorIOMode.INPUT})
            for key, mode, *_ in tensors:
                if mode == TensorIOMode.OUTPUT:
                    result = np.asarray(results[key])
                    assert (result.shape, result.dtype) == (arrays[key].shape, arrays[key].dtype), (key, result.shape, result.dtype)
                    arrays[key][...] = result

        return run


def _array(name: str, dtype: Any, shape: tuple[int, ...], address: int) -> np.ndarray[Any, Any]:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not accessible(address, size):
        raise MemoryError(f"the {size} bytes of {name} are not the GPU's")
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)
