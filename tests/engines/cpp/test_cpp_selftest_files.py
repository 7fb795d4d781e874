"""What yolact::selftest says of damaged self-tests is what Python says, up to the reason in parentheses; nothing brings it down."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.engines.cpp.test_cpp_selftest import CLASSES, THINGS, Python, carrying, cpp, detections_of, document, engine_of
from tests.helpers.cpp_library import CppLibrary
from yolact_deploy.runtime.selftesting import SelftestResult


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> Python:
    return Python(monkeypatch)


HEAD = json.loads(document(detections_of(THINGS)))
RGB = HEAD["picture"]["rgb"]


def put(*place: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(fields: dict[str, Any]) -> None:
        owner: Any = fields
        for key in place[:-1]:
            owner = owner[key]
        owner[place[-1]] = value

    return change


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no schema": lambda fields: fields.pop("schema"),
    "a newer schema": put("schema", value=2),
    "schema 0": put("schema", value=0),
    "a negative schema": put("schema", value=-1),
    "base64 cut short": put("picture", "rgb", value=RGB[:-1]),
    "base64 cut by four": put("picture", "rgb", value=RGB[:-4]),
    "base64 too long": put("picture", "rgb", value=RGB + "AAAA"),
    "base64 with a newline": put("picture", "rgb", value=RGB[:40] + "\n" + RGB[40:]),
    "base64 with a newline at its end": put("picture", "rgb", value=RGB + "\n"),
    "base64 for addresses": put("picture", "rgb", value="-_" + RGB[2:]),
    "base64 with padding inside": put("picture", "rgb", value=RGB[:40] + "==" + RGB[42:]),
    "base64 with a pad inside": put("picture", "rgb", value=RGB[:43] + "=" + RGB[44:]),
    "base64 of padding": put("picture", "rgb", value="===="),
    "base64 of nothing": put("picture", "rgb", value=""),
    "base64 of letters beyond": put("picture", "rgb", value="é" + RGB[2:]),
    "no text": put("picture", "rgb", value=7),
    "no picture": put("picture", value=None),
    **{f"a width of {value!r}": put("picture", "width", value=value)
       for value in (0, -40, 4097, 10**18, 10**30, 40.0, 39, "40", True, None)},
    **{f"a height of {value!r}": put("picture", "height", value=value) for value in (0, -30, 2**32 + 30, 30.5, 31)},
    **{f"{name} of {value!r}": put(name, value=value)
       for name in ("score_threshold", "score_tolerance", "mask_iou", "box_iou") for value in (-0.1, 1.1, "0.5", float("nan"), True)},
    "no tolerance": lambda fields: fields.pop("score_tolerance"),
    "no reference": lambda fields: fields.pop("reference"),
    "a reference of a number": put("reference", value=1),
    "no list": put("detections", value={}),
    "a list of numbers": put("detections", value=[1]),
    "rising scores": put("detections", 0, "score", value=0.5),
    "a score above 1": put("detections", 0, "score", value=1.5),
    "a score of text": put("detections", 0, "score", value="high"),
    "a huge mask score": put("detections", 0, "mask_score", value=1e7),
    "no mask score": lambda fields: fields["detections"][0].pop("mask_score"),
    "a box outside": put("detections", 0, "box", value=[1, 2, 40.5, 9]),
    "a box below": put("detections", 0, "box", value=[1, 2, 9, 30.5]),
    "a box before": put("detections", 0, "box", value=[-1, 2, 9, 9]),
    "a box from right to left": put("detections", 0, "box", value=[9, 2, 1, 9]),
    "a box from below": put("detections", 0, "box", value=[1, 9, 9, 2]),
    "three sides": put("detections", 0, "box", value=[1, 2, 9]),
    "five sides": put("detections", 0, "box", value=[1, 2, 9, 9, 9]),
    "a side of text": put("detections", 0, "box", value=[1, 2, "9", 9]),
    "a negative label": put("detections", 0, "label", value=-1),
    "a huge label": put("detections", 0, "label", value=2**20 + 1),
    "half a label": put("detections", 0, "label", value=0.5),
    "runs of too few": put("detections", 0, "counts", value="1"),
    "runs of too many": put("detections", 0, "counts", value=HEAD["detections"][0]["counts"] + "1"),
    "runs that are cut": put("detections", 0, "counts", value=HEAD["detections"][0]["counts"][:-1]),
    "runs without an end": put("detections", 0, "counts", value="o" * 20),
    "runs of letters beyond": put("detections", 0, "counts", value="é"),
    "runs of nothing": put("detections", 0, "counts", value=""),
    "runs of a list": put("detections", 0, "counts", value=[1200]),
    "nothing wanted": put("score_threshold", value=0.89),
    "nothing expected": put("detections", value=[]),
    "a label beyond the classes": put("detections", 0, "label", value=CLASSES),
}  # fmt: skip


def without_reason(told: SelftestResult | str) -> SelftestResult | str:
    return re.sub(r"(is damaged) \(.*", r"\1", told, flags=re.DOTALL) if isinstance(told, str) else told


def test_pythons_words_for_damaged_files(library_of: Callable[[str], CppLibrary], tmp_path: Path, python: Python) -> None:
    library = library_of("address")
    engine = engine_of(library, tmp_path, THINGS)
    damaged = []
    for number, change in enumerate(DAMAGED.values()):
        fields = json.loads(json.dumps(HEAD))
        change(fields)
        damaged.append(carrying(engine, json.dumps(fields).encode(), f"d{number}"))
    wanted = [python(each) for each in damaged]
    for case, found, told in zip(DAMAGED, cpp(library, *damaged), wanted, strict=True):
        assert isinstance(told, str), case
        assert without_reason(found) == without_reason(told), case
        assert ("damaged (" in told) == ("damaged (" in str(found)), case
    assert sum("expects the label 4, its model has 4 classes" in str(told) for told in wanted) == 1
    assert sum("has schema" in str(told) for told in wanted) == 3


WHOLE = document(detections_of(THINGS))
FILES: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"hello",
    "cut": WHOLE[:-20],
    "a list": b"[]",
    "a number": b"1",
    "no UTF-8": WHOLE.replace(b"by hand", b"by h\xffnd"),
    "a mark before it": b"\xef\xbb\xbf" + WHOLE,
    "text behind it": WHOLE + b"x",
    "nested too deeply": b"[" * 100_000,
    "a zero": WHOLE.replace(b"by hand", b"by\0hand"),
}


def test_files_that_are_none(library_of: Callable[[str], CppLibrary], tmp_path: Path, python: Python) -> None:
    library = library_of("address")
    engine = engine_of(library, tmp_path, THINGS)
    broken = [carrying(engine, content, f"f{number}") for number, content in enumerate(FILES.values())]
    missing = carrying(engine, WHOLE, "missing")
    missing.engine.with_name("missing.engine.selftest.json").unlink()
    other = carrying(engine, WHOLE, "other", "0" * 64)
    folder = carrying(engine, WHOLE, "folder")
    folder.engine.with_name("folder.engine.selftest.json").unlink()
    folder.engine.with_name("folder.engine.selftest.json").mkdir()
    large = carrying(engine, WHOLE, "large")
    with open(large.engine.with_name("large.engine.selftest.json"), "ab") as file:
        file.truncate((64 << 20) + 1)
    all_of_them = [engine, *broken, missing, other, folder, large]
    wanted = [python(each) for each in all_of_them]
    assert all(isinstance(told, str) for told in wanted)
    assert cpp(library, *all_of_them) == wanted
    for part in ("carries no self-test", "which is missing", "its SHA-256 differs", "is larger than 64 MiB"):
        assert any(part in str(told) for told in wanted), part


VALUES: list[Any] = [None, 0, -1, 1.5, 0.31, 10**30, float("nan"), "", "x" * 500, [], {}, [[]], "é\U0001f600", 2**31, 1e308]


@settings(max_examples=6, phases=[Phase.generate], deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_document_brings_it_down(
    library_of: Callable[[str], CppLibrary], tmp_path_factory: pytest.TempPathFactory, python: Python, data: st.DataObject
) -> None:
    library = library_of("address")
    engine = engine_of(library, tmp_path_factory.mktemp("engines"), THINGS)
    places = [place for place in leaves(HEAD) if place and place != ("schema",)]
    changed = []
    for number in range(25):
        fields = json.loads(json.dumps(HEAD))
        for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=1 if number % 2 else 2)):
            try:
                put(*place, value=data.draw(st.sampled_from(VALUES)))(fields)
            except (TypeError, KeyError, IndexError):  # what an earlier change took away
                continue
        changed.append(carrying(engine, json.dumps(fields).encode(), f"h{number}"))
    assert [*map(without_reason, cpp(library, *changed))] == [without_reason(python(each)) for each in changed]


def leaves(fields: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = fields.items() if isinstance(fields, dict) else enumerate(fields) if isinstance(fields, list) else ()
    return [place, *(leaf for key, value in items for leaf in leaves(value, (*place, key)))]


LETTERS = st.sampled_from([chr(code) for code in range(45, 118)])


@settings(max_examples=6, phases=[Phase.generate], deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_runs(
    library_of: Callable[[str], CppLibrary], tmp_path_factory: pytest.TempPathFactory, python: Python, data: st.DataObject
) -> None:
    """Masks and pictures with a letter changed, put in or left out are taken or refused as by Python, and compared as by it."""
    library = library_of("address")
    engine = engine_of(library, tmp_path_factory.mktemp("engines"), THINGS)
    changed = []
    for number in range(25):
        fields = json.loads(json.dumps(HEAD))
        owner, name = (fields["picture"], "rgb") if number % 5 == 0 else (fields["detections"][number % 2], "counts")
        at = data.draw(st.integers(0, len(owner[name])))
        taken = data.draw(st.sampled_from([0, 1, 1, 2]))
        given_text = "".join(data.draw(st.lists(LETTERS, max_size=2)))
        owner[name] = owner[name][:at] + given_text + owner[name][at + taken :]
        changed.append(carrying(engine, json.dumps(fields).encode(), f"r{number}"))
    assert [*map(without_reason, cpp(library, *changed))] == [without_reason(python(each)) for each in changed]
