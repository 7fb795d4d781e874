"""Detectors of engines on the fake TensorRT, against ONNX Runtime on the same file; test_tensorrt_backend.py runs each elsewhere."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import fake_tensorrt as trt
from tests.helpers.fake_engines import install, write_engine
from tests.helpers.stub_cuda import NOTHING, calls, live
from yolact_deploy import Detections, Detector, load
from yolact_deploy.data import sample_picture
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.cuda import open_driver
from yolact_deploy.errors import ConfigError, DeviceError, ModelFileError, YolactDeployError
from yolact_deploy.postprocess import PostprocessSettings
from yolact_deploy.preprocess import prepare
from yolact_deploy.runtime.tensorrt_backend import TensorRTBackend

install("tensorrt")


def pictures(count: int) -> list[np.ndarray[Any, Any]]:
    return [sample_picture(200 + 40 * index, 150, seed=index) for index in range(count)]


def reference(onnx_file: str) -> Detector:
    return load(onnx_file, providers=["cpu"], threads=1)


def assert_same(found: Detections, wanted: Detections) -> None:
    assert len(found) == len(wanted) > 0
    for name in ("boxes", "scores", "mask_scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert found.counts == wanted.counts
    assert (found.width, found.height, found.class_names) == (wanted.width, wanted.height, wanted.class_names)
    assert found.category_ids == wanted.category_ids


def assert_clean() -> None:
    gc.collect()
    assert live() == NOTHING
    assert trt.misuse == []


def new_folder(folder: str, name: str) -> Path:
    made = Path(folder) / name
    made.mkdir()
    return made


@contextmanager
def refused(error: type[Exception], message: str, mend: str = "") -> Any:
    with pytest.raises(error, match=message) as caught:
        yield
    assert mend in caught.value.mend
    del caught
    assert_clean()


def every_graph_gives_what_onnx_runtime_gives(onnx: dict[str, str], folder: str) -> None:
    picture = sample_picture(320, 240)
    for kind in ("none", "nms", "masks", "raw", "fp16 io"):
        wanted = reference(onnx[kind]).predict(picture, channels="rgb")
        with load(write_engine(Path(onnx[kind]), new_folder(folder, kind))) as detector:
            for _ in range(3):
                assert_same(detector.predict(picture, channels="rgb"), wanted)
            assert detector.manifest.kind == "engine"
            assert repr(detector).endswith("80 classes, tensorrt on Stub GPU 0, TensorRT 11.4.0.106)")
        assert_clean()
    assert calls("cuGraphLaunch") == 10


def lists_of_any_length(onnx: dict[str, str], folder: str) -> None:
    single = reference(onnx["dynamic"])
    many = pictures(9)
    wanted = [single.predict(picture, channels="rgb") for picture in many]
    for smallest, counts in ((1, range(1, 10)), (3, (1, 2, 4, 5))):
        engine = write_engine(Path(onnx["dynamic"]), new_folder(folder, f"smallest {smallest}"), BatchRange(smallest, 3, 4))
        with load(engine) as detector:
            assert (detector.backend.smallest_batch, detector.backend.largest_batch, detector.backend.batch) == (smallest, 4, None)
            for count in counts:
                found = detector.predict(many[:count], channels="rgb")
                assert len(found) == count
                for one, other in zip(found, wanted):
                    assert_same(one, other)
            images = np.stack([prepare(picture, detector.manifest.input) for picture in many])
            sizes = [(picture.shape[1], picture.shape[0]) for picture in many]
            for count in (4, 5, 9):
                found = detector.predict_prepared(images[:count], sizes[:count])
                assert [item.counts for item in found] == [item.counts for item in wanted[:count]]
            assert detector.predict([]) == []
            for wrong in (images[:0], np.float32(0).reshape(())):
                with pytest.raises(YolactDeployError, match=r"float32 \['batch', 3, 256, 256\] was wanted"):
                    detector.backend.infer(wrong)
        assert_clean()


def a_batch_larger_than_the_usual_group(onnx: dict[str, str], folder: str) -> None:
    many = pictures(11)
    engine = write_engine(Path(onnx["dynamic"]), new_folder(folder, "large"), BatchRange(11, 11, 12))
    with load(engine) as detector:
        found = detector.predict(many, channels="rgb")
        assert calls("cuMemcpyHtoDAsync_v2") == 3  # pictures, what they are, their sizes; not 8 and 3, each padded to 11
    assert_same(found[10], reference(onnx["dynamic"]).predict(many[10], channels="rgb"))


def a_fixed_batch_is_padded(onnx: dict[str, str], folder: str) -> None:
    single, many = reference(onnx["fixed 3"]), pictures(4)
    with load(write_engine(Path(onnx["fixed 3"]), new_folder(folder, "fixed"))) as detector:
        assert (detector.backend.smallest_batch, detector.backend.largest_batch, detector.backend.batch) == (3, 3, 3)
        for count in (1, 3, 4):
            for found, wanted in zip(detector.predict(many[:count], channels="rgb"), single.predict(many[:count], channels="rgb")):
                assert_same(found, wanted)


def masks_are_rescored_by_an_engine_of_their_own(onnx: dict[str, str], folder: str) -> None:
    picture = sample_picture(320, 240, seed=1)
    wanted = reference(onnx["plus"]).predict(picture, channels="rgb")
    assert len(wanted) > 10
    assert not np.array_equal(wanted.mask_scores, wanted.scores)
    for minimum, maximum in ((1, 7), (1, 128), (3, 3), (5, 7)):
        batch = BatchRange(minimum, minimum, maximum)
        engine = write_engine(Path(onnx["plus"]), new_folder(folder, f"plus {batch}".replace(":", "-")), mask_iou_batch=batch)
        with load(engine) as detector:
            for threshold in (0.0, float(wanted.scores[4])):
                found = detector.predict(picture, channels="rgb", score_threshold=threshold)
                kept = wanted[wanted.scores > threshold]
                np.testing.assert_allclose(found.mask_scores, kept.mask_scores, rtol=0, atol=1e-6)
                assert found.counts == kept.counts
            captured = calls("cuStreamBeginCapture_v2")  # of the network: the number of masks differs from picture to picture
            for _ in range(3):
                detector.backend.mask_iou(np.zeros((3, 1, 64, 64), np.float32))
            assert calls("cuStreamBeginCapture_v2") == captured
            rescored = detector.backend.mask_iou(np.zeros((0, 1, 64, 64), np.float32))
            assert (rescored.shape, rescored.dtype) == ((0, 5), np.float32)
            for count in (1, 2, 3, 7, 8, 13):
                masks = np.random.default_rng(count).random((count, 1, 64, 64), np.float32)
                single = [detector.backend.mask_iou(masks[row : row + 1]) for row in range(count)]
                np.testing.assert_array_equal(detector.backend.mask_iou(masks), np.concatenate(single))
        assert_clean()


def a_backend_without_graphs(onnx: dict[str, str], folder: str) -> None:
    engine, captured = write_engine(Path(onnx["none"]), new_folder(folder, "no graphs")), calls("cuStreamBeginCapture_v2")
    for graphs in (False, True):
        backend = TensorRTBackend(engine, graphs=graphs)
        for _ in range(3):
            backend.infer(np.zeros((1, 3, 256, 256), np.float32))
        backend.close()
        assert calls("cuStreamBeginCapture_v2") == captured + graphs


def no_mask_iou_engine_no_rescoring(onnx: dict[str, str], folder: str) -> None:
    with load(write_engine(Path(onnx["none"]), new_folder(folder, "plain"))) as detector:
        with refused(ModelFileError, "The model yolact_nano has no mask-IoU engine", "YOLACT++"):
            detector.backend.mask_iou(np.zeros((1, 1, 64, 64), np.float32))
        for images in (np.zeros((1, 3, 256, 256), np.uint8), np.zeros((2, 3, 256, 256), np.float32), np.zeros((3, 256, 256), np.float32)):
            with refused(Exception, r"float32 \[1, 3, 256, 256\] was wanted"):
                detector.backend.infer(images)


def settings_change_the_nms_outside_the_graph(onnx: dict[str, str], folder: str) -> None:
    settings = PostprocessSettings(score_threshold=0.2, max_detections=5)
    picture = sample_picture()
    with load(write_engine(Path(onnx["none"]), new_folder(folder, "settings")), settings=settings) as detector:
        wanted = load(onnx["none"], providers=["cpu"], threads=1, settings=settings).predict(picture, channels="rgb")
        assert_same(detector.predict(picture, channels="rgb"), wanted)
    engine = write_engine(Path(onnx["nms"]), new_folder(folder, "settings nms"))
    with refused(ConfigError, "so its settings cannot be changed"):
        load(engine, settings=settings)


def threads_share_a_detector(onnx: dict[str, str], folder: str) -> None:
    many = pictures(4)
    wanted = [reference(onnx["none"]).predict(picture, channels="rgb") for picture in many]
    engine = write_engine(Path(onnx["none"]), new_folder(folder, "threads"))
    for contexts in (1, 2):
        with load(engine, contexts=contexts) as detector:

            def use(place: int, detector: Detector = detector) -> None:
                for _ in range(3):
                    assert_same(detector.predict(many[place], channels="rgb"), wanted[place])

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(use, range(4)))
            assert 1 <= live()["streams"] <= contexts
        assert_clean()


def closing_gives_everything_back(onnx: dict[str, str], folder: str) -> None:
    picture = sample_picture()
    for kind in ("none", "plus"):
        with load(write_engine(Path(onnx[kind]), new_folder(folder, f"closed {kind}")), contexts=2) as detector:
            assert live() == NOTHING
            loaded = detector.backend.engine
            assert {session._contexts for session in (loaded.session, loaded.mask_iou) if session} == {2}
            detector.predict(picture, channels="rgb")
            assert live()["streams"] == (2 if kind == "plus" else 1)
            assert live()["device memory"] > 0
        assert live() == NOTHING
        detector.close()
        with pytest.raises(DeviceError, match="is closed"):
            detector.predict(picture, channels="rgb")


def work_goes_to_the_callers_stream(onnx: dict[str, str], folder: str) -> None:
    picture = sample_picture()
    wanted = reference(onnx["none"]).predict(picture, channels="rgb")
    with open_driver().create_stream() as mine:
        with load(write_engine(Path(onnx["none"]), new_folder(folder, "stream")), stream=mine.handle) as detector:
            for _ in range(3):
                assert_same(detector.predict(picture, channels="rgb"), wanted)
            with detector.backend.engine.session.context() as context:
                assert context.stream.handle == mine.handle
        both = write_engine(Path(onnx["plus"]), new_folder(folder, "stream of both"))
        with (
            load(both, stream=mine.handle) as detector,
            detector.backend.engine.mask_iou.context() as context,
        ):
            assert context.stream.handle == mine.handle
        assert {kind for kind, count in live().items() if count} == {"streams"}
        mine.synchronize()


def a_lean_runtime_is_handed_on(onnx: dict[str, str], folder: str) -> None:
    asked: list[str] = []
    original: Callable[[Any, str], Any] = trt.Runtime.load_runtime

    def spy(self: Any, path: str) -> Any:
        asked.append(path)
        return original(self, path)

    trt.Runtime.load_runtime = spy
    try:
        load(write_engine(Path(onnx["plus"]), new_folder(folder, "lean")), lean_runtime=__file__).close()
    finally:
        trt.Runtime.load_runtime = original
    assert asked == [__file__] * 2


def options_that_do_not_fit_an_engine(onnx: dict[str, str], folder: str) -> None:
    engine = write_engine(Path(onnx["none"]), new_folder(folder, "options"))
    for given in ({"providers": ["cpu"]}, {"variant": "yolact_base"}, {"threads": 2}, {"config": "a.toml"}, {"classes": "a"}):
        with refused(ConfigError, f"{next(iter(given))} cannot be given with an engine", "sidecar"):
            load(engine, **given)
    for given in ({"stream": 1}, {"contexts": 2}, {"trust": True}, {"lean_runtime": "a"}, {"device": "cuda"}):
        with refused(ConfigError, f"{next(iter(given))} cannot be given with an ONNX file"):
            load(onnx["none"], **given)
    for device in ("cpu", "cuda:x", "cuda:-1", "gpu"):
        with refused(ConfigError, f"An engine runs on a GPU, the device '{device}' was asked for", "Name cuda"):
            load(engine, device=device)
    for contexts in (0, -1):
        with refused(ConfigError, f"{contexts} contexts were asked for"):
            load(engine, contexts=contexts)
    with refused(ConfigError, "2 contexts were asked for", "on a stream of your own 1"):
        load(engine, contexts=2, stream=1)
    with refused(ConfigError, "runs in tensorrt, onnxruntime was asked for"):
        load(engine, backend="onnxruntime")
    for suffix in (".plan", ".trt", ".ENGINE"):
        other = engine.with_suffix(suffix)
        other.write_bytes(engine.read_bytes())
        Path(f"{other}.json").write_text(Path(f"{engine}.json").read_text("utf-8"), "utf-8")
        load(other, backend="tensorrt", device="cuda").close()
