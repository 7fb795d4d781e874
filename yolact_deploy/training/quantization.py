"""Fake quantization: a network trains with the rounding that its INT8 graph will have, in the places where that has Q/DQ pairs.

Steps are symmetric and zero lies on one: ``scale = range / 127``, rounded half to even, clamped to [-127, 127] steps for weights,
which have a range for each output channel, and to [-128, 127] for activations. Gradients pass the rounding unchanged and are zero
outside the range (arXiv:1806.08342, section 2; arXiv:1712.05877, section 3).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from yolact_deploy.errors import ConfigError, TrainingError
from yolact_deploy.model import Yolact
from yolact_deploy.model.backbones import Bottleneck, DarkNetBlock
from yolact_deploy.model.deformable import DeformableConv2d, tap_kernel

__all__ = ["FakeQuantization", "QuantizationSettings", "fake_quantize", "fake_quantize_weight"]

_STEPS = 127
_TAPS = 9
_LEFT_FLOAT = ("semantic_seg_conv", "maskiou_net", "conv_offset_mask")  # trained only; after NMS; positions, not features


@dataclass(frozen=True)
class QuantizationSettings:
    """How the activations' ranges are found.

    Attributes:
        batches: training batches that are looked at, before the first step.
        method: ``minmax``, the largest magnitude in all of them, or ``percentile``, the mean of the batches' percentiles.
        percentile: share of a tensor's magnitudes that lie in its range, in percent.
    """

    batches: int = 16
    method: Literal["minmax", "percentile"] = "minmax"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if self.batches < 1 or self.method not in ("minmax", "percentile") or not 50 <= self.percentile <= 100:
            raise ConfigError(
                f"Ranges of {self.batches} batches by {self.method} {self.percentile:g} were asked for; at least one batch, minmax or "
                "percentile, and 50 to 100 percent were wanted.",
                "Mend the quantization settings.",
            )


def fake_quantize(x: Tensor, largest: float) -> Tensor:
    """`x` rounded to steps of ``largest / 127`` and clamped to -128 … 127 of them; float32, any shape."""
    return torch.fake_quantize_per_tensor_affine(x, largest / _STEPS, 0, -_STEPS - 1, _STEPS)


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """A kernel float32 [out, ...] with each output channel rounded to 127 steps of its own largest magnitude.

    Batch norm's factor of a channel scales its steps too: quantizing before or after the folding is the same.
    """
    largest = weight.detach().flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest, 1.0) / _STEPS
    return torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -_STEPS, _STEPS)


class FakeQuantization:
    """Fake quantization of `network`, in force between :meth:`attach` and :meth:`detach`; its state dict stays as it is.

    Quantized are the input and the weight of every convolution of backbone, FPN, prototype net and head (a deformable one's samples
    and weight, as its portable form convolves them), the shortcut of every residual block and both sides of every resize. Left
    alone are biases, outputs, the semantic layer, the mask-IoU net and the offsets of deformable convolutions.

    A tensor that several layers read is quantized once. `ranges` holds the largest magnitude of each quantized tensor by the name of
    its first reader, with ``@1``, ``@2``, … for that one's further calls (the head's levels). :meth:`observe` sets them, or they are
    assigned from an earlier training; then they stay. Without them the network raises :class:`TrainingError`. A part of it called by
    itself is not quantized.
    """

    def __init__(self, network: Yolact, settings: QuantizationSettings | None = None) -> None:
        self.network, self.settings = network, settings or QuantizationSettings()
        self.ranges: dict[str, float] = {}
        self._observed: defaultdict[str, list[float]] | None = None
        self._pass: _Pass | None = None
        self._overridden: list[nn.Module] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def attached(self) -> bool:
        """Whether the network computes with it."""
        return bool(self._overridden)

    def attach(self) -> None:
        """Put it into the network; nothing happens where it is in already."""
        if self.attached:
            return
        for name, module in self.network.named_modules():
            if any(part in _LEFT_FLOAT for part in name.split(".")):
                continue
            if isinstance(module, nn.Conv2d):
                self._override(module, partial(self._convolve, module, name))
            elif isinstance(module, DeformableConv2d):
                self._override(module, partial(self._convolve_deformable, module, name))
            elif isinstance(module, Bottleneck | DarkNetBlock):
                self._hooks.append(module.register_forward_pre_hook(partial(self._quantize_input, name)))
                if isinstance(module, Bottleneck) and module.downsample is not None:
                    self._hooks.append(module.downsample.register_forward_hook(partial(self._quantize_output, f"{name}.downsample")))
        self._override(self.network, self._run)

    def detach(self) -> None:
        """Take it out: the network computes as it did before, to the bit."""
        for module in self._overridden:
            del module.__dict__["forward"]
        for hook in self._hooks:
            hook.remove()
        self._overridden, self._hooks = [], []

    def observe(self, batches: Iterable[Tensor]) -> None:
        """Set the ranges from normalised pictures float32 [B, 3, S, S], with the weights quantized and batch norm's stored statistics.

        Raises :class:`TrainingError` where there is no batch or a tensor is not finite.
        """
        flags = [(module, module.training) for module in self.network.modules()]
        was_attached, observed = self.attached, defaultdict[str, list[float]](list)
        self.attach()
        self.network.eval()
        self._observed = observed
        try:
            with torch.no_grad():
                for images in batches:
                    self.network(images)
        finally:
            self._observed = None
            for module, flag in flags:
                module.training = flag
            if not was_attached:
                self.detach()
        if not observed:
            raise TrainingError("No batch was given to find the ranges of quantization from.", "Give at least one.")
        if broken := [site for site, seen in observed.items() if not all(map(math.isfinite, seen))]:
            raise TrainingError(
                f"{len(broken)} tensors hold values that are not finite, the first goes into {broken[0]}.", "Start from other weights."
            )
        found = {site: max(seen) if self.settings.method == "minmax" else sum(seen) / len(seen) for site, seen in observed.items()}
        self.ranges = {site: largest or 1.0 for site, largest in found.items()}

    def _override(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        module.__dict__["forward"] = forward
        self._overridden.append(module)

    def _run(self, images: Tensor) -> Any:
        self._pass = _Pass()
        try:
            with _Resizes(self._activation):
                return type(self.network).forward(self.network, images)
        finally:
            self._pass = None

    def _convolve(self, module: nn.Conv2d, name: str, x: Tensor) -> Tensor:
        if self._pass is None:
            return type(module).forward(module, x)
        result: Tensor = module._conv_forward(self._activation(name, x), self._pass.weight(module.weight), module.bias)
        return result

    def _convolve_deformable(self, module: DeformableConv2d, name: str, x: Tensor) -> Tensor:
        if self._pass is None:
            return type(module).forward(module, x)
        offsets, logits = module.conv_offset_mask(x).split([2 * _TAPS, _TAPS], 1)
        samples = module.sampling(x, offsets) * torch.sigmoid(logits)[:, None]
        kernel = tap_kernel(self._pass.weight(module.weight))
        return functional.conv2d(self._activation(name, samples.flatten(1, 2)), kernel, module.bias)

    def _quantize_input(self, name: str, _: nn.Module, given: tuple[Tensor]) -> Tensor:
        return self._activation(name, *given)

    def _quantize_output(self, name: str, _: nn.Module, given: tuple[Tensor], made: Tensor) -> Tensor:
        return self._activation(name, made)

    def _activation(self, reader: str, x: Tensor) -> Tensor:
        """`x` as `reader` sees it: quantized, or noted while observing."""
        current = self._pass
        if current is None:
            return x
        call = current.calls[reader]
        current.calls[reader] += 1
        if (done := current.quantized.get(id(x))) is not None:
            return done
        site = f"{reader}@{call}" if call else reader
        if self._observed is not None:
            self._observed[site].append(self._largest(x))
            made = x
        elif site in self.ranges:
            made = fake_quantize(x, self.ranges[site])
        else:
            raise TrainingError(f"No range is known for what goes into {site}.", "Observe some batches first.")
        current.note(x, made)
        return made

    def _largest(self, x: Tensor) -> float:
        sizes = x.detach().abs().flatten()
        if self.settings.method == "percentile":
            place = math.ceil(self.settings.percentile / 100 * sizes.numel())
            if share := float(sizes.kthvalue(max(place, 1)).values):
                return share  # unless nearly all of it is zero
        return float(sizes.max())


class _Pass:
    """What one forward pass has quantized so far, by the tensors' identities."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.quantized: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []  # so that no identity is given out twice
        self._weights: dict[int, Tensor] = {}

    def note(self, x: Tensor, made: Tensor) -> None:
        """Whoever reads `x` next gets `made`; whoever reads `made` gets it as it is."""
        self.quantized[id(x)] = self.quantized[id(made)] = made
        self._alive.append(x)

    def weight(self, weight: Tensor) -> Tensor:
        """The kernel quantized, once for all levels of the head."""
        if id(weight) not in self._weights:
            self._weights[id(weight)] = fake_quantize_weight(weight)
        return self._weights[id(weight)]


class _Resizes(TorchFunctionMode):
    """While it is open, every resize reads a quantized tensor and hands on one with a range of its own."""

    def __init__(self, quantize: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self.quantize = quantize

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not functional.interpolate:
            return func(*args, **kwargs)
        x, *rest = args
        return self.quantize("resized", func(self.quantize("resize", x), *rest, **kwargs))
