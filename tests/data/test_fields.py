"""The integer arithmetic that drawn pictures share."""

from __future__ import annotations

from math import isqrt

import numpy as np
import pytest

from yolact_deploy.data.fields import root, smooth_steps, span


def test_root_is_the_integer_square_root() -> None:
    numbers = [0, 1, 2, 3, 4, 99, 100, 2**32 - 1, 2**32, (2**25 + 1) ** 2 - 1, (2**25 + 1) ** 2]
    assert root(np.array(numbers, np.int64)).tolist() == [isqrt(number) for number in numbers]


@pytest.mark.parametrize(("centre", "expected"), [(5, (3, 8)), (0, (0, 3)), (9, (7, 10)), (-5, (0, -2)), (13, (11, 10))])
def test_span(centre: int, expected: tuple[int, int]) -> None:
    assert span(centre, 2, 10) == expected


def test_steps_are_eased() -> None:
    cells, steps = smooth_steps(9, 4)
    assert cells.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert steps.tolist() == [int(256 * (3 * t**2 - 2 * t**3)) for t in (0, 0.25, 0.5, 0.75, 0, 0.25, 0.5, 0.75, 0)]
