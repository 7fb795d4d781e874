"""What the first bytes of a file say; headers of real TensorRT-RTX plans are read in test_builder.py."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yolact_deploy.engines.plan_file import identify
from yolact_deploy.errors import ModelFileError


def plan(magic: bytes = b"ftrt", version: tuple[int, ...] = (10, 16, 1, 11), size: int = 256, mask: int = 0) -> bytes:
    """A header as the real ones are laid out, and zeros up to `size` bytes."""
    head = magic + bytes(12) + struct.pack("<Q", size) + bytes(version) + magic + struct.pack("<Q", mask)
    return head + bytes(size - len(head))


def write(folder: Path, content: bytes) -> Path:
    path = folder / "a.engine"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("magic", [b"ftrt", b"ptrt"])
def test_a_tensorrt_plan_tells_its_version(tmp_path: Path, magic: bytes) -> None:
    found = identify(write(tmp_path, plan(magic)))
    assert (found.kind, found.version, found.size, found.is_plan) == ("tensorrt", "10.16.1.11", 256, True)
    assert found.declared_size is None
    assert found.capabilities == ()


def test_a_tensorrt_rtx_plan_tells_its_size_and_capabilities_too(tmp_path: Path) -> None:
    found = identify(write(tmp_path, plan(b"vtrt", (1, 7, 1, 116), 300, 0b011101)))
    assert (found.kind, found.version, found.declared_size) == ("tensorrt-rtx", "1.7.1.116", 300)
    assert found.capabilities == ((7, 5), (8, 6), (8, 9), (12, 0))


def test_a_portable_plan_names_no_capability(tmp_path: Path) -> None:
    assert identify(write(tmp_path, plan(b"vtrt", (1, 7, 1, 116), 300, 0b1111110))).capabilities == ()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"\x08\x08\x12\x0dyolact-deploy\x1a", "onnx"),
        (b"\x08\x0a\x3a\x90\x01", "onnx"),
        (b"PK\x03\x04rest", "checkpoint"),
        (struct.pack("<Q", 900) + b'{"__metadata__"', "checkpoint"),
        (b"\x89PNG\r\n\x1a\n", "unknown"),
        (b"version https://git-lfs.github.com/spec/v1\n", "unknown"),
        (b"f", "unknown"),
    ],
)
def test_other_kinds(tmp_path: Path, content: bytes, kind: str) -> None:
    found = identify(write(tmp_path, content))
    assert (found.kind, found.is_plan, found.size) == (kind, False, len(content))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"The engine .*none.engine does not exist"):
        identify(tmp_path / "none.engine")
    with pytest.raises(ModelFileError, match="is a folder"):
        identify(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([b"", b"ftrt", b"vtrt", b"PK\x03\x04", b"\x08"]), st.binary(max_size=80))
def test_any_bytes_have_a_kind(tmp_path: Path, start: bytes, rest: bytes) -> None:
    assert identify(write(tmp_path, start + rest)).size == len(start + rest)
