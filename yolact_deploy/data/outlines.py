"""The eight outlines of the shapes set, as depth fields: how far inside its shape each pixel's centre lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from yolact_deploy.data.fields import ONE, Field, root

__all__ = ["OUTLINES", "Outline"]

_UNIT = 1024  # length of the normals below
_FAR = 1 << 40


def _disc(u: Field, v: Field, radius: int, part: int) -> Field:
    return radius - root(u * u + v * v)


def _ring(u: Field, v: Field, radius: int, part: int) -> Field:
    distance = root(u * u + v * v)
    return np.minimum(radius - distance, distance - radius * (116 + part // 5) // ONE)


def _square(u: Field, v: Field, radius: int, part: int) -> Field:
    return radius * 210 // ONE - np.maximum(np.abs(u), np.abs(v))


def _frame(u: Field, v: Field, radius: int, part: int) -> Field:
    distance = np.maximum(np.abs(u), np.abs(v))
    depth: Field = np.minimum(radius * 220 // ONE - distance, distance - radius * (100 + part // 5) // ONE)
    return depth


def _triangle(u: Field, v: Field, radius: int, part: int) -> Field:
    sides = ((0, _UNIT), (887, -512), (-887, -512))
    return _deepest(u, v, sides, radius * 152 // ONE, 0)


def _star(u: Field, v: Field, radius: int, part: int) -> Field:
    """Five points: where at most one of the five lines of a pentagram is crossed."""
    sides = ((0, _UNIT), (974, 316), (602, -828), (-602, -828), (-974, 316))
    return _deepest(u, v, sides, radius * 91 // ONE, 1)


def _deepest(u: Field, v: Field, sides: tuple[tuple[int, int], ...], distance: int, crossed: int) -> Field:
    """Depth below the lines with the normals `sides` at `distance` from the centre, of which `crossed` (0 or 1) may be passed."""
    least = second = np.full(u.shape, _FAR, np.int64)
    for a, b in sides:
        depth = distance - (u * a + v * b) // _UNIT
        second = np.minimum(second, np.maximum(least, depth))
        least = np.minimum(least, depth)
    return second if crossed else least


def _cross(u: Field, v: Field, radius: int, part: int) -> Field:
    long, short, across, down = radius * 250 // ONE, radius * (68 + part // 10) // ONE, np.abs(u), np.abs(v)
    depth: Field = np.maximum(np.minimum(long - across, short - down), np.minimum(short - across, long - down))
    return depth


def _bar(u: Field, v: Field, radius: int, part: int) -> Field:
    depth: Field = np.minimum(radius * 5 // 4 - np.abs(u), radius * (72 + part // 8) // ONE - np.abs(v))
    return depth


@dataclass(frozen=True)
class Outline:
    """A class of shapes.

    ``depth(u, v, radius, part)`` is int64 like `u` and `v`, the pixel centres' places in the shape's own axes; all lengths are in
    1/256 pixel, and a pixel belongs to the shape where the depth is not negative. `part`, 0 … 256, varies its proportions.
    `reach` is how far the shape reaches from its centre, in 1/256 radius.
    """

    name: str
    depth: Callable[[Field, Field, int, int], Field]
    reach: int


OUTLINES = (
    Outline("disc", _disc, 256),
    Outline("ring", _ring, 256),
    Outline("square", _square, 298),
    Outline("frame", _frame, 312),
    Outline("triangle", _triangle, 306),
    Outline("star", _star, 296),
    Outline("cross", _cross, 268),
    Outline("bar", _bar, 340),
)
"""In the order of the labels."""
