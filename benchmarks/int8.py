"""What INT8 costs to make and what it saves, for networks of full size: memory, files, engines, speed in ONNX Runtime on a CPU.

For each variant with its golden weights: calibrated with photographs in a process of its own, whose peak memory is read; the network
of the graph for ONNX Runtime timed against the float32 one in turns; engines for compute capability 8.6 and 8.9 built by TensorRT-RTX
where it is installed. Run from the repository: ``python -m benchmarks.int8 --photographs FOLDER``
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks.end_to_end import golden_checkpoint
from benchmarks.postprocess import machine
from yolact_deploy.export import export_checkpoint

_CAPABILITIES = ((8, 6), (8, 9))


# In a process of its own, which loads no torch; what a parent is told of a child's memory begins with the parent's size.
_PROGRAM = """
import json, sys
from pathlib import Path
from yolact_deploy.calibration import CalibrationOptions, CalibrationPictures, Calibrator
model, photographs, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
made = Calibrator(model, model.parent / "calibration", CalibrationOptions())
made.run(CalibrationPictures.of_folder(photographs, count, 0), model.with_name(f"{model.stem}.int8.onnx"))
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak_bytes": 1024 * peak, "held_bytes": made.held_bytes, "pictures": count}))
"""


def calibrated(model: Path, photographs: Path, count: int) -> dict[str, Any]:
    """Calibrate, without measuring accuracy: seconds and peak memory."""
    start = time.perf_counter()
    command = [sys.executable, "-c", _PROGRAM, str(model), str(photographs), str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": round(time.perf_counter() - start, 1)}


def session(path: Path, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """On the CPU; the optimized graph is saved where asked for."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def timed(paths: dict[str, Path], size: int, repeats: int) -> dict[str, Any]:
    """Medians of the network alone, taken in turns after two runs of each to warm up."""
    image = np.random.default_rng(0).normal(0, 1, (1, 3, size, size)).astype(np.float32)
    sessions = {name: session(path) for name, path in paths.items()}
    spent: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(repeats + 2):
        for name, one in sessions.items():
            start = time.perf_counter()
            one.run(None, {"images": image})
            if turn >= 2:
                spent[name].append(1000 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in spent.items()}
    ratios = sorted(slow / fast for slow, fast in zip(spent["float32"], spent["int8"], strict=True))
    return {
        "milliseconds": {name: round(value, 1) for name, value in medians.items()},
        "ratio": round(medians["float32"] / medians["int8"], 2),
        "ratio_of_turns": [round(ratios[0], 2), round(ratios[-1], 2)],
        "repeats": repeats,
    }


def engines(model: Path, quantized: Path, folder: Path) -> dict[str, Any]:
    """Bytes and seconds of the engines of each precision."""
    from yolact_deploy.engines.builder import build_engine
    from yolact_deploy.engines.options import BuildOptions

    found: dict[str, Any] = {}
    for precision, source in (("graph", model), ("fp16", model), ("int8", quantized)):
        options = BuildOptions(precision=precision, backend="tensorrt-rtx", sm=_CAPABILITIES)
        result = build_engine(source, folder / f"{precision}.engine", options, force=True)
        found[result.target.precision] = {"bytes": result.target.size, "seconds": round(result.seconds["engine"], 1)}
    found["int8_of_fp32"] = round(found["int8"]["bytes"] / found["fp32"]["bytes"], 3)
    return found


def measured(name: str, photographs: Path, count: int, repeats: int, folder: Path) -> dict[str, Any]:
    """All of one variant."""
    model = export_checkpoint(golden_checkpoint(folder, name), folder / f"{name}.onnx").path
    quantized, fast = (folder / f"{name}.int8{suffix}.onnx" for suffix in ("", ".ort"))
    row: dict[str, Any] = {"variant": name, "calibration": calibrated(model, photographs, count)}
    optimized = folder / "optimized.onnx"
    session(fast, optimized)
    operators = [node.op_type for node in onnx.load(optimized, load_external_data=False).graph.node]
    row["convolutions"] = {"quantized": operators.count("QLinearConv"), "float": operators.count("Conv") + operators.count("FusedConv")}
    size = int(onnx.load(model).graph.input[0].type.tensor_type.shape.dim[2].dim_value)
    row["network"] = timed({"float32": model, "int8": fast}, size, repeats)
    row["bytes"] = {path.name: path.stat().st_size for path in (model, quantized, fast)}
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        row["engines"] = engines(model, quantized, folder)
    return row


def main() -> None:
    """Measure each variant."""
    parser = argparse.ArgumentParser(description="Measure INT8 calibration of full-size networks.")
    parser.add_argument("--photographs", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--variants", default="yolact_resnet50,yolact_base")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results with the machine's description")
    options = parser.parse_args()
    rows = []
    for name in options.variants.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(name, options.photographs, options.count, options.repeats, Path(folder)))
        sys.stdout.write(json.dumps(rows[-1], indent=1) + "\n")
    if options.json:
        about = {**machine(), "onnxruntime": onnxruntime.__version__, "cores": len(os.sched_getaffinity(0))}
        options.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
