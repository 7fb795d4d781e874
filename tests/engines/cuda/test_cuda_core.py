"""The driver over cuda-core, on a stand-in for NVIDIA's driver library."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.helpers.stub_cuda import ROOT, missing, run_scenarios, run_with_stub
from yolact_deploy.engines.cuda import cuda_core, open_driver
from yolact_deploy.engines.cuda.calls import _stream_handle
from yolact_deploy.errors import MissingDependencyError

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

SCENARIOS, OWNING = "tests.engines.cuda.scenarios", "tests.engines.cuda.owning_scenarios"
WORK = [
    "the_gpu_is_described",
    "copies_run_when_the_stream_gets_to_them",
    "page_locked_memory_is_read_and_written_by_the_gpu",
    "only_fitting_arrays_are_copied",
    "a_stream_waits_for_an_event_of_another",
    "an_event_is_a_mark",
    "time_passes_between_events",
    "streams_do_not_wait_for_the_default_stream",
    "a_graph_replays_with_new_contents",
    "a_capture_that_raises_is_ended",
    "a_spoilt_capture_is_told",
    "memory_comes_and_goes_during_a_capture",
]
LIVES = [
    "closing_twice_is_closing_once",
    "what_is_closed_is_not_used",
    "what_is_dropped_is_given_back",
    "any_thread_may_call",
    "a_foreign_stream_stays_the_callers",
    "the_stand_in_tells_misuse",
]
TWO_GPUS = ["the_callers_gpu_stays_current", "a_stream_of_another_gpu_is_refused", "arrays_of_another_gpu_are_refused"]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """Each scenario's traceback, or "" where it went well."""
    return {**run_scenarios(SCENARIOS, WORK), **run_scenarios(OWNING, LIVES), **run_scenarios(OWNING, TWO_GPUS, devices=2)}


@pytest.mark.parametrize("name", [*WORK, *LIVES, *TWO_GPUS])
def test_scenario(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]


def test_with_little_memory() -> None:
    run_with_stub(f"{OWNING}:too_much_memory_is_refused_with_numbers", memory=1 << 20, host_memory=1 << 20)


def test_with_a_lost_gpu() -> None:
    run_with_stub(f"{OWNING}:a_lost_gpu_is_told_and_closing_goes_on")


BINDINGS = metadata.version("cuda-bindings")
MAJOR = int(BINDINGS.partition(".")[0])
CHECK = "See `nvidia-smi` and CUDA_VISIBLE_DEVICES."


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
        ({"devices": 3}, -1, "GPU -1 was asked for, this machine shows GPU 0 to 2.", CHECK),
        (
            {"version": (MAJOR - 1) * 1000 + 40},
            0,
            f"NVIDIA's driver supports CUDA {MAJOR - 1}.4; cuda-bindings {BINDINGS} needs {MAJOR}.0.",
            f'Update NVIDIA\'s driver, or run: pip install "cuda-bindings<{MAJOR}"',
        ),
        (
            {"init": 803},
            0,
            "NVIDIA's driver does not start (cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH).",
            "See `nvidia-smi`; after a driver's update, restart.",
        ),
    ],
    ids=["none", "one", "three", "old", "mismatch"],
)
def test_what_cannot_be_opened_is_told(settings: dict[str, int], index: int, message: str, mend: str) -> None:
    run_with_stub(f"{OWNING}:opening_fails", {"index": index, "message": message, "mend": mend}, **settings)


def test_without_a_driver(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library\n")
    mend = "Install NVIDIA's driver; `nvidia-smi` shows whether it works."
    told = {"index": 0, "message": "No NVIDIA driver answers: ", "mend": mend}
    run_with_stub(f"{OWNING}:opening_fails", told, folder=tmp_path)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("cuda.core", "pycuda"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError) as told:
        open_driver()
    assert str(told.value) == ('Running an engine needs cuda-core, which is not installed. Run: pip install "yolact-deploy[tensorrt]"')


def test_with_packages_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"{name} does not export what is wanted")

    monkeypatch.setattr(cuda_core, "import_module", refuse)
    with pytest.raises(MissingDependencyError) as told:
        open_driver()
    assert str(told.value) == (
        "Running an engine needs cuda-core and a cuda-bindings that fits it; importing them failed: "
        "cuda.core does not export what is wanted. Run: pip install --upgrade cuda-core cuda-bindings"
    )


def test_importing_loads_no_cuda_package() -> None:
    program = "import sys, yolact_deploy.engines.cuda; print([name for name in sys.modules if name.partition('.')[0] == 'cuda'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_an_unknown_protocol_of_streams_is_told() -> None:
    class Later:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 1, 0x1000

    with pytest.raises(TypeError, match="__cuda_stream__ of Later follows version 1 of the protocol, version 0 is known"):
        _stream_handle(Later())
