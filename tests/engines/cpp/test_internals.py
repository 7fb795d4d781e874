"""The C++ library's own JSON, SHA-256, number and RLE functions against Python's, on many cases in one process."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tests.helpers.cpp_library import CppLibrary, compile_program

MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class Asked:
    """The program, which answers line by line."""

    def __init__(self, library: CppLibrary) -> None:
        command = [compile_program(library, "internals", static=True)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=library.environment(), text=True)

    def __call__(self, question: str, *words: object) -> str:
        told = [f"x{word.hex()}" if isinstance(word, bytes) else str(word) for word in words]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(question, *told, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().removesuffix("\n")


@pytest.fixture(scope="module")
def asked(library: CppLibrary) -> Iterator[Asked]:
    found = Asked(library)
    yield found
    found.process.communicate(timeout=100)
    assert found.process.returncode == 0


# JSON


def bits(number: float) -> str:
    return "7ff8000000000000" if math.isnan(number) else struct.pack(">d", number).hex()


def shown(value: Any) -> str:
    """As the program shows what it reads."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "s" + "".join("\ufffd" if "\ud800" <= letter < "\ue000" else letter for letter in value).encode().hex()
    if isinstance(value, int):
        try:
            number = float(value)
        except OverflowError:
            number = math.copysign(math.inf, value)
        return f"n{bits(number)}" + (f"i{value}" if -(2**63) <= value < 2**63 else "f")
    if isinstance(value, float):
        return f"n{bits(value)}f"
    if isinstance(value, list):
        return "[" + "".join(f"{shown(each)}," for each in value) + "]"
    pairs = sorted((shown(name), shown(each)) for name, each in value.items())
    return "{" + "".join(f"{name}:{each}," for name, each in pairs) + "}"


NUMBERS = st.one_of(st.integers(), st.integers(-(2**70), 2**70), st.floats())
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=5), inner, max_size=5)),
    max_leaves=20,
)


@MANY
@given(value=VALUES, indent=st.sampled_from([None, 0, 3]), ascii_alone=st.booleans())
def test_whatever_python_writes_is_read(asked: Asked, value: Any, indent: int | None, ascii_alone: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_alone).encode()
    assert asked("json", text) == shown(json.loads(text))


WRITTEN = [
    *("0", "-0", "0.0", "-0.0", "1e5", "1E+5", "1e-5", "12.5e2", "1e400", "-1e400", "1e-400", "9223372036854775807", "9223372036854775808"),
    *(
        "-9223372036854775808",
        "-9223372036854775809",
        "NaN",
        "Infinity",
        "-Infinity",
        " 1 ",
        "\t\n\r1",
        "[1 , 2]",
        '{ "a" : 1 , "b" : [ ] }',
    ),
    *("{}", "[]", '""', r'"\u0041\n\t\r\b\f\/\\\""', r'"\u00e9\u20AC"', r'"\ud83d\ude00"', r'"\ud83d"', r'"\ude00"', r'"\ud83dx"'),
    *(
        r'"\ud83d\u0041"',
        r'"\ud83d\ud83d\ude00"',
        r'"\uDBFF\uDFFF"',
        r'"\ud800\udc00"',
        r'"\ud7ff\ue000"',
        '{"a": 1, "a": 2}',
        '"\x7f"',
        '"ü€😀"',
    ),
    *(
        "1.5E-3",
        "100e-2",
        "0e1",
        "4.9e-324",
        "2.4e-324",
        "1.7976931348623157e308",
        "1.7976931348623159e308",
        "[[[[]]]]",
        "[null,true,false]",
    ),
]
REFUSED = [
    *(
        "",
        " ",
        "01",
        "-",
        "+1",
        ".5",
        "5.",
        "1e",
        "1e+",
        "--1",
        "1 2",
        "[1,]",
        "[1 2]",
        "[",
        "[1",
        "{",
        '{"a"',
        '{"a":',
        '{"a":1',
        '{"a":1,}',
    ),
    *(
        '{"a" 1}',
        "{1:2}",
        "{,}",
        "[,]",
        '"',
        '"a',
        r'"\x"',
        r'"\u12"',
        r'"\u12g4"',
        r'"\ud83d\u12"',
        '"\n"',
        '"\t"',
        "nul",
        "tru",
        "falsee",
    ),
    *("nan", "-NaN", "inf", "0x1", "1_0", "'a'", "[1}", "{]", "NaNa", "-Infinit", "True", "\ufeff1", "\v1", "1\f"),
]


@pytest.mark.parametrize("text", WRITTEN)
def test_json_that_is_read(asked: Asked, text: str) -> None:
    assert asked("json", text.encode()) == shown(json.loads(text))


@pytest.mark.parametrize("text", REFUSED)
def test_json_that_is_refused(asked: Asked, text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        json.loads(text)
    assert asked("json", text.encode()).startswith("refused: ")


@MANY
@given(value=VALUES, data=st.data())
def test_damaged_json_is_refused_where_python_refuses_it(asked: Asked, value: Any, data: Any) -> None:
    text = json.dumps(value)
    place = data.draw(st.integers(0, len(text)))
    changed = text[:place] + data.draw(st.sampled_from(list('{}[]",:0159.-+eEtfn \\u'))) + text[place + data.draw(st.integers(0, 2)) :]
    try:
        wanted = shown(json.loads(changed))
    except ValueError:
        assert asked("json", changed.encode()).startswith("refused: ")
    else:
        assert asked("json", changed.encode()) == wanted


def test_how_deep_and_where(asked: Asked) -> None:
    for open_with, close_with in (("[", "]"), ('{"a":', "}")):
        assert asked("json", (open_with * 200 + "1" + close_with * 200).encode()).startswith(open_with[0])
        assert (
            asked("json", (open_with * 201 + "1" + close_with * 201).encode())
            == f"refused: too many nested values at byte {201 * len(open_with)}"
        )
    assert asked("json", b"[" * 100_000).startswith("refused: too many nested")
    assert asked("json", b"[1, x]") == "refused: no value at byte 4"
    assert asked("json", b'"a\0b"').startswith("refused: a control character in a text")
    assert asked("json", b"1\0") == "refused: more text after the end at byte 1"
    assert asked("json", b'{"a": 1} {') == "refused: more text after the end at byte 9"


def test_other_kinds_are_told(asked: Asked) -> None:
    names = {"null": "null", "true": "true or false", "1.5": "a number", '"a"': "a text", "[]": "a list", "{}": "an object"}
    asks = {"boolean": "true or false", "number": "a number", "string": "a text", "array": "a list", "object": "an object"}
    for text, kind in names.items():
        found = asked("kinds", text.encode())
        for question, wanted in asks.items():
            assert (f"{question}: it is {kind}, {wanted} was wanted; " in found) == (kind != wanted)
        told = "it is no whole number of 64 bits" if text == "1.5" else f"it is {kind}, a number was wanted"
        assert f"integer: {told}; " in found
        assert ("member: name is missing; " if text == "{}" else f"member: what holds name is {kind}, an object was wanted; ") in found
    assert "integer" not in asked("kinds", b"7")


# Other text


@MANY
@given(data=st.binary(max_size=300))
def test_sha256(asked: Asked, data: bytes) -> None:
    assert asked("sha256", data) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 54, 55, 56, 57, 63, 64, 65, 119, 120, 128, 8191, 70_000])
def test_sha256_of_sizes(asked: Asked, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert asked("sha256", data) == hashlib.sha256(data).hexdigest()


def python_float(number: float) -> str:
    return json.dumps(number)


@settings(MANY, max_examples=1500)
@given(number=st.one_of(st.floats(), st.floats(width=32), st.floats(0, 1, width=32), st.integers(-(10**18), 10**18).map(float)))
def test_floats_as_python_writes_them(asked: Asked, number: float) -> None:
    assert asked("float", struct.pack(">d", number).hex()) == python_float(number)


@pytest.mark.parametrize("exponent", range(-8, 24))
def test_floats_of_every_length(asked: Asked, exponent: int) -> None:
    for digits in ("1", "9.5", "1.25", "9.99999999999999", "1.2345678901234567"):
        for sign in (1, -1):
            number = sign * float(f"{digits}e{exponent}")
            assert asked("float", struct.pack(">d", number).hex()) == python_float(number)


@MANY
@given(text=st.text(max_size=30))
def test_texts_as_python_writes_them(asked: Asked, text: str) -> None:
    assert asked("string", text.encode()) == json.dumps(text)


def test_every_ascii_letter(asked: Asked) -> None:
    for letter in map(chr, [*range(300), 0x7FF, 0x800, 0xFFFF, 0x10000, 0x10FFFF]):
        assert asked("string", letter.encode()) == json.dumps(letter)


@MANY
@given(data=st.binary(max_size=12))
def test_what_is_no_utf8_is_replaced(asked: Asked, data: bytes) -> None:
    assert set(json.loads(asked("string", data)).replace("\ufffd", "")) <= set(data.decode(errors="ignore"))


@pytest.mark.parametrize("number", [0, 1, 999, 1000, 12345, 123456, 1234567, 2**64 - 1])
def test_numbers_in_messages(asked: Asked, number: int) -> None:
    assert asked("commas", number) == f"{number:,} {number:#x}"


# Run lengths

MASKS = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 4), st.integers(0, 10**6))


def mask_of(height: int, width: int, kind: int, seed: int) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(seed)
    made: np.ndarray[Any, Any] = generator.random((height, width)) < (0, 1, 0.5, 0.03, 0.97)[kind]
    return np.asfortranarray(made.astype(np.uint8))


def counts_of(mask: np.ndarray[Any, Any]) -> bytes:
    return bytes(coco_mask.encode(mask)["counts"])


@MANY
@given(given_mask=MASKS)
def test_runs(asked: Asked, given_mask: tuple[int, int, int, int]) -> None:
    mask = mask_of(*given_mask)
    runs = [int(run) for run in asked("runs", counts_of(mask), mask.size).split()]
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    np.testing.assert_array_equal(values, mask.ravel(order="F"))


@MANY
@given(one=MASKS, two=MASKS)
def test_mask_iou(asked: Asked, one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> None:
    first, second = mask_of(*one), mask_of(*one[:2], *two[2:])
    together = int(np.count_nonzero(first | second))
    wanted = np.count_nonzero(first & second) / together if together else 1.0
    assert asked("iou", counts_of(first), counts_of(second), first.size) == bits(float(wanted))


@pytest.mark.parametrize(
    ("counts", "pixels", "wanted"),
    [
        (b"", 0, ""),
        (b"0", 0, "0 "),
        (b"0:", 10, "0 10 "),
        (b"0:0", 10, "0 10 0 "),
        (b"PPPPPP1", 1 << 30, "1073741824 "),
        (b"`0", 16, "16 "),
        (b"_0", 15, "15 "),
        (b"322N", 7, "3 2 2 0 "),  # the fourth is told from the second
    ],
)
def test_runs_by_hand(asked: Asked, counts: bytes, pixels: int, wanted: str) -> None:
    assert asked("runs", counts, pixels) == wanted


@pytest.mark.parametrize(
    ("counts", "pixels"),
    [
        (b"", 1),
        (b":", 9),
        (b":", 11),
        (b"/", 10),  # below the letters
        (b"p", 10),  # above them
        (b":P", 10),  # ends within a number
        (b"P", 10),
        (b"O", 10),  # -1
        (b":O", 9),
        (b"PPPPPPP1", 10),
        (b"oooooooooooooooo", 10),
        (b"ooooooo0", 10),
        (b"00000O", 0),
        (b"\xff", 10),
        (b"\x00", 10),
    ],
)
def test_runs_that_are_refused(asked: Asked, counts: bytes, pixels: int) -> None:
    assert asked("runs", counts, pixels) == "refused"


@settings(MANY, max_examples=1000)
@given(counts=st.binary(max_size=12), pixels=st.integers(0, 100))
def test_any_bytes_as_runs(asked: Asked, counts: bytes, pixels: int) -> None:
    told = asked("runs", counts, pixels)
    runs = [] if told == "refused" else [int(run) for run in told.split()]
    assert all(run >= 0 for run in runs)
    assert told == "refused" or sum(runs) == pixels
