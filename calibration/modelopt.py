"""NVIDIA's ModelOpt as a second opinion: which values it quantizes and in which ranges, in our graph.

ModelOpt runs in a process of its own (:mod:`.modelopt_process`) on a copy of the float graph, streams the pictures, and works on the CPU.
Of the graph that it makes, its decisions are taken over: which convolutions are quantized, which places read a value through a pair, and
every scale, rounded up to a float16 number as ours are. They are written by the same writer as ours, into the float graph as it is, so that
names, opset, inputs and outputs stay, weights that several levels share are stored once, and ``build-engine`` makes float16 of the rest.

Memory: one batch of pictures, and what ModelOpt fetches of the network for it. It has no setting for the number of threads.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from yolact_deploy.errors import ConfigError, MissingDependencyError, ModelFileError, PictureError
from yolact_deploy.manifest import InputSpec

from .graph import GraphView
from .modelopt_process import DONE, FAILURE, MODEL, QUANTIZED, Job
from .placement import Placement
from .ranges import Range
from .weights import float16_above, weight_integers
from .writing import write_tensorrt

__all__ = ["Opinion", "check_modelopt", "modelopt_method", "modelopt_version", "quantize_with_modelopt", "read_opinion"]

_PACKAGE = "nvidia-modelopt[onnx]"
_METHODS = {"minmax": "max", "entropy": "entropy"}
_LOG = "log.txt"
_POLL = 0.1  # seconds
_START = "from yolact_deploy.calibration.modelopt_process import main; main()"


@dataclass(frozen=True)
class Opinion:
    """What ModelOpt decided, and the graph with it.

    Attributes:
        model: the float graph with ModelOpt's pairs, for TensorRT.
        ranges: of each value with a pair.
        left: layers that stay in floats, those that were asked for included.
        version: of ModelOpt.
    """

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    left: tuple[str, ...]
    version: str

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest of this graph says in place of what is said of ours."""
        ranges = json.dumps({name: [found.low, found.high] for name, found in self.ranges.items()})
        return {
            "quantizer": f"modelopt {self.version}",
            "kept": list(self.left),
            "ranges_sha256": hashlib.sha256(ranges.encode()).hexdigest(),
        }


def modelopt_method(method: str) -> str:
    """ModelOpt's name of a method; :class:`ConfigError` for one that it does not have."""
    if method not in _METHODS:
        raise ConfigError(
            f"ModelOpt has no method {method!r}, it has {' and '.join(_METHODS)} (which it calls max and entropy).",
            "Name one of these, or take --quantizer own.",
        )
    return _METHODS[method]


def check_modelopt() -> None:
    """Raise :class:`MissingDependencyError` where ModelOpt is not installed; it is not loaded."""
    if importlib.util.find_spec("modelopt") is None:
        raise _missing(_PACKAGE)


def modelopt_version() -> str:
    """``0.47.0``, for example."""
    try:
        return metadata.version("nvidia-modelopt")
    except metadata.PackageNotFoundError:
        return "of unknown version"


def quantize_with_modelopt(
    view: GraphView,
    spec: InputSpec,
    pictures: Sequence[Path],
    method: str,
    kept: Collection[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Opinion:
    """The graph of `view` as ModelOpt quantizes it, calibrated with `pictures`.

    Args:
        view: of the float graph.
        spec: how a picture becomes its input.
        pictures: paths, read one batch at a time.
        method: ``minmax`` or ``entropy``.
        kept: layers that stay in floats; so does all that is not backbone, FPN, prototype net or heads.
        progress: told the number of pictures done and of all.

    Raises :class:`ConfigError` for another method, :class:`MissingDependencyError` where ModelOpt is not installed whole,
    :class:`PictureError` for one that cannot be read, and :class:`ModelFileError` where ModelOpt fails. Nothing that it writes or prints
    is left.
    """
    job = Job(
        method=modelopt_method(method),
        exclude=_excluded(view, kept),
        input=view.inputs[0],
        batch=_batch_of(view),
        pictures=tuple(str(path.absolute()) for path in pictures),
        spec=spec,
    )
    check_modelopt()
    with tempfile.TemporaryDirectory(prefix="yolact-modelopt-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        job.save(folder)
        onnx.save(view.model, folder / MODEL)
        _run(folder, lambda batches: progress(min(batches * job.batch, len(job.pictures)), len(job.pictures)))
        return read_opinion(view, onnx.load(folder / QUANTIZED))


def _excluded(view: GraphView, kept: Collection[str]) -> tuple[str, ...]:
    floats = {place for layer in view.layers.values() if layer.name in kept for place in layer.nodes}
    return tuple(node.name for place, node in enumerate(view.nodes) if place in floats or not view.in_network(place))


def _batch_of(view: GraphView) -> int:
    return next(value.type.tensor_type.shape.dim[0].dim_value or 1 for value in view.model.graph.input if value.name == view.inputs[0])


def _run(folder: Path, progress: Callable[[int], None]) -> None:
    """Let the process work in `folder`; it is ended with whatever ends this one's waiting."""
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with open(folder / _LOG, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _START],
            cwd=folder,
            env={**os.environ, **temporary, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            while process.poll() is None:
                progress(_size(folder / DONE))
                try:
                    process.wait(_POLL)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            process.wait()
    progress(_size(folder / DONE))
    if process.returncode or not (folder / QUANTIZED).is_file():
        raise _failure(folder, process.returncode)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _failure(folder: Path, code: int) -> Exception:
    """What the process told, or else the last line that it printed."""
    try:
        found = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        lines = (folder / _LOG).read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it said nothing")
        found = {"kind": "failed", "message": f"its process ended with code {code}: {last}"}
    if found["kind"] == "picture":
        return PictureError(found["message"], found["mend"])
    if found["kind"] == "import":
        return _missing(f"{found['package'] or _PACKAGE} ({found['message']})")
    return ModelFileError(f"ModelOpt {modelopt_version()} cannot quantize the graph: {found['message']}", "Take --quantizer own.")


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError.of(package, "modelopt", "--quantizer modelopt")


def read_opinion(view: GraphView, quantized: onnx.ModelProto) -> Opinion:
    """ModelOpt's decisions of its graph `quantized`, written into the graph of `view`.

    Raises :class:`ModelFileError` where that is not the same network any more, or nothing in it is quantized.
    """
    pairs = _Pairs(quantized)
    readers: dict[str, list[tuple[int, int]]] = {}
    ranges: dict[str, Range] = {}
    weights: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]] = {}
    convolutions: list[int] = []
    for place, node in enumerate(view.nodes):
        for index, name in enumerate(node.input):
            scales = pairs.scales(node, index)
            if scales is None:
                continue
            if name not in view.initializers:
                largest = 127 * float(scales.max())  # of one: ModelOpt gives channels to weights alone
                ranges.setdefault(name, Range(-largest, largest))
                readers.setdefault(name, []).append((place, index))
            elif node.op_type == "Conv" and index == 1:
                convolutions.append(place)
                weights.setdefault(name, _steps(view, name, scales))
    if not convolutions:
        raise ModelFileError("ModelOpt quantized no convolution of the graph.", "Keep fewer layers in floats, or take --quantizer own.")
    order = sorted(readers, key=lambda name: (view.producers.get(name, -1), name))
    placement = Placement(tuple(convolutions), {name: tuple(readers[name]) for name in order})
    done = set(convolutions)
    left = tuple(layer.name for layer in view.layers.values() if not done.issuperset(layer.nodes))
    return Opinion(write_tensorrt(view, placement, ranges, rounded=weights), ranges, left, modelopt_version())


def _steps(view: GraphView, name: str, scales: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    values = numpy_helper.to_array(view.initializers[name]).astype(np.float32)
    wide = float16_above(np.broadcast_to(scales, len(values)).astype(np.float64))
    return weight_integers(values, wide), wide


class _Pairs:
    """The Q/DQ pairs of a graph, by who reads them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = {node.name: node for node in model.graph.node}
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}

    def scales(self, node: onnx.NodeProto, index: int) -> NDArray[np.float32] | None:
        """Those of the pair through which the node of the same name reads that input, float32 [1] or [channels]; None without a pair."""
        found = self.nodes.get(node.name)
        if found is None or found.op_type != node.op_type or len(found.input) < len(node.input):
            raise ModelFileError(f"The node {node.name} is not in ModelOpt's graph any more.", "Take --quantizer own.")
        maker = self.producers.get(found.input[index])
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        constants = [self.initializers.get(name) for name in maker.input[1:]]
        scale, zero = (numpy_helper.to_array(one) if one is not None else None for one in (*constants, None)[:2])
        if scale is None or (zero is not None and (zero.dtype != np.int8 or zero.any())) or not (scale > 0).all():
            raise ModelFileError(f"ModelOpt's pair before {node.name} is not symmetric int8.", "Take --quantizer own.")
        return scale.astype(np.float32).reshape(-1)
