"""``yolact-deploy selftest``: whether an engine is right on this machine."""

from __future__ import annotations

import dataclasses
import enum
import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.cli.common import console, counted

__all__ = ["Place", "selftest"]


class Place(str, enum.Enum):
    """Where NMS and masks are made."""

    auto = "auto"
    gpu = "gpu"
    cpu = "cpu"


def selftest(
    engine: Annotated[Path, typer.Argument(help="An engine that build-engine --with-selftest built.")],
    device: Annotated[str | None, typer.Option(help="cuda, or cuda:1 for the second GPU.", show_default=False)] = None,
    postprocess: Annotated[Place, typer.Option(help="Where pictures are prepared, and NMS and masks made.")] = Place.auto,
    lean_runtime: Annotated[
        str | None, typer.Option(help="For a version-compatible engine: its libnvinfer_lean.so.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Run an engine on the picture that it carries, and tell whether it finds what it should; exit code 1 where it does not."""
    from yolact_deploy.runtime import selftest as run

    result = run(engine, device=device, lean_runtime=lean_runtime, postprocess=postprocess.value)
    if json:
        typer.echo(json_module.dumps(dataclasses.asdict(result), indent=2))
    out = console(quiet=quiet or json)
    if result.passed:
        out.print(f"{engine} passed: {counted(result.checked, 'detection')} found as expected", soft_wrap=True, markup=False)
        return
    if not json:
        for problem in result.problems:
            typer.echo(problem, err=True)
        told = f"{engine} failed: {counted(len(result.problems), 'problem')}, {counted(result.checked, 'detection')} had to be found"
        typer.echo(told, err=True)
    raise typer.Exit(1)
