"""Compile the C++ library against TensorRT's real headers, with every C++ compiler that is found.

Usage: python scripts/check_tensorrt_headers.py FOLDER [CUDA_FOLDER]

FOLDER holds NvInferRuntime.h; several are separated by colons. CUDA_FOLDER holds cuda_runtime_api.h; by default the CUDA toolkit's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "engines" / "cpp"
COMPILERS = ("g++", "clang++", "clang++-14", "clang++-15", "clang++-16", "clang++-17", "clang++-18", "clang++-19")
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", "-fsyntax-only", '-DYOLACT_DEPLOY_VERSION="check"']


def version_of(folder: Path) -> str:
    """As ``NvInferVersion.h`` tells it, ``10.16.0``."""
    text = (folder / "NvInferVersion.h").read_text(encoding="utf-8")
    numbers = []
    for part in ("MAJOR", "MINOR", "PATCH"):
        found = re.search(rf"#define\s+(?:NV_TENSORRT_{part}|TRT_{part}_\w+)\s+(\d+)", text)
        if found is None:
            raise SystemExit(f"{folder}/NvInferVersion.h tells no {part.lower()} version.")
        numbers.append(found[1])
    return ".".join(numbers)


def cuda_headers(named: str) -> Path:
    """The folder with ``cuda_runtime_api.h``."""
    nvcc = shutil.which("nvcc")
    places = [Path(named)] if named else [Path("/usr/local/cuda/include"), *([Path(nvcc).resolve().parents[1] / "include"] if nvcc else [])]
    places += sorted(Path("/usr/local").glob("cuda-*/include"), reverse=True) if not named else []
    for place in places:
        if (place / "cuda_runtime_api.h").is_file():
            return place
    raise SystemExit(f"cuda_runtime_api.h was not found in {', '.join(map(str, places))}. Name its folder: CUDA_INCLUDE=FOLDER.")


def main(headers: str, cuda: str = "") -> None:
    """Compile; SystemExit with what a compiler refuses."""
    folders = [Path(part) for part in headers.split(":") if part]
    if not folders:
        raise SystemExit("Which headers? Name the folder with NvInferRuntime.h: make check-tensorrt-headers TENSORRT_INCLUDE=FOLDER")
    for folder in folders:
        if not (folder / "NvInferRuntime.h").is_file():
            raise SystemExit(f"There is no NvInferRuntime.h in {folder}. Name the include folder of a TensorRT.")
    compilers = {Path(path).resolve(): name for name in reversed(COMPILERS) if (path := shutil.which(name))}
    if not compilers:
        raise SystemExit(f"None of {', '.join(COMPILERS)} was found.")
    sources = sorted((LIBRARY / "src").glob("*.cpp"))
    own = ["-I", str(LIBRARY / "include"), "-I", str(LIBRARY / "src"), "-I", str(LIBRARY.parent / "cuda" / "kernels")]
    foreign = ["-isystem", str(cuda_headers(cuda))]
    for folder in folders:
        for name in sorted(compilers.values()):
            for source in sources:
                command = [name, *FLAGS, *own, "-isystem", str(folder), *foreign, str(source)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    with_headers = f"with the headers of TensorRT {version_of(folder)}"
                    raise SystemExit(f"{name} refuses {source.name} {with_headers}:\n{done.stderr[-4000:]}")
            print(f"TensorRT {version_of(folder)}: {name} compiles all {len(sources)} sources")


if __name__ == "__main__":
    main(*sys.argv[1:])
