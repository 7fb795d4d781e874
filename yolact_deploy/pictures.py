"""Reading pictures: any ordinary file, array or Pillow image becomes uint8 RGB, and what cannot be read says why in one line.

Files are opened by the Pillow plugin that their first bytes name, so that no other decoder ever sees them, and the size in the
header is held against a limit before anything is decoded.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from yolact_deploy.errors import PictureError

__all__ = ["MAX_PIXELS", "PICTURE_SUFFIXES", "Picture", "PictureSource", "list_pictures", "read_picture", "require_picture"]

Picture: TypeAlias = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB."""
PictureSource: TypeAlias = str | os.PathLike[str] | NDArray[Any] | Image.Image
"""What :func:`read_picture` takes."""
MAX_PIXELS = 200_000_000
"""Width x height up to which a file is decoded (600 MB as RGB)."""
PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Lower-case suffixes of the files that :func:`list_pictures` finds."""

_KINDS = "a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file"
_PLUGINS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"GIF87a", GifImagePlugin.GifImageFile),
    (b"GIF89a", GifImagePlugin.GifImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    *((b"P%d" % digit, PpmImagePlugin.PpmImageFile) for digit in range(1, 7)),
)
_HEAD = 12  # bytes that tell every kind apart; RIFF names its content in bytes 8 to 11
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SCALED_TO_16_BITS = ("PNG", "PPM")  # Pillow gives their 16-bit grey as mode I (PNG: before 10.3)
_LARGE = threading.Lock()


def read_picture(source: PictureSource, *, channels: Literal["rgb", "bgr"] | None = None) -> Picture:
    """The picture as uint8 RGB [H, W, 3], C-contiguous, turned upright, without alpha.

    Args:
        source: a file's path, an array or a Pillow image. An array is uint8 [H, W, 3], [H, W, 4] (the fourth channel is dropped),
            or grey [H, W] or [H, W, 1]; a contiguous RGB array is not copied.
        channels: the order of a colour array's channels. It must be said, since it cannot be seen; files, Pillow images and grey
            arrays need none, and it does not alter them.

    Of an animation the first frame is taken. 16-bit files lose their low byte. EXIF orientation is applied. Colours are those in
    the file: no colour profile is applied, and CMYK is converted naively. Raises :class:`PictureError` for everything that is
    missing, broken, empty or above :data:`MAX_PIXELS`.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, channels)
    if isinstance(source, Image.Image):
        return _from_image(source, "The Pillow image")
    if isinstance(source, (str, os.PathLike)):
        return _from_file(os.fspath(source))
    raise _error(
        f"A picture was given as {type(source).__name__}, a path, a NumPy array or a Pillow image was wanted.",
        "Convert it, for example with numpy.asarray.",
    )


def list_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """The picture files directly in `folder`, by suffix in any case (:data:`PICTURE_SUFFIXES`), hidden ones left out, sorted by name.

    Raises :class:`PictureError` where the folder is missing, unreadable or holds none.
    """
    path = Path(folder)
    mend = "Name a folder that holds the pictures themselves; subfolders are not searched."
    try:
        entries = list(path.iterdir())
        found = [
            entry for entry in entries if entry.suffix.lower() in PICTURE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
        ]
    except FileNotFoundError:
        raise _error(f"The folder {path} does not exist.", mend) from None
    except (OSError, ValueError) as error:
        raise _error(f"The folder {path} cannot be listed: {_reason(error)}.", mend) from None
    if not found:
        raise _error(f"The folder {path} holds no picture ({' '.join(PICTURE_SUFFIXES)}) among {len(entries)} entries.", mend)
    return sorted(found, key=lambda entry: entry.name)


def require_picture(picture: NDArray[Any]) -> None:
    """Raise :class:`PictureError` unless `picture` is what :func:`read_picture` returns: uint8 [H, W, 3] with H, W >= 1."""
    _require_pixels(picture)
    if picture.ndim != 3 or picture.shape[2] != 3:
        raise _error(f"The picture has shape {list(picture.shape)}, RGB [H, W, 3] was wanted.", _READ_MEND)


_READ_MEND = 'Read it with yolact_deploy.pictures.read_picture, which takes files, Pillow images and arrays (channels="rgb" or "bgr").'


def _error(message: str, mend: str) -> PictureError:
    """One line, whatever a path or a decoder's message holds."""
    return PictureError(" ".join(message.split()), mend)


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.rstrip(".") or type(error).__name__


def _require_pixels(array: NDArray[Any]) -> None:
    if array.dtype != np.uint8:
        raise _error(
            f"The picture's array is {array.dtype} {list(array.shape)}, uint8 in 0 … 255 was wanted.",
            "Scale it to 0 … 255 and convert it with .astype(numpy.uint8).",
        )
    if array.size == 0:
        raise _error(f"The picture's array {list(array.shape)} is empty, at least one pixel was wanted.", "Check how it was cut or read.")


def _from_array(array: NDArray[Any], channels: str | None) -> Picture:
    _require_pixels(array)
    if channels not in ("rgb", "bgr", None):
        raise _error(f"channels is {channels!r}, 'rgb' or 'bgr' was wanted.", "OpenCV reads BGR, Pillow and most others RGB.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        raise _error(
            f"The picture's array has shape {list(array.shape)}, [H, W, 3], [H, W, 4] or grey [H, W] was wanted.",
            "Give one picture at a time, channels last.",
        )
    if channels is None:
        raise _error(
            f"A colour array {list(array.shape)} was given without the order of its channels.",
            'Say channels="rgb" or channels="bgr" (OpenCV reads BGR, Pillow and most others RGB).',
        )
    return np.ascontiguousarray(array[..., :3] if channels == "rgb" else array[..., 2::-1])


def _from_file(name: str) -> Picture:
    try:
        if os.path.isdir(name):
            raise _error(f"{name} is a folder, a picture file was wanted.", "Name one file in it, or read the folder with list_pictures.")
        if os.path.exists(name) and not os.path.isfile(name):
            raise _error(f"{name} is no regular file, a picture file was wanted.", "Save the picture to a file first.")
        with open(name, "rb") as handle:
            return _from_handle(handle, name)
    except FileNotFoundError:
        raise _error(f"The picture {name} does not exist.", "Check the path.") from None
    except (OSError, ValueError) as error:
        raise _error(f"The picture {name} cannot be read: {_reason(error)}.", "Check the path and its permissions.") from None


def _from_handle(handle: BinaryIO, name: str) -> Picture:
    head = handle.read(_HEAD)
    handle.seek(0)
    if not head:
        raise _error(f"The picture {name} is empty (0 bytes).", "Copy or download it again.")
    plugin = next((plugin for magic, plugin in _PLUGINS if head.startswith(magic)), None)
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        plugin = WebPImagePlugin.WebPImageFile
    if plugin is None:
        raise _error(f"{name} is no picture: it starts with {head!r}, {_KINDS} was wanted.", "Convert it to PNG or JPEG.")
    try:
        image = plugin(handle, name)
    except Image.DecompressionBombError as error:
        raise _error(f"The picture {name} is too large: {_reason(error)}.", "Make it smaller first.") from None
    except Exception as error:  # what the plugins raise on damaged headers is not documented
        raise _damaged(name, error) from error
    return _from_image(image, f"The picture {name}")


def _damaged(what: str, error: Exception) -> PictureError:
    return _error(f"{what} is truncated or damaged: {_reason(error)}.", "Copy or download it again, or save it anew with an image program.")


def _from_image(image: Image.Image, what: str) -> Picture:
    width, height = image.size
    if width < 1 or height < 1:
        raise _error(f"{what} has {width} x {height} pixels, at least one was wanted.", "Check how it was made.")
    if width * height > MAX_PIXELS:
        raise _error(
            f"{what} has {width:,} x {height:,} = {width * height:,} pixels, at most {MAX_PIXELS:,} are decoded.",
            "Make it smaller or cut it into tiles first.",
        )
    try:
        with _pillow_limit(width * height):
            image.load()
        return _pixels(_upright(image), what)
    except PictureError:
        raise
    except Exception as error:  # what the decoders raise on damaged data is not documented
        raise _damaged(what, error) from error


@contextlib.contextmanager
def _pillow_limit(pixels: int) -> Iterator[None]:
    """Lift Pillow's own limit (a global) to ours, only while a picture above it is decoded, one such picture at a time."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or pixels <= limit:
        yield
        return
    with _LARGE:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright(image: Image.Image) -> Image.Image:
    """`image` turned as its EXIF orientation asks; damaged EXIF data ask for nothing."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - the pixels are sound, and what the EXIF reader raises is not documented
        return image
    return image if turn is None else image.transpose(turn)


def _pixels(image: Image.Image, what: str) -> Picture:
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in _SCALED_TO_16_BITS):
        grey = (np.clip(np.array(image), 0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if mode in ("I", "F"):
        raise _error(
            f"{what} has 32-bit grey values of unknown range (mode {mode}), 8 or 16 bits were wanted.", "Scale it to 8 bits first."
        )
    between = {"LA": "L", "La": "LA", "P": "RGBA", "PA": "RGBA", "RGBa": "RGBA"}.get(mode)
    if between is not None:
        image = image.convert(between)
    return np.array(image.convert("RGB"))
