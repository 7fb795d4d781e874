"""Functions that `test_stand_ins.py` runs in child processes; there is no TensorRT in the tests' own process."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tests.engines.bindings import stand_ins
from tests.engines.bindings.real_classes import is_method, lookup
from tests.engines.bindings.signatures import parse
from tests.engines.bindings.type_checks import is_enum

Attempt = Callable[[], Any]


def outcome(attempt: Attempt) -> str:
    """The exception that an attempt ends in, as "TypeError: …"; "fine" where it ends in none."""
    try:
        attempt()
    except Exception as error:  # noqa: BLE001 - the tests say which one it must be
        return f"{type(error).__name__}: {error}"
    return "fine"


def logger_of(trt: ModuleType) -> Any:
    class Messages(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            self.lines.append(msg)

    return Messages()


def monitor_of(trt: ModuleType, result: Any = True) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.seen.append([phase_name, parent_phase, num_steps])

        def step_complete(self, phase_name: str, step: int) -> Any:
            self.seen.append([phase_name, step])
            return result

        def phase_finish(self, phase_name: str) -> None:
            self.seen.append([phase_name])

    return Monitor()


def version() -> list[str]:
    import tensorrt as trt

    libraries = outcome(lambda: importlib.import_module("tensorrt_libs"))
    return [trt.__version__, stand_ins.now().real.__version__, stand_ins.now().real.__file__, libraries]


def unknown_names() -> dict[str, str]:
    import tensorrt as trt

    config = stand_ins.stand_in(trt.IBuilderConfig)
    return {
        "read": outcome(lambda: config.workspace),
        "assign": outcome(lambda: setattr(config, "workspace", 1)),
        "delete": outcome(lambda: delattr(config, "flags")),
        "module": outcome(lambda: trt.Bilder),
        "constructor": outcome(lambda: trt.Builder.create_netwrk),
        "configure": outcome(lambda: stand_ins.configure("IBuilderConfig", workspace=1)),
        "configure class": outcome(lambda: stand_ins.configure("IBilderConfig", flags=1)),
        "values": outcome(lambda: stand_ins.stand_in("IBuilderConfig", workspace=1)),
        "what all objects have": outcome(lambda: (repr(config), hash(config), config == config, isinstance(config, trt.IBuilderConfig))),
    }


def attempts(trt: ModuleType, builder: Any) -> dict[str, Attempt]:
    """Calls and assignments that name what they do; those that begin with "wrong" are not to be taken, whatever makes the objects."""
    import numpy as np

    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    cache, other = config.create_timing_cache(b""), config.create_timing_cache(b"")  # a real cache waits for itself if combined with itself
    pool, flag = trt.MemoryPoolType.WORKSPACE, trt.BuilderFlag.TF32
    return {
        "pool": lambda: config.set_memory_pool_limit(pool, 1 << 20),
        "pool by keywords": lambda: config.set_memory_pool_limit(pool=pool, pool_size=1 << 20),
        "pool by both": lambda: config.set_memory_pool_limit(pool, pool_size=np.int64(1 << 20)),
        "wrong: too few": lambda: config.set_memory_pool_limit(pool),
        "wrong: too many": lambda: config.set_memory_pool_limit(pool, 1, 2),
        "wrong keyword": lambda: config.set_memory_pool_limit(pool, size=1),
        "wrong: one keyword more": lambda: config.set_memory_pool_limit(pool, 1, size=1),
        "wrong: twice": lambda: config.set_memory_pool_limit(pool, 1, pool=pool),
        "wrong: float": lambda: config.set_memory_pool_limit(pool, 1.5),
        "wrong: text as number": lambda: config.set_memory_pool_limit(pool, "1"),
        "wrong: number as enumeration": lambda: config.set_memory_pool_limit(0, 1),
        "wrong enumeration": lambda: config.set_flag(pool),
        "wrong: None as enumeration": lambda: config.set_flag(None),
        "flag": lambda: config.set_flag(flag),
        "network": lambda: builder.create_network(1),
        "network by keyword": lambda: builder.create_network(flags=1),
        "network by default": lambda: builder.create_network(),
        "length of network": lambda: len(builder.create_network()),
        "wrong: made-up keyword": lambda: builder.create_network().__getitem__(arg0=0),
        "wrong: length of config": lambda: len(config),
        "wrong: network of None": lambda: builder.create_network(None),
        "shapes": lambda: profile.set_shape("a", (1, 3, 8, 8), [1, 3, 8, 8], trt.Dims([1, 3, 8, 8])),
        "shapes by keywords": lambda: profile.set_shape(input="a", min=(1,), opt=(1,), max=(1,)),
        "wrong: shapes of text": lambda: profile.set_shape("a", "1", "1", "1"),
        "wrong: shapes of floats": lambda: profile.set_shape("a", (1.5,), (1.5,), (1.5,)),
        "wrong: nine dimensions": lambda: profile.set_shape("a", (1,) * 9, (1,) * 9, (1,) * 9),
        "wrong: number as name": lambda: profile.set_shape(1, (1,), (1,), (1,)),
        "cache": lambda: config.create_timing_cache(bytearray(b"")),
        "wrong: text as cache": lambda: config.create_timing_cache("text"),
        "set cache": lambda: config.set_timing_cache(cache, False),
        "wrong: None as cache": lambda: config.set_timing_cache(None, False),
        "wrong: bytes as cache": lambda: config.set_timing_cache(b"", False),
        "combine": lambda: cache.combine(input_cache=other, ignore_mismatch=True),
        "wrong: flag missing": lambda: cache.combine(other),
        "wrong: config as cache": lambda: cache.combine(config, True),
        "serialize": lambda: [bytes(cache.serialize()), memoryview(cache.serialize()), cache.serialize().nbytes],
        "wrong: length of memory": lambda: len(cache.serialize()),
        "wrong: part of memory": lambda: cache.serialize()[0],
        "wrong: argument to serialize": lambda: cache.serialize(1),
        "assign": lambda: setattr(config, "avg_timing_iterations", 2),
        "assign enumeration": lambda: setattr(config, "profiling_verbosity", trt.ProfilingVerbosity.DETAILED),
        "wrong: assign text": lambda: setattr(config, "avg_timing_iterations", "two"),
        "wrong: assign number for enumeration": lambda: setattr(config, "profiling_verbosity", 2),
        "wrong: assign read-only": lambda: setattr(config, "num_optimization_profiles", 2),
        "wrong: assign method": lambda: setattr(config, "set_flag", None),
        "read": lambda: [config.num_optimization_profiles, config.avg_timing_iterations, bool(profile)],
        "wrong: call property": lambda: config.num_optimization_profiles(),
    }


def outcomes() -> dict[str, str]:
    import tensorrt as trt

    return {name: outcome(attempt) for name, attempt in attempts(trt, trt.Builder(logger_of(trt))).items()}


def outcomes_of_rtx() -> dict[str, list[str]]:
    """What real objects of TensorRT-RTX, which can be made without a GPU, and stand-ins say to the same attempts."""
    import tensorrt_rtx as trt

    real = stand_ins.now().real
    logger = logger_of(real)
    standing, true = attempts(trt, trt.Builder(logger)), attempts(real, real.Builder(logger))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TensorRT-RTX has no use for timing caches any more
        return {name: [outcome(attempt), outcome(true[name])] for name, attempt in standing.items()}


def stricter() -> list[str]:
    import tensorrt as trt

    builder = trt.Builder(logger_of(trt))
    flag = next(iter(trt.NetworkDefinitionCreationFlag.__members__.values()))
    config = builder.create_builder_config()
    return [
        outcome(lambda: builder.create_network(flag)),
        outcome(lambda: builder.create_network(True)),
        outcome(lambda: config.create_timing_cache(b"").combine(config.create_timing_cache(b""), 1)),
    ]


def present(names: list[str]) -> dict[str, bool]:
    """Which of the dotted names the real module has, as the stand-in module tells."""
    import tensorrt as trt

    def has(name: str) -> bool:
        owner, _, attribute = name.partition(".")
        if not hasattr(trt, owner):
            return False
        cls = getattr(trt, owner)
        if not attribute or is_enum(cls):
            return not attribute or hasattr(cls, attribute)
        of_stand_in, of_class = hasattr(stand_ins.stand_in(cls), attribute), hasattr(cls, attribute)
        assert of_stand_in == of_class
        return of_class

    return {name: has(name) for name in names}


def right_flow() -> list[Any]:
    import tensorrt as trt

    logger = logger_of(trt)
    builder = trt.Builder(logger)
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH if strong is None else strong))
    assert trt.OnnxParser(network, logger).parse(b"model")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    config.builder_optimization_level = 4
    stand_ins.configure("Builder", build_serialized_network=lambda network, config: b"an engine")
    stand_ins.configure("ICudaEngine", num_io_tensors=2, get_tensor_name=["image", "boxes"].__getitem__, get_tensor_shape=(1, 3, 8, 8))
    stand_ins.configure(trt.IExecutionContext, execute_async_v3=False)
    engine = trt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(network, config))
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    shape = engine.get_tensor_shape("image")
    assert type(shape) is trt.Dims
    context = engine.create_execution_context()
    assert builder.logger is logger
    assert isinstance(builder, trt.Builder)
    assert not isinstance(config, trt.Builder)
    noted = stand_ins.journal_as_json()
    results = [names, list(shape), config.builder_optimization_level, context.execute_async_v3(stream_handle=7)]
    return [*results, noted, len(stand_ins.journal("IExecutionContext.execute_async_v3"))]


def own_values() -> list[Any]:
    import tensorrt as trt

    def fails(*args: Any) -> None:
        raise RuntimeError("no memory")

    memory = stand_ins.stand_in("IHostMemory", buffer=b"abc")
    held = [bytes(memory).decode(), memoryview(memory).nbytes, memory.nbytes, bytes(stand_ins.stand_in(trt.IHostMemory)).decode()]
    stand_ins.configure("ICudaEngine", num_io_tensors=lambda: 5)
    one = stand_ins.stand_in(trt.ICudaEngine, num_io_tensors=3, get_tensor_name=lambda index: f"tensor {index}")
    other = stand_ins.stand_in(trt.ICudaEngine)
    tensor = stand_ins.stand_in("ITensor")
    tensor.shape = [2, 2]
    assert type(tensor.shape) is trt.Dims
    first, second = (
        stand_ins.stand_in("IBuilderConfig", avg_timing_iterations=6),
        stand_ins.stand_in("IBuilderConfig", avg_timing_iterations=6),
    )
    first.avg_timing_iterations = 9
    stand_ins.configure(trt.Builder, build_serialized_network=fails)
    builder = trt.Builder(logger=logger_of(trt))
    assert stand_ins.stand_in(trt.Builder).create_network().get_input(0) is not builder
    stand_ins.configure("ILayer", name="a layer")
    stand_ins.configure("Runtime", __init__=fails)
    stand_ins.configure(stand_ins.MODULE, init_libnvinfer_plugins=False)
    return [
        held,
        [one.num_io_tensors, other.num_io_tensors],
        [one.get_tensor_name(4), other.get_tensor_name(4)],
        list(tensor.shape),
        [first.avg_timing_iterations, second.avg_timing_iterations],
        outcome(lambda: builder.build_serialized_network(builder.create_network(), first)),
        outcome(lambda: trt.Runtime(logger_of(trt))),
        [stand_ins.stand_in("ICastLayer").name, trt.init_libnvinfer_plugins(None, "")],
        [outcome(lambda: trt.init_libnvinfer_plugins(None)), stand_ins.journal_as_json()[-1]],
    ]


def wrong_configurations() -> list[str]:
    import tensorrt as trt

    stand_ins.configure("ICudaEngine", num_io_tensors="two", get_tensor_shape="shape", get_tensor_name=lambda: "image")
    engine = stand_ins.stand_in(trt.ICudaEngine)
    return [
        outcome(lambda: engine.num_io_tensors),
        outcome(lambda: engine.get_tensor_shape("image")),
        outcome(lambda: engine.get_tensor_name(0)),
    ]


def subclasses(kind: str) -> str:
    """What becomes of loggers and monitors that TensorRT could not call."""
    import tensorrt as trt

    class Few(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any) -> None:
            pass

    class Misnamed(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def write(self, severity: Any, msg: str) -> None:
            pass

    if kind == "few":
        return outcome(lambda: trt.Builder(Few()))
    if kind == "misnamed":
        return outcome(lambda: trt.Runtime(Misnamed()))
    if kind == "own":
        return outcome(lambda: trt.Builder(trt.Logger(trt.Logger.ERROR)))
    return outcome(lambda: trt.Builder(object()))


def monitors(kind: str) -> Any:
    import tensorrt as trt

    class Unfinished(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

    config = stand_ins.stand_in("IBuilderConfig")
    if kind == "unfinished":
        return outcome(lambda: setattr(config, "progress_monitor", Unfinished()))
    monitor = monitor_of(trt, None if kind == "says nothing" else True)
    assert config.progress_monitor is None
    config.progress_monitor = monitor
    assert config.progress_monitor is monitor
    said = outcome(lambda: stand_ins.call_back(monitor, "IProgressMonitor", "step_complete", "Build", 1))
    stand_ins.call_back(monitor, trt.IProgressMonitor, "phase_start", "Build", None, 2)
    return [said, monitor.seen]


def unread() -> list[Any]:
    """Methods and properties of the real module whose docstring gives no signature, and types in signatures that are not understood."""
    state = stand_ins.now()
    missing: list[str] = []
    count = 0
    for cls in [cls for cls in vars(state.real).values() if isinstance(cls, type) and not is_enum(cls)]:
        for name in [name for name in vars(cls) if not name.startswith("_")]:
            found = lookup(cls, name)
            docs = [(found.__doc__, name)] if is_method(found) else []
            docs += [(part.__doc__, "") for part in (found.fget, found.fset) if part] if type(found) is property else []
            for doc, called in docs:
                signatures = parse(doc, called)
                count += len(signatures)
                missing += [] if signatures else [f"{cls.__name__}.{name}"]
                for signature in signatures:
                    for annotation in [signature.returns, *(parameter.annotation for parameter in signature.parameters)]:
                        state.types.problem(object(), annotation)
    return [count, missing, sorted(state.types.unknown)]


def warns() -> None:
    warnings.warn("a warning", UserWarning, stacklevel=1)
