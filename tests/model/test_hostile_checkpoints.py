"""Files that are no weights: broken, foreign, or made to do harm. Each is one sentence and never runs anything."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.weights import write_checkpoint
from tests.model.conftest import Refusal
from yolact_deploy.errors import CheckpointError, ConfigError
from yolact_deploy.model import load_checkpoint

State = dict[str, Tensor]
KEY = "proto_net.0.weight"


@pytest.mark.parametrize("name", ["yolact_nano.pth", "yolact_nano.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"P",
        b"\x80",
        b"these are no weights\n",
        b"<!DOCTYPE html><html>the download page</html>" * 20,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n" * 2,
        bytes(4096),
        b"PK\x03\x04" + bytes(300),
        b"\x80\x02}q\x00." + b"x" * 100,
        b"\xff\xfe" * 999,
    ],
    ids=["empty", "one-byte", "one-pickle-byte", "text", "html", "lfs-pointer", "zeros", "zip-magic", "pickle-and-more", "utf16"],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, refused: Refusal, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with refused(CheckpointError, str(path)):
        load_checkpoint(path)


def test_a_missing_file_a_folder_and_an_impossible_name_are_refused(tmp_path: Path, refused: Refusal) -> None:
    with refused(CheckpointError, "do not exist"):
        load_checkpoint(tmp_path / "yolact_nano.pth")
    with refused(CheckpointError, "folder"):
        load_checkpoint(tmp_path)
    with refused(CheckpointError, "do not exist"):
        load_checkpoint("yolact_nano" * 999)
    (tmp_path / "yolact_nano.pth").mkdir()
    with refused(CheckpointError, "folder"):
        load_checkpoint(tmp_path / "yolact_nano.pth")


@pytest.mark.parametrize(("name", "legacy"), [("yolact_nano.pth", False), ("yolact_nano.pth", True), ("yolact_nano.safetensors", False)])
@pytest.mark.parametrize("part", [0.0001, 0.01, 0.2, 0.5, 0.9, 0.999, 0.99999])
def test_a_download_that_was_cut_off_is_refused(
    tmp_path: Path, nano_state: State, refused: Refusal, name: str, legacy: bool, part: float
) -> None:
    path = write_checkpoint(tmp_path, name, nano_state, legacy=legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with refused(CheckpointError, str(path)):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["yolact_nano.pth", "yolact_nano.safetensors"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_raise_nothing_else(tmp_path: Path, refused: Refusal, name: str, data: st.DataObject) -> None:
    """A small file, so that most bytes are structure: it never fits, and must say so, whatever is wrong with it."""
    path = write_checkpoint(tmp_path, name, {"a": torch.arange(3.0), "b.c": torch.zeros(2, 2)})
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=12)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with refused(CheckpointError):
        load_checkpoint(path)


@pytest.mark.parametrize("length", [0, 1, 7, 2**20, 2**40, 2**63, 2**64 - 1])
def test_a_safetensors_header_that_lies_about_its_length_is_refused(
    tmp_path: Path, nano_state: State, refused: Refusal, length: int
) -> None:
    path = write_checkpoint(tmp_path, "yolact_nano.safetensors", nano_state)
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with refused(CheckpointError, str(path)):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 10**15]},
        {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]},
        {"shape": [2]},
        [],
    ],
)
def test_a_safetensors_entry_that_lies_is_refused(tmp_path: Path, refused: Refusal, entry: Any) -> None:
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "yolact_nano.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with refused(CheckpointError, str(path)):
        load_checkpoint(path)


class RunsCode:
    """Unpickled, it would make the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.marker), "w"))


def test_the_bait_works(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(RunsCode(marker))).close()  # noqa: TID251 - or the tests below would prove nothing
    assert marker.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle", "protocol 0", "safetensors name"])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, nano_state: State, refused: Refusal, kind: str) -> None:
    marker = tmp_path / "ran"
    content: dict[str, Any] = {**nano_state, "zz": RunsCode(marker)}
    path = tmp_path / ("yolact_nano.safetensors" if kind == "safetensors name" else "yolact_nano.pth")
    if kind in ("zip", "legacy"):
        write_checkpoint(tmp_path, path.name, content, legacy=kind == "legacy")
    elif kind == "safetensors name":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"a" * 100: RunsCode(marker)}, protocol=0 if kind == "protocol 0" else 4))
    with refused(CheckpointError, str(path), *(["run code"] if kind in ("zip", "legacy") else [])):
        load_checkpoint(path)
    assert not marker.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path, refused: Refusal) -> None:
    path = tmp_path / "yolact_nano.pth"
    torch.save(torch.nn.Conv2d(3, 3, 1), path)
    with refused(CheckpointError, "Python objects", "state_dict()"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([torch.zeros(3)], "list"),
        (torch.zeros(300), "Tensor"),
        ({}, "nothing"),
        (None, "NoneType"),
        ("yolact" * 99, "str"),
        ({"epoch": 3, "note": "x" * 99}, "int at epoch"),
        ({1: torch.zeros(30)}, "int"),
        ({"a\nb\x1b[2J": "x" * 99}, "str at 'a\\nb"),
    ],
    ids=["list", "tensor", "empty", "none", "text", "numbers", "number-key", "control-characters"],
)
def test_something_else_than_a_state_dict_is_refused(tmp_path: Path, refused: Refusal, content: Any, named: str) -> None:
    path = tmp_path / "yolact_nano.pth"
    torch.save(content, path)
    with refused(CheckpointError, named):
        load_checkpoint(path)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "net"])
def test_a_state_dict_inside_another_is_refused(tmp_path: Path, nano_state: State, refused: Refusal, wrapper: str) -> None:
    with refused(CheckpointError, f"dict at {wrapper}", "model.state_dict()"):
        load_checkpoint(write_checkpoint(tmp_path, state={wrapper: nano_state, "epoch": 3}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", [KEY, "backbone.layers.3.0.bn3.running_var"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, nano_state: State, refused: Refusal, value: float, key: str, dtype: torch.dtype
) -> None:
    nano_state[key] = nano_state[key].to(dtype).clone()
    nano_state[key].view(-1)[-1] = value
    with refused(CheckpointError, "NaN or infinity", key):
        load_checkpoint(write_checkpoint(tmp_path, state=nano_state))


def test_float64_values_beyond_float32_are_refused(tmp_path: Path, nano_state: State, refused: Refusal) -> None:
    nano_state[KEY] = nano_state[KEY].double() + 1e300
    with refused(CheckpointError, "NaN or infinity", KEY):
        load_checkpoint(write_checkpoint(tmp_path, state=nano_state))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8, torch.bool])
def test_tensors_that_are_no_real_numbers_are_refused(tmp_path: Path, nano_state: State, refused: Refusal, dtype: torch.dtype) -> None:
    nano_state[KEY] = torch.zeros(nano_state[KEY].shape, dtype=dtype)
    with refused(CheckpointError, KEY, str(dtype)):
        load_checkpoint(write_checkpoint(tmp_path, state=nano_state))


def test_tensors_without_values_are_refused(tmp_path: Path, nano_state: State, refused: Refusal) -> None:
    nano_state[KEY] = nano_state[KEY].to("meta")
    with refused(CheckpointError, KEY):
        load_checkpoint(write_checkpoint(tmp_path, state=nano_state))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of its own sparse tensors
def test_sparse_tensors_are_refused(tmp_path: Path, nano_state: State, refused: Refusal) -> None:
    nano_state[KEY] = nano_state[KEY].to_sparse()
    with refused(CheckpointError, KEY):
        load_checkpoint(write_checkpoint(tmp_path, state=nano_state))


def test_names_of_tensors_cannot_draw_on_a_terminal(tmp_path: Path, nano_state: State, refused: Refusal) -> None:
    nano_state["\x1b[2J\nfine"] = torch.zeros(1)
    nano_state["a" * 100_000] = torch.zeros(1)
    with refused(CheckpointError, "is unknown"):
        load_checkpoint(write_checkpoint(tmp_path, state=nano_state))


def test_an_absurd_number_of_classes_is_refused(tmp_path: Path, nano_state: State, refused: Refusal) -> None:
    nano_state["prediction_layers.0.conf_layer.bias"] = torch.zeros(1).expand(3 * 10**9)
    with refused(ConfigError, "num_classes"):
        load_checkpoint(write_checkpoint(tmp_path, state=nano_state))


def test_a_class_layer_of_no_classes_is_refused(tmp_path: Path, nano_state: State, refused: Refusal) -> None:
    for odd in (torch.zeros(0), torch.zeros(3), torch.zeros(7), torch.zeros(9, 27), torch.zeros(())):
        nano_state["prediction_layers.0.conf_layer.bias"] = odd
        with refused(CheckpointError, "prediction_layers.0.conf_layer.bias"):
            load_checkpoint(write_checkpoint(tmp_path, state=nano_state))


def test_a_zip_archive_of_something_else_is_refused(tmp_path: Path, refused: Refusal) -> None:
    path = tmp_path / "yolact_nano.pth"
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("../../evil.txt", "x")
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    path.write_bytes(held.getvalue())
    with refused(CheckpointError, str(path)):
        load_checkpoint(path)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
