"""Data flows one way: a room of the package imports only from the rooms that stand above it in `ROOMS`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.tree import PACKAGE, Module, modules

ROOMS = (
    "errors",
    "files",
    "classes",
    "detections",
    "variants",
    "manifest",
    "onnx_file",
    "model",
    "data",
    "pictures",
    "preprocess",
    "postprocess",
    "assembly",
    "matching",
    "drawing",
    "video",
    "export",
    "engines",
    "sdk",
    "runtime",
    "serving",
    "evaluation",
    "calibration",
    "training",
    "bench",
    "cli",
    "__main__",
)
LINKED_ROOMS = {"export", "engines", "calibration"}


def imported(module: Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import in `module`: at the top, in functions, for type checking, by ``import_module("…")``."""
    for node in ast.walk(ast.parse(module.path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
                base = ".".join([*here[: len(here) - node.level + 1], *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            function = node.func
            called = function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
            if called in {"import_module", "__import__"}:
                yield node.lineno, node.args[0].value


def faults(found: list[Module]) -> list[str]:
    """One sentence for each import that goes down or past the list, and for each room that is not on it."""
    result = []
    for module in found:
        if not module.room:
            continue  # the package's own exports load lazily from any room
        if module.room not in ROOMS:
            result.append(
                f"{module.name} is in a room that has no place yet: add {module.room!r} to ROOMS in tests/house/test_layers.py, "
                "below every room that it imports and above every room that imports it."
            )
            continue
        for line, name in imported(module):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if top in LINKED_ROOMS:
                result.append(f"{module.name}, line {line}: imports {top}, which makes a second copy; write {PACKAGE}.{top}.")
            elif top != PACKAGE or target in {"", "__version__", module.room}:
                continue
            elif target not in ROOMS:
                result.append(f"{module.name}, line {line}: imports {name}, no listed room; import from the module that defines it.")
            elif ROOMS.index(target) > ROOMS.index(module.room):
                result.append(f"{module.name}, line {line}: imports {name}, but {target} stands below {module.room}.")
    return result


def test_imports_go_up() -> None:
    found = faults(modules())
    assert not found, "\n" + "\n".join(found)


def test_each_room_is_listed_once() -> None:
    assert len(set(ROOMS)) == len(ROOMS)


@pytest.mark.parametrize(
    ("where", "source", "fault"),
    [
        ("errors.py", "from yolact_deploy.model import priors", "errors, line 1: imports yolact_deploy.model.priors, but model stands"),
        ("model/priors.py", "import yolact_deploy.cli.main", "priors, line 1: imports yolact_deploy.cli.main, but cli stands below model"),
        ("model/priors.py", "def f():\n    from yolact_deploy.export import onnx", "line 2: imports yolact_deploy.export.onnx"),
        ("model/priors.py", "if TYPE_CHECKING:\n    from yolact_deploy.runtime import Detector", "line 2: imports yolact_deploy.runtime"),
        ("model/priors.py", "from ..export import onnx", "but export stands below model"),
        ("model/__init__.py", "from ..export import onnx", "but export stands below model"),
        ("model/__init__.py", "from .. import export", "but export stands below model"),
        ("model/priors.py", 'importlib.import_module("yolact_deploy.training.loop")', "but training stands below model"),
        ("data/coco.py", "from yolact_deploy import Detector", "imports yolact_deploy.Detector, no listed room"),
        ("cli/__init__.py", "from export import onnx", "makes a second copy; write yolact_deploy.export"),
        ("helpers.py", "", "add 'helpers' to ROOMS in tests/house/test_layers.py"),
        ("helpers/__init__.py", "", "add 'helpers' to ROOMS in tests/house/test_layers.py"),
    ],
)
def test_a_wrong_tree_is_found(tmp_path: Path, where: str, source: str, fault: str) -> None:
    write_tree(tmp_path, {where: source})
    assert [fault in sentence for sentence in faults(modules(tmp_path))] == [True]


def test_a_right_tree_passes(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "__init__.py": "from yolact_deploy.runtime import Detector",
            "model/priors.py": "import torch\nimport yolact_deploy\nfrom . import heads\nfrom ..errors import ConfigError",
            "cli/main.py": "from yolact_deploy import __version__\nfrom yolact_deploy.export import onnx",
        },
    )
    assert faults(modules(tmp_path)) == []


def test_linked_rooms_are_walked(tmp_path: Path) -> None:
    write_tree(tmp_path, {"errors.py": ""})
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "wrapper.py").write_text("import yolact_deploy.cli", encoding="utf-8")
    (tmp_path / PACKAGE / "export").symlink_to("../export")
    assert faults(modules(tmp_path)) == ["yolact_deploy.export.wrapper, line 1: imports yolact_deploy.cli, but cli stands below export."]


def write_tree(root: Path, sources: dict[str, str]) -> None:
    for name, source in sources.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
