"""Preprocessing against torch's own interpolation, against a literal float64 formula, and against the original's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from yolact_deploy.errors import PictureError
from yolact_deploy.manifest import InputSpec
from yolact_deploy.preprocess import prepare, prepare_batch
from yolact_deploy.variants import get_variant

PLAIN: dict[str, tuple[float, float, float]] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
TOLERANCE = 2e-4  # in 0 … 255


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def by_torch(picture: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    torch = pytest.importorskip("torch")
    batch = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # with one, torch takes another kernel that rounds positions once less: up to 2e-3 away
    try:
        resized = torch.nn.functional.interpolate(batch, size=(size, size), mode="bilinear", align_corners=False, antialias=False)
    finally:
        torch.set_num_threads(threads)
    return np.asarray(resized[0].numpy())


def literal(picture: NDArray[np.uint8], size: int) -> NDArray[np.float64]:
    """[3, size, size], pixel by pixel in float64."""
    height, width = picture.shape[:2]
    result = np.empty((3, size, size))
    for i in range(size):
        y = max((i + 0.5) * height / size - 0.5, 0.0)
        top = int(y)
        bottom = min(top + 1, height - 1)
        for j in range(size):
            x = max((j + 0.5) * width / size - 0.5, 0.0)
            left = int(x)
            right = min(left + 1, width - 1)
            upper = picture[top, left] * (1 - (x - left)) + picture[top, right] * (x - left)
            lower = picture[bottom, left] * (1 - (x - left)) + picture[bottom, right] * (x - left)
            result[:, i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return result


SIZES = [
    (1, 1),
    (1, 7),
    (7, 1),
    (2, 2),
    (33, 57),
    (427, 640),
    (549, 551),
    (550, 550),
    (1100, 1100),
    (1200, 1800),
    (2, 20000),
    (20000, 2),
    (500, 20000),
]


@pytest.mark.parametrize("size", [32, 550])
@pytest.mark.parametrize("shape", SIZES)
def test_resizes_as_torch_does(shape: tuple[int, int], size: int) -> None:
    picture = noise(*shape)
    assert np.abs(prepare(picture, InputSpec(size, **PLAIN)) - by_torch(picture, size)).max() <= TOLERANCE


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 140), st.integers(0, 99))
@example(200, 3, 65, 0)
def test_resizes_as_torch_does_for_any_size(height: int, width: int, size: int, seed: int) -> None:
    picture = noise(height, width, seed)
    # For some small outputs torch rounds positions once less.
    assert np.abs(prepare(picture, InputSpec(size, **PLAIN)) - by_torch(picture, size)).max() <= 4e-3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24))
def test_resizes_by_the_formula(height: int, width: int, size: int) -> None:
    picture = noise(height, width)
    assert np.abs(prepare(picture, InputSpec(size, **PLAIN)) - literal(picture, size)).max() <= 4e-3


def test_normalises_each_channel_by_its_own_numbers() -> None:
    picture = np.zeros((50, 60, 3), np.uint8)
    picture[...] = 10, 100, 200
    found = prepare(picture, InputSpec(32, mean=(1, 2, 3), std=(9, 7, 197)))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert found.shape == (3, 32, 32)
    np.testing.assert_array_equal(found, np.broadcast_to(np.float32([1, 14, 1])[:, None, None], (3, 32, 32)))


def test_the_original_normalisation() -> None:
    picture = np.full((3, 5, 3), 255, np.uint8)
    found = prepare(picture, InputSpec.of(get_variant("yolact_base")))
    assert found.shape == (3, 550, 550)
    np.testing.assert_allclose(found[:, 0, 0], [(255 - 123.68) / 58.40, (255 - 116.78) / 57.12, (255 - 103.94) / 57.38], rtol=1e-6)
    np.testing.assert_allclose(prepare(picture, InputSpec.of(get_variant("yolact_darknet53"))), 1)


def test_the_original_implementations_numbers() -> None:
    with np.load(Path(__file__).with_name("original.npz")) as golden:
        picture, places, sample = golden["image_bgr"][..., ::-1], golden["index"], golden["sample"]
        mean, deviation = golden["mean_std"]
    found = prepare(picture, InputSpec.of(get_variant("yolact_resnet50")))
    np.testing.assert_allclose(found.ravel()[places], sample, atol=2e-6)
    assert found.mean(dtype=np.float64) == pytest.approx(mean, abs=1e-6)
    assert found.std(dtype=np.float64) == pytest.approx(deviation, abs=1e-6)


def test_the_same_size_is_not_altered() -> None:
    picture = noise(70, 70)
    np.testing.assert_array_equal(prepare(picture, InputSpec(70, **PLAIN)), picture.transpose(2, 0, 1))
    np.testing.assert_array_equal(prepare(picture, InputSpec(70, layout="raw")), picture)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(["rgb", "bgr"]))
def test_raw_is_the_resized_picture_rounded(height: int, width: int, channels: str) -> None:
    picture = noise(height, width)
    found = prepare(picture, InputSpec(96, "raw", channels))
    assert found.dtype == np.uint8
    assert found.shape == (96, 96, 3)
    assert found.flags.c_contiguous
    wanted = prepare(picture, InputSpec(96, **PLAIN)).transpose(1, 2, 0)
    np.testing.assert_array_equal(found if channels == "rgb" else found[..., ::-1], np.rint(wanted))


def test_raw_ignores_the_normalisation() -> None:
    picture = noise(9, 9)
    np.testing.assert_array_equal(prepare(picture, InputSpec(32, "raw")), prepare(picture, InputSpec(32, "raw", **PLAIN)))


def test_neither_layout_alters_the_picture_and_any_strides_are_taken() -> None:
    picture = noise(90, 80)
    kept = picture.copy()
    picture.flags.writeable = False
    for layout in ("float", "raw"):
        spec = InputSpec(40, layout)
        view = picture[::-2, ::3, ::-1]
        np.testing.assert_array_equal(prepare(view, spec), prepare(np.ascontiguousarray(view), spec))
    np.testing.assert_array_equal(picture, kept)


@pytest.mark.parametrize(("layout", "shape", "dtype"), [("float", (3, 3, 40, 40), np.float32), ("raw", (3, 40, 40, 3), np.uint8)])
def test_a_batch_of_different_sizes(layout: str, shape: tuple[int, ...], dtype: type) -> None:
    pictures = [noise(30, 50), noise(1, 1), noise(99, 9)]
    spec = InputSpec(40, layout)
    batch = prepare_batch(pictures, spec)
    assert batch.shape == shape
    assert batch.dtype == dtype
    for found, picture in zip(batch, pictures, strict=True):
        np.testing.assert_array_equal(found, prepare(picture, spec))


def test_refuses_what_is_no_picture() -> None:
    with pytest.raises(PictureError, match="at least one was wanted"):
        prepare_batch([], InputSpec(40))
    for layout in ("float", "raw"):
        for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
            with pytest.raises(PictureError):
                prepare(wrong, InputSpec(40, layout))
