"""Self-tests of engines on the fake TensorRT, true ones and such as compute something else; test_selftesting.py runs each elsewhere."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tests.helpers import fake_tensorrt as trt
from tests.helpers.fake_engines import install, write_engine
from tests.helpers.stub_cuda import NOTHING, live
from yolact_deploy.cli.common import demo_picture
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.selftest import Selftest, SelftestTolerance, selftest_path, tolerance_of
from yolact_deploy.engines.sidecar import read_sidecar, sidecar_path, write_sidecar
from yolact_deploy.errors import ConfigError, DeviceError, ModelFileError
from yolact_deploy.files import sha256_of
from yolact_deploy.runtime import SelftestResult, selftest, selftesting
from yolact_deploy.runtime.selftesting import make_selftest

install("tensorrt")
Arrays = dict[str, np.ndarray[Any, Any]]


def made(onnx_file: str, folder: str, name: str, batch: BatchRange | None = None, **changes: Any) -> Path:
    """An engine of the file that carries a self-test; `changes` are :func:`make_selftest`'s arguments."""
    place = Path(folder) / name
    place.mkdir()
    engine = write_engine(Path(onnx_file), place, batch)
    given = {"picture": demo_picture()[64:448], "tolerance": tolerance_of("fp32"), "threads": 1, **changes}
    sign(engine, make_selftest(Path(onnx_file), **given))
    return engine


def sign(engine: Path, test: Selftest) -> None:
    """Write the self-test and name it in the sidecar."""
    path = selftest_path(engine)
    path.write_text(test.to_json(), "utf-8")
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    target = replace(sidecar[1], selftest={"file": path.name, "sha256": sha256_of(path)})
    write_sidecar(replace(sidecar[0], target=target.to_dict()), sidecar_path(engine))


def assert_clean() -> None:
    gc.collect()
    assert live() == NOTHING
    assert trt.misuse == []


def a_true_engine_passes(onnx: dict[str, str], folder: str) -> None:
    batches = {"fp32": BatchRange(1, 2, 4), "fp16": None, "nms": None}
    for kind, batch in batches.items():
        result = selftest(made(onnx[kind], folder, kind, batch))
        assert result.passed
        assert result.checked > 3
        assert result.problems == ()
        assert_clean()
    loose, picture = SelftestTolerance(1e-5, 0.99, 0.99), demo_picture()
    plus = made(onnx["plus"], folder, "plus", tolerance=loose, picture=picture, score_threshold=0.1)
    assert selftest(plus) == SelftestResult(True, selftest(plus, postprocess="cpu").checked, ())
    assert_clean()
    padded = made(onnx["fp32"], folder, "padded", BatchRange(3, 3, 4))
    assert selftest(str(padded)).passed
    assert_clean()


@contextmanager
def computing(onnx_file: str, change: Callable[[Arrays, int], None]) -> Any:
    """Engines of the file whose outputs, copied, are handed to `change`, with how often they were computed before."""
    key, calls = sha256_of(Path(onnx_file)), []
    original = trt._computes[key]

    def compute(inputs: Arrays) -> Arrays:
        outputs = {name: np.array(value) for name, value in original(inputs).items()}
        change(outputs, len(calls))
        calls.append(1)
        return outputs

    trt.register(key, compute)
    try:
        yield calls
    finally:
        trt.register(key, original)


def lower_scores(outputs: Arrays, _: int) -> None:
    outputs["scores"][..., 1:] *= 0.99


def move_boxes(outputs: Arrays, _: int) -> None:
    outputs["boxes"][..., ::2] += 0.02


def cut_masks(outputs: Arrays, _: int) -> None:
    width = outputs["prototypes"].shape[-1]
    outputs["prototypes"][..., : width // 2] = 0  # a probability of one half is outside


def change_labels(outputs: Arrays, _: int) -> None:
    outputs["scores"][..., 1:] = np.roll(outputs["scores"][..., 1:], 1, -1)


def lose_a_class(outputs: Arrays, _: int) -> None:
    best = int(np.argmax(outputs["scores"][..., 1:].max(axis=tuple(range(outputs["scores"].ndim - 1)))))
    outputs["scores"][..., 1 + best] = 0


def add_one(outputs: Arrays, _: int) -> None:
    outputs["scores"][..., 0, :] = 0
    outputs["scores"][..., 0, 1] = 0.95
    outputs["boxes"][..., 0, :] = [0.9, 0.9, 0.99, 0.99]


def nothing_at_all(outputs: Arrays, _: int) -> None:
    outputs["scores"][..., 1:] = 0


def a_wrong_engine_fails(onnx: dict[str, str], folder: str) -> None:
    engine = made(onnx["fp32"], folder, "wrong", BatchRange(1, 2, 4))
    checked = selftest(engine).checked
    wrong: dict[Callable[[Arrays, int], None], tuple[str, str]] = {
        lower_scores: ("has no partner", "score difference 0.0"),
        move_boxes: ("has no partner", "mask IoU"),
        cut_masks: ("has no partner", "mask IoU 0.0"),
        change_labels: ("has no partner", "score difference 0 ("),
        lose_a_class: ("has no partner", "nearest: "),
        add_one: ("is not expected", "nearest: nothing overlaps it"),
        nothing_at_all: ("has no partner", "nearest: nothing was found"),
    }
    for change, (kind, told) in wrong.items():
        for place in ("gpu", "cpu"):
            with computing(onnx["fp32"], change):
                result = selftest(engine, postprocess=place)
            assert not result.passed, change
            assert result.checked == checked
            assert any(kind in problem and told in problem for problem in result.problems), (change, result.problems)
            assert_clean()
    with computing(onnx["fp32"], lose_a_class):
        lost = selftest(engine).problems
    assert all(problem.startswith("expected detection ") for problem in lost)
    assert 0 < len(lost) < checked
    with computing(onnx["fp32"], add_one):
        assert len(selftest(engine).problems) == 1
    assert selftest(engine).passed


def an_engine_that_is_right_once(onnx: dict[str, str], folder: str) -> None:
    """As one whose CUDA graph replays something else."""

    def later(outputs: Arrays, before: int) -> None:
        if before:
            nothing_at_all(outputs, before)

    engine = made(onnx["fp16"], folder, "once")
    with computing(onnx["fp16"], later) as calls:
        result = selftest(engine)
    assert (len(calls), result.passed) == (2, False)
    with computing(onnx["fp16"], nothing_at_all) as calls:
        assert not selftest(engine).passed
    assert len(calls) == 1
    assert_clean()


@contextmanager
def refused(error: type[Exception], message: str, mend: str = "") -> Any:
    with pytest.raises(error, match=message) as caught:
        yield
    assert mend in caught.value.mend
    del caught
    assert_clean()


def files_that_do_not_belong_together(onnx: dict[str, str], folder: str) -> None:
    engine = made(onnx["fp16"], folder, "files")
    path = selftest_path(engine)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"score": 0.9', b'"score": 0.8', 1))
    assert path.read_bytes() != content
    with refused(ModelFileError, r"is not the self-test that .* was built with: its SHA-256 differs", "Copy all files of the engine again"):
        selftest(engine)
    path.unlink()
    with refused(ModelFileError, "needs its self-test .* beside it, which is missing"):
        selftest(engine)
    path.write_bytes(content)
    plan = engine.read_bytes()
    engine.write_bytes(plan + b" ")
    with refused(ModelFileError, "bytes, its sidecar says"):
        selftest(engine)
    engine.write_bytes(plan)
    assert selftest(engine).passed
    sidecar_path(engine).unlink()
    with refused(ModelFileError, "carries no self-test", "yolact-deploy build-engine MODEL.onnx --with-selftest"):
        selftest(engine)


def labels_that_the_model_does_not_have(onnx: dict[str, str], folder: str) -> None:
    engine = made(onnx["fp16"], folder, "labels")
    test = make_selftest(Path(onnx["fp16"]), demo_picture()[64:448], tolerance_of("fp16"), threads=1)
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    classes = len(sidecar[0].classes)
    labels = np.array(test.expected.labels)
    labels[-1] = classes
    sign(engine, replace(test, expected=replace(test.expected, labels=labels)))
    with refused(ModelFileError, f"expects the label {classes}, its model has {classes} classes", "Build the engine again"):
        selftest(engine)
    labels[-1] = classes - 1
    sign(engine, replace(test, expected=replace(test.expected, labels=labels)))
    assert not selftest(engine).passed
    assert_clean()


def where_it_runs_is_handed_on(onnx: dict[str, str], folder: str) -> None:
    engine = made(onnx["nms"], folder, "where")
    with refused(ConfigError, "the device 'cpu' was asked for"):
        selftest(engine, device="cpu")
    with refused(DeviceError, ""):
        selftest(engine, device="cuda:3")
    with mock.patch.object(selftesting, "load", side_effect=ConfigError("stop")) as load, pytest.raises(ConfigError):
        selftest(engine, device="cuda", lean_runtime="a.so", postprocess="cpu")
    load.assert_called_once_with(engine, device="cuda", lean_runtime="a.so", postprocess="cpu")
