"""The written set: its scenes come back exactly, and no run destroys what it did not write or leaves half of something."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from yolact_deploy.data import SHAPES, read_dataset, shapes_scene, write_shapes
from yolact_deploy.data import shapes as shapes_module
from yolact_deploy.errors import ConfigError, OutputError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_scenes_come_back(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    path = write_shapes(tmp_path / "new" / "set", 5, seed=4, size=96, progress=lambda done, total: steps.append((done, total)))
    assert path == tmp_path / "new" / "set" / "annotations.json"
    assert steps == [(done, 5) for done in range(1, 6)]
    data = read_dataset(path)
    assert data.notes == ()
    assert data.classes == SHAPES
    assert [image.file_name for image in data.images] == [f"00000{number}.png" for number in range(1, 6)]
    for index, image in enumerate(data.images):
        scene, instances = shapes_scene(index, seed=4, size=96), data.instances(image.id)
        with Image.open(data.picture_path(image)) as picture:
            np.testing.assert_array_equal(np.asarray(picture), scene.picture)
        np.testing.assert_array_equal(data.masks(image, instances), scene.masks)
        assert [instance.label for instance in instances] == scene.labels.tolist()
        for instance, mask in zip(instances, scene.masks, strict=True):
            rows, columns = np.nonzero(mask)
            left, top, width, height = instance.box
            assert (left, top, left + width, top + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert instance.area == mask.sum()
            assert not instance.crowd
    information = json.loads(path.read_text())["info"]
    assert len(information.pop("digest")) == 64
    assert information == {
        "description": "yolact-deploy make-shapes",
        "version": "1",
        "seed": 4,
        "size": 96,
        "count": 5,
    }


def test_a_longer_set_begins_with_the_shorter(tmp_path: Path) -> None:
    write_shapes(tmp_path / "a", 2, size=64)
    write_shapes(tmp_path / "b", 4, size=64)
    short, long = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert all(long[name] == data for name, data in short.items() if name.endswith(".png"))
    assert len(long) == 5


def test_an_own_set_is_replaced_whole(tmp_path: Path) -> None:
    write_shapes(tmp_path, 4, size=64)
    (tmp_path / "images" / "mine.txt").touch()
    write_shapes(tmp_path, 2, seed=1, size=64)
    assert set(contents(tmp_path)) == {"annotations.json", "images/000001.png", "images/000002.png", "images/mine.txt"}
    write_shapes(tmp_path / "fresh", 2, seed=1, size=64)
    fresh = contents(tmp_path / "fresh")
    assert {name: contents(tmp_path)[name] for name in fresh} == fresh


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"info": {"description": "COCO 2017", "count": 3}}', '{"info": null}', None])
def test_a_foreign_folder_needs_force(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "photo.jpg").write_bytes(b"photo")
    if text is not None:
        (tmp_path / "annotations.json").write_text(text)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="holds files that this command did not write"):
        write_shapes(tmp_path, 1, size=64)
    assert contents(tmp_path) == before
    write_shapes(tmp_path, 1, size=64, force=True)
    assert set(contents(tmp_path)) == {"annotations.json", "images/photo.jpg", "images/000001.png"}


def test_what_a_killed_run_left_does_not_make_a_folder_foreign(tmp_path: Path) -> None:
    (tmp_path / ".shapes-abc.part").mkdir()
    write_shapes(tmp_path, 1, size=64)
    assert (tmp_path / "annotations.json").exists()


def test_an_interrupted_run_leaves_what_was_there(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    for folder in (tmp_path / "new", tmp_path / "old"):
        if folder.name == "old":
            write_shapes(folder, 1, size=64)
        before = contents(folder)
        with pytest.raises(KeyboardInterrupt):
            write_shapes(folder, 3, seed=1, size=64, progress=interrupt)
        assert contents(folder) == before
        assert len(list(folder.iterdir())) == (2 if before else 0)


def test_a_run_interrupted_while_moving_names_no_missing_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shapes(tmp_path, 3, size=64)
    replace, moved = shapes_module.os.replace, []

    def stop(source: Path, target: Path) -> None:
        if target.suffix == ".png":
            moved.append(target)
            if len(moved) == 2:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(shapes_module.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path, 2, seed=1, size=64)
    monkeypatch.undo()
    assert json.loads((tmp_path / "annotations.json").read_text())["images"] == []
    write_shapes(tmp_path, 1, seed=1, size=64)
    assert set(contents(tmp_path)) == {"annotations.json", "images/000001.png"}


def test_errors_of_the_disk_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, message in (
        (tmp_path / "file", "is a file, a folder was wanted"),
        (tmp_path / "file" / "in", "could not be written: Not a dir"),
    ):
        with pytest.raises(OutputError, match=message):
            write_shapes(folder, 1, size=64)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").touch()
    with pytest.raises(OutputError, match="could not be written: File exists"):
        write_shapes(tmp_path / "set", 1, size=64, force=True)


@pytest.mark.parametrize(
    ("count", "seed", "size", "message"),
    [
        (0, 0, 64, "0 pictures were asked for"),
        (1_000_000, 0, 64, "1 to 999,999 are possible"),
        (1, -1, 64, "The seed is -1"),
        (1, 0, 63, "Pictures of 63 px were asked for, 64 to 4096 px are possible"),
        (1, 0, 4097, "Pictures of 4097 px"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, count: int, seed: int, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_shapes(tmp_path / "set", count, seed=seed, size=size)
    assert not (tmp_path / "set").exists()
