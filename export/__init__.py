"""PyTorch -> ONNX: tracing, graph passes, FP16, the manifest inside the file, and the proof that the file equals the model."""

from .exporter import ExportOptions, ExportResult, export_checkpoint
from .matching import DetectionMatch, Tolerance, match_detections
from .verification import Comparison, VerificationReport

__all__ = [
    "Comparison",
    "DetectionMatch",
    "ExportOptions",
    "ExportResult",
    "Tolerance",
    "VerificationReport",
    "export_checkpoint",
    "match_detections",
]
