"""``yolact-deploy triton-repository``: models as a Triton Inference Server loads them."""

from __future__ import annotations

import json as json_module
import re
from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.cli.common import ARTIFACTS, console, demo_export, file_size
from yolact_deploy.errors import ConfigError

__all__ = ["triton_repository"]


def triton_repository(
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MODEL", help="ONNX files, or engines of TensorRT. \\[default: the demo model's ONNX]", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The model repository.")] = ARTIFACTS / "triton",
    name: Annotated[
        list[str] | None, typer.Option(help="That clients call it by; once for each MODEL. \\[default: the file's]", show_default=False)
    ] = None,
    instances: Annotated[int, typer.Option(help="Of each model, on each GPU or on the CPU.")] = 1,
    gpus: Annotated[str | None, typer.Option(help="To run on, such as 0,1. \\[default: the server's]", show_default=False)] = None,
    max_queue_delay_us: Annotated[
        int | None, typer.Option(help="Microseconds to wait for pictures to batch. \\[default: 0]", show_default=False)
    ] = None,
    preferred_batch: Annotated[
        str | None, typer.Option(help="Batches that the server aims for, such as 4,8. \\[default: the largest]", show_default=False)
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(help="Pictures at once, of a dynamic batch. \\[default: the engine's, 8 for ONNX]", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace models' folders that this command did not write.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print names, files and configurations as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Write a model repository for Triton Inference Server, with a checked config.pbtxt for each model."""
    from yolact_deploy.serving import RepositoryOptions, write_repository

    out = console(quiet=quiet or json)
    options = RepositoryOptions(
        instances, _numbers("--gpus", gpus), max_queue_delay_us, _numbers("--preferred-batch", preferred_batch), max_batch
    )
    if not models:
        models = [demo_export(out)]
        out.print(f"No model was named: taking the demo model {models[0]}", soft_wrap=True, markup=False)
    written = write_repository(models, output, names=name or (), options=options, force=force)
    if json:
        told = [{"name": one.name, "files": [str(file) for file in one.files], "config": one.config} for one in written]
        typer.echo(json_module.dumps({"folder": str(output), "models": told}, indent=2))
    for one in written:
        batch = f"batches up to {one.max_batch_size}" if one.max_batch_size else "does not batch"
        out.print(f"{one.name}: the server {batch}", soft_wrap=True, markup=False)
        for file in one.files:
            out.print(f"Saved {file} ({file_size(file)})", soft_wrap=True, markup=False)
    out.print(f"Next: tritonserver --model-repository={output.resolve()}", soft_wrap=True, markup=False)


def _numbers(option: str, text: str | None) -> tuple[int, ...]:
    """``0,1`` is (0, 1)."""
    if text is None:
        return ()
    if not re.fullmatch(r"-?\d{1,12}(,-?\d{1,12})*", text, re.ASCII):
        raise ConfigError(f"{option} is {text!r}, whole numbers separated by commas were wanted.", f"Mend {option}, such as 1,2.")
    return tuple(int(part) for part in text.split(","))
