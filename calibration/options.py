"""What a calibration is asked for, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from yolact_deploy.errors import ConfigError

from .doctor import Finding
from .modelopt import modelopt_method
from .ranges import METHODS, Method
from .scoring import Score
from .search import Plan

__all__ = ["Accuracy", "CalibrationOptions", "CalibrationResult", "Progress", "artifact_paths"]


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate; see the command's options.

    Attributes:
        method, percentile: of the ranges.
        max_drop: points of mask AP that the search may lose; None for no search.
        sensitivity: tell each module's drop, whether or not anything has to be kept.
        budget: seconds of the search, None for no limit.
        bias_correction, equalization: corrections.
        keep: layers, or modules of layers, that stay in floats whatever the search finds.
        rest: what the floats of the TensorRT graph become in an engine.
        threads: of ONNX Runtime, 0 for all.
        fresh: forget what earlier runs left.
        force: replace files that this command did not write.
        quantizer: what decides on pairs and ranges of the graph for TensorRT; the one for ONNX Runtime is always of our own.

    Raises :class:`ConfigError` for values out of range.
    """

    method: Method = "mse"
    percentile: float = 99.99
    max_drop: float | None = None
    sensitivity: bool = False
    budget: float | None = None
    bias_correction: bool = False
    equalization: bool = False
    keep: tuple[str, ...] = ()
    rest: Literal["float16", "float32"] = "float16"
    threads: int = 0
    fresh: bool = False
    force: bool = False
    quantizer: Literal["own", "modelopt"] = "own"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"There is no method {self.method!r}; there are {', '.join(METHODS)}.", "Name one of these.")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise ConfigError(f"The allowed drop is {self.max_drop:g} points, 0 or more was wanted.", "Mend --max-drop.")
        if self.budget is not None and not self.budget > 0:
            raise ConfigError(f"The budget is {self.budget:g} seconds, more than 0 was wanted.", "Mend --budget.")
        if self.quantizer not in ("own", "modelopt"):
            raise ConfigError(f"There is no quantizer {self.quantizer!r}; there are own and modelopt.", "Name one of these.")
        if self.quantizer == "modelopt":
            self._check_modelopt()

    def _check_modelopt(self) -> None:
        modelopt_method(self.method)
        searches = {"--max-drop": self.max_drop is not None, "--sensitivity": self.sensitivity}
        for option in (name for name, given in searches.items() if given):
            raise ConfigError(
                f"{option} was asked for with --quantizer modelopt, which has no search: each of its sets would be a calibration.",
                "Search with --quantizer own, and give what it keeps to ModelOpt: --keep LAYER.",
            )
        if self.bias_correction:
            raise ConfigError(
                "--bias-correction was asked for with --quantizer modelopt: it corrects our own rounding.", "Leave out one of the two."
            )


@dataclass(frozen=True)
class Accuracy:
    """How exact one graph is: its name in words, its score, and its drop of mask AP against the float graph's."""

    name: str
    score: Score
    drop: float


@dataclass(frozen=True)
class CalibrationResult:
    """What was written and found.

    Attributes:
        tensorrt, onnxruntime, report: the files.
        findings: of the calibration doctor.
        skipped: name and reason of pictures that could not be read.
        kept: layers in floats.
        plan: of the search, None without.
        accuracy: of each graph, empty where nothing was there to measure on.
        notes: sentences worth knowing.
        document: the report as JSON holds it.
    """

    tensorrt: Path
    onnxruntime: Path
    report: Path
    findings: tuple[Finding, ...]
    skipped: tuple[tuple[str, str], ...]
    kept: tuple[str, ...]
    plan: Plan | None
    accuracy: tuple[Accuracy, ...]
    notes: tuple[str, ...]
    document: dict[str, Any]


Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and of how much (0: not known)."""


def artifact_paths(model: Path, output: Path | None, folder: Path) -> tuple[Path, Path, Path]:
    """The graph for TensorRT, the one for ONNX Runtime and the report: ``NAME.int8.onnx`` and so on, in `folder` or as `output` says."""
    first = output or folder / f"{model.stem.removesuffix('.fp32')}.int8.onnx"
    if first.suffix != ".onnx":
        raise ConfigError(f"The output {first} ends in {first.suffix or 'nothing'}, .onnx was wanted.", "Name it NAME.int8.onnx.")
    stem = first.name.removesuffix(".onnx").removesuffix(".int8")
    return first, first.with_name(f"{stem}.int8.ort.onnx"), first.with_name(f"{stem}.calibration.json")
