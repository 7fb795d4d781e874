"""How detectors, results and threads of the C++ library end; see ``programs/endings.cpp``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.cpp.test_detect import SMALL, recorded
from tests.helpers.cpp_library import CppLibrary, compile_program, run_program

ENDINGS = [
    "a_detector_waits_for_every_call",
    "a_callback_may_end_its_detector",
    "a_callback_may_not_warm_up",
    "submissions_use_memory_again",
    "nv12_allocates_nothing",
    "what_was_moved_away_says_so",
    "captures_elsewhere_go_on",
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_endings(library: CppLibrary, tmp_path: Path, ending: str) -> None:
    run_program(library, [compile_program(library, "endings"), ending, recorded(library, tmp_path, SMALL).engine], timeout=100)


@pytest.mark.parametrize("kind", ["address", "thread"])
@pytest.mark.parametrize("ending", ENDINGS[:4])
def test_with_sanitizers(library_of: Callable[[str], CppLibrary], tmp_path: Path, kind: str, ending: str) -> None:
    library = library_of(kind)
    run_program(library, [compile_program(library, "endings"), ending, recorded(library, tmp_path, SMALL).engine], timeout=100)


def test_the_log(library: CppLibrary, tmp_path: Path) -> None:
    engine = recorded(library, tmp_path, SMALL, lines=("warning this is the stand-in",))
    run_program(library, [compile_program(library, "endings"), "the_log_is_heard_while_a_detector_lives", engine.engine], timeout=100)
