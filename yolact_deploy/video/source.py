"""Reading videos and cameras with OpenCV: upright RGB frames in order, and one clear error for whatever ends them too early."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from yolact_deploy.errors import PictureError
from yolact_deploy.pictures import MAX_PIXELS, Picture

__all__ = ["ASSUMED_RATE", "VIDEO_SUFFIXES", "Frame", "VideoSource", "video_backend"]

VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
"""Lower-case suffixes of the files that are taken for videos."""
ASSUMED_RATE = 30.0
"""Frames a second, where the video or camera does not say."""
_RATES = (0.1, 1000.0)  # frames a second; what lies outside is a time base, or nothing
_CAMERAS = 100  # OpenCV reads hundreds as the number of a backend
_RETRIES = 3  # reads after a failed one, before it counts as the end
_UNEVEN = 0.1  # share of the steps between frames from which the rate is called variable
_MEND = "Copy or download it again, or convert it: ffmpeg -i IN -c:v libx264 OUT.mp4"


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video: its number from 0, and uint8 RGB [H, W, 3]."""

    number: int
    picture: Picture


class VideoSource:
    """A video file (a path) or a camera (its index), read once by iterating over it; rotation that the file asks for is applied.

    Attributes:
        name: the file's or camera's name, for messages.
        live: whether it is a camera.
        rate: frames a second.
        total: number of frames by the header, 0 where it is not known.
        notes: what there is to say about it, one sentence each; more may come while it is read.

    Raises :class:`PictureError` where it cannot be opened. Iterating raises it after the last frame where that was not the last one by
    the header, where frames in the middle could not be decoded, and where the size changes.
    """

    def __init__(self, place: Path | int) -> None:
        self.live = isinstance(place, int)
        self.name = f"camera {place}" if isinstance(place, int) else str(place)
        self.notes: list[str] = []
        self._capture = _opened(place, self.name)
        # As players do: the default of OpenCV differs between its backends.
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        told = self._capture.get(cv2.CAP_PROP_FPS)
        known = math.isfinite(told) and _RATES[0] <= told <= _RATES[1]
        self.rate = told if known else ASSUMED_RATE
        if not known:
            self.notes.append(f"{self.name} does not say its frame rate: {ASSUMED_RATE:g} a second are assumed.")
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.total = int(count) if not self.live and math.isfinite(count) and count > 0 else 0
        width, height = (int(self._capture.get(which)) for which in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > MAX_PIXELS:
            self.close()
            raise PictureError(f"{self.name} has {width} x {height} pixels, at most {MAX_PIXELS:,} are decoded.", "Make it smaller first.")

    def __iter__(self) -> Iterator[Frame]:
        clock, shape, frames, number, broken = _Clock(self.rate), None, 0, 0, 0
        while True:
            failed, picture = self._read()
            if picture is None:
                break
            broken, number = broken + failed, number + failed
            if shape not in (None, picture.shape):
                raise PictureError(
                    f"{self.name} changes its size at frame {number}: {_size(picture.shape)} after {_size(shape)} pixels.",
                    "Convert it to one size first.",
                )
            shape = picture.shape
            clock.tick(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
            yield Frame(number, picture)
            frames, number = frames + 1, number + 1
        self._judge(clock, frames, broken)

    def close(self) -> None:
        """Close the file or camera; a second call does nothing."""
        self._capture.release()

    def _read(self) -> tuple[int, Picture | None]:
        """How many reads failed, and the next frame after them; None at the end."""
        for failed in range(_RETRIES + 1):
            done, picture = self._capture.read()
            if done:
                return failed, np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
        return _RETRIES + 1, None

    def _judge(self, clock: _Clock, frames: int, broken: int) -> None:
        """After the last frame: note a variable rate, or raise for what is missing."""
        if self.live:
            raise PictureError(f"{self.name} gave no more frames after {frames}.", "Check its cable, and that no other program uses it.")
        if not frames:
            raise PictureError(f"{self.name} holds no frame that can be decoded.", _MEND)
        if note := clock.note(self.name, frames):
            self.notes.append(note)
        missing = self.total - frames
        # A container without an index tells its length in time: the number of frames is then a guess if they come unevenly.
        if missing > 1 and (not clock.uneven or clock.seconds + 2 / self.rate < 0.99 * self.total / self.rate):
            raise PictureError(
                f"{self.name} is cut off or damaged: its header says {self.total:,} frames, {frames:,} could be decoded.", _MEND
            )
        if broken:
            raise PictureError(f"{self.name} is damaged: {broken} of its frames could not be decoded.", _MEND)


class _Clock:
    """The times at which frames are to be shown: how long they last, and whether they come evenly."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._first = self._last = 0.0
        self._steps = self._odd = 0

    def tick(self, seconds: float) -> None:
        """The next frame is to be shown at that time."""
        if not self._steps:
            self._first = seconds
        elif abs((seconds - self._last) * self.rate - 1) > 0.25:
            self._odd += 1
        self._last = seconds
        self._steps += 1

    @property
    def seconds(self) -> float:
        """From the first frame to the last."""
        return self._last - self._first

    @property
    def uneven(self) -> bool:
        """Whether many frames come earlier or later than the rate says."""
        return self._odd > _UNEVEN * (self._steps - 1)

    def note(self, name: str, frames: int) -> str:
        """A sentence where the frames last otherwise than at a constant rate; else empty."""
        even = (frames - 1) / self.rate
        if not self.uneven or self.seconds <= 0 or abs(self.seconds - even) <= max(0.02 * even, 1 / self.rate):
            return ""
        return f"{name} has a variable frame rate: {self.seconds:.1f} s long, {even:.1f} s at the {self.rate:g} frames a second taken."


def video_backend() -> int:
    """OpenCV's FFmpeg where it was built with that, since the others take pictures for videos; else whatever it has."""
    return cv2.CAP_FFMPEG if cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG) else cv2.CAP_ANY


def _opened(place: Path | int, name: str) -> cv2.VideoCapture:
    if isinstance(place, int):
        capture = cv2.VideoCapture(place) if place < _CAMERAS else None
        if capture is None or not capture.isOpened():
            raise PictureError(f"{name} cannot be opened.", "Check its number (0 is the first), and that no other program uses it.")
        return capture
    try:
        size = place.stat().st_size if place.is_file() else None
    except OSError as error:
        raise PictureError(f"The video {name} cannot be read: {error.strerror}.", "Check the path and its permissions.") from None
    if size is None:
        raise PictureError(f"The video {name} {'is no regular file' if place.exists() else 'does not exist'}.", "Check the path.")
    if not size:
        raise PictureError(f"The video {name} is empty (0 bytes).", "Copy or download it again.")
    # Absolute, so that no part of a name is taken for a protocol.
    capture = cv2.VideoCapture(str(place.absolute()), video_backend())
    if not capture.isOpened():
        raise PictureError(
            f"{name} is no video that OpenCV can decode: it is cut off, has sound only or an unknown codec, or is another kind of file.",
            _MEND,
        )
    return capture


def _size(shape: tuple[int, ...] | None) -> str:
    return f"{shape[1]} x {shape[0]}" if shape else "no"
