"""Float16 made here, of a float32 graph or between the Q/DQ pairs of an INT8 one: checked against the file in ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from yolact_deploy.data.sample import sample_picture
from yolact_deploy.errors import ConfigError, ModelFileError, VerificationError
from yolact_deploy.export.passes import convert_opset, convert_to_float16
from yolact_deploy.manifest import Manifest
from yolact_deploy.matching import FLOAT16
from yolact_deploy.preprocess import prepare

__all__ = ["check_float16", "check_int8_with_float16", "int8_with_float16"]

Array = NDArray[Any]
_HALF_PAIRS_OPSET = 19  # the first whose QuantizeLinear reads float16
_LARGEST_MEAN = 0.7  # networks with drawn weights, which amplify a step of int8 more than trained ones, reach 0.3
_LARGEST_FLOAT16 = 65504.0
_COMPARED = ("boxes", "scores", "coefficients", "prototypes")


def check_float16(before: onnx.ModelProto, after: onnx.ModelProto, manifest: Manifest) -> dict[str, Any]:
    """The largest difference of each output on a drawn picture and on noise, relative to the largest value of the float32 graph's.

    A graph with its NMS inside is compared by its prototypes alone, because its other outputs jump where a score crosses a cut: what it
    loses is for ``yolact-deploy evaluate`` to say. Raises :class:`VerificationError` where a difference exceeds what float16 explains.
    """
    images = _images(manifest)
    found: dict[str, float] = {}
    for truth, outputs in zip(_run(before, images), _run(after, images), strict=True):
        for name in _COMPARED:
            if name in truth:
                found[name] = max(found.get(name, 0.0), _difference(truth[name], outputs[name]))
    failed = [f"{name} by {value:.1e}" for name, value in found.items() if not value <= FLOAT16.outputs]
    if failed:
        raise VerificationError(
            f"The float16 graph differs from the float32 one by more than {FLOAT16.outputs:.0e} of the largest value: {', '.join(failed)}.",
            "FP16 does not hold this network's values: build without --fp16.",
        )
    return {"largest_relative_difference": found, "compared": "the float16 graph with the float32 file, in ONNX Runtime"}


def int8_with_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an INT8 graph whose floats are float16, Q/DQ scales too, which takes opset 19; what stays float32 in ``--fp16`` does here.

    Raises :class:`ConfigError` for a weight or scale that float16 cannot hold.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    opset = next(entry.version for entry in copy.opset_import if entry.domain in ("", "ai.onnx"))
    copy = convert_opset(copy, max(opset, _HALF_PAIRS_OPSET))
    try:
        return convert_to_float16(copy, [value.name for value in (*copy.graph.input, *copy.graph.output)])
    except ConfigError as error:
        raise ConfigError(error.message, "FP16 does not hold this network's values: calibrate with --rest float32.") from None


def check_int8_with_float16(before: onnx.ModelProto, after: onnx.ModelProto, manifest: Manifest) -> dict[str, Any]:
    """The mean difference of each output, relative to the mean magnitude of the graph with float32 around its pairs.

    A value between two steps of int8 can fall on either, so single elements differ by steps; float16 that fails differs everywhere.
    Raises :class:`VerificationError` where it does, and where a value is too large for it.
    """
    images = _images(manifest)
    _check_magnitudes(before, after, images)
    found: dict[str, float] = {}
    for truth, outputs in zip(*(_run(model, images, as_written=True) for model in (before, after)), strict=True):
        for name in _COMPARED:
            if name in truth:
                found[name] = max(found.get(name, 0.0), _mean_difference(truth[name], outputs[name]))
    failed = [f"{name} by {value:.1e}" for name, value in found.items() if not value <= _LARGEST_MEAN]
    if failed:
        raise VerificationError(
            f"With float16 between its Q/DQ pairs the INT8 graph's outputs move by more than {_LARGEST_MEAN} of their size: "
            f"{', '.join(failed)}.",
            "FP16 does not hold this network's values: calibrate with --rest float32.",
        )
    return {"mean_relative_difference": found, "compared": "float16 with float32 between the Q/DQ pairs, in ONNX Runtime"}


def _check_magnitudes(before: onnx.ModelProto, after: onnx.ModelProto, images: list[Array]) -> None:
    """No value of `before` that is float16 in `after` exceeds it: ONNX Runtime's CPU kernels are float32 inside, so outputs do not tell."""
    typed = onnx.shape_inference.infer_shapes(after, strict_mode=True, data_prop=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*typed.value_info, *typed.output)}
    half = {name.removesuffix("_half") for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16}
    names = [name for node in before.graph.node for name in node.output if name in half]
    model = onnx.ModelProto()
    model.CopyFrom(before)
    del model.graph.output[:]
    for name in names:
        absolute, largest = f"{name}_absolute", f"{name}_largest"
        model.graph.node.append(onnx.helper.make_node("Abs", [name], [absolute]))
        model.graph.node.append(onnx.helper.make_node("ReduceMax", [absolute], [largest], keepdims=0))
        model.graph.output.append(onnx.helper.make_tensor_value_info(largest, onnx.TensorProto.FLOAT, []))
    for found in _run(model, images, as_written=True):
        for name in names:
            reached = float(found[f"{name}_largest"])
            if not reached <= _LARGEST_FLOAT16:
                raise VerificationError(
                    f"The value {name} of the INT8 graph reaches {reached:.3g}, float16 ends at {_LARGEST_FLOAT16:.0f}.",
                    "FP16 does not hold this network's values: calibrate with --rest float32.",
                )


def _images(manifest: Manifest) -> list[Array]:
    """Prepared batches: a picture, and noise."""
    noise = np.random.default_rng(0).integers(0, 256, (427, 640, 3), np.uint8)
    size = manifest.inputs[0].shape[0]
    count = size if isinstance(size, int) else 1
    return [np.repeat(prepare(picture, manifest.input)[None], count, 0) for picture in (sample_picture(), noise)]


def _run(model: onnx.ModelProto, images: list[Array], *, as_written: bool = False) -> list[dict[str, Array]]:
    """`as_written` leaves out ONNX Runtime's optimizations: with float16 between Q/DQ pairs they lose exactness."""
    options = onnxruntime.SessionOptions()
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        names = [output.name for output in session.get_outputs()]
        return [dict(zip(names, cast("list[Array]", session.run(None, {name: batch})), strict=True)) for batch in images]
    except Exception as error:  # noqa: BLE001 - its exceptions share no public base
        reason = str(error).splitlines()[0][:200]
        raise ModelFileError(f"ONNX Runtime {onnxruntime.__version__} cannot run the graph: {reason}", "Export it again.") from None


def _difference(truth: Array, found: Array) -> float:
    values = found.astype(np.float64)
    if not np.isfinite(values).all():
        return float("inf")
    absolute = float(np.abs(truth.astype(np.float64) - values).max(initial=0.0))
    return absolute / (float(np.abs(truth).max(initial=0.0)) or 1.0)


def _mean_difference(truth: Array, found: Array) -> float:
    values = found.astype(np.float64)
    if not np.isfinite(values).all():
        return float("inf")
    return float(np.abs(truth.astype(np.float64) - values).mean() / (np.abs(truth.astype(np.float64)).mean() or 1.0))
