"""Pictures that the C++ library has to refuse, among others that it has to take, and plans that TensorRT refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engines.cpp.standin.made_heads import made_outputs
from tests.helpers.cpp_engines import write_recorded_engine
from tests.helpers.cpp_library import CppLibrary, missing, run_commands
from tests.helpers.tiny import tiny_variant
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.sidecar import sidecar_path

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

PICTURE, MODEL_FILE, DEVICE = 4, 2, 3
RGB, BGR, NV12 = 0, 1, 2
HOST, GPU = 0, 1


@pytest.fixture(scope="module")
def library(library_of: Callable[[str], CppLibrary]) -> CppLibrary:
    return library_of("address")


@pytest.fixture(scope="module")
def engine(library: CppLibrary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant = tiny_variant(input_size=64)
    outputs = made_outputs(variant, rows=2, postprocess="none")
    made_for = {"batch": BatchRange(1, 2, 4), "version": library.standin.version}
    return write_recorded_engine(tmp_path_factory.mktemp("engine"), variant, outputs, name="a", postprocess="none", **made_for)


@dataclass(frozen=True)
class View:
    """A picture as it is told to the library, and whether that has to take it."""

    words: dict[str, Any]
    content: bytes
    good: bool


@st.composite
def views(draw: st.DrawFn) -> View:
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    form = draw(st.sampled_from([RGB, BGR, NV12, 3]))
    planar = form >= NV12
    row = width if planar else 3 * width
    pitch = row + draw(st.sampled_from([0, 0, 1, 7, 32]))
    pairs = (width + 1) // 2 * 2
    words: dict[str, Any] = {"width": width, "height": height, "format": form, "pitch": pitch, "space": HOST}
    size = pitch * (height - 1) + row  # the last row ends with its pixels
    if planar:
        chroma_pitch = pairs + draw(st.sampled_from([0, 0, 2, 9]))
        start = pitch * height
        words |= {"chroma": start, "chroma_pitch": chroma_pitch}
        size = start + chroma_pitch * ((height + 1) // 2 - 1) + pairs
    if draw(st.booleans()):
        words |= {"space": GPU, "device": 0}
    fault = draw(st.sampled_from([None, None, "size", "pitch", "null", "space", "format", "chroma"]))
    if fault == "size":
        words[draw(st.sampled_from(["width", "height"]))] = draw(st.sampled_from([0, -1, -(2**31), 2**31 - 1]))
        if words["width"] * words["height"] == 2**31 - 1:
            words["height"] = 0
    elif fault == "pitch":
        words["pitch"] = draw(st.integers(1, row - 1)) if row > 1 else 2**33
    elif fault == "null":
        words["null"] = 1
    elif fault == "space":
        words["space"] = draw(st.sampled_from([1 - words["space"], 2, -1]))
    elif fault == "format":
        words["format"] = draw(st.sampled_from([4, -1, 2**31 - 1]))
    elif fault == "chroma":
        words |= {"chroma_pitch": 1} if planar else {"chroma": 0}
    return View(words, draw(st.binary(min_size=1, max_size=64)) * (size // 1 + 1), fault is None)


@settings(max_examples=15, deadline=None)
@given(pictures=st.lists(views(), min_size=12, max_size=12), stray=st.integers(0, 11))
def test_each_picture_is_taken_or_refused(
    library: CppLibrary, engine: Path, tmp_path_factory: pytest.TempPathFactory, pictures: list[View], stray: int
) -> None:
    """One bad picture refuses the whole call and leaves the detector as it was."""
    folder = tmp_path_factory.mktemp("pictures")
    commands = [f"load path={engine}"]
    for number, view in enumerate(pictures):
        exact = len(view.content)
        (folder / f"{number}").write_bytes(view.content[:exact])
        commands.append(f"picture file={folder / str(number)} " + " ".join(f"{key}={value}" for key, value in view.words.items()))
    commands += [f"detect pictures={number} results=1" for number in range(len(pictures))]
    together = [number for number, view in enumerate(pictures) if view.good]
    commands.append(f"detect pictures={','.join(map(str, [*together, stray]))} results=1")
    *answers, left = run_commands(library, commands)
    assert left == "", left
    found = answers[1 + len(pictures) :]
    for view, answer in zip(pictures, found[:-1], strict=True):
        if view.good:
            assert isinstance(answer, list), (view.words, answer)
            assert len(answer) == 1, (view.words, answer)
        else:
            assert isinstance(answer, dict), (view.words, answer)
            assert answer["code"] == PICTURE, (view.words, answer)
    if pictures[stray].good:
        assert len(found[-1]) == len(together) + 1
    else:
        assert found[-1]["code"] == PICTURE


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_no_damaged_plan_brings_it_down(
    library: CppLibrary, engine: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Its sidecar tells the right SHA-256, so that it is TensorRT that refuses it, or what comes after."""
    folder, plan = tmp_path_factory.mktemp("plans"), engine.read_bytes()
    text = plan.index(b"end\n")
    commands = []
    for number in range(12):
        content = bytearray(plan)
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(4, len(content) - 1)) :]
        else:
            place = data.draw(st.integers(64, text))
            content[place] = data.draw(st.integers(32, 126))
        changed = folder / f"{number}.engine"
        changed.write_bytes(content)
        fields = json.loads(sidecar_path(engine).read_text())
        fields["target"] |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        sidecar_path(changed).write_text(json.dumps(fields))
        commands.append(f"load path={changed}")
    *answers, left = run_commands(library, commands)
    assert left == "", left
    assert [answer for answer in answers if answer is not None and answer["code"] not in (MODEL_FILE, DEVICE)] == []


def test_numbers_that_overflow_are_refused(library: CppLibrary, engine: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(12))
    sizes = [(65536, 65536), (2**31 - 1, 2**31 - 1), (1, 0), (0, 1), (0, 0)]
    pictures = [f"picture file={tmp_path / 'a'} width={width} height={height}" for width, height in sizes]
    commands = [f"load path={engine}", *pictures, *(f"detect pictures={number}" for number in range(len(sizes)))]
    *answers, left = run_commands(library, commands)
    assert left == "", left
    assert [answer["code"] for answer in answers[1 + len(sizes) :]] == [PICTURE] * len(sizes)
    assert "from 1 x 1 up to 2,147,483,647" in answers[-1]["error"]


def test_results_are_right_after_a_refusal(library: CppLibrary, engine: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (11, 13, 3), np.uint8)
    (tmp_path / "a").write_bytes(pixels.tobytes())
    good = f"picture file={tmp_path / 'a'} width=13 height=11"
    commands = [f"load path={engine}", good, f"{good} pitch=38"]
    commands += [
        "detect pictures=0 results=1",
        "detect pictures=0,1 results=1",
        "detect pictures=0 results=1",
        "detect pictures=0 results=1",
    ]
    *answers, left = run_commands(library, commands)
    assert left == "", left
    first, refused, *later = answers[3:]
    assert refused["code"] == PICTURE
    assert "38 bytes, from 39 (a row's)" in refused["error"]
    assert later == [first, first]
    assert first[0]["detections"]
