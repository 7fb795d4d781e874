"""Where an engine's detections are made: on the GPU, whose kernels the stand-in runs on the CPU, or by the host."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.helpers.fake_engines import install, write_engine
from tests.helpers.stub_cuda import calls
from tests.runtime.tensorrt_scenarios import assert_clean, assert_same, new_folder, pictures, reference, refused
from yolact_deploy import Detector, load
from yolact_deploy.data import sample_picture
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.cuda import compiler, workspace
from yolact_deploy.engines.cuda.cuda_core import CudaCoreDriver
from yolact_deploy.errors import ConfigError, DeviceError, MissingDependencyError
from yolact_deploy.postprocess import PostprocessSettings
from yolact_deploy.preprocess import prepare
from yolact_deploy.runtime import tensorrt_backend

install("tensorrt")
LAUNCH = "cuLaunchKernel"


def detections_are_made_where_it_is_told(onnx: dict[str, str], folder: str) -> None:
    picture, engine = sample_picture(320, 240), write_engine(Path(onnx["none"]), new_folder(folder, "place"))
    wanted = reference(onnx["none"]).predict(picture, channels="rgb")
    launched = calls(LAUNCH)
    with load(engine, postprocess="cpu") as detector:
        found = detector.predict(picture, channels="rgb")
        assert detector.backend.host_reason([(1, 1)], detector.settings) == "postprocess='cpu' was asked for"
    assert_same(found, wanted)
    assert set(found.milliseconds) == {"read", "preprocess", "inference", "postprocess"}
    assert calls(LAUNCH) == launched
    for postprocess in ("gpu", "auto"):
        with load(engine, postprocess=postprocess) as detector:
            found = detector.predict(picture, channels="rgb")
            assert detector.backend.host_reason([(1, 1)], detector.settings) == ""
        assert_same(found, wanted)
        assert set(found.milliseconds) == {"read", "inference"}
        assert calls(LAUNCH) > launched
        launched = calls(LAUNCH)
    with refused(ConfigError, "postprocess is 'tpu'", "auto, gpu, cpu"):
        load(engine, postprocess="tpu")
    with refused(ConfigError, "postprocess cannot be given with an ONNX file"):
        load(onnx["none"], postprocess="gpu")


def what_only_the_host_does(onnx: dict[str, str], folder: str) -> None:
    picture, engine = sample_picture(200, 160), write_engine(Path(onnx["none"]), new_folder(folder, "too much"))
    launched = calls(LAUNCH)
    for settings, reason in (
        (PostprocessSettings(top_k=2000), "top_k is 2000, the GPU ranks at most 1024"),
        (PostprocessSettings(nms="traditional", max_detections=2000), "max_detections is 2000, the GPU ranks at most 1024"),
    ):
        wanted = load(onnx["none"], providers=["cpu"], threads=1, settings=settings).predict(picture, channels="rgb")
        with load(engine, settings=settings) as detector:
            assert_same(detector.predict(picture, channels="rgb"), wanted)
            assert reason in detector.backend.host_reason([(200, 160)], detector.settings)
        refusal = f"on the GPU was asked for, but {reason}"
        with load(engine, settings=settings, postprocess="gpu") as detector, pytest.raises(ConfigError, match=refusal):
            detector.predict(picture, channels="rgb")
        assert_clean()
    assert calls(LAUNCH) == launched
    with load(engine) as detector:
        assert "2^31 pixels" in detector.backend.host_reason([(5, 5), (1 << 16, 1 << 15)], detector.settings)


def all_that_was_the_hosts_is_done_on_the_gpu(onnx: dict[str, str], folder: str) -> None:
    """Traditional NMS, which measures boxes in the network's 256 pixels, and graphs with NMS and with masks inside."""
    many = pictures(2)
    for kind, settings in (
        ("none", PostprocessSettings(nms="traditional", max_detections=20, top_k=2000)),
        ("dynamic", PostprocessSettings(nms="traditional", iou_threshold=0.2)),
        ("nms", None),
        ("masks", None),
        ("fp16 nms", None),
        ("fixed 3", None),
    ):
        model = load(onnx[kind], providers=["cpu"], threads=1, settings=settings)
        batch = BatchRange(1, 2, 4) if kind == "dynamic" else None
        engine = write_engine(Path(onnx[kind]), new_folder(folder, f"{kind} on the GPU"), batch)
        launched = calls(LAUNCH)
        with load(engine, settings=settings, postprocess="gpu") as detector:
            for _ in range(3):
                for found, wanted in zip(detector.predict(many, channels="rgb"), model.predict(many, channels="rgb"), strict=True):
                    assert_same(found, wanted)
            assert detector.backend.host_reason([(200, 160)], detector.settings) == ""
        assert calls(LAUNCH) > launched
        assert_clean()


def masks_are_rescored_behind_nms_in_the_graph(onnx: dict[str, str], folder: str) -> None:
    """By the mask-IoU engine, or in the graph where that assembles the masks."""
    picture = sample_picture(320, 240, seed=1)
    for kind in ("plus nms", "plus masks"):
        wanted = reference(onnx[kind]).predict(picture, channels="rgb")
        assert len(wanted) > 10
        assert not np.array_equal(wanted.mask_scores, wanted.scores)
        with load(write_engine(Path(onnx[kind]), new_folder(folder, f"{kind} rescored")), postprocess="gpu") as detector:
            for _ in range(3):
                found = detector.predict(picture, channels="rgb")
                np.testing.assert_array_equal(found.scores, wanted.scores)
                np.testing.assert_allclose(found.mask_scores, wanted.mask_scores, rtol=0, atol=1e-6)
                assert found.counts == wanted.counts
        assert_clean()


def without_kernels_the_host_goes_on(onnx: dict[str, str], folder: str) -> None:
    picture, engine = sample_picture(200, 160), write_engine(Path(onnx["none"]), new_folder(folder, "no kernels"))
    wanted, compiled = reference(onnx["none"]).predict(picture, channels="rgb"), compiler.cached_kernels
    asked = []
    for error in (
        MissingDependencyError("NVRTC is not installed.", "Install it."),
        DeviceError("NVRTC does not know sm_999.", "Update it."),
    ):

        def refuse(capability: tuple[int, int], error: Exception = error) -> bytes:
            asked.append(capability)
            raise error

        tensorrt_backend.cached_kernels = refuse
        try:
            with load(engine) as detector:
                for _ in range(2):
                    assert_same(detector.predict(picture, channels="rgb"), wanted)
                reason = detector.backend.host_reason([(1, 1)], detector.settings)
                assert reason == f"{error.message[:-1]} ({error.mend[:-1]})"
            with load(engine, postprocess="gpu") as detector, pytest.raises(ConfigError, match="was asked for, but NVRTC"):
                detector.predict(picture, channels="rgb")
        finally:
            tensorrt_backend.cached_kernels = compiled
    assert asked == [(8, 9)] * 4  # once for each detector
    assert_clean()


def cross_class_nms_and_changing_settings(onnx: dict[str, str], folder: str) -> None:
    picture = sample_picture(320, 240)
    with load(write_engine(Path(onnx["none"]), new_folder(folder, "changing")), postprocess="gpu") as detector:
        for settings in (
            PostprocessSettings(nms="cross-class"),
            PostprocessSettings(max_detections=3),
            PostprocessSettings(nms="cross-class"),
        ):
            detector.settings = settings
            wanted = load(onnx["none"], providers=["cpu"], threads=1, settings=settings).predict(picture, channels="rgb")
            for _ in range(3):
                assert_same(detector.predict(picture, channels="rgb"), wanted)
    assert_clean()


def prepared_pictures_give_the_same(onnx: dict[str, str], folder: str) -> None:
    """What was prepared on the host; float and raw input, the latter with swapped channels."""
    many = pictures(3)
    sizes = [(picture.shape[1], picture.shape[0]) for picture in many]
    for kind in ("none", "raw", "fp16 io"):
        with load(write_engine(Path(onnx[kind]), new_folder(folder, f"prepared {kind}")), postprocess="gpu") as detector:
            images = np.stack([prepare(picture, detector.manifest.input) for picture in many])
            for one, other in zip(detector.predict_prepared(images, sizes), detector.predict(many, channels="rgb"), strict=True):
                assert_same(one, other)
    assert_clean()


def batches_of_any_size_on_the_gpu(onnx: dict[str, str], folder: str) -> None:
    """Padding has no size of its own; each batch size is captured anew."""
    many = pictures(5)
    wanted = [reference(onnx["dynamic"]).predict(picture, channels="rgb") for picture in many]
    with load(write_engine(Path(onnx["dynamic"]), new_folder(folder, "batches"), BatchRange(2, 2, 4)), postprocess="gpu") as detector:
        for count in (1, 2, 2, 2, 3, 5, 1, 1, 1):
            found = detector.predict(many[:count], channels="rgb")
            assert len(found) == count
            for one, truth in zip(found, wanted, strict=False):
                assert_same(one, truth)
    assert_clean()


def outputs_and_detections_take_turns(onnx: dict[str, str], folder: str) -> None:
    """`infer` on the same context neither disturbs the detections' graph nor runs their kernels."""
    picture = sample_picture(200, 160)
    wanted = reference(onnx["none"]).predict(picture, channels="rgb")
    image = np.random.default_rng(0).standard_normal((1, 3, 256, 256), np.float32)
    with load(write_engine(Path(onnx["none"]), new_folder(folder, "turns")), postprocess="gpu") as detector:
        outputs = reference(onnx["none"]).backend.infer(image)
        for _ in range(3):
            for _ in range(3):
                assert_same(detector.predict(picture, channels="rgb"), wanted)
            for _ in range(3):
                for name, value in detector.backend.infer(image).items():
                    np.testing.assert_array_equal(value, outputs[name])
    assert_clean()


def closing_waits_for_detections(onnx: dict[str, str], folder: str) -> None:
    """Threads that predict while another closes get a result or one clear error, never memory that is gone."""
    picture = sample_picture(200, 160)
    wanted = reference(onnx["none"]).predict(picture, channels="rgb")
    engine = write_engine(Path(onnx["none"]), new_folder(folder, "closing"))
    for turn in range(6):
        detector = load(engine, contexts=2, postprocess="gpu")
        assert_same(detector.predict(picture, channels="rgb"), wanted)
        started = threading.Barrier(3)

        def use(detector: Detector = detector, started: threading.Barrier = started) -> str:
            started.wait()
            try:
                for _ in range(100):
                    assert_same(detector.predict(picture, channels="rgb"), wanted)
            except DeviceError as error:
                return error.message
            return "never closed"

        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(use) for _ in range(2)]
            started.wait()
            time.sleep(0.02 * turn)
            detector.close()
            assert all("is closed" in end.result() for end in ends), [end.result() for end in ends]
        assert_clean()


def heads_and_drivers_that_the_kernels_do_not_fit(onnx: dict[str, str], folder: str) -> None:
    picture = sample_picture(200, 160)
    wanted = reference(onnx["none"]).predict(picture, channels="rgb")
    engine = write_engine(Path(onnx["none"]), new_folder(folder, "unfit"))
    with mock.patch.object(workspace, "_MOST_PROTOTYPES", 31), load(engine) as detector:
        assert_same(detector.predict(picture, channels="rgb"), wanted)
        assert "32 prototypes were given" in detector.backend.host_reason((), detector.settings)
    with mock.patch.object(CudaCoreDriver, "load_module", side_effect=DeviceError("Too new.", "Update.")):
        with load(engine) as detector:
            for _ in range(2):
                assert_same(detector.predict(picture, channels="rgb"), wanted)
            assert detector.backend.host_reason((), detector.settings) == "Too new (Update)"
        with load(engine, postprocess="gpu") as detector, pytest.raises(ConfigError, match="was asked for, but Too new"):
            detector.predict(picture, channels="rgb")
    assert_clean()
