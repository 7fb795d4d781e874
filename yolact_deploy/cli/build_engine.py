"""``yolact-deploy build-engine``: ONNX -> TensorRT engine."""

from __future__ import annotations

import contextlib
import enum
import json as json_module
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from yolact_deploy.cli.common import ARTIFACTS, console, demo_export, demo_int8, demo_picture, file_size, is_terminal
from yolact_deploy.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from yolact_deploy.engines.builder import BuildResult
    from yolact_deploy.engines.selftest import SelftestOrder

__all__ = ["Builder", "Compatibility", "build_engine", "sm_list"]


_DRAWN_ROWS, _DRAWN_SIZE = slice(64, 448), (320, 240)  # of the demo picture's 512 rows, and the self-test's (width, height)


class Builder(str, enum.Enum):
    """What builds the engine."""

    auto = "auto"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class Compatibility(str, enum.Enum):
    """GPUs beside the one that the engine is built on."""

    none = "none"
    ampere = "ampere+"
    same = "same-compute-capability"


def build_engine(
    model: Annotated[
        Path | None, typer.Argument(help="An ONNX file that export wrote. \\[default: the demo model's]", show_default=False)
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="float16 inside; decoding, softmax and NMS stay float32.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="INT8, of a graph with Q/DQ pairs.")] = False,
    backend: Annotated[
        Builder, typer.Option(help="tensorrt needs a GPU, tensorrt-rtx none; auto says which it takes and why.")
    ] = Builder.auto,
    sm: Annotated[
        list[str] | None,
        typer.Option(help="Compute capability to build for, such as 89, or several: 86,89. \\[default: see above]", show_default=False),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="Pictures at once, smallest:best:largest. \\[default: the graph's, or 1:1:8]", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The engine. \\[default: artifacts/NAME.PRECISION.TARGET.engine]", show_default=False),
    ] = None,
    workspace: Annotated[int | None, typer.Option(help="Scratch memory in MiB. \\[default: all there is]", show_default=False)] = None,
    optimization_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="0 builds fastest, 5 searches longest. \\[default: 3]", show_default=False)
    ] = None,
    hardware_compatible: Annotated[Compatibility, typer.Option(help="TensorRT: also run on other GPUs.")] = Compatibility.none,
    version_compatible: Annotated[bool, typer.Option("--version-compatible", help="TensorRT: also run under later versions.")] = False,
    timing_cache: Annotated[
        str | None,
        typer.Option(help="TensorRT: a file of timings to reuse, or 'none'. \\[default: in your cache folder]", show_default=False),
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let float32 multiply in TensorFloat-32: faster, 10 bits of each factor.")] = False,
    detailed: Annotated[bool, typer.Option("--detailed", help="Keep layer names and precisions for inspect and profilers.")] = False,
    with_selftest: Annotated[
        bool, typer.Option("--with-selftest", help="Add a picture and what is in it: yolact-deploy selftest runs it anywhere.")
    ] = False,
    selftest_picture: Annotated[
        Path | None,
        typer.Option(help="The same with a picture of yours, whose objects the model knows. \\[default: a drawn one]", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that this command did not write.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the sidecar and the files as JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print what TensorRT says.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Build a TensorRT engine of an exported model, with the sidecar that lets it be checked before it is loaded.

    Without --sm, TensorRT builds for the GPU here; TensorRT-RTX builds one engine for every GPU from Ampere on that it supports.
    """
    from yolact_deploy.engines.batches import BatchRange
    from yolact_deploy.engines.builder import build_engine as build
    from yolact_deploy.engines.options import BuildOptions

    out = console(quiet=quiet or json)
    if fp16 and int8:
        raise ConfigError("Both --fp16 and --int8 were given.", "Give one: an INT8 graph says itself what stays in float16.")
    options = BuildOptions(
        precision="fp16" if fp16 else "int8" if int8 else "graph",
        backend=backend.value,
        sm=sm_list(sm),
        batch=None if batch is None else BatchRange.parse(batch),
        workspace=workspace,
        optimization_level=optimization_level,
        hardware_level=hardware_compatible.value,
        version_compatible=version_compatible,
        timing_cache=_timing_cache(timing_cache),
        tf32=tf32,
        detailed=detailed,
        selftest=_selftest(selftest_picture, out) if with_selftest or selftest_picture is not None else None,
    )
    if model is None:
        model = demo_int8() if int8 else demo_export(out)
        out.print(f"No model was named: taking the demo model {model}", soft_wrap=True, markup=False)
    say = _sayer() if verbose and not quiet else None
    with _progress(quiet=quiet or json or verbose) as progress:
        result = build(model, output, options, folder=ARTIFACTS, force=force, progress=progress, log=say)
    if json:
        typer.echo(json_module.dumps({"files": _files(result), "manifest": json_module.loads(result.manifest.to_json())}, indent=2))
    _tell(out, result)


def sm_list(texts: list[str] | None) -> tuple[tuple[int, int], ...]:
    """Compute capabilities of ``--sm``."""
    from yolact_deploy.engines.targets import parse_capabilities

    return parse_capabilities(texts or [])


def _selftest(file: Path | None, out: Console) -> SelftestOrder:
    """The self-test with the user's picture, or the middle of the demo model's."""
    import shlex

    import cv2
    import numpy as np

    from yolact_deploy.engines.selftest import SelftestOrder
    from yolact_deploy.pictures import read_picture
    from yolact_deploy.runtime.selftesting import fit_picture, make_selftest

    if file is None:
        drawn = cv2.resize(demo_picture()[_DRAWN_ROWS], _DRAWN_SIZE, interpolation=cv2.INTER_AREA)
        return SelftestOrder(lambda model, tolerance: make_selftest(model, np.asarray(drawn, np.uint8), tolerance))
    whole = read_picture(file)
    picture = fit_picture(whole)
    if picture is not whole:
        (height, width), (rows, columns) = whole.shape[:2], picture.shape[:2]
        out.print(f"{file} has {width} x {height} pixels, the self-test keeps {columns} x {rows}", soft_wrap=True, markup=False)
    flags = f"--selftest-picture {shlex.quote(file.name)}"
    return SelftestOrder(lambda model, tolerance: make_selftest(model, picture, tolerance), flags)


def _timing_cache(text: str | None) -> Path | Literal["none"] | None:
    if text is None:
        return None
    return "none" if text == "none" else Path(text)


def _sayer() -> Callable[[str], None]:
    err = console(stderr=True)
    return lambda text: err.print(text, style="dim", soft_wrap=True, markup=False)


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A bar that TensorRT's own phases move."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), disable=quiet or not is_terminal(), transient=True) as bar:
        task = bar.add_task("reading", total=1.0)
        yield lambda step, done: bar.update(task, description=step, completed=done)


def _files(result: BuildResult) -> list[str]:
    return [str(path) for path in (result.path, result.sidecar, result.mask_iou_path, result.selftest_path) if path is not None]


def _tell(out: Console, result: BuildResult) -> None:
    target, lines = result.target, [result.reason, *result.notes]
    for line in lines:
        out.print(line, soft_wrap=True, markup=False)
    made = {"fp16": ", converted from the FP32 graph", "int8": " with FP16"}.get(target.precision, "") if result.converted else ""
    seconds = ", ".join(f"{title} {spent:.1f} s" for title, spent in result.seconds.items())
    out.print(f"Built {target.precision.upper()}{made} for {target.where}, batch {target.batch}: {seconds}", soft_wrap=True, markup=False)
    for file in _files(result):
        out.print(f"Saved {file} ({file_size(Path(file))})", soft_wrap=True, markup=False)
    out.print(f"Next, on such a machine: yolact-deploy predict {result.path} PICTURE_OR_FOLDER", soft_wrap=True, markup=False)
    if result.selftest_path is not None:
        out.print(f"      yolact-deploy selftest {result.path}", soft_wrap=True, markup=False)
    out.print(f"      yolact-deploy inspect {result.path}", soft_wrap=True, markup=False)
