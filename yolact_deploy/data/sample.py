"""A picture that the package draws itself, so that every command has something to work on without a download.

Everything is integer arithmetic on NumPy's PCG64 numbers, so that the bytes are the same on every machine. Lengths are in 1/256
pixel, colours and coverages in 0 … 256.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.data.fields import ONE, Field, root, smooth_steps, span

__all__ = ["sample_picture"]

_SHAPES = 8
_COLOURS = (
    (216, 62, 48),
    (240, 170, 40),
    (66, 150, 72),
    (44, 110, 190),
    (150, 72, 160),
    (232, 226, 210),
    (64, 60, 66),
    (36, 168, 170),
)


def sample_picture(width: int = 640, height: int = 480, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 RGB [height, width, 3]: balls, boxes, plates, rings and stars, shaded and overlapping, on a mottled ground with noise.

    The same arguments give the same bytes. Raises :class:`ValueError` for a size below one pixel or a negative seed.
    """
    if width < 1 or height < 1:
        raise ValueError(f"the sample picture was asked for with {width} x {height} pixels, at least 1 x 1 was wanted")
    random = np.random.Generator(np.random.PCG64(seed))
    picture = _ground(random, width, height)
    kinds, colours = random.permutation(_SHAPES), random.permutation(len(_COLOURS))
    for index in range(_SHAPES):
        _paint_shape(picture, random, index, int(kinds[index]), np.array(_COLOURS[colours[index]], np.int64))
    picture += random.integers(-5, 6, (height, width, 1)) + random.integers(-2, 3, (height, width, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


def _ground(random: np.random.Generator, width: int, height: int) -> Field:
    """int64 [height, width, 3]: a slanting gradient between two colours, mottled at three scales."""
    top, bottom = random.integers(130, 226, 3), random.integers(50, 150, 3)
    down = (np.arange(height) * ONE // height)[:, None] * 3
    along = (np.arange(width) * ONE // width)[None, :]
    part = ((down + along) // 4)[..., None]
    picture = np.asarray((top * (ONE - part) + bottom * part) // ONE, np.int64)
    size = max(width, height)
    for cells, strength in ((4, 30), (13, 18), (50, 12)):
        cell = max(size // cells, 1)
        mottle: Field = _mottle(random, width, height, cell) * strength // ONE
        picture += mottle[..., None]
    return picture


def _mottle(random: np.random.Generator, width: int, height: int, cell: int) -> Field:
    """int64 [height, width] in -128 … 128, random values `cell` pixels apart and smooth between them."""
    grid = random.integers(-128, 129, (height // cell + 2, width // cell + 2))
    (rows, down), (columns, along) = smooth_steps(height, cell), smooth_steps(width, cell)
    above = grid[rows][:, columns] * (ONE - along) + grid[rows][:, columns + 1] * along
    below = grid[rows + 1][:, columns] * (ONE - along) + grid[rows + 1][:, columns + 1] * along
    return np.asarray((above * (ONE - down[:, None]) + below * down[:, None]) // (ONE * ONE), np.int64)


def _paint_shape(picture: Field, random: np.random.Generator, index: int, kind: int, colour: Field) -> None:
    """Paint one shape with its shadow into `picture`, in the slot `index` of a 4 x 2 layout that shapes overrun on purpose."""
    height, width = picture.shape[:2]
    column, row = index % 4, index // 4
    x = (width * (2 * column + 1) * ONE) // 8 + int(random.integers(-32, 33)) * width // 2
    y = (height * (2 * row + 1) * ONE) // 4 + int(random.integers(-32, 33)) * height // 2
    radius = max(min(width, height) * int(random.integers(32, 62)), ONE)
    turn = random.integers(-100, 101, 2)
    turn[0] = turn[0] or 1
    shadow = radius // 8
    for offset, shaded in ((shadow, False), (0, True)):
        reach = radius // ONE + 2
        left, right = span((x + offset) // ONE, reach, width)
        top, bottom = span((y + offset) // ONE, reach, height)
        if left >= right or top >= bottom:
            continue
        across = np.arange(left, right)[None, :] * ONE + ONE // 2 - x - offset
        down = np.arange(top, bottom)[:, None] * ONE + ONE // 2 - y - offset
        region = picture[top:bottom, left:right]
        depth = _depth(kind, across, down, radius, turn)
        if shaded:
            cover = np.clip(depth + ONE // 2, 0, ONE)[..., None]
            paint = _shaded(kind, colour, across, down, depth, radius)
        else:
            cover = (np.clip(depth * ONE // max(shadow, 1), 0, ONE) * 2 // 5)[..., None]
            paint = np.zeros((1, 1, 3), np.int64)
        region[...] = (region * (ONE - cover) + paint * cover) // ONE


def _depth(kind: int, across: Field, down: Field, radius: int, turn: Field) -> Field:
    """How far inside the shape each pixel lies, in 1/256 pixel, negative outside.

    Kinds 0 … 7: ball, striped ball, ellipse, ring, square, striped bar, triangle, star of eight.
    """
    cosine, sine = int(turn[0]), int(turn[1])
    length = isqrt(cosine * cosine + sine * sine)
    u, v = (across * cosine + down * sine) // length, (down * cosine - across * sine) // length
    distance = root(across * across + down * down)
    depth: Field
    if kind in (0, 1):
        depth = radius - distance
    elif kind == 2:
        depth = radius * 5 // 9 - root((u * 5 // 9) ** 2 + v * v)
    elif kind == 3:
        depth = np.minimum(radius - distance, distance - radius * 5 // 9)
    elif kind == 4:
        depth = np.minimum(radius * 2 // 3 - np.abs(u), radius * 2 // 3 - np.abs(v))
    elif kind == 5:
        depth = np.minimum(radius * 9 // 10 - np.abs(u), radius * 2 // 5 - np.abs(v))
    elif kind == 6:
        depth = np.minimum(radius // 2 - (np.abs(u) * 222 + v * 128) // ONE, v + radius // 2)
    else:
        square = radius * 4 // 7 - np.maximum(np.abs(u), np.abs(v))
        depth = np.maximum(square, radius * 4 // 7 - (np.abs(u) + np.abs(v)) * 181 // ONE)
    return depth


def _shaded(kind: int, colour: Field, across: Field, down: Field, depth: Field, radius: int) -> Field:
    """int64 [rows, columns, 3]: the colour in light from the upper left, darker towards the rim, patterned for some kinds."""
    light = ONE * 7 // 8 - (across + down) * 80 // radius
    if kind in (0, 2, 3):
        rim = np.clip(radius * 2 // 5 - depth, 0, None) * 110 // radius
        light = light - rim
    paint = colour * light[..., None] // ONE
    if kind in (1, 5):
        stripe = (across + 2 * down) // max(radius // 3, 1) % 2 == 0
        paint = np.where(stripe[..., None], paint, (paint + 2 * light[..., None] * 230 // ONE) // 3)
    if kind in (4, 7):
        edge = depth < radius // 12
        paint = np.where(edge[..., None], paint * 3 // 5, paint)
    if kind in (0, 2):
        spot = radius // 4 - root((across + radius * 2 // 5) ** 2 + (down + radius * 2 // 5) ** 2)
        paint = paint + (np.clip(spot * 4 * ONE // radius, 0, ONE) * 130 // ONE)[..., None]
    return paint
