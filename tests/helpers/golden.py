"""The golden numbers' folder, and the modules in it, which make the inputs that belong to the numbers."""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

__all__ = ["GOLDEN", "golden_module"]

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@lru_cache(maxsize=3)
def golden_module(name: str) -> ModuleType:
    """``tests/golden/NAME.py`` as it came with the golden numbers; some import their neighbours by bare names."""
    sys.path.insert(0, str(GOLDEN))
    try:
        spec = importlib.util.spec_from_file_location(name, GOLDEN / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(GOLDEN))
    return module
