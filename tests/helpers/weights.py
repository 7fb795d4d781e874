"""Networks and checkpoint files for tests: the golden numbers' keyed weights, and files of any state dict."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.helpers.golden import GOLDEN, golden_module
from yolact_deploy.model import Yolact
from yolact_deploy.model.seeded import seeded_state
from yolact_deploy.variants import Variant, get_variant

__all__ = ["GOLDEN", "golden_image", "keyed_network", "keyed_state", "sample_index", "write_checkpoint"]


def _keyed() -> ModuleType:
    return golden_module("keyed_weights")


def keyed_state(variant: Variant | str) -> dict[str, Tensor]:
    """The weights that the golden numbers were made with: each tensor follows from its key and shape."""
    variant = get_variant(variant) if isinstance(variant, str) else variant
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in Yolact(variant).state_dict().items()}
    return {
        key: torch.zeros((), dtype=torch.int64)
        if key.endswith("num_batches_tracked")
        else torch.from_numpy(_keyed().keyed_tensor(key, shape))
        for key, shape in shapes.items()
    }


@lru_cache(maxsize=1)
def keyed_network(name: str) -> Yolact:
    """The network of that variant with :func:`keyed_state`, in evaluation mode; only the latest is kept. Do not change it."""
    network = Yolact(get_variant(name))
    network.load_state_dict(keyed_state(name))
    return network.eval()


def golden_image(size: int) -> np.ndarray:
    """The golden numbers' normalised input, float32 [1, 3, size, size]."""
    image: np.ndarray = _keyed().golden_image(size)
    return image


def sample_index(name: str, size: int) -> np.ndarray:
    """Flat places of a golden tensor of `size` elements whose values are kept."""
    index: np.ndarray = _keyed().sample_index(name, size)
    return index


def write_checkpoint(
    folder: Path, name: str = "yolact_nano_1_10.pth", state: dict[str, Any] | None = None, *, legacy: bool = False, seed: int = 0
) -> Path:
    """Write ``folder/name``, by its suffix a ``.pth`` (or torch's old format, `legacy`) or ``.safetensors`` file; returns its path.

    Without `state` it holds :func:`seeded_state` of ``yolact_nano``.
    """
    path = folder / name
    state = seeded_state(get_variant("yolact_nano"), seed) if state is None else state
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path
