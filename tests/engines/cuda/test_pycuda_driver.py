"""The driver beside PyCUDA, on a stand-in for NVIDIA's driver library; with PyCUDA itself where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.engines.cuda.module_scenarios import KERNELS as SOURCE
from tests.engines.cuda.test_cuda_core import CHECK, LIVES, TWO_GPUS, WORK
from tests.engines.cuda.test_modules import KERNELS, MODULES, POST
from tests.helpers import kernel_library
from tests.helpers.stub_cuda import c_library, missing, run_scenarios, run_with_stub
from yolact_deploy.engines.cuda import open_driver, pycuda_driver
from yolact_deploy.errors import DeviceError, MissingDependencyError

pytest.importorskip("cuda.core", reason="cuda-core, which the scenarios also use, is not installed")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

SCENARIOS = "tests.engines.cuda.pycuda_scenarios"
PROGRAMS = [
    "within_a_program_its_context_and_streams_are_used",
    "without_a_program_the_primary_context_is_used",
    "pycuda_is_taken_where_only_that_is_installed",
]
PROGRAMS_OF_TWO_GPUS = ["a_program_on_another_gpu_is_left_alone"]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """Each scenario's traceback, or "" where it went well."""
    found = {
        **run_scenarios(SCENARIOS, [*WORK, *LIVES, *MODULES]),
        **run_scenarios(SCENARIOS, [*TWO_GPUS, *PROGRAMS_OF_TWO_GPUS], devices=2),
    }
    for name in KERNELS:  # a lost GPU and a context are for one process each
        found.update(run_scenarios(SCENARIOS, [name], kernels=c_library(SOURCE), order=2, seed=7))
    for name in PROGRAMS:
        found.update(run_scenarios(SCENARIOS, [name]))
    return found


@pytest.mark.parametrize("name", [*WORK, *LIVES, *TWO_GPUS, *MODULES, *KERNELS, *PROGRAMS, *PROGRAMS_OF_TWO_GPUS])
def test_scenario(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]


@pytest.mark.parametrize("name", ["what_pycuda_raises_is_told", "a_missing_function_is_told"])
def test_what_fails_is_told(name: str) -> None:
    run_with_stub(f"{SCENARIOS}:{name}")


@pytest.mark.skipif(bool(kernel_library.missing()), reason=kernel_library.missing())
def test_post_processing() -> None:
    library = kernel_library.build_library(kernel_library.KERNELS, "all.cuh", sanitize=False)
    run_with_stub(f"{SCENARIOS}:{POST}", kernels=library, order=1)


def test_with_little_memory() -> None:
    run_with_stub(f"{SCENARIOS}:too_much_memory_is_refused_with_numbers", memory=1 << 20, host_memory=1 << 20)


def test_with_a_lost_gpu() -> None:
    run_with_stub(f"{SCENARIOS}:a_lost_gpu_is_told_and_closing_goes_on")


@pytest.mark.parametrize(
    ("settings", "index", "message", "mend"),
    [
        (
            {"devices": 0},
            0,
            "No GPU was found, GPU 0 was asked for (cuInit: CUDA_ERROR_NO_DEVICE).",
            "See `nvidia-smi`, and unset CUDA_VISIBLE_DEVICES.",
        ),
        ({}, 1, "GPU 1 was asked for, this machine shows GPU 0.", CHECK),
        ({"version": 11080}, 0, "NVIDIA's driver supports CUDA 11.8; PyCudaDriver needs 12.0.", "Update NVIDIA's driver."),
    ],
    ids=["none", "one", "old"],
)
def test_what_cannot_be_opened_is_told(settings: dict[str, int], index: int, message: str, mend: str) -> None:
    run_with_stub(f"{SCENARIOS}:opening_fails", {"index": index, "message": message, "mend": mend}, **settings)


def test_without_a_driver(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library\n")
    told = {"index": 0, "message": "No NVIDIA driver answers: ", "mend": "Install NVIDIA's driver; `nvidia-smi` shows whether it works."}
    run_with_stub(f"{SCENARIOS}:opening_fails", told, folder=tmp_path)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    with pytest.raises(MissingDependencyError) as told:
        open_driver(0, "pycuda")
    assert str(told.value) == (
        'Running an engine beside PyCUDA needs pycuda, which is not installed. Run: pip install "yolact-deploy[pycuda]"'
    )


def test_with_a_build_for_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError("undefined symbol: cuCtxCreate_v4")

    monkeypatch.setattr(pycuda_driver, "import_module", refuse)
    monkeypatch.setattr(pycuda_driver, "_LIBRARY", "libnothing.so.1")
    with pytest.raises(DeviceError, match=r"^No NVIDIA driver answers: libnothing\.so\.1: cannot open"):
        open_driver(0, "pycuda")
    monkeypatch.setattr(pycuda_driver, "_Library", lambda: None)
    with pytest.raises(MissingDependencyError) as told:
        open_driver(0, "pycuda")
    assert str(told.value) == (
        "Running an engine beside PyCUDA needs a PyCUDA that was built for this machine; importing it failed: undefined symbol: "
        "cuCtxCreate_v4. Run: pip install --force-reinstall --no-cache-dir pycuda"
    )
