"""From pictures to detections on the GPU: an execution context with preprocessing before it and, in one CUDA graph, what follows it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.classes import ClassList
from yolact_deploy.detections import Detections
from yolact_deploy.manifest import Manifest
from yolact_deploy.pictures import Picture
from yolact_deploy.postprocess import PostprocessSettings

from .cuda.arrays import DeviceArray
from .cuda.driver import Module, Stream
from .cuda.heads import GivenDetections, Heads
from .cuda.postprocessor import Postprocessor
from .cuda.preprocess import DevicePicture, DevicePreprocessor, picture_size
from .cuda.workspace import HeadShapes, detection_slots
from .rescoring import DeviceMaskIou
from .session import Context, Engine

__all__ = ["DetectingContext", "head_shapes"]

_HEADS = ("boxes", "scores", "coefficients", "prototypes")
_GIVEN = {
    "nms": ("boxes", "scores", "labels", "coefficients", "prototypes"),
    "masks": ("boxes", "scores", "labels", "masks", "mask_scores"),
}


def head_shapes(engine: Engine, manifest: Manifest) -> HeadShapes:
    """What post-processing has to know of an engine's outputs.

    Raises :class:`yolact_deploy.errors.ConfigError` for sizes that the kernels do not take.
    """
    shapes = {tensor.name: tensor.shape for tensor in engine.outputs}
    if manifest.postprocess == "none":
        priors, classes = shapes["scores"]
    else:
        (priors,), classes = shapes["detections_labels"], len(manifest.classes) + 1
    prototypes, height, width = (0, *shapes["detections_masks"][1:]) if manifest.postprocess == "masks" else shapes["prototypes"]
    return HeadShapes(priors, classes, prototypes, height, width, manifest.postprocess)


class DetectingContext:
    """Detections straight from an execution context; for one thread at a time.

    Args:
        context: of the network, which has one input.
        manifest: what it says of its input, its classes and what is in its graph.
        settings: of the NMS, where that is not in the graph.
        module: the compiled kernels.
        mask_iou: the engine of the mask-IoU net, for variants with mask rescoring.

    Raises :class:`yolact_deploy.errors.ConfigError` for what the kernels do not take and
    :class:`yolact_deploy.errors.DeviceError` where memory does not suffice.
    """

    def __init__(
        self, context: Context, manifest: Manifest, settings: PostprocessSettings, module: Module, mask_iou: Engine | None = None
    ) -> None:
        self.context, self.settings = context, settings
        engine = context.engine
        self._shapes = shapes = head_shapes(engine, manifest)
        self._release = contextlib.ExitStack()
        try:
            net = None
            if mask_iou is not None and shapes.graph != "masks":
                slots = detection_slots(shapes, settings)
                own = self._release.enter_context(Context(mask_iou, graphs=False))
                net = self._release.enter_context(contextlib.closing(DeviceMaskIou(own, slots * engine.batch.maximum)))
                with engine.driver.active():
                    capturable = mask_iou.tensorrt.can_capture(own.handle, own.stream.handle, dynamic=mask_iou.dynamic)
                context.graphs = context.graphs and capturable
            self._post = self._release.enter_context(
                Postprocessor(
                    shapes,
                    batch=engine.batch.maximum,
                    settings=settings,
                    driver=engine.driver,
                    mask_iou=net,
                    module=module,
                    input_size=manifest.input.size,
                )
            )
            self._prepare = self._release.enter_context(DevicePreprocessor(engine.driver, module, manifest.input, engine.batch.maximum))
        except BaseException:
            self._release.close()
            raise
        self._heads: Heads | GivenDetections | None = None

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

    def _outputs(self, batch: int) -> Heads | GivenDetections:
        engine, tensors = self.context.engine, {tensor.name: tensor for tensor in self.context.engine.outputs}

        def output(name: str) -> DeviceArray:
            buffer, tensor = self.context.buffers[name], tensors[name]
            return DeviceArray(buffer.pointer, (batch, *tensor.shape), np.dtype(tensor.dtype), engine.driver.info.index, buffer)

        if self._shapes.graph == "none":
            return Heads(*map(output, _HEADS))
        names = {name: name if name == "prototypes" else f"detections_{name}" for name in _GIVEN[self._shapes.graph]}
        given = {name: output(tensor) for name, tensor in names.items() if tensor in tensors}
        return GivenDetections(self._shapes.classes, **given)

    def close(self) -> None:
        """Give back what post-processing holds; the context stays."""
        self._heads = None
        self._release.close()
