"""What a user can ask of a build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolact_deploy.errors import ConfigError

from .batches import BatchRange
from .selftest import SelftestOrder
from .source import Precision
from .targets import Capability
from .versions import HardwareLevel

__all__ = ["BuildOptions"]


@dataclass(frozen=True)
class BuildOptions:
    """What to build; see the command's options.

    Attributes:
        precision: ``graph`` as it stands, ``fp16`` converted here, ``int8`` for a graph with Q/DQ pairs.
        backend: ``auto``, ``tensorrt`` or ``tensorrt-rtx``.
        sm: compute capabilities to build for; empty is the GPU here, or a portable TensorRT-RTX engine.
        batch: pictures at once; None is the graph's own batch, or 1:1:8 where that is dynamic.
        workspace: MiB of scratch memory that a layer may take, None for all there is.
        optimization_level: 0 (fastest build) to 5, None for TensorRT's own 3.
        hardware_level, version_compatible: wider compatibility, TensorRT only.
        timing_cache: a file, ``none``, or None for the user's cache folder.
        tf32: let float32 multiply in TensorFloat-32, which keeps 10 bits of each factor; TensorRT's own default, off here.
        detailed: keep layer names and precisions in the engine, for `inspect` and profilers.
        selftest: what makes the self-test that the engine carries; None for an engine without.
    """

    precision: Precision = "graph"
    backend: Literal["auto", "tensorrt", "tensorrt-rtx"] = "auto"
    sm: tuple[Capability, ...] = ()
    batch: BatchRange | None = None
    workspace: int | None = None
    optimization_level: int | None = None
    hardware_level: HardwareLevel = "none"
    version_compatible: bool = False
    timing_cache: Path | Literal["none"] | None = None
    tf32: bool = False
    detailed: bool = False
    selftest: SelftestOrder | None = None

    def __post_init__(self) -> None:
        if self.workspace is not None and not 1 <= self.workspace <= 1 << 20:
            raise ConfigError(f"The workspace is {self.workspace} MiB, 1 to {1 << 20} was wanted.", "Mend --workspace.")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"The optimization level is {self.optimization_level}, 0 to 5 was wanted.", "Mend --optimization-level.")
