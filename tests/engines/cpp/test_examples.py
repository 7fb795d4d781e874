"""The example programs: detect_image prints what ``yolact-deploy predict --json`` writes, detect_in_c lists it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.engines.cpp.test_detect import recorded
from tests.engines.cpp.truth import NMS, Recorded, noise
from tests.helpers.cpp_library import CPP, PROGRAMS, CppLibrary
from yolact_deploy.cli.predict import _Run, _write_results
from yolact_deploy.pictures import read_picture

STB = [os.environ.get("STB_INCLUDE_DIR", ""), "/usr/include/stb", "/usr/local/include/stb", "/usr/include", "/usr/local/include"]
SMALL = {"input_size": 64, "num_classes": 9}
TOO_FEW = "An engine and a picture are wanted."


@pytest.fixture
def engine(library: CppLibrary, tmp_path: Path) -> Recorded:
    return recorded(library, tmp_path, SMALL)


def ppm(path: Path, picture: NDArray[np.uint8], comment: bytes = b"") -> Path:
    height, width = picture.shape[:2]
    path.write_bytes(b"P6\n" + comment + b"%d %d\n255\n" % (width, height) + picture.tobytes())
    return path


def started(
    library: CppLibrary, name: str, *words: object, stdout: Any = subprocess.PIPE, **settings: Any
) -> subprocess.CompletedProcess[bytes]:
    command: list[Any] = [library.example(name), *words]
    told = [word if isinstance(word, bytes) else str(word) for word in command]
    return subprocess.run(told, stdout=stdout, stderr=subprocess.PIPE, env=library.environment(**settings), timeout=100, check=False)


def printed(library: CppLibrary, name: str, *words: object, **settings: Any) -> str:
    done = started(library, name, *words, **settings)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    return done.stdout.decode()


def complaint(done: subprocess.CompletedProcess[bytes], code: int = 1) -> str:
    """The one line that a program ends with."""
    assert done.returncode == code, done.stderr.decode()
    assert not done.stdout
    text = done.stderr.decode()
    assert text.endswith("\n")
    if code == 1:
        assert text.count("\n") == 1
    return text.rstrip("\n")


def predicted(engine: Recorded, folder: Path, paths: Sequence[Path], score_threshold: float = 0.15, **settings: Any) -> str:
    """What ``predict --json`` writes: its own reader, names and writer, with the engine's rows through Python's post-processing."""

    def predict(picture: NDArray[np.uint8], *, channels: str, score_threshold: float) -> Any:
        assert channels == "rgb"
        return engine.detections(picture, **settings).above(score_threshold)

    detector: Any = SimpleNamespace(predict=predict)
    run = _Run(detector, score_threshold, None, force=False, tolerant=False)
    for path in paths:
        run.one(path)
    _write_results(folder / "predicted.json", run.results)
    return (folder / "predicted.json").read_text(encoding="utf-8")


def test_prints_what_predict_writes(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    paths = [ppm(tmp_path / f"{index}.ppm", noise(40 + index, 30, index)) for index in range(3)]
    for path in paths:
        wanted = predicted(engine, tmp_path, [path])
        assert wanted.count("image_id") > 2
        assert printed(library, "detect_image", engine.engine, path) == wanted
    together = predicted(engine, tmp_path, paths)
    assert printed(library, "detect_image", engine.engine, *paths) == together
    assert len({entry.split("counts")[1] for entry in together.splitlines()}) > 5


def test_nothing_found_is_an_empty_list(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    paths = [ppm(tmp_path / f"{index}.ppm", noise(9, 9, index)) for index in range(2)]
    assert printed(library, "detect_image", engine.engine, *paths, "--score-threshold", "1") == "[]\n"
    assert predicted(engine, tmp_path, paths, 1.0) == "[]\n"


NAMES = [
    "000000000139", "0", "000", "7", "1234567890123456789012345", "0009223372036854775808", "18446744073709551616", "١٢", "1.5",
    "-1", "1e5",
    'with "quotes"', "back\\slash", "käse 猫 \U0001f600", "tab\tand\nline", "\x01\x7f", " 1", "+1", ".5",
]  # fmt: skip


def test_ids_are_the_numbers_or_names_of_files(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    picture = noise(31, 22)
    paths = [ppm(tmp_path / f"{name}.ppm", picture) for name in NAMES]
    text = printed(library, "detect_image", engine.engine, *paths)
    assert text == predicted(engine, tmp_path, paths)
    assert '"image_id": 1234567890123456789012345,' in text


def test_names_that_are_no_utf8(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    names = [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xf0\x80\x80\x80", b"\xf5\x80\x80\x80"]
    paths = [Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".ppm")) for name in names]
    for path in paths:
        ppm(path, noise(31, 22))
    assert printed(library, "detect_image", engine.engine, *(os.fsencode(path) for path in paths)) == predicted(engine, tmp_path, paths)


def test_the_same_number_twice_becomes_a_name(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    paths = [ppm(tmp_path / name, noise(20, 20)) for name in ("1.ppm", "01.ppm", "other/1.ppm", "001.pnm", "a.ppm", "other/a.ppm")]
    assert printed(library, "detect_image", engine.engine, *paths) == predicted(engine, tmp_path, paths)


def test_thresholds(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    path = ppm(tmp_path / "5.ppm", noise(50, 40))
    scores = engine.detections(noise(50, 40)).scores
    texts = set()
    for threshold in ("0", "0.5", repr(float(scores[2])), str(np.nextafter(scores[2], np.float32(0))), "1", "5e-1"):
        text = printed(library, "detect_image", engine.engine, path, "--score-threshold", threshold)
        assert text == predicted(engine, tmp_path, [path], float(threshold)), threshold
        texts.add(text)
    assert len(texts) > 3


@pytest.mark.parametrize("nms", NMS)
def test_every_nms(library: CppLibrary, engine: Recorded, tmp_path: Path, nms: Any) -> None:
    path = ppm(tmp_path / "5.ppm", noise(50, 40))
    assert printed(library, "detect_image", "--nms", nms, engine.engine, path) == predicted(engine, tmp_path, [path], nms=nms)


def test_raw_pixels(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    picture = noise(45, 27)
    (tmp_path / "9.rgb").write_bytes(picture.tobytes())
    ppm(tmp_path / "9.ppm", picture)
    text = printed(library, "detect_image", engine.engine, tmp_path / "9.rgb", "--raw", "45x27")
    assert text == predicted(engine, tmp_path, [tmp_path / "9.ppm"])


def test_headers_of_ppm(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    picture = noise(6, 4)
    wanted = predicted(engine, tmp_path, [ppm(tmp_path / "1.ppm", picture)])
    for head in (
        b"P6 6 4 255 ",
        b"P6\n# a comment\n6 # another\n4\n255\n",
        b"P6\r\n6\t4\r\n255\n",
        b"P6\n#\n#\n  6   4\n\n255\n",
        b"P6#x\n6 4 255\n",
    ):
        (tmp_path / "1.ppm").write_bytes(head + picture.tobytes())
        assert printed(library, "detect_image", engine.engine, tmp_path / "1.ppm") == wanted, head


def test_a_selftest_first(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    path = ppm(tmp_path / "5.ppm", noise(50, 40))
    assert "carries no self-test" in complaint(started(library, "detect_image", engine.engine, path, "--selftest"))


WRONG_WORDS: dict[str, tuple[list[str], str]] = {
    "nothing": ([], TOO_FEW),
    "no picture": (["E"], TOO_FEW),
    "no value": (["E", "P", "--score-threshold"], "--score-threshold wants a value."),
    "no number": (["E", "P", "--score-threshold", "much"], "--score-threshold is much, a number from 0 to 1 was wanted."),
    "an empty number": (["E", "P", "--score-threshold", ""], "--score-threshold is , a number from 0 to 1 was wanted."),
    "more than a number": (["E", "P", "--score-threshold", "0.5x"], "--score-threshold is 0.5x"),
    "above 1": (["E", "P", "--score-threshold", "1.5"], "--score-threshold is 1.5"),
    "below 0": (["E", "P", "--score-threshold", "-0.1"], "--score-threshold is -0.1"),
    "no finite number": (["E", "P", "--score-threshold", "nan"], "--score-threshold is nan"),
    "a huge number": (["E", "P", "--score-threshold", "1e999"], "--score-threshold is 1e999"),
    "half a size": (["E", "P", "--raw", "640"], "--raw is 640, a size such as 640x480 was wanted."),
    "a size of nothing": (["E", "P", "--raw", "0x480"], "--raw is 0x480"),
    "a negative size": (["E", "P", "--raw", "4x-4"], "--raw is 4x-4"),
    "three sizes": (["E", "P", "--raw", "4x4x4"], "--raw is 4x4x4"),
    "a huge size": (["E", "P", "--raw", "99999999999x1"], "--raw is 99999999999x1"),
    "another NMS": (["E", "P", "--nms", "soft"], "--nms is soft, fast, cross-class or traditional was wanted."),
    "another option": (["E", "P", "--json", "f"], "There is no option --json."),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_wrong_arguments_end_with_the_usage(library: CppLibrary, case: str) -> None:
    words, told = WRONG_WORDS[case]
    text = complaint(started(library, "detect_image", *words), 2)
    assert text.startswith(f"detect_image: {told}")
    assert "\nusage: detect_image ENGINE PICTURE... [options]\n" in text


BROKEN: dict[str, tuple[bytes, str]] = {
    "cut short": (b"P6\n4 4\n255\n" + bytes(47), "has 47 bytes of pixels, 48 were wanted."),
    "too long": (b"P6\n4 4\n255\n" + bytes(49), "has 49 bytes of pixels, 48 were wanted."),
    "no pixels": (b"P6\n4 4\n255\n", "has 0 bytes of pixels, 48 were wanted."),
    "cut in its head": (b"P6\n4 4\n255", "has 0 bytes of pixels, 48 were wanted."),
    "cut before its levels": (b"P6\n4 4\n", "is a PPM of 0 levels, 255 were wanted."),
    "cut in a comment": (b"P6\n#", "is a PPM of 0 levels"),
    "no numbers": (b"P6 a b c", "is a PPM of 0 levels"),
    "16 bits": (b"P6\n4 4\n65535\n" + bytes(96), "is a PPM of 65535 levels"),
    "no size": (b"P6\n0 4\n255\n", "has a strange size."),
    "too large": (b"P6\n40000 4\n255\n", "has a strange size."),
    "a huge number": (b"P6\n4 99999999999999999999\n255\n", ""),
    "text": (b"P3\n1 1\n255\n1 1 1\n", "is no binary PPM; for other formats build the examples where stb_image.h or OpenCV is found."),
    "empty": (b"", "is no binary PPM"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_pictures(library: CppLibrary, engine: Recorded, tmp_path: Path, case: str) -> None:
    content, told = BROKEN[case]
    good, path = ppm(tmp_path / "good.ppm", noise(4, 4)), tmp_path / "broken.ppm"
    path.write_bytes(content)
    text = complaint(started(library, "detect_image", engine.engine, good, path))
    assert text.startswith(f"detect_image: {path} {told}")
    if content[:2] != b"P6" or b"65535" in content:
        assert complaint(started(library, "detect_in_c", engine.engine, path)) == f"detect_in_c: {path} is no binary PPM."


def test_missing_files_and_wrong_sizes(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    raw, absent = tmp_path / "a.rgb", tmp_path / "absent"
    raw.write_bytes(bytes(12))
    assert complaint(started(library, "detect_image", engine.engine, absent)) == f"detect_image: {absent} cannot be read."
    told = complaint(started(library, "detect_image", engine.engine, raw, "--raw", "4x4"))
    assert told == f"detect_image: {raw} has 12 bytes of pixels, 48 were wanted."
    assert complaint(started(library, "detect_image", absent, raw, "--raw", "2x2")).startswith(
        f"detect_image: The engine {absent} does not exist."
    )
    assert complaint(started(library, "detect_in_c", engine.engine, absent)) == f"detect_in_c: {absent} is no binary PPM."
    complaint(started(library, "detect_image", engine.engine, tmp_path))


def test_results_that_cannot_be_written(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    path = ppm(tmp_path / "1.ppm", noise(4, 4))
    with open("/dev/full", "wb") as full:
        done = started(library, "detect_image", engine.engine, path, stdout=full)
    assert (done.returncode, done.stderr) == (1, b"detect_image: The results cannot be written.\n")


def test_an_error_of_the_gpu_is_told(library: CppLibrary, tmp_path: Path) -> None:
    engine = recorded(library, tmp_path, SMALL, lines=["fail run 2"])
    paths = [ppm(tmp_path / f"{index}.ppm", noise(9, 9)) for index in range(3)]
    assert "CUDA_ERROR_LAUNCH_FAILED" in complaint(started(library, "detect_image", engine.engine, *paths))


def test_the_c_program_lists_them(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    picture = noise(45, 27)
    path = ppm(tmp_path / "1.ppm", picture)
    wanted = engine.detections(picture)
    lines = [
        f"{name} {score:.3f} at {x1:.0f},{y1:.0f} to {x2:.0f},{y2:.0f}, mask of {len(counts)} bytes"
        for name, score, (x1, y1, x2, y2), counts in zip(wanted.names, wanted.scores, wanted.boxes.tolist(), wanted.counts, strict=True)
    ]
    assert len(lines) > 3
    assert printed(library, "detect_in_c", engine.engine, path).splitlines() == lines
    done = started(library, "detect_in_c", engine.engine)
    assert (done.returncode, done.stderr) == (2, b"usage: detect_in_c ENGINE PICTURE.ppm\n")
    told = complaint(started(library, "detect_in_c", tmp_path / "none.engine", path))
    assert told == f"detect_in_c: The engine {tmp_path / 'none.engine'} does not exist. Check the path."


def test_sanitized(library_of: Callable[[str], CppLibrary], tmp_path: Path) -> None:
    library = library_of("address")
    engine = recorded(library, tmp_path, SMALL)
    paths = [ppm(tmp_path / f"{name}.ppm", noise(40, 30)) for name in ("1", "0" * 30, "käse \\ 猫")]
    assert printed(library, "detect_image", engine.engine, *paths) == predicted(engine, tmp_path, paths)
    assert printed(library, "detect_in_c", engine.engine, paths[0]).count("\n") > 3
    for content, _ in BROKEN.values():
        (tmp_path / "broken.ppm").write_bytes(content)
        complaint(started(library, "detect_image", engine.engine, tmp_path / "broken.ppm"))
        started(library, "detect_in_c", engine.engine, tmp_path / "broken.ppm")


# Pictures through stb


@pytest.fixture(scope="module")
def decode(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Any]:
    """The examples' own reader with stb: a picture, or the reason for none."""
    stb = next((folder for folder in STB if folder and Path(folder, "stb_image.h").is_file()), None)
    if stb is None:
        pytest.skip("stb_image.h is not here (package libstb-dev), nor named by STB_INCLUDE_DIR")
    program = tmp_path_factory.mktemp("stb") / "decoded"
    examples = CPP / "examples"
    sources = [PROGRAMS / "decoded.cpp", examples / "picture_file.cpp"]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-DPICTURES_BY_STB"]
    command = ["g++", *flags, "-I", examples, "-isystem", stb, *sources]
    subprocess.run([*command, "-o", program], check=True, timeout=200)

    def decoded(path: Path) -> Any:
        done = subprocess.run([program, path], capture_output=True, timeout=60, check=False)
        if done.returncode:
            return done.stderr.decode()
        width, height = map(int, done.stdout.split(b"\n", 1)[0].split())
        return np.frombuffer(done.stdout.split(b"\n", 1)[1], np.uint8).reshape(height, width, 3)

    return decoded


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA"])
def test_png_has_pythons_pixels(decode: Callable[[Path], Any], tmp_path: Path, mode: str) -> None:
    Image.fromarray(noise(37, 21)).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), read_picture(tmp_path / "a.png"))


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_jpeg_is_nearly_pythons(decode: Callable[[Path], Any], tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(noise(6, 5)).resize((61, 47), Image.Resampling.BICUBIC))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=90)
    gaps = np.abs(decode(tmp_path / "a.jpg").astype(int) - read_picture(tmp_path / "a.jpg"))
    assert gaps.max() <= 8
    assert gaps.mean() < 1


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_what_stb_refuses_is_told(decode: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(37, 21)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    assert decode(path).startswith(f"{path} is no picture that stb reads: ")
    path.write_bytes(b"")
    assert decode(path).startswith(f"{path} is no picture that stb reads: ")
