"""Matching priors with objects, against loops over every pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import losses as reference
from tests.training.problems import as_target, make_objects, make_priors
from yolact_deploy.postprocess import decode_boxes
from yolact_deploy.training.boxes import encode, overlaps
from yolact_deploy.training.targets import NEUTRAL, Target, match_priors


@given(seed=st.integers(0, 10_000), objects=st.integers(0, 6), crowds=st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_matching_equals_the_loops(seed: int, objects: int, crowds: int) -> None:
    random = np.random.Generator(np.random.PCG64(seed))
    priors, found = make_priors(random), make_objects(random, objects, crowds)
    matched = match_priors(as_target(found), torch.from_numpy(priors))
    classes, owner = reference.match(found, priors)
    assert matched.classes.tolist() == classes
    positive = [i for i, value in enumerate(classes) if value > 0]
    assert matched.objects[positive].tolist() == [owner[i] for i in positive]
    wanted = [reference.encode(found.boxes[owner[i]], priors[i]) for i in positive]
    np.testing.assert_allclose(matched.loc[positive].numpy().reshape(-1, 4), np.array(wanted).reshape(-1, 4), rtol=1e-3, atol=1e-4)


def target(boxes: list[list[float]], labels: list[int], crowds: list[list[float]] | None = None) -> Target:
    return Target(
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.zeros(len(labels), 4, 4, dtype=torch.uint8),
        torch.tensor(crowds or []).reshape(-1, 4),
    )


@pytest.mark.parametrize(
    ("width", "wanted"),
    [(0.50, 3), (0.499, NEUTRAL), (0.40, NEUTRAL), (0.399, 0)],
    ids=["positive from one half", "neutral below", "neutral from 0.4", "background below"],
)
def test_thresholds(width: float, wanted: int) -> None:
    """The first prior is the object's own; the second overlaps it by `width` of a unit box."""
    priors = torch.tensor([[0.5, 0.5, 1.0, 1.0], [width / 2, 0.5, width, 1.0]])
    assert match_priors(target([[0, 0, 1, 1]], [2]), priors).classes.tolist() == [3, wanted]


def test_each_object_keeps_a_prior_however_small_the_overlap() -> None:
    priors = torch.tensor([[0.5, 0.5, 0.9, 0.9], [0.1, 0.1, 0.02, 0.02]])
    boxes = [[0.1, 0.1, 0.9, 0.9], [0.0, 0.0, 0.3, 0.3]]
    assert match_priors(target(boxes, [0, 1]), priors).classes.tolist() == [1, 2]


def test_more_objects_than_priors_leaves_some_without() -> None:
    found = match_priors(target([[0, 0, 0.5, 0.5], [0, 0, 1, 1], [0.5, 0.5, 1, 1]], [0, 1, 2]), torch.tensor([[0.5, 0.5, 1, 1]]))
    assert found.classes.tolist() == [2]


def test_crowds_make_background_neutral_and_leave_objects() -> None:
    priors = torch.tensor([[0.25, 0.25, 0.2, 0.2], [0.75, 0.75, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]])
    found = match_priors(target([[0.15, 0.15, 0.35, 0.35]], [0], [[0.0, 0.0, 0.64, 0.9]]), priors)
    assert found.classes.tolist() == [1, 0, NEUTRAL]


def test_targets_decode_to_the_objects_box() -> None:
    random = np.random.Generator(np.random.PCG64(1))
    priors = make_priors(random)
    boxes = np.repeat(make_objects(random, 1).boxes, len(priors), 0).astype(np.float32)
    found = encode(torch.from_numpy(boxes), torch.from_numpy(priors)).numpy()
    np.testing.assert_allclose(decode_boxes(found, priors), boxes, atol=1e-6)


def test_boxes_without_area_stay_finite() -> None:
    empty = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert bool(torch.isfinite(encode(empty, torch.tensor([[0.5, 0.5, 0.1, 0.1]]))).all())
    assert overlaps(empty, empty).tolist() == [[0.0]]
    assert overlaps(empty, empty, over_first=True).tolist() == [[0.0]]
