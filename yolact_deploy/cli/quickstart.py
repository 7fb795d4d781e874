"""``yolact-deploy quickstart``: the whole tour on this machine, as far as it reaches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolact_deploy.cli.common import ARTIFACTS, console, counted, demo_picture, demo_weights, file_size, need_torch, shapes_set

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.table import Table

    from yolact_deploy.detections import Detections
    from yolact_deploy.evaluation.records import Evaluation

__all__ = ["quickstart"]

_ROUNDS = 5
_THRESHOLD = 0.3  # what the overlay shows
_PICTURES = 200


def quickstart(
    picture: Annotated[
        Path | None, typer.Argument(help="A picture of yours. \\[default: a synthetic one, drawn here]", show_default=False)
    ] = None,
    folder: Annotated[Path, typer.Option("--output", "-o", help="Where everything is written.")] = ARTIFACTS,
    pictures: Annotated[int, typer.Option(min=1, help="Synthetic pictures to evaluate on.")] = _PICTURES,
) -> None:
    """Export the demo model to ONNX in FP32 and FP16, verify it, build an engine, run all on a picture, prove the accuracy hop by hop.

    The demo model was trained on synthetic shapes: on those it finds most, on a photograph of yours shapes at best.
    """
    need_torch("quickstart")
    from rich.table import Table

    from yolact_deploy.drawing import draw_detections, is_overlay, save_picture
    from yolact_deploy.evaluation.report import is_report, need_report
    from yolact_deploy.export import ExportOptions, export_checkpoint
    from yolact_deploy.export.exporter import artifact_name
    from yolact_deploy.files import refuse_overwrite
    from yolact_deploy.model import load_checkpoint
    from yolact_deploy.pictures import read_picture
    from yolact_deploy.runtime import load

    out = console()
    shown = demo_picture() if picture is None else read_picture(picture)
    overlay, page = folder / "quickstart.overlay.png", folder / "quickstart.html"
    refuse_overwrite(overlay, ours=is_overlay(overlay), force=False)
    need_report(page, force=is_report(page))
    weights = demo_weights()
    checkpoint = load_checkpoint(weights)
    out.print(f"A tour with the demo model, {checkpoint.variant.name} trained on shapes ({', '.join(checkpoint.classes.names)}).")
    table = Table("step", "result", "time", title="quickstart", title_justify="left")
    table.add_row("weights", f"{weights.name} ({file_size(weights)})", "")
    models = [weights]
    for fp16 in (False, True):
        options = ExportOptions(fp16=fp16)
        with console(stderr=True).status("exporting and checking") as status:
            target = folder / artifact_name(weights, options)
            job = partial(export_checkpoint, checkpoint, target, options, picture=shown, progress=status.update)
            result, spent = _timed(job)
        worst = max(row.relative for row in result.report.outputs)
        kind = "FP16" if fp16 else "FP32"
        table.add_row(f"export to ONNX {kind}, checked", f"{result.path} ({file_size(result.path)}), largest difference {worst:.1e}", spent)
        models.append(result.path)
    found: Detections | None = None
    for label, model in zip(("PyTorch", "ONNX FP32", "ONNX FP16"), models, strict=True):
        detector = load(model)
        with console(stderr=True).status(f"running {label}"):
            detections, milliseconds = _run(detector, shown)
        table.add_row(f"predict, {label} on {detector.backend.device}", counted(len(detections), "detection"), milliseconds)
        found = found or detections
    assert found is not None
    models += _add_engine(table, models[1], folder, shown)
    save_picture(overlay, draw_detections(shown, found))
    named = ", ".join(f"{name} {score:.2f}" for name, score in zip(found.names, found.scores, strict=True)) or "nothing"
    table.add_row("overlay", f"{overlay}: {named}", "")
    evaluation, spent = _timed(lambda: _evaluate(models, folder, page, pictures, out))
    table.add_row("evaluate, hop by hop", f"{counted(pictures, 'synthetic picture')}, page {page}", spent)
    out.print(table)
    _tell(out, evaluation)
    out.print(f"Milliseconds of predict are medians of {_ROUNDS} runs on one {shown.shape[1]}x{shown.shape[0]} picture.")
    out.print(
        "Next: yolact-deploy export YOUR_WEIGHTS.pth, then yolact-deploy evaluate with your data set; --help says more.", soft_wrap=True
    )


def _add_engine(table: Table, model: Path, folder: Path, shown: NDArray[Any]) -> list[Path]:
    """Rows for an FP16 engine: built where a TensorRT is installed, run where it can; its path where it ran."""
    from yolact_deploy.engines.builder import build_engine
    from yolact_deploy.engines.options import BuildOptions
    from yolact_deploy.errors import YolactDeployError
    from yolact_deploy.runtime import load

    try:
        with console(stderr=True).status("building an engine"):
            job = partial(build_engine, model, options=BuildOptions("fp16"), folder=folder)
            result, spent = _timed(job)
    except YolactDeployError as error:
        table.add_row("build an engine", str(error), "")
        return []
    made = f"{result.path} ({file_size(result.path)}), for {result.target.where}"
    table.add_row(f"build an engine FP16, {result.target.title}", made, spent)
    try:
        with load(result.path) as detector, console(stderr=True).status("running the engine"):
            detections, milliseconds = _run(detector, shown)
        table.add_row(f"predict, engine on {detector.backend.device}", counted(len(detections), "detection"), milliseconds)
    except YolactDeployError as error:
        table.add_row("predict, engine", f"not here: {error.message}", "")
        return []
    return [result.path]


def _timed(job: Any) -> tuple[Any, str]:
    start = time.perf_counter()
    return job(), f"{time.perf_counter() - start:.1f} s"


def _run(detector: Any, picture: NDArray[Any]) -> tuple[Detections, str]:
    import statistics

    runs = [detector.predict(picture, channels="rgb", score_threshold=_THRESHOLD) for _ in range(_ROUNDS + 1)][1:]
    totals = {name: statistics.median(run.milliseconds[name] for run in runs) for name in runs[0].milliseconds if name != "read"}
    stages = ", ".join(f"{name} {value:.1f}" for name, value in totals.items())
    return runs[-1], f"{sum(totals.values()):.1f} ms ({stages})"


def _evaluate(models: Sequence[Path], folder: Path, page: Path, pictures: int, out: Console) -> Evaluation:
    from yolact_deploy.evaluation.harness import EvaluationOptions
    from yolact_deploy.evaluation.harness import evaluate as evaluate_all
    from yolact_deploy.evaluation.jobs import ModelSource
    from yolact_deploy.evaluation.report import is_report, write_report

    dataset = shapes_set("val", pictures, out, folder=folder)
    sources = [ModelSource(model) for model in models]
    options = EvaluationOptions(folder / "evaluation", command="yolact-deploy quickstart")
    with console(stderr=True).status("evaluating") as status:
        evaluation = evaluate_all(
            dataset, sources, options, reference=sources[0], progress=lambda what, done, total: status.update(f"{what}, {done} of {total}")
        )
    write_report(page, evaluation, dataset, force=is_report(page))
    return evaluation


def _tell(out: Console, evaluation: Evaluation) -> None:
    from yolact_deploy.cli.evaluate import evaluation_tables

    summary, _, parity, _ = evaluation_tables(evaluation)
    out.print(summary)
    out.print(parity)
