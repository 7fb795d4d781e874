"""Engines that may not or cannot run here, through `load`; test_tensorrt_backend.py runs each in another process."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.helpers import fake_tensorrt as trt
from tests.helpers.fake_engines import STUB_GPU, head, install, plan, write_engine
from tests.helpers.stub_cuda import calls
from tests.runtime.tensorrt_scenarios import assert_clean, assert_same, new_folder, reference, refused
from yolact_deploy import load
from yolact_deploy.classes import COCO
from yolact_deploy.data import sample_picture
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.session import Engine
from yolact_deploy.engines.sidecar import sidecar_path
from yolact_deploy.errors import DeviceError, MissingDependencyError, ModelFileError
from yolact_deploy.variants import VARIANTS

install("tensorrt")
REBUILD = "Rebuild it here: yolact-deploy build-engine a.onnx"
ONE_TO_FOUR = BatchRange(1, 2, 4)


def engines_of_another_machine(onnx: dict[str, str], folder: str) -> None:
    """On a GPU of compute capability 8.9."""
    for number, (changes, message) in enumerate(
        (
            ({"tensorrt_version": "10.16.1.11"}, r"was built by TensorRT 10\.16\.1\.11, TensorRT 11\.4\.0\.106 is installed and does not"),
            ({"tensorrt_version": "11.4.0.107"}, "is installed and does not read it"),
            ({"gpu": "A10"}, r"was built for A10; this machine has Stub GPU 0, compute capability 8\.9"),
            ({"capabilities": ((8, 6),)}, r"was built for Stub GPU 0; this machine has Stub GPU 0, compute capability 8\.9"),
            ({"capabilities": ((8, 6),), "hardware_level": "same-compute-capability"}, "and any of the same compute capability; this"),
        )
    ):
        engine = write_engine(Path(onnx["none"]), new_folder(folder, f"other {number}"), **changes)
        with refused(ModelFileError, message, "yolact-deploy build-engine a.onnx"):
            load(engine)
    for number, changes in enumerate(
        (
            {"gpu": "A10", "hardware_level": "ampere+", "capabilities": ((8, 0),)},
            {"gpu": "A10", "hardware_level": "same-compute-capability"},
            {"tensorrt_version": "10.16.1.11", "version_compatible": True},
            {"gpu": ""},
        )
    ):
        engine = write_engine(Path(onnx["none"]), new_folder(folder, f"fitting {number}"), **changes)
        if changes.get("version_compatible"):
            with refused(ModelFileError, "is a version-compatible engine, which brings no runtime of its own", "Name libnvinfer_lean.so"):
                load(engine)
        load(engine, lean_runtime=str(engine) if changes.get("version_compatible") else None).close()
    assert_clean()


def a_driver_that_is_too_old(onnx: dict[str, str], folder: str) -> None:
    """The stand-in's driver supports CUDA 12.8."""
    engine = write_engine(Path(onnx["none"]), new_folder(folder, "driver"))
    found = SimpleNamespace(name="tensorrt-cu13"), SimpleNamespace(name=None), SimpleNamespace(name="tensorrt_rtx_cu14")
    with (
        mock.patch.object(metadata, "distributions", return_value=found),
        refused(
            DeviceError,
            r"The driver supports CUDA 12\.8, the installed TensorRT 11\.4\.0\.106 is made for CUDA 13\.",
            "Update the driver to one for CUDA 13 (driver 580 or newer), or install a TensorRT made for CUDA 12.",
        ),
    ):
        load(engine)
    assert calls("cuStreamCreateWithPriority") == 0


def without_a_gpu(onnx: dict[str, str], folder: str) -> None:
    engine = write_engine(Path(onnx["none"]), new_folder(folder, "no GPU"))
    with refused(DeviceError, r"TensorRT 11\.4\.0\.106 needs a GPU, the driver shows no GPU\.", "Run it on a machine with a GPU"):
        load(engine)
    with refused(ModelFileError, "does not exist"):
        load(engine.with_name("none.engine"))
    other = write_engine(Path(onnx["none"]), new_folder(folder, "no GPU, old"), tensorrt_version="10.1.0.27")
    with refused(ModelFileError, r"was built by TensorRT 10\.1\.0\.27, TensorRT 11\.4\.0\.106 is installed and does not", REBUILD):
        load(other)  # told before the GPU is missed


def without_the_backend(onnx: dict[str, str], folder: str) -> None:
    engine = write_engine(Path(onnx["none"]), new_folder(folder, "no backend"))
    sidecar = sidecar_path(engine).read_text("utf-8")
    with mock.patch.dict(sys.modules, {"tensorrt": None}):
        with refused(
            MissingDependencyError, r"was built by TensorRT 11\.4\.0\.106\. TensorRT is not installed\.", "yolact-deploy[tensorrt]"
        ):
            load(engine)
        sidecar_path(engine).unlink()
        with refused(MissingDependencyError, r"^TensorRT is not installed\.", "yolact-deploy[tensorrt]"):
            load(engine, trust=True)
    sidecar_path(engine).write_text(sidecar, "utf-8")
    load(engine).close()


def engines_of_tensorrt_rtx(onnx: dict[str, str], folder: str) -> None:
    install("tensorrt_rtx")
    picture = sample_picture()
    wanted = reference(onnx["none"]).predict(picture, channels="rgb")
    for number, (mask, capabilities) in enumerate(((1 << 6, ()), (1 << 3, ((8, 9),)))):
        place = new_folder(folder, f"rtx {number}")
        engine = write_engine(Path(onnx["none"]), place, backend="tensorrt-rtx", mask=mask, capabilities=capabilities)
        with load(engine) as detector:
            assert_same(detector.predict(picture, channels="rgb"), wanted)
            assert detector.backend.device == "Stub GPU 0, TensorRT-RTX 11.4.0.106"
        sidecar_path(engine).unlink()
        with load(engine, trust=True) as detector:
            assert_same(detector.predict(picture, channels="rgb"), wanted)
            assert detector.manifest.versions == {"tensorrt-rtx": "11.4.0.106"}
    engine = write_engine(Path(onnx["none"]), new_folder(folder, "rtx 86"), backend="tensorrt-rtx", mask=1 << 2, capabilities=((8, 6),))
    with refused(
        ModelFileError,
        r"was built for compute capability 8\.6; this machine has Stub GPU 0, compute capability 8\.9",
        "build-engine a.onnx --sm 89",
    ):
        load(engine)


def files_that_do_not_belong_together(onnx: dict[str, str], folder: str) -> None:
    engine = write_engine(Path(onnx["none"]), new_folder(folder, "altered"))
    content = bytearray(engine.read_bytes())
    content[-5] ^= 1
    engine.write_bytes(content)
    for trust in (False, True):
        with refused(ModelFileError, "its SHA-256 differs", "Copy both files again"):
            load(engine, trust=trust)
    engine.write_bytes(content[:-1])
    with refused(ModelFileError, "bytes, its sidecar says"):
        load(engine)
    sidecar_path(engine).unlink()
    with refused(ModelFileError, "has no sidecar altered.engine.json" if engine.stem == "altered" else "has no sidecar", "--trust"):
        load(engine)
    newer = bytearray(content)
    newer[24:28] = bytes([99, 1, 2, 3])
    engine.write_bytes(newer)
    with refused(
        ModelFileError, r"says version 99\.1\.2\.3, TensorRT 11\.4\.0\.106 is installed and does not read it", "Build it again here"
    ):
        load(engine, trust=True)
    sidecar_path(engine).write_text("{}", "utf-8")
    with refused(ModelFileError, "is damaged"):
        load(engine, trust=True)
    assert calls("cuStreamCreateWithPriority") == 0


def tensors_that_differ_from_the_sidecar(onnx: dict[str, str], folder: str) -> None:
    engine = write_engine(Path(onnx["none"]), new_folder(folder, "tensors"))
    path = sidecar_path(engine)
    original = json.loads(path.read_text("utf-8"))
    for change, message in (
        (
            lambda fields: fields["outputs"][1].update(shape=[1, 4092, 80]),
            r"The tensor scores of .* is float32 \[1, 4092, 81\], its sidecar says",
        ),
        (
            lambda fields: fields["inputs"][0].update(dtype="float16"),
            r"The tensor images of .* its sidecar says float16 \[1, 3, 256, 256\]",
        ),
        (lambda fields: fields["inputs"][0].update(shape=["batch", 3, 256, 256]), r"The tensor images of .* its sidecar says .*'batch'"),
        (lambda fields: fields["outputs"].pop(0), r"The tensor boxes of .* is float32 \[1, 4092, 4\], its sidecar says missing"),
        (
            lambda fields: fields["outputs"].append({"name": "a", "dtype": "int32", "shape": [1]}),
            "The tensor a of .* is missing, its sidecar",
        ),
    ):
        fields = json.loads(json.dumps(original))
        change(fields)
        path.write_text(json.dumps(fields), "utf-8")
        with refused(ModelFileError, message, "Rebuild it: yolact-deploy build-engine a.onnx"):
            load(engine)


def what_tensorrt_refuses(onnx: dict[str, str], folder: str) -> None:
    for name, options, reason in (
        ("host code", {"host_code": True}, "The engine holds host code"),
        ("version", {"version": "1.2"}, r"The engine plan file was made by version 1\.2"),
    ):
        engine = write_engine(Path(onnx["none"]), new_folder(folder, f"refused {name}"), options=options)
        with refused(ModelFileError, rf"TensorRT 11\.4\.0\.106 refuses the engine {engine.name}: {reason}", "Rebuild it on this machine"):
            load(engine)


def mask_iou_engines_that_do_not_belong(onnx: dict[str, str], folder: str) -> None:
    engine = write_engine(Path(onnx["plus"]), new_folder(folder, "plus"))
    beside = engine.with_name(f"{engine.stem}.maskiou.engine")
    content = beside.read_bytes()
    beside.write_bytes(content + b" ")
    with refused(ModelFileError, "is not the mask-IoU engine that", "Copy both files, or rebuild"):
        load(engine)
    beside.unlink()
    with refused(ModelFileError, r"needs its mask-IoU engine .*maskiou\.engine beside it, which is missing", "Copy both files"):
        load(engine)
    beside.write_bytes(content)
    deserialize, made = trt.Runtime.deserialize_cuda_engine, []

    def second_refused(self: Any, plan: bytes) -> Any:
        made.append(plan)
        return deserialize(self, plan if len(made) == 1 else b"")

    with (
        mock.patch.object(Engine, "close", autospec=True, side_effect=Engine.close) as closed,
        mock.patch.object(trt.Runtime, "deserialize_cuda_engine", second_refused),
        refused(ModelFileError, r"refuses the engine .*maskiou\.engine: Serialization assertion failed"),
    ):
        load(engine)
    assert closed.call_count == 1  # the first engine's memory is given back at once


def too_little_memory(onnx: dict[str, str], folder: str) -> None:
    """On a GPU of 3 MiB, which the engine's buffers do not fit into."""
    detector = load(write_engine(Path(onnx["none"]), new_folder(folder, "memory")))
    for _ in range(2):
        with refused(DeviceError, r"[0-9]+ bytes of GPU memory were asked for: CUDA_ERROR_OUT_OF_MEMORY, [0-9]+ of its 3145728 bytes"):
            detector.predict(sample_picture(), channels="rgb")
    detector.close()


def another_gpu(onnx: dict[str, str], folder: str) -> None:
    """On a machine with two."""
    picture = sample_picture()
    wanted = reference(onnx["none"]).predict(picture, channels="rgb")
    engine = write_engine(Path(onnx["none"]), new_folder(folder, "second"), gpu="Stub GPU 1")
    with refused(ModelFileError, "was built for Stub GPU 1; this machine has Stub GPU 0"):
        load(engine)
    with load(engine, device="cuda:1") as detector:
        assert detector.backend.device == "Stub GPU 1, TensorRT 11.4.0.106"
        for _ in range(3):
            assert_same(detector.predict(picture, channels="rgb"), wanted)
    with refused(ModelFileError, "this machine has Stub GPU 1"):
        load(write_engine(Path(onnx["none"]), new_folder(folder, "first"), gpu=STUB_GPU), device="cuda:1")


def a_gpu_that_is_not_there(onnx: dict[str, str], folder: str) -> None:
    engine = write_engine(Path(onnx["none"]), new_folder(folder, "one"))
    with refused(DeviceError, r"GPU 1 was asked for, this machine shows GPU 0\."):
        load(engine, device="cuda:1")
    load(engine, device="cuda:0").close()


def trusted_engines(onnx: dict[str, str], folder: str) -> None:
    picture, place = sample_picture(), new_folder(folder, "trusted")
    for kind, batch in (("none", None), ("dynamic", ONE_TO_FOUR)):
        engine = place / f"{kind}.engine"
        engine.write_bytes(plan(Path(onnx[kind]), batch))
        with refused(ModelFileError, f"has no sidecar {kind}.engine.json, and a plan is code", "adopt"):
            load(engine)
        model = reference(onnx[kind])
        with load(engine, trust=True) as detector:
            assert_same(detector.predict(picture, channels="rgb"), model.predict(picture, channels="rgb"))
            manifest = detector.manifest
            assert manifest.variant == VARIANTS["yolact_nano"] == model.manifest.variant
            assert manifest.classes == COCO
            assert (manifest.inputs, manifest.outputs) == (model.manifest.inputs, model.manifest.outputs)
            assert (manifest.kind, manifest.postprocess, manifest.input) == ("engine", "none", model.manifest.input)
            assert manifest.versions == {"tensorrt": "11.4.0.106"}
    assert_clean()


HEADS: dict[str, tuple[int, ...]] = {"boxes": (4092, 4), "scores": (4092, 81), "coefficients": (4092, 32), "prototypes": (32, 64, 64)}


def _trusted(folder: str, image: tuple[str, tuple[int, ...]] | None = None, *, second: str = "", **outputs: tuple[int, ...] | None) -> Any:
    trt.register("zeros", lambda inputs: {})
    heads = {name: ("FLOAT", (1, *shape)) for name, shape in {**HEADS, **outputs}.items() if shape is not None}
    engine = Path(folder) / "trusted.engine"
    kind, shape = image or ("FLOAT", (3, 256, 256))
    inputs = {name: (kind, (1, *shape)) for name in ("images", second) if name}
    engine.write_bytes(head(b"ftrt") + trt.make_plan(inputs, heads, "zeros"))
    return load(engine, trust=True)


def trusted_engines_of_other_makers(onnx: dict[str, str], folder: str) -> None:
    base, pascal = VARIANTS["yolact_base"], {"scores": (4092, 21)}
    with _trusted(folder, **pascal) as detector:
        assert (len(detector.classes), detector.classes.names[0]) == (20, "aeroplane")
        assert detector.manifest.variant == replace(VARIANTS["yolact_nano"], num_classes=21)
    with _trusted(folder, scores=(4092, 3), masks=(7,)) as detector:
        assert len(detector.classes) == 2
    whole = {"boxes": (19248, 4), "scores": (19248, 81), "coefficients": (19248, 32), "prototypes": (32, 138, 138)}
    with _trusted(folder, ("FLOAT", (3, 550, 550)), **whole) as detector:  # ResNet's and Darknet's networks look alike from outside
        assert (detector.manifest.variant, detector.manifest.input.mean) == (base, base_mean(base))
    plus = VARIANTS["yolact_plus_resnet50"]
    priors = plus.prior_count
    rescored = {"boxes": (priors, 4), "scores": (priors, 81), "coefficients": (priors, 32), "prototypes": (32, 138, 138)}
    odd: list[tuple[dict[str, Any], str]] = [
        ({"boxes": None}, "has the outputs scores, coefficients, prototypes; boxes, coefficients, prototypes, scores were wanted"),
        ({"image": ("UINT8", (256, 256, 3))}, r"takes uint8 \[B, 256, 256, 3\]; float32 \[B, 3, S, S\] was wanted"),
        ({"image": ("HALF", (3, 256, 256))}, r"takes float16 \[B, 3, 256, 256\]"),
        ({"image": ("FLOAT", (3, 256, 512))}, r"takes float32 \[B, 3, 256, 512\]"),
        ({"image": ("FLOAT", (4, 256, 256))}, r"takes float32 \[B, 4, 256, 256\]"),
        ({"second": "more"}, r"takes float32 \[B, 3, 256, 256\], float32 \[B, 3, 256, 256\]; float32 \[B, 3, S, S\] was wanted"),
        ({"scores": (4092, 81, 1)}, r"The output scores of .* is \[B, 4092, 81, 1\], 2 axes"),
        ({"prototypes": (32, 64, 64, 1)}, r"The output prototypes of .* is \[B, 32, 64, 64, 1\], 3 axes"),
        ({"image": ("FLOAT", (3, 256))}, r"takes float32 \[B, 3, 256\]"),
        ({"image": ("FLOAT", (3,))}, r"takes float32 \[B, 3\]"),
        ({"image": ("FLOAT", (3, 550, 550))}, "has 4092 priors and 32 prototypes at 550 px, as no built-in variant has"),
        ({"scores": (4092,)}, r"The output scores of .* is \[B, 4092\], 2 axes after the batch were wanted"),
        ({"prototypes": (32, 64)}, r"The output prototypes of .* is \[B, 32, 64\], 3 axes"),
        ({"coefficients": (4092, 31)}, "as no built-in variant has"),
        ({"boxes": (4091, 4)}, "as no built-in variant has"),
        ({"scores": (4092, 1)}, "as no built-in variant has"),
        ({"prototypes": (16, 64, 64), "coefficients": (4092, 16)}, "has 4092 priors and 16 prototypes"),
        ({"image": ("FLOAT", (3, 550, 550)), **rescored}, f"has {priors} priors and 32 prototypes at 550 px"),
    ]
    for changes, message in odd:
        with refused(ModelFileError, message, "adopt"):
            _trusted(folder, **changes)


def base_mean(variant: Any) -> Any:
    from yolact_deploy.manifest import InputSpec

    return InputSpec.of(variant).mean
