"""From pictures to detections on the GPU: an execution context with preprocessing before it and, in one CUDA graph, what follows it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.classes import ClassList
from yolact_deploy.detections import Detections
from yolact_deploy.manifest import InputSpec
from yolact_deploy.pictures import Picture
from yolact_deploy.postprocess import PostprocessSettings

from .cuda.arrays import DeviceArray
from .cuda.driver import Module, Stream
from .cuda.postprocessor import Heads, Postprocessor
from .cuda.preprocess import DevicePicture, DevicePreprocessor, picture_size
from .cuda.workspace import HeadShapes
from .rescoring import DeviceMaskIou
from .session import Context, Engine

__all__ = ["DetectingContext"]

_HEADS = ("boxes", "scores", "coefficients", "prototypes")


class DetectingContext:
    """Detections straight from an execution context whose engine gives head outputs; for one thread at a time.

    Args:
        context: of the network, which has one input.
        spec: what its input is.
        settings: of the NMS.
        module: the compiled kernels.
        mask_iou: the engine of the mask-IoU net, for variants with mask rescoring.

    Raises :class:`yolact_deploy.errors.ConfigError` for what the kernels do not take and
    :class:`yolact_deploy.errors.DeviceError` where memory does not suffice.
    """

    def __init__(
        self, context: Context, spec: InputSpec, settings: PostprocessSettings, module: Module, mask_iou: Engine | None = None
    ) -> None:
        self.context, self.settings = context, settings
        engine = context.engine
        shapes = {tensor.name: tensor.shape for tensor in engine.outputs}
        self._release = contextlib.ExitStack()
        try:
            net = None
            if mask_iou is not None:
                slots = settings.top_k if settings.nms == "cross-class" else settings.max_detections
                own = self._release.enter_context(Context(mask_iou, graphs=False))
                net = self._release.enter_context(contextlib.closing(DeviceMaskIou(own, slots * engine.batch.maximum)))
                with engine.driver.active():
                    capturable = mask_iou.tensorrt.can_capture(own.handle, own.stream.handle, dynamic=mask_iou.dynamic)
                context.graphs = context.graphs and capturable
            self._post = self._release.enter_context(
                Postprocessor(
                    HeadShapes(*shapes["scores"], *shapes["prototypes"]),
                    batch=engine.batch.maximum,
                    settings=settings,
                    driver=engine.driver,
                    mask_iou=net,
                    module=module,
                )
            )
            self._prepare = self._release.enter_context(DevicePreprocessor(engine.driver, module, spec, engine.batch.maximum))
        except BaseException:
            self._release.close()
            raise
        self._heads: Heads | None = None

    @property
    def device_bytes(self) -> int:
        """GPU memory of the post-processing."""
        return self._post.device_bytes

    def detect(self, inputs: dict[str, NDArray[Any]], sizes: Sequence[tuple[int, int]], classes: ClassList) -> list[Detections]:
        """The detections of each of the first ``len(sizes)`` pictures of a batch, which may be padded with others.

        `inputs` as :meth:`Context.run` takes them; `sizes` are (width, height) of the original pictures. Waits for the GPU.
        """
        self.enqueue(self.context.upload(inputs), sizes)
        self.context.stream.synchronize()
        return self._post.detections(len(sizes), classes)

    def detect_pictures(self, pictures: Sequence[Picture | DevicePicture], classes: ClassList) -> list[Detections]:
        """The detections of each picture, uint8 RGB [H, W, 3] of any size on the host or on the device, up to the engine's batch of them.

        Pictures are resized and normalised on the GPU. Waits for the GPU.
        """
        (given,) = self.context.engine.inputs
        self._prepare.enqueue(pictures, self.context.buffers[given.name].pointer, self.context.stream, half=given.dtype == "float16")
        sizes = [picture_size(picture) for picture in pictures]
        self.enqueue(max(len(pictures), self.context.engine.batch.minimum), sizes)
        self.context.stream.synchronize()
        return self._post.detections(len(pictures), classes)

    def enqueue(self, batch: int, sizes: Sequence[tuple[int, int]]) -> None:
        """Queue network and post-processing on what is in the context's input buffers."""
        if self._heads is None or self._heads.batch != batch:
            self._heads = self._outputs(batch)
        self._post.set_pictures([*sizes, *[(1, 1)] * (batch - len(sizes))], batch)
        try:
            self.context.enqueue(batch, self._after)
        finally:
            self._post.queued(self.context.stream)

    def _after(self, stream: Stream) -> None:
        assert self._heads is not None
        self._post.enqueue(self._heads, stream)

    def _outputs(self, batch: int) -> Heads:
        engine, tensors = self.context.engine, {tensor.name: tensor for tensor in self.context.engine.outputs}
        index, arrays = engine.driver.info.index, []
        for name in _HEADS:
            buffer = self.context.buffers[name]
            arrays.append(DeviceArray(buffer.pointer, (batch, *tensors[name].shape), np.dtype(tensors[name].dtype), index, buffer))
        return Heads(*arrays)

    def close(self) -> None:
        """Give back what post-processing holds; the context stays."""
        self._heads = None
        self._release.close()
