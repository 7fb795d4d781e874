"""The host's side of preprocessing on the GPU: staging, waiting, graphs, the structures' layouts, and what is refused."""

from __future__ import annotations

import ctypes
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.engines.cuda.test_preprocess_kernel import PLAIN, RAW, host, noise, packed, run, same
from tests.helpers.host_driver import KERNELS, HostDriver, missing
from yolact_deploy.engines.cuda.draw import Drawing
from yolact_deploy.engines.cuda.driver import Event, Stream
from yolact_deploy.engines.cuda.preprocess import DevicePicture, DevicePreprocessor, Preprocess, SourcePicture
from yolact_deploy.errors import ConfigError, DeviceError, PictureError
from yolact_deploy.manifest import InputSpec
from yolact_deploy.preprocess import prepare, prepare_batch

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


def test_staging_grows_only_for_larger_pictures() -> None:
    driver, module = HostDriver(), host().module
    spec, before = InputSpec(8), driver.live()
    with DevicePreprocessor(driver, module, spec, 3) as preprocessor:
        assert driver.live() == before + 2  # the table and its page-locked rows
        held = packed(noise(5, 6))
        same(run(preprocessor, spec, [held]), prepare_batch([held.rgb], spec))
        assert driver.live() == before + 2
        free = []
        for shapes in ([(3, 4)], [(700, 900), (2, 3)], [(9, 9), (800, 790), (1, 1)], [(5, 5)]):
            pictures = [noise(*shape) for shape in shapes]
            same(run(preprocessor, spec, list(pictures)), prepare_batch(pictures, spec))
            free.append(driver.free_memory())
        assert free[0] > free[1] == free[2] == free[3]
        crossed: list[Any] = [noise(30, 20).transpose(1, 0, 2), held, noise(30, 20)[::2, ::-3]]
        same(run(preprocessor, spec, crossed), prepare_batch([crossed[0], held.rgb, crossed[2]], spec))
        assert driver.live() == before + 4
    preprocessor.close()
    assert driver.live() == before
    with pytest.raises(ConfigError, match=r"closed"):
        preprocessor.upload([noise(2, 2)], driver.create_stream())
    with pytest.raises(ConfigError, match=r"closed"):
        preprocessor.launch(1, 64, driver.create_stream())


class Telling(Event):
    """An event that writes down what happens to it."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told

    def record(self, stream: Stream) -> None:
        self.told.append(f"record {self.name}")

    def synchronize(self) -> None:
        self.told.append(f"await {self.name}")

    def milliseconds_since(self, earlier: Event) -> float:
        raise NotImplementedError

    def close(self) -> None:
        self.told.append(f"close {self.name}")


def test_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, module = HostDriver(), host().module
    told: list[str] = []
    names = iter(["upload", "use"])
    monkeypatch.setattr(driver, "create_event", lambda: Telling(next(names), told))
    stream = driver.create_stream()
    monkeypatch.setattr(stream, "wait", lambda event: told.append(f"wait {event.name}"))
    monkeypatch.setattr(stream, "synchronize", lambda: told.append("await stream"))
    copy, launch = driver.copy_to_device, driver.launch

    def telling_copy(*arguments: Any) -> None:
        told.append("copy")
        copy(*arguments)

    def telling_launch(*arguments: Any) -> None:
        told.append("launch")
        launch(*arguments)

    monkeypatch.setattr(driver, "copy_to_device", telling_copy)
    monkeypatch.setattr(driver, "launch", telling_launch)
    with DevicePreprocessor(driver, module, RAW, 1) as preprocessor, driver.allocate(16 * 16 * 3) as target:
        whole = ["wait use", "copy", "copy", "record upload", "launch", "record use"]
        fits = noise(1, 349_525)  # the room of the small one, to the last byte
        for picture, waits in ((noise(4, 4), ["await upload", "await use", "await stream"]), (fits, ["await upload"])):
            told.clear()
            preprocessor.enqueue([picture], target.pointer, stream)
            assert told == [*waits, *whole]
        told.clear()
    assert told == ["await upload", "await use", "close upload", "close use"]


def test_a_graph_takes_what_is_uploaded() -> None:
    driver, module = HostDriver(), host().module
    spec = InputSpec(8)
    result = np.empty((2, 3, 8, 8), np.float32)
    with (
        DevicePreprocessor(driver, module, spec, 2) as preprocessor,
        driver.create_stream() as stream,
        driver.allocate(result.nbytes) as target,
        driver.capture(stream, lambda: preprocessor.launch(2, target.pointer, stream)) as graph,
    ):
        for pictures in ([noise(4, 5), noise(6, 7)], [noise(40, 3), noise(900, 800)]):
            preprocessor.upload(pictures, stream)
            graph.launch(stream)
            driver.copy_to_host(result, target.pointer, stream)
            same(result, prepare_batch(pictures, spec))


BAD_PICTURES: list[tuple[dict[str, Any], str]] = [
    ({"format": "nv21"}, r"^The format of a picture is 'nv21', one of rgb, bgr, nv12-bt601, nv12-bt709 was wanted\. Name one"),
    ({"width": 0}, r"^A picture has 0 x 4 pixels, from 1 x 1 up to 2,147,483,647 in all were wanted\. Give its width"),
    ({"height": -1}, "^A picture has 6 x -1 pixels"),
    ({"width": 2**16, "height": 2**15}, "^A picture has 65536 x 32768 pixels"),
    ({"pitch": 17}, r"^The pitch of the rgb pixels is 17 bytes, from 18 \(a row's\) up to 4,294,967,295 were wanted\. Give the bytes"),
    ({"pitch": 2**32}, "^The pitch of the rgb pixels is 4294967296 bytes"),
    ({"pointer": 0}, "^The device address of the rgb pixels is 0x0. Give the address of its first byte"),
    ({"pointer": 2**64}, "^The device address of the rgb pixels is 0x10000000000000000"),
    ({"chroma": 1}, "^A picture of format 'rgb' has a chroma plane, which NV12 has. Leave it out, or name the format"),
    ({"chroma_pitch": 6}, "^A picture of format 'rgb' has a chroma plane"),
    ({"format": "nv12-bt709"}, "^The device address of the chroma is 0x0"),
    ({"format": "nv12-bt601", "pitch": 5, "chroma": 1, "chroma_pitch": 6}, "^The pitch of the nv12-bt601 pixels is 5 bytes, from 6"),
    ({"format": "nv12-bt601", "width": 5, "chroma": 1, "chroma_pitch": 5}, "^The pitch of the chroma is 5 bytes, from 6"),
]


@pytest.mark.parametrize(("change", "message"), BAD_PICTURES)
def test_bad_device_pictures(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PictureError, match=message):
        DevicePicture(**{"pointer": 4096, "width": 6, "height": 4, "pitch": 18, **change})


def test_the_largest_device_pictures() -> None:
    assert DevicePicture(1, 2**31 - 1, 1, 2**32 - 1, "nv12-bt601", 1, 2**31).width == 2**31 - 1
    assert DevicePicture(2**64 - 1, 1, 1, 3).pitch == 3


def test_bad_calls() -> None:
    driver, module = HostDriver(), host().module
    for batch in (0, 65_536):
        with pytest.raises(ConfigError, match=rf"^A batch of {batch} was asked for, 1 … 65535 was wanted\. Give"):
            DevicePreprocessor(driver, module, RAW, batch)
    with pytest.raises(ConfigError, match=r"^An input of 0 pixels a side"):
        DevicePreprocessor(driver, module, replace(RAW, size=0), 1)
    stream, fine = driver.create_stream(), noise(2, 2)
    with DevicePreprocessor(driver, module, RAW, 2) as raw, DevicePreprocessor(driver, module, PLAIN, 2) as plain:
        for pictures in ([], [fine] * 3):
            with pytest.raises(
                PictureError, match=rf"^{len(pictures)} pictures were given, from 1 up to the batch of 2 were wanted. Split"
            ):
                plain.enqueue(pictures, 64, stream)
        with pytest.raises(PictureError, match=r"shape \[2, 2\], RGB \[H, W, 3\] was wanted"):
            plain.enqueue([fine, fine[..., 0]], 64, stream)
        with pytest.raises(PictureError, match=r"float64"):
            plain.enqueue([fine.astype(float)], 64, stream)
        with pytest.raises(PictureError, match=r"^A picture was given as list, a NumPy array or a DevicePicture was wanted. Read it"):
            run(plain, PLAIN, [fine.tolist()])
        huge = np.lib.stride_tricks.as_strided(fine, (2**16, 2**15, 3), (0, 0, 0))
        with pytest.raises(
            PictureError, match=r"^A picture has 32768 x 65536 pixels, the GPU takes 2,147,483,647 in all and 1,431,655,765 in a row"
        ):
            plain.enqueue([huge], 64, stream)
        with pytest.raises(PictureError, match=r"^A picture has 1431655766 x 1 pixels"):
            plain.enqueue([np.lib.stride_tricks.as_strided(fine, (1, 1_431_655_766, 3), (0, 0, 0))], 64, stream)
        for count in (0, 3):
            with pytest.raises(ConfigError, match=rf"^{count} pictures were to be prepared, 1 … 2 was wanted\. Give how many"):
                plain.launch(count, 64, stream)
        with pytest.raises(ConfigError, match=r"^A half input was asked for, the layout 'raw' has uint8"):
            raw.enqueue([fine], 64, stream, half=True)
        for target, half, alignment in ((66, False, 4), (65, True, 2), (0, False, 4)):
            with pytest.raises(
                ConfigError, match=rf"^The input's device address is {target:#x}, a multiple of {alignment} was wanted. Give"
            ):
                plain.enqueue([fine], target, stream, half)


def test_memory_that_cannot_be_had_leaves_none_held() -> None:
    driver = HostDriver(memory=4 << 20)
    module = driver.load_module(driver.image)
    with pytest.raises(DeviceError, match=r"memory were asked for"):
        DevicePreprocessor(driver, module, RAW, 60_000)
    assert driver.live() == 0
    with DevicePreprocessor(driver, module, RAW, 1) as preprocessor, driver.allocate(768) as target, driver.create_stream() as stream:
        with pytest.raises(DeviceError, match=r"memory were asked for"):
            preprocessor.enqueue([noise(1000, 1000)], target.pointer, stream)
        preprocessor.enqueue([noise(10, 10)], target.pointer, stream)
        result = np.empty((16, 16, 3), np.uint8)
        driver.copy_to_host(result, target.pointer, stream)
    same(result, prepare(noise(10, 10), RAW))


def members(file: str, name: str) -> list[tuple[str, int]]:
    """Name and bytes of each member of a structure in the kernels' sources."""
    text = re.sub(r"//[^\n]*", "", (KERNELS / file).read_text(encoding="utf-8"))
    found = re.search(rf"\bstruct {name} \{{(.*?)\}};", text, re.DOTALL)
    assert found
    result = []
    for kind, names in re.findall(r"\s*((?:const )?\w+)\s+([^;]+);", found[1]):
        for each in names.split(","):
            word = re.fullmatch(r"(\*?)(\w+)(?:\[(\d+)\])?", each.strip())
            assert word, each
            assert word[1] or kind in ("int", "u32", "float"), kind
            result.append((word[2], 8 if word[1] else 4 * int(word[3] or 1)))
    return result


@pytest.mark.parametrize("structure", [SourcePicture, Preprocess, Drawing])
def test_structures_are_laid_out_alike(structure: type[ctypes.Structure]) -> None:
    own = [(field[0], getattr(structure, field[0]).size) for field in structure._fields_]
    assert own == members("pictures.cuh", structure.__name__)
    assert ctypes.sizeof(structure) == sum(size for _, size in own)
    assert f"sizeof({structure.__name__}) == {ctypes.sizeof(structure)}," in (KERNELS / "pictures.cuh").read_text(encoding="utf-8")
