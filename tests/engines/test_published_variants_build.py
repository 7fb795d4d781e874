"""All eight published variants and the demo model really build with TensorRT-RTX: FP32, FP16 and NMS in the graph, batch 1 and dynamic.

That the graphs are right is proven in tests/export, and that float16 is compared with the file in test_source.py; both checks are
left out here, where the weights are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from torch import nn

from tests.export.artifacts import Artifacts
from yolact_deploy.classes import numbered_classes
from yolact_deploy.cli.common import demo_weights
from yolact_deploy.engines import source
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.builder import BuildResult, build_engine
from yolact_deploy.engines.options import BuildOptions
from yolact_deploy.engines.plan_file import identify
from yolact_deploy.engines.sidecar import read_plan, read_sidecar
from yolact_deploy.errors import EngineBuildError
from yolact_deploy.export import ExportOptions, VerificationReport, export_checkpoint, exporter
from yolact_deploy.model import Checkpoint, Yolact, load_checkpoint
from yolact_deploy.variants import VARIANTS, get_variant

PUBLISHED = [name for name in VARIANTS if name != "yolact_nano"]
BATCHES: tuple[Literal["dynamic"] | int, ...] = (1, "dynamic")

Exporter = Callable[..., Path]


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exporter:
    """Exports a variant with drawn weights; the network is made once."""
    monkeypatch.setattr(exporter, "_verified", lambda *_: VerificationReport(()))
    monkeypatch.setattr(source, "check_float16", lambda *_: {})
    networks: dict[str, Yolact] = {}

    def run(name: str, **options: object) -> Path:
        variant = get_variant(name)
        network = networks.setdefault(name, Yolact(variant).eval())
        checkpoint = Checkpoint(network, variant, numbered_classes(variant.num_classes - 1), Path(f"{name}.pth"), "0" * 64)
        target = tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx"
        return export_checkpoint(checkpoint, target, ExportOptions(**options)).path

    return run


def check(result: BuildResult, precision: str, postprocess: str, batch: BatchRange, parameters: int) -> None:
    """The engine is whole, as its sidecar says, and as large as its weights."""
    assert read_plan(result.path, read_sidecar(result.path))
    assert identify(result.path).declared_size == result.target.size
    assert (result.target.precision, result.manifest.postprocess, result.target.batch) == (precision, postprocess, batch)
    bytes_each = result.target.size / parameters
    low, high = {"fp32": (3.2, 6.0), "fp16": (1.6, 3.2)}[precision]
    assert low < bytes_each < high
    assert (result.mask_iou_path is not None) == result.manifest.variant.mask_rescoring


def parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_it_builds(name: str, export: Exporter) -> None:
    """Files with a batch of 1 are built in tests/export/test_published_variants.py, where they are verified; here one takes several."""
    count = parameters(Yolact(get_variant(name)))
    one, several = BatchRange(1, 1, 1), BatchRange(1, 2, 4)
    for postprocess, wanted in (("nms", (("fp32", one), ("fp32", several))), ("none", (("fp32", several), ("fp16", several)))):
        model = export(name, batch="dynamic", postprocess=postprocess)
        for number, (precision, batches) in enumerate(wanted):
            options = BuildOptions("fp16" if precision == "fp16" else "graph", sm=((8, 9),), batch=batches)
            check(build_engine(model, model.with_suffix(f".{number}.engine"), options), precision, postprocess, batches, count)
        for path in model.parent.glob("*"):
            path.unlink()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("postprocess", ["none", "nms", "masks"])
@pytest.mark.parametrize("layout", ["float", "raw"])
def test_the_demo_model_builds(layout: str, postprocess: str, batch: object, export: Exporter, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(demo_weights())
    options = ExportOptions(postprocess=postprocess, batch=batch, layout=layout)
    model = export_checkpoint(checkpoint, tmp_path / "demo.onnx", options).path
    for precision in ("graph", "fp16"):
        result = build_engine(model, tmp_path / f"{precision}.engine", BuildOptions(precision))
        batches = BatchRange(1, 1, 1) if batch == 1 else BatchRange(1, 1, 8)
        check(result, {"graph": "fp32"}.get(precision, precision), postprocess, batches, parameters(checkpoint.network))


@pytest.mark.parametrize("opset", [17, 18, 19, 20])
def test_each_opset_builds(opset: int, artifacts: Artifacts, tmp_path: Path) -> None:
    for checkpoint in (artifacts.nano, artifacts.plus):
        result = build_engine(artifacts.onnx(checkpoint, opset=opset), folder=tmp_path, options=BuildOptions(sm=((8, 9),)))
        assert result.target.size > 0
        assert result.manifest.versions["opset"] == str(opset)


def test_turing_takes_every_graph_but_masks_and_says_what_stops_it(artifacts: Artifacts, tmp_path: Path) -> None:
    """FP32 matrix products are not there for 7.5, and masks in the graph are one."""
    turing = BuildOptions(sm=((7, 5),))
    for postprocess in ("none", "nms"):
        assert build_engine(artifacts.onnx(artifacts.plus, postprocess=postprocess), tmp_path / f"{postprocess}.engine", turing)
    with pytest.raises(EngineBuildError, match="could not build the engine") as caught:
        build_engine(artifacts.onnx(artifacts.plus, postprocess="masks"), tmp_path / "masks.engine", turing)
    assert "7.5 lacks what this graph needs" in caught.value.mend
    assert not (tmp_path / "masks.engine").exists()


def test_raw_pictures_of_either_channel_order_build(artifacts: Artifacts, tmp_path: Path) -> None:
    for channels in ("rgb", "bgr"):
        model = artifacts.onnx(layout="raw", channels=channels, batch="dynamic")
        result = build_engine(model, tmp_path / f"{channels}.engine", BuildOptions("fp16", batch=BatchRange(1, 2, 4)))
        assert (result.manifest.inputs[0].dtype, result.manifest.input.channels) == ("uint8", channels)
