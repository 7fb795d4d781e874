"""Name nodes after the modules they came from, and drop the exporter's traces, which hold paths of the exporting machine."""

from __future__ import annotations

import ast
from collections import Counter

import onnx

__all__ = ["MODULES", "module_of", "rename_by_module"]

MODULES = {
    "input": "input",
    "network.backbone": "backbone",
    "network.fpn": "fpn",
    "network.proto_net": "protonet",
    "network.prediction_layers.0": "heads",
    "network.maskiou_net": "maskiou",
    "decode": "decode",
    "nms": "nms",
    "masks": "masks",
}
"""Prefix of a torch module's path to the name that the manifest and the node names use."""

_EXACT = {"network": "heads"}  # what joins the levels' outputs

_SCOPES = "pkg.torch.onnx.name_scopes"


def module_of(node_name: str) -> str:
    """The module of a renamed node: ``backbone`` of ``backbone/layers.0.0.conv1/Conv``; ``outputs`` for what has none."""
    return node_name.split("/", 1)[0] if "/" in node_name else "outputs"


def rename_by_module(model: onnx.ModelProto) -> onnx.ModelProto:
    """Node names become ``module/submodule/Operator``, initializers lose the wrapper's prefix, metadata of nodes is dropped."""
    used: Counter[str] = Counter()
    for node in model.graph.node:
        name = _scoped_name(node)
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    _rename_values(model.graph)
    del model.graph.value_info[:]
    for holder in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        holder.ClearField("doc_string")
        holder.ClearField("metadata_props")
    model.graph.name = "yolact"
    model.ClearField("doc_string")
    del model.functions[:]
    return model


def _scoped_name(node: onnx.NodeProto) -> str:
    scopes = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES), "[]")
    path = max(ast.literal_eval(scopes)[:-1], key=len, default="")
    for prefix, module in MODULES.items():
        if path == prefix or path.startswith(prefix + "."):
            rest = path[len(prefix) + 1 :]
            return "/".join(part for part in (module, rest, node.op_type) if part)
    return f"{_EXACT.get(path, 'outputs')}/{node.op_type}"


def _rename_values(graph: onnx.GraphProto) -> None:
    """Drop ``network.`` from initializer names; other values keep theirs."""
    new = {tensor.name: tensor.name.removeprefix("network.") for tensor in graph.initializer}
    taken = {name for node in graph.node for name in node.output}
    new = {old: name for old, name in new.items() if name not in taken}
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = new.get(name, name)
