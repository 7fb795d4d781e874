"""``yolact-deploy evaluate``: COCO mAP of any artifact, and what each hop costs against the reference."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yolact_deploy.cli.common import ARTIFACTS, console, counted, demo_export, demo_weights, need_torch, shapes_set, stage_bar
from yolact_deploy.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from yolact_deploy.data.coco import CocoDataset
    from yolact_deploy.evaluation.jobs import ModelSource
    from yolact_deploy.evaluation.records import ArtifactEvaluation, Evaluation

__all__ = ["demo_models", "evaluate", "evaluation_tables", "tell_evaluation"]

_DEMO_PICTURES = 200
_LISTED = 20  # sentences of a kind that are printed; --json has all


def evaluate(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Checkpoints, ONNX files and COCO result files, in the order of the hops. \\[default: the demo model's three]",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Compare all others with this model.", show_default=False)] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="COCO annotation file. \\[default: a synthetic set, drawn here]", show_default=False)
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Its pictures. \\[default: beside the annotations]", show_default=False)] = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0.0, help="Exit 3 where mask AP falls more points below the reference.", show_default=False)
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots and overlays.", show_default=False)] = None,
    results: Annotated[
        Path | None, typer.Option(help="Write COCO result files, NAME.bbox.json and NAME.segm.json, to this folder.", show_default=False)
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also tell each class's AP.")] = False,
    like_original: Annotated[bool, typer.Option("--like-original", help="Leave out pictures without annotations.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="So many pictures, the lowest ids.", show_default=False)] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the pictures.")] = 1,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave out pictures that are not in the folder.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run every picture again, whatever earlier runs left.")] = False,
    providers: Annotated[
        str | None, typer.Option(help="ONNX Runtime providers, comma-separated: cpu, cuda, … \\[default: the best]", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device of checkpoints and engines: cpu, cuda, cuda:1, …", show_default=False)] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads (of each worker); 0 takes all.")] = 0,
    variant: Annotated[str | None, typer.Option(help="For checkpoints: their variant.", show_default=False)] = None,
    config: Annotated[Path | None, typer.Option(help="For checkpoints: your own variant, TOML.", show_default=False)] = None,
    classes: Annotated[str | None, typer.Option(help="For checkpoints: class names.", show_default=False)] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Run engines without a sidecar: a plan is code.")] = False,
    lean_runtime: Annotated[
        str | None, typer.Option(help="For a version-compatible engine: its libnvinfer_lean.so.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that this command did not write.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Measure box and mask AP with COCO's own code, and what each artifact loses against the reference.

    An interrupted run goes on where it was: detections are kept in artifacts/evaluation.
    """
    from yolact_deploy.evaluation.document import to_document
    from yolact_deploy.evaluation.harness import EvaluationOptions, artifact_names, check_drop, in_order
    from yolact_deploy.evaluation.harness import evaluate as evaluate_all
    from yolact_deploy.evaluation.jobs import ModelSource
    from yolact_deploy.runtime import CHECKPOINTS, ENGINES

    out = console(quiet=quiet or json)
    if max_drop is not None and reference is None and models:
        raise ConfigError("--max-drop was given without a reference.", "Name the model to compare with: --reference MODEL.")
    if images is not None and annotations is None:
        raise ConfigError("--images was given without --annotations.", "Name the pictures' COCO annotation file.")
    chosen = None if providers is None else tuple(name.strip() for name in providers.split(",") if name.strip())

    def source(path: Path) -> ModelSource:
        return ModelSource(path, device, chosen, threads, variant, config, classes, trust, lean_runtime)

    sources = [source(path) for path in models or []]
    first = None if reference is None else source(reference)
    if not sources:
        sources = [source(path) for path in demo_models(out, first is None)]
        first = first or sources[0]
    ordered = in_order(sources, first)
    _refuse_idle(ordered, {"--providers": chosen}, (".onnx",))
    of_checkpoints = {"--variant": variant, "--config": config, "--classes": classes}
    _refuse_idle(ordered, of_checkpoints, CHECKPOINTS)
    _refuse_idle(ordered, {"--device": device}, (*CHECKPOINTS, *ENGINES))
    _refuse_idle(ordered, {"--trust": trust or None, "--lean-runtime": lean_runtime}, ENGINES)
    names = artifact_names(ordered)
    _check_outputs(html, results, names, force=force)
    dataset = _dataset(annotations, images, out)
    folder = ARTIFACTS / "evaluation"
    options = EvaluationOptions(folder, workers, limit, like_original, skip_missing, fresh, force, max_drop, _command())
    with stage_bar(quiet=quiet or json) as progress:
        try:
            evaluation = evaluate_all(dataset, sources, options, reference=first, progress=progress, say=_sayer(out))
        except KeyboardInterrupt:
            out.print(f"What is done is kept in {folder}: the same command goes on from there.", soft_wrap=True, markup=False)
            raise
    _write(evaluation, dataset, html, results, out, force=force)
    if json:
        typer.echo(json_module.dumps(to_document(evaluation, per_class=per_class), indent=2, ensure_ascii=False))
    tell_evaluation(out, evaluation, per_class=per_class)
    check_drop(evaluation)


def demo_models(out: Console, with_checkpoint: bool = True) -> list[Path]:
    """The demo model's checkpoint, and its ONNX FP32 and FP16, exported where they are not there already."""
    need_torch("The demo model")
    weights = demo_weights()
    out.print(f"No model was named: taking the demo model {weights} and its exports in {ARTIFACTS}", soft_wrap=True, markup=False)
    return [*([weights] if with_checkpoint else []), *(demo_export(out, fp16=fp16) for fp16 in (False, True))]


def _refuse_idle(sources: Sequence[ModelSource], given: Mapping[str, object], suffixes: tuple[str, ...]) -> None:
    """An option that no model takes is a mistake."""
    idle = [name for name, value in given.items() if value is not None]
    if idle and not any(source.path.suffix.lower() in suffixes for source in sources):
        raise ConfigError(f"No model takes {', '.join(idle)}: none ends in {', '.join(suffixes)}.", "Leave it out, or check the models.")


def _dataset(annotations: Path | None, images: Path | None, out: Console) -> CocoDataset:
    from yolact_deploy.data.coco import read_dataset

    if annotations is None:
        return shapes_set("val", _DEMO_PICTURES, out)
    return read_dataset(annotations, images)


def _check_outputs(html: Path | None, results: Path | None, names: Sequence[str], *, force: bool) -> None:
    """Before hours of work: may these files be written?"""
    from yolact_deploy.files import refuse_overwrite

    if html is not None:
        from yolact_deploy.evaluation.report import need_report

        need_report(html, force=force)
    if results is not None:
        for path in (results / f"{name}.{iou_type}.json" for name in names for iou_type in ("bbox", "segm")):
            refuse_overwrite(path, ours=_is_result_file(path), force=force)


def _is_result_file(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read(16).startswith(('[\n {"image_id": ', "[\n]\n"))
    except (OSError, UnicodeDecodeError):
        return False


def _write(evaluation: Evaluation, dataset: CocoDataset, html: Path | None, results: Path | None, out: Console, *, force: bool) -> None:
    if results is not None:
        for artifact in evaluation.artifacts:
            for iou_type in ("bbox", "segm"):
                path = results / f"{artifact.name}.{iou_type}.json"
                count = artifact.store.write_results(path, iou_type)
                out.print(f"Saved {path} ({counted(count, 'result')})", soft_wrap=True, markup=False)
    if html is not None:
        from yolact_deploy.evaluation.report import write_report

        write_report(html, evaluation, dataset, force=force)
        out.print(f"Saved {html}", soft_wrap=True, markup=False)


def _command() -> str:
    return shlex.join(["yolact-deploy", *sys.argv[1:]]) if "evaluate" in sys.argv else ""


def _sayer(out: Console) -> Callable[[str], None]:
    return lambda sentence: out.print(sentence, soft_wrap=True, markup=False)


def tell_evaluation(out: Console, evaluation: Evaluation, *, per_class: bool = False) -> None:
    """Print the tables, the speed lines and everything that a reader of the numbers has to know."""
    facts = evaluation.dataset
    for table in evaluation_tables(evaluation, per_class=per_class):
        out.print(table)
    crowds = f" and {counted(facts.crowds, 'crowd')}" if facts.crowds else ""
    out.print(f"{facts.annotations}: {counted(facts.pictures, 'picture')} with {counted(facts.instances, 'instance')}{crowds}.")
    if facts.like_original:
        out.print(f"Pictures without annotations were left out, as the original does: {facts.left_out}.")
    elif facts.unannotated:
        without = counted(facts.unannotated, "picture")
        out.print(f"{without} without annotations evaluated like all others; --like-original leaves them out.")
    if facts.missing:
        _tell_some(out, f"{counted(len(facts.missing), 'picture')} missing and skipped", facts.missing)
    for note in facts.notes:
        out.print(f"Annotations: {note}", soft_wrap=True, markup=False)
    for artifact in evaluation.artifacts:
        for line in _artifact_lines(artifact, int(evaluation.settings.get("workers", 1))):
            out.print(line, soft_wrap=True, markup=False)
        if artifact.parity is not None:
            _tell_some(out, f"{artifact.name}, without partner and without reason", artifact.parity.unexplained)
            _tell_some(out, f"{artifact.name}, without partner at a numeric cut", artifact.parity.excused)


def _artifact_lines(artifact: ArtifactEvaluation, workers: int) -> Iterator[str]:
    if artifact.milliseconds:
        stages = ", ".join(f"{spent:.1f} ms {stage}" for stage, spent in artifact.milliseconds.items())
        total = sum(artifact.milliseconds.values())
        shared = f", {workers} workers at a time" if workers > 1 else ""
        yield f"Speed of {artifact.name}: {stages} a picture, {total:.1f} ms together{shared}."
    for note in artifact.notes:
        yield f"{artifact.name}: {note}"
    if artifact.parity is not None:
        yield f"{artifact.name} against the reference: {artifact.parity.summary()}."
        for note in artifact.parity.notes:
            yield f"{artifact.name}: {note}"


def _tell_some(out: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        more = f" (the first {_LISTED}; --json has all)" if len(lines) > _LISTED else ""
        out.print(f"{title}: {len(lines)}{more}", soft_wrap=True, markup=False)
    for line in lines[:_LISTED]:
        out.print(f"  {line}", soft_wrap=True, markup=False, style="dim")


def evaluation_tables(evaluation: Evaluation, *, per_class: bool = False) -> list[Table]:
    """The summary, AP at each threshold, what was lost, the error analysis and, where asked for, AP of each class."""
    from yolact_deploy.evaluation.document import failure_rows, parity_rows, per_class_rows, summary_rows, threshold_rows

    tables = [
        _table("AP in percent points, of masks where nothing else is said; ms a picture", summary_rows(evaluation)),
        _table("", threshold_rows(evaluation.artifacts)),
        _table("Error analysis of masks that score above 0.3", failure_rows(evaluation.artifacts)),
    ]
    if len(evaluation.artifacts) > 1:
        tables.insert(2, _table("Differences; partners are detections above 0.3 of one class, mask IoU above 0.9", parity_rows(evaluation)))
    if per_class:
        tables.append(_table("Mask AP of each class", per_class_rows(evaluation.artifacts)))
    return tables


def _table(title: str, rows: Sequence[Sequence[str]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for place, name in enumerate(rows[0]):
        table.add_column(escape(name), justify="left" if place == 0 else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    return table
