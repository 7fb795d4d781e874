"""Small float graphs of each kind of variant, each exported once a test run, and what a picture shows of their values."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
from filelock import FileLock
from numpy.typing import NDArray

from tests.helpers.tiny import tiny_network, tiny_variant
from yolact_deploy.calibration.graph import GraphView
from yolact_deploy.calibration.placement import calibrated_values
from yolact_deploy.calibration.ranges import Range
from yolact_deploy.calibration.statistics import Observation, Statistics
from yolact_deploy.classes import numbered_classes
from yolact_deploy.export import ExportOptions, VerificationReport, export_checkpoint, exporter
from yolact_deploy.model import Checkpoint
from yolact_deploy.variants import Variant

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resnet": ({"blocks": (2, 1, 1, 1)}, {}),
    "darknet": ({"backbone": "darknet", "backbone_width": 8}, {"postprocess": "nms", "batch": "dynamic", "layout": "raw"}),
    "plus": ({"dcn_blocks": (0, 1, 1, 1), "mask_rescoring": True, "input_size": 256}, {"postprocess": "masks", "batch": 2}),
}
"""Fields of the variant, and how it is exported: between them every layer, batch, input and end of a graph that there is."""


def exported(folder: Path, kind: str) -> Path:
    """The file of that kind in `folder`, which all processes of a run share; nobody may change it. Exports are verified elsewhere."""
    fields, options = KINDS[kind]
    path = folder / "calibration-graphs" / f"{kind}.onnx"
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            export_unverified(tiny_variant(**fields), path, **options)
    return path


def export_unverified(variant: Variant, path: Path, **options: Any) -> Path:
    """Of drawn weights."""
    checkpoint = Checkpoint(
        tiny_network(variant), variant, numbered_classes(variant.num_classes - 1), Path(f"{variant.name}.pth"), "0" * 64
    )
    with mock.patch.object(exporter, "_verified", return_value=VerificationReport(())):
        return export_checkpoint(checkpoint, path, ExportOptions(**options)).path


@lru_cache(maxsize=8)
def view_of(path: Path) -> GraphView:
    """Read once; do not change it."""
    return GraphView(onnx.load(path))


def session_of(model: onnx.ModelProto, *, as_written: bool = True, saved: Path | None = None) -> onnxruntime.InferenceSession:
    """On the CPU and in one thread, without ONNX Runtime's optimizations where `as_written`; the graph that runs is written to `saved`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, images: NDArray[Any], values: tuple[str, ...] = (), *, as_written: bool = True) -> dict[str, NDArray[Any]]:
    """All outputs, or these inner float `values`."""
    if values:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        there = {output.name for output in copy.graph.output}
        missing = [name for name in values if name not in there]
        copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in missing)
        model = copy
    session = session_of(model, as_written=as_written)
    names = list(values) or [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))


def images_of(view: GraphView, seed: int = 0, batch: int | None = None) -> NDArray[Any]:
    """Noise as the graph takes it; a dynamic batch is 1."""
    value = view.model.graph.input[0].type.tensor_type
    shape = [axis.dim_value or batch or 1 for axis in value.shape.dim]
    generator = np.random.default_rng(seed)
    if value.elem_type == onnx.TensorProto.UINT8:
        return generator.integers(0, 256, shape, np.uint8)
    return generator.normal(0, 1.2, shape).astype(np.float32)


@lru_cache(maxsize=8)
def statistics_of(path: Path) -> Statistics:
    """Of every calibrated value, on one batch of noise. Do not change it."""
    view = view_of(path)
    names = calibrated_values(view)
    statistics = Statistics.empty("0" * 64, [(name, name) for name in names])
    images = images_of(view)
    inner = tuple(name for name in names if name not in view.inputs)
    for name, batch in {**{name: images for name in view.inputs if name in names}, **run(view.model, images, inner)}.items():
        for one in batch:
            seen = Observation.of(one)
            assert seen is not None
            statistics.values[name].add(seen)
    return statistics


@lru_cache(maxsize=8)
def ranges_of(path: Path) -> dict[str, Range]:
    """Three quarters of what :func:`statistics_of` saw, so that the largest values are clipped."""
    found = statistics_of(path).values
    return {name: Range(0.75 * min(value.low, 0.0), 0.75 * max(value.high, 0.0)) for name, value in found.items()}
