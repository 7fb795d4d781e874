"""Head outputs as a trained network gives them, for a variant of any size, and what NMS and mask assembly in the graph make of them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests.helpers.cpp_engines import mask_ious
from tests.reference.golden_heads import CASES, golden_heads
from yolact_deploy.variants import Variant

__all__ = ["golden_outputs", "made_heads", "made_outputs"]

Arrays = dict[str, NDArray[Any]]
_OBJECTS, _PRIORS_OF_EACH = 9, 6


def made_heads(variant: Variant, rows: int = 2, seed: int = 0) -> Arrays:
    """float32 boxes [rows, P, 4] relative, scores [rows, P, C], coefficients [rows, P, K], prototypes [rows, K, h, w].

    Each row has nine objects of several overlapping confident priors; everything else is background.
    """
    parts = [_picture(variant, np.random.default_rng((seed, row))) for row in range(rows)]
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def _picture(variant: Variant, generator: np.random.Generator) -> Arrays:
    priors, kinds, side = variant.prior_count, variant.num_prototypes, variant.prototype_size
    logits = generator.normal(0, 0.3, (priors, variant.num_classes))
    logits[:, 0] += 9
    centres, sizes = generator.uniform(0.1, 0.9, (priors, 2)), generator.uniform(0.05, 0.4, (priors, 2))
    confident = generator.choice(priors, (_OBJECTS, _PRIORS_OF_EACH), replace=False)
    for places in confident:
        centres[places] = centres[places[0]] + generator.normal(0, 0.01, (len(places), 2))
        sizes[places] = sizes[places[0]] * generator.uniform(0.9, 1.1, (len(places), 2))
        label = generator.integers(1, variant.num_classes)
        logits[places, label] += generator.uniform(7, 13, len(places))
    shares = np.exp(logits - logits.max(1, keepdims=True))
    coarse = generator.normal(0, 1, (kinds, 10, 10))
    at = np.linspace(0, 9, side)
    low = np.minimum(at.astype(int), 8)
    share = at - low
    lines = coarse[:, low] * (1 - share)[:, None] + coarse[:, low + 1] * share[:, None]
    smooth = lines[..., low] * (1 - share) + lines[..., low + 1] * share
    made = {
        "boxes": np.concatenate([centres - sizes / 2, centres + sizes / 2], 1),
        "scores": shares / shares.sum(1, keepdims=True),
        "coefficients": np.tanh(generator.normal(0, 1, (priors, kinds))),
        "prototypes": np.maximum(2 * smooth, 0),
    }
    return {name: values.astype(np.float32) for name, values in made.items()}


def golden_outputs() -> Arrays:
    """As :func:`made_heads`, of the golden heads: a row for each of their cases, as ``yolact_resnet50`` gives them (19,248 priors)."""
    parts: list[Arrays] = []
    for heads in map(golden_heads, CASES):
        size = heads.priors[:, 2:] * np.exp(heads.loc[:, 2:] * 0.2)
        corner = heads.priors[:, :2] + heads.loc[:, :2] * 0.1 * heads.priors[:, 2:] - size / 2
        shares = np.exp(heads.logits - heads.logits.max(1, keepdims=True))
        scores = shares / shares.sum(1, keepdims=True)
        values = (np.concatenate([corner, corner + size], 1), scores, heads.coefficients, heads.prototypes)
        parts.append(dict(zip(("boxes", "scores", "coefficients", "prototypes"), values)))
    return {name: np.stack([part[name] for part in parts]).astype(np.float32) for name in parts[0]}


def made_outputs(variant: Variant, rows: int = 2, postprocess: Literal["none", "nms", "masks"] = "none", seed: int = 0) -> Arrays:
    """The outputs of an exported graph with this post-processing on :func:`made_heads`, by the exported modules themselves.

    A variant with mask rescoring gets its mask scores by :func:`tests.helpers.cpp_engines.mask_ious` in place of its mask-IoU net.
    """
    heads = made_heads(variant, rows, seed)
    if postprocess == "none":
        return heads
    import torch

    from yolact_deploy.export.graph import DETECTIONS, MaskAssembly
    from yolact_deploy.export.nms import FastNms
    from yolact_deploy.postprocess import PostprocessSettings

    tensors = {name: torch.from_numpy(values) for name, values in heads.items()}
    chosen = FastNms(PostprocessSettings())(tensors["boxes"], tensors["scores"], tensors["coefficients"])
    found: Arrays = {name: values.numpy() for name, values in zip(DETECTIONS, (*chosen, tensors["prototypes"]))}
    if postprocess == "nms":
        return found
    boxes, _, labels, coefficients = chosen
    masks = MaskAssembly()(boxes, coefficients, tensors["prototypes"]) * (labels >= 0).float()[..., None, None]
    found["detections_masks"] = masks.numpy()
    if variant.mask_rescoring:
        flat = found["detections_masks"].reshape(-1, 1, *masks.shape[-2:])
        ious = mask_ious(flat, variant.num_classes - 1).reshape(*masks.shape[:2], -1)
        of_label = np.take_along_axis(ious, np.maximum(found["detections_labels"], 0)[..., None].astype(int), 2)[..., 0]
        found["detections_mask_scores"] = found["detections_scores"] * of_label
    return found
