"""Random numbers, grounds and patterns for the shapes set, in integers, the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.data.fields import ONE, Field, smooth_steps

__all__ = ["TURN", "Draws", "Ints", "ground", "pattern"]

Ints = NDArray[np.int32]
"""int32, small numbers a pixel: half the time of int64."""
TURN = 1024
"""Length of a direction."""


class Draws:
    """Random integers from the raw numbers of one PCG64, whose order NumPy guarantees, as it does not for what `Generator` makes of them.

    A place in the sequence is `seed` and `index`, neither negative.
    """

    def __init__(self, seed: int, index: int) -> None:
        self._source = np.random.PCG64([seed, index])
        self._pool: Iterator[int] = iter(())

    def below(self, count: int) -> int:
        """One of 0 … count - 1."""
        number = next(self._pool, None)
        if number is None:
            self._pool = iter(self._source.random_raw(64).tolist())
            number = next(self._pool)
        return number % count

    def between(self, low: int, high: int) -> int:
        """One of low … high."""
        return low + self.below(high - low + 1)

    def chance(self, part: int) -> bool:
        """True in `part` of 256 draws."""
        return self.below(ONE) < part

    def bytes(self, count: int) -> Ints:
        """int32 [count], 0 … 255."""
        raw = self._source.random_raw(-(-count // 8)).astype("<u8", copy=False)
        return raw.view(np.uint8)[:count].astype(np.int32)

    def noise(self, size: int, strength: int) -> Ints:
        """int32 [size, size, 1], -strength … strength."""
        return ((self.bytes(size * size) * (2 * strength + 1) >> 8) - strength).reshape(size, size, 1)

    def channels(self, low: int, high: int) -> Ints:
        """int32 [3], low … high each."""
        return np.array([self.between(low, high) for _ in range(3)], np.int32)

    def direction(self) -> tuple[int, int]:
        """A direction of length :data:`TURN`, every angle alike."""
        while True:
            x, y = self.between(-TURN, TURN), self.between(-TURN, TURN)
            square = x * x + y * y
            if TURN * TURN // 2 < square <= TURN * TURN:
                length = isqrt(square)
                return x * TURN // length, y * TURN // length


def ground(draw: Draws, size: int) -> Ints:
    """int32 [size, size, 3]: a gradient between two colours, mottled at three scales, every other time with a faint pattern."""
    first = draw.channels(20, 235)
    second = first + draw.channels(-60, 60)
    places = np.arange(size, dtype=np.int32)
    slant = draw.between(0, ONE)
    part = (places * slant + places[:, None] * (ONE - slant)) // size
    canvas: Ints = first + (part[..., None] * (second - first) >> 8)
    for cell, strength in ((size // 3, 40), (size // 11, 30), (max(size // 50, 2), 20)):
        weights = draw.channels(ONE // 2, ONE) * draw.between(0, strength)
        canvas += _mottle(draw, size, cell)[..., None] * weights >> 15
    if draw.chance(128):
        drawn = pattern(draw, places[None, :], places[:, None], draw.between(3, 24))
        canvas += drawn[..., None].astype(np.int32) * draw.between(-30, 30)
    return canvas


def _mottle(draw: Draws, size: int, cell: int) -> Ints:
    """int32 [size, size] in -128 … 127, random values `cell` pixels apart and smooth between them."""
    cells = size // cell + 2
    grid = (draw.bytes(cells * cells) - 128).reshape(cells, cells)
    places, steps = smooth_steps(size, cell)
    part = steps.astype(np.int32)
    wide: Ints = grid[:, places] * (ONE - part) + grid[:, places + 1] * part
    mottle: Ints = (wide[places] * (ONE - part[:, None]) + wide[places + 1] * part[:, None]) >> 16
    return mottle


def pattern(draw: Draws, across: Field | Ints, down: Field | Ints, cell: int) -> NDArray[np.bool_]:
    """bool, by broadcasting: slanting stripes, checks or dots of about `cell`, in the unit of `across` and `down`."""
    kind, slant = draw.below(3), draw.between(-3, 3)
    if kind == 0:
        stripes: NDArray[np.bool_] = (across * slant + down * 2) // (cell * 2) % 2 == 0
        return stripes
    if kind == 1:
        checks: NDArray[np.bool_] = (across // cell + down // cell) % 2 == 0
        return checks
    x, y = across % (2 * cell) - cell, down % (2 * cell) - cell
    dots: NDArray[np.bool_] = x * x + y * y < cell * cell // 3
    return dots
