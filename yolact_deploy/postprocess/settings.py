"""What post-processing may be told: thresholds, limits and the kind of NMS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from yolact_deploy.errors import ConfigError

__all__ = ["NmsKind", "PostprocessSettings"]

NmsKind = Literal["fast", "cross-class", "traditional"]


@dataclass(frozen=True)
class PostprocessSettings:
    """Settings of :func:`yolact_deploy.postprocess.select`; the defaults are those of the published weights' evaluation.

    Attributes:
        score_threshold: a prior is a candidate where its best foreground probability is greater; in [0, 1].
        iou_threshold: overlap at which a box is suppressed (above it; traditional NMS: from it on); in [0, 1].
        top_k: boxes ranked for each class (fast) or in all (cross-class); at least 1. Traditional NMS has no such limit.
        max_detections: detections of one picture, at least 1. Cross-class NMS keeps up to `top_k` instead.
        nms: ``fast``, ``cross-class`` or ``traditional``.

    Raises :class:`ConfigError` for a value out of its range.
    """

    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    top_k: int = 200
    max_detections: int = 100
    nms: NmsKind = "fast"

    def __post_init__(self) -> None:
        for name in ("score_threshold", "iou_threshold"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value!r}, a number from 0 to 1 was wanted.", f"Set {name} to a value in that range.")
        for name in ("top_k", "max_detections"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}, a whole number from 1 on was wanted.", f"Set {name} to 1 or more.")
        kinds = get_args(NmsKind)
        if self.nms not in kinds:
            raise ConfigError(f"nms is {self.nms!r}, one of {', '.join(kinds)} was wanted.", "Choose one of these.")
