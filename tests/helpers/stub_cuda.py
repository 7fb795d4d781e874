"""Runs scenarios on `stub_cuda.c`, a stand-in for NVIDIA's driver library, each group in a process of its own.

cuda-bindings keeps the library that it first loads, so nothing of CUDA is imported in the tests' own process. A scenario is a function at
the top of a module that imports without pytest's help; it fails by raising. It may take keyword arguments that JSON can hold::

    outcomes = run_scenarios("tests.engines.cuda.scenarios", names, memory=1 << 20)   # {name: traceback or ""}
    run_with_stub("tests.engines.cuda.scenarios:too_large", {"size": 7}, devices=2)   # raises AssertionError with the traceback
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(Path(__file__).parent.glob("stub_cuda*.[ch]"))
KINDS = ("device memory", "pinned memory", "streams", "events", "graphs", "executable graphs", "modules")
NOTHING = dict.fromkeys(KINDS, 0)
_MARK = "@@scenario "


def missing() -> str:
    """Why the stand-in cannot be made here; empty where it can."""
    if not sys.platform.startswith("linux"):
        return "the stand-in for NVIDIA's driver is for Linux"
    return "" if shutil.which("gcc") else "the stand-in for NVIDIA's driver needs gcc"


def stub_folder() -> Path:
    """The folder with the compiled ``libcuda.so.1``; made once for each state of the source."""
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"yolact-deploy-stub-cuda-{os.getuid()}-{sources}"
    library = folder / "libcuda.so.1"
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        made = folder / f"{os.getpid()}.so"
        command = ["gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
        units = [str(path) for path in SOURCES if path.suffix == ".c"]
        subprocess.run([*command, "-Wl,-soname,libcuda.so.1", "-o", str(made), *units, "-lpthread", "-ldl"], check=True, timeout=120)
        made.replace(library)
    return folder


def c_library(source: str) -> Path:
    """A library of C code with a ``shim_launch``, for the setting ``kernels``; made once for each text."""
    folder = Path(tempfile.gettempdir()) / f"yolact-deploy-stub-kernels-{os.getuid()}"
    library = folder / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        made = folder / f"{os.getpid()}.so"
        command = ["gcc", "-std=gnu11", "-O1", "-Wall", "-shared", "-fPIC", "-x", "c", "-o", str(made), "-"]
        subprocess.run(command, input=source, text=True, check=True, timeout=120)
        made.replace(library)
    return library


def stub_environment(folder: Path | None = None, **settings: object) -> dict[str, str]:
    """The environment of a process that finds the stand-in (or `folder`) as its driver; ``devices=2`` sets STUB_CUDA_DEVICES, and so on."""
    places = [str(folder or stub_folder()), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("STUB_CUDA_", "CUDA_VISIBLE"))}
    given = {f"STUB_CUDA_{key.upper()}": str(value) for key, value in settings.items()}
    given["XDG_CACHE_HOME"] = str(stub_folder() / "cache")  # compiled kernels stay from one process to the next
    return {**kept, **given, "LD_LIBRARY_PATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}


def run_scenarios(
    module: str,
    names: Iterable[str],
    arguments: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
    timeout: float = 120,
    **settings: object,
) -> dict[str, str]:
    """Run the functions `names` of `module` one after the other in one new process: each one's traceback, or "" where it went well.

    A scenario that leaves anything of CUDA's behind fails. `settings` are those of :func:`stub_environment`.
    """
    wanted = list(names)
    command = [sys.executable, "-c", "from tests.helpers.stub_cuda import _main; _main()"]
    given = json.dumps([module, wanted, dict(arguments or {})])
    environment = stub_environment(folder, **settings)
    try:
        done = subprocess.run(command, input=given, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
        out, err, end = done.stdout, done.stderr, f"the process ended with {done.returncode}"
    except subprocess.TimeoutExpired as error:
        out, err = ((text or b"").decode(errors="replace") if not isinstance(text, str) else text for text in (error.stdout, error.stderr))
        end = f"the process did not end within {timeout} s"
    outcomes = dict(json.loads(line.removeprefix(_MARK)) for line in out.splitlines() if line.startswith(_MARK))
    return {name: outcomes.get(name, f"{end} before {name} had ended:\n{err[-4000:]}") for name in wanted}


def run_with_stub(target: str, arguments: Mapping[str, Any] | None = None, **options: Any) -> None:
    """Run one scenario, ``module:function``, as :func:`run_scenarios` does; AssertionError holds its traceback."""
    module, _, name = target.partition(":")
    outcome = run_scenarios(module, [name], arguments, **options)[name]
    if outcome:
        raise AssertionError(outcome)


def _main() -> None:
    module, names, arguments = json.load(sys.stdin)
    faulthandler.dump_traceback_later(100, exit=True)
    for name in names:
        try:
            getattr(import_module(module), name)(**arguments)
            gc.collect()
            assert live() == NOTHING, f"left behind: { {kind: count for kind, count in live().items() if count} }"
            outcome = ""
        except BaseException as error:  # noqa: BLE001 - whatever a scenario raises is its outcome
            outcome = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        print(f"\n{_MARK}{json.dumps([name, outcome])}", flush=True)  # noqa: T201
        if outcome and library() is not None:
            library().stub_cuda_forget()  # what a failed scenario left is no fault of the next


# For use inside a scenario.


def library() -> Any:
    """The stand-in, as this process loaded it; None where it is not there."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def live() -> dict[str, int]:
    """How many of each of `KINDS` are not given back."""
    stub = library()
    return {kind: stub.stub_cuda_live(number) if stub is not None else 0 for number, kind in enumerate(KINDS)}


def calls(name: str) -> int:
    """How often the stand-in's function `name`, as in ``cuMemAlloc_v2``, was called in this process."""
    return int(library().stub_cuda_calls(name.encode()))


def accessible(address: int, size: int) -> bool:
    """Whether these bytes are live device or page-locked memory."""
    return bool(library().stub_cuda_accessible(ctypes.c_void_p(address), ctypes.c_size_t(size)))


def launches() -> list[tuple[str, tuple[int, int, int], int, int]]:
    """The kernels that ran in this process, in their order: name, blocks in x, y and z, threads of a block, bytes of shared memory."""
    found: list[tuple[str, tuple[int, int, int], int, int]] = []
    name, numbers = ctypes.create_string_buffer(64), (ctypes.c_uint * 5)()
    while library().stub_cuda_launches(ctypes.c_long(len(found)), name, len(name), numbers):
        x, y, z, threads, shared = numbers
        found.append((name.value.decode(), (x, y, z), threads, shared))
    return found


HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def queue_call(function: Any, stream: int, data: int = 0) -> int:
    """Queue a :data:`HostFunction`, which the caller keeps alive until it ran, on a stream; CUDA's code."""
    return int(library().cuLaunchHostFunc(ctypes.c_void_p(stream), function, ctypes.c_void_p(data)))


def fail(code: int) -> None:
    """From now on, work and calls on the current GPU fail with this code, as after a fault in a kernel."""
    library().stub_cuda_fail(code)
