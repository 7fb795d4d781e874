"""``sdk``: folders for CMake and compilers, and kernels that NVRTC compiles."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import complaint, invoke, ok, run
from tests.house.tree import ROOT
from yolact_deploy import sdk
from yolact_deploy.engines.cuda import compiler
from yolact_deploy.errors import DeviceError, MissingDependencyError, ModelFileError

FILES = ("cmake/yolact_deployConfig.cmake", "include/yolact_deploy/yolact.hpp", "CMakeLists.txt")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C++ library with the files that the command looks for."""
    source = tmp_path / "cpp"
    for name in FILES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    monkeypatch.setattr(sdk.sdk_folders, "__defaults__", (source,))
    return source


def test_each_folder_alone_is_all_that_is_printed(installed: Path) -> None:
    assert ok(invoke("sdk", "--cmakedir")) == f"{installed / 'cmake'}\n"
    assert ok(invoke("sdk", "--includedir")) == f"{installed / 'include'}\n"
    assert ok(invoke("sdk", "--sourcedir")) == f"{installed}\n"
    assert ok(invoke("sdk", "--sourcedir", "--cmakedir")) == f"{installed / 'cmake'}\n{installed}\n"


def test_without_options_all_of_it_and_how_to_use_it(installed: Path) -> None:
    said = ok(invoke("sdk")).splitlines()
    assert said[:3] == [f"--cmakedir    {installed / 'cmake'}", f"--includedir  {installed / 'include'}", f"--sourcedir   {installed}"]
    for line in (
        "  find_package(yolact_deploy CONFIG REQUIRED)",
        "  target_link_libraries(YOUR_PROGRAM PRIVATE yolact_deploy::yolact_deploy)",
        '  cmake -S . -B build -Dyolact_deploy_DIR="$(yolact-deploy sdk --cmakedir)" && cmake --build build',
    ):
        assert line in said


def test_json(installed: Path) -> None:
    facts = {"cmakedir": str(installed / "cmake"), "includedir": str(installed / "include"), "sourcedir": str(installed), "kernels": []}
    assert json.loads(ok(invoke("sdk", "--json"))) == facts


@pytest.mark.parametrize("name", FILES)
def test_an_installation_without_the_library(name: str, installed: Path) -> None:
    (installed / name).unlink()
    told = complaint(invoke("sdk", "--cmakedir"))
    assert told.startswith(f"The C++ library is not in {installed}: {name} is missing there.")
    assert told.endswith("Run: pip install --force-reinstall --no-deps yolact-deploy")
    with pytest.raises(ModelFileError):
        sdk.sdk_folders()


def test_the_real_one_stands_in_the_package() -> None:
    assert Path(sdk.__file__).with_name("engines") / "cpp" == sdk._SOURCE
    assert sdk._SOURCE.resolve() == ROOT / "engines" / "cpp"


def test_it_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys\nsys.argv = ['yolact-deploy', 'sdk', '--cmakedir']\n"
        "try:\n    from yolact_deploy.cli import main\n    main()\n"
        "finally:\n    print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    heavy = {"cv2", "numpy", "onnx", "onnxruntime", "PIL", "pycocotools", "torch", "tensorrt", "tensorrt_rtx", "cuda", "rich"}
    assert not heavy & set(done.stderr.splitlines()[-1].split())


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """What was asked to be compiled; 9.9 is unknown."""
    asked: list[tuple[int, int]] = []

    def compile_kernels(capability: tuple[int, int]) -> bytes:
        asked.append(capability)
        if capability == (9, 9):
            raise DeviceError("not for sm_99")
        return CUBIN + bytes(capability)

    monkeypatch.setattr(compiler, "compile_kernels", compile_kernels)
    return asked


CUBIN = b"\x7fELF" + bytes(14) + b"\xbe\x00"


def test_one_capability_one_file(compiled: list[tuple[int, int]], tmp_path: Path) -> None:
    out = tmp_path / "new" / "k.cubin"
    assert ok(invoke("sdk", "--kernels", out, "--sm", "8.9")) == f"Saved {out}\n"
    assert (out.read_bytes(), compiled) == (CUBIN + b"\x08\x09", [(8, 9)])
    assert sdk.write_kernels(out, [(8, 9), (8, 9)]) == [out]


def test_several_have_a_file_each(installed: Path, compiled: list[tuple[int, int]], tmp_path: Path) -> None:
    out = tmp_path / "out" / "k.cubin"
    facts = json.loads(ok(invoke("sdk", "--kernels", out, "--sm", "89,86", "--sm", "120", "--sm", "89", "--json")))
    assert sorted(path.name for path in out.parent.iterdir()) == ["k.sm120.cubin", "k.sm86.cubin", "k.sm89.cubin"]
    assert sorted(facts["kernels"]) == sorted(str(path) for path in out.parent.iterdir())
    assert facts["sourcedir"] == str(installed)
    assert sorted(compiled) == [(8, 6), (8, 9), (12, 0)]
    assert out.with_name("k.sm86.cubin").read_bytes() == CUBIN + b"\x08\x06"


def test_all_or_none(compiled: list[tuple[int, int]], tmp_path: Path) -> None:
    assert complaint(invoke("sdk", "--kernels", tmp_path / "k.cubin", "--sm", "89,99")) == "not for sm_99"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "k.sm89.cubin").write_text("mine")
    told = complaint(invoke("sdk", "--kernels", tmp_path / "k.cubin", "--sm", "86,89"))
    assert "k.sm89.cubin exists and was not written by this command" in told
    assert [path.name for path in tmp_path.iterdir()] == ["k.sm89.cubin"]


@pytest.mark.parametrize(
    ("content", "ours"),
    [
        (CUBIN + b"old", True),
        (b"\x7fELF" + bytes(14) + b"\x3e\x00", False),
        (b"ELF\x7f" + CUBIN[4:], False),
        (CUBIN[:19], False),
        (b"", False),
    ],
)
def test_only_cubins_are_replaced(content: bytes, ours: bool, compiled: list[tuple[int, int]], tmp_path: Path) -> None:
    out = tmp_path / "k.cubin"
    out.write_bytes(content)
    done = invoke("sdk", "--kernels", out, "--sm", "89")
    if ours:
        ok(done)
    else:
        assert "exists and was not written by this command" in complaint(done)
        assert (out.read_bytes(), compiled) == (content, [])
        ok(invoke("sdk", "--kernels", out, "--sm", "89", "--force"))
    assert out.read_bytes() == CUBIN + b"\x08\x09"


def test_options_that_want_each_other(compiled: list[tuple[int, int]], tmp_path: Path) -> None:
    told = complaint(invoke("sdk", "--kernels", tmp_path / "k.cubin"))
    assert told == "No compute capability was named. Name those of your GPUs: --sm 89, or --sm 86,89."
    assert complaint(invoke("sdk", "--sm", "89")) == "--sm was given without --kernels. Name the file: --kernels OUT.cubin"
    assert "The compute capability is 'ada'" in complaint(invoke("sdk", "--kernels", tmp_path / "k.cubin", "--sm", "ada"))
    assert (compiled, list(tmp_path.iterdir())) == ([], [])


def test_nvrtc_compiles_them(tmp_path: Path) -> None:
    try:
        compiler.nvrtc_version()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    assert ok(run("sdk", "--kernels", "k.cubin", "--sm", "89", cwd=tmp_path)) == "Saved k.cubin\n"
    ok(run("sdk", "--kernels", "k.cubin", "--sm", "89", cwd=tmp_path))
    assert (tmp_path / "k.cubin").read_bytes() == compiler.compile_kernels((8, 9))
    assert "not for sm_10 " in complaint(run("sdk", "--kernels", "old.cubin", "--sm", "10", cwd=tmp_path))
