"""The module that is traced: input normalisation, the network, decoding, and the post-processing that was asked for."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from yolact_deploy.manifest import InputSpec
from yolact_deploy.model import Yolact
from yolact_deploy.postprocess import PostprocessSettings

from .nms import FastNms

__all__ = ["Decode", "DeployGraph", "MaskAssembly", "RawInput", "output_names"]

HEADS = ("boxes", "scores", "coefficients", "prototypes")
DETECTIONS = ("detections_boxes", "detections_scores", "detections_labels", "detections_coefficients", "prototypes")


def output_names(postprocess: Literal["none", "nms", "masks"], *, rescoring: bool) -> tuple[str, ...]:
    """Names of the graph's outputs, in order; `rescoring` is the variant's mask rescoring."""
    if postprocess == "none":
        return HEADS
    if postprocess == "nms":
        return DETECTIONS
    return (*DETECTIONS, "detections_masks", *(["detections_mask_scores"] if rescoring else []))


class RawInput(nn.Module):
    """uint8 [B, S, S, 3] -> normalised RGB float32 [B, 3, S, S]."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.flip = spec.channels == "bgr"
        order = slice(None, None, -1) if self.flip else slice(None)
        self.register_buffer("mean", torch.tensor(spec.mean[order]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std[order]).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        # Cast first: TensorRT does nothing with uint8 but that.
        x = (images.float().permute(0, 3, 1, 2) - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        return x.flip(1) if self.flip else x


class Decode(nn.Module):
    """Regressions and priors to corners: facts of SSD (arXiv:1512.02325), variances 0.1 and 0.2."""

    def __init__(self, priors: Tensor) -> None:
        super().__init__()
        self.register_buffer("centres", priors[None, :, :2].clone())
        self.register_buffer("sizes", priors[None, :, 2:].clone())

    def forward(self, loc: Tensor) -> Tensor:
        """[B, P, 4] -> boxes [B, P, 4], x1, y1, x2, y2 relative to the picture."""
        priors, sizes = cast(Tensor, self.centres), cast(Tensor, self.sizes)
        size = sizes * torch.exp(loc[..., 2:] * 0.2)
        corner = priors + loc[..., :2] * 0.1 * sizes - size / 2
        return torch.cat([corner, size + corner], -1)


class MaskAssembly(nn.Module):
    """sigmoid(P C^T) at prototype size, cropped to each box with one prototype pixel of padding (arXiv:1904.02689, section 3.1)."""

    def forward(self, boxes: Tensor, coefficients: Tensor, prototypes: Tensor) -> Tensor:
        """[B, D, 4] relative, [B, D, K], [B, K, h, w] -> probabilities [B, D, h, w]."""
        height, width = prototypes.shape[-2:]
        masks = torch.sigmoid(coefficients @ prototypes.flatten(2)).reshape(-1, boxes.shape[1], height, width)
        inside_x = self._inside(boxes[..., 0], boxes[..., 2], width)
        inside_y = self._inside(boxes[..., 1], boxes[..., 3], height)
        return torch.where(inside_y[..., :, None] & inside_x[..., None, :], masks, torch.zeros_like(masks))

    @staticmethod
    def _inside(one: Tensor, other: Tensor, size: int) -> Tensor:
        first, last = one * size, other * size
        low = (torch.minimum(first, last) - 1).clamp(min=0)
        high = (torch.maximum(first, last) + 1).clamp(max=size)
        at = torch.arange(size, device=one.device, dtype=one.dtype)
        return (at >= low[..., None]) & (at < high[..., None])


class DeployGraph(nn.Module):
    """Pictures in; the outputs named by :func:`output_names` out, as a tuple."""

    def __init__(
        self,
        network: Yolact,
        spec: InputSpec,
        postprocess: Literal["none", "nms", "masks"] = "none",
        settings: PostprocessSettings | None = None,
    ) -> None:
        super().__init__()
        self.input = RawInput(spec) if spec.layout == "raw" else nn.Identity()
        self.network = network
        self.decode = Decode(network.priors)
        self.nms = FastNms(settings or PostprocessSettings()) if postprocess != "none" else None
        self.masks = MaskAssembly() if postprocess == "masks" else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """float32 [B, 3, S, S] or, for raw input, uint8 [B, S, S, 3]."""
        heads = self.network(self.input(images))
        boxes, scores = self.decode(heads.loc), torch.softmax(heads.logits, -1)
        if self.nms is None:
            return boxes, scores, heads.coefficients, heads.prototypes
        chosen = self.nms(boxes, scores, heads.coefficients)
        detections = (*chosen, heads.prototypes)
        if self.masks is None:
            return detections
        masks = self.masks(chosen[0], chosen[3], heads.prototypes) * (chosen[2] >= 0).float()[..., None, None]
        if not self.network.variant.mask_rescoring:
            return (*detections, masks)
        return (*detections, masks, self._rescored(masks, chosen[1], chosen[2]))

    def _rescored(self, masks: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        rows, height, width = masks.shape[1:]
        ious = self.network.maskiou_net(masks.reshape(-1, 1, height, width))
        ious = ious.reshape(-1, rows, ious.shape[-1])
        of_label: Tensor = ious.gather(2, labels.long().clamp(min=0)[..., None])[..., 0]
        return scores * of_label
