"""Device memory of other libraries, taken and given without a copy: torch, CuPy, Numba, PyCUDA and whatever speaks their two protocols.

Arrays come in by DLPack (https://dmlc.github.io/dlpack, with and without a version) or ``__cuda_array_interface__`` (version 2 and 3),
and go out by the latter.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from yolact_deploy.errors import ConfigError

from .driver import Driver, Stream
from .owned import OwnedStream, handle_of

__all__ = ["DeviceArray", "DeviceView", "device_array"]

_CPU, _CUDA, _PAGE_LOCKED, _MANAGED = 1, 2, 3, 13  # kDLCPU, kDLCUDA, kDLCUDAHost, kDLCUDAManaged
_PLACES = {_CPU: "on the CPU", _PAGE_LOCKED: "in page-locked host memory"}
_KINDS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}  # kDLInt, kDLUInt, kDLFloat, kDLComplex, kDLBool
_NAMES = ("int", "uint", "float", "opaque", "bfloat", "complex", "bool")
_READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY
_NOBODY = -1  # the stream that asks a producer not to make anybody wait


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """An array of `shape` and `dtype` in C order, from device address `pointer` on GPU number `device`; `owner` keeps it alive."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int
    owner: object = None

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class DeviceView:
    """Device memory as ``torch.as_tensor``, ``cupy.asarray`` and others take it: `shape` and `dtype` in C order, from `pointer` on.

    Whoever takes it makes its own work wait for what is queued on `stream` then; None where the memory is ready. `owner` lives as long as
    the view; it decides how long the contents stay.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object = None
    stream: Stream | None = None

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """Version 3 of the protocol. Raises :class:`yolact_deploy.errors.DeviceError` where the stream is closed."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
            "stream": handle_of(self.stream) if self.stream else None,
        }


def device_array(value: object, *, device: int, stream: Stream | None, driver: Driver | None = None, writable: bool = False) -> DeviceArray:
    """The memory of `value`, an array of another library that lies on GPU number `device`, without a copy.

    Args:
        value: with ``__dlpack__`` and ``__dlpack_device__`` (torch, CuPy, …) or ``__cuda_array_interface__`` (PyCUDA, Numba, …). The
            latter does not tell the GPU, the driver does where it is known.
        device: the GPU wanted.
        stream: where the array will be used: work queued there from now on waits for what the array's library has queued. None where
            the caller sees to that.
        driver: that made `stream`; None where it is one of cuda-core's or PyCUDA's driver.
        writable: refuse an array that must not be written to.

    Raises :class:`TypeError` where `value` has neither protocol, and :class:`ConfigError` for an array that is on the CPU or another GPU,
    not contiguous in C order, of a dtype that NumPy has not, read-only where `writable`, or not given out by its library.
    """
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return _from_dlpack(value, device, stream, writable)
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is not None:
        return _from_interface(value, interface, device, stream, driver, writable)
    raise TypeError(
        "an array on a GPU is wanted, which has __dlpack__ or __cuda_array_interface__ (torch, CuPy, PyCUDA, …); "
        f"{type(value).__name__} has neither"
    )


def _name(value: object) -> str:
    return f"The {type(value).__module__.partition('.')[0]} {type(value).__name__}"


def _checked(
    value: object, shape: Sequence[int], strides: Sequence[int] | None, dtype: np.dtype[Any], read_only: bool, writable: bool
) -> tuple[int, ...]:
    """The shape, where the array is in C order; `strides` in bytes."""
    wanted: list[int] = []
    size = dtype.itemsize
    for length in reversed(shape):
        wanted.insert(0, size)
        size *= length
    used = [axis for axis, length in enumerate(shape) if length > 1]
    if strides is not None and size and [strides[axis] for axis in used] != [wanted[axis] for axis in used]:
        raise ConfigError(
            f"{_name(value)} of shape {tuple(shape)} is not contiguous: its strides are {tuple(strides)} bytes, "
            f"{tuple(wanted)} were wanted.",
            "Make a contiguous copy of it.",
        )
    if writable and read_only:
        raise ConfigError(f"{_name(value)} is read-only, one that may be written to was wanted.", "Make a copy of it.")
    return tuple(shape)


# DLPack


class _Tensor(ctypes.Structure):
    """``DLTensor``; `strides` count elements."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    """``DLManagedTensor``."""

    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _VersionedManaged(ctypes.Structure):
    """``DLManagedTensorVersioned``."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


# With the interpreter's lock held, which a deleter may take again.
_Deleter = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))
# Name of a capsule, its name once it is used up, and what it holds. The capsule points to the name, which must stay.
_CAPSULES: tuple[tuple[bytes, bytes, type[_Managed] | type[_VersionedManaged]], ...] = (
    (b"dltensor_versioned", b"used_dltensor_versioned", _VersionedManaged),
    (b"dltensor", b"used_dltensor", _Managed),
)


class _Held:
    """A tensor of another library; its deleter is called when this object goes."""

    def __init__(self, deleter: int | None, address: int) -> None:
        if deleter:
            end = weakref.finalize(self, _Deleter(deleter), address)
            end.atexit = False  # the other library may be gone by then


def _from_dlpack(value: Any, device: int, stream: Stream | None, writable: bool) -> DeviceArray:
    kind, number = (int(part) for part in value.__dlpack_device__())
    _check_place(value, kind, number, device)
    capsule = _capsule(value, stream)
    found = next((names for names in _CAPSULES if _is_valid(capsule, names[0])), None)
    if found is None:
        raise ConfigError(f"__dlpack__ of {_name(value)} answers {capsule!r}, a new capsule with a tensor was wanted.")
    address = _get_pointer(capsule, found[0])
    managed = found[2].from_address(address)
    if isinstance(managed, _VersionedManaged) and managed.major != 1:  # the rest may lie elsewhere; the capsule itself calls the deleter
        raise ConfigError(
            f"{_name(value)} is given by DLPack {managed.major}.{managed.minor}, 1.x is known.", "Use an older version of that library."
        )
    tensor = managed.tensor
    _check_place(value, tensor.device_type, tensor.device_id, device)
    dtype = _dlpack_dtype(value, tensor.code, tensor.bits, tensor.lanes)
    strides = [step * dtype.itemsize for step in tensor.strides[: tensor.ndim]] if tensor.strides else None
    read_only = isinstance(managed, _VersionedManaged) and bool(managed.flags & _READ_ONLY)
    shape = _checked(value, tensor.shape[: tensor.ndim], strides, dtype, read_only, writable)
    pointer = (tensor.data or 0) + tensor.byte_offset
    _set_name(capsule, found[1])  # from here on the deleter is ours to call
    return DeviceArray(pointer, shape, dtype, device, _Held(managed.deleter, address))


def _check_place(value: object, kind: int, number: int, device: int) -> None:
    if kind not in (_CUDA, _MANAGED):
        place = _PLACES.get(kind, f"on a device of DLPack's kind {kind}")
        raise ConfigError(f"{_name(value)} is {place}, GPU {device} was wanted.", "Move it there first.")
    if number != device:
        raise ConfigError(f"{_name(value)} is on GPU {number}, GPU {device} was wanted.", "Move it there first.")


def _capsule(value: Any, stream: Stream | None) -> object:
    handle = handle_of(stream) if stream else _NOBODY
    try:
        try:
            return value.__dlpack__(stream=handle, max_version=(1, 1))
        except TypeError:  # from before DLPack had versions
            return value.__dlpack__(stream=handle)
    except (BufferError, RuntimeError) as error:
        raise ConfigError(f"{_name(value)} is not given out by DLPack: {' '.join(str(error).split())}") from error


def _dlpack_dtype(value: object, code: int, bits: int, lanes: int) -> np.dtype[Any]:
    dtype = _dtype(f"{_KINDS[code]}{bits // 8}") if code in _KINDS and bits % 8 == 0 and lanes == 1 else None
    if dtype is None:
        kind = _NAMES[code] if code < len(_NAMES) else f"number {code}, bits "
        raise ConfigError(
            f"{_name(value)} has the dtype {kind}{bits}{f' x {lanes}' * (lanes != 1)}, one that NumPy has was wanted.",
            "Convert it on the device.",
        )
    return dtype


def _dtype(name: DTypeLike) -> np.dtype[Any] | None:
    try:
        return np.dtype(name)
    except TypeError:
        return None


# __cuda_array_interface__


def _from_interface(
    value: object, interface: dict[str, Any], device: int, stream: Stream | None, driver: Driver | None, writable: bool
) -> DeviceArray:
    dtype = _dtype(interface["typestr"])
    if dtype is None or dtype.kind not in "biufc" or not dtype.isnative:
        raise ConfigError(
            f"{_name(value)} has the typestr {interface['typestr']!r}, a number in this machine's byte order was wanted.",
            "Convert it on the device.",
        )
    if interface.get("mask") is not None:
        raise ConfigError(f"{_name(value)} has a mask, an array without one was wanted.", "Fill what is masked.")
    pointer, read_only = interface["data"]
    shape = _checked(value, interface["shape"], interface.get("strides"), dtype, bool(read_only), writable)
    if driver is None and isinstance(stream, OwnedStream):
        driver = stream.driver
    if driver is not None and pointer:
        _require_device(value, driver.device_of(int(pointer)), device)
    producer = interface.get("stream")
    if producer is not None and stream is not None and producer != stream.handle:
        _wait(stream, producer, driver)
    return DeviceArray(int(pointer or 0), shape, dtype, device, value)


def _require_device(value: object, found: int | None, wanted: int) -> None:
    """The interface names no GPU; one address too many that the GPU cannot reach would end its context."""
    if found is None:
        raise ConfigError(f"{_name(value)} does not lie in a GPU's memory.", f"Copy it to GPU {wanted}.")
    if found != wanted:
        raise ConfigError(f"{_name(value)} is on GPU {found}, one on GPU {wanted} was wanted.", f"Copy it to GPU {wanted}.")


def _wait(stream: Stream, producer: int, driver: Driver | None) -> None:
    """Make work queued on `stream` from now on wait for what is queued on the stream of handle `producer`."""
    if driver is None:
        if not isinstance(stream, OwnedStream):
            raise ConfigError(
                "The array's own stream has to be waited for, which needs the driver.", "Give the driver that made the stream."
            )
        driver = stream.driver
    with driver.borrow_stream(producer) as other, driver.create_event() as mark:
        mark.record(other)
        stream.wait(mark)
