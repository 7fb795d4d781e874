"""Picture file in, RLE out, on the CPU: the ONNX path beside the same formulas in PyTorch, in turns in one process.

The formulas are the original's way: the network as it was trained (no folding), softmax, Fast NMS, full-size float masks and
pycocotools. Weights are the golden ones of yolact_resnet50 (drawn from names, 100 detections on every picture). Run from the
repository's root::

    OMP_NUM_THREADS=2 python -m benchmarks.end_to_end --json benchmarks/results/end_to_end.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch
from pycocotools import mask as coco_mask

import yolact_deploy
from benchmarks.postprocess import machine
from tests.golden.keyed_weights import keyed_tensor
from tests.reference import detection, masks
from yolact_deploy.data import sample_picture
from yolact_deploy.export import export_checkpoint
from yolact_deploy.model import Checkpoint, Yolact, load_checkpoint
from yolact_deploy.variants import get_variant

MEAN = torch.tensor([103.94, 116.78, 123.68])[:, None, None]
STD = torch.tensor([57.38, 57.12, 58.40])[:, None, None]
SIZES = ((640, 427), (1280, 960))


def golden_checkpoint(folder: Path, name: str) -> Checkpoint:
    """The network of that variant with the golden weights."""
    shapes = {key: tuple(value.shape) for key, value in Yolact(get_variant(name)).state_dict().items()}
    state = {key: torch.from_numpy(np.asarray(keyed_tensor(key, shape))).reshape(shape) for key, shape in shapes.items()}
    path = folder / f"{name}_0_0.pth"
    torch.save(state, path)
    return load_checkpoint(path)


def formulas(network: Yolact, path: Path) -> tuple[list[bytes], dict[str, float]]:
    """The original's formulas in PyTorch: RLE of each detection, and milliseconds of each stage."""
    clock = [time.perf_counter()]
    picture = torch.from_numpy(cv2.imread(str(path))).permute(2, 0, 1).float()  # noqa: TID251 - the original reads so
    size = network.variant.input_size
    image = torch.nn.functional.interpolate(picture[None], (size, size), mode="bilinear", align_corners=False)[0]
    image = ((image - MEAN) / STD)[[2, 1, 0]].contiguous()
    clock.append(time.perf_counter())
    with torch.inference_mode():
        heads = network(image[None])
        clock.append(time.perf_counter())
        boxes = detection.decode(heads.loc[0], network.priors)
        found = detection.fast_nms(boxes, heads.logits[0].softmax(-1))
        height, width = picture.shape[1:]
        bitmaps = masks.assemble(heads.prototypes[0], heads.coefficients[0][found.priors], found.boxes, width, height)
    pixels = np.asfortranarray(bitmaps.permute(1, 2, 0).numpy().view(np.uint8))
    counts = [rle["counts"] for rle in coco_mask.encode(pixels)]
    clock.append(time.perf_counter())
    names = ("read and preprocess", "inference", "postprocess")
    return counts, {name: 1000 * (end - start) for name, start, end in zip(names, clock, clock[1:], strict=False)}


def ours(detector: yolact_deploy.Detector, path: Path) -> tuple[list[bytes], dict[str, float]]:
    """The package: RLE of each detection, and milliseconds of each stage."""
    found = detector.predict(path)
    spent = dict(found.milliseconds)
    return list(found.counts), {"read and preprocess": spent.pop("read") + spent.pop("preprocess"), **spent}


def partners(one: list[bytes], other: list[bytes], size: tuple[int, int]) -> int:
    """Masks of `one` for which `other` holds one of IoU 0.98 or more, or an empty one where it is empty."""
    rles = [[{"size": [size[1], size[0]], "counts": counts} for counts in found] for found in (one, other)]
    ious = coco_mask.iou(*rles, [False] * len(other))
    empty = [coco_mask.area(found) == 0 for found in rles]
    return int(((ious >= 0.98) | (empty[0][:, None] & empty[1][None, :])).any(1).sum())


def measure(ways: dict[str, Callable[[], tuple[list[bytes], dict[str, float]]]], size: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Medians of each way, taken in turns after one run of each to warm up."""
    counts = {name: way()[0] for name, way in ways.items()}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            stages = way()[1]
            runs[name].append({**stages, "total": 1000 * (time.perf_counter() - start)})
    medians = {name: {stage: round(statistics.median(run[stage] for run in done), 1) for stage in done[0]} for name, done in runs.items()}
    return {
        "milliseconds": medians,
        "ratio": round(medians["formulas"]["total"] / medians["package"]["total"], 2),
        "detections": {name: len(found) for name, found in counts.items()},
        "masks_with_partner": partners(counts["formulas"], counts["package"], size),
    }


def main() -> None:
    """Measure both picture sizes."""
    parser = argparse.ArgumentParser(description="Time the whole way from picture to RLE on the CPU.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--variant", default="yolact_resnet50")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results with the machine's description")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = golden_checkpoint(folder, options.variant)
        detector = yolact_deploy.load(export_checkpoint(checkpoint, folder / "model.onnx").path)
        for width, height in SIZES:
            picture = folder / f"{width}x{height}.jpg"
            cv2.imwrite(str(picture), sample_picture(width, height)[..., ::-1])
            ways = {"formulas": partial(formulas, checkpoint.network, picture), "package": partial(ours, detector, picture)}
            row = {"picture": f"{width}x{height}", **measure(ways, (width, height), options.repeats)}
            rows.append(row)
            found = f"{row['detections']} detections, {row['masks_with_partner']} masks with a partner"
            sys.stdout.write(f"{row['picture']}: ratio {row['ratio']}, {found}\n")
            for way, stages in row["milliseconds"].items():
                sys.stdout.write(f"  {way:9} {', '.join(f'{stage} {value} ms' for stage, value in stages.items())}\n")
    if options.json:
        about = {**machine(), "onnxruntime": onnxruntime.__version__, "opencv": cv2.__version__}
        document = {"machine": about, "variant": options.variant, "repeats": options.repeats, "rows": rows}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
