"""Pictures in, :class:`Detections` out, whatever backend computes the network."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.assembly import Heads, detect, detections_from_nms
from yolact_deploy.classes import ClassList
from yolact_deploy.detections import Detections
from yolact_deploy.engines.targets import ENGINE_SUFFIXES
from yolact_deploy.errors import ConfigError, MissingDependencyError, ModelFileError
from yolact_deploy.manifest import Manifest
from yolact_deploy.pictures import Picture, PictureSource, read_picture
from yolact_deploy.postprocess import PostprocessSettings
from yolact_deploy.preprocess import prepare
from yolact_deploy.runtime.backend import Backend

__all__ = ["CHECKPOINTS", "ENGINES", "Detector", "load"]

CHECKPOINTS = (".pth", ".pt", ".safetensors")
ENGINES = ENGINE_SUFFIXES
"""How the files of each kind end."""
_DEFAULT_GROUP = 8  # pictures prepared at once where the batch is dynamic


class Detector:
    """A model ready to run; made by :func:`load`.

    Attributes:
        backend: what computes the network.
        settings: of the NMS.
    """

    def __init__(self, backend: Backend, settings: PostprocessSettings | None = None) -> None:
        limits = backend.manifest.thresholds
        made_for = PostprocessSettings(limits.score, limits.iou, limits.top_k, limits.max_detections)
        if settings is not None and settings != made_for and backend.manifest.postprocess != "none":
            raise ConfigError(
                f"The graph has its NMS inside (--postprocess {backend.manifest.postprocess}), so its settings cannot be changed.",
                "Export with --postprocess none.",
            )
        self.backend = backend
        self.settings = settings or made_for

    def __repr__(self) -> str:
        name, where = f"{self.manifest.variant.name} {self.manifest.input.size}px", f"{self.backend.name} on {self.backend.device}"
        return f"Detector({name}, {len(self.classes)} classes, {where})"

    @property
    def manifest(self) -> Manifest:
        """What the model says of itself."""
        return self.backend.manifest

    @property
    def classes(self) -> ClassList:
        """Names and category ids of the labels."""
        return self.manifest.classes

    @property
    def group(self) -> int:
        """How many pictures :meth:`stream` takes through the network at once."""
        return max(min(_DEFAULT_GROUP, self.backend.largest_batch or _DEFAULT_GROUP), self.backend.smallest_batch)

    @overload
    def predict(
        self, source: PictureSource, *, channels: Literal["rgb", "bgr"] | None = ..., score_threshold: float = ...
    ) -> Detections: ...
    @overload
    def predict(
        self,
        source: list[PictureSource] | tuple[PictureSource, ...],
        *,
        channels: Literal["rgb", "bgr"] | None = ...,
        score_threshold: float = ...,
    ) -> list[Detections]: ...
    def predict(
        self, source: Any, *, channels: Literal["rgb", "bgr"] | None = None, score_threshold: float = 0.0
    ) -> Detections | list[Detections]:
        """Detect instances in one picture, or in each of a list.

        `source` is a path, a uint8 array [H, W, 3] (then `channels` must say ``rgb`` or ``bgr``), a PIL image, or a list of these.
        Detections with a score above `score_threshold` are kept. ``milliseconds`` of the result tells each stage's time; what is
        done on the GPU, preparing, NMS and masks too, belongs to ``inference``.
        Raises :class:`yolact_deploy.errors.PictureError` for a picture that cannot be read.
        """
        if isinstance(source, (list, tuple)):
            return list(self.stream(source, channels=channels, score_threshold=score_threshold))
        return next(self.stream([source], channels=channels, score_threshold=score_threshold))

    def stream(
        self, sources: Sequence[Any], *, channels: Literal["rgb", "bgr"] | None = None, score_threshold: float = 0.0
    ) -> Iterator[Detections]:
        """:meth:`predict` for many pictures, one batch in memory at a time, in order."""
        step = self.group
        for start in range(0, len(sources), step):
            clock = time.perf_counter()
            pictures = [read_picture(source, channels=channels) for source in sources[start : start + step]]
            spent = {"read": time.perf_counter() - clock}
            for found in self._detect(pictures, spent):
                stages = {name: 1000 * seconds / len(pictures) for name, seconds in spent.items()}
                yield replace(found, milliseconds={**stages, **found.milliseconds}).above(score_threshold)

    def _detect(self, pictures: list[Picture], spent: dict[str, float]) -> list[Detections]:
        """A batch's detections; seconds of preparing on the host are added to `spent`."""
        clock = time.perf_counter()
        on_device = self.backend.detect_pictures(pictures, self.settings)
        if on_device is not None:
            inference = {"inference": 1000 * (time.perf_counter() - clock) / len(pictures)}
            return [replace(found, milliseconds=inference) for found in on_device]
        images = np.stack([prepare(picture, self.manifest.input) for picture in pictures])
        spent["preprocess"] = time.perf_counter() - clock
        return self.predict_prepared(images, [(picture.shape[1], picture.shape[0]) for picture in pictures])

    def predict_prepared(self, images: NDArray[Any], sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect in pictures that are prepared already: `images` as the manifest's input says, `sizes` (width, height) of each original.

        Fewer pictures than the smallest batch are padded, more than the largest are split.
        """
        if len(images) != len(sizes):
            raise ConfigError(f"{len(images)} images and {len(sizes)} sizes were given.", "Give one (width, height) for each image.")
        if not len(images):
            return []
        largest, smallest = self.backend.largest_batch, self.backend.smallest_batch
        if largest is not None and len(images) > largest:
            starts = range(0, len(images), largest)
            pieces = ((images[start : start + largest], sizes[start : start + largest]) for start in starts)
            return [found for piece in pieces for found in self.predict_prepared(*piece)]
        if len(images) < smallest:
            images = np.concatenate([images, np.zeros((smallest - len(images), *images.shape[1:]), images.dtype)])
        clock = time.perf_counter()
        on_device = self.backend.detect(images, sizes, self.settings)
        if on_device is not None:
            spent = {"inference": 1000 * (time.perf_counter() - clock) / len(sizes)}
            return [replace(found, milliseconds=spent) for found in on_device]
        outputs = self.backend.infer(images)
        inference = 1000 * (time.perf_counter() - clock) / len(sizes)
        results = []
        for place, (width, height) in enumerate(sizes):
            clock = time.perf_counter()
            found = self._assemble({name: value[place] for name, value in outputs.items()}, width, height)
            spent = {"inference": inference, "postprocess": 1000 * (time.perf_counter() - clock)}
            results.append(replace(found, milliseconds=spent))
        return results

    def close(self) -> None:
        """Release what the model holds of a GPU now rather than with the last reference to it."""
        self.backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _assemble(self, outputs: dict[str, NDArray[Any]], width: int, height: int) -> Detections:
        manifest = self.manifest
        mask_iou = self.backend.mask_iou if manifest.variant.mask_rescoring else None
        if manifest.postprocess != "none":
            return detections_from_nms(outputs, width, height, self.classes, mask_iou=mask_iou)
        heads = Heads(*(outputs[name].astype(np.float32, copy=False) for name in ("boxes", "scores", "coefficients", "prototypes")))
        return detect(heads, width, height, self.classes, self.settings, mask_iou=mask_iou, input_size=manifest.input.size)


def load(
    path: str | Path,
    *,
    backend: Literal["auto", "torch", "onnxruntime", "tensorrt"] = "auto",
    device: str | None = None,
    providers: Sequence[str] | None = None,
    threads: int = 0,
    settings: PostprocessSettings | None = None,
    variant: str | None = None,
    config: str | Path | None = None,
    classes: str | None = None,
    trust: bool = False,
    contexts: int = 1,
    graphs: bool = True,
    stream: object | None = None,
    lean_runtime: str | None = None,
    postprocess: Literal["auto", "gpu", "cpu"] = "auto",
) -> Detector:
    """A :class:`Detector` for an ONNX file (``.onnx``), an engine (``.engine``) or a checkpoint (``.pth``, ``.pt``, ``.safetensors``).

    ONNX files run in ONNX Runtime (`providers`, `threads`: see :class:`yolact_deploy.runtime.onnx_backend.OnnxBackend`) and engines in
    TensorRT (`device`, `trust`, `contexts`, `graphs`, `stream`, `lean_runtime`, `postprocess`: see
    :class:`yolact_deploy.runtime.tensorrt_backend.TensorRTBackend`); neither imports torch. Checkpoints run in PyTorch (`device`,
    `variant`, `config`, `classes`: see :class:`yolact_deploy.runtime.torch_backend.TorchBackend`). `settings` change the NMS where it is
    not in the graph.

    Raises :class:`ModelFileError` or :class:`yolact_deploy.errors.CheckpointError` for a file that does not do,
    :class:`ConfigError` for arguments that do not fit it, :class:`MissingDependencyError` for a missing extra, and
    :class:`yolact_deploy.errors.DeviceError` for an engine without a GPU.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    chosen = {".onnx": "onnxruntime", **dict.fromkeys(CHECKPOINTS, "torch"), **dict.fromkeys(ENGINES, "tensorrt")}.get(suffix)
    if chosen is None:
        raise ModelFileError(
            f"{path} ends in {suffix or 'nothing'}, .onnx, .engine, .pth or .safetensors was wanted.",
            "Name a model of one of these kinds.",
        )
    if backend not in ("auto", chosen):
        raise ConfigError(f"{path.name} runs in {chosen}, {backend} was asked for.", "Leave the backend to auto.")
    origin = {"variant": variant, "config": config, "classes": classes}
    runtime = {"stream": stream, "lean_runtime": lean_runtime, "trust": trust or None, "contexts": contexts if contexts != 1 else None}
    runtime |= {"graphs": None if graphs else False, "postprocess": None if postprocess == "auto" else postprocess}
    if chosen == "onnxruntime":
        mend = "Choose where it runs by providers; its variant, configuration and classes are inside the file."
        _refuse("an ONNX file", {"device": device, **origin, **runtime}, mend)
        from yolact_deploy.runtime.onnx_backend import OnnxBackend

        return Detector(OnnxBackend(path, providers, threads), settings)
    if chosen == "tensorrt":
        _refuse("an engine", {"providers": providers, "threads": threads or None, **origin}, "What it is stands in its sidecar.")
        from yolact_deploy.runtime.tensorrt_backend import TensorRTBackend

        return Detector(
            TensorRTBackend(
                path,
                device=device,
                contexts=contexts,
                graphs=graphs,
                stream=stream,
                trust=trust,
                lean_runtime=lean_runtime,
                postprocess=postprocess,
            ),
            settings,
        )
    _refuse("a checkpoint", {"providers": providers, **runtime}, "Choose where it runs by device.")
    try:
        import torch

        from yolact_deploy.runtime.torch_backend import TorchBackend
    except ImportError as error:
        raise MissingDependencyError.of(error.name or "torch", "torch", f"Running the checkpoint {path.name}") from None
    if threads:
        torch.set_num_threads(threads)
    return Detector(TorchBackend(path, device=device, variant=variant, config=config, classes=classes), settings)


def _refuse(kind: str, given: dict[str, Any], mend: str) -> None:
    named = [key for key, value in given.items() if value is not None]
    if named:
        raise ConfigError(f"{', '.join(named)} cannot be given with {kind}.", mend)
