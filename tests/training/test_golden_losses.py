"""The losses against the original implementation's numbers for the same predictions and targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.golden import GOLDEN, golden_module
from yolact_deploy.model.network import HeadOutputs
from yolact_deploy.model.priors import make_priors
from yolact_deploy.training.losses import MultiBoxLoss
from yolact_deploy.training.targets import Target
from yolact_deploy.variants import get_variant

TERMS = {"box": "loss_B", "mask": "loss_M", "class": "loss_C", "semantic": "loss_S"}
GRADIENTS = {"loc": "loc", "logits": "conf", "coefficients": "mask", "prototypes": "proto", "semantic": "segm"}


@pytest.fixture(scope="module")
def golden() -> dict[str, float]:
    with np.load(GOLDEN / "loss_yolact_resnet50.npz") as file:
        return {name: float(file[name]) for name in file.files if file[name].ndim == 0}


@pytest.fixture(scope="module")
def computed() -> tuple[dict[str, Tensor], HeadOutputs]:
    variant = get_variant("yolact_resnet50")
    source = golden_module("keyed_loss")
    keyed = source.keyed_predictions(2, variant.prior_count, variant.num_classes, variant.prototype_size, variant.prototype_size, 69)
    leaves = {name: torch.from_numpy(value).requires_grad_() for name, value in keyed.items()}
    prototypes = leaves["proto"]
    outputs = HeadOutputs(leaves["loc"], leaves["conf"], leaves["mask"], prototypes.permute(0, 3, 1, 2), leaves["segm"])
    targets = []
    for boxes, labels, masks, crowds in zip(*source.keyed_targets(variant.input_size, variant.num_classes), strict=True):
        whole = len(boxes) - crowds
        boxes = torch.from_numpy(boxes)
        targets.append(
            Target(boxes[:whole], torch.from_numpy(labels[:whole]), torch.from_numpy(masks[:whole].astype(np.uint8)), boxes[whole:])
        )
    terms = MultiBoxLoss()(outputs, torch.from_numpy(make_priors(variant)), targets)
    sum(terms.values()).backward()
    return terms, outputs._replace(prototypes=prototypes)


@pytest.mark.parametrize("term", TERMS)
def test_term_is_the_originals(term: str, golden: dict[str, float], computed: tuple[dict[str, Tensor], HeadOutputs]) -> None:
    assert computed[0][term].item() == pytest.approx(golden[TERMS[term]], rel=1e-4)


@pytest.mark.parametrize("output", GRADIENTS)
def test_gradient_norm_is_the_originals(output: str, golden: dict[str, float], computed: tuple[dict[str, Tensor], HeadOutputs]) -> None:
    gradient = getattr(computed[1], output).grad
    assert gradient is not None
    assert float(gradient.double().norm()) == pytest.approx(golden[f"grad_norm_{GRADIENTS[output]}"], rel=1e-4)
