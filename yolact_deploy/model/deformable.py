"""Modulated deformable convolution (DCNv2, arXiv:1811.11168): torchvision's operator, and a portable form for export."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from yolact_deploy.errors import MissingDependencyError

__all__ = ["DeformableConv2d", "TapSampling", "deform_conv2d_portable", "tap_kernel"]

_TAPS = 9  # a 3x3 kernel; each tap has an offset (y, x) and a modulation


class DeformableConv2d(nn.Module):
    """A 3x3 convolution, padding 1, whose taps move by learned offsets and are scaled by learned modulations.

    Keys: ``weight`` [out, in, 3, 3], ``bias`` [out], ``conv_offset_mask.{weight,bias}``. The 27 channels of `conv_offset_mask`
    are 18 offsets (y and x interleaved, in pixels of the input) and 9 modulation logits.

    `form` chooses the operator: ``torchvision`` (exact reference, fast) or ``portable`` (bilinear grid sampling, standard ONNX).
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.sampling = TapSampling(stride)
        self.form: Literal["torchvision", "portable"] = "torchvision"
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.conv_offset_mask = nn.Conv2d(inputs, 3 * _TAPS, 3, stride, 1)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        for parameter in self.conv_offset_mask.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] -> [B, out, ceil(h / stride), ceil(w / stride)]."""
        offsets, logits = self.conv_offset_mask(x).split([2 * _TAPS, _TAPS], 1)
        modulation = torch.sigmoid(logits)
        if self.form == "portable":
            return deform_conv2d_portable(self.sampling, x, offsets, self.weight, self.bias, modulation)
        return _torchvision_deform_conv2d(x, offsets, self.weight, self.bias, self.stride, modulation)


def _torchvision_deform_conv2d(x: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor, stride: int, modulation: Tensor) -> Tensor:
    try:
        from torchvision.ops import deform_conv2d
    except ImportError:
        raise MissingDependencyError.of("torchvision", "torch", "A YOLACT++ network in PyTorch") from None
    result: Tensor = deform_conv2d(x, offsets, weight, bias, stride=(stride, stride), padding=(1, 1), mask=modulation)
    return result


class TapSampling(nn.Module):
    """Samples a picture where the nine taps of each output place look: one bilinear ``grid_sample`` for all of them.

    A module of its own, so that an exporter can keep its positions in float32.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """[B, c, h, w] and offsets [B, 18, oh, ow] in input pixels -> samples [B, c, 9, oh, ow]; outside the picture is zero."""
        channels, height, width = x.shape[1:]
        rows, columns = offsets.shape[-2:]
        tap = torch.arange(_TAPS, device=x.device)[:, None, None]
        row = torch.arange(rows, device=x.device)[None, :, None] * self.stride - 1 + tap // 3
        column = torch.arange(columns, device=x.device)[None, None, :] * self.stride - 1 + tap % 3
        moved = offsets.reshape(-1, _TAPS, 2, rows, columns)
        ys = moved[:, :, 0] + row.to(x.dtype)
        xs = moved[:, :, 1] + column.to(x.dtype)
        grid = torch.stack([xs * (2 / width) + (1 / width - 1), ys * (2 / height) + (1 / height - 1)], -1)
        grid = grid.reshape(-1, _TAPS * rows, columns, 2)
        samples = functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return samples.reshape(-1, channels, _TAPS, rows, columns)


def deform_conv2d_portable(sampling: TapSampling, x: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor) -> Tensor:
    """The operator's sum from standard ones: samples of all taps, modulated, then a 1x1 convolution over channels and taps.

    Shapes: `x` [B, in, h, w]; `offsets` [B, 18, oh, ow]; `weight` [out, in, 3, 3], or [out, in * 9, 1, 1] as :func:`tap_kernel`
    lays it out; `modulation` [B, 9, oh, ow]; result [B, out, oh, ow].
    """
    rows, columns = offsets.shape[-2:]
    samples = sampling(x, offsets) * modulation.reshape(-1, 1, _TAPS, rows, columns)
    kernel = weight if weight.shape[-1] == 1 else tap_kernel(weight)
    return functional.conv2d(samples.reshape(-1, x.shape[1] * _TAPS, rows, columns), kernel, bias)


def tap_kernel(weight: Tensor) -> Tensor:
    """[out, in, 3, 3] -> [out, in * 9, 1, 1]: the 1x1 kernel over all channels' taps."""
    return weight.reshape(weight.shape[0], -1, 1, 1)
