"""What doctor says of engines, in every situation, with the command that mends it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.stub_cuda import missing, run_scenarios
from yolact_deploy.cli import doctor_engines
from yolact_deploy.cli.doctor_engines import engine_facts
from yolact_deploy.engines import versions
from yolact_deploy.engines.cuda.compiler import nvrtc_version
from yolact_deploy.engines.gpu import gpus

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
pytest.importorskip("cuda.core", reason="cuda-core is not installed")
without_gpu = pytest.mark.skipif(bool(gpus()), reason="what is said where there is no GPU")

TENSORRT, RTX = 'Run: pip install "yolact-deploy[tensorrt]"', 'Run: pip install "yolact-deploy[rtx]"'
SCENARIOS: list[tuple[str, dict[str, Any]]] = [
    ("doctor_where_everything_is_there", {}),
    ("doctor_with_one_backend", {}),
    ("doctor_with_nothing_installed", {}),
    ("doctor_without_cuda_core", {}),
    ("doctor_with_a_driver_that_is_too_old", {"version": 12080}),
    ("doctor_on_a_gpu_that_rtx_does_not_support", {"capability": "9.0"}),
    ("doctor_with_a_driver_but_no_gpu", {"devices": 0}),
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """What is installed is found anew by each test."""
    versions.load_tensorrt.cache_clear()
    yield
    versions.load_tensorrt.cache_clear()


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize(("name", "settings"), SCENARIOS)
def test_with_a_driver(name: str, settings: dict[str, Any]) -> None:
    outcome = run_scenarios("tests.cli.engine_scenarios", [name], **settings)[name]
    assert not outcome, outcome


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No container, no Jetson, nothing installed by the system: paths that a test may make."""
    monkeypatch.setattr(doctor_engines.os.path, "exists", lambda path: False)
    monkeypatch.setattr(doctor_engines, "_JETSON", tmp_path / "nv_tegra_release")
    monkeypatch.setattr(doctor_engines, "_SYSTEM_PACKAGES", tmp_path / "dist-packages" / "tensorrt")
    return tmp_path


@without_gpu
def test_rtx_without_a_gpu(monkeypatch: pytest.MonkeyPatch, outside: Path) -> None:
    hide(monkeypatch, "tensorrt")
    assert engine_facts() == {
        "TensorRT": f"TensorRT is not installed. {TENSORRT}",
        "TensorRT-RTX": rtx.__version__,
        "CUDA from Python": f"cuda-core {metadata.version('cuda-core')}",
        "build-engine --backend tensorrt-rtx": "yes, for compute capability 7.5, 8.0, 8.6, 8.9, 12.0, 12.1",
        "build-engine --backend tensorrt": "no",
        "running engines": "no: no NVIDIA driver was found",
        "compiling CUDA kernels": "yes, with NVRTC {}.{}".format(*nvrtc_version()),
    }


@without_gpu
def test_nothing_is_installed(monkeypatch: pytest.MonkeyPatch, outside: Path) -> None:
    hide(monkeypatch, "tensorrt", "tensorrt_rtx")
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "cuda.core" else found(name, *rest))
    assert engine_facts() == {
        "TensorRT": f"TensorRT is not installed. {TENSORRT}",
        "TensorRT-RTX": f"TensorRT-RTX is not installed. {RTX}",
        "CUDA from Python": f"cuda-core is not installed. {TENSORRT}",
        "build-engine --backend tensorrt-rtx": "no",
        "build-engine --backend tensorrt": "no",
        "running engines": "no: no NVIDIA driver was found",
        "compiling CUDA kernels": "yes, with NVRTC {}.{}".format(*nvrtc_version()),
    }


@without_gpu
def test_in_a_container(monkeypatch: pytest.MonkeyPatch, outside: Path) -> None:
    monkeypatch.setattr(doctor_engines.os.path, "exists", lambda path: path == "/.dockerenv")
    assert engine_facts()["running engines"] == "no: no NVIDIA driver was found in this container"


def test_a_jetson(monkeypatch: pytest.MonkeyPatch, outside: Path) -> None:
    hide(monkeypatch, "tensorrt", "tensorrt_rtx")
    (outside / "nv_tegra_release").write_text("# R36")
    facts = engine_facts()
    assert facts["TensorRT"] == "not installed. On a Jetson it comes with JetPack. Run: sudo apt-get install python3-libnvinfer"
    assert facts["TensorRT-RTX"] == f"TensorRT-RTX is not installed. {RTX}"
    (outside / "dist-packages" / "tensorrt").mkdir(parents=True)
    assert engine_facts()["TensorRT"] == (
        f"installed by the system in {outside / 'dist-packages'}, which {sys.prefix} does not see. "
        "Run: python3 -m venv --system-site-packages .venv"
    )


def test_what_is_broken_says_so(monkeypatch: pytest.MonkeyPatch, outside: Path) -> None:
    (outside / "dist-packages" / "tensorrt").mkdir(parents=True)
    broken = outside / "modules" / "tensorrt"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(broken.parent)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    assert engine_facts()["TensorRT"] == (
        f"TensorRT is installed but does not load (libnvinfer.so.10: cannot open shared object file). {TENSORRT} --force-reinstall"
    )
    (broken / "__init__.py").write_text("__version__ = '8.5.3'\n")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    versions.load_tensorrt.cache_clear()
    assert engine_facts()["TensorRT"] == (
        'TensorRT 8.5.3 is installed, 8.6 or newer was wanted. Upgrade: pip install "yolact-deploy[tensorrt]" --upgrade'
    )
    del sys.modules["tensorrt"]  # monkeypatch brings back what was there, which was nothing
