"""NMS, mask assembly and RLE of one picture on the CPU, beside the formulas written out in torch with full-size masks.

Both start from decoded boxes, class probabilities, coefficients and prototypes and end with 100 compressed RLE strings; they take
turns in one process, and the median counts. Run from the repository's root::

    OMP_NUM_THREADS=2 python -m benchmarks.postprocess --json benchmarks/results/postprocess.json

Cases: `random` as an untrained net gives it (nearly every prior is a candidate, many masks are empty), `typical` and `large` from
the golden heads, `wide` with 300 candidates whose boxes cover 30 % of the picture on average. A peak is the growth of the
process's resident memory during one call (Linux only).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from tests.reference import detection, golden_heads, masks
from yolact_deploy.postprocess import decode_boxes, mask_rles, select, softmax

PICTURES = ((640, 427), (1280, 960))

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Case:
    """Boxes [P, 4], scores [P, 81], coefficients [P, 32] and prototypes [32, 138, 138] of one picture."""

    boxes: Floats
    scores: Floats
    coefficients: Floats
    prototypes: Floats


def golden_case(name: str) -> Case:
    """Decoded golden heads."""
    heads = golden_heads.golden_heads(name)
    return Case(decode_boxes(heads.loc, heads.priors), softmax(heads.logits), heads.coefficients, heads.prototypes)


def random_case() -> Case:
    """Scores without a favourite, boxes close to their priors, coefficients that leave many masks empty."""
    rng = np.random.default_rng(0)
    golden = golden_heads.golden_heads("typical")
    count = len(golden.priors)
    loc = rng.normal(0, 0.5, (count, 4)).astype(np.float32)
    scores = softmax(rng.normal(0, 2, (count, 81)).astype(np.float32))
    coefficients = np.tanh(rng.normal(-0.15, 0.4, (count, 32))).astype(np.float32)
    return Case(decode_boxes(loc, golden.priors), scores, coefficients, golden.prototypes)


def wide_case() -> Case:
    """The golden scores with boxes of 30 % of the picture each, on average."""
    rng = np.random.default_rng(1)
    base = golden_case("typical")
    sides = rng.uniform(0.35, 0.75, (len(base.boxes), 2))
    corners = rng.uniform(0, 1 - sides)
    return Case(np.concatenate([corners, corners + sides], axis=1).astype(np.float32), base.scores, base.coefficients, base.prototypes)


CASES: dict[str, Callable[[], Case]] = {
    "random": random_case,
    "typical": lambda: golden_case("typical"),
    "large": lambda: golden_case("large"),
    "wide": wide_case,
}


def package(case: Case, width: int, height: int) -> list[bytes]:
    """The package's way."""
    found = select(case.boxes, case.scores)
    return mask_rles(case.prototypes, case.coefficients[found.priors], found.boxes, width, height)


def formula(case: Case, width: int, height: int) -> list[bytes]:
    """The formulas' way, then pycocotools."""
    found = detection.fast_nms(torch.from_numpy(case.boxes), torch.from_numpy(case.scores))
    coefficients = torch.from_numpy(case.coefficients)[found.priors]
    bitmaps = masks.assemble(torch.from_numpy(case.prototypes), coefficients, found.boxes, width, height)
    pixels = np.asfortranarray(bitmaps.permute(1, 2, 0).numpy().view(np.uint8))
    return [rle["counts"] for rle in coco_mask.encode(pixels)]


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_growth(call: Callable[[], object]) -> int | None:
    """Bytes by which the resident memory's peak rises during a call; None where the system does not tell."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # else the allocator still holds what earlier calls freed
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")  # resets the peak to what is resident now
    except OSError:
        return None
    before = _resident_peak(status)
    call()
    return _resident_peak(status) - before


def _resident_peak(status: Path) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(name: str, case: Case, width: int, height: int, repeats: int) -> dict[str, Any]:
    """One row: median milliseconds and peaks of both ways, and what the case holds."""

    def ours() -> list[bytes]:
        return package(case, width, height)

    def literal() -> list[bytes]:
        return formula(case, width, height)

    counts = ours()
    equal = sum(one == other for one, other in zip(counts, literal(), strict=True))
    times = [(seconds(ours), seconds(literal)) for _ in range(repeats)]
    areas = coco_mask.area([{"size": [height, width], "counts": one} for one in counts])
    return {
        "case": name,
        "width": width,
        "height": height,
        "candidates": int((case.scores[:, 1:].max(axis=1) > 0.05).sum()),
        "detections": len(counts),
        "empty_masks": int((areas == 0).sum()),
        "mean_mask_area": round(float(areas.mean() / (width * height)), 4),
        "equal_rles": equal,
        "package_ms": round(1000 * statistics.median(first for first, _ in times), 2),
        "formula_ms": round(1000 * statistics.median(second for _, second in times), 2),
        "nms_ms": round(1000 * statistics.median(seconds(lambda: select(case.boxes, case.scores)) for _ in range(repeats)), 2),
        "package_peak_bytes": peak_growth(ours),
        "formula_peak_bytes": peak_growth(literal),
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line] if info.is_file() else []
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    head = ("case", "picture", "cand.", "empty", "package ms", "of it NMS", "formula ms", "peak MB", "formula")
    lines = ["{:8} {:>9} {:>6} {:>5} {:>10} {:>9} {:>10} {:>8} {:>8}".format(*head)]
    for row in rows:
        peaks = [f"{row[key] / 1e6:8.1f}" if row[key] is not None else f"{'-':>8}" for key in ("package_peak_bytes", "formula_peak_bytes")]
        size = f"{row['width']}x{row['height']}"
        lines.append(
            f"{row['case']:8} {size:>9} {row['candidates']:6} {row['empty_masks']:5} {row['package_ms']:10.1f} {row['nms_ms']:9.1f} "
            f"{row['formula_ms']:10.1f} {' '.join(peaks)}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure every case at every size."""
    parser = argparse.ArgumentParser(description="Time post-processing on the CPU.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results with the machine's description")
    options = parser.parse_args()
    rows = [measure(name, make(), *picture, options.repeats) for name, make in CASES.items() for picture in PICTURES]
    sys.stdout.write(table(rows) + "\n")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "repeats": options.repeats, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
