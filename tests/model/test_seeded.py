"""Weights drawn from a seed: the same everywhere, and good enough to find something."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from yolact_deploy.assembly import Heads, detect
from yolact_deploy.classes import COCO
from yolact_deploy.data import sample_picture
from yolact_deploy.manifest import InputSpec
from yolact_deploy.model import Yolact
from yolact_deploy.model.seeded import seeded_state
from yolact_deploy.postprocess import PostprocessSettings, decode_boxes, softmax
from yolact_deploy.preprocess import prepare
from yolact_deploy.variants import VARIANTS, get_variant

NANO = get_variant("yolact_nano")


def digest(seed: int) -> str:
    whole = hashlib.sha256()
    for key, value in sorted(seeded_state(NANO, seed).items()):
        whole.update(key.encode() + value.numpy().tobytes())
    return whole.hexdigest()


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert digest(3) == digest(3)


def test_torchs_own_seed_and_default_type_do_not_matter() -> None:
    first = digest(0)
    torch.manual_seed(99)
    assert digest(0) == first
    assert {value.dtype for value in seeded_state(NANO).values()} == {torch.float32, torch.int64}


def test_different_seeds_differ_in_every_tensor() -> None:
    first, second = seeded_state(NANO, 0), seeded_state(NANO, 1)
    same = [key for key in first if torch.equal(first[key], second[key]) and not key.endswith("num_batches_tracked")]
    assert same == []


def test_keys_of_the_same_shape_differ() -> None:
    state = seeded_state(NANO)
    assert not torch.equal(state["proto_net.0.weight"], state["proto_net.2.weight"])


@pytest.mark.parametrize("name", ["yolact_nano", "yolact_darknet53", "yolact_plus_resnet50"])
def test_all_values_are_finite_and_fit_the_network(name: str) -> None:
    state = seeded_state(VARIANTS[name])
    assert all(torch.isfinite(value).all() for value in state.values())
    assert all((value > 0).all() for key, value in state.items() if key.endswith("running_var"))
    with torch.device("meta"):
        network = Yolact(VARIANTS[name])
    network.load_state_dict(state, assign=True)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nano_finds_something_on_the_sample_picture(seed: int) -> None:
    network = Yolact(NANO)
    network.load_state_dict(seeded_state(NANO, seed))
    picture = sample_picture()
    with torch.inference_mode():
        outputs = network.eval()(torch.from_numpy(prepare(picture, InputSpec.of(NANO)))[None])
    assert all(torch.isfinite(tensor).all() for tensor in outputs[:4])
    loc, logits, coefficients, prototypes = (tensor[0].numpy() for tensor in outputs[:4])
    heads = Heads(decode_boxes(loc, network.priors.numpy()), softmax(logits), coefficients, prototypes)
    found = detect(heads, picture.shape[1], picture.shape[0], COCO, PostprocessSettings(score_threshold=0.15)).above(0.15)
    assert len(found) >= 1
    assert np.count_nonzero(found.areas) >= 1
