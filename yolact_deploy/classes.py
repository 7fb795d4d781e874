"""Class names and category ids: the two lists that published checkpoints were trained on, and a reader for users' own."""

from __future__ import annotations

import json
import os.path
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.errors import ConfigError

__all__ = ["COCO", "PASCAL", "ClassList", "numbered_classes", "read_classes"]

_MAX_CLASS_FILE = 2 << 30  # bytes; annotation files of COCO itself reach 450 MB


@dataclass(frozen=True)
class ClassList:
    """Names of the classes without background, and the category id that a COCO result file uses for each.

    ``names[label]`` and ``category_ids[label]`` take the 0-based label of a detection.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.category_ids):
            raise ConfigError(f"A class list has {len(self.names)} names and {len(self.category_ids)} category ids.")

    def __len__(self) -> int:
        return len(self.names)


_COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,bird,"
    "cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,"
    "sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,"
    "banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,"
    "laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,"
    "hair drier,toothbrush"
)
_COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # ids that COCO 2017 does not use
_PASCAL_NAMES = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,pottedplant,sheep,sofa,train,tvmonitor"
)

COCO = ClassList(tuple(_COCO_NAMES.split(",")), tuple(i for i in range(1, 91) if i not in _COCO_GAPS))
PASCAL = ClassList(tuple(_PASCAL_NAMES.split(",")), tuple(range(1, 21)))
_BUILT_IN = {"coco": COCO, "pascal": PASCAL}


def numbered_classes(count: int) -> ClassList:
    """Stand-in names ``class 1`` … for weights whose class names nobody gave."""
    return ClassList(tuple(f"class {i}" for i in range(1, count + 1)), tuple(range(1, count + 1)))


def read_classes(source: str) -> ClassList:
    """Class names from ``coco``, ``pascal``, a text file (one name a line) or a COCO annotation file (``categories``).

    In an annotation file the classes are ordered by category id, as the original implementation's label maps are.
    Raises :class:`ConfigError` for a file that is missing, empty, not text, or names a class twice.
    """
    if source in _BUILT_IN:
        return _BUILT_IN[source]
    path = Path(source)
    mend = "Give a text file with one class name a line, a COCO annotation file, or one of: coco, pascal."
    if not os.path.isfile(source):  # unlike Path.is_file, it answers for any string
        raise ConfigError(f"The class list {source} does not exist.", mend)
    if path.stat().st_size > _MAX_CLASS_FILE:
        raise ConfigError(f"The class list {source} has {path.stat().st_size:,} bytes, at most {_MAX_CLASS_FILE:,} are read.", mend)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The class list {source} is not readable text ({error}).", mend) from None
    if text.lstrip().startswith(("{", "[")):
        return _from_annotations(source, text, mend)
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    _check_names(source, names, mend)
    return ClassList(names, tuple(range(1, len(names) + 1)))


def _from_annotations(source: str, text: str, mend: str) -> ClassList:
    try:
        categories = json.loads(text)["categories"]
        pairs = sorted((int(category["id"]), category["name"]) for category in categories)
        if not all(isinstance(name, str) for _, name in pairs):
            raise TypeError("a name is no text")
    except (ValueError, OverflowError, TypeError, KeyError, RecursionError):
        raise ConfigError(f"{source} looks like JSON but has no COCO 'categories' with an id and a name each.", mend) from None
    if len({identifier for identifier, _ in pairs}) != len(pairs):
        raise ConfigError(f"{source} gives one category id to several classes.", mend)
    names = tuple(name for _, name in pairs)
    _check_names(source, names, mend)
    return ClassList(names, tuple(identifier for identifier, _ in pairs))


def _check_names(source: str, names: tuple[str, ...], mend: str) -> None:
    if not names:
        raise ConfigError(f"The class list {source} holds no names.", mend)
    unprintable = next((name for name in names if not name.isprintable() or not name.strip()), None)
    if unprintable is not None:
        raise ConfigError(f"The class list {source} holds {unprintable!r}, which is not a printable name.", mend)
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"The class list {source} names {twice!r} twice.", mend)
