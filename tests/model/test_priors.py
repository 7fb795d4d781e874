"""Priors against a literal double loop, and their grids against the maps that the network really makes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tiny import tiny_variant
from yolact_deploy.model import Yolact, make_priors
from yolact_deploy.variants import Variant

NUMBERS = st.floats(0.1, 600, allow_nan=False)
RATIOS = st.floats(0.1, 10, allow_nan=False)


@st.composite
def variants(draw: st.DrawFn) -> Variant:
    levels, sizes, ratios = draw(st.integers(3, 7)), draw(st.integers(1, 3)), draw(st.integers(1, 4))

    def groups(numbers: st.SearchStrategy[float], count: int) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(draw(st.lists(numbers, min_size=count, max_size=count))) for _ in range(levels))

    return tiny_variant(
        input_size=draw(st.integers(32, 300)),
        prior_sizes=groups(NUMBERS, sizes),
        aspect_ratios=groups(RATIOS, ratios),
        square_priors=draw(st.booleans()),
    )


def literal_grids(variant: Variant) -> list[int]:
    """Stem, pooling and stages halve the picture, rounding up; then one more halving a level."""
    size, grids = variant.input_size, []
    for halving in range(1, 3 + len(variant.prior_sizes)):
        size = math.ceil(size / 2)
        if halving >= 3:
            grids.append(size)
    return grids


def literal_priors(variant: Variant) -> list[list[float]]:
    priors = []
    for grid, sizes, ratios in zip(literal_grids(variant), variant.prior_sizes, variant.aspect_ratios, strict=True):
        for row in range(grid):
            for column in range(grid):
                for size in sizes:
                    for ratio in ratios:
                        width = size * math.sqrt(ratio) / variant.input_size
                        height = width if variant.square_priors else size / math.sqrt(ratio) / variant.input_size
                        priors.append([(column + 0.5) / grid, (row + 0.5) / grid, width, height])
    return priors


@settings(deadline=None, max_examples=40)
@given(variants())
def test_priors_are_those_of_the_double_loop(variant: Variant) -> None:
    found, wanted = make_priors(variant), np.array(literal_priors(variant))
    assert found.dtype == np.float32
    assert found.shape == wanted.shape == (variant.prior_count, 4)
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=0)


@settings(deadline=None, max_examples=25)
@given(variants())
def test_a_ratio_changes_the_shape_and_not_the_area(variant: Variant) -> None:
    priors = make_priors(variant).astype(np.float64).reshape(-1, len(variant.prior_sizes[0]), len(variant.aspect_ratios[0]), 4)
    starts = np.cumsum([0, *(grid * grid for grid in variant.grids)])
    for level, (sizes, ratios) in enumerate(zip(variant.prior_sizes, variant.aspect_ratios, strict=True)):
        width, height = (priors[starts[level] : starts[level + 1], ..., axis] * variant.input_size for axis in (2, 3))
        if variant.square_priors:
            np.testing.assert_array_equal(width, height)
        else:
            np.testing.assert_allclose(width * height, np.broadcast_to(np.array(sizes)[:, None] ** 2, width.shape), rtol=1e-6)
            np.testing.assert_allclose(width / height, np.broadcast_to(ratios, width.shape), rtol=1e-6)


@pytest.mark.parametrize("backbone", ["resnet", "darknet"])
@settings(deadline=None, max_examples=15)
@given(size=st.integers(64, 300), levels=st.integers(3, 6))
def test_grids_are_those_of_the_networks_maps(backbone: str, size: int, levels: int) -> None:
    variant = tiny_variant(
        backbone=backbone,
        input_size=size,
        backbone_width=4,
        fpn_width=8,
        prior_sizes=((16,),) * levels,
        aspect_ratios=((1, 2),) * levels,
    )
    network = Yolact(variant).eval()
    with torch.inference_mode():
        images = torch.zeros(1, 3, size, size)
        maps = network.fpn(network.backbone(images))
        outputs = network(images)
    assert [tuple(level.shape[2:]) for level in maps] == [(grid, grid) for grid in variant.grids]
    assert outputs.loc.shape == (1, variant.prior_count, 4)
    assert outputs.logits.shape == (1, variant.prior_count, variant.num_classes)
    assert outputs.coefficients.shape == (1, variant.prior_count, variant.num_prototypes)
    assert outputs.prototypes.shape == (1, variant.num_prototypes, variant.prototype_size, variant.prototype_size)
    assert network.priors.shape == (variant.prior_count, 4)
