"""The file from which a training goes on exactly where it stopped: weights, the optimizer's moments and counters, as safetensors."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolact_deploy.errors import CheckpointError
from yolact_deploy.files import atomic_output
from yolact_deploy.model.checkpoint import read_tensors

__all__ = ["RESUME_FILE", "Progress", "load_state", "read_progress", "save_state"]

RESUME_FILE = "resume.safetensors"
_KEY = "yolact_deploy_training"
_MEND = "Start anew in another folder, or remove this file."


@dataclass
class Progress:
    """Counters of a training.

    Attributes:
        iteration: steps done, skipped ones included.
        skipped: steps left out because a loss or gradient was not finite.
        best: highest mask AP of an evaluation so far, None before the first.
        scale: loss scale of float16 training, None otherwise.
        settings: what the training was started with, compared on resuming.
        ranges: largest magnitude of each quantized tensor, empty without quantization.
    """

    iteration: int = 0
    skipped: int = 0
    best: float | None = None
    scale: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, float] = field(default_factory=dict)


def save_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write everything, whole or not at all."""
    from safetensors.torch import save

    tensors = {f"network.{key}": value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    for name, value in network.named_parameters():
        for slot, kept in optimizer.state.get(value, {}).items():
            tensors[f"optimizer.{slot}.{name}"] = kept.detach().cpu().contiguous()
    with atomic_output(path) as part:
        part.write_bytes(save(tensors, {_KEY: json.dumps(vars(progress))}))


def read_progress(path: Path) -> Progress:
    """The counters alone; :class:`CheckpointError` for a file that is damaged or no training state."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            fields = json.loads((opened.metadata() or {})[_KEY])
        progress = Progress(**fields)
        if type(progress.iteration) is not int or progress.iteration < 0 or type(progress.skipped) is not int:
            raise ValueError("counters")
        ranges: dict[str, Any] = progress.ranges
        if not all(isinstance(value, float) and 0 < value < math.inf for value in ranges.values()):
            raise ValueError("ranges")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} is no training state, or a damaged one.", _MEND) from None
    return progress


def load_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put weights and momentum back; raises :class:`CheckpointError` where they do not fit."""
    progress = read_progress(path)
    tensors = read_tensors(path)
    weights = {key.removeprefix("network."): value for key, value in tensors.items() if key.startswith("network.")}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"The training state {path} does not fit the network ({str(error).splitlines()[-1].strip()}).", _MEND
        ) from None
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    for key, value in tensors.items():
        kind, slot, name = [*key.split(".", 2), "", ""][:3]
        if kind == "optimizer" and name in parameters:
            parameter = parameters[name]
            if value.ndim and value.shape != parameter.shape:
                raise CheckpointError(f"The training state {path} holds {list(value.shape)} for {name}.", _MEND)
            kept = value if not value.ndim else torch.empty_like(parameter).copy_(value)  # in the parameter's own memory format
            optimizer.state[parameter][slot] = kept.detach()
    return progress
