"""The CUDA kernels compiled for the CPU, and a :class:`Driver` that runs them there.

``cuda_shim/`` makes g++ take the kernels' language. A test may choose the order in which the threads of a block run, and the whole may be
built with AddressSanitizer, for use in a child process::

    driver = HostDriver(order="shuffled", seed=3)
    module = driver.load_module(driver.image)
    run_sanitized("tests.engines.cuda.kernel_scenarios:select", {"batch": 2})   # raises AssertionError with the end of stderr
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.helpers.kernel_library import KERNELS, SANITIZE, build_library, missing, run_sanitized
from yolact_deploy.engines.cuda.driver import DeviceBuffer, DeviceInfo, Driver, Event, Graph, Kernel, Module, PinnedArray, Stream
from yolact_deploy.errors import DeviceError

__all__ = ["KERNELS", "ORDERS", "HostDriver", "build_library", "missing", "run_sanitized"]

ORDERS = ("forward", "reverse", "shuffled")
_UNDEFINED = 0xA5


@lru_cache
def _load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.shim_launch.restype = ctypes.c_char_p
    library.shim_launch.argtypes = [ctypes.c_char_p, *[ctypes.c_uint] * 5, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]
    library.shim_argument_size.restype = ctypes.c_long
    library.shim_argument_size.argtypes = [ctypes.c_char_p]
    return library


@cache
def _libc() -> ctypes.CDLL:
    """The process's malloc and free, which are AddressSanitizer's where that is preloaded."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.restype = None
    libc.free.argtypes = [ctypes.c_void_p]
    return libc


class HostDriver(Driver):
    """Host memory as a GPU's. Streams do their work at once, so that all of it is done when a call returns.

    Args:
        order: in which the threads of a block, and the blocks, take turns: "forward", "reverse" or "shuffled"; may be set between launches.
        seed: of the shuffling.
        memory: bytes that the GPU seems to have.
        sources: folder of the kernels that :attr:`image` holds.
        umbrella: the file there that includes the others.
    """

    def __init__(
        self, order: str = "forward", seed: int = 0, *, memory: int = 1 << 34, sources: Path = KERNELS, umbrella: str = "all.cuh"
    ) -> None:
        self.info = DeviceInfo(0, "Host", (8, 9), memory)
        self.order = order
        self.seed = seed
        self.launches: list[tuple[str, tuple[int, int, int], int, int]] = []
        self._sources = (sources, umbrella)
        self._lock = threading.RLock()
        self._held: dict[int, int] = {}
        self._used = 0
        self._handles = 0x1000
        self._recording: dict[int, list[Callable[[], None]]] = {}  # of the streams that are being captured

    @property
    def image(self) -> bytes:
        """What :meth:`load_module` takes here: the path of the compiled library."""
        return os.fsencode(build_library(*self._sources, sanitize=os.environ.get(SANITIZE) == "1"))

    def live(self) -> int:
        """How many buffers, page-locked ones included, are not yet given back."""
        return len(self._held)

    def take(self, size: int) -> int:
        """`size` bytes of exactly that size, filled with a pattern."""
        if size < 1:
            raise ValueError(f"at least one byte is wanted, not {size}")
        with self._lock:
            if size > self.free_memory():
                raise DeviceError(f"Host: {size} bytes of GPU memory were asked for, {self.free_memory()} are free.")
            pointer = int(_libc().malloc(size))
            self._held[pointer] = size
            self._used += size
        ctypes.memset(pointer, _UNDEFINED, size)
        return pointer

    def device_of(self, pointer: int) -> int | None:
        return self.info.index if any(start <= pointer < start + size for start, size in self._held.items()) else None

    def give_back(self, pointer: int) -> None:
        with self._lock:
            self._used -= self._held.pop(pointer)
        _libc().free(pointer)

    def queue(self, stream: Stream, work: Callable[[], None]) -> None:
        """Do `work` now, or record it where `stream` is being captured."""
        recorded = self._recording.get(_handle(stream))
        if recorded is None:
            work()
        else:
            recorded.append(work)

    def recording(self, stream: Stream) -> list[Callable[[], None]] | None:
        return self._recording.get(_handle(stream))

    def join(self, stream: Stream, recorded: list[Callable[[], None]]) -> None:
        """Capture `stream` too, as CUDA does when it waits for an event of a capture."""
        if any(known is recorded for known in self._recording.values()):
            self._recording.setdefault(_handle(stream), recorded)

    def allocate(self, size: int) -> DeviceBuffer:
        return _Buffer(self, size)

    def allocate_pinned(self, size: int) -> PinnedArray:
        return _Pinned(self, size)

    def create_stream(self) -> Stream:
        with self._lock:
            self._handles += 16
            return _Stream(self, self._handles)

    def borrow_stream(self, foreign: object) -> Stream:
        tell = getattr(foreign, "__cuda_stream__", None)
        handle = foreign if tell is None else tell()[1]
        if not isinstance(handle, int):
            raise TypeError(f"a stream is a CUstream as an integer or has __cuda_stream__; {type(foreign).__name__} is neither")
        return _Stream(self, handle or 1)

    def create_event(self, *, timing: bool = False) -> Event:
        return _Event(self, timing)

    def copy_to_device(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        _contiguous(source)
        self.queue(stream, lambda: _move(target, source.ctypes.data, source.nbytes))

    def copy_to_host(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        _contiguous(target)
        if not target.flags.writeable:
            raise ValueError("a writable array is wanted")
        self.queue(stream, lambda: _move(target.ctypes.data, source, target.nbytes))

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        self.queue(stream, lambda: _move(target, source, size))

    def clear(self, target: int, size: int, stream: Stream) -> None:
        self.queue(stream, lambda: _clear(target, size))

    def load_module(self, image: bytes) -> Module:
        try:
            return _Module(_load(os.fsdecode(image)))
        except (OSError, ValueError, AttributeError) as error:
            raise DeviceError(f"Host: the module does not load: {error}.") from error

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], threads: int, argument: bytes, stream: Stream, *, shared: int = 0) -> None:
        if not isinstance(kernel, _Kernel):
            raise TypeError(f"{kernel.name} is no kernel of a module of this driver")
        if len(argument) != kernel.size:
            raise AssertionError(f"kernel {kernel.name} takes {kernel.size} bytes, {len(argument)} given")
        given = bytes(argument)
        self.queue(stream, lambda: self._run(kernel, grid, threads, given, shared))

    def _run(self, kernel: _Kernel, grid: tuple[int, int, int], threads: int, argument: bytes, shared: int) -> None:
        self.launches.append((kernel.name, grid, threads, shared))
        order = ORDERS.index(self.order)
        told = kernel.library.shim_launch(kernel.name.encode(), *grid, threads, shared, order, self.seed, argument)
        if told is not None:
            raise AssertionError(told.decode())

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        handle = _handle(stream)
        if handle in self._recording:
            raise DeviceError("Host: the stream is being captured already.")
        recorded: list[Callable[[], None]] = []
        self._recording[handle] = recorded
        try:
            work()
        finally:
            self._recording = {key: known for key, known in self._recording.items() if known is not recorded}
        return _Graph(self, recorded)

    def free_memory(self) -> int:
        return self.info.total_memory - self._used

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()


def _contiguous(array: NDArray[Any]) -> None:
    if not array.flags.c_contiguous:
        raise ValueError("a C-contiguous array is wanted")


def _move(target: int, source: int, size: int) -> None:
    ctypes.memmove(target, source, size)


def _clear(target: int, size: int) -> None:
    ctypes.memset(target, 0, size)


def _handle(stream: Stream) -> int:
    if not stream.handle:
        raise DeviceError("The stream is closed.")
    return stream.handle


class _Buffer(DeviceBuffer):
    def __init__(self, driver: HostDriver, size: int) -> None:
        self.pointer = driver.take(size)
        self.size = size
        self._end = weakref.finalize(self, driver.give_back, self.pointer)
        self._end.atexit = False

    def close(self) -> None:
        self._end()
        self.pointer = self.size = 0


class _Pinned(PinnedArray):
    """The memory lives until :meth:`close`, or as long as a view of the array."""

    def __init__(self, driver: HostDriver, size: int) -> None:
        pointer = driver.take(size)
        memory = (ctypes.c_uint8 * size).from_address(pointer)
        self.array = np.ctypeslib.as_array(memory)
        self._end = weakref.finalize(memory, driver.give_back, pointer)
        self._end.atexit = False  # something may still use a view of it then

    def close(self) -> None:
        self.array = np.empty(0, np.uint8)
        self._end()


class _Stream(Stream):
    def __init__(self, driver: HostDriver, handle: int) -> None:
        self._driver = driver
        self.handle = handle

    def synchronize(self) -> None:
        if self._driver.recording(self) is not None:
            raise DeviceError("Host: a stream that is being captured cannot be waited for.")

    def wait(self, event: Event) -> None:
        recorded = event.recorded if isinstance(event, _Event) else None
        if recorded is not None:
            self._driver.join(self, recorded)

    def close(self) -> None:
        self.handle = 0


class _Event(Event):
    def __init__(self, driver: HostDriver, timing: bool) -> None:
        self._driver = driver
        self._timing = timing
        self._time: float | None = None
        self.recorded: list[Callable[[], None]] | None = None  # the capture that it marks a place of

    def record(self, stream: Stream) -> None:
        self.recorded = self._driver.recording(stream)
        self._driver.queue(stream, self._mark)

    def _mark(self) -> None:
        self._time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def milliseconds_since(self, earlier: Event) -> float:
        if not isinstance(earlier, _Event) or self._time is None or earlier._time is None or not (self._timing and earlier._timing):
            raise DeviceError("Host: both events must have been recorded, with timing.")
        return (self._time - earlier._time) * 1000

    def close(self) -> None:
        self.recorded = None


class _Graph(Graph):
    def __init__(self, driver: HostDriver, recorded: list[Callable[[], None]]) -> None:
        self._driver = driver
        self._recorded: list[Callable[[], None]] | None = recorded

    def launch(self, stream: Stream) -> None:
        if self._recorded is None:
            raise DeviceError("The graph is closed.")
        for work in self._recorded:
            self._driver.queue(stream, work)

    def close(self) -> None:
        self._recorded = None


class _Kernel(Kernel):
    def __init__(self, library: ctypes.CDLL, name: str, size: int) -> None:
        self.library = library
        self.name = name
        self.size = size


class _Module(Module):
    def __init__(self, library: ctypes.CDLL) -> None:
        self._library: ctypes.CDLL | None = library

    def kernel(self, name: str) -> Kernel:
        if self._library is None:
            raise DeviceError("The module is closed.")
        size = int(self._library.shim_argument_size(name.encode()))
        if size < 0:
            raise DeviceError(f"Host: the module has no kernel {name!r}.")
        return _Kernel(self._library, name, size)

    def close(self) -> None:
        self._library = None
