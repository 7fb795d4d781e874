"""The check of a float16 graph that was made here: its outputs against those of the float32 file, in ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from yolact_deploy.data.sample import sample_picture
from yolact_deploy.errors import ModelFileError, VerificationError
from yolact_deploy.manifest import Manifest
from yolact_deploy.matching import FLOAT16
from yolact_deploy.preprocess import prepare

__all__ = ["check_float16"]

Array = NDArray[Any]
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


def _images(manifest: Manifest) -> list[Array]:
    """Prepared batches: a picture, and noise."""
    noise = np.random.default_rng(0).integers(0, 256, (427, 640, 3), np.uint8)
    size = manifest.inputs[0].shape[0]
    count = size if isinstance(size, int) else 1
    return [np.repeat(prepare(picture, manifest.input)[None], count, 0) for picture in (sample_picture(), noise)]


def _run(model: onnx.ModelProto, images: list[Array]) -> list[dict[str, Array]]:
    options = onnxruntime.SessionOptions()
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
