"""Which TensorRT builds an engine, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from yolact_deploy.errors import ConfigError, MissingDependencyError

from .gpu import Gpu, gpus
from .targets import BackendName, Capability, capability_text
from .versions import PIP, TensorRT, check_driver, is_installed, load_tensorrt

__all__ = ["choose_tensorrt"]


def choose_tensorrt(wanted: Literal["auto", "tensorrt", "tensorrt-rtx"] = "auto", sm: Sequence[Capability] = ()) -> tuple[TensorRT, str]:
    """The backend that builds for `sm` (empty: this machine, or portable), checked to be able to, and the reason in one sentence.

    ``auto`` takes TensorRT where it is installed and the GPU here is what the engine is for, else TensorRT-RTX, which needs no GPU.

    Raises :class:`MissingDependencyError` where what is needed is not installed, :class:`ConfigError` for a capability that cannot be
    built for, :class:`yolact_deploy.errors.DeviceError` for TensorRT without a GPU or with a driver that is too old.
    """
    if wanted == "auto":
        backend, reason = _automatic(sm)
    else:
        backend, reason = wanted, "as asked for"
    tensorrt = load_tensorrt(backend)
    tensorrt.check_capabilities(sm)
    here = gpus()
    if wanted == "auto" and tensorrt.is_rtx and here and not sm and here[0].compute_capability not in tensorrt.capabilities():
        reason += f", and its engines do not run on the {here[0].name} here"
    if not tensorrt.is_rtx:
        check_driver(tensorrt)
    return tensorrt, f"{tensorrt}: {reason}."


def _automatic(sm: Sequence[Capability]) -> tuple[BackendName, str]:
    here = gpus()
    gpu = here[0] if here else None
    present: dict[BackendName, bool] = {"tensorrt": is_installed("tensorrt"), "tensorrt-rtx": is_installed("tensorrt-rtx")}
    if not any(present.values()):
        raise MissingDependencyError(
            "Neither TensorRT nor TensorRT-RTX is installed.", f"Run: {PIP['tensorrt-rtx']} (builds without a GPU), or {PIP['tensorrt']}"
        )
    for_here = gpu is not None and tuple(sm) in ((), (gpu.compute_capability,))
    if present["tensorrt"] and gpu is not None and for_here:
        return "tensorrt", f"it is installed and this machine has a GPU, {gpu.name}"
    if not present["tensorrt-rtx"]:
        what = "this machine has no GPU" if gpu is None else f"{', '.join(map(capability_text, sm))} is not this GPU's capability"
        raise ConfigError(f"TensorRT is installed, but {what}, and TensorRT builds only for the GPU here.", f"Run: {PIP['tensorrt-rtx']}")
    return "tensorrt-rtx", _why_rtx(gpu, present["tensorrt"], sm)


def _why_rtx(gpu: Gpu | None, tensorrt_there: bool, sm: Sequence[Capability]) -> str:
    if gpu is None:
        return "this machine has no GPU, and TensorRT-RTX builds without one"
    if tensorrt_there:
        return f"the engine is for compute capability {', '.join(map(capability_text, sm))}, not for the GPU here"
    return f"TensorRT is not installed ({PIP['tensorrt']} installs it)"
