"""Several processes, one a GPU, as torchrun starts them; alone, everything here does nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import nn

__all__ = ["Processes", "join"]

_PATIENCE = timedelta(hours=12)  # the others wait while the first evaluates


@dataclass(frozen=True)
class Processes:
    """The place of this process among `world` ones that train together.

    Gradients are averaged over processes, each of which divides its losses by its own positives.
    """

    rank: int = 0
    local_rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """`module` with its gradients averaged over all processes."""
        if self.world == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)

    def all_agree(self, answer: bool, device: torch.device) -> bool:
        """True where every process says True."""
        if self.world == 1:
            return answer
        flag = torch.tensor(int(answer), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        return bool(flag)

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            torch.distributed.barrier()


def join() -> Processes:
    """Join the group that torchrun describes in the environment (NCCL with GPUs, else Gloo); alone where there is none."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        return Processes()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    return Processes(int(os.environ["RANK"]), local_rank, world)
