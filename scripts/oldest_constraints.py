"""Print a constraints file that pins each dependency of pyproject.toml to its lower bound, for `make test-oldest`.

Usage: python scripts/oldest_constraints.py EXTRA... > constraints-oldest.txt
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


def oldest(project: dict[str, Any], extras: list[str]) -> list[str]:
    """``name==lower bound`` for each dependency of `project` and of its `extras`, followed through the project's own extras."""
    wanted = list(project["dependencies"])
    pending = list(extras)
    pins: dict[str, str] = {}
    while wanted or pending:
        if not wanted:
            wanted = list(project["optional-dependencies"][pending.pop()])
            continue
        requirement = Requirement(wanted.pop())
        if canonicalize_name(requirement.name) == project["name"]:
            pending += requirement.extras
            continue
        bounds = [part.version for part in requirement.specifier if part.operator == ">="]
        if len(bounds) != 1:
            raise SystemExit(f"{requirement} has {len(bounds)} lower bounds, one was wanted. Write it as name>=version.")
        marker = f"; {requirement.marker}" if requirement.marker else ""
        pins[requirement.name] = f"{requirement.name}=={bounds[0]}{marker}"
    return [pins[name] for name in sorted(pins)]


if __name__ == "__main__":
    with open(ROOT / "pyproject.toml", "rb") as handle:
        print("\n".join(oldest(tomllib.load(handle)["project"], sys.argv[1:])))
