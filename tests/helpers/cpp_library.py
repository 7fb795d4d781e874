"""Builds the C++ library of ``engines/cpp`` with CMake against the stand-in for TensorRT, and runs programs that are linked with it.

``programs/commands.cpp`` does what lines of text tell it, so that tests in Python say what happens and hold it against Python's truth::

    library = build_library(build_standin())
    program = commands_program(library, folder)
    answers = run_commands(library, program, [f"load path={engine}", "picture width=9 height=7", "detect pictures=0"])
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers import cpp_engines
from tests.helpers.cpp_engines import StandIn
from tests.helpers.kernel_library import build_library as build_kernels

__all__ = [
    "CPP",
    "CppLibrary",
    "build_library",
    "cmake",
    "compile_program",
    "configure",
    "missing",
    "run_commands",
    "run_program",
    "tool",
    "with_images",
]

ROOT = Path(__file__).resolve().parents[2]
CPP = ROOT / "engines" / "cpp"
PROGRAMS = ROOT / "tests" / "engines" / "cpp" / "programs"
_refused: dict[Path, str] = {}  # so that a mistake is compiled once, not for each test


def tool(name: str) -> str | None:
    """CMake or Ninja: the one that the test extra installs beside Python, else the system's."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def missing(compiler: str = "g++") -> str:
    """Why the library cannot be built and run here; empty where it can."""
    absent = [name for name in ("cmake", "ninja") if not tool(name)]
    told = f"the C++ library is built with {' and '.join(absent)}: pip install 'yolact-deploy[test]'" if absent else ""
    return cpp_engines.missing(compiler) or told


@dataclass(frozen=True)
class CppLibrary:
    """The library, built with its examples.

    Attributes:
        folder: CMake's build folder, with ``libyolact_deploy.so``, ``libyolact_deploy_static.a`` and ``examples/``.
        standin: what it was built against, and with.
        sources: of the library.
        image_count: how many images of kernels are embedded.
    """

    folder: Path
    standin: StandIn
    sources: Path = CPP
    image_count: int = 2

    @property
    def images(self) -> list[Path]:
        """The files of kernels that were embedded."""
        return [self.folder / f"kernels.{number}" for number in range(self.image_count)]

    @property
    def image_list(self) -> str:
        """For YOLACT_DEPLOY_KERNEL_IMAGES."""
        return ";".join(map(str, self.images))

    @property
    def shared(self) -> Path:
        return self.folder / "libyolact_deploy.so"

    @property
    def static(self) -> Path:
        return self.folder / "libyolact_deploy_static.a"

    def example(self, name: str) -> Path:
        return self.folder / "examples" / name

    def environment(self, **settings: Any) -> dict[str, str]:
        """Of a process that finds the stand-ins, with the kernels for the CPU; `settings` as :meth:`StandIn.environment` has them."""
        return self.standin.environment(**{"kernels": build_kernels(), **settings})


def build_library(
    standin: StandIn, images: Sequence[bytes] = (b"STUB 75", b"STUB 89"), *, sources: Path = CPP, targets: Sequence[str] = ()
) -> CppLibrary:
    """The library of `sources`, built once for each state of them and of the stand-in, whose compiler and sanitizers it is built with.

    `images`: the compiled kernels that are embedded, texts of the stand-in for libcuda (``stub_cuda_module.h``) or real cubins.
    `targets`: what to build; nothing: all. AssertionError has the compiler's words where it refuses; warnings are errors.
    """
    digest = hashlib.sha256(json.dumps([str(standin.root), list(targets), [tool("cmake"), tool("ninja")]]).encode() + b"".join(images))
    kernels = sources.parent / "cuda" / "kernels"
    for path in sorted([Path(__file__), *(path for folder in (sources, kernels) for path in folder.rglob("*") if path.is_file())]):
        digest.update(path.name.encode() + path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"yolact-deploy-cpp-{os.getuid()}-{digest.hexdigest()[:16]}"
    made = CppLibrary(folder, standin, sources, len(images))
    if folder in _refused:
        raise AssertionError(_refused[folder])
    folder.mkdir(mode=0o700, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            for place, image in zip(made.images, images, strict=True):
                place.write_bytes(image)
            try:
                configure(standin, sources, folder, YOLACT_DEPLOY_KERNEL_IMAGES=made.image_list)
                cmake("--build", str(folder), "--parallel", "2", *(word for target in targets for word in ("--target", target)))
            except AssertionError as error:
                _refused[folder] = str(error)
                raise
            (folder / "ready").touch()
    return made


def with_images(library: CppLibrary, images: Sequence[bytes]) -> CppLibrary:
    """The shared library of `library` with other images of kernels in it: linked again, not compiled again."""
    digest = hashlib.sha256(b"".join(len(image).to_bytes(8, "little") + image for image in images)).hexdigest()[:16]
    folder = library.folder / f"images-{digest}"
    made = CppLibrary(folder, library.standin, library.sources, len(images))
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.shared.exists():
            for place, image in zip(made.images, images, strict=True):
                place.write_bytes(image)
            source = folder / "kernel_images.cpp"
            cmake(
                f"-DIMAGES={made.image_list}", f"-DSOURCE={source}", "-DCOMPILER=GNU", "-P", str(library.sources / "cmake" / "embed.cmake")
            )
            objects = sorted((library.folder / "CMakeFiles" / "yolact_deploy_objects.dir" / "src").glob("*.o"))
            linked = [*library.standin.compile_flags, "-fPIC", "-shared", "-I", str(library.sources / "src"), "-o", str(made.shared)]
            command = [library.standin.compiler, *linked, str(source), *map(str, objects), *library.standin.link_flags]
            subprocess.run(command, check=True, timeout=300)
    return made


def configure(standin: StandIn, sources: Path, folder: Path, **variables: object) -> None:
    """Have CMake write the build of a project into `folder`, with a stand-in as TensorRT and its headers as CUDA's.

    A variable of `variables` that is None is left out.
    """
    sanitizers = [f"-fsanitize={standin.sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] if standin.sanitize else []
    cxx = shutil.which(standin.compiler)
    given: dict[str, object] = {
        "CMAKE_CXX_COMPILER": cxx,
        "CMAKE_CXX_FLAGS": " ".join(["-O0", *(["-g1"] if sanitizers else []), *sanitizers]),  # nothing here is fast, compiling has to be
        "CMAKE_C_FLAGS": " ".join(["-O0", *sanitizers]),
        "YOLACT_DEPLOY_BACKEND": "tensorrt-rtx" if standin.rtx else "tensorrt",
        "TENSORRT_ROOT": standin.root,
        "CUDA_INCLUDE_DIR": standin.root / "include",
        "STB_INCLUDE_DIR": "STB_INCLUDE_DIR-NOTFOUND",  # the examples read PPM alone, wherever they are built
        "CMAKE_DISABLE_FIND_PACKAGE_OpenCV": "ON",
        **variables,
    }
    named = [f"-D{name}={value}" for name, value in given.items() if value is not None]
    cmake("-S", str(sources), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", *named)


def cmake(*arguments: str) -> str:
    """What CMake prints; AssertionError has its last words where it fails."""
    command = [tool("cmake") or "cmake", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}")
    return done.stdout + done.stderr


def compile_program(library: CppLibrary, name: str, *, static: bool = False) -> Path:
    """``programs/NAME.cpp``, once for each state of it; linked with the shared library, or with the static one and its internals."""
    source, standin = PROGRAMS / f"{name}.cpp", library.standin
    files = [source, *sorted(PROGRAMS.glob("*.hpp"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files) + str(static).encode()).hexdigest()[:16]
    program = library.folder / f"{name}-{digest}"
    with open(library.folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program in _refused:
            raise AssertionError(_refused[program])
        if program.exists():
            return program
        own = ["-I", str(library.sources / "include")]
        if static:
            own += ["-I", str(library.sources / "src"), "-I", str(library.sources.parent / "cuda" / "kernels"), "-DYOLACT_DEPLOY_STATIC"]
        linked = [str(library.static)] if static else [str(library.shared), f"-Wl,-rpath,{library.folder}"]
        flags = [*standin.compile_flags, "-O0", "-std=c++17", "-Wall", "-Wextra", "-Werror"]
        unfinished = program.with_suffix(".unfinished")
        command = [standin.compiler, *flags, *own, "-o", str(unfinished), str(source), *linked, *standin.link_flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            _refused[program] = f"{standin.compiler} refuses {source.name}:\n{done.stderr[-6000:]}"
            raise AssertionError(_refused[program])
        unfinished.replace(program)
    return program


def run_program(library: CppLibrary, command: Sequence[object], text: str = "", *, timeout: float = 200, **settings: Any) -> str:
    """What the program prints; AssertionError where it fails."""
    words, environment = [str(word) for word in command], library.environment(**settings)
    done = subprocess.run(
        words, input=text, env=environment, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
    )
    if done.returncode:
        raise AssertionError(f"{Path(words[0]).name} ended with {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-6000:]}")
    return done.stdout


def run_commands(library: CppLibrary, commands: Iterable[str], **settings: Any) -> list[Any]:
    """The answer to each command, and at the end what is left behind."""
    program = compile_program(library, "commands")
    return [json.loads(line) for line in run_program(library, [program], "\n".join(commands) + "\n", **settings).splitlines()]
