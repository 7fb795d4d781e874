"""Augmentation as SSD and YOLACT train with (arXiv:1512.02325, section 2.2): expand, random crop, mirror, photometric distortion.

Expanding, cropping, mirroring and resizing are one affine map, so that no enlarged picture is ever made; colours are distorted at the
network's size, inside the picture only.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.variants import IMAGENET_MEAN

__all__ = ["AugmentSettings", "Scene", "Window", "augment", "distort", "draw_window", "fitted"]

Floats = NDArray[np.float32]
_TRIALS = 50
_LEAST_SIDE = 4 / 550  # of the picture: narrower objects are left out


@dataclass(frozen=True)
class AugmentSettings:
    """What is done at random. Each of ``photometric``, ``expand``, ``crop`` and ``mirror`` can be switched off.

    Attributes:
        brightness: largest offset, of 0 … 255.
        contrast, saturation: factors are drawn between 1 - x and 1 + x.
        hue: largest turn, in degrees.
        largest_expansion: a picture is placed on a mean-coloured ground up to this many times its width and height.
        least_crop: a crop's sides are at least this share of the (expanded) picture's.
    """

    photometric: bool = True
    expand: bool = True
    crop: bool = True
    mirror: bool = True
    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 18.0
    largest_expansion: float = 4.0
    least_crop: float = 0.3


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and its objects.

    Attributes:
        picture: uint8 or float32 [H, W, 3], RGB in 0 … 255.
        boxes: float32 [N, 4], x1, y1, x2, y2 in pixels.
        labels: int64 [N], 0-based.
        masks: uint8 [N, H, W] of 0 and 1.
        crowd_boxes: float32 [M, 4], pixels.
    """

    picture: NDArray[np.uint8] | Floats
    boxes: Floats
    labels: NDArray[np.int64]
    masks: NDArray[np.uint8]
    crowd_boxes: Floats


@dataclass(frozen=True)
class Window:
    """The part of a picture's plane that becomes the network's input: x1, y1, x2, y2 in pixels, which may lie outside."""

    x1: float
    y1: float
    x2: float
    y2: float
    mirrored: bool = False


def augment(scene: Scene, size: int, random: np.random.Generator, settings: AugmentSettings) -> Scene:
    """`scene` seen through a random window, `size` x `size` pixels, float32 colours distorted, objects outside left out."""
    result = fitted(scene, draw_window(scene, random, settings), size)
    if not settings.photometric:
        return result
    height, width = scene.picture.shape[:2]
    window = result.window
    columns = _covered(window.x1, window.x2, width, size, mirrored=window.mirrored)
    rows = _covered(window.y1, window.y2, height, size)
    picture = result.picture
    picture[rows, columns] = distort(np.ascontiguousarray(picture[rows, columns]), random, settings)
    return result


def draw_window(scene: Scene, random: np.random.Generator, settings: AugmentSettings) -> Window:
    """A random window: half of the time expanded, five times of six cropped so that an object's centre stays, half of the time mirrored."""
    height, width = scene.picture.shape[:2]
    x1, y1, x2, y2 = 0.0, 0.0, float(width), float(height)
    if settings.expand and random.random() < 0.5:
        ratio = random.uniform(1, settings.largest_expansion)
        x1, y1 = -random.uniform(0, width * (ratio - 1)), -random.uniform(0, height * (ratio - 1))
        x2, y2 = x1 + width * ratio, y1 + height * ratio
    if settings.crop and len(scene.boxes):
        x1, y1, x2, y2 = _crop(scene.boxes, (x1, y1, x2, y2), random, settings.least_crop)
    return Window(x1, y1, x2, y2, bool(settings.mirror and random.random() < 0.5))


def _crop(
    boxes: Floats, whole: tuple[float, float, float, float], random: np.random.Generator, least: float
) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = whole
    width, height = x2 - x1, y2 - y1
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    while random.random() >= 1 / 6:
        for _ in range(_TRIALS):
            across, down = random.uniform(least, 1) * width, random.uniform(least, 1) * height
            left, top = x1 + random.uniform(0, width - across), y1 + random.uniform(0, height - down)
            inside = (centres > (left, top)) & (centres < (left + across, top + down))
            if 0.5 <= down / across <= 2 and inside.all(1).any():
                return left, top, left + across, top + down
    return whole


@dataclass(frozen=True, eq=False)
class _Fitted(Scene):
    window: Window


def fitted(scene: Scene, window: Window, size: int) -> _Fitted:
    """`scene` seen through `window`, bilinearly resized to `size` x `size`; what lies outside the picture has the mean colour.

    Objects stay whose centre lies in the window and whose visible part is at least 4/550 of it wide and high.
    """
    height, width = scene.picture.shape[:2]
    across, down = (window.x2 - window.x1) / size, (window.y2 - window.y1) / size
    # Pixel i of the output has its centre at i + 0.5; mirrored, pixel i takes the place of size - 1 - i.
    step, start = (-across, window.x2) if window.mirrored else (across, window.x1)
    matrix = np.array([[step, 0, start + 0.5 * step - 0.5], [0, down, window.y1 + 0.5 * down - 0.5]])
    outside = window.x1 < 0 or window.y1 < 0 or window.x2 > width or window.y2 > height
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_CONSTANT if outside else cv2.BORDER_REPLICATE
    picture = cv2.warpAffine(
        scene.picture.astype(np.float32), matrix, (size, size), flags=flags, borderMode=border, borderValue=IMAGENET_MEAN
    )
    centres = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2
    kept = np.all((centres > (window.x1, window.y1)) & (centres < (window.x2, window.y2)), axis=1)
    boxes = _moved(scene.boxes, window, size)
    kept &= np.all(boxes[:, 2:] - boxes[:, :2] >= _LEAST_SIDE * size, axis=1)
    masks = np.zeros((int(kept.sum()), size, size), np.uint8)
    for place, index in enumerate(np.nonzero(kept)[0]):
        seen = cv2.warpAffine(scene.masks[index] * np.uint8(255), matrix, (size, size), flags=flags, borderMode=cv2.BORDER_CONSTANT)
        masks[place] = seen > 127
    crowds = _moved(scene.crowd_boxes, window, size)
    crowds = crowds[np.all(crowds[:, 2:] > crowds[:, :2], axis=1)]
    return _Fitted(np.asarray(picture, np.float32), boxes[kept], scene.labels[kept], masks, crowds, window)


def _moved(boxes: Floats, window: Window, size: int) -> Floats:
    """Boxes [N, 4] of the picture as pixels of the window, clipped to it."""
    x = (boxes[:, 0::2] - window.x1) * (size / (window.x2 - window.x1))
    y = (boxes[:, 1::2] - window.y1) * (size / (window.y2 - window.y1))
    if window.mirrored:
        x = size - x[:, ::-1]
    moved = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
    return np.clip(moved, 0, size).astype(np.float32)


def _covered(low: float, high: float, length: int, size: int, *, mirrored: bool = False) -> slice:
    """Output pixels whose centres show the picture, for a window from `low` to `high` over `length` pixels."""
    step = (high - low) / size
    first = int(np.clip(np.ceil(-low / step - 0.5), 0, size))
    last = int(np.clip(np.ceil((length - low) / step - 0.5), first, size))
    return slice(size - last, size - first) if mirrored else slice(first, last)


def distort(picture: Floats, random: np.random.Generator, settings: AugmentSettings) -> Floats:
    """Brightness, contrast, saturation and hue at random, each half of the time: float32 RGB [h, w, 3], not clipped.

    Contrast comes before the other two or after them.
    """
    if not picture.size:
        return picture
    if random.random() < 0.5:
        picture = picture + np.float32(random.uniform(-settings.brightness, settings.brightness))
    contrast = np.float32(random.uniform(1 - settings.contrast, 1 + settings.contrast)) if random.random() < 0.5 else np.float32(1)
    early = random.random() < 0.5
    if early:
        picture = picture * contrast
    saturation = random.uniform(1 - settings.saturation, 1 + settings.saturation) if random.random() < 0.5 else 1.0
    hue = random.uniform(-settings.hue, settings.hue) if random.random() < 0.5 else 0.0
    if saturation != 1 or hue != 0:
        hsv = np.asarray(cv2.cvtColor(np.ascontiguousarray(picture, np.float32), cv2.COLOR_RGB2HSV), np.float32)
        hsv[..., 1] *= saturation
        hsv[..., 0] = (hsv[..., 0] + np.float32(hue)) % np.float32(360)
        picture = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)
    return np.asarray(picture if early else picture * contrast, np.float32)
