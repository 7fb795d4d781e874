"""From a network's outputs for one picture to :class:`Detections`, for each of the three graphs: none, nms, masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.classes import ClassList
from yolact_deploy.detections import Detections
from yolact_deploy.errors import ModelFileError
from yolact_deploy.postprocess import (
    PostprocessSettings,
    Selection,
    crop_probabilities,
    mask_rles,
    pixel_boxes,
    rles_from_probabilities,
    select,
)

__all__ = ["Heads", "MaskIou", "assembled", "detect", "detections_from_nms", "finish"]

Floats = NDArray[np.float32]
MaskIou = Callable[[Floats], Floats]
"""The mask-IoU net: cropped probabilities [N, 1, h, w] -> predicted IoU [N, C-1]."""


class Heads(NamedTuple):
    """One picture's head outputs: boxes [P, 4] relative, scores [P, C], coefficients [P, K], prototypes [K, h, w]."""

    boxes: Floats
    scores: Floats
    coefficients: Floats
    prototypes: Floats


def detect(
    heads: Heads,
    width: int,
    height: int,
    classes: ClassList,
    settings: PostprocessSettings | None = None,
    *,
    mask_iou: MaskIou | None = None,
    input_size: int = 550,
) -> Detections:
    """NMS, mask assembly and RLE from the raw head outputs of a picture of `width` x `height` pixels.

    `mask_iou` rescores the masks (YOLACT++); `input_size` matters to traditional NMS alone, whose boxes are in input pixels.
    """
    chosen = select(heads.boxes, heads.scores, settings or PostprocessSettings(), input_size)
    return finish(chosen, heads.coefficients[chosen.priors], heads.prototypes, width, height, classes, mask_iou=mask_iou)


def finish(
    chosen: Selection,
    coefficients: Floats,
    prototypes: Floats,
    width: int,
    height: int,
    classes: ClassList,
    *,
    mask_iou: MaskIou | None = None,
) -> Detections:
    """Masks and pixel boxes of detections that NMS has chosen; `coefficients` [N, K] in their order, `prototypes` [K, h, w]."""
    mask_scores = chosen.scores
    if mask_iou is not None and len(chosen.scores):
        probabilities = crop_probabilities(prototypes, coefficients, chosen.boxes)
        ious = mask_iou(probabilities[:, None])
        mask_scores = (chosen.scores * ious[np.arange(len(chosen.labels)), chosen.labels]).astype(np.float32)
        counts = rles_from_probabilities(probabilities, chosen.boxes, width, height)
    else:
        counts = mask_rles(prototypes, coefficients, chosen.boxes, width, height)
    return assembled(chosen, mask_scores, counts, width, height, classes)


def detections_from_nms(
    outputs: dict[str, NDArray[np.generic]], width: int, height: int, classes: ClassList, *, mask_iou: MaskIou | None = None
) -> Detections:
    """From one picture's outputs of a graph with NMS inside: ``detections_boxes`` [D, 4], ``_scores`` [D], ``_labels`` [D] (-1 pads),
    ``_coefficients`` [D, K], ``prototypes`` [K, h, w] and, where the graph assembles masks, ``detections_masks`` [D, h, w] and
    ``detections_mask_scores`` [D].
    """
    labels = outputs["detections_labels"].astype(np.int64)
    present = labels >= 0
    labels = labels[present]
    if len(labels) and labels.max() >= len(classes):
        raise ModelFileError(
            f"The graph finds the label {labels.max()}, its manifest names {len(classes)} classes.", "Export the checkpoint again."
        )

    def rows(name: str) -> Floats:
        return cast(Floats, outputs[name][present].astype(np.float32))

    chosen = Selection(np.full(len(labels), -1, np.int64), labels, rows("detections_scores"), rows("detections_boxes"))
    if "detections_masks" not in outputs:
        prototypes = cast(Floats, outputs["prototypes"].astype(np.float32, copy=False))
        return finish(chosen, rows("detections_coefficients"), prototypes, width, height, classes, mask_iou=mask_iou)
    mask_scores = rows("detections_mask_scores") if "detections_mask_scores" in outputs else chosen.scores
    counts = rles_from_probabilities(rows("detections_masks"), chosen.boxes, width, height)
    return assembled(chosen, mask_scores, counts, width, height, classes)


def assembled(chosen: Selection, mask_scores: Floats, counts: list[bytes], width: int, height: int, classes: ClassList) -> Detections:
    """What NMS has chosen, with the masks' scores [N] and compressed RLE, for a picture of `width` x `height` pixels."""
    return Detections(
        pixel_boxes(chosen.boxes, width, height),
        chosen.scores,
        mask_scores,
        chosen.labels,
        tuple(counts),
        width,
        height,
        classes.names,
        classes.category_ids,
    )
