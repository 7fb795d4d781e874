"""What can be wrong with a calibration before any range is taken from it: its pictures, how they are prepared, single odd ones.

Each check returns findings; none is an error, for a calibration may be right in spite of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yolact_deploy.manifest import InputSpec
from yolact_deploy.runtime.onnx_backend import OnnxBackend

from .pictures import PictureRecord

__all__ = [
    "Finding",
    "TensorStatistics",
    "confidence",
    "examine_confidence",
    "examine_pictures",
    "examine_statistics",
    "swap_channels",
]

_ENOUGH = 100  # pictures; ranges change little beyond that
_SMALL_SHARE = 0.2
_EXTREME_ASPECT = 3.0
_ALIKE = 4  # bits
_TELLING = (8, 56)  # set bits of a fingerprint; beyond lie plain gradients and textures, which are alike without being copies
_FEWEST_PAIRS = 8
_MORE_CONFIDENT = 0.7  # share of pictures
_CLEAR_LOGIT = 0.5  # mean difference in confidence; the odds grow by two thirds
_CLEAR_ERRORS = 2.0  # standard errors
_CERTAIN = 0.995  # a score that counts as no more certain than this; beyond, logits are rounding errors
_FINDS = 0.3
_FEWEST_PEAKS = 10
_DOMINATES = 2.0
_NAMED = 5
_ROWS = 64  # fingerprints at a time: the distances to 5,000 others then stay in the processor's cache


@dataclass(frozen=True)
class Finding:
    """What was met: `code` is a word for programs, `sentence` says for people what was found, what was wanted, and the mend."""

    code: str
    sentence: str


class TensorStatistics(Protocol):
    """What :func:`examine_statistics` reads of a tensor.

    Attributes:
        name: of the tensor.
        node: the layer that makes it, as people know it.
        channel_largest: float32 [C], the largest absolute value of each channel in all pictures.
        lows, highs: float [N], the least and the greatest value in each picture.
    """

    @property
    def name(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def channel_largest(self) -> NDArray[np.float32]: ...
    @property
    def lows(self) -> ArrayLike: ...
    @property
    def highs(self) -> ArrayLike: ...


def examine_pictures(
    records: Sequence[PictureRecord], found: int, spec: InputSpec, evaluation: Sequence[PictureRecord] = ()
) -> list[Finding]:
    """What is wrong with the calibration's pictures.

    Args:
        records: of the pictures that are taken.
        found: how many there were to choose from.
        spec: of the network's input.
        evaluation: records of the pictures that the accuracy is measured on.

    Codes: ``few`` (below 100), ``blank``, ``small`` (more than 20 % have both sides below half of the input's), ``one-size-odd`` (all
    are more than three times as long as wide, or the other way round), ``duplicates`` and ``evaluation-overlap`` (the same bytes, or
    fingerprints within 4 bits; fingerprints that gradients and plain textures have in common are not compared).
    """
    checks = (
        _few(records, found),
        _blank(records),
        _small(records, spec),
        _odd(records),
        _duplicates(records),
        _overlap(records, evaluation),
    )
    return [finding for finding in checks if finding is not None]


def _few(records: Sequence[PictureRecord], found: int) -> Finding | None:
    if len(records) >= _ENOUGH:
        return None
    mend = f"Take more of the {found:,} that are there." if found > len(records) else "Add pictures as the network will meet them."
    return Finding("few", f"{_counted(len(records), 'picture')} for the calibration, {_ENOUGH} or more were wanted. {mend}")


def _blank(records: Sequence[PictureRecord]) -> Finding | None:
    names = [record.name for record in records if record.fingerprint == 0]
    if not names:
        return None
    return Finding(
        "blank",
        f"{len(names):,} of {_counted(len(records), 'picture')} show nothing but one colour ({_listed(names)}), pictures with something "
        "on them were wanted. Remove them, unless the network will meet such pictures.",
    )


def _small(records: Sequence[PictureRecord], spec: InputSpec) -> Finding | None:
    small = [record for record in records if 2 * max(record.width, record.height) < spec.size]
    if len(small) <= _SMALL_SHARE * len(records):
        return None
    example = small[0]
    return Finding(
        "small",
        f"{len(small):,} of {_counted(len(records), 'picture')} are smaller than half of the network's input in both directions "
        f"({example.name}: {example.width} x {example.height}, the input is {spec.size} x {spec.size}) and get blurred; pictures of the "
        "size that the network will meet were wanted. Calibrate with the originals, not with thumbnails.",
    )


def _odd(records: Sequence[PictureRecord]) -> Finding | None:
    aspects = [max(record.width, record.height) / min(record.width, record.height) for record in records]
    if not aspects or min(aspects) <= _EXTREME_ASPECT:
        return None
    return Finding(
        "one-size-odd",
        f"Every picture is at least {min(aspects):.1f} times as long as wide or as wide as long, up to {_EXTREME_ASPECT:.0f} was wanted: "
        "the network sees them as a square, with everything squeezed. Check that these are whole pictures as the network will meet them.",
    )


def _duplicates(records: Sequence[PictureRecord]) -> Finding | None:
    matches = _matches(records, records, earlier=True)
    copies = np.flatnonzero(matches >= 0)
    if not len(copies):
        return None
    second = int(copies[0])
    return Finding(
        "duplicates",
        f"{len(copies):,} of {_counted(len(records), 'picture')} look like another one of them, for example {records[second].name} like "
        f"{records[matches[second]].name}; different pictures were wanted, for copies add nothing. Remove the copies, or take frames "
        "that lie further apart.",
    )


def _overlap(records: Sequence[PictureRecord], evaluation: Sequence[PictureRecord]) -> Finding | None:
    matches = _matches(records, evaluation, earlier=False)
    shared = np.flatnonzero(matches >= 0)
    if not len(shared):
        return None
    first = int(shared[0])
    return Finding(
        "evaluation-overlap",
        f"{len(shared):,} of {_counted(len(records), 'picture')} are also among the evaluation's, for example {records[first].name} as "
        f"{evaluation[matches[first]].name}; others were wanted, for the accuracy measured on these flatters the ranges. Calibrate with "
        "training pictures.",
    )


def _matches(records: Sequence[PictureRecord], others: Sequence[PictureRecord], *, earlier: bool) -> NDArray[np.int64]:
    """int64 [N]: for each of `records` which of `others` it is a copy of, -1 for none; with `earlier` only those before it."""
    result = np.full(len(records), -1, np.int64)
    if not len(records) or not len(others):
        return result
    rows, columns = _fingerprints(records), _fingerprints(others)
    vague_rows, vague_columns = _vague(rows), _vague(columns)
    for first in range(0, len(rows), _ROWS):
        block = slice(first, first + _ROWS)
        distances = _set_bits(rows[block, None] ^ columns[None])
        distances[vague_rows[block]] = 64
        distances[:, vague_columns] = 64
        if earlier:
            distances[np.arange(len(others)) >= np.arange(len(rows))[block, None]] = 64
        nearest = distances.argmin(axis=1)
        result[block] = np.where(distances.min(axis=1) <= _ALIKE, nearest, -1)
    first_with: dict[str, int] = {}
    for index, other in enumerate(others):
        first_with.setdefault(other.sha256, index)
    for index, record in enumerate(records):
        twin = first_with.get(record.sha256, -1)
        if twin >= 0 and (twin < index or not earlier):
            result[index] = twin
    return result


def _fingerprints(records: Sequence[PictureRecord]) -> NDArray[np.uint64]:
    return np.array([record.fingerprint for record in records], np.uint64)


def _vague(fingerprints: NDArray[np.uint64]) -> NDArray[np.bool_]:
    bits = _set_bits(fingerprints)
    return (bits < _TELLING[0]) | (bits > _TELLING[1])


def _set_bits(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """How many bits of each are 1 (``numpy.bitwise_count``, which NumPy 1 lacks): summed in pairs, fours, eights, then all eight bytes."""
    pairs, fours, eights = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333), np.uint64(0x0F0F0F0F0F0F0F0F)
    one, two, four = np.uint64(1), np.uint64(2), np.uint64(4)
    values = values - ((values >> one) & pairs)
    values = (values & fours) + ((values >> two) & fours)
    values = (values + (values >> four)) & eights
    return ((values * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.uint8)


def examine_confidence(best: ArrayLike, swapped_best: ArrayLike) -> list[Finding]:
    """Whether the network finds anything, and whether it would find more with red and blue swapped.

    Args:
        best: float [N], :func:`confidence` of each picture.
        swapped_best: float [M], M <= N, the same of the first M pictures after :func:`swap_channels`.

    Codes: ``channels`` where at least 8 pictures were compared, 70 % of them are more confident when swapped, and the mean difference
    of the logits is at least 0.5 and 2 standard errors; ``domain`` where more than half of all pictures have nothing above 0.3. A score
    that is no number counts as nothing found, and is not compared.
    """
    scores, swapped = np.asarray(best, np.float64), np.asarray(swapped_best, np.float64)
    if scores.ndim != 1 or swapped.ndim != 1 or len(swapped) > len(scores):
        raise ValueError(f"scores of the shapes {list(scores.shape)} and {list(swapped.shape)}, [N] and [M] with M <= N were wanted")
    findings = []
    gains = _logits(swapped) - _logits(scores[: len(swapped)])
    gains = gains[np.isfinite(gains)]
    if len(gains) >= _FEWEST_PAIRS:
        share, mean, error = (gains > 0).mean(), gains.mean(), gains.std(ddof=1) / np.sqrt(len(gains))
        if share >= _MORE_CONFIDENT and mean >= max(_CLEAR_LOGIT, _CLEAR_ERRORS * error):
            findings.append(
                Finding(
                    "channels",
                    f"With red and blue swapped the network is more confident in {(gains > 0).sum()} of {len(gains)} pictures "
                    f"(the mean logit is {mean:.1f} higher), less confident was wanted: it was trained on the other order. Export the "
                    "checkpoint with the order that it was trained with, or mend the training's reading of pictures.",
                )
            )
    nothing = int((~(scores > _FINDS)).sum())
    if nothing > len(scores) / 2:
        findings.append(
            Finding(
                "domain",
                f"The network finds nothing above {_FINDS} in {nothing:,} of {_counted(len(scores), 'picture')}, pictures with objects "
                "of its classes were wanted. Calibrate with pictures like those that it was trained on, and check it with predict.",
            )
        )
    return findings


def _logits(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(scores, 1 - _CERTAIN, _CERTAIN)
    return np.log(clipped / (1 - clipped))


def examine_statistics(tensors: Iterable[TensorStatistics], pictures: Sequence[str]) -> list[Finding]:
    """What is odd in the values that the pictures, N names, caused.

    Codes: ``dead-channels`` (channels that are 0 in every picture) and ``dominated`` (tensors of 10 pictures or more where one
    picture's largest absolute value is more than twice the next picture's).
    """
    tensors = list(tensors)
    return [finding for finding in (_dead(tensors), _dominated(tensors, pictures)) if finding is not None]


def _dead(tensors: Sequence[TensorStatistics]) -> Finding | None:
    counts = [(int((tensor.channel_largest == 0).sum()), len(tensor.channel_largest), tensor.node) for tensor in tensors]
    dead, channels = sum(count for count, _, _ in counts), sum(count for _, count, _ in counts)
    if not dead:
        return None
    worst = sorted((entry for entry in counts if entry[0]), key=lambda entry: (-entry[0] / entry[1], -entry[0], entry[2]))
    names = [f"{node}: {count:,} of {total:,}" for count, total, node in worst]
    return Finding(
        "dead-channels",
        f"{dead:,} of {_counted(channels, 'channel')} are 0 in every picture ({_listed(names)}), values other than 0 were wanted: what "
        "such a channel holds later is not in the ranges. Take more, and more varied pictures; channels that stay 0 are dead since the "
        "training, and harmless.",
    )


def _dominated(tensors: Sequence[TensorStatistics], pictures: Sequence[str]) -> Finding | None:
    found: list[tuple[float, str, str]] = []
    for tensor in tensors:
        peaks = np.maximum(np.abs(np.asarray(tensor.lows, np.float64)), np.abs(np.asarray(tensor.highs, np.float64)))
        if len(peaks) < _FEWEST_PEAKS:
            continue
        largest = int(peaks.argmax())
        second = float(np.delete(peaks, largest).max())
        if peaks[largest] > _DOMINATES * second:
            factor = float(peaks[largest]) / second if second else float("inf")
            found.append((factor, tensor.node, pictures[largest]))
    if not found:
        return None
    found.sort(key=lambda entry: (-entry[0], entry[1]))
    names = [f"{node} by {picture}, {_times(factor)}" for factor, node, picture in found]
    return Finding(
        "dominated",
        f"One picture alone sets the range of {len(found):,} of {_counted(len(tensors), 'tensor')} ({_listed(names)}), at most "
        f"{_DOMINATES:.0f} times the next picture's largest value was wanted: all others lose precision to it. Look at the picture and "
        "remove it if it is odd, or take a method that cuts outliers off (percentile, entropy).",
    )


def _times(factor: float) -> str:
    return "all others are 0" if factor == float("inf") else f"{factor:.1f} times the next"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    return "; ".join([*names[:_NAMED], *([f"{len(names) - _NAMED:,} more"] if len(names) > _NAMED else [])])


def confidence(backend: OnnxBackend, image: NDArray[Any]) -> float:
    """The highest score of any class but the background in `image`, float32 [1, 3, S, S] or uint8 [1, S, S, 3] as prepared.

    Raises :class:`YolactDeployError` where the input is not what the model takes.
    """
    outputs = backend.infer(image)
    return float(outputs["scores"][..., 1:].max() if "scores" in outputs else outputs["detections_scores"].max())


def swap_channels(image: NDArray[Any], spec: InputSpec) -> NDArray[Any]:
    """The prepared input as if red and blue of its pictures were swapped; shape and dtype as given, with or without the batch axis.

    Normalisation is undone before and made anew after, for each channel has its own.
    """
    if spec.layout == "raw":
        return np.ascontiguousarray(image[..., ::-1])
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    return np.asarray((image[..., ::-1, :, :] * std[::-1] + mean[::-1] - mean) / std, np.float32)
