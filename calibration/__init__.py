"""ONNX -> ONNX with Q/DQ: calibration pictures, ranges, placement, the search by mask AP, and how exact the result is.

The names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .options import CalibrationOptions, CalibrationResult
    from .pictures import CalibrationPictures
    from .pipeline import Calibrator

__all__ = ["CalibrationOptions", "CalibrationPictures", "CalibrationResult", "Calibrator"]

_HOME = {
    "CalibrationOptions": "options",
    "CalibrationPictures": "pictures",
    "CalibrationResult": "options",
    "Calibrator": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
