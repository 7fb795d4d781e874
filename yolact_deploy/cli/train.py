"""``yolact-deploy train``: a COCO-format data set -> a checkpoint that every command takes."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolact_deploy.cli.common import ARTIFACTS, DEMO_VARIANT, console, counted, demo_weights, is_terminal, need_torch, shapes_set
from yolact_deploy.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from yolact_deploy.data.coco import CocoDataset
    from yolact_deploy.model import Yolact
    from yolact_deploy.training.loop import StepReport, Trainer

__all__ = ["TrainPrecision", "train"]

_PUBLISHED_ITERATIONS, _PUBLISHED_BATCH = 800_000, 8
_SHAPES_COUNT, _SHAPES_ITERATIONS, _VAL_COUNT = 4000, 8000, 200
_QAT_SHAPES_ITERATIONS, _QAT_ITERATIONS = 2000, 20_000
_QAT_SHARE = 0.1  # of the rate that a training from the same weights would take
_LEAST_FOR_STEPS = 1000  # shorter trainings keep their rate: the first step would fall into the warm-up
_WARMUP = 500
_AVERAGED = 100  # steps that a shown loss is the mean of


class TrainPrecision(str, enum.Enum):
    """What the network computes in while it trains."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Optimizer(str, enum.Enum):
    """What turns gradients into steps."""

    sgd = "sgd"
    adamw = "adamw"


def train(
    variant: Annotated[str | None, typer.Argument(help=f"The network's variant. \\[default: {DEMO_VARIANT}]", show_default=False)] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="COCO annotation file. \\[default: a synthetic set, drawn here]", show_default=False)
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Its pictures. \\[default: beside the annotations]", show_default=False)] = None,
    val_annotations: Annotated[Path | None, typer.Option(help="Annotation file to evaluate on.", show_default=False)] = None,
    val_images: Annotated[Path | None, typer.Option(help="Its pictures.", show_default=False)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of this training. \\[default: artifacts/train-VARIANT or qat-VARIANT]", show_default=False
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A trained YOLACT to start from; its classes may be others.", show_default=False)
    ] = None,
    backbone: Annotated[Path | None, typer.Option(help="ImageNet weights of the backbone to start from.", show_default=False)] = None,
    config: Annotated[
        Path | None, typer.Option(help="Your own variant, TOML: base = … and the fields that differ.", show_default=False)
    ] = None,
    qat: Annotated[
        bool, typer.Option("--qat", help="Fine-tune --weights for INT8: train with the rounding of the INT8 graph, at a tenth of the rate.")
    ] = False,
    iterations: Annotated[
        int | None,
        typer.Option(min=1, help="Steps. \\[default: 800000 x 8 / batch; with --qat 20000 x 8 / batch]", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures of a step, on each device.")] = 8,
    rate: Annotated[
        float | None, typer.Option(help="Learning rate. \\[default: 0.001 x batch / 8; with --qat a tenth]", show_default=False)
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(min=0, help="Steps of the warm-up. \\[default: 500; with --qat 0]", show_default=False)
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(help="Iterations that lower the rate. \\[default: 35, 75, 87.5, 93.75 % of 1000 or more]", show_default=False),
    ] = None,
    optimizer: Annotated[Optimizer, typer.Option(help="sgd as published; adamw starts faster from fresh weights.")] = Optimizer.sgd,
    decay: Annotated[float, typer.Option(min=0, help="Weight decay.")] = 5e-4,
    gamma: Annotated[float, typer.Option(help="Factor of each step.")] = 0.1,
    clip: Annotated[float, typer.Option(min=0, help="Largest norm of the gradient; 0 leaves it alone.")] = 0.0,
    precision: Annotated[TrainPrecision, typer.Option(help="auto: bf16 or fp16 on a GPU, fp32 on a CPU.")] = TrainPrecision.auto,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, … \\[default: a GPU where there is one]", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that prepare pictures. \\[default: by cores]", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and augmentation.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 1000,
    evaluate_every: Annotated[int, typer.Option(min=0, help="Steps between evaluations; 0: at the end alone.")] = 0,
    keep: Annotated[int, typer.Option(min=0, help="Checkpoints to keep; 0 keeps all.")] = 3,
    photometric: Annotated[bool, typer.Option("--photometric/--no-photometric", help="Distort colours.")] = True,
    expand: Annotated[bool, typer.Option("--expand/--no-expand", help="Place pictures on a larger ground.")] = True,
    crop: Annotated[bool, typer.Option("--crop/--no-crop", help="Crop at random.")] = True,
    mirror: Annotated[bool, typer.Option("--mirror/--no-mirror", help="Mirror half of the pictures.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Train a network on a COCO-format data set, or fine-tune a trained one. The same command again goes on where it stopped.

    Without --annotations it draws the synthetic set and trains on that for 8000 iterations: half an hour to an hour on two cores.

    With --qat the weights learn to live with INT8; export and calibrate the checkpoint as any other. Without --annotations and
    --weights it fine-tunes the demo model, for 2000 iterations. Evaluations measure the checkpoint itself, in float32.

    Several GPUs: torchrun --nproc-per-node N -m yolact_deploy train … (the batch is each GPU's).
    """
    need_torch("train")
    import torch

    from yolact_deploy.data.coco import read_dataset
    from yolact_deploy.runtime.torch_backend import torch_device
    from yolact_deploy.training.augment import AugmentSettings
    from yolact_deploy.training.loop import Trainer, TrainSettings
    from yolact_deploy.training.losses import LossSettings
    from yolact_deploy.training.processes import join
    from yolact_deploy.training.quantization import QuantizationSettings
    from yolact_deploy.training.schedule import Schedule

    if val_annotations is None and val_images is not None:
        raise ConfigError("--val-images was given without --val-annotations.", "Name the pictures' COCO annotation file.")
    processes = join()
    out = console(quiet=quiet or not processes.first)
    if threads:
        torch.set_num_threads(threads)
    place = torch_device(device, processes.local_rank)
    shapes = annotations is None
    if qat:
        weights = _trained_weights(weights, backbone, precision, shapes=shapes)
    dataset = read_dataset(annotations, images) if annotations is not None else _shapes(out, processes, "train", _SHAPES_COUNT)
    network, classes, origin = _network(variant, config, weights, backbone, dataset, seed, same_classes=qat)
    pictures = batch * processes.world
    total = iterations or _iterations(pictures, shapes=shapes, qat=qat)
    highest = rate if rate is not None else (_QAT_SHARE if qat else 1) * 1e-3 * pictures / _PUBLISHED_BATCH
    warmup = warmup if warmup is not None else 0 if qat else _WARMUP
    schedule = Schedule(highest, min(1e-4, highest), warmup, _steps(steps, total), gamma)
    settings = TrainSettings(
        iterations=total,
        batch=batch,
        schedule=schedule,
        optimizer=optimizer.value,
        decay=decay,
        clip=clip,
        precision="fp32" if qat else _precision(precision, place),
        save_every=save_every,
        keep=keep,
        workers=_workers(workers, processes.world),
        seed=seed,
        augment=AugmentSettings(photometric, expand, crop, mirror),
        losses=LossSettings(masks_per_picture=300 if network.variant.name == "yolact_im700" else 100),
        quantization=QuantizationSettings() if qat else None,
    )
    folder = output or ARTIFACTS / f"{'qat' if qat else 'train'}-{network.variant.name}"
    trainer = Trainer(network, classes, dataset, folder, settings, device=place, processes=processes)
    _tell_start(out, trainer, dataset, origin, fresh=weights is None and backbone is None)
    evaluate = _evaluation(out, trainer, val_annotations, val_images, shapes=shapes)
    with _Report(out, trainer, quiet=quiet or not processes.first) as report:
        try:
            saved = trainer.run(report, evaluate=evaluate, evaluate_every=evaluate_every)
        except KeyboardInterrupt:
            out.print(f"Saved iteration {trainer.progress.iteration}: the same command goes on from there.", soft_wrap=True)
            raise
    _tell_end(out, trainer, saved)


def _shapes(out: Console, processes: Any, part: str, count: int) -> CocoDataset:
    """A synthetic set, drawn by the first process where it is not there yet."""
    if processes.first:
        shapes_set(part, count, out)
    processes.wait()
    return shapes_set(part, count, out)


def _trained_weights(weights: Path | None, backbone: Path | None, precision: TrainPrecision, *, shapes: bool) -> Path:
    """The trained network that quantization-aware training starts from; :class:`ConfigError` where there is none."""
    if backbone is not None:
        raise ConfigError("--qat and --backbone were both given.", "It fine-tunes a trained YOLACT: give it with --weights.")
    if precision in (TrainPrecision.bf16, TrainPrecision.fp16):
        raise ConfigError(
            f"--qat was given with --precision {precision.value}, which rounds the steps of 8 bits once more.", "Take --precision fp32."
        )
    if weights is None and not shapes:
        raise ConfigError(
            "--qat was given without --weights.", "It fine-tunes a trained YOLACT: train without --qat first, then name that."
        )
    return weights or demo_weights()


def _iterations(pictures: int, *, shapes: bool, qat: bool) -> int:
    """Steps of a training where none are asked for, with so many pictures a step."""
    if shapes:
        return _QAT_SHAPES_ITERATIONS if qat else _SHAPES_ITERATIONS
    return (_QAT_ITERATIONS if qat else _PUBLISHED_ITERATIONS) * _PUBLISHED_BATCH // pictures


def _network(
    name: str | None,
    config: Path | None,
    weights: Path | None,
    backbone: Path | None,
    dataset: CocoDataset,
    seed: int,
    *,
    same_classes: bool = False,
) -> tuple[Yolact, Any, str]:
    """A network for the classes of `dataset`, the classes, and in words where its weights come from."""
    import dataclasses

    from yolact_deploy.model import Yolact, load_checkpoint
    from yolact_deploy.training.initial import initialise, load_backbone, take_over
    from yolact_deploy.training.state import RESUME_FILE
    from yolact_deploy.variants import get_variant, read_config

    if weights is not None and backbone is not None:
        raise ConfigError("--weights and --backbone were both given.", "A trained YOLACT has its backbone: drop --backbone.")
    if weights is not None and weights.name == RESUME_FILE:
        raise ConfigError(f"{weights} is the state of a training, no checkpoint.", "Give a checkpoint beside it, such as best.safetensors.")
    classes = dataset.classes
    source = None if weights is None else load_checkpoint(weights, variant=name, config=config)
    if source is not None:
        variant = source.variant
    else:
        variant = read_config(config, name) if config is not None else get_variant(name or DEMO_VARIANT)
    network = Yolact(dataclasses.replace(variant, num_classes=len(classes) + 1))
    initialise(network, seed)
    if source is not None:
        fresh = take_over(network, classes, source)
        if fresh and same_classes:
            raise ConfigError(
                f"The {len(source.classes)} classes of {weights} are not the {len(classes)} of the data set, and --qat was given.",
                "Fit it to the new classes first: train without --qat, then name that training's checkpoint.",
            )
        return network, classes, f"{weights}" + (f", {len(fresh)} class layers fitted to the new classes" if fresh else "")
    if backbone is not None:
        load_backbone(network, backbone)
        return network, classes, f"the backbone {backbone}"
    return network, classes, f"fresh weights (seed {seed})"


def _steps(text: str | None, iterations: int) -> tuple[int, ...]:
    from yolact_deploy.training.schedule import STEP_SHARES

    if text is None:
        return tuple(int(share * iterations) for share in STEP_SHARES) if iterations >= _LEAST_FOR_STEPS else ()
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"--steps is {text!r}, iterations separated by commas were wanted.", "Example: --steps 4000,5500") from None


def _precision(wanted: TrainPrecision, device: Any) -> Any:
    import torch

    if wanted is TrainPrecision.auto:
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if wanted is TrainPrecision.fp16 and device.type != "cuda":
        raise ConfigError(f"--precision fp16 was given for {device.type}.", "Take bf16 or fp32 on a CPU.")
    return wanted.value


def _workers(wanted: int | None, world: int) -> int:
    import os

    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores // world // 2, 8) if cores >= 4 else 0


def _evaluation(
    out: Console, trainer: Trainer, annotations: Path | None, images: Path | None, *, shapes: bool
) -> Callable[[Path], float | None] | None:
    """A function that tells and gives a checkpoint's mask AP on the validation set; None where there is no such set."""
    from yolact_deploy.data.coco import read_dataset
    from yolact_deploy.evaluation.harness import EvaluationOptions
    from yolact_deploy.evaluation.harness import evaluate as evaluate_all
    from yolact_deploy.evaluation.jobs import ModelSource

    if annotations is None and not shapes:
        return None
    dataset = read_dataset(annotations, images) if annotations is not None else _shapes(out, trainer.processes, "val", _VAL_COUNT)
    options = EvaluationOptions(trainer.folder / "evaluation", fresh=True)

    def evaluate(checkpoint: Path) -> float | None:
        found = evaluate_all(dataset, [ModelSource(checkpoint, str(trainer.device))], options).artifacts[0]
        box, mask = (_points(metrics.ap) for metrics in (found.box, found.mask))
        out.print(f"{checkpoint.name}: box AP {box}, mask AP {mask} on {counted(found.pictures, 'picture')}", soft_wrap=True, markup=False)
        return found.mask.ap

    return evaluate


def _points(ap: float | None) -> str:
    return "not defined" if ap is None else f"{ap:.1f}"


def _tell_start(out: Console, trainer: Trainer, dataset: CocoDataset, origin: str, *, fresh: bool) -> None:
    settings, variant = trainer.settings, trainer.variant
    left = len(dataset.images) - len(trainer.images)
    without = f" ({counted(left, 'picture')} without objects left out)" if left else ""
    out.print(
        f"Training {variant.name} ({variant.input_size} px, {len(trainer.classes)} classes) from {origin} on "
        f"{counted(len(trainer.images), 'picture')}{without}: {settings.iterations} iterations of {settings.batch} in {settings.precision} "
        f"on {trainer.device}, into {trainer.folder}",
        soft_wrap=True,
        markup=False,
    )
    for note in dataset.notes:
        out.print(f"Note: {note}", soft_wrap=True, markup=False)
    if trainer.quantization is not None:
        out.print("Rounding as the INT8 graph will; batch norm keeps its statistics.", soft_wrap=True)
    elif trainer.norms_frozen:
        hint = " Fresh weights learn next to nothing so: --batch 6 or more, or start from --weights or --backbone." if fresh else ""
        out.print(f"Batch norm is frozen: {settings.batch} at once are too few pictures for it (below 6).{hint}", soft_wrap=True)
    if trainer.progress.iteration:
        out.print(f"Going on from iteration {trainer.progress.iteration}.", soft_wrap=True)


class _Report:
    """Shows progress: a bar on a terminal, else a line every hundred steps; loss terms are means of the last hundred."""

    def __init__(self, out: Console, trainer: Trainer, *, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.out, self.total = out, trainer.settings.iterations
        self.recent: deque[StepReport] = deque(maxlen=_AVERAGED)
        self.started: tuple[float, int] | None = None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console(stderr=True),
            disable=quiet or not is_terminal(),
        )
        self.task = self.bar.add_task("", total=self.total, completed=trainer.progress.iteration)

    def __enter__(self) -> _Report:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, found: StepReport) -> None:
        import time

        now = time.perf_counter()
        if self.started is None:
            self.started = now, found.iteration
        if found.losses:
            self.recent.append(found)
        shown = self.words(found)
        self.bar.update(self.task, completed=found.iteration, description=shown)
        if self.bar.disable and (found.iteration % _AVERAGED == 0 or found.iteration == self.total):
            passed = (now - self.started[0]) / max(found.iteration - self.started[1], 1)
            left = _duration(passed * (self.total - found.iteration))
            self.out.print(
                f"{found.iteration}/{self.total} {shown} rate {found.rate:.2g}, {passed:.2f} s a step, {left} left", soft_wrap=True
            )

    def words(self, found: StepReport) -> str:
        """The mean of each loss term and their sum, and the steps skipped."""
        names = self.recent[-1].losses if self.recent else {}
        means = {name: sum(one.losses[name] for one in self.recent) / len(self.recent) for name in names}
        parts = [f"{name} {value:.3f}" for name, value in means.items()]
        parts.append(f"sum {sum(means.values()):.3f}")
        if found.skipped:
            parts.append(f"skipped {found.skipped}")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _tell_end(out: Console, trainer: Trainer, saved: Path) -> None:
    progress = trainer.progress
    if progress.skipped:
        out.print(f"{counted(progress.skipped, 'step')} with a loss that is not finite left out.", soft_wrap=True)
    out.print(f"Saved {saved}", soft_wrap=True, markup=False)
    if progress.best is not None:
        out.print(f"Best mask AP {progress.best:.1f}: {trainer.folder / 'best.safetensors'}", soft_wrap=True, markup=False)
    out.print(f"Next: yolact-deploy export {saved}", soft_wrap=True, markup=False)
