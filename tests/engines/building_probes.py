"""What `test_building_on_bindings.py` runs in child processes: the whole builder and the sessions, on stand-ins of one TensorRT.

The GPU is made up. What TensorRT would compute is configured here: the parser makes a network of the layers that the ONNX file has, a
build gives a plan that begins as a real one does, a timing cache is a list of lines, an execution doubles its input.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.engines.bindings import stand_ins
from tests.helpers.host_driver import HostDriver
from yolact_deploy.engines import builder, choice, versions
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.cuda.driver import DeviceBuffer, DeviceInfo, Event, Graph, PinnedArray, Stream
from yolact_deploy.engines.gpu import Gpu
from yolact_deploy.engines.options import BuildOptions
from yolact_deploy.engines.session import Context, Engine
from yolact_deploy.errors import YolactDeployError

GPU = Gpu("NVIDIA GeForce RTX 3080", (8, 6), 10 << 30)
LAYERS = {"Layers": [{"Name": "backbone/Conv", "LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]}]}


def plan_of(version: str) -> bytes:
    """A plan's first bytes, with the version where real ones have it, and some more."""
    numbers = [int(part) for part in version.split(".")] + [0, 0, 0]
    return b"ftrt" + bytes(20) + bytes(numbers[:4]) + bytes(100)


class Network:
    """Turns the graph that the parser is given into a network of stand-ins: the same names, one layer for each node."""

    def __init__(self) -> None:
        self.trt = stand_ins.now().real
        self.tensors: dict[str, Any] = {}
        self.layers: list[Any] = []
        self.inputs: list[Any] = []
        stand_ins.configure(
            "INetworkDefinition",
            num_inputs=lambda: len(self.inputs),
            get_input=lambda index: self.inputs[index],
            num_layers=lambda: len(self.layers),
            get_layer=lambda index: self.layers[index],
        )

    def tensor(self, name: str, kind: int, shape: tuple[int, ...] = ()) -> Any:
        kinds = {onnx.TensorProto.FLOAT: self.trt.float32, onnx.TensorProto.FLOAT16: self.trt.float16}
        dtype = kinds.get(kind, self.trt.int32)
        if name not in self.tensors:
            self.tensors[name] = stand_ins.stand_in("ITensor", name=name, dtype=dtype, shape=shape)
        return self.tensors[name]

    def parse(self, data: bytes) -> bool:
        model = onnx.load_from_string(bytes(data))
        graph = onnx.shape_inference.infer_shapes(model).graph
        kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
        self.tensors, self.layers, self.inputs = {}, [], []
        for value in graph.input:
            shape = tuple(-1 if axis.dim_param else axis.dim_value for axis in value.type.tensor_type.shape.dim)
            self.inputs.append(self.tensor(value.name, kinds[value.name], shape))
        for node in graph.node:
            special = {"Cast": "CAST", "Constant": "CONSTANT", "Shape": "SHAPE"}.get(node.op_type, "ELEMENTWISE")
            self.add(node.name, special, [name for name in node.input if name in kinds], list(node.output), kinds)
        return True

    def add(self, name: str, kind: str, inputs: list[str], outputs: list[str], kinds: dict[str, int]) -> Any:
        taken = [self.tensor(each, kinds.get(each, 0)) for each in inputs]
        given = [self.tensor(each, kinds.get(each, 0)) for each in outputs]
        layer = stand_ins.stand_in(
            "ILayer",
            name=name,
            type=getattr(self.trt.LayerType, kind),
            num_inputs=len(taken),
            num_outputs=len(given),
            get_input=lambda index: taken[index],
            get_output=lambda index: given[index],
        )
        self.layers.append(layer)
        return layer


class Timings:
    """Timing caches that are sets of lines; a build measures the line `measured`. Damaged and foreign ones are refused as TensorRT does."""

    def __init__(self, measured: str) -> None:
        self.measured = measured
        self.current: Any = None
        self.known: list[tuple[Any, set[str]]] = []
        stand_ins.configure(
            "IBuilderConfig", create_timing_cache=self.create, set_timing_cache=self.set, get_timing_cache=lambda: self.current
        )

    def create(self, blob: bytes) -> Any:
        if bytes(blob).startswith(b"damaged"):
            return None
        lines = set(bytes(blob).decode().splitlines())
        cache: Any = stand_ins.stand_in(
            "ITimingCache",
            serialize=lambda: "\n".join(sorted(lines)).encode(),
            combine=lambda other, ignore: not lines.update(self.lines_of(other)),
        )
        self.known.append((cache, lines))
        return cache

    def lines_of(self, cache: Any) -> set[str]:
        return next(lines for one, lines in self.known if one is cache)

    def set(self, cache: Any, ignore: bool) -> bool:
        if "foreign" in self.lines_of(cache) and not ignore:
            return False
        self.current = cache
        return True

    def measure(self) -> None:
        if self.current is not None and self.measured:
            self.lines_of(self.current).add(self.measured)


def scene(settings: dict[str, Any]) -> list[Any]:
    """Configure the stand-ins as `settings` say; returns what the build found in its network and monitor."""
    trt = stand_ins.now().real
    network, timings, seen = Network(), Timings(settings.get("measures", "")), []
    stand_ins.configure("OnnxParser", parse=network.parse)
    stand_ins.configure("EngineInspector", get_engine_information=json.dumps(settings.get("layers", LAYERS)))
    for module in (choice, versions, builder):
        module.gpus = lambda: [GPU]
    for module in (versions, builder):
        module.driver_cuda_version = lambda: (13, 0)

    def work(network: Any, config: Any) -> bytes | None:
        timings.measure()
        monitor = config.progress_monitor if hasattr(trt, "IProgressMonitor") else None
        if monitor is not None:
            seen.append(drive(monitor, interrupt=settings.get("interrupt")))
        if "folder in the cache's place" in settings:
            Path(settings["folder in the cache's place"]).mkdir()
        for severity, text in settings.get("says", []):
            stand_ins.call_back(
                stand_ins.journal("Builder")[-1].arguments["logger"], "ILogger", "log", getattr(trt.ILogger, severity), text
            )
        return None if settings.get("fails") or "interrupt" in settings else plan_of(trt.__version__)

    stand_ins.configure("Builder", build_serialized_network=work)
    if settings.get("dynamic engine"):
        stand_ins.configure(
            "ICudaEngine",
            num_io_tensors=2,
            get_tensor_name=["images", "boxes"].__getitem__,
            get_tensor_mode=lambda name: trt.TensorIOMode.INPUT if name == "images" else trt.TensorIOMode.OUTPUT,
            get_tensor_shape=lambda name: (-1, 3, 256, 256) if name == "images" else (-1, 100, 4),
            get_tensor_profile_shape=lambda name, profile: [trt.Dims((size, 3, 256, 256)) for size in (1, 2, 4)],
        )
    if settings.get("no builder"):
        stand_ins.configure("Builder", __init__=_no_builder)
    if settings.get("refuses the profile"):
        stand_ins.configure("IBuilderConfig", add_optimization_profile=-1)
    if "parse errors" in settings:
        errors = [_parse_error(*error) for error in settings["parse errors"]]
        stand_ins.configure("OnnxParser", parse=False, num_errors=len(errors), get_error=lambda index: errors[index])
    return seen


def _no_builder(logger: Any) -> None:
    logger.log(stand_ins.now().real.ILogger.ERROR, "CUDA initialization failure with error: 35. ")
    raise TypeError("pybind11::init(): factory function returned nullptr")


def _parse_error(operator: str, node: str, text: str) -> Any:
    values: dict[str, Any] = {"desc": text}
    if hasattr(stand_ins.now().real.ParserError, "node_name"):
        values |= {"node_name": node, "node_operator": operator}
    return stand_ins.stand_in("ParserError", **values)


def drive(monitor: Any, *, interrupt: float | None) -> list[Any]:
    """Report a build of four steps as TensorRT does; press Ctrl-C after `interrupt` seconds, and go on until told to stop."""

    def call(name: str, *args: Any) -> Any:
        return stand_ins.call_back(monitor, "IProgressMonitor", name, *args)

    call("phase_start", "Building", None, 4)
    answers = [call("step_complete", "Building", 0)]
    call("phase_start", "Tactics", "Building", 2)
    answers.append(call("step_complete", "Tactics", 0))
    call("phase_start", "Timing", "Tactics", 1)
    answers.append(call("step_complete", "Timing", 0))
    call("phase_finish", "Timing")
    call("phase_finish", "Tactics")
    if interrupt is not None:
        time.sleep(interrupt)
        _thread.interrupt_main()
        end = time.monotonic() + 20
        while call("step_complete", "Building", 1) and time.monotonic() < end:
            time.sleep(0.01)
        answers.append(call("step_complete", "Building", 1))
    call("phase_finish", "Building")
    return answers


def options_of(given: dict[str, Any]) -> BuildOptions:
    """Options that came as JSON."""
    changed: dict[str, Any] = {}
    if "sm" in given:
        changed["sm"] = tuple((major, minor) for major, minor in given["sm"])
    if "batch" in given:
        changed["batch"] = BatchRange(*given["batch"])
    if given.get("timing_cache") not in (None, "none"):
        changed["timing_cache"] = Path(given["timing_cache"])
    return BuildOptions(**{"timing_cache": "none", **given, **changed})


def build(source: str, folder: str, options: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The journal of a whole build, and its result or its error."""
    seen = scene(settings)
    told: list[Any] = []
    said: dict[str, Any] = {"seen": seen, "told": told}
    try:
        result = builder.build_engine(
            Path(source), options=options_of(options), folder=Path(folder), progress=lambda step, done: told.append([step, done])
        )
        said |= {
            "name": result.path.name,
            "sidecar": json.loads(result.sidecar.read_text()),
            "whole": result.path.read_bytes() == plan_of(stand_ins.now().real.__version__),
            "reason": result.reason,
            "notes": list(result.notes),
            "seconds": sorted(result.seconds),
        }
    except YolactDeployError as error:
        said["error"] = [type(error).__name__, error.message, error.mend]
    except KeyboardInterrupt:
        said["error"] = ["KeyboardInterrupt", "", ""]
    said["journal"] = stand_ins.journal_as_json()
    said["files"] = sorted(path.name for path in Path(folder).iterdir())
    return said


class _Buffer(DeviceBuffer, PinnedArray):
    """Memory of the host that plays both kinds."""

    def __init__(self, size: int) -> None:
        self.array = np.zeros(size, np.uint8)
        self.pointer, self.size = self.array.ctypes.data, size

    def close(self) -> None:
        self.pointer = 0


class _Queue(Stream):
    """A stream whose work is done at once, unless it is being recorded."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def synchronize(self) -> None: ...

    def wait(self, event: Event) -> None: ...

    def close(self) -> None: ...


class _Recording(Graph):
    """What was queued while it was recorded, to be done at each launch."""

    def __init__(self) -> None:
        self.queued: list[Callable[[], None]] = []
        self.launches = 0

    def launch(self, stream: Stream) -> None:
        self.launches += 1
        for work in self.queued:
            work()

    def close(self) -> None: ...


class RecordingDriver(HostDriver):
    """The driver seam over the host's memory, which tells what was captured."""

    def __init__(self) -> None:
        super().__init__()
        self.info = DeviceInfo(0, GPU.name, GPU.compute_capability, GPU.memory)
        self.graphs: list[_Recording] = []
        self.recording: _Recording | None = None
        self.depth = 0

    def allocate(self, size: int) -> DeviceBuffer:
        return _Buffer(size)

    def allocate_pinned(self, size: int) -> PinnedArray:
        return _Buffer(size)

    def create_stream(self) -> Stream:
        return _Queue(77)

    def borrow_stream(self, foreign: object) -> Stream:
        assert isinstance(foreign, int)
        return _Queue(foreign)

    def copy_to_device(self, target: int, source: np.ndarray[Any, Any], stream: Stream) -> None:
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def copy_to_host(self, target: np.ndarray[Any, Any], source: int, stream: Stream) -> None:
        ctypes.memmove(target.ctypes.data, source, target.nbytes)

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        self.graphs.append(_Recording())
        self.recording = self.graphs[-1]
        work()
        self.recording = None
        return self.graphs[-1]

    def free_memory(self) -> int:
        return 512 << 20

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self.depth += 1
        yield
        self.depth -= 1


def run_engine(settings: dict[str, Any]) -> dict[str, Any]:
    """The journal of an engine that doubles pictures of three numbers, and what came out of it."""
    trt = stand_ins.now().real
    rows = settings.get("rows", -1)
    addresses: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {"x": (rows, 3)}
    driver = RecordingDriver()
    outside: list[str] = []

    def execute(handle: int) -> bool:
        if driver.depth == 0:
            outside.append("execute")
        count = shapes["x"][0] * 3
        source, target = ((ctypes.c_float * count).from_address(addresses[name]) for name in ("x", "y"))

        def double() -> None:
            target[:] = [2 * value for value in source]

        if driver.recording is None:
            double()
        else:
            driver.recording.queued.append(double)
        return not settings.get("execution fails")

    if settings.get("refused"):
        stand_ins.configure("Runtime", deserialize_cuda_engine=None)
    if settings.get("no lean runtime"):
        stand_ins.configure("Runtime", load_runtime=None)
    stand_ins.configure(
        "ICudaEngine",
        num_io_tensors=2,
        get_tensor_name=["y", "x"].__getitem__,
        get_tensor_shape=lambda name: (rows, 3),
        get_tensor_dtype=lambda name: trt.float32,
        get_tensor_format=lambda name: getattr(trt.TensorFormat, settings.get("format", "LINEAR")),
        get_tensor_location=lambda name: getattr(trt.TensorLocation, settings.get("location", "DEVICE")),
        get_tensor_mode=lambda name: trt.TensorIOMode.INPUT if name == "x" else trt.TensorIOMode.OUTPUT,
        get_tensor_profile_shape=lambda name, profile: [trt.Dims((size, 3)) for size in (1, 2, 4)],
    )
    stand_ins.configure(
        "IExecutionContext",
        set_tensor_address=lambda name, pointer: not addresses.update({name: pointer}),
        set_input_shape=lambda name, shape: not shapes.update({name: tuple(shape)}),
        execute_async_v3=execute,
    )
    tensorrt = versions.load_tensorrt("tensorrt")
    said: dict[str, Any] = {}
    try:
        engine = Engine(tensorrt, driver, plan_of(tensorrt.version), "doubling.engine", lean_runtime=settings.get("lean runtime"))
        said |= {"batch": str(engine.batch), "tensors": [[one.name, one.dtype, list(one.shape)] for one in engine.tensors]}
        with Context(engine, stream=settings.get("stream")) as context:
            sizes = settings.get("sizes", [1])
            said["outputs"] = [context.run({"x": np.arange(3 * size, dtype=np.float32).reshape(size, 3)})["y"].tolist() for size in sizes]
        engine.close()
    except YolactDeployError as error:
        said["error"] = [type(error).__name__, error.message, error.mend]
    said |= {"journal": stand_ins.journal_as_json(), "launches": [graph.launches for graph in driver.graphs], "outside": outside}
    return said
