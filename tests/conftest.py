"""Fixtures that all rooms' tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from yolact_deploy.engines.versions import TensorRT

# Before anything imports torch: `make test` keeps each core busy with a process of its own, and threads beyond that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def run_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all processes of this test run share; what is made there takes a file lock."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own  # pytest-xdist gives each process a folder inside the run's


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """A folder of COCO photographs: ``images/``, ``instances_train.json``, ``instances_val.json``; it is not part of the project."""
    folder = Path(os.environ.get("YOLACT_DEPLOY_COCO_MINI", ROOT.parent / "shared" / "coco-mini"))
    if not (folder / "instances_val.json").is_file():
        pytest.skip(f"{folder} holds no photographs: name a folder with YOLACT_DEPLOY_COCO_MINI")
    return folder


@pytest.fixture
def gpu_tensorrt(tensorrt_for_gpu: TensorRT, run_folder: Path) -> Iterator[TensorRT]:
    """A TensorRT that builds for the GPU here and runs on it; the test is skipped where there is none.

    With ``YOLACT_REQUIRE_GPU=1`` it fails instead, so that a machine with a GPU cannot pass by skipping. While one test has it, those in
    other processes wait: they would share the GPU's memory, and change the timings that a build measures.
    """
    with FileLock(run_folder / "gpu.lock"):
        yield tensorrt_for_gpu


@pytest.fixture(scope="session")
def tensorrt_for_gpu() -> TensorRT:
    """What :func:`gpu_tensorrt` gives, looked for once."""
    from yolact_deploy.engines.choice import choose_tensorrt
    from yolact_deploy.engines.gpu import gpus
    from yolact_deploy.engines.versions import check_driver
    from yolact_deploy.errors import YolactDeployError

    here = gpus()
    try:
        tensorrt, _ = choose_tensorrt("auto", (here[0].compute_capability,) if here else ())
        check_driver(tensorrt)
    except YolactDeployError as error:
        if os.environ.get("YOLACT_REQUIRE_GPU") == "1":
            pytest.fail(f"YOLACT_REQUIRE_GPU=1: {error}")
        pytest.skip(f"a GPU and TensorRT are wanted: {error}")
    return tensorrt
