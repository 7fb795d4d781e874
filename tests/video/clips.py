"""Small videos whose frames carry their number in blocks that survive lossy coding, and a capture that fails where it is told to."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from yolact_deploy.video import CODECS, VideoSource

Pixels = NDArray[np.uint8]
_BITS, _SIDE = 10, 16


def numbered(number: int, width: int = 160, height: int = 120) -> Pixels:
    """uint8 RGB: a yellow ball that moves, and the number as a row of black and white blocks."""
    picture = np.full((height, width, 3), 40, np.uint8)
    cv2.circle(picture, (20 + number * 3 % max(width - 40, 1), height * 2 // 3), 18, (250, 220, 0), -1)
    for bit in range(_BITS):
        picture[:_SIDE, bit * _SIDE : (bit + 1) * _SIDE] = 255 * (number >> bit & 1)
    return picture


def number_of(picture: Pixels) -> int:
    blocks = (picture[4 : _SIDE - 4, bit * _SIDE + 4 : (bit + 1) * _SIDE - 4].mean() for bit in range(_BITS))
    return sum(int(mean > 128) << bit for bit, mean in enumerate(blocks))


def write_clip(path: Path, frames: int = 20, rate: float = 25.0, size: tuple[int, int] = (160, 120)) -> Path:
    """Frames 0 … `frames` - 1 by :func:`numbered`; the test is skipped where OpenCV here lacks the encoder."""
    codec = CODECS[path.suffix]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), rate, size)
    if not writer.isOpened():
        pytest.skip(f"OpenCV here has no {codec} encoder")
    for number in range(frames):
        writer.write(numbered(number, *size)[..., ::-1])
    writer.release()
    return path


def numbers_in(path: Path) -> list[int]:
    return [number_of(frame.picture) for frame in VideoSource(path)]


def turn_right(clip: Path) -> None:
    """Let an MP4's track header ask for a quarter turn, as phones do."""
    content = bytearray(clip.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2: the matrix in a header of version 0
    content[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 120 << 16, 0, 1 << 30)
    clip.write_bytes(content)


class FakeCapture:
    """Stands in for ``cv2.VideoCapture``: RGB frames, None where reading fails; properties as they are named; `times` in seconds."""

    def __init__(self, frames: list[Pixels | None], times: list[float] | None = None, opens: bool = True, **properties: float) -> None:
        self.frames, self.times, self.opens, self.at, self.released = frames, times, opens, -1, False
        self.values: dict[int, float] = {getattr(cv2, f"CAP_PROP_{name}"): value for name, value in properties.items()}

    def __call__(self, *_: Any) -> FakeCapture:
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return self.opens

    def set(self, which: int, value: float) -> bool:
        self.values[which] = value
        return True

    def get(self, which: int) -> float:
        if which == cv2.CAP_PROP_POS_MSEC:
            shown = sum(frame is not None for frame in self.frames[: self.at])
            return 1000 * self.times[shown] if self.times is not None else 1000 * self.at / (self.values.get(cv2.CAP_PROP_FPS) or 25)
        return self.values.get(which, 0.0)

    def read(self) -> tuple[bool, Pixels | None]:
        self.at += 1
        frame = self.frames[self.at] if self.at < len(self.frames) else None
        return frame is not None, None if frame is None else np.ascontiguousarray(frame[..., ::-1])

    def release(self) -> None:
        self.released = True
