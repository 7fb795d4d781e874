"""What only a GPU can show of the kernels; the other tests of this folder run on it too where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from yolact_deploy.engines.gpu import gpus

ROOT = Path(__file__).resolve().parents[3]
KERNELS = ("nms_kernels", "mask_kernels", "postprocessor", "preprocess_kernel", "device_preprocessor", "draw_kernel")
FILES = [f"tests/engines/cuda/test_{name}.py" for name in KERNELS]


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer(tool: str) -> None:
    """All of the kernels' tests under NVIDIA's compute-sanitizer."""
    if not gpus() and os.environ.get("YOLACT_REQUIRE_GPU") != "1":
        pytest.skip("a GPU is wanted: no NVIDIA driver was found; the kernels ran on the CPU alone, behind the shim")
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer of the CUDA toolkit is wanted on the PATH")
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *FILES]
    command = [sanitizer, "--tool", tool, "--error-exitcode", "99", "--report-api-errors", "no", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
