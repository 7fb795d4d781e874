"""The self-test beside an engine: one picture, and what the ONNX file that the engine was built from finds in it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.data.segmentation import check_segmentation, rle_of
from yolact_deploy.detections import Detections
from yolact_deploy.errors import ModelFileError

from .sidecar import EngineTarget

__all__ = [
    "LARGEST_SIDE",
    "SCHEMA",
    "TOLERANCES",
    "Selftest",
    "SelftestOrder",
    "SelftestTolerance",
    "read_selftest",
    "selftest_path",
    "tolerance_of",
]

SCHEMA = 1
"""Version of the document's layout; a reader refuses a newer one."""
LARGEST_SIDE = 4096
"""Pixels, of the picture."""
_LARGEST_FILE = 64 << 20
_MOST_LABELS = 1 << 20
_LARGEST_MASK_SCORE = 1e6  # a score times what a mask-IoU net predicts, which has no upper bound of its own


@dataclass(frozen=True)
class SelftestTolerance:
    """How far an engine's detection may be from its partner among the expected ones.

    Attributes:
        score: largest difference of their scores.
        mask_iou, box_iou: least IoU of their masks and boxes. Above 0.75 of boxes nothing can have two partners of its class: NMS leaves no
            two boxes of one with an IoU above 0.5, and 1 - IoU is a metric.
    """

    score: float
    mask_iou: float
    box_iou: float


TOLERANCES = {
    "fp32": SelftestTolerance(score=1e-3, mask_iou=0.95, box_iou=0.95),
    "fp16": SelftestTolerance(score=3e-2, mask_iou=0.9, box_iou=0.9),
    "int8": SelftestTolerance(score=0.15, mask_iou=0.65, box_iou=0.75),
}
"""By the engine's precision. A GPU adds up in another order than ONNX Runtime on a CPU: float32 has ten times the score difference of
:data:`yolact_deploy.matching.FLOAT32`, and room for two pixels of a small mask; float16 has what ``matching.FLOAT16`` allows. Where float16
moves a value over the border between two steps of int8, all that follows moves by a step: of the demo model's detections above 0.3 in
60 synthetic pictures of 320 x 240 the two differed by up to 0.107 in score, and by IoUs down to 0.68 of masks and 0.76 of boxes."""


def tolerance_of(precision: str, *, tf32: bool = False) -> SelftestTolerance:
    """The usual one of an engine of this precision; TensorFloat-32 keeps as many bits of a factor as float16 does."""
    return TOLERANCES["fp16" if tf32 and precision == "fp32" else precision]


@dataclass(frozen=True, eq=False)
class Selftest:
    """One picture and its detections.

    Attributes:
        picture: uint8 RGB [H, W, 3].
        expected: in it, best first; their labels have no names here.
        reference: what computed them, in words.
        score_threshold: detections below it are not compared.
        tolerance: how near is near enough.
    """

    picture: NDArray[np.uint8]
    expected: Detections
    reference: str
    score_threshold: float
    tolerance: SelftestTolerance

    @property
    def limit(self) -> float:
        """What scores above it must have a partner, be it expected or found."""
        return self.score_threshold + self.tolerance.score

    @property
    def wanted(self) -> int:
        """How many of the expected detections must be found."""
        return int((self.expected.scores.astype(np.float64) > self.limit).sum())

    def to_json(self) -> str:
        """The document; :meth:`from_json` reads it."""
        height, width = self.picture.shape[:2]
        expected, pixels = self.expected, np.ascontiguousarray(self.picture).tobytes()
        fields = {
            "schema": SCHEMA,
            "reference": self.reference,
            "score_threshold": self.score_threshold,
            "score_tolerance": self.tolerance.score,
            "mask_iou": self.tolerance.mask_iou,
            "box_iou": self.tolerance.box_iou,
            "detections": [
                {
                    "label": int(expected.labels[place]),
                    "score": float(expected.scores[place]),
                    "mask_score": float(expected.mask_scores[place]),
                    "box": expected.boxes[place].tolist(),
                    "counts": counts.decode("ascii"),
                }
                for place, counts in enumerate(expected.counts)
            ],
            "picture": {"width": width, "height": height, "rgb": base64.b64encode(pixels).decode("ascii")},
        }
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str, mend: str) -> Selftest:
        """Read a document found in `where`; :class:`ModelFileError` with `mend` for a newer schema or a damaged one."""
        try:
            fields = json.loads(text)
            schema = fields["schema"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ModelFileError(f"The self-test {where} is damaged.", mend) from None
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise ModelFileError(
                f"The self-test {where} has schema {str(schema)[:40]}, this version reads up to {SCHEMA}.",
                "Upgrade: pip install -U yolact-deploy",
            )
        try:
            return cls._from_fields(fields)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ModelFileError(f"The self-test {where} is damaged ({reason}).", mend) from None

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Selftest:
        tolerance = SelftestTolerance(
            score=_number(fields, "score_tolerance", 0, 1),
            mask_iou=_number(fields, "mask_iou", 0, 1),
            box_iou=_number(fields, "box_iou", 0, 1),
        )
        picture = _picture(fields["picture"])
        expected = _detections(fields["detections"], picture.shape[1], picture.shape[0])
        if not isinstance(fields["reference"], str):
            raise ValueError("the reference is no text")
        found = cls(picture, expected, fields["reference"], _number(fields, "score_threshold", 0, 1), tolerance)
        if not found.wanted:
            raise ValueError("it wants nothing found")
        return found


SelftestMaker = Callable[[Path, SelftestTolerance], Selftest]


@dataclass(frozen=True)
class SelftestOrder:
    """A self-test to be built with an engine.

    Attributes:
        make: given the ONNX file and how near is near enough, the self-test: :func:`yolact_deploy.runtime.selftesting.make_selftest`.
        flags: of ``build-engine``, for the command that builds the engine again.
    """

    make: SelftestMaker
    flags: str = "--with-selftest"


def selftest_path(engine: Path) -> Path:
    """``name.engine.selftest.json`` of ``name.engine``."""
    return engine.with_name(f"{engine.name}.selftest.json")


def read_selftest(engine: Path, target: EngineTarget | None) -> Selftest:
    """The self-test that the engine's sidecar names, checked.

    Raises :class:`ModelFileError` where it names none, and where the file is missing, damaged, or another one.
    """
    if target is None or not target.selftest:
        command = target.rebuild if target is not None else "yolact-deploy build-engine MODEL.onnx"
        raise ModelFileError(f"{engine} carries no self-test.", f"Build it with: {command} --with-selftest")
    path, mend = engine.parent / Path(target.selftest["file"]).name, f"Copy all files of the engine again, or rebuild it: {target.rebuild}"
    if not path.is_file():
        raise ModelFileError(f"{engine} needs its self-test {path.name} beside it, which is missing.", mend)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ModelFileError(f"The self-test {path} is larger than {_LARGEST_FILE >> 20} MiB.", mend)
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"The self-test {path} cannot be read ({error.strerror}).", mend) from None
    if hashlib.sha256(content).hexdigest() != target.selftest["sha256"]:
        raise ModelFileError(f"{path} is not the self-test that {engine.name} was built with: its SHA-256 differs.", mend)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ModelFileError(f"The self-test {path} is damaged.", mend) from None
    return Selftest.from_json(text, str(path), mend)


def _picture(fields: dict[str, Any]) -> NDArray[np.uint8]:
    width, height = (int(_number(fields, name, 1, LARGEST_SIDE, whole=True)) for name in ("width", "height"))
    if not isinstance(fields["rgb"], str):
        raise ValueError("the picture's rgb is no text")
    pixels = base64.b64decode(fields["rgb"], validate=True)
    if len(pixels) != width * height * 3:
        raise ValueError(f"the picture has {len(pixels)} bytes of {width} x {height} x 3")
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def _detections(entries: list[dict[str, Any]], width: int, height: int) -> Detections:
    if not isinstance(entries, list):
        raise ValueError("the detections are no list")
    scores = np.array([_number(entry, "score", 0, 1) for entry in entries], np.float32)
    if (scores[1:] > scores[:-1]).any():
        raise ValueError("the detections are not ordered by their scores")
    return Detections(
        boxes=np.array([_box(entry["box"], width, height) for entry in entries], np.float32).reshape(-1, 4),
        scores=scores,
        mask_scores=np.array([_number(entry, "mask_score", 0, _LARGEST_MASK_SCORE) for entry in entries], np.float32),
        labels=np.array([_number(entry, "label", 0, _MOST_LABELS, whole=True) for entry in entries], np.int64),
        counts=tuple(_counts(entry["counts"], width, height) for entry in entries),
        width=width,
        height=height,
        class_names=(),
        category_ids=(),
    )


def _box(values: list[float], width: int, height: int) -> list[float]:
    named = dict(zip(("x1", "y1", "x2", "y2"), values, strict=True))
    x1, x2 = (_number(named, name, 0, width) for name in ("x1", "x2"))
    y1, y2 = (_number(named, name, 0, height) for name in ("y1", "y2"))
    if x2 < x1 or y2 < y1:
        raise ValueError(f"the box {values} is no box")
    return [x1, y1, x2, y2]


def _counts(counts: str, width: int, height: int) -> bytes:
    if not isinstance(counts, str):
        raise ValueError("counts are no text")
    segmentation, _ = check_segmentation({"size": [height, width], "counts": counts}, height, width)
    return bytes(rle_of(segmentation, height, width)["counts"])


def _number(fields: dict[str, Any], name: str, low: float, high: float, *, whole: bool = False) -> float:
    """``fields[name]``, a number from `low` to `high`."""
    value = fields[name]
    if type(value) not in ((int,) if whole else (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} is {str(value)[:40]}, {'a whole number' if whole else 'a number'} from {low} to {high} was wanted")
    return float(value)
