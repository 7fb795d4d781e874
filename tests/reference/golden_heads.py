"""The golden head outputs (tests/golden/heads.npz) and the inputs that belong to them, which follow from names."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

__all__ = ["CASES", "GoldenHeads", "golden_archive", "golden_heads"]

CASES = ("typical", "large")
FOLDER = Path(__file__).resolve().parent.parent / "golden"


@dataclass(frozen=True, eq=False)
class GoldenHeads:
    """One picture's head outputs: loc [P, 4], logits [P, 81], coefficients [P, 32], prototypes [32, 138, 138], priors [P, 4]."""

    loc: np.ndarray
    logits: np.ndarray
    coefficients: np.ndarray
    prototypes: np.ndarray
    priors: np.ndarray


def golden_archive() -> dict[str, np.ndarray]:
    """What the original implementation makes of the heads, by name."""
    with np.load(FOLDER / "heads.npz") as archive:
        return dict(archive)


def golden_heads(case: str) -> GoldenHeads:
    heads = _keyed_heads().keyed_heads(case)
    prototypes = np.ascontiguousarray(heads["proto"][0].transpose(2, 0, 1))
    return GoldenHeads(heads["loc"][0], heads["conf"][0], heads["mask"][0], prototypes, golden_archive()["priors"])


def _keyed_heads() -> ModuleType:
    """keyed_heads.py as it came with the golden numbers: it imports its neighbour by its bare name."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("keyed_heads", FOLDER / "keyed_heads.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FOLDER))
