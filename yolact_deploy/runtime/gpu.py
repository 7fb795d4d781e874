"""What NVIDIA's driver says of this machine, asked through its C library alone, so that no CUDA package is needed."""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ["cuda_device_count", "driver_report"]

_MAJOR, _MINOR = 75, 76  # CUdevice_attribute: compute capability


def _driver() -> Any:
    """The driver's library, initialised; None where there is none or it does not answer."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        return driver if driver.cuInit(0) == 0 else None
    return None


def cuda_device_count() -> int:
    """GPUs that the driver shows; 0 without a driver."""
    driver = _driver()
    count = ctypes.c_int(0)
    return count.value if driver is not None and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def driver_report() -> dict[str, Any]:
    """Version of the driver's CUDA, and for each GPU its name, compute capability and memory; or that there is none."""
    driver = _driver()
    if driver is None:
        return {"driver": "none found: this machine runs on the CPU"}
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    report: dict[str, Any] = {"driver": f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"}
    for index in range(cuda_device_count()):
        report[f"GPU {index}"] = _device(driver, index)
    return report


def _device(driver: Any, index: int) -> str:
    device, name, memory = ctypes.c_int(0), ctypes.create_string_buffer(128), ctypes.c_size_t(0)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return f"{name.value.decode(errors='replace')}, compute capability {'.'.join(capability)}, {memory.value / 2**30:.1f} GiB"
