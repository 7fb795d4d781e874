"""What is compared once engines are open, and what a build does without its timing cache; whole engines are loaded in tests/runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.export.artifacts import Artifacts
from yolact_deploy.engines.builder import build_engine
from yolact_deploy.engines.loading import check_mask_iou_tensors
from yolact_deploy.engines.monitoring import BuildProgress
from yolact_deploy.engines.options import BuildOptions
from yolact_deploy.engines.plans import PlanBuilder
from yolact_deploy.engines.session import EngineTensor
from yolact_deploy.engines.sidecar import read_sidecar, sidecar_path, write_sidecar
from yolact_deploy.engines.timing_cache import TimingCache
from yolact_deploy.engines.versions import load_tensorrt
from yolact_deploy.errors import ModelFileError, OutputError

RTX = "tensorrt-rtx"


def net(masks: tuple[int, ...], scores: tuple[int, ...], dtype: str = "float32") -> SimpleNamespace:
    tensors = (EngineTensor("masks", True, dtype, masks), EngineTensor("ious", False, "float32", scores))
    return SimpleNamespace(name="m.engine", tensors=tensors, inputs=tensors[:1])


def test_the_tensors_of_a_mask_iou_engine(artifacts: Artifacts) -> None:
    manifest = artifacts.export(artifacts.plus).manifest
    size, classes = manifest.variant.prototype_size, manifest.variant.num_classes - 1
    check_mask_iou_tensors(net((1, size, size), (classes,)), manifest)
    for other in (
        net((1, size, size), (classes + 1,)),
        net((1, size, size + 1), (classes,)),
        net((3, size, size), (classes,)),
        net((1, size, size), (classes,), "float16"),
    ):
        with pytest.raises(ModelFileError, match=rf"m.engine has the tensors .*; a mask-IoU net has float32 \[B, 1, {size}, {size}\]"):
            check_mask_iou_tensors(other, manifest)


def test_rtx_engines_are_built_to_be_captured() -> None:
    tensorrt = load_tensorrt(RTX)
    config = tensorrt.module.Builder(tensorrt.module.Logger()).create_builder_config()
    flag = tensorrt.module.BuilderFlag.REQUIRE_USER_ALLOCATION
    assert not config.get_flag(flag)
    tensorrt.set_typing(config, float16=True, int8=False)
    assert config.get_flag(flag)


def test_a_timing_cache_that_nobody_asked_for_may_be_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for named in (None, tmp_path / "file" / "timings"):
        job = PlanBuilder(load_tensorrt(RTX), BuildOptions(timing_cache=named), None, lambda step, done: None, None)
        job.notes.clear()
        job.cache = TimingCache(tmp_path / "file" / "timings")
        if named is not None:
            with pytest.raises(OutputError, match="cannot be used"):
                job._reuse_timings(SimpleNamespace())
            continue
        job._reuse_timings(SimpleNamespace())
        assert job.cache is None
        assert [note.startswith("The timing cache ") for note in job.notes] == [True]


def test_the_wish_to_stop_is_heard_between_the_steps() -> None:
    progress = BuildProgress()
    progress.check()
    progress.cancelled.set()
    with pytest.raises(KeyboardInterrupt):
        progress.check()


def test_an_adopted_engine_is_not_replaced_by_a_build(artifacts: Artifacts, tmp_path: Path) -> None:
    result = build_engine(artifacts.onnx(), tmp_path / "a.engine")
    build_engine(artifacts.onnx(), result.path)
    sidecar = read_sidecar(result.path)
    assert sidecar is not None
    adopted = dataclasses.replace(sidecar[1], options={"adopted": True})
    write_sidecar(dataclasses.replace(sidecar[0], target=adopted.to_dict()), sidecar_path(result.path))
    with pytest.raises(OutputError, match=r"a.engine exists and was not written by this command"):
        build_engine(artifacts.onnx(), result.path)
