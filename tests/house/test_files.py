"""The project's files: short enough to read whole, finished, and free of one machine's paths."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.tree import ROOT, project_files

LONGEST = 400
_UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
_BEFORE = r"(?<![\w.:/~$}-])"
_HOME_FOLDERS = re.compile(_BEFORE + r"(/home/\w|/Users/\w|/root[/]|/tmp/\w+/(bin|lib)/)|\b[A-Z]:\\Users\\")


def faults(name: str, text: str, root: Path) -> list[str]:
    """One sentence for each line of `text` that is unfinished or names a place on the machine where `root` is the checkout."""
    places = {str(place) for place in (root, root.parent, Path.home()) if len(place.parts) > 2}
    here = re.compile(_BEFORE + "(" + "|".join(re.escape(place) for place in places) + r")(?![\w-])") if places else None
    result = []
    for number, line in enumerate(text.splitlines(), 1):
        if found := _UNFINISHED.search(line):
            result.append(f"{name}, line {number}: {found[0]} is left to do; do it, or open an issue and say there why.")
        if found := _HOME_FOLDERS.search(line) or (here and here.search(line)):
            result.append(f"{name}, line {number}: {found[0]} is a place on one machine; use a path relative to the project.")
    return result


def texts() -> list[tuple[Path, str]]:
    """The text files among the project's files, with their text."""
    found = []
    for path in project_files():
        if path.is_symlink():
            continue
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            found.append((path, content.decode("utf-8", "replace")))
    return found


def test_no_python_file_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): text.count("\n") for path, text in texts() if path.suffix == ".py"}
    too_long = {name: length for name, length in lengths.items() if length > LONGEST}
    assert lengths
    assert not too_long, f"more than {LONGEST} lines, split by what changes together: {too_long}"


def test_nothing_is_unfinished_or_tied_to_one_machine() -> None:
    found = [fault for path, text in texts() for fault in faults(str(path.relative_to(ROOT)), text, ROOT)]
    assert not found, "\n" + "\n".join(found)


def test_links_stay_inside() -> None:
    for path in project_files():
        if path.is_symlink():
            target = path.readlink()
            assert not target.is_absolute(), f"{path} points to {target}, a relative target was wanted"
            assert (path.parent / target).resolve().is_relative_to(ROOT), f"{path} points out of the project"


@pytest.mark.parametrize(
    "line",
    [
        "# TO" + "DO: later",
        "x = 1  # FIX" + "ME",
        "open('/home" + "/ada/model.pth')",
        "see /Users" + "/ada",
        r"C:" + r"\Users\ada",
        "/root" + "/model.pth",
        "run /tmp" + "/v/bin/python",
        "cd /srv/checkouts/yolact-deploy",
        '"/srv/checkouts/data"',
    ],
)
def test_a_fault_is_found(line: str) -> None:
    assert len(faults("a.py", f"fine\n{line}\n", Path("/srv/checkouts/yolact-deploy"))) == 1


@pytest.mark.parametrize(
    "line",
    ["a todo list", "https://example.org/home/ada", "~/model.pth", "$HOME/model.pth", "/usr/local/cuda", "/tmp/x.onnx", "/srv/checkouts-2"],
)
def test_no_fault_is_made_up(line: str) -> None:
    assert faults("a.py", line, Path("/srv/checkouts/yolact-deploy")) == []
