"""Checkpoints and their ONNX files, each made once however many tests, folders and processes use it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from filelock import FileLock

from tests.helpers.weights import write_checkpoint
from yolact_deploy.export import ExportOptions, ExportResult, VerificationReport, export_checkpoint
from yolact_deploy.export.verification import Comparison
from yolact_deploy.matching import DetectionMatch
from yolact_deploy.model import Checkpoint, load_checkpoint
from yolact_deploy.model.seeded import seeded_state
from yolact_deploy.onnx_file import read_manifest
from yolact_deploy.variants import read_config

PLUS_CONFIG = """\
base = "yolact_plus_resnet50"
input_size = 256
blocks = [1, 1, 1, 1]
dcn_blocks = [0, 1, 1, 1]
backbone_width = 16
fpn_width = 32
num_classes = 6
"""


class Artifacts:
    """Makes and keeps what tests read; nobody may change these files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, folder / "notes"  # a test looks for files beside the ONNX ones
        self.notes.mkdir(parents=True, exist_ok=True)
        self.weights, self.plus_weights = folder / "yolact_nano_1_10.safetensors", folder / "tiny_plus.safetensors"
        self.plus_config = folder / "tiny_plus.toml"
        with FileLock(self.notes / "weights.lock"):
            if not (self.notes / "weights").exists():
                self.plus_config.write_text(PLUS_CONFIG)
                write_checkpoint(folder, self.weights.name, seed=1)
                write_checkpoint(folder, self.plus_weights.name, seeded_state(read_config(self.plus_config), 2))
                (self.notes / "weights").touch()
        self.nano = load_checkpoint(self.weights)
        self.plus = load_checkpoint(self.plus_weights, config=self.plus_config)
        self.results: dict[tuple[str, ExportOptions], ExportResult] = {}

    def export(self, checkpoint: Checkpoint | None = None, **options: Any) -> ExportResult:
        """The verified export of `checkpoint` (default: the nano one) with these :class:`ExportOptions`."""
        checkpoint = checkpoint or self.nano
        wanted = ExportOptions(**options)
        key = (checkpoint.variant.name, wanted)
        if key not in self.results:
            name = f"{checkpoint.path.stem}.{hashlib.sha256(repr(wanted).encode()).hexdigest()[:12]}"
            path, note = self.folder / f"{name}.onnx", self.notes / f"{name}.json"
            with FileLock(self.notes / f"{name}.lock"):
                if note.exists():
                    self.results[key] = _recalled(path, note.read_text())
                else:
                    self.results[key] = export_checkpoint(checkpoint, path, wanted)
                    note.write_text(_noted(self.results[key]))
        return self.results[key]

    def onnx(self, checkpoint: Checkpoint | None = None, **options: Any) -> Path:
        """The file of :meth:`export`."""
        return self.export(checkpoint, **options).path


def _noted(result: ExportResult) -> str:
    """What another process cannot read from the ONNX file."""
    fields = {"rescores": result.mask_iou_path is not None, "report": asdict(result.report), "seconds": result.seconds}
    return json.dumps(fields, default=lambda value: value.item())


def _recalled(path: Path, note: str) -> ExportResult:
    """The result of an export that another process made and noted."""
    fields = json.loads(note)
    outputs = tuple(Comparison(**row) for row in fields["report"]["outputs"])
    detections = {case: _match(match) for case, match in fields["report"]["detections"].items()}
    beside = path.with_name(f"{path.stem}.maskiou.onnx") if fields["rescores"] else None
    return ExportResult(path, beside, read_manifest(path), VerificationReport(outputs, detections), fields["seconds"])


def _match(fields: dict[str, Any]) -> DetectionMatch:
    """JSON made tuples lists, and numbers that are keys strings."""
    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = tuple(value)
        elif isinstance(value, dict):
            fields[name] = {int(place): found for place, found in value.items()}
    return DetectionMatch(**fields)


@lru_cache(maxsize=1)
def shared_artifacts(base: Path) -> Artifacts:
    """One for the whole test run, whose temporary folder is `base`."""
    return Artifacts(base / "shared-artifacts")


def run_onnx(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The file in ONNX Runtime on the CPU: images -> outputs by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"images": images})))
