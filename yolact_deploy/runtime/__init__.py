"""Running a model: one detector, several backends; and the self-test of an engine, which loads when it is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.detector import CHECKPOINTS, ENGINES, Detector, load

if TYPE_CHECKING:
    from yolact_deploy.runtime.selftesting import SelftestResult, selftest

__all__ = ["CHECKPOINTS", "ENGINES", "Backend", "Detector", "SelftestResult", "load", "selftest"]

_OF_SELFTESTS = ("SelftestResult", "selftest")


def __getattr__(name: str) -> Any:
    if name not in _OF_SELFTESTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from yolact_deploy.runtime import selftesting

    return getattr(selftesting, name)
