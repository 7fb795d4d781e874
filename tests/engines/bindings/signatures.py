"""Signatures of TensorRT's functions, read from the docstrings that pybind11 wrote into the bindings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# No real default is this object.
REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "required"})()
OPENING, CLOSING = "([{", ")]}"


def short(annotation: str) -> str:
    """A type without the modules and namespaces before it, for messages."""
    return re.sub(r"\b(?:\w+_bindings\.\w+\.|typing\.|typing_extensions\.|collections\.abc\.|nv\w+::(?:v_\d+_\d+::)?)", "", annotation)


@dataclass(frozen=True)
class Parameter:
    """One parameter; `kind` is "", "/" (by position only), "*" (by keyword only), "*args" or "**kwargs"."""

    name: str
    annotation: str
    default: Any = REQUIRED
    kind: str = ""

    def __str__(self) -> str:
        text = f"{self.kind.removesuffix('kwargs').removesuffix('args') if len(self.kind) > 1 else ''}{self.name}"
        if self.annotation:
            text += f": {short(self.annotation)}"
        return text if self.default is REQUIRED else f"{text} = {self.default}"


@dataclass(frozen=True)
class Signature:
    """One overload: its parameters, `self` excepted, and what it returns."""

    name: str
    parameters: tuple[Parameter, ...]
    returns: str

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.parameters))}) -> {short(self.returns)}"


def split(text: str, separator: str = ",") -> list[str]:
    """The parts of `text` between separators that stand outside brackets, quotes and `<...>`."""
    parts, depth, quote, start = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in OPENING or (letter == "<" and depth >= 0):
            depth += 1
        elif letter in CLOSING or (letter == ">" and text[place - 1 : place] != "-"):
            depth -= 1
        elif letter == separator and not depth:
            parts.append(text[start:place].strip())
            start = place + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth, quote = 0, ""
    for place in range(start, len(text)):
        letter = text[place]
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in OPENING) - (letter in CLOSING)
            if not depth:
                return place
    raise ValueError(f"a bracket stays open in {text!r}")


def _parameter(text: str, kind: str) -> Parameter:
    declaration, *default = split(text, "=")
    name, _, annotation = declaration.partition(":")
    return Parameter(name.strip(), annotation.strip(), "=".join(default) if default else REQUIRED, kind)


def _signature(line: str, name: str, has_self: bool) -> Signature:
    start = line.index("(")
    end = _closing(line, start)
    returns = line[end + 1 :].partition("->")[2].strip()
    parameters: list[Parameter] = []
    kind = ""
    for part in split(line[start + 1 : end]):
        if part == "/":
            parameters = [Parameter(p.name, p.annotation, p.default, "/") for p in parameters]
        elif part == "*":
            kind = "*"
        elif part.startswith("**"):
            parameters.append(_parameter(part[2:], "**kwargs"))
        elif part.startswith("*"):
            parameters.append(_parameter(part[1:], "*args"))
            kind = "*"
        else:
            parameters.append(_parameter(part, kind))
    return Signature(name, tuple(parameters[1:] if has_self else parameters), returns)


def parse(doc: str | None, name: str = "", *, has_self: bool = True) -> tuple[Signature, ...]:
    """All overloads that a docstring of pybind11 names; none where it names none.

    Getters and setters of properties have no name in their docstring: `name` is "" for them.
    """
    lines = (doc or "").lstrip("\n").splitlines()
    if not lines or not lines[0].startswith(f"{name}("):
        return ()
    if lines[1:2] == ["Overloaded function."]:
        pattern = re.compile(rf"\d+\. {re.escape(name)}\(")
        return tuple(_signature(line, name, has_self) for line in lines if pattern.match(line))
    return (_signature(lines[0], name, has_self),)
