"""Which layers cost mask AP when they are quantized, and the cheapest ones to keep in floats for an allowed drop.

Every number is an AP of a whole graph on annotated pictures, no norm of a tensor: drops do not add up, so a set is judged by running it.
What was run is kept in a file, and the next search with the same graph, ranges and pictures goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx

from yolact_deploy.files import write_text

from .graph import GraphView
from .scoring import Judge, Score

__all__ = ["Plan", "Row", "Search"]

SCHEMA = 1
_TOLD = 0.02  # points of drop from which it is worth telling whose fault it is
_EXPLAINED = 3  # modules whose drop is explained

Writer = Callable[[Collection[str]], onnx.ModelProto]
"""Names of the layers to keep in floats -> the quantized graph."""


@dataclass(frozen=True)
class Row:
    """One graph that was run.

    Attributes:
        kind: ``module`` or ``layer``: that alone is quantized; ``set``: all but what is kept.
        name: of the module or layer; of a set how it came about.
        kept: layers in floats.
        mask_ap, box_ap, drop: in percent points; the drop is of mask AP against the float graph's.
        share: of the network's multiplications that are quantized (module, layer) or kept in floats (set), 0 … 1.
        sha256, pictures: of the graph that was run, and on how many pictures.
        parts: drop of mask AP where only boxes, scores (class) or coefficients and prototypes (mask) are the quantized graph's.
        decision: ``INT8``, ``FP16`` or empty.
    """

    kind: Literal["module", "layer", "set"]
    name: str
    kept: tuple[str, ...]
    mask_ap: float
    box_ap: float
    drop: float
    share: float
    sha256: str
    pictures: int
    parts: Mapping[str, float]
    decision: str = ""

    def to_json(self) -> dict[str, Any]:
        """For reports."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What a search found.

    Attributes:
        reference: the float graph's score.
        full: the row with everything quantized.
        chosen: the row of the set that is taken.
        rows: all of them, in the order of the search, with decisions.
        met: whether the chosen set's drop is allowed.
        complete: False where time ran out before everything was tried.
        seconds: spent by this run.
    """

    reference: Score
    full: Row
    chosen: Row
    rows: tuple[Row, ...]
    met: bool
    complete: bool
    seconds: float


class _OutOfTimeError(Exception):
    """The budget is spent."""


class Search:
    """One search.

    Args:
        view: the float graph.
        judge: the pictures that decide; not those of the final evaluation.
        write: makes the quantized graph.
        ranges_digest: of all that `write` depends on beside the kept layers.
        file: where results are kept.
        budget: seconds; None for no limit.
        progress: told what is run.
    """

    def __init__(
        self,
        view: GraphView,
        judge: Judge,
        write: Writer,
        ranges_digest: str,
        file: Path,
        *,
        budget: float | None = None,
        progress: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.view, self.judge, self.write, self.file, self.progress = view, judge, write, file, progress
        self.reference_bytes = view.model.SerializeToString()
        self.key = hashlib.sha256(
            f"{hashlib.sha256(self.reference_bytes).hexdigest()}:{judge.digest}:{ranges_digest}:{len(judge.ids)}".encode()
        ).hexdigest()
        self.total = sum(layer.multiplications for layer in view.layers.values())
        self.groups: dict[str, list[str]] = {}
        for layer in view.layers.values():
            self.groups.setdefault(layer.group, []).append(layer.name)
        self.known = self._load()
        self.started = time.perf_counter()
        self.deadline = None if budget is None else self.started + budget
        self.longest = 0.0

    def run(self, max_drop: float, *, sensitivity: bool = True) -> Plan:
        """Find the cheapest layers to keep for a drop of at most `max_drop` points of mask AP.

        Where everything can be quantized no set is tried; `sensitivity` asks for the modules' rows all the same.
        """
        rows: list[Row] = []
        reference = self._score("the float graph", None)
        full = self._row("set", "everything quantized", (), reference, always=True)
        rows.append(full)
        complete = True
        try:
            if full.drop > max_drop or sensitivity:
                modules = self._modules(rows, reference)
                self._explain(rows, full, reference)
                if full.drop > max_drop:
                    self._sets(rows, modules, reference, max_drop)
        except _OutOfTimeError:
            complete = False
        chosen = self._best(rows, max_drop)
        kept = set(chosen.kept)
        rows = [self._decided(row, kept, chosen) for row in rows]
        full = rows[0]
        chosen = next(row for row in rows if row.kind == "set" and row.kept == chosen.kept)
        return Plan(reference, full, chosen, tuple(rows), chosen.drop <= max_drop, complete, time.perf_counter() - self.started)

    def _modules(self, rows: list[Row], reference: Score) -> dict[str, float]:
        """The drop of each module, quantized alone."""
        drops = {}
        for group, layers in self.groups.items():
            others = tuple(name for name in self.view.layers if name not in layers)
            row = self._row("module", group, others, reference)
            rows.append(row)
            drops[group] = row.drop
        return drops

    def _sets(self, rows: list[Row], modules: dict[str, float], reference: Score, max_drop: float) -> None:
        """Keep the modules that cost most for what they save until the drop is allowed, then the layers of these that need not be kept."""
        kept: list[str] = []
        for group in sorted(modules, key=lambda name: -modules[name] / (self._share(self.groups[name]) + 1e-3)):
            if modules[group] <= 0 and kept:
                break
            kept += self.groups[group]
            rows.append(self._row("set", f"{group} kept too", self._in_order(kept), reference))
            if rows[-1].drop <= max_drop:
                break
        drops = {}
        for name in self._in_order(kept):
            row = self._row("layer", name, tuple(other for other in self.view.layers if other != name), reference)
            rows.append(row)
            drops[name] = row.drop
        best = self._best(rows, max_drop)
        by_worth = sorted(drops, key=lambda name: -drops[name] / (self._share([name]) + 1e-4))
        for count in range(1, len(by_worth)):
            few = self._in_order(by_worth[:count])
            if self._share(few) >= self._share(best.kept) and best.drop <= max_drop:
                break
            rows.append(self._row("set", f"the {count} worst layers kept" if count > 1 else "the worst layer kept", few, reference))
            if rows[-1].drop <= max_drop:
                break
        best = self._best(rows, max_drop)
        if best.drop > max_drop:
            return
        left = list(best.kept)
        for name in sorted(best.kept, key=lambda layer: -self._share([layer])):
            fewer = self._in_order(other for other in left if other != name)
            if not fewer:
                continue
            rows.append(self._row("set", f"{name} quantized after all", fewer, reference))
            if rows[-1].drop <= max_drop:
                left = list(fewer)

    def _explain(self, rows: list[Row], full: Row, reference: Score) -> None:
        """Which head suffers, for everything quantized and for the worst modules."""
        worst = sorted((row for row in rows if row.kind == "module" and row.drop > _TOLD), key=lambda row: -row.drop)[:_EXPLAINED]
        for row in [full, *worst]:
            place = next(index for index, other in enumerate(rows) if other.kind == row.kind and other.kept == row.kept)
            rows[place] = replace(row, parts=self._parts(row, reference))

    def _parts(self, row: Row, reference: Score) -> dict[str, float]:
        key = f"parts:{_kept_key(row.kept)}"
        if key not in self.known:
            self._check_time(2.5)
            self.progress(f"which head {row.name} costs")
            found = self.judge.hybrids(self.reference_bytes, self.write(row.kept))
            self.known[key] = {part: reference.mask_ap - value for part, value in found.items()}
            self._save()
        return dict(self.known[key])

    def _row(
        self, kind: Literal["module", "layer", "set"], name: str, kept: Collection[str], reference: Score, *, always: bool = False
    ) -> Row:
        score = self._score(name, kept, always=always)
        quantized = [layer for layer in self.view.layers if layer not in set(kept)]
        share = self._share(kept if kind == "set" else quantized)
        drop = reference.mask_ap - score.mask_ap
        return Row(kind, name, tuple(kept), score.mask_ap, score.box_ap, drop, share, score.sha256, score.pictures, {})

    def _score(self, what: str, kept: Collection[str] | None, *, always: bool = False) -> Score:
        key = "float" if kept is None else _kept_key(kept)
        if key not in self.known:
            if kept is not None and not always:
                self._check_time(1.0)
            self.progress(what)
            start = time.perf_counter()
            score = self.judge.score(self.reference_bytes) if kept is None else self.judge.score(self.write(kept), as_written=True)
            self.longest = max(self.longest, time.perf_counter() - start)
            self.known[key] = asdict(score)
            self._save()
        return Score(**self.known[key])

    def _check_time(self, runs: float) -> None:
        if self.deadline is not None and time.perf_counter() + runs * self.longest > self.deadline:
            raise _OutOfTimeError

    def _best(self, rows: list[Row], max_drop: float) -> Row:
        """Of the sets with an allowed drop the cheapest; where there is none the one with the least drop."""
        sets = [row for row in rows if row.kind == "set"]
        allowed = [row for row in sets if row.drop <= max_drop]
        return min(allowed, key=lambda row: (row.share, row.drop)) if allowed else min(sets, key=lambda row: (row.drop, row.share))

    def _decided(self, row: Row, kept: set[str], chosen: Row) -> Row:
        if row.kind == "set":
            decision = "taken" if row.kept == chosen.kept else ""
        else:
            layers = {row.name} if row.kind == "layer" else set(self.groups[row.name])
            inside = len(layers & kept)
            decision = "FP16" if inside == len(layers) else "INT8" if not inside else f"{inside} of {len(layers)} layers FP16"
        return replace(row, decision=decision)

    def _share(self, layers: Collection[str]) -> float:
        return sum(self.view.layers[name].multiplications for name in layers) / self.total

    def _in_order(self, names: Any) -> tuple[str, ...]:
        wanted = set(names)
        return tuple(name for name in self.view.layers if name in wanted)

    def _load(self) -> dict[str, Any]:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            if found["schema"] != SCHEMA or found["key"] != self.key:
                return {}
            return {str(key): entry for key, entry in found["known"].items() if _sound(str(key), entry)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def _save(self) -> None:
        write_text(self.file, json.dumps({"schema": SCHEMA, "key": self.key, "known": self.known}, indent=1))


def _kept_key(kept: Collection[str]) -> str:
    return hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:16]


def _sound(key: str, entry: dict[str, Any]) -> bool:
    """Whether an entry of the file is what is kept there."""
    if key.startswith("parts:"):
        return all(part in ("box", "class", "mask") and isinstance(value, float) for part, value in entry.items())
    return isinstance(Score(**entry).mask_ap, float)
