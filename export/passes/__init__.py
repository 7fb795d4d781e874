"""Graph passes over the exported ONNX model, one a file; each takes and returns a whole :class:`onnx.ModelProto`."""

from .float16 import convert_to_float16
from .names import rename_by_module
from .opset import convert_opset

__all__ = ["convert_opset", "convert_to_float16", "rename_by_module"]
