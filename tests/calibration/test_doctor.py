"""The calibration's doctor: each finding where it is due and nowhere else, and the fingerprints that copies are found by."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.export.artifacts import shared_artifacts
from yolact_deploy.calibration.doctor import (
    Finding,
    confidence,
    examine_confidence,
    examine_pictures,
    examine_statistics,
    swap_channels,
)
from yolact_deploy.calibration.pictures import PictureRecord, fingerprint_of
from yolact_deploy.data import sample_picture
from yolact_deploy.errors import YolactDeployError
from yolact_deploy.manifest import InputSpec
from yolact_deploy.pictures import read_picture
from yolact_deploy.preprocess import prepare
from yolact_deploy.runtime.onnx_backend import OnnxBackend

SPEC = InputSpec(550)
TELLING = 0x0F0F_F0F0_3333_CCCC  # 32 bits


def record(index: int, **changes: Any) -> PictureRecord:
    """Different from those of all other indices: a random fingerprint of 32 bits or so."""
    fingerprint = int(np.random.default_rng(index).integers(0, 2**64, dtype=np.uint64))
    fields = {
        "name": f"{index}.png",
        "sha256": f"{index:064x}",
        "width": 640,
        "height": 480,
        "fingerprint": fingerprint,
        "mean": (1.0, 2.0, 3.0),
    }
    return PictureRecord(**{**fields, **changes})


def records(count: int = 100, **changes: Any) -> list[PictureRecord]:
    return [record(index, **changes) for index in range(count)]


def examined(found: list[PictureRecord], evaluation: list[PictureRecord] | None = None, there: int = 5000) -> dict[str, str]:
    findings = examine_pictures(found, there, SPEC, evaluation or [])
    assert len({finding.code for finding in findings}) == len(findings)
    assert all(finding.sentence.endswith(".") and "wanted" in finding.sentence for finding in findings)
    return {finding.code: finding.sentence for finding in findings}


def test_good_pictures_have_no_findings() -> None:
    assert examined(records(), [record(index) for index in range(1000, 1100)]) == {}
    assert set(examined([])) == {"few"}


def test_few() -> None:
    assert "99 pictures for the calibration, 100 or more were wanted. Take more of the 5,000" in examined(records(99))["few"]
    assert "1 picture for" in examined(records(1))["few"]
    assert "Add pictures" in examined(records(99), there=99)["few"]
    assert "few" not in examined(records(100))


@pytest.mark.parametrize(("width", "height", "small"), [(274, 274, True), (274, 275, False), (275, 100, False), (20, 30, True)])
def test_small(width: int, height: int, small: bool) -> None:
    share = [record(index, width=width, height=height) for index in range(21)]
    found = examined([*share, *records(100)[21:]])
    assert ("small" in found) is small
    if small:
        assert (
            f"21 of 100 pictures are smaller than half of the network's input in both directions (0.png: {width} x {height}"
            in found["small"]
        )
    assert "small" not in examined([*share[:20], *records(100)[20:]])


def test_odd_aspects() -> None:
    assert (
        "at least 3.1 times as long" in examined([*records(99, width=400, height=100), record(99, width=310, height=960)])["one-size-odd"]
    )
    assert "one-size-odd" not in examined([*records(99, width=400, height=100), record(99, width=300, height=100)])


def test_blank() -> None:
    blank = [record(index, fingerprint=0) for index in range(7)]
    found = examined([*blank, *records(100)[7:]])
    assert "7 of 100 pictures show nothing but one colour (0.png; 1.png; 2.png; 3.png; 4.png; 2 more)" in found["blank"]
    assert set(found) == {"blank"}, "blank pictures are no copies of each other"


@given(st.integers(0, 2**32), st.sets(st.integers(0, 63), max_size=9), st.integers(0, 98), st.integers(1, 99))
@settings(deadline=None)
def test_duplicates_lie_within_4_bits(seed: int, flipped: set[int], first: int, step: int) -> None:
    """Of 100 pictures one is made another's copy, with `flipped` bits altered."""
    found = [record(seed + index, name=f"{index}.png") for index in range(100)]
    second = min(first + step, 99)
    alike = found[first].fingerprint ^ sum(1 << bit for bit in flipped)
    found[second] = record(seed + 200, name="copy.png", fingerprint=alike)
    result = examined(found)
    assert ("duplicates" in result) is (len(flipped) <= 4)
    if len(flipped) <= 4:
        assert f"1 of 100 pictures look like another one of them, for example copy.png like {first}.png;" in result["duplicates"]


def test_every_copy_counts_once() -> None:
    found = [
        *records(100),
        *(record(200 + index, fingerprint=record(5).fingerprint) for index in range(3)),
        record(300, sha256=record(7).sha256),
    ]
    assert "4 of 104 pictures look like another one of them, for example 200.png like 5.png;" in examined(found)["duplicates"]


@pytest.mark.parametrize("fingerprint", [0, 1, 0x7F, 2**64 - 1, 2**64 - 0x80])
def test_fingerprints_that_tell_nothing_are_not_compared(fingerprint: int) -> None:
    vague = [record(index, fingerprint=fingerprint) for index in range(100)]
    assert "duplicates" not in examined(vague)
    assert "evaluation-overlap" not in examined(vague, [record(500, fingerprint=fingerprint)])
    vague[80] = record(80, fingerprint=fingerprint, sha256=vague[20].sha256)
    assert "1 of 100 pictures look like another one of them, for example 80.png like 20.png" in examined(vague)["duplicates"]


@pytest.mark.parametrize("fingerprint", [0xFF, TELLING, 2**64 - 0x100])
def test_fingerprints_that_tell_enough_are_compared(fingerprint: int) -> None:
    found = examined([record(index, fingerprint=fingerprint) for index in range(100)])
    assert "99 of 100 pictures look like another one of them, for example 1.png like 0.png" in found["duplicates"]
    for pair in ((0x7F, 0xFF), (0xFF, 0x7F)):
        assert set(examined([record(index, fingerprint=one) for index, one in enumerate(pair)])) == {"few"}, "one of both is not enough"


def test_evaluation_overlap() -> None:
    found = records(100)
    far = record(70).fingerprint ^ 0b11111
    evaluation = [
        record(900, name="a.png", fingerprint=record(40).fingerprint ^ 0b1111),
        record(901, name="b.png", sha256=record(60).sha256),
        record(902, name="c.png", sha256=record(60).sha256),
        record(903, name="d.png", fingerprint=far),
    ]
    assert (
        "2 of 100 pictures are also among the evaluation's, for example 40.png as a.png;"
        in examined(found, evaluation)["evaluation-overlap"]
    )
    assert (
        "1 of 100 pictures are also among the evaluation's, for example 60.png as b.png;"
        in examined(found, evaluation[1:])["evaluation-overlap"]
    )
    assert "for example 60.png as b.png" in examined([record(60), *found[:59], *found[61:]], evaluation[1:])["evaluation-overlap"]
    assert examined(found, evaluation[3:]) == {}
    assert set(examined(found, found)) == {"evaluation-overlap"}


def test_thousands_of_pictures_take_seconds() -> None:
    fingerprints = np.random.default_rng(0).integers(0, 2**64, 5000, np.uint64)
    fingerprints[4999] = fingerprints[17] ^ np.uint64(1 << 63)
    found = [record(0, name=f"{index}.png", sha256=str(index), fingerprint=int(value)) for index, value in enumerate(fingerprints)]
    start = time.perf_counter()
    result = examined(found, found[:17])
    assert time.perf_counter() - start < 20
    assert "1 of 5,000 pictures look like another one of them, for example 4999.png like 17.png" in result["duplicates"]
    assert "17 of 5,000" in result["evaluation-overlap"]


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings]


def moved(scores: NDArray[np.float64], logits: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-(np.log(scores / (1 - scores)) + logits)))


SCORES = np.linspace(0.4, 0.9, 20)


def test_swapped_channels_are_found() -> None:
    (finding,) = examine_confidence(SCORES, moved(SCORES, 1.0))
    assert finding.code == "channels"
    assert "more confident in 20 of 20 pictures (the mean logit is 1.0 higher)" in finding.sentence
    assert examine_confidence(SCORES, moved(SCORES, 0.4)) == [], "a small difference is none"
    assert examine_confidence(SCORES, moved(SCORES, -1.0)) == []
    assert examine_confidence(SCORES, SCORES) == []
    assert examine_confidence(SCORES, []) == []


def test_swapped_channels_need_8_pairs_and_take_the_first_pictures() -> None:
    assert codes(examine_confidence(SCORES, moved(SCORES[:8], 1.0))) == ["channels"]
    assert examine_confidence(SCORES, moved(SCORES[:7], 1.0)) == []
    assert examine_confidence([*SCORES[:7], np.nan], moved(SCORES[:8], 1.0)) == [], "what is no number is no pair"
    assert codes(examine_confidence([np.nan, *SCORES[1:]], moved(SCORES, 1.0))) == ["channels"]


def test_swapped_channels_need_most_pictures() -> None:
    for better, wanted in ((14, ["channels"]), (13, [])):
        gains = np.full(20, -0.5)
        gains[:better] = 3.0
        assert codes(examine_confidence(SCORES, moved(SCORES, gains))) == wanted


def test_swapped_channels_need_more_than_chance() -> None:
    gains = np.array([0.1] * 7 + [30.0])
    scores = np.full(8, 0.5)
    assert examine_confidence(scores, moved(scores, gains)) == [], "one picture alone"
    assert codes(examine_confidence(scores, moved(scores, np.array([1.5] * 7 + [-2.0])))) == ["channels"]


def test_certain_scores_are_not_told_apart() -> None:
    assert examine_confidence(np.full(20, 0.9955), np.full(20, 1.0)) == []
    assert examine_confidence(np.r_[np.full(10, 0.999), np.full(10, 0.5)], np.full(20, 0.999)) == [], "half are as certain as before"
    assert "channels" not in codes(examine_confidence(np.full(20, 1e-9), np.full(20, 1e-3)))


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(8, 40))
def test_noise_in_the_scores_hardly_ever_looks_like_swapped_channels(seed: int, count: int) -> None:
    """A network that red and blue mean nothing to: what is found in 200 such sets."""
    generator = np.random.default_rng(seed)
    found = 0
    for _ in range(200):
        scores = generator.uniform(0.2, 0.95, count)
        found += "channels" in codes(examine_confidence(scores, moved(scores, generator.normal(0, 1, count))))
    assert found <= 20


def test_domain() -> None:
    scores = np.full(20, 0.9)
    scores[:11] = 0.3
    (finding,) = examine_confidence(scores, [])
    assert finding.code == "domain"
    assert "nothing above 0.3 in 11 of 20 pictures" in finding.sentence
    scores[0] = 0.31
    assert examine_confidence(scores, []) == []
    assert codes(examine_confidence(np.full(3, np.nan), [])) == ["domain"]
    assert examine_confidence([], []) == []


def test_scores_that_do_not_fit_each_other() -> None:
    for best, swapped in (([0.5], [0.5, 0.5]), ([[0.5]], [0.5]), (0.5, [])):
        with pytest.raises(ValueError, match=r"M <= N were wanted"):
            examine_confidence(best, swapped)


@dataclass
class Seen:
    node: str
    channel_largest: NDArray[np.float32]
    lows: Any = field(default_factory=lambda: np.zeros(12, np.float32))
    highs: Any = field(default_factory=lambda: np.arange(5, 17, dtype=np.float32))
    name: str = "tensor"


PICTURES = [f"{index}.png" for index in range(12)]
ALIVE = np.ones(8, np.float32)


def test_sound_statistics_have_no_findings() -> None:
    assert examine_statistics([], []) == []
    assert examine_statistics([Seen("a", ALIVE), Seen("b", ALIVE)], PICTURES) == []


def test_dead_channels() -> None:
    tensors = [Seen(f"layer{dead}", np.r_[np.zeros(dead), np.full(10 - dead, 1e-30)].astype(np.float32)) for dead in range(8)]
    (finding,) = examine_statistics(iter([*tensors, Seen("wide", np.r_[np.zeros(30), np.ones(70)].astype(np.float32))]), PICTURES)
    assert finding.code == "dead-channels"
    listed = "layer7: 7 of 10; layer6: 6 of 10; layer5: 5 of 10; layer4: 4 of 10; wide: 30 of 100; 3 more"
    assert f"58 of 180 channels are 0 in every picture ({listed})" in finding.sentence


def test_dominated() -> None:
    high = Seen("high", ALIVE, highs=[1.0] * 11 + [2.5])
    low = Seen("low", ALIVE, lows=np.float32([-1] * 3 + [-9] + [-1] * 8), highs=np.full(12, 2, np.float32))
    tensors = [Seen("even", ALIVE), high, low, Seen("twice", ALIVE, highs=[1.0] * 11 + [2.0])]
    (finding,) = examine_statistics(iter(tensors), PICTURES)
    assert finding.code == "dominated"
    assert "range of 2 of 4 tensors (low by 3.png, 4.5 times the next; high by 11.png, 2.5 times the next)" in finding.sentence
    alone = Seen("alone", ALIVE, lows=[0.0] * 12, highs=[0.0] * 5 + [1e-3] + [0.0] * 6)
    (finding,) = examine_statistics([high, alone], PICTURES)
    assert "(alone by 5.png, all others are 0; high by 11.png" in finding.sentence
    assert examine_statistics([Seen("nothing", ALIVE, highs=np.zeros(12, np.float32))], PICTURES) == []
    (finding,) = examine_statistics([high] * 7, PICTURES)
    assert finding.sentence.count("11.png") == 5
    assert "; 2 more)" in finding.sentence


@pytest.mark.parametrize(("count", "found"), [(10, 1), (9, 0), (1, 0), (0, 0)])
def test_dominated_needs_10_pictures(count: int, found: int) -> None:
    highs = np.ones(count)
    highs[:1] = 100
    assert len(examine_statistics([Seen("a", ALIVE, lows=np.zeros(count), highs=highs)], PICTURES[:count])) == found


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 500), st.sampled_from(["float", "raw"]), st.sampled_from(["rgb", "bgr"]), st.booleans())
def test_swapped_input_is_that_of_the_swapped_picture(seed: int, layout: Any, channels: Any, batched: bool) -> None:
    spec = InputSpec(24, layout, channels, (120.0, 110.0, 40.0), (58.0, 20.0, 99.0))
    picture = sample_picture(37, 29, seed)
    image, wanted = prepare(picture, spec), prepare(np.ascontiguousarray(picture[..., ::-1]), spec)
    found = swap_channels(image[None] if batched else image, spec)
    assert found.flags.c_contiguous
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted[None] if batched else wanted, atol=2e-5 if layout == "float" else 0)
    np.testing.assert_allclose(swap_channels(found[0] if batched else found, spec), image, atol=2e-5)


class Answers:
    """A backend that always answers the same."""

    def __init__(self, **outputs: NDArray[np.float32]) -> None:
        self.infer = lambda image: outputs


def test_confidence_leaves_out_the_background() -> None:
    scores = np.array([[[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]]], np.float32)
    assert confidence(Answers(boxes=np.ones((1, 2, 4)), scores=scores), np.zeros(1)) == 0.5
    assert confidence(Answers(detections_boxes=np.ones((1, 2, 4)), detections_scores=np.float32([[0.7, 0]])), np.zeros(1)) == np.float32(
        0.7
    )


@pytest.mark.slow
def test_confidence_is_the_best_class_of_either_graph(run_folder: Path) -> None:
    artifacts = shared_artifacts(run_folder)
    plain, suppressing = (OnnxBackend(artifacts.onnx(postprocess=kind), ["cpu"], 1) for kind in ("none", "nms"))
    image = prepare(sample_picture(), plain.manifest.input)[None]
    wanted = plain.infer(image)["scores"][0, :, 1:].max()
    assert confidence(plain, image) == pytest.approx(float(wanted), abs=1e-7)
    assert confidence(suppressing, image) == pytest.approx(float(wanted), abs=1e-5)
    with pytest.raises(YolactDeployError, match="was wanted"):
        confidence(plain, image[0])


def apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return bin(fingerprint_of(one) ^ fingerprint_of(other)).count("1")


def copied(picture: NDArray[np.uint8], width: int, height: int, quality: int) -> NDArray[np.uint8]:
    """Resized, and through JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as opened:
        return np.asarray(opened.convert("RGB"))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 500), st.integers(100, 700), st.integers(100, 700), st.integers(50, 95))
def test_resized_and_recompressed_copies_are_alike(seed: int, width: int, height: int, quality: int) -> None:
    picture = sample_picture(320, 240, seed)
    assert fingerprint_of(picture).bit_count() >= 8
    assert apart(picture, copied(picture, width, height, quality)) <= 4


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 2**32), st.integers(20, 300), st.integers(20, 300))
def test_different_noise_is_not_alike(one: int, other: int, width: int, height: int) -> None:
    first, second = (
        np.random.default_rng([side, seed]).integers(0, 256, (height, width, 3), np.uint8) for side, seed in enumerate((one, other))
    )
    assert apart(first, second) > 4


def test_photographs_are_alike_to_their_copies_alone(coco_mini: Path) -> None:
    pictures = [read_picture(path) for path in sorted(coco_mini.glob("images/*/*.jpg"))[::3]]
    assert len(pictures) > 40
    fingerprints = [record(index, fingerprint=fingerprint_of(picture)) for index, picture in enumerate(pictures)]
    halves = [fingerprint_of(copied(picture, picture.shape[1] // 2, picture.shape[0] // 2, 60)) for picture in pictures]
    copies = [record(1000 + index, fingerprint=half) for index, half in enumerate(halves)]
    assert "duplicates" not in examined(fingerprints)
    assert f" {len(pictures)} of {2 * len(pictures)} pictures look like" in " " + examined(fingerprints + copies)["duplicates"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (5, 5), (300, 40000)])
def test_blank_pictures_have_the_fingerprint_0(shape: tuple[int, int]) -> None:
    blank = np.full((*shape, 3), (12, 200, 90), np.uint8)
    assert fingerprint_of(blank) == 0
    noisy = (blank + np.random.default_rng(0).integers(-2, 3, blank.shape)).astype(np.uint8)
    assert fingerprint_of(noisy) == 0


def test_gradients_are_no_copies_of_each_other() -> None:
    ramps = [np.add.outer(np.arange(90) * down, np.arange(120) * right) for down, right in ((0, 2), (1, 1), (2, 0), (0, 1))]
    found = [
        record(index, fingerprint=fingerprint_of(np.repeat(ramp.astype(np.uint8)[..., None], 3, axis=2)))
        for index, ramp in enumerate(ramps)
    ]
    assert set(examined(found)) == {"few"}
