"""Configurations of models that were never made."""

from __future__ import annotations

from typing import Any

from yolact_deploy.manifest import TensorSpec
from yolact_deploy.serving.config import ModelSettings


def settings(**changes: Any) -> ModelSettings:
    given: dict[str, Any] = {
        "name": "m",
        "backend": "onnxruntime",
        "max_batch_size": 8,
        "inputs": (TensorSpec("images", "float32", (3, 8, 8)),),
        "outputs": (TensorSpec("boxes", "float32", (6, 4)), TensorSpec("labels", "int32", (6,))),
    }
    return ModelSettings(**{**given, **changes})
