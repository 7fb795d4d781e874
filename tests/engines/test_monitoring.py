"""The builder's nested phases as one number that never falls, and the wish to stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact_deploy.engines.monitoring import BuildProgress, Messages


def heard() -> tuple[BuildProgress, list[tuple[str, float]]]:
    told: list[tuple[str, float]] = []
    return BuildProgress(lambda phase, done: told.append((phase, done))), told


def test_steps_of_one_phase() -> None:
    progress, told = heard()
    progress.phase_start("build", None, 4)
    assert [progress.step_complete("build", step) for step in range(4)] == [True] * 4
    progress.phase_finish("build")
    assert told == [("build", 0.0), ("build", 0.25), ("build", 0.5), ("build", 0.75), ("build", 1.0), ("build", 1.0)]


def test_a_phase_shares_the_step_that_it_belongs_to() -> None:
    progress, told = heard()
    progress.phase_start("build", None, 2)
    progress.step_complete("build", 0)
    progress.phase_start("tactics", "build", 10)
    progress.step_complete("tactics", 4)
    assert told[-1] == ("tactics", pytest.approx(0.75))
    progress.phase_finish("tactics")
    assert told[-1] == ("tactics", pytest.approx(1.0))


def test_a_second_child_does_not_go_back() -> None:
    progress, told = heard()
    progress.phase_start("build", None, 2)
    progress.phase_start("one", "build", 2)
    progress.step_complete("one", 1)
    progress.phase_finish("one")
    progress.phase_start("two", "build", 2)
    progress.step_complete("two", 0)
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert told[-1][1] == pytest.approx(0.75)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([None, *"abcd"]), st.integers(-1, 5), st.integers(0, 2))))
def test_it_stays_between_nothing_and_all(events: list[tuple[str, str | None, int, int]]) -> None:
    progress, told = heard()
    for name, parent, steps, kind in events:
        if kind == 0:
            progress.phase_start(name, parent, steps)
        elif kind == 1:
            progress.step_complete(name, steps)
        else:
            progress.phase_finish(name)
    done = [value for _, value in told]
    assert done == sorted(done)
    assert all(0 <= value <= 1 for value in done)


def test_the_wish_to_stop_is_passed_on() -> None:
    progress, _ = heard()
    progress.phase_start("build", None, 4)
    assert progress.step_complete("build", 0) is True
    progress.cancelled.set()
    assert progress.step_complete("build", 1) is False
    assert progress.step_complete("another", 0) is False


def test_messages_are_kept_by_severity_and_number() -> None:
    said: list[str] = []
    messages = Messages(said.append)
    for severity, text in enumerate(("internal", "error", "warning", "info", "verbose")):
        messages.add(severity, text)
    assert messages.errors == ["internal", "error"]
    assert messages.warnings == ["warning"]
    assert said == ["internal", "error", "warning", "info"]
    for number in range(200):
        messages.add(1, str(number))
    assert messages.errors[-1] == "199"
    assert len(messages.errors) == 50
