"""What a module offers: `__all__` is there, true, and each function and class in it says what it does. (ruff's RUF022 sorts it.)"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from importlib import import_module
from types import GenericAlias

import pytest

import yolact_deploy
from tests.house.tree import PACKAGE, Module, modules

PUBLIC = [module for module in modules() if not any(part.startswith("_") for part in module.name.split("."))]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.name)
def test_all_is_there_and_true(module: Module) -> None:
    loaded = import_module(module.name)
    assert loaded.__doc__, f"{module.path} has no docstring: open it with one or two sentences that say what it is for."
    assert isinstance(getattr(loaded, "__all__", None), list), f"{module.path} has no list __all__."
    names = loaded.__all__
    assert len(set(names)) == len(names), f"{module.path} names something twice in __all__."
    missing = [name for name in names if not hasattr(loaded, name)]
    assert not missing, f"{module.path} names {missing} in __all__, which it does not have."
    bare = [name for name in names if undocumented(getattr(loaded, name))]
    assert not bare, f"{module.path} offers {bare} without a docstring."


def undocumented(thing: object) -> bool:
    if isinstance(thing, GenericAlias) or not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return False  # Python 3.10 takes an alias for a class
    text = thing.__doc__ or ""
    generated = inspect.isclass(thing) and text.startswith(f"{thing.__name__}(")  # what dataclasses and named tuples make up
    return not text or generated


def test_undocumented_tells_written_from_generated() -> None:
    from dataclasses import dataclass
    from typing import NamedTuple

    @dataclass
    class Generated:
        x: int

    class Named(NamedTuple):
        x: int

    class Bare: ...

    class Written:
        """Says so."""

    def bare() -> None: ...

    assert [undocumented(thing) for thing in (Generated, Named, Bare, bare, Written, Callable[[int], int])] == [True] * 4 + [False] * 2


def test_the_package_docstring_names_its_exports() -> None:
    text = yolact_deploy.__doc__ or ""
    missing = [name for name in yolact_deploy.__all__ if name != "__version__" and not re.search(rf"\b{name}\b", text)]
    assert not missing, f"the docstring of {PACKAGE}/__init__.py does not mention {missing}"


def test_the_package_lists_its_exports() -> None:
    assert set(yolact_deploy.__all__) <= set(dir(yolact_deploy))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = yolact_deploy.nothing
