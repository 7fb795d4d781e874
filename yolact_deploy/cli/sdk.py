"""``yolact-deploy sdk``: where the C++ library lies, and its CUDA kernels."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.cli.build_engine import sm_list
from yolact_deploy.errors import ConfigError

__all__ = ["sdk"]

_USE = """\
In CMakeLists.txt:
  find_package(yolact_deploy CONFIG REQUIRED)
  target_link_libraries(YOUR_PROGRAM PRIVATE yolact_deploy::yolact_deploy)
In the shell:
  cmake -S . -B build -Dyolact_deploy_DIR="$(yolact-deploy sdk --cmakedir)" && cmake --build build"""


def sdk(
    cmakedir: Annotated[bool, typer.Option("--cmakedir", help="Print the folder for CMake's find_package.")] = False,
    includedir: Annotated[bool, typer.Option("--includedir", help="Print the folder with the public headers.")] = False,
    sourcedir: Annotated[bool, typer.Option("--sourcedir", help="Print the folder with the sources.")] = False,
    kernels: Annotated[
        Path | None,
        typer.Option(help="Compile the CUDA kernels into this file, OUT.cubin, without a CUDA toolkit.", show_default=False),
    ] = None,
    sm: Annotated[
        list[str] | None,
        typer.Option(help="For --kernels: compute capability, such as 89, or several, a file for each: 86,89.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is no cubin.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Tell where the C++ library lies that the package brings, and how to use it; compile its CUDA kernels."""
    from yolact_deploy.sdk import sdk_folders, write_kernels

    if sm and kernels is None:
        raise ConfigError("--sm was given without --kernels.", "Name the file: --kernels OUT.cubin")
    places = json or cmakedir or includedir or sourcedir or kernels is None
    folders = sdk_folders() if places else None  # kernels need none
    written = [] if kernels is None else write_kernels(kernels, sm_list(sm), force=force)
    named = {} if folders is None else {"cmakedir": folders.cmake, "includedir": folders.include, "sourcedir": folders.source}
    if json:
        facts = {name: str(folder) for name, folder in named.items()}
        typer.echo(json_module.dumps({**facts, "kernels": [str(path) for path in written]}, indent=2))
        return
    asked = {"cmakedir": cmakedir, "includedir": includedir, "sourcedir": sourcedir}
    for name, folder in named.items():
        if asked[name]:
            typer.echo(folder)
    for path in written:
        typer.echo(f"Saved {path}")
    if kernels is None and not any(asked.values()):
        for name, folder in named.items():
            typer.echo(f"{'--' + name:<12}  {folder}")
        typer.echo(_USE)
