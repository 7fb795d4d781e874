"""What one call of GPU post-processing finds, on the device and on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yolact_deploy.classes import ClassList
from yolact_deploy.detections import Detections
from yolact_deploy.errors import ConfigError, DeviceError

from .arrays import DeviceView
from .draw import DeviceMasks
from .driver import Stream

if TYPE_CHECKING:
    from .heads import Heads
    from .postprocessor import Postprocessor

__all__ = ["Found"]


class Found:
    """What one call of a :class:`Postprocessor` finds; its next call overwrites it.

    On the device, as arrays with ``__cuda_array_interface__``; entries from ``counts[b]`` on are undefined. They are valid for work on the
    stream of the call. CuPy and Numba make their own stream wait for it; torch does not: give the call torch's stream, or call
    :meth:`synchronize` before ``torch.as_tensor(found.boxes, device="cuda")``.

    Attributes:
        counts: uint32 [B], detections of each picture.
        boxes: float32 [B, D, 4], x1, y1, x2, y2 relative to the picture, as they were given.
        scores, mask_scores: float32 [B, D].
        labels: int32 [B, D], 0-based without background.
        priors: int32 [B, D], the prior that each comes from.
        bits: uint32 [B, D, words]; each mask begins with its rows of ceil(width / 32) words, pixel x in bit x % 32 of word x // 32.
    """

    def __init__(self, owner: Postprocessor, heads: Heads, stream: Stream, made: set[str]) -> None:
        self._owner, self._heads, self._stream, self._made = owner, heads, stream, made
        self._run = owner.runs

    def _view(self, name: str) -> DeviceView:
        self._current()
        return self._owner.view(name, self._heads.batch, self._stream)

    def _current(self) -> None:
        if self._owner.runs != self._run:
            raise DeviceError("These detections were overwritten by a later call.", "Read them before, or use a second Postprocessor.")

    @property
    def counts(self) -> DeviceView:
        return self._view("counts")

    @property
    def boxes(self) -> DeviceView:
        return self._view("found_boxes")

    @property
    def scores(self) -> DeviceView:
        return self._view("found_scores")

    @property
    def mask_scores(self) -> DeviceView:
        return self._view("mask_scores")

    @property
    def labels(self) -> DeviceView:
        return self._view("labels")

    @property
    def priors(self) -> DeviceView:
        return self._view("priors")

    @property
    def bits(self) -> DeviceView:
        self._want("bits")
        return self._view("bits")

    def masks(self, picture: int) -> DeviceMasks:
        """One picture's bit-packed masks and labels on the device, as :class:`~yolact_deploy.engines.cuda.draw.MaskPainter` draws them."""
        self._want("bits")
        self._current()
        return self._owner.masks(picture)

    def _want(self, what: str) -> None:
        if what not in self._made:
            raise ConfigError(f"The call was told to make no {what}.", f"Call with {what}=True.")

    def synchronize(self) -> None:
        """Wait until everything is there."""
        self._current()
        self._owner.wait()

    def detections(self, classes: ClassList) -> list[Detections]:
        """Wait, and return the B pictures' :class:`Detections`; `classes` names the labels."""
        self._want("rle")
        self.synchronize()
        return self._owner.detections(self._heads.batch, classes)
