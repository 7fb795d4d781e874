"""Detections drawn over their picture: tinted masks with their contours, boxes, and labels that stay readable and apart."""

from __future__ import annotations

import colorsys
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, JpegImagePlugin, PngImagePlugin
from pycocotools import mask as coco_mask

from yolact_deploy.detections import Detections
from yolact_deploy.errors import OutputError, PictureError
from yolact_deploy.files import atomic_output
from yolact_deploy.pictures import Picture, require_picture

__all__ = ["JPEG_LIMIT", "class_colour", "draw_detections", "is_overlay", "save_picture"]

Colour: TypeAlias = tuple[int, int, int]

_DARK, _LIGHT = (16, 16, 16), (255, 255, 255)
_DARK_TEXT_FROM = 0.179  # relative luminance at which black and white contrast equally (WCAG 2, 1.4.3)
_GOLDEN_RATIO = 0.6180339887
_TONES = ((0.80, 1.00), (0.55, 1.00), (0.90, 0.80))  # saturation and value, one after another
_SMALLEST_FONT = 8  # pixels; below that no letter can be told from another
_OUTLINED_FROM = 160  # pixels a side; below that an outline would hide what it surrounds
_ELLIPSIS = "…"
_FORMATS = {".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG"}
JPEG_LIMIT = 65_500
"""Pixels a side that libjpeg writes."""
_MARK = "drawn by yolact-deploy"


def class_colour(label: int) -> Colour:
    """RGB of a class, always the same: neighbouring labels lie far apart on the colour circle."""
    saturation, value = _TONES[label % len(_TONES)]
    red, green, blue = colorsys.hsv_to_rgb((label * _GOLDEN_RATIO) % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(picture: Picture, detections: Detections, *, alpha: float = 0.45, show_scores: bool = True) -> Picture:
    """A new uint8 RGB [H, W, 3]: `picture` with the masks, boxes and labels of `detections`, the best on top.

    Args:
        picture: uint8 RGB [H, W, 3], the one that the detections were found in.
        detections: boxes in its pixels; the label is the class name and, with `show_scores`, the score.
        alpha: how much of a mask's colour covers the picture, 0 … 1.

    Lines and text grow with the picture's shorter side. Raises :class:`PictureError` where the sizes differ and
    :class:`ValueError` for an `alpha` outside 0 … 1.
    """
    require_picture(picture)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, 0 … 1 was wanted")
    height, width = picture.shape[:2]
    if (detections.width, detections.height) != (width, height):
        raise PictureError(
            f"The picture has {width} x {height} pixels, the detections were found in one of {detections.width} x {detections.height}.",
            "Draw on the picture that was given to the detector.",
        )
    canvas = np.array(picture, np.uint8, order="C")
    line, rles = max(1, round(min(height, width) / 280)), detections.rles
    best_first = np.argsort(-detections.scores, kind="stable").tolist()
    for index in reversed(best_first):
        colour = class_colour(int(detections.labels[index]))
        _draw_mask(canvas, rles[index], colour, alpha, line)
        _draw_box(canvas, detections.boxes[index], colour, line)
    labels = _placed_labels(detections, best_first, line, show_scores)
    for label in reversed(labels):
        label.draw(canvas)
    return canvas


def save_picture(path: Path, picture: Picture) -> None:
    """Write `picture`, uint8 RGB [H, W, 3], as PNG or JPEG (quality 92) by the suffix of `path`, whole or not at all.

    Raises :class:`OutputError` for another suffix, a picture too large for JPEG, or a file that cannot be written.
    """
    require_picture(picture)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise OutputError(f"{path} has the suffix {path.suffix!r}, one of {', '.join(_FORMATS)} was wanted.", "Name it with one of these.")
    if kind == "JPEG" and max(picture.shape) > JPEG_LIMIT:
        raise OutputError(
            f"{path} cannot hold {picture.shape[1]} x {picture.shape[0]} pixels: a JPEG has at most {JPEG_LIMIT} a side.", "Name it .png."
        )
    with atomic_output(path) as part:
        # Thin coloured lines need their colour at full resolution.
        options = {"quality": 92, "subsampling": 0, "comment": _MARK.encode()} if kind == "JPEG" else {"pnginfo": _png_mark()}
        Image.fromarray(np.ascontiguousarray(picture)).save(part, format=kind, **options)


def is_overlay(path: Path) -> bool:
    """Whether the file is a picture that :func:`save_picture` wrote: its comment says so."""
    try:
        with open(path, "rb") as handle:
            png = handle.read(1) == b"\x89"
            handle.seek(0)
            # By plugin, as read_picture does: Image.open would warn of a large overlay, or refuse it.
            image = PngImagePlugin.PngImageFile(handle) if png else JpegImagePlugin.JpegImageFile(handle)
            return image.info.get("Comment" if png else "comment") in (_MARK, _MARK.encode())
    except Exception:  # noqa: BLE001 - whatever cannot be read is not ours, and what the plugins raise is not documented
        return False


def _png_mark() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", _MARK)
    return info


def _draw_mask(canvas: Picture, rle: dict[str, Any], colour: Colour, alpha: float, line: int) -> None:
    """Tint the mask and trace its contour; only the rectangle that holds it is read or written."""
    x, y, width, height = (int(value) for value in coco_mask.toBbox(rle))
    if width < 1 or height < 1:
        return
    inside = np.ascontiguousarray(coco_mask.decode(rle)[y : y + height, x : x + width])
    region = canvas[y : y + height, x : x + width]
    tint = np.empty_like(region)
    tint[...] = colour
    np.copyto(region, cv2.addWeighted(region, 1 - alpha, tint, alpha, 0), where=inside[..., None].astype(bool))
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if min(canvas.shape[:2]) >= _OUTLINED_FROM:
        cv2.drawContours(canvas, contours, -1, _outline(colour), line + 2, cv2.LINE_AA, offset=(x, y))
    cv2.drawContours(canvas, contours, -1, colour, line, cv2.LINE_AA, offset=(x, y))


def _draw_box(canvas: Picture, box: NDArray[np.float32], colour: Colour, line: int) -> None:
    left, top, right, bottom = _corners(box, canvas.shape[1], canvas.shape[0])
    if min(canvas.shape[:2]) >= _OUTLINED_FROM:
        cv2.rectangle(canvas, (left, top), (right, bottom), _outline(colour), line + 2 * max(1, line // 2))
    cv2.rectangle(canvas, (left, top), (right, bottom), colour, line)


def _corners(box: NDArray[np.float32], width: int, height: int) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 as pixels of the picture, ordered; a box may lie outside or not be finite."""
    x1, y1, x2, y2 = np.nan_to_num(box.astype(np.float64), nan=0.0, posinf=1e9, neginf=-1e9).tolist()
    left, right = sorted(min(max(round(x), 0), width - 1) for x in (x1, x2))
    top, bottom = sorted(min(max(round(y), 0), height - 1) for y in (y1, y2))
    return left, top, right, bottom


def _luminance(colour: Colour) -> float:
    """Relative luminance, 0 … 1 (WCAG 2, definition of relative luminance)."""
    linear = [(part / 255) / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _outline(colour: Colour) -> Colour:
    """Dark around a light colour, light around a dark one: one of the two stands out from any ground."""
    return _DARK if _luminance(colour) > _DARK_TEXT_FROM else _LIGHT


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


Rectangle: TypeAlias = tuple[int, int, int, int]
"""left, top, right, bottom in pixels, the last two exclusive."""


@dataclass(frozen=True, eq=False)
class _Label:
    """A line of text on a filled ground; `cover` is uint8 [height, width], how much of each pixel is text."""

    place: Rectangle
    cover: NDArray[np.uint8]
    colour: Colour

    def draw(self, canvas: Picture) -> None:
        left, top, right, bottom = self.place
        ink = np.array(_outline(self.colour), np.int32)
        ground = np.array(self.colour, np.int32)
        cover = self.cover[..., None].astype(np.int32)
        canvas[top:bottom, left:right] = (ground * (255 - cover) + ink * cover + 127) // 255


def _placed_labels(detections: Detections, order: list[int], line: int, show_scores: bool) -> list[_Label]:
    """A label for each detection that has room for one, in `order`; the first ones choose their places first."""
    width, height = detections.width, detections.height
    size = max(_SMALLEST_FONT, round(6 + min(width, height) / 44))
    placed: list[_Label] = []
    taken = np.empty((0, 4), np.int64)
    for index in order:
        number = int(detections.labels[index])
        score = f"{detections.scores[index]:.2f}" if show_scores else ""
        cover = _text(_printable(detections.class_names[number]), score, size, width, height)
        if cover is None:
            continue
        box = _corners(detections.boxes[index], width, height)
        place = _place(box, cover.shape[1], cover.shape[0], taken, (width, height), line)
        taken = np.concatenate([taken, [place]])
        placed.append(_Label(place, cover, class_colour(number)))
    return placed


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _text(name: str, score: str, size: int, width: int, height: int) -> NDArray[np.uint8] | None:
    """``name score`` as coverage, uint8 [h, w]: the name is cut, then the score left out, until it fits; None if nothing does."""
    font = _font(size)
    pad = size // 4
    room, tall = width - 2 * pad, size + 2 * pad
    if tall > height:
        return None
    for texts in _shorter(name, score):
        at = bisect_left(texts, True, key=lambda text: font.getlength(text) <= room)
        if at < len(texts):
            sheet = Image.new("L", (int(font.getlength(texts[at])) + 1 + 2 * pad, tall))
            ImageDraw.Draw(sheet).text((pad, pad + size * 4 // 5), texts[at], fill=255, font=font, anchor="ls")
            return np.asarray(sheet)[:, :width]
    return None


def _shorter(name: str, score: str) -> tuple[list[str], list[str]]:
    """What to try, each from the whole text to the shortest: first with the score, then without it."""
    names = [name, *(name[:end] + _ELLIPSIS for end in range(len(name) - 1, 0, -1))]
    return [f"{text} {score}" for text in names if text == name or len(text) > 3] if score else [], names


def _place(box: Rectangle, wide: int, tall: int, taken: NDArray[np.int64], size: tuple[int, int], line: int) -> Rectangle:
    """Where a label of `wide` x `tall` covers no earlier label, as near its box as can be; where it covers least if all do."""
    left, top, right, bottom = box
    half = line // 2
    rows = [top - tall - half, top + half, bottom - tall - half, bottom + half + 1]
    rows += [top + half + step * tall for step in range(1, max(size[1] // tall, 1))]
    rows += [top - half - step * tall for step in range(2, max(size[1] // tall, 2))]
    columns = [left - half, right - wide + half]
    tops = np.clip(np.repeat(rows, len(columns)), 0, size[1] - tall)
    lefts = np.clip(np.tile(columns, len(rows)), 0, size[0] - wide)
    places = np.stack([lefts, tops, lefts + wide, tops + tall], 1)
    across = np.minimum(places[:, None, 2], taken[:, 2]) - np.maximum(places[:, None, 0], taken[:, 0])
    down = np.minimum(places[:, None, 3], taken[:, 3]) - np.maximum(places[:, None, 1], taken[:, 1])
    covered = (np.maximum(across, 0) * np.maximum(down, 0)).sum(1)
    best = places[int(np.argmin(covered))].tolist()
    return best[0], best[1], best[2], best[3]
