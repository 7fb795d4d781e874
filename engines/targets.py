"""What an engine is built for: a backend, and compute capabilities by their usual spellings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from yolact_deploy.errors import ConfigError

__all__ = [
    "BACKENDS",
    "ENGINE_SUFFIXES",
    "TITLES",
    "BackendName",
    "Capability",
    "capability_text",
    "parse_capabilities",
    "parse_capability",
]

BackendName = Literal["tensorrt", "tensorrt-rtx"]
BACKENDS: tuple[BackendName, ...] = ("tensorrt", "tensorrt-rtx")
TITLES: dict[str, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""The backends as their makers write them."""
ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
"""How engines' files end."""
Capability = tuple[int, int]
"""A compute capability, ``(major, minor)``."""

_EXAMPLES: dict[Capability, str] = {
    (5, 3): "Jetson Nano",
    (6, 1): "GTX 10xx",
    (6, 2): "Jetson TX2",
    (7, 0): "V100",
    (7, 2): "Jetson Xavier",
    (7, 5): "RTX 20xx, T4",
    (8, 0): "A100",
    (8, 6): "RTX 30xx, A10",
    (8, 7): "Jetson Orin",
    (8, 9): "RTX 40xx, L4, L40",
    (9, 0): "H100, H200",
    (10, 0): "B200",
    (10, 3): "B300",
    (11, 0): "Jetson Thor",
    (12, 0): "RTX 50xx",
    (12, 1): "GB10",
}


def parse_capability(text: str) -> Capability:
    """``89``, ``8.9``, ``sm89`` and ``sm_89`` are (8, 9); :class:`ConfigError` for anything else."""
    match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip().lower(), re.ASCII)
    if match is None:
        raise ConfigError(f"The compute capability is {text!r}, a number such as 89 or 8.9 was wanted.", "Mend --sm.")
    return int(match[1]), int(match[2])


def parse_capabilities(texts: Sequence[str]) -> tuple[Capability, ...]:
    """Each text may hold several, separated by commas; sorted, without duplicates."""
    return tuple(sorted({parse_capability(part) for text in texts for part in text.split(",")}))


def capability_text(capability: Capability, *, examples: bool = False) -> str:
    """``8.9``; with `examples` ``8.9 (RTX 40xx, L4, L40)``."""
    text = f"{capability[0]}.{capability[1]}"
    return f"{text} ({_EXAMPLES[capability]})" if examples and capability in _EXAMPLES else text
