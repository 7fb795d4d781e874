"""The driver seam: what the package needs of CUDA, in one small interface with several implementations.

Sizes are bytes, pointers and stream handles plain integers (``CUdeviceptr``, ``CUstream``), so that TensorRT, NumPy and foreign
libraries meet here without sharing a type.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DeviceBuffer", "DeviceInfo", "Driver", "Event", "Graph", "Kernel", "Module", "PinnedArray", "Stream"]


@dataclass(frozen=True)
class DeviceInfo:
    """A GPU: its number, name, compute capability ``(major, minor)`` and memory in bytes."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    total_memory: int


class _Owned(ABC):
    """Something of the GPU's that is given back by :meth:`close`, at the end of a ``with`` block, or with the object."""

    @abstractmethod
    def close(self) -> None:
        """Give it back; a second call does nothing."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DeviceBuffer(_Owned):
    """`size` bytes of device memory from `pointer` on."""

    pointer: int
    size: int


class PinnedArray(_Owned):
    """Page-locked host memory, so that copies run beside computation; `array` is uint8 [size] over it, valid until closed."""

    array: NDArray[np.uint8]


class Stream(_Owned):
    """A queue of work; `handle` is the ``CUstream``. Closing a stream of the caller's leaves it to the caller."""

    handle: int

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all its work is done."""

    @abstractmethod
    def wait(self, event: Event) -> None:
        """Work queued from now on starts after `event`."""


class Event(_Owned):
    """A mark in a stream."""

    @abstractmethod
    def record(self, stream: Stream) -> None:
        """Set the mark at the stream's present end."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the mark is reached."""

    @abstractmethod
    def milliseconds_since(self, earlier: Event) -> float:
        """Time on the GPU between two marks that were reached; both need ``timing``."""


class Graph(_Owned):
    """Recorded work, launched as one."""

    @abstractmethod
    def launch(self, stream: Stream) -> None:
        """Queue the recorded work."""


class Kernel(ABC):
    """A function of a :class:`Module`, which it keeps loaded."""

    name: str


class Module(_Owned):
    """Compiled code, loaded on one GPU."""

    @abstractmethod
    def kernel(self, name: str) -> Kernel:
        """The ``extern "C"`` kernel `name`. Raises :class:`yolact_deploy.errors.DeviceError` where there is none."""


class Driver(ABC):
    """One GPU's primary context, which torch, TensorRT and the CUDA runtime use too.

    Each method may be called from any thread. Failures are :class:`yolact_deploy.errors.DeviceError` (out of memory: the message
    says how much was asked for and how much is free).
    """

    info: DeviceInfo

    @abstractmethod
    def allocate(self, size: int) -> DeviceBuffer:
        """`size` bytes of device memory (at least 1), ready for every stream; contents undefined."""

    @abstractmethod
    def allocate_pinned(self, size: int) -> PinnedArray:
        """`size` bytes of page-locked host memory (at least 1)."""

    @abstractmethod
    def device_of(self, pointer: int) -> int | None:
        """The number of the GPU that a device address belongs to; None for what is no GPU's."""

    @abstractmethod
    def create_stream(self) -> Stream:
        """A stream of its own that does not wait for the default stream."""

    @abstractmethod
    def borrow_stream(self, foreign: object) -> Stream:
        """A stream of the caller's: a ``CUstream`` as an integer, or an object with ``__cuda_stream__`` (torch, CuPy, cuda.core)."""

    @abstractmethod
    def create_event(self, *, timing: bool = False) -> Event:
        """A mark, not yet set."""

    @abstractmethod
    def copy_to_device(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        """Queue the copy of a C-contiguous host array to device address `target`; the array must live until the stream is past it.

        From memory that is not page-locked the call returns when the array may be reused.
        """

    @abstractmethod
    def copy_to_host(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        """Queue the copy from device address `source` into a C-contiguous, writable host array, whose size decides how much."""

    @abstractmethod
    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Queue the copy of `size` bytes within device memory."""

    @abstractmethod
    def clear(self, target: int, size: int, stream: Stream) -> None:
        """Queue the filling of `size` bytes of device memory with zeros."""

    @abstractmethod
    def load_module(self, image: bytes) -> Module:
        """Load a cubin for this GPU."""

    @abstractmethod
    def launch(self, kernel: Kernel, grid: tuple[int, int, int], threads: int, argument: bytes, stream: Stream, *, shared: int = 0) -> None:
        """Queue a kernel that takes one structure by value.

        Args:
            kernel: of a module that this driver loaded.
            grid: blocks in x, y and z, each at least 1.
            threads: of a block, in x.
            argument: the structure's bytes; read before the call returns.
            stream: where.
            shared: bytes of dynamic shared memory of each block.
        """

    @abstractmethod
    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record what `work` queues on `stream`, a stream made by :meth:`create_stream`, without running it.

        Where `work` raises, the capture is ended and the exception goes on.
        """

    @abstractmethod
    def free_memory(self) -> int:
        """Bytes of device memory that are free now."""

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """Make this GPU the calling thread's current one for the block; TensorRT allocates on the current one."""
