"""Why detections have no partner, in the reference's head outputs; and where these come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.stored import Stored, rle
from tests.helpers.weights import write_checkpoint
from yolact_deploy.assembly import Heads, detect
from yolact_deploy.classes import COCO, ClassList, numbered_classes
from yolact_deploy.data import sample_picture
from yolact_deploy.data.coco import CocoDataset, CocoImage
from yolact_deploy.detections import Detections
from yolact_deploy.drawing import save_picture
from yolact_deploy.evaluation.parity import Parity, compare
from yolact_deploy.evaluation.parity_reasons import explain, heads_of, tolerance_between
from yolact_deploy.matching import FLOAT16, FLOAT32, Tolerance
from yolact_deploy.postprocess import PostprocessSettings
from yolact_deploy.runtime import Detector, load

SIZE = 120, 80
TOLERANCE = Tolerance(outputs=1e-4, score=1e-3, iou=1e-2, mask_iou=0.95, pixels=2, box=1e-2)


def heads_with(*scores: float, boxes: Any = None, masks: float = 9) -> Heads:
    """One class, a prior for each score; without `boxes` they stand apart; masks fill their boxes."""
    left = np.arange(len(scores), dtype=np.float32) / len(scores)
    apart = np.stack([left, np.full_like(left, 0.2), left + 0.7 / len(scores), np.full_like(left, 0.6)], 1)
    table = np.stack([1 - np.array(scores, np.float32), np.array(scores, np.float32)], 1)
    coefficients = np.full((len(scores), 1), masks, np.float32)
    return Heads(np.asarray(apart if boxes is None else boxes, np.float32), table, coefficients, np.ones((1, 40, 60), np.float32))


def found_in(heads: Heads, settings: PostprocessSettings | None = None) -> Detections:
    return detect(heads, *SIZE, numbered_classes(1), settings)


def explained(reference: Detections, candidate: Detections, heads: Heads, settings: PostprocessSettings | None = None) -> Parity:
    stores = Stored({1: reference}), Stored({1: candidate})
    parity = compare(*stores, [1], names={1: "one.jpg"})
    return explain(parity, *stores, lambda image_id: {1: heads}[image_id], TOLERANCE, settings)


@pytest.mark.parametrize(("other", "excused"), [(0.2995, True), (0.29, False)])
def test_a_score_on_the_other_side_of_the_cut_is_excused_within_the_numeric_error(other: float, excused: bool) -> None:
    here, there = heads_with(0.9, 0.3003), heads_with(0.9, other)
    for parity in (explained(found_in(here), found_in(there), here), explained(found_in(there), found_in(here), there)):
        assert parity.explained
        assert parity.passed is excused
        assert (len(parity.excused), len(parity.unexplained)) == ((1, 0) if excused else (0, 1))
    if excused:
        parity = explained(found_in(here), found_in(there), here)
        assert parity.excused[0].startswith("one.jpg: missing class 1 0.3003 at [")
        assert "its partner's score is 0.2995, 8.0e-04 away and on the other side of 0.3" in parity.excused[0]
        assert parity.summary() == "1 of 2 partners, 1 at a cut"


def test_one_lost_at_the_nms_threshold_is_excused_and_one_lost_for_nothing_is_not() -> None:
    heads = heads_with(0.9, 0.8, 0.7, boxes=[[0, 0, 0.5, 1], [0, 0, 0.5, 0.505], [0.6, 0, 0.9, 0.5]])
    reference = found_in(heads, PostprocessSettings(iou_threshold=0.6))
    at_the_cut = explained(reference, reference[[0, 2]], heads)
    assert at_the_cut.passed
    assert at_the_cut.excused[0].endswith("(an IoU with a better box is within 0.01 of the threshold)")
    for_nothing = explained(reference, reference[[0, 1]], heads)
    assert not for_nothing.passed
    assert for_nothing.unexplained[0].endswith(": no counterpart")


def test_the_settings_of_the_reference_decide_where_its_cut_lies() -> None:
    heads = heads_with(0.9, 0.8, boxes=[[0, 0, 0.5, 1], [0, 0, 0.5, 0.605]])
    reference = found_in(heads, PostprocessSettings(iou_threshold=0.7))
    assert explained(reference, reference[:1], heads, PostprocessSettings(iou_threshold=0.6)).passed
    assert not explained(reference, reference[:1], heads).passed


def test_a_small_mask_may_differ_by_the_pixels_of_the_tolerance() -> None:
    here = heads_with(0.9, boxes=[[0.107, 0.107, 0.11, 0.11]])
    reference = found_in(here)
    area = int(reference.areas[0])
    assert area < 60
    for remove, excused in ((2, True), (8, False)):
        bitmap = reference.bitmap(0)
        ys, xs = np.nonzero(bitmap)
        bitmap[ys[:remove], xs[:remove]] = False
        candidate = replace(reference, counts=(rle(bitmap.astype(np.uint8))["counts"],))
        stores = Stored({1: reference}), Stored({1: candidate})
        parity = explain(compare(*stores, [1], mask_iou=0.99), *stores, lambda _: here, TOLERANCE)
        assert (parity.missing, parity.surplus) == (1, 1)
        assert parity.passed is excused
        assert len(parity.excused) == (2 if excused else 0)
        assert all("(its mask differs from its partner's by at most 2 pixels)" in line for line in parity.excused), parity.excused


def test_a_surplus_has_its_reason_too() -> None:
    heads = heads_with(0.9, 0.8, boxes=[[0, 0, 0.5, 1], [0, 0, 0.5, 0.505]])
    both = found_in(heads, PostprocessSettings(iou_threshold=0.6))
    parity = explained(both[:1], both, heads)
    assert (parity.missing, parity.surplus, len(parity.excused)) == (0, 1, 1)
    assert parity.excused[0].startswith("one.jpg: surplus class 1 0.8000")


def test_reasons_are_found_where_the_two_sides_have_other_orders() -> None:
    here, there = heads_with(0.2997, 0.9, 0.5), heads_with(0.3004, 0.9, 0.5)
    candidate = found_in(there)
    parity = explained(found_in(here), candidate[[2, 0, 1]], here)
    assert (parity.surplus, len(parity.excused)) == (1, 1)
    assert "its partner's score is 0.2997, 7.0e-04 away" in parity.excused[0]


def test_only_pictures_with_a_lone_detection_are_computed_again() -> None:
    heads = heads_with(0.9, 0.8)
    full = found_in(heads)
    reference, candidate = Stored({1: full, 2: full, 3: full}), Stored({1: full, 2: full[:1], 3: full})
    asked: list[int] = []

    def compute(image_id: int) -> Heads:
        asked.append(image_id)
        return heads

    explain(compare(reference, candidate, [1, 2, 3]), reference, candidate, compute, TOLERANCE)
    assert asked == [2]


def test_without_head_outputs_nothing_is_excused_and_that_is_said() -> None:
    heads = heads_with(0.9, 0.3003)
    stores = Stored({1: found_in(heads)}), Stored({1: found_in(heads)[:1]})
    parity = explain(compare(*stores, [1]), *stores, None, TOLERANCE, why_not="It is a results file.")
    assert (parity.explained, parity.excused, len(parity.unexplained)) == (False, (), 1)
    assert parity.notes == ("It is a results file.",)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return load(write_checkpoint(tmp_path_factory.mktemp("weights"), "yolact_nano_1_10.pth"))


def test_heads_have_their_columns_in_the_order_of_the_data_set(detector: Detector, tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", sample_picture())
    height, width = sample_picture().shape[:2]
    names = ("zebra", "unicorn", "person", *COCO.names[5:40])
    dataset = CocoDataset(
        tmp_path / "a.json", tmp_path, ClassList(names, tuple(range(len(names)))), [CocoImage(4, "a.png", width, height)], {}, sha256=""
    )
    compute, why_not = heads_of(detector, dataset)
    assert compute is not None
    assert why_not == ""
    heads, own = compute(4), detector.predict(tmp_path / "a.png")
    again = detect(heads._replace(scores=heads.scores), width, height, numbered_classes(heads.scores.shape[1] - 1), detector.settings)
    known = [name for name in COCO.names if name not in names]
    all_names = (*names, *known)
    assert heads.scores.shape[1] == 1 + len(all_names)
    assert not heads.scores[:, 2].any()
    wanted = sorted(zip(own.names, own.scores.tolist(), own.counts, strict=True))
    found = sorted(
        (all_names[label], score, counts) for label, score, counts in zip(again.labels, again.scores.tolist(), again.counts, strict=True)
    )
    assert len(wanted) > 5
    assert [row[0] for row in found] == [row[0] for row in wanted]
    assert [row[1] for row in found] == pytest.approx([row[1] for row in wanted])


def test_where_heads_cannot_be_had_the_reason_is_said(detector: Detector, tmp_path: Path) -> None:
    dataset = CocoDataset(tmp_path / "a.json", tmp_path, COCO, [], {}, sha256="")
    assert heads_of(None, dataset)[0] is None
    assert "it is a results file" in heads_of(None, dataset)[1]
    manifest = detector.manifest
    try:
        detector.backend.manifest = replace(manifest, postprocess="nms")
        compute, why_not = heads_of(detector, dataset)
    finally:
        detector.backend.manifest = manifest
    assert compute is None
    assert "--postprocess nms" in why_not


def test_the_tolerance_follows_the_coarser_precision(detector: Detector) -> None:
    single = detector.manifest
    half, mixed, eight = (replace(single, precision={"a": "float32", "b": kind}) for kind in ("float16", "float16+float32", "int8"))
    assert tolerance_between(single, single) is FLOAT32
    assert tolerance_between(single, None) is FLOAT32
    for other in (half, mixed, eight):
        assert tolerance_between(single, other) is FLOAT16
        assert tolerance_between(other, single) is FLOAT16
