"""Which TensorRT is taken and why, and what is said where none can be; no GPU and no TensorRT is needed for it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.engines.bindings.run import VERSIONS, run_in
from yolact_deploy.engines import choice, versions
from yolact_deploy.engines.choice import choose_tensorrt
from yolact_deploy.engines.gpu import Gpu
from yolact_deploy.engines.targets import Capability
from yolact_deploy.engines.versions import TensorRT, check_driver, is_installed, load_tensorrt
from yolact_deploy.errors import ConfigError, DeviceError, MissingDependencyError, ModelFileError

H200 = Gpu("NVIDIA H200", (9, 0), 141 << 30)
L4 = Gpu("NVIDIA L4", (8, 9), 24 << 30)
GET_RTX, GET_TENSORRT = 'pip install "yolact-deploy[rtx]"', 'pip install "yolact-deploy[tensorrt]"'
DOCTOR = "Run it on a machine with a GPU; yolact-deploy doctor tells what is here."
Machine = Callable[..., None]


class ComputeCapability:
    """What TensorRT-RTX 1.7 has."""

    NONE, CURRENT, SM75, SM80, SM86, SM89, SM120, SM121 = range(8)


def module_of(name: str, version: str) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(__version__=version, ComputeCapability=ComputeCapability)
    return module


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """What was imported before is not remembered, here nor afterwards."""
    load_tensorrt.cache_clear()
    yield
    load_tensorrt.cache_clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this machine one with these GPUs, driver and packages (module name to version, or to what importing it raises)."""

    def make(
        *here: Gpu, installed: dict[str, Any] | None = None, cuda: tuple[int, int] | None = (13, 0), wheels: tuple[str, ...] = ()
    ) -> None:
        packages = installed or {}

        def import_module(name: str) -> ModuleType:
            if name not in packages:
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)
            if isinstance(packages[name], Exception):
                raise packages[name]
            return module_of(name, packages[name])

        for each in (choice, versions):
            monkeypatch.setattr(each, "gpus", lambda: list(here))
        monkeypatch.setattr(versions, "driver_cuda_version", lambda: cuda)
        monkeypatch.setattr(
            versions, "importlib", SimpleNamespace(import_module=import_module, util=SimpleNamespace(find_spec=packages.get))
        )
        monkeypatch.setattr(versions, "metadata", SimpleNamespace(distributions=lambda: [SimpleNamespace(name=name) for name in wheels]))

    return make


BOTH = {"tensorrt": "10.16.1.11", "tensorrt_rtx": "1.7.1.116"}
ONLY_TENSORRT = {"tensorrt": "10.16.1.11"}
ONLY_RTX = {"tensorrt_rtx": "1.7.1.116"}


@pytest.mark.parametrize(
    ("installed", "here", "sm", "wanted"),
    [
        (BOTH, [L4], (), "TensorRT 10.16.1.11: it is installed and this machine has a GPU, NVIDIA L4."),
        (ONLY_TENSORRT, [L4], (), "TensorRT 10.16.1.11: it is installed and this machine has a GPU, NVIDIA L4."),
        (BOTH, [L4], ((8, 9),), "TensorRT 10.16.1.11: it is installed and this machine has a GPU, NVIDIA L4."),
        (BOTH, [H200, L4], ((9, 0),), "TensorRT 10.16.1.11: it is installed and this machine has a GPU, NVIDIA H200."),
        (BOTH, [L4], ((8, 6),), "TensorRT-RTX 1.7.1.116: the engine is for compute capability 8.6, not for the GPU here."),
        (BOTH, [L4], ((8, 6), (8, 9)), "TensorRT-RTX 1.7.1.116: the engine is for compute capability 8.6, 8.9, not for the GPU here."),
        (BOTH, [H200, L4], ((8, 9),), "TensorRT-RTX 1.7.1.116: the engine is for compute capability 8.9, not for the GPU here."),
        (BOTH, [], (), "TensorRT-RTX 1.7.1.116: this machine has no GPU, and TensorRT-RTX builds without one."),
        (ONLY_RTX, [], ((8, 9),), "TensorRT-RTX 1.7.1.116: this machine has no GPU, and TensorRT-RTX builds without one."),
        (ONLY_RTX, [L4], (), f"TensorRT-RTX 1.7.1.116: TensorRT is not installed ({GET_TENSORRT} installs it)."),
        (
            ONLY_RTX,
            [H200],
            (),
            f"TensorRT-RTX 1.7.1.116: TensorRT is not installed ({GET_TENSORRT} installs it), "
            "and its engines do not run on the NVIDIA H200 here.",
        ),
    ],
)
def test_auto(installed: dict[str, str], here: list[Gpu], sm: tuple[Capability, ...], wanted: str, machine: Machine) -> None:
    machine(*here, installed=installed)
    found, reason = choose_tensorrt("auto", sm)
    assert reason == wanted
    assert str(found) == wanted.split(":")[0]
    assert found.is_rtx == wanted.startswith("TensorRT-RTX")


def test_auto_is_what_is_done_without_a_wish(machine: Machine) -> None:
    machine(L4, installed=BOTH)
    assert choose_tensorrt() == choose_tensorrt("auto", ())


@pytest.mark.parametrize("here", [(), (L4,)])
def test_auto_with_nothing_installed(here: tuple[Gpu, ...], machine: Machine) -> None:
    machine(*here)
    with pytest.raises(MissingDependencyError) as caught:
        choose_tensorrt()
    assert caught.value.message == "Neither TensorRT nor TensorRT-RTX is installed."
    assert caught.value.mend == f"Run: {GET_RTX} (builds without a GPU), or {GET_TENSORRT}"


@pytest.mark.parametrize(
    ("here", "sm", "what"),
    [
        ((), (), "this machine has no GPU"),
        ((), ((8, 9),), "this machine has no GPU"),
        ((L4,), ((8, 6), (8, 9)), "8.6, 8.9 is not this GPU's capability"),
    ],
)
def test_auto_with_tensorrt_alone_where_it_cannot_build(
    here: tuple[Gpu, ...], sm: tuple[Capability, ...], what: str, machine: Machine
) -> None:
    machine(*here, installed=ONLY_TENSORRT)
    with pytest.raises(ConfigError) as caught:
        choose_tensorrt("auto", sm)
    assert caught.value.message == f"TensorRT is installed, but {what}, and TensorRT builds only for the GPU here."
    assert caught.value.mend == f"Run: {GET_RTX}"


def test_a_backend_that_was_asked_for(machine: Machine) -> None:
    machine(L4, installed=BOTH)
    assert choose_tensorrt("tensorrt")[1] == "TensorRT 10.16.1.11: as asked for."
    assert choose_tensorrt("tensorrt", ((8, 9),))[0].backend == "tensorrt"
    assert choose_tensorrt("tensorrt-rtx", ((8, 9), (12, 0)))[1] == "TensorRT-RTX 1.7.1.116: as asked for."
    machine(installed=BOTH, cuda=None)
    assert choose_tensorrt("tensorrt-rtx")[0].backend == "tensorrt-rtx"  # neither GPU nor driver is needed
    with pytest.raises(DeviceError, match=r"TensorRT 10\.16\.1\.11 needs a GPU, no NVIDIA driver was found"):
        choose_tensorrt("tensorrt")


@pytest.mark.parametrize(("backend", "name", "mend"), [("tensorrt", "TensorRT", GET_TENSORRT), ("tensorrt-rtx", "TensorRT-RTX", GET_RTX)])
def test_a_backend_that_was_asked_for_and_is_not_there(backend: Any, name: str, mend: str, machine: Machine) -> None:
    machine(L4, installed=ONLY_RTX if backend == "tensorrt" else ONLY_TENSORRT)
    with pytest.raises(MissingDependencyError) as caught:
        choose_tensorrt(backend)
    assert (caught.value.message, caught.value.mend) == (f"{name} is not installed.", f"Run: {mend}")


@pytest.mark.parametrize(
    ("here", "sm", "found", "asked"),
    [
        ((L4,), ((8, 6),), "NVIDIA L4, compute capability 8.9, 24.0 GiB", "8.6"),
        ((L4,), ((8, 6), (8, 9)), "NVIDIA L4, compute capability 8.9, 24.0 GiB", "8.6, 8.9"),
        ((L4, H200), ((9, 0),), "NVIDIA L4, compute capability 8.9, 24.0 GiB", "9.0"),
        ((), ((8, 6),), "no GPU", "8.6"),
    ],
)
def test_tensorrt_builds_for_the_gpu_here(
    here: tuple[Gpu, ...], sm: tuple[Capability, ...], found: str, asked: str, machine: Machine
) -> None:
    machine(*here, installed=BOTH)
    with pytest.raises(ConfigError) as caught:
        choose_tensorrt("tensorrt", sm)
    assert caught.value.message == f"TensorRT builds for the GPU that it runs on ({found}); compute capability {asked} was asked for."
    assert caught.value.mend == "Drop --sm, build on a machine with that GPU, or use --backend tensorrt-rtx."


@pytest.mark.parametrize("wanted", ["auto", "tensorrt-rtx"])
def test_rtx_refuses_capabilities_by_name(wanted: Any, machine: Machine) -> None:
    machine(installed=BOTH)
    with pytest.raises(ConfigError) as caught:
        choose_tensorrt(wanted, ((8, 9), (9, 0), (8, 7)))
    known = "7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
    assert caught.value.message == (
        f"TensorRT-RTX 1.7.1.116 builds for compute capability {known}; not for 9.0 (H100, H200), 8.7 (Jetson Orin)."
    )
    assert caught.value.mend == "Build for these on their own machine with --backend tensorrt, or change --sm."
    assert choose_tensorrt(wanted, ((7, 5), (12, 1)))[0].capabilities() == [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)]


def test_tensorrt_has_no_list_of_capabilities() -> None:
    assert TensorRT("tensorrt", module_of("tensorrt", "10.3"), "10.3").capabilities() == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ImportError("libnvinfer.so.10: cannot open shared object file: No such file or directory"),
            "libnvinfer.so.10: cannot open shared",
        ),
        (OSError("libcudart.so.12 is missing.\nmore of it"), "libcudart.so.12 is missing)."),
        (RuntimeError(""), "(RuntimeError)."),
        (ModuleNotFoundError("No module named 'tensorrt_libs'", name="tensorrt_libs"), "No module named 'tensorrt_libs')."),
    ],
)
def test_a_module_that_does_not_load(error: Exception, reason: str, machine: Machine) -> None:
    machine(installed={"tensorrt": error})
    with pytest.raises(MissingDependencyError) as caught:
        load_tensorrt("tensorrt")
    assert caught.value.message.startswith("TensorRT is installed but does not load (")
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.mend == f"Run: {GET_TENSORRT} --force-reinstall"


@pytest.mark.parametrize(
    ("backend", "version", "oldest"),
    [("tensorrt", "8.5.3.1", "8.6"), ("tensorrt", "7.2.3.4", "8.6"), ("tensorrt-rtx", "1.3.0.35", "1.4")],
)
def test_versions_that_are_too_old(backend: Any, version: str, oldest: str, machine: Machine) -> None:
    machine(installed={backend.replace("-", "_"): version})
    title, mend = ("TensorRT-RTX", GET_RTX) if backend == "tensorrt-rtx" else ("TensorRT", GET_TENSORRT)
    with pytest.raises(ModelFileError) as caught:
        load_tensorrt(backend)
    assert caught.value.message == f"{title} {version} is installed, {oldest} or newer was wanted."
    assert caught.value.mend == f"Upgrade: {mend} --upgrade"


@pytest.mark.parametrize(
    ("backend", "version"), [("tensorrt", "8.6"), ("tensorrt", "8.6.0"), ("tensorrt", "8.6.1.post1"), ("tensorrt-rtx", "1.4.0.76")]
)
def test_the_oldest_versions(backend: Any, version: str, machine: Machine) -> None:
    machine(installed={backend.replace("-", "_"): version})
    found = load_tensorrt(backend)
    assert found.version == version
    assert found.number[:2] in ((8, 6), (1, 4))
    assert load_tensorrt(backend) is found


def test_is_installed(machine: Machine) -> None:
    assert is_installed("tensorrt-rtx") == (importlib.util.find_spec("tensorrt_rtx") is not None)
    machine(installed=ONLY_TENSORRT)
    assert is_installed("tensorrt")
    assert not is_installed("tensorrt-rtx")


def test_a_module_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)  # of a test before
    assert is_installed("tensorrt")
    with pytest.raises(MissingDependencyError, match=r"does not load \(imported\)"):
        load_tensorrt("tensorrt")


TEN = TensorRT("tensorrt", None, "10.16.1.11")
RTX = TensorRT("tensorrt-rtx", None, "1.7.1.116")


def test_a_machine_without_driver_or_gpu(machine: Machine) -> None:
    machine(cuda=None)
    with pytest.raises(DeviceError) as caught:
        check_driver(TEN)
    assert (caught.value.message, caught.value.mend) == ("TensorRT 10.16.1.11 needs a GPU, no NVIDIA driver was found.", DOCTOR)
    machine(cuda=(13, 0))
    with pytest.raises(DeviceError) as caught:
        check_driver(TEN)
    assert (caught.value.message, caught.value.mend) == ("TensorRT 10.16.1.11 needs a GPU, the driver shows no GPU.", DOCTOR)


@pytest.mark.parametrize(
    ("found", "wheel", "cuda", "major", "driver"),
    [
        (TEN, "tensorrt-cu13", (12, 8), 13, " (driver 580 or newer)"),
        (TEN, "tensorrt_cu13_libs", (12, 8), 13, " (driver 580 or newer)"),
        (TEN, "tensorrt-cu12", (11, 4), 12, " (driver 525 or newer)"),
        (TEN, "tensorrt_cu14_bindings", (13, 1), 14, ""),
        (RTX, "tensorrt-rtx-cu13", (12, 8), 13, " (driver 580 or newer)"),
        (RTX, "tensorrt_rtx_cu13_libs", (12, 8), 13, " (driver 580 or newer)"),
    ],
)
def test_drivers_that_are_too_old(found: TensorRT, wheel: str, cuda: tuple[int, int], major: int, driver: str, machine: Machine) -> None:
    machine(L4, cuda=cuda, wheels=("numpy", wheel, "nvidia-cuda-runtime-cu19"))
    with pytest.raises(DeviceError) as caught:
        check_driver(found)
    assert caught.value.message == f"The driver supports CUDA {cuda[0]}.{cuda[1]}, the installed {found} is made for CUDA {major}."
    assert caught.value.mend == f"Update the driver to one for CUDA {major}{driver}, or install a TensorRT made for CUDA {cuda[0]}."


@pytest.mark.parametrize(
    ("found", "wheels", "cuda"),
    [
        (TEN, ("tensorrt-cu13",), (13, 0)),
        (TEN, ("tensorrt-cu12",), (13, 0)),
        (TEN, ("tensorrt_rtx_cu13", "tensorrt-cu12"), (12, 0)),  # the other product's does not count
        (RTX, ("tensorrt-cu13", "tensorrt-rtx-cu12"), (12, 0)),
        (TEN, ("tensorrt", None, "tensorrt-dispatch"), (11, 0)),  # the system's own: it does not tell
    ],
)
def test_drivers_that_will_do(found: TensorRT, wheels: tuple[str, ...], cuda: tuple[int, int], machine: Machine) -> None:
    machine(L4, cuda=cuda, wheels=wheels)
    check_driver(found)


def test_a_driver_that_is_too_old_is_told_before_a_build(machine: Machine) -> None:
    machine(L4, installed=BOTH, cuda=(12, 8), wheels=("tensorrt-cu13", "tensorrt-rtx-cu13"))
    with pytest.raises(DeviceError, match=r"The driver supports CUDA 12\.8"):
        choose_tensorrt()
    assert choose_tensorrt("tensorrt-rtx")[0].is_rtx  # builds without a driver


@pytest.mark.parametrize(
    ("here", "built", "compatible", "reads"),
    [
        ("10.16.1.11", "10.16.1.11", False, True),
        ("10.16.1", "10.16.1.11", False, True),
        ("10.16.1.11", "10.16.0.72", False, False),
        ("10.16.1.11", "10.3.0", False, False),
        ("10.16.1.11", "10", False, False),
        ("10.16.1.11", "", True, False),
        ("10.16.1.11", "10.3.0", True, True),
        ("10.16.1.11", "8.6.1", True, True),
        ("10.16.1.11", "8.6", True, True),
        ("10.16.1.11", "8.5.3", True, False),
        ("10.3.0", "10.16.1.11", True, False),
        ("8.6.1", "8.6.1.6", True, True),
        ("11.4.0.106", "10.16.1.11", True, True),
    ],
)
def test_whose_engines_are_read(here: str, built: str, compatible: bool, reads: bool) -> None:
    assert TensorRT("tensorrt", None, here).reads(built, version_compatible=compatible) is reads


@pytest.mark.parametrize(("built", "reads"), [("1.7.1.116", True), ("1.7.1.200", True), ("1.7.0.116", False), ("1.6.1.116", False)])
@pytest.mark.parametrize("compatible", [False, True])
def test_rtx_reads_its_own_release(built: str, reads: bool, compatible: bool) -> None:
    assert RTX.reads(built, version_compatible=compatible) is reads


def facts() -> list[Any]:
    """In the child process: what is known of this TensorRT."""
    found = load_tensorrt("tensorrt")
    known = [found.weakly_typed, found.newest_opset, found.has_progress_monitor, found.keeps_timings, found.is_rtx]
    return [str(found), list(found.number), *known, found.capabilities()]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_each_version_is(version: str) -> None:
    old = version == "8.6.1"
    name = VERSIONS[version]
    number = [int(part) for part in name.split(".")]
    assert run_in(version, f"{__name__}:facts") == [f"TensorRT {name}", number, old, 17 if old else 20, not old, True, False, []]


def test_what_rtx_is() -> None:
    assert (RTX.weakly_typed, RTX.newest_opset, RTX.keeps_timings, RTX.number) == (False, 20, False, (1, 7, 1, 116))


def test_what_may_be_captured() -> None:
    """TensorRT-RTX improves the kernels of dynamic shapes while they run, which a captured graph would miss."""
    from types import SimpleNamespace

    rtx, other = (versions.TensorRT(backend, SimpleNamespace(), "1.7.1") for backend in ("tensorrt-rtx", "tensorrt"))
    silent, telling = SimpleNamespace(), SimpleNamespace(is_stream_capturable=lambda stream: stream == 7)
    assert other.can_capture(silent, 7, dynamic=True)
    assert rtx.can_capture(silent, 7, dynamic=False)
    assert not rtx.can_capture(telling, 7, dynamic=True)
    assert rtx.can_capture(telling, 7, dynamic=False)
    assert not rtx.can_capture(telling, 8, dynamic=False)
