"""Where the kernels' tests run: on the CPU behind the shim, and on a GPU where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.engines.cuda.kernel_runs import Runner
from tests.helpers.host_driver import HostDriver, missing
from yolact_deploy.engines.cuda import open_driver
from yolact_deploy.engines.cuda.compiler import cached_kernels
from yolact_deploy.engines.gpu import gpus

# Without a GPU test_on_gpu.py says once that these did not run on one.
ON_GPU = [pytest.param("gpu", marks=pytest.mark.gpu)] if gpus() or os.environ.get("YOLACT_REQUIRE_GPU") == "1" else []


@pytest.fixture(scope="module", params=["cpu", *ON_GPU])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """The kernels on the CPU, and on the GPU here."""
    if request.param == "cpu":
        if missing():
            pytest.skip(missing())
        driver = HostDriver()
        with driver.load_module(driver.image) as module:
            yield Runner(driver, module)
        return
    gpu = open_driver()
    with gpu.load_module(cached_kernels(gpu.info.compute_capability)) as module:
        yield Runner(gpu, module)
