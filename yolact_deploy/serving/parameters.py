"""What a client of a served model has to know, as the text parameters of its configuration: written here, and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from yolact_deploy.classes import ClassList
from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.manifest import InputSpec, Manifest
from yolact_deploy.postprocess import PostprocessSettings

__all__ = ["ClientSpec", "Postprocess", "bound_outputs", "client_parameters"]

Postprocess = Literal["none", "nms", "masks"]

_NEEDED: dict[str, tuple[str, ...]] = {
    "none": ("boxes", "scores", "coefficients", "prototypes"),
    "nms": ("detections_boxes", "detections_scores", "detections_labels", "detections_coefficients", "prototypes"),
    "masks": ("detections_boxes", "detections_scores", "detections_labels", "detections_masks"),
}
_LEFT: dict[str, str] = {
    "none": "NMS of the scores, masks of the prototypes and coefficients, scaling to the picture: yolact_deploy.assembly.detect",
    "nms": "masks of the prototypes and coefficients, scaling to the picture: yolact_deploy.assembly.detections_from_nms",
    "masks": "upsampling the masks and thresholding them at 0.5, scaling to the picture: yolact_deploy.assembly.detections_from_nms",
}
_RESCORED = "; between them, on the cropped masks, the model mask_iou_model, whose output at the label multiplies the score"
_RESIZED = "resize to input_size x input_size, bilinear, aspect ratio not kept, without antialiasing"
_PREPARED = {
    "float": f"{_RESIZED}; subtract input_mean, divide by input_std, channels first: yolact_deploy.preprocess.prepare",
    "raw": f"{_RESIZED}; round to 8 bits, channels last; the graph normalises: yolact_deploy.preprocess.prepare",
}


def bound_outputs(manifest: Manifest) -> tuple[str, ...]:
    """The outputs that detections are made of, others need not be asked for; :class:`ModelFileError` where the manifest lacks one."""
    there = [tensor.name for tensor in manifest.outputs]
    needed = _NEEDED[manifest.postprocess]
    missing = [name for name in needed if name not in there]
    if missing:
        raise ModelFileError(
            f"The manifest (postprocess {manifest.postprocess}) names no output {', '.join(missing)}.", "Export the checkpoint again."
        )
    return (*needed, *(name for name in ("detections_mask_scores",) if manifest.postprocess == "masks" and name in there))


def client_parameters(manifest: Manifest, *, smallest_batch: int, mask_iou_model: str = "") -> dict[str, str]:
    """Names and texts, lists as JSON; :meth:`ClientSpec.read` reads them."""
    spec, limits = manifest.input, manifest.thresholds
    left = _LEFT[manifest.postprocess] + (_RESCORED if mask_iou_model else "")
    found = {
        "bind_outputs": json.dumps(bound_outputs(manifest)),
        "category_ids": json.dumps(manifest.classes.category_ids),
        "class_names": json.dumps(manifest.classes.names, ensure_ascii=False),
        "input_channels": spec.channels,
        "input_layout": spec.layout,
        "input_mean": json.dumps(spec.mean),
        "input_size": str(spec.size),
        "input_std": json.dumps(spec.std),
        "iou_threshold": json.dumps(limits.iou),
        "left_to_do": left,
        "max_detections": str(limits.max_detections),
        "postprocess": manifest.postprocess,
        "prepare": _PREPARED[spec.layout],
        "score_threshold": json.dumps(limits.score),
        "smallest_batch": str(smallest_batch),
        "top_k": str(limits.top_k),
        "variant": manifest.variant.name,
    }
    return {**found, **({"mask_iou_model": mask_iou_model} if mask_iou_model else {})}


@dataclass(frozen=True)
class ClientSpec:
    """Everything that a client of a served model needs to prepare pictures and to make detections of the outputs.

    Attributes:
        input: preprocessing.
        classes: names and category ids.
        settings: of the NMS.
        postprocess: what the graph contains: ``none``, ``nms`` or ``masks``.
        outputs: to ask for.
        smallest_batch: fewest pictures of a request; pad with zeros.
        mask_iou_model: served model that rescores masks; empty without.
    """

    input: InputSpec
    classes: ClassList
    settings: PostprocessSettings
    postprocess: Postprocess
    outputs: tuple[str, ...]
    smallest_batch: int
    mask_iou_model: str = ""

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> ClientSpec:
        """Of the model configuration that a Triton server answers with, as JSON (``get_model_config`` of its HTTP client).

        Raises :class:`ModelFileError` for that of a model which ``yolact-deploy triton-repository`` did not write.
        """
        try:
            texts = {name: entry["string_value"] for name, entry in config["parameters"].items()}
            red, green, blue = (float(value) for value in json.loads(texts["input_mean"]))
            deviations = tuple(float(value) for value in json.loads(texts["input_std"]))
            if texts["postprocess"] not in get_args(Postprocess) or len(deviations) != 3:
                raise ValueError(f"postprocess {texts['postprocess']}")
            return cls(
                InputSpec(int(texts["input_size"]), texts["input_layout"], texts["input_channels"], (red, green, blue), deviations),
                ClassList(tuple(json.loads(texts["class_names"])), tuple(json.loads(texts["category_ids"]))),
                PostprocessSettings(
                    float(texts["score_threshold"]), float(texts["iou_threshold"]), int(texts["top_k"]), int(texts["max_detections"])
                ),
                texts["postprocess"],
                tuple(json.loads(texts["bind_outputs"])),
                int(texts["smallest_batch"]),
                texts.get("mask_iou_model", ""),
            )
        except (AttributeError, ConfigError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"[:120]
            raise ModelFileError(
                f"The model's configuration has not the parameters of yolact-deploy ({reason}).",
                "Write its repository with: yolact-deploy triton-repository MODEL",
            ) from None
