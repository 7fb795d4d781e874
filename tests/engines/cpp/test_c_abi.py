"""The C interface, called through ctypes in a process of its own; its header as C; and what the shared library shows of itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.cpp.test_detect import SMALL, recorded
from tests.engines.cpp.truth import Recorded, same
from tests.engines.made_selftest import made as made_selftest
from tests.helpers.cpp_library import CPP, CppLibrary, run_program
from yolact_deploy import __version__
from yolact_deploy.files import sha256_of

PICTURES = [np.full((30, 20, 3), (10, 0, 245), np.uint8), np.full((20, 50, 3), (55, 0, 200), np.uint8)]  # the second is given as BGR


@pytest.fixture(scope="module")
def played(library: CppLibrary, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Recorded]:
    folder = tmp_path_factory.mktemp("c")
    engine = recorded(library, folder, SMALL, batch=2)
    test = made_selftest(picture=PICTURES[0], expected=engine.detections(PICTURES[0]).above(0.5), score_threshold=0.5)
    (folder / "tested.engine.selftest.json").write_text(test.to_json())
    named = {"file": "tested.engine.selftest.json", "sha256": sha256_of(folder / "tested.engine.selftest.json")}
    tested = recorded(library, folder, SMALL, name="tested", batch=2, target={"selftest": named})
    program = Path(__file__).with_name("c_interface.py")
    told = run_program(library, [sys.executable, program, library.shared, engine.engine, tested.engine])
    return json.loads(told), engine


def answer(rows: list[Any], wanted: Any, coco: str | None = None) -> dict[str, Any]:
    """As the commands of C++ tell it."""
    told = coco or json.dumps(wanted.to_coco(17)).replace("}}, {", "}},\n {")
    return {"width": wanted.width, "height": wanted.height, "detections": rows, "coco": told, "bits": None, "device": None}


def test_loading_and_detecting(played: tuple[dict[str, Any], Recorded]) -> None:
    found, engine = played
    wanted = [engine.detections(picture) for picture in PICTURES]
    assert found["version"] == __version__
    assert found["no error"] == ""
    assert found["load"] == found["detect"] == [0, ""]
    assert found["facts"] == [2, 64]
    names, categories = engine.classes.names, engine.classes.category_ids
    assert found["names"] == ["", names[0], names[3], ""]
    assert found["categories"] == [-1, categories[0], categories[3], -1]
    assert [code for code, _ in found["warm up"]] == [0, 1, 1, 1, 1]
    assert found["pictures"] == [2, len(wanted[0]), len(wanted[1]), 0]
    for rows, coco, one in zip(found["rows"], found["json"], wanted, strict=False):
        same(answer(rows, one, coco), one)
    assert found["json"][2] == "null"
    code, words, bits = found["bits"]
    assert (code, words) == (0, 2 * 20)
    pixels = np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8).reshape(10, 8), axis=1, bitorder="little")[:, :50]
    np.testing.assert_array_equal(pixels.astype(bool), wanted[1].bitmap(0)[:10])
    code, there, stride = found["device bits"]
    assert code == 0
    assert there
    assert stride >= 2 * 20
    assert found["labels"] == [0, True]


def test_results_are_used_again(played: tuple[dict[str, Any], Recorded]) -> None:
    found, engine = played
    code, kept, rows = found["again"]
    assert code == [0, ""]
    assert kept
    one = engine.detections(PICTURES[1])
    same(answer(rows, one), one)
    assert found["refused"][0][0] == 4
    assert found["refused"][1] == 0  # if a call fails they are empty
    assert found["none"] == [[0, ""], 0]
    assert found["held"][0] == found["given back"][0] == [0, ""]
    assert found["held"][1][0] == 1
    assert "All 1 contexts are held" in found["held"][1][1]
    assert found["outlives"]


BAD = [
    r"Picture 2 of 2 was asked for",
    r"Detection (\d+) of \1 was asked for",
    r"results is null",
    r"detection is null",
    r"Detection (\d+) of \1 was asked for",
    r"bits is null",
    r"words is null",
    r"results is null",
    r"Picture 2 of 2",
    r"bits is null",
    r"mask_words is null",
    r"image_id is null",
    r"results is null",
    r"detector is null",
    r"results is null",
    r"images is null",
    r"detector is null",
    r"path is null",
    r"detector is null",
    r"path is null",
    r"passed is null",
    r"yolact_detection.size is 8, \d+ was wanted",
]


def test_errors(played: tuple[dict[str, Any], Recorded]) -> None:
    found, _ = played
    assert len(found["bad"]) == len(BAD)
    for told, wanted in zip(found["bad"], BAD, strict=True):
        assert told[0] in (1, None)
        assert re.match(wanted, told[1]), (told, wanted)
    assert found["nothing"] == [0, 0, 0, 0, None, -1]
    for code, told in found["sizes"]:
        assert code == 1
        assert re.match(r"yolact_image.size is \d+, \d+ was wanted", told)


def test_options(played: tuple[dict[str, Any], Recorded]) -> None:
    found, engine = played
    codes = {name: code for name, (code, _, _) in found["loads"].items()}
    refused = dict.fromkeys(
        ("contexts=-1", "masks=8", "nms=3", "score=2", "iou=2", "top_k=0", "top_k=1025", "max=0", "max=1025", "rle", "size"), 1
    )
    assert codes == {**refused, "device=3": 3, "lean": codes["lean"]}
    assert codes["lean"] in (1, 2)
    assert all(null for _, _, null in found["loads"].values())
    assert found["missing file"][0] == 2
    changes: list[dict[str, Any]] = [
        {"nms": "cross-class"},
        {"nms": "traditional", "max_detections": 3},
        {"score_threshold": 0.7},
        {"iou_threshold": 0.1},
        {"top_k": 2},
        {},
        {},
    ]
    for place, (changed, (loaded, rows, bits, device)) in enumerate(zip(changes, found["changed"], strict=True)):
        assert loaded == [0, ""]
        wanted = engine.detections(PICTURES[0], **changed)
        same(answer(rows, wanted), wanted)
        assert all(bool(row[8]) == (place != 5) for row in rows)
        assert (bits[0], device[0]) == (1, int(place != 5))
        assert ("YOLACT_DEVICE_BITS" in device[1]) == (place != 5)
        assert "Masks as bits on the host were not asked for" in bits[1]


def test_the_selftest(played: tuple[dict[str, Any], Recorded]) -> None:
    found, _ = played
    (code, told), passed = found["selftest"]
    assert (code, passed) == (2, 0)
    assert "self-test" in told
    assert found["selftested"] == [0, 1, ""]
    assert found["left"] == [0] * 7


@pytest.mark.parametrize("standard", ["c99", "c11"])
@pytest.mark.parametrize("source", ["header", "example"])
def test_it_is_c(library: CppLibrary, tmp_path: Path, standard: str, source: str) -> None:
    (tmp_path / "header.c").write_text("#include <yolact_deploy/yolact.h>\nyolact_options chosen = YOLACT_OPTIONS_DEFAULT;\n")
    unit = tmp_path / "header.c" if source == "header" else CPP / "examples" / "detect_in_c.c"
    flags = [f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I", str(CPP / "include")]
    done = subprocess.run(["gcc", *flags, str(unit)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_the_shared_library_shows_its_own_alone(library: CppLibrary) -> None:
    if not shutil.which("nm"):
        pytest.skip("nm, of the binutils, lists a library's symbols")

    def symbols(*options: str) -> list[str]:
        done = subprocess.run(["nm", "-D", "-C", *options, str(library.shared)], capture_output=True, text=True, timeout=100, check=True)
        return [line.split(None, 2)[-1] for line in done.stdout.splitlines()]

    shown = [line for line in symbols("--defined-only") if not re.search(r"\b(std|__gnu_cxx)::", line)]
    own = [name for name in shown if name.startswith("yolact_")]
    assert sorted(own) == sorted(re.findall(r"YOLACT_API [^;]*?(yolact_\w+)\(", (CPP / "include/yolact_deploy/yolact.h").read_text()))
    rest = [name for name in shown if name not in own]
    assert not [name for name in rest if not re.match(r"(typeinfo (name )?for |vtable for |VTT for )?yolact::[^ ]", name)]
    assert not [name for name in rest if "yolact::detail::" in name.split("(")[0]]
    # All of its memory is taken with `new`, which tests count.
    assert not {"malloc", "calloc", "realloc", "aligned_alloc", "posix_memalign"} & {
        name.split("@")[0].split()[-1] for name in symbols("--undefined-only")
    }
