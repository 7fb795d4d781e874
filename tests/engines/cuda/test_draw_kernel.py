"""Tinted masks, drawn on the CPU by the GPU's kernel, against the same composition by OpenCV."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.engines.cuda.kernel_runs import Runner
from tests.engines.cuda.test_preprocess_kernel import place, placed_at
from tests.helpers.host_driver import ORDERS, HostDriver, missing, run_sanitized
from yolact_deploy.engines.cuda.draw import DeviceFrame, DeviceMasks, MaskPainter
from yolact_deploy.errors import ConfigError, PictureError

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

Order = Literal["rgb", "bgr", "rgba", "bgra"]
ORDERS_OF_CHANNELS: tuple[Order, ...] = ("rgb", "bgr", "rgba", "bgra")


@pytest.fixture
def each_place(runner: Runner) -> Iterator[None]:
    yield from placed_at(runner)


@dataclass(frozen=True)
class Scene:
    """A frame uint8 [H, W, 3 or 4], masks bool [slots, H, W], best first, their labels, how many there are, and the classes' colours."""

    frame: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int32]
    count: int
    colours: NDArray[np.uint8]

    @classmethod
    def random(cls, height: int, width: int, count: int, seed: int = 0, *, slots: int | None = None, channels: int = 3) -> Scene:
        rng, room = np.random.default_rng(seed), count if slots is None else slots
        masks = rng.random((room, height, width)) < rng.choice([0.05, 0.5, 0.9], (room, 1, 1))
        # Boxes, so that some tiles have no part in a mask.
        tops, lefts = rng.integers(0, height, room), rng.integers(0, width, room)
        for mask, top, left in zip(masks[::2], tops, lefts):
            mask[: top // 2] = mask[:, : left // 2] = mask[top + 1 :] = mask[:, left + 1 :] = False
        frame = rng.integers(0, 256, (height, width, channels), np.uint8)
        labels = rng.integers(0, 5, room).astype(np.int32)
        return cls(frame, masks, labels, count, rng.integers(0, 256, (5, 3), np.uint8))

    def composed(self, alpha: float, order: Order = "rgb") -> NDArray[np.uint8]:
        """The worst first, as drawing.draw_detections does; alpha and what no mask covers stay."""
        result = self.frame.copy()
        for index in reversed(range(min(self.count, len(self.masks)))):
            colour = self.colours[self.labels[index] % len(self.colours)]
            for channel in range(3):
                part = int(colour[channel if order.startswith("rgb") else 2 - channel])
                values = result[..., channel]
                result[..., channel] = np.where(self.masks[index], blended(alpha)[values, part], values)
        return result


@cache
def blended(alpha: float) -> NDArray[np.uint8]:
    """uint8 [value, colour]: round(value * (1 - alpha) + colour * alpha), the sum rounded once, after a rounded second product."""
    value, colour = np.arange(256, dtype=np.longdouble)[:, None], np.arange(256, dtype=np.float32)
    keep = np.longdouble(np.float32(1 - alpha))
    mixed = (value * keep + (colour * np.float32(alpha)).astype(np.longdouble)).astype(np.float32)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def by_opencv(alpha: float) -> NDArray[np.uint8]:
    values = np.arange(256, dtype=np.uint8)[:, None].repeat(256, 1)
    return np.asarray(cv2.addWeighted(values, 1 - alpha, np.ascontiguousarray(values.T), alpha, 0), np.uint8)


def words_of(masks: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """uint32 [slots, H * ceil(W / 32)]."""
    slots, height, width = masks.shape
    padded = np.zeros((slots, height, -(-width // 32) * 32), bool)
    padded[..., :width] = masks
    return np.packbits(padded, axis=2, bitorder="little").view("<u4").reshape(slots, -1)


def drawn(scene: Scene, alpha: float = 0.45, order: Order = "rgb", gap: int = 0, more_words: int = 0) -> NDArray[np.uint8]:
    """The frame after the kernel, in memory that ends with its last pixel; what lies between the rows must stay."""
    driver, module = place().driver, place().module
    height, width, channels = scene.frame.shape
    pitch, start = width * channels + gap, gap % 7
    memory = np.full(start + (height - 1) * pitch + width * channels, 0x5C, np.uint8)
    view = np.lib.stride_tricks.as_strided(memory[start:], scene.frame.shape, (pitch, channels, 1))
    view[:] = scene.frame
    words = np.pad(words_of(scene.masks), ((0, 0), (0, more_words)), constant_values=0xFFFFFFFF)
    words = words.reshape(-1)[: words.size - more_words]
    painter = MaskPainter(driver, module, scene.colours)
    arrays: list[NDArray[Any]] = [memory, words, np.array([scene.count], np.uint32), scene.labels]
    buffers = [driver.allocate(max(array.nbytes, 4)) for array in arrays]
    wanted = memory.copy()
    with driver.create_stream() as stream:
        for buffer, array in zip(buffers, arrays):
            driver.copy_to_device(buffer.pointer, array, stream)
        frame = DeviceFrame(buffers[0].pointer + start, width, height, pitch, order)
        each = words_of(scene.masks[:1]).size + more_words if len(scene.masks) else more_words + 10**6
        masks = DeviceMasks(buffers[1].pointer, each, buffers[2].pointer, buffers[3].pointer, max(len(scene.masks), 1))
        painter.enqueue(frame, masks, stream, alpha=alpha)
        driver.copy_to_host(memory, buffers[0].pointer, stream)
        stream.synchronize()
    painter.close()
    result = view.copy()
    view[:] = scene.frame
    np.testing.assert_array_equal(memory, wanted)
    return result


@pytest.mark.usefixtures("each_place")
@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 5),
    st.one_of(st.integers(1, 70), st.sampled_from([255, 256, 257, 289, 512, 530])),
    st.integers(0, 70),
    st.sampled_from(ORDERS_OF_CHANNELS),
    st.sampled_from([0.0, 0.05, 0.3, 0.45, 0.5, 1.0]),
    st.integers(0, 1000),
    st.sampled_from(ORDERS),
)
@example(1, 1, 1, "rgba", 0.45, 0, "reverse")
@example(2, 257, 65, "bgr", 0.3, 1, "shuffled")
@example(1, 32, 32, "rgb", 0.45, 2, "forward")
@example(1, 32, 33, "rgb", 0.45, 2, "reverse")
def test_any_scene(height: int, width: int, count: int, order: Order, alpha: float, seed: int, threads: str) -> None:
    place().ordered(threads)
    scene = Scene.random(height, width, count, seed, slots=max(count, 1), channels=len(order))
    np.testing.assert_array_equal(drawn(scene, alpha, order, seed % 50, seed % 4), scene.composed(alpha, order))


@pytest.mark.usefixtures("each_place")
@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.1, 0.3, 1 / 3, 0.45, 0.5, 0.9999, 1.0])
def test_every_pair_as_opencv(alpha: float) -> None:
    """A frame's column of one grey for each detection, each of a colour of its own."""
    frame = np.arange(256, dtype=np.uint8)[:, None, None].repeat(256, 1).repeat(3, 2)
    masks = np.eye(256, dtype=bool)[:, None].repeat(256, 1)
    greys = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    got = drawn(Scene(frame, masks, np.arange(256, dtype=np.int32), 256, greys), alpha)
    np.testing.assert_array_equal(got, blended(alpha)[..., None].repeat(3, 2))
    differing = np.abs(by_opencv(alpha).astype(int) - got[..., 0])
    # Where the processor has no fused multiply-add, or OpenCV does not use it, some of the exact halves fall on the other side.
    assert differing.max() <= 1
    assert (differing > 0).mean() <= (0 if np.array_equal(by_opencv(0.1), blended(0.1)) else 0.02)


@pytest.mark.usefixtures("each_place")
def test_the_best_is_on_top() -> None:
    frame, masks = np.zeros((1, 3, 3), np.uint8), np.array([[[1, 1, 0]], [[0, 1, 1]]], bool)
    colours = np.array([[200, 100, 50], [10, 20, 30]], np.uint8)
    got = drawn(Scene(frame, masks, np.array([0, 1], np.int32), 2, colours), 1.0)
    assert got.tolist() == [[[200, 100, 50], [200, 100, 50], [10, 20, 30]]]


@pytest.mark.usefixtures("each_place")
@pytest.mark.parametrize("count", [0, 3, 40, 2**31, 2**32 - 1])
def test_the_count_is_held_to_the_slots(count: int) -> None:
    scene = replace(Scene.random(3, 40, 40), count=count)
    np.testing.assert_array_equal(drawn(scene), scene.composed(0.45))
    assert count or np.array_equal(scene.composed(0.45), scene.frame)


@pytest.mark.usefixtures("each_place")
def test_labels_start_over() -> None:
    scene = Scene.random(3, 40, 9)
    scene.labels[:] = np.arange(9) + 2**31 - 9
    np.testing.assert_array_equal(drawn(scene), scene.composed(0.45))


@pytest.mark.usefixtures("each_place")
def test_bits_beyond_the_width_are_nothing() -> None:
    scene = Scene.random(4, 33, 5)
    driver, module = place().driver, place().module
    words = words_of(scene.masks).reshape(5, 4, 2)
    words[..., 1] |= 0xFFFFFFFE
    memory = scene.frame.copy()
    arrays: list[NDArray[Any]] = [memory, words, np.array([5], np.uint32), scene.labels]
    buffers = [driver.allocate(array.nbytes) for array in arrays]
    with driver.create_stream() as stream:
        for buffer, array in zip(buffers, arrays):
            driver.copy_to_device(buffer.pointer, array, stream)
        masks = DeviceMasks(buffers[1].pointer, 8, buffers[2].pointer, buffers[3].pointer, 5)
        MaskPainter(driver, module, scene.colours).enqueue(DeviceFrame(buffers[0].pointer, 33, 4, 99), masks, stream)
        driver.copy_to_host(memory, buffers[0].pointer, stream)
        stream.synchronize()
    np.testing.assert_array_equal(memory, scene.composed(0.45))


def test_rows_and_masks_gigabytes_apart() -> None:
    driver, module = place().driver, place().module
    scene, pitch, words = Scene.random(3, 40, 3), 2**32 - 1, 2**31 + 1
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    count = np.array([3], np.uint32)
    with mmap.mmap(-1, 3 * pitch, flags) as pixels, mmap.mmap(-1, 4 * 3 * words, flags) as bits, driver.create_stream() as stream:
        frame, masks = np.frombuffer(pixels, np.uint8), np.frombuffer(bits, np.uint32)
        rows = [frame[row * pitch :][:120].reshape(40, 3) for row in range(3)]
        for row, given_row in zip(rows, scene.frame):
            row[:] = given_row
        for index, mask in enumerate(words_of(scene.masks)):
            masks[index * words :][:6] = mask
        MaskPainter(driver, module, scene.colours).enqueue(
            DeviceFrame(frame.ctypes.data, 40, 3, pitch),
            DeviceMasks(masks.ctypes.data, words, count.ctypes.data, scene.labels.ctypes.data, 3),
            stream,
        )
        got = np.stack(rows)
        del frame, masks, row, rows
    np.testing.assert_array_equal(got, scene.composed(0.45))


BAD_FRAMES: list[tuple[dict[str, Any], str]] = [
    ({"order": "argb"}, r"^The order of a frame's channels is 'argb', one of rgb, bgr, rgba, bgra was wanted\. Name one"),
    ({"width": 0}, "^A frame has 0 x 4 pixels, from 1 x 1 up to 16,776,960 x 2,147,483,647 were wanted. Give its width"),
    ({"width": 65_535 * 256 + 1}, "^A frame has 16776961 x 4 pixels"),
    ({"height": 0}, "^A frame has 6 x 0 pixels"),
    ({"height": 2**31}, "^A frame has 6 x 2147483648 pixels"),
    ({"pitch": 17}, r"^The pitch of a frame is 17 bytes, from 18 \(a row's\) up to 4,294,967,295 were wanted\. Give the bytes"),
    ({"pitch": 23, "order": "bgra"}, r"^The pitch of a frame is 23 bytes, from 24"),
    ({"pitch": 2**32}, "^The pitch of a frame is 4294967296 bytes"),
    ({"pointer": 0}, "^The device address of a frame is 0x0. Give the address of its first byte"),
    ({"pointer": 2**64}, "^The device address of a frame is 0x10000000000000000"),
]


@pytest.mark.parametrize(("change", "message"), BAD_FRAMES)
def test_bad_frames(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PictureError, match=message):
        DeviceFrame(**{"pointer": 4096, "width": 6, "height": 4, "pitch": 18, **change})


BAD_MASKS: list[tuple[dict[str, Any], str]] = [
    ({"words": 7}, "^5 masks of 7 words were given, 8 words hold one of 33 x 4 pixels. Give the masks of this frame"),
    ({"words": 2**32}, "^5 masks of 4294967296 words"),
    ({"slots": 0}, "^0 masks of 8 words"),
    ({"slots": 2**31}, "^2147483648 masks of 8 words"),
    ({"bits": 0}, "^The device address of bits is 0x0, a multiple of 4 was wanted. Give its start"),
    ({"count": 6}, "^The device address of count is 0x6, a multiple of 4"),
    ({"labels": -4}, "^The device address of labels is -0x4, a multiple of 4"),
]


@pytest.mark.parametrize(("change", "message"), BAD_MASKS)
def test_bad_masks(change: dict[str, Any], message: str) -> None:
    driver, module = place().driver, place().module
    painter, stream = MaskPainter(driver, module, np.zeros((1, 3), np.uint8)), driver.create_stream()
    masks = DeviceMasks(**{"bits": 64, "words": 8, "count": 64, "labels": 64, "slots": 5, **change})
    with pytest.raises(ConfigError, match=message):
        painter.enqueue(DeviceFrame(4096, 33, 4, 99), masks, stream)


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan")])
def test_bad_alpha(alpha: float) -> None:
    driver, module = place().driver, place().module
    painter, stream = MaskPainter(driver, module, np.zeros((1, 3), np.uint8)), driver.create_stream()
    with pytest.raises(ConfigError, match=rf"^alpha is {alpha}, 0 … 1 was wanted\. 0 leaves"):
        painter.enqueue(DeviceFrame(4096, 1, 1, 3), DeviceMasks(64, 1, 64, 64, 1), stream, alpha=alpha)


@pytest.mark.parametrize("shape", [(0, 3), (2, 4), (3,), (1, 3, 1)])
def test_bad_colours(shape: tuple[int, ...]) -> None:
    driver, module = place().driver, place().module
    with pytest.raises(ConfigError, match=r"^The colours are uint8 \[[\d, ]+\], uint8 \[C, 3\] with C >= 1 was wanted\. Give one"):
        MaskPainter(driver, module, np.zeros(shape, np.uint8))
    with pytest.raises(ConfigError, match=r"^The colours are float32"):
        MaskPainter(driver, module, np.zeros((2, 3), np.float32))


@pytest.mark.parametrize(("width", "tiles"), [(1, 1), (256, 1), (257, 2)])
def test_no_block_is_idle(width: int, tiles: int) -> None:
    driver = place().driver
    assert isinstance(driver, HostDriver)
    drawn(Scene.random(3, width, 1))
    assert driver.launches[-1] == ("draw_masks", (3, tiles, 1), 256, 0)


def test_colours_may_lie_anyhow() -> None:
    scene, driver = Scene.random(3, 40, 4), place().driver
    assert isinstance(driver, HostDriver)
    before = driver.live()
    turned = replace(scene, colours=np.asfortranarray(scene.colours)[::-1])
    np.testing.assert_array_equal(drawn(turned), turned.composed(0.45))
    assert driver.live() == before


def worst_cases() -> None:
    """Frames, masks and tables that end where their memory does, in every order of threads."""
    for threads in ORDERS:
        place().ordered(threads)
        for height, width, count in ((1, 1, 1), (3, 31, 33), (2, 257, 64), (2, 300, 2), (5, 32, 100)):
            for order in ORDERS_OF_CHANNELS:
                scene = Scene.random(height, width, count, width, channels=len(order))
                np.testing.assert_array_equal(drawn(scene, 0.45, order, count), scene.composed(0.45, order))
        test_the_count_is_held_to_the_slots(2**32 - 1)
        test_labels_start_over()


def test_sanitized() -> None:
    run_sanitized("tests.engines.cuda.test_draw_kernel:worst_cases")
