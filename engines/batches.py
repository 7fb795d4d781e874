"""Batch sizes of an engine: the optimization profile's smallest, best and largest."""

from __future__ import annotations

import re
from dataclasses import dataclass

from yolact_deploy.errors import ConfigError

__all__ = ["DEFAULT_BATCHES", "BatchRange"]

_LARGEST = 1024


@dataclass(frozen=True)
class BatchRange:
    """The engine takes `minimum` … `maximum` pictures at once and is tuned for `optimum`.

    Raises :class:`ConfigError` unless 1 <= minimum <= optimum <= maximum <= 1024.
    """

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum <= _LARGEST:
            raise ConfigError(
                f"The batches are {self}, smallest <= best <= largest from 1 to {_LARGEST} was wanted.", "Mend --batch, such as 1:4:16."
            )

    def __str__(self) -> str:
        return f"{self.minimum}:{self.optimum}:{self.maximum}"

    @property
    def fixed(self) -> bool:
        """Whether there is one size only."""
        return self.minimum == self.maximum

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """``4`` is 4:4:4, ``1:16`` is 1:16:16, ``1:4:16`` as it stands; :class:`ConfigError` for anything else."""
        if not re.fullmatch(r"\d{1,9}(:\d{1,9}){0,2}", text, re.ASCII):
            raise ConfigError(f"The batch is {text!r}, a number or smallest:best:largest was wanted.", "Mend --batch, such as 1:4:16.")
        sizes = [int(part) for part in text.split(":")]
        return cls(sizes[0], sizes[len(sizes) // 2], sizes[-1])


DEFAULT_BATCHES = BatchRange(1, 1, 8)
"""Of a graph with a dynamic batch, where nothing else is said."""
