"""What an artifact says of itself: one JSON document, inside an ONNX file's metadata or beside an engine."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from yolact_deploy.classes import ClassList
from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.variants import IMAGENET_MEAN, IMAGENET_STD, Variant

__all__ = ["METADATA_KEY", "SCHEMA", "InputSpec", "Manifest", "TensorSpec", "Thresholds"]

SCHEMA = 1
"""Version of the document's layout; a reader refuses a newer one."""
METADATA_KEY = "yolact_deploy"
"""Key of the manifest among an ONNX file's ``metadata_props``."""

_REBUILD = "Export the checkpoint again with this version of yolact-deploy."


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype and shape of an input or output; a dynamic axis is ``"batch"``."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class InputSpec:
    """How a picture becomes the network's input.

    Attributes:
        size: height and width in pixels.
        layout: ``float`` is normalised float32 [B, 3, S, S]; ``raw`` is uint8 [B, S, S, 3], normalised in the graph.
        channels: ``rgb`` or ``bgr``, the order of the input's channels (``float`` input is always ``rgb``).
        mean, std: per channel, RGB, in 0 … 255.
    """

    size: int
    layout: Literal["float", "raw"] = "float"
    channels: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @classmethod
    def of(cls, variant: Variant, layout: Literal["float", "raw"] = "float", channels: Literal["rgb", "bgr"] = "rgb") -> InputSpec:
        """The input of `variant`: its size and its normalisation."""
        if variant.normalization == "unit":
            return cls(variant.input_size, layout, channels, (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
        return cls(variant.input_size, layout, channels)


@dataclass(frozen=True)
class Thresholds:
    """Fast NMS as the artifact was made for: see :class:`yolact_deploy.postprocess.PostprocessSettings`."""

    score: float = 0.05
    iou: float = 0.5
    top_k: int = 200
    max_detections: int = 100


@dataclass(frozen=True)
class Manifest:
    """Everything that running an artifact needs, and where it came from.

    Attributes:
        kind: ``checkpoint``, ``onnx`` or ``engine``.
        variant: the network, complete (its priors follow from it).
        classes: names and COCO category ids.
        input: preprocessing.
        postprocess: what the graph contains: ``none``, ``nms`` or ``masks``.
        thresholds: of the NMS.
        inputs, outputs: tensors of the graph.
        precision: module name to the dtype it computes in.
        source: ``file`` and ``sha256`` of what it was made from.
        versions: package name to version, of what made it.
        mask_iou: ``file`` and ``sha256`` of the separate mask-IoU net, empty where there is none.
        verification: largest differences to the reference, as measured after writing.
        target: GPU, compute capability and such, for engines.
        calibration: summary of the INT8 calibration.
    """

    kind: Literal["checkpoint", "onnx", "engine"]
    variant: Variant
    classes: ClassList
    input: InputSpec
    postprocess: Literal["none", "nms", "masks"]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: dict[str, str]
    source: dict[str, str]
    versions: dict[str, str]
    thresholds: Thresholds = Thresholds()
    mask_iou: dict[str, str] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The document; keys sorted, so that equal manifests are equal text."""
        fields = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        fields["variant"] = self.variant.to_dict()
        for name in ("classes", "input", "thresholds"):
            fields[name] = dataclasses.asdict(fields[name])
        for name in ("inputs", "outputs"):
            fields[name] = [dataclasses.asdict(tensor) for tensor in fields[name]]
        return json.dumps({"schema": SCHEMA, **fields}, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Read a document found in `where`; :class:`ModelFileError` for a newer schema or a damaged one."""
        try:
            fields = json.loads(text)
            schema = fields.pop("schema")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise ModelFileError(f"The manifest of {where} is damaged.", _REBUILD) from None
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise ModelFileError(
                f"The manifest of {where} has schema {schema}, this version reads up to {SCHEMA}.", "Upgrade: pip install -U yolact-deploy"
            )
        try:
            return cls._from_fields(fields)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, ConfigError) as error:
            raise ModelFileError(f"The manifest of {where} is damaged ({error}).", _REBUILD) from None

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Manifest:
        variant = Variant.from_dict(fields["variant"])
        classes = ClassList(tuple(map(str, fields["classes"]["names"])), tuple(map(int, fields["classes"]["category_ids"])))
        if len(classes) != variant.num_classes - 1:
            raise ValueError(f"{len(classes)} class names for {variant.num_classes - 1} classes")
        given = fields["input"]
        spec = InputSpec(int(given["size"]), given["layout"], given["channels"], _three(given["mean"]), _three(given["std"]))
        sane = spec.size == variant.input_size and all(map(math.isfinite, spec.mean)) and all(0 < value < math.inf for value in spec.std)
        if spec.layout not in ("float", "raw") or spec.channels not in ("rgb", "bgr") or not sane:
            raise ValueError(f"input {given}")
        for name in ("precision", "source", "versions", "mask_iou", "verification", "target", "calibration"):
            if not isinstance(fields[name], dict):
                raise ValueError(f"{name} is {type(fields[name]).__name__}")
        if fields["mask_iou"] and not all(isinstance(fields["mask_iou"].get(key), str) for key in ("file", "sha256")):
            raise ValueError(f"mask_iou is {fields['mask_iou']}")
        if fields["postprocess"] not in ("none", "nms", "masks") or fields["kind"] not in ("checkpoint", "onnx", "engine"):
            raise ValueError(f"postprocess {fields['postprocess']!r}, kind {fields['kind']!r}")
        limits = fields["thresholds"]
        return cls(
            **{
                **fields,
                "variant": variant,
                "classes": classes,
                "input": spec,
                "inputs": _tensors(fields["inputs"]),
                "outputs": _tensors(fields["outputs"]),
                "thresholds": Thresholds(float(limits["score"]), float(limits["iou"]), int(limits["top_k"]), int(limits["max_detections"])),
            }
        )


def _three(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _tensors(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(str(entry["name"]), str(entry["dtype"]), tuple(axis if isinstance(axis, str) else int(axis) for axis in entry["shape"]))
        for entry in entries
    )
