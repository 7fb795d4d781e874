"""Masks drawn over frames on the GPU, from packed bits to tinted pixels; the kernel is in ``kernels/draw.cuh``."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import ConfigError, PictureError

from .driver import Driver, Module, Stream

__all__ = ["DeviceFrame", "DeviceMasks", "Drawing", "MaskPainter"]

_THREADS = 256  # DRAW_THREADS of the kernel
_MOST_WIDTH = 65_535 * _THREADS
_ORDERS = ("rgb", "bgr", "rgba", "bgra")


class Drawing(ctypes.Structure):
    """Field by field the kernel's one argument."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("masks", "count", "labels", "colours", "frame")),
        *((name, ctypes.c_uint32) for name in ("mask_words", "pitch")),
        *((name, ctypes.c_int32) for name in ("width", "height", "detections", "channels", "swapped", "colour_count")),
        *((name, ctypes.c_float) for name in ("keep", "alpha")),
    )


@dataclass(frozen=True)
class DeviceFrame:
    """Pixels in device memory that are drawn on: uint8 [height, width, 3 or 4].

    Attributes:
        pointer: device address of the first row; no alignment is needed.
        width, height: in pixels.
        pitch: bytes from a row to the next, at least those of a row.
        order: ``rgb``, ``bgr``, ``rgba`` or ``bgra``; alpha is left as it is.

    Raises :class:`PictureError` for what contradicts itself.
    """

    pointer: int
    width: int
    height: int
    pitch: int
    order: Literal["rgb", "bgr", "rgba", "bgra"] = "rgb"

    def __post_init__(self) -> None:
        if self.order not in _ORDERS:
            raise PictureError(f"The order of a frame's channels is {self.order!r}, one of {', '.join(_ORDERS)} was wanted.", "Name one.")
        if not (1 <= self.width <= _MOST_WIDTH and 1 <= self.height < 2**31):
            raise PictureError(
                f"A frame has {self.width} x {self.height} pixels, from 1 x 1 up to {_MOST_WIDTH:,} x {2**31 - 1:,} were wanted.",
                "Give its width and height in pixels.",
            )
        row = self.width * len(self.order)
        if not row <= self.pitch < 2**32:
            found = f"The pitch of a frame is {self.pitch} bytes, from {row} (a row's) up to {2**32 - 1:,} were wanted."
            raise PictureError(found, "Give the bytes from the start of a row to the start of the next.")
        if not 0 < self.pointer < 2**64:
            raise PictureError(f"The device address of a frame is {self.pointer:#x}.", "Give the address of its first byte.")


@dataclass(frozen=True)
class DeviceMasks:
    """One picture's detections in device memory, best first, as post-processing leaves them (``kernels/problem.cuh``).

    Attributes:
        bits: uint32 [slots, words]; a mask is rows of ceil(width / 32) words, pixel x in bit x % 32 of word x / 32.
        words: of one mask.
        count: uint32 [1], how many detections there are.
        labels: int32 [slots], not negative.
        slots: detections that there is room for.
    """

    bits: int
    words: int
    count: int
    labels: int
    slots: int


class MaskPainter:
    """Draws masks over frames, a frame at a time.

    Args:
        driver: the GPU.
        module: all kernels.
        colours: uint8 RGB [C, 3], C >= 1, of the labels from 0 on, as of :func:`yolact_deploy.drawing.class_colour`; larger labels start
            over.

    Raises :class:`ConfigError` for another table.
    """

    def __init__(self, driver: Driver, module: Module, colours: NDArray[np.uint8]) -> None:
        if colours.dtype != np.uint8 or colours.ndim != 2 or colours.shape[1:] != (3,) or not len(colours):
            raise ConfigError(
                f"The colours are {colours.dtype} {list(colours.shape)}, uint8 [C, 3] with C >= 1 was wanted.", "Give one for each class."
            )
        self._driver, self._kernel, self._count = driver, module.kernel("draw_masks"), len(colours)
        self._colours = driver.allocate(colours.nbytes)
        with driver.create_stream() as stream:
            driver.copy_to_device(self._colours.pointer, np.ascontiguousarray(colours), stream)
            stream.synchronize()

    def enqueue(self, frame: DeviceFrame, masks: DeviceMasks, stream: Stream, *, alpha: float = 0.45) -> None:
        """Queue the tinting of `frame`, in place, with `masks` of its size, the worst first, so that the best is on top.

        Where a mask is set, each channel becomes ``frame * (1 - alpha) + colour * alpha`` of its class, rounded to the nearest uint8 after
        each detection: what :func:`yolact_deploy.drawing.draw_detections` makes of a mask's inside (``cv2.addWeighted``). `alpha` is
        0 … 1. Raises :class:`ConfigError` for another one, for masks smaller than the frame, and for addresses that are none.
        """
        if not 0 <= alpha <= 1:
            raise ConfigError(f"alpha is {alpha}, 0 … 1 was wanted.", "0 leaves the frame as it is, 1 hides it.")
        words = -(-frame.width // 32) * frame.height
        if not words <= masks.words < 2**32 or not 1 <= masks.slots < 2**31:
            raise ConfigError(
                f"{masks.slots} masks of {masks.words} words were given, {words} words hold one of {frame.width} x {frame.height} pixels.",
                "Give the masks of this frame.",
            )
        for name in ("bits", "count", "labels"):
            if getattr(masks, name) < 1 or getattr(masks, name) % 4:
                raise ConfigError(
                    f"The device address of {name} is {getattr(masks, name):#x}, a multiple of 4 was wanted.", "Give its start."
                )
        argument = Drawing(
            masks=masks.bits,
            count=masks.count,
            labels=masks.labels,
            colours=self._colours.pointer,
            frame=frame.pointer,
            mask_words=masks.words,
            pitch=frame.pitch,
            width=frame.width,
            height=frame.height,
            detections=masks.slots,
            channels=len(frame.order),
            swapped=int(frame.order.startswith("bgr")),
            colour_count=self._count,
            keep=1 - alpha,
            alpha=alpha,
        )
        grid = frame.height, -(-frame.width // _THREADS), 1
        self._driver.launch(self._kernel, grid, _THREADS, bytes(argument), stream)

    def close(self) -> None:
        """Give the colours' memory back; nothing may run on it any more."""
        self._colours.close()
