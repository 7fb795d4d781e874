"""Making a trained network ready to be traced: batch norm folded into convolutions, deformable convolutions made portable."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from yolact_deploy.model import Yolact
from yolact_deploy.model.deformable import DeformableConv2d, deform_conv2d_portable, tap_kernel

__all__ = ["PortableDeformableConv2d", "prepare_network"]


class PortableDeformableConv2d(nn.Module):
    """A deformable convolution whose kernel is stored as the 1x1 kernel that its portable form uses."""

    def __init__(self, original: DeformableConv2d) -> None:
        super().__init__()
        self.sampling = original.sampling
        self.conv_offset_mask = original.conv_offset_mask
        self.weight = nn.Parameter(tap_kernel(original.weight.detach()), requires_grad=False)
        self.bias = nn.Parameter(original.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] -> [B, out, ceil(h / stride), ceil(w / stride)]."""
        maps = self.conv_offset_mask(x)  # sliced, because ONNX's converter cannot bring Split to opset 17
        return deform_conv2d_portable(self.sampling, x, maps[:, :18], self.weight, self.bias, torch.sigmoid(maps[:, 18:]))


def prepare_network(network: Yolact) -> Yolact:
    """A copy of `network` for export: evaluation mode, no batch norm left, deformable convolutions in portable form."""
    prepared = copy.deepcopy(network).eval().requires_grad_(False)
    _fold_batch_norm(prepared)
    _replace_deformable(prepared)
    return prepared


def _fold_batch_norm(module: nn.Module) -> None:
    """Fold each batch norm into the convolution registered right before it among its siblings, which is what it normalises."""
    previous: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and previous is not None:
            setattr(module, previous[0], _folded(previous[1], child))
            setattr(module, name, nn.Identity())
        else:
            _fold_batch_norm(child)
        previous = (name, child)


def _folded(convolution: nn.Module, norm: nn.BatchNorm2d) -> nn.Module:
    if isinstance(convolution, nn.Conv2d):
        return fuse_conv_bn_eval(convolution, norm)
    if isinstance(convolution, DeformableConv2d):
        if norm.running_mean is None or norm.running_var is None:
            raise TypeError("a batch norm without running statistics cannot be folded")
        weight, bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        convolution.weight, convolution.bias = weight, bias
        return convolution
    raise TypeError(f"no batch norm can be folded into {type(convolution).__name__}")


def _replace_deformable(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, DeformableConv2d):
            setattr(module, name, PortableDeformableConv2d(child))
        else:
            _replace_deformable(child)
