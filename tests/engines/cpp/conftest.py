"""Fixtures of the C++ library's tests: the library against stand-ins for several TensorRTs, plainly and with sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cpp_engines import build_standin
from tests.helpers.cpp_library import CppLibrary, build_library, missing

CLANG = next(filter(shutil.which, ["clang++", *(f"clang++-{version}" for version in range(30, 13, -1))]), "clang++")
LIBRARIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rtx": {"rtx": True, "compiler": CLANG if shutil.which(CLANG) else "g++"},
    "address": {"version": "8.6.1.6", "sanitize": "address,undefined"},
    "thread": {"sanitize": "thread"},
}


def sanitizer_runs(name: str, folder: Path) -> bool:
    """Whether there is this sanitizer and the kernel's memory map suits it; GCC 13's and older do not start on every kernel."""
    (folder / "empty.cpp").write_text("int main() { return 0; }\n")
    command = ["g++", f"-fsanitize={name}", "-o", str(folder / "empty"), str(folder / "empty.cpp")]
    built = subprocess.run(command, capture_output=True, timeout=100, check=False).returncode == 0
    return built and subprocess.run([str(folder / "empty")], capture_output=True, timeout=100, check=False).returncode == 0


@pytest.fixture(scope="session")
def library_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], CppLibrary]:
    """A library of `LIBRARIES`; the test is skipped where it cannot be built or run."""

    def made(kind: str) -> CppLibrary:
        options = LIBRARIES[kind]
        if reason := missing(options.get("compiler", "g++")):
            pytest.skip(reason)
        if "sanitize" in options and not sanitizer_runs(options["sanitize"], tmp_path_factory.mktemp("sanitizer")):
            pytest.skip(f"programs with -fsanitize={options['sanitize']} do not run here")
        return build_library(build_standin(**options))

    return made


@pytest.fixture(scope="session")
def library(library_of: Callable[[str], CppLibrary]) -> CppLibrary:
    """Plain g++, TensorRT 11.4."""
    return library_of("plain")
