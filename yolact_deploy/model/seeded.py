"""Weights drawn from a seed: an untrained network that stays finite and finds something, for tours, tests and benchmarks."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from yolact_deploy.model.network import Yolact
from yolact_deploy.variants import Variant

__all__ = ["seeded_state"]

_GAINS = {"conf_layer": 0.6, "bbox_layer": 0.6, "mask_layer": 1.0, "conv_offset_mask": 0.3}
_RESIDUAL_END = (".bn3.weight", ".conv2.1.weight")  # a small last norm keeps deep residual sums from growing
_BACKGROUND_BIAS = 7.0


def seeded_state(variant: Variant, seed: int = 0) -> dict[str, Tensor]:
    """A state dict of `variant`, float32, the same for the same seed on every machine (NumPy's PCG64, one stream a key).

    Nothing is learned here: its detections are meaningless.
    """
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in Yolact(variant).state_dict().items()}
    return {key: torch.from_numpy(_values(key, shape, variant, seed)) for key, shape in shapes.items()}


def _values(key: str, shape: tuple[int, ...], variant: Variant, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    normal = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(shape, np.float32)
    if key.endswith("running_var"):
        return 1 + 0.1 * np.abs(normal)
    if key.endswith("conf_layer.bias"):
        bias = normal.reshape(variant.priors_per_cell, variant.num_classes)
        bias[:, 0] += _BACKGROUND_BIAS
        return bias.reshape(-1)
    if len(shape) == 1:
        scale = 0.25 if key.endswith(_RESIDUAL_END) else 1.0
        return (scale if _is_norm_weight(key) else np.float32(0)) + np.float32(0.1) * normal
    gain = next((gain for name, gain in _GAINS.items() if name in key), 1.0)
    return normal * np.float32(gain * (2 / np.prod(shape[1:])) ** 0.5)


def _is_norm_weight(key: str) -> bool:
    return key.endswith("weight")  # convolutions' weights have four axes, so a vector is a norm's
