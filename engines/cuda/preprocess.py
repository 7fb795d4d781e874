"""Pictures to the network's input on the GPU, from host arrays or from pictures that are there already, NV12 of a decoder included.

The kernels are in ``kernels/preprocess.cuh``; RGB and BGR give, bit for bit, what :func:`yolact_deploy.preprocess.prepare` computes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import ConfigError, PictureError
from yolact_deploy.manifest import InputSpec
from yolact_deploy.pictures import Picture, require_picture

from .driver import DeviceBuffer, Driver, Module, PinnedArray, Stream

__all__ = ["DevicePicture", "DevicePreprocessor", "PictureFormat", "Preprocess", "SourcePicture", "picture_size"]

PictureFormat: TypeAlias = Literal["rgb", "bgr", "nv12-bt601", "nv12-bt709"]
"""How the pixels lie; NV12 is of limited range (luma 16 … 235)."""

_FORMATS: tuple[PictureFormat, ...] = ("rgb", "bgr", "nv12-bt601", "nv12-bt709")  # in the order of PictureFormat in the kernels
# The constants of the same names in kernels/blocks.cuh.
_PREPROCESS_WIDTH, _PREPROCESS_HEIGHT = 32, 8
_THREADS = _PREPROCESS_WIDTH * _PREPROCESS_HEIGHT
_ALIGNMENT = 256  # of a picture in the staging memory, so that two never share a sector
_GRAIN = 1 << 20  # staging memory is asked for in multiples of this: pictures of nearly one size then share it
_MOST_PIXELS = 2**31 - 1  # the kernels count them in 32 bits
_MOST_PITCH = 2**32 - 1
_MOST_BLOCKS = 65_535  # of a grid in y and z


class SourcePicture(ctypes.Structure):
    """Field by field the structure of the kernels."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("data", "chroma")),
        *((name, ctypes.c_uint32) for name in ("pitch", "chroma_pitch")),
        *((name, ctypes.c_int32) for name in ("width", "height", "format", "reserved")),
    )


class Preprocess(ctypes.Structure):
    """Field by field the kernels' one argument."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("pictures", "target")),
        *((name, ctypes.c_int32) for name in ("size", "swapped")),
        *((name, ctypes.c_float * 3) for name in ("mean", "std")),
    )


@dataclass(frozen=True)
class DevicePicture:
    """A uint8 picture in device memory, which must stay as it is until the stream is past its use.

    Attributes:
        pointer: device address of the first row: [height, width, 3], or NV12's luma [height, width]; no alignment is needed.
        width, height: in pixels, odd ones included.
        pitch: bytes from a row to the next, at least those of a row.
        format: how the pixels lie.
        chroma: NV12: device address of the pairs of Cb and Cr, [ceil(height / 2), ceil(width / 2), 2]; otherwise 0.
        chroma_pitch: NV12: bytes from a row of pairs to the next; otherwise 0.

    Raises :class:`PictureError` for what contradicts itself.
    """

    pointer: int
    width: int
    height: int
    pitch: int
    format: PictureFormat = "rgb"
    chroma: int = 0
    chroma_pitch: int = 0

    def __post_init__(self) -> None:
        if self.format not in _FORMATS:
            raise PictureError(
                f"The format of a picture is {self.format!r}, one of {', '.join(_FORMATS)} was wanted.", "Name one of these."
            )
        if min(self.width, self.height) < 1 or self.width * self.height > _MOST_PIXELS:
            raise PictureError(
                f"A picture has {self.width} x {self.height} pixels, from 1 x 1 up to {_MOST_PIXELS:,} in all were wanted.",
                "Give its width and height in pixels.",
            )
        planar = self.format.startswith("nv12")
        _require_plane(f"{self.format} pixels", self.pointer, self.pitch, self.width * (1 if planar else 3))
        if planar:
            _require_plane("chroma", self.chroma, self.chroma_pitch, -(-self.width // 2) * 2)
        elif self.chroma or self.chroma_pitch:
            raise PictureError(
                f"A picture of format {self.format!r} has a chroma plane, which NV12 has.", "Leave it out, or name the format."
            )


def picture_size(picture: Picture | DevicePicture) -> tuple[int, int]:
    """Width and height in pixels."""
    if isinstance(picture, DevicePicture):
        return picture.width, picture.height
    return picture.shape[1], picture.shape[0]


def _require_plane(name: str, pointer: int, pitch: int, row: int) -> None:
    if not 0 < pointer < 2**64:
        raise PictureError(f"The device address of the {name} is {pointer:#x}.", "Give the address of its first byte.")
    if not row <= pitch <= _MOST_PITCH:
        found = f"The pitch of the {name} is {pitch} bytes, from {row} (a row's) up to {_MOST_PITCH:,} were wanted."
        raise PictureError(found, "Give the bytes from the start of a row to the start of the next.")


class DevicePreprocessor:
    """Fills the network's input from up to `batch` pictures at a time, each of any size.

    Device memory is one table and, once host pictures came, room for them; that room and its page-locked counterpart grow when larger
    pictures come and never shrink. One call at a time.

    Args:
        driver: the GPU.
        module: all kernels.
        spec: S, layout, channel order and normalisation.
        batch: B, 1 … 65,535.

    Raises :class:`ConfigError` for a batch or an S out of range.
    """

    def __init__(self, driver: Driver, module: Module, spec: InputSpec, batch: int) -> None:
        if not 1 <= batch <= _MOST_BLOCKS:
            raise ConfigError(f"A batch of {batch} was asked for, 1 … {_MOST_BLOCKS} was wanted.", "Give the largest batch to be run.")
        if not 1 <= spec.size <= _MOST_BLOCKS * _PREPROCESS_HEIGHT:
            raise ConfigError(f"An input of {spec.size} pixels a side was asked for, at least 1 was wanted.", "See the manifest's input.")
        self._driver, self._spec, self._batch = driver, spec, batch
        names = ("preprocess_raw",) if spec.layout == "raw" else ("preprocess_float", "preprocess_half")
        self._kernels = [module.kernel(name) for name in names]
        self._table: DeviceBuffer | None = None
        self._rows: PinnedArray | None = None
        self._pixels: DeviceBuffer | None = None
        self._staged: PinnedArray | None = None
        self._uploaded, self._read = driver.create_event(), driver.create_event()
        try:
            self._table = driver.allocate(batch * ctypes.sizeof(SourcePicture))
            self._rows = driver.allocate_pinned(self._table.size)
        except BaseException:
            self.close()
            raise

    def enqueue(self, pictures: Sequence[Picture | DevicePicture], target_pointer: int, stream: Stream, half: bool = False) -> None:
        """Queue the preprocessing of `pictures`; their inputs come one after another from `target_pointer` on.

        Args:
            pictures: 1 … B, each uint8 RGB [H, W, 3] in host memory, free when the call returns, or in device memory.
            target_pointer: device memory for float32 or half [len(pictures), 3, S, S], or ``raw``: uint8 [len(pictures), S, S, 3].
            stream: where; calls may use different ones.
            half: round the float input to half, to nearest, ties to even.

        Waits for the stream only as long as the call before has not yet read its page-locked memory, or if larger memory is needed.
        Raises :class:`PictureError` for other arrays or another number of them, :class:`ConfigError` for `half` with the layout ``raw``
        and for a misaligned target.
        """
        self._require_target(target_pointer, half)
        self.upload(pictures, stream)
        self.launch(len(pictures), target_pointer, stream, half)
        self._read.record(stream)

    def upload(self, pictures: Sequence[Picture | DevicePicture], stream: Stream) -> None:
        """The first part of :meth:`enqueue`: what :meth:`launch` works on, as often as it is launched after this.

        It waits for launches by `enqueue` on any stream; other launches, a graph's for example, must have been on `stream`.
        """
        if not 1 <= len(pictures) <= self._batch:
            raise PictureError(
                f"{len(pictures)} pictures were given, from 1 up to the batch of {self._batch} were wanted.", "Split them into batches."
            )
        starts, size = [], 0
        for picture in pictures:
            starts.append(size)
            if not isinstance(picture, DevicePicture):
                _require_host_picture(picture)
                size += -(-picture.nbytes // _ALIGNMENT) * _ALIGNMENT
        table, rows = self._table, self._rows
        if table is None or rows is None:
            raise ConfigError("The preprocessor is closed.", "Make another one.")
        self._uploaded.synchronize()
        staged, pixels = self._room(size, stream)
        described = b"".join(bytes(_described(picture, pixels + start)) for picture, start in zip(pictures, starts))
        rows.array[: len(described)] = np.frombuffer(described, np.uint8)
        for picture, start in zip(pictures, starts):
            if not isinstance(picture, DevicePicture):
                np.copyto(staged[start : start + picture.nbytes].reshape(picture.shape), picture)
        stream.wait(self._read)
        if size:
            self._driver.copy_to_device(pixels, staged[:size], stream)
        self._driver.copy_to_device(table.pointer, rows.array[: len(described)], stream)
        self._uploaded.record(stream)

    def launch(self, count: int, target_pointer: int, stream: Stream, half: bool = False) -> None:
        """The second part of :meth:`enqueue`, one kernel, for the first `count` pictures of the last upload; a graph may record it."""
        self._require_target(target_pointer, half)
        if self._table is None:
            raise ConfigError("The preprocessor is closed.", "Make another one.")
        if not 1 <= count <= self._batch:
            raise ConfigError(f"{count} pictures were to be prepared, 1 … {self._batch} was wanted.", "Give how many were uploaded.")
        spec = self._spec
        argument = Preprocess(
            self._table.pointer, target_pointer, spec.size, int(spec.channels == "bgr"), tuple(spec.mean), tuple(spec.std)
        )
        grid = -(-spec.size // _PREPROCESS_WIDTH), -(-spec.size // _PREPROCESS_HEIGHT), count
        self._driver.launch(self._kernels[half], grid, _THREADS, bytes(argument), stream)

    def _require_target(self, pointer: int, half: bool) -> None:
        raw = self._spec.layout == "raw"
        if raw and half:
            raise ConfigError("A half input was asked for, the layout 'raw' has uint8.", "Leave `half` out, or export with --input float.")
        alignment = 1 if raw else 2 if half else 4
        if pointer < 1 or pointer % alignment:
            raise ConfigError(
                f"The input's device address is {pointer:#x}, a multiple of {alignment} was wanted.",
                "Give the start of the input's buffer.",
            )

    def _room(self, size: int, stream: Stream) -> tuple[NDArray[np.uint8], int]:
        """Page-locked memory and the device address of room for `size` bytes."""
        if self._staged is None or self._pixels is None or self._staged.array.size < size:
            wanted = -(-size // _GRAIN) * _GRAIN
            if not wanted:
                return np.empty(0, np.uint8), 0
            self._read.synchronize()
            stream.synchronize()  # a graph may have used it last
            for owned in (self._pixels, self._staged):
                if owned is not None:
                    owned.close()
            self._pixels = self._staged = None
            pixels = self._driver.allocate(wanted)
            self._staged, self._pixels = self._driver.allocate_pinned(wanted), pixels
        return self._staged.array, self._pixels.pointer

    def close(self) -> None:
        """Give the memory back, once the work that was queued is done; a second call does nothing."""
        if self._table is not None:
            self._uploaded.synchronize()
            self._read.synchronize()
        for owned in (self._table, self._rows, self._pixels, self._staged, self._uploaded, self._read):
            if owned is not None:
                owned.close()
        self._table = self._rows = self._pixels = self._staged = None

    def __enter__(self) -> DevicePreprocessor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require_host_picture(picture: NDArray[Any]) -> None:
    if not isinstance(picture, np.ndarray):
        raise PictureError(
            f"A picture was given as {type(picture).__name__}, a NumPy array or a DevicePicture was wanted.",
            "Read it with yolact_deploy.pictures.read_picture.",
        )
    require_picture(picture)
    height, width = picture.shape[:2]
    if height * width > _MOST_PIXELS or 3 * width > _MOST_PITCH:
        found = f"A picture has {width} x {height} pixels, the GPU takes {_MOST_PIXELS:,} in all and {_MOST_PITCH // 3:,} in a row."
        raise PictureError(found, "Make it smaller.")


def _described(picture: Picture | DevicePicture, pointer: int) -> SourcePicture:
    """A row of the table; `pointer` is where a host picture will lie on the device."""
    if not isinstance(picture, DevicePicture):
        height, width = picture.shape[:2]
        return SourcePicture(pointer, 0, 3 * width, 0, width, height, _FORMATS.index("rgb"))
    planes = picture.pointer, picture.chroma, picture.pitch, picture.chroma_pitch
    return SourcePicture(*planes, picture.width, picture.height, _FORMATS.index(picture.format))
