"""Class lists: the two built in, and the readers of text files and COCO annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.model.conftest import Refusal
from yolact_deploy.classes import COCO, PASCAL, ClassList, numbered_classes, read_classes
from yolact_deploy.errors import ConfigError


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(content: Any) -> str:
        path = tmp_path / "classes"
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def test_coco_has_80_names_and_the_datasets_ids() -> None:
    assert read_classes("coco") is COCO
    assert len(COCO) == len(set(COCO.names)) == 80
    known = dict(zip(COCO.names, COCO.category_ids, strict=True))
    assert COCO.category_ids == tuple(sorted(COCO.category_ids))
    ids = ("person", "bicycle", "stop sign", "parking meter", "backpack", "umbrella", "wine glass", "dining table", "toilet", "toothbrush")
    assert [known[name] for name in ids] == [1, 2, 13, 14, 27, 28, 46, 67, 70, 90]


def test_coco_is_what_a_coco_file_says(coco_mini: Path) -> None:
    assert read_classes(str(coco_mini / "instances_val.json")) == COCO


def test_pascal_has_20_names_in_order() -> None:
    assert read_classes("pascal") is PASCAL
    assert len(PASCAL) == 20
    assert list(PASCAL.names) == sorted(PASCAL.names)
    assert PASCAL.category_ids == tuple(range(1, 21))


def test_numbered_names_start_at_one() -> None:
    assert numbered_classes(3) == ClassList(("class 1", "class 2", "class 3"), (1, 2, 3))


@pytest.mark.parametrize(
    "content",
    [
        "nut\nbolt, large\nÖse\n",
        "nut\nbolt, large\nÖse",
        "\ufeffnut\r\nbolt, large\r\nÖse\r\n",
        "\n\n  nut\t\n\n\nbolt, large  \nÖse\n\n",
    ],
    ids=["plain", "no-last-newline", "windows", "blank-lines"],
)
def test_a_text_file_has_one_name_a_line(written: Any, content: str) -> None:
    assert read_classes(written(content)) == ClassList(("nut", "bolt, large", "Öse"), (1, 2, 3))


def test_annotations_are_ordered_by_id_and_keep_their_gaps(written: Any) -> None:
    categories = [{"id": 90, "name": "z"}, {"id": 3, "name": "m", "supercategory": "s"}, {"id": 0, "name": "a"}]
    assert read_classes(written({"images": [], "categories": categories})) == ClassList(("a", "m", "z"), (0, 3, 90))
    assert read_classes(written(("\ufeff \n" + json.dumps({"categories": categories})).encode())).category_ids == (0, 3, 90)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "no names"),
        ("\n \r\n\t\n", "no names"),
        ("nut\nbolt\nnut\n", "'nut' twice"),
        (b"\x80\x02}q\x00", "not readable text"),
        ("nut\nbolt".encode("utf-16"), "not readable text"),
        (b"PK\x03\x04\x00\x00", "not a printable name"),
        ("nut\x1b[31m\n", "not a printable name"),
        ({"categories": []}, "no names"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "one category id"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "'a' twice"),
        ({"categories": [{"id": 1, "name": "a\nb"}]}, "not a printable name"),
        ({"categories": [{"id": 1, "name": " "}]}, "not a printable name"),
        ('{"categories": [{"id": 1, "name": "\\ud800"}]}', "not a printable name"),
        ({"categories": [{"id": 1}]}, "'categories'"),
        ({"categories": [{"name": "a"}]}, "'categories'"),
        ({"categories": [{"id": "first", "name": "a"}]}, "'categories'"),
        ({"categories": [{"id": None, "name": "a"}]}, "'categories'"),
        ({"categories": [{"id": 1, "name": None}]}, "'categories'"),
        ({"categories": [{"id": 1, "name": ["a"]}]}, "'categories'"),
        ('{"categories": [{"id": 1e999, "name": "a"}]}', "'categories'"),
        ('{"categories": [{"id": NaN, "name": "a"}]}', "'categories'"),
        ('{"categories": [{"id": ' + "9" * 5000 + ', "name": "a"}]}', "'categories'"),
        ({"categories": {"id": 1, "name": "a"}}, "'categories'"),
        ({"categories": "person"}, "'categories'"),
        ({"categories": None}, "'categories'"),
        ({"annotations": []}, "'categories'"),
        (["person", "car"], "'categories'"),
        ('{"categories": [', "'categories'"),
        ("[" * 200_000, "'categories'"),
        ('{"categories":' * 100_000, "'categories'"),
    ],
)
def test_a_list_that_is_wrong_is_one_sentence(written: Any, refused: Refusal, content: Any, part: str) -> None:
    source = written(content)
    with refused(ConfigError, part, source):
        read_classes(source)


@pytest.mark.parametrize("source", ["COCO", "none.txt", "", ".", ",".join(["person", "car"] * 500)])
def test_a_source_that_is_no_file_names_what_may_be_given(refused: Refusal, source: str) -> None:
    with refused(ConfigError, "does not exist", "coco, pascal"):
        read_classes(source)


def test_many_names_are_read_at_once(written: Any) -> None:
    assert len(read_classes(written("\n".join(f"n{number}" for number in range(100_000))))) == 100_000


def test_names_and_ids_must_be_as_many() -> None:
    with pytest.raises(ConfigError, match="2 names and 1"):
        ClassList(("a", "b"), (1,))
