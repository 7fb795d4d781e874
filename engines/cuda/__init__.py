"""The GPU without TensorRT: the driver seam, and pre- and post-processing on it.

What is named here is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cuda_core import open_driver
    from .draw import DeviceFrame, DeviceMasks, MaskPainter
    from .driver import Driver
    from .found import Found
    from .postprocessor import Postprocessor
    from .preprocess import DevicePicture, DevicePreprocessor
    from .workspace import HeadShapes

__all__ = [
    "DeviceFrame",
    "DeviceMasks",
    "DevicePicture",
    "DevicePreprocessor",
    "Driver",
    "Found",
    "HeadShapes",
    "MaskPainter",
    "Postprocessor",
    "open_driver",
]

_HOME = {
    "DeviceFrame": "draw",
    "DeviceMasks": "draw",
    "DevicePicture": "preprocess",
    "DevicePreprocessor": "preprocess",
    "Driver": "driver",
    "Found": "found",
    "HeadShapes": "workspace",
    "MaskPainter": "draw",
    "Postprocessor": "postprocessor",
    "open_driver": "cuda_core",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
