"""What each variant's network is made of, without its weights: keys, deformable convolutions, classes and priors."""

from __future__ import annotations

import dataclasses
import re
from functools import cache

import numpy as np
import pytest
import torch

from yolact_deploy.errors import ConfigError
from yolact_deploy.model import Yolact, make_priors
from yolact_deploy.variants import IMAGENET_MEAN, IMAGENET_STD, VARIANTS, Variant, get_variant

Shapes = dict[str, tuple[int, ...]]


@cache
def shapes(name: str) -> Shapes:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in Yolact(get_variant(name)).state_dict().items()}


def deformable_blocks(name: str) -> list[tuple[int, int]]:
    found = (re.fullmatch(r"backbone\.layers\.(\d+)\.(\d+)\.conv2\.conv_offset_mask\.weight", key) for key in shapes(name))
    return sorted((int(match[1]), int(match[2])) for match in found if match)


def parameters(name: str) -> int:
    return sum(int(np.prod(shape)) for key, shape in shapes(name).items() if not key.endswith(("running_mean", "running_var", "tracked")))


def test_the_eight_published_variants_and_nano_are_known() -> None:
    assert list(VARIANTS) == [
        "yolact_base",
        "yolact_im400",
        "yolact_im700",
        "yolact_resnet50",
        "yolact_darknet53",
        "yolact_resnet50_pascal",
        "yolact_plus_base",
        "yolact_plus_resnet50",
        "yolact_nano",
    ]


@pytest.mark.parametrize(
    ("name", "grids", "priors"),
    [
        ("yolact_base", (69, 35, 18, 9, 5), 19_248),
        ("yolact_im400", (50, 25, 13, 7, 4), 10_077),
        ("yolact_im700", (88, 44, 22, 11, 6), 30_963),
        ("yolact_resnet50", (69, 35, 18, 9, 5), 19_248),
        ("yolact_darknet53", (69, 35, 18, 9, 5), 19_248),
        ("yolact_resnet50_pascal", (69, 35, 18, 9, 5), 19_248),
        ("yolact_plus_base", (69, 35, 18, 9, 5), 57_744),
        ("yolact_plus_resnet50", (69, 35, 18, 9, 5), 57_744),
    ],
)
def test_grids_and_number_of_priors(name: str, grids: tuple[int, ...], priors: int) -> None:
    variant = get_variant(name)
    assert variant.grids == grids
    assert variant.prior_count == priors
    assert make_priors(variant).shape == (priors, 4)
    assert variant.prototype_size == 2 * grids[0]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("yolact_base", (24, 48, 96, 192, 384)),
        ("yolact_im400", (17, 34, 69, 139, 279)),
        ("yolact_im700", (30, 61, 122, 244, 488)),
        ("yolact_resnet50_pascal", (32, 64, 128, 256, 512)),
    ],
)
def test_one_prior_size_a_level(name: str, sizes: tuple[int, ...]) -> None:
    assert get_variant(name).prior_sizes == tuple((size,) for size in sizes)
    assert get_variant(name).aspect_ratios == ((1, 0.5, 2),) * 5


@pytest.mark.parametrize("name", ["yolact_plus_base", "yolact_plus_resnet50"])
def test_plus_has_three_sizes_a_level_a_third_of_an_octave_apart(name: str) -> None:
    sizes = np.array(get_variant(name).prior_sizes)
    np.testing.assert_allclose(sizes, np.outer([24, 48, 96, 192, 384], 2.0 ** (np.arange(3) / 3)))
    assert get_variant(name).priors_per_cell == 9


def test_square_priors_normalisation_classes_and_rescoring() -> None:
    assert [name for name, variant in VARIANTS.items() if variant.square_priors] == [
        "yolact_base",
        "yolact_im400",
        "yolact_im700",
        "yolact_resnet50",
        "yolact_darknet53",
    ]
    assert [name for name, variant in VARIANTS.items() if variant.normalization == "unit"] == ["yolact_darknet53"]
    assert {name: variant.num_classes for name, variant in VARIANTS.items() if variant.num_classes != 81} == {"yolact_resnet50_pascal": 21}
    assert [name for name, variant in VARIANTS.items() if variant.mask_rescoring] == ["yolact_plus_base", "yolact_plus_resnet50"]
    assert IMAGENET_MEAN == (123.68, 116.78, 103.94)
    assert IMAGENET_STD == (58.40, 57.12, 57.38)


def test_plus_base_deforms_every_third_block_from_stage_two_on() -> None:
    assert deformable_blocks("yolact_plus_base") == [(1, 0), (1, 3), *((2, block) for block in range(0, 23, 3)), (3, 0)]


def test_plus_resnet50_deforms_every_block_from_stage_two_on() -> None:
    assert deformable_blocks("yolact_plus_resnet50") == [(stage, block) for stage, n in ((1, 4), (2, 6), (3, 3)) for block in range(n)]


@pytest.mark.parametrize("name", [name for name in VARIANTS if "plus" not in name])
def test_the_others_deform_nothing(name: str) -> None:
    assert deformable_blocks(name) == []


@pytest.mark.parametrize(
    ("dcn_blocks", "interval", "expected"),
    [((0, 2, 0, 0), 1, [(1, 2), (1, 3)]), ((0, 0, 3, 0), 2, [(2, 4)]), ((3, 0, 0, 9), 1, [(0, 0), (0, 1), (0, 2), (3, 0), (3, 1)])],
)
def test_deformable_blocks_are_counted_from_a_stages_end(
    dcn_blocks: tuple[int, ...], interval: int, expected: list[tuple[int, int]]
) -> None:
    variant = dataclasses.replace(
        get_variant("yolact_nano"), blocks=(3, 4, 6, 2), dcn_blocks=dcn_blocks, dcn_interval=interval, mask_rescoring=False
    )
    with torch.device("meta"):
        keys = Yolact(variant).state_dict()
    found = [re.match(r"backbone\.layers\.(\d+)\.(\d+)\.conv2\.conv_offset_mask\.bias", key) for key in keys]
    assert sorted((int(match[1]), int(match[2])) for match in found if match) == expected


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_deformable_convolution_has_a_bias_and_27_offset_channels(stage: int) -> None:
    found, inner, prefix = shapes("yolact_plus_base"), 64 << stage, f"backbone.layers.{stage}.0.conv2."
    assert {key.removeprefix(prefix): shape for key, shape in found.items() if key.startswith(prefix)} == {
        "weight": (inner, inner, 3, 3),
        "bias": (inner,),
        "conv_offset_mask.weight": (27, inner, 3, 3),
        "conv_offset_mask.bias": (27,),
    }


@pytest.mark.parametrize("name", list(VARIANTS))
def test_heads_prototypes_and_pyramid_have_the_published_layout(name: str) -> None:
    variant, found = get_variant(name), shapes(name)
    width, cell, foreground = variant.fpn_width, variant.priors_per_cell, variant.num_classes - 1
    head = "prediction_layers.0."
    assert found[f"{head}upfeature.0.weight"] == (width, width, 3, 3)
    assert found[f"{head}bbox_layer.weight"] == (cell * 4, width, 3, 3)
    assert found[f"{head}conf_layer.weight"] == (cell * variant.num_classes, width, 3, 3)
    assert found[f"{head}mask_layer.weight"] == (cell * variant.num_prototypes, width, 3, 3)
    assert found["proto_net.8.weight"] == (width, width, 3, 3)
    assert found["proto_net.10.weight"] == (variant.num_prototypes, width, 1, 1)
    assert found["semantic_seg_conv.weight"] == (foreground, width, 1, 1)
    laterals = [found[f"fpn.lat_layers.{level}.weight"][1] for level in range(3)]
    assert laterals == sorted(laterals, reverse=True), "C5 comes first"
    assert [key for key in found if key.startswith("fpn.downsample_layers.") and key.endswith("weight")] == [
        "fpn.downsample_layers.0.weight",
        "fpn.downsample_layers.1.weight",
    ]
    assert not any(key.startswith(("prediction_layers.1", "priors")) for key in found)
    assert (found.get("maskiou_net.maskiou_net.10.weight") == (foreground, 128, 1, 1)) is variant.mask_rescoring
    assert any(key.startswith("maskiou_net") for key in found) is variant.mask_rescoring


@pytest.mark.parametrize(("name", "like"), [("yolact_im700", "yolact_base"), ("yolact_im400", "yolact_base")])
def test_the_input_size_changes_no_weight(name: str, like: str) -> None:
    assert shapes(name) == shapes(like)


def test_pascal_differs_from_coco_by_its_classes_alone() -> None:
    pascal, coco = shapes("yolact_resnet50_pascal"), shapes("yolact_resnet50")
    assert {key for key in coco if pascal[key] != coco[key]} == {
        f"{layer}.{kind}" for layer in ("prediction_layers.0.conf_layer", "semantic_seg_conv") for kind in ("weight", "bias")
    }
    assert pascal["prediction_layers.0.conf_layer.bias"] == (63,)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("yolact_nano", 2e6, 4e6), ("yolact_base", 48e6, 51e6), ("yolact_resnet50", 29e6, 32e6), ("yolact_plus_base", 50e6, 54e6)],
)
def test_number_of_parameters(name: str, least: float, most: float) -> None:
    assert least <= parameters(name) <= most


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_variant_survives_its_own_dictionary(name: str) -> None:
    assert Variant.from_dict(get_variant(name).to_dict()) == get_variant(name)


def test_an_unknown_variant_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="yolact_im700") as caught:
        get_variant("yolact_edge")
    assert caught.value.mend


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"input_size": 31}, "input_size"),
        ({"input_size": 4097}, "input_size"),
        ({"blocks": (3, 4, 6)}, "blocks"),
        ({"blocks": (3, 4, 6, 0)}, "blocks"),
        ({"backbone": "darknet"}, "blocks"),
        ({"backbone": "vit"}, "backbone"),
        ({"normalization": "none"}, "normalization"),
        ({"num_classes": 1}, "num_classes"),
        ({"dcn_blocks": (0, 4, 6)}, "dcn_blocks"),
        ({"dcn_interval": 0}, "dcn_interval"),
        ({"backbone": "darknet", "blocks": (1, 1, 1, 1, 1), "dcn_blocks": (0, 0, 0, 1)}, "dcn_blocks"),
        ({"prior_sizes": ((24,), (48,)), "aspect_ratios": ((1,),) * 2}, "prior_sizes"),
        ({"prior_sizes": ((24,), (48,), (96, 100), (192,), (384,))}, "prior_sizes"),
        ({"prior_sizes": ((24,), (48,), (0,), (192,), (384,))}, "prior_sizes"),
        ({"prior_sizes": ((24,), (48,), (float("nan"),), (192,), (384,))}, "prior_sizes"),
        ({"aspect_ratios": ((1, -2),) * 5}, "aspect_ratios"),
        ({"aspect_ratios": ((1, 2),) * 4}, "aspect_ratios"),
        ({"mask_rescoring": True, "input_size": 200}, "input_size"),
    ],
)
def test_fields_that_contradict_are_named(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        dataclasses.replace(get_variant("yolact_base"), **fields)
    assert "\n" not in str(caught.value)
    assert caught.value.mend
