"""Videos written: every frame, its size and rate; marked as ours; and nothing that passes for whole where it is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from tests.video.clips import number_of, numbered, numbers_in, write_clip
from yolact_deploy.errors import OutputError
from yolact_deploy.video import CODECS, VideoSink, VideoSource, is_video_overlay


def written(path: Path, frames: int = 12, rate: float = 25.0, size: tuple[int, int] = (160, 120)) -> VideoSink:
    write_clip(path.with_name(f"probe{path.suffix}"), 1).unlink()  # skips where the encoder is not there
    with VideoSink(path, path, rate) as sink:
        for number in range(frames):
            sink.write(numbered(number, *size))
        sink.finish()
    return sink


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_written_read_and_known_as_ours(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    sink = written(path, rate=30000 / 1001)
    assert (sink.frames, sink.size) == (12, (160, 120))
    source = VideoSource(path)
    assert (source.total, source.rate) == (12, pytest.approx(29.97, abs=0.002))
    frames = list(source)
    assert [number_of(frame.picture) for frame in frames] == list(range(12))
    assert np.abs(frames[5].picture.astype(int) - numbered(5)).mean() < 6
    assert is_video_overlay(path)
    assert path.read_bytes().endswith(b"drawn by yolact-deploy")


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_one_frame_is_a_video(tmp_path: Path, suffix: str) -> None:
    written(tmp_path / f"a{suffix}", frames=1)
    assert numbers_in(tmp_path / f"a{suffix}") == [0]


def test_an_odd_size_is_padded_by_its_edge(tmp_path: Path) -> None:
    assert written(tmp_path / "a.mp4", size=(171, 121)).size == (172, 122)
    frames = [frame.picture for frame in VideoSource(tmp_path / "a.mp4")]
    assert frames[3].shape == (122, 172, 3)
    assert number_of(frames[3]) == 3
    inside = (np.abs(frames[3][y : y + 121, x : x + 171].astype(int) - numbered(3, 171, 121)).mean() for y, x in ((0, 0), (1, 0), (0, 1)))
    assert next(inside) < min(inside)
    np.testing.assert_allclose(frames[3][-1].mean(), 40, atol=6)
    np.testing.assert_allclose(frames[3][:, -1].mean(), 40, atol=6)


def test_what_is_not_ours(tmp_path: Path) -> None:
    assert not is_video_overlay(write_clip(tmp_path / "a.mp4"))
    assert not is_video_overlay(tmp_path / "missing.mp4")
    (tmp_path / "folder.mp4").mkdir()
    assert not is_video_overlay(tmp_path / "folder.mp4")
    written(tmp_path / "b.mp4")
    for name in ("b.mkv", "b.webm"):
        (tmp_path / name).write_bytes((tmp_path / "b.mp4").read_bytes())
        assert not is_video_overlay(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.mp4")
    assert not is_video_overlay(tmp_path / "pipe.mp4")
    (tmp_path / "short.mp4").write_bytes(b"drawn")
    assert not is_video_overlay(tmp_path / "short.mp4")


def test_a_codec_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, ".mp4", "ZZZZ")
    with VideoSink(tmp_path / "part.mp4", tmp_path / "a.mp4", 25) as sink, pytest.raises(OutputError) as caught:
        sink.write(numbered(0))
    wanted = "cannot be written: OpenCV here has no ZZZZ encoder for 160 x 120 pixels at 25 frames a second. Name the video"
    assert str(caught.value).startswith(f"{tmp_path / 'a.mp4'} {wanted}")
    assert ".avi" in caught.value.mend
    assert ".mp4" not in caught.value.mend


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "probe.mp4", 1)
    free = {"bytes": 1 << 30}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free["bytes"] if folder == tmp_path else 0))
    with VideoSink(tmp_path / "part.mp4", tmp_path / "a.mp4", 25) as sink:
        sink.write(numbered(0))
        free["bytes"] = 1 << 19
        for number in range(1, 50):
            sink.write(numbered(number))
        with pytest.raises(OutputError, match=r"a\.mp4 could not be written: the disk is full\. Free some space"):
            sink.write(numbered(50))


@pytest.mark.parametrize("rate", [0.1, 23.976, 59.94, 240.0, 1000.0])
def test_frame_rates(tmp_path: Path, rate: float) -> None:
    for suffix in CODECS:
        written(tmp_path / f"a{suffix}", 5, rate)
        source = VideoSource(tmp_path / f"a{suffix}")
        assert (source.total, source.rate) == (5, pytest.approx(rate, rel=1e-3))


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_file_that_was_not_written_whole(tmp_path: Path, keep: float) -> None:
    """As on a full disk, of which OpenCV says nothing."""
    write_clip(tmp_path / "probe.mkv", 1)
    sink = VideoSink(tmp_path / "part.mp4", tmp_path / "a.mp4", 25)
    for number in range(20):
        sink.write(numbered(number))
    sink.close()
    content = sink.part.read_bytes()
    sink.part.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(OutputError, match=r"a\.mp4 could not be written whole: it cannot be read back\. Free some space"):
        sink.finish()


def test_frames_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "probe.mp4", 1)
    with VideoSink(tmp_path / "a.mp4", tmp_path / "a.mp4", 25) as sink:
        for number in range(20):
            sink.write(numbered(number))
        sink.close()
        write_clip(tmp_path / "a.mp4", 18)
        with pytest.raises(OutputError, match=r"it holds 18 of 20 frames"):
            sink.finish()
        write_clip(tmp_path / "a.mp4", 19)
        sink.finish()


def test_a_writer_is_closed_when_the_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Writer:
        def __init__(self, *arguments: Any) -> None:
            self.size = arguments[-1]

        def isOpened(self) -> bool:  # noqa: N802
            return True

        def write(self, picture: Any) -> None:
            assert (picture.shape[1], picture.shape[0]) == self.size

        def release(self) -> None:
            closed.append("closed")

        fourcc = staticmethod(lambda *_: 0)

    monkeypatch.setattr(cv2, "VideoWriter", Writer)
    with VideoSink(tmp_path / "a.mp4", tmp_path / "a.mp4", 25) as sink:
        sink.write(numbered(0, 161, 121))
        assert not closed
    assert closed == ["closed"]
