"""Running a model: one detector, several backends."""

from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.detector import Detector, load

__all__ = ["Backend", "Detector", "load"]
