"""Good pictures of every kind: the pixels that come out."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from yolact_deploy.errors import PictureError
from yolact_deploy.pictures import read_picture


def colours(height: int = 20, width: int = 30, depth: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, depth), np.uint8)


def check(found: NDArray[np.uint8], wanted: NDArray[np.uint8], tolerance: int = 0) -> None:
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= tolerance


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif", "tiff"])
def test_lossless_files_are_exact(tmp_path: Path, suffix: str) -> None:
    wanted = colours()
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(wanted).save(path)
    check(read_picture(path), wanted)
    check(read_picture(str(path)), wanted)


def test_webp_lossless_is_exact(tmp_path: Path) -> None:
    wanted = colours()
    Image.fromarray(wanted).save(tmp_path / "a.webp", lossless=True)
    check(read_picture(tmp_path / "a.webp"), wanted)


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    wanted = colours()
    Image.fromarray(wanted).save(tmp_path / "a.jpg", format="PNG")
    check(read_picture(tmp_path / "a.jpg"), wanted)


def smooth(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    ramp = np.add.outer(np.arange(height) * 2, np.arange(width))
    return np.stack([ramp, 200 - ramp // 2, ramp // 3 + 40], -1).astype(np.uint8)


def test_jpeg_is_what_opencv_reads(tmp_path: Path) -> None:
    for quality, subsampling in ((95, 0), (75, 2)):
        Image.fromarray(colours(61, 83)).save(tmp_path / "a.jpg", quality=quality, subsampling=subsampling)
        wanted = cv2.imdecode(np.fromfile(tmp_path / "a.jpg", np.uint8), cv2.IMREAD_COLOR)
        assert wanted is not None
        check(read_picture(tmp_path / "a.jpg"), np.asarray(wanted[..., ::-1], np.uint8), 1)


def test_photographs_are_what_opencv_reads(coco_mini: Path) -> None:
    paths = sorted(coco_mini.glob("images/*/*.jpg"))[::8]
    assert paths
    for path in paths:
        wanted = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        assert wanted is not None
        check(read_picture(path), np.asarray(wanted[..., ::-1], np.uint8), 1)


def test_grey_files(tmp_path: Path) -> None:
    grey = colours(depth=1)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    check(read_picture(tmp_path / "grey.png"), np.stack([grey] * 3, -1))
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    check(read_picture(tmp_path / "bits.png"), np.stack([(grey > 100) * np.uint8(255)] * 3, -1))


def test_16_bit_grey_loses_its_low_byte(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7), np.uint16)
    deep[0, :3] = 255, 256, 65535
    wanted = np.stack([(deep >> 8).astype(np.uint8)] * 3, -1)
    for suffix in ("png", "tif"):
        Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
        check(read_picture(tmp_path / f"deep.{suffix}"), wanted)
    (tmp_path / "deep.pgm").write_bytes(b"P5 7 9 65535\n" + deep.astype(">u2").tobytes())
    check(read_picture(tmp_path / "deep.pgm"), wanted)
    check(read_picture(Image.fromarray(deep)), wanted)


@pytest.mark.parametrize("depth", [3, 4])
def test_16_bit_colour_loses_its_low_byte(tmp_path: Path, depth: int) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7, depth), np.uint16)
    deep[0, 0], deep[0, 1] = 255, 65535
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep)
    check(read_picture(tmp_path / "deep.png"), (deep[..., 2::-1] >> 8).astype(np.uint8))


@pytest.mark.parametrize("value", ["I", "F"])
def test_32_bit_grey_is_refused_for_its_range_is_unknown(tmp_path: Path, value: str) -> None:
    image = Image.fromarray(np.full((4, 4), 70000, np.int32 if value == "I" else np.float32))
    assert image.mode == value
    with pytest.raises(PictureError, match=f"mode {value}.*8 or 16 bits were wanted"):
        read_picture(image)
    image.save(tmp_path / "deep.tif")
    with pytest.raises(PictureError, match=r"deep\.tif has 32-bit"):
        read_picture(tmp_path / "deep.tif")


def test_cmyk_jpeg(tmp_path: Path) -> None:
    wanted = smooth()
    Image.fromarray(wanted).convert("CMYK").save(tmp_path / "print.jpg", quality=98)
    with Image.open(tmp_path / "print.jpg") as opened:
        assert opened.mode == "CMYK"
    check(read_picture(tmp_path / "print.jpg"), wanted, 8)


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff"])
def test_palettes_keep_the_colours_of_transparent_pixels(tmp_path: Path, transparency: int | bytes | None) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    check(read_picture(tmp_path / "a.png"), np.array([[[10, 20, 30], [40, 50, 60], [70, 80, 90]]], np.uint8))


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_alpha_is_dropped_and_not_blended(tmp_path: Path, suffix: str) -> None:
    drawn = colours(depth=4)
    Image.fromarray(drawn).save(tmp_path / f"a.{suffix}", **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    check(read_picture(tmp_path / f"a.{suffix}"), np.ascontiguousarray(drawn[..., :3]))


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", [*TURNS, 0, 9])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    drawn = smooth(16, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(drawn).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    wanted = np.ascontiguousarray(TURNS.get(orientation, TURNS[1])(drawn))
    check(read_picture(path), wanted, 12 if suffix == "jpg" else 0)
    with Image.open(path) as opened:
        check(read_picture(opened), wanted, 12 if suffix == "jpg" else 0)


def test_damaged_exif_asks_for_nothing(tmp_path: Path) -> None:
    wanted = colours()
    Image.fromarray(wanted).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0")
    check(read_picture(tmp_path / "a.png"), wanted)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (12, 8), colour) for colour in ("#f00000", "#00f000", "#0000f0")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], duration=40, **options)
    with Image.open(tmp_path / f"moving.{suffix}") as opened:
        assert getattr(opened, "n_frames", 1) == 3
    check(read_picture(tmp_path / f"moving.{suffix}"), np.full((8, 12, 3), (240, 0, 0), np.uint8))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (20000, 500), (500, 20000)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_extreme_sizes(tmp_path: Path, width: int, height: int, suffix: str) -> None:
    Image.new("RGB", (width, height), "#336699").save(tmp_path / f"a.{suffix}", compress_level=1)
    check(read_picture(tmp_path / f"a.{suffix}"), np.full((height, width, 3), (0x33, 0x66, 0x99), np.uint8), 2)


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_every_pillow_mode(mode: str) -> None:
    wanted = np.full((5, 6, 3), 255, np.uint8)
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 6), 65535, np.uint16))
    elif mode in ("La", "RGBa"):
        image = Image.new(mode[:-1] + "A", (6, 5), "white").convert(mode)
    else:
        image = (
            Image.new("RGB", (6, 5), "white").convert("L" if mode == "LA" else "RGB").convert("P" if mode == "PA" else mode).convert(mode)
        )
    assert image.mode == mode
    check(read_picture(image), wanted, 1)


def test_a_pillow_image_is_not_altered() -> None:
    image = Image.new("RGBA", (4, 4), (1, 2, 3, 4))
    read_picture(image)[...] = 0
    assert image.mode == "RGBA"
    assert image.getpixel((0, 0)) == (1, 2, 3, 4)


def test_arrays() -> None:
    drawn = colours()
    check(read_picture(drawn, channels="rgb"), drawn)
    assert np.shares_memory(read_picture(drawn, channels="rgb"), drawn)
    check(read_picture(drawn, channels="bgr"), np.ascontiguousarray(drawn[..., ::-1]))
    check(read_picture(drawn[:, ::2], channels="rgb"), np.ascontiguousarray(drawn[:, ::2]))
    alpha = colours(depth=4)
    check(read_picture(alpha, channels="rgb"), np.ascontiguousarray(alpha[..., :3]))
    check(read_picture(alpha, channels="bgr"), np.ascontiguousarray(alpha[..., [2, 1, 0]]))


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(["rgb", "bgr", None]))
def test_grey_arrays_need_no_order(height: int, width: int, channels: str | None) -> None:
    grey = colours(height, width, 1)
    wanted = np.concatenate([grey] * 3, -1)
    check(read_picture(grey, channels=channels), wanted)
    check(read_picture(grey[..., 0], channels=channels), wanted)
