"""Deformable convolution: both forms against a literal loop, and the folded form that is exported against the network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tiny import tiny_network, tiny_variant
from yolact_deploy.export.prepare import PortableDeformableConv2d, prepare_network
from yolact_deploy.model import set_deformable_form
from yolact_deploy.model.deformable import DeformableConv2d, deform_conv2d_portable, tap_kernel


def layer(inputs: int, outputs: int, stride: int, seed: int = 0, offset_scale: float = 1.0) -> DeformableConv2d:
    """Float64, with random weights; offsets spread by about `offset_scale` pixels."""
    made = DeformableConv2d(inputs, outputs, stride=stride).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.5, generator=generator)
        made.conv_offset_mask.weight[:18] *= offset_scale
        made.conv_offset_mask.bias[:18] *= offset_scale
    return made.eval()


def picture(channels: int, height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def literal(module: DeformableConv2d, x: torch.Tensor) -> np.ndarray:
    """The paper's sum (arXiv:1811.11168, equation 1), value by value; outside the picture is zero."""
    with torch.inference_mode():
        maps = module.conv_offset_mask(x).numpy()
        weight, bias, values = (tensor.numpy() for tensor in (module.weight.detach(), module.bias.detach(), x))
    batch, channels, height, width = values.shape

    def sample(image: int, channel: int, y: float, x: float) -> float:
        total = 0.0
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    total += (1 - abs(y - row)) * (1 - abs(x - column)) * values[image, channel, row, column]
        return total

    result = np.empty((batch, len(weight), *maps.shape[2:]))
    for image, row, column in np.ndindex(batch, *maps.shape[2:]):
        accumulated = bias.copy()
        for tap in range(9):
            dy, dx, logit = (maps[image, index, row, column] for index in (2 * tap, 2 * tap + 1, 18 + tap))
            y, x_ = row * module.stride - 1 + tap // 3 + dy, column * module.stride - 1 + tap % 3 + dx
            samples = np.array([sample(image, channel, y, x_) for channel in range(channels)])
            accumulated = accumulated + weight[:, :, tap // 3, tap % 3] @ samples / (1 + math.exp(-logit))
        result[image, :, row, column] = accumulated
    return result


def outputs(module: torch.nn.Module, x: torch.Tensor) -> dict[str, np.ndarray]:
    found = {}
    for form in ("torchvision", "portable"):
        set_deformable_form(module, form)
        with torch.inference_mode():
            found[form] = module(x).numpy()
    return found


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(7, 9), (6, 5), (1, 1)])
@pytest.mark.parametrize("offset_scale", [0.0, 1.0, 30.0])
def test_both_forms_are_the_literal_sum(stride: int, height: int, width: int, offset_scale: float) -> None:
    module, x = layer(3, 4, stride, offset_scale=offset_scale), picture(3, height, width, batch=2)
    wanted = literal(module, x)
    assert wanted.shape[2:] == (math.ceil(height / stride), math.ceil(width / stride))
    for form, found in outputs(module, x).items():
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9, err_msg=form)


@settings(deadline=None, max_examples=40)
@given(
    stride=st.integers(1, 2),
    height=st.integers(1, 21),
    width=st.integers(1, 21),
    scale=st.sampled_from([0.0, 0.1, 2.0, 100.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_the_portable_form_is_torchvisions(stride: int, height: int, width: int, scale: float, seed: int) -> None:
    found = outputs(layer(2, 3, stride, seed, scale), picture(2, height, width))
    np.testing.assert_allclose(found["portable"], found["torchvision"], rtol=0, atol=1e-8)


def test_float32_forms_agree_at_the_networks_sizes() -> None:
    module = layer(16, 8, 1, offset_scale=4).float()
    found = outputs(module, picture(16, 69, 69).float())
    np.testing.assert_allclose(found["portable"], found["torchvision"], rtol=0, atol=1e-3)


def test_taps_that_leave_the_picture_leave_the_bias() -> None:
    module = layer(2, 3, 1)
    with torch.no_grad():
        module.conv_offset_mask.weight.zero_()
        module.conv_offset_mask.bias[:18] = 500
    for found in outputs(module, picture(2, 5, 5)).values():
        np.testing.assert_allclose(found, np.broadcast_to(module.bias.detach().numpy()[:, None, None], found.shape))


def test_untrained_offsets_give_half_an_ordinary_convolution() -> None:
    module = DeformableConv2d(3, 4, stride=2).double().eval()
    x = picture(3, 9, 11)
    ordinary = torch.nn.functional.conv2d(x, module.weight, None, 2, 1) / 2
    for found in outputs(module, x).values():
        np.testing.assert_allclose(found, ordinary.detach().numpy(), atol=1e-12)


def test_the_kernel_may_be_given_in_its_1x1_layout() -> None:
    module, x = layer(3, 4, 1), picture(3, 6, 7)
    with torch.inference_mode():
        maps = module.conv_offset_mask(x)
        arguments = maps[:, :18], maps[:, 18:].sigmoid()
        as_stored, as_1x1 = (
            deform_conv2d_portable(module.sampling, x, arguments[0], weight, module.bias, arguments[1])
            for weight in (module.weight, tap_kernel(module.weight))
        )
    np.testing.assert_array_equal(as_stored, as_1x1)


FOLDED: list[dict[str, Any]] = [
    {"dcn_blocks": (0, 1, 2, 1), "blocks": (1, 1, 2, 1), "square_priors": False},
    {"dcn_blocks": (1, 2, 3, 2), "blocks": (1, 2, 3, 2), "dcn_interval": 2, "input_size": 121},
    {"backbone": "darknet", "blocks": (1, 2, 1, 1, 1)},
    {},
]


@pytest.mark.parametrize("fields", FOLDED, ids=["every-block", "interval-and-odd-size", "darknet", "plain"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_folded_network_is_the_network(fields: dict[str, Any], seed: int) -> None:
    variant = tiny_variant(**fields)
    network = tiny_network(variant, seed)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    prepared = prepare_network(network)
    x = torch.randn(2, 3, variant.input_size, variant.input_size, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        wanted, found = network(x), prepared(x)
    for name in ("loc", "logits", "coefficients", "prototypes"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        assert theirs.std() > 1e-3, f"{name} is too flat to compare"
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()), err_msg=name)
    kinds = [type(module) for module in prepared.modules()]
    assert torch.nn.BatchNorm2d not in kinds
    assert DeformableConv2d not in kinds
    assert kinds.count(PortableDeformableConv2d) == sum(isinstance(module, DeformableConv2d) for module in network.modules())
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    for key, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[key], err_msg="the original was changed")
