"""The result for one picture: boxes, scores, labels and masks, kept as COCO RLE until somebody asks for pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from yolact_deploy.errors import MissingDependencyError

__all__ = ["Detections"]


@dataclass(frozen=True, eq=False)
class Detections:
    """N instances found in one picture, best first.

    Attributes:
        boxes: float32 [N, 4], x1, y1, x2, y2 in pixels of the original picture, clipped to it.
        scores: float32 [N], the class probability (what Fast NMS ranked by).
        mask_scores: float32 [N], `scores` times the predicted mask IoU for variants with mask rescoring, else `scores`.
        labels: int64 [N], 0-based without background.
        counts: N compressed COCO RLE strings (``counts`` of pycocotools), column-major runs of the full-size mask.
        width, height: size of the original picture in pixels.
        class_names, category_ids: what a label means; `category_ids` are those of a COCO result file.
        milliseconds: wall time of each stage, where it was measured.

    Raises :class:`ValueError` where the lengths differ.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    mask_scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    counts: tuple[bytes, ...]
    width: int
    height: int
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    milliseconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.counts)
        shapes = {"boxes": (n, 4), "scores": (n,), "mask_scores": (n,), "labels": (n,)}
        for name, wanted in shapes.items():
            found = getattr(self, name).shape
            if found != wanted:
                raise ValueError(f"Detections.{name} has shape {found}, {wanted} was wanted for {n} masks")

    def __len__(self) -> int:
        return len(self.counts)

    def __repr__(self) -> str:
        return (
            f"Detections({len(self)} in {self.width}x{self.height}: boxes {list(self.boxes.shape)} {self.boxes.dtype}, "
            f"scores {list(self.scores.shape)} {self.scores.dtype}, labels {list(self.labels.shape)} {self.labels.dtype}, "
            f"masks [{len(self)}, {self.height}, {self.width}] as RLE)"
        )

    def __getitem__(self, index: int | slice | NDArray[Any] | list[int]) -> Detections:
        """The chosen detections as a new :class:`Detections`; an integer gives one of length 1."""
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"detection {index} of {len(self)}")
            index = [int(index)]
        chosen = np.arange(len(self))[index if isinstance(index, slice) else self._as_index(index)]
        return Detections(
            self.boxes[chosen],
            self.scores[chosen],
            self.mask_scores[chosen],
            self.labels[chosen],
            tuple(self.counts[i] for i in chosen),
            self.width,
            self.height,
            self.class_names,
            self.category_ids,
            self.milliseconds,
        )

    def __iter__(self) -> Iterator[Detections]:
        return (self[i] for i in range(len(self)))

    @staticmethod
    def _as_index(index: NDArray[Any] | list[int]) -> NDArray[Any]:
        array = np.asarray(index)
        return array if array.dtype == bool else array.astype(np.int64)

    def above(self, score: float) -> Detections:
        """Those whose score is greater than `score`."""
        return self[self.scores > score]

    @property
    def names(self) -> list[str]:
        """Class name of each detection."""
        return [self.class_names[label] for label in self.labels]

    @property
    def rles(self) -> list[dict[str, Any]]:
        """N dictionaries ``{"size": [height, width], "counts": bytes}``, as pycocotools takes them."""
        return [{"size": [self.height, self.width], "counts": counts} for counts in self.counts]

    @property
    def areas(self) -> NDArray[np.int64]:
        """int64 [N], pixels of each mask."""
        return np.asarray(coco_mask.area(self.rles) if len(self) else [], np.int64)

    def bitmap(self, index: int) -> NDArray[np.bool_]:
        """bool [height, width], the mask of one detection."""
        return np.asarray(coco_mask.decode(self.rles[index])).astype(bool)

    def bitmaps(self) -> NDArray[np.bool_]:
        """bool [N, height, width]: all masks at once, N x height x width bytes."""
        if not len(self):
            return np.zeros((0, self.height, self.width), bool)
        return np.ascontiguousarray(np.asarray(coco_mask.decode(self.rles)).transpose(2, 0, 1)).astype(bool)

    def polygons(self) -> list[list[NDArray[np.int32]]]:
        """For each detection its outer contours, int32 [points, 2] (x, y) in pixels; holes are not kept."""
        import cv2

        result = []
        for index in range(len(self)):
            contours, _ = cv2.findContours(self.bitmap(index).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            result.append([np.asarray(contour, np.int32).reshape(-1, 2) for contour in contours])
        return result

    def to_coco(self, image_id: int | str, *, iou_type: Literal["segm", "bbox"] = "segm") -> list[dict[str, Any]]:
        """COCO results: ``image_id, category_id, bbox [x, y, w, h], score`` and, for ``segm``, ``segmentation``.

        Boxes are truncated to whole pixels and those left without area dropped, as in the original's evaluation;
        ``score`` is `mask_scores` for ``segm`` and `scores` for ``bbox``. Everything in it can go through :mod:`json`.
        """
        scores = self.mask_scores if iou_type == "segm" else self.scores
        results = []
        for index, (x1, y1, x2, y2) in enumerate(np.trunc(self.boxes).astype(np.int64).tolist()):
            if x2 <= x1 or y2 <= y1:
                continue
            entry: dict[str, Any] = {
                "image_id": image_id,
                "category_id": self.category_ids[int(self.labels[index])],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(scores[index]),
            }
            if iou_type == "segm":
                entry["segmentation"] = {"size": [self.height, self.width], "counts": self.counts[index].decode("ascii")}
            results.append(entry)
        return results

    def to_supervision(self) -> Any:
        """``supervision.Detections`` with ``xyxy``, ``mask``, ``confidence`` and ``class_id``."""
        try:
            import supervision
        except ImportError:
            raise MissingDependencyError.of("supervision", "all", "Detections.to_supervision()") from None
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32), mask=self.bitmaps(), confidence=self.scores, class_id=self.labels.astype(int)
        )
