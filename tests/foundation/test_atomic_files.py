"""Writing files: whole or not at all, never over what is not ours."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.errors import OutputError
from yolact_deploy.files import atomic_output, atomic_outputs, refuse_overwrite, sha256_of, write_text


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 7])
def test_sha256(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_refuse_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    refuse_overwrite(path, ours=False, force=False)
    path.touch()
    refuse_overwrite(path, ours=True, force=False)
    refuse_overwrite(path, ours=False, force=True)
    with pytest.raises(OutputError, match=r"exists and was not written.*--force"):
        refuse_overwrite(path, ours=False, force=False)
    with pytest.raises(OutputError, match="is a folder"):
        refuse_overwrite(tmp_path, ours=True, force=True)


def test_the_new_text_replaces_the_old_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.json"
    write_text(path, "one\n")
    write_text(path, "zwei ü\n")
    assert path.read_bytes().decode("utf-8").replace("\r\n", "\n") == "zwei ü\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_an_interruption_while_the_parts_are_made_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = os.open

    def interrupted(*args: Any, **kwargs: Any) -> int:
        os.close(make(*args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_outputs(tmp_path / "a", tmp_path / "b"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_part_stands_beside_its_target_with_the_same_suffix(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "a.png") as part:
        assert (part.parent, part.suffix) == (tmp_path, ".png")
        assert part.name.startswith(".a.")
        part.write_text("x")
        assert not (tmp_path / "a.png").exists()
    assert (tmp_path / "a.png").read_text() == "x"


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_whatever_goes_wrong_the_old_file_stays(tmp_path: Path, error: BaseException) -> None:
    write_text(tmp_path / "a", "old")

    def write() -> None:
        with atomic_outputs(tmp_path / "a", tmp_path / "b") as parts:
            parts[0].write_text("new")
            raise error

    with pytest.raises(type(error)):
        write()
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"a": "old"}


def test_several_files_come_together(tmp_path: Path) -> None:
    with atomic_outputs(tmp_path / "a.engine", tmp_path / "a.engine.json") as (engine, sidecar):
        engine.write_text("plan")
        sidecar.write_text("{}")
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"a.engine": "plan", "a.engine.json": "{}"}


def test_an_os_error_says_what_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"a\.json could not be written: .*nothing was changed"):
        write_text(tmp_path / "file" / "a.json", "x")

    def fill() -> None:
        with atomic_output(tmp_path / "b"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="could not be written: No space left on device"):
        fill()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_long_name_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_text(tmp_path / ("x" * 300), "x")
