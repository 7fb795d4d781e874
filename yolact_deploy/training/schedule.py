"""The learning rate by iteration."""

from __future__ import annotations

from dataclasses import dataclass

from yolact_deploy.errors import ConfigError

__all__ = ["STEP_SHARES", "Schedule"]

STEP_SHARES = (0.35, 0.75, 0.875, 0.9375)
"""Where the published training lowers its rate: 280, 600, 700 and 750 thousand of 800 thousand iterations."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then `rate` times `gamma` for each step passed.

    Attributes:
        rate: learning rate between warm-up and the first step.
        warmup_rate: rate of iteration 0.
        warmup: iterations of the warm-up; 0 for none.
        steps: iterations at which the rate is lowered, ascending.
        gamma: factor of each step.
    """

    rate: float = 1e-3
    warmup_rate: float = 1e-4
    warmup: int = 500
    steps: tuple[int, ...] = (280_000, 600_000, 700_000, 750_000)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.rate < 1e3 and 0 <= self.warmup_rate <= self.rate and 0 < self.gamma <= 1 and self.warmup >= 0):
            raise ConfigError(
                f"The schedule has rate {self.rate:g}, warm-up rate {self.warmup_rate:g} over {self.warmup} iterations and gamma "
                f"{self.gamma:g}; a positive rate, a warm-up rate not above it and a gamma in (0, 1] were wanted.",
                "Mend --rate, --warmup, --gamma.",
            )
        if list(self.steps) != sorted(self.steps):
            raise ConfigError(f"The steps {list(self.steps)} do not ascend.", "Mend --steps.")

    def at(self, iteration: int) -> float:
        """The rate of `iteration` (0-based)."""
        if self.warmup and iteration <= self.warmup and iteration < min(self.steps, default=iteration + 1):
            return self.warmup_rate + (self.rate - self.warmup_rate) * iteration / self.warmup
        return self.rate * self.gamma ** sum(iteration >= step for step in self.steps)
