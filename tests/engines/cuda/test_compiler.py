"""Compiling the kernels with NVRTC, its cache, and what is said where it does not work; no GPU is needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.helpers import stub_cuda
from yolact_deploy.engines.cuda import compiler
from yolact_deploy.engines.cuda.compiler import UMBRELLA, cached_kernels, compile_kernels, kernel_sources
from yolact_deploy.errors import DeviceError, MissingDependencyError

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
try:
    NVRTC = str(nvrtc.nvrtcVersion()[1:])
except RuntimeError:
    NVRTC = ""
wants_nvrtc = pytest.mark.skipif(not NVRTC, reason="NVRTC (nvidia-cuda-nvrtc) is not installed")

ARCHITECTURES = [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (12, 0)]
SMALL = {
    UMBRELLA: '#pragma once\n#include "add.cuh"\n',
    "add.cuh": "struct Add { int *values; int count, amount; };\n"
    'extern "C" __global__ void add(Add add) { if (threadIdx.x < add.count) add.values[threadIdx.x] += add.amount; }\n',
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """One small kernel in the place of the package's."""
    sources = dict(SMALL)
    monkeypatch.setattr(compiler, "kernel_sources", lambda: sources)
    return sources


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What NVRTC compiled for, one entry each time."""
    seen: list[tuple[int, int]] = []
    real = compiler._compiled

    def count(nvrtc: Any, capability: tuple[int, int], sources: Mapping[str, str]) -> bytes:
        seen.append(capability)
        return real(nvrtc, capability, sources)

    monkeypatch.setattr(compiler, "_compiled", count)
    return seen


def test_the_sources_include_each_other_alone() -> None:
    sources = kernel_sources()
    assert {UMBRELLA, "platform.cuh", "problem.cuh"} <= sources.keys()
    for name, text in sources.items():
        included = [line.split('"')[1] for line in text.splitlines() if line.startswith('#include "')]
        assert set(included) < sources.keys(), name
        assert "#include <" not in text, f"{name} includes a header that NVRTC has not at hand"


@wants_nvrtc
@pytest.mark.parametrize("capability", ARCHITECTURES, ids=lambda pair: f"sm_{pair[0]}{pair[1]}")
def test_the_kernels_compile(capability: tuple[int, int]) -> None:
    if capability[0] * 10 + capability[1] not in nvrtc.nvrtcGetSupportedArchs()[1]:
        pytest.skip(f"NVRTC {NVRTC} does not know this architecture")
    image = compile_kernels(capability)
    assert image.startswith(b"\x7fELF")
    assert b"suppress" in image


@pytest.mark.slow
def test_the_kernels_compile_with_nvcc(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc, which comes with the CUDA toolkit, is not installed")
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    numbers = [number for number in (f"{major}{minor}" for major, minor in ARCHITECTURES) if f"compute_{number}" in listed]
    assert numbers
    for name, text in kernel_sources().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "kernels.cu").write_text(f'#include "{UMBRELLA}"\n', encoding="utf-8")
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    command = [nvcc, "-std=c++17", "-Werror=all-warnings", "-fatbin", "-o", "kernels.fatbin", *targets, "kernels.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kernels.fatbin").stat().st_size > 0


@wants_nvrtc
def test_the_cache_saves_compiling(small: dict[str, str], compiled: list[tuple[int, int]], tmp_path: Path) -> None:
    first = cached_kernels((8, 9), tmp_path / "new" / "folder")
    assert cached_kernels((8, 9), tmp_path / "new" / "folder") == first
    assert compiled == [(8, 9)]
    (file,) = (tmp_path / "new" / "folder").iterdir()
    assert file.name.startswith("sm_89.")
    assert cached_kernels((7, 5), tmp_path / "new" / "folder") != first
    small["add.cuh"] += "// another text\n"
    cached_kernels((8, 9), tmp_path / "new" / "folder")
    assert compiled == [(8, 9), (7, 5), (8, 9)]
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 3


@wants_nvrtc
def test_another_version_compiles_again(
    small: dict[str, str], compiled: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_kernels((8, 9), tmp_path)
    monkeypatch.setattr(compiler, "_version", lambda nvrtc: (99, 0))
    cached_kernels((8, 9), tmp_path)
    monkeypatch.setattr(compiler, "_OPTIONS", ("--std=c++20",))
    cached_kernels((8, 9), tmp_path)
    assert len(compiled) == 3


@wants_nvrtc
def test_the_users_cache_folder_is_the_default(small: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached_kernels((8, 9))
    assert len(list((tmp_path / "yolact-deploy" / "kernels").iterdir())) == 1


DAMAGES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("empty", lambda content: b""),
    ("a digest alone", lambda content: content[:32]),
    ("truncated", lambda content: content[:-1]),
    ("one bit", lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:]),
    ("longer", lambda content: content + b"\0"),
]


@wants_nvrtc
@pytest.mark.parametrize("damage", [damage for _, damage in DAMAGES], ids=[name for name, _ in DAMAGES])
def test_a_damaged_file_is_made_again(
    damage: Callable[[bytes], bytes], small: dict[str, str], compiled: list[tuple[int, int]], tmp_path: Path
) -> None:
    image = cached_kernels((8, 9), tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert cached_kernels((8, 9), tmp_path) == image
    assert len(compiled) == 2
    assert cached_kernels((8, 9), tmp_path) == image
    assert len(compiled) == 2
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@wants_nvrtc
def test_a_folder_that_cannot_be_written_means_compiling(small: dict[str, str], compiled: list[tuple[int, int]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for _ in range(2):
        assert cached_kernels((8, 9), tmp_path / "file" / "kernels").startswith(b"\x7fELF")
    assert len(compiled) == 2


@wants_nvrtc
def test_processes_share_the_cache(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        first, second = pool.map(cached_kernels, [(8, 9)] * 2, [tmp_path] * 2, timeout=120)
    assert first == second
    assert len(list(tmp_path.iterdir())) == 1


@wants_nvrtc
def test_the_compilers_log_is_told(small: dict[str, str], tmp_path: Path) -> None:
    small["add.cuh"] = "__device__ int wrong() { return missing; }\n"
    with pytest.raises(DeviceError) as told:
        cached_kernels((8, 9), tmp_path)
    assert str(told.value).startswith("The kernels do not compile for sm_89 (NVRTC_ERROR_COMPILATION):\nadd.cuh(1): error: ")
    assert 'identifier "missing" is undefined' in str(told.value)
    assert list(tmp_path.iterdir()) == []


@wants_nvrtc
@pytest.mark.parametrize(
    ("capability", "mend"),
    [((5, 0), "Use a GPU of compute capability 7.5 or newer."), ((99, 0), "Run: pip install --upgrade nvidia-cuda-nvrtc")],
    ids=["too old", "too new"],
)
def test_an_unknown_gpu_is_told(capability: tuple[int, int], mend: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as told:
        cached_kernels(capability, tmp_path)
    number = f"{capability[0]}{capability[1]}"
    assert f", not for sm_{number} (compute capability {capability[0]}.0)." in told.value.message
    assert told.value.message.startswith("NVRTC ")
    assert told.value.mend == mend


def test_without_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(MissingDependencyError) as told:
        compile_kernels((8, 9))
    assert str(told.value) == (
        'Post-processing on the GPU needs cuda-bindings, which is not installed. Run: pip install "yolact-deploy[tensorrt]"'
    )


MISSING_13 = (
    'Post-processing on the GPU needs NVRTC (nvidia-cuda-nvrtc), which is not installed. Run: pip install "yolact-deploy[tensorrt]"'
)
MISSING_12 = "Post-processing on the GPU needs NVRTC for CUDA 12, which is not installed. Run: pip install nvidia-cuda-nvrtc-cu12"
MISSING = MISSING_12 if metadata.version("cuda-bindings").startswith("12.") else MISSING_13


@pytest.mark.parametrize(("bindings", "message"), [("13.5.0", MISSING_13), ("12.9.0", MISSING_12)])
def test_without_the_library(bindings: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError('Failure finding "libnvrtc.so"')

    stand_in = ModuleType("cuda.bindings.nvrtc")
    vars(stand_in).update(nvrtcVersion=refuse)
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", stand_in)
    monkeypatch.setattr(metadata, "version", lambda name: bindings)
    for use in (cached_kernels, compile_kernels):
        with pytest.raises(MissingDependencyError) as told:
            use((8, 9))
        assert str(told.value) == message


def test_without_the_wheel_that_brings_the_library(tmp_path: Path) -> None:
    """In a real environment: cuda-bindings finds no library there."""
    import cuda.bindings
    import cuda.pathfinder
    import numpy as np

    for module in (cuda.bindings, cuda.pathfinder):
        (tmp_path / "cuda").mkdir(exist_ok=True)
        (tmp_path / "cuda" / module.__name__.rpartition(".")[2]).symlink_to(Path(str(module.__file__)).parent)
    about = Path(str(metadata.distribution("cuda-bindings").locate_file("")))
    for path in about.glob("cuda_bindings-*.dist-info"):
        (tmp_path / path.name).symlink_to(path)
    site = Path(str(np.__file__)).parents[1]
    for name in ("numpy", "numpy.libs", "yolact_deploy"):
        source = stub_cuda.ROOT / name if name == "yolact_deploy" else site / name
        if source.exists():
            (tmp_path / name).symlink_to(source)
    program = (
        "from yolact_deploy.errors import MissingDependencyError\n"
        "from yolact_deploy.engines.cuda.compiler import compile_kernels\n"
        "try:\n    compile_kernels((8, 9))\nexcept MissingDependencyError as error:\n    print(error)"
    )
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    if not done.stdout and not done.stderr:
        pytest.skip("NVRTC is found outside of Python's packages here")
    assert done.stdout.strip() == MISSING, done.stderr


def test_what_nvrtc_answers_is_told() -> None:
    code = SimpleNamespace(name="NVRTC_ERROR_INTERNAL_ERROR")
    broken = SimpleNamespace(nvrtcGetSupportedArchs=lambda: (code, None), nvrtcVersion=lambda: (code, None, None))
    with pytest.raises(DeviceError, match=r"^NVRTC: nvrtcGetSupportedArchs failed with NVRTC_ERROR_INTERNAL_ERROR\.$"):
        compiler._compiled(broken, (8, 9), SMALL)
    with pytest.raises(DeviceError, match=r"^NVRTC does not tell its version: NVRTC_ERROR_INTERNAL_ERROR\."):
        compiler._version(broken)


@wants_nvrtc
@pytest.mark.skipif(bool(stub_cuda.missing()), reason=stub_cuda.missing())
def test_compiled_code_loads_on_the_stand_in(tmp_path: Path) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    (tmp_path / "kernels.cubin").write_bytes(compile_kernels((8, 6), SMALL))
    stub_cuda.run_with_stub("tests.engines.cuda.module_scenarios:compiled_code_is_read", {"path": str(tmp_path / "kernels.cubin")})
