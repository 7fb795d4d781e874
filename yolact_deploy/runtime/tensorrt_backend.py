"""TensorRT and TensorRT-RTX: an engine on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.engines.loading import load_engine
from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.runtime.backend import Backend

__all__ = ["TensorRTBackend"]


class TensorRTBackend(Backend):
    """An engine that ``yolact-deploy build-engine`` wrote or ``adopt`` took in.

    `device` is ``cuda`` or ``cuda:1``; `contexts` is how many threads may run it at once, each with buffers of its own; `graphs` replays
    CUDA graphs where the batch stays the same; `stream` is a stream of the caller's to run on (torch's, CuPy's, or a ``CUstream`` as an
    integer). `trust` loads an engine without a sidecar. The arguments and errors are :func:`yolact_deploy.engines.loading.load_engine`'s.
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
    ) -> None:
        index = _device_index(device)
        self.engine = load_engine(
            path, device=index, contexts=contexts, graphs=graphs, stream=stream, trust=trust, lean_runtime=lean_runtime
        )
        self.manifest = self.engine.manifest
        session = self.engine.session.engine
        self.device = f"{session.driver.info.name}, {session.tensorrt}"
        self._batches = session.batch

    @property
    def smallest_batch(self) -> int:
        return self._batches.minimum

    @property
    def largest_batch(self) -> int | None:
        return self._batches.maximum

    def infer_impl(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """See :meth:`Backend.infer`."""
        return self.engine.session.run({self.manifest.inputs[0].name: images})

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
        """Release the engine, its contexts and their memory."""
        self.engine.close()


def _device_index(device: str | None) -> int:
    kind, _, number = (device or "cuda").partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise ConfigError(f"An engine runs on a GPU, the device {device!r} was asked for.", "Name cuda, or cuda:1 for the second GPU.")
    return int(number or 0)
