"""GPU post-processing stage by stage: time by CUDA events, beside the bounds of what each stage moves and computes, and beside PyTorch.

Head outputs lie on the device; the end is compressed RLE in page-locked host memory. ``together`` is the whole as one CUDA graph. PyTorch
ends with boolean masks on the device, and its RLE on the host is not counted. Both take turns in one process; medians count::

    python -m benchmarks.cuda_postprocess --json benchmarks/results/cuda_postprocess.json

The head outputs are the same each time and stay in the GPU's cache, as they do behind an engine that has just written them. The ceilings
are measured on the same GPU first: copies within the device and to the host, and a chain of fused multiply-adds.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cuda_work import CASES, SETTINGS, Device, bound_us, case_of, count_work
from benchmarks.postprocess import Case, machine
from yolact_deploy.engines.cuda import open_driver
from yolact_deploy.engines.cuda.arrays import DeviceArray
from yolact_deploy.engines.cuda.compiler import cached_kernels, compile_kernels
from yolact_deploy.engines.cuda.driver import DeviceBuffer, Driver, Event, Module, Stream
from yolact_deploy.engines.cuda.heads import Heads
from yolact_deploy.engines.cuda.postprocessor import Postprocessor
from yolact_deploy.engines.cuda.workspace import HeadShapes
from yolact_deploy.errors import YolactDeployError
from yolact_deploy.postprocess import PostprocessSettings

__all__ = ["measure", "measured_device"]

PICTURES = ((640, 427), (1280, 960), (1920, 1080), (3840, 2160))
BATCHES, DETECTIONS = (1, 8, 32), (0, 10, 100)
_MULTIPLIES = 1 << 14  # of each thread
_MOST_STAGES = 16
_COPIES_AHEAD = 32  # of 128 MiB: more than a millisecond, in which the host queues everything
_RATE = """
struct Rate { float *target; };
extern "C" __global__ void multiply_add(const Rate rate) {
    float a = threadIdx.x, b = a + 1, c = a + 2, d = a + 3;
    for (int step = 0; step < %d / 4; ++step) {
        a = __fmaf_rn(a, 0.999f, 0.5f); b = __fmaf_rn(b, 0.999f, 0.5f); c = __fmaf_rn(c, 0.999f, 0.5f); d = __fmaf_rn(d, 0.999f, 0.5f);
    }
    rate.target[blockIdx.x * blockDim.x + threadIdx.x] = a + b + c + d;
}
"""


def elapsed(driver: Driver, stream: Stream, work: Callable[[], None]) -> float:
    """Microseconds on the GPU."""
    with driver.create_event(timing=True) as start, driver.create_event(timing=True) as end:
        start.record(stream)
        work()
        end.record(stream)
        end.synchronize()
        return 1000 * end.milliseconds_since(start)


def measured_device(driver: Driver, *, size: int = 1 << 29, repeats: int = 10) -> Device:
    """What this GPU's memory, its bus and its float32 units reach."""
    threads, blocks = 256, 4096

    def best(work: Callable[[], None]) -> float:
        return min(elapsed(driver, stream, work) for _ in range(repeats)) / 1e6

    with driver.create_stream() as stream, driver.allocate(2 * size) as buffer, driver.allocate_pinned(size // 4) as pinned:
        memory = 2 * size / best(lambda: driver.copy(buffer.pointer, buffer.pointer + size, size, stream))
        bus = pinned.array.nbytes / best(lambda: driver.copy_to_host(pinned.array, buffer.pointer, stream))
        with driver.load_module(compile_kernels(driver.info.compute_capability, {"all.cuh": _RATE % _MULTIPLIES})) as module:
            kernel, argument = module.kernel("multiply_add"), bytes(ctypes.c_uint64(buffer.pointer))
            seconds = best(lambda: driver.launch(kernel, (blocks, 1, 1), threads, argument, stream))
    return Device(driver.info.name, memory, bus, 2 * _MULTIPLIES * threads * blocks / seconds)


def limited(detections: int) -> PostprocessSettings:
    """The published settings with at most so many detections; 0 by a threshold that nothing passes."""
    return PostprocessSettings(max_detections=detections) if detections else PostprocessSettings(score_threshold=1.0)


@contextlib.contextmanager
def uploaded(driver: Driver, case: Case, batch: int, stream: Stream) -> Iterator[Heads]:
    """The case `batch` times on the device."""
    with contextlib.ExitStack() as release:
        arrays = []
        for part in (case.boxes, case.scores, case.coefficients, case.prototypes):
            whole = np.ascontiguousarray(np.broadcast_to(part, (batch, *part.shape)))
            buffer = release.enter_context(driver.allocate(whole.nbytes))
            driver.copy_to_device(buffer.pointer, whole, stream)
            arrays.append(DeviceArray(buffer.pointer, whole.shape, whole.dtype, driver.info.index, buffer))
        stream.synchronize()
        yield Heads(*arrays)


def measure(
    driver: Driver,
    module: Module,
    case: Case,
    picture: tuple[int, int],
    *,
    batch: int,
    detections: int,
    repeats: int,
    baseline: Callable[[], float] | None = None,
    ahead_bytes: int = 1 << 28,
) -> dict[str, Any]:
    """Medians in µs: ``stages``, each kernel on its own, ``together`` as one graph, and ``pytorch`` where `baseline` measures that."""
    settings = limited(detections)
    shapes = HeadShapes(*case.scores.shape, *case.prototypes.shape)
    with (
        driver.create_stream() as stream,
        uploaded(driver, case, batch, stream) as heads,
        Postprocessor(shapes, batch=batch, settings=settings, driver=driver, module=module) as post,
        driver.allocate(ahead_bytes) as ahead,
    ):
        post.set_pictures([picture] * batch, batch)
        post.enqueue(heads, stream)
        stream.synchronize()
        found = [int(count) for count in post.workspace.result("counts")[:batch]]
        with driver.capture(stream, lambda: post.enqueue(heads, stream)) as graph:
            for _ in range(3):
                graph.launch(stream)
            rounds = []
            for _ in range(repeats):
                together = elapsed(driver, stream, lambda: graph.launch(stream))
                rounds.append((_stages(driver, post, heads, stream, ahead), together, baseline() if baseline else 0.0))
        text = int(post.workspace.result("rle_lengths")[0][: found[0]].sum())
        median = {stage: statistics.median(stages[stage] for stages, _, _ in rounds) for stage in rounds[0][0]}
        row: dict[str, Any] = {
            "width": picture[0],
            "height": picture[1],
            "batch": batch,
            "detections": found[0],
            "rle_bytes": text,
            "device_bytes": post.device_bytes,
            "stages_us": median,
            "together_us": statistics.median(together for _, together, _ in rounds),
            "together_p95_us": float(np.percentile([together for _, together, _ in rounds], 95)),
        }
        if baseline:
            row["pytorch_us"] = statistics.median(time for _, _, time in rounds)
        return row


def _stages(driver: Driver, post: Postprocessor, heads: Heads, stream: Stream, ahead: DeviceBuffer) -> dict[str, float]:
    """Each stage's µs, between events that stand around it in the stream.

    The GPU is kept busy with copies in `ahead` until all is queued: else the time between two events would be the host's.
    """
    with contextlib.ExitStack() as release:
        free: list[Event] = [release.enter_context(driver.create_event(timing=True)) for _ in range(_MOST_STAGES)]
        marks: list[tuple[str, Event]] = []

        def mark(stage: str) -> None:
            marks.append((stage, free.pop()))
            marks[-1][1].record(stream)

        for _ in range(_COPIES_AHEAD):
            driver.copy(ahead.pointer, ahead.pointer + ahead.size // 2, ahead.size // 2, stream)
        mark("")
        post.enqueue(heads, stream, mark=mark)
        marks[-1][1].synchronize()
        return {stage: 1000 * mark.milliseconds_since(before) for (_, before), (stage, mark) in pairwise(marks)}


def torch_baseline(case: Case, picture: tuple[int, int], batch: int, detections: int) -> Callable[[], float] | None:
    """Times the formulas in PyTorch on this GPU, picture by picture; None where PyTorch or its GPU is missing."""
    if find_spec("torch") is None:
        return None
    import torch

    from benchmarks.torch_formulas import post_process

    if not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = False
    settings = limited(detections)
    limits: dict[str, float | int] = {
        name: getattr(settings, name) for name in ("score_threshold", "iou_threshold", "top_k", "max_detections")
    }
    parts = [torch.from_numpy(part).cuda() for part in (case.boxes, case.scores, case.coefficients, case.prototypes)]

    def call() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(batch):
            post_process(*parts, *picture, limits)
        end.record()
        end.synchronize()
        return 1000 * float(start.elapsed_time(end))

    with torch.inference_mode():
        call()
    return torch.inference_mode()(call)


def combinations(*, quick: bool) -> Iterator[tuple[str, tuple[int, int], int, int]]:
    """Case, picture, batch and detections of each row."""
    for name, picture, batch, detections in product(CASES, PICTURES, BATCHES, DETECTIONS):
        most = detections == DETECTIONS[-1]
        # Everything for one picture; larger batches with most detections at one size.
        if (batch == 1 and (most or not quick)) or (most and picture == PICTURES[1] and not quick):
            yield name, picture, batch, detections


def table(rows: list[dict[str, Any]], device: Device) -> str:
    """Markdown: one line a row, then a roofline line a stage for one picture with most detections."""
    lines = [
        "| heads | picture | batch | detections | µs together | p95 | PyTorch µs | times |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        slower = f"{row['pytorch_us']:.0f} | {row['pytorch_us'] / row['together_us']:.1f}" if "pytorch_us" in row else "- | -"
        size, own = f"{row['width']}x{row['height']}", f"{row['together_us']:.1f} | {row['together_p95_us']:.1f}"
        lines.append(f"| {row['case']} | {size} | {row['batch']} | {row['detections']} | {own} | {slower} |")
    lines += ["", "| heads | picture | stage | µs | bound µs | of the bound |", "| --- | --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        if row["batch"] > 1 or row["detections"] < DETECTIONS[-1]:
            continue
        bounds = {work.stage: bound_us(work, device) for work in count_work(case_of(row["case"]), row["width"], row["height"], SETTINGS)}
        for stage, spent in row["stages_us"].items():
            told = f"{bounds[stage]:.2f} | {100 * bounds[stage] / spent:.0f} %" if stage in bounds and spent else "- | -"
            lines.append(f"| {row['case']} | {row['width']}x{row['height']} | {stage} | {spent:.1f} | {told} |")
    return "\n".join(lines)


def main() -> None:
    """Measure on the GPU here."""
    parser = argparse.ArgumentParser(description="Time GPU post-processing.")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="one picture at a time, most detections")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results with the machine's description")
    options = parser.parse_args()
    try:
        driver = open_driver()
    except YolactDeployError as error:
        sys.exit(f"{error}\nWithout a GPU, python -m benchmarks.cuda_work counts the work and its bounds.")
    device = measured_device(driver)
    rows = []
    with driver.load_module(cached_kernels(driver.info.compute_capability)) as module:
        for name, picture, batch, detections in combinations(quick=options.quick):
            case = case_of(name)
            baseline = torch_baseline(case, picture, batch, detections)
            row = measure(driver, module, case, picture, batch=batch, detections=detections, repeats=options.repeats, baseline=baseline)
            rows.append({"case": name, **row})
    sys.stdout.write(table(rows, device) + "\n")
    if options.json:
        document = {"machine": machine(), "gpu": asdict(driver.info), "ceilings": asdict(device), "repeats": options.repeats, "rows": rows}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
