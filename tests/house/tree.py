"""What the house tests look at: the project's own files, and the package's modules with their dotted names."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PACKAGE", "ROOT", "Module", "copy_project", "modules", "project_files"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "yolact_deploy"
_GENERATED = {"__pycache__", "build", "dist", "artifacts"}  # beside hidden folders


@dataclass(frozen=True)
class Module:
    """A module of the package; `path` goes through the links in ``yolact_deploy/``, as an import does."""

    name: str
    path: Path

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def room(self) -> str:
        """``errors`` for ``yolact_deploy.errors``, ``model`` for ``yolact_deploy.model.priors``, empty for the package itself."""
        return self.name.partition(".")[2].partition(".")[0]


def modules(root: Path = ROOT) -> list[Module]:
    """Every module below ``root/yolact_deploy``, linked rooms included, sorted by name."""
    found = []
    for folder, folders, files in os.walk(root / PACKAGE, followlinks=True):
        folders[:] = [name for name in folders if name not in _GENERATED]
        for path in (Path(folder, name) for name in files if name.endswith(".py")):
            parts = path.relative_to(root).with_suffix("").parts
            found.append(Module(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return sorted(found, key=lambda module: module.name)


def project_files() -> list[Path]:
    """Files and links that git tracks or would track; without git (an unpacked archive), all that no tool generated."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = []
        for folder, folders, files in os.walk(ROOT):
            paths += [Path(folder, name) for name in [*files, *folders] if name in files or Path(folder, name).is_symlink()]
            folders[:] = [name for name in folders if name not in _GENERATED and not name.startswith(".") and ".egg-info" not in name]
    return sorted(path for path in paths if path.is_symlink() or path.is_file())


def copy_project(target: Path) -> Path:
    """Copy the project's files to `target`, links as links; returns `target`."""
    for path in project_files():
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy, follow_symlinks=False)
    return target
