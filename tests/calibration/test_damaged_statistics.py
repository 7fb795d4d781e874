"""Files that hold no statistics, or damaged ones: each is refused in one sentence, and none runs anything."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.calibration.made_statistics import assert_same, statistics_over
from yolact_deploy.calibration.statistics import SCHEMA, Statistics
from yolact_deploy.errors import ModelFileError


def refused(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        Statistics.load(path)
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith(f"{path} holds no statistics of a calibration (")
    assert text.endswith("). Remove it, or calibrate with --fresh.")
    assert len(text) < 350
    return text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("statistics") / "whole.npz"
    statistics_over(3).save(path)
    return path.read_bytes()


def arrays_of(content: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(content)) as arrays:
        return {name: arrays[name] for name in arrays.files}


def rewritten(path: Path, arrays: dict[str, Any]) -> Path:
    with open(path, "wb") as handle:
        np.savez(handle, **arrays)
    return path


def test_files_of_others(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a.npz"
    assert "No such file" in refused(path)
    refused(tmp_path)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("readme.txt", "hello")
    single = io.BytesIO()
    np.save(single, np.arange(5))
    for content in (
        b"",
        b"hello",
        b"PK\x03\x04",
        b"\x93NUMPY",
        zipped.getvalue(),
        single.getvalue(),
        pickle.dumps([1]),
        whole[1:],
        b"\0" * 999,
    ):
        path.write_bytes(content)
        refused(path)
    rewritten(path, {"a": np.arange(3)})
    refused(path)


def test_truncated_files(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a.npz"
    for size in [*range(0, len(whole), max(len(whole) // 60, 1)), *range(len(whole) - 60, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:size])
        refused(path)


def test_damaged_files(tmp_path: Path, whole: bytes) -> None:
    """Any byte: either it is told, or what is read is what was written (names in the archive's local headers are not looked at)."""
    path = tmp_path / "a.npz"
    wanted = statistics_over(3)
    generator = np.random.default_rng(0)
    heads = [match for match in range(len(whole)) if whole.startswith((b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"\x93NUMPY"), match)]
    places = [int(head + step) for head in heads for step in generator.integers(0, 130, 12) if head + step < len(whole)]
    told = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            found = Statistics.load(path)
        except ModelFileError:
            told += 1
        else:
            assert_same(found, wanted)
    assert told > len(places) / 3


def test_compressed_and_damaged(tmp_path: Path, whole: bytes) -> None:
    """What zlib raises has no base that NumPy's or zipfile's errors have."""
    path = tmp_path / "a.npz"
    with open(path, "wb") as handle:
        np.savez_compressed(handle, **arrays_of(whole))
    assert_same(Statistics.load(path), statistics_over(3))
    content = path.read_bytes()
    start = content.index(b"counts_0.npy") + len(b"counts_0.npy") + 20
    for place in range(start, start + 40, 4):
        path.write_bytes(content[:place] + bytes(byte ^ 0x5A for byte in content[place : place + 4]) + content[place + 4 :])
        refused(path)


class Bomb:
    """Unpickled, it says so."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, ("raise KeyboardInterrupt('unpickled')",)


def test_pickled_objects_are_not_read(tmp_path: Path, whole: bytes) -> None:
    arrays = arrays_of(whole)
    for name in arrays:
        objects = np.empty(arrays[name].shape, object)
        objects[...] = Bomb()
        with_pickle = {**arrays, name: objects}
        assert "llow_pickle" in refused(rewritten(tmp_path / "a.npz", with_pickle)), name


def with_member(whole: bytes, name: str, content: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(made, "w") as target:
        for entry in source.namelist():
            target.writestr(entry, content if entry == f"{name}.npy" else source.read(entry))
    return made.getvalue()


def test_members_that_claim_much(tmp_path: Path, whole: bytes) -> None:
    """An array of 2 ** 60 elements that holds none of them, and headers that are no dictionary."""
    path = tmp_path / "a.npz"
    texts = [
        "{'descr': '<i8', 'fortran_order': False, 'shape': (1152921504606846976,), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (-5,), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (9223372036854775807, 9223372036854775807), }",
        "{'descr': 'O', 'fortran_order': False, 'shape': (8192,), }",
        "{'descr': [('a', '<i8'), ('b', 'O')], 'fortran_order': False, 'shape': (8192,), }",
        "{",
        "((((",
        "'''",
        "[" * 3000,
        "",
    ]
    for text in texts:
        header = text.encode() + b" " * 8 + b"\n"
        for version, size in ((b"\1\0", len(header).to_bytes(2, "little")), (b"\2\0", len(header).to_bytes(4, "little"))):
            path.write_bytes(with_member(whole, "counts_0", b"\x93NUMPY" + version + size + header))
            refused(path)


ODD: dict[str, Callable[[NDArray[Any]], Any]] = {
    "range_1 short": lambda found: found[:, :2],
    "range_1 long": lambda found: np.concatenate([found, found], axis=1),
    "range_1 three": lambda found: np.concatenate([found, found[:1]]),
    "range_1 one": lambda found: found[:1],
    "range_1 deep": lambda found: found[:, :, None],
    "range_1 text": lambda found: found.astype(str),
    "range_1 complex": lambda found: found.astype(complex),
    "range_1 float32": lambda found: found.astype(np.float32),
    "range_1 nan": lambda found: found * np.nan,
    "range_1 infinite": lambda found: np.where(found > 0, np.inf, found),
    "range_1 turned": lambda found: np.add(found[::-1], [[1.0], [0.0]]),
    "range_1 none": lambda found: None,
    "largest_0 flat": lambda found: found[0],
    "largest_0 deep": lambda found: found[None],
    "largest_0 short": lambda found: found[:2],
    "largest_0 float64": lambda found: found.astype(np.float64),
    "largest_0 nan": lambda found: found * np.nan,
    "largest_0 below": lambda found: -found,
    "largest_0 none": lambda found: None,
    "means_2 short": lambda found: found[1:],
    "means_2 deep": lambda found: found[None],
    "means_2 whole": lambda found: found.astype(np.int64),
    "means_2 infinite": lambda found: found + np.inf,
    "means_2 none": lambda found: None,
    "counts_0 short": lambda found: found[:-1],
    "counts_0 deep": lambda found: found[None],
    "counts_0 float": lambda found: found.astype(np.float64),
    "counts_0 int32": lambda found: found.astype(np.int32),
    "counts_0 unsigned": lambda found: found.astype(np.uint64),
    "counts_0 big-endian": lambda found: found.astype(">i8"),
    "counts_0 below": lambda found: found - 1,
    "counts_0 none": lambda found: None,
    "best short": lambda found: found[:-1],
    "best long": lambda found: np.append(found, 0.5),
    "best deep": lambda found: found[:, None],
    "best text": lambda found: found.astype(str),
    "best nan": lambda found: found * np.nan,
    "best none": lambda found: None,
    "swapped_best long": lambda found: np.zeros(4),
    "swapped_best deep": lambda found: found[:, None],
    "swapped_best text": lambda found: found.astype(str),
    "swapped_best none": lambda found: None,
    "header none": lambda found: None,
    "header empty": lambda found: found[:0],
    "header short": lambda found: found[:-1],
    "header binary": lambda found: found ^ 0x80,
}


@pytest.mark.parametrize("case", list(ODD))
def test_odd_arrays(tmp_path: Path, whole: bytes, case: str) -> None:
    name = case.split()[0]
    arrays = arrays_of(whole)
    changed = ODD[case](arrays.pop(name))
    refused(rewritten(tmp_path / "a.npz", arrays if changed is None else {**arrays, name: np.asarray(changed)}))


ODD_EXPONENTS: list[Any] = [None, "1", 1.5, True, -61, 129, 1e400, 10**30, [], {}]
VALUES = [["images", "a", 1], ["relu", "b", 1], ["flat", "c", 1]]
ODD_HEADERS: dict[str, Any] = {
    "schema": [0, SCHEMA + 1, "1", None, [], 1.5],
    "pictures": [None, 5, [], [{}], [None] * 3, "abc", {"a": 1}, ["abc"] * 3],
    "values": [
        None,
        5,
        [[]],
        [["images", "a"]],
        [["images", "a", 1, 2]],
        ["abc"] * 4,
        [*VALUES, ["more", "d", 1]],
        *[[["images", "a", exponent], *VALUES[1:]] for exponent in ODD_EXPONENTS],
    ],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, odd in ODD_HEADERS.items() for value in odd])
def test_odd_headers(tmp_path: Path, whole: bytes, key: str, value: Any) -> None:
    arrays = arrays_of(whole)
    header = json.loads(arrays["header"].tobytes())
    for changed in ({**header, key: value}, {other: entry for other, entry in header.items() if other != key}):
        arrays["header"] = np.frombuffer(json.dumps(changed).encode(), np.uint8)
        said = refused(rewritten(tmp_path / "a.npz", arrays))
        assert key != "schema" or "schema" in said


@pytest.mark.parametrize("text", ["", "null", "[]", "5", '"text"', "{}", "[" * 100_000, '{"schema": 1', "NaN", "\ud800"])
def test_headers_that_are_none(tmp_path: Path, whole: bytes, text: str) -> None:
    arrays = {**arrays_of(whole), "header": np.frombuffer(text.encode(errors="surrogatepass"), np.uint8)}
    refused(rewritten(tmp_path / "a.npz", arrays))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_in_place_of_some(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(whole)))
    last = data.draw(st.integers(first, min(len(whole), first + 400)))
    path = tmp_path / "a.npz"
    path.write_bytes(whole[:first] + data.draw(st.binary(max_size=300)) + whole[last:])
    try:
        found = Statistics.load(path)
    except ModelFileError:
        return
    assert_same(found, statistics_over(3))
