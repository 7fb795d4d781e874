"""Fresh weights, ImageNet backbones, and taking over a trained network whose classes differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet50

from tests.helpers.tiny import tiny_network, tiny_variant
from tests.helpers.weights import write_checkpoint
from yolact_deploy.classes import ClassList
from yolact_deploy.errors import CheckpointError
from yolact_deploy.model import Checkpoint, Yolact
from yolact_deploy.training.initial import freeze_norms, initialise, load_backbone, take_over
from yolact_deploy.variants import get_variant


def test_fresh_weights_follow_from_the_seed() -> None:
    one, same, other = (Yolact(tiny_variant()) for _ in range(3))
    for network, seed in ((one, 1), (same, 1), (other, 2)):
        initialise(network, seed)
    for key, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[key]), key
    assert not torch.equal(one.backbone.conv1.weight, other.backbone.conv1.weight)


def test_fresh_networks_say_background_and_stay_finite() -> None:
    variant = tiny_variant(dcn_blocks=(0, 1, 1, 1), square_priors=False)
    network = Yolact(variant)
    initialise(network)
    network.eval()
    with torch.no_grad():
        outputs = network(torch.randn(1, 3, variant.input_size, variant.input_size, generator=torch.Generator().manual_seed(0)))
    probability = outputs.logits.softmax(2)[..., 0]
    assert float(probability.mean()) == pytest.approx(0.98, abs=0.02)
    assert all(bool(torch.isfinite(value).all()) for value in outputs if value is not None)
    block = network.backbone.layers[1][0]
    assert float(block.bn3.weight.detach().abs().max()) == 0
    assert float(block.conv2.conv_offset_mask.weight.detach().abs().max()) == 0
    kernel = network.fpn.pred_layers[0].weight.detach()
    assert float(kernel.std()) == pytest.approx((2 / kernel[0].numel()) ** 0.5, rel=0.05)


@pytest.mark.parametrize("variant", ["yolact_resnet50", "yolact_plus_resnet50"])
def test_torchvisions_backbone_is_taken_over(tmp_path: Path, variant: str) -> None:
    source = resnet50(weights=None).state_dict()
    path = write_checkpoint(tmp_path, "resnet50.pth", source)
    network = Yolact(get_variant(variant))
    initialise(network)
    load_backbone(network, path)
    assert torch.equal(network.backbone.conv1.weight, source["conv1.weight"])
    assert torch.equal(network.backbone.layers[3][2].conv3.weight, source["layer4.2.conv3.weight"])
    assert torch.equal(network.backbone.layers[2][1].conv2.weight, source["layer3.1.conv2.weight"])
    assert torch.equal(network.backbone.layers[1][0].downsample[1].running_var, source["layer2.0.downsample.1.running_var"])


def test_a_foreign_backbone_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, "resnet50.pth", resnet50(weights=None).state_dict())
    with pytest.raises(CheckpointError, match="is no backbone of yolact_base"):
        load_backbone(Yolact(get_variant("yolact_base")), path)


def trained(names: tuple[str, ...], tmp_path: Path, **fields: object) -> Checkpoint:
    variant = tiny_variant(num_classes=len(names) + 1, **fields)
    return Checkpoint(tiny_network(variant), variant, ClassList(names, tuple(range(1, len(names) + 1))), tmp_path / "given.pth", "")


def fresh(names: tuple[str, ...], **fields: object) -> Yolact:
    network = Yolact(tiny_variant(num_classes=len(names) + 1, **fields))
    initialise(network)
    return network


def test_the_same_classes_take_everything(tmp_path: Path) -> None:
    source = trained(("a", "b"), tmp_path)
    network = fresh(("a", "b"))
    assert take_over(network, source.classes, source) == ()
    for key, value in source.network.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key


def test_as_many_other_names_take_everything(tmp_path: Path) -> None:
    assert take_over(fresh(("x", "y")), ClassList(("x", "y"), (1, 2)), trained(("a", "b"), tmp_path)) == ()


def test_classes_are_found_again_by_name(tmp_path: Path) -> None:
    size = {"input_size": 512, "mask_rescoring": True}
    source = trained(("a", "b", "c"), tmp_path, **size)
    network = fresh(("new", "c", "a", "other"), **size)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    partly = take_over(network, ClassList(("new", "c", "a", "other"), (1, 2, 3, 4)), source)
    assert set(partly) == {
        f"{layer}.{kind}"
        for layer in ("prediction_layers.0.conf_layer", "semantic_seg_conv", "maskiou_net.maskiou_net.10")
        for kind in ("weight", "bias")
    }
    after, given = network.state_dict(), source.network.state_dict()
    for kind in ("weight", "bias"):
        key = f"prediction_layers.0.conf_layer.{kind}"
        new, old, was = (values[key].view(3, -1, *values[key].shape[1:]) for values in (after, given, before))
        for place, origin in ((0, 0), (2, 3), (3, 1)):
            assert torch.equal(new[:, place], old[:, origin])
        for place in (1, 4):
            assert torch.equal(new[:, place], was[:, place])
        for layer in ("semantic_seg_conv", "maskiou_net.maskiou_net.10"):
            key = f"{layer}.{kind}"
            assert torch.equal(after[key][1], given[key][2])
            assert torch.equal(after[key][2], given[key][0])
            assert torch.equal(after[key][[0, 3]], before[key][[0, 3]])
    assert torch.equal(after["backbone.conv1.weight"], given["backbone.conv1.weight"])


def test_another_variant_is_refused(tmp_path: Path) -> None:
    source = trained(("a",), tmp_path)
    network = Yolact(dataclasses.replace(source.variant, fpn_width=16))
    with pytest.raises(CheckpointError, match="does not fit"):
        take_over(network, source.classes, source)


def test_frozen_norms_keep_statistics_and_have_no_gradient() -> None:
    network = tiny_network(tiny_variant()).train()
    freeze_norms(network)
    before = {key: value.clone() for key, value in network.state_dict().items() if "bn" in key}
    network(torch.randn(2, 3, 128, 128)).logits.sum().backward()
    for key, value in network.state_dict().items():
        if "bn" in key:
            assert torch.equal(value, before[key]), key
    assert network.backbone.bn1.weight.grad is None
    assert network.backbone.conv1.weight.grad is not None
