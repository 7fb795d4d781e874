"""Variants as data: the facts of the papers, and users' own configurations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.errors import ConfigError
from yolact_deploy.variants import VARIANTS, Variant, get_variant, read_config

PUBLISHED = [
    ("yolact_base", 550, 19248, 138, True),
    ("yolact_im400", 400, 10077, 100, True),
    ("yolact_im700", 700, 30963, 176, True),
    ("yolact_resnet50", 550, 19248, 138, True),
    ("yolact_darknet53", 550, 19248, 138, True),
    ("yolact_resnet50_pascal", 550, 19248, 138, False),
    ("yolact_plus_base", 550, 57744, 138, False),
    ("yolact_plus_resnet50", 550, 57744, 138, False),
]


@pytest.mark.parametrize(("name", "size", "priors", "prototypes", "square"), PUBLISHED)
def test_published(name: str, size: int, priors: int, prototypes: int, square: bool) -> None:
    variant = get_variant(name)
    assert variant.name == name
    assert (variant.input_size, variant.prior_count, variant.prototype_size, variant.square_priors) == (size, priors, prototypes, square)
    assert variant.num_classes == (21 if "pascal" in name else 81)
    assert variant.mask_rescoring == ("plus" in name) == any(variant.dcn_blocks)
    assert variant.normalization == ("unit" if "darknet" in name else "imagenet")
    assert variant.priors_per_cell == (9 if "plus" in name else 3)


def test_all_are_listed() -> None:
    assert set(VARIANTS) == {*(row[0] for row in PUBLISHED), "yolact_nano"}
    assert all(name == variant.name for name, variant in VARIANTS.items())


def test_prior_sizes() -> None:
    assert get_variant("yolact_im400").prior_sizes == ((17,), (34,), (69,), (139,), (279,))
    assert get_variant("yolact_im700").prior_sizes == ((30,), (61,), (122,), (244,), (488,))
    assert get_variant("yolact_resnet50_pascal").prior_sizes == ((32,), (64,), (128,), (256,), (512,))
    assert get_variant("yolact_plus_base").prior_sizes[0] == pytest.approx((24, 30.238, 38.098), abs=1e-3)


def test_grids() -> None:
    assert get_variant("yolact_base").grids == (69, 35, 18, 9, 5)
    assert get_variant("yolact_base").extra_levels == 2
    assert get_variant("yolact_base").aspect_ratios[0] == (1, 0.5, 2)


@pytest.mark.parametrize("name", VARIANTS)
def test_fields_come_back(name: str) -> None:
    again = Variant.from_dict(get_variant(name).to_dict())
    assert again == get_variant(name)


def test_unknown() -> None:
    with pytest.raises(ConfigError, match="no variant 'yolact'; known are yolact_base,"):
        get_variant("yolact")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"backbone": "vgg"}, "'resnet' or 'darknet'"),
        ({"normalization": "none"}, "'imagenet' or 'unit'"),
        ({"input_size": 31}, "32 to 4096"),
        ({"input_size": 4097}, "32 to 4096"),
        ({"num_classes": 1}, "2 to 65536"),
        ({"num_prototypes": 0}, "1 to 4096"),
        ({"dcn_interval": 0}, "1 to 4096"),
        ({"blocks": (3, 4, 6)}, "4 stages"),
        ({"blocks": (3, 4, 0, 3)}, "at least one block"),
        ({"dcn_blocks": (0, 0, 0)}, "4 stages"),
        ({"backbone": "darknet", "blocks": (1, 2, 8, 8, 4), "dcn_blocks": (0, 1, 1, 1)}, "zeros for a darknet"),
        ({"prior_sizes": ((24,), (48,))}, "at least 3 levels"),
        ({"prior_sizes": ((24,), (48,), (96,))}, "3 lists"),
        ({"prior_sizes": ((24,), (48,), (96,), (192,), (384, 400))}, "same number of priors"),
        ({"prior_sizes": ((24,), (48,), (96,), (192,), (-1,))}, "positive numbers"),
        ({"aspect_ratios": ((1, float("nan")),) * 5}, "positive numbers"),
        ({"mask_rescoring": True, "input_size": 200}, "at least 63 pixels"),
    ],
)
def test_contradictions(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        dataclasses.replace(get_variant("yolact_base"), **fields)
    assert caught.value.mend


def config(tmp_path: Path, text: str, base: str | None = None) -> Variant:
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    return read_config(tmp_path / "mine.toml", base)


def test_a_configuration_overrides_its_base(tmp_path: Path) -> None:
    found = config(tmp_path, 'base = "yolact_resnet50"\ninput_size = 400\nnum_classes = 4\nprior_sizes = [10, 20, 40, 80, 160]')
    wanted = dataclasses.replace(
        get_variant("yolact_resnet50"), name="mine", input_size=400, num_classes=4, prior_sizes=((10,), (20,), (40,), (80,), (160,))
    )
    assert found == wanted


def test_the_base_may_come_from_the_command(tmp_path: Path) -> None:
    assert config(tmp_path, "num_classes = 4", "yolact_base").num_classes == 4
    assert config(tmp_path, 'base = "yolact_base"', "yolact_base").blocks == (3, 4, 23, 3)
    with pytest.raises(ConfigError, match="does not say which variant"):
        config(tmp_path, "num_classes = 4")
    with pytest.raises(ConfigError, match="starts from 'yolact_base', --variant says 'yolact_im400'"):
        config(tmp_path, 'base = "yolact_base"', "yolact_im400")


def test_flat_lists_serve_all_levels(tmp_path: Path) -> None:
    found = config(tmp_path, 'base = "yolact_base"\naspect_ratios = [1, 3]\nprior_sizes = [[8, 9], [16, 18], [32, 36], [64, 72]]')
    assert found.aspect_ratios == ((1, 3),) * 4
    assert found.extra_levels == 1
    fewer = config(tmp_path, 'base = "yolact_base"\nprior_sizes = [8, 16, 32]')
    assert fewer.aspect_ratios == ((1, 0.5, 2),) * 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base = 3", "does not say which variant"),
        ('base = "nothing"', "no variant 'nothing'"),
        ("base = ", "not readable TOML"),
        ('base = "yolact_base"\nsize = 3', "no field 'size'"),
        ('base = "yolact_base"\ninput_size = "550"', "a value like 550"),
        ('base = "yolact_base"\ninput_size = 550.0', "a value like 550"),
        ('base = "yolact_base"\nnum_prototypes = true', "a value like 32"),
        ('base = "yolact_base"\nsquare_priors = 1', "a value like True"),
        ('base = "yolact_base"\nblocks = [3, 4.5, 6, 3]', "whole numbers"),
        ('base = "yolact_base"\nprior_sizes = []', "a list of numbers for each FPN level"),
        ('base = "yolact_base"\nprior_sizes = [[]]', "a list of numbers for each FPN level"),
        ('base = "yolact_base"\nprior_sizes = ["a"]', "a list of numbers for each FPN level"),
        ('base = "yolact_base"\nprior_sizes = 3', "a list of numbers for each FPN level"),
        ('base = "yolact_base"\naspect_ratios = [true]', "a list of numbers for each FPN level"),
        ('base = "yolact_base"\n[blocks]\na = 1', "whole numbers"),
    ],
)
def test_bad_configurations(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        config(tmp_path, text)
    assert caught.value.mend


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_config(tmp_path / "no.toml")
    with pytest.raises(ConfigError, match="not readable TOML"):
        read_config(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not readable TOML"):
        read_config(tmp_path / "bytes.toml")


@pytest.mark.parametrize("fields", [{"name": 3}, {"input_size": None}, {"blocks": "abcd"}, {"prior_sizes": {"a": 1}}, {"new": 1}])
def test_damaged_dictionaries(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Variant.from_dict({**get_variant("yolact_base").to_dict(), **fields})
