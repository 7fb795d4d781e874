"""The description inside a ``.safetensors`` checkpoint: what it spares the user, and what happens where it is damaged."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.helpers.tiny import tiny_network, tiny_variant
from tests.helpers.weights import write_checkpoint
from yolact_deploy.classes import ClassList, numbered_classes
from yolact_deploy.errors import CheckpointError, ConfigError, YolactDeployError
from yolact_deploy.model import load_checkpoint
from yolact_deploy.model.embedded import DESCRIPTION_KEY, describe, read_embedded, save_checkpoint

CLASSES = ClassList(("disc", "ring", "Stoß", "bar"), (1, 5, 7, 90))


def written(folder: Path, name: str = "any name.safetensors", **options: Any) -> Path:
    variant = tiny_variant()
    save_checkpoint(folder / name, tiny_network(variant).state_dict(), variant, CLASSES, **options)
    return folder / name


def test_one_file_is_enough(tmp_path: Path) -> None:
    path = written(tmp_path, notes={"iterations": 7})
    found = load_checkpoint(path)
    assert found.variant == tiny_variant()
    assert found.classes == CLASSES
    for key, value in tiny_network(tiny_variant()).state_dict().items():
        assert torch.equal(found.network.state_dict()[key], value), key
    embedded = read_embedded(path)
    assert embedded is not None
    assert embedded.notes == {"iterations": 7}


def test_half_precision_halves_the_file_and_is_read_as_float32(tmp_path: Path) -> None:
    whole, half = written(tmp_path, "whole.safetensors"), written(tmp_path, "half.safetensors", half=True)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    found = load_checkpoint(half).network.state_dict()
    for key, value in tiny_network(tiny_variant()).state_dict().items():
        wanted = value.half().float() if value.is_floating_point() else value
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], wanted), key


def test_what_is_asked_for_comes_first(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\n", encoding="utf-8")
    assert load_checkpoint(written(tmp_path), classes=str(names)).classes.names == ("a", "b", "c", "d")
    with pytest.raises(CheckpointError, match="do not fit yolact_base"):
        load_checkpoint(written(tmp_path), variant="yolact_base")
    config = tmp_path / "mine.toml"
    config.write_text('base = "yolact_nano"\n', encoding="utf-8")
    with pytest.raises(CheckpointError, match="do not fit mine"):
        load_checkpoint(written(tmp_path), config=config)


def test_files_without_a_description_are_named_as_before(tmp_path: Path) -> None:
    assert read_embedded(write_checkpoint(tmp_path, "yolact_nano_1_10.safetensors")) is None
    assert read_embedded(write_checkpoint(tmp_path, "yolact_nano_1_10.pth")) is None
    assert load_checkpoint(write_checkpoint(tmp_path, "yolact_nano_1_10.safetensors")).variant.name == "yolact_nano"
    path = tmp_path / "unknown.safetensors"
    save_file(tiny_network(tiny_variant()).state_dict(), path)
    with pytest.raises(ConfigError, match="does not say a known variant"):
        load_checkpoint(path)


def test_a_class_count_that_the_tensors_contradict_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "five.safetensors"
    save_file(tiny_network(tiny_variant(num_classes=4)).state_dict(), path, {DESCRIPTION_KEY: describe(tiny_variant(), CLASSES)})
    found = load_checkpoint(path)
    assert found.variant.num_classes == 4
    assert found.classes == numbered_classes(3)


def damaged(path: Path, text: str) -> Path:
    save_file({"x": torch.zeros(1)}, path, {DESCRIPTION_KEY: text})
    return path


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(describe(tiny_variant(), CLASSES)), **fields})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        changed(names=["a"]),
        changed(names=[1, 2, 3, 4]),
        changed(names="abcd", category_ids=[1, 2, 3]),
        changed(category_ids=[1, 2, True, 4]),
        changed(notes=[]),
        changed(variant={"input_size": -5}),
        changed(variant={"nonsense": 1}),
        changed(variant=7),
    ],
    ids=range(13),
)
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=r"The description inside .* is damaged"):
        read_embedded(damaged(tmp_path / "x.safetensors", text))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(fields=st.dictionaries(st.sampled_from(["variant", "names", "category_ids", "notes"]), JSON))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_in_it_is_read_or_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with contextlib.suppress(YolactDeployError):
        read_embedded(damaged(tmp_path / "x.safetensors", changed(**fields)))
