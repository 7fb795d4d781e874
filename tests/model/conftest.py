"""Fixtures for checkpoints: the weights of ``yolact_nano``, and the check that every refusal goes through."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import pytest
from torch import Tensor

from yolact_deploy.errors import YolactDeployError
from yolact_deploy.model.seeded import seeded_state
from yolact_deploy.variants import get_variant

if TYPE_CHECKING:
    from collections.abc import Iterator

Refusal = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="session")
def nano_weights() -> dict[str, Tensor]:
    return seeded_state(get_variant("yolact_nano"))


@pytest.fixture
def nano_state(nano_weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A dictionary of its own for each test; the tensors are shared."""
    return dict(nano_weights)


@pytest.fixture
def refused() -> Refusal:
    """``with refused(CheckpointError, "part", "other part"):`` holds where the block raises that in one line, with a mend."""

    @contextmanager
    def check(kind: type[YolactDeployError], *parts: str) -> Iterator[None]:
        with pytest.raises(kind) as caught:
            yield
        assert type(caught.value) is kind
        text = str(caught.value)
        assert text.isprintable(), "one line that a terminal shows as it is"
        assert caught.value.mend
        assert [part for part in parts if part not in text] == [], text

    return check
