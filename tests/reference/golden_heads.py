"""The golden head outputs (tests/golden/heads.npz) and the inputs that belong to them, which follow from names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.helpers.golden import GOLDEN, golden_module

__all__ = ["CASES", "GoldenHeads", "golden_archive", "golden_heads"]

CASES = ("typical", "large")


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
    with np.load(GOLDEN / "heads.npz") as archive:
        return dict(archive)


def golden_heads(case: str) -> GoldenHeads:
    heads = golden_module("keyed_heads").keyed_heads(case)
    prototypes = np.ascontiguousarray(heads["proto"][0].transpose(2, 0, 1))
    return GoldenHeads(heads["loc"][0], heads["conf"][0], heads["mask"][0], prototypes, golden_archive()["priors"])
