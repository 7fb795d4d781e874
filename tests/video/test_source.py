"""Frames of videos: all of them, in order, upright; and an error of one line for each way in which a video can be wrong."""

from __future__ import annotations

import os
import wave
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.video.clips import FakeCapture, number_of, numbered, numbers_in, turn_right, write_clip
from yolact_deploy.errors import PictureError
from yolact_deploy.video import CODECS, Frame, VideoSource
from yolact_deploy.video.source import MAX_PIXELS


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Opens a source whose capture is a fake one; frames that are numbers are drawn."""

    def opened(frames: list[Any], *, camera: bool = False, **options: Any) -> VideoSource:
        drawn = [numbered(frame) if isinstance(frame, int) else frame for frame in frames]
        monkeypatch.setattr(cv2, "VideoCapture", FakeCapture(drawn, **{"FPS": 25, **options}))
        (tmp_path / "clip.mp4").write_bytes(b"x")
        return VideoSource(0 if camera else tmp_path / "clip.mp4")

    return opened


def read(source: VideoSource) -> tuple[list[Frame], str]:
    """The frames, and the error after them."""
    frames: list[Frame] = []
    with pytest.raises(PictureError) as caught:
        frames.extend(source)
    assert "\n" not in str(caught.value)
    return frames, str(caught.value)


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_every_frame_once_and_in_order(tmp_path: Path, suffix: str) -> None:
    source = VideoSource(write_clip(tmp_path / f"clip{suffix}", 40, 29.97))
    frames = list(source)
    assert [frame.number for frame in frames] == [number_of(frame.picture) for frame in frames] == list(range(40))
    assert all(frame.picture.shape == (120, 160, 3) and frame.picture.dtype == np.uint8 for frame in frames)
    assert (source.total, source.live, source.notes) == (40, False, [])
    assert source.rate == pytest.approx(29.97, abs=0.001)
    ball = frames[0].picture[80, 20].tolist()
    assert ball[0] > 180
    assert ball[2] < 90  # RGB: yellow, not blue
    assert len({id(frame.picture) for frame in frames}) == 40


def test_rotation_is_applied(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 6)
    turn_right(clip)
    pictures = [frame.picture for frame in VideoSource(clip)]
    assert [picture.shape for picture in pictures] == [(160, 120, 3)] * 6
    assert [number_of(np.rot90(picture)) for picture in pictures] == list(range(6))


def test_rotation_is_asked_for(fake: Any) -> None:
    source = fake([0, 1])
    assert source._capture.values[cv2.CAP_PROP_ORIENTATION_AUTO] == 1


def test_names_that_look_like_protocols_or_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http:clip.mp4", "-i.mp4", "%03d.mp4", "ü ber.mp4"):
        os.replace(write_clip(tmp_path / "clip.mp4", 2), name)
        assert numbers_in(Path(name)) == [0, 1]


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_a_video_that_ends_early(tmp_path: Path, suffix: str) -> None:
    clip = write_clip(tmp_path / f"clip{suffix}", 60)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    frames, error = read(VideoSource(clip))
    assert 15 < len(frames) < 40
    whole = frames[:-1]  # older decoders make up what lacks of the last one
    assert [number_of(frame.picture) for frame in whole] == list(range(len(whole)))
    assert f"clip{suffix} is cut off or damaged: its header says 60 frames, {len(frames)} could be decoded. Copy or" in error


def sound(path: Path) -> None:
    with wave.open(str(path), "wb") as handle:
        handle.setnchannels(1)
        handle.setsampwidth(2)
        handle.setframerate(8000)
        handle.writeframes(bytes(16_000))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("missing", "clip.mp4 does not exist. Check the path."),
        ("folder", "clip.mp4 is no regular file."),
        ("empty", "clip.mp4 is empty (0 bytes)."),
        ("text", "clip.mp4 is no video that OpenCV can decode: it is cut off, has sound only or an unknown codec, or is another kind"),
        ("sound", "has sound only"),
        ("picture", "clip.mp4 holds no frame that can be decoded."),
        ("cut", "it is cut off"),
        ("long name", "cannot be read: File name too long."),
    ],
)
def test_files_that_are_no_videos(tmp_path: Path, kind: str, wanted: str) -> None:
    clip = tmp_path / "clip.mp4"
    if kind == "folder":
        clip.mkdir()
    elif kind == "empty":
        clip.touch()
    elif kind == "text":
        clip.write_text("hello")
    elif kind == "sound":
        sound(clip)
    elif kind == "picture":
        cv2.imwrite(str(tmp_path / "clip.bmp"), numbered(1))
        clip.write_bytes((tmp_path / "clip.bmp").read_bytes()[:-5])
    elif kind == "cut":
        content = write_clip(clip, 40).read_bytes()
        clip.write_bytes(content[: len(content) // 2])
    elif kind == "long name":
        clip = tmp_path / f"{'n' * 300}.mp4"
    with pytest.raises(PictureError) as caught:
        list(VideoSource(clip))
    assert wanted in str(caught.value)


@pytest.mark.parametrize("number", [77, 100, 10**12])  # from 100 on OpenCV takes it for a backend's number
def test_a_camera_that_is_not_there(number: int) -> None:
    with pytest.raises(PictureError, match=rf"^camera {number} cannot be opened\. Check its number"):
        VideoSource(number)


def test_a_number_that_names_a_backend_is_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture([numbered(0)]))
    assert VideoSource(99).live
    with pytest.raises(PictureError, match="camera 100 cannot be opened"):
        VideoSource(100)


def test_a_camera(fake: Any) -> None:
    source = fake([0, 1, 2], camera=True, FPS=0, FRAME_COUNT=7)
    assert (source.live, source.total, source.rate, source.name) == (True, 0, 30.0, "camera 0")
    assert source.notes == ["camera 0 does not say its frame rate: 30 a second are assumed."]
    frames, error = read(source)
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert error.startswith("camera 0 gave no more frames after 3.")


@pytest.mark.parametrize("told", [0.0, -1.0, float("nan"), float("inf"), 90_000.0, 0.01])
def test_a_rate_that_cannot_be_is_replaced_and_told(fake: Any, told: float) -> None:
    source = fake([0, 1], FPS=told, FRAME_COUNT=2)
    assert source.rate == 30.0
    assert "does not say its frame rate: 30 a second are assumed." in source.notes[0]


@pytest.mark.parametrize("told", [0.0, -5.0, float("nan")])
def test_an_unknown_number_of_frames(fake: Any, told: float) -> None:
    source = fake([0, 1], FRAME_COUNT=told)
    assert source.total == 0
    assert [frame.number for frame in source] == [0, 1]


def test_one_frame_less_than_the_header_says_is_rounding(fake: Any) -> None:
    assert len(list(fake(list(range(9)), FRAME_COUNT=10))) == 9
    frames, error = read(fake(list(range(8)), FRAME_COUNT=10))
    assert len(frames) == 8
    assert "its header says 10 frames, 8 could be decoded" in error


@pytest.mark.parametrize("failures", [1, 3])
def test_broken_frames_in_the_middle_are_passed_over(fake: Any, failures: int) -> None:
    frames, error = read(fake([0, 1, *[None] * failures, 2 + failures, 3 + failures], FRAME_COUNT=5))
    assert [frame.number for frame in frames] == [number_of(frame.picture) for frame in frames] == [0, 1, 2 + failures, 3 + failures]
    assert f"is damaged: {failures} of its frames could not be decoded" in error


def test_more_broken_frames_end_it(fake: Any) -> None:
    frames, error = read(fake([0, 1, *[None] * 4, 6, 7], FRAME_COUNT=8))
    assert len(frames) == 2
    assert "its header says 8 frames, 2 could be decoded" in error


def test_no_frame_at_all(fake: Any) -> None:
    frames, error = read(fake([], FRAME_COUNT=8))
    assert frames == []
    assert "clip.mp4 holds no frame that can be decoded." in error


def test_a_size_that_changes(fake: Any) -> None:
    frames, error = read(fake([0, 1, numbered(2, 200, 100)], FRAME_COUNT=3))
    assert len(frames) == 2
    assert "clip.mp4 changes its size at frame 2: 200 x 100 after 160 x 120 pixels." in error


@pytest.mark.parametrize("start", [0.0, 5.0])
def test_a_variable_rate_is_told(fake: Any, start: float) -> None:
    source = fake(list(range(10)), times=[start + number * 0.1 for number in range(10)], FRAME_COUNT=10)
    assert len(list(source)) == 10
    (note,) = source.notes
    assert note.endswith("clip.mp4 has a variable frame rate: 0.9 s long, 0.4 s at the 25 frames a second taken.")


def test_a_rate_that_varies_now_and_then_is_told(fake: Any) -> None:
    source = fake(list(range(40)), times=[(number + number // 4) / 25 for number in range(40)], FRAME_COUNT=40)
    assert len(list(source)) == 40
    assert source.notes[0].endswith("has a variable frame rate: 1.9 s long, 1.6 s at the 25 frames a second taken.")


def test_jitter_and_times_that_are_not_known_are_not_told(fake: Any) -> None:
    for times in ([number / 25 + 0.02 * (number % 2) for number in range(10)], [0.0] * 10):
        source = fake(list(range(10)), times=times, FRAME_COUNT=10)
        assert len(list(source)) == 10
        assert source.notes == []


def test_a_number_of_frames_guessed_from_the_length_is_no_fault(fake: Any) -> None:
    """25 frames a second by the header, 10 in fact: the header's number of frames is the length times 25."""
    times = [number * 0.1 for number in range(40)]
    source = fake(list(range(40)), times=times, FRAME_COUNT=100)
    assert len(list(source)) == 40
    frames, error = read(fake(list(range(20)), times=times, FRAME_COUNT=100))
    assert len(frames) == 20
    assert "is cut off or damaged" in error


def test_a_gap_in_an_even_video_is_a_fault(fake: Any) -> None:
    times = [number / 25 + 0.008 * (number % 2) for number in (*range(20), *range(30, 50))]
    source = fake(list(range(40)), times=times, FRAME_COUNT=50)
    frames, error = read(source)
    assert len(frames) == 40
    assert "its header says 50 frames, 40 could be decoded" in error
    assert source.notes == []


def test_too_many_pixels(fake: Any) -> None:
    with pytest.raises(PictureError, match=r"has 20000 x 20000 pixels, at most 200,000,000 are decoded\. Make it smaller"):
        fake([], FRAME_WIDTH=20_000, FRAME_HEIGHT=20_000)
    assert cv2.VideoCapture.released
    assert fake([0], FRAME_WIDTH=20_000, FRAME_HEIGHT=MAX_PIXELS // 20_000).total == 0


def test_close_gives_the_file_back(fake: Any) -> None:
    source = fake([0])
    assert not source._capture.released
    source.close()
    assert source._capture.released
