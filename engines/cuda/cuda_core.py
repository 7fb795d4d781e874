"""The driver seam over NVIDIA's ``cuda-core`` and ``cuda-bindings``.

``cuda.core`` owns streams and events; the calls go to ``cuda.bindings.driver``, which tells each error by its code. Nothing is imported
from either until a driver is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Literal

from yolact_deploy.errors import DeviceError, MissingDependencyError

from .calls import CallingDriver, check_gpu
from .driver import DeviceInfo, Driver, Event, Stream
from .owned import OwnedEvent, OwnedStream

__all__ = ["CudaCoreDriver", "open_driver"]

_PURPOSE = "Running an engine"


def open_driver(index: int = 0, library: Literal["auto", "cuda-core", "pycuda"] = "auto") -> Driver:
    """GPU number `index`, counted as CUDA does (``CUDA_VISIBLE_DEVICES`` applies).

    Args:
        index: the GPU's number.
        library: "cuda-core" takes the GPU's primary context; "pycuda" the context of the running PyCUDA program, or the primary one; "auto"
            is PyCUDA where only that is installed, otherwise cuda-core.

    Raises :class:`MissingDependencyError` without the package, and :class:`DeviceError` without a driver that is new enough or such a GPU.
    """
    if library == "pycuda" or (library == "auto" and not _installed("cuda.core") and _installed("pycuda")):
        from .pycuda_driver import PyCudaDriver

        return PyCudaDriver(index)
    return CudaCoreDriver(index)


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _packages() -> tuple[Any, Any, str]:
    """``cuda.core``, ``cuda.bindings.driver``, and the version of the latter's package."""
    try:
        core, bindings = import_module("cuda.core"), import_module("cuda.bindings")
        return core, import_module("cuda.bindings.driver"), str(bindings.__version__)
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("cuda-core", "tensorrt", _PURPOSE) from error
    except ImportError as error:
        raise MissingDependencyError(
            f"{_PURPOSE} needs cuda-core and a cuda-bindings that fits it; importing them failed: {error}.",
            "Run: pip install --upgrade cuda-core cuda-bindings",
        ) from error


class _Told:
    """A block in which what the packages raise by themselves becomes a :class:`DeviceError` about `what`."""

    def __init__(self, what: str, mend: str = "") -> None:
        self.what = what
        self.mend = mend

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None and (kind.__module__.startswith("cuda.") or issubclass(kind, RuntimeError)):
            raise DeviceError(f"{self.what}: {' '.join(str(error).split())}", self.mend) from error


class CudaCoreDriver(CallingDriver):
    """GPU `index`; its primary context is kept until the process ends, as the CUDA runtime keeps it."""

    def __init__(self, index: int = 0) -> None:
        self._core, self._cuda, bindings = _packages()
        self.where = f"GPU {index}"
        with _Told("No NVIDIA driver answers", "Install NVIDIA's driver; `nvidia-smi` shows whether it works."):
            self._cuda.cuInit(0)
        needed = int(bindings.partition(".")[0])
        mend = f'Update NVIDIA\'s driver, or run: pip install "cuda-bindings<{needed}"'
        number = check_gpu(self.attempt, index, needed, f"cuda-bindings {bindings}", mend)
        with _Told(self.where):
            device = self._core.Device(index)
            major, minor = device.compute_capability
            self.info = DeviceInfo(index, str(device.name), (int(major), int(minor)), int(self.call("cuDeviceTotalMem", number)))
        self.where = f"GPU {index} ({self.info.name})"
        self.context = self.call("cuDevicePrimaryCtxRetain", number)

    def attempt(self, name: str, *arguments: Any) -> tuple[str, Sequence[Any]]:
        with _Told(self.where):
            code, *answers = getattr(self._cuda, name)(*arguments)
        return (code.name if code else ""), answers

    def enumerator(self, kind: str, value: int) -> Any:
        return getattr(self._cuda, kind)(value)

    @contextmanager
    def _device(self) -> Iterator[Any]:
        """``cuda.core``'s device, which wants to be told of each thread."""
        with self.active(), _Told(self.where):
            device = self._core.Device(self.info.index)
            device.set_current()
            yield device

    def create_stream(self) -> Stream:
        with self._device() as device:
            created = device.create_stream(options=self._core.StreamOptions(nonblocking=True))
            return OwnedStream(self, int(created.handle), created.close)

    def create_event(self, *, timing: bool = False) -> Event:
        with self._device() as device:
            created = device.create_event(options=self._core.EventOptions(timing_enabled=timing))
            return OwnedEvent(self, int(created.handle), created.close)
