"""What the C++ interface promises of threads, submissions, results and memory; see ``programs/scenarios.cpp``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.cpp.standin.made_heads import made_outputs
from tests.engines.cpp.test_detect import RESCORED, SMALL, recorded, written
from tests.engines.cpp.truth import Recorded
from tests.helpers.cpp_library import CppLibrary, compile_program, run_program
from tests.helpers.tiny import tiny_variant
from yolact_deploy.manifest import InputSpec


def play(library: CppLibrary, scenario: str, engine: Recorded, number: int = 0, *more: object) -> str:
    return run_program(library, [compile_program(library, "scenarios"), scenario, engine.engine, number, *more])


@pytest.mark.parametrize("contexts", [1, 2, 4])
@pytest.mark.parametrize(
    "scenario",
    [
        "callbacks_come_in_order",
        "futures_give_results",
        "threads_submit_and_detect",
        "a_detector_ends_when_its_work_is_done",
        "callbacks_may_not_call",
    ],
)
def test_submissions(library: CppLibrary, tmp_path: Path, scenario: str, contexts: int) -> None:
    play(library, scenario, recorded(library, tmp_path, SMALL), contexts)


RESULTS = ["results_hold_contexts", "moved_results_keep_their_views", "waiting_ends_where_all_are_held", "calls_wait_for_contexts"]


@pytest.mark.parametrize("scenario", RESULTS)
def test_results(library: CppLibrary, tmp_path: Path, scenario: str) -> None:
    play(library, scenario, recorded(library, tmp_path, SMALL))


@pytest.mark.parametrize("kind", ["address", "thread"])
@pytest.mark.parametrize("scenario", ["threads_submit_and_detect", "a_detector_ends_when_its_work_is_done", *RESULTS[:3]])
def test_with_sanitizers(library_of: Callable[[str], CppLibrary], tmp_path: Path, kind: str, scenario: str) -> None:
    library = library_of(kind)
    play(library, scenario, recorded(library, tmp_path, SMALL), 2)


@pytest.mark.parametrize("line", ["fail run 2", "fail run 1"])
def test_a_failure_of_the_gpu(library: CppLibrary, tmp_path: Path, line: str) -> None:
    engine = recorded(library, tmp_path, SMALL, lines=(line,))
    if line == "fail run 2":
        play(library, "a_failure_of_the_gpu_reaches_everybody", engine)
    else:
        with pytest.raises(AssertionError, match="CUDA_ERROR_LAUNCH_FAILED"):
            play(library, "callbacks_come_in_order", engine, 1)


@pytest.mark.parametrize("graphs", [0, 1])
@pytest.mark.parametrize("kind", ["plain", "address"])
def test_a_failed_call_changes_nothing(library_of: Callable[[str], CppLibrary], tmp_path: Path, kind: str, graphs: int) -> None:
    library = library_of(kind)
    sound, failing = recorded(library, tmp_path, SMALL), recorded(library, tmp_path, SMALL, name="failing", lines=("fail enqueue 2",))
    play(library, "a_failed_call_changes_nothing", failing, graphs, sound.engine)


def test_errors_reach_callbacks(library: CppLibrary, tmp_path: Path) -> None:
    variant = tiny_variant(**SMALL)
    outputs: dict[str, Any] = made_outputs(variant, 2, "nms")
    outputs["detections_labels"] = np.where(outputs["detections_labels"] >= 0, 99, -1).astype(np.int32)
    play(library, "errors_reach_callbacks", written(library, tmp_path, variant, outputs, InputSpec.of(variant), "nms"))


@pytest.mark.parametrize("masks", [0, 1, 2, 4, 7, 9, 15])
@pytest.mark.parametrize("rescoring", [False, True])
def test_nothing_is_allocated_once_it_has_grown(library: CppLibrary, tmp_path: Path, masks: int, rescoring: bool) -> None:
    engine = recorded(library, tmp_path, RESCORED if rescoring else SMALL)
    assert play(library, "nothing_is_allocated_once_it_has_grown", engine, masks) == "0 0 0 0 0 0"
