"""Writing a video frame by frame with OpenCV, and telling afterwards whether it was written whole, and by whom."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from yolact_deploy.errors import OutputError
from yolact_deploy.pictures import Picture
from yolact_deploy.video.source import video_backend

__all__ = ["CODECS", "VideoSink", "is_video_overlay"]

CODECS = {".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v", ".mp4": "mp4v"}
"""FourCC by the suffix of the file; both encoders are in OpenCV's wheels (H.264 is not)."""
_MEND = "Free some space or choose another folder; nothing was changed."
# OpenCV does not tell that a disk is full, and a long video would go on for nothing.
_LOOK_EVERY, _ROOM = 50, 1 << 20  # frames, bytes
_TEXT = b"drawn by yolact-deploy"
# What each container has for bytes that players skip; the file ends with it.
_MARKS = {
    ".avi": b"JUNK" + struct.pack("<I", len(_TEXT)) + _TEXT,
    ".mkv": bytes([0xEC, 0x80 | len(_TEXT)]) + _TEXT,
    ".mov": struct.pack(">I4s", 8 + len(_TEXT), b"free") + _TEXT,
    ".mp4": struct.pack(">I4s", 8 + len(_TEXT), b"free") + _TEXT,
}


class VideoSink:
    """A video that is written to `part` (a temporary file with the suffix of `target`, which messages name), `rate` frames a second.

    The first frame decides the size. OpenCV encodes even sizes only: an odd one is padded by a copy of its last row or column.
    Used in a ``with`` block or followed by :meth:`close`; only :meth:`finish` proves the file whole.
    """

    def __init__(self, part: Path, target: Path, rate: float) -> None:
        self.part, self.target, self.rate = part, target, rate
        self.frames = 0
        self.size = (0, 0)  # width, height of what is written
        self._writer: cv2.VideoWriter | None = None

    def write(self, picture: Picture) -> None:
        """Append `picture`, uint8 RGB [H, W, 3]. Raises :class:`OutputError` where the codec is not there or the disk is full."""
        height, width = picture.shape[:2]
        if height % 2 or width % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        if self._writer is None:
            self._writer = self._opened(picture.shape[1], picture.shape[0])
        if self.frames % _LOOK_EVERY == 0 and shutil.disk_usage(self.part.parent).free < _ROOM:
            raise OutputError(f"{self.target} could not be written: the disk is full.", _MEND)
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def finish(self) -> None:
        """Close the file, read back what it says of itself, and mark it as ours.

        Raises :class:`OutputError` where it does not hold all frames: OpenCV does not tell that a disk is full.
        """
        self.close()
        found = _frames(self.part)
        if found is None or abs(found - self.frames) > max(1, self.frames // 100):
            held = "cannot be read back" if found is None else f"holds {found:,} of {self.frames:,} frames"
            raise OutputError(f"{self.target} could not be written whole: it {held}.", _MEND)
        with open(self.part, "ab") as handle:
            handle.write(_MARKS[self.target.suffix.lower()])

    def close(self) -> None:
        """Close the file as it is; a second call does nothing."""
        if self._writer is not None:
            self._writer.release()

    def __enter__(self) -> VideoSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _opened(self, width: int, height: int) -> cv2.VideoWriter:
        codec = CODECS[self.target.suffix.lower()]
        writer = cv2.VideoWriter(str(self.part.absolute()), video_backend(), cv2.VideoWriter.fourcc(*codec), self.rate, (width, height))
        if not writer.isOpened():
            others = [suffix for suffix, other in CODECS.items() if other != codec]
            raise OutputError(
                f"{self.target} cannot be written: OpenCV here has no {codec} encoder for {width} x {height} pixels "
                f"at {self.rate:g} frames a second.",
                f"Name the video {' or '.join(others)}, or install opencv-python-headless.",
            )
        self.size = (width, height)
        return writer


def is_video_overlay(path: Path) -> bool:
    """Whether the file is a video that :class:`VideoSink` wrote: it ends with the mark of its container."""
    mark = _MARKS.get(path.suffix.lower())
    if mark is None or not path.is_file():
        return False
    try:
        with open(path, "rb") as handle:
            handle.seek(max(path.stat().st_size - len(mark), 0))
            return handle.read() == mark
    except OSError:
        return False


def _frames(path: Path) -> int | None:
    """The number of frames that the file's own header says; None where it is no video."""
    capture = cv2.VideoCapture(str(path.absolute()), video_backend())
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else None
    finally:
        capture.release()
