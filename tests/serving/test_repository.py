"""Model repositories on disk: whole or not at all, one's own folders replaced, all others left alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.export.artifacts import Artifacts
from tests.helpers.fake_engines import write_engine
from yolact_deploy.errors import ConfigError, OutputError
from yolact_deploy.serving import repository
from yolact_deploy.serving.models import RepositoryOptions
from yolact_deploy.serving.repository import write_repository


def tree(folder: Path) -> dict[str, str]:
    """Every file with its SHA-256, every folder with nothing."""
    return {
        path.relative_to(folder).as_posix(): "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def models(artifacts: Artifacts) -> list[Path]:
    return [artifacts.onnx(batch="dynamic"), artifacts.onnx(artifacts.plus)]


def test_the_files(models: list[Path], tmp_path: Path, artifacts: Artifacts) -> None:
    folder = tmp_path / "deep" / "models"
    engine = write_engine(artifacts.onnx(), tmp_path)
    written = write_repository([*models, engine], folder, names=["a", "b", "c"])
    assert [one.name for one in written] == ["a", "b", "b_maskiou", "c"]
    own = ("", "/1", "/config.pbtxt", "/yolact_deploy.json")
    wanted = {f"{name}{part}" for name in ("a", "b", "b_maskiou", "c") for part in own}
    wanted |= {f"{name}/labels.txt" for name in ("a", "b", "c")} | {f"{name}/1/model.onnx" for name in ("a", "b", "b_maskiou")}
    assert set(tree(folder)) == wanted | {"c/1/model.plan"}
    assert sorted(str(path) for one in written for path in one.files) == sorted(str(path) for path in folder.rglob("*") if path.is_file())
    assert (folder / "a" / "1" / "model.onnx").read_bytes() == models[0].read_bytes()
    assert (folder / "c" / "1" / "model.plan").read_bytes() == engine.read_bytes()
    assert [(folder / one.name / "config.pbtxt").read_text(encoding="utf-8") for one in written] == [one.config for one in written]
    assert [(one.folder, one.max_batch_size) for one in written] == [
        (folder / name, most) for name, most in (("a", 8), ("b", 0), ("b_maskiou", 100), ("c", 0))
    ]
    about = json.loads((folder / "a" / "yolact_deploy.json").read_text(encoding="utf-8"))
    assert (about["model"], about["source"], about["manifest"]["kind"]) == ("a", models[0].name, "onnx")
    names = about["manifest"]["classes"]["names"]
    assert (folder / "a" / "labels.txt").read_text(encoding="utf-8").splitlines() == names
    assert about["files"] == {place: digest for place, digest in tree(folder / "a").items() if digest and place != "yolact_deploy.json"}
    assert str(tmp_path) not in json.dumps(about)
    mode = (folder / "a").stat().st_mode & 0o777
    assert mode == (folder.parent.stat().st_mode & 0o777)


def test_again_on_the_same_folder(models: list[Path], tmp_path: Path) -> None:
    write_repository(models[:1], tmp_path, names=["a"])
    (tmp_path / "other").mkdir()
    first = tree(tmp_path)
    write_repository(models[:1], tmp_path, names=["a"])
    assert tree(tmp_path) == first
    write_repository(models[1:], tmp_path, names=["a"], options=RepositoryOptions(instances=2))
    second = tree(tmp_path)
    assert second["a/1/model.onnx"] != first["a/1/model.onnx"]
    assert set(second) == set(first) | {place for place in second if place.startswith("a_maskiou")}
    (tmp_path / "a" / "labels.txt").unlink()
    write_repository(models[:1], tmp_path, names=["a"])
    assert {place: digest for place, digest in tree(tmp_path).items() if not place.startswith("a_maskiou")} == first


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: shutil.rmtree(folder) or folder.mkdir(), "was not written by this command"),
        (lambda folder: (folder / "yolact_deploy.json").write_text("{}"), "was not written by this command"),
        (lambda folder: (folder / "yolact_deploy.json").write_text("[" * 100_000), "was not written by this command"),
        (lambda folder: (folder / "yolact_deploy.json").write_text('{"files": {}, "written by": "me"}'), "was not written by this command"),
        (lambda folder: (folder / "config.pbtxt").write_text("mine"), "config.pbtxt in it was changed since"),
        (lambda folder: (folder / "notes.txt").touch(), "notes.txt in it was not written by this command"),
        (lambda folder: (folder / "2").mkdir(), "2 in it was not written by this command"),
        (lambda folder: (folder / "1" / "more").mkdir(), "1/more in it was not written by this command"),
        (lambda folder: (folder / "labels.txt").unlink() or (folder / "labels.txt").symlink_to("config.pbtxt"), "labels.txt in it was not"),
    ],
)
def test_what_others_wrote_stays(spoil: Any, reason: str, models: list[Path], tmp_path: Path) -> None:
    write_repository(models[:1], tmp_path, names=["a"])
    spoil(tmp_path / "a")
    before = tree(tmp_path)
    with pytest.raises(OutputError) as found:
        write_repository([models[1], models[0]], tmp_path, names=["b", "a"])
    assert f"{tmp_path / 'a'} exists, and {reason}" in found.value.message
    assert "--force" in found.value.mend
    assert tree(tmp_path) == before
    write_repository(models[:1], tmp_path, names=["a"], force=True)
    write_repository(models[:1], tmp_path, names=["a"])
    assert len(tree(tmp_path)) == 6


def test_files_and_links_are_never_replaced(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    (tmp_path / "there").mkdir()
    (tmp_path / "b").symlink_to("there")
    for name, kind in (("a", "a file"), ("b", "a link")):
        for force in (False, True):
            with pytest.raises(OutputError, match=f"is {kind}, a folder was wanted"):
                write_repository(models[:1], tmp_path, names=[name], force=force)
    assert sorted(tree(tmp_path)) == ["a", "b", "there"]


def test_names(models: list[Path], tmp_path: Path) -> None:
    for names in (["a", "a"], ["a_maskiou", "a"]):
        with pytest.raises(ConfigError, match=f"Two models would be called {names[0]}. Give each a name of its own: --name A --name B"):
            write_repository(models, tmp_path / "m", names=names)
    with pytest.raises(ConfigError, match="Two models would be called"):
        write_repository([models[0], models[0]], tmp_path / "m")
    with pytest.raises(ConfigError, match=r"1 names were given for 2 models\. Give --name once for each MODEL"):
        write_repository(models, tmp_path / "m", names=["a"])
    assert list(tmp_path.iterdir()) == []
    assert write_repository(models[:1], tmp_path / "m")[0].name == models[0].stem


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", range(14))
def test_an_interrupted_run_leaves_what_was(
    step: int, error: Any, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before or after the n-th thing done to the disk; b is new, a and its mask-IoU net are replaced."""
    write_repository(models[1:], tmp_path / "r", names=["a"])
    before = tree(tmp_path)
    done = 0

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == step // 2 + 12 and step % 2 == 0:
                raise error
            result = real(*arguments, **options)
            if done == step // 2 + 12:
                raise error
            return result

        return call

    with monkeypatch.context() as patch:
        patch.setattr(repository, "_put", counted(repository._put))
        patch.setattr(repository.os, "replace", counted(os.replace))
        try:
            write_repository([models[0], models[1]], tmp_path / "r", names=["b", "a"], options=RepositoryOptions(instances=3))
        except (KeyboardInterrupt, OutputError):
            assert tree(tmp_path) == before
        else:
            assert set(tree(tmp_path)) > set(before)
    write_repository([models[0], models[1]], tmp_path / "r", names=["b", "a"])


def test_a_disk_that_is_full(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repository, "_put", full)
    with pytest.raises(OutputError) as found:
        write_repository(models, tmp_path / "new" / "r")
    assert str(found.value) == (
        f"{tmp_path / 'new' / 'r'} could not be written: No space left on device. "
        "Free some space or choose another folder; nothing was changed."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "r").touch()
    with pytest.raises(OutputError, match="could not be written"):
        write_repository(models[:1], tmp_path / "r", names=["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
