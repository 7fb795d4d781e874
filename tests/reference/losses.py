"""The training losses term by term, in loops over priors and pixels and in float64, sharing nothing with the package."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Objects", "bce", "class_term", "encode", "iou", "mask_term", "match", "reduced", "semantic_term", "smooth_l1"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Objects:
    """boxes [N, 4] corners, relative; labels N; masks [N, S, S] of 0 and 1; crowds [M, 4]."""

    boxes: Array
    labels: list[int]
    masks: NDArray[np.uint8]
    crowds: Array


def corners(prior: Array) -> tuple[float, float, float, float]:
    x, y, w, h = map(float, prior)
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def iou(a: tuple[float, ...], b: tuple[float, ...], *, over_first: bool = False) -> float:
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    first, second = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    whole = first if over_first else first + second - shared
    return shared / whole if whole > 0 else 0.0


def match(objects: Objects, priors: Array) -> tuple[list[int], list[int]]:
    """Class of each prior (-1 neutral, 0 background, label + 1) and the object that it belongs to."""
    boxes = [tuple(map(float, box)) for box in objects.boxes]
    table = {(j, i): iou(box, corners(prior)) for j, box in enumerate(boxes) for i, prior in enumerate(priors)}
    owner, best = [], []
    for i in range(len(priors)):
        j = max(range(len(boxes)), key=lambda j: (table[j, i], -j)) if boxes else 0
        owner.append(j)
        best.append(table[j, i] if boxes else 0.0)
    free_objects, free_priors = set(range(len(boxes))), set(range(len(priors)))
    while free_objects and free_priors:
        j, i = max(((j, i) for j in free_objects for i in free_priors), key=lambda pair: (table[pair], -pair[0], -pair[1]))
        owner[i], best[i] = j, 2.0
        free_objects.remove(j)
        free_priors.remove(i)
    classes = []
    for i, prior in enumerate(priors):
        found = 0 if best[i] < 0.4 else -1 if best[i] < 0.5 else objects.labels[owner[i]] + 1
        if found <= 0 and any(iou(corners(prior), tuple(crowd), over_first=True) > 0.7 for crowd in objects.crowds):
            found = -1
        classes.append(found)
    return classes, owner


def encode(box: Array, prior: Array) -> list[float]:
    x, y, w, h = map(float, prior)
    x1, y1, x2, y2 = map(float, box)
    return [((x1 + x2) / 2 - x) / (0.1 * w), ((y1 + y2) / 2 - y) / (0.1 * h), math.log((x2 - x1) / w) / 0.2, math.log((y2 - y1) / h) / 0.2]


def smooth_l1(a: float, b: float) -> float:
    gap = abs(a - b)
    return gap * gap / 2 if gap < 1 else gap - 0.5


def bce(probability: float, wanted: float) -> float:
    """Binary cross-entropy whose logarithms end at -100, as PyTorch defines it."""

    def log(value: float) -> float:
        return max(math.log(value), -100.0) if value > 0 else -100.0

    return -(wanted * log(probability) + (1 - wanted) * log(1 - probability))


def class_term(logits: Array, classes: list[int]) -> float:
    """One picture's cross-entropy: positives and three times as many of the hardest background priors."""
    largest = logits.max(1)
    total = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
    positive = [i for i, found in enumerate(classes) if found > 0]
    wanted = min(3 * len(positive), len(classes) - 1)
    by_hardness = sorted(range(len(classes)), key=lambda i: (-(total[i] - logits[i, 0]) if classes[i] == 0 else 0.0, i))
    negative = [i for i in by_hardness[:wanted] if classes[i] == 0]
    return float(sum(total[i] - logits[i, classes[i]] for i in positive) + sum(total[i] - logits[i, 0] for i in negative))


def reduced(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A square mask bilinearly resized to `size`, half-pixel centres, 1 where above one half."""
    length = len(mask)
    result = np.zeros((size, size), np.uint8)
    for row in range(size):
        for column in range(size):
            value, places = 0.0, []
            for at in (row, column):
                place = max((at + 0.5) * length / size - 0.5, 0.0)
                low = min(int(place), length - 1)
                places.append((low, min(low + 1, length - 1), place - low))
            (top, bottom, down), (left, right, across) = places
            value += (1 - down) * ((1 - across) * mask[top, left] + across * mask[top, right])
            value += down * ((1 - across) * mask[bottom, left] + across * mask[bottom, right])
            result[row, column] = value > 0.5
    return result


def cropped(prototypes: Array, coefficients: Array, box: Array) -> Array:
    """Probabilities [h, w] of one mask, zero outside its box with a prototype pixel of padding."""
    height, width = prototypes.shape[1:]
    result = np.zeros((height, width))
    x1, y1, x2, y2 = map(float, box)
    for row in range(height):
        for column in range(width):
            inside = max(x1 * width - 1, 0) <= column < min(x2 * width + 1, width)
            inside &= max(y1 * height - 1, 0) <= row < min(y2 * height + 1, height)
            if inside:
                result[row, column] = 1 / (1 + math.exp(-float(coefficients @ prototypes[:, row, column])))
    return result


def mask_term(prototypes: Array, coefficients: Array, box: Array, mask: NDArray[np.uint8]) -> float:
    """One positive prior's binary cross-entropy over the box's area in prototype pixels."""
    height, width = prototypes.shape[1:]
    predicted, wanted = cropped(prototypes, coefficients, box), reduced(mask, height)
    total = sum(bce(predicted[row, column], wanted[row, column]) for row in range(height) for column in range(width))
    return total / ((box[2] - box[0]) * width) / ((box[3] - box[1]) * height)


def semantic_term(logits: Array, objects: Objects) -> float:
    """One picture's sigmoid cross-entropy over the pixels of [C-1, g, g]."""
    classes, grid, _ = logits.shape
    total = 0.0
    small = [reduced(mask, grid) for mask in objects.masks]
    for label in range(classes):
        for row in range(grid):
            for column in range(grid):
                wanted = any(objects.labels[j] == label and mask[row, column] for j, mask in enumerate(small))
                value = float(logits[label, row, column])
                total += math.log1p(math.exp(-abs(value))) + max(value, 0) - value * wanted
    return total / grid / grid
