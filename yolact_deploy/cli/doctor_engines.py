"""The part of ``yolact-deploy doctor`` that concerns TensorRT: what is installed, what it can build and run, and what to install."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_deploy.errors import YolactDeployError

if TYPE_CHECKING:
    from yolact_deploy.engines.targets import BackendName
    from yolact_deploy.engines.versions import TensorRT

__all__ = ["engine_facts"]

_JETSON = Path("/etc/nv_tegra_release")
_SYSTEM_PACKAGES = Path("/usr/lib/python3/dist-packages/tensorrt")  # where JetPack and Debian packages put it


def engine_facts() -> dict[str, Any]:
    """A row for each backend, for the CUDA package, for building and for running."""
    from yolact_deploy.engines.gpu import gpus
    from yolact_deploy.engines.targets import BACKENDS, TITLES, capability_text

    loaded = {backend: _load(backend) for backend in BACKENDS}
    rows: dict[str, Any] = {TITLES[backend]: _installed(backend, found) for backend, found in loaded.items()}
    rows["CUDA from Python"] = _cuda_core()
    here = gpus()
    rtx, tensorrt = loaded["tensorrt-rtx"], loaded["tensorrt"]
    if not isinstance(rtx, str):
        rows["build-engine --backend tensorrt-rtx"] = f"yes, for compute capability {', '.join(map(capability_text, rtx.capabilities()))}"
    else:
        rows["build-engine --backend tensorrt-rtx"] = "no"
    rows["build-engine --backend tensorrt"] = _why_not(tensorrt) or f"yes, for the GPU here ({here[0]})"
    runnable = [TITLES[backend] for backend, found in loaded.items() if not _why_not(found) and _runs_here(found)]
    if runnable and _has_cuda_core():
        rows["running engines"] = f"yes, with {' and '.join(runnable)}"
    else:
        rows["running engines"] = f"no: {_obstacle(loaded)}"
    rows["compiling CUDA kernels"] = _compiler()
    return rows


def _load(backend: BackendName) -> TensorRT | str:
    """The backend, or why there is none."""
    from yolact_deploy.engines.versions import load_tensorrt

    try:
        return load_tensorrt(backend)
    except YolactDeployError as error:
        return str(error)


def _installed(backend: str, found: TensorRT | str) -> str:
    if not isinstance(found, str):
        return found.version
    if backend == "tensorrt" and "is not installed" in found:
        if _SYSTEM_PACKAGES.is_dir():
            return (
                f"installed by the system in {_SYSTEM_PACKAGES.parent}, which {sys.prefix} does not see. "
                "Run: python3 -m venv --system-site-packages .venv"
            )
        if _JETSON.is_file():
            return "not installed. On a Jetson it comes with JetPack. Run: sudo apt-get install python3-libnvinfer"
    return found


def _has_cuda_core() -> bool:
    from importlib.util import find_spec

    return find_spec("cuda") is not None and find_spec("cuda.core") is not None


def _cuda_core() -> str:
    from importlib import metadata

    if not _has_cuda_core():
        return 'cuda-core is not installed. Run: pip install "yolact-deploy[tensorrt]"'
    return f"cuda-core {metadata.version('cuda-core')}"


def _compiler() -> str:
    """What pre- and post-processing on the GPU need; without it engines use the CPU's."""
    from yolact_deploy.engines.cuda.compiler import nvrtc_version

    try:
        return "yes, with NVRTC {}.{}".format(*nvrtc_version())
    except YolactDeployError as error:
        return f"no: {error}"


def _why_not(found: TensorRT | str) -> str:
    """Why the GPU cannot be used with it; empty where it can."""
    from yolact_deploy.engines.gpu import gpus
    from yolact_deploy.engines.versions import check_driver

    if isinstance(found, str):
        return "no"
    try:
        check_driver(found)
    except YolactDeployError as error:
        return f"no: {error if gpus() else error.message}"
    return ""


def _runs_here(found: TensorRT | str) -> bool:
    from yolact_deploy.engines.gpu import gpus

    if isinstance(found, str) or not gpus():
        return False
    return not found.is_rtx or gpus()[0].compute_capability in found.capabilities()


def _obstacle(loaded: dict[BackendName, TensorRT | str]) -> str:
    from yolact_deploy.engines.gpu import driver_cuda_version, gpus
    from yolact_deploy.engines.versions import PIP

    if driver_cuda_version() is None:
        return "no NVIDIA driver was found" + (" in this container" if os.path.exists("/.dockerenv") else "")
    here = gpus()
    if not here:
        return "the driver shows no GPU"
    present = [found for found in loaded.values() if not isinstance(found, str)]
    if not present:
        return f"neither backend is installed. Run: {PIP['tensorrt']}"
    if not _has_cuda_core():
        return f"cuda-core is missing. Run: {PIP['tensorrt']}"
    return "; ".join(
        _why_not(found).removeprefix("no: ") or f"{found} does not support this GPU. Run: {PIP['tensorrt']}" for found in present
    )
