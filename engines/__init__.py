"""ONNX -> TensorRT: building engines, checking, inspecting and running them.

The names below load on first use, so that asking for a GPU costs no more than its own module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adopt import AdoptResult, adopt_engine
    from .batches import BatchRange
    from .builder import BuildResult, build_engine
    from .loading import LoadedEngine, load_engine
    from .options import BuildOptions

__all__ = ["AdoptResult", "BatchRange", "BuildOptions", "BuildResult", "LoadedEngine", "adopt_engine", "build_engine", "load_engine"]

_HOME = {
    "AdoptResult": "adopt",
    "BatchRange": "batches",
    "BuildOptions": "options",
    "BuildResult": "builder",
    "LoadedEngine": "loading",
    "adopt_engine": "adopt",
    "build_engine": "builder",
    "load_engine": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
