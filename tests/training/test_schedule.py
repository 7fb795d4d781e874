"""The learning rate by iteration."""

from __future__ import annotations

import pytest

from yolact_deploy.errors import ConfigError
from yolact_deploy.training.schedule import STEP_SHARES, Schedule


@pytest.mark.parametrize(
    ("iteration", "rate"),
    [
        (0, 1e-4),
        (250, 5.5e-4),
        (500, 1e-3),
        (501, 1e-3),
        (279_999, 1e-3),
        (280_000, 1e-4),
        (600_000, 1e-5),
        (700_000, 1e-6),
        (799_999, 1e-7),
    ],
)
def test_published_schedule(iteration: int, rate: float) -> None:
    assert Schedule().at(iteration) == pytest.approx(rate)


def test_no_warmup_starts_at_the_rate() -> None:
    assert Schedule(warmup=0).at(0) == 1e-3


def test_a_step_inside_the_warmup_holds() -> None:
    assert Schedule(steps=(100,)).at(100) == pytest.approx(1e-4)


def test_shares_are_the_published_steps() -> None:
    assert tuple(int(share * 800_000) for share in STEP_SHARES) == Schedule().steps


@pytest.mark.parametrize(
    "fields",
    [{"rate": 0.0}, {"rate": float("nan")}, {"warmup_rate": 1.0}, {"gamma": 0.0}, {"gamma": 1.5}, {"warmup": -1}, {"steps": (5, 3)}],
)
def test_contradictions_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Schedule(**fields)
