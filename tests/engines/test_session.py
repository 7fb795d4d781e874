"""Running engines: contexts, CUDA graphs, streams and the pool for threads, on a fake TensorRT and a stand-in for NVIDIA's driver."""

from __future__ import annotations

import sys

import pytest

from tests.helpers.stub_cuda import missing, run_scenarios, run_with_stub

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX, whose enums the fake uses, is not installed")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

ALONE, THREADS = "tests.engines.session_scenarios", "tests.engines.session_threads_scenarios"
OPENING, CAPTURE = "tests.engines.opening_scenarios", "tests.engines.graph_scenarios"
GRAPHS = [
    "graphs_begin_with_the_second_run_and_take_new_contents",
    "a_graph_ends_with_its_batch",
    "sizes_that_alternate_are_never_captured",
    "without_graphs_nothing_is_captured",
    "what_says_that_it_cannot_be_captured_is_not",
    "what_cannot_be_captured_runs_as_before",
    "the_first_run_is_over_before_the_second_is_captured",
    "graphs_run_on_the_default_stream_too",
]
"""These count calls, so each has a process of its own."""
RUNNING = [
    "each_batch_of_a_dynamic_engine",
    "a_dynamic_engine_of_one_size",
    "a_fixed_engine",
    "shapes_that_were_half_set_are_set_again",
    "several_tensors_of_every_dtype",
    "inputs_that_do_not_fit_are_refused_before_anything_is_queued",
    "results_are_the_callers",
    "work_goes_to_the_callers_stream",
    "everything_is_given_back",
    "what_tensorrt_refuses_is_told",
    "the_profile_is_chosen_before_another_stream_runs",
    "a_failure_on_the_gpu_is_told_and_closing_goes_on",
]
POOL = [
    "contexts_are_used_by_one_thread_each",
    "contexts_are_made_when_they_are_needed",
    "a_thread_beyond_the_contexts_waits",
    "a_block_that_raises_gives_its_context_back",
    "closing_waits_for_the_running_and_refuses_the_waiting",
    "after_closing_every_call_raises",
    "how_many_contexts_there_may_be",
    "closing_after_the_gpu_was_lost_wakes_who_waits",
]
PLANS = ["plans_that_do_not_load", "tensors_that_only_the_batch_may_vary_in"]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """Each scenario's traceback, or "" where it went well."""
    return {**run_scenarios(ALONE, RUNNING), **run_scenarios(THREADS, POOL), **run_scenarios(OPENING, PLANS)}


@pytest.mark.parametrize("name", [*RUNNING, *POOL, *PLANS])
def test_scenario(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str) -> None:
    run_with_stub(f"{CAPTURE}:{name}")


@pytest.mark.parametrize("used", ["GPU", "host"])
def test_too_little_memory(used: str) -> None:
    settings = {"memory": 1 << 20} if used == "GPU" else {"host_memory": 1 << 20}
    run_with_stub(f"{ALONE}:too_little_memory_leaves_nothing_behind", {"used": used}, **settings)


def test_a_lean_runtime() -> None:
    run_with_stub(f"{OPENING}:a_lean_runtime_loads_what_it_is_for", {"path": sys.executable})
