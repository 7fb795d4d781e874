"""Windows, what they show of objects, and colours."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact_deploy.training.augment import AugmentSettings, Scene, Window, augment, distort, draw_window, fitted
from yolact_deploy.variants import IMAGENET_MEAN

PLAIN = AugmentSettings(photometric=False, expand=False, crop=False, mirror=False)


def random_of(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def scene(width: int = 90, height: int = 60, seed: int = 0) -> Scene:
    """Two rectangles with exact masks on noise, painted in their own colours, and a crowd."""
    picture = random_of(seed).integers(0, 60, (height, width, 3)).astype(np.uint8)
    boxes = np.array([[10, 20, 40, 50], [50, 5, 85, 30]], np.float32)
    masks = np.zeros((2, height, width), np.uint8)
    for mask, colour, (x1, y1, x2, y2) in zip(masks, (150, 250), boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = 1
        picture[mask > 0] = colour
    return Scene(picture, boxes, np.array([3, 1]), masks, np.array([[0, 0, 20, 15]], np.float32))


def test_without_chance_it_is_resizing() -> None:
    given_scene = scene()
    found = augment(given_scene, 120, random_of(0), PLAIN)
    whole = cv2.resize(given_scene.picture.astype(np.float32), (120, 120), interpolation=cv2.INTER_LINEAR)
    assert np.abs(found.picture - whole).max() < 8, "the affine map rounds positions to 1/32 pixel"
    np.testing.assert_allclose(found.boxes, given_scene.boxes * [120 / 90, 2, 120 / 90, 2], rtol=1e-6)
    np.testing.assert_allclose(found.crowd_boxes, given_scene.crowd_boxes * [120 / 90, 2, 120 / 90, 2], rtol=1e-6)
    assert found.labels.tolist() == [3, 1]
    for mask, seen in zip(given_scene.masks, found.masks, strict=True):
        assert np.mean(cv2.resize(mask * 255, (120, 120)) > 127) == pytest.approx(np.mean(seen), rel=0.02)


def test_mirroring_turns_picture_masks_and_boxes() -> None:
    given_scene = scene(64, 64)
    straight = fitted(given_scene, Window(0, 0, 64, 64), 64)
    turned = fitted(given_scene, Window(0, 0, 64, 64, mirrored=True), 64)
    np.testing.assert_array_equal(straight.picture, given_scene.picture)
    np.testing.assert_array_equal(turned.picture, given_scene.picture[:, ::-1])
    np.testing.assert_array_equal(turned.masks, straight.masks[..., ::-1])
    np.testing.assert_array_equal(
        turned.boxes, np.stack([64 - straight.boxes[:, 2], straight.boxes[:, 1], 64 - straight.boxes[:, 0], straight.boxes[:, 3]], 1)
    )


def test_outside_the_picture_is_the_mean() -> None:
    found = fitted(scene(64, 64), Window(-64, -64, 64, 64), 128)
    np.testing.assert_allclose(found.picture[:63, :], np.broadcast_to(np.float32(IMAGENET_MEAN), (63, 128, 3)), rtol=1e-6)
    np.testing.assert_array_equal(found.picture[64:, 64:], scene(64, 64).picture)
    assert found.boxes[0].tolist() == [74, 84, 104, 114]


def test_objects_stay_by_their_centre() -> None:
    found = fitted(scene(), Window(0, 0, 45, 60), 100)
    assert found.labels.tolist() == [3]
    assert found.masks.shape == (1, 100, 100)
    assert fitted(scene(), Window(60, 0, 90, 60), 100).labels.tolist() == [1]
    assert fitted(scene(), Window(42, 0, 48, 60), 100).labels.tolist() == []


def test_specks_are_left_out() -> None:
    given_scene = replace(scene(900, 900), boxes=np.array([[10, 10, 16, 400], [10, 10, 400, 17]], np.float32))
    wide = fitted(given_scene, Window(0, 0, 900, 900), 550)
    assert wide.labels.tolist() == [1], "4/550 of 900 pixels are 6.5"


@given(seed=st.integers(0, 5000))
@settings(max_examples=60, deadline=None)
def test_masks_stay_in_their_boxes_and_on_their_colours(seed: int) -> None:
    found = augment(scene(), 96, random_of(seed), AugmentSettings(photometric=False))
    assert found.picture.shape == (96, 96, 3)
    assert found.picture.dtype == np.float32
    for box, label, mask in zip(found.boxes, found.labels, found.masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert len(rows)
        assert columns.min() >= box[0] - 1
        assert columns.max() + 1 <= box[2] + 1
        assert rows.min() >= box[1] - 1
        assert rows.max() + 1 <= box[3] + 1
        # A border blends over half a source pixel: 2.7 of 96 in the smallest crop, 18 of the scene's 60 rows.
        inner = cv2.erode(mask, np.ones((7, 7), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
        if inner.any():
            values = found.picture[inner]
            assert np.abs(values - (150 if label == 3 else 250)).max() < 3
    assert np.all(found.boxes >= 0)
    assert np.all(found.boxes <= 96)


@given(seed=st.integers(0, 5000))
@settings(max_examples=60, deadline=None)
def test_a_crop_keeps_an_object(seed: int) -> None:
    found = augment(scene(), 96, random_of(seed), AugmentSettings(photometric=False, expand=False))
    assert len(found.labels) >= 1


def test_windows_do_all_that_they_may_and_nothing_else() -> None:
    windows = [draw_window(scene(), random_of(seed), AugmentSettings()) for seed in range(600)]
    assert 0.4 < np.mean([window.mirrored for window in windows]) < 0.6
    whole = [window for window in windows if (window.x1, window.y1, window.x2, window.y2) == (0, 0, 90, 60)]
    assert 0.03 < len(whole) / 600 < 0.14, "half unexpanded, a sixth of these uncropped"
    widths = [(window.x2 - window.x1) / 90 for window in windows]
    assert max(widths) > 3
    assert max(widths) <= 4
    assert min(widths) >= 0.3
    ratios = [(window.y2 - window.y1) / (window.x2 - window.x1) for window in windows if window not in whole]
    assert min(ratios) >= 0.5
    assert max(ratios) <= 2
    plain = draw_window(scene(), random_of(0), PLAIN)
    assert plain == Window(0, 0, 90, 60)


def test_the_same_numbers_give_the_same_picture() -> None:
    one, other, third = (augment(scene(), 64, random_of(seed), AugmentSettings()) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.picture, other.picture)
    assert not np.array_equal(one.picture, third.picture)


def test_colours_are_distorted_inside_the_picture_only() -> None:
    bright = replace(AugmentSettings(), crop=False, mirror=False)
    for seed in range(40):
        found = augment(scene(), 96, random_of(seed), bright)
        still = augment(scene(), 96, random_of(seed), replace(bright, photometric=False))
        mean = np.all(np.abs(still.picture - np.float32(IMAGENET_MEAN)) < 1e-3, axis=2)
        if mean.sum() > 100:
            np.testing.assert_allclose(found.picture[mean], still.picture[mean], atol=1e-3)
            if not np.allclose(found.picture, still.picture):
                return
    pytest.fail("no expanded picture among 40")


def test_colours_of_a_mirrored_picture_are_distorted_where_it_is() -> None:
    settings = replace(AugmentSettings(), crop=False, contrast=0, saturation=0, hue=0, brightness=32.0)
    grey = replace(scene(60, 60), picture=np.full((60, 60, 3), 200, np.uint8))
    seen = 0
    for seed in range(60):
        window = draw_window(grey, random_of(seed), settings)
        found = augment(grey, 96, random_of(seed), settings)
        still = fitted(grey, window, 96)
        if not window.mirrored or window.x1 == 0 or np.allclose(found.picture, still.picture):
            continue
        whole = np.all(still.picture == 200, axis=2)
        offset = (found.picture - still.picture)[whole]
        assert np.ptp(offset) < 1e-3
        assert abs(float(offset.mean())) > 0.01
        seen += 1
    assert seen > 3


def only(**fields: float) -> AugmentSettings:
    return replace(AugmentSettings(brightness=0, contrast=0, saturation=0, hue=0), **fields)


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "hue"])
def test_each_distortion_does_what_its_name_says(field: str) -> None:
    colours = np.array([[[200, 60, 40], [30, 160, 90]], [[90, 90, 200], [128, 128, 128]]], np.float32)
    amount = {"brightness": 30.0, "contrast": 0.4, "saturation": 0.4, "hue": 18.0}[field]
    results = [distort(colours.copy(), random_of(seed), only(**{field: amount})) for seed in range(80)]
    changed = [found for found in results if not np.allclose(found, colours, atol=1e-2)]
    assert 0.3 < len(changed) / len(results) < 0.7, "half of the time"
    for found in changed:
        if field == "brightness":
            offset = (found - colours).ravel()
            assert np.ptp(offset) < 1e-3
            assert abs(offset[0]) <= 30
        elif field == "contrast":
            factor = (found / colours).ravel()
            assert np.ptp(factor) < 1e-4
            assert 0.6 <= factor[0] <= 1.4
        else:
            hsv, before = (cv2.cvtColor(value, cv2.COLOR_RGB2HSV)[:1] for value in (found, colours))
            channel = 1 if field == "saturation" else 0
            others = [place for place in range(3) if place != channel]
            np.testing.assert_allclose(hsv[..., others], before[..., others], rtol=1e-3, atol=0.05)
            assert not np.allclose(hsv[..., channel], before[..., channel], atol=1e-3)
            np.testing.assert_allclose(found[1, 1], 128, atol=0.01, err_msg="grey has no hue and no saturation")


def test_hue_turns_round() -> None:
    red = np.array([[[200, 20, 22]]], np.float32)
    hues = [cv2.cvtColor(distort(red, random_of(seed), only(hue=18.0)), cv2.COLOR_RGB2HSV)[0, 0, 0] for seed in range(60)]
    assert any(hue < 30 for hue in hues)
    assert any(hue > 340 and hue < 359 for hue in hues)


def test_an_empty_part_is_left_alone() -> None:
    assert distort(np.zeros((0, 5, 3), np.float32), random_of(0), AugmentSettings()).shape == (0, 5, 3)
