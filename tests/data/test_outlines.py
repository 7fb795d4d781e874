"""The eight outlines against their corners, written down apart from the formulas."""

from __future__ import annotations

from math import cos, pi, radians, sin

import cv2
import numpy as np
import pytest

from yolact_deploy.data.outlines import OUTLINES, Outline

RADIUS, HALF = 400, 600  # pixels
PART = 128
Corners = list[tuple[float, float]]


def regular(count: int, radius: float, first: float = 0) -> Corners:
    """Corners of a regular polygon, the first at the angle `first` in degrees, downwards from the right."""
    angles = [radians(first) + 2 * pi * place / count for place in range(count)]
    return [(radius * cos(angle), radius * sin(angle)) for angle in angles]


def box(across: float, down: float) -> Corners:
    return [(-across, -down), (across, -down), (across, down), (-across, down)]


def star(inradius: float) -> Corners:
    points, notches = regular(5, inradius / cos(radians(72)), 90), regular(5, inradius / cos(radians(36)), 126)
    return [corner for pair in zip(points, notches, strict=True) for corner in pair]


LONG, SHORT = 250 / 256, 80 / 256
EXPECTED: dict[str, tuple[list[Corners], list[Corners]]] = {  # what is filled, and what is cut out of it, in radii
    "disc": ([regular(720, 1)], []),
    "ring": ([regular(720, 1)], [regular(720, 141 / 256)]),
    "square": ([box(210 / 256, 210 / 256)], []),
    "frame": ([box(220 / 256, 220 / 256)], [box(125 / 256, 125 / 256)]),
    "triangle": ([regular(3, 304 / 256, -90)], []),
    "star": ([star(91 / 256)], []),
    "cross": ([box(LONG, SHORT), box(SHORT, LONG)], []),
    "bar": ([box(320 / 256, 88 / 256)], []),
}


def depths(outline: Outline, part: int) -> np.ndarray:
    places = np.arange(-HALF, HALF + 1, dtype=np.int64) * 256
    u, v = np.broadcast_arrays(places[None, :], places[:, None])
    return outline.depth(u, v, RADIUS * 256, part)


def test_each_is_expected() -> None:
    assert [outline.name for outline in OUTLINES] == list(EXPECTED)


@pytest.mark.parametrize("outline", OUTLINES, ids=lambda outline: outline.name)
def test_the_outline_is_its_corners(outline: Outline) -> None:
    expected = np.zeros((2 * HALF + 1, 2 * HALF + 1), np.uint8)
    for value, polygons in zip((1, 0), EXPECTED[outline.name], strict=True):
        for corners in polygons:
            cv2.fillPoly(expected, [np.round(np.array(corners) * RADIUS + HALF).astype(np.int32)], value)
    found = depths(outline, PART) >= 0
    assert (found & (expected > 0)).sum() > 0.985 * (found | (expected > 0)).sum()


@pytest.mark.parametrize("part", [0, 255])
@pytest.mark.parametrize("outline", OUTLINES, ids=lambda outline: outline.name)
def test_nothing_is_beyond_the_reach(outline: Outline, part: int) -> None:
    rows, columns = np.nonzero(depths(outline, part) >= 0)
    farthest = np.hypot(rows - HALF, columns - HALF).max() / RADIUS * 256
    assert outline.reach - 13 < farthest < outline.reach + 1


@pytest.mark.parametrize("outline", OUTLINES, ids=lambda outline: outline.name)
def test_depth_is_the_distance_to_the_edge_near_it(outline: Outline) -> None:
    found = depths(outline, PART)
    inside = (found >= 0).astype(np.uint8)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near = (distance > 0) & (distance < 20)
    assert np.median(np.abs(distance[near] - 0.5 - found[near] / 256)) < 0.6
