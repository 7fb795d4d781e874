"""Adopting engines where there is a GPU, on the fake TensorRT; test_adopt.py runs each in another process."""

from __future__ import annotations

import gc
import shutil
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tests.helpers import fake_tensorrt as trt
from tests.helpers.fake_engines import STUB_GPU, install, plan
from tests.helpers.stub_cuda import NOTHING, live
from yolact_deploy import load
from yolact_deploy.data import sample_picture
from yolact_deploy.engines.adopt import AdoptResult, adopt_engine
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.session import Engine
from yolact_deploy.engines.sidecar import read_sidecar, sidecar_path
from yolact_deploy.errors import ConfigError, DeviceError, MissingDependencyError, ModelFileError

install("tensorrt")
ONE_TO_FOUR = BatchRange(1, 2, 4)


def engine_of(onnx_file: str, folder: str, name: str, batch: BatchRange | None = None, **options: Any) -> Path:
    """An engine without a sidecar in a folder of its own, as trtexec leaves it."""
    engine = Path(folder) / name / "a.engine"
    engine.parent.mkdir()
    engine.write_bytes(plan(Path(onnx_file), batch, **options))
    return engine


@contextmanager
def refused(error: type[Exception], message: str, mend: str, engine: Path) -> Any:
    """What `engine` may not be adopted for; no sidecar is left."""
    with pytest.raises(error, match=message) as caught:
        yield
    assert mend in caught.value.mend
    assert not sidecar_path(engine).exists()


def assert_runs(adopted: AdoptResult, onnx_file: str) -> None:
    engine = adopted.sidecar.with_suffix("")
    assert read_sidecar(engine) == (adopted.manifest, adopted.target)
    picture = sample_picture(320, 240)
    wanted = load(onnx_file, providers=["cpu"], threads=1).predict(picture, channels="rgb")
    with load(engine) as detector:
        found = detector.predict(picture, channels="rgb")
    assert found.counts == wanted.counts
    for name in ("boxes", "scores", "mask_scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def an_opened_engine_tells_its_batches_and_runs(onnx: dict[str, str], folder: str) -> None:
    for kind, batch, wanted in (("none", None, BatchRange(1, 1, 1)), ("dynamic", ONE_TO_FOUR, ONE_TO_FOUR)):
        engine = engine_of(onnx[kind], folder, f"opened {kind}", batch)
        result = adopt_engine(engine, Path(onnx[kind]), batch=BatchRange(7, 7, 7), sm=((9, 0),), tensorrt_version="1.2.3")
        gc.collect()
        assert live() == NOTHING
        target = result.target
        assert (result.opened, target.batch, target.gpu, target.capabilities) == (True, wanted, STUB_GPU, ((8, 9),))
        assert (target.backend, target.tensorrt_version) == ("tensorrt", "11.4.0.106")
        assert target.options == {"adopted": True, "opened": True}
        assert result.manifest.inputs[0].shape[0] == ("batch" if batch else 1)
        assert_runs(result, onnx[kind])


def a_tensorrt_rtx_engine_keeps_its_capabilities(onnx: dict[str, str], folder: str) -> None:
    install("tensorrt_rtx")
    for name, mask, capabilities in (("portable", 1 << 6, ()), ("two", 0b1100, ((8, 6), (8, 9)))):
        engine = engine_of(onnx["dynamic"], folder, f"rtx {name}", ONE_TO_FOUR, magic=b"vtrt", mask=mask)
        result = adopt_engine(engine, Path(onnx["dynamic"]), sm=((9, 0),) if capabilities else ())
        assert (result.target.backend, result.target.capabilities, result.target.gpu) == ("tensorrt-rtx", capabilities, "")
        assert (result.opened, result.target.batch) == (True, ONE_TO_FOUR)
        assert_runs(result, onnx["dynamic"])


def an_engine_of_another_file(onnx: dict[str, str], folder: str) -> None:
    engine = engine_of(onnx["none"], folder, "another")
    mend = "Name the ONNX file that it was built from"
    for kind, message in (
        ("raw", r"The tensor images of .* is float32 \[B, 3, 256, 256\], that of .* uint8 \[B, 256, 256, 3\]: it was built from another"),
        ("nms", r"The tensor boxes of .* is float32 \[B, 4092, 4\], that of .* missing: it was built from another file"),
    ):
        with mock.patch.object(Engine, "close", autospec=True, side_effect=Engine.close) as closed:
            with refused(ModelFileError, message, mend, engine):
                adopt_engine(engine, Path(onnx[kind]))
            assert closed.call_count == 1
        gc.collect()
        assert live() == NOTHING
    other = engine_of(onnx["raw"], folder, "raw")
    with refused(ModelFileError, "The tensor images of", mend, other):
        adopt_engine(other, Path(onnx["none"]))


def what_cannot_be_opened(onnx: dict[str, str], folder: str) -> None:
    engine = engine_of(onnx["none"], folder, "host code", host_code=True)
    with refused(ModelFileError, "refuses the engine a.engine: The engine holds host code", "Rebuild it", engine):
        adopt_engine(engine, Path(onnx["none"]))
    engine = engine_of(onnx["none"], folder, "missing")
    with (
        mock.patch.dict(sys.modules, {"tensorrt": None}),
        refused(MissingDependencyError, r"TensorRT is not installed\.", "yolact-deploy[tensorrt]", engine),
    ):
        from yolact_deploy.engines.versions import load_tensorrt

        load_tensorrt.cache_clear()
        adopt_engine(engine, Path(onnx["none"]), sm=((8, 9),))


def a_driver_that_is_too_old(onnx: dict[str, str], folder: str) -> None:
    """The stand-in's driver supports CUDA 12.8."""
    engine = engine_of(onnx["none"], folder, "driver")
    with (
        mock.patch.object(metadata, "distributions", return_value=[SimpleNamespace(name="tensorrt_cu13")]),
        refused(DeviceError, r"The driver supports CUDA 12\.8, the installed TensorRT .* for CUDA 13", "driver 580 or newer", engine),
    ):
        adopt_engine(engine, Path(onnx["none"]))


def a_rescoring_engine_and_its_net(onnx: dict[str, str], folder: str) -> None:
    source = Path(onnx["plus"])
    engine = engine_of(onnx["plus"], folder, "plus")
    net = next(source.parent.glob(f"{source.stem}*maskiou*.onnx"))
    beside = engine.with_name("net.engine")
    beside.write_bytes(plan(net, BatchRange(1, 2, 3)))
    with refused(ConfigError, "rescores its masks with a second net, whose engine was not named", "--mask-iou ENGINE", engine):
        adopt_engine(engine, source)
    elsewhere = Path(folder) / "net.engine"
    shutil.copy(beside, elsewhere)
    with refused(ConfigError, "lies in another folder than", "Put both engines into one folder", engine):
        adopt_engine(engine, source, mask_iou=elsewhere)
    with refused(ModelFileError, r"none\.engine does not exist", "Check the path", engine):
        adopt_engine(engine, source, mask_iou=engine.with_name("none.engine"))
    result = adopt_engine(engine, source, mask_iou=beside)
    assert result.manifest.mask_iou["file"] == "net.engine"
    assert len(result.manifest.mask_iou["sha256"]) == 64
    picture = sample_picture(320, 240, seed=1)
    wanted = load(source, providers=["cpu"], threads=1).predict(picture, channels="rgb")
    with load(engine) as detector:
        found = detector.predict(picture, channels="rgb")
        assert found.counts == wanted.counts
        np.testing.assert_allclose(found.mask_scores, wanted.mask_scores, rtol=0, atol=1e-6)
    assert trt.misuse == []
