"""``yolact-deploy quickstart``: the whole tour on this machine, as far as it reaches."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolact_deploy.cli.common import ARTIFACTS, console, demo_weights, file_size, need_torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from yolact_deploy.detections import Detections

__all__ = ["quickstart"]

_ROUNDS = 5
_SHOWN = 8  # an untrained net finds a hundred things: the overlay shows the best


def quickstart(
    picture: Annotated[Path | None, typer.Argument(help="A picture of yours. [default: one drawn here]", show_default=False)] = None,
    folder: Annotated[Path, typer.Option("--output", "-o", help="Where everything is written.")] = ARTIFACTS,
) -> None:
    """Export a small model, verify it, run it in PyTorch and ONNX Runtime on a picture, and show what came out.

    The small model has seeded, untrained weights: the tour shows that every step works and how long it takes; the detections
    themselves mean nothing.
    """
    need_torch("quickstart")
    from rich.table import Table

    from yolact_deploy.data import sample_picture
    from yolact_deploy.drawing import draw_detections, is_overlay, save_picture
    from yolact_deploy.export import export_checkpoint
    from yolact_deploy.files import refuse_overwrite
    from yolact_deploy.model import load_checkpoint
    from yolact_deploy.pictures import read_picture
    from yolact_deploy.runtime import load

    out = console()
    shown = sample_picture() if picture is None else read_picture(picture)
    out.print("A tour with yolact_nano, whose weights are drawn from a seed and not trained: what it finds means nothing.")
    overlay = folder / "quickstart.overlay.png"
    refuse_overwrite(overlay, ours=is_overlay(overlay), force=False)
    table = Table("step", "result", "time", title="quickstart")
    with console(stderr=True).status("making seeded weights"):
        weights, spent = _timed(lambda: demo_weights(folder))
    table.add_row("weights", f"{weights} ({file_size(weights)})", _seconds(spent))
    with console(stderr=True).status("exporting and checking") as status:
        checkpoint = load_checkpoint(weights)
        target = folder / f"{weights.stem}.onnx"
        result, spent = _timed(lambda: export_checkpoint(checkpoint, target, picture=shown, progress=status.update))
    table.add_row("export to ONNX", f"{result.path} ({file_size(result.path)})", _seconds(spent))
    worst = max(row.relative for row in result.report.outputs)
    table.add_row("check against PyTorch", f"PASSED, largest relative difference {worst:.1e}", "")
    found: Detections | None = None
    for label, model in (("PyTorch", weights), ("ONNX Runtime", result.path)):
        detector = load(model)
        with console(stderr=True).status(f"running {label}"):
            detections, milliseconds = _run(detector, shown)
        table.add_row(f"predict, {label} on {detector.backend.device}", f"{len(detections)} detections", milliseconds)
        found = detections[:_SHOWN]
    if found is not None:
        save_picture(overlay, draw_detections(shown, found))
    table.add_row("overlay", f"{overlay}, the best {_SHOWN}", "")
    out.print(table)
    out.print(f"Times are medians of {_ROUNDS} runs on one {shown.shape[1]}x{shown.shape[0]} picture.")
    out.print(
        "Next: yolact-deploy export YOUR_WEIGHTS.pth, then yolact-deploy predict artifacts/YOUR_WEIGHTS.onnx YOUR_PICTURES", soft_wrap=True
    )


def _timed(job: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return job(), time.perf_counter() - start


def _seconds(spent: float) -> str:
    return f"{spent:.1f} s"


def _run(detector: Any, picture: NDArray[Any]) -> tuple[Detections, str]:
    import statistics

    runs = [detector.predict(picture, channels="rgb") for _ in range(_ROUNDS + 1)][1:]
    totals = {name: statistics.median(run.milliseconds[name] for run in runs) for name in runs[0].milliseconds if name != "read"}
    stages = ", ".join(f"{name} {value:.1f}" for name, value in totals.items())
    return runs[-1], f"{sum(totals.values()):.1f} ms ({stages})"
