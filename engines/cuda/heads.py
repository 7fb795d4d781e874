"""What a network's graph leaves on the device, checked: head outputs, or the detections of a graph with NMS inside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolact_deploy.errors import ConfigError

from .arrays import DeviceArray
from .problem import Problem
from .workspace import GraphKind, HeadShapes

__all__ = ["GivenDetections", "Heads"]

_HALF = np.dtype(np.float16)
_FLOATS = (np.dtype(np.float32), _HALF)
_FLOAT = (np.dtype(np.float32),)
_LABELS = (np.dtype(np.int32),)


class Heads:
    """Head outputs on the device: `boxes` [B, P, 4], `scores` [B, P, C], `coefficients` [B, P, K], `prototypes` [B, K, h, w].

    Each is float32 or float16. Raises :class:`ConfigError` for shapes or dtypes that do not belong together.
    """

    def __init__(self, boxes: DeviceArray, scores: DeviceArray, coefficients: DeviceArray, prototypes: DeviceArray) -> None:
        self.boxes, self.scores, self.coefficients, self.prototypes = boxes, scores, coefficients, prototypes
        named = {"boxes": boxes, "scores": scores, "coefficients": coefficients, "prototypes": prototypes}
        for name, array in named.items():
            _check_dtype(name, array, _FLOATS)
        found = [array.shape for array in named.values()]
        if [len(shape) for shape in found] != [3, 3, 3, 4]:
            raise ConfigError(f"The head outputs have the shapes {_told(found)}; [B, P, 4], [B, P, C], [B, P, K], [B, K, h, w] are wanted.")
        for name, array in named.items():
            _check_address(name, array)
        batch, priors, corners = boxes.shape
        if not batch:
            raise ConfigError("The head outputs are of no picture, a batch of at least 1 was wanted.", "Leave the call out.")
        prototype_count, height, width = prototypes.shape[1:]
        wanted = [(batch, priors, 4), (batch, priors, scores.shape[2]), (batch, priors, prototype_count), (batch, *prototypes.shape[1:])]
        if found != wanted or corners != 4:
            raise ConfigError(f"The head outputs have the shapes {_told(found)}, which do not fit; {_told(wanted)} would.")
        self.batch = batch
        self.shapes = HeadShapes(priors, scores.shape[2], prototype_count, height, width)

    @property
    def half_scores(self) -> bool:
        return self.scores.dtype == _HALF

    @property
    def half_prototypes(self) -> bool:
        return self.prototypes.dtype == _HALF

    def fill_in(self, problem: Problem) -> None:
        """Say where they lie and which are half."""
        problem.boxes, problem.scores = self.boxes.pointer, self.scores.pointer
        problem.coefficients, problem.prototypes = self.coefficients.pointer, self.prototypes.pointer
        problem.half_inputs = (self.boxes.dtype == _HALF) | (self.coefficients.dtype == _HALF) << 1


class GivenDetections:
    """Detections on the device as a graph with NMS inside gives them, D of a picture, and what their masks come from.

    Args:
        classes: C with background, which the labels do not tell.
        boxes: [B, D, 4], float32 or float16, as `coefficients`, `prototypes` and `masks`.
        scores: float32 [B, D].
        labels: int32 [B, D], 0-based without background; negative where there is no detection, anywhere in a row.
        coefficients, prototypes: [B, D, K] and [B, K, h, w]; needed where the graph assembles no masks.
        masks: [B, D, h, w] probabilities, of a graph that assembles them; then coefficients and prototypes are left alone.
        mask_scores: float32 [B, D] beside `masks`, of variants with mask rescoring.

    Raises :class:`ConfigError` for shapes or dtypes that do not belong together.
    """

    half_scores = False

    def __init__(
        self,
        classes: int,
        boxes: DeviceArray,
        scores: DeviceArray,
        labels: DeviceArray,
        coefficients: DeviceArray | None = None,
        prototypes: DeviceArray | None = None,
        masks: DeviceArray | None = None,
        mask_scores: DeviceArray | None = None,
    ) -> None:
        named = {"boxes": (boxes, _FLOATS), "scores": (scores, _FLOAT), "labels": (labels, _LABELS)}
        if masks is not None:
            named["masks"] = (masks, _FLOATS)
            if mask_scores is not None:
                named["mask_scores"] = (mask_scores, _FLOAT)
        elif coefficients is not None and prototypes is not None and mask_scores is None:
            named |= {"coefficients": (coefficients, _FLOATS), "prototypes": (prototypes, _FLOATS)}
        else:
            raise ConfigError("Masks come from coefficients and prototypes, or from masks with or without mask_scores.", "Give either.")
        for name, (array, dtypes) in named.items():
            _check_dtype(name, array, dtypes)
            _check_address(name, array)
        self.arrays = {name: array for name, (array, _) in named.items()}
        found = {name: array.shape for name, array in self.arrays.items()}
        batch, rows = labels.shape if len(labels.shape) == 2 else (0, 0)
        samples = found["masks" if masks is not None else "prototypes"]
        prototype_count, height, width = samples[1:] if len(samples) == 4 else (0, 0, 0)
        wanted = {
            "boxes": (batch, rows, 4),
            "scores": (batch, rows),
            "labels": (batch, rows),
            "mask_scores": (batch, rows),
            "coefficients": (batch, rows, prototype_count),
            "prototypes": (batch, prototype_count, height, width),
            "masks": (batch, rows, height, width),
        }
        if not batch or found != {name: wanted[name] for name in found}:
            told = "; ".join(f"{name} {list(shape)}" for name, shape in found.items())
            raise ConfigError(
                f"The graph's detections have the shapes {told}, which do not fit together.",
                "Give boxes [B, D, 4], scores and labels [B, D], and coefficients [B, D, K] with prototypes [B, K, h, w] or masks.",
            )
        self.batch = batch
        graph: GraphKind = "nms" if masks is None else "masks"
        self.shapes = HeadShapes(rows, classes, prototype_count if masks is None else 0, height, width, graph)

    @property
    def half_prototypes(self) -> bool:
        return "prototypes" in self.arrays and self.arrays["prototypes"].dtype == _HALF

    def fill_in(self, problem: Problem) -> None:
        """Say where they lie and which are half."""
        for name, array in self.arrays.items():
            own = name if name in ("boxes", "coefficients", "prototypes") else f"given_{name}"
            setattr(problem, own, array.pointer)
        half = {name for name, array in self.arrays.items() if array.dtype == _HALF}
        problem.half_inputs = ("boxes" in half) | ("coefficients" in half) << 1 | ("masks" in half) << 2


def _check_dtype(name: str, array: DeviceArray, wanted: Sequence[np.dtype[np.generic]]) -> None:
    if array.dtype not in wanted:
        told = " or ".join(str(dtype) for dtype in wanted)
        raise ConfigError(f"{name} is {array.dtype}, {told} was wanted.", "Convert it on the device.")


def _check_address(name: str, array: DeviceArray) -> None:
    if not array.pointer or array.pointer % array.dtype.itemsize:
        found_at = f"{name} begins at {array.pointer:#x}"
        raise ConfigError(f"{found_at}, a multiple of {array.dtype.itemsize} was wanted.", "Make a contiguous copy of it.")


def _told(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)
