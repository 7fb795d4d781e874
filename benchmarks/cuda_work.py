"""What GPU post-processing has to move and to compute, stage by stage, counted on real head outputs; and what that takes at least.

The counts follow the kernels: what each reads and writes once, and the arithmetic that it does on it. The bound of a stage is the larger of
bytes / bandwidth and operations / rate. It is computed, not measured, and holds neither the launch of a kernel (about 2 µs in a CUDA graph)
nor waiting for memory, which is what short stages mostly do. Print the table for the golden heads, with no GPU::

    python -m benchmarks.cuda_work --json benchmarks/results/cuda_work.json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.postprocess import Case, golden_case
from yolact_deploy.postprocess import PostprocessSettings, mask_rles, select
from yolact_deploy.postprocess.interpolation import bilinear_axis

__all__ = ["CASES", "DEVICES", "PICTURES", "Device", "Work", "bound_us", "case_of", "count_work"]

PICTURES = ((640, 427), (1280, 960), (1920, 1080), (3840, 2160))
CASES = ("typical", "large", "boxes of 30 %")
SETTINGS = PostprocessSettings()
_IOU, _SIGMOID, _PIXEL, _CHARACTER = 16, 20, 12, 10  # operations of one
_WALKS = 4  # of each column: to count and to place, in both rounds


@dataclass(frozen=True)
class Device:
    """Rates: bytes a second of memory and of the bus to the host, float32 operations a second (an FMA is two)."""

    name: str
    memory: float
    bus: float
    float32: float


DEVICES = (
    Device("H200 SXM (NVIDIA's data sheet)", 4.8e12, 64e9, 67e12),
    Device("Jetson AGX Orin 64 GB (NVIDIA's data sheet)", 204.8e9, 204.8e9, 5.3e12),
)


@dataclass(frozen=True)
class Work:
    """One stage: bytes of device memory, bytes over the bus to the host, operations."""

    stage: str
    memory: int
    bus: int
    operations: int


def case_of(name: str) -> Case:
    """Golden heads, or ``large`` with each box stretched about its centre to 30 % of the picture and pushed inside."""
    if name in ("typical", "large"):
        return golden_case(name)
    case = golden_case("large")
    sides = np.maximum(case.boxes[:, 2:] - case.boxes[:, :2], np.float32(1e-3))
    sides = np.minimum(sides * np.sqrt(np.float32(0.3) / sides.prod(axis=1, keepdims=True)), np.float32(1))
    corners = np.clip((case.boxes[:, :2] + case.boxes[:, 2:]) / 2 - sides / 2, 0, 1 - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    return Case(boxes, case.scores, case.coefficients, case.prototypes)


def count_work(case: Case, width: int, height: int, settings: PostprocessSettings = SETTINGS) -> list[Work]:
    """The stages' work on one picture."""
    priors, classes = case.scores.shape
    prototype_count, high, wide = case.prototypes.shape
    size = case.scores.itemsize
    found = select(case.boxes, case.scores, settings)
    detections = len(found)
    candidates = int((case.scores[:, 1:].max(axis=1) > settings.score_threshold).sum())
    ranked = min(candidates, settings.top_k)
    sorting = _sorting(ranked) + (2 * candidates if candidates > ranked else 0)
    survivors = _survivors(case, settings)
    kept = _kept(found.boxes, high, wide)
    columns = bilinear_axis(wide, width).scale
    walked = int((kept[:, 0] / columns).sum()) + 2 * detections
    samples = int((kept[:, 0] * kept[:, 1]).sum())
    counts = mask_rles(case.prototypes, case.coefficients[found.priors], found.boxes, width, height) if detections else []
    text = sum(map(len, counts))
    crossings = int(sum(len(_number_ends(one)) - 1 for one in counts))
    words = -(-high // 32)
    return [
        Work("select", size * priors * classes, 0, priors * classes),
        Work("rank", (classes - 1) * (size * candidates + 8 * ranked), 0, (classes - 1) * sorting),
        Work("suppress", (classes - 1) * 24 * ranked, 0, (classes - 1) * ranked * (ranked - 1) // 2 * _IOU),
        Work("best", 8 * survivors + detections * 8 * prototype_count, 0, 2 * survivors + _sorting(detections)),
        Work(
            "assemble",
            case.prototypes.nbytes + 4 * samples + 4 * detections * prototype_count,
            0,
            samples * (2 * prototype_count + _SIGMOID),
        ),
        Work("rle", 4 * samples + text, 0, 2 * samples + _WALKS * (walked * words * 8 + crossings * 6 * _PIXEL) + 2 * text * _CHARACTER),
        Work("deliver", text, text + 40 * detections, text // 16),
    ]


def bound_us(work: Work, device: Device) -> float:
    """Microseconds that the stage takes at least."""
    return 1e6 * max(work.memory / device.memory, work.bus / device.bus, work.operations / device.float32)


def _sorting(count: int) -> int:
    """Comparisons of the bitonic sorter for so many keys."""
    steps = max(count - 1, 0).bit_length()
    return (1 << steps) // 2 * steps * (steps + 1) // 2


def _survivors(case: Case, settings: PostprocessSettings) -> int:
    """Entries that Fast NMS hands on, of each class no more than there are detections, before the best of all are chosen."""
    wanted = PostprocessSettings(settings.score_threshold, settings.iou_threshold, settings.top_k, settings.top_k * case.scores.shape[1])
    labels = select(case.boxes, case.scores, wanted).labels
    return int(np.minimum(np.bincount(labels, minlength=1), settings.max_detections).sum())


def _kept(boxes: NDArray[np.float32], high: int, wide: int) -> NDArray[np.int64]:
    """int64 [N, 2]: columns and rows of prototype samples inside each padded box."""
    sizes = np.array([wide, high], np.float32)
    corners = np.sort(boxes.reshape(-1, 2, 2), axis=1) * sizes
    first, end = np.clip(np.ceil(corners[:, 0] - 1), 0, sizes), np.clip(np.ceil(corners[:, 1] + 1), 0, sizes)
    return np.maximum(end - first, 0).astype(np.int64)


def _number_ends(counts: bytes) -> list[int]:
    """Where each number of a compressed RLE ends: the characters without the bit that says that another follows."""
    return [place for place, character in enumerate(counts) if (character - 48) < 32]


def rows_of(case: str, width: int, height: int) -> list[dict[str, Any]]:
    """A row a stage: its work and its bound on each device."""
    rows = []
    for work in count_work(case_of(case), width, height):
        bounds = {device.name: bound_us(work, device) for device in DEVICES}
        rows.append({"case": case, "width": width, "height": height, **asdict(work), "bound_us": bounds})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown, with a sum for each case and picture."""
    named = " | ".join(f"{device.name}, µs" for device in DEVICES)
    lines = [
        f"| case | picture | stage | MB | to the host, KB | million operations | {named} |",
        "| --- | --- | --- | ---: | ---: | ---: |" + " ---: |" * len(DEVICES),
    ]
    for place, row in enumerate(rows):
        bounds = " | ".join(f"{row['bound_us'][device.name]:.2f}" for device in DEVICES)
        size, numbers = f"{row['width']}x{row['height']}", (row["memory"] / 1e6, row["bus"] / 1e3, row["operations"] / 1e6)
        lines.append(f"| {row['case']} | {size} | {row['stage']} | {numbers[0]:.2f} | {numbers[1]:.1f} | {numbers[2]:.1f} | {bounds} |")
        same = [other for other in rows if (other["case"], other["width"]) == (row["case"], row["width"])]
        if place + 1 == len(rows) or (rows[place + 1]["case"], rows[place + 1]["width"]) != (row["case"], row["width"]):
            sums = " | ".join(f"**{sum(other['bound_us'][device.name] for other in same):.1f}**" for device in DEVICES)
            lines.append(f"| {row['case']} | {size} | **together** | | | | {sums} |")
    return "\n".join(lines)


def main() -> None:
    """Count every case at every size."""
    parser = argparse.ArgumentParser(description="Count the work of GPU post-processing, and the time that it takes at least.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts")
    options = parser.parse_args()
    rows = [row for case in CASES for picture in PICTURES for row in rows_of(case, *picture)]
    sys.stdout.write(table(rows) + "\n")
    if options.json:
        document = {"computed": "not measured", "devices": [asdict(device) for device in DEVICES], "rows": rows}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
