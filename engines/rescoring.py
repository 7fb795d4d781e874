"""Mask rescoring (YOLACT++) without leaving the GPU: the mask-IoU engine between mask assembly and the final scores."""

from __future__ import annotations

from .cuda.driver import Stream
from .session import Context

__all__ = ["DeviceMaskIou"]


class DeviceMaskIou:
    """The mask-IoU net on masks in device memory, :class:`yolact_deploy.engines.cuda.postprocessor.MaskIouNet`.

    How many masks there are is known on the device alone, so it runs on all `masks` slots, always in pieces of the engine's largest batch:
    one shape, which a graph can hold. What it says of slots without a detection is never read.

    Args:
        context: of the mask-IoU engine, for this use alone.
        masks: slots at most.
    """

    def __init__(self, context: Context, masks: int) -> None:
        self.context = context
        engine = context.engine
        self._masks, self._ious = engine.inputs[0], engine.outputs[0]
        self._answers = engine.driver.allocate(self._ious.nbytes(masks))

    def enqueue(self, masks: int, count: int, stream: Stream) -> int:
        """See :class:`~yolact_deploy.engines.cuda.postprocessor.MaskIouNet`."""
        engine, piece = self.context.engine, self.context.engine.batch.maximum
        given, found = self.context.buffers[self._masks.name].pointer, self.context.buffers[self._ious.name].pointer
        for first in range(0, count, piece):
            size = min(piece, count - first)
            engine.driver.copy(given, masks + self._masks.nbytes(first), self._masks.nbytes(size), stream)
            self.context.execute(piece, stream)
            engine.driver.copy(self._answers.pointer + self._ious.nbytes(first), found, self._ious.nbytes(size), stream)
        return self._answers.pointer

    def close(self) -> None:
        """Give the memory back; the context is its maker's."""
        self._answers.close()
