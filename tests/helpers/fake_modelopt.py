"""A stand-in for ``modelopt.onnx.quantization``, which is loaded in a process of its own: :func:`installed` makes a package of it.

It runs the reader as ModelOpt does, writes down what it was asked for, prints, and leaves files behind. Its pairs stand before every
convolution and first side of an addition that is not excluded, with scales that float16 holds. What goes wrong, the variable
``FAKE_MODELOPT`` says.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

SCALE = 0.0625
RECORD, FAULT = "FAKE_MODELOPT_RECORD", "FAKE_MODELOPT"


def installed(folder: Path) -> Path:
    """A folder for ``sys.path`` with a package ``modelopt`` that is this module."""
    package = folder / "site" / "modelopt" / "onnx" / "quantization"
    package.mkdir(parents=True)
    for path in (package.parent.parent, package.parent):
        (path / "__init__.py").touch()
    (package / "__init__.py").write_text("from tests.helpers.fake_modelopt import quantize\n")
    return folder / "site"


def quantize(onnx_path: str, *, calibration_data_reader: Any, output_path: str, nodes_to_exclude: list[str], **arguments: Any) -> None:
    fault = os.environ.get(FAULT, "")
    for stream in (1, 2):
        os.write(stream, b"[modelopt] chatter\n")
    sys.stderr.write("progress\n")
    os.close(tempfile.mkstemp(suffix=".onnx")[0])
    Path("left_in_the_current_folder").touch()
    Path(onnx_path).with_name("model_named.onnx").touch()
    first = calibration_data_reader.get_first()
    batches = []
    while batch := calibration_data_reader.get_next():
        batches.append({name: [list(images.shape), images.dtype.name, float(images.mean())] for name, images in batch.items()})
    (name,) = first
    record = {**arguments, "exclude": nodes_to_exclude, "batches": batches, "first": float(first[name].mean()), "pid": os.getpid()}
    Path(os.environ[RECORD]).write_text(json.dumps(record))
    model = onnx.load(onnx_path)
    if fault == "raise":
        raise ValueError("the graph is too odd\nand much more")
    if fault == "import":
        raise ModuleNotFoundError("No module named 'onnx_graphsurgeon.ir'", name="onnx_graphsurgeon.ir")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "exit":
        os.write(2, b"terminate called\n\n")
        os._exit(3)
    if fault == "sleep":
        time.sleep(60)
    if fault != "nothing written":
        onnx.save(_with_pairs(model, nodes_to_exclude, zero=3 if fault == "asymmetric" else 0), output_path)


def _with_pairs(model: onnx.ModelProto, exclude: list[str], zero: int) -> onnx.ModelProto:
    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    made: dict[str, str] = {}

    def constant(name: str, value: NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def paired(name: str, scale: NDArray[np.float32]) -> str:
        if name not in made:
            inputs = [constant(f"{name}_s", scale), constant(f"{name}_z", np.full(scale.shape, zero, np.int8))]
            nodes.append(helper.make_node("QuantizeLinear", [name, *inputs], [f"{name}_q"], f"{name}_QuantizeLinear", axis=0))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *inputs], [f"{name}_dq"], f"{name}_DequantizeLinear", axis=0))
            made[name] = f"{name}_dq"
        return made[name]

    for node in graph.node:
        if not any(re.match(pattern, node.name) for pattern in exclude):
            if node.op_type in ("Conv", "Add"):
                node.input[0] = paired(node.input[0], np.array(SCALE, np.float32))
            if node.op_type == "Conv":
                largest = np.abs(weights[node.input[1]]).max(axis=(1, 2, 3))
                scales = np.maximum(largest / 127, 1e-4).astype(np.float16).astype(np.float32)
                node.input[1] = paired(node.input[1], scales)
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return model
