"""The fake TensorRT that sessions are tested with."""

from __future__ import annotations

import pytest

from tests.helpers.stub_cuda import missing, run_scenarios

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX, whose enums the fake uses, is not installed")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

NAMES = [
    "an_engine_describes_itself",
    "what_does_not_load_is_told",
    "an_engine_runs_when_its_stream_gets_there",
    "a_graph_keeps_addresses_and_shapes",
    "what_is_not_set_is_told",
    "two_threads_in_one_context_are_told",
    "engines_run_from_several_threads",
    "an_engine_on_freed_memory_loses_the_gpu",
]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return run_scenarios("tests.engines.cuda.fake_scenarios", NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_scenario(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]
