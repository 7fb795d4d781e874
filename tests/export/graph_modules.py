"""Parts of the exported graph alone, in ONNX Runtime: the module is traced, brought to opset 17 and run on what a test makes up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from yolact_deploy.export.graph import MaskAssembly
from yolact_deploy.export.nms import FastNms
from yolact_deploy.export.passes import convert_opset, rename_by_module
from yolact_deploy.export.tracing import to_onnx
from yolact_deploy.postprocess import PostprocessSettings

Run = Callable[..., list[np.ndarray]]


class _Packed(nn.Module):
    """Takes [B, rows, a + b + …] and hands the inner module the columns a, b, … separately."""

    def __init__(self, inner: nn.Module, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.nms, self.widths = inner, widths

    def forward(self, packed: Tensor) -> Any:
        starts = np.cumsum((0, *self.widths)).tolist()
        return self.nms(*(packed[..., start : start + width] for start, width in zip(starts, self.widths)))


def graph_nms(priors: int, classes: int, settings: PostprocessSettings) -> Run:
    """Fast NMS as the graph has it: boxes [B, P, 4], scores [B, P, C], coefficients [B, P, 2] -> its four outputs."""
    widths = (4, classes, 2)
    example = torch.rand(2, priors, sum(widths))
    run = _session(_Packed(FastNms(settings), widths), example, ["boxes", "scores", "labels", "coefficients"])
    return lambda *arrays: run(np.concatenate(arrays, -1))


class _Masks(nn.Module):
    """Takes [B, D + h * w, max(4 + K, K)]: rows of boxes and coefficients, then the prototypes, one pixel a row."""

    def __init__(self, rows: int, prototypes: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.masks = MaskAssembly()
        self.rows, self.prototypes, self.size = rows, prototypes, size

    def forward(self, packed: Tensor) -> Tensor:
        found = packed[:, : self.rows]
        samples = packed[:, self.rows :, : self.prototypes].transpose(1, 2).unflatten(2, self.size)
        return self.masks(found[..., :4], found[..., 4:], samples)


def graph_masks(rows: int, prototypes: int, size: tuple[int, int]) -> Run:
    """Mask assembly as the graph has it: boxes [B, D, 4], coefficients [B, D, K], prototypes [B, K, h, w] -> [B, D, h, w]."""
    run = _session(_Masks(rows, prototypes, size), torch.rand(2, rows + size[0] * size[1], 4 + prototypes), ["masks"])

    def masks(boxes: np.ndarray, coefficients: np.ndarray, samples: np.ndarray) -> list[np.ndarray]:
        pixels = samples.reshape(len(samples), prototypes, -1).transpose(0, 2, 1)
        padded = np.concatenate([pixels, np.zeros((*pixels.shape[:2], 4), np.float32)], -1)
        return run(np.concatenate([np.concatenate([boxes, coefficients], -1), padded], 1))

    return masks


def _session(module: nn.Module, example: Tensor, outputs: list[str]) -> Run:
    model = convert_opset(rename_by_module(to_onnx(module.eval(), example, outputs, opset=18, dynamic=True)), 17)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda packed: session.run(None, {"images": np.ascontiguousarray(packed, np.float32)})
