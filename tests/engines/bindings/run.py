"""Runs a function in a child process in which `import tensorrt` gives stand-ins made from the real bindings of one version.

The bindings come from `.venv/bindings/`, where `make setup` puts them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.engines.bindings import stub_libraries

ROOT = Path(__file__).resolve().parents[3]
BINDINGS = Path(sys.prefix) / "bindings"
# The versions by the names of their requirement files, and what `tensorrt.__version__` says in each.
VERSIONS = {"8.6.1": "8.6.1", "10.3": "10.3.0", "10.16": "10.16.1.11", "11.4": "11.4.0.106"}
RTX = "rtx"  # the TensorRT-RTX that is installed beside the project, under its own module name


class ChildError(AssertionError):
    """The function failed in its child process; `kind` and `message` tell of the exception, the text shows its traceback."""

    def __init__(self, version: str, target: str, kind: str, message: str, traceback: str) -> None:
        super().__init__(f"{target} with the bindings of TensorRT {version}:\n{traceback}")
        self.version, self.kind, self.message = version, kind, message


def why_not(version: str) -> str:
    """Why functions cannot run with this version here; empty where they can."""
    if version == RTX:
        return "" if importlib.util.find_spec("tensorrt_rtx") else "tensorrt_rtx is not installed"
    if not (BINDINGS / version / "tensorrt_bindings").is_dir():
        here = f"Python {sys.version_info.major}.{sys.version_info.minor} on {sys.platform}"
        return f"the bindings of TensorRT {version} are not installed: make setup does it where they have a wheel (this is {here})"
    return "" if stub_libraries.compiler() else "no C compiler was found for the stub libraries"


def run_in(version: str, target: str, *args: Any, timeout: float = 120) -> Any:
    """What `target` ("package.module:function") returns for `args` in the child process; arguments and result travel as JSON.

    Skips the test where the version is not available. Raises `ChildError` where the function raises; warnings count as errors.
    """
    reason = why_not(version)
    if reason:
        pytest.skip(reason)
    environment = dict(os.environ)
    if version != RTX:
        stubs = stub_libraries.build(int(version.partition(".")[0]))
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(stubs), os.environ.get("LD_LIBRARY_PATH")]))
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(BINDINGS / version)])
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        request = {"module": "tensorrt_rtx" if version == RTX else "tensorrt", "target": target, "args": args, "answer": str(answer)}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.engines.bindings.child"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            timeout=timeout,
            check=False,
        )
        if not answer.is_file():
            output = f"{done.stdout}{done.stderr}".strip()
            raise ChildError(version, target, "Exit", str(done.returncode), f"the child ended with status {done.returncode}\n{output}")
        said = json.loads(answer.read_text())
    if "traceback" in said:
        raise ChildError(version, target, said["kind"], said["message"], said["traceback"])
    return said["result"]
