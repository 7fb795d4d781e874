"""Overlays: what is drawn where, in which order, and that every label can be read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from yolact_deploy import drawing
from yolact_deploy.data import sample_picture
from yolact_deploy.detections import Detections
from yolact_deploy.drawing import class_colour, draw_detections
from yolact_deploy.errors import PictureError

NAMES = ("person", "traffic light", "犬と猫", "x" * 400)


def found(
    width: int, height: int, boxes: list[tuple[float, float, float, float]], labels: list[int], scores: list[float], fill: bool = True
) -> Detections:
    """Detections whose masks fill their boxes (or are empty)."""
    counts = []
    for x1, y1, x2, y2 in boxes:
        mask = np.zeros((height, width), np.uint8, order="F")
        if fill:
            mask[max(int(y1), 0) : max(int(y2), 0), max(int(x1), 0) : max(int(x2), 0)] = 1
        counts.append(coco_mask.encode(mask)["counts"])
    n = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(n, 4),
        np.array(scores, np.float32),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        tuple(counts),
        width,
        height,
        NAMES,
        tuple(range(len(NAMES))),
    )


def plain(width: int, height: int, value: int = 90) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def test_nothing_found_gives_a_copy() -> None:
    picture = sample_picture(64, 48)
    drawn = draw_detections(picture, found(64, 48, [], [], []))
    np.testing.assert_array_equal(drawn, picture)
    assert not np.shares_memory(drawn, picture)


def test_the_picture_is_not_altered() -> None:
    picture = sample_picture(320, 240)
    picture.flags.writeable = False
    drawn = draw_detections(picture, found(320, 240, [(50, 60, 200, 200)], [0], [0.9]))
    assert drawn.shape == picture.shape
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(picture, sample_picture(320, 240))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.45, 1.0])
def test_masks_are_tinted_by_alpha(alpha: float) -> None:
    drawn = draw_detections(plain(400, 300), found(400, 300, [(50, 60, 350, 250)], [1], [0.9]), alpha=alpha)
    wanted = 90 * (1 - alpha) + np.array(class_colour(1)) * alpha
    np.testing.assert_allclose(drawn[155, 200], wanted, atol=1)
    np.testing.assert_array_equal(drawn[290, 20], 90)


def test_only_mask_pixels_are_tinted() -> None:
    mask = np.zeros((300, 400), np.uint8, order="F")
    mask[100:200, 100:300] = 1
    mask[130:170, 150:250] = 0
    one = found(400, 300, [(100, 100, 300, 200)], [0], [0.9])
    one = Detections(one.boxes, one.scores, one.mask_scores, one.labels, (coco_mask.encode(mask)["counts"],), 400, 300, NAMES, (0, 1, 2, 3))
    drawn = draw_detections(plain(400, 300), one, alpha=0.5).astype(int)
    np.testing.assert_array_equal(drawn[150, 200], 90)
    np.testing.assert_allclose(drawn[185, 200], (90 + np.array(class_colour(0))) / 2, atol=1)
    np.testing.assert_allclose(drawn[129, 200], class_colour(0), atol=30)  # the contour of the hole


def test_a_mask_larger_than_its_box_is_drawn_whole() -> None:
    large = found(400, 300, [(50, 60, 350, 250)], [0], [0.9])
    small = Detections(
        np.array([[180, 120, 220, 140]], np.float32), large.scores, large.scores, large.labels, large.counts, 400, 300, NAMES, (0, 1, 2, 3)
    )
    drawn = draw_detections(plain(400, 300), small, alpha=1)
    np.testing.assert_array_equal(drawn[240, 340], class_colour(0))


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("label", range(0, 80, 7))
def test_lines_stand_out_from_any_ground(value: int, label: int) -> None:
    names = tuple(str(i) for i in range(80))
    one = found(400, 300, [(50, 60, 350, 250)], [0], [0.9], fill=False)
    one = Detections(one.boxes, one.scores, one.scores, np.array([label]), one.counts, 400, 300, names, tuple(range(80)))
    row = draw_detections(plain(400, 300, value), one)[150, 40:60]
    ground = drawing._luminance((value, value, value))
    contrast = max(ratio(drawing._luminance(tuple(pixel)), ground) for pixel in row.tolist())
    assert contrast >= 3


def ratio(one: float, other: float) -> float:
    """Contrast of two relative luminances, 1 … 21 (WCAG 2)."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


@given(st.integers(0, 2000))
def test_text_contrasts_with_its_ground(label: int) -> None:
    colour = class_colour(label)
    assert ratio(drawing._luminance(colour), drawing._luminance(drawing._outline(colour))) >= 4


def test_luminance() -> None:
    assert drawing._luminance((0, 0, 0)) == 0
    assert drawing._luminance((255, 255, 255)) == pytest.approx(1)
    assert drawing._luminance((255, 0, 0)) == pytest.approx(0.2126)
    assert drawing._luminance((128, 128, 128)) == pytest.approx(0.21586, abs=1e-4)


def test_colours_are_fixed_and_distinct() -> None:
    assert [class_colour(label) for label in range(3)] == [(255, 51, 51), (115, 156, 255), (128, 204, 20)]
    colours = np.array([class_colour(label) for label in range(80)])
    apart = np.abs(colours[:, None] - colours).sum(-1) + 999 * np.eye(80, dtype=int)
    assert apart.min() >= 6
    assert apart[:10, :10].min() >= 80


def test_the_best_is_on_top() -> None:
    boxes = [(100.0, 80.0, 300.0, 250.0), (100.0, 80.0, 300.0, 250.0)]
    for scores in ([0.9, 0.3], [0.3, 0.9], [0.5, 0.5]):
        drawn = draw_detections(plain(400, 300), found(400, 300, boxes, [0, 1], scores), alpha=1)
        np.testing.assert_array_equal(drawn[165, 200], class_colour(int(scores[1] > scores[0])))


@pytest.mark.parametrize("size", [(64, 64), (40, 200), (640, 480), (3000, 200), (1600, 1200)])
def test_line_width_grows_with_the_picture(size: tuple[int, int]) -> None:
    width, height = size
    drawn = draw_detections(plain(width, height), found(width, height, [(width // 4, 0, width * 3 // 4, height)], [0], [1], fill=False))
    row = drawn[height // 2]
    lines = (row == class_colour(0)).all(-1).sum()
    assert lines == 2 * max(1, round(min(size) / 280)) or lines == 2 * (max(1, round(min(size) / 280)) // 2 * 2 + 1)


def places(detections: Detections, show_scores: bool = True) -> list[tuple[int, int, int, int]]:
    labels = drawing._placed_labels(detections, list(range(len(detections))), 2, show_scores)
    return [label.place for label in labels]


BOX = st.tuples(*[st.floats(-50, 700, width=32)] * 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(BOX, st.integers(0, 3)), max_size=8), st.integers(1, 640), st.integers(1, 480), st.booleans())
def test_labels_stay_inside_any_picture(items: list[tuple[tuple[float, ...], int]], width: int, height: int, scores: bool) -> None:
    boxes = [box for box, _ in items]
    many = found(width, height, boxes, [label for _, label in items], [0.5] * len(items))
    for left, top, right, bottom in places(many, scores):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    draw_detections(plain(width, height), many, show_scores=scores)


def test_labels_keep_apart_while_there_is_room() -> None:
    same = found(640, 480, [(200.0, 200.0, 400.0, 300.0)] * 12, [0] * 12, [0.5] * 12)
    taken = np.zeros((480, 640), int)
    rectangles = places(same)
    assert len(rectangles) == 12
    for left, top, right, bottom in rectangles:
        taken[top:bottom, left:right] += 1
    assert taken.max() == 1


def test_the_first_label_stands_on_its_box() -> None:
    (left, _, _, bottom), *_ = places(found(640, 480, [(200, 200, 400, 300)], [0], [0.5]))
    assert abs(left - 200) <= 1
    assert 198 <= bottom <= 200


def test_labels_say_name_and_score_and_shorten_what_does_not_fit() -> None:
    assert drawing._shorter("zebra", "0.87") == (["zebra 0.87", "zebr… 0.87", "zeb… 0.87"], ["zebra", "zebr…", "zeb…", "ze…", "z…"])
    assert drawing._shorter("cat", "0.87") == (["cat 0.87"], ["cat", "ca…", "c…"])
    assert drawing._shorter("cat", "") == ([], ["cat", "ca…", "c…"])
    assert drawing._text("person", "0.87", 12, 400, 300) is not None
    assert drawing._text("person", "0.87", 12, 4, 300) is None
    assert drawing._text("person", "0.87", 12, 400, 10) is None


def test_scores_can_be_left_out() -> None:
    one = found(640, 480, [(200, 200, 400, 300)], [0], [0.5])
    assert places(one, True)[0][2] > places(one, False)[0][2] + 20


@pytest.mark.parametrize("name", ["犬と猫", "کلب", "новый", "two\nlines", "\ud800", "", "🐈"])
def test_any_name_can_be_drawn(name: str) -> None:
    one = found(320, 240, [(50, 60, 200, 200)], [0], [0.5])
    one = Detections(one.boxes, one.scores, one.scores, one.labels, one.counts, 320, 240, (name,), (1,))
    assert (draw_detections(plain(320, 240), one) != 90).any()


@pytest.mark.parametrize("box", [(300, 200, 100, 50), (-90, -90, -10, -10), (900, 900, 999, 999), (np.nan, 0, 10, np.inf)])
def test_odd_boxes_do_no_harm(box: tuple[float, float, float, float]) -> None:
    draw_detections(plain(400, 300), found(400, 300, [box], [0], [0.5], fill=False))


def test_refuses_another_size_and_a_wrong_alpha() -> None:
    with pytest.raises(PictureError, match=r"400 x 300 pixels.*320 x 240"):
        draw_detections(plain(400, 300), found(320, 240, [], [], []))
    with pytest.raises(PictureError, match="float64"):
        draw_detections(np.zeros((3, 3, 3)), found(3, 3, [], [], []))
    for alpha in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="0 … 1 was wanted"):
            draw_detections(plain(4, 4), found(4, 4, [], [], []), alpha=alpha)


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        ((10.4, 20.6, 30, 40), (10, 21, 30, 40)),
        ((300, 200, 100, 50), (100, 50, 300, 200)),
        ((-90, -90, -10, 900), (0, 0, 0, 299)),
        ((900, -np.inf, np.nan, np.inf), (0, 0, 399, 299)),
    ],
)
def test_corners_are_pixels_of_the_picture(box: tuple[float, ...], wanted: tuple[int, ...]) -> None:
    assert drawing._corners(np.array(box, np.float32), 400, 300) == wanted


@pytest.mark.parametrize("name", ["person", "x" * 400])
@pytest.mark.parametrize("width", [60, 90, 200, 640])
def test_labels_are_ink_on_their_colour_and_not_cut_off(name: str, width: int) -> None:
    cover = drawing._text(name, "0.87", 12, width, 300)
    assert cover is not None
    assert cover.shape[1] <= width
    assert cover.max() > 200
    assert not cover[:, :2].any()
    assert not cover[:, -2:].any()
    assert not cover[0].any()
    assert not cover[-1].any()
    canvas = plain(640, 300)
    drawing._Label((0, 0, cover.shape[1], cover.shape[0]), cover, class_colour(0)).draw(canvas)
    found = canvas[: cover.shape[0], : cover.shape[1]]
    np.testing.assert_array_equal(found[cover == 0], np.broadcast_to(class_colour(0), ((cover == 0).sum(), 3)))
    ink = drawing._outline(class_colour(0))
    np.testing.assert_allclose(found[cover == cover.max()][0], ink, atol=50)
    np.testing.assert_array_equal(canvas[cover.shape[0] :], 90)
