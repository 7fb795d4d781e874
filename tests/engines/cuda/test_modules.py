"""Modules, kernels and launches of the driver over cuda-core, on a stand-in for NVIDIA's driver library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engines.cuda.module_scenarios import KERNELS as SOURCE
from tests.helpers import kernel_library
from tests.helpers.stub_cuda import c_library, missing, run_scenarios, run_with_stub

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

SCENARIOS = "tests.engines.cuda.module_scenarios"
MODULES = [
    "copies_and_clearing_run_in_the_streams_order",
    "a_launch_is_noted_when_the_stream_gets_there",
    "what_does_not_load_is_told",
    "what_does_not_launch_is_told",
    "a_module_lives_as_long_as_its_kernels",
]
POST = "post_processing_gives_what_it_gives_without_a_queue"
KERNELS = ["a_kernel_computes", "a_kernel_that_fails_loses_the_gpu"]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return run_scenarios(SCENARIOS, MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_scenario(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str) -> None:
    run_with_stub(f"{SCENARIOS}:{name}", kernels=c_library(SOURCE), order=2, seed=7)


@pytest.mark.skipif(bool(kernel_library.missing()), reason=kernel_library.missing())
@pytest.mark.parametrize("order", range(3))
def test_post_processing(order: int) -> None:
    library = kernel_library.build_library(kernel_library.KERNELS, "all.cuh", sanitize=False)
    run_with_stub(f"tests.engines.cuda.post_processing_scenarios:{POST}", kernels=library, order=order, seed=5)


def test_a_launch_costs_little() -> None:
    run_with_stub(f"{SCENARIOS}:a_launch_costs_little", {"most": 50})  # it took 3 microseconds; machines of tests are shared


def test_a_library_that_does_not_load_is_told(tmp_path: Path) -> None:
    (tmp_path / "kernels.so").write_text("no library")
    outcome = run_scenarios(SCENARIOS, ["a_kernel_computes"], kernels=tmp_path / "kernels.so")
    assert "CUDA_ERROR_LAUNCH_FAILED" in json.dumps(outcome)
