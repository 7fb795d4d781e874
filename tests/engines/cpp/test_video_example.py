"""video_pipeline: frames come out in their order, tinted where something was found and unchanged elsewhere; whatever fails, it ends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.engines.cpp.test_detect import recorded
from tests.engines.cpp.test_preprocessing import SIZE, truth
from tests.engines.cpp.truth import Recorded
from tests.helpers.cpp_engines import chosen_rows
from tests.helpers.cpp_library import CppLibrary
from yolact_deploy.assembly import Heads, detect
from yolact_deploy.detections import Detections

SMALL: dict[str, Any] = {"input_size": SIZE, "num_classes": 9}
SCORE, BT709 = 0.15, 3
Planes = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # luma [H, W], chroma [2, ceil(H / 2), ceil(W / 2)]


def made_frames(width: int, height: int, count: int) -> list[Planes]:
    """Noise, of another brightness in each frame, so that neighbours find different things."""
    generator, frames = np.random.default_rng((width, height, count)), []
    for index in range(count):
        luma = np.clip(16 + index * 67 % 210 + generator.integers(-9, 9, (height, width)), 0, 255).astype(np.uint8)
        frames.append((luma, generator.integers(110, 150, (2, -(-height // 2), -(-width // 2)), np.uint8)))
    return frames


def video(header: str, frames: list[Planes], start: bytes = b"FRAME\n") -> bytes:
    return header.encode() + b"\n" + b"".join(start + luma.tobytes() + chroma.tobytes() for luma, chroma in frames)


def found_in(engine: Recorded, frame: Planes) -> Detections:
    """Python's detections in a frame: its GPU preprocessing on the CPU, then its post-processing of the row that this chooses."""
    luma, chroma = frame
    height, width = luma.shape
    content = luma.tobytes() + np.ascontiguousarray(chroma.transpose(1, 2, 0)).tobytes()
    prepared = truth(engine.spec, False, content, luma.size, (width, height), (width, 2 * chroma.shape[2]), BT709)
    row = chosen_rows(prepared[None], len(engine.outputs["boxes"]), engine.choose)[0]
    heads = Heads(*(engine.outputs[name][row] for name in ("boxes", "scores", "coefficients", "prototypes")))
    return detect(heads, width, height, engine.classes, engine.settings(), input_size=engine.spec.size).above(SCORE)


def tinted(frame: Planes, found: Detections) -> Planes:
    luma, chroma = frame
    painted = chroma.astype(int)
    for index in reversed(range(len(found))):
        hue = int(found.labels[index]) * 83
        mask = found.bitmap(index)[::2, ::2]
        for plane, colour in zip(painted, (hue % 256, hue * 7 % 256), strict=True):
            plane[mask] = (plane[mask] + colour) // 2
    return luma, painted.astype(np.uint8)


def piped(library: CppLibrary, engine: Recorded, given: bytes, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    command = [library.example("video_pipeline"), engine.engine, "-", "-"]
    return subprocess.run(command, input=given, capture_output=True, env=library.environment(**settings), timeout=100, check=False)


def told(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line that an error ends with."""
    text = done.stderr.decode()
    assert done.returncode == 1, text
    assert text.startswith("video_pipeline: ")
    assert text.count("\n") == 1
    return text.removeprefix("video_pipeline: ").rstrip("\n")


@pytest.fixture
def engine(library: CppLibrary, tmp_path: Path) -> Recorded:
    return recorded(library, tmp_path, SMALL)


CASES = {
    "jpeg": ("YUV4MPEG2 W{} H{} F25:1 Ip A1:1 C420jpeg", 40, 30, 7),
    "mpeg2": ("YUV4MPEG2 W{} H{} F30000:1001 It A0:0 C420mpeg2 XYSCSS=420MPEG2", 33, 21, 2),
    "pal": ("YUV4MPEG2 W{} H{} C420paldv F25:1", 64, 2, 3),
    "plain": ("YUV4MPEG2 H{1} W{0} C420", 31, 64, 3),
    "not named": ("YUV4MPEG2 W{} H{}", 97, 50, 40),
    "a pixel": ("YUV4MPEG2 W{} H{} F1:1", 1, 1, 1),
    "a column": ("YUV4MPEG2 W{} H{} F1:1", 1, 9, 3),
    "none": ("YUV4MPEG2 W{} H{} F1:1", 8, 8, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_frames_come_in_order(library: CppLibrary, engine: Recorded, tmp_path: Path, case: str) -> None:
    header, width, height, count = CASES[case]
    header, frames = header.format(width, height), made_frames(width, height, count)
    found = [found_in(engine, frame) for frame in frames]
    wanted = video(header, [tinted(*pair) for pair in zip(frames, found, strict=True)])
    given = video(header, frames, b"FRAME Ip Xa=b\n" if case == "mpeg2" else b"FRAME\n")
    done = piped(library, engine, given)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == wanted
    assert done.stderr.decode().startswith(f"{count} frames with {sum(map(len, found))} instances, ")
    if count > 3:
        assert len({one.counts for one in found}) > 2
        assert wanted != given
    (tmp_path / "in.y4m").write_bytes(given)
    command = [library.example("video_pipeline"), engine.engine, tmp_path / "in.y4m", tmp_path / "out.y4m"]
    subprocess.run(command, env=library.environment(), capture_output=True, timeout=100, check=True)
    assert (tmp_path / "out.y4m").read_bytes() == wanted


HEAD, FRAME = b"YUV4MPEG2 W4 H2 F25:1\n", b"FRAME\n" + bytes(12)
NO_VIDEO = "The video is no YUV4MPEG2: pipe it through ffmpeg -f yuv4mpegpipe."
BROKEN: dict[str, tuple[bytes, str, int]] = {
    "nothing": (b"", NO_VIDEO, 0),
    "an MP4": (b"\x00\x00\x00\x20ftypisom" + bytes(50), NO_VIDEO, 0),
    "a long line": (b"x" * 5000, "The video is no YUV4MPEG2.", 0),
    "4:2:2": (b"YUV4MPEG2 W4 H2 C422\n", "The video is C422: convert it with -pix_fmt yuv420p.", 0),
    "4:4:4": (b"YUV4MPEG2 W4 H2 C444\n", "The video is C444: convert it", 0),
    "ten bits": (b"YUV4MPEG2 W4 H2 C420p10\n", "The video is C420p10: convert it", 0),
    "grey": (b"YUV4MPEG2 W4 H2 Cmono\n", "The video is Cmono: convert it", 0),
    "no size": (b"YUV4MPEG2 F25:1\n", "The video tells no size.", 0),
    "no height": (b"YUV4MPEG2 W4 F25:1\n", "The video tells no size.", 0),
    "a negative size": (b"YUV4MPEG2 W-4 H2\n", "The video tells no size.", 0),
    "a huge size": (b"YUV4MPEG2 W4 H40000\n", "The video tells no size.", 0),
    "cut in the first frame": (HEAD + FRAME[:-1], "The video is cut short in a frame.", 0),
    "cut in the luma": (HEAD + FRAME * 3 + FRAME[:9], "The video is cut short in a frame.", 3),
    "cut behind a line": (HEAD + FRAME * 9 + b"FRAME\n", "The video is cut short in a frame.", 9),
    "cut in a line": (HEAD + FRAME * 2 + b"FRA", "The video is damaged: a frame does not begin with FRAME.", 2),
    "a byte too many": (HEAD + FRAME + b"\n" + FRAME, "The video is damaged: a frame does not begin with FRAME.", 1),
    "a byte too few": (HEAD + FRAME[:-1] + FRAME, "The video is damaged: a frame does not begin with FRAME.", 1),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_videos(library: CppLibrary, engine: Recorded, case: str) -> None:
    content, wanted, frames = BROKEN[case]
    done = piped(library, engine, content)
    assert told(done).startswith(wanted)
    assert done.stdout.count(b"FRAME\n") == frames


def test_wrong_words_and_files(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    program, given = library.example("video_pipeline"), tmp_path / "in.y4m"
    given.write_bytes(HEAD + FRAME)

    def run(*words: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([program, *map(str, words)], env=library.environment(), capture_output=True, timeout=100, check=False)

    for words in ((), (engine.engine,), (engine.engine, given), (engine.engine, given, "-", "-")):
        done = run(*words)
        assert (done.returncode, done.stderr.split()[:2]) == (2, [b"usage:", b"video_pipeline"])
    assert told(run(engine.engine, tmp_path / "absent", "-")) == f"{tmp_path / 'absent'} cannot be opened."
    assert told(run(engine.engine, given, tmp_path / "no" / "out")) == f"{tmp_path / 'no' / 'out'} cannot be opened."
    assert "does not exist" in told(run(tmp_path / "absent", given, "-"))
    assert told(run(engine.engine, tmp_path, "-")) == NO_VIDEO


@pytest.mark.parametrize(("side", "count"), [(8, 1), (8, 0), (90, 40)])
def test_output_that_cannot_be_written(library: CppLibrary, engine: Recorded, tmp_path: Path, side: int, count: int) -> None:
    (tmp_path / "in.y4m").write_bytes(video(f"YUV4MPEG2 W{side} H{side}", made_frames(side, side, count)))
    command = [library.example("video_pipeline"), engine.engine, tmp_path / "in.y4m", "/dev/full"]
    done = subprocess.run(command, env=library.environment(), capture_output=True, timeout=100, check=False)
    assert told(done) == "The video cannot be written."


@pytest.mark.parametrize("failing", [1, 2, 7, 30])
def test_an_error_of_the_gpu_ends_it(library: CppLibrary, tmp_path: Path, failing: int) -> None:
    engine = recorded(library, tmp_path, SMALL, lines=[f"fail run {failing}"])
    done = piped(library, engine, video("YUV4MPEG2 W16 H16", made_frames(16, 16, 30)))
    assert "CUDA_ERROR_LAUNCH_FAILED" in told(done)
    assert failing - 3 <= done.stdout.count(b"FRAME\n") < failing


def refused(first: int) -> list[str]:
    """Lines of a plan: three calls of enqueueV3 in a row fail, of which two may be tries to capture, which do not count."""
    return ["capturable 0", *(f"fail enqueue {first + index}" for index in range(3))]


@pytest.mark.parametrize("failing", [1, 9])
def test_an_error_of_tensorrt_ends_it(library: CppLibrary, tmp_path: Path, failing: int) -> None:
    engine = recorded(library, tmp_path, SMALL, batch=1, lines=refused(failing))
    frames = made_frames(16, 16, 30)
    done = piped(library, engine, video("YUV4MPEG2 W16 H16", frames))
    assert "failed to run" in told(done)
    assert done.stdout.count(b"FRAME\n") < failing + 3
    wanted = video("YUV4MPEG2 W16 H16", [tinted(frame, found_in(engine, frame)) for frame in frames[: failing + 3]])
    assert wanted.startswith(done.stdout)


@pytest.mark.parametrize("kind", ["address", "thread"])
def test_sanitized(library_of: Callable[[str], CppLibrary], tmp_path: Path, kind: str) -> None:
    library = library_of(kind)
    engine = recorded(library, tmp_path, SMALL)
    header, frames = "YUV4MPEG2 W33 H21 C420jpeg", made_frames(33, 21, 9)
    done = piped(library, engine, video(header, frames))
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == video(header, [tinted(frame, found_in(engine, frame)) for frame in frames])
    for content, wanted, _ in BROKEN.values():
        assert told(piped(library, engine, content)).startswith(wanted)
    (tmp_path / "failing").mkdir()
    refusing = recorded(library, tmp_path / "failing", SMALL, lines=refused(5))
    assert "failed to run" in told(piped(library, refusing, video(header, frames)))
    (tmp_path / "in.y4m").write_bytes(video("YUV4MPEG2 W90 H90", made_frames(90, 90, 12)))
    command = [library.example("video_pipeline"), engine.engine, tmp_path / "in.y4m", "/dev/full"]
    done = subprocess.run(command, env=library.environment(), capture_output=True, timeout=100, check=False)
    assert told(done) == "The video cannot be written."
