"""Other projects find the C++ library, in the package's sources or installed, and run with it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engines.cpp.conftest import CLANG
from tests.engines.cpp.test_detect import SMALL, recorded
from tests.helpers.cpp_library import CPP, CppLibrary, cmake, configure, run_commands, run_program
from yolact_deploy import __version__

GREY = np.full((480, 640, 3), 128, np.uint8)


def consumer(folder: Path, target: str = "yolact_deploy", version: str = "0.1") -> Path:
    """The example outside of the tree."""
    sources = folder / "consumer"
    shutil.copytree(CPP / "examples" / "consumer", sources)
    lists = (sources / "CMakeLists.txt").read_text()
    changed = lists.replace("yolact_deploy::yolact_deploy", f"yolact_deploy::{target}").replace(
        "yolact_deploy 0.1", f"yolact_deploy {version}"
    )
    assert lists.count("yolact_deploy::yolact_deploy") == 1
    assert lists.count("yolact_deploy 0.1 ") == 1
    if target == "yolact_deploy_static":
        changed = changed.replace(" REQUIRED)", " REQUIRED COMPONENTS static)")
    (sources / "CMakeLists.txt").write_text(changed)
    return sources


@pytest.fixture(scope="module")
def installed(library: CppLibrary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("installed")
    cmake("--install", str(library.folder), "--prefix", str(prefix))
    return prefix


def runs(library: CppLibrary, folder: Path, program: Path) -> None:
    engine = recorded(library, folder, SMALL)
    wanted = engine.detections(GREY).above(0.15)
    assert len(wanted) > 2
    lines = run_program(library, [program, engine.engine]).splitlines()
    assert len(lines) == len(wanted)
    for line, one in zip(lines, wanted, strict=True):
        numbers = " ".join(f"{value:.0f}" for value in one.boxes[0])
        assert line == f"{one.names[0]} {one.scores[0]:.3f} {numbers} {one.counts[0].decode()}"


def find(library: CppLibrary, sources: Path, folder: Path, **variables: object) -> None:
    """Configure with no folder of TensorRT or CUDA but those in `variables`."""
    configure(library.standin, sources, folder, **variables)


def test_the_packages_sources(library: CppLibrary, tmp_path: Path) -> None:
    build = tmp_path / "build"
    find(library, consumer(tmp_path), build, yolact_deploy_DIR=CPP / "cmake", YOLACT_DEPLOY_KERNEL_IMAGES=library.image_list)
    cmake("--build", str(build), "--parallel", "2")
    assert not list(build.rglob("detect_image"))  # examples are for the main project
    runs(library, tmp_path, build / "consumer")


@pytest.mark.parametrize("target", ["yolact_deploy", "yolact_deploy_static"])
@pytest.mark.parametrize("named", [False, True])
def test_an_installed_library(library: CppLibrary, installed: Path, tmp_path: Path, target: str, named: bool) -> None:
    """`named`: TensorRT's and CUDA's folders by the variables of one's own, else as they were when it was built."""
    build = tmp_path / "build"
    places = {} if named else {"TENSORRT_ROOT": None, "CUDA_INCLUDE_DIR": None}
    find(library, consumer(tmp_path, target), build, CMAKE_PREFIX_PATH=installed, **places)
    cmake("--build", str(build))
    needed = subprocess.run(
        ["ldd", str(build / "consumer")], env=library.environment(), capture_output=True, text=True, timeout=100, check=True
    )
    assert ("libyolact_deploy" in needed.stdout) == (target == "yolact_deploy")
    runs(library, tmp_path, build / "consumer")


def test_the_shared_library_is_found_without_tensorrt_and_the_static_one_is_not(
    library: CppLibrary, installed: Path, tmp_path: Path
) -> None:
    """The latter says what is missing."""
    prefix = tmp_path / "prefix"
    shutil.copytree(installed, prefix, symlinks=True)
    config = next(prefix.rglob("yolact_deployConfig.cmake"))
    config.write_text(config.read_text().replace(str(library.standin.root), "/nowhere"))
    nowhere = {"TENSORRT_ROOT": None, "CUDA_INCLUDE_DIR": None, "CMAKE_PREFIX_PATH": prefix}
    find(library, consumer(tmp_path), tmp_path / "build", **nowhere)
    with pytest.raises(AssertionError, match=r"TensorRT\s+was\s+not\s+found"):
        find(library, consumer(tmp_path / "static", "yolact_deploy_static"), tmp_path / "static" / "build", **nowhere)


def test_what_is_installed(installed: Path) -> None:
    found = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    headers = {f"include/yolact_deploy/{path.name}" for path in (CPP / "include" / "yolact_deploy").iterdir()}
    assert headers == {name for name in found if name.startswith("include/")}
    names = {Path(name).name for name in found - headers}
    assert {"libyolact_deploy_static.a", f"libyolact_deploy.so.{__version__}", "YolactTensorRT.cmake"} <= names
    assert {"yolact_deployConfig.cmake", "yolact_deployConfigVersion.cmake", "yolact_deployTargets.cmake"} <= names
    assert not [name for name in names if "objects" in name or "kernel" in name]


@pytest.mark.parametrize("version", ["0.2", "1", "0.1.9", "0.0"])
@pytest.mark.parametrize("where", ["sources", "installed"])
def test_other_versions_are_refused(library: CppLibrary, installed: Path, tmp_path: Path, where: str, version: str) -> None:
    place = {"yolact_deploy_DIR": CPP / "cmake"} if where == "sources" else {"CMAKE_PREFIX_PATH": installed}
    with pytest.raises(AssertionError, match=rf'compatible\s+with\s+requested\s+version\s+"{re.escape(version)}"'):
        find(library, consumer(tmp_path, version=version), tmp_path / "build", **place)


@pytest.mark.parametrize("version", ["", "0.1.0", "0.1.0 EXACT"])
@pytest.mark.parametrize("where", ["sources", "installed"])
def test_its_own_version_is_taken(library: CppLibrary, installed: Path, tmp_path: Path, where: str, version: str) -> None:
    place = {"yolact_deploy_DIR": CPP / "cmake"} if where == "sources" else {"CMAKE_PREFIX_PATH": installed}
    find(library, consumer(tmp_path, version=version), tmp_path / "build", **place, YOLACT_DEPLOY_KERNEL_IMAGES=library.image_list)


def test_the_version_is_the_packages() -> None:
    found = re.search(r"^project\(yolact_deploy VERSION (\S+) ", (CPP / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == __version__


def test_clang_takes_it_too(library_of: Callable[[str], CppLibrary]) -> None:
    """With warnings as errors; the library for TensorRT-RTX is built with it."""
    if not shutil.which(CLANG):
        pytest.skip("clang++ is not here")
    built = library_of("rtx")
    assert re.search(
        rf"^CMAKE_CXX_COMPILER:\w+={re.escape(str(shutil.which(CLANG)))}$", (built.folder / "CMakeCache.txt").read_text(), re.MULTILINE
    )


def test_one_of_several_images_is_loaded(library: CppLibrary, tmp_path: Path) -> None:
    """Those of other GPUs are passed over; where none fits, that is told."""
    assert [path.read_bytes() for path in library.images] == [b"STUB 75", b"STUB 89"]
    engine = recorded(library, tmp_path, SMALL, target={"capabilities": ((7, 5), (9, 0))})
    assert run_commands(library, [f"load path={engine.engine}", "unload"], capability="7.5") == [None, None, ""]
    refused, left = run_commands(library, [f"load path={engine.engine}"], capability="9.0")
    assert left == ""
    assert refused["code"] == 3
    assert "this library holds no kernels for compute capability 9.0 (cuModuleLoadData: CUDA_ERROR_NO_BINARY_FOR_GPU)" in refused["error"]
    assert "CMAKE_CUDA_ARCHITECTURES=90" in refused["error"]


def test_images_as_numbers(tmp_path: Path) -> None:
    """What compilers without an assembler get."""
    (tmp_path / "a").write_bytes(bytes(range(256)))
    (tmp_path / "b").write_bytes(b"")
    source, images = tmp_path / "kernel_images.cpp", f"{tmp_path / 'a'};{tmp_path / 'b'}"
    cmake(f"-DIMAGES={images}", f"-DSOURCE={source}", "-DCOMPILER=MSVC", "-P", str(CPP / "cmake" / "embed.cmake"))
    content = re.findall(r"\[(\d+)\] = \{([^}]*)\}", source.read_text())
    assert [int(size) for size, _ in content] == [257, 1]
    assert [bytes(int(byte, 16) for byte in each.split(",")) for _, each in content] == [bytes(range(256)) + b"\0", b"\0"]
