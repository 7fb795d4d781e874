"""``yolact-deploy calibrate``: a float32 ONNX file -> INT8 graphs for TensorRT and for ONNX Runtime, and how exact they are."""

from __future__ import annotations

import contextlib
import enum
import functools
import json as json_module
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yolact_deploy.cli.common import ARTIFACTS, console, counted, demo_export, file_size, shapes_set, stage_bar
from yolact_deploy.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from yolact_deploy.calibration.options import CalibrationOptions, CalibrationResult
    from yolact_deploy.calibration.roles import Part, Roles
    from yolact_deploy.calibration.scoring import Judge
    from yolact_deploy.calibration.search import Plan
    from yolact_deploy.data.coco import CocoDataset

__all__ = ["Quantizer", "RangeMethod", "Rest", "calibrate"]

_DEMO_PICTURES = 200
_LISTED = 5  # skipped pictures that are printed
_LAST_SETS = 12  # of the search, beside the first and the one that is taken
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class RangeMethod(str, enum.Enum):
    """How a range is found from what was seen."""

    minmax = "minmax"
    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"


class Quantizer(str, enum.Enum):
    """Who decides on pairs and ranges of the graph for TensorRT."""

    own = "own"
    modelopt = "modelopt"


class Rest(str, enum.Enum):
    """What the floats of an INT8 graph become in an engine."""

    float16 = "float16"
    float32 = "float32"


def calibrate(
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL.onnx]", help="A float32 export. \\[default: the demo model's]", show_default=False)
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures like those it will meet. \\[default: annotated ones]",
            show_default=False,
        ),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="COCO annotation file of pictures to tell the accuracy on.", show_default=False)
    ] = None,
    val_images: Annotated[Path | None, typer.Option(help="Its pictures. \\[default: beside the annotations]", show_default=False)] = None,
    search_annotations: Annotated[
        Path | None,
        typer.Option(help="Another annotation file, for the search. \\[default: half of --annotations]", show_default=False),
    ] = None,
    search_images: Annotated[Path | None, typer.Option(help="Its pictures.", show_default=False)] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures to calibrate with, of those in the folder.")] = 200,
    measured: Annotated[int, typer.Option(min=1, help="Annotated pictures to measure on, at most; as many for the search.")] = 500,
    method: Annotated[
        RangeMethod | None, typer.Option(help="How ranges are found. \\[default: mse; with modelopt minmax]", show_default=False)
    ] = None,
    percentile: Annotated[float, typer.Option(help="Share of a value's magnitudes that --method percentile keeps.")] = 99.99,
    quantizer: Annotated[
        Quantizer, typer.Option(help="Who decides on the graph for TensorRT; modelopt is NVIDIA's, as a second opinion.")
    ] = Quantizer.own,
    max_drop: Annotated[
        float | None,
        typer.Option(min=0.0, help="Keep layers in floats until mask AP drops by no more points than that.", show_default=False),
    ] = None,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Tell what each module costs when it alone is quantized.")] = False,
    budget: Annotated[str, typer.Option(help="Time for the search: 90s, 10m, 2h, none.")] = "10m",
    keep: Annotated[
        list[str] | None,
        typer.Option(help="A layer or module that stays in floats; may be given several times.", show_default=False),
    ] = None,
    bias_correction: Annotated[bool, typer.Option("--bias-correction", help="Take back the mean error of rounded weights.")] = False,
    equalize: Annotated[bool, typer.Option("--equalize", help="Bring the channels of activations nearer to each other first.")] = False,
    rest: Annotated[Rest, typer.Option(help="What is not INT8 becomes in an engine.")] = Rest.float16,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of pictures.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The graph for TensorRT. \\[default: artifacts/NAME.int8.onnx]", show_default=False),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes all.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what earlier runs left in artifacts/calibration.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that this command did not write.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Write NAME.int8.onnx for TensorRT and NAME.int8.ort.onnx for ONNX Runtime on a CPU, and tell how exact each of them is.

    An interrupted run goes on where it was. With --max-drop, the layers that cost most are searched by mask AP and stay in floats.
    """
    from yolact_deploy.calibration.options import CalibrationOptions
    from yolact_deploy.calibration.pipeline import Calibrator
    from yolact_deploy.calibration.roles import assign_roles, opened

    out = console(quiet=quiet or json)
    for option, picture_option in ((annotations, val_images), (search_annotations, search_images)):
        if picture_option is not None and option is None:
            raise ConfigError(f"The pictures {picture_option} were given without their annotations.", "Name the COCO annotation file too.")
    if model is not None and images is None and annotations is None:
        raise ConfigError(
            "No pictures were named to calibrate with.", "Name a folder of pictures like those that the model will meet: --images DIR"
        )
    options = CalibrationOptions(
        method=(method or (RangeMethod.minmax if quantizer is Quantizer.modelopt else RangeMethod.mse)).value,
        percentile=percentile,
        max_drop=max_drop,
        sensitivity=sensitivity,
        budget=parse_budget(budget),
        bias_correction=bias_correction,
        equalization=equalize,
        keep=tuple(keep or ()),
        rest=rest.value,
        threads=threads,
        fresh=fresh,
        force=force,
        quantizer=quantizer.value,
    )
    demo = model is None and images is None and annotations is None
    if model is None:
        model = demo_export(out)
        out.print(f"No model was named: taking the demo model {model}", soft_wrap=True, markup=False)
    report, search = _sets(annotations, val_images, search_annotations, search_images, out, demo=demo)
    roles = assign_roles(images, report, search, count=count, measured=measured, seed=seed, searching=max_drop is not None or sensitivity)
    with stage_bar(quiet=quiet or json) as progress, contextlib.ExitStack() as stack:
        calibrator = Calibrator(model, ARTIFACTS / "calibration", options, progress)
        calibrator.notes += roles.notes

        def judge(part: Part | None, what: str) -> Judge | None:
            show = functools.partial(progress, what)
            return stack.enter_context(opened(part, calibrator.source, calibrator.folder, threads=threads, progress=show))

        try:
            result = calibrator.run(
                roles.pictures,
                output,
                report=judge(roles.report, "preparing pictures to measure on"),
                search=judge(roles.search, "preparing pictures for the search"),
                measured=roles.report.records(),
                origin={"folder": roles.pictures.folder.name, "measured_against": roles.report.truth},
            )
        except KeyboardInterrupt:
            out.print(f"What is done is kept in {calibrator.folder}: the same command goes on from there.", soft_wrap=True, markup=False)
            raise
    if json:
        typer.echo(json_module.dumps(result.document, indent=2, ensure_ascii=False))
    _tell(out, result, roles, options)


def parse_budget(text: str) -> float | None:
    """Seconds of ``90s``, ``10m``, ``2h`` or a plain number; None of ``none``. Raises :class:`ConfigError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip().lower())
    if text.strip().lower() == "none":
        return None
    if found is None:
        raise ConfigError(f"The budget is {text!r}, a time such as 90s, 10m or 2h was wanted.", "Mend --budget.")
    return float(found[1]) * _UNITS[found[2]]


def _sets(
    annotations: Path | None,
    val_images: Path | None,
    search_annotations: Path | None,
    search_images: Path | None,
    out: Console,
    *,
    demo: bool,
) -> tuple[CocoDataset | None, CocoDataset | None]:
    """The set to report on and the one for the search; for the demo model both are drawn."""
    from yolact_deploy.data.coco import read_dataset

    if demo:
        return shapes_set("val", _DEMO_PICTURES, out), shapes_set("calibration", _DEMO_PICTURES, out)
    report = None if annotations is None else read_dataset(annotations, val_images)
    search = None if search_annotations is None else read_dataset(search_annotations, search_images)
    return report, search


def _tell(out: Console, result: CalibrationResult, roles: Roles, options: CalibrationOptions) -> None:
    seen = result.document["pictures"]["count"]
    kept = f"; {counted(len(result.kept), 'layer')} kept in floats" if result.kept else ""
    source = f"{counted(seen, 'picture')} of {roles.pictures.found:,} in {roles.pictures.folder}"
    out.print(f"Calibrated with {source}: ranges by {options.method}{kept}", soft_wrap=True, markup=False)
    for note in result.notes:
        out.print(note, soft_wrap=True, markup=False)
    for name, reason in result.skipped[:_LISTED]:
        out.print(f"Skipped {name}: {reason}", soft_wrap=True, markup=False)
    if len(result.skipped) > _LISTED:
        out.print(f"… and {len(result.skipped) - _LISTED} more that could not be read.")
    for finding in result.findings:
        out.print(f"Warning ({finding.code}): {finding.sentence}", soft_wrap=True, markup=False)
    if result.plan is not None:
        for table in _search_tables(result.plan):
            out.print(table)
    if result.accuracy:
        out.print(_accuracy_table(result, roles))
    for path in (result.tensorrt, result.onnxruntime, result.report):
        out.print(f"Saved {path} ({file_size(path)})", soft_wrap=True, markup=False)
    out.print(f"Next: yolact-deploy build-engine {result.tensorrt} --int8", soft_wrap=True, markup=False)
    out.print(f"      yolact-deploy predict {result.onnxruntime} PICTURE_OR_FOLDER  (on a CPU)", soft_wrap=True, markup=False)


def _accuracy_table(result: CalibrationResult, roles: Roles) -> Table:
    from rich.table import Table

    pictures = counted(result.accuracy[0].score.pictures, "picture")
    table = Table(title=f"AP in percent points against {roles.report.truth}, {pictures}, in ONNX Runtime on the CPU", title_justify="left")
    table.add_column("graph")
    for name in ("mask AP", "drop", "box AP"):
        table.add_column(name, justify="right")
    for row in result.accuracy:
        table.add_row(
            row.name, f"{row.score.mask_ap:.2f}", f"{row.drop:+.2f}" if row is not result.accuracy[0] else "", f"{row.score.box_ap:.2f}"
        )
    return table


def _search_tables(plan: Plan) -> Iterator[Table]:
    """What each module and layer costs, and the sets that were tried."""
    from rich.table import Table

    pictures = counted(plan.reference.pictures, "picture")
    alone = [row for row in plan.rows if row.kind != "set"]
    if alone:
        title = f"Drop of mask AP where that alone is quantized; search pictures: {pictures}, float AP {plan.reference.mask_ap:.2f}"
        table = Table(title=title, title_justify="left")
        table.add_column("module or layer")
        for name in ("drop", "of it box / class / mask", "multiplications", "decision"):
            table.add_column(name, justify="right")
        for row in alone:
            parts = " / ".join(f"{row.parts[part]:+.2f}" for part in ("box", "class", "mask")) if row.parts else ""
            table.add_row(row.name, f"{row.drop:+.2f}", parts, f"{100 * row.share:.1f} %", row.decision)
        yield table
    table = Table(title="Sets that were run", title_justify="left")
    table.add_column("set")
    for name in ("mask AP", "drop", "of it box / class / mask", "kept in floats", ""):
        table.add_column(name, justify="right")
    sets = [row for row in plan.rows if row.kind == "set"]
    shown = [row for place, row in enumerate(sets) if not place or row.decision or place >= len(sets) - _LAST_SETS]
    for row in shown:
        parts = " / ".join(f"{row.parts[part]:+.2f}" for part in ("box", "class", "mask")) if row.parts else ""
        share = f"{100 * row.share:.1f} % of multiplications"
        table.add_row(row.name, f"{row.mask_ap:.2f}", f"{row.drop:+.2f}", parts, share, row.decision)
    if len(sets) > len(shown):
        table.add_row(f"… and {len(sets) - len(shown)} more, in the report", "", "", "", "", "")
    yield table
