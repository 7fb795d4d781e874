"""What NVIDIA's driver says of this machine, asked through its C library alone, so that no CUDA package is needed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

__all__ = ["Gpu", "cuda_device_count", "driver_cuda_version", "driver_report", "gpus"]

_MAJOR, _MINOR = 75, 76  # CUdevice_attribute: compute capability


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, compute capability ``(major, minor)`` and memory in bytes."""

    name: str
    compute_capability: tuple[int, int]
    memory: int

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name}, compute capability {major}.{minor}, {self.memory / 2**30:.1f} GiB"


def _library() -> Any:
    """The driver's library; None where there is none."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _driver() -> Any:
    """The driver's library, initialised; None where there is none or it does not answer."""
    driver = _library()
    return driver if driver is not None and driver.cuInit(0) == 0 else None


def cuda_device_count() -> int:
    """GPUs that the driver shows; 0 without a driver."""
    driver = _driver()
    count = ctypes.c_int(0)
    return count.value if driver is not None and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def driver_cuda_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver supports, ``(major, minor)``; None without a driver."""
    driver = _library()
    version = ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def gpus() -> list[Gpu]:
    """Every GPU, in the driver's order; empty without a driver."""
    driver = _driver()
    return [_device(driver, index) for index in range(cuda_device_count())]


def driver_report() -> dict[str, Any]:
    """Version of the driver's CUDA, and for each GPU its name, compute capability and memory; or that there is none."""
    version = driver_cuda_version()
    if version is None:
        return {"driver": "none found: this machine runs on the CPU"}
    return {"driver": f"CUDA {version[0]}.{version[1]}", **{f"GPU {index}": str(gpu) for index, gpu in enumerate(gpus())}}


def _device(driver: Any, index: int) -> Gpu:
    device, name, memory = ctypes.c_int(0), ctypes.create_string_buffer(128), ctypes.c_size_t(0)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(errors="replace"), (capability[0], capability[1]), memory.value)
