"""Checkpoints and their ONNX files, each made once however many tests and folders use it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tests.helpers.weights import write_checkpoint
from yolact_deploy.export import ExportOptions, ExportResult, export_checkpoint
from yolact_deploy.model import Checkpoint, load_checkpoint
from yolact_deploy.model.seeded import seeded_state
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
        self.folder = folder
        folder.mkdir()
        self.weights = write_checkpoint(folder, "yolact_nano_1_10.safetensors", seed=1)
        self.plus_config = folder / "tiny_plus.toml"
        self.plus_config.write_text(PLUS_CONFIG)
        plus = read_config(self.plus_config)
        self.plus_weights = write_checkpoint(folder, "tiny_plus.safetensors", seeded_state(plus, 2))
        self.nano = load_checkpoint(self.weights)
        self.plus = load_checkpoint(self.plus_weights, config=self.plus_config)
        self.results: dict[tuple[str, ExportOptions], ExportResult] = {}

    def export(self, checkpoint: Checkpoint | None = None, **options: Any) -> ExportResult:
        """The verified export of `checkpoint` (default: the nano one) with these :class:`ExportOptions`."""
        checkpoint = checkpoint or self.nano
        wanted = ExportOptions(**options)
        key = (checkpoint.variant.name, wanted)
        if key not in self.results:
            output = self.folder / f"{checkpoint.path.stem}.{len(self.results)}.onnx"
            self.results[key] = export_checkpoint(checkpoint, output, wanted)
        return self.results[key]

    def onnx(self, checkpoint: Checkpoint | None = None, **options: Any) -> Path:
        """The file of :meth:`export`."""
        return self.export(checkpoint, **options).path


@lru_cache(maxsize=1)
def shared_artifacts(base: Path) -> Artifacts:
    """One for the whole test session, whose temporary folder is `base`."""
    return Artifacts(base / "shared-artifacts")


def run_onnx(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The file in ONNX Runtime on the CPU: images -> outputs by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"images": images})))
