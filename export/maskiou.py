"""The mask-IoU net of YOLACT++ as an ONNX file of its own, run after NMS and crop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import torch

from yolact_deploy.errors import VerificationError
from yolact_deploy.model import Checkpoint

from .passes import convert_opset, rename_by_module
from .tracing import TORCH_OPSET, to_onnx

__all__ = ["MASK_IOU_KEY", "export_mask_iou"]

MASK_IOU_KEY = "yolact_deploy.mask_iou"
"""Metadata key that marks such a file as ours."""

_TOLERANCE = 1e-4


def export_mask_iou(checkpoint: Checkpoint, path: Path, opset: int) -> None:
    """Write the net: input ``masks`` float32 [N, 1, h, w] (N dynamic), output ``mask_ious`` [N, C-1]; check it in ONNX Runtime.

    Raises :class:`VerificationError` where it differs from PyTorch by more than 1e-4 of the largest value.
    """
    net = checkpoint.network.maskiou_net
    size = checkpoint.variant.prototype_size
    model = to_onnx(net, torch.zeros(2, 1, size, size), ["mask_ious"], opset=max(opset, TORCH_OPSET), dynamic=True, input_name="masks")
    model = convert_opset(rename_by_module(model), opset)
    about = {"schema": 1, "variant": checkpoint.variant.name, "source": checkpoint.sha256}
    onnx.helper.set_model_props(model, {MASK_IOU_KEY: json.dumps(about, sort_keys=True)})
    path.write_bytes(model.SerializeToString())
    _check(path, net, size)


def _check(path: Path, net: torch.nn.Module, size: int) -> None:
    import onnxruntime

    masks = np.random.default_rng(0).random((3, 1, size, size), np.float32)
    found = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"masks": masks})[0]
    with torch.inference_mode():
        wanted = net(torch.from_numpy(masks)).numpy()
    difference = float(np.abs(found - wanted).max()) / max(float(np.abs(wanted).max()), 1e-12)
    if not difference <= _TOLERANCE:
        raise VerificationError(f"The mask-IoU net in ONNX differs from PyTorch by {difference:.1e}, at most {_TOLERANCE:.0e} was wanted.")
