"""PyTorch: the reference network itself, from a checkpoint."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from yolact_deploy.errors import ConfigError
from yolact_deploy.export.graph import HEADS, DeployGraph
from yolact_deploy.manifest import InputSpec, Manifest, TensorSpec
from yolact_deploy.model import Checkpoint, load_checkpoint
from yolact_deploy.runtime.backend import Backend

__all__ = ["TorchBackend", "torch_device"]


class TorchBackend(Backend):
    """A checkpoint, run by PyTorch in float32.

    `device` is what torch takes (``cpu``, ``cuda``, ``cuda:1``); by default a GPU where there is one. The other arguments and
    errors are :func:`yolact_deploy.model.load_checkpoint`'s.
    """

    name = "torch"

    def __init__(
        self,
        path: Path,
        *,
        device: str | None = None,
        variant: str | None = None,
        config: str | Path | None = None,
        classes: str | None = None,
    ) -> None:
        self.checkpoint = load_checkpoint(path, variant=variant, config=config, classes=classes)
        self.torch_device = torch_device(device)
        self.device = str(self.torch_device)
        self.manifest = _manifest(self.checkpoint)
        self.graph = DeployGraph(self.checkpoint.network, self.manifest.input).eval().to(self.torch_device)

    def infer_impl(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """See :meth:`Backend.infer`."""
        with torch.inference_mode(), _whole_float32():
            outputs = self.graph(torch.from_numpy(np.ascontiguousarray(images)).to(self.torch_device))
            return {name: value.float().cpu().numpy() for name, value in zip(HEADS, outputs, strict=True)}

    def mask_iou(self, masks: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Backend.mask_iou`."""
        with torch.inference_mode(), _whole_float32():
            found = self.checkpoint.network.maskiou_net(torch.from_numpy(masks).to(self.torch_device))
            return cast("NDArray[np.float32]", found.cpu().numpy())


def _whole_float32() -> AbstractContextManager[None]:
    """Convolutions of a GPU without TensorFloat-32, which keeps 10 bits of each factor: a reference has all 23."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return flags


def torch_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The device of that name; without one the GPU number `local_rank` where there are GPUs, else the CPU.

    Raises :class:`ConfigError` for a device that cannot be used.
    """
    try:
        device = torch.device(name or (f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ConfigError(f"PyTorch cannot use the device {name!r} ({reason}).", "Name cpu, or a GPU that this machine has.") from None
    return device


def _manifest(checkpoint: Checkpoint) -> Manifest:
    variant = checkpoint.variant
    size, priors, prototypes = variant.input_size, variant.prior_count, variant.prototype_size
    shapes: dict[str, tuple[int | str, ...]] = {
        "boxes": ("batch", priors, 4),
        "scores": ("batch", priors, variant.num_classes),
        "coefficients": ("batch", priors, variant.num_prototypes),
        "prototypes": ("batch", variant.num_prototypes, prototypes, prototypes),
    }
    return Manifest(
        kind="checkpoint",
        variant=variant,
        classes=checkpoint.classes,
        input=InputSpec.of(variant),
        postprocess="none",
        inputs=(TensorSpec("images", "float32", ("batch", 3, size, size)),),
        outputs=tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items()),
        precision={"all": "float32"},
        source={"file": checkpoint.path.name, "sha256": checkpoint.sha256},
        versions={"torch": torch.__version__},
    )
