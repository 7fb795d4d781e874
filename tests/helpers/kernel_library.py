"""Compiles the CUDA kernels with g++ behind ``cuda_shim/``, plainly or with sanitizers, and runs functions where the latter load."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "engines" / "cuda" / "kernels"
SHIM = Path(__file__).parent / "cuda_shim"
SANITIZE = "YOLACT_DEPLOY_TEST_SANITIZE"
_SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
_FLAGS = ["-std=c++17", "-O2", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
_WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_BOUNDS = r"(?:__launch_bounds__\s*\([^)]*\)\s*)?"
_KERNEL = re.compile(
    rf'extern\s+"C"\s+__global__\s+{_BOUNDS}void\s+{_BOUNDS}(?P<name>\w+)\s*\(\s*const\s+(?:__grid_constant__\s+)?(?P<type>[\w:]+)\s+\w+\s*\)'
)

_refused: dict[Path, str] = {}  # so that a mistake is compiled once, not for each test


def missing() -> str:
    """Why kernels cannot be compiled for the CPU here; empty where they can."""
    if not sys.platform.startswith("linux"):
        return "the shim that runs kernels on the CPU is for Linux"
    return "" if shutil.which("g++") else "the shim that runs kernels on the CPU needs g++"


def find_kernels(sources: Path) -> dict[str, str]:
    """The name of each kernel in the ``.cuh`` files of `sources`, and the type of its one argument."""
    found: dict[str, str] = {}
    for path in sorted(sources.glob("*.cuh")):
        text = _COMMENT.sub(" ", path.read_text())
        here = {match["name"]: match["type"] for match in _KERNEL.finditer(text)}
        count = len(re.findall(r"\b__global__\b", text))
        if len(here) != count:
            raise AssertionError(f'{path.name} has {count} kernels; {len(here)} read: extern "C" __global__ void name(const Type argument)')
        found |= here
    return found


def _unit(sources: Path, umbrella: str) -> str:
    kernels = find_kernels(sources)
    wrappers = "".join(
        f"void run_{name}(const void *argument) {{ {name}(*static_cast<const {kind} *>(argument)); }}\n" for name, kind in kernels.items()
    )
    table = "".join(f'    {{"{name}", run_{name}, sizeof({kind})}},\n' for name, kind in kernels.items())
    return (
        f'#include "{umbrella}"\n\nnamespace yolact {{}}\nusing namespace yolact;\n\nnamespace {{\n{wrappers}}}\n\n'
        f"const shim::Entry shim::entries[] = {{\n{table}    {{nullptr, nullptr, 0}},\n}};\n"
        f"const unsigned shim::entry_count = {len(kernels)};\n"
    )


def build_library(sources: Path = KERNELS, umbrella: str = "all.cuh", *, sanitize: bool = False, flags: tuple[str, ...] = ()) -> Path:
    """The kernels of `sources` as a library, made once for each state of the sources, the shim and the flags.

    Raises AssertionError with the compiler's words where it refuses. A sanitized library loads only in a child of :func:`run_sanitized`.
    """
    # Sanitizers make g++ warn about what they themselves insert; the plain build has told all there is to tell.
    chosen = [*_FLAGS, *flags, *([*_SANITIZERS, "-w"] if sanitize else _WARNINGS)]
    digest = hashlib.sha256(json.dumps([umbrella, chosen]).encode())
    for path in sorted([*SHIM.iterdir(), *sources.glob("*.cuh")]):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(_unit(sources, umbrella).encode())
    folder = Path(tempfile.gettempdir()) / f"yolact-deploy-cuda-shim-{os.getuid()}-{digest.hexdigest()[:16]}"
    library = folder / "libkernels.so"
    if folder in _refused:
        raise AssertionError(_refused[folder])
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            unit, made = Path(name) / "kernels.cpp", Path(name) / "libkernels.so"
            unit.write_text(_unit(sources, umbrella))
            command = ["g++", *chosen, "-I", str(sources), "-I", str(SHIM), "-include", str(SHIM / "shim.h"), "-o", str(made)]
            units = ["-x", "c++", str(unit), str(SHIM / "launch.cpp")]
            done = subprocess.run([*command, *units], capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                _refused[folder] = f"g++ refuses the kernels:\n{done.stderr[-6000:]}"
                raise AssertionError(_refused[folder])
            made.replace(library)
    return library


def run_sanitized(target: str, arguments: dict[str, Any] | None = None, timeout: float = 300) -> None:
    """Call ``module:function`` with `arguments` in a new process, where :class:`HostDriver` uses kernels built with sanitizers.

    Raises AssertionError with the end of stderr where the process fails.
    """
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")  # the latter early, so that the former finds what throws
    ]
    environment = {
        **os.environ,
        SANITIZE: "1",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:print_legend=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", "from tests.helpers.kernel_library import _main; _main()"]
    given = json.dumps([target, arguments or {}])
    try:
        done = subprocess.run(command, input=given, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{target} did not end within {timeout} s") from error
    if done.returncode:
        raise AssertionError(f"{target} ended with {done.returncode}:\n{done.stderr[-6000:]}")


def _main() -> None:
    target, arguments = json.load(sys.stdin)
    module, _, name = target.partition(":")
    getattr(import_module(module), name)(**arguments)
