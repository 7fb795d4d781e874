"""Graph passes over the exported ONNX model, one a file; each takes and returns a whole :class:`onnx.ModelProto`."""

from .float16 import convert_to_float16
from .names import rename_by_module
from .opset import convert_opset
from .precision import graph_precision, module_precision

__all__ = ["convert_opset", "convert_to_float16", "graph_precision", "module_precision", "rename_by_module"]
