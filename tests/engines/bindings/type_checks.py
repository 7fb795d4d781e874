"""Whether values fit the types that the bindings' docstrings name, and what a function returns when nothing better is known."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from tests.engines.bindings.signatures import short, split

INT = {"int", "typing.SupportsInt", "SupportsInt", "typing.SupportsIndex"}
FLOAT = {"float", "typing.SupportsFloat", "SupportsFloat"}
BUFFER = {"buffer", "typing_extensions.Buffer", "collections.abc.Buffer", "Buffer", "memoryview"}
ANYTHING = {"", "object", "capsule", "typing_extensions.CapsuleType", "types.CapsuleType", "handle", "typing.Any", "Any"}
PLAIN: dict[str, type] = {"bytes": bytes, "slice": slice, "tuple": tuple, "list": list, "dict": dict, "type": type}
SEQUENCE = re.compile(r"(?:(?:typing|collections\.abc)\.)?(?:List|list|Sequence)\[(.*)\]")
TUPLE = re.compile(r"(?:typing\.)?(?:Tuple|tuple)\[(.*)\]")
ITERABLE = re.compile(r"(?:(?:typing|collections\.abc)\.)?Iterable(\[.*\])?")
OPTIONAL = re.compile(r"(?:typing\.)?Optional\[(.*)\]")
MAX_DIMS = 8
# Classes that sequences of integers turn into, and how many they take.
SHAPES: dict[str, tuple[int, int]] = {"Dims": (0, MAX_DIMS), "DimsHW": (2, 2), "Permutation": (0, MAX_DIMS)}


def is_enum(cls: Any) -> bool:
    """Whether a class is one of pybind11's enumerations."""
    return isinstance(cls, type) and hasattr(cls, "__members__")


def name_of(value: Any) -> str:
    """A value as messages name it."""
    return repr(value) if isinstance(value, (str, bytes, int, float, type(None))) and len(repr(value)) < 60 else f"a {type(value).__name__}"


class Types:
    """The classes of one real module by the names that its docstrings use; `unknown` collects the names that are none of them."""

    def __init__(self, real: ModuleType) -> None:
        self.real = real
        self.unknown: set[str] = set()
        self._known: dict[str, Any] = {}

    def resolve(self, name: str) -> Any:
        """The real class that a docstring means by `package.Class.Nested` or `namespace::Class::Nested`; None where there is none."""
        if name not in self._known:
            parts = re.split(r"::|\.", name)
            self._known[name] = next(filter(None, (self._find(parts[start:]) for start in range(len(parts)))), None)
            if self._known[name] is None:
                self.unknown.add(name)
        return self._known[name]

    def _find(self, parts: list[str]) -> Any:
        # C++ has an I before some names that Python has not, as in IBuilder.
        for first in (parts[0], parts[0].removeprefix("I")):
            found: Any = self.real
            for part in (first, *parts[1:]):
                found = getattr(found, part, None)
            if isinstance(found, type):
                return found
        return None

    def problem(self, value: Any, annotation: str, *, none: bool = False) -> str:
        """Why a value does not fit; empty where it does. `none` lets None pass where a pointer or a string is wanted.

        This is stricter than pybind11 where that converts without a word: enumerations and bools as integers, bytes as strings.
        """
        said = f"{name_of(value)} is no {short(annotation)}"
        optional = OPTIONAL.fullmatch(annotation)
        if optional or annotation.endswith(" | None"):
            return "" if value is None else self.problem(value, optional[1] if optional else annotation[: -len(" | None")])
        if annotation in ANYTHING or annotation.startswith("std::"):
            return ""
        if annotation == "None":
            return "" if value is None else said
        if annotation == "bool":
            return "" if type(value).__name__ in ("bool", "bool_") else said
        if annotation in INT or annotation in FLOAT:
            return "" if self._is_number(value, whole=annotation in INT) else said
        if annotation == "str":
            return "" if isinstance(value, str) or (none and value is None) else said
        if annotation in PLAIN:
            return "" if isinstance(value, PLAIN[annotation]) else said
        if annotation in BUFFER:
            try:
                memoryview(value)
            except TypeError:
                return said
            return ""
        if annotation.startswith("numpy.ndarray"):
            return "" if type(value).__name__ == "ndarray" else said
        if annotation.startswith(("collections.abc.Callable", "Callable")):
            return "" if callable(value) else said
        if ITERABLE.fullmatch(annotation):
            return "" if isinstance(value, Iterable) else said
        return self._of_many(value, annotation, said) if annotation.endswith("]") else self._of_class(value, annotation, said, none)

    def _is_number(self, value: Any, *, whole: bool) -> bool:
        if type(value).__name__ in ("bool", "bool_") or is_enum(type(value)):
            return False
        if isinstance(value, numbers.Number):
            return isinstance(value, numbers.Integral if whole else numbers.Real)
        return hasattr(value, "__index__") or hasattr(value, "__int__" if whole else "__float__")

    def _of_many(self, value: Any, annotation: str, said: str) -> str:
        sequence, fixed = SEQUENCE.fullmatch(annotation), TUPLE.fullmatch(annotation)
        if not sequence and not fixed:
            self.unknown.add(annotation)
            return ""
        if isinstance(value, (str, bytes)) or not (isinstance(value, Sequence) or type(value).__name__ == "ndarray"):
            return said
        kinds = [sequence[1]] * len(value) if sequence else split(fixed[1] if fixed else "")
        if len(kinds) != len(value):
            return f"{said}: it has {len(value)} parts"
        return next(filter(None, map(self.problem, value, kinds)), "")

    def _of_class(self, value: Any, annotation: str, said: str, none: bool) -> str:
        cls = self.resolve(annotation)
        if cls is None or isinstance(value, cls) or (none and value is None and not is_enum(cls)):
            return ""
        name = cls.__name__
        if name in SHAPES and not isinstance(value, (str, bytes)) and isinstance(value, (Sequence, self.real.Dims)):
            low, high = SHAPES[name]
            if not low <= len(value) <= high:
                return f"{said}: it has {len(value)} parts"
            return next(filter(None, (self.problem(part, "int") for part in value)), "")
        if (name == "Weights" and type(value).__name__ == "ndarray") or (name == "FallbackString" and isinstance(value, str)):
            return ""
        return said

    def convert(self, value: Any, annotation: str) -> Any:
        """A shape that was given as a sequence, as the real class."""
        cls = None if value is None or "[" in annotation or annotation in ANYTHING else self._known.get(annotation)
        return cls(value) if cls is not None and cls.__name__ in SHAPES and not isinstance(value, cls) else value

    def default(self, annotation: str) -> Any:
        """True, 0, "", empty sequences, the first member of an enumeration, or None; a class for which a stand-in is to be made."""
        if annotation in INT or annotation in FLOAT:
            return 0 if annotation in INT else 0.0
        if annotation in ANYTHING or annotation == "None" or annotation.startswith("numpy.") or annotation.endswith(" | None"):
            return None
        simple = {
            "bool": True,
            "str": "",
            **dict.fromkeys(BUFFER, b""),
            **{name: cls() for name, cls in PLAIN.items() if name not in ("slice", "type")},
        }
        if annotation in simple:
            return simple[annotation]
        if SEQUENCE.fullmatch(annotation):
            return []
        fixed = TUPLE.fullmatch(annotation)
        if fixed:
            return tuple(self.default(part) for part in split(fixed[1]))
        cls = self.resolve(annotation)
        if cls is None:
            return None
        if is_enum(cls):
            return next(iter(cls.__members__.values()))
        return cls() if cls.__name__ in (*SHAPES, "Weights") else cls
