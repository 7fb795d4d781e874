"""Saved overlays: their format, their mark, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from yolact_deploy.data import sample_picture
from yolact_deploy.drawing import is_overlay, save_picture
from yolact_deploy.errors import OutputError, PictureError
from yolact_deploy.pictures import read_picture


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.JPEG"])
def test_save_picture(tmp_path: Path, name: str) -> None:
    picture = sample_picture(60, 40)
    save_picture(tmp_path / "new" / name, picture)
    tolerance = 0 if "png" in name.lower() else 30
    assert np.abs(read_picture(tmp_path / "new" / name).astype(int) - picture).max() <= tolerance
    with Image.open(tmp_path / "new" / name) as opened:
        assert opened.format == ("PNG" if tolerance == 0 else "JPEG")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_overlays_are_known_again(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        save_picture(tmp_path / name, sample_picture(60, 40))
        assert is_overlay(tmp_path / name)
        Image.fromarray(sample_picture(60, 40)).save(tmp_path / name)
        assert not is_overlay(tmp_path / name)
    (tmp_path / "text.png").write_text("drawn by yolact-deploy")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    assert not any(is_overlay(tmp_path / name) for name in ("text.png", "cut.png", "missing.png", "."))


def test_large_overlays_are_known_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for name in ("a.png", "a.jpg"):
        save_picture(tmp_path / name, sample_picture(60, 40))
        assert is_overlay(tmp_path / name)


def test_save_picture_refuses(tmp_path: Path) -> None:
    picture = sample_picture(60, 40)
    for name in ("a.gif", "a", "a.png.txt"):
        with pytest.raises(OutputError, match=r"one of \.jpeg, \.jpg, \.png was wanted"):
            save_picture(tmp_path / name, picture)
    with pytest.raises(OutputError, match=r"70000 x 1 pixels.*\.png"):
        save_picture(tmp_path / "a.jpg", np.zeros((1, 70000, 3), np.uint8))
    with pytest.raises(PictureError):
        save_picture(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    assert not list(tmp_path.iterdir())


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_picture(tmp_path / "a.png", sample_picture(6, 4))

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OutputError, match="No space left"):
        save_picture(tmp_path / "a.png", sample_picture(9, 9))
    assert read_picture(tmp_path / "a.png").shape == (4, 6, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
