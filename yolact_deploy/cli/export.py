"""``yolact-deploy export``: checkpoint -> verified ONNX."""

from __future__ import annotations

import enum
import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from yolact_deploy.cli.common import ARTIFACTS, console, demo_weights, file_size, is_terminal, need_torch
from yolact_deploy.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from yolact_deploy.export import ExportResult, VerificationReport

__all__ = ["Channels", "Layout", "Postprocess", "Precision", "export", "report_table"]


class Postprocess(str, enum.Enum):
    """What the graph contains after the network."""

    none = "none"
    nms = "nms"
    masks = "masks"


class Layout(str, enum.Enum):
    """What the graph takes."""

    float = "float"
    raw = "raw"


class Channels(str, enum.Enum):
    """Order of raw input's channels."""

    rgb = "rgb"
    bgr = "bgr"


class Precision(str, enum.Enum):
    """Dtype of the outputs that may be float16."""

    fp32 = "fp32"
    fp16 = "fp16"


def export(
    weights: Annotated[
        Path | None, typer.Argument(help="A checkpoint, .pth or .safetensors. \\[default: the demo model]", show_default=False)
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="The network's variant. \\[default: from the file's name]", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Your own variant, TOML: base = … and the fields that differ.", show_default=False)
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class names: a text file, a COCO annotation file, 'coco' or 'pascal'.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write. \\[default: artifacts/NAME.onnx]", show_default=False)
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="float16 inside; decoding, softmax and NMS stay float32.")] = False,
    batch: Annotated[str, typer.Option(help="A number, or 'dynamic'.")] = "1",
    opset: Annotated[int, typer.Option(help="ONNX opset, 17 to 20 (TensorRT 8.6 reads 17).")] = 17,
    layout: Annotated[Layout, typer.Option("--input", help="float: normalised RGB; raw: uint8 [B, S, S, 3].")] = Layout.float,
    channels: Annotated[Channels, typer.Option(help="Channel order of raw input.")] = Channels.rgb,
    postprocess: Annotated[Postprocess, typer.Option(help="Append Fast NMS, or NMS and mask assembly, to the graph.")] = Postprocess.none,
    io: Annotated[Precision, typer.Option(help="With --fp16: dtype of the coefficients and prototypes outputs.")] = Precision.fp32,
    picture: Annotated[Path | None, typer.Option(help="A picture for the check. \\[default: a drawn one]", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that this command did not write.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest and the check as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Export a checkpoint to ONNX, prove the file equal to the PyTorch model, and only then keep it."""
    need_torch("export")
    out = console(quiet=quiet or json)
    size = _batch(batch)
    from yolact_deploy.export import ExportOptions, export_checkpoint
    from yolact_deploy.export.exporter import FileDiffersError, artifact_name
    from yolact_deploy.model import load_checkpoint
    from yolact_deploy.pictures import read_picture

    options = ExportOptions(postprocess.value, size, opset, fp16, io is Precision.fp16, layout.value, channels.value)
    shown = None if picture is None else read_picture(picture)
    if weights is None:
        weights = demo_weights()
        out.print(f"No weights were named: taking the demo model {weights}", soft_wrap=True, markup=False)
    checkpoint = load_checkpoint(weights, variant=variant, config=config, classes=classes)
    found = checkpoint.variant
    what = f"{weights} ({found.name}, {found.input_size} px, {found.num_classes - 1} classes)"
    out.print(f"Exporting {what} to ONNX opset {opset}", soft_wrap=True, markup=False)
    target = output or ARTIFACTS / artifact_name(weights, options)
    if target.suffix != ".onnx" and not target.is_dir():
        raise ConfigError(f"The output {target} does not end in .onnx.", "Name it so, or every other command refuses it.")
    try:
        with console(quiet=quiet or json or not is_terminal(), stderr=True).status("starting") as status:
            result = export_checkpoint(checkpoint, target, options, picture=shown, force=force, progress=status.update)
    except FileDiffersError as failure:
        out.print(report_table(failure.report))
        raise
    if json:
        typer.echo(json_module.dumps({"files": _files(result), "manifest": json_module.loads(result.manifest.to_json())}, indent=2))
    _tell(out, result)


def _batch(text: str) -> int | Literal["dynamic"]:
    if text == "dynamic":
        return cast(Literal["dynamic"], text)
    if text.isdecimal():
        return int(text)
    raise ConfigError(f"The batch is {text!r}, a number or 'dynamic' was wanted.", "Mend --batch.")


def _files(result: ExportResult) -> list[str]:
    return [str(path) for path in (result.path, result.mask_iou_path) if path is not None]


def report_table(report: VerificationReport) -> Table:
    """Per output and per input of the check: the largest differences and the verdict; below them the detections."""
    from rich.table import Table

    table = Table("check", "input", "largest absolute", "largest relative", "allowed", "verdict", title="ONNX Runtime against PyTorch")
    for row in report.outputs:
        table.add_row(row.output, row.case, f"{row.absolute:.1e}", f"{row.relative:.1e}", f"{row.tolerance:.0e}", _verdict(row.passed))
    for case, match in report.detections.items():
        note = f", {len(match.excused)} at a cut" if match.excused else ""
        table.add_row(
            "detections",
            case,
            f"box {match.largest_box_difference:.1e} px",
            f"score {match.largest_score_difference:.1e}",
            f"{match.partners} of {match.reference}{note}",
            _verdict(match.passed),
        )
    return table


def _verdict(passed: bool) -> str:
    return "[green]PASSED[/green]" if passed else "[red]FAILED[/red]"


def _tell(out: Console, result: ExportResult) -> None:
    out.print(report_table(result.report))
    for case, match in result.report.detections.items():
        for line in match.excused:
            out.print(f"  {case}: {line}", style="dim", markup=False)
    seconds = ", ".join(f"{step} {spent:.1f} s" for step, spent in result.seconds.items())
    out.print(f"Steps: {seconds}")
    for file in _files(result):
        out.print(f"Saved {file} ({file_size(Path(file))})", soft_wrap=True, markup=False)
    out.print(f"Next: yolact-deploy predict {result.path} PICTURE_OR_FOLDER", soft_wrap=True, markup=False)
    out.print(f"      yolact-deploy inspect {result.path}", soft_wrap=True, markup=False)
