"""What an exported file contains, over every pair of export options: the contract's tensors, standard operators, the manifest."""

from __future__ import annotations

import os
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.export.artifacts import Artifacts, run_onnx
from yolact_deploy.data import sample_picture
from yolact_deploy.export import ExportResult
from yolact_deploy.export.passes.float16 import FLOAT32_MODULES, stays_float32
from yolact_deploy.export.passes.names import MODULES, module_of
from yolact_deploy.manifest import METADATA_KEY, InputSpec
from yolact_deploy.onnx_file import read_manifest
from yolact_deploy.postprocess import select
from yolact_deploy.preprocess import prepare
from yolact_deploy.variants import get_variant

AXES: dict[str, tuple[Any, ...]] = {
    "postprocess": ("none", "nms", "masks"),
    "batch": (1, 3, "dynamic"),
    "opset": (17, 18, 19, 20),
    "precision": ("fp32", "fp16", "fp16 io"),
    "input": ("float", "raw rgb", "raw bgr"),
}
CASES = [  # each pair of values of two axes occurs
    ("none", 1, 17, "fp32", "float"),
    ("nms", 1, 20, "fp16 io", "raw bgr"),
    ("nms", 3, 19, "fp16", "float"),
    ("masks", 3, 17, "fp16 io", "raw rgb"),
    ("none", "dynamic", 20, "fp16", "raw rgb"),
    ("masks", "dynamic", 19, "fp32", "raw bgr"),
    ("nms", 3, 18, "fp32", "raw rgb"),
    ("none", "dynamic", 18, "fp16 io", "float"),
    ("masks", 1, 18, "fp16", "raw bgr"),
    ("nms", "dynamic", 17, "fp16", "raw bgr"),
    ("none", 1, 19, "fp16 io", "raw rgb"),
    ("none", 3, 20, "fp32", "raw bgr"),
    ("masks", 3, 20, "fp16", "float"),
]
PRIORS, CLASSES, COEFFICIENTS, SIZE = get_variant("yolact_nano").prior_count, 81, 32, 256
PROTOTYPE = get_variant("yolact_nano").prototype_size
FORBIDDEN = {"DeformConv", "NonMaxSuppression", "NonZero", "If", "Loop", "Scan", "Unique", "SequenceAt"}


def options_of(case: tuple[Any, ...]) -> dict[str, Any]:
    postprocess, batch, opset, precision, layout = case
    return {
        "postprocess": postprocess,
        "batch": batch,
        "opset": opset,
        "fp16": precision != "fp32",
        "fp16_io": precision == "fp16 io",
        "layout": layout.split()[0],
        "channels": "bgr" if layout.endswith("bgr") else "rgb",
    }


def test_every_pair_of_options_is_tried() -> None:
    for (at, one), (other, two) in combinations(enumerate(AXES.values()), 2):
        tried = {(case[at], case[other]) for case in CASES}
        missing = {(a, b) for a in one for b in two} - tried
        assert not missing


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)).replace(" ", "-"))
def exported(request: pytest.FixtureRequest, artifacts: Artifacts) -> tuple[dict[str, Any], ExportResult, onnx.ModelProto]:
    options = options_of(request.param)
    result = artifacts.export(**options)
    return options, result, onnx.load(result.path, load_external_data=False)


Exported = tuple[dict[str, Any], ExportResult, onnx.ModelProto]


def tensors(values: Any) -> dict[str, tuple[int, list[Any]]]:
    return {
        value.name: (value.type.tensor_type.elem_type, [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim])
        for value in values
    }


def expected_outputs(options: dict[str, Any]) -> dict[str, tuple[int, list[Any]]]:
    batch: Any = "batch" if options["batch"] == "dynamic" else options["batch"]
    free = TensorProto.FLOAT16 if options["fp16_io"] else TensorProto.FLOAT
    prototypes = {"prototypes": (free, [batch, COEFFICIENTS, PROTOTYPE, PROTOTYPE])}
    if options["postprocess"] == "none":
        return {
            "boxes": (TensorProto.FLOAT, [batch, PRIORS, 4]),
            "scores": (TensorProto.FLOAT, [batch, PRIORS, CLASSES]),
            "coefficients": (free, [batch, PRIORS, COEFFICIENTS]),
            **prototypes,
        }
    found = {
        "detections_boxes": (TensorProto.FLOAT, [batch, 100, 4]),
        "detections_scores": (TensorProto.FLOAT, [batch, 100]),
        "detections_labels": (TensorProto.INT32, [batch, 100]),
        "detections_coefficients": (TensorProto.FLOAT, [batch, 100, COEFFICIENTS]),
        **prototypes,
    }
    if options["postprocess"] == "masks":
        found["detections_masks"] = (TensorProto.FLOAT, [batch, 100, PROTOTYPE, PROTOTYPE])
    return found


def test_the_tensors_are_the_contracts(exported: Exported) -> None:
    options, _, model = exported
    batch: Any = "batch" if options["batch"] == "dynamic" else options["batch"]
    raw, plain = (TensorProto.UINT8, [batch, SIZE, SIZE, 3]), (TensorProto.FLOAT, [batch, 3, SIZE, SIZE])
    assert tensors(model.graph.input) == {"images": raw if options["layout"] == "raw" else plain}
    assert tensors(model.graph.output) == expected_outputs(options)
    assert [output.name for output in model.graph.output] == list(expected_outputs(options))


def test_the_checker_and_the_opset_agree(exported: Exported) -> None:
    options, result, model = exported
    onnx.checker.check_model(model, full_check=True)
    onnx.checker.check_model(str(result.path), full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")] == [("", options["opset"])]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions


def test_it_is_one_file_without_traces_of_where_it_was_made(exported: Exported, artifacts: Artifacts) -> None:
    _, result, model = exported
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [path.name for path in artifacts.folder.iterdir() if path.name.startswith(f"{result.path.stem}.")] == [result.path.name]
    content = result.path.read_bytes()
    root = Path(__file__).resolve().parents[2]
    for place in (root, Path.home(), artifacts.folder, Path(onnx.__file__).parent, Path(os.__file__).parent):
        if len(place.parts) > 1:
            assert str(place).encode() not in content
    assert b"site-packages" not in content
    assert not re.search(rb"[\w/]\.py\b", content)
    assert not model.graph.doc_string
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_operators_are_standard_and_every_top_k_is_small(exported: Exported) -> None:
    options, _, model = exported
    assert not {node.op_type for node in model.graph.node} & FORBIDDEN
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    counts = [int(constants[node.input[1]].item()) for node in model.graph.node if node.op_type == "TopK"]
    assert all(count in (100, 200) for count in counts)
    assert len(counts) == (0 if options["postprocess"] == "none" else 4)


def test_the_manifest_is_inside_and_whole(exported: Exported, artifacts: Artifacts) -> None:
    options, result, model = exported
    assert [prop.key for prop in model.metadata_props] == [METADATA_KEY]
    assert read_manifest(result.path) == result.manifest
    manifest = result.manifest
    assert manifest.variant == artifacts.nano.variant
    assert manifest.classes == artifacts.nano.classes
    assert manifest.source == {"file": artifacts.weights.name, "sha256": artifacts.nano.sha256}
    assert manifest.input == InputSpec.of(manifest.variant, options["layout"], options["channels"])
    assert manifest.versions["opset"] == str(options["opset"])
    assert manifest.verification["detections"]
    assert not manifest.mask_iou
    for specs, values in ((manifest.inputs, model.graph.input), (manifest.outputs, model.graph.output)):
        found = {spec.name: (onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), list(spec.shape)) for spec in specs}
        assert found == tensors(values)


def test_precision_is_what_the_options_say(exported: Exported) -> None:
    options, result, model = exported
    wanted = "float16" if options["fp16"] else "float32"
    kept = {name: kind for name, kind in result.manifest.precision.items() if name in FLOAT32_MODULES}
    assert {"decode", "outputs"} <= set(kept)
    assert set(kept.values()) == {"float32"}
    others = {name: kind for name, kind in result.manifest.precision.items() if name not in FLOAT32_MODULES}
    assert set(others) == {"backbone", "fpn", "protonet", "heads"}
    assert set(others.values()) == {wanted}
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert {kinds[name] for name in node.input[1:]} == {TensorProto.FLOAT16 if options["fp16"] else TensorProto.FLOAT}


def test_softmax_decoding_and_nms_compute_in_float32(exported: Exported) -> None:
    _, _, model = exported
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*typed.value_info, *typed.output, *typed.input)}
    kinds |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    seen = set()
    for node in model.graph.node:
        if stays_float32(node.name) and node.op_type != "Cast":
            seen.add(node.op_type)
            assert TensorProto.FLOAT16 not in {kinds[name] for name in (*node.input, *node.output) if name}, node.name
    assert {"Softmax", "Exp"} <= seen


def test_nodes_are_named_after_their_modules(exported: Exported) -> None:
    _, _, model = exported
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {module_of(name) for name in names} <= {*MODULES.values(), "outputs"}
    assert {"backbone", "fpn", "protonet", "heads", "decode"} <= {module_of(name) for name in names}


def test_every_layout_gives_what_normalised_float32_gives(exported: Exported, artifacts: Artifacts) -> None:
    options, result, _ = exported
    picture = sample_picture(SIZE, SIZE)  # no resizing, so that raw input is exact
    batch = options["batch"] if isinstance(options["batch"], int) else 2
    found = run_onnx(result.path)(np.stack([prepare(picture, result.manifest.input)] * batch))
    plain = run_onnx(artifacts.onnx())(prepare(picture, InputSpec.of(artifacts.nano.variant))[None])
    chosen = select(plain["boxes"][0], plain["scores"][0])
    plain["detections_scores"] = chosen.scores[None]
    tolerance = 0.03 if options["fp16"] else 1e-4
    for name in {"prototypes", "coefficients", "boxes", "scores", "detections_scores"} & set(found):
        largest = float(np.abs(plain[name]).max())
        for place in range(batch):
            np.testing.assert_allclose(found[name][place], plain[name][0], rtol=0, atol=tolerance * largest, err_msg=name)
