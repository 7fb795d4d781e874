"""TensorRT and TensorRT-RTX: an engine on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.engines.cuda.compiler import cached_kernels
from yolact_deploy.engines.cuda.driver import Module
from yolact_deploy.engines.cuda.preprocess import DevicePicture, picture_size
from yolact_deploy.engines.cuda.workspace import MOST_PIXELS, check_settings
from yolact_deploy.engines.detecting import DetectingContext, head_shapes
from yolact_deploy.engines.loading import load_engine
from yolact_deploy.engines.session import Context
from yolact_deploy.errors import ConfigError, DeviceError, MissingDependencyError, ModelFileError, YolactDeployError
from yolact_deploy.pictures import Picture
from yolact_deploy.postprocess import PostprocessSettings
from yolact_deploy.runtime.backend import Backend

__all__ = ["PostprocessPlace", "TensorRTBackend"]

PostprocessPlace = Literal["auto", "gpu", "cpu"]
"""Where NMS and masks are made; ``auto``: on the GPU where it can."""


class TensorRTBackend(Backend):
    """An engine that ``yolact-deploy build-engine`` wrote or ``adopt`` took in.

    `device` is ``cuda`` or ``cuda:1``; `contexts` is how many threads may run it at once, each with buffers of its own; `graphs` replays
    CUDA graphs where the batch stays the same; `stream` is a stream of the caller's to run on (torch's, CuPy's, or a ``CUstream`` as an
    integer). `trust` loads an engine without a sidecar. The arguments and errors are :func:`yolact_deploy.engines.loading.load_engine`'s.

    `postprocess` says where pictures are prepared and NMS and masks made. With ``auto`` that is the GPU, but for what is too large for the
    kernels and where NVRTC is missing; :meth:`host_reason` tells. With ``gpu`` these are a :class:`ConfigError`.
    """

    name = "tensorrt"

    def __init__(
        self,
        path: Path,
        *,
        device: str | None = None,
        contexts: int = 1,
        graphs: bool = True,
        stream: object | None = None,
        trust: bool = False,
        lean_runtime: str | None = None,
        postprocess: PostprocessPlace = "auto",
    ) -> None:
        if postprocess not in get_args(PostprocessPlace):
            raise ConfigError(f"postprocess is {postprocess!r}.", f"Name one of {', '.join(get_args(PostprocessPlace))}.")
        index = _device_index(device)
        self.engine = load_engine(
            path, device=index, contexts=contexts, graphs=graphs, stream=stream, trust=trust, lean_runtime=lean_runtime
        )
        self.manifest = self.engine.manifest
        session = self.engine.session.engine
        self.device = f"{session.driver.info.name}, {session.tensorrt}"
        self._batches = session.batch
        self._postprocess = postprocess
        self._lock = threading.Lock()
        self._image: bytes | None = None
        self._module: Module | None = None
        self._detecting: dict[Context, DetectingContext] = {}
        self._no_kernels = ""

    @property
    def smallest_batch(self) -> int:
        return self._batches.minimum

    @property
    def largest_batch(self) -> int | None:
        return self._batches.maximum

    def infer_impl(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """See :meth:`Backend.infer`."""
        return self.engine.session.run({self.manifest.inputs[0].name: images})

    def host_reason(self, sizes: Sequence[tuple[int, int]], settings: PostprocessSettings) -> str:
        """Why the detections of such pictures are made on the CPU; empty where they are made on the GPU."""
        if self._postprocess == "cpu":
            return "postprocess='cpu' was asked for"
        if any(width * height >= MOST_PIXELS for width, height in sizes):
            return "a picture has 2^31 pixels or more"
        try:
            if self.manifest.postprocess == "none":
                check_settings(settings)
            head_shapes(self.engine.session.engine, self.manifest)
        except ConfigError as error:
            return error.message.rstrip(".")
        with self._lock:
            return "" if self._module is not None or self._image is not None else self._compile()

    def detect(self, images: NDArray[Any], sizes: Sequence[tuple[int, int]], settings: PostprocessSettings) -> list[Detections] | None:
        """See :meth:`Backend.detect`."""
        self.check(images)
        given = {self.manifest.inputs[0].name: images}
        return self._detected(sizes, settings, lambda detecting: detecting.detect(given, sizes, self.manifest.classes))

    def detect_pictures(self, pictures: Sequence[Picture | DevicePicture], settings: PostprocessSettings) -> list[Detections] | None:
        """See :meth:`Backend.detect_pictures`; pictures in device memory are taken too."""
        sizes = [picture_size(picture) for picture in pictures]
        return self._detected(sizes, settings, lambda detecting: detecting.detect_pictures(pictures, self.manifest.classes))

    def _detected(
        self,
        sizes: Sequence[tuple[int, int]],
        settings: PostprocessSettings,
        detect: Callable[[DetectingContext], list[Detections]],
    ) -> list[Detections] | None:
        """What `detect` finds on the GPU; None where that is the host's."""
        reason = self.host_reason(sizes, settings)
        if not reason:
            with self.engine.session.context() as context:
                detecting = self._behind(context, settings)
                if detecting is not None:
                    return detect(detecting)
            reason = self._no_kernels
        if self._postprocess == "gpu":
            raise ConfigError(f"Post-processing on the GPU was asked for, but {reason}.", "Use postprocess='auto'.")
        return None

    def _compile(self) -> str:
        """Take the kernels from the cache or compile them; why that cannot be, or nothing."""
        if self._no_kernels:
            return self._no_kernels
        try:
            self._image = cached_kernels(self.engine.session.engine.driver.info.compute_capability)
        except (DeviceError, MissingDependencyError) as error:
            self._no_kernels = _in_one(error)
        return self._no_kernels

    def _behind(self, context: Context, settings: PostprocessSettings) -> DetectingContext | None:
        """The post-processing behind this context, which is the caller's, made anew for other settings; None without kernels."""
        with self._lock:
            known = self._detecting.get(context)
            module = self._loaded()
        if module is None or (known is not None and known.settings == settings):
            return known
        if known is not None:
            known.close()
        net = self.engine.mask_iou.engine if self.engine.mask_iou is not None else None
        made = DetectingContext(context, self.manifest, settings, module, net)
        context.at_close(made.close)
        with self._lock:
            self._detecting[context] = made
        return made

    def _loaded(self) -> Module | None:
        """The kernels on the GPU; None where the driver does not take what NVRTC made, which may be newer."""
        if self._module is None and self._image is not None:
            try:
                self._module = self.engine.session.engine.driver.load_module(self._image)
            except DeviceError as error:
                self._no_kernels = _in_one(error)
            self._image = None
        return self._module

    def mask_iou(self, masks: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Backend.mask_iou`; more masks than the engine takes at once go in pieces, fewer are padded."""
        session = self.engine.mask_iou
        if session is None:
            raise ModelFileError(f"The model {self.manifest.variant.name} has no mask-IoU engine.", "Build it from a YOLACT++ export.")
        batch, name, count = session.engine.batch, session.engine.inputs[0].name, len(masks)
        if 0 < count % batch.maximum < batch.minimum:
            lacking = batch.minimum - count % batch.maximum
            masks = np.concatenate([masks, np.zeros((lacking, *masks.shape[1:]), np.float32)])
        pieces = [session.run({name: masks[start : start + batch.maximum]}) for start in range(0, count, batch.maximum)]
        if not pieces:
            return np.zeros((0, self.manifest.variant.num_classes - 1), np.float32)
        return cast("NDArray[np.float32]", np.concatenate([piece[session.engine.outputs[0].name] for piece in pieces])[:count])

    def close(self) -> None:
        """Wait for running calls, then release the engine, its contexts and their memory."""
        self.engine.close()  # with each context goes what is behind it
        with self._lock:
            self._detecting.clear()
            if self._module is not None:
                self._module.close()
                self._module = None


def _in_one(error: YolactDeployError) -> str:
    """An error as a part of a sentence."""
    mend = f" ({error.mend.rstrip('.')})" if error.mend else ""
    return f"{error.message.rstrip('.')}{mend}"


def _device_index(device: str | None) -> int:
    kind, _, number = (device or "cuda").partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise ConfigError(f"An engine runs on a GPU, the device {device!r} was asked for.", "Name cuda, or cuda:1 for the second GPU.")
    return int(number or 0)
