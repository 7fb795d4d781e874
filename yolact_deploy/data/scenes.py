"""The synthetic shapes set: scenes of shapes that hide one another on textured grounds, with exact masks, drawn from numbers.

Scene `index` of a seed has the same bytes on every machine. Lengths are in 1/256 pixel where nothing else is said.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.classes import ClassList
from yolact_deploy.data.fields import ONE, Field, span
from yolact_deploy.data.outlines import OUTLINES
from yolact_deploy.data.textures import TURN, Draws, Ints, ground, pattern

__all__ = ["SHAPES", "SIZES", "Scene", "shapes_scene"]

SHAPES = ClassList(tuple(outline.name for outline in OUTLINES), tuple(range(1, len(OUTLINES) + 1)))
"""The classes of shapes, category ids 1 … 8."""
SIZES = range(64, 4097)
"""Sides that a scene may have, pixels."""

_MOST = 8
_SMALLEST = 12
_ATTEMPTS = 4
_DIAMETERS = ((_SMALLEST, 22), (24, 60), (60, 120), (120, 216))  # from and to, pixels of a picture of 256
_BOUNDS = (16, 112, 210)  # of 256 objects the first 16 have diameters of the first kind, those up to 112 of the second …
_LEAST_PIXELS = 60  # what must be seen of an object
_LEAST_PART = 3  # and at least a third of it
_CONTRAST = 160  # wanted between an object's colour and what it lies on or beside, summed over the channels


@dataclass(frozen=True, eq=False)
class Scene:
    """A drawn scene.

    Attributes:
        picture: uint8 RGB [S, S, 3].
        masks: uint8 [N, S, S] of 0 and 1, the visible pixels of each object; no pixel is in two of them.
        labels: int64 [N], indices into :data:`SHAPES`.
    """

    picture: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    labels: NDArray[np.int64]


def shapes_scene(index: int, *, seed: int = 0, size: int = 256) -> Scene:
    """Scene number `index` of the set that `seed` names, `size` x `size` pixels, with 1 to 8 objects.

    Objects are 12 px to most of the picture across, turned and coloured at random, whatever their class. Where they overlap the
    later hides the earlier, and at least 60 pixels and a third of each stay visible. A pixel belongs to the topmost object whose
    outline its centre lies in. Raises :class:`ValueError` for a negative index or seed and a size outside 64 … 4096.
    """
    if index < 0 or seed < 0 or size not in SIZES:
        raise ValueError(f"a scene was asked for with index {index}, seed {seed}, size {size}; 0 or more, and 64 … 4096 px were wanted")
    draw = Draws(seed, index)
    stage = _Stage(ground(draw, size), np.zeros((size, size), np.uint8))
    for diameter in _diameters(draw, size):
        for attempt in range(_ATTEMPTS):
            candidate = _candidate(draw, size, diameter + 4 * attempt, stage.objects)
            if stage.fits(candidate):
                stage.add(candidate, draw)
                break
    stage.canvas += draw.noise(size, draw.between(2, 8))
    places = np.arange(1, len(stage.objects) + 1, dtype=np.uint8)
    masks = (stage.owner == places[:, None, None]).astype(np.uint8)
    labels = np.array([placed.label for placed in stage.objects], np.int64)
    return Scene(np.clip(stage.canvas, 0, 255).astype(np.uint8), masks, labels)


def _diameters(draw: Draws, size: int) -> list[int]:
    """Pixels, 1 to 8 of them, roughly from the largest to the smallest, so that small objects mostly lie above."""
    found = []
    for _ in range(draw.between(1, _MOST)):
        low, high = _DIAMETERS[bisect(_BOUNDS, draw.below(ONE))]
        diameter = max(draw.between(low, high) * size // 256, _SMALLEST)
        found.append((diameter * draw.between(ONE // 2, ONE), diameter))
    return [diameter for _, diameter in sorted(found, reverse=True)]


@dataclass(frozen=True, eq=False)
class _Object:
    """An object and its window of the picture; `depth` and its own axes `u` and `v` are int64 [rows, columns]."""

    label: int
    centre: tuple[int, int]
    radius: int
    area: int  # pixels, hidden ones and those outside the picture too
    rows: slice
    columns: slice
    depth: Field
    u: Field
    v: Field


def _candidate(draw: Draws, size: int, diameter: int, objects: list[_Object]) -> _Object:
    """An object of `diameter` pixels somewhere; every fourth time beside one that is there, of its class and about its size."""
    if objects and draw.chance(64):
        twin = objects[draw.below(len(objects))]
        label, radius = twin.label, max(twin.radius * draw.between(200, 300) // ONE, _SMALLEST * ONE // 2)
        distance = (radius + twin.radius) * draw.between(210, 280) // ONE
        x, y = (place + distance * part // TURN for place, part in zip(twin.centre, draw.direction(), strict=True))
    else:
        label, radius = draw.below(len(OUTLINES)), diameter * ONE // 2
        margin = radius * 7 // 8
        x, y = (draw.between(margin, size * ONE - margin) for _ in range(2))
    outline = OUTLINES[label]
    reach = radius * outline.reach // (ONE * ONE) + 2
    places = np.arange(-reach, reach + 1, dtype=np.int64) * ONE + ONE // 2
    across, down = (places - x % ONE)[None, :], (places - y % ONE)[:, None]
    cosine, sine = draw.direction()
    u, v = (across * cosine + down * sine) // TURN, (down * cosine - across * sine) // TURN
    depth = outline.depth(u, v, radius, draw.below(ONE))
    area = int(np.count_nonzero(depth >= 0))
    rows, own_rows = _window(y // ONE, reach, size)
    columns, own_columns = _window(x // ONE, reach, size)
    inside = own_rows, own_columns
    return _Object(label, (x, y), radius, area, rows, columns, depth[inside], u[inside], v[inside])


def _window(centre: int, reach: int, size: int) -> tuple[slice, slice]:
    """The pixels within `reach` of `centre` that the picture holds, counted in the picture and from the first of them."""
    first, last = span(centre, reach, size)
    window = slice(first, max(first, last))
    return window, slice(window.start - centre + reach, window.stop - centre + reach)


@dataclass(eq=False)
class _Stage:
    """The scene as far as it is drawn: int32 `canvas` [S, S, 3], and for each pixel the number of its object, from 1 on, or 0."""

    canvas: Ints
    owner: NDArray[np.uint8]
    objects: list[_Object] = field(default_factory=list)
    colours: list[Ints] = field(default_factory=list)
    visible: list[int] = field(default_factory=list)

    def fits(self, candidate: _Object) -> bool:
        """Whether enough of it and of everything below it stays visible."""
        pixels, hidden = self._covered(candidate)
        below = zip(self.objects, self.visible, hidden, strict=True)
        return _enough(pixels, candidate.area) and all(_enough(seen - lost, placed.area) for placed, seen, lost in below)

    def add(self, candidate: _Object, draw: Draws) -> None:
        """Paint it above all others."""
        region, owner = self.canvas[candidate.rows, candidate.columns], self.owner[candidate.rows, candidate.columns]
        own = candidate.depth >= 0
        pixels, hidden = self._covered(candidate)
        self.visible = [*(seen - lost for seen, lost in zip(self.visible, hidden, strict=True)), pixels]
        counts = np.bincount(owner.ravel())
        others = [self.colours[number - 1] for number in np.flatnonzero(counts).tolist() if number]
        if counts[0]:
            others.append(region[owner == 0].sum(axis=0) // counts[0])
        colour = _colour(draw, others)
        owner[own] = len(self.objects) + 1
        cover = np.clip(candidate.depth + ONE // 2, 0, ONE).astype(np.int32)[..., None]
        region += (_paint(draw, candidate, colour) - region) * cover >> 8
        self.objects.append(candidate)
        self.colours.append(colour)

    def _covered(self, candidate: _Object) -> tuple[int, list[int]]:
        """How many of the picture's pixels it covers, and how many visible ones of each object."""
        owners = self.owner[candidate.rows, candidate.columns][candidate.depth >= 0]
        return len(owners), np.bincount(owners, minlength=len(self.objects) + 1)[1:].tolist()


def _enough(visible: int, area: int) -> bool:
    return visible >= max(_LEAST_PIXELS, area // _LEAST_PART)


def _colour(draw: Draws, others: list[Ints]) -> Ints:
    """int32 [3]: the first of some random colours that differs enough from all `others`, or the one that differs most."""
    best, largest = others[0], -1
    for _ in range(24):
        colour = draw.channels(15, 245)
        least = min(int(np.abs(colour - other).sum()) for other in others)
        if least > largest:
            best, largest = colour, least
        if largest >= _CONTRAST:
            break
    return best


def _paint(draw: Draws, placed: _Object, colour: Ints) -> Ints:
    """int32 [rows, columns, 3] or [1, 1, 3] broadcast to it: the colour in slanting light, half the time with a pattern, or a rim."""
    radius, u, v = placed.radius, placed.u, placed.v
    light = ONE - (u * draw.between(-28, 28) + v * draw.between(-28, 28)) // radius
    if draw.chance(128):
        drawn = pattern(draw, u + 64 * radius, v + 64 * radius, max(radius * draw.between(40, 140) // ONE, 2 * ONE))
        light += np.where(drawn, 1, -1) * draw.between(12, 40)
    if draw.chance(64):
        light -= (placed.depth < max(radius // 10, ONE)) * draw.between(40, 90)
    return np.asarray(light.astype(np.int32)[..., None] * colour >> 8, np.int32)
