"""Compute capabilities and batches as users write them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.targets import capability_text, parse_capabilities, parse_capability
from yolact_deploy.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "capability"),
    [("89", (8, 9)), ("8.9", (8, 9)), ("sm89", (8, 9)), ("SM_89", (8, 9)), (" 120 ", (12, 0)), ("12.1", (12, 1)), ("75", (7, 5))],
)
def test_spellings(text: str, capability: tuple[int, int]) -> None:
    assert parse_capability(text) == capability


@pytest.mark.parametrize("text", ["", "8", "89a", "8.9.0", "sm", "-89", "1200", "８９", "8,9", "ada"])
def test_what_is_no_capability(text: str) -> None:
    with pytest.raises(ConfigError, match=f"The compute capability is {re.escape(repr(text))}, a number such as 89 or 8.9 was wanted"):
        parse_capability(text)


def test_several_are_sorted_and_told_once() -> None:
    assert parse_capabilities(["120,86", "8.6", "89"]) == ((8, 6), (8, 9), (12, 0))
    assert parse_capabilities([]) == ()


def test_words() -> None:
    assert capability_text((9, 0)) == "9.0"
    assert capability_text((9, 0), examples=True) == "9.0 (H100, H200)"
    assert capability_text((99, 0), examples=True) == "99.0"


@pytest.mark.parametrize(("text", "sizes"), [("4", (4, 4, 4)), ("1:16", (1, 16, 16)), ("1:4:16", (1, 4, 16)), ("1024", (1024,) * 3)])
def test_batches(text: str, sizes: tuple[int, int, int]) -> None:
    assert BatchRange.parse(text) == BatchRange(*sizes)


@given(st.integers(1, 1024), st.integers(1, 1024), st.integers(1, 1024))
def test_batches_that_can_be_are_read_back(one: int, two: int, three: int) -> None:
    smallest, best, largest = sorted((one, two, three))
    found = BatchRange.parse(f"{smallest}:{best}:{largest}")
    assert BatchRange.parse(str(found)) == found
    assert found.fixed == (smallest == largest)


@pytest.mark.parametrize("text", ["0", "4:1", "1:8:4", "8:4:16", "1:1:1025", "0:1:1"])
def test_impossible_batches(text: str) -> None:
    with pytest.raises(ConfigError, match="smallest <= best <= largest from 1 to 1024 was wanted"):
        BatchRange.parse(text)


@pytest.mark.parametrize("text", ["", "dynamic", "1:2:3:4", "1:", ":1", "-1", "1.5", "1:x:2", "٣", "9" * 30])
def test_what_is_no_batch(text: str) -> None:
    with pytest.raises(ConfigError, match=r"a number or smallest:best:largest was wanted"):
        BatchRange.parse(text)
