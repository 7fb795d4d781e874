"""What the network promises beside its numbers: order of outputs, ranges, batches, modes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.tiny import tiny_network, tiny_variant
from yolact_deploy.model import Yolact, set_deformable_form
from yolact_deploy.model.network import MaskIouNet


@pytest.fixture(scope="module", params=["resnet", "darknet"])
def network(request: pytest.FixtureRequest) -> Yolact:
    return tiny_network(tiny_variant(backbone=request.param))


def images(count: int = 1, size: int = 128) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_coefficients_lie_between_minus_one_and_one_and_prototypes_are_not_negative(network: Yolact) -> None:
    with torch.inference_mode():
        outputs = network(images())
    assert outputs.coefficients.abs().max() <= 1
    assert (outputs.coefficients < 0).any()
    assert outputs.prototypes.min() == 0
    assert outputs.prototypes.max() > 0


def test_a_batch_gives_what_its_pictures_give_alone(network: Yolact) -> None:
    batch = images(3)
    with torch.inference_mode():
        together, alone = network(batch), [network(image[None]) for image in batch]
    for index, whole in enumerate(together[:4]):
        np.testing.assert_allclose(whole, torch.cat([single[index] for single in alone]), rtol=1e-4, atol=1e-5)


def test_semantic_logits_exist_in_training_mode_alone() -> None:
    network = Yolact(tiny_variant())
    assert network.eval()(images()).semantic is None
    assert network.train()(images(2)).semantic.shape == (2, 4, 16, 16)


def test_outputs_follow_the_priors_order_of_levels_rows_and_columns() -> None:
    """A head that sees one cell alone answers at that cell's priors: bias elsewhere, something else there."""
    variant = tiny_variant(aspect_ratios=((1, 2),) * 5)
    network = tiny_network(variant)
    head = network.prediction_layers[0]
    with torch.inference_mode():
        for layer in (head.upfeature[0], head.bbox_layer):
            layer.weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
        level = torch.zeros(1, variant.fpn_width, 8, 8)
        level[0, :, 5, 2] = 3
        changed = (head(level)[0] != head(torch.zeros_like(level))[0]).any(-1)[0].nonzero().ravel()
    assert changed.tolist() == [2 * (5 * 8 + 2), 2 * (5 * 8 + 2) + 1]
    starts = np.cumsum([0, *(2 * grid * grid for grid in variant.grids)])
    with torch.inference_mode():
        levels = network.fpn(network.backbone(images()))
        whole = network(images()).loc
        for index, level in enumerate(levels):
            np.testing.assert_array_equal(head(level)[0], whole[:, starts[index] : starts[index + 1]])


def test_a_columns_class_belongs_to_its_prior() -> None:
    """[A * C] channels are A priors of C classes each, as checkpoints store them."""
    variant = tiny_variant()
    head = tiny_network(variant).prediction_layers[0]
    with torch.inference_mode():
        head.conf_layer.weight.zero_()
        head.conf_layer.bias.copy_(torch.arange(3.0)[:, None].mul(10).add(torch.arange(5.0)).ravel())
        logits = head(torch.zeros(1, variant.fpn_width, 2, 2))[1]
    np.testing.assert_array_equal(logits[0], np.tile(10 * np.arange(3)[:, None] + np.arange(5), (4, 1)))


def test_priors_are_no_part_of_the_state_dict() -> None:
    assert not any("priors" in key for key in Yolact(tiny_variant()).state_dict())


def test_mask_iou_net_takes_any_number_of_masks_of_any_sufficient_size() -> None:
    rescorer = MaskIouNet(4).eval()
    for count, size in ((0, 138), (1, 63), (5, 100)):
        with torch.inference_mode():
            found = rescorer(torch.rand(count, 1, size, size))
        assert found.shape == (count, 4)
        assert (found >= 0).all()


def test_set_deformable_form_reaches_every_deformable_convolution() -> None:
    network = tiny_network(tiny_variant(dcn_blocks=(0, 1, 1, 1)))
    deformable = [module for module in network.modules() if hasattr(module, "form")]
    assert len(deformable) == 3
    set_deformable_form(network, "portable")
    assert {module.form for module in deformable} == {"portable"}
    set_deformable_form(network, "torchvision")
    assert {module.form for module in deformable} == {"torchvision"}
