"""What building engines costs: seconds, size and peak memory of each published variant in FP32 and FP16, with TensorRT-RTX on a CPU.

Every build is the whole command in a process of its own; peak memory is that process's largest resident set, so it holds the graph,
the check of FP16 in ONNX Runtime and the build. Weights are drawn: the kernels and sizes do not depend on them. Run from the
repository's root::

    OMP_NUM_THREADS=2 python -m benchmarks.engine_builds --json benchmarks/results/engine_builds.json

With a GPU and TensorRT, ``--backend tensorrt`` measures that instead; ``--markdown FILE`` turns a result into the table of docs/engines.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yolact_deploy
from benchmarks.postprocess import machine
from yolact_deploy.engines.gpu import gpus
from yolact_deploy.engines.versions import load_tensorrt
from yolact_deploy.variants import VARIANTS

ROUNDS = 3

# The command, then its own peak resident set: what a parent is told of a child begins with the parent's size.
_COMMAND = """
import sys
from yolact_deploy.cli import main
try:
    main()
finally:
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(peak, file=sys.stderr)
"""


def export(name: str, folder: Path) -> Path:
    """The ONNX file of a variant with drawn weights, made in a process of its own, so that torch does not stay in this one."""
    target = folder / f"{name}.onnx"
    program = (
        "import sys\n"
        "import torch\n"
        "from pathlib import Path\n"
        "from yolact_deploy.classes import numbered_classes\n"
        "from yolact_deploy.export import export_checkpoint\n"
        "from yolact_deploy.model import Checkpoint, Yolact\n"
        "from yolact_deploy.variants import get_variant\n"
        "variant = get_variant(sys.argv[1])\n"
        "torch.manual_seed(0)\n"
        "network = Yolact(variant).eval()\n"
        "checkpoint = Checkpoint(network, variant, numbered_classes(variant.num_classes - 1), Path(sys.argv[1] + '.pth'), '0' * 64)\n"
        "export_checkpoint(checkpoint, Path(sys.argv[2]))\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, name, str(target)], check=True)
    return target


def build(model: Path, arguments: list[str]) -> dict[str, Any]:
    """One command: what its sidecar says, the seconds of the whole process, its peak resident set in MB."""
    output = model.with_suffix(".engine")
    command = ["build-engine", str(model), "-o", str(output), "--json", "--force", *arguments]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _COMMAND, *command], capture_output=True, text=True, check=False)
    spent = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"yolact-deploy {' '.join(command)} failed: {done.stderr}")
    target = json.loads(done.stdout)["manifest"]["target"]
    peak = int(done.stderr.split()[-1]) * 1024  # the kernel's kB are 1024 bytes
    return {"build_s": target["build"]["seconds"], "command_s": spent, "peak_mb": peak / 1e6, "size": target["size"]}


def measure(names: list[str], backend: str, sm: str) -> list[dict[str, Any]]:
    """Medians of each variant and precision; the precisions of a variant take turns."""
    rows = []
    arguments = ["--backend", backend, *(["--sm", sm] if backend == "tensorrt-rtx" else [])]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            model = export(name, Path(folder))
            runs: dict[str, list[dict[str, Any]]] = {"fp32": [], "fp16": []}
            for _ in range(ROUNDS):
                for precision, found in runs.items():
                    found.append(build(model, [*arguments, *(["--fp16"] if precision == "fp16" else [])]))
            for precision, found in runs.items():
                row = {key: statistics.median(run[key] for run in found) for key in found[0]}
                rows.append({"variant": name, "precision": precision, "onnx_size": model.stat().st_size, **row})
                sys.stdout.write(f"{row_text(rows[-1])}\n")
                sys.stdout.flush()
            for path in Path(folder).iterdir():
                path.unlink()
    return rows


def row_text(row: dict[str, Any]) -> str:
    """A line of the table."""
    cells = (
        row["variant"],
        row["precision"].upper(),
        f"{row['build_s']:.1f} s",
        f"{row['command_s']:.1f} s",
        f"{row['size'] / 1e6:.1f} MB",
        f"{row['peak_mb']:,.0f} MB",
    )
    return f"| {' | '.join(cells)} |"


def table(result: dict[str, Any]) -> str:
    """The whole table in Markdown."""
    head = "| variant | precision | build | whole command | engine | peak memory |\n| --- | --- | --- | --- | --- | --- |"
    return "\n".join([head, *map(row_text, result["rows"])])


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--backend", choices=["tensorrt", "tensorrt-rtx"], default="tensorrt-rtx")
    parser.add_argument("--sm", default="89")
    parser.add_argument("--variants", nargs="*", default=[name for name in VARIANTS if name != "yolact_nano"])
    given = parser.parse_args()
    if given.markdown:
        sys.stdout.write(f"{table(json.loads(given.markdown.read_text()))}\n")
        return
    rows = measure(given.variants, given.backend, given.sm)
    result = {
        "command": " ".join(["python -m benchmarks.engine_builds", *sys.argv[1:]]),
        "machine": machine(),
        "gpu": [str(gpu) for gpu in gpus()],
        "versions": {"yolact_deploy": yolact_deploy.__version__, given.backend: load_tensorrt(given.backend).version},
        "rounds": ROUNDS,
        "target": f"compute capability {given.sm}" if given.backend == "tensorrt-rtx" else "the GPU",
        "rows": rows,
    }
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
