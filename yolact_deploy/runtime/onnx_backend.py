"""ONNX Runtime: the backend that needs no training framework."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from yolact_deploy.engines.gpu import cuda_device_count
from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.files import sha256_of
from yolact_deploy.onnx_file import read_manifest
from yolact_deploy.runtime.backend import Backend

__all__ = ["OnnxBackend", "choose_providers"]

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int32)": "int32"}
_NEEDED = {
    "none": {"boxes", "scores", "coefficients", "prototypes"},
    "nms": {"detections_boxes", "detections_scores", "detections_labels", "detections_coefficients", "prototypes"},
    "masks": {"detections_boxes", "detections_scores", "detections_labels", "detections_masks"},
}
_SHORT = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


class OnnxBackend(Backend):
    """An ONNX file that ``yolact-deploy export`` wrote, in ONNX Runtime.

    `providers` are names of execution providers, short (``cpu``, ``cuda``) or whole; by default CUDA where this build of ONNX
    Runtime has it and a GPU answers, else the CPU. `threads` limits the CPU's threads (0 leaves it to ONNX Runtime).

    Raises :class:`ModelFileError` for a file that is missing, broken, foreign, or whose mask-IoU net is missing or altered;
    :class:`ConfigError` for a provider that is not there.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, providers: Sequence[str] | None = None, threads: int = 0) -> None:
        self.manifest = read_manifest(path)
        self.providers = choose_providers(providers)
        self.threads = threads
        self.session = self._open(path)
        self._check_tensors(path)
        self.mask_iou_session = self._open(self._mask_iou_file(path)) if self.manifest.mask_iou else None
        self._check_providers(providers)
        self.device = self.session.get_providers()[0].removesuffix("ExecutionProvider")

    def _open(self, path: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        if self.providers != ["CPUExecutionProvider"]:
            _find_cuda_libraries()
        onnxruntime.set_default_logger_severity(4)  # what fails is told below, in one line
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=self.providers)
        except Exception as error:  # noqa: BLE001 - its exceptions share no public base
            reason = str(error).splitlines()[0][:200]
            raise ModelFileError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {reason}", "Export it again.") from None
        finally:
            onnxruntime.set_default_logger_severity(2)

    def _check_providers(self, named: Sequence[str] | None) -> None:
        """ONNX Runtime leaves out a provider that does not start; one that was asked for by name is never left out silently."""
        lacking = [name for name in self.providers if name not in self.session.get_providers()]
        if named is not None and lacking:
            raise ConfigError(
                f"{', '.join(lacking)} did not start (no GPU, or the CUDA libraries that this ONNX Runtime wants are missing).",
                "Install them, or name the cpu; yolact-deploy doctor tells what is here.",
            )

    def _check_tensors(self, path: Path) -> None:
        values = (*self.session.get_inputs(), *self.session.get_outputs())
        found = [f"{value.name} {_DTYPES.get(value.type, value.type)} {list(value.shape)}" for value in values]
        specs = (*self.manifest.inputs, *self.manifest.outputs)
        wanted = [f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs]
        if found != wanted:
            differing = next((pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]), (len(found), len(wanted)))
            raise ModelFileError(f"{path} has the tensor {differing[0]}, its manifest says {differing[1]}.", "Export it again.")
        shapes = {spec.name: spec.shape for spec in specs}
        missing = sorted(_NEEDED[self.manifest.postprocess] - set(shapes))
        if missing or shapes.get("scores", (0,))[-1] not in (0, self.manifest.variant.num_classes):
            reason = f"lacks {', '.join(missing)}" if missing else f"scores {shapes['scores'][-1]} classes"
            raise ModelFileError(
                f"{path} {reason}, which does not fit its manifest (postprocess {self.manifest.postprocess}, "
                f"{self.manifest.variant.num_classes} classes with background).",
                "Export it again.",
            )

    def _mask_iou_file(self, path: Path) -> Path:
        named = self.manifest.mask_iou
        beside = path.parent / Path(named["file"]).name
        if not beside.is_file():
            raise ModelFileError(
                f"{path} needs its mask-IoU net {beside.name} beside it, which is missing.", "Copy both files, or export again."
            )
        if sha256_of(beside) != named["sha256"]:
            raise ModelFileError(
                f"{beside} is not the mask-IoU net that {path.name} was exported with.", "Copy both files, or export again."
            )
        return beside

    def infer_impl(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """See :meth:`Backend.infer`."""
        names = [spec.name for spec in self.manifest.outputs]
        values = _run(self.session, names, {self.manifest.inputs[0].name: np.ascontiguousarray(images)})
        return dict(zip(names, cast("list[NDArray[Any]]", values), strict=True))

    def mask_iou(self, masks: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Backend.mask_iou`."""
        if self.mask_iou_session is None:
            raise ModelFileError(f"The model {self.manifest.variant.name} has no mask-IoU net.", "Export a YOLACT++ checkpoint.")
        return cast("NDArray[np.float32]", _run(self.mask_iou_session, None, {"masks": masks})[0])


def _run(session: onnxruntime.InferenceSession, names: list[str] | None, inputs: dict[str, NDArray[Any]]) -> Any:
    try:
        return session.run(names, inputs)
    except Exception as error:  # noqa: BLE001 - its exceptions share no public base
        reason = str(error).splitlines()[0][:200]
        raise ModelFileError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run the model: {reason}", "Try fewer pictures at once or --providers cpu."
        ) from None


def choose_providers(wanted: Sequence[str] | None = None) -> list[str]:
    """Execution providers to use, best first, the CPU always last; :class:`ConfigError` for one that is not available."""
    available = onnxruntime.get_available_providers()
    if wanted is None:
        cuda = "CUDAExecutionProvider"
        return [*([cuda] if cuda in available and cuda_device_count() else []), "CPUExecutionProvider"]
    names = [_SHORT.get(name.lower(), name) for name in wanted]
    missing = [name for name in names if name not in available]
    if missing or not names:
        found, lacking = ", ".join(available), ", ".join(missing) or "(none named)"
        raise ConfigError(
            f"ONNX Runtime {onnxruntime.__version__} has no provider {lacking}; it has {found}.",
            "Name one of these, or install the onnxruntime build that has it.",
        )
    return list(dict.fromkeys([*names, "CPUExecutionProvider"]))


def _find_cuda_libraries() -> None:
    """Load CUDA and cuDNN from the wheels that PyTorch brings, where ONNX Runtime can do that (1.21 and newer) and they are there."""
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()
