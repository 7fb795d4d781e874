"""Where training starts: fresh weights, an ImageNet backbone, or a trained YOLACT whose classes may differ."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import nn

from yolact_deploy.classes import ClassList
from yolact_deploy.errors import CheckpointError
from yolact_deploy.model import Checkpoint, Yolact
from yolact_deploy.model.backbones import Bottleneck
from yolact_deploy.model.checkpoint import read_tensors

__all__ = ["freeze_norms", "initialise", "load_backbone", "take_over"]

_CLASS_LAYERS = ("prediction_layers.0.conf_layer.", "semantic_seg_conv.")
_OUTPUT_LAYERS = (*(f"prediction_layers.0.{kind}_layer." for kind in ("bbox", "conf", "mask")), "semantic_seg_conv.")
_RESCORING_END = re.compile(r"maskiou_net\.maskiou_net\.10\.")
_BACKGROUND_PRIOR = 0.99


def initialise(network: Yolact, seed: int = 0) -> None:
    """Fresh weights, the same for the same seed: He's normal initialisation (arXiv:1502.01852), 0.01 for the output layers, zero biases.

    The last batch norm of each bottleneck starts at zero (arXiv:1706.02677, section 5.1), so that every block starts as its shortcut.
    The background logit starts where background has a probability of 0.99 (arXiv:1708.02002, section 4.1), the offsets of
    deformable convolutions at zero (arXiv:1811.11168, section 4.1).
    """
    generator = torch.Generator().manual_seed(seed)
    classes = network.variant.num_classes
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
                module.reset_running_stats()
        for module in network.modules():
            if isinstance(module, Bottleneck):
                module.bn3.weight.zero_()
        for name, value in network.named_parameters():
            if "conv_offset_mask" in name or (name.endswith("bias") and value.ndim == 1):
                value.zero_()
            elif value.ndim == 4:
                last = name.startswith(_OUTPUT_LAYERS)
                value.normal_(0, 0.01 if last else math.sqrt(2 / value[0].numel()), generator=generator)
        bias = network.get_parameter("prediction_layers.0.conf_layer.bias")
        bias.view(-1, classes)[:, 0] = math.log(_BACKGROUND_PRIOR / (1 - _BACKGROUND_PRIOR) * (classes - 1))


def load_backbone(network: Yolact, path: Path) -> None:
    """Take over ImageNet weights: torchvision's ResNet keys (``layer1.0.conv1.weight``, …; ``fc`` is dropped) or the backbone's own.

    Deformable convolutions take the plain ones' weights. Raises :class:`CheckpointError` where a tensor is missing or does not fit.
    """
    found = {_backbone_key(key): value for key, value in read_tensors(path).items() if not key.startswith("fc.")}
    wanted = network.backbone.state_dict()
    optional = {key for key in wanted if key.endswith("num_batches_tracked") or "conv_offset_mask" in key}
    optional |= {key for key in wanted if f"{key.removesuffix('bias')}conv_offset_mask.bias" in wanted}  # plain convolutions have none
    lacking = [key for key in wanted if key not in optional and (key not in found or found[key].shape != wanted[key].shape)]
    if lacking:
        raise CheckpointError(
            f"{path} is no backbone of {network.variant.name}: {lacking[0]} is missing or misshapen, {len(lacking)} in all.",
            "Give the ImageNet weights of the same backbone, as torchvision saves them.",
        )
    network.backbone.load_state_dict({key: found[key].to(value.dtype) if key in found else value for key, value in wanted.items()})


def _backbone_key(key: str) -> str:
    key = key.removeprefix("backbone.")
    return re.sub(r"^layer(\d+)\.", lambda match: f"layers.{int(match[1]) - 1}.", key)


def take_over(network: Yolact, classes: ClassList, source: Checkpoint) -> tuple[str, ...]:
    """Copy a trained network's weights into `network`, whose classes may be others.

    Layers with one output a class keep their fresh weights but for the background and for classes of the same name (all of them
    where the names are the same number and none matches: then the names are taken to be new). Returns the keys that were not, or
    only partly, copied. Raises :class:`CheckpointError` where anything but the class layers differs.
    """
    own, given = network.state_dict(), source.network.state_dict()
    differing = [key for key in own if key not in given or (own[key].shape != given[key].shape and not _is_class_layer(key))]
    if differing:
        raise CheckpointError(
            f"{source.path} ({source.variant.name}) does not fit {network.variant.name}: {differing[0]} differs, {len(differing)} in all.",
            "Start from a checkpoint of the same variant.",
        )
    shared = [(place, source.classes.names.index(name)) for place, name in enumerate(classes.names) if name in source.classes.names]
    same = source.classes.names == classes.names or (len(source.classes) == len(classes) and not shared)
    partly = []
    with torch.no_grad():
        for key, value in own.items():
            if same or not _is_class_layer(key):
                value.copy_(given[key])
                continue
            partly.append(key)
            background = key.startswith(_CLASS_LAYERS[0])
            columns, others = len(classes) + background, len(source.classes) + background
            target, origin = value.view(-1, columns, *value.shape[1:]), given[key].view(-1, others, *value.shape[1:])
            if background:
                target[:, 0] = origin[:, 0]
            for place, index in shared:
                target[:, place + background] = origin[:, index + background]
    network.load_state_dict(own)
    return tuple(partly)


def _is_class_layer(key: str) -> bool:
    return key.startswith(_CLASS_LAYERS) or _RESCORING_END.match(key) is not None


def freeze_norms(network: nn.Module) -> None:
    """Batch norm with its stored mean and variance, its weight and bias fixed: what fewer than 6 pictures at once need."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            for value in module.parameters():
                value.requires_grad = False
