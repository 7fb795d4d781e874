"""How far the torch and the ONNX path are from the original's golden numbers, and from each other on photographs.

For each variant with golden numbers: the largest difference of each output, relative to the golden tensor's largest value, and
how many golden detections have a partner. For every variant, where a folder of photographs is given: ONNX Runtime against PyTorch,
detection by detection. Weights are the golden ones, drawn from names. Run from the repository's root::

    python -m benchmarks.parity --photographs FOLDER --count 20 --json benchmarks/results/parity.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from pycocotools import mask as coco_mask

import yolact_deploy
from benchmarks.end_to_end import golden_checkpoint
from benchmarks.postprocess import machine
from tests.golden.keyed_weights import golden_image, sample_index
from yolact_deploy.assembly import Heads
from yolact_deploy.detections import Detections
from yolact_deploy.export import export_checkpoint
from yolact_deploy.matching import FLOAT32, DetectionMatch, match_detections
from yolact_deploy.pictures import list_pictures, read_picture
from yolact_deploy.preprocess import prepare
from yolact_deploy.runtime import Detector
from yolact_deploy.variants import VARIANTS

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
OUTPUTS = {"scores": "conf", "coefficients": "mask", "prototypes": "proto"}


def golden_differences(detector: Detector, golden: Any) -> dict[str, Any]:
    """Largest relative difference of each output to the golden samples, and golden detections with a partner."""
    outputs = detector.backend.infer(golden_image(detector.manifest.input.size))
    found: dict[str, Any] = {}
    for ours, theirs in OUTPUTS.items():
        value = outputs[ours].transpose(0, 2, 3, 1) if ours == "prototypes" else outputs[ours]
        wanted = golden[f"{theirs}_sample"]
        difference = np.abs(np.ascontiguousarray(value).ravel()[sample_index(theirs, value.size)] - wanted).max() / np.abs(wanted).max()
        found[ours] = float(difference)
    width, height = (int(side) for side in golden["image_wh"])
    detections = detector.predict_prepared(golden_image(detector.manifest.input.size), [(width, height)])[0]
    return {**found, "detections": golden_partners(detections, golden)}


def golden_partners(found: Detections, golden: Any) -> str:
    """Golden detections with one of the same class, box within a pixel, and a mask of IoU 0.995 or 2 pixels."""
    count = len(golden["post_score"])
    rles = [{"size": [found.height, found.width], "counts": str(text).encode()} for text in golden["post_rle"]]
    ious = np.asarray(coco_mask.iou(found.rles, rles, [False] * count)).T
    differing = (golden["post_area"][:, None] + found.areas[None, :]) * (1 - ious) / (1 + ious)
    boxes = np.abs(golden["post_box"][:, None] - np.trunc(found.boxes)[None]).max(-1) <= 1
    same = (golden["post_class"][:, None] == found.labels[None]) & boxes & ((ious >= 0.995) | (differing <= 2))
    return f"{int(same.any(1).sum())} of {count}"


def on_photograph(torch_path: Detector, onnx_path: Detector, file: Path) -> DetectionMatch:
    """ONNX Runtime's detections against PyTorch's."""
    picture = read_picture(file)
    image = prepare(picture, torch_path.manifest.input)[None]
    size = (picture.shape[1], picture.shape[0])
    heads = Heads(*(value[0] for value in torch_path.backend.infer(image).values()))
    reference, candidate = (detector.predict_prepared(image, [size])[0] for detector in (torch_path, onnx_path))
    return match_detections(reference, candidate, heads, FLOAT32)


def measure(name: str, folder: Path, photographs: list[Path]) -> dict[str, Any]:
    """One variant's row."""
    checkpoint = golden_checkpoint(folder, name)
    onnx_path = yolact_deploy.load(export_checkpoint(checkpoint, folder / f"{name}.onnx").path)
    torch_path = yolact_deploy.load(checkpoint.path)
    row: dict[str, Any] = {"variant": name}
    if (GOLDEN / f"{name}.npz").is_file():
        golden = np.load(GOLDEN / f"{name}.npz")
        row |= {"torch": golden_differences(torch_path, golden), "onnx": golden_differences(onnx_path, golden)}
    matches = [on_photograph(torch_path, onnx_path, file) for file in photographs]
    if matches:
        row["photographs"] = {
            "count": len(matches),
            "reference": sum(match.reference for match in matches),
            "partners": sum(match.partners for match in matches),
            "at a cut": sum(len(match.excused) for match in matches),
            "unexplained": [line for match in matches for line in match.unexplained],
            "largest score difference": max(match.largest_score_difference for match in matches),
            "largest box difference": max(match.largest_box_difference for match in matches),
        }
    return row


def main() -> None:
    """Measure the variants one after another."""
    parser = argparse.ArgumentParser(description="Compare torch, ONNX and the golden numbers.")
    parser.add_argument("--variants", nargs="*", default=[name for name in VARIANTS if name != "yolact_nano"])
    parser.add_argument("--photographs", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    photographs = list_pictures(options.photographs)[: options.count] if options.photographs else []
    rows = []
    for name in options.variants:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, Path(folder), photographs))
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        sys.stdout.flush()
    if options.json:
        about = {**machine(), "onnxruntime": onnxruntime.__version__, "yolact_deploy": yolact_deploy.__version__}
        options.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
