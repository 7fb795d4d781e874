"""The C++ library with a real TensorRT on a real GPU, held against Python on the same engines; skipped without them.

TENSORRT_ROOT names the folder with TensorRT's headers and library, as for CMake; with YOLACT_REQUIRE_GPU=1 the test fails rather than skips
where one of them, or nvcc, is missing.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from tests.helpers.cpp_library import CPP, cmake, tool
from yolact_deploy.cli.common import demo_picture, demo_weights
from yolact_deploy.engines.builder import build_engine
from yolact_deploy.engines.options import BuildOptions
from yolact_deploy.engines.versions import TensorRT
from yolact_deploy.export import ExportOptions, export_checkpoint
from yolact_deploy.model import load_checkpoint
from yolact_deploy.runtime import load

NMS = ("fast", "cross-class", "traditional")


def wanted_root() -> str:
    root = os.environ.get("TENSORRT_ROOT", "")
    if not root:
        reason = "TensorRT's headers and library are wanted: name their folder with TENSORRT_ROOT"
        if os.environ.get("YOLACT_REQUIRE_GPU") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return root


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, tensorrt_for_gpu: TensorRT) -> Path:
    """The folder of the examples, built as users build them."""
    root, folder = wanted_root(), tmp_path_factory.mktemp("build")
    chosen = ["-DCMAKE_BUILD_TYPE=Release", f"-DTENSORRT_ROOT={root}", f"-DYOLACT_DEPLOY_BACKEND={tensorrt_for_gpu.backend}"]
    cmake(
        "-S",
        str(CPP),
        "-B",
        str(folder),
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        "-DCMAKE_CUDA_ARCHITECTURES=native",
        *chosen,
    )
    cmake("--build", str(folder), "--parallel")
    return folder / "examples"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_detections_equal_pythons(gpu_tensorrt: TensorRT, programs: Path, tmp_path: Path, precision: str) -> None:
    model = export_checkpoint(load_checkpoint(demo_weights()), tmp_path / "demo.onnx", ExportOptions(batch="dynamic")).path
    options = BuildOptions("fp16" if precision == "fp16" else "graph", gpu_tensorrt.backend, timing_cache="none")
    engine = build_engine(model, tmp_path / "demo.engine", options).path
    picture = demo_picture()
    path = tmp_path / "17.ppm"
    cv2.imwrite(str(path), picture[..., ::-1])
    with load(engine) as detector:
        made_for = detector.settings
    for nms in NMS:
        run = [str(programs / "detect_image"), str(engine), str(path), "--nms", nms, "--score-threshold", "0"]
        found = json.loads(subprocess.run(run, capture_output=True, text=True, check=True, timeout=300).stdout)
        with load(engine, settings=replace(made_for, nms=nms)) as detector:
            assert found == detector.predict(picture, channels="rgb").to_coco(17)
        assert found
