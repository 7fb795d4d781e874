"""What users install: the wheel, built from the sdist, holds the whole package, the linked rooms included."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house.tree import PACKAGE, ROOT, copy_project, modules, project_files


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that ``python -m build`` makes, from the sdist, in a copy of the project."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_project(folder / "source")
    built = run("-m", "build", "--no-isolation", "--outdir", folder, cwd=source)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    assert list(folder.glob("*.tar.gz"))
    (path,) = folder.glob("*.whl")
    return path


def package_files() -> set[str]:
    """Names that the package's files have in a wheel: those in linked rooms once, under the link."""
    links = {path.resolve(): path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).iterdir() if path.is_symlink()}
    names = set()
    for path in project_files():
        if path.is_symlink():
            continue
        linked = next((link for target, link in links.items() if path.is_relative_to(target)), None)
        if linked:
            names.add(f"{linked}/{path.relative_to((ROOT / linked).resolve()).as_posix()}")
        elif path.is_relative_to(ROOT / PACKAGE):
            names.add(path.relative_to(ROOT).as_posix())
    return names


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith(f"{PACKAGE}/")}
    data = {f"{PACKAGE}/evaluation/report.html.j2", f"{PACKAGE}/engines/cuda/kernels/platform.cuh", f"{PACKAGE}/engines/cpp/CMakeLists.txt"}
    assert {f"{PACKAGE}/export/__init__.py", *data} <= held
    assert held == package_files(), "a file that is no module has to be named in [tool.setuptools.package-data] of pyproject.toml"


def test_the_wheel_names_command_and_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {Path(name).name: name for name in archive.namelist() if ".dist-info/" in name}
        assert "yolact-deploy = yolact_deploy.cli:main" in archive.read(held["entry_points.txt"]).decode()
        assert "LICENSE" in held


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    installed = run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return folder


def test_the_installed_wheel_imports(site: Path, tmp_path: Path) -> None:
    program = "import yolact_deploy.export as e; print(e.__file__)"
    imported = run("-W", "ignore", "-c", program, cwd=tmp_path, PYTHONPATH=str(site))
    assert imported.returncode == 0, imported.stderr
    assert Path(imported.stdout.strip()) == site / PACKAGE / "export" / "__init__.py"


def test_the_installed_wheel_tells_where_the_cpp_library_is(site: Path, tmp_path: Path) -> None:
    program = "from yolact_deploy.cli import main; main()"
    told = run("-W", "ignore", "-c", program, "sdk", "--cmakedir", cwd=tmp_path, PYTHONPATH=str(site))
    assert told.returncode == 0, told.stderr
    assert Path(told.stdout.strip()) == site / PACKAGE / "engines" / "cpp" / "cmake"
    assert (site / PACKAGE / "engines" / "cpp" / "cmake" / "yolact_deployConfig.cmake").is_file()


def test_a_checkout_without_links_says_so(tmp_path: Path) -> None:
    links = [path for path in (ROOT / PACKAGE).iterdir() if path.is_symlink()]
    assert links
    copy_project(tmp_path)
    for link in links:
        text_file = tmp_path / PACKAGE / link.name
        text_file.unlink()
        text_file.write_text(str(link.readlink()), encoding="utf-8")  # what git writes where it may not make links
        # Without site-packages (-S), where an editable install would lead to the checkout that is being tested.
        imported = run("-S", "-c", f"import {PACKAGE}.{link.name}", cwd=tmp_path, PYTHONPATH="")
        last = imported.stderr.splitlines()[-1]
        assert imported.returncode != 0
        assert last.startswith("ImportError: ")
        assert "symbolic link" in last
        assert "core.symlinks" in last


def test_every_folder_with_modules_is_a_package() -> None:
    found = modules()
    packages = {module.name for module in found if module.is_package}
    lost = [module.name for module in found if not module.is_package and module.name.rpartition(".")[0] not in packages]
    assert not lost, f"{lost} lie in folders without __init__.py, which the wheel leaves out"
