"""Memory and time of a whole evaluation by the number of pictures: what each picture costs on disk and in memory.

The demo model's ONNX file over synthetic pictures at each of the given counts, each in a process of its own, whose resident memory is
read from the operating system (Linux) after each stage. Run from the repository's root::

    python -m benchmarks.evaluation_memory --counts 500 2000 --json benchmarks/results/evaluation_memory.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.postprocess import machine
from yolact_deploy.cli.common import demo_weights
from yolact_deploy.data import read_dataset, write_shapes
from yolact_deploy.evaluation.harness import EvaluationOptions, evaluate
from yolact_deploy.evaluation.jobs import ModelSource

SEED = 7


def resident(kind: str) -> float:
    """MB of this process, ``VmRSS`` now or ``VmHWM`` at its highest."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1000
    raise SystemExit("This benchmark reads /proc/self/status, which is not here.")


def one(model: Path, annotations: Path, folder: Path) -> dict[str, Any]:
    """Evaluate in this process; resident MB at the first and last picture, and the peak of all."""
    while_running: list[float] = []

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("running") and done:
            while_running.append(resident("VmRSS"))

    dataset = read_dataset(annotations)
    loaded = resident("VmRSS")
    clock = time.perf_counter()
    found = evaluate(dataset, [ModelSource(model, threads=1)], EvaluationOptions(folder), progress=progress).artifacts[0]
    pictures = found.pictures
    return {
        "pictures": pictures,
        "detections": found.detections,
        "mask_ap": found.mask.ap,
        "bytes_per_picture_on_disk": found.bytes_per_picture,
        "resident_mb": {"data set read": loaded, "first pictures": while_running[0], "last pictures": while_running[-1]},
        "bytes_per_picture_while_running": 1e6 * (while_running[-1] - while_running[0]) / pictures,
        "peak_mb": resident("VmHWM"),
        "seconds": time.perf_counter() - clock,
    }


def main() -> None:
    """Draw the pictures, export the model, start a process for each count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=Path, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        sys.stdout.write(json.dumps(one(*given.one)))
        return
    from yolact_deploy.export import export_checkpoint
    from yolact_deploy.model import load_checkpoint

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = export_checkpoint(load_checkpoint(demo_weights()), folder / "demo.onnx").path
        runs = []
        for count in given.counts:
            annotations = write_shapes(folder / f"shapes{count}", count, seed=SEED)
            command = [
                sys.executable,
                "-m",
                "benchmarks.evaluation_memory",
                "--one",
                str(model),
                str(annotations),
                str(folder / f"out{count}"),
            ]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            sys.stdout.write(json.dumps(runs[-1], indent=2) + "\n")
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
