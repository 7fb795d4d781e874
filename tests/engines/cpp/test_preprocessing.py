"""What arrives at the engine is what Python's preparation makes of a picture, bit for bit, whatever its size, pitch, format and memory."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from tests.engines.cpp.standin.made_heads import made_heads
from tests.engines.cpp.truth import noise, picture_line
from tests.helpers.cpp_engines import write_recorded_engine
from tests.helpers.cpp_library import CppLibrary, run_commands
from tests.helpers.host_driver import HostDriver
from tests.helpers.tiny import tiny_variant
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.cuda.preprocess import DevicePicture, DevicePreprocessor, PictureFormat
from yolact_deploy.manifest import InputSpec
from yolact_deploy.preprocess import prepare

SIZE = 64
INPUTS: dict[str, tuple[Literal["float", "raw"], Literal["rgb", "bgr"], str | None]] = {
    "float": ("float", "rgb", None),
    "half": ("float", "rgb", "float16"),
    "rgb": ("raw", "rgb", None),
    "bgr": ("raw", "bgr", None),
}
SIZES = [(1, 1), (2, 1), (1, 5), (3, 3), (31, 33), (64, 64), (65, 63), (1000, 3), (7, 999), (320, 241)]
NV12: dict[int, PictureFormat] = {2: "nv12-bt601", 3: "nv12-bt709"}


class Fed:
    """An engine of one kind of input, and what it was fed."""

    def __init__(self, library: CppLibrary, folder: Path, kind: str) -> None:
        layout, channels, dtype = INPUTS[kind]
        variant = tiny_variant(input_size=SIZE)
        self.library, self.folder, self.half = library, folder, dtype == "float16"
        self.spec = InputSpec.of(variant, layout, channels)
        options: Any = {"input_dtype": dtype, "precision": "fp16" if dtype else "fp32", "batch": BatchRange(1, 1, 4)}
        self.engine = write_recorded_engine(folder, variant, made_heads(variant, 2), self.spec, **options)

    def inputs(self, pictures: list[str], *, graphs: int = 0) -> np.ndarray[Any, Any]:
        """Of a batch with these pictures, given as commands."""
        chosen = ",".join(map(str, range(len(pictures))))
        lines = [f"load path={self.engine} graphs={graphs}", *pictures, *[f"detect pictures={chosen}"] * (1 + 2 * graphs)]
        *answers, left = run_commands(self.library, [*lines, f"input file={self.folder / 'input'}"])
        assert not [answer for answer in answers if isinstance(answer, dict)], answers
        assert left == ""
        dtype = np.uint8 if self.spec.layout == "raw" else np.float16 if self.half else np.float32
        shape = (SIZE, SIZE, 3) if self.spec.layout == "raw" else (3, SIZE, SIZE)
        return np.frombuffer((self.folder / "input").read_bytes(), dtype).reshape(-1, *shape)

    def wanted(self, picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        prepared = prepare(picture, self.spec)
        return prepared.astype(np.float16) if self.half else prepared


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("bgr", [False, True])
def test_pictures_of_any_size_and_pitch(library: CppLibrary, tmp_path: Path, kind: str, bgr: bool) -> None:
    fed = Fed(library, tmp_path, kind)
    for first in range(0, len(SIZES), 4):
        pictures = [noise(width, height, first) for width, height in SIZES[first : first + 4]]
        lines = []
        for index, picture in enumerate(pictures):
            pitch = [0, 3 * picture.shape[1], 3 * picture.shape[1] + 1, 3 * picture.shape[1] + 61][index]
            lines.append(picture_line(tmp_path, f"{index}.raw", picture, pitch, bgr=bgr, device=0 if (first + index) % 3 == 2 else None))
        found = fed.inputs(lines, graphs=int(first == 0))
        np.testing.assert_array_equal(found, np.stack([fed.wanted(picture) for picture in pictures]))


def nv12(width: int, height: int, pitch: int, chroma_pitch: int, gap: int, seed: int) -> tuple[bytes, int]:
    """The planes in one piece of memory, the last row without what would follow it; and where the second begins."""
    generator = np.random.default_rng((seed, width, height))
    rows, row = (height + 1) // 2, (width + 1) // 2 * 2
    luma, chroma = generator.integers(0, 256, (height, pitch), np.uint8), generator.integers(0, 256, (rows, chroma_pitch), np.uint8)
    first = luma.tobytes() + bytes(gap)
    return first + chroma.tobytes()[: chroma_pitch * (rows - 1) + row], len(first)


def truth(spec: InputSpec, half: bool, content: bytes, start: int, size: tuple[int, int], pitches: tuple[int, int], kind: int) -> Any:
    """What Python's GPU preprocessing makes of it."""
    driver = HostDriver()
    dtype = np.uint8 if spec.layout == "raw" else np.float16 if half else np.float32
    found = np.empty((SIZE, SIZE, 3) if spec.layout == "raw" else (3, SIZE, SIZE), dtype)
    with (
        driver.create_stream() as stream,
        driver.allocate(len(content)) as memory,
        driver.allocate(found.nbytes) as target,
        DevicePreprocessor(driver, driver.load_module(driver.image), spec, 1) as preprocessor,
    ):
        driver.copy_to_device(memory.pointer, np.frombuffer(content, np.uint8), stream)
        planes = DevicePicture(memory.pointer, *size, pitches[0], NV12[kind], memory.pointer + start, pitches[1])
        preprocessor.enqueue([planes], target.pointer, stream, half=half)
        driver.copy_to_host(found, target.pointer, stream)
        stream.synchronize()
    return found


@pytest.mark.parametrize("kind", NV12)
@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("given", INPUTS)
def test_nv12(library: CppLibrary, tmp_path: Path, given: str, kind: int, device: bool) -> None:
    fed = Fed(library, tmp_path, given)
    cases = [(1, 1, 1, 2, 0), (5, 3, 6, 6, 0), (7, 9, 7, 8, 0), (64, 48, 80, 96, 11)]  # width, height, pitches, bytes between the planes
    lines, wanted = [], []
    for index, (width, height, pitch, chroma_pitch, gap) in enumerate(cases):
        content, start = nv12(width, height, pitch, chroma_pitch, gap, index)
        (tmp_path / f"{index}.nv12").write_bytes(content)
        left_out = gap == 0  # the second plane then follows, with the first one's pitch or the next even number
        told = f"pitch={pitch if pitch != width else 0}" + ("" if left_out else f" chroma={start} chroma_pitch={chroma_pitch}")
        where = " space=1 device=0" if device else ""
        lines.append(f"picture file={tmp_path / f'{index}.nv12'} width={width} height={height} format={kind} {told}{where}")
        wanted.append(truth(fed.spec, fed.half, content, start, (width, height), (pitch, chroma_pitch), kind))
    np.testing.assert_array_equal(fed.inputs(lines), np.stack(wanted))


def test_mixed_batches(library: CppLibrary, tmp_path: Path) -> None:
    fed = Fed(library, tmp_path, "float")
    rgb, bgr = noise(90, 50), noise(33, 21, 1)
    content, start = nv12(30, 20, 30, 30, 0, 5)
    (tmp_path / "planes").write_bytes(content)
    lines = [
        picture_line(tmp_path, "rgb", rgb, device=0),
        f"picture file={tmp_path / 'planes'} width=30 height=20 format=3",
        picture_line(tmp_path, "bgr", bgr, 107, bgr=True),
        picture_line(tmp_path, "again", rgb),
    ]
    planes = truth(fed.spec, False, content, start, (30, 20), (30, 30), 3)
    np.testing.assert_array_equal(fed.inputs(lines, graphs=1), np.stack([fed.wanted(rgb), planes, fed.wanted(bgr), fed.wanted(rgb)]))


def test_staging_memory_grows_once(library: CppLibrary, tmp_path: Path) -> None:
    fed = Fed(library, tmp_path, "float")
    pictures = [noise(5, 5), noise(700, 600), noise(690, 600), noise(9, 9)]  # 75 bytes, then 1.2 MB of 2 MiB
    lines = [picture_line(tmp_path, f"{index}.raw", picture) for index, picture in enumerate(pictures)]
    asked = [line for index in (0, 0, 0, 1, 2, 3, 1) for line in (f"detect results=1 pictures={index}", "counts")]
    _, *_, left = answers = run_commands(fed.library, [f"load path={fed.engine} contexts=1", *lines, *asked])
    assert left == ""
    counts = [answer["cuMemAlloc_v2"] for answer in answers if isinstance(answer, dict)]
    assert [later - earlier for earlier, later in pairwise(counts)] == [0, 0, 1, 0, 0, 0]


REFUSED = {
    "width=0 height=4": "0 x 4 pixels, from 1 x 1 up to 2,147,483,647",
    "width=4 height=-1": "4 x -1 pixels",
    "width=65536 height=32768": "65536 x 32768 pixels",
    "width=4 height=4 pitch=11": "pitch of the rgb pixels is 11 bytes, from 12",
    "width=4 height=4 pitch=4294967296": "up to 4,294,967,295",
    "width=4 height=4 null=1": "address of the rgb pixels is null",
    "width=4 height=4 format=4": "format of a picture is 4",
    "width=4 height=4 format=-1": "format of a picture is -1",
    "width=4 height=4 space=2": "memory space of a picture is 2",
    "width=4 height=4 space=-1": "memory space of a picture is -1",
    "width=4 height=4 space=1": "are not in the memory of GPU 0 (Stub GPU 0)",
    "width=4 height=4 space=1 device=1": "are not in the memory of GPU 0",
    "width=4 height=4 device=0": "are in a GPU's memory, which the host cannot read",
    "width=4 height=4 chroma=20": "has a chroma plane, which NV12 has",
    "width=4 height=4 format=1 chroma_pitch=20": "'bgr' has a chroma plane",
    "width=4 height=4 format=2 pitch=3": "pitch of the nv12-bt601 pixels is 3 bytes, from 4",
    "width=5 height=4 format=3 chroma_pitch=5": "pitch of the chroma is 5 bytes, from 6",
}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_refused_pictures(library: CppLibrary, tmp_path: Path, asynchronous: bool) -> None:
    fed = Fed(library, tmp_path, "float")
    (tmp_path / "bytes").write_bytes(bytes(200))
    pictures = [f"picture file={tmp_path / 'bytes'} width=4 height=4", *(f"picture file={tmp_path / 'bytes'} {given}" for given in REFUSED)]
    command = "submit" if asynchronous else "detect"
    asked = [f"{command} pictures={number}" for number in range(1, len(pictures))] + [f"{command} pictures=0,1", f"{command} pictures=0"]
    lines = [f"load path={fed.engine}", *pictures, *asked, "counts"]
    *answers, counts, left = run_commands(library, lines, devices=2)
    assert left == ""
    assert counts["run"] == 1  # of the last one alone
    for given, answer in zip(REFUSED, answers[1 + len(pictures) :]):
        assert answer["code"] == 4, given
        assert REFUSED[given] in answer["error"], given
    assert answers[-2]["code"] == 4
    assert len(answers[-1]) == 1


def test_the_largest_pitches_are_taken(library: CppLibrary, tmp_path: Path) -> None:
    fed = Fed(library, tmp_path, "float")
    picture = noise(9, 1)
    (tmp_path / "row").write_bytes(picture.tobytes())
    found = fed.inputs([f"picture file={tmp_path / 'row'} width=9 height=1 pitch=4294967295 space=1 device=0"])
    np.testing.assert_array_equal(found[0], fed.wanted(picture))
