"""Pictures that cannot be read: one line that says what is wrong, and a mend; nothing else ever leaks."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from yolact_deploy.errors import PictureError
from yolact_deploy.pictures import MAX_PIXELS, list_pictures, read_picture, require_picture

KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "ppm": "PPM"}


def encoded(kind: str, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


def fault(source: Any, **options: Any) -> str:
    """The message of the error that reading `source` raises; it has a mend and is one line."""
    with pytest.raises(PictureError) as caught:
        read_picture(source, **options)
    assert caught.value.mend
    assert "\n" not in str(caught.value)
    return caught.value.message


def test_missing(tmp_path: Path) -> None:
    assert fault(tmp_path / "no.jpg") == f"The picture {tmp_path / 'no.jpg'} does not exist."


def test_a_folder(tmp_path: Path) -> None:
    assert "is a folder, a picture file was wanted" in fault(tmp_path)


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert "is empty (0 bytes)" in fault(tmp_path / "a.jpg")


@pytest.mark.parametrize("text", [b"hello\nworld", b"<svg></svg>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"x", b"RIFF\0\0\0\0WAVE", b"P9 1 1"])
def test_what_is_no_picture(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(text)
    assert "a.jpg is no picture: it starts with b" in fault(tmp_path / "a.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "is no regular file" in fault(tmp_path / "pipe.png")


@pytest.mark.parametrize("name", ["a\0b.png", "a" * 5000, "two\nlines.png"])
def test_odd_names(name: str) -> None:
    assert "picture" in fault(name)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated(tmp_path: Path, kind: str, part: float) -> None:
    whole = encoded(KINDS[kind])
    (tmp_path / f"a.{kind}").write_bytes(whole[: int(len(whole) * part)])
    assert "is truncated or damaged" in fault(tmp_path / f"a.{kind}")


@pytest.mark.parametrize("length", [3, 12, 20, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_cut_in_the_header(tmp_path: Path, kind: str, length: int) -> None:
    (tmp_path / "a").write_bytes(encoded(KINDS[kind])[:length])
    message = fault(tmp_path / "a")
    assert "truncated or damaged" in message or (length == 3 and "no picture" in message)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(KINDS)), hits=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), min_size=1, max_size=6))
@pytest.mark.filterwarnings("ignore")  # Pillow warns of some metadata
def test_damaged_headers_raise_nothing_else(tmp_path: Path, kind: str, hits: list[tuple[int, int]]) -> None:
    data = bytearray(ENCODED[kind])
    for place, value in hits:
        data[place] = value
    (tmp_path / "hit").write_bytes(data)
    message = ""
    try:
        require_picture(read_picture(tmp_path / "hit"))
    except PictureError as error:
        message = str(error)
    assert "\n" not in message


ENCODED = {kind: encoded(name) for kind, name in KINDS.items()}


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def headers(width: int, height: int) -> dict[str, bytes]:
    bmp = b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return {"png": png_header(width, height), "bmp": bmp + b"\0" * 100, "ppm": b"P6 %d %d 255\n" % (width, height) + b"\0" * 100}


@pytest.mark.parametrize("kind", ["png", "bmp", "ppm"])
def test_too_large_is_refused_before_decoding(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "huge").write_bytes(headers(20_000, 20_000)[kind])
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    assert "20,000 x 20,000 = 400,000,000 pixels, at most 200,000,000" in fault(tmp_path / "huge")


@pytest.mark.parametrize("kind", ["png", "bmp", "ppm"])
def test_the_limit_itself_is_allowed(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large").write_bytes(headers(20_000, 10_000)[kind])
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append((image.size, Image.MAX_IMAGE_PIXELS)) or 1 / 0)
    before = Image.MAX_IMAGE_PIXELS
    assert "truncated or damaged" in fault(tmp_path / "large")
    assert decoded == [((20_000, 10_000), MAX_PIXELS)]
    assert before == Image.MAX_IMAGE_PIXELS


def test_one_pixel_above_the_limit(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png_header(MAX_PIXELS + 1, 1))
    assert "at most 200,000,000" in fault(tmp_path / "large.png")


def test_large_pictures_in_threads_leave_pillows_limit_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.new("RGB", (30, 20)).save(tmp_path / "a.tif")
    shapes: list[tuple[int, ...]] = []
    threads = [threading.Thread(target=lambda: shapes.append(read_picture(tmp_path / "a.tif").shape)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes == [(20, 30, 3)] * 8
    assert Image.MAX_IMAGE_PIXELS == 50


def test_a_closed_pillow_image(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    assert "The Pillow image is truncated or damaged" in fault(image)


def test_an_empty_pillow_image() -> None:
    assert "has 0 x 3 pixels" in fault(Image.new("RGB", (0, 3)))


def test_colour_arrays_must_say_their_order() -> None:
    assert "without the order of its channels" in fault(np.zeros((4, 5, 3), np.uint8))
    assert "channels is 'gbr'" in fault(np.zeros((4, 5, 3), np.uint8), channels="gbr")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), "float32 [4, 5, 3], uint8 in 0 … 255 was wanted"),
        (np.zeros((4, 5, 3), np.uint16), "uint16"),
        (np.zeros((4, 5), bool), "bool"),
        (np.zeros((0, 5, 3), np.uint8), "[0, 5, 3] is empty"),
        (np.zeros((4, 0), np.uint8), "is empty"),
        (np.zeros((4, 5, 2), np.uint8), "shape [4, 5, 2]"),
        (np.zeros((3, 4, 5), np.uint8), "shape [3, 4, 5]"),
        (np.zeros((1, 4, 5, 3), np.uint8), "shape [1, 4, 5, 3]"),
        (np.zeros(5, np.uint8), "shape [5]"),
    ],
)
def test_wrong_arrays(array: np.ndarray[Any, Any], words: str) -> None:
    assert words in fault(array, channels="rgb")


@pytest.mark.parametrize("source", [None, 3, b"bytes", [[1, 2]], object()])
def test_wrong_types(source: object) -> None:
    assert f"given as {type(source).__name__}, a path" in fault(source)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 4), (0, 5, 3), (3,)])
def test_require_picture(shape: tuple[int, ...]) -> None:
    require_picture(np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(PictureError):
        require_picture(np.zeros(shape, np.uint8))
    with pytest.raises(PictureError, match="int16"):
        require_picture(np.zeros((4, 5, 3), np.int16))


def test_list_pictures(tmp_path: Path) -> None:
    for name in [
        "b.JPG",
        "a.png",
        "c.tiff",
        "d.webp",
        "e.gif",
        "f.tif",
        "g.bmp",
        "h.jpeg",
        "i.ppm",
        ".hidden.png",
        "notes.txt",
        "j.jpg.part",
    ]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "inner.png").touch()
    assert [path.name[0] for path in list_pictures(tmp_path)] == list("abcdefghi")
    assert list_pictures(str(tmp_path))[0] == tmp_path / "a.png"


def test_list_pictures_refuses(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for folder, words in ((tmp_path, "among 1 entries"), (tmp_path / "no", "does not exist"), (tmp_path / "notes.txt", "cannot be listed")):
        with pytest.raises(PictureError, match=words) as caught:
            list_pictures(folder)
        assert caught.value.mend
