"""One call of torch's exporter, quiet and in memory."""

from __future__ import annotations

import logging
import warnings

import onnx
import torch

from yolact_deploy.errors import MissingDependencyError

__all__ = ["TORCH_OPSET", "to_onnx"]

TORCH_OPSET = 18
"""The oldest opset that torch's exporter has implementations for."""


def to_onnx(
    module: torch.nn.Module, example: torch.Tensor, outputs: list[str], *, opset: int, dynamic: bool, input_name: str = "images"
) -> onnx.ModelProto:
    """Trace `module` on one example input; axis 0 is dynamic or fixed. The exporter's chatter is kept off the terminal."""
    axis = {0: torch.export.Dim("batch", min=1, max=65536)}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[input_name],
                output_names=outputs,
                dynamic_shapes=(axis,) if dynamic else None,
                verbose=False,
            )
    except ImportError as error:
        raise MissingDependencyError.of("onnxscript", "torch", "ONNX export") from error
    finally:
        logger.setLevel(level)
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program.model_proto
