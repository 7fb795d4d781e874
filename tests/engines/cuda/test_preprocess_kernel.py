"""Preprocessing kernels, run on the CPU, against :func:`yolact_deploy.preprocess.prepare` bit for bit, and NV12 against OpenCV."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.engines.cuda.kernel_runs import Runner
from tests.helpers.host_driver import ORDERS, HostDriver, missing, run_sanitized
from yolact_deploy.engines.cuda.driver import DeviceBuffer
from yolact_deploy.engines.cuda.preprocess import DevicePicture, DevicePreprocessor, PictureFormat
from yolact_deploy.manifest import InputSpec
from yolact_deploy.preprocess import prepare, prepare_batch

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

RAW = InputSpec(16, "raw")
PLAIN = InputSpec(16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (33, 57), (36, 31), (97, 211), (2, 20000), (20000, 2)]  # height, width


@cache
def host() -> Runner:
    """The kernels on the CPU."""
    driver = HostDriver()
    return Runner(driver, driver.load_module(driver.image))


_places: list[Runner] = []


def placed_at(runner: Runner) -> Iterator[None]:
    """What a fixture yields from, so that the test runs there."""
    _places.append(runner)
    yield
    _places.pop()


@pytest.fixture
def each_place(runner: Runner) -> Iterator[None]:
    yield from placed_at(runner)


def place() -> Runner:
    """Where the kernels of this test run: on the CPU unless it asks for each place."""
    return _places[-1] if _places else host()


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@dataclass(frozen=True)
class Held:
    """A device picture, what keeps its memory, and the RGB that it stands for."""

    picture: DevicePicture
    memory: list[DeviceBuffer]
    rgb: NDArray[np.uint8]


def placed(plane: NDArray[np.uint8], pitch: int, offset: int) -> DeviceBuffer:
    """`plane`, uint8 [rows, bytes], in memory that ends with its last byte, after `offset` bytes of something else."""
    rows, wide = plane.shape
    memory = np.full(offset + (rows - 1) * pitch + wide, 0xEE, np.uint8)
    np.lib.stride_tricks.as_strided(memory[offset:], plane.shape, (pitch, 1))[:] = plane
    driver = place().driver
    buffer = driver.allocate(memory.size)
    with driver.create_stream() as stream:
        driver.copy_to_device(buffer.pointer, memory, stream)
        stream.synchronize()
    return buffer


def packed(rgb: NDArray[np.uint8], kind: PictureFormat = "rgb", gap: int = 0, offset: int = 0) -> Held:
    pixels = rgb if kind == "rgb" else rgb[..., ::-1]
    height, width = rgb.shape[:2]
    buffer = placed(pixels.reshape(height, -1), 3 * width + gap, offset)
    return Held(DevicePicture(buffer.pointer + offset, width, height, 3 * width + gap, kind), [buffer], rgb)


def by_opencv(luma: NDArray[np.uint8], chroma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB of NV12; OpenCV wants even sizes, so that a last pixel without a partner gets one."""
    height, width = luma.shape
    even = np.pad(luma, ((0, height % 2), (0, width % 2)))
    return np.asarray(cv2.cvtColorTwoPlane(even, chroma, cv2.COLOR_YUV2RGB_NV12), np.uint8)[:height, :width]


def nv12(luma: NDArray[np.uint8], chroma: NDArray[np.uint8], kind: PictureFormat = "nv12-bt601", gap: int = 0, offset: int = 0) -> Held:
    height, width = luma.shape
    wide = chroma.shape[1] * 2
    memory = [placed(luma, width + gap, offset), placed(chroma.reshape(-1, wide), wide + 2 * gap, offset + 1)]
    picture = DevicePicture(memory[0].pointer + offset, width, height, width + gap, kind, memory[1].pointer + offset + 1, wide + 2 * gap)
    return Held(picture, memory, by_opencv(luma, chroma))


def random_nv12(height: int, width: int, seed: int = 0, gap: int = 0, offset: int = 0) -> Held:
    chroma = np.ascontiguousarray(noise((height + 1) // 2, (width + 1) // 2, seed + 1)[..., :2])
    return nv12(np.ascontiguousarray(noise(height, width, seed)[..., 0]), chroma, gap=gap, offset=offset)


def run(preprocessor: DevicePreprocessor, spec: InputSpec, pictures: list[Any], *, half: bool = False) -> NDArray[Any]:
    """The inputs of `pictures` as the GPU makes them, in memory of exactly that size."""
    driver = place().driver
    count, size = len(pictures), spec.size
    shape = (count, size, size, 3) if spec.layout == "raw" else (count, 3, size, size)
    result = np.empty(shape, np.uint8 if spec.layout == "raw" else np.float16 if half else np.float32)
    with driver.create_stream() as stream, driver.allocate(result.nbytes) as target:
        preprocessor.enqueue([each.picture if isinstance(each, Held) else each for each in pictures], target.pointer, stream, half)
        driver.copy_to_host(result, target.pointer, stream)
        stream.synchronize()
    return result


def once(spec: InputSpec, pictures: list[Any], *, half: bool = False) -> NDArray[Any]:
    with DevicePreprocessor(place().driver, place().module, spec, len(pictures)) as preprocessor:
        return run(preprocessor, spec, pictures, half=half)


def same(got: NDArray[Any], wanted: NDArray[Any]) -> None:
    """Bit for bit; one NaN is as good as another."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    if got.dtype.kind == "f":
        np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
        got, wanted = (np.where(np.isnan(array), array.dtype.type(0), array).view(f"u{array.itemsize}") for array in (got, wanted))
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.usefixtures("each_place")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [33, 64])
def test_a_batch_of_different_sizes(order: str, size: int) -> None:
    place().ordered(order)
    pictures = [noise(*shape, seed) for seed, shape in enumerate(SIZES)]
    same(once(InputSpec(size), list(pictures)), prepare_batch(pictures, InputSpec(size)))


@pytest.mark.usefixtures("each_place")
def test_the_published_input_size() -> None:
    pictures, spec = [noise(427, 640), noise(1080, 1920)], InputSpec(550)
    same(once(spec, [packed(pictures[0], "bgr"), pictures[1]]), prepare_batch(pictures, spec))


@pytest.mark.usefixtures("each_place")
@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.integers(1, 90), st.sampled_from(["host", "rgb", "bgr", "nv12"]), st.integers(0, 70)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 50),
    st.sampled_from(["float", "float-bgr", "rgb", "bgr"]),
    st.integers(0, 1000),
    st.sampled_from(ORDERS),
)
@example([(1, 1, "nv12", 3), (1, 1, "host", 0)], 1, "bgr", 0, "reverse")
def test_any_batch(sizes: list[tuple[int, int, str, int]], size: int, output: str, seed: int, order: str) -> None:
    held: list[Held] = []
    given_pictures: list[Any] = []
    for height, width, kind, gap in sizes:
        offset = (gap + seed) % 5
        if kind == "nv12":
            held.append(random_nv12(height, width, seed, gap, offset))
        else:
            held.append(packed(noise(height, width, seed), "bgr" if kind == "bgr" else "rgb", gap, offset))
        given_pictures.append(held[-1].rgb if kind == "host" else held[-1])
    spec = InputSpec(size, "float" if output.startswith("float") else "raw", "bgr" if output.endswith("bgr") else "rgb")
    place().ordered(order)
    same(once(spec, given_pictures), prepare_batch([each.rgb for each in held], spec))


EXTREMES = [0, 1, 15, 16, 17, 18, 64, 127, 128, 129, 200, 234, 235, 236, 240, 254, 255]


def every_extreme() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Luma [136, 136] and chroma [68, 68, 2] that hold each triple of :data:`EXTREMES`."""
    pairs = np.array(list(product(EXTREMES, EXTREMES)), np.uint8)
    chroma = pairs[np.arange(68 * 68) % len(pairs)].reshape(68, 68, 2)
    turns = np.repeat(np.repeat(np.arange(68 * 68).reshape(68, 68) // len(pairs), 2, 0), 2, 1) * 4
    turns += np.tile([[0, 1], [2, 3]], (68, 68))
    return np.array(EXTREMES, np.uint8)[turns % len(EXTREMES)], chroma


@pytest.mark.usefixtures("each_place")
def test_nv12_as_opencv() -> None:
    luma, chroma = every_extreme()
    spec = replace(RAW, size=136)  # the picture's own size: nothing is mixed
    seen = np.concatenate([luma[..., None], np.repeat(np.repeat(chroma, 2, 0), 2, 1)], 2).reshape(-1, 3)
    assert len(np.unique(seen, axis=0)) == len(EXTREMES) ** 3
    same(once(spec, [nv12(luma, chroma)])[0], by_opencv(luma, chroma))


@pytest.mark.usefixtures("each_place")
def test_nv12_of_bt709() -> None:
    """ITU-R BT.709-6: limited range, Kr = 0.2126, Kb = 0.0722, in float64."""
    luma, chroma = every_extreme()
    got = once(replace(RAW, size=136), [nv12(luma, chroma, "nv12-bt709")])[0]
    y = np.maximum(luma.astype(float) - 16, 0) * 255 / 219
    cb, cr = np.moveaxis(np.repeat(np.repeat(chroma, 2, 0), 2, 1).astype(float) - 128, 2, 0) * 255 / 224
    red, blue = y + 2 * (1 - 0.2126) * cr, y + 2 * (1 - 0.0722) * cb
    green = (y - 0.2126 * red - 0.0722 * blue) / (1 - 0.2126 - 0.0722)
    assert np.abs(got - np.stack([red, green, blue], 2).clip(0, 255)).max() <= 0.5 + 1e-3


@pytest.mark.usefixtures("each_place")
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (3, 5), (5, 4), (4, 7)])
def test_nv12_of_odd_sizes(shape: tuple[int, int]) -> None:
    held = random_nv12(*shape, gap=3)
    same(once(PLAIN, [held])[0], prepare(held.rgb, PLAIN))


# mean and std that take 0 … 255 to what is delicate in a half
DELICATE = {
    "ties of normal numbers": (-2048.0, 1.0),
    "beside ties": (-2048.0 - 2.0**-12, 1.0),
    "beside ties, other side": (-2048.0 + 2.0**-12, 1.0),
    "ties in fours": (4096.0 + 300, -1.0),
    "carries into the exponent": (-4095.0 + 200, 1.0),
    "the largest": (-65400.0, 1.0),
    "the most negative": (-65400.0, -1.0),
    "infinite": (0.0, 1e-30),
    "far beyond": (0.0, 1e-36),
    "not a number": (0.0, 0.0),
    "ties of subnormals": (0.0, 2.0**25),
    "ties of subnormals, negative": (255.0, 2.0**26),
    "subnormals": (100.0, 1e7),
    "normal or not": (-1024.0 + 100, 2.0**24),
    "nearly nothing": (128.0, 3e9),
    "subnormal as float32": (128.0, 1e38),
}


@pytest.mark.usefixtures("each_place")
@pytest.mark.parametrize("name", DELICATE)
def test_half_as_numpy(name: str) -> None:
    mean, std = DELICATE[name]
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    spec = InputSpec(16, mean=(mean,) * 3, std=(std,) * 3)
    with np.errstate(all="ignore"):
        full = prepare(picture, spec)
        wanted = full.astype(np.float16)
    same(once(spec, [picture], half=True)[0], wanted)
    same(once(spec, [picture])[0], full)


@pytest.mark.usefixtures("each_place")
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.tuples(*[st.floats(-7e4, 7e4, width=32)] * 3), st.tuples(*[st.floats(2.0**-13, 2.0**33, width=32)] * 3))
def test_any_half(seed: int, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
    picture, spec = noise(13, 17, seed), InputSpec(9, mean=mean, std=std)
    with np.errstate(all="ignore"):
        wanted = prepare(picture, spec).astype(np.float16)
    same(once(spec, [picture], half=True)[0], wanted)


@pytest.mark.usefixtures("each_place")
def test_raw_rounds_ties_to_even() -> None:
    picture = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, 2)  # halving mixes n and n + 1
    got = once(replace(RAW, size=128), [picture])[0]
    np.testing.assert_array_equal(got[0, :, 0], np.arange(128) * 2)
    same(got, prepare(picture, replace(RAW, size=128)))


@pytest.mark.parametrize(("size", "across", "down"), [(1, 1, 1), (8, 1, 1), (32, 1, 4), (33, 2, 5), (550, 18, 69)])
def test_no_block_is_idle(size: int, across: int, down: int) -> None:
    driver = place().driver
    assert isinstance(driver, HostDriver)
    once(InputSpec(size), [noise(2, 2), noise(3, 1)], half=True)
    assert driver.launches[-1] == ("preprocess_half", (across, down, 2), 256, 0)


def test_rows_gigabytes_apart() -> None:
    pitch, rgb = 2**31 + 1, noise(5, 4)  # the third row of chroma, too, begins beyond 4 GB
    luma, chroma = (np.ascontiguousarray(noise(*shape, 1)[..., :depth]) for shape, depth in (((5, 4), 1), ((3, 2), 2)))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    with mmap.mmap(-1, 5 * pitch, flags) as memory:
        view = np.frombuffer(memory, np.uint8)
        for start, plane in ((7, rgb), (100, luma), (200, chroma)):
            for row, pixels in enumerate(plane.reshape(len(plane), -1)):
                view[start + row * pitch :][: pixels.size] = pixels
        at = view.ctypes.data
        pictures = [DevicePicture(at + 7, 4, 5, pitch), DevicePicture(at + 100, 4, 5, pitch, "nv12-bt601", at + 200, pitch)]
        got = once(PLAIN, list(pictures))
        del view
    same(got, prepare_batch([rgb, by_opencv(luma[..., 0], chroma)], PLAIN))


def worst_cases() -> None:
    """Pictures whose memory ends with their last byte, of every format, in every order of threads."""
    shapes = [(1, 1), (1, 2), (2, 1), (3, 5), (37, 3), (1, 300), (64, 65)]
    held = [packed(noise(*shape), kind, 1, 1) for shape in shapes for kind in ("rgb", "bgr")]
    held += [random_nv12(*shape, gap=1) for shape in shapes]
    pictures: list[Any] = list(held)
    for order, size in product(ORDERS, (1, 33)):
        place().ordered(order)
        for spec in (InputSpec(size), InputSpec(size, "raw", "bgr")):
            same(once(spec, pictures), prepare_batch([each.rgb for each in held], spec))
        once(InputSpec(size), pictures, half=True)
    for name in DELICATE:
        test_half_as_numpy(name)


def test_sanitized() -> None:
    run_sanitized("tests.engines.cuda.test_preprocess_kernel:worst_cases")
