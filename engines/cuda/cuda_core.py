"""The driver seam over NVIDIA's ``cuda-core`` and ``cuda-bindings``.

``cuda.core`` owns streams and events; the calls go to ``cuda.bindings.driver``, which tells each error by its code. Nothing is imported
from either until a driver is opened.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.engines.cuda.driver import DeviceBuffer, DeviceInfo, Driver, Event, Graph, PinnedArray, Stream
from yolact_deploy.errors import DeviceError, MissingDependencyError

__all__ = ["CudaCoreDriver", "open_driver"]

_PURPOSE = "Running an engine"
_NO_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: page-locked for every GPU's context
_LEGACY = 1  # CU_STREAM_LEGACY: the default stream by a name that is not 0
_STREAM_HANDLES = ("cuda_stream", "ptr")  # of torch's streams before 2.10 and of CuPy's, which lack the protocol
_RESTART = "The GPU's state is lost for this process: start the program again."
_LOST = {
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
}


def open_driver(index: int = 0) -> Driver:
    """GPU number `index`, counted as CUDA does (``CUDA_VISIBLE_DEVICES`` applies), through its primary context.

    Raises :class:`MissingDependencyError` without cuda-core, and :class:`DeviceError` without a driver that is new enough or such a GPU.
    """
    return CudaCoreDriver(index)


def _packages() -> tuple[Any, Any, str]:
    """``cuda.core``, ``cuda.bindings.driver``, and the version of the latter's package."""
    try:
        core, bindings = import_module("cuda.core"), import_module("cuda.bindings")
        return core, import_module("cuda.bindings.driver"), str(bindings.__version__)
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("cuda-core", "tensorrt", _PURPOSE) from error
    except ImportError as error:
        raise MissingDependencyError(
            f"{_PURPOSE} needs cuda-core and a cuda-bindings that fits it; importing them failed: {error}.",
            "Run: pip install --upgrade cuda-core cuda-bindings",
        ) from error


class _Told:
    """A block in which what the packages raise by themselves becomes a :class:`DeviceError` about `what`."""

    def __init__(self, what: str, mend: str = "") -> None:
        self.what = what
        self.mend = mend

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None and (kind.__module__.startswith("cuda.") or issubclass(kind, RuntimeError)):
            raise DeviceError(f"{self.what}: {' '.join(str(error).split())}", self.mend) from error


def _checked_driver(index: int) -> tuple[Any, Any]:
    """The two modules, once CUDA is initialised, the driver new enough, and there is a GPU `index`."""
    core, cuda, bindings = _packages()
    with _Told("No NVIDIA driver answers", "Install NVIDIA's driver; `nvidia-smi` shows whether it works."):
        (code,) = cuda.cuInit(0)
    if code.name == "CUDA_ERROR_NO_DEVICE":
        raise DeviceError(
            f"No GPU was found, GPU {index} was asked for (cuInit: {code.name}).", "See `nvidia-smi`, and unset CUDA_VISIBLE_DEVICES."
        )
    if code:
        raise DeviceError(f"NVIDIA's driver does not start (cuInit: {code.name}).", "See `nvidia-smi`; after a driver's update, restart.")
    version, wanted = cuda.cuDriverGetVersion()[1], int(bindings.partition(".")[0]) * 1000
    if version < wanted:
        raise DeviceError(
            f"NVIDIA's driver supports CUDA {version // 1000}.{version % 1000 // 10}; cuda-bindings {bindings} needs {wanted // 1000}.0.",
            f'Update NVIDIA\'s driver, or run: pip install "cuda-bindings<{wanted // 1000}"',
        )
    count = cuda.cuDeviceGetCount()[1]
    if not 0 <= index < count:
        numbers = "GPU 0" if count == 1 else f"GPU 0 to {count - 1}"
        raise DeviceError(f"GPU {index} was asked for, this machine shows {numbers}.", "See `nvidia-smi` and CUDA_VISIBLE_DEVICES.")
    return core, cuda


class CudaCoreDriver(Driver):
    """GPU `index`; its primary context is kept until the process ends, as the CUDA runtime keeps it.

    What is closed or collected raises nothing: an error there is one of the GPU's earlier work, which ``synchronize`` tells.
    """

    def __init__(self, index: int = 0) -> None:
        self._core, self._cuda = _checked_driver(index)
        self._where = f"GPU {index}"
        number = self.call("cuDeviceGet", index)
        with _Told(self._where):
            device = self._core.Device(index)
            major, minor = device.compute_capability
            self.info = DeviceInfo(index, str(device.name), (int(major), int(minor)), int(self.call("cuDeviceTotalMem", number)))
        self._where = f"GPU {index} ({self.info.name})"
        self._context = self.call("cuDevicePrimaryCtxRetain", number)

    def call(self, name: str, *arguments: Any) -> Any:
        """What CUDA's function `name` answers: None, one value, or the first of several."""
        with _Told(self._where):
            code, *answers = getattr(self._cuda, name)(*arguments)
        if code:
            mend = _RESTART if code.name in _LOST else ""
            raise DeviceError(f"{self._where}: {name} failed with {code.name}{self._room(code.name)}.", mend)
        return answers[0] if answers else None

    def _room(self, error: str) -> str:
        """Where memory ran out, how much is free: the end of a sentence."""
        if error != _NO_MEMORY:
            return ""
        code, *answers = self._cuda.cuMemGetInfo()
        return "" if code else f", {answers[0]} of its {answers[1]} bytes are free"

    def give_back(self, name: str, handle: Any) -> None:
        """Call CUDA's function `name`, on whatever thread this is, and tell no error."""
        with suppress(DeviceError), self.active():
            self.call(name, handle)

    @contextmanager
    def active(self) -> Iterator[None]:
        if int(self.call("cuCtxGetCurrent")) == int(self._context):
            yield
            return
        self.call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._cuda.cuCtxPopCurrent()

    @contextmanager
    def _device(self) -> Iterator[Any]:
        """``cuda.core``'s device, which wants to be told of each thread."""
        with self.active(), _Told(self._where):
            device = self._core.Device(self.info.index)
            device.set_current()
            yield device

    def allocate(self, size: int) -> DeviceBuffer:
        with self.active():
            return _Buffer(self, self._memory("cuMemAlloc", _positive(size)), size)

    def allocate_pinned(self, size: int) -> PinnedArray:
        with self.active():
            return _Pinned(self, self._memory("cuMemHostAlloc", _positive(size), _PORTABLE), size)

    def _memory(self, name: str, size: int, *arguments: Any) -> int:
        code, pointer = getattr(self._cuda, name)(size, *arguments)
        if code:
            kind, room = ("page-locked host memory", "") if name == "cuMemHostAlloc" else ("GPU memory", self._room(code.name))
            mend = "Close other programs, or use a smaller batch." if code.name == _NO_MEMORY else _RESTART if code.name in _LOST else ""
            raise DeviceError(f"{self._where}: {size} bytes of {kind} were asked for: {code.name}{room}.", mend)
        return int(pointer)

    def create_stream(self) -> Stream:
        with self._device() as device:
            return _Stream(self, device.create_stream(options=self._core.StreamOptions(nonblocking=True)))

    def borrow_stream(self, foreign: object) -> Stream:
        owner = foreign  # kept as long as it is borrowed
        if not isinstance(foreign, int) and not hasattr(foreign, "__cuda_stream__"):
            foreign = next((getattr(foreign, name) for name in _STREAM_HANDLES if isinstance(getattr(foreign, name, None), int)), foreign)
        if not isinstance(foreign, int) and not hasattr(foreign, "__cuda_stream__"):
            raise TypeError(f"a stream is a CUstream as an integer or has __cuda_stream__; {type(foreign).__name__} is neither")
        with self._device() as device:
            borrowed = self._core.Stream.from_handle(foreign) if isinstance(foreign, int) else device.create_stream(foreign)
            stream = _Stream(self, borrowed, owner)
            code, context = self._cuda.cuStreamGetCtx(stream.handle)
        if not code and int(context) != int(self._context):
            raise DeviceError(f"The given stream is not one of {self._where}.", "Give a stream of the GPU that the engine runs on.")
        return stream

    def create_event(self, *, timing: bool = False) -> Event:
        with self._device() as device:
            return _Event(self, device.create_event(options=self._core.EventOptions(timing_enabled=timing)))

    def copy_to_device(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        _contiguous(source)
        with self.active():
            self.call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, _handle(stream))

    def copy_to_host(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        _contiguous(target)
        if not target.flags.writeable:
            raise ValueError("a writable array is wanted")
        with self.active():
            self.call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, _handle(stream))

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        handle = _handle(stream)
        with self.active():
            # Not "thread_local": Python may collect, and so free, GPU memory on this thread at any moment, which ends any other capture.
            self.call("cuStreamBeginCapture", handle, self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
            try:
                work()
            except BaseException:
                code, graph = self._cuda.cuStreamEndCapture(handle)
                if not code:
                    self.give_back("cuGraphDestroy", graph)
                raise
            graph = self.call("cuStreamEndCapture", handle)
            try:
                return _Graph(self, self.call("cuGraphInstantiate", graph, 0))
            finally:
                self.give_back("cuGraphDestroy", graph)

    def free_memory(self) -> int:
        with self.active():
            return int(self.call("cuMemGetInfo"))


def _positive(size: int) -> int:
    if size < 1:
        raise ValueError(f"at least one byte is wanted, not {size}")
    return size


def _contiguous(array: NDArray[Any]) -> None:
    if not array.flags.c_contiguous:
        raise ValueError("a C-contiguous array is wanted")


def _handle(owner: Any) -> int:
    """The handle of a stream, event or graph that is not closed."""
    if not owner.handle:
        raise DeviceError(f"The {type(owner).__name__.strip('_').lower()} is closed.")
    return int(owner.handle)


class _Buffer(DeviceBuffer):
    def __init__(self, driver: CudaCoreDriver, pointer: int, size: int) -> None:
        self.pointer = pointer
        self.size = size
        self._end = weakref.finalize(self, driver.give_back, "cuMemFree", pointer)
        self._end.atexit = False  # the process's end gives everything back

    def close(self) -> None:
        self._end()
        self.pointer = self.size = 0


class _Pinned(PinnedArray):
    """The memory lives until :meth:`close`, or as long as a view of the array."""

    def __init__(self, driver: CudaCoreDriver, pointer: int, size: int) -> None:
        memory = (ctypes.c_uint8 * size).from_address(pointer)
        self.array = np.ctypeslib.as_array(memory)
        self._end = weakref.finalize(memory, driver.give_back, "cuMemFreeHost", pointer)
        self._end.atexit = False

    def close(self) -> None:
        self.array = np.empty(0, np.uint8)
        self._end()


class _Stream(Stream):
    """`owned` is ``cuda.core``'s stream, which destroys what it created and leaves the rest; `foreign` lives as long as it is borrowed."""

    def __init__(self, driver: CudaCoreDriver, owned: Any, foreign: object = None) -> None:
        self._driver = driver
        self._owned = owned
        self._foreign = foreign
        self.handle = int(owned.handle) or _LEGACY

    def synchronize(self) -> None:
        with self._driver.active():
            self._driver.call("cuStreamSynchronize", _handle(self))

    def wait(self, event: Event) -> None:
        with self._driver.active():
            self._driver.call("cuStreamWaitEvent", _handle(self), _handle(event), 0)

    def close(self) -> None:
        self.handle = 0
        self._owned.close()
        self._foreign = None


class _Event(Event):
    def __init__(self, driver: CudaCoreDriver, owned: Any) -> None:
        self._driver = driver
        self._owned = owned
        self.handle = int(owned.handle)

    def record(self, stream: Stream) -> None:
        with self._driver.active():
            self._driver.call("cuEventRecord", _handle(self), _handle(stream))

    def synchronize(self) -> None:
        with self._driver.active():
            self._driver.call("cuEventSynchronize", _handle(self))

    def milliseconds_since(self, earlier: Event) -> float:
        with self._driver.active():
            return float(self._driver.call("cuEventElapsedTime", _handle(earlier), _handle(self)))

    def close(self) -> None:
        self.handle = 0
        self._owned.close()


class _Graph(Graph):
    def __init__(self, driver: CudaCoreDriver, executable: Any) -> None:
        self._driver = driver
        self.handle = int(executable)
        self._end = weakref.finalize(self, driver.give_back, "cuGraphExecDestroy", executable)
        self._end.atexit = False

    def launch(self, stream: Stream) -> None:
        with self._driver.active():
            self._driver.call("cuGraphLaunch", _handle(self), _handle(stream))

    def close(self) -> None:
        self.handle = 0
        self._end()
