"""Fake quantization: a transcription of the INT8 graph's arithmetic, which tensors it touches, and its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tests.helpers.tiny import tiny_network, tiny_variant
from yolact_deploy.errors import ConfigError, TrainingError
from yolact_deploy.export.prepare import prepare_network
from yolact_deploy.model import Yolact
from yolact_deploy.model.backbones import Bottleneck, ResNetBackbone
from yolact_deploy.model.deformable import DeformableConv2d
from yolact_deploy.training.loop import TrainSettings
from yolact_deploy.training.quantization import FakeQuantization, QuantizationSettings, fake_quantize, fake_quantize_weight

MINMAX = QuantizationSettings(batches=2, method="minmax")
VARIANTS: dict[str, dict[str, Any]] = {
    "resnet": {"blocks": (1, 2, 1, 1)},
    "darknet": {"backbone": "darknet", "normalization": "unit"},
    "plus": {"dcn_blocks": (0, 1, 1, 1), "mask_rescoring": True, "input_size": 256},
}
"""Identity and projected shortcuts, DarkNet's, and deformable convolutions."""


def network_of(name: str) -> Yolact:
    return tiny_network(tiny_variant(**VARIANTS[name]), 3)


def pictures(network: Yolact, count: int = 2, seed: int = 0) -> Tensor:
    size = network.variant.input_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def as_numpy(x: Tensor, scale: Any, low: int) -> Any:
    """The formula: q = clamp(round half to even(x / scale)), then q * scale."""
    scale = np.asarray(scale, np.float32)
    return (np.clip(np.round(x.detach().numpy() * (np.float32(1) / scale)), low, 127) * scale).astype(np.float32)


class Transcription:
    """The quantized network, written out by hand: `ranges` are collected where `quantized` is False and used where it is True."""

    def __init__(self, network: Yolact, ranges: dict[str, float], *, quantized: bool) -> None:
        self.network, self.ranges, self.quantized = network, ranges, quantized

    def q(self, site: str, x: Tensor) -> Tensor:
        if not self.quantized:
            self.ranges[site] = max(self.ranges.get(site, 0.0), float(x.abs().max()))
            return x
        return torch.from_numpy(as_numpy(x, self.ranges[site] / 127, -128))

    def conv(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        weight = layer.weight
        largest = weight.detach().abs().amax((1, 2, 3), keepdim=True)
        rounded = torch.from_numpy(as_numpy(weight, (largest / 127).numpy(), -127))
        return functional.conv2d(x, rounded, layer.bias, layer.stride, layer.padding)

    def deformable(self, site: str, layer: DeformableConv2d, x: Tensor) -> Tensor:
        maps = layer.conv_offset_mask(x)
        samples = layer.sampling(x, maps[:, :18])
        for tap in range(9):
            samples[:, :, tap] = samples[:, :, tap] * torch.sigmoid(maps[:, 18 + tap])[:, None]
        samples = self.q(site, samples)
        largest = layer.weight.detach().abs().amax((1, 2, 3), keepdim=True)
        rounded = torch.from_numpy(as_numpy(layer.weight, (largest / 127).numpy(), -127))
        return torch.einsum("bcthw,oct->bohw", samples, rounded.flatten(2)) + layer.bias[None, :, None, None]

    def resnet(self, backbone: ResNetBackbone, images: Tensor) -> list[Tensor]:
        x = self.conv(backbone.conv1, self.q("backbone.conv1", images))
        x = backbone.maxpool(functional.relu(backbone.bn1(x)))
        features = []
        for number, stage in enumerate(backbone.layers):
            for index, block in enumerate(stage):
                assert isinstance(block, Bottleneck)
                name = f"backbone.layers.{number}.{index}"
                x = shortcut = self.q(name, x)
                x = functional.relu(block.bn1(self.conv(block.conv1, x)))
                if isinstance(block.conv2, DeformableConv2d):
                    x = self.deformable(f"{name}.conv2", block.conv2, x)
                else:
                    assert isinstance(block.conv2, nn.Conv2d)
                    x = self.conv(block.conv2, self.q(f"{name}.conv2", x))
                x = block.bn3(self.conv(block.conv3, self.q(f"{name}.conv3", functional.relu(block.bn2(x)))))
                if block.downsample is not None:
                    projection, norm = block.downsample
                    shortcut = self.q(f"{name}.downsample", norm(self.conv(projection, shortcut)))
                x = functional.relu(x + shortcut)
            features.append(x)
        return features[1:]

    def darknet(self, backbone: Any, images: Tensor) -> list[Tensor]:
        def layer(parts: Any, x: Tensor) -> Tensor:
            convolution, norm, _ = parts
            return functional.leaky_relu(norm(self.conv(convolution, x)), 0.1)

        x = layer(backbone._preconv, self.q("backbone._preconv.0", images))
        features = []
        for number, (first, *blocks) in enumerate(backbone.layers):
            x = layer(first, self.q(f"backbone.layers.{number}.0.0", x))
            for index, block in enumerate(blocks, 1):
                name = f"backbone.layers.{number}.{index}"
                x = self.q(name, x)
                x = layer(block.conv2, self.q(f"{name}.conv2.0", layer(block.conv1, x))) + x
            features.append(x)
        return features[-3:]

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """loc, logits, coefficients, prototypes."""
        network = self.network
        backbone = network.backbone
        features = self.resnet(backbone, images) if isinstance(backbone, ResNetBackbone) else self.darknet(backbone, images)
        # C3 and C4 are read by the next stage first, C5 by its lateral layer alone
        last = len(backbone.layers) - 1
        kind = ".0" if not isinstance(backbone, ResNetBackbone) else ""
        read = [self.q(f"backbone.layers.{last - 1}.0{kind}", features[0]), self.q(f"backbone.layers.{last}.0{kind}", features[1])]
        read.append(self.q("fpn.lat_layers.0", features[2]))
        fpn = network.fpn
        lateral: Any = [self.conv(fpn.lat_layers[2 - place], read[place]) for place in range(3)]
        top = self.q("resize", lateral[2])
        middle = self.q("resize@1", self.q("resized", doubled(top, lateral[1])) + lateral[1])
        bottom = self.q("fpn.pred_layers.2", self.q("resized@1", doubled(middle, lateral[0])) + lateral[0])
        levels = [functional.relu(self.conv(fpn.pred_layers[2 - place], x)) for place, x in enumerate((bottom, middle, top))]
        p3 = self.q("proto_net.0", levels[0])
        p5 = self.q("fpn.downsample_layers.0", levels[2])
        p6 = self.q("fpn.downsample_layers.1", self.conv(fpn.downsample_layers[0], p5))
        p7 = self.q("prediction_layers.0.upfeature.0@4", self.conv(fpn.downsample_layers[1], p6))
        p4 = self.q("prediction_layers.0.upfeature.0@1", levels[1])
        x, net = p3, network.proto_net
        for place in (0, 2, 4):
            x = functional.relu(self.conv(net[place], x))
            x = self.q(f"proto_net.{place + 2}" if place < 4 else "resize@2", x)
        x = self.q("resized@2", functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        x = functional.relu(self.conv(net[8], self.q("proto_net.8", functional.relu(x))))
        prototypes = functional.relu(self.conv(net[10], self.q("proto_net.10", x)))
        found: list[list[Tensor]] = [[], [], []]
        head: Any = network.prediction_layers[0]
        for number, level in enumerate((p3, p4, p5, p6, p7)):
            x = functional.relu(self.conv(head.upfeature[0], level))
            x = self.q("prediction_layers.0.bbox_layer" + (f"@{number}" if number else ""), x)
            for place, (part, columns) in enumerate(((head.bbox_layer, 4), (head.conf_layer, 5), (head.mask_layer, 8))):
                found[place].append(self.conv(part, x).permute(0, 2, 3, 1).reshape(len(images), -1, columns))
        loc, logits, coefficients = (torch.cat(parts, 1) for parts in found)
        return loc, logits, torch.tanh(coefficients), prototypes


def doubled(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def outputs(network: Yolact, images: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(network(images)[:4])


def observed(network: Yolact, settings: QuantizationSettings = MINMAX, seeds: tuple[int, ...] = (1, 2)) -> FakeQuantization:
    made = FakeQuantization(network, settings)
    made.observe([pictures(network, seed=seed) for seed in seeds])
    return made


@pytest.mark.parametrize("name", VARIANTS)
def test_it_computes_what_the_transcription_computes(name: str) -> None:
    network = network_of(name)
    ranges: dict[str, float] = {}
    with torch.no_grad():
        for seed in (1, 2):
            Transcription(network, ranges, quantized=False)(pictures(network, seed=seed))
        images = pictures(network, seed=9) * 1.5  # some values lie outside the ranges
        wanted = Transcription(network, ranges, quantized=True)(images)
    plain = outputs(network, images)
    made = observed(network)
    assert set(made.ranges) == set(ranges), "the quantized places"
    assert made.ranges == pytest.approx(ranges, rel=1e-4)
    made.ranges = ranges
    made.attach()
    for found, expected, without in zip(outputs(network, images), wanted, plain, strict=True):
        error, moved = float((found - expected).abs().mean()), float((without - expected).abs().mean())
        assert error < 0.02 * moved, "sums in another order may turn a tie, no more"


@pytest.mark.parametrize(("name", "count"), [("resnet", 42), ("darknet", 38), ("plus", 39)])
def test_each_tensor_has_one_range_however_many_layers_read_it(name: str, count: int) -> None:
    made = observed(network_of(name))
    assert len(made.ranges) == count
    assert not [site for site in made.ranges if any(part in site for part in ("semantic", "maskiou", "offset"))]
    assert sorted(site for site in made.ranges if "prediction_layers" in site) == [
        *("prediction_layers.0.bbox_layer", *(f"prediction_layers.0.bbox_layer@{level}" for level in range(1, 5))),
        *("prediction_layers.0.upfeature.0@1", "prediction_layers.0.upfeature.0@4"),
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_it_stands_in_every_convolution_but_those_without_pairs(name: str) -> None:
    network = network_of(name)
    observed(network).attach()
    found = {key for key, module in network.named_modules() if "forward" in module.__dict__}
    every = {key for key, module in network.named_modules() if isinstance(module, nn.Conv2d | DeformableConv2d)}
    left = {key for key in every if key == "semantic_seg_conv" or key.endswith("conv_offset_mask") or key.startswith("maskiou_net")}
    assert len(left) == {"plus": 1 + 3 + 6}.get(name, 1)
    assert found == {"", *(every - left)}
    weights = {id(network.get_submodule(key).weight) for key in every - left}
    seen: list[int] = []
    original = torch.fake_quantize_per_channel_affine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch, "fake_quantize_per_channel_affine", lambda weight, *rest: (seen.append(id(weight)), original(weight, *rest))[1]
        )
        network.train()(pictures(network))
    assert sorted(seen) == sorted(weights), "each once, the head's too"


@pytest.mark.parametrize("low", [-128, -127])
def test_steps_are_those_of_the_formula(low: int) -> None:
    x = torch.tensor([[-1.0, -0.5, 0.5, 1.5, 2.5, 0.49, 126.5, 127.0, -127.0, 3.2]]) * torch.tensor([[0.25], [0.5]])
    if low == -128:
        x = torch.cat([x, torch.tensor([[-40.0] * 10, [32.1] * 10])])
        assert np.array_equal(fake_quantize(x, 31.75).numpy(), as_numpy(x, 0.25, -128))
        assert float(fake_quantize(x, 31.75).min()) == -32.0
        assert float(fake_quantize(x, 31.75).max()) == 31.75
    else:
        assert np.array_equal(fake_quantize_weight(x).numpy(), as_numpy(x, [[0.25], [0.5]], -127))


def test_a_channel_without_weights_stays_zero_and_learns() -> None:
    weight = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    found = fake_quantize_weight(weight.requires_grad_())
    assert torch.equal(found[1], weight[1])
    assert bool(((found - weight).abs() <= weight.abs().max() / 254 * 1.001).all())
    found.sum().backward()
    assert weight.grad is not None
    assert bool((weight.grad == 1).all())


def test_gradients_pass_inside_the_range_alone() -> None:
    x = torch.tensor([-5.0, -1.0, 0.2, 1.0, 1.1], requires_grad=True)
    fake_quantize(x, 1.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (fake_quantize_weight(weight) * 2).sum().backward()
    assert weight.grad is not None
    assert bool((weight.grad == 2).all())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_weight_that_detection_needs_gets_a_gradient(name: str) -> None:
    network = network_of(name)
    observed(network).attach()
    sum(value.abs().mean() for value in network(pictures(network))[:4]).backward()
    lacking = [key for key, value in network.named_parameters() if value.grad is None or not bool((value.grad != 0).any())]
    assert [key for key in lacking if not key.startswith(("semantic", "maskiou"))] == []


@pytest.mark.parametrize("name", VARIANTS)
def test_taken_out_the_network_is_as_it_was(name: str) -> None:
    network = network_of(name)
    images, state = pictures(network), {key: value.clone() for key, value in network.state_dict().items()}
    before = outputs(network, images)
    made = observed(network)
    assert not made.attached
    assert all(torch.equal(*pair) for pair in zip(outputs(network, images), before, strict=True)), "observing alone changes nothing"
    made.attach()
    made.attach()
    assert made.attached
    assert not torch.equal(outputs(network, images)[1], before[1])
    assert list(network.state_dict()) == list(state)
    parts = {"fpn": [torch.randn(1, width, size, size) for width, size in zip(network.backbone.channels, (16, 8, 4), strict=True)]}
    alone = network.fpn(parts["fpn"])
    made.detach()
    assert not made.attached
    assert all(torch.equal(*pair) for pair in zip(network.fpn(parts["fpn"]), alone, strict=True)), "a part called by itself"
    assert all(torch.equal(*pair) for pair in zip(outputs(network, images), before, strict=True))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not [
        module for module in network.modules() if "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks
    ]


def test_quantizing_commutes_with_folding_batch_norm() -> None:
    network = network_of("resnet")
    folded = prepare_network(network)
    for block in ("backbone.layers.0.0", "backbone.layers.1.1"):
        convolution, norm = network.get_submodule(f"{block}.conv2"), network.get_submodule(f"{block}.bn2")
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert bool((norm.weight < 0).any())
        first = fuse_conv_bn_eval(convolution, norm)
        found = fake_quantize_weight(first.weight)
        with torch.no_grad():
            convolution.weight.copy_(fake_quantize_weight(convolution.weight))
        assert torch.allclose(found, fuse_conv_bn_eval(convolution, norm).weight, rtol=1e-5, atol=1e-7)
    network = network_of("resnet")
    made, after = observed(network), FakeQuantization(folded)
    after.ranges = made.ranges
    images = pictures(network)
    plain = outputs(network, images)
    made.attach()
    after.attach()
    for one, other, without in zip(outputs(network, images), outputs(folded, images), plain, strict=True):
        assert float((one - other).abs().mean()) < 0.05 * float((one - without).abs().mean())


def test_ranges_by_either_method() -> None:
    network = network_of("resnet")
    batches = [pictures(network, seed=seed) * factor for seed, factor in ((1, 1.0), (2, 3.0))]
    largest = [float(batch.abs().max()) for batch in batches]
    shares = [float(np.percentile(batch.abs().numpy(), 90, method="inverted_cdf")) for batch in batches]
    found = []
    for settings in (QuantizationSettings(2, "minmax", 90), QuantizationSettings(2, "percentile", 90)):
        made = FakeQuantization(network, settings)
        made.observe(batches)
        found.append(made.ranges["backbone.conv1"])
    assert found == pytest.approx([max(largest), sum(shares) / 2])


def test_a_tensor_of_almost_nothing_but_zeros_has_a_range() -> None:
    network = network_of("resnet")
    images = torch.zeros(1, 3, 128, 128)
    made = FakeQuantization(network, QuantizationSettings(method="percentile"))
    made.observe([images])
    assert made.ranges["backbone.conv1"] == 1.0
    images[0, 0, 5, 5] = 0.25
    made.observe([images])
    assert made.ranges["backbone.conv1"] == 0.25


def test_observing_leaves_norms_and_modes() -> None:
    network = network_of("resnet")
    network.train()
    network.backbone.bn1.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    observed(network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training
    assert network.fpn.training
    assert not network.backbone.bn1.training


def test_what_cannot_be_is_refused() -> None:
    network = network_of("resnet")
    made = FakeQuantization(network)
    with pytest.raises(TrainingError, match="No batch"):
        made.observe([])
    with pytest.raises(TrainingError, match=r"not finite, the first goes into backbone\.conv1"):
        FakeQuantization(network, MINMAX).observe([torch.full((1, 3, 128, 128), value) for value in (1.0, float("nan"))])
    made.attach()
    with pytest.raises(TrainingError, match=r"No range is known for what goes into backbone\.conv1"):
        network(pictures(network))
    made.detach()
    refused: tuple[dict[str, Any], ...] = ({"batches": 0}, {"percentile": 101.0}, {"percentile": 1.0}, {"method": "entropy"})
    for wrong in refused:
        with pytest.raises(ConfigError, match="were asked for"):
            QuantizationSettings(**wrong)
    with pytest.raises(ConfigError, match="asked for in bf16"):
        TrainSettings(quantization=MINMAX, precision="bf16")
