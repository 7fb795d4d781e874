"""The training loop: stochastic gradient descent over augmented pictures, resumable to the bit, on one device or several."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from yolact_deploy.classes import ClassList
from yolact_deploy.data.coco import CocoDataset
from yolact_deploy.errors import ConfigError, TrainingError
from yolact_deploy.model import Yolact
from yolact_deploy.model.embedded import save_checkpoint
from yolact_deploy.training.augment import AugmentSettings
from yolact_deploy.training.initial import freeze_norms
from yolact_deploy.training.losses import LossSettings, NetworkWithLoss
from yolact_deploy.training.processes import Processes
from yolact_deploy.training.quantization import FakeQuantization, QuantizationSettings
from yolact_deploy.training.samples import BatchKeys, Samples, collate, trainable
from yolact_deploy.training.schedule import Schedule
from yolact_deploy.training.state import RESUME_FILE, Progress, load_state, save_state

__all__ = ["StepReport", "TrainSettings", "Trainer"]

_LEAST_NORM_BATCH = 6
_MOST_SKIPPED = 50  # in a row: the training has diverged
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainSettings:
    """How to train; the defaults are the published training's (arXiv:1904.02689, section 6).

    Attributes:
        iterations: steps in all.
        batch: pictures of a step on each device.
        schedule: learning rate by iteration.
        optimizer: ``sgd`` (published) or ``adamw`` (arXiv:1711.05101), which starts faster from fresh weights.
        momentum, decay: momentum of SGD, weight decay on every trained parameter.
        clip: largest norm of all gradients together; 0 leaves them alone.
        precision: what the network computes in; losses, weights and their update are float32.
        save_every: steps between checkpoints.
        keep: how many of them are kept, the newest; 0 keeps all.
        workers: processes that prepare pictures; 0 does it in this one.
        seed: of weights, order and augmentation.
        quantization: fine-tune with fake quantization, whose ranges are found so; None trains as usual.
    """

    iterations: int = 800_000
    batch: int = 8
    schedule: Schedule = field(default_factory=Schedule)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    decay: float = 5e-4
    clip: float = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    save_every: int = 10_000
    keep: int = 3
    workers: int = 0
    seed: int = 0
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    losses: LossSettings = field(default_factory=LossSettings)
    quantization: QuantizationSettings | None = None

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, at least 1 was wanted.", f"Mend --{name.replace('_', '-')}.")
        if self.quantization is not None and self.precision != "fp32":
            raise ConfigError(
                f"Quantization-aware training was asked for in {self.precision}, which rounds the steps of 8 bits once more.",
                "Take --precision fp32.",
            )


@dataclass(frozen=True)
class StepReport:
    """One step: the number of steps done, the loss terms (empty where it was skipped), the rate, and seconds since the last report."""

    iteration: int
    losses: dict[str, float]
    rate: float
    seconds: float
    skipped: int


class Trainer:
    """Trains `network` on `dataset` and writes into `folder`.

    There lie, after each ``save_every`` steps: ``<variant>_<epoch>_<iteration>.safetensors``, the checkpoint that every command
    takes; ``resume.safetensors``, from which the next :class:`Trainer` on the same folder goes on; ``log.jsonl``, one line a step.
    A resumed training on the same machine gives the same bits as one that was never interrupted.

    With fake quantization the ranges are found before the first step; every checkpoint is an ordinary one, and so is the network when
    :meth:`run` returns: `evaluate` measures it without quantization.

    Batch norm is frozen with fake quantization and where a device sees fewer than 6 pictures at once. A step whose loss or gradient is
    not finite changes nothing and is counted. Raises :class:`TrainingError` after 50 of these in a row, :class:`ConfigError` where the
    folder's training was started with other settings.
    """

    def __init__(
        self,
        network: Yolact,
        classes: ClassList,
        dataset: CocoDataset,
        folder: Path,
        settings: TrainSettings,
        *,
        device: torch.device | str = "cpu",
        processes: Processes | None = None,
    ) -> None:
        self.classes, self.folder, self.settings = classes, folder, settings
        self.device, self.processes = torch.device(device), processes or Processes()
        self.variant = network.variant
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        self.images = trainable(dataset)
        self.samples = Samples(dataset, self.images, self.variant, settings.augment, settings.seed)
        self.quantization = None if settings.quantization is None else FakeQuantization(self.network, settings.quantization)
        self.norms_frozen = settings.batch < _LEAST_NORM_BATCH or self.quantization is not None
        self.network.train()
        if self.norms_frozen:
            freeze_norms(self.network)
        self.optimizer = _optimizer(self.network, settings)
        described = json.loads(json.dumps({**asdict(settings), "dataset": dataset.sha256, "world": self.processes.world}))
        self.described = {key: value for key, value in described.items() if key not in ("workers", "save_every", "keep")}
        self.progress = self._resume()
        self.skipped_in_row = 0
        self.model = self.processes.wrap(NetworkWithLoss(self.network, settings.losses, autocast=self._autocast()), self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        if self.progress.scale:
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": self.progress.scale})

    def _resume(self) -> Progress:
        path = self.folder / RESUME_FILE
        if not path.is_file():
            return Progress(settings=self.described)
        progress = load_state(path, self.network, self.optimizer)
        differing = sorted(key for key in self.described if progress.settings.get(key) != self.described[key])
        if differing:
            raise ConfigError(
                f"The training in {self.folder} was started with other settings ({', '.join(differing)}).",
                "Give the same ones to go on, or train in another folder.",
            )
        return progress

    def _autocast(self) -> Callable[[], Any] | None:
        dtype = _DTYPES.get(self.settings.precision)
        return None if dtype is None else lambda: torch.autocast(self.device.type, dtype)

    @property
    def epoch(self) -> int:
        """Whole passes over the pictures so far."""
        return self.progress.iteration * self.settings.batch * self.processes.world // len(self.images)

    def run(
        self,
        report: Callable[[StepReport], None] = lambda _: None,
        *,
        evaluate: Callable[[Path], float | None] | None = None,
        evaluate_every: int = 0,
    ) -> Path:
        """Train to the last iteration and return the last checkpoint.

        `evaluate` takes a checkpoint and returns its mask AP. All processes are given it and the first calls it, each
        `evaluate_every` steps (0: never but at the end); the best checkpoint is kept as ``best.safetensors``. Asked to stop (Ctrl-C,
        SIGTERM), it ends the step, saves, and raises :class:`KeyboardInterrupt`; asked twice, it stops at once and the last
        checkpoint stands.
        """
        saved: Path | None = None
        with self._log() as log, _Stop() as stop, self._quantized():
            for images, targets in self._batches(self.progress.iteration, self.settings.iterations, self.processes.rank):
                found = self._step(images, targets)
                log(found)
                report(found)
                iteration = self.progress.iteration
                last = iteration == self.settings.iterations
                due = evaluate is not None and (last or (evaluate_every > 0 and iteration % evaluate_every == 0))
                stopped = not self.processes.all_agree(not stop.asked, self.device)
                if last or due or stopped or iteration % self.settings.save_every == 0:
                    saved = self.save()
                if stopped:
                    raise KeyboardInterrupt
                if due and evaluate is not None and saved is not None:
                    self._evaluate(evaluate, saved)
        return saved or self.save()

    def _evaluate(self, evaluate: Callable[[Path], float | None], saved: Path) -> None:
        if self.processes.first:
            found = evaluate(saved)
            if found is not None and (self.progress.best is None or found > self.progress.best):
                self.progress.best = found
                self._write(self.folder / "best.safetensors")
                save_state(self.folder / RESUME_FILE, self.network, self.optimizer, self.progress)
        self.processes.wait()

    @contextlib.contextmanager
    def _quantized(self) -> Iterator[None]:
        """The network with fake quantization, where it was asked for; its ranges come from the first process's first batches."""
        if self.quantization is None:
            yield
            return
        if self.progress.ranges:
            self.quantization.ranges = self.progress.ranges
        else:
            self.quantization.observe(images for images, _ in self._batches(0, self.quantization.settings.batches, 0))
            self.progress.ranges = self.quantization.ranges
        self.quantization.attach()
        try:
            yield
        finally:
            self.quantization.detach()

    def _batches(self, start: int, stop: int, rank: int) -> Iterator[tuple[Tensor, list[Any]]]:
        keys = BatchKeys(len(self.images), self.settings.batch, start, stop, seed=self.settings.seed, rank=rank, world=self.processes.world)
        workers = self.settings.workers
        loader = DataLoader(
            self.samples,
            batch_sampler=keys,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=bool(workers),
        )
        for images, targets in loader:
            images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            yield images, [target.to(self.device) for target in targets]

    def _step(self, images: Tensor, targets: list[Any]) -> StepReport:
        clock = time.perf_counter()
        progress, settings = self.progress, self.settings
        rate = settings.schedule.at(progress.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        generator = torch.Generator().manual_seed(
            settings.seed * 1_000_003 + progress.iteration * self.processes.world + self.processes.rank
        )
        norms = [] if self.norms_frozen else [value.clone() for value in self.network.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.model(images, targets, generator)
        loss = torch.stack(list(terms.values())).sum()
        progress.iteration += 1
        if self.processes.all_agree(bool(torch.isfinite(loss.detach())), self.device) and self._update(loss):
            self.skipped_in_row = 0
            values = torch.stack(list(terms.values())).detach().cpu().tolist()
            return StepReport(
                progress.iteration, dict(zip(terms, values, strict=True)), rate, time.perf_counter() - clock, progress.skipped
            )
        with torch.no_grad():
            for value, before in zip(self.network.buffers(), norms, strict=False):
                value.copy_(before)  # a picture that overflows would stay in the running variance
        self._skip()
        return StepReport(progress.iteration, {}, rate, time.perf_counter() - clock, progress.skipped)

    def _update(self, loss: Tensor) -> bool:
        """Backward and step; False where a gradient is not finite."""
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.unscale_(self.optimizer)
        parameters = [value for value in self.network.parameters() if value.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.clip or float("inf"), foreach=True)
        finite = bool(torch.isfinite(norm))
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return finite

    def _skip(self) -> None:
        self.progress.skipped += 1
        self.skipped_in_row += 1
        if self.skipped_in_row >= _MOST_SKIPPED:
            raise TrainingError(
                f"{_MOST_SKIPPED} steps in a row had a loss or gradient that is not finite, up to iteration {self.progress.iteration}.",
                "Lower --rate, set --clip 10, or start from other weights.",
            )

    @contextlib.contextmanager
    def _log(self) -> Iterator[Callable[[StepReport], None]]:
        """Appends a line for each step; lines past the point of resuming are cut off."""
        if not self.processes.first:
            yield lambda _: None
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "log.jsonl"
        kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[: self.progress.iteration] if path.is_file() else []
        with open(path, "w", encoding="utf-8") as handle:
            handle.writelines(kept)

            def write(found: StepReport) -> None:
                handle.write(json.dumps({**asdict(found), "seconds": round(found.seconds, 4)}) + "\n")
                handle.flush()

            yield write

    def save(self) -> Path:
        """Write the checkpoint and the state to resume from, drop checkpoints beyond ``keep``; returns the checkpoint."""
        name = re.sub(r"[^\w.-]", "_", self.variant.name)
        path = self.folder / f"{name}_{self.epoch}_{self.progress.iteration}.safetensors"
        if self.processes.first:
            self.progress.scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
            self._write(path)
            save_state(self.folder / RESUME_FILE, self.network, self.optimizer, self.progress)
            self._drop_old(name)
        self.processes.wait()
        return path

    def _drop_old(self, name: str) -> None:
        found = {path: re.fullmatch(rf"{re.escape(name)}_\d+_(\d+)\.safetensors", path.name) for path in self.folder.iterdir()}
        ours = sorted((int(match[1]), path) for path, match in found.items() if match)
        for _, path in ours[: -self.settings.keep] if self.settings.keep else []:
            path.unlink()

    def _write(self, path: Path) -> None:
        notes = {"iterations": self.progress.iteration, "skipped": self.progress.skipped, "settings": self.described}
        save_checkpoint(path, self.network.state_dict(), self.variant, self.classes, notes=notes)


def _optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    trained = [value for value in network.parameters() if value.requires_grad]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=settings.schedule.rate, weight_decay=settings.decay)
    return torch.optim.SGD(trained, lr=settings.schedule.rate, momentum=settings.momentum, weight_decay=settings.decay)


class _Stop:
    """While it is open, the first request to end (SIGINT, SIGTERM) only sets `asked`; the second interrupts."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
