"""Running an engine: one deserialized plan, execution contexts with buffers of their own, CUDA graphs, and a pool for threads."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import ConfigError, DeviceError, ModelFileError
from yolact_deploy.manifest import TensorSpec

from .batches import BatchRange
from .cuda.driver import DeviceBuffer, Driver, Graph, PinnedArray, Stream
from .monitoring import Messages, make_logger
from .versions import TensorRT

__all__ = ["Context", "Engine", "EngineTensor", "Session"]


@dataclass(frozen=True)
class EngineTensor:
    """An input or output: its NumPy dtype, and its shape with the batch axis left out; all tensors begin with the batch."""

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]

    def nbytes(self, batch: int) -> int:
        """Bytes of a batch of that size."""
        return int(np.prod((batch, *self.shape), dtype=np.int64)) * np.dtype(self.dtype).itemsize


class Engine:
    """A plan on one GPU, shared by any number of contexts and threads.

    `plan` must have passed the checks of :mod:`yolact_deploy.engines.sidecar`: deserializing runs what is in it. Host code inside a plan
    stays forbidden. `lean_runtime` is the path of a lean runtime library, which an engine of another TensorRT version needs.

    Attributes:
        tensors: inputs first, each in the engine's order.
        batch: pictures at once.
        dynamic: whether the batch has to be set before a run; it may be so for an engine that takes one size only.

    Raises :class:`ModelFileError` where TensorRT refuses the plan, :class:`DeviceError` where the GPU's memory does not suffice.
    """

    def __init__(self, tensorrt: TensorRT, driver: Driver, plan: bytes, name: str, *, lean_runtime: str | None = None) -> None:
        self.tensorrt, self.driver, self.name = tensorrt, driver, name
        self.messages = Messages()
        self._logger = make_logger(tensorrt, self.messages)
        with driver.active():
            self._runtime = self._open_runtime(lean_runtime)
            self.handle: Any = self._runtime.deserialize_cuda_engine(plan)
        if self.handle is None:
            raise self._refusal()
        found = [self._tensor(self.handle.get_tensor_name(index)) for index in range(self.handle.num_io_tensors)]
        self.tensors = tuple(sorted(found, key=lambda tensor: not tensor.is_input))
        self.dynamic = self._first_axis() < 0
        self.batch = self._batch()

    def _open_runtime(self, lean_runtime: str | None) -> Any:
        try:
            runtime = self.tensorrt.module.Runtime(self._logger)
        except TypeError:  # what the binding makes of a null pointer
            raise DeviceError(f"{self.tensorrt} cannot start: {self._reason()}.", "yolact-deploy doctor tells what is here.") from None
        runtime.engine_host_code_allowed = False
        if lean_runtime is None:
            return runtime
        loaded = runtime.load_runtime(lean_runtime)
        if loaded is None:
            raise ModelFileError(f"{self.tensorrt} cannot load the lean runtime {lean_runtime}: {self._reason()}", "Check its path.")
        return loaded

    def _tensor(self, name: str) -> EngineTensor:
        module = self.tensorrt.module
        shape = tuple(self.handle.get_tensor_shape(name))
        if not shape or any(size < 0 for size in shape[1:]):
            raise ModelFileError(f"{self.name}: the tensor {name} has the shape {list(shape)}, only its batch may vary.", "Rebuild it.")
        layout, place = self.handle.get_tensor_format(name), self.handle.get_tensor_location(name)
        if layout != module.TensorFormat.LINEAR or place != module.TensorLocation.DEVICE:
            raise ModelFileError(
                f"{self.name}: the tensor {name} is {layout} in {place}, plain rows in device memory were wanted.",
                "Build it without input and output formats of its own.",
            )
        kind = self.handle.get_tensor_dtype(name)
        try:
            dtype = np.dtype(module.nptype(kind)).name
        except TypeError:
            raise ModelFileError(f"{self.name}: the tensor {name} is {kind}, which NumPy does not have.", "Build it again.") from None
        return EngineTensor(name, self.handle.get_tensor_mode(name) == module.TensorIOMode.INPUT, dtype, shape[1:])

    def _first_axis(self) -> int:
        """The first size of every tensor, -1 where it varies; buffers are made by it, so it has to be the batch everywhere."""
        sizes = {tensor.name: int(self.handle.get_tensor_shape(tensor.name)[0]) for tensor in self.tensors}
        if not self.inputs or len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ModelFileError(f"{self.name}: the tensors begin with different sizes ({told}), one batch was wanted.", "Rebuild it.")
        return sizes[self.inputs[0].name]

    def _batch(self) -> BatchRange:
        if not self.dynamic:
            own = self._first_axis()
            return BatchRange(own, own, own)
        smallest, best, largest = (shape[0] for shape in self.handle.get_tensor_profile_shape(self.inputs[0].name, 0))
        return BatchRange(smallest, best, largest)

    @property
    def inputs(self) -> tuple[EngineTensor, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.is_input)

    @property
    def outputs(self) -> tuple[EngineTensor, ...]:
        return tuple(tensor for tensor in self.tensors if not tensor.is_input)

    def specs(self, tensors: tuple[EngineTensor, ...]) -> tuple[TensorSpec, ...]:
        """As a manifest writes them."""
        batch = self.batch.minimum if self.batch.fixed else "batch"
        return tuple(TensorSpec(tensor.name, tensor.dtype, (batch, *tensor.shape)) for tensor in tensors)

    def close(self) -> None:
        """Release the engine; its contexts have to be closed before."""
        with self.driver.active():
            self.handle = None
            self._runtime = None

    def _reason(self) -> str:
        return self.messages.errors[-1].strip()[:300] if self.messages.errors else "it gives no reason"

    def _refusal(self) -> DeviceError | ModelFileError:
        if "memory" in self._reason().lower():
            free = self.driver.free_memory() / 2**20
            return DeviceError(
                f"{self.tensorrt} cannot load {self.name} with {free:,.0f} MiB free: {self._reason()}", "Free memory of the GPU."
            )
        return ModelFileError(f"{self.tensorrt} refuses the engine {self.name}: {self._reason()}", "Rebuild it on this machine.")


class Context:
    """One execution context with buffers for the engine's largest batch; for one thread at a time.

    Device buffers of every tensor are in :attr:`buffers` for the context's life, so that addresses never change. With `graphs` the second
    run of a batch size in a row is captured into a CUDA graph, and the following ones replay it; another batch size starts again. Work
    goes to the context's own stream, or to `stream`, the caller's (see :meth:`Driver.borrow_stream`).
    """

    def __init__(self, engine: Engine, *, stream: object | None = None, graphs: bool = True) -> None:
        self.engine, self.graphs = engine, graphs
        self._driver = engine.driver
        self._release = contextlib.ExitStack()
        self.buffers: dict[str, DeviceBuffer] = {}
        self._pinned: dict[str, PinnedArray] = {}
        self._graph: Graph | None = None
        self._runs, self._size = 0, 0
        self._after: Callable[[Stream], None] | None = None
        try:
            self._own: Stream = self._release.enter_context(self._driver.create_stream())
            self.stream = self._own if stream is None else self._release.enter_context(self._driver.borrow_stream(stream))
            self._allocate()
        except BaseException:
            self.close()
            raise

    def _allocate(self) -> None:
        self.engine.messages.errors.clear()
        with self._driver.active():
            self.handle: Any = self.engine.handle.create_execution_context()
        if self.handle is None:
            raise self._no_context()
        largest = self.engine.batch.maximum
        for tensor in self.engine.tensors:
            size = tensor.nbytes(largest)
            self.buffers[tensor.name] = self._release.enter_context(self._driver.allocate(size))
            self._pinned[tensor.name] = self._release.enter_context(self._driver.allocate_pinned(size))
            if not self.handle.set_tensor_address(tensor.name, self.buffers[tensor.name].pointer):
                raise self._failure(f"refuses a buffer for {tensor.name}")
        if self.engine.dynamic:
            with self._driver.active():
                chosen = self.handle.set_optimization_profile_async(0, self._own.handle)
            if not chosen:
                raise self._failure("refuses the engine's optimization profile")
            self._own.synchronize()

    @property
    def device_bytes(self) -> int:
        """Device memory of the buffers; TensorRT's own scratch memory comes on top."""
        return sum(buffer.size for buffer in self.buffers.values())

    def run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Arrays in, arrays out, both on the host; waits for the GPU. Each input is [B, …] of the engine's dtype.

        Raises :class:`ConfigError` for inputs that do not fit the engine, :class:`DeviceError` where the GPU fails.
        """
        size = self.upload(inputs)
        self.enqueue(size)
        for tensor in self.engine.outputs:
            self._driver.copy_to_host(self._view(tensor, size), self.buffers[tensor.name].pointer, self.stream)
        self.stream.synchronize()
        return {tensor.name: self._view(tensor, size).copy() for tensor in self.engine.outputs}

    def upload(self, inputs: dict[str, NDArray[Any]]) -> int:
        """Queue the copies of the inputs to their buffers; returns their batch size. The stream must be past the last upload."""
        size = self._checked(inputs)
        for tensor in self.engine.inputs:
            staged = self._view(tensor, size)
            np.copyto(staged, inputs[tensor.name])
            self._driver.copy_to_device(self.buffers[tensor.name].pointer, staged, self.stream)
        return size

    def enqueue(self, size: int, after: Callable[[Stream], None] | None = None) -> None:
        """Queue one execution on a batch of `size`, device buffers to device buffers, without waiting.

        `after` queues what is to follow on the stream that it is given; a graph holds both. It has to queue the same each time.
        """
        self._check_batch(size)
        self._prepare(size, after)
        if self._graph is None and self.graphs and self._runs == 1:
            self._capture()
        if self._graph is not None:
            self._graph.launch(self.stream)
        else:
            self._execute(self.stream)
        self._runs += 1

    def execute(self, size: int, stream: Stream) -> None:
        """Queue one execution on a batch of `size` on another stream than the context's, never from a graph of its own."""
        self._check_batch(size)
        self._prepare(size, None)
        self._execute(stream)

    def _prepare(self, size: int, after: Callable[[Stream], None] | None) -> None:
        """Set the shapes of a batch size that differs from the last one, which ends that one's graph, as other work after it does."""
        if size == self._size and after == self._after:
            return
        self._drop_graph()
        self._runs, self._size, self._after = 0, 0, after
        if self.engine.dynamic:
            for tensor in self.engine.inputs:
                with self._driver.active():
                    taken = self.handle.set_input_shape(tensor.name, (size, *tensor.shape))
                if not taken:
                    raise self._failure(f"refuses the shape {[size, *tensor.shape]} of {tensor.name}")
        self._size = size

    def _capture(self) -> None:
        """Record one execution; the first one, already queued, has set up whatever TensorRT sets up lazily."""
        self.stream.synchronize()
        with self._driver.active():
            self.graphs = self.engine.tensorrt.can_capture(self.handle, self._own.handle, dynamic=self.engine.dynamic)
        if not self.graphs:
            return
        try:
            self._graph = self._driver.capture(self._own, lambda: self._execute(self._own))
        except DeviceError:
            self.graphs = False  # a layer that cannot be captured runs as before

    def _execute(self, stream: Stream) -> None:
        with self._driver.active():
            queued = self.handle.execute_async_v3(stream.handle)
        if not queued:
            raise self._failure("failed to run")
        if self._after is not None:
            self._after(stream)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self.stream.synchronize()
            self._graph.close()
            self._graph = None

    def _view(self, tensor: EngineTensor, size: int) -> NDArray[Any]:
        array = self._pinned[tensor.name].array[: tensor.nbytes(size)]
        view: NDArray[Any] = array.view(tensor.dtype).reshape(size, *tensor.shape)
        return view

    def _check_batch(self, size: int) -> None:
        if self.handle is None:
            raise DeviceError(f"The context of {self.engine.name} is closed.", "Make another one.")
        if not self.engine.batch.minimum <= size <= self.engine.batch.maximum:
            raise ConfigError(
                f"A batch of {size} was given, the engine {self.engine.name} takes {self.engine.batch}.", "Split the batch, or rebuild it."
            )

    def _checked(self, inputs: dict[str, NDArray[Any]]) -> int:
        first = inputs.get(self.engine.inputs[0].name)
        size = len(first) if first is not None and first.ndim else 0
        for tensor in self.engine.inputs:
            given = inputs.get(tensor.name)
            if given is None or given.dtype != tensor.dtype or given.shape != (size, *tensor.shape):
                found = "nothing" if given is None else f"{given.dtype} {list(given.shape)}"
                wanted = f"{tensor.dtype} [{', '.join(map(str, ('B', *tensor.shape)))}]"
                raise ConfigError(f"The input {tensor.name} is {found}, {wanted} was wanted.", "Prepare it as the manifest says.")
        self._check_batch(size)
        return size

    def _no_context(self) -> DeviceError:
        """Its scratch memory is most of what TensorRT takes of the GPU."""
        free = self._driver.free_memory() / 2**20
        failure = self._failure(f"cannot make an execution context with {free:,.0f} MiB of GPU memory free")
        return DeviceError(failure.message, "Free memory of the GPU, use fewer contexts, or rebuild it with a smaller --batch.")

    def _failure(self, what: str) -> DeviceError:
        errors = self.engine.messages.errors
        reason = f": {errors[-1].strip().rstrip('.')[:300]}" if errors else ""
        return DeviceError(f"{self.engine.tensorrt} {what}, engine {self.engine.name}{reason}.", "yolact-deploy doctor tells what is here.")

    def at_close(self, function: Callable[[], None]) -> None:
        """Have `function` called when the context closes, when its work is over and its buffers are still there."""
        self._release.callback(function)

    def close(self) -> None:
        """Wait for the work and release buffers, graph, context and stream; a second call does nothing.

        An error here is one of the GPU's earlier work, which :meth:`run` has told.
        """
        with contextlib.suppress(DeviceError):
            if self._size:
                self.stream.synchronize()
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        with self._driver.active():
            self.handle = None
        self._release.close()
        self.buffers.clear()
        self._pinned.clear()
        self._size = 0

    def __enter__(self) -> Context:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Session:
    """An engine with up to `contexts` execution contexts, made when they are first needed; call it from as many threads as you like.

    Threads beyond that number wait for a context. After :meth:`close` every call raises :class:`DeviceError`.
    """

    def __init__(self, engine: Engine, *, contexts: int = 1, stream: object | None = None, graphs: bool = True) -> None:
        if contexts < 1 or (stream is not None and contexts > 1):
            raise ConfigError(f"{contexts} contexts were asked for.", "Give 1 or more; on a stream of your own 1.")
        self.engine, self._stream, self._graphs = engine, stream, graphs
        self._free: queue.LifoQueue[Context | None] = queue.LifoQueue()
        for _ in range(contexts):
            self._free.put(None)
        self._contexts = contexts
        self._lock = threading.Lock()
        self._closed = False

    @contextlib.contextmanager
    def context(self) -> Iterator[Context]:
        """A context for the block, this thread's alone."""
        context = self._free.get()
        try:
            if self._closed:
                raise DeviceError(f"The engine {self.engine.name} is closed.", "Load it again.")
            if context is None:
                context = Context(self.engine, stream=self._stream, graphs=self._graphs)
            yield context
        finally:
            self._free.put(context)

    def run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """:meth:`Context.run` on a free context."""
        with self.context() as context:
            return context.run(inputs)

    def close(self) -> None:
        """Wait for running calls, then release everything; a second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for _ in range(self._contexts):
                context = self._free.get()
                if context is not None:
                    context.close()
            self.engine.close()
            for _ in range(self._contexts):
                self._free.put(None)  # whoever waits learns that it is closed
