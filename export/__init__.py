"""PyTorch -> ONNX: tracing, graph passes, FP16, the manifest inside the file, and the proof that the file equals the model."""

from .exporter import ExportOptions, ExportResult, export_checkpoint
from .verification import Comparison, VerificationReport

__all__ = ["Comparison", "ExportOptions", "ExportResult", "VerificationReport", "export_checkpoint"]
