"""The benchmarks of GPU post-processing: they run end to end, their baseline computes the formulas, their counts hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.cuda_postprocess import combinations, limited, measure, table
from benchmarks.cuda_work import CASES, DEVICES, Device, bound_us, case_of, count_work
from benchmarks.torch_formulas import post_process
from tests.engines.cuda.kernel_runs import Runner
from tests.reference import detection, masks
from yolact_deploy.postprocess import mask_rles, select

LIMITS = {"score_threshold": 0.05, "iou_threshold": 0.5, "top_k": 200, "max_detections": 100}


@pytest.mark.parametrize("name", CASES)
def test_the_baseline_computes_the_formulas(name: str) -> None:
    case = case_of(name)
    parts = [torch.from_numpy(part) for part in (case.boxes, case.scores, case.coefficients, case.prototypes)]
    found, bitmaps = post_process(*parts, 320, 200, LIMITS)
    truth = detection.fast_nms(parts[0], parts[1])
    assert found.tolist() == (truth.priors * (case.scores.shape[1] - 1) + truth.labels).tolist()
    differing = (bitmaps ^ masks.assemble(parts[3], parts[2][truth.priors], truth.boxes, 320, 200)).sum(dim=(1, 2))
    assert differing.max() <= 2
    nothing, none = post_process(*parts, 320, 200, {**LIMITS, "score_threshold": 1.0})
    assert (len(nothing), none.shape) == (0, (0, 200, 320))


def test_boxes_of_thirty_percent() -> None:
    case = case_of("boxes of 30 %")
    sides = case.boxes[:, 2:] - case.boxes[:, :2]
    assert case.boxes.min() >= 0
    assert case.boxes.max() <= 1 + 1e-6
    assert np.median(sides.prod(axis=1)) == pytest.approx(0.3, rel=1e-3)
    assert len(select(case.boxes, case.scores)) == 100


@pytest.mark.parametrize("detections", [0, 10])
def test_the_measurement_runs(runner: Runner, detections: int) -> None:
    case = case_of("typical")
    row = measure(
        runner.driver, runner.module, case, (64, 48), batch=2, detections=detections, repeats=2, baseline=lambda: 5.0, ahead_bytes=1 << 12
    )
    assert row["detections"] == detections
    stages = {"sizes", "select", "rank", "suppress", "best", "assemble", "rle", "deliver", "results"}
    assert set(row["stages_us"]) == stages
    assert all(spent > 0 for spent in row["stages_us"].values())
    assert row["together_us"] > 0
    assert row["pytorch_us"] == 5.0
    assert bool(row["rle_bytes"]) == bool(detections)
    text = table([{"case": "typical", **row, "batch": 1, "detections": 100}], Device("one", 1e12, 1e12, 1e12))
    assert all(f"| {stage} |" in text for stage in stages)


def test_the_work_is_counted() -> None:
    case = case_of("large")
    works = {work.stage: work for work in count_work(case, 640, 427)}
    assert works["select"].memory == case.scores.nbytes
    chosen = select(case.boxes, case.scores)
    text = sum(map(len, mask_rles(case.prototypes, case.coefficients[chosen.priors], chosen.boxes, 640, 427)))
    assert works["deliver"].bus == text + 40 * len(chosen)
    assert case.prototypes.nbytes < works["assemble"].memory < case.prototypes.nbytes + 100 * 138 * 138 * 4
    assert bound_us(works["select"], DEVICES[0]) == pytest.approx(1e6 * case.scores.nbytes / 4.8e12)
    nothing = {work.stage: work for work in count_work(case, 640, 427, limited(0))}
    assert (nothing["rle"].memory, nothing["deliver"].bus) == (0, 0)


def test_the_grid_of_measurements() -> None:
    every, quick = list(combinations(quick=False)), list(combinations(quick=True))
    assert {row[3] for row in every} == {0, 10, 100}
    assert {row[2] for row in every} == {1, 8, 32}
    assert len({row[1] for row in every}) == 4
    assert quick == [row for row in every if row[2:] == (1, 100)]
