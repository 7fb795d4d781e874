"""The YOLACT network (arXiv:1904.02689, section 3): backbone, FPN, prototype net, one head for all levels, mask-IoU net.

Module names follow the original implementation's state dict, so that published checkpoints load unchanged.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from yolact_deploy.model.backbones import build_backbone
from yolact_deploy.model.deformable import DeformableConv2d
from yolact_deploy.model.priors import make_priors
from yolact_deploy.variants import Variant

__all__ = ["HeadOutputs", "Yolact", "set_deformable_form"]


class HeadOutputs(NamedTuple):
    """What the network computes for B pictures, before any decoding.

    Attributes:
        loc: [B, P, 4] box regressions against the priors.
        logits: [B, P, C] class logits, column 0 is background.
        coefficients: [B, P, K] mask coefficients, after tanh.
        prototypes: [B, K, h, w], after ReLU.
        semantic: [B, C-1, g, g] per-pixel class logits on P3, in training mode only.
    """

    loc: Tensor
    logits: Tensor
    coefficients: Tensor
    prototypes: Tensor
    semantic: Tensor | None = None


class FeaturePyramid(nn.Module):
    """FPN over C3, C4, C5 with stride-2 convolutions above; layers are stored from C5 down, as checkpoints have them."""

    def __init__(self, channels: tuple[int, ...], width: int, extra_levels: int) -> None:
        super().__init__()
        self.lat_layers = nn.ModuleList(nn.Conv2d(c, width, 1) for c in reversed(channels))
        self.pred_layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.downsample_layers = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in range(extra_levels))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """C3, C4, C5 -> P3 … P7, each [B, width, g, g]; no ReLU after the stride-2 convolutions."""
        merged: list[Tensor] = []
        for lateral, feature in zip(self.lat_layers, reversed(features), strict=True):
            x = lateral(feature)
            if merged:
                x = functional.interpolate(merged[-1], x.shape[-2:], mode="bilinear", align_corners=False) + x
            merged.append(x)
        levels = [functional.relu(layer(x)) for layer, x in zip(self.pred_layers, merged, strict=True)][::-1]
        for layer in self.downsample_layers:
            levels.append(layer(levels[-1]))
        return levels


class BilinearTwice(nn.Module):
    """Bilinear upsampling by 2 to a size that is known when the graph is traced."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, c, h, w] -> [B, c, 2h, 2w]."""
        return functional.interpolate(x, (2 * x.shape[-2], 2 * x.shape[-1]), mode="bilinear", align_corners=False)


class PredictionHead(nn.Module):
    """The head that all levels share: box regressions, class logits and mask coefficients of each prior."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        width, priors = variant.fpn_width, variant.priors_per_cell
        self.num_classes, self.num_prototypes = variant.num_classes, variant.num_prototypes
        self.upfeature = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.bbox_layer = nn.Conv2d(width, priors * 4, 3, padding=1)
        self.conf_layer = nn.Conv2d(width, priors * variant.num_classes, 3, padding=1)
        self.mask_layer = nn.Conv2d(width, priors * variant.num_prototypes, 3, padding=1)

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, width, g, g] -> [B, g*g*A, 4], [B, g*g*A, C], [B, g*g*A, K]."""
        x = self.upfeature(level)

        def flat(maps: Tensor, columns: int) -> Tensor:
            priors = maps.shape[1] // columns * maps.shape[2] * maps.shape[3]
            return maps.permute(0, 2, 3, 1).reshape(-1, priors, columns)

        return (
            flat(self.bbox_layer(x), 4),
            flat(self.conf_layer(x), self.num_classes),
            torch.tanh(flat(self.mask_layer(x), self.num_prototypes)),
        )


class MaskIouNet(nn.Module):
    """YOLACT++'s rescoring net (arXiv:1912.06218, section 3.4): the IoU that a mask would have, for each class."""

    def __init__(self, foreground: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (8, 16, 32, 64, 128):
            layers += [nn.Conv2d(channels, width, 3, 2), nn.ReLU()]
            channels = width
        self.maskiou_net = nn.Sequential(*layers, nn.Conv2d(channels, foreground, 1), nn.ReLU())

    def forward(self, masks: Tensor) -> Tensor:
        """Cropped mask probabilities [N, 1, h, w] -> [N, C-1]."""
        return cast(Tensor, self.maskiou_net(masks)).amax((2, 3))


class Yolact(nn.Module):
    """The whole network of `variant`; `priors` is a plain float32 [P, 4] tensor, no entry of the state dict."""

    priors: Tensor

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        width = variant.fpn_width
        self.backbone = build_backbone(variant)
        self.fpn = FeaturePyramid(self.backbone.channels, width, variant.extra_levels)
        self.proto_net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            BilinearTwice(),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, variant.num_prototypes, 1),
            nn.ReLU(),
        )
        self.prediction_layers = nn.ModuleList([PredictionHead(variant)])
        self.semantic_seg_conv = nn.Conv2d(width, variant.num_classes - 1, 1)
        if variant.mask_rescoring:
            self.maskiou_net = MaskIouNet(variant.num_classes - 1)
        self.register_buffer("priors", torch.from_numpy(make_priors(variant)), persistent=False)

    def forward(self, images: Tensor) -> HeadOutputs:
        """Normalised RGB pictures, float [B, 3, S, S] -> :class:`HeadOutputs`."""
        levels = self.fpn(self.backbone(images))
        prototypes = self.proto_net(levels[0])
        head = self.prediction_layers[0]
        loc, logits, coefficients = (torch.cat(parts, 1) for parts in zip(*(head(level) for level in levels), strict=True))
        semantic = self.semantic_seg_conv(levels[0]) if self.training else None
        return HeadOutputs(loc, logits, coefficients, prototypes, semantic)


def set_deformable_form(network: nn.Module, form: str) -> None:
    """Choose ``torchvision`` or ``portable`` for every deformable convolution below `network`."""
    for module in network.modules():
        if isinstance(module, DeformableConv2d):
            module.form = "portable" if form == "portable" else "torchvision"
