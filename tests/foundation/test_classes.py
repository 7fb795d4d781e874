"""Class lists: the two published ones, and users' own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yolact_deploy.classes import COCO, PASCAL, ClassList, numbered_classes, read_classes
from yolact_deploy.errors import ConfigError


def test_coco() -> None:
    assert len(COCO) == 80
    pairs = dict(zip(COCO.names, COCO.category_ids, strict=True))
    known = {
        "person": 1,
        "fire hydrant": 11,
        "stop sign": 13,
        "cat": 17,
        "backpack": 27,
        "dining table": 67,
        "toilet": 70,
        "toothbrush": 90,
    }
    assert {name: pairs[name] for name in known} == known
    assert len(set(COCO.names)) == 80


def test_coco_is_what_its_annotations_say(coco_mini: Path) -> None:
    assert read_classes(str(coco_mini / "instances_val.json")) == COCO


def test_pascal() -> None:
    assert (len(PASCAL), PASCAL.names[0], PASCAL.names[-1], PASCAL.category_ids) == (20, "aeroplane", "tvmonitor", tuple(range(1, 21)))
    assert list(PASCAL.names) == sorted(PASCAL.names)


def test_the_built_in_names() -> None:
    assert read_classes("coco") is COCO
    assert read_classes("pascal") is PASCAL


def test_numbered() -> None:
    assert numbered_classes(2) == ClassList(("class 1", "class 2"), (1, 2))
    assert len(numbered_classes(0)) == 0


def test_lengths_must_agree() -> None:
    with pytest.raises(ConfigError, match="2 names and 1 category ids"):
        ClassList(("a", "b"), (1,))


@pytest.mark.parametrize("text", ["cat\ndog", "\ufeff cat \n\n\tdog\t\n", "cat\r\ndog\r\n"])
def test_a_text_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.txt").write_bytes(text.encode())
    assert read_classes(str(tmp_path / "names.txt")) == ClassList(("cat", "dog"), (1, 2))


def test_other_scripts(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("犬\nКошка".encode())
    assert read_classes(str(tmp_path / "names.txt")).names == ("犬", "Кошка")


def test_annotations_are_ordered_by_id(tmp_path: Path) -> None:
    categories = [{"id": 10, "name": "b"}, {"id": 9, "name": "c"}, {"id": 100, "name": "a", "supercategory": "x"}]
    (tmp_path / "a.json").write_text(" \n" + json.dumps({"categories": categories, "images": []}))
    assert read_classes(str(tmp_path / "a.json")) == ClassList(("c", "b", "a"), (9, 10, 100))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "holds no names"),
        (b"\n \n", "holds no names"),
        (b"cat\ncat\n", "names 'cat' twice"),
        (b"cat\xff\xfe\n", "not readable text"),
        (b"a\x07b\n", "not a printable name"),
        (b"{}", "no COCO 'categories'"),
        (b"[1]", "no COCO 'categories'"),
        (b"{", "no COCO 'categories'"),
        (b"[" * 100_000, "no COCO 'categories'"),
        (b'{"categories": [{"id": 1}]}', "no COCO 'categories'"),
        (b'{"categories": 3}', "no COCO 'categories'"),
        (b'{"categories": []}', "holds no names"),
        (b'{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "one category id to several"),
        (b'{"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}', "names 'a' twice"),
    ],
)
def test_refuses(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "names").write_bytes(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_classes(str(tmp_path / "names"))
    assert caught.value.mend


def test_missing_and_folder(tmp_path: Path) -> None:
    for source in (tmp_path / "no.txt", tmp_path):
        with pytest.raises(ConfigError, match="does not exist"):
            read_classes(str(source))


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "names").write_text("cat")
    monkeypatch.setattr("yolact_deploy.classes._MAX_CLASS_FILE", 2)
    with pytest.raises(ConfigError, match="3 bytes, at most 2"):
        read_classes(str(tmp_path / "names"))
