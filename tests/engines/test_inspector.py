"""What engines say of their layers, in the shapes that TensorRT 8.6, 10 and 11 say it, and the precision of each module read from that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engines.bindings.run import VERSIONS, run_in
from yolact_deploy.engines.inspector import Layer, built_precision, engine_layers, layer_precision
from yolact_deploy.engines.versions import TensorRT


class LayerInformationFormat:
    JSON = "JSON"


class TensorIOMode:
    INPUT, OUTPUT = "in", "out"


class Module:
    """Of TensorRT's module what is read here."""

    LayerInformationFormat = LayerInformationFormat
    TensorIOMode = TensorIOMode


class Inspector:
    def __init__(self, document: Any) -> None:
        self.document = document

    def get_engine_information(self, format: str) -> str:  # noqa: A002 - TensorRT's own name
        assert format == "JSON"
        return json.dumps(self.document)


class Engine:
    """One of a fixed batch with an input and an output."""

    num_io_tensors = 2

    def __init__(self, document: Any) -> None:
        self.document = document

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self.document)

    def get_tensor_name(self, index: int) -> str:
        return ("images", "boxes")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "images" else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (1, 3, 8, 8)


def layers_of(*entries: Any) -> list[Layer]:
    """The layers of an engine whose inspector gives these."""
    return engine_layers(TensorRT("tensorrt", Module, "10.3.0"), Engine({"Layers": list(entries), "Bindings": ["images", "boxes"]}))


def entry(name: str, told: str, metadata: str | None = None, kind: str = "CaskConvolution") -> dict[str, Any]:
    """A layer as a detailed engine tells it; only 8.6 and newer have the metadata."""
    tensors = {"Name": "value", "Location": "Device", "Dimensions": [1, 16, 64, 64], "Format/Datatype": "Row major linear FP32"}
    found: dict[str, Any] = {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensors],
        "Outputs": [{**tensors, "Format/Datatype": told}],
        "TacticValue": "0x00000000000003e8",
        "StreamId": 0,
    }
    return found if metadata is None else {**found, "Metadata": metadata}


FORMATS = {
    # TensorRT 8.6
    "Row major linear FP32": "float32",
    "Row major linear FP16 format": "float16",
    "Channel major FP16 format where channel % 4 == 0": "float16",
    "Channel major FP16 format where channel % 8 == 0": "float16",
    "Channel major FP32 format where channel % 4 == 0": "float32",
    "Two wide channel vectorized row major FP16 format": "float16",
    "Thirty-two wide channel vectorized row major Int8 format.": "int8",
    "Four wide channel vectorized row major Int8 format": "int8",
    "Row major Int8 format": "int8",
    "Row major linear INT32": "",
    "Row major linear BOOL": "",
    "Unknown format": "",
    "N/A due to dynamic shapes": "",
    # TensorRT 10 and 11
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "BF16": "bfloat16",
    "Int8": "int8",
    "FP8": "float8",
    "Int32": "",
    "Int64": "",
    "Bool": "",
    "Half NCHW": "float16",
    "FP16 NHWC8": "float16",
    "Int8 NC/32HW32": "int8",
    "FP32 NCHW": "float32",
    "": "",
}


@pytest.mark.parametrize(("told", "precision"), FORMATS.items())
def test_formats(told: str, precision: str) -> None:
    assert layers_of(entry("backbone/layers.0/Conv", told))[0].precision == precision


def test_what_a_layer_reads_is_not_its_precision() -> None:
    layer = entry("backbone/layers.0/Conv", "Half")
    assert layer["Inputs"][0]["Format/Datatype"] == "Row major linear FP32"
    assert layers_of(layer) == [Layer("backbone/layers.0/Conv", "CaskConvolution", ("backbone",), "float16")]


def test_the_first_output_with_a_precision_counts() -> None:
    layer = entry("nms/TopK", "Row major linear INT32", kind="TopK")
    layer["Outputs"].append({"Name": "values", "Format/Datatype": "Row major linear FP32"})
    layer["Outputs"].append({"Name": "more", "Format/Datatype": "Half"})
    assert layers_of(layer)[0].precision == "float32"


NAMES = {
    "backbone/layers.0.0.conv1/Conv": ("backbone",),
    "backbone/layers.0.0.conv1/Conv + backbone/layers.0.0/Relu": ("backbone",),
    "PWN(PWN(heads/Tanh), decode/Mul)": ("heads", "decode"),
    "heads/bbox_layer/Conv || heads/conf_layer/Conv || heads/mask_layer/Conv": ("heads",),
    "{ForeignNode[decode/Exp...outputs/Softmax]}": ("decode", "outputs"),
    "{ForeignNode[backbone/layers.0/Constant + (Unnamed Layer* 12) [Shuffle]...heads/Concat_3]}": ("backbone", "heads"),
    "Reformatting CopyNode for Input Tensor 0 to protonet/0/Conv": ("protonet",),
    "fpn/lat_layers.0/Conv + fpn/Add": ("fpn",),
    "[HostToDeviceCopy 0]-[nms/TopK]": ("nms",),
    "input/Sub": ("input",),
    "maskiou/0/Conv": ("maskiou",),
    "masks/MatMul": ("masks",),
    "(Unnamed Layer* 7) [Shuffle]": (),
    "__myl_MulAddResh_myl0_3": (),
    "my/backbone/Conv": (),
    "mybackbone/Conv": (),
    "model.backbone/Conv": (),
    "backbone.weight": (),
    "": (),
}


@pytest.mark.parametrize(("name", "modules"), NAMES.items())
def test_modules_from_names(name: str, modules: tuple[str, ...]) -> None:
    assert layers_of(entry(name, "Half"))[0].modules == modules
    assert layers_of(name) == [Layer(name, "", modules, "")]  # of an engine that keeps names alone


def test_modules_from_metadata() -> None:
    joined = "[ONNX Layer: heads/bbox_layer/Conv]\x1f[ONNX Layer: heads/Reshape]\x1e[ONNX Layer: decode/Mul]"
    found = layers_of(
        entry("__myl_ConvReshMul_myl0_5", "Half", joined, "kgen"),
        entry("__myl_Cast_myl0_6", "Float", "", "kgen"),
        entry("backbone/layers.0/Conv", "Half", "", "CaskGemmConvolution"),
        entry("misleading heads/name", "Half", "[ONNX Layer: protonet/0/Conv]", "gemm"),
    )
    assert [layer.modules for layer in found] == [("heads", "decode"), (), ("backbone",), ("protonet",)]
    assert [layer.kind for layer in found] == ["kgen", "kgen", "CaskGemmConvolution", "gemm"]


def test_precision_of_each_module() -> None:
    found = layers_of(
        entry("Reformatting CopyNode for Input Tensor 0 to backbone/a/Conv", "Row major linear FP32", "", "Reformat"),
        entry("backbone/a/Conv", "Half", "[ONNX Layer: backbone/a/Conv]"),
        entry("backbone/b/Conv + heads/Conv", "Half"),
        entry("decode/Exp", "Float"),
        entry("heads/Tanh", "Float"),
        entry("heads/Reshape", "Float", kind="NoOp"),
        entry("heads/Conv_2", "Half"),
        entry("nms/TopK", "Row major linear INT32"),
        entry("elsewhere", "Float"),
        "protonet/0/Conv",
    )
    assert len(found) == 10
    assert layer_precision(found) == {"backbone": "float16", "decode": "float32", "heads": "float16+float32"}
    assert list(layer_precision(found)) == sorted(layer_precision(found))


def test_as_many_of_two_kinds_are_told_in_a_fixed_order() -> None:
    halves = layers_of(entry("fpn/a", "Half"), entry("fpn/b", "Float"))
    assert layer_precision(halves) == layer_precision(halves[::-1]) == {"fpn": "float16+float32"}
    assert layer_precision(halves + layers_of(entry("fpn/c", "Float"))) == {"fpn": "float32+float16"}
    assert layer_precision([]) == layer_precision(layers_of("fpn/a")) == {}


def test_layers_of_odd_shapes() -> None:
    assert layers_of({"Name": "fpn/Add"}) == [Layer("fpn/Add", "", ("fpn",), "")]
    assert layers_of({"Name": "fpn/Add", "Outputs": None, "Metadata": None}) == [Layer("fpn/Add", "", ("fpn",), "")]
    assert layers_of({"Name": "fpn/Add", "Outputs": ["a name"]}) == [Layer("fpn/Add", "", ("fpn",), "")]
    assert layers_of({}) == [Layer("", "", (), "")]
    assert engine_layers(TensorRT("tensorrt", Module, "10.3.0"), Engine({})) == []


def test_an_engine_that_cannot_be_loaded_tells_nothing() -> None:
    class Runtime:
        def __init__(self, logger: Any) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> None: ...

    class WithRuntime(Module):
        pass

    WithRuntime.Runtime = Runtime
    assert built_precision(TensorRT("tensorrt", WithRuntime, "8.6.1"), b"plan", None) == {}


def inspect_dynamic(document: dict[str, Any], shape: list[int]) -> list[Any]:
    """In the child process: the layers of an engine whose input has this shape, and the journal."""
    from tests.engines.bindings import stand_ins
    from yolact_deploy.engines.versions import load_tensorrt

    tensorrt = load_tensorrt("tensorrt")
    trt = tensorrt.module
    stand_ins.configure("EngineInspector", get_engine_information=json.dumps(document))
    stand_ins.configure(
        "ICudaEngine",
        num_io_tensors=2,
        get_tensor_name=["boxes", "images"].__getitem__,
        get_tensor_mode=lambda name: trt.TensorIOMode.INPUT if name == "images" else trt.TensorIOMode.OUTPUT,
        get_tensor_shape=lambda name: shape if name == "images" else [-1, 100, 4],
        get_tensor_profile_shape=lambda name, profile: [trt.Dims((size, 3, 8, 8)) for size in (1, 4, 16)],
    )
    found = engine_layers(tensorrt, stand_ins.stand_in("ICudaEngine"))
    return [[layer.precision for layer in found], stand_ins.journal_as_json()]


@pytest.mark.parametrize("version", VERSIONS)
def test_formats_of_an_engine_of_many_batches_are_those_of_its_best(version: str) -> None:
    document = {"Layers": [entry("backbone/Conv", "Half")]}
    precisions, journal = run_in(version, f"{__name__}:inspect_dynamic", document, [-1, 3, 8, 8])
    assert precisions == ["float16"]
    names = [name for _, name, _ in journal]
    order = ["IExecutionContext.set_input_shape", "EngineInspector.execution_context", "EngineInspector.get_engine_information"]
    assert [name for name in names if name in order] == order
    assert "[4, 3, 8, 8]" in str(journal[names.index(order[0])])
    _, journal = run_in(version, f"{__name__}:inspect_dynamic", document, [2, 3, 8, 8])
    assert not {"ICudaEngine.create_execution_context", *order[:2]} & {name for _, name, _ in journal}
