"""Kernels in the library, of ``yolact-deploy sdk --kernels`` and of nvcc, how they are embedded, and what CMake refuses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engines.cpp.test_detect import detect_all, recorded
from tests.helpers.cpp_engines import StandIn, build_standin
from tests.helpers.cpp_library import CPP, CppLibrary, cmake, configure, missing, run_commands, tool
from tests.house.tree import ROOT
from yolact_deploy.sdk import write_kernels

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
SMALL: dict[str, Any] = {"input_size": 64}
EMBED = CPP / "cmake" / "embed.cmake"


@pytest.fixture(scope="module")
def standin() -> StandIn:
    return build_standin()


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVRTC, of the extra cuda")
    return write_kernels(tmp_path_factory.mktemp("kernels") / "kernels.cubin", [(8, 9), (8, 6)])


# Kernels of NVRTC


@pytest.fixture(scope="module")
def of_two(standin: StandIn, cubins: list[Path], tmp_path_factory: pytest.TempPathFactory) -> CppLibrary:
    folder = tmp_path_factory.mktemp("build")
    configure(standin, CPP, folder, YOLACT_DEPLOY_KERNEL_IMAGES=";".join(map(str, cubins)), YOLACT_DEPLOY_EXAMPLES="OFF")
    cmake("--build", str(folder), "--parallel", "2", "--target", "yolact_deploy")
    return CppLibrary(folder, standin)


def test_two_images_in_one_library(of_two: CppLibrary, cubins: list[Path], tmp_path: Path) -> None:
    assert [path.name for path in cubins] == ["kernels.sm89.cubin", "kernels.sm86.cubin"]
    engine = recorded(of_two, tmp_path, SMALL, target={"hardware_level": "ampere+"})
    for capability in ("8.9", "8.6"):
        loaded, left = run_commands(of_two, [f"load path={engine.engine}"], capability=capability)
        assert (loaded, left) == (None, ""), capability
    refused, left = run_commands(of_two, [f"load path={engine.engine}"], capability="9.0")
    assert left == ""
    assert refused["code"] == 3
    assert refused["error"] == (
        "GPU 0 (Stub GPU 0): this library holds no kernels for compute capability 9.0 (cuModuleLoadData: CUDA_ERROR_NO_BINARY_FOR_GPU). "
        "Build it with CMAKE_CUDA_ARCHITECTURES=90."
    )
    detect_all(of_two, tmp_path, engine)


def test_the_embedded_bytes_are_the_files(of_two: CppLibrary, cubins: list[Path]) -> None:
    library = of_two.shared.read_bytes()
    places = [library.find(path.read_bytes() + b"\0") for path in cubins]
    assert min(places) > 0
    assert len(set(places)) == 2


# Embedding


def embedded(compiler: str, images: list[Path], folder: Path) -> subprocess.CompletedProcess[bytes]:
    """The bytes of the images, as a program finds them that is made of the script's output."""
    source, main = folder / f"{compiler}.cpp", folder / "main.cpp"
    cmake("-DIMAGES=" + ";".join(map(str, images)), f"-DSOURCE={source}", f"-DCOMPILER={compiler}", "-P", str(EMBED))
    main.write_text(
        '#include <cstdint>\n#include <cstdio>\n#include "kernel_images.hpp"\nusing namespace yolact::detail;\n'
        "int main() {\n    for (std::size_t i = 0; i < kernel_image_count; ++i) {\n"
        '        std::printf("%zu %d\\n", kernel_images[i].size, int(reinterpret_cast<std::uintptr_t>(kernel_images[i].data) % 64));\n'
        "        std::fwrite(kernel_images[i].data, 1, kernel_images[i].size, stdout);\n    }\n}\n"
    )
    program = folder / compiler
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-I", CPP / "src", source, main, "-o", program]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return subprocess.run([program], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("compiler", ["GNU", "Clang", "MSVC"])
def test_what_is_embedded(tmp_path: Path, compiler: str) -> None:
    contents = [bytes(range(256)) * 3, b"\x7f", b'a\nb\\"\0\0', os.urandom(4097), b"[;]; # $ { } 0x00"]
    images = []
    for number, content in enumerate(contents):
        images.append(tmp_path / f"image {number}.cubin")
        images[-1].write_bytes(content)
    wanted = b"".join(b"%d 0\n%s\0" % (len(content) + 1, content) for content in contents)
    assert embedded(compiler, images, tmp_path).stdout == wanted


# Kernels of nvcc


def test_nvcc_compiles_for_one_architecture(standin: StandIn, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("nvcc is not on the path")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, timeout=60, check=False)
    if "sm_86" not in known.stdout:
        pytest.skip("this nvcc does not compile for compute capability 8.6")
    configure(standin, CPP, tmp_path, CMAKE_CUDA_ARCHITECTURES="86", YOLACT_DEPLOY_EXAMPLES="OFF")
    cmake("--build", str(tmp_path), "--target", "kernel_images.cpp")
    text = (tmp_path / "build.ninja").read_text()
    assert re.findall(r"-gencode (\S+)", text) == ["arch=compute_86,code=sm_86", "arch=compute_86,code=compute_86"]
    image = (tmp_path / "kernels.fatbin").read_bytes()
    assert image[:4] == b"\x50\xed\x55\xba"
    source = (tmp_path / "kernel_images.cpp").read_text()
    assert f"{{yolact_kernel_image0, {len(image) + 1}}}," in source


def fake_nvcc(folder: Path, codes: str = "") -> Path:
    folder.mkdir()
    program = folder / "nvcc"
    program.write_text(f"#!/bin/sh\nprintf '{codes}'\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("", ["75 sm_75", "89 sm_89", "100 sm_100", "103 sm_103", "75 compute_75"]),
        ("all-major", ["75 sm_75", "89 sm_89", "100 sm_100", "103 sm_103", "75 compute_75"]),
        ("89;86;120", ["86 sm_86", "89 sm_89", "120 sm_120", "86 compute_86"]),
        ("87-real", ["87 sm_87", "87 compute_87"]),
        ("native", []),
    ],
)
def test_architectures(standin: StandIn, tmp_path: Path, given: str, wanted: list[str]) -> None:
    nvcc = fake_nvcc(tmp_path / "bin", r"sm_70\nsm_75\nsm_89\nsm_100\nsm_103\n")
    configure(standin, CPP, tmp_path / "build", CMAKE_CUDA_ARCHITECTURES=given, YOLACT_NVCC=nvcc, YOLACT_DEPLOY_EXAMPLES="OFF")
    text = (tmp_path / "build" / "build.ninja").read_text()
    assert re.findall(r"-gencode arch=compute_(\d+),code=(\S+)", text) == [tuple(each.split()) for each in wanted]
    assert ("-arch=native" in text) == (given == "native")


# What CMake refuses


def refusal(folder: Path, **variables: object) -> str:
    """Its error, in one line."""
    given = {
        "CMAKE_CXX_COMPILER": shutil.which("g++"),
        "CMAKE_C_COMPILER": shutil.which("gcc"),
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
        **variables,
    }
    command = [tool("cmake") or "cmake", "-S", CPP, "-B", folder, "-G", "Ninja", *(f"-D{name}={value}" for name, value in given.items())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode != 0
    assert "CMake Error" in done.stderr
    return " ".join(done.stderr.split())


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, object]:
    """Variables with which CMake finds nothing of CUDA's and TensorRT's that is on this machine."""
    (tmp_path / "root").mkdir()
    return {
        "CMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit": "ON",
        "CMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH": "OFF",
        "CMAKE_FIND_USE_CMAKE_SYSTEM_PATH": "OFF",
    }


def test_no_tensorrt(tmp_path: Path, alone: dict[str, object]) -> None:
    told = refusal(tmp_path / "build", TENSORRT_ROOT=tmp_path, **alone)
    assert "TensorRT was not found (NvInferRuntime.h: TENSORRT_INCLUDE_DIR-NOTFOUND, library: TENSORRT_LIBRARY-NOTFOUND)." in told
    assert "Set TENSORRT_ROOT to the folder with its include/ and lib/, or TENSORRT_INCLUDE_DIR and TENSORRT_LIBRARY." in told


def test_a_library_of_the_other_backend(tmp_path: Path, standin: StandIn, alone: dict[str, object]) -> None:
    told = refusal(tmp_path / "build", TENSORRT_ROOT=standin.root, YOLACT_DEPLOY_BACKEND="tensorrt-rtx", **alone)
    assert "library: TENSORRT_LIBRARY-NOTFOUND" in told
    assert f"NvInferRuntime.h: {standin.root}/include" in told


def test_an_unknown_backend(tmp_path: Path, standin: StandIn) -> None:
    told = refusal(tmp_path / "build", TENSORRT_ROOT=standin.root, YOLACT_DEPLOY_BACKEND="openvino")
    assert 'YOLACT_DEPLOY_BACKEND is "openvino", tensorrt or tensorrt-rtx was wanted.' in told


def test_no_headers_of_cuda(tmp_path: Path, standin: StandIn, alone: dict[str, object]) -> None:
    told = refusal(tmp_path / "build", TENSORRT_ROOT=standin.root, **alone)
    assert "CUDA's headers, which TensorRT's include, were not found." in told
    assert "Set CUDAToolkit_ROOT to the toolkit's folder, or CUDA_INCLUDE_DIR to the folder with cuda_runtime_api.h" in told


def test_a_kernel_image_that_is_missing(tmp_path: Path, standin: StandIn) -> None:
    (tmp_path / "good.cubin").write_bytes(b"STUB 89")
    images = f"{tmp_path / 'good.cubin'};{tmp_path / 'absent.cubin'}"
    told = refusal(
        tmp_path / "build", TENSORRT_ROOT=standin.root, CUDA_INCLUDE_DIR=standin.root / "include", YOLACT_DEPLOY_KERNEL_IMAGES=images
    )
    assert f"YOLACT_DEPLOY_KERNEL_IMAGES names {tmp_path / 'absent.cubin'}, which does not exist." in told
    assert "`yolact-deploy sdk --kernels` writes such a file." in told


def test_no_nvcc(tmp_path: Path, standin: StandIn, alone: dict[str, object]) -> None:
    told = refusal(tmp_path / "build", TENSORRT_ROOT=standin.root, CUDA_INCLUDE_DIR=standin.root / "include", **alone)
    assert "nvcc, which compiles the kernels, was not found. Set CUDAToolkit_ROOT," in told
    assert "`yolact-deploy sdk --kernels kernels.cubin --sm 89`, and set YOLACT_DEPLOY_KERNEL_IMAGES to that file." in told


def test_the_command_writes_them_too(tmp_path: Path, cubins: list[Path]) -> None:
    command = [sys.executable, "-m", "yolact_deploy", "sdk", "--kernels", tmp_path / "own.cubin", "--sm", "86"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    assert (tmp_path / "own.cubin").read_bytes() == cubins[1].read_bytes()
