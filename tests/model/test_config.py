"""A variant of one's own from a TOML file: what may be said, in which forms, and what is answered to the rest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model.conftest import Refusal
from yolact_deploy.errors import ConfigError
from yolact_deploy.variants import Variant, get_variant, read_config


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "own.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_a_base_alone_gives_that_variant_under_the_files_name(toml: Any) -> None:
    assert read_config(toml('base = "yolact_im400"')) == dataclasses.replace(get_variant("yolact_im400"), name="own")


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ('name = "parts"', "name", "parts"),
        ("input_size = 640", "input_size", 640),
        ("blocks = [3, 4, 6, 3]", "blocks", (3, 4, 6, 3)),
        ("backbone_width = 32", "backbone_width", 32),
        ("dcn_blocks = [0, 4, 23, 3]", "dcn_blocks", (0, 4, 23, 3)),
        ("dcn_interval = 3", "dcn_interval", 3),
        ("num_classes = 5", "num_classes", 5),
        ("fpn_width = 128", "fpn_width", 128),
        ("num_prototypes = 16", "num_prototypes", 16),
        ("square_priors = false", "square_priors", False),
        ('normalization = "unit"', "normalization", "unit"),
        ("mask_rescoring = true", "mask_rescoring", True),
        ("prior_sizes = [[1], [2], [3], [4], [5.5]]", "prior_sizes", ((1,), (2,), (3,), (4,), (5.5,))),
        ("prior_sizes = [1, 2, 3, 4, 5.5]", "prior_sizes", ((1,), (2,), (3,), (4,), (5.5,))),
        ("aspect_ratios = [1, 3]", "aspect_ratios", ((1, 3),) * 5),
        ("aspect_ratios = [[1], [2], [3], [4], [5]]", "aspect_ratios", ((1,), (2,), (3,), (4,), (5,))),
    ],
)
def test_any_field_can_be_overridden_alone(toml: Any, line: str, field: str, value: Any) -> None:
    found = read_config(toml(f'base = "yolact_base"\n{line}\n'))
    assert getattr(found, field) == value
    others = {field: value, "name": found.name}
    assert found == dataclasses.replace(get_variant("yolact_base"), **others)


def test_another_backbone_needs_its_stages(toml: Any, refused: Refusal) -> None:
    text = 'base = "yolact_base"\nbackbone = "darknet"\n'
    with refused(ConfigError, "blocks", "5 stages"):
        read_config(toml(text))
    assert read_config(toml(f"{text}blocks = [1, 2, 8, 8, 4]")).backbone == "darknet"


@pytest.mark.parametrize("levels", [3, 4, 6, 7])
def test_ratios_follow_where_the_sizes_change_the_number_of_levels(toml: Any, levels: int) -> None:
    sizes = [8 << level for level in range(levels)]
    found = read_config(toml(f'base = "yolact_base"\nprior_sizes = {sizes}'))
    assert found.aspect_ratios == ((1, 0.5, 2),) * levels
    assert found.extra_levels == levels - 3
    flat = read_config(toml(f'base = "yolact_base"\nprior_sizes = {sizes}\naspect_ratios = [1, 2]'))
    assert flat.aspect_ratios == ((1, 2),) * levels


def test_the_command_lines_variant_stands_in_for_a_missing_base(toml: Any, refused: Refusal) -> None:
    path = toml("num_classes = 3")
    assert read_config(path, "yolact_nano").input_size == 256
    with refused(ConfigError, "which variant it starts from", "--variant"):
        read_config(path)
    path = toml('base = "yolact_nano"')
    assert read_config(path, "yolact_nano").fpn_width == 64
    with refused(ConfigError, "'yolact_nano'", "'yolact_base'", "Drop one"):
        read_config(path, "yolact_base")
    with refused(ConfigError, "'yolact_edge'", "yolact_im700"):
        read_config(toml('base = "yolact_edge"'))


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("numclasses = 5", ("'numclasses'", "num_classes")),
        ('"a\\nb" = 5', ("'a\\nb'",)),
        ("[model]\ninput_size = 5", ("'model'",)),
        ('input_size = "550"', ("input_size", "'550'", "550")),
        ("input_size = 550.0", ("input_size", "550.0")),
        ("input_size = true", ("input_size", "True")),
        ("square_priors = 1", ("square_priors",)),
        ("name = 1979-05-27", ("name",)),
        ("blocks = 3", ("blocks", "list of whole numbers")),
        ('blocks = "3463"', ("blocks",)),
        ("blocks = [3, 4, 6.0, 3]", ("blocks",)),
        ("blocks = [3, 4, true, 3]", ("blocks",)),
        ("prior_sizes = []", ("prior_sizes",)),
        ("prior_sizes = 24", ("prior_sizes",)),
        ("prior_sizes = [[24], 48, [96], [192], [384]]", ("prior_sizes",)),
        ("prior_sizes = [[24], [], [96], [192], [384]]", ("prior_sizes",)),
        ('prior_sizes = ["24", "48", "96"]', ("prior_sizes",)),
        ("prior_sizes = [nan, 1, 2, 3, 4]", ("prior_sizes",)),
        ("prior_sizes = [inf, 1, 2, 3, 4]", ("prior_sizes",)),
        ("prior_sizes = [1, 2]", ("prior_sizes", "3 levels")),
        ("aspect_ratios = [true]", ("aspect_ratios",)),
        ("aspect_ratios = [[1], [2]]", ("aspect_ratios", "5 lists")),
        ("aspect_ratios = [0]", ("aspect_ratios",)),
        ("base = 5", ("which variant it starts from",)),
        (f"input_size = {'9' * 5000}", ("TOML",)),
        (f"input_size = {'9' * 30}", ("input_size",)),
    ],
)
def test_a_line_that_is_wrong_is_named(toml: Any, refused: Refusal, line: str, parts: tuple[str, ...]) -> None:
    base = "" if line.startswith("base") else 'base = "yolact_base"\n'
    with refused(ConfigError, *parts):
        read_config(toml(base + line))


@pytest.mark.parametrize(
    "content",
    [
        "base: yolact_base",
        '{"base": "yolact_base"}',
        "a = 1\na = 2",
        "a = \x01",
        b"\xff\xfeb\0",
        b"\x89PNG\r\n\x1a\n" + bytes(99),
        "a=" + "[" * 99999,
    ],
    ids=["yaml", "json", "twice", "control", "utf16", "png", "nested"],
)
def test_what_is_no_toml_is_refused(toml: Any, refused: Refusal, content: str | bytes) -> None:
    with refused(ConfigError, "own.toml", "TOML", "Example"):
        read_config(toml(content), "yolact_base")


def test_missing_files_folders_and_impossible_names_are_refused(tmp_path: Path, refused: Refusal) -> None:
    with refused(ConfigError, "does not exist"):
        read_config(tmp_path / "none.toml", "yolact_base")
    with refused(ConfigError, str(tmp_path)):
        read_config(tmp_path, "yolact_base")
    with refused(ConfigError):
        read_config(Path("a" * 5000), "yolact_base")


def test_a_byte_order_mark_and_windows_lines_are_read(toml: Any) -> None:
    assert read_config(toml(b'\xef\xbb\xbfbase = "yolact_nano"\r\nnum_classes = 4\r\n')).num_classes == 4


VALUES = st.recursive(
    st.one_of(st.integers(-10, 10**6), st.booleans(), st.floats(), st.text(max_size=5), st.none()),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(Variant)]), VALUES, max_size=3))
def test_any_value_gives_a_variant_or_one_sentence(refused: Refusal, fields: dict[str, Any]) -> None:
    try:
        variant = Variant.from_dict(fields)
    except ConfigError:
        with refused(ConfigError):
            Variant.from_dict(fields)
    else:
        assert Variant.from_dict(variant.to_dict()) == variant
