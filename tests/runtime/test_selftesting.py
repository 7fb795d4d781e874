"""The rule by which a self-test passes, what it is made from, and whole self-tests on a stand-in GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tests.export.artifacts import Artifacts
from tests.helpers.kernel_library import build_library
from tests.helpers.stub_cuda import missing, run_scenarios
from yolact_deploy import runtime
from yolact_deploy.cli.common import demo_picture, demo_weights
from yolact_deploy.detections import Detections
from yolact_deploy.engines.selftest import TOLERANCES, Selftest, SelftestTolerance
from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.export import ExportOptions, export_checkpoint
from yolact_deploy.model import load_checkpoint
from yolact_deploy.runtime import load, selftest
from yolact_deploy.runtime.selftesting import SelftestResult, compare, fit_picture, make_selftest

WIDTH, HEIGHT = 32, 16
ABOVE = float(np.nextafter(np.float32(0.375), np.float32(1)))

One = tuple[int, float, tuple[float, float, float, float], tuple[int, int, int, int]]
"""Label, score, box, and the corners of a mask that is a rectangle."""


def one(label: int = 1, score: float = 0.75, box: Any = (0, 0, 8, 8), mask: Any = (0, 0, 8, 8)) -> One:
    return label, score, box, mask


def detections(*ones: One) -> Detections:
    masks = np.zeros((HEIGHT, WIDTH, len(ones)), np.uint8, order="F")
    for place, (_, _, _, (x1, y1, x2, y2)) in enumerate(ones):
        masks[y1:y2, x1:x2, place] = 1
    return Detections(
        np.array([box for _, _, box, _ in ones], np.float32).reshape(-1, 4),
        np.array([score for _, score, _, _ in ones], np.float32),
        np.zeros(len(ones), np.float32),
        np.array([label for label, _, _, _ in ones], np.int64),
        tuple(bytes(rle["counts"]) for rle in coco_mask.encode(masks)) if ones else (),
        *(WIDTH, HEIGHT, (), ()),
    )


def judged(expected: list[One], found: list[One], **tolerance: float) -> SelftestResult:
    """With numbers that float32 holds: what scores above 0.375 is demanded, scores may differ by 0.125, IoUs reach down to 0.5."""
    near = SelftestTolerance(**{"score": 0.125, "mask_iou": 0.5, "box_iou": 0.5, **tolerance})
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    return compare(Selftest(picture, detections(*expected), "r", 0.25, near), detections(*found))


def test_the_same_passes() -> None:
    both = [one(), one(2, 0.5, (8, 8, 16, 16), (8, 8, 16, 16)), one(3, 0.3, (20, 0, 30, 9), (20, 0, 30, 9))]
    assert judged(both, both) == SelftestResult(True, 2, ())


@pytest.mark.parametrize(
    ("found", "passes"),
    [
        (one(label=2), False),
        (one(score=0.875), True),
        (one(score=0.8751), False),
        (one(score=0.625), True),
        (one(score=0.6249), False),
        (one(box=(0, 0, 8, 4)), True),  # of two 8 x 8 and 8 x 4 boxes the IoU is 0.5
        (one(box=(0, 0, 8, 3.99)), False),
        (one(box=(0, 0, 4, 8)), True),
        (one(box=(0, 0, 3.99, 8)), False),
        (one(box=(0, 4, 8, 8)), True),
        (one(box=(4.01, 0, 8, 8)), False),
        (one(box=(0, 0, 16, 8)), True),
        (one(box=(0, 0, 16.1, 8)), False),
        (one(box=(8, 0, 16, 8)), False),
        (one(box=(9, 9, 16, 16)), False),
        (one(box=(16, 16, 24, 24)), False),
        (one(mask=(0, 0, 8, 4)), True),
        (one(mask=(0, 0, 8, 3)), False),
        (one(mask=(0, 0, 16, 8)), True),
        (one(mask=(0, 0, 17, 8)), False),
        (one(mask=(0, 0, 0, 0)), False),
    ],
)
def test_each_bound(found: One, passes: bool) -> None:
    result = judged([one()], [found])
    assert (result.passed, result.checked) == (passes, 1)
    assert len(result.problems) == (0 if passes else 2)
    if not passes:
        assert result.problems[0].startswith("expected detection 1 (label 1, score 0.75) has no partner; nearest: ")
        assert result.problems[1].startswith(f"found detection 1 (label {found[0]}, score {np.float32(found[1]):.4g}) is not expected; ")


def test_scores_are_compared_in_float64() -> None:
    """0.9 and 0.6 as float32 differ by a little less than 0.3, which float32 arithmetic cannot tell from a little more."""
    gap = float(np.float32(0.9)) - float(np.float32(0.6))
    assert judged([one(score=0.9)], [one(score=0.6)], score=gap).passed
    assert not judged([one(score=0.9)], [one(score=0.6)], score=float(np.nextafter(gap, 0))).passed


def test_what_has_no_area_is_like_another() -> None:
    assert judged([one(box=(1, 1, 1, 5))], [one(box=(3, 3, 3, 3))]).passed
    assert judged([one(mask=(0, 0, 0, 0))], [one(mask=(3, 3, 3, 3))]).passed
    assert not judged([one(box=(1, 1, 1, 5))], [one()]).passed


@pytest.mark.parametrize(("score", "demanded"), [(0.375, False), (ABOVE, True), (0.26, False)])
def test_what_must_have_a_partner(score: float, demanded: bool) -> None:
    alone = one(9, score, (20, 0, 30, 9), (20, 0, 30, 9))
    missing, surplus = judged([one(), alone], [one()]), judged([one()], [one(), alone])
    assert (missing.passed, surplus.passed) == (not demanded, not demanded)
    assert (missing.checked, surplus.checked) == (1 + demanded, 1)
    if demanded:
        told = "detection 2 (label 9, score 0.375)"
        assert missing.problems == (f"expected {told} has no partner; nearest: nothing overlaps it",)
        assert surplus.problems == (f"found {told} is not expected; nearest: nothing overlaps it",)


def test_a_partner_may_score_below_what_is_demanded() -> None:
    assert judged([one(score=0.3)], [one(score=0.4)]) == SelftestResult(True, 0, ())
    assert judged([one(score=0.4)], [one(score=0.3)]) == SelftestResult(True, 1, ())


def test_nothing_found() -> None:
    result = judged([one(label=17, score=0.83)], [])
    assert result == SelftestResult(False, 1, ("expected detection 1 (label 17, score 0.83) has no partner; nearest: nothing was found",))


def test_nobody_is_two_detections_partner() -> None:
    twice = judged([one(), one()], [one()])
    assert [problem[:44] for problem in twice.problems] == ["expected detection 2 (label 1, score 0.75) h"]
    again = judged([one()], [one(), one()])
    assert [problem[:41] for problem in again.problems] == ["found detection 2 (label 1, score 0.75) i"]


def test_the_best_expected_one_chooses_first_and_takes_the_best_mask() -> None:
    """The first could take either and takes the better mask, which the second needs: greedy, as the rule says."""
    needs_the_first = one(score=0.7, mask=(0, 0, 16, 8))
    found = [one(mask=(0, 0, 8, 6)), one(mask=(0, 0, 8, 8))]
    result = judged([one(), needs_the_first], found)
    assert [problem[:23] for problem in result.problems] == ["expected detection 2 (l", "found detection 1 (labe"]
    assert judged([needs_the_first, one()], found).passed


def test_of_equal_masks_the_better_detection_is_taken() -> None:
    found = [one(score=0.875), one(score=0.75)]
    assert judged([one(), one(score=0.6875, box=(0, 0, 8, 8))], found).passed
    assert not judged([one(), one(score=0.875)], [one(score=0.75), one(score=0.625)]).passed


def test_what_is_nearest_is_told_with_all_that_counts() -> None:
    found = [one(2, 0.75), one(1, 0.5, (0, 0, 8, 6), (0, 0, 8, 5)), one(1, 0.6, (0, 0, 8, 5), (0, 0, 8, 8))]
    (told, *_) = judged([one()], found).problems
    assert told == (
        "expected detection 1 (label 1, score 0.75) has no partner; nearest: detection 2 (label 1, score 0.5), box IoU 0.750 (least: 0.5), "
        "mask IoU 0.625 (least: 0.5), score difference 0.25 (most: 0.125)"
    )
    (told, *_) = judged([one()], [one(2), one(1, 0.75, (20, 8, 30, 16), (20, 8, 30, 16))]).problems
    assert "nearest: detection 1 (label 2, score 0.75), box IoU 1.000" in told


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 1 << 32))
def test_whatever_is_expected_passes_as_found_in_any_order(labels: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, [[WIDTH], [HEIGHT]], (len(labels), 2, 2)), -1) + np.array([0, 1])
    boxes = [(x1, y1, x2, y2) for (x1, x2), (y1, y2) in corners.tolist()]
    scores = -np.sort(-rng.random(len(labels)))
    ones = [one(label, float(score), box, box) for label, score, box in zip(labels, scores, boxes)]
    result = judged(ones, [ones[place] for place in rng.permutation(len(ones))], score=0.0, mask_iou=1.0, box_iou=1.0)
    assert result == SelftestResult(True, int((scores.astype(np.float32) > 0.25).sum()), ())


def test_large_pictures_are_made_smaller() -> None:
    small = np.zeros((720, 1280, 3), np.uint8)
    assert fit_picture(small) is small
    assert fit_picture(np.zeros((1281, 10, 3), np.uint8)).shape == (1280, 10, 3)
    assert fit_picture(np.full((3000, 4000, 3), 7, np.uint8)).shape == (960, 1280, 3)
    assert (fit_picture(np.full((8, 4000, 3), 7, np.uint8)) == 7).all()
    assert fit_picture(np.zeros((5000, 1, 3), np.uint8)).shape == (1280, 1, 3)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model: float32 with a dynamic batch, float16, and with NMS inside."""
    folder, checkpoint = tmp_path_factory.mktemp("demo"), load_checkpoint(demo_weights())
    kinds = {"fp32": ExportOptions(batch="dynamic"), "fp16": ExportOptions(fp16=True), "nms": ExportOptions(postprocess="nms")}
    return {kind: export_checkpoint(checkpoint, folder / f"{kind}.onnx", options).path for kind, options in kinds.items()}


def test_it_is_made_of_what_onnx_runtime_finds(demo: dict[str, Path]) -> None:
    picture = demo_picture()[:400]
    test = make_selftest(demo["fp32"], picture, TOLERANCES["fp32"])
    wanted = load(demo["fp32"], providers=["cpu"]).predict(picture, channels="rgb", score_threshold=0.3)
    assert test.picture is picture
    assert (test.score_threshold, test.tolerance) == (0.3, TOLERANCES["fp32"])
    assert test.reference == f"ONNX Runtime {onnxruntime.__version__} on a CPU from fp32.onnx"
    assert test.wanted == len(test.expected) == len(wanted) > 2
    assert (np.diff(test.expected.scores) <= 0).all()
    assert compare(test, wanted) == SelftestResult(True, len(wanted), ())


def test_other_precisions_pass_within_their_tolerance_alone(demo: dict[str, Path]) -> None:
    picture = demo_picture()
    found = load(demo["fp16"], providers=["cpu"]).predict(picture, channels="rgb", score_threshold=0.3)
    test = make_selftest(demo["fp32"], picture, TOLERANCES["fp16"])
    assert compare(test, found).passed
    assert not compare(replace(test, tolerance=SelftestTolerance(1e-6, 0.99999, 0.99999)), found).passed


def test_graphs_run_as_they_are_written(demo: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[object] = []
    session = onnxruntime.InferenceSession

    def spy(path: str, options: Any, **rest: Any) -> Any:
        levels.append(options.graph_optimization_level)
        return session(path, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    make_selftest(demo["fp32"], demo_picture(), TOLERANCES["fp32"], threads=1)
    assert levels == [onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL]


def test_a_picture_in_which_nothing_is_found_is_refused(demo: dict[str, Path]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_selftest(demo["fp32"], np.zeros((40, 60, 3), np.uint8), TOLERANCES["fp32"])
    assert caught.value.message == f"{demo['fp32']} finds nothing above 0.30 in the self-test's picture, so that it would tell nothing."
    assert "--selftest-picture" in caught.value.mend


def test_a_graph_that_onnx_runtime_refuses(demo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no\nway")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(ModelFileError, match=r"cannot load .*: no Export it again"):
        make_selftest(demo["fp32"], demo_picture(), TOLERANCES["fp32"])


def test_what_is_no_engine(demo: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"fp32\.onnx ends in \.onnx, \.engine was wanted"):
        selftest(demo["fp32"])
    with pytest.raises(ModelFileError, match="does not exist"):
        selftest(tmp_path / "a.engine")
    (tmp_path / "a.engine").write_bytes(b"ftrt" + bytes(100))
    with pytest.raises(ModelFileError, match=r"a\.engine carries no self-test\."):
        selftest(str(tmp_path / "a.engine"))


def test_the_room_names_it() -> None:
    assert {"selftest", "SelftestResult"} <= set(runtime.__all__)
    assert runtime.SelftestResult is SelftestResult
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = runtime.nothing


SCENARIOS = [
    "a_true_engine_passes",
    "a_wrong_engine_fails",
    "an_engine_that_is_right_once",
    "files_that_do_not_belong_together",
    "labels_that_the_model_does_not_have",
    "where_it_runs_is_handed_on",
]


@pytest.fixture(scope="module")
def outcomes(demo: dict[str, Path], artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX, whose enums the fake uses, is not installed")
    if missing():
        pytest.skip(missing())
    files = {**{kind: str(path) for kind, path in demo.items()}, "plus": str(artifacts.onnx(artifacts.plus))}
    given = {"onnx": files, "folder": str(tmp_path_factory.mktemp("engines"))}
    return run_scenarios("tests.runtime.selftest_scenarios", SCENARIOS, given, kernels=build_library())


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]
