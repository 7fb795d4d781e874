"""Running a model: one detector, several backends."""

from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.detector import CHECKPOINTS, ENGINES, Detector, load

__all__ = ["CHECKPOINTS", "ENGINES", "Backend", "Detector", "load"]
