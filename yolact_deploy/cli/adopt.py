"""``yolact-deploy adopt``: the sidecar of an engine that trtexec built."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.cli.build_engine import sm_list
from yolact_deploy.cli.common import console

__all__ = ["adopt"]


def adopt(
    engine: Annotated[Path, typer.Argument(help="An engine that trtexec built from an ONNX file of this tool.")],
    onnx: Annotated[Path, typer.Option(help="The ONNX file that it was built from.")],
    mask_iou: Annotated[Path | None, typer.Option(help="YOLACT++: the engine of the mask-IoU net.", show_default=False)] = None,
    sm: Annotated[
        list[str] | None, typer.Option(help="Without a GPU here: compute capability that it was built for.", show_default=False)
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Without a GPU here: its batches, smallest:best:largest.", show_default=False)] = None,
    tensorrt_version: Annotated[
        str, typer.Option(help="Without a GPU here: the version that built it, where its header does not tell.", show_default=False)
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a sidecar that this tool did not write.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the sidecar as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Write the sidecar of an engine from the ONNX file that it was built from; adopting says that you trust it."""
    from yolact_deploy.engines.adopt import adopt_engine
    from yolact_deploy.engines.batches import BatchRange

    result = adopt_engine(
        engine,
        onnx,
        mask_iou=mask_iou,
        sm=sm_list(sm),
        batch=None if batch is None else BatchRange.parse(batch),
        tensorrt_version=tensorrt_version,
        force=force,
    )
    if json:
        typer.echo(json_module.dumps(json_module.loads(result.manifest.to_json()), indent=2))
    out = console(quiet=quiet or json)
    how = "opened, its tensors are those of the graph" if result.opened else "not opened: there is no GPU here to compare its tensors on"
    out.print(
        f"{engine}: {result.target.title}, for {result.target.where}, batch {result.target.batch}; {how}", soft_wrap=True, markup=False
    )
    out.print(f"Saved {result.sidecar}", soft_wrap=True, markup=False)
