"""A tiny network as checkpoint and as ONNX file, made once for all tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tests.evaluation.made import make_dataset
from tests.helpers.tiny import tiny_network
from tests.helpers.weights import write_checkpoint
from yolact_deploy.data import CocoDataset
from yolact_deploy.evaluation.jobs import ModelSource
from yolact_deploy.export import ExportOptions, export_checkpoint
from yolact_deploy.model import load_checkpoint
from yolact_deploy.variants import read_config

__all__ = ["Models", "tiny_models"]

_CONFIG = """\
base = "yolact_resnet50"
input_size = 64
blocks = [1, 1, 1, 1]
backbone_width = 8
fpn_width = 16
num_classes = 5
num_prototypes = 8
prior_sizes = [[8], [16], [32], [48], [60]]
"""

_TALKATIVE = 4  # so much less is the background's logit, or such a network finds nothing


@dataclass(frozen=True)
class Models:
    """What :func:`tiny_models` made; nobody may change these files."""

    dataset: CocoDataset
    config: Path
    classes: Path
    weights: Path
    onnx: Path

    @property
    def checkpoint_source(self) -> ModelSource:
        return ModelSource(self.weights, threads=1, config=self.config, classes=str(self.classes))

    @property
    def onnx_source(self) -> ModelSource:
        return ModelSource(self.onnx, providers=("cpu",), threads=1)


@lru_cache(maxsize=1)
def tiny_models(base: Path) -> Models:
    """For the whole test session, whose temporary folder is `base`; the ONNX file takes any number of pictures."""
    folder = base / "evaluation-models"
    folder.mkdir()
    dataset = make_dataset(folder / "data", pictures=True)
    config, classes = folder / "tiny.toml", folder / "classes.txt"
    config.write_text(_CONFIG)
    classes.write_text("bird\ncat\ndog\nfish\n")
    variant = read_config(config)
    state = tiny_network(variant).state_dict()
    state["prediction_layers.0.conf_layer.bias"].reshape(-1, variant.num_classes)[:, 0] -= _TALKATIVE
    weights = write_checkpoint(folder, "tiny_1_2.safetensors", state)
    checkpoint = load_checkpoint(weights, config=config, classes=str(classes))
    onnx = folder / "tiny_1_2.onnx"
    export_checkpoint(checkpoint, onnx, ExportOptions(batch="dynamic"))
    return Models(dataset, config, classes, weights, onnx)
