"""Prior boxes, computed for any input size, level count and ratio list."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.variants import Variant

__all__ = ["make_priors"]


def make_priors(variant: Variant) -> NDArray[np.float32]:
    """float32 [P, 4]: (cx, cy, w, h) relative to the picture, in the order of the network's outputs.

    Order: level, row, column, prior size, aspect ratio. With r = sqrt(aspect ratio), ``w = size * r / input`` and
    ``h = size / r / input``, so that a prior's area does not depend on its ratio; variants with square priors take ``h = w``,
    which the published weights were trained with. Computed in float64 and rounded once.
    """
    levels = []
    for grid, sizes, ratios in zip(variant.grids, variant.prior_sizes, variant.aspect_ratios, strict=True):
        size, ratio = (axis.ravel() for axis in np.meshgrid(np.array(sizes, float), np.sqrt(np.array(ratios, float)), indexing="ij"))
        width = size * ratio / variant.input_size
        height = width if variant.square_priors else size / ratio / variant.input_size
        centre = (np.arange(grid) + 0.5) / grid
        cell = np.empty((grid, grid, len(size), 4))
        cell[..., 0] = centre[None, :, None]
        cell[..., 1] = centre[:, None, None]
        cell[..., 2] = width
        cell[..., 3] = height
        levels.append(cell.reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)
