"""The driver seam beside PyCUDA: within a PyCUDA program it works in that program's context, on its streams and its GPUArrays.

PyCUDA opens the GPU and its context. The calls themselves go to the driver library that PyCUDA has loaded, because PyCUDA's own objects
are given back on the thread that made them or never, and it knows neither graphs nor the streams of other libraries.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from yolact_deploy.errors import DeviceError, MissingDependencyError

from .calls import CallingDriver, check_gpu
from .driver import DeviceInfo

__all__ = ["PyCudaDriver"]

_PURPOSE = "Running an engine beside PyCUDA"
_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NEEDED = 12  # the CUDA version whose functions are called here
_MEND = "Install NVIDIA's driver; `nvidia-smi` shows whether it works."


class _Out:
    """An argument that the function writes to."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind


_handle, _int, _unsigned, _size, _address = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_uint64
_new, _number, _amount = _Out(_handle), _Out(_int), _Out(_size)
_FUNCTIONS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "cuCtxGetCurrent": ("cuCtxGetCurrent", (_new,)),
    "cuCtxPopCurrent": ("cuCtxPopCurrent_v2", (_new,)),
    "cuCtxPushCurrent": ("cuCtxPushCurrent_v2", (_handle,)),
    "cuDeviceGet": ("cuDeviceGet", (_number, _int)),
    "cuDeviceGetCount": ("cuDeviceGetCount", (_number,)),
    "cuDevicePrimaryCtxRetain": ("cuDevicePrimaryCtxRetain", (_new, _int)),
    "cuDriverGetVersion": ("cuDriverGetVersion", (_number,)),
    "cuEventCreate": ("cuEventCreate", (_new, _unsigned)),
    "cuEventDestroy": ("cuEventDestroy_v2", (_handle,)),
    "cuEventElapsedTime": ("cuEventElapsedTime", (_Out(ctypes.c_float), _handle, _handle)),
    "cuEventRecord": ("cuEventRecord", (_handle, _handle)),
    "cuEventSynchronize": ("cuEventSynchronize", (_handle,)),
    "cuFuncGetParamInfo": ("cuFuncGetParamInfo", (_handle, _size, _amount, _amount)),
    "cuFuncLoad": ("cuFuncLoad", (_handle,)),
    "cuFuncSetAttribute": ("cuFuncSetAttribute", (_handle, _int, _int)),
    "cuGetErrorName": ("cuGetErrorName", (_int, _Out(ctypes.c_char_p))),
    "cuGraphDestroy": ("cuGraphDestroy", (_handle,)),
    "cuGraphExecDestroy": ("cuGraphExecDestroy", (_handle,)),
    "cuGraphInstantiate": ("cuGraphInstantiateWithFlags", (_new, _handle, ctypes.c_ulonglong)),
    "cuGraphLaunch": ("cuGraphLaunch", (_handle, _handle)),
    "cuInit": ("cuInit", (_unsigned,)),
    "cuLaunchKernel": ("cuLaunchKernel", (_handle, *[_unsigned] * 7, _handle, _handle, _handle)),
    "cuMemAlloc": ("cuMemAlloc_v2", (_Out(_address), _size)),
    "cuMemFree": ("cuMemFree_v2", (_address,)),
    "cuMemFreeHost": ("cuMemFreeHost", (_handle,)),
    "cuMemGetInfo": ("cuMemGetInfo_v2", (_amount, _amount)),
    "cuMemHostAlloc": ("cuMemHostAlloc", (_new, _size, _unsigned)),
    "cuMemcpyDtoDAsync": ("cuMemcpyDtoDAsync_v2", (_address, _address, _size, _handle)),
    "cuMemcpyDtoHAsync": ("cuMemcpyDtoHAsync_v2", (_handle, _address, _size, _handle)),
    "cuMemcpyHtoDAsync": ("cuMemcpyHtoDAsync_v2", (_address, _handle, _size, _handle)),
    "cuMemsetD8Async": ("cuMemsetD8Async", (_address, ctypes.c_ubyte, _size, _handle)),
    "cuModuleGetFunction": ("cuModuleGetFunction", (_new, _handle, ctypes.c_char_p)),
    "cuModuleLoadData": ("cuModuleLoadData", (_new, ctypes.c_char_p)),
    "cuModuleUnload": ("cuModuleUnload", (_handle,)),
    "cuPointerGetAttribute": ("cuPointerGetAttribute", (_Out(ctypes.c_int), _int, _address)),
    "cuStreamBeginCapture": ("cuStreamBeginCapture_v2", (_handle, _int)),
    "cuStreamCreate": ("cuStreamCreate", (_new, _unsigned)),
    "cuStreamDestroy": ("cuStreamDestroy_v2", (_handle,)),
    "cuStreamEndCapture": ("cuStreamEndCapture", (_handle, _new)),
    "cuStreamGetCtx": ("cuStreamGetCtx", (_handle, _new)),
    "cuStreamSynchronize": ("cuStreamSynchronize", (_handle,)),
    "cuStreamWaitEvent": ("cuStreamWaitEvent", (_handle, _handle, _unsigned)),
}


class _Library:
    """NVIDIA's driver library; calls release the interpreter's lock."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise DeviceError(f"No NVIDIA driver answers: {error}.", _MEND) from error
        self._functions: dict[str, Any] = {}

    def attempt(self, name: str, *arguments: Any) -> tuple[str, Sequence[Any]]:
        """An :data:`~yolact_deploy.engines.cuda.calls.Attempt`."""
        function = self._functions.get(name) or self._find(name)
        inputs = iter(arguments)
        given, answers = [], []
        for kind in _FUNCTIONS[name][1]:
            if isinstance(kind, _Out):
                answers.append(kind.kind())
                given.append(ctypes.byref(answers[-1]))
            else:
                given.append(next(inputs))
        code = function(*given)
        return (self._name(code) if code else ""), [answer.value for answer in answers]

    def _find(self, name: str) -> Any:
        symbol, kinds = _FUNCTIONS[name]
        try:
            function = self._library[symbol]  # a new object each time, so that nobody else sees its types
        except AttributeError as error:
            raise DeviceError(f"NVIDIA's driver has no {symbol}.", "Update NVIDIA's driver.") from error
        function.argtypes = [ctypes.POINTER(kind.kind) if isinstance(kind, _Out) else kind for kind in kinds]
        function.restype = ctypes.c_int
        return self._functions.setdefault(name, function)

    def _name(self, code: int) -> str:
        _, (name,) = self.attempt("cuGetErrorName", code)
        return name.decode() if name else f"error {code}"


def _pycuda() -> Any:
    try:
        return import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("pycuda", "pycuda", _PURPOSE) from error
    except ImportError as error:
        _Library()  # without which no PyCUDA imports
        raise MissingDependencyError(
            f"{_PURPOSE} needs a PyCUDA that was built for this machine; importing it failed: {error}.",
            "Run: pip install --force-reinstall --no-cache-dir pycuda",
        ) from error


class PyCudaDriver(CallingDriver):
    """GPU `index`: the calling thread's current PyCUDA context where that is one of this GPU, otherwise the primary one.

    The program's context lives as long as this object; the primary one is kept until the process ends, as the CUDA runtime keeps it.

    Raises :class:`MissingDependencyError` without PyCUDA, and :class:`DeviceError` without a driver that is new enough or such a GPU.
    """

    def __init__(self, index: int = 0) -> None:
        self._pycuda = _pycuda()
        self._library = _Library()
        self.where = f"GPU {index}"
        number = check_gpu(self.attempt, index, _NEEDED, type(self).__name__, "Update NVIDIA's driver.")
        try:
            self._pycuda.init()
            device = self._pycuda.Device(index)
            major, minor = device.compute_capability()
            self.info = DeviceInfo(index, str(device.name()), (int(major), int(minor)), int(device.total_memory()))
            self._program = self._current(device)
        except self._pycuda.Error as error:
            raise DeviceError(f"{self.where}: {' '.join(str(error).split())}") from error
        self.where = f"GPU {index} ({self.info.name})"
        # Not Device.retain_primary_context: PyCUDA ends its object by cuCtxDetach, which is not for primary contexts.
        self.context = self.call("cuDevicePrimaryCtxRetain", number) if self._program is None else self._program.handle

    def _current(self, device: Any) -> Any:
        """The current context of the PyCUDA program that this is part of, where it is one of `device`."""
        context = self._pycuda.Context.get_current()
        return context if context is not None and self._pycuda.Context.get_device() == device else None

    def attempt(self, name: str, *arguments: Any) -> tuple[str, Sequence[Any]]:
        return self._library.attempt(name, *arguments)
