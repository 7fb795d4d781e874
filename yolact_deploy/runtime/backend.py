"""The seam between the detector and whatever computes the network's outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.errors import YolactDeployError
from yolact_deploy.manifest import Manifest
from yolact_deploy.pictures import Picture
from yolact_deploy.postprocess import PostprocessSettings

__all__ = ["Backend"]


class Backend(ABC):
    """Prepared pictures in, named outputs out.

    :meth:`infer` checks shapes and dtypes and calls :meth:`infer_impl`, which subclasses provide.

    Attributes:
        name: ``torch``, ``onnxruntime``, …
        device: where it runs, in words.
        manifest: of the model.
    """

    name: str
    device: str
    manifest: Manifest

    @property
    def batch(self) -> int | None:
        """The fixed batch size, None where it is dynamic."""
        axis = self.manifest.inputs[0].shape[0]
        return axis if isinstance(axis, int) else None

    @property
    def smallest_batch(self) -> int:
        """Fewest pictures that it takes at once."""
        return self.batch or 1

    @property
    def largest_batch(self) -> int | None:
        """Most pictures that it takes at once; None where there is no limit but memory."""
        return self.batch

    def close(self) -> None:  # noqa: B027 - most backends hold nothing that has to be given back early
        """Give back what the model holds of a device; a second call does nothing."""

    def infer(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run the network on `images`, as :func:`yolact_deploy.preprocess.prepare` makes them: [B, 3, S, S] or raw [B, S, S, 3].

        Returns arrays on the host, by output name. Raises :class:`YolactDeployError` where `images` is not what the manifest says.
        """
        self.check(images)
        return self.infer_impl(images)

    def check(self, images: NDArray[Any]) -> None:
        """Raise :class:`YolactDeployError` where `images` is not what the manifest says."""
        spec = self.manifest.inputs[0]
        wanted = (len(images) if isinstance(spec.shape[0], str) and images.ndim else spec.shape[0], *spec.shape[1:])
        if images.dtype != np.dtype(spec.dtype) or images.shape != wanted or not images.size:
            raise YolactDeployError(
                f"The input is {images.dtype} {list(images.shape)}, {spec.dtype} {list(spec.shape)} was wanted.",
                "Prepare pictures with yolact_deploy.preprocess.prepare, or call Detector.predict.",
            )

    def host_reason(self, sizes: Sequence[tuple[int, int]], settings: PostprocessSettings) -> str:
        """Why detections in pictures of these sizes are made by the host, where one might expect the device; else empty."""
        return ""

    def detect(self, images: NDArray[Any], sizes: Sequence[tuple[int, int]], settings: PostprocessSettings) -> list[Detections] | None:
        """Everything up to the detections, where the backend does that on its device; None where post-processing is the host's.

        `images` as for :meth:`infer`; `sizes` are (width, height) of the first ``len(sizes)`` pictures, the rest is padding.
        """
        return None

    def detect_pictures(self, pictures: Sequence[Picture], settings: PostprocessSettings) -> list[Detections] | None:
        """The same from at most :attr:`largest_batch` pictures as they were read, where the backend prepares them on its device too."""
        return None

    @abstractmethod
    def infer_impl(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """What :meth:`infer` does after its checks."""

    @abstractmethod
    def mask_iou(self, masks: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mask-IoU net of a variant with mask rescoring: float32 [N, 1, h, w] -> [N, C-1]."""
