"""The whole network and its detections against numbers of the original implementation, for five variants with keyed weights.

These weights make nearly every prior a confident one, so that scores lie close together: where a detection has no partner among
the golden ones, the reason must lie within the networks' numeric error, and is listed among the properties of a JUnit report.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from tests.helpers.weights import GOLDEN, golden_image, keyed_network, sample_index
from yolact_deploy.assembly import Heads, detect
from yolact_deploy.classes import COCO
from yolact_deploy.postprocess import PostprocessSettings, Selection, decode_boxes, select, softmax
from yolact_deploy.postprocess.settings import NmsKind
from yolact_deploy.variants import Variant, get_variant

# pycocotools' compiled part predates NumPy 2's `copy` argument and says so on each decode.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

GOLDEN_VARIANTS = ("yolact_base", "yolact_im400", "yolact_resnet50", "yolact_darknet53", "yolact_plus_resnet50")
WITHOUT_PARTNER = {"yolact_darknet53": 5}  # of 100; its 100 scores all lie above 0.9999988, where float32 has 20 values


@dataclass(frozen=True, eq=False)
class Run:
    """One variant's golden numbers, and what the network here makes of the same input."""

    variant: Variant
    golden: dict[str, np.ndarray]
    keys: set[str]
    tensors: dict[str, np.ndarray]
    mask_iou: Callable[[np.ndarray], np.ndarray] | None

    @property
    def heads(self) -> Heads:
        coefficients, prototypes = self.tensors["mask"][0], np.ascontiguousarray(self.tensors["proto"][0].transpose(2, 0, 1))
        return Heads(decode_boxes(self.tensors["loc"][0], self.tensors["priors"]), self.tensors["conf"][0], coefficients, prototypes)

    def select(self, kind: NmsKind) -> Selection:
        return select(self.heads.boxes, self.heads.scores, PostprocessSettings(nms=kind), self.variant.input_size)


@pytest.fixture(scope="module", params=GOLDEN_VARIANTS)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    variant = get_variant(request.param)
    with np.load(GOLDEN / f"{variant.name}.npz") as archive:
        golden = dict(archive)
    network = keyed_network(variant.name)
    keys = {f"{key} {'x'.join(map(str, value.shape))}" for key, value in network.state_dict().items()}
    with torch.inference_mode():
        outputs = network(torch.from_numpy(golden_image(variant.input_size)))
    assert outputs.semantic is None
    tensors = {
        "loc": outputs.loc.numpy(),
        "conf": softmax(outputs.logits.numpy()),
        "mask": outputs.coefficients.numpy(),
        "priors": network.priors.numpy(),
        "proto": outputs.prototypes.permute(0, 2, 3, 1).numpy(),
    }
    mask_iou = None
    if variant.mask_rescoring:
        rescorer = network.maskiou_net

        def mask_iou(masks: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                values: np.ndarray = rescorer(torch.from_numpy(masks)).numpy()
            return values

    del network
    keyed_network.cache_clear()
    yield Run(variant, golden, keys, tensors, mask_iou)
    gc.collect()


def test_state_dict_has_the_original_keys_and_shapes(run: Run) -> None:
    assert run.keys == set(run.golden["keys"].tolist())
    assert run.variant.input_size == run.golden["max_size"]
    assert run.variant.num_classes == run.golden["num_classes"]


@pytest.mark.parametrize("name", ["loc", "conf", "mask", "priors", "proto"])
def test_outputs_are_the_original_ones(run: Run, name: str) -> None:
    found = run.tensors[name]
    assert found.shape == tuple(run.golden[f"{name}_shape"])
    mean, deviation, largest = run.golden[f"{name}_mean_std"]
    sampled = found.ravel()[sample_index(name, found.size)]
    np.testing.assert_allclose(sampled, run.golden[f"{name}_sample"], rtol=0, atol=1e-4 * largest)
    whole = found.astype(np.float64)
    assert abs(whole.mean() - mean) <= 1e-4 * largest
    assert abs(whole.std() - deviation) <= 1e-4 * largest
    assert abs(np.abs(whole).max() - largest) <= 1e-4 * largest


def test_priors_are_the_original_ones_to_the_last_bit(run: Run) -> None:
    sampled = run.tensors["priors"].ravel()[sample_index("priors", run.tensors["priors"].size)]
    np.testing.assert_array_equal(sampled, run.golden["priors_sample"])


def ious(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    overlap = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = np.where((overlap > 0).all(axis=1), overlap.prod(axis=1), 0)
    return np.asarray(shared / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - shared))


def score_error(score: float) -> float:
    """The networks' error of a probability near 1: some float32 steps, and what an error of 2e-5 in the logits makes of it."""
    return 4e-7 + 2e-5 * (1 - score)


@dataclass(frozen=True, eq=False)
class Listed:
    """Detections by their relative boxes, labels and scores."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def without_partner(self, places: list[int], others: Listed) -> tuple[list[str], list[str]]:
        """What is to be said of each of our `places` that `others` lack: the excused, and those without an excuse."""
        excused, unexplained = [], []
        for place in places:
            score, cut = float(self.scores[place]), float(others.scores.min())
            same = (others.labels == self.labels[place]) & (np.abs(others.scores - score) <= score_error(score))
            rivals = ious(self.boxes[place].astype(np.float64), others.boxes.astype(np.float64))[same]
            text = f"{place}: class {self.labels[place]}, score {score:.7f}"
            if (rivals > 0.5 - 1e-4).any():
                excused.append(f"{text}, suppressed by one of the same score, IoU {rivals.max():.4f}")
            elif abs(score - cut) <= score_error(cut):
                excused.append(f"{text}, at the cut of {cut:.7f}")
            else:
                unexplained.append(text)
        return excused, unexplained


def pairs(ours: Listed, golden: Listed, tolerance: float = 1e-3) -> list[tuple[int, int]]:
    """Our place and the golden place of each detection that both hold, each used once."""
    free, result = list(range(len(golden.labels))), []
    for place in range(len(ours.labels)):
        fits = [
            other
            for other in free
            if golden.labels[other] == ours.labels[place]
            and abs(golden.scores[other] - ours.scores[place]) <= score_error(float(golden.scores[other]))
            and np.abs(golden.boxes[other] - ours.boxes[place]).max() <= tolerance
        ]
        if fits:
            free.remove(fits[0])
            result.append((place, fits[0]))
    return result


@pytest.mark.parametrize(
    ("kind", "prefix", "box"),
    [("fast", "det", "box_rel"), ("cross-class", "cross_class", "box"), ("traditional", "traditional", "box")],
)
def test_every_detection_has_its_partner_or_an_excuse(
    run: Run, kind: NmsKind, prefix: str, box: str, record_testsuite_property: Callable[[str, object], None]
) -> None:
    found = run.select(kind)
    ours = Listed(found.boxes, found.labels, found.scores)
    golden = Listed(*(run.golden[f"{prefix}_{name}"] for name in (box, "class", "score")))
    assert len(ours.labels) == len(golden.labels)
    matched = pairs(ours, golden)
    allowed = WITHOUT_PARTNER.get(run.variant.name, 0)
    lacking = [
        ours.without_partner(sorted(set(range(len(ours.labels))) - {place for place, _ in matched}), golden),
        golden.without_partner(sorted(set(range(len(golden.labels))) - {place for _, place in matched}), ours),
    ]
    listed = "; ".join(line for excused, unexplained in lacking for line in (*excused, *unexplained))
    record_testsuite_property(f"{run.variant.name}, {kind} NMS, without partner", listed or "none")
    assert [unexplained for _, unexplained in lacking] == [[], []], listed
    assert len(matched) >= len(golden.labels) - allowed, listed
    if kind == "fast":
        coefficients = run.tensors["mask"][0][found.priors]
        for place, other in matched:
            np.testing.assert_allclose(coefficients[place], run.golden["det_coeff"][other], rtol=0, atol=1e-4)


def test_boxes_scores_and_masks_of_the_picture_are_the_original_ones(run: Run) -> None:
    width, height = (int(value) for value in run.golden["image_wh"])
    assert (width, height) == (640, 427)
    found = detect(run.heads, width, height, COCO, mask_iou=run.mask_iou, input_size=run.variant.input_size)
    chosen = run.select("fast")
    golden = Listed(*(run.golden[f"det_{name}"] for name in ("box_rel", "class", "score")))
    matched = pairs(Listed(chosen.boxes, chosen.labels, chosen.scores), golden)
    assert len(matched) >= 100 - WITHOUT_PARTNER.get(run.variant.name, 0)
    assert found.mask_scores.any()
    mask_scores = run.golden["post_mask_score"] if run.variant.mask_rescoring else run.golden["post_score"]
    for place, other in matched:
        assert found.labels[place] == run.golden["post_class"][other]
        assert abs(found.scores[place] - run.golden["post_score"][other]) <= score_error(float(found.scores[place]))
        assert abs(found.mask_scores[place] - mask_scores[other]) <= 1e-4
        assert_same_pixels(found.boxes[place], run.golden["post_box"][other])
        theirs = {"size": [height, width], "counts": run.golden["post_rle"][other].encode("ascii")}
        assert coco_mask.area(theirs) == run.golden["post_area"][other]
        if not coco_mask.iou([found.rles[place]], [theirs], [0])[0, 0] >= 0.995:
            assert np.count_nonzero(found.bitmap(place) != coco_mask.decode(theirs)) <= 2


def assert_same_pixels(box: np.ndarray, truncated: np.ndarray) -> None:
    """`box` truncates to `truncated`, except where a coordinate is a whole number to within the networks' error."""
    near_whole = np.abs(box - np.rint(box)) <= 0.02
    away = np.abs(np.trunc(box).astype(np.int64) - truncated)
    assert (away <= near_whole).all(), f"{box} truncates to something else than {truncated}"


def test_some_golden_masks_are_not_empty(run: Run) -> None:
    """The masks above would say nothing if all were."""
    assert np.count_nonzero(run.golden["post_area"]) >= 10
