"""``yolact-deploy make-shapes``: the synthetic data set, in COCO format."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.cli.common import ARTIFACTS, console, is_terminal

__all__ = ["make_shapes"]


def make_shapes(
    folder: Annotated[Path, typer.Argument(help="The folder to write.")] = ARTIFACTS / "shapes",
    count: Annotated[int, typer.Option(help="How many pictures.")] = 200,
    seed: Annotated[int, typer.Option(help="Names the set: another seed gives other pictures.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the pictures, pixels.")] = 256,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds other files.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Draw the synthetic set of shapes: pictures and COCO annotations with exact masks, the same bytes on every machine."""
    from rich.progress import Progress

    from yolact_deploy.data.coco import read_dataset
    from yolact_deploy.data.shapes import write_shapes

    replaced = (folder / "annotations.json").is_file()
    bar = Progress(console=console(stderr=True), disable=quiet or json or not is_terminal(), transient=True)
    with bar:
        task = bar.add_task("drawing", total=count)
        path = write_shapes(folder, count, seed=seed, size=size, force=force, progress=lambda done, _: bar.update(task, completed=done))
    written = read_dataset(path)
    objects = sum(len(written.instances(image.id)) for image in written.images)
    if json:
        told = {
            "annotations": str(path),
            "images": str(written.folder),
            "count": len(written),
            "objects": objects,
            "seed": seed,
            "size": size,
            "classes": list(written.classes.names),
            "sha256": written.sha256,
        }
        typer.echo(json_module.dumps(told, indent=2))
    out = console(quiet=quiet or json)
    done = "Replaced" if replaced else "Saved"
    out.print(
        f"{done} {path}: {len(written)} pictures of {size} px with {objects} objects of {len(written.classes)} classes, seed {seed}",
        soft_wrap=True,
        markup=False,
    )
    out.print(f"Pictures lie in {written.folder}", soft_wrap=True, markup=False)
