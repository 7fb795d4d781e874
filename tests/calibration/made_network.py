"""A network of three convolutions, made node by node: every batch, input and end that an export can have, in no time."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.tiny import tiny_variant
from yolact_deploy.calibration.graph import GraphView
from yolact_deploy.classes import numbered_classes
from yolact_deploy.manifest import InputSpec, Manifest, TensorSpec
from yolact_deploy.preprocess import prepare

__all__ = ["SIZE", "made_view", "manifest_of", "plainly", "poisoned"]

SIZE = 16
Batch = int | Literal["dynamic"]
Layout = Literal["float", "raw"]
End = Literal["none", "nms"]

_CLASSES, _PRIORS = 5, 2
_MEAN, _STD = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)


def manifest_of(batch: Batch = 1, layout: Layout = "float", end: End = "none") -> Manifest:
    """Of :func:`made_view`, as far as a calibration reads it."""
    axis = "batch" if batch == "dynamic" else batch
    shape, dtype = ((axis, 3, SIZE, SIZE), "float32") if layout == "float" else ((axis, SIZE, SIZE, 3), "uint8")
    variant = tiny_variant(num_classes=_CLASSES)
    return Manifest(
        "onnx",
        variant,
        numbered_classes(_CLASSES - 1),
        InputSpec(SIZE, layout, "rgb", _MEAN, _STD),
        end,
        (TensorSpec("images", dtype, shape),),
        (),
        {},
        {},
        {},
    )


def _weights() -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(5)
    shapes = {"stem": (4, 3, 3, 3), "middle": (6, 4, 3, 3), "last": (_PRIORS * _CLASSES, 6, 1, 1)}
    found: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        found[f"{name}_weight"] = generator.normal(0, 0.25, shape).astype(np.float32)
        found[f"{name}_bias"] = generator.normal(0, 0.3, shape[0]).astype(np.float32)
    found["last_bias"][::_CLASSES] += 3  # mostly background
    return found


@lru_cache(maxsize=32)
def made_view(batch: Batch = 1, layout: Layout = "float", end: End = "none") -> GraphView:
    """Nobody may change it."""
    return GraphView(_model(batch, layout, end, _weights()))


def poisoned(weight: str, place: tuple[Any, ...], value: float, batch: Batch = 1, layout: Layout = "float") -> GraphView:
    """The same with one weight altered."""
    weights = _weights()
    weights[weight][place] = value
    return GraphView(_model(batch, layout, "none", weights))


def _model(batch: Batch, layout: Layout, end: End, weights: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    axis: int | str = "batch" if batch == "dynamic" else batch
    constants = dict(weights)
    nodes: list[onnx.NodeProto] = []

    def node(kind: str, inputs: list[str], output: str, name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], f"{name}/{kind}", **attributes))
        return output

    pixels = "images"
    if layout == "raw":
        constants["mean"], constants["std"] = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (_MEAN, _STD))
        pixels = node("Cast", [pixels], "floats", "input", to=TensorProto.FLOAT)
        pixels = node("Transpose", [pixels], "planes", "input", perm=[0, 3, 1, 2])
        pixels = node("Sub", [pixels, "mean"], "centred", "input")
        pixels = node("Div", [pixels, "std"], "normalised", "input")
    stem = node("Conv", [pixels, "stem_weight", "stem_bias"], "stem_sum", "backbone/conv1", pads=[1] * 4)
    stem = node("Relu", [stem], "stem", "backbone/conv1")
    middle = node("Conv", [stem, "middle_weight", "middle_bias"], "middle_sum", "backbone/layers.0.0.conv1", pads=[1] * 4, strides=[2, 2])
    middle = node("Relu", [middle], "middle", "backbone/layers.0.0.conv1")
    last = node("Conv", [middle, "last_weight", "last_bias"], "last", "heads/conf_layer")
    constants["rows"] = np.array([0, -1, _CLASSES], np.int64)
    last = node("Transpose", [last], "last_moved", "heads", perm=[0, 2, 3, 1])
    last = node("Reshape", [last, "rows"], "logits", "heads")
    priors = (SIZE // 2) ** 2 * _PRIORS
    kinds = {"images": (TensorProto.FLOAT, (axis, 3, SIZE, SIZE)), "scores": (TensorProto.FLOAT, (axis, priors, _CLASSES))}
    if layout == "raw":
        kinds["images"] = TensorProto.UINT8, (axis, SIZE, SIZE, 3)
    output = node("Softmax", [last], "scores", "outputs", axis=-1)
    if end == "nms":
        output = "detections_scores"
        constants |= {"from": np.array([1]), "to": np.array([_CLASSES]), "along": np.array([2]), "best": np.array([10])}
        node("Slice", ["scores", "from", "to", "along"], "of_classes", "nms")
        node("ReduceMax", ["of_classes"], "of_priors", "nms", axes=[2], keepdims=0)
        nodes.append(helper.make_node("TopK", ["of_priors", "best"], [output, "places"], "nms/TopK"))
        kinds[output] = TensorProto.FLOAT, (axis, 10)
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("images", *kinds["images"])],
        [helper.make_tensor_value_info(output, *kinds[output])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def plainly(view: GraphView, spec: InputSpec, names: list[str], picture: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Values of one picture, without the batch axis, in a session of its own; a fixed batch is filled with zeros."""
    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    scores = "scores" if "scores" in view.outputs else "detections_scores"
    inner = [name for name in names if name != "images"]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in [*inner, scores])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = prepare(picture, spec)
    axis = session.get_inputs()[0].shape[0]
    batch = np.stack([image, *[np.zeros_like(image)] * ((axis if isinstance(axis, int) else 1) - 1)])
    found = session.run(None, {"images": batch})
    return {"images": image, **{name: value[0] for name, value in zip([*inner, "scores"], found, strict=True)}}
