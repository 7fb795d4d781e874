"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: no thread touches what is not its buffer's."""

from __future__ import annotations

import pytest

from tests.helpers.host_driver import missing, run_sanitized

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.mark.parametrize("name", ["nms_worst_cases", "mask_worst_cases", "given_worst_cases", "golden_heads"])
def test_sanitized(name: str) -> None:
    run_sanitized(f"tests.engines.cuda.kernel_scenarios:{name}")
