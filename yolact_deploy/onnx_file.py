"""Reading an ONNX file that may be anything: its structure, its manifest, and that it names no data outside its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from yolact_deploy.errors import ModelFileError
from yolact_deploy.manifest import METADATA_KEY, Manifest

__all__ = ["manifest_of", "read_manifest", "read_onnx"]

_FOREIGN = "Export your checkpoint with: yolact-deploy export WEIGHTS"


def read_onnx(path: Path) -> onnx.ModelProto:
    """The parsed file, external data left where it is.

    Raises :class:`ModelFileError` for a file that is missing, empty, no ONNX, or that refers to data outside its own folder.
    """
    if not path.is_file():
        raise ModelFileError(f"The model {path} {'is a folder' if path.is_dir() else 'does not exist'}.", "Check the path.")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf raises its own kinds, and a hostile file can raise more
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120].rstrip(".")
        raise ModelFileError(f"{path} is no readable ONNX file ({reason}).", _FOREIGN) from None
    if not model.graph.node or not model.opset_import:
        raise ModelFileError(f"{path} is no ONNX model: it holds no graph.", _FOREIGN)
    for tensor in (*_tensors(model.graph), *(tensor for function in model.functions for tensor in _node_tensors(function.node))):
        for entry in tensor.external_data:
            if entry.key == "location" and _leaves_folder(entry.value):
                raise ModelFileError(f"{path} refers to data outside its folder ({entry.value}).", "Do not use this file.")
    return model


def manifest_of(model: onnx.ModelProto, path: Path) -> Manifest:
    """The manifest inside a parsed file; :class:`ModelFileError` where there is none, or that of another kind of file."""
    for prop in model.metadata_props:
        if prop.key == METADATA_KEY:
            manifest = Manifest.from_json(prop.value, str(path))
            if manifest.kind != "onnx":
                raise ModelFileError(f"The manifest inside {path} is that of a file of kind {manifest.kind}.", _FOREIGN)
            return manifest
    outputs = ", ".join(output.name for output in list(model.graph.output)[:6])
    raise ModelFileError(
        f"{path} has no yolact-deploy manifest (its outputs are {outputs}): it is an ONNX of another model or tool.", _FOREIGN
    )


def read_manifest(path: Path) -> Manifest:
    """:func:`read_onnx` and :func:`manifest_of` together."""
    return manifest_of(read_onnx(path), path)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant of a graph, those of its nodes and of the graphs inside them too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _leaves_folder(location: str) -> bool:
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute() or bool(PureWindowsPath(location).drive)
    return absolute or ".." in parts
