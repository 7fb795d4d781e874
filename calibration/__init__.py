"""ONNX -> ONNX with Q/DQ: calibration pictures, ranges, placement, the search by mAP, and the accuracy of what is written."""

from __future__ import annotations
