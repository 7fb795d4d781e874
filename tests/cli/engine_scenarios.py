"""Commands on engines where there is a GPU, on the fake TensorRT; each runs in another process."""

from __future__ import annotations

import gc
import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.cli.commands import complaint, invoke, ok
from tests.helpers import fake_tensorrt as trt
from tests.helpers.fake_engines import install, plan, write_engine
from tests.helpers.stub_cuda import NOTHING, live
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.cuda import compiler
from yolact_deploy.engines.cuda.compiler import nvrtc_version
from yolact_deploy.engines.loading import LoadedEngine
from yolact_deploy.engines.versions import load_tensorrt

RTX = 'Run: pip install "yolact-deploy[rtx]"'
TENSORRT = 'Run: pip install "yolact-deploy[tensorrt]"'
BATCH = BatchRange(1, 2, 4)
LAYERS = [
    {
        "Name": "conv1",
        "LayerType": "CaskConvolution",
        "Metadata": "[ONNX Layer: backbone/conv1/Conv]",
        "Outputs": [{"Format/Datatype": "Half"}],
    },
    {
        "Name": "conv2",
        "LayerType": "CaskConvolution",
        "Metadata": "[ONNX Layer: backbone/conv2/Conv]",
        "Outputs": [{"Format/Datatype": "Half"}],
    },
    {
        "Name": "conv3",
        "LayerType": "Convolution",
        "Metadata": "[ONNX Layer: backbone/conv3/Conv]",
        "Outputs": [{"Format/Datatype": "Float"}],
    },
    {"Name": "decode/Exp", "LayerType": "PointWise", "Metadata": "", "Outputs": [{"Format/Datatype": "Float"}]},
]


def made(onnx: str, folder: str, name: str, **options: Any) -> Path:
    place = Path(folder) / name
    place.mkdir()
    return write_engine(Path(onnx), place, BATCH, **options)


def assert_given_back() -> None:
    gc.collect()
    assert live() == NOTHING


def inspecting_tells_layers(onnx: str, folder: str) -> None:
    install("tensorrt")
    engine = made(onnx, folder, "layers", options={"layers": LAYERS})
    contexts: list[bool] = []
    create = trt.Engine.create_execution_context

    def watched(self: Any, *arguments: Any) -> Any:
        context = create(self, *arguments)
        contexts.append(context is not None)
        return context

    with (
        mock.patch.object(LoadedEngine, "close", autospec=True, side_effect=LoadedEngine.close) as closed,
        mock.patch.object(trt.Engine, "create_execution_context", watched),
    ):
        facts = json.loads(ok(invoke("inspect", engine, "--json")))
    assert (closed.call_count, contexts) == (1, [True])
    assert facts["layers"] == 4
    assert facts["precision in the layers"] == {"backbone": "float16+float32", "decode": "float32"}
    assert facts["runs on"] == facts["built on"] == "Stub GPU 0"
    assert facts["kind"] == "engine of TensorRT 11.4.0.106"
    listed = json.loads(ok(invoke("inspect", engine, "--layers", "--json")))["layers"]
    assert listed == {
        "conv1": "CaskConvolution float16 backbone",
        "conv2": "CaskConvolution float16 backbone",
        "conv3": "Convolution float32 backbone",
        "decode/Exp": "PointWise float32 decode",
    }
    text = ok(invoke("inspect", engine, "--layers"))
    assert "conv1: CaskConvolution float16 backbone" in text
    assert "backbone: float16+float32" in text
    assert_given_back()


def inspecting_an_engine_that_keeps_names_alone(onnx: str, folder: str) -> None:
    install("tensorrt")
    engine = made(onnx, folder, "names", options={"layers": ["one", "two"]})
    facts = json.loads(ok(invoke("inspect", engine, "--json")))
    assert (facts["layers"], facts["precision in the layers"]) == (2, "rebuild with --detailed to see it")
    assert json.loads(ok(invoke("inspect", engine, "--layers", "--json")))["layers"] == {"one": "", "two": ""}
    assert_given_back()


def inspecting_another_machines_engine(onnx: str, folder: str) -> None:
    install("tensorrt")
    engine = made(onnx, folder, "A10", gpu="A10")
    message = f"{engine} was built for A10; this machine has Stub GPU 0, compute capability 8.9."
    facts = json.loads(ok(invoke("inspect", engine, "--json")))
    assert facts["layers"] == f"not read: {message}"
    assert facts["variant"] == "yolact_nano"
    assert complaint(invoke("inspect", engine, "--layers")).startswith(message)
    with mock.patch.dict(sys.modules, {"tensorrt": None}):
        load_tensorrt.cache_clear()
        facts = json.loads(ok(invoke("inspect", engine, "--json")))
    assert facts["layers"] == f"not read: {engine} was built by TensorRT 11.4.0.106. TensorRT is not installed."
    load_tensorrt.cache_clear()
    assert_given_back()


def inspecting_without_a_sidecar(onnx: str, folder: str) -> None:
    install("tensorrt")
    engine = made(onnx, folder, "bare", options={"layers": LAYERS})
    Path(f"{engine}.json").unlink()
    facts = json.loads(ok(invoke("inspect", engine, "--json")))
    assert "layers" not in facts
    assert facts["sidecar"].startswith("none: ")
    assert "it has no sidecar, and --trust was not given" in complaint(invoke("inspect", engine, "--layers"))
    assert json.loads(ok(invoke("inspect", engine, "--trust", "--json")))["layers"] == 4
    assert len(json.loads(ok(invoke("inspect", engine, "--trust", "--layers", "--json")))["layers"]) == 4
    assert_given_back()


def adopting_and_predicting(onnx: str, folder: str) -> None:
    install("tensorrt")
    from yolact_deploy.data import sample_picture
    from yolact_deploy.drawing import save_picture

    place = Path(folder) / "adopting"
    place.mkdir()
    engine, picture = place / "a.engine", place / "a.png"
    engine.write_bytes(plan(Path(onnx), BATCH))
    save_picture(picture, sample_picture(200, 150))
    told = ok(invoke("adopt", engine, "--onnx", onnx))
    assert told.splitlines() == [
        f"{engine}: TensorRT 11.4.0.106, for Stub GPU 0, batch 1:2:4; opened, its tensors are those of the graph",
        f"Saved {engine}.json",
    ]
    results = place / "engine.json"
    told = ok(invoke("predict", engine, picture, "--no-overlays", "--json", results))
    assert "a picture took: read" in told
    assert "made on the CPU" not in told
    ok(invoke("predict", onnx, picture, "--no-overlays", "--json", place / "onnx.json", "--threads", "1"))
    assert json.loads(results.read_text("utf-8")) == json.loads((place / "onnx.json").read_text("utf-8")) != []
    assert "An engine runs on a GPU, the device 'cpu' was asked for" in complaint(invoke("predict", engine, picture, "--device", "cpu"))
    gc.collect()


def doctor() -> dict[str, str]:
    """The rows about engines, the same in JSON and in the table."""
    rows: dict[str, str] = json.loads(ok(invoke("doctor", "--json")))["engines"]
    shown = " ".join(ok(invoke("doctor")).split())
    assert all(name in shown for name in rows)
    assert_given_back()
    return rows


def wheels(*names: str) -> Any:
    return mock.patch.object(metadata, "distributions", return_value=[SimpleNamespace(name=name) for name in names])


def doctor_where_everything_is_there() -> None:
    install("tensorrt", "tensorrt_rtx")
    rows = doctor()
    assert rows["TensorRT"] == rows["TensorRT-RTX"] == "11.4.0.106"
    assert rows["CUDA from Python"] == f"cuda-core {metadata.version('cuda-core')}"
    assert rows["build-engine --backend tensorrt-rtx"] == "yes, for compute capability 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
    assert rows["build-engine --backend tensorrt"] == "yes, for the GPU here (Stub GPU 0, compute capability 8.9, 4.0 GiB)"
    assert rows["running engines"] == "yes, with TensorRT and TensorRT-RTX"
    assert rows["compiling CUDA kernels"] == "yes, with NVRTC {}.{}".format(*nvrtc_version())
    with mock.patch.object(compiler, "import_module", side_effect=ModuleNotFoundError(name="cuda.bindings")):
        assert doctor()["compiling CUDA kernels"].startswith("no: Post-processing on the GPU needs cuda-bindings, which is")


def doctor_with_one_backend() -> None:
    install("tensorrt_rtx")
    with mock.patch.dict(sys.modules, {"tensorrt": None}):
        rows = doctor()
    assert rows["TensorRT"] == f"TensorRT is not installed. {TENSORRT}"
    assert rows["build-engine --backend tensorrt"] == "no"
    assert rows["running engines"] == "yes, with TensorRT-RTX"


def doctor_with_nothing_installed() -> None:
    with mock.patch.dict(sys.modules, {"tensorrt": None, "tensorrt_rtx": None}):
        rows = doctor()
    assert rows["TensorRT"] == f"TensorRT is not installed. {TENSORRT}"
    assert rows["TensorRT-RTX"] == f"TensorRT-RTX is not installed. {RTX}"
    assert rows["build-engine --backend tensorrt-rtx"] == rows["build-engine --backend tensorrt"] == "no"
    assert rows["running engines"] == f"no: neither backend is installed. {TENSORRT}"


def doctor_without_cuda_core() -> None:
    from importlib import util

    install("tensorrt", "tensorrt_rtx")
    found = util.find_spec
    with mock.patch.object(util, "find_spec", lambda name, *rest: None if name.startswith("cuda") else found(name, *rest)):
        rows = doctor()
    assert rows["CUDA from Python"] == f"cuda-core is not installed. {TENSORRT}"
    assert rows["running engines"] == f"no: cuda-core is missing. {TENSORRT}"
    assert rows["build-engine --backend tensorrt"].startswith("yes, for the GPU here")


def doctor_with_a_driver_that_is_too_old() -> None:
    """CUDA 12.8."""
    install("tensorrt", "tensorrt_rtx")
    old = "The driver supports CUDA 12.8, the installed {} 11.4.0.106 is made for CUDA 13."
    mend = "Update the driver to one for CUDA 13 (driver 580 or newer), or install a TensorRT made for CUDA 12."
    with wheels("tensorrt-cu13", "tensorrt_rtx_cu13"):
        rows = doctor()
    told = {name: f"{old.format(name)} {mend}" for name in ("TensorRT", "TensorRT-RTX")}
    assert rows["build-engine --backend tensorrt"] == f"no: {told['TensorRT']}"
    assert rows["running engines"] == f"no: {told['TensorRT']}; {told['TensorRT-RTX']}"
    with wheels("tensorrt-cu12", "tensorrt-rtx-cu13"):
        rows = doctor()
    assert rows["build-engine --backend tensorrt"].startswith("yes, for the GPU here")
    assert rows["running engines"] == "yes, with TensorRT"


def doctor_on_a_gpu_that_rtx_does_not_support() -> None:
    """Compute capability 9.0."""
    install("tensorrt_rtx")
    with mock.patch.dict(sys.modules, {"tensorrt": None}):
        rows = doctor()
    assert rows["running engines"] == f"no: TensorRT-RTX 11.4.0.106 does not support this GPU. {TENSORRT}"
    assert rows["build-engine --backend tensorrt-rtx"].startswith("yes, for compute capability 7.5")
    load_tensorrt.cache_clear()
    install("tensorrt")
    rows = doctor()
    assert rows["running engines"] == "yes, with TensorRT"
    assert rows["build-engine --backend tensorrt"] == "yes, for the GPU here (Stub GPU 0, compute capability 9.0, 4.0 GiB)"


def doctor_with_a_driver_but_no_gpu() -> None:
    install("tensorrt")
    rows = doctor()
    assert rows["build-engine --backend tensorrt"] == "no: TensorRT 11.4.0.106 needs a GPU, the driver shows no GPU."
    assert rows["running engines"] == "no: the driver shows no GPU"
