"""One plan: parse, configure, build in a thread that can be stopped, and write."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from yolact_deploy.errors import EngineBuildError, OutputError
from yolact_deploy.export.passes import graph_precision

from .batches import BatchRange
from .gpu import Gpu
from .inspector import built_precision
from .monitoring import BuildProgress, Messages, make_logger, make_monitor
from .options import BuildOptions
from .source import Progress
from .timing_cache import TimingCache, default_folder, file_name
from .versions import TensorRT
from .weak_typing import node_precisions, pin_layers

__all__ = ["PlanBuilder"]


class PlanBuilder:
    """The plans of one command, built one after the other by the same TensorRT."""

    def __init__(
        self, tensorrt: TensorRT, options: BuildOptions, gpu: Gpu | None, progress: Progress, log: Callable[[str], None] | None
    ) -> None:
        self.tensorrt, self.options, self.gpu, self.progress = tensorrt, options, gpu, progress
        self.messages = Messages(log)
        self.logger = make_logger(tensorrt, self.messages)
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.facts: dict[str, Any] = {}
        self.precision: dict[str, str] = {}
        self.cache = self._timing_cache()

    def build(
        self,
        model: onnx.ModelProto,
        input_name: str,
        batch: BatchRange,
        part: Path,
        *,
        title: str = "engine",
        typed: onnx.ModelProto | None = None,
    ) -> float:
        """Parse `model`, build its plan into the file `part`, and tell how many seconds the build took.

        `typed` says what layers compute in, for a version that the graph does not type and where `model` does not say it.

        All of TensorRT runs in a thread of its own, so that Ctrl-C is heard here and nowhere in its callbacks; between the steps, and in
        the build where the version has a progress monitor, the thread hears that it is to stop.
        """
        heard = BuildProgress(lambda phase, done: self.progress(f"building the {title}: {phase}", done))
        self.progress(f"building the {title}", 0.0)
        plan, spent = _in_a_thread(lambda: self._plan(model, input_name, batch, heard, typed or model, first=title == "engine"), heard)
        with open(part, "wb") as handle:
            handle.write(plan)
        self.seconds[title] = spent
        return spent

    def _plan(
        self, model: onnx.ModelProto, input_name: str, batch: BatchRange, heard: BuildProgress, typed: onnx.ModelProto, *, first: bool
    ) -> tuple[Any, float]:
        trt = self.tensorrt.module
        try:
            builder = trt.Builder(self.logger)
        except TypeError:  # what the binding makes of a null pointer
            raise EngineBuildError(f"{self.tensorrt} cannot start: {self._reason()}", "yolact-deploy doctor tells what is here.") from None
        network = builder.create_network(self.tensorrt.network_flags())
        parser = trt.OnnxParser(network, self.logger)
        heard.check()
        if not parser.parse(model.SerializeToString()):
            raise self._parse_error(parser)
        heard.check()
        config = self._configured(builder, network, input_name, batch, typed)
        monitor = make_monitor(self.tensorrt, heard)
        if monitor is not None:
            config.progress_monitor = monitor
        if self.tensorrt.weakly_typed:
            self.facts.setdefault("pinned_layers", pin_layers(trt, network, node_precisions(typed)))  # the engine's come first
        heard.check()
        self.messages.errors.clear()  # a timing cache that did not fit is told elsewhere
        start = time.perf_counter()
        plan = builder.build_serialized_network(network, config)
        spent = time.perf_counter() - start
        if plan is None:
            heard.check()
            raise self._build_error()
        self._keep_timings(config)
        if first and self.tensorrt.weakly_typed:
            self.precision = built_precision(self.tensorrt, plan, self.logger)
        return plan, spent

    def _configured(self, builder: Any, network: Any, input_name: str, batch: BatchRange, model: onnx.ModelProto) -> Any:
        trt, options = self.tensorrt.module, self.options
        config = builder.create_builder_config()
        half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
        self.tensorrt.set_typing(config, float16=half, int8=graph_precision(model) == "int8")
        self.tensorrt.set_capabilities(config, options.sm)
        self.tensorrt.set_hardware_level(config, options.hardware_level)
        if options.version_compatible:
            self.tensorrt.set_version_compatible(config)
        if not options.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.detailed or self.tensorrt.weakly_typed:  # TensorRT 8 has to tell what it made of the pins
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        self._reuse_timings(config)
        self._add_profile(builder, network, config, input_name, batch)
        return config

    def _add_profile(self, builder: Any, network: Any, config: Any, input_name: str, batch: BatchRange) -> None:
        shape = next(tuple(tensor.shape) for tensor in map(network.get_input, range(network.num_inputs)) if tensor.name == input_name)
        if shape[0] >= 0:
            return
        profile = builder.create_optimization_profile()
        profile.set_shape(input_name, *((size, *shape[1:]) for size in (batch.minimum, batch.optimum, batch.maximum)))
        if config.add_optimization_profile(profile) < 0:
            raise EngineBuildError(f"{self.tensorrt} refuses the batches {batch}: {self._reason()}", "Change --batch.")

    def _timing_cache(self) -> TimingCache | None:
        wanted = self.options.timing_cache
        if not self.tensorrt.keeps_timings:
            if isinstance(wanted, Path):
                self.notes.append(f"{self.tensorrt} measures nothing while it builds, so the timing cache {wanted} is not used.")
            return None
        if wanted == "none" or self.gpu is None:
            return None
        return TimingCache(wanted or default_folder() / file_name(self.tensorrt, self.gpu))

    def _reuse_timings(self, config: Any) -> None:
        """A file that was named has to be reachable; without the one that nobody asked for the build only takes longer."""
        if self.cache is None:
            return
        try:
            self.cache.load(config)
        except OutputError as error:
            if self.options.timing_cache is not None:
                raise
            self.notes.append(error.message)
            self.cache = None
            return
        if self.cache.complaint:
            self.notes.append(self.cache.complaint)

    def _keep_timings(self, config: Any) -> None:
        if self.cache is None:
            return
        try:
            self.cache.store(config)
        except OutputError as error:  # the engine is built: it is worth more than its timings
            self.notes.append(error.message)

    def _reason(self) -> str:
        return f"{self.messages.errors[-1].strip().rstrip('.')[:300]}." if self.messages.errors else "it gives no reason."

    def _parse_error(self, parser: Any) -> EngineBuildError:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        told = "; ".join(dict.fromkeys(map(self.tensorrt.parser_error, errors))) or "it gives no reason"
        return EngineBuildError(f"{self.tensorrt} cannot read the graph: {told}.", "Export with another --opset, or --postprocess none.")

    def _build_error(self) -> EngineBuildError:
        reason = self._reason()
        text = " ".join(self.messages.errors).lower()
        if "memory" in text and any(word in text for word in ("out of", "outofmemory", "insufficient", "allocate")):
            mend = "Use a smaller --batch or --workspace, or free memory of the GPU."
        elif self.tensorrt.is_rtx and (7, 5) in self.options.sm:
            mend = "Compute capability 7.5 lacks what this graph needs: use --fp16 or --postprocess none, or TensorRT for 7.5."
        else:
            mend = "Pass --verbose to see all that TensorRT says."
        return EngineBuildError(f"{self.tensorrt} could not build the engine: {reason}", mend)


def _in_a_thread(work: Callable[[], tuple[Any, float]], heard: BuildProgress) -> tuple[Any, float]:
    """What `work` returns or raises; an exception that arrives here meanwhile, Ctrl-C as a rule, stops it first."""
    results: list[tuple[Any, float]] = []
    failures: list[BaseException] = []
    ended = threading.Event()  # Thread.join forgets a thread that still runs when Ctrl-C interrupts it (Python 3.10 to 3.12)

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread
            failures.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="yolact-deploy build", daemon=True)
    try:
        thread.start()
        while not ended.wait(0.1):
            pass
    except BaseException:
        heard.cancelled.set()
        ended.wait()
        raise
    if failures:
        raise failures[0]
    return results[0]
