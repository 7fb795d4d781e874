"""The order of (prior, class) entries: higher score first, then lower prior, then lower class; and its first part at low cost.

Sorting 19,248 priors for each of 80 classes is most of Fast NMS's time, though only the best few hundred entries decide the
result. The functions here cut a prefix of the whole order without sorting the rest; a prefix restricted to a class is a prefix of
that class's ranking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Entries", "best_entries", "class_entries", "first_ranked"]

Indices = NDArray[np.int64]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Entries:
    """E entries in rank order: `priors` int64 [E], `labels` int64 [E] (0-based without background), `scores` float32 [E]."""

    priors: Indices
    labels: Indices
    scores: Scores

    def __len__(self) -> int:
        return len(self.priors)

    def __getitem__(self, chosen: NDArray[Any] | slice) -> Entries:
        return Entries(self.priors[chosen], self.labels[chosen], self.scores[chosen])

    def merged(self, other: Entries) -> Entries:
        """Both in one ranking."""
        priors = np.concatenate([self.priors, other.priors])
        labels = np.concatenate([self.labels, other.labels])
        scores = np.concatenate([self.scores, other.scores])
        return Entries(priors, labels, scores)[np.lexsort((labels, priors, -scores))]


def first_ranked(values: Scores, count: int) -> Indices:
    """Ascending indices of the first `count` of `values` ranked by higher value, then lower index; int64 [min(count, n)]."""
    if len(values) <= count:
        return np.arange(len(values))
    cut = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > cut)
    equal = np.flatnonzero(values == cut)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def best_entries(foreground: Scores, best: Scores, candidates: Indices, count: int, least: float = -np.inf) -> Entries:
    """The first `count` entries of all candidates' (prior, class) entries.

    They belong to the first `count` priors ranked by their best score: each of these brings at least one entry, which ranks before
    every entry of the priors left out.

    Args:
        foreground: float32 [P, C - 1], no NaN in a candidate's row.
        best: float32 [P], each row's maximum.
        candidates: int64 [n], ascending.
        count: entries wanted, at least 1.
        least: only entries that score at least this exist; every candidate has one.
    """
    ranked = first_ranked(best[candidates], count)
    rows = candidates[ranked]
    table = foreground[rows]
    if len(ranked) < len(candidates):
        least = best[rows].min()
    entries = np.flatnonzero(table >= np.float32(least))
    entries = entries[first_ranked(table.ravel()[entries], count)]
    scores = table.ravel()[entries]
    order = np.argsort(-scores, kind="stable")
    within, labels = np.divmod(entries[order], table.shape[1])
    return Entries(rows[within], labels, scores[order])


def class_entries(foreground: Scores, candidates: Indices, label: int, least: float, count: int | None) -> Entries:
    """One class's first `count` entries (None: all) whose score is at least `least`."""
    column = foreground[candidates, label]
    places = np.flatnonzero(column >= np.float32(least))
    if count is not None:
        places = places[first_ranked(column[places], count)]
    places = places[np.argsort(-column[places], kind="stable")]
    return Entries(candidates[places], np.full(len(places), label, np.int64), column[places])
