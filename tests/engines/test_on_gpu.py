"""Engines on a real GPU, detection by detection against PyTorch; skipped without one, failing there with YOLACT_REQUIRE_GPU=1."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.export.artifacts import Artifacts
from yolact_deploy.assembly import Heads
from yolact_deploy.cli.common import demo_picture, demo_weights
from yolact_deploy.data import sample_picture
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.builder import BuildResult, build_engine
from yolact_deploy.engines.inspector import engine_layers, layer_precision
from yolact_deploy.engines.options import BuildOptions
from yolact_deploy.engines.versions import TensorRT
from yolact_deploy.export import ExportOptions, export_checkpoint
from yolact_deploy.matching import FLOAT16, FLOAT32, DetectionMatch, Tolerance, match_detections
from yolact_deploy.model import load_checkpoint
from yolact_deploy.preprocess import prepare
from yolact_deploy.runtime import Detector, load

ROOT = Path(__file__).resolve().parents[2]


def match(reference: Detector, candidate: Detector, picture: np.ndarray, tolerance: Tolerance) -> DetectionMatch:
    """The candidate's detections of one picture against the reference's."""
    outputs = reference.backend.infer(prepare(picture, reference.manifest.input)[None])
    heads = Heads(*(outputs[name][0] for name in ("boxes", "scores", "coefficients", "prototypes")))
    truth, found = reference.predict(picture, channels="rgb"), candidate.predict(picture, channels="rgb")
    return match_detections(truth, found, heads, tolerance)


@pytest.fixture(scope="module")
def demo_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    return export_checkpoint(load_checkpoint(demo_weights()), folder / "demo.onnx", ExportOptions(batch="dynamic")).path


def build(model: Path, tensorrt: TensorRT, precision: str, **options: object) -> BuildResult:
    wanted = BuildOptions(precision, tensorrt.backend, timing_cache="none", **options)
    return build_engine(model, model.with_name(f"{model.stem}.{precision}.engine"), wanted)


def test_the_comparison_itself_tells_a_right_model_from_a_wrong_one(demo_onnx: Path, artifacts: Artifacts) -> None:
    reference = load(demo_weights(), device="cpu")
    found = match(reference, load(demo_onnx, providers=["cpu"]), demo_picture(), FLOAT32)
    assert found.passed
    assert found.partners > 0
    other = load(artifacts.weights, device="cpu")
    assert not match(other, load(demo_onnx, providers=["cpu"]), demo_picture(), FLOAT16).passed


def test_a_required_gpu_is_not_skipped_silently(tmp_path: Path) -> None:
    """Only where there is no GPU does this say something: the other tests of this file fail then."""
    from yolact_deploy.engines.gpu import gpus

    if gpus():
        return
    target = "tests/engines/test_on_gpu.py::test_contexts_in_threads"
    environment = {**os.environ, "YOLACT_REQUIRE_GPU": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "base"), target]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stdout
    assert "YOLACT_REQUIRE_GPU=1: " in done.stdout
    assert "no NVIDIA driver was found" in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("graph", FLOAT32), ("fp16", FLOAT16)])
def test_detections_are_those_of_pytorch(precision: str, tolerance: Tolerance, gpu_tensorrt: TensorRT, demo_onnx: Path) -> None:
    reference = load(demo_weights(), device="cpu")
    result = build(demo_onnx, gpu_tensorrt, precision, batch=BatchRange(1, 2, 4), detailed=True)
    with load(result.path) as detector:
        for picture in (demo_picture(), sample_picture(), np.ascontiguousarray(demo_picture()[:, ::-1])):
            found = match(reference, detector, picture, tolerance)
            assert found.passed, found.unexplained
            assert found.partners == found.reference - len(found.excused)
        together = detector.predict([demo_picture()] * 7, channels="rgb")
        alone = detector.predict(demo_picture(), channels="rgb")
        assert all(len(each) == len(alone) for each in together)
        engine = detector.backend.engine.session.engine
        kinds = layer_precision(engine_layers(engine.tensorrt, engine.handle))
        assert kinds
        if precision == "fp16":
            assert kinds["backbone"].startswith("float16")


@pytest.mark.gpu
def test_a_captured_graph_gives_what_plain_runs_give(gpu_tensorrt: TensorRT, demo_onnx: Path) -> None:
    from yolact_deploy.engines.loading import load_engine

    result = build(demo_onnx, gpu_tensorrt, "graph", batch=BatchRange(1, 1, 2))
    random = np.random.default_rng(0)
    images = [random.standard_normal((1, 3, 256, 256), np.float32) for _ in range(4)]
    answers = []
    for graphs in (False, True):
        loaded = load_engine(result.path, graphs=graphs)
        answers.append([loaded.session.run({"images": image}) for image in images])
        loaded.close()
    for plain, replayed in zip(*answers):
        for name, value in plain.items():
            assert np.array_equal(value, replayed[name]), name


@pytest.mark.gpu
def test_contexts_in_threads(gpu_tensorrt: TensorRT, demo_onnx: Path) -> None:
    result = build(demo_onnx, gpu_tensorrt, "fp16", batch=BatchRange(1, 1, 1))
    with load(result.path, contexts=3) as detector:
        pictures = [np.roll(demo_picture(), 20 * shift, 1) for shift in range(6)]
        wanted = [detector.predict(picture, channels="rgb").to_coco(0) for picture in pictures]
        found: dict[int, object] = {}

        def work(place: int) -> None:
            for _ in range(10):
                found[place] = detector.predict(pictures[place], channels="rgb").to_coco(0)

        threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[place] for place in range(6)] == wanted


@pytest.mark.gpu
def test_a_stream_of_torch(gpu_tensorrt: TensorRT, demo_onnx: Path) -> None:
    torch = pytest.importorskip("torch")
    result = build(demo_onnx, gpu_tensorrt, "fp16", batch=BatchRange(1, 1, 1))
    with load(result.path) as own, load(result.path, stream=torch.cuda.Stream().cuda_stream) as borrowed:
        assert own.predict(demo_picture(), channels="rgb").to_coco(0) == borrowed.predict(demo_picture(), channels="rgb").to_coco(0)


@pytest.mark.gpu
@pytest.mark.parametrize("postprocess", ["none", "nms", "masks"])
def test_yolact_plus_with_its_second_engine(postprocess: str, gpu_tensorrt: TensorRT, artifacts: Artifacts, tmp_path: Path) -> None:
    reference = load(artifacts.plus_weights, config=artifacts.plus_config, device="cpu")
    model = artifacts.onnx(artifacts.plus, postprocess=postprocess)
    options = BuildOptions(backend=gpu_tensorrt.backend, timing_cache="none")
    result = build_engine(model, tmp_path / "plus.engine", options)
    with load(result.path) as detector:
        found = match(reference, detector, sample_picture(), FLOAT32)
        assert found.passed, found.unexplained
