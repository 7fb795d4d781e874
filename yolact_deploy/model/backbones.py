"""ResNet (with or without deformable convolutions) and DarkNet-53 feature extractors, keyed as YOLACT's checkpoints are."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from yolact_deploy.model.deformable import DeformableConv2d
from yolact_deploy.variants import Variant

__all__ = ["DarkNetBackbone", "ResNetBackbone", "build_backbone"]

_EXPANSION = 4  # a bottleneck block's output is four times its inner width


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with batch norm around a shortcut; the stride sits on the 3x3 (arXiv:1512.03385, figure 5)."""

    def __init__(self, channels: int, width: int, stride: int, *, project: bool, deformable: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2: nn.Module = (
            DeformableConv2d(width, width, stride=stride) if deformable else nn.Conv2d(width, width, 3, stride, 1, bias=False)
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * _EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * _EXPANSION)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels, width * _EXPANSION, 1, stride, bias=False), nn.BatchNorm2d(width * _EXPANSION))
            if project
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, 4 * width, ceil(h / stride), ceil(w / stride)]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return functional.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNetBackbone(nn.Module):
    """Stem and four bottleneck stages; `channels` are the widths of C3, C4 and C5.

    Block i of a stage of n blocks with d deformable ones at interval k is deformable if ``i + d >= n`` and ``i % k == 0``
    (arXiv:1912.06218, section 3.3, counts them from the stage's end).
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        width = variant.backbone_width
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, channels = [], width
        for stage, (blocks, deformable) in enumerate(zip(variant.blocks, variant.dcn_blocks, strict=True)):
            inner = width << stage
            layers: list[nn.Module] = []
            for block in range(blocks):
                layers.append(
                    Bottleneck(
                        channels,
                        inner,
                        2 if stage > 0 and block == 0 else 1,
                        project=block == 0,
                        deformable=block + deformable >= blocks and block % variant.dcn_interval == 0,
                    )
                )
                channels = inner * _EXPANSION
            stages.append(nn.Sequential(*layers))
        self.layers = nn.ModuleList(stages)
        self.channels = tuple((width << stage) * _EXPANSION for stage in (1, 2, 3))

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, S, S] -> C3, C4, C5 at strides 8, 16 and 32."""
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features[1:]


def _darknet_conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1),
    )


class DarkNetBlock(nn.Module):
    """1x1 and 3x3 convolutions around a shortcut (YOLOv3, arXiv:1804.02767, table 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _darknet_conv(channels, channels // 2, 1)
        self.conv2 = _darknet_conv(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> the same shape."""
        out: Tensor = self.conv2(self.conv1(x)) + x
        return out


class DarkNetBackbone(nn.Module):
    """DarkNet-53 without its classifier; `channels` are the widths of the last three stages."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        width = variant.backbone_width
        self._preconv = _darknet_conv(3, width, 3)
        stages, channels = [], width
        for blocks in variant.blocks:
            stages.append(nn.Sequential(_darknet_conv(channels, channels * 2, 3, 2), *(DarkNetBlock(channels * 2) for _ in range(blocks))))
            channels *= 2
        self.layers = nn.ModuleList(stages)
        self.channels = (channels // 4, channels // 2, channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, S, S] -> features at strides 8, 16 and 32."""
        x = self._preconv(x)
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features[-3:]


def build_backbone(variant: Variant) -> ResNetBackbone | DarkNetBackbone:
    """The backbone that the variant names."""
    return ResNetBackbone(variant) if variant.backbone == "resnet" else DarkNetBackbone(variant)
