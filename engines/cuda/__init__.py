"""The GPU without TensorRT: the driver seam, and the GPU's driver behind it."""

from __future__ import annotations

from yolact_deploy.engines.cuda.cuda_core import open_driver
from yolact_deploy.engines.cuda.driver import Driver

__all__ = ["Driver", "open_driver"]
