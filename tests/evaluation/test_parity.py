"""Detection by detection: partners, those without one, the worst pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.stored import CLASSES, HEIGHT, WIDTH, Stored, found, rectangle
from yolact_deploy.detections import Detections
from yolact_deploy.errors import ConfigError
from yolact_deploy.evaluation.parity import Parity, compare

CAT, DOG = 0, 1
LEFT, RIGHT, BOTTOM = (2, 2, 22, 22), (32, 2, 52, 22), (2, 26, 22, 46)


def one(reference: list[Any] | Detections, candidate: list[Any] | Detections, **options: Any) -> Parity:
    """The comparison of a single picture."""
    sides = [side if isinstance(side, Detections) else found(side) for side in (reference, candidate)]
    return compare(Stored({5: sides[0]}), Stored({5: sides[1]}), [5], **options)


def by_reference(parity: Parity) -> dict[float, float]:
    """The reference's score of each pair to the candidate's."""
    pairs = zip(parity.reference_scores.tolist(), parity.candidate_scores.tolist(), strict=True)
    return {round(ours, 6): round(theirs, 6) for ours, theirs in pairs}


def test_partners_their_scores_and_the_differences() -> None:
    parity = one([(CAT, 0.9, LEFT), (DOG, 0.8, RIGHT), (CAT, 0.5, BOTTOM)], [(CAT, 0.85, LEFT), (DOG, 0.82, RIGHT), (CAT, 0.5, BOTTOM)])
    assert (parity.reference, parity.candidate, parity.partners, parity.missing, parity.surplus, parity.share) == (3, 3, 3, 0, 0, 1.0)
    assert by_reference(parity) == {0.9: 0.85, 0.8: 0.82, 0.5: 0.5}
    assert sorted(parity.labels.tolist()) == [CAT, CAT, DOG]
    assert parity.image_ids.tolist() == [5, 5, 5]
    differences = parity.differences()
    assert differences is not None
    assert differences["mean"] == pytest.approx(-0.01, abs=1e-6)
    assert differences["mean_absolute"] == pytest.approx(0.07 / 3, abs=1e-6)
    assert differences["largest"] == pytest.approx(0.05, abs=1e-6)
    assert differences["p50"] == pytest.approx(0.02, abs=1e-6)
    assert differences["p90"] == pytest.approx(0.02 + 0.8 * 0.03, abs=1e-6)
    assert parity.smallest_iou == 1
    assert parity.passed
    assert parity.summary() == "3 of 3 partners"


def shrunk(rows: int) -> np.ndarray[Any, Any]:
    """LEFT, 20 x 20 pixels, without its last rows: IoU 1 - rows / 20."""
    return rectangle((2, 2, 22, 22 - rows))


@pytest.mark.parametrize(("rows", "partners"), [(1, 1), (2, 0), (3, 0)])
def test_the_masks_iou_must_be_above_the_cut(rows: int, partners: int) -> None:
    parity = one([(CAT, 0.9, LEFT)], [(CAT, 0.9, LEFT, shrunk(rows))])
    assert parity.partners == partners
    if partners:
        assert parity.smallest_iou == pytest.approx(1 - rows / 20)
    else:
        assert [str(lone) for lone in parity.lone] == [
            f"5: {side} cat 0.9000 at [2.0, 2.0, 22.0, 22.0]: its counterpart's mask IoU is {1 - rows / 20:.3f}"
            for side in ("missing", "surplus")
        ]


@pytest.mark.parametrize(("score", "counted"), [(0.3, False), (0.3001, True), (0.29, False)])
def test_only_scores_above_the_cut_count(score: float, counted: bool) -> None:
    parity = one([(CAT, score, LEFT)], [(CAT, score, LEFT)])
    assert parity.reference == parity.candidate == parity.partners == int(counted)


def test_a_counterpart_below_the_cut_is_told_with_its_score() -> None:
    parity = one([(CAT, 0.301, LEFT)], [(CAT, 0.297, LEFT)])
    assert (parity.partners, parity.missing, parity.surplus) == (0, 1, 0)
    assert parity.unexplained == ("5: missing cat 0.3010 at [2.0, 2.0, 22.0, 22.0]: its counterpart's score is 0.2970",)
    other = one([(CAT, 0.297, LEFT)], [(CAT, 0.301, LEFT)])
    assert (other.partners, other.missing, other.surplus, other.share) == (0, 0, 1, None)
    assert other.unexplained == ("5: surplus cat 0.3010 at [2.0, 2.0, 22.0, 22.0]: its counterpart's score is 0.2970",)


def test_another_class_is_no_partner() -> None:
    parity = one([(CAT, 0.9, LEFT)], [(DOG, 0.8, LEFT)])
    assert parity.partners == 0
    assert parity.unexplained[0].endswith("its counterpart is a dog (0.8000, mask IoU 1.000)")
    assert one([(DOG, 0.9, LEFT)], [(CAT, 0.8, LEFT)]).partners == 0
    assert one([(CAT, 0.9, LEFT)], [(DOG, 0.8, RIGHT)]).unexplained[0].endswith(": no counterpart")
    assert one([(CAT, 0.9, LEFT)], []).unexplained == ("5: missing cat 0.9000 at [2.0, 2.0, 22.0, 22.0]: no counterpart",)


def test_each_candidate_is_a_partner_once_and_the_best_iou_comes_first() -> None:
    parity = one([(CAT, 0.9, LEFT, shrunk(1)), (CAT, 0.8, LEFT)], [(CAT, 0.7, LEFT)])
    assert (parity.partners, parity.missing) == (1, 1)
    assert parity.reference_scores.tolist() == pytest.approx([0.8])
    assert parity.lone[0].score == pytest.approx(0.9)
    assert parity.lone[0].counterpart == "no counterpart"  # the only one is another's partner


def test_two_empty_masks_are_equal_and_go_to_the_nearest_box() -> None:
    empty = rectangle()
    parity = one(
        [(CAT, 0.9, LEFT, empty), (CAT, 0.8, RIGHT, empty)],
        [(CAT, 0.85, RIGHT, empty), (CAT, 0.6, LEFT, empty)],
    )
    assert parity.partners == 2
    assert by_reference(parity) == {0.9: 0.6, 0.8: 0.85}
    assert one([(CAT, 0.9, LEFT, empty)], [(CAT, 0.9, LEFT)]).partners == 0


def test_nothing_found_is_not_all_of_it() -> None:
    nothing = one([], [])
    assert (nothing.share, nothing.differences(), nothing.smallest_iou) == (None, None, None)
    assert nothing.summary() == "no detections above 0.3 in the reference"
    assert one([], [(CAT, 0.9, LEFT)]).summary() == "no detections above 0.3 in the reference, 1 surplus"
    assert one([(CAT, 0.2, LEFT)], [(CAT, 0.2, LEFT)]).share is None


def test_the_worst_pictures_come_first() -> None:
    full = [(CAT, 0.9, LEFT), (DOG, 0.8, RIGHT)]
    reference = Stored({number: found(full) for number in range(1, 6)})
    candidate = Stored(
        {
            1: found(full),
            2: found([(CAT, 0.9, LEFT), (DOG, 0.6, RIGHT)]),
            3: found(full[:1]),
            4: found([(CAT, 0.9, LEFT, shrunk(1)), (DOG, 0.8, RIGHT)]),
            5: found([(CAT, 0.9, BOTTOM), (DOG, 0.8, RIGHT)]),
        }
    )
    parity = compare(reference, candidate, [1, 2, 3, 4, 5], names={5: "five.jpg"})
    assert [(picture.image_id, picture.missing, picture.surplus) for picture in parity.worst] == [
        (5, 1, 1),
        (3, 1, 0),
        (2, 0, 0),
        (4, 0, 0),
    ]
    assert [picture.name for picture in parity.worst] == ["five.jpg", "3", "2", "4"]
    assert parity.worst[2].largest_difference == pytest.approx(0.2)
    assert parity.worst[3].smallest_iou == pytest.approx(0.95)
    assert [picture.distance for picture in parity.worst[2:]] == pytest.approx([0.2, 0.05])
    assert (parity.reference, parity.missing, parity.surplus, parity.pictures) == (10, 2, 1, 5)
    assert len(compare(reference, candidate, [1, 2, 3, 4, 5], worst=2).worst) == 2


def test_it_goes_through_json() -> None:
    parity = one([(CAT, 0.9, LEFT), (DOG, 0.8, RIGHT)], [(CAT, 0.9, LEFT)])
    told = json.loads(json.dumps(parity.to_json()))
    assert (told["partners"], told["missing"], told["surplus"], told["explained"]) == (1, 1, 0, False)
    assert told["worst"][0]["missing"] == 1
    assert len(told["unexplained"]) == 1


def test_other_classes_or_sizes_are_refused() -> None:
    here = found([(CAT, 0.9, LEFT)])
    with pytest.raises(ConfigError, match="different classes"):
        one(here, replace(here, category_ids=(1, 2, 3)))
    with pytest.raises(ConfigError, match=f"{WIDTH} x {HEIGHT + 1} pixels in one result"):
        one(here, replace(here, height=HEIGHT + 1))


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[int, float, tuple[int, int, int, int]]]:
    """Up to seven rectangles, of any class and score, equal ones and empty ones among them."""
    chosen = []
    for _ in range(draw(st.integers(0, 7))):
        x, y = draw(st.integers(0, WIDTH - 4)), draw(st.integers(0, HEIGHT - 4))
        box = (x, y, x + draw(st.integers(0, 20)), y + draw(st.integers(0, 20)))
        chosen.append((draw(st.integers(0, len(CLASSES) - 1)), draw(st.integers(0, 20)) / 20, box))
    return chosen


@settings(max_examples=60, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=3))
def test_a_store_compared_with_itself_differs_in_nothing(pictures: list[Any]) -> None:
    store = Stored({number: found(picture) for number, picture in enumerate(pictures)})
    parity = compare(store, store, store)
    wanted = sum(int((one.scores > 0.3).sum()) for one in store.values())
    assert (parity.reference, parity.partners, parity.surplus, parity.lone, parity.worst) == (wanted, wanted, 0, (), ())
    assert parity.share == (1.0 if wanted else None)
    differences = parity.differences()
    assert differences is None or set(differences.values()) == {0.0}


@settings(max_examples=60, deadline=None)
@given(rows(), rows(), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_changes_nothing(ours: list[Any], theirs: list[Any], random: Any) -> None:
    candidate = found([*theirs, *ours[:3]])
    order = list(range(len(candidate)))
    random.shuffle(order)
    one_way, other_way = one(found(ours), candidate), one(found(ours), candidate[order])
    assert one_way.summary() == other_way.summary()
    assert one_way.differences() == pytest.approx(other_way.differences())
    assert sorted(one_way.mask_ious.tolist()) == sorted(other_way.mask_ious.tolist())
    assert sorted(one_way.unexplained) == sorted(other_way.unexplained)


@settings(max_examples=60, deadline=None)
@given(rows(), st.data())
def test_dropping_some_leaves_as_many_without_partner(ours: list[Any], data: st.DataObject) -> None:
    reference = found(ours).above(0.3)
    kept = [index for index in range(len(reference)) if data.draw(st.booleans())]
    parity = one(reference, reference[kept])
    assert (parity.missing, parity.surplus, parity.partners) == (len(reference) - len(kept), 0, len(kept))
    turned = one(reference[kept], reference)
    assert (turned.missing, turned.surplus) == (0, len(reference) - len(kept))


@settings(max_examples=60, deadline=None)
@given(rows(), rows())
def test_the_counts_add_up(ours: list[Any], theirs: list[Any]) -> None:
    parity = one(ours, theirs)
    sides = [lone.side for lone in parity.lone]
    assert (sides.count("missing"), sides.count("surplus")) == (parity.missing, parity.surplus)
    assert parity.partners == len(parity.mask_ious) == len(parity.reference_scores) == len(parity.candidate_scores)
    assert parity.mask_ious.min(initial=1) > 0.9
    assert min(parity.reference_scores.min(initial=1), parity.candidate_scores.min(initial=1)) > 0.3
    assert parity.passed == (parity.missing == parity.surplus == 0)
