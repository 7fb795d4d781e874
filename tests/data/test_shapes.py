"""The synthetic scenes: the same bytes everywhere, exact masks, and what training and evaluation count on."""

from __future__ import annotations

import hashlib
from itertools import combinations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact_deploy.data import SHAPES, Scene, shapes_scene
from yolact_deploy.data.textures import TURN, Draws

KERNEL = np.ones((3, 3), np.uint8)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [shapes_scene(index, seed=11) for index in range(120)]


def extent(mask: np.ndarray) -> int:
    return int(max(np.ptp(place) for place in np.nonzero(mask))) + 1


@pytest.mark.parametrize(
    ("index", "seed", "size", "picture", "masks", "labels"),
    [
        (0, 0, 256, "161e768a7fdab29a42639afd", "281a832d3be83186e01c0331", [0, 7, 7, 4, 7]),
        (7, 3, 256, "5fc7fd262785a5dd990d32cf", "e284c9f3b987eea1e57d5d1a", [6, 6, 4, 0, 6]),
        (2**40, 2**70, 97, "9d00ffffed6d59cde7d79eab", "4b45377a30cef4dd68154264", [2]),
        (5, 1, 512, "25b9005f8ef80becea927aeb", "b4f6146c952abb2610b49ebf", [3, 4, 4, 2]),
    ],
)
def test_the_bytes_are_known(index: int, seed: int, size: int, picture: str, masks: str, labels: list[int]) -> None:
    scene = shapes_scene(index, seed=seed, size=size)
    found = [hashlib.sha256(array.tobytes()).hexdigest()[:24] for array in (scene.picture, scene.masks)]
    assert (found, scene.labels.tolist()) == ([picture, masks], labels)


def test_the_random_numbers_are_known() -> None:
    draw = Draws(3, 4)
    assert [draw.below(1000) for _ in range(5)] == [85, 16, 543, 553, 469]
    assert draw.bytes(5).tolist() == [2, 245, 159, 132, 21]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**62), st.integers(0, 2**64), st.integers(64, 200))
def test_any_scene(index: int, seed: int, size: int) -> None:
    scene = shapes_scene(index, seed=seed, size=size)
    check(scene, size)
    again = shapes_scene(index, seed=seed, size=size)
    np.testing.assert_array_equal(scene.picture, again.picture)
    np.testing.assert_array_equal(scene.masks, again.masks)


def check(scene: Scene, size: int) -> None:
    count = len(scene.labels)
    assert (scene.picture.shape, scene.picture.dtype) == ((size, size, 3), np.uint8)
    assert (scene.masks.shape, scene.masks.dtype) == ((count, size, size), np.uint8)
    assert (scene.labels.shape, scene.labels.dtype) == ((count,), np.int64)
    assert scene.picture.flags.c_contiguous
    assert scene.masks.flags.c_contiguous
    assert count <= 8
    assert np.isin(scene.labels, range(len(SHAPES))).all()
    assert scene.masks.sum(0).max(initial=0) <= 1, "a pixel is in two masks"
    assert (scene.masks.sum((1, 2)) >= 60).all(), "an object hardly to be seen"


def test_scenes_are_as_promised(scenes: list[Scene]) -> None:
    for scene in scenes:
        check(scene, 256)
    counts = [len(scene.labels) for scene in scenes]
    assert set(counts) == set(range(1, 9))
    labels = np.bincount(np.concatenate([scene.labels for scene in scenes]))
    assert labels.min() > sum(counts) / 16, "a class is rare"
    extents = np.array([extent(mask) for scene in scenes for mask in scene.masks])
    assert extents.min() < 20
    assert 0.005 < (extents < 20).mean() < 0.1
    assert 0.2 < (extents < 60).mean() < 0.5
    assert (extents > 150).mean() > 0.05


def test_some_of_one_class_touch_and_some_are_cut_off(scenes: list[Scene]) -> None:
    touching, cut, whole = 0, 0, 0
    for scene in scenes:
        touching += any(
            scene.labels[a] == scene.labels[b] and (cv2.dilate(scene.masks[a], KERNEL) & cv2.dilate(scene.masks[b], KERNEL)).any()
            for a, b in combinations(range(len(scene.labels)), 2)
        )
        for mask in scene.masks:
            border = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
            cut, whole = cut + border, whole + (not border)
    assert touching > len(scenes) / 10
    assert 0.1 < cut / whole < 0.6


def test_masks_lie_where_the_colours_are(scenes: list[Scene]) -> None:
    contrasts = []
    for scene in scenes[:60]:
        for mask in scene.masks:
            around = (cv2.dilate(mask, KERNEL, iterations=4) - cv2.dilate(mask, KERNEL)).astype(bool)
            inside = cv2.erode(mask, KERNEL).astype(bool) if mask.sum() > 400 else mask.astype(bool)
            picture = scene.picture.astype(float)
            contrasts.append(np.abs(picture[inside].mean(0) - picture[around].mean(0)).sum())
    assert min(contrasts) > 50
    assert np.percentile(contrasts, 5) > 100


def test_colours_say_nothing_of_the_class(scenes: list[Scene]) -> None:
    means = [(label, scene.picture[mask > 0].mean(0)) for scene in scenes for label, mask in zip(scene.labels, scene.masks, strict=True)]
    overall = np.mean([mean for _, mean in means], axis=0)
    for label in range(len(SHAPES)):
        own = np.mean([mean for found, mean in means if found == label], axis=0)
        assert np.abs(own - overall).max() < 35


def test_grounds_are_textured(scenes: list[Scene]) -> None:
    rough = [scene.picture[scene.masks.sum(0) == 0].astype(float).std(axis=0).mean() for scene in scenes]
    assert min(rough) > 2
    assert np.median(rough) > 12
    assert len({scene.picture[0, 0].tobytes() for scene in scenes}) > 110


def test_scenes_and_seeds_differ() -> None:
    first = shapes_scene(0, size=64).picture
    for other in (shapes_scene(1, size=64), shapes_scene(0, seed=1, size=64)):
        assert (first != other.picture).mean() > 0.5


@pytest.mark.parametrize(("index", "seed", "size"), [(-1, 0, 256), (0, -1, 256), (0, 0, 63), (0, 0, 4097)])
def test_refuses(index: int, seed: int, size: int) -> None:
    with pytest.raises(ValueError, match="0 or more, and 64 … 4096 px were wanted"):
        shapes_scene(index, seed=seed, size=size)


def test_directions_are_of_one_length_and_everywhere() -> None:
    draw = Draws(0, 0)
    found = np.array([draw.direction() for _ in range(400)])
    assert np.abs(np.hypot(*found.T) - TURN).max() < 3
    assert (np.histogram(np.arctan2(*found.T), 8, (-np.pi, np.pi))[0] > 25).all()
