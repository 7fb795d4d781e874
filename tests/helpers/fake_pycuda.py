"""What the package uses of ``pycuda.driver``, on the driver library that is there: PyCUDA itself has to be built where it is installed.

Names, signatures and texts are those of PyCUDA 2026.1, built against CUDA 13.0 and tried on the stand-in for NVIDIA's driver library.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["Context", "Device", "Error", "LogicError", "Stream", "init", "install"]

_STACKS = threading.local()


class Error(Exception):
    """Root of what PyCUDA raises."""


class LogicError(Error):
    """What CUDA refuses."""


def _call(name: str, *arguments: object) -> None:
    cuda = ctypes.CDLL("libcuda.so.1")
    code = cuda[name](*arguments)
    if code:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        raise LogicError(f"{name.removesuffix('_v2')} failed: {(text.value or b'').decode()}")


def init(flags: int = 0) -> None:
    _call("cuInit", flags)


def _stack() -> list[Context]:
    if not hasattr(_STACKS, "contexts"):
        _STACKS.contexts = []
    contexts: list[Context] = _STACKS.contexts
    return contexts


class Device:
    """A GPU by its number."""

    def __init__(self, ordinal: int) -> None:
        self._number = ctypes.c_int()
        _call("cuDeviceGet", ctypes.byref(self._number), ordinal)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self._number.value == other._number.value

    def __hash__(self) -> int:
        return self._number.value

    def name(self) -> str:
        text = ctypes.create_string_buffer(1024)
        _call("cuDeviceGetName", text, len(text), self._number)
        return text.value.decode()

    def compute_capability(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        _call("cuDeviceComputeCapability", ctypes.byref(major), ctypes.byref(minor), self._number)
        return major.value, minor.value

    def total_memory(self) -> int:
        size = ctypes.c_size_t()
        _call("cuDeviceTotalMem_v2", ctypes.byref(size), self._number)
        return size.value

    def retain_primary_context(self) -> Context:
        handle = ctypes.c_void_p()
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(handle), self._number)
        return Context(handle.value or 0)


class Context:
    """A context; PyCUDA has a stack of them for each thread."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def push(self) -> None:
        if _stack():
            _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        _call("cuCtxPushCurrent_v2", ctypes.c_void_p(self.handle))
        _stack().append(self)

    @staticmethod
    def pop() -> None:
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        _stack().pop()
        if _stack():
            _call("cuCtxPushCurrent_v2", ctypes.c_void_p(_stack()[-1].handle))

    @staticmethod
    def get_current() -> Context | None:
        return _stack()[-1] if _stack() else None

    @staticmethod
    def get_device() -> Device:
        number = ctypes.c_int()
        _call("cuCtxGetDevice", ctypes.byref(number))
        return Device(number.value)


class Stream:
    """A stream in the current context."""

    def __init__(self, flags: int = 0) -> None:
        handle = ctypes.c_void_p()
        _call("cuStreamCreate", ctypes.byref(handle), flags)
        self.handle = int(handle.value or 0)

    def __del__(self) -> None:
        _call("cuStreamDestroy_v2", ctypes.c_void_p(self.handle))

    def synchronize(self) -> None:
        _call("cuStreamSynchronize", ctypes.c_void_p(self.handle))


def install() -> None:
    """Be ``pycuda.driver`` in this process."""
    package = ModuleType("pycuda")
    package.__spec__ = ModuleSpec("pycuda", None)
    package.__path__ = []
    vars(package)["driver"] = sys.modules[__name__]
    sys.modules.update({"pycuda": package, "pycuda.driver": sys.modules[__name__]})
