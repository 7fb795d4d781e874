"""PyTorch -> ONNX: tracing, graph passes, FP16, the manifest inside the file, and the proof that the file equals the model.

The names below need torch and load on first use, so that the graph passes work without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporter import ExportOptions, ExportResult, export_checkpoint
    from .verification import Comparison, VerificationReport

__all__ = ["Comparison", "ExportOptions", "ExportResult", "VerificationReport", "export_checkpoint"]

_HOME = {
    "Comparison": "verification",
    "ExportOptions": "exporter",
    "ExportResult": "exporter",
    "VerificationReport": "verification",
    "export_checkpoint": "exporter",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
