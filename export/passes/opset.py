"""Bring the graph to an older opset than torch exports, with ONNX's own converter."""

from __future__ import annotations

import onnx
from onnx import version_converter

from yolact_deploy.errors import ConfigError

__all__ = ["NEWEST_OPSET", "OLDEST_OPSET", "convert_opset"]

OLDEST_OPSET = 17
"""TensorRT 8.6 reads up to opset 17."""
NEWEST_OPSET = 20
"""TensorRT 10, 11 and TensorRT-RTX read up to opset 20."""


def convert_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same graph at `opset`; :class:`ConfigError` where that is out of range or the converter cannot do it."""
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ConfigError(
            f"Opset {opset} was asked for, {OLDEST_OPSET} to {NEWEST_OPSET} are supported.", "Choose one of these with --opset."
        )
    current = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if current == opset:
        return model
    try:
        converted = version_converter.convert_version(model, opset)
    except RuntimeError as error:
        raise ConfigError(f"The graph cannot be brought from opset {current} to {opset}: {error}", "Choose a newer --opset.") from None
    del converted.graph.value_info[:]
    return converted
