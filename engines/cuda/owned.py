"""What a :class:`~yolact_deploy.engines.cuda.calls.CallingDriver` hands out: memory, streams, events, graphs, modules and kernels.

What is closed or collected raises nothing: an error there is one of the GPU's earlier work, which ``synchronize`` tells.
"""

from __future__ import annotations

import ctypes
import weakref
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from yolact_deploy.errors import DeviceError

from .driver import DeviceBuffer, Driver, Event, Graph, Kernel, Module, PinnedArray, Stream

__all__ = ["Calls", "OwnedBuffer", "OwnedEvent", "OwnedGraph", "OwnedKernel", "OwnedModule", "OwnedPinned", "OwnedStream", "handle_of"]

_LEGACY = 1  # CU_STREAM_LEGACY: the default stream by a name that is not 0


class Calls(Driver):
    """What these objects need of the driver that made them."""

    @abstractmethod
    def call(self, name: str, *arguments: Any) -> Any:
        """What CUDA's function `name` answers: None, one value, or the first of several. Raises :class:`DeviceError`."""

    @abstractmethod
    def give_back(self, name: str, handle: Any) -> None:
        """Call CUDA's function `name`, on whatever thread this is, and tell no error."""

    @abstractmethod
    def find_kernel(self, module: OwnedModule, name: str) -> OwnedKernel:
        """The kernel `name` of a module that is open."""


def handle_of(owner: Any) -> int:
    """The handle of a stream, event, graph or module; :class:`DeviceError` where it is closed."""
    if not owner.handle:
        raise DeviceError(f"The {type(owner).__name__.removeprefix('Owned').strip('_').lower()} is closed.")
    return int(owner.handle)


def _at_end(owner: object, function: Callable[..., None], *arguments: Any) -> weakref.finalize[Any, Any]:
    """Calls `function` once, when asked or with `owner`; not when the process ends, which gives everything back by itself."""
    end = weakref.finalize(owner, function, *arguments)
    end.atexit = False
    return end


class OwnedBuffer(DeviceBuffer):
    """Memory of ``cuMemAlloc``."""

    def __init__(self, driver: Calls, pointer: int, size: int) -> None:
        self.pointer = pointer
        self.size = size
        self._end = _at_end(self, driver.give_back, "cuMemFree", pointer)

    def close(self) -> None:
        self._end()
        self.pointer = self.size = 0


class OwnedPinned(PinnedArray):
    """Memory of ``cuMemHostAlloc``, which lives until :meth:`close`, or as long as a view of the array."""

    def __init__(self, driver: Calls, pointer: int, size: int) -> None:
        memory = (ctypes.c_uint8 * size).from_address(pointer)
        self.array = np.ctypeslib.as_array(memory)
        self._end = _at_end(memory, driver.give_back, "cuMemFreeHost", pointer)

    def close(self) -> None:
        self.array = np.empty(0, np.uint8)
        self._end()


class OwnedStream(Stream):
    """`destroy` gives an own stream back; `foreign`, whatever a borrowed one belongs to, lives as long as it is borrowed."""

    def __init__(self, driver: Calls, handle: int, destroy: Callable[[], None] | None = None, foreign: object = None) -> None:
        self.driver = driver
        self._foreign = foreign
        self._end = _at_end(self, destroy) if destroy else None
        self.handle = handle or _LEGACY

    def synchronize(self) -> None:
        with self.driver.active():
            self.driver.call("cuStreamSynchronize", handle_of(self))

    def wait(self, event: Event) -> None:
        with self.driver.active():
            self.driver.call("cuStreamWaitEvent", handle_of(self), handle_of(event), 0)

    def close(self) -> None:
        self.handle = 0
        self._foreign = None
        if self._end:
            self._end()


class OwnedEvent(Event):
    """`destroy` gives the event back."""

    def __init__(self, driver: Calls, handle: int, destroy: Callable[[], None]) -> None:
        self._driver = driver
        self._end = _at_end(self, destroy)
        self.handle = handle

    def record(self, stream: Stream) -> None:
        with self._driver.active():
            self._driver.call("cuEventRecord", handle_of(self), handle_of(stream))

    def synchronize(self) -> None:
        with self._driver.active():
            self._driver.call("cuEventSynchronize", handle_of(self))

    def milliseconds_since(self, earlier: Event) -> float:
        with self._driver.active():
            return float(self._driver.call("cuEventElapsedTime", handle_of(earlier), handle_of(self)))

    def close(self) -> None:
        self.handle = 0
        self._end()


class OwnedGraph(Graph):
    """`executable` of ``cuGraphInstantiate``."""

    def __init__(self, driver: Calls, executable: Any) -> None:
        self._driver = driver
        self.handle = int(executable)
        self._end = _at_end(self, driver.give_back, "cuGraphExecDestroy", executable)

    def launch(self, stream: Stream) -> None:
        with self._driver.active():
            self._driver.call("cuGraphLaunch", handle_of(self), handle_of(stream))

    def close(self) -> None:
        self.handle = 0
        self._end()


class OwnedModule(Module):
    """`loaded` by ``cuModuleLoadData``."""

    def __init__(self, driver: Calls, loaded: Any) -> None:
        self._driver = driver
        self.handle = int(loaded)
        self._end = _at_end(self, driver.give_back, "cuModuleUnload", loaded)

    def kernel(self, name: str) -> Kernel:
        return self._driver.find_kernel(self, name)

    def close(self) -> None:
        self.handle = 0
        self._end()


class OwnedKernel(Kernel):
    """`function` of ``cuModuleGetFunction``; `size` of its argument in bytes, or None where the driver does not tell."""

    def __init__(self, driver: Calls, module: OwnedModule, name: str, function: Any, size: int | None) -> None:
        self.driver = driver
        self.module = module
        self.name = name
        self.function = function
        self.size = size
        self.shared = 48 << 10  # bytes of dynamic shared memory that it may be launched with: what every GPU allows unasked
