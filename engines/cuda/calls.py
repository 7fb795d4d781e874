"""The driver seam over calls of CUDA's driver functions by their names; how such a call is made is left to each implementation."""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from numpy.typing import NDArray

from yolact_deploy.errors import DeviceError

from .driver import DeviceBuffer, Event, Graph, Kernel, Module, PinnedArray, Stream
from .owned import Calls, OwnedBuffer, OwnedEvent, OwnedGraph, OwnedKernel, OwnedModule, OwnedPinned, OwnedStream, handle_of

__all__ = ["Attempt", "CallingDriver", "check_gpu"]

Attempt = Callable[..., tuple[str, Sequence[Any]]]
"""Calls CUDA's function of that name with these inputs; answers the error's name, empty where it went well, and the outputs."""

_NO_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: page-locked for every GPU's context. Its address is a device address without any flag.
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_NONBLOCKING = 1  # CU_STREAM_NON_BLOCKING
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
_MOST_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_STREAM_HANDLES = ("cuda_stream", "ptr", "handle")  # of torch's streams before 2.10, CuPy's and PyCUDA's, which lack the protocol
_RESTART = "The GPU's state is lost for this process: start the program again."
_LOST = {
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
}
_FOREIGN_CODE = {
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "it was compiled for another GPU architecture",
    "CUDA_ERROR_INVALID_IMAGE": "it is damaged or no compiled code",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "it was made for a newer driver",
}


def check_gpu(attempt: Attempt, index: int, needed: int, who: str, mend: str) -> Any:
    """Initialise CUDA; the ``CUdevice`` of GPU `index`.

    Raises :class:`DeviceError` where the driver does not start, is older than CUDA `needed`.0, which `who` needs (`mend` says what to do
    then), or shows no GPU of this number.
    """
    error, _ = attempt("cuInit", 0)
    if error == "CUDA_ERROR_NO_DEVICE":
        raise DeviceError(
            f"No GPU was found, GPU {index} was asked for (cuInit: {error}).", "See `nvidia-smi`, and unset CUDA_VISIBLE_DEVICES."
        )
    if error:
        raise DeviceError(f"NVIDIA's driver does not start (cuInit: {error}).", "See `nvidia-smi`; after a driver's update, restart.")
    version = attempt("cuDriverGetVersion")[1][0]
    if version < needed * 1000:
        raise DeviceError(
            f"NVIDIA's driver supports CUDA {version // 1000}.{version % 1000 // 10}; {who} needs {needed}.0.",
            mend,
        )
    count = attempt("cuDeviceGetCount")[1][0]
    if not 0 <= index < count:
        numbers = "GPU 0" if count == 1 else f"GPU 0 to {count - 1}"
        raise DeviceError(f"GPU {index} was asked for, this machine shows {numbers}.", "See `nvidia-smi` and CUDA_VISIBLE_DEVICES.")
    return attempt("cuDeviceGet", index)[1][0]


class CallingDriver(Calls):
    """A GPU whose context an implementation has taken; its ``__init__`` sets ``info``, ``where`` and ``context``.

    Attributes:
        where: the GPU as messages name it.
        context: the ``CUcontext``.
    """

    where: str
    context: Any

    @abstractmethod
    def attempt(self, name: str, *arguments: Any) -> tuple[str, Sequence[Any]]:
        """An :data:`Attempt`; names carry no ``_v2``. :class:`DeviceError` where the driver has no such function."""

    def enumerator(self, kind: str, value: int) -> Any:
        """`value` as arguments of CUDA's enumeration `kind` are given."""
        return value

    def call(self, name: str, *arguments: Any) -> Any:
        error, answers = self.attempt(name, *arguments)
        if error:
            raise self.failed(name, error)
        return answers[0] if answers else None

    def failed(self, name: str, error: str) -> DeviceError:
        """CUDA's function `name` answered with `error`."""
        mend = _RESTART if error in _LOST else ""
        return DeviceError(f"{self.where}: {name} failed with {error}{self._room(error)}.", mend)

    def _room(self, error: str) -> str:
        """Where memory ran out, how much is free: the end of a sentence."""
        if error != _NO_MEMORY:
            return ""
        unknown, answers = self.attempt("cuMemGetInfo")
        return "" if unknown else f", {answers[0]} of its {answers[1]} bytes are free"

    def give_back(self, name: str, handle: Any) -> None:
        with suppress(DeviceError), self.active():
            self.call(name, handle)

    @contextmanager
    def active(self) -> Iterator[None]:
        if self._is_active():
            yield
            return
        self.call("cuCtxPushCurrent", self.context)
        try:
            yield
        finally:
            self.attempt("cuCtxPopCurrent")

    def _is_active(self) -> bool:
        return int(self.call("cuCtxGetCurrent") or 0) == int(self.context)

    def allocate(self, size: int) -> DeviceBuffer:
        with self.active():
            return OwnedBuffer(self, self._memory("cuMemAlloc", _positive(size)), size)

    def allocate_pinned(self, size: int) -> PinnedArray:
        with self.active():
            return OwnedPinned(self, self._memory("cuMemHostAlloc", _positive(size), _PORTABLE), size)

    def _memory(self, name: str, size: int, *arguments: Any) -> int:
        error, answers = self.attempt(name, size, *arguments)
        if error:
            kind, room = ("page-locked host memory", "") if name == "cuMemHostAlloc" else ("GPU memory", self._room(error))
            mend = "Close other programs, or use a smaller batch." if error == _NO_MEMORY else _RESTART if error in _LOST else ""
            raise DeviceError(f"{self.where}: {size} bytes of {kind} were asked for: {error}{room}.", mend)
        return int(answers[0])

    def device_of(self, pointer: int) -> int | None:
        with self.active():
            unknown, answers = self.attempt("cuPointerGetAttribute", self.enumerator("CUpointer_attribute", _DEVICE_ORDINAL), pointer)
        return None if unknown else int(answers[0])

    def create_stream(self) -> Stream:
        with self.active():
            created = self.call("cuStreamCreate", _NONBLOCKING)
        return OwnedStream(self, int(created), lambda: self.give_back("cuStreamDestroy", created))

    def borrow_stream(self, foreign: object) -> Stream:
        stream = OwnedStream(self, _stream_handle(foreign), foreign=foreign)  # which is kept as long as it is borrowed
        with self.active():
            unknown, answers = self.attempt("cuStreamGetCtx", stream.handle)
        if not unknown and int(answers[0] or 0) != int(self.context):
            raise DeviceError(f"The given stream is not one of {self.where}.", "Give a stream of the GPU that the engine runs on.")
        return stream

    def create_event(self, *, timing: bool = False) -> Event:
        with self.active():
            created = self.call("cuEventCreate", 0 if timing else _NO_TIMING)
        return OwnedEvent(self, int(created), lambda: self.give_back("cuEventDestroy", created))

    def copy_to_device(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        _contiguous(source)
        with self.active():
            self.call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, handle_of(stream))

    def copy_to_host(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        _contiguous(target)
        if not target.flags.writeable:
            raise ValueError("a writable array is wanted")
        with self.active():
            self.call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, handle_of(stream))

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        with self.active():
            self.call("cuMemcpyDtoDAsync", target, source, size, handle_of(stream))

    def clear(self, target: int, size: int, stream: Stream) -> None:
        with self.active():
            self.call("cuMemsetD8Async", target, 0, size, handle_of(stream))

    def load_module(self, image: bytes) -> Module:
        if not image:
            raise ValueError("compiled code is wanted, no bytes were given")
        with self.active():
            error, answers = self.attempt("cuModuleLoadData", image)
        if error in _FOREIGN_CODE:
            major, minor = self.info.compute_capability
            raise DeviceError(
                f"{self.where}: the compiled code does not load, {_FOREIGN_CODE[error]} (cuModuleLoadData: {error}).",
                f"Compile it for sm_{major}{minor}.",
            )
        if error:
            raise self.failed("cuModuleLoadData", error)
        return OwnedModule(self, answers[0])

    def find_kernel(self, module: OwnedModule, name: str) -> OwnedKernel:
        with self.active():
            error, answers = self.attempt("cuModuleGetFunction", handle_of(module), name.encode())
            if error == "CUDA_ERROR_NOT_FOUND":
                raise DeviceError(f"{self.where}: the loaded module has no kernel {name!r}.", "Load the kernels of this version.")
            if error:
                raise self.failed("cuModuleGetFunction", error)
            size = None
            with suppress(DeviceError):  # drivers before CUDA 12.4 know neither of the two
                self.call("cuFuncLoad", answers[0])  # or the first launch would load it, which may wait for the GPU
                unknown, place = self.attempt("cuFuncGetParamInfo", answers[0], 0)
                size = None if unknown else int(place[1])
        return OwnedKernel(self, module, name, answers[0], size)

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], threads: int, argument: bytes, stream: Stream, *, shared: int = 0) -> None:
        if not isinstance(kernel, OwnedKernel) or kernel.driver is not self:
            raise TypeError(f"{kernel.name} is no kernel of a module that this driver loaded")
        if kernel.size is not None and kernel.size != len(argument):
            raise ValueError(f"kernel {kernel.name} takes {kernel.size} bytes, {len(argument)} were given")
        handle_of(kernel.module)
        if shared > kernel.shared:
            self._allow(kernel, shared)
        # CUDA reads the argument before it returns: a list of one pointer, to the bytes themselves.
        pointers = (ctypes.c_char_p * 1)(argument)
        given = (kernel.function, *grid, threads, 1, 1, shared, handle_of(stream), ctypes.addressof(pointers), 0)
        if self._is_active():
            error, _ = self.attempt("cuLaunchKernel", *given)
        else:
            with self.active():
                error, _ = self.attempt("cuLaunchKernel", *given)
        if error:
            raise DeviceError(
                f"{self.where}: kernel {kernel.name} was not launched with {' x '.join(map(str, grid))} blocks of {threads} threads and "
                f"{shared} bytes of shared memory: {error}.",
                _RESTART if error in _LOST else "",
            )

    def _allow(self, kernel: OwnedKernel, shared: int) -> None:
        """Let `kernel` be launched with more dynamic shared memory than is had unasked."""
        with self.active():
            error, _ = self.attempt("cuFuncSetAttribute", kernel.function, self.enumerator("CUfunction_attribute", _MOST_SHARED), shared)
        if error:
            raise DeviceError(f"{self.where}: kernel {kernel.name} wants {shared} bytes of shared memory for each block: {error}.")
        kernel.shared = shared

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        handle = handle_of(stream)
        with self.active():
            # Not "thread_local": Python may collect, and so free, GPU memory on this thread at any moment, which ends any other capture.
            self.call("cuStreamBeginCapture", handle, self.enumerator("CUstreamCaptureMode", _RELAXED))
            try:
                work()
            except BaseException:
                unknown, answers = self.attempt("cuStreamEndCapture", handle)
                if not unknown:
                    self.give_back("cuGraphDestroy", answers[0])
                raise
            graph = self.call("cuStreamEndCapture", handle)
            try:
                return OwnedGraph(self, self.call("cuGraphInstantiate", graph, 0))
            finally:
                self.give_back("cuGraphDestroy", graph)

    def free_memory(self) -> int:
        with self.active():
            return int(self.call("cuMemGetInfo"))


def _positive(size: int) -> int:
    if size < 1:
        raise ValueError(f"at least one byte is wanted, not {size}")
    return size


def _contiguous(array: NDArray[Any]) -> None:
    if not array.flags.c_contiguous:
        raise ValueError("a C-contiguous array is wanted")


def _stream_handle(foreign: object) -> int:
    """The ``CUstream`` of a stream of the caller's."""
    if isinstance(foreign, int):
        return int(foreign)
    told = getattr(foreign, "__cuda_stream__", None)
    if told is not None:
        version, handle = told()
        if version != 0:
            raise TypeError(f"__cuda_stream__ of {type(foreign).__name__} follows version {version} of the protocol, version 0 is known")
        return int(handle)
    handles = (getattr(foreign, name, None) for name in _STREAM_HANDLES)
    found = next((handle for handle in handles if isinstance(handle, int)), None)
    if found is None:
        raise TypeError(f"a stream is a CUstream as an integer or has __cuda_stream__; {type(foreign).__name__} is neither")
    return found
