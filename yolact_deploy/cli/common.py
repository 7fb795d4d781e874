"""What several commands share: where things go, how they are told, and the demo model."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_deploy.errors import MissingDependencyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from yolact_deploy.data.coco import CocoDataset

__all__ = [
    "ARTIFACTS",
    "DEMO_VARIANT",
    "console",
    "counted",
    "demo_export",
    "demo_int8",
    "demo_picture",
    "demo_weights",
    "file_size",
    "is_terminal",
    "need_torch",
    "shapes_set",
    "stage_bar",
]

ARTIFACTS = Path("artifacts")
"""Where commands write when nothing else is said."""
DEMO_VARIANT = "yolact_nano"
"""The variant of the demo model, which commands take when no model is named."""


_DEMO_SCENE = 249
_SHAPES_SEEDS = {"train": 0, "val": 1, "calibration": 2}


def counted(number: int, noun: str) -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shapes_set(part: str, count: int, out: Console, *, folder: Path = ARTIFACTS) -> CocoDataset:
    """The synthetic set ``train``, ``val`` or ``calibration``, each of other scenes, in `folder`: drawn where it is not there already."""
    from yolact_deploy.data.coco import read_dataset
    from yolact_deploy.data.shapes import write_shapes

    where = folder / f"shapes-{part}-{count}"
    if not (where / "annotations.json").is_file():
        out.print(f"Drawing {counted(count, 'synthetic picture')} into {where}", soft_wrap=True, markup=False)
        write_shapes(where, count, seed=_SHAPES_SEEDS[part])
    return read_dataset(where / "annotations.json")


def console(*, quiet: bool = False, stderr: bool = False) -> Console:
    """A rich console; a quiet one prints nothing. Tables are never narrower than 100 columns where there is no terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(quiet=quiet, stderr=stderr, highlight=False, width=width, soft_wrap=False)


def is_terminal() -> bool:
    """Whether progress bars make sense."""
    return sys.stderr.isatty()


@contextlib.contextmanager
def stage_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for what is being done now, on a terminal: called with what it is, how much of it is done, and of how much (0: not known)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = quiet or not is_terminal()
    with Progress(*columns, console=console(stderr=True), disable=hidden, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("starting", total=None)
        current = ""

        def show(what: str, done: int, total: int) -> None:
            nonlocal current
            if what != current:
                bar.reset(task)
                current = what
            bar.update(task, description=what, completed=done, total=total or None)

        yield show


def file_size(path: Path) -> str:
    """The file's size in words, MB of 10^6 bytes, kB of 10^3 below a tenth of that."""
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def need_torch(purpose: str) -> None:
    """Raise :class:`MissingDependencyError` where torch cannot be imported."""
    try:
        import torch  # noqa: F401  # imported to see whether it is there
    except ImportError:
        raise MissingDependencyError.of("torch", "torch", purpose) from None


def demo_weights() -> Path:
    """The checkpoint in the package: ``yolact_nano``, trained on the synthetic shapes (``weights/README.md`` says how)."""
    import yolact_deploy

    return Path(yolact_deploy.__file__).parent / "weights" / "yolact_nano_shapes.safetensors"


def demo_export(out: Console, *, fp16: bool = False) -> Path:
    """The demo model's ONNX file in the artifacts' folder, exported where it is not there already, which takes torch."""
    from yolact_deploy.errors import ModelFileError
    from yolact_deploy.files import sha256_of
    from yolact_deploy.onnx_file import read_manifest

    weights = demo_weights()
    target = ARTIFACTS / f"{weights.stem}{'.fp16' if fp16 else ''}.onnx"
    with contextlib.suppress(ModelFileError):
        if read_manifest(target).source.get("sha256") == sha256_of(weights):
            return target
    need_torch("Exporting the demo model")
    from yolact_deploy.export import ExportOptions, export_checkpoint
    from yolact_deploy.model import load_checkpoint

    out.print(f"Exporting {target}", soft_wrap=True, markup=False)
    export_checkpoint(load_checkpoint(weights), target, ExportOptions(fp16=fp16))
    return target


def demo_int8() -> Path:
    """The demo model's INT8 graph, which ``calibrate`` writes to the artifacts' folder."""
    from yolact_deploy.errors import ModelFileError

    target = ARTIFACTS / f"{demo_weights().stem}.int8.onnx"
    if not target.is_file():
        raise ModelFileError(f"The demo model is not calibrated: {target} does not exist.", "Run: yolact-deploy calibrate")
    return target


def demo_picture() -> NDArray[np.uint8]:
    """A synthetic picture that the demo model has not seen, uint8 RGB [512, 512, 3]."""
    from yolact_deploy.data.shapes import shapes_scene

    return shapes_scene(_DEMO_SCENE, seed=_SHAPES_SEEDS["val"], size=512).picture
