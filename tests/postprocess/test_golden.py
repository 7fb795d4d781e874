"""Everything from head outputs to masks against what the original implementation made of the same outputs."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.reference.golden_heads import CASES, golden_archive, golden_heads
from yolact_deploy.postprocess import PostprocessSettings, Selection, decode_boxes, mask_rles, pixel_boxes, select, softmax
from yolact_deploy.postprocess.settings import NmsKind

# pycocotools' compiled part predates NumPy 2's `copy` argument and says so on each decode.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KINDS: tuple[NmsKind, ...] = ("fast", "cross-class", "traditional")
PICTURES = ((640, 427), (1280, 960))

archive = cache(golden_archive)
heads = cache(golden_heads)


@cache
def selection(case: str, kind: NmsKind) -> Selection:
    given = heads(case)
    return select(decode_boxes(given.loc, given.priors), softmax(given.logits), PostprocessSettings(nms=kind), input_size=550)


def golden(case: str, kind: NmsKind, what: str) -> np.ndarray:
    return archive()[f"{case}_{kind.replace('-', '_')}_{what}"]


def partners(found: Selection, labels: np.ndarray, scores: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """For each of ours the golden one: the same place, or, among golden scores equal to within rounding, the one of its class and box."""
    result = []
    for place in range(len(found)):
        near = np.flatnonzero((np.abs(scores - scores[place]) <= 1e-6) & (labels == found.labels[place]))
        result.append(near[np.abs(boxes[near] - found.boxes[place]).max(axis=1).argmin()])
    assert sorted(result) == list(range(len(found)))
    return np.array(result)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("width", "height"), PICTURES)
def test_as_the_original(case: str, kind: NmsKind, width: int, height: int) -> None:
    found, size = selection(case, kind), f"{width}x{height}"
    scores, labels = golden(case, kind, f"{size}_score"), golden(case, kind, f"{size}_class")
    relative = golden(case, kind, "box_rel")
    assert len(found) == len(scores)
    order = partners(found, labels, scores, relative)
    np.testing.assert_allclose(found.scores, scores[order], rtol=0, atol=1e-6)

    pixels = pixel_boxes(found.boxes, width, height)
    np.testing.assert_allclose(pixels, pixel_boxes(relative[order], width, height), rtol=0, atol=1e-3)
    truncated = golden(case, kind, f"{size}_box")[order]
    cut_to_picture = (pixels == 0) | (pixels == np.tile([width, height], 2))
    clear = cut_to_picture | (np.abs(pixels - np.rint(pixels)) > 1e-3)
    np.testing.assert_array_equal(np.trunc(pixels).astype(np.int64)[clear], truncated[clear])
    assert clear.mean() > 0.98
    assert np.abs(pixels - truncated).max() <= 1 + 1e-3

    assert_masks(case, kind, size, order)


def assert_masks(case: str, kind: NmsKind, size: str, order: np.ndarray) -> None:
    width, height = (int(part) for part in size.split("x"))
    found, given = selection(case, kind), heads(case)
    counts = mask_rles(given.prototypes, given.coefficients[found.priors], found.boxes, width, height)
    wanted = golden(case, kind, f"{size}_rle")[order]
    areas = golden(case, kind, f"{size}_area")[order]
    for ours, theirs, area in zip(counts, wanted.tolist(), areas.tolist(), strict=True):
        pair = [{"size": [height, width], "counts": one} for one in (ours, theirs.encode("ascii"))]
        assert coco_mask.area(pair[1]) == area
        if not coco_mask.iou(pair[:1], pair[1:], [0])[0, 0] >= 0.995:
            assert np.count_nonzero(coco_mask.decode(pair[0]) != coco_mask.decode(pair[1])) <= 2


@pytest.mark.parametrize("case", CASES)
def test_most_golden_masks_are_not_empty(case: str) -> None:
    """The masks above would say little if they were."""
    assert (archive()[f"{case}_fast_640x427_area"] > 0).mean() > 0.8
