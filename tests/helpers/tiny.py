"""Small variants of both backbones, and weights without symmetry for them: networks that run in milliseconds."""

from __future__ import annotations

from typing import Any

import torch

from yolact_deploy.model import Yolact
from yolact_deploy.model.seeded import seeded_state
from yolact_deploy.variants import Variant

__all__ = ["tiny_network", "tiny_variant"]


def tiny_variant(**fields: Any) -> Variant:
    """A variant with one block a stage, few channels, 128 pixels, 4 classes and 8 prototypes; `fields` override."""
    darknet = fields.get("backbone") == "darknet"
    given: dict[str, Any] = {
        "name": "tiny",
        "input_size": 128,
        "blocks": (1, 1, 1, 1, 1) if darknet else (1, 1, 1, 1),
        "backbone_width": 16,
        "fpn_width": 32,
        "num_classes": 5,
        "num_prototypes": 8,
        "prior_sizes": ((8,), (16,), (32,), (64,), (112,)),
    }
    return Variant(**{**given, **fields})


def tiny_network(variant: Variant, seed: int = 0) -> Yolact:
    """The network of `variant` with seeded weights, its batch norms' statistics and gains drawn wide, in evaluation mode."""
    network = Yolact(variant)
    network.load_state_dict(seeded_state(variant, seed))
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.3, 2.0),
                (module.weight.data, -0.9, 0.9),
                (module.bias.data, -0.5, 0.5),
            ):
                tensor.uniform_(low, high, generator=generator)
    return network.eval()
