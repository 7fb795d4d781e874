"""What a COCO annotation file says: its JSON, classes, images and annotations, each entry checked before anything trusts it.

A file that contradicts itself is an error; single annotations that no network can learn from or be measured on are left out and
counted.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pycocotools import mask as coco_mask

from yolact_deploy.classes import ClassList
from yolact_deploy.data.segmentation import Segmentation, UnusableError, as_number, check_segmentation, rle_of
from yolact_deploy.errors import ConfigError, DatasetError

__all__ = ["CocoImage", "Instance", "Reader"]

_MAX_PIXELS = 200_000_000  # as many as yolact_deploy.pictures decodes
_MAX_ID = 1 << 53  # pycocotools keeps ids as float64


@dataclass(frozen=True)
class CocoImage:
    """One picture of the data set: its id, its file's name below the picture folder, and its size in pixels."""

    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Instance:
    """One annotation.

    Attributes:
        id: unique in the file and not zero, which pycocotools takes for "no match".
        label: 0-based index into the data set's classes.
        box: x, y, width, height in pixels, as COCO's ``bbox``.
        area: of the mask in pixels, as the file says.
        crowd: whether this is a region of many objects, which is neither learnt nor counted as missed.
        segmentation: polygons (x, y, x, y, … of each part) or a compressed RLE.
    """

    id: int
    label: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: Segmentation


class Reader:
    """Reads the parts of one file; `met` counts the oddities, each by what it is and what was done about it.

    Every method raises :class:`DatasetError` for what contradicts the format.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.met: Counter[str] = Counter()
        self.content = self._parse(data)

    def notes(self) -> tuple[str, ...]:
        """One sentence for each kind of oddity, with how often it was met."""
        return tuple(f"{what}: {count:,}." for what, count in sorted(self.met.items()))

    def _parse(self, data: bytes) -> dict[str, Any]:
        wanted = "Give a COCO annotation file: a JSON object with images, annotations and categories."
        if not data.strip():
            raise DatasetError(f"The annotation file {self.path} is empty.", wanted)
        try:
            content = json.loads(data.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise DatasetError(f"The annotation file {self.path} is not JSON ({reason}).", wanted) from None
        if isinstance(content, list):
            raise DatasetError(f"{self.path} holds a JSON list, as files of detection results do, but annotations were wanted.", wanted)
        if not isinstance(content, dict):
            raise DatasetError(f"{self.path} holds {_short(content)}, a JSON object was wanted.", wanted)
        return content

    def _fault(self, message: str, mend: str = "Mend the annotation file.") -> DatasetError:
        return DatasetError(f"{self.path}: {message}", mend)

    def _entries(self, key: str) -> list[dict[str, Any]]:
        entries = self.content.get(key)
        if not isinstance(entries, list):
            found = "is missing" if key not in self.content else f"is {_short(entries)}"
            raise self._fault(f"'{key}' {found}, a list was wanted.", "Give a COCO annotation file.")
        for entry in entries:
            if not isinstance(entry, dict):
                raise self._fault(f"'{key}' holds {_short(entry)}, where JSON objects were wanted.")
        return entries

    def _id(self, entry: Mapping[str, Any], key: str, owner: str) -> int:
        value = entry.get(key)
        if type(value) is not int or abs(value) >= _MAX_ID:
            found = "is missing" if key not in entry else f"is {_short(value)}"
            raise self._fault(f"the {key} of {owner} {found}, a whole number below 2^53 was wanted.")
        return value

    def classes(self) -> ClassList:
        """The categories, ordered by id."""
        pairs = []
        for entry in self._entries("categories"):
            name = entry.get("name")
            if not isinstance(name, str) or not name.strip() or not name.isprintable():
                raise self._fault(f"a category's name is {_short(name)}, a printable text was wanted.")
            pairs.append((self._id(entry, "id", f"category {name!r}"), name))
        pairs.sort()
        if not pairs:
            raise self._fault("'categories' is empty, at least one class was wanted.")
        for what, values in (("category id", [pair[0] for pair in pairs]), ("category name", [pair[1] for pair in pairs])):
            twice = _twice(values)
            if twice is not None:
                raise self._fault(f"the {what} {twice!r} is given twice.")
        try:
            return ClassList(tuple(name for _, name in pairs), tuple(identifier for identifier, _ in pairs))
        except ConfigError as error:
            raise self._fault(error.message, error.mend) from None

    def images(self) -> tuple[CocoImage, ...]:
        """The images, ordered by id."""
        images = [self._image(entry) for entry in self._entries("images")]
        if not images:
            raise self._fault("'images' is empty, at least one image was wanted.")
        twice = _twice([image.id for image in images])
        if twice is not None:
            raise self._fault(f"the image id {twice} is given to several images.")
        repeated = len(images) - len({image.file_name for image in images})
        if repeated:
            self.met["Images with a file name that another image has too"] = repeated
        return tuple(sorted(images, key=lambda image: image.id))

    def _image(self, entry: Mapping[str, Any]) -> CocoImage:
        identifier = self._id(entry, "id", "an image")
        name = entry.get("file_name")
        if not isinstance(name, str) or not _stays_inside(name):
            raise self._fault(
                f"the file_name of image {identifier} is {_short(name)}, a path below the picture folder was wanted.",
                "Write names relative to the picture folder, without '..'.",
            )
        sides = [as_number(entry.get(side)) for side in ("width", "height")]
        if not all(side >= 1 and side.is_integer() for side in sides) or sides[0] * sides[1] > _MAX_PIXELS:
            found = f"{_short(entry.get('width'))} x {_short(entry.get('height'))}"
            raise self._fault(
                f"image {identifier} has width x height {found}, whole numbers and at most {_MAX_PIXELS:,} pixels were wanted."
            )
        return CocoImage(identifier, name, int(sides[0]), int(sides[1]))

    def instances(self, images: Mapping[int, CocoImage], classes: ClassList) -> dict[int, list[Instance]]:
        """The usable annotations of each image that has any, crowds last, otherwise in the file's order."""
        if "annotations" not in self.content:
            self.met["The file has no list of annotations, as those of a test split; images without any"] = len(images)
            return {}
        labels = {identifier: label for label, identifier in enumerate(classes.category_ids)}
        entries = self._entries("annotations")
        found: dict[int, list[Instance]] = {}
        for entry, identifier in zip(entries, self._numbers(entries), strict=True):
            owner = f"annotation {identifier}"
            image = images.get(self._id(entry, "image_id", owner))
            label = labels.get(self._id(entry, "category_id", owner))
            crowd = entry.get("iscrowd", 0)
            if not isinstance(crowd, int) or crowd not in (0, 1):
                raise self._fault(f"the iscrowd of {owner} is {_short(crowd)}, 0 or 1 was wanted.")
            if image is None:
                self._leave_out("an image_id that no image has")
            elif label is None:
                self._leave_out("a category_id that no category has")
            else:
                instance = self._instance(entry, identifier, label, bool(crowd), image)
                if instance is not None:
                    found.setdefault(image.id, []).append(instance)
        for instances in found.values():
            instances.sort(key=lambda instance: instance.crowd)
        return found

    def _numbers(self, entries: list[dict[str, Any]]) -> list[int]:
        """The annotations' ids; those that are missing, zero or taken are replaced by new ones."""
        given = [self._id(entry, "id", f"annotation number {place}") if "id" in entry else None for place, entry in enumerate(entries, 1)]
        used, taken = set(given), set[int]()
        free = (number for number in itertools.count(1) if number not in used)
        numbers = []
        for number in given:
            if not number or number in taken:
                fault = "no id" if number is None else "an id that another one has" if number else "the id 0"
                self.met[f"Annotations with {fault}, given a new one"] += 1
                number = next(free)
            taken.add(number)
            numbers.append(number)
        return numbers

    def _leave_out(self, fault: str) -> None:
        self.met[f"Annotations left out for having {fault}"] += 1

    def _instance(self, entry: Mapping[str, Any], identifier: int, label: int, crowd: bool, image: CocoImage) -> Instance | None:
        try:
            segmentation, parts = check_segmentation(entry.get("segmentation"), image.height, image.width)
            box = self._box(entry, segmentation, image)
        except UnusableError as fault:
            self._leave_out(str(fault))
            return None
        if parts:
            self.met["Polygon parts of fewer than three points, left out of their masks"] += parts
        area = as_number(entry.get("area"))
        if not 0 <= area < math.inf:
            self.met["Annotations without a usable area, given that of their mask"] += 1
            area = float(coco_mask.area(rle_of(segmentation, image.height, image.width)))
        return Instance(identifier, label, box, area, crowd, segmentation)

    def _box(self, entry: Mapping[str, Any], segmentation: Segmentation, image: CocoImage) -> tuple[float, float, float, float]:
        given = entry.get("bbox")
        if given is None:
            self.met["Annotations without a bbox, given that of their mask"] += 1
            given = coco_mask.toBbox(rle_of(segmentation, image.height, image.width)).tolist()
        if not isinstance(given, list) or len(given) != 4 or not all(math.isfinite(as_number(number)) for number in given):
            raise UnusableError("a bbox that is not four finite numbers")
        x, y, width, height = map(as_number, given)
        if width <= 0 or height <= 0:
            raise UnusableError("a bbox without width or height")
        if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
            raise UnusableError("a bbox outside its image")
        return x, y, width, height


def _stays_inside(name: str) -> bool:
    """Whether a picture folder with `name` appended, on any system, is a place inside that folder."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    anchored = posix.is_absolute() or windows.drive or windows.root
    return bool(posix.parts) and not anchored and ".." not in (*posix.parts, *windows.parts) and "\0" not in name


def _twice(values: list[Any]) -> Any:
    return next((value for value, count in Counter(values).items() if count > 1), None)


def _short(value: object) -> str:
    """`value` in at most 60 characters."""
    text = f"a list of {len(value)}" if isinstance(value, list) else "an object" if isinstance(value, dict) else _repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _repr(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "an endless number"
