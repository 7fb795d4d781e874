"""The search on a judge whose drops are known: what it keeps, what it tells, where it stops and how it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest

from yolact_deploy.calibration import search as search_module
from yolact_deploy.calibration.graph import GraphView, Layer
from yolact_deploy.calibration.scoring import Judge, Score
from yolact_deploy.calibration.search import Plan, Search

FLOAT_AP = 50.0
LAYERS = {  # multiplications
    "backbone/conv1": ("backbone stem", 10),
    "backbone/layers.0.0.conv1": ("backbone stage 1", 100),
    "backbone/layers.0.0.conv2": ("backbone stage 1", 300),
    "protonet/0": ("protonet", 200),
    "protonet/10": ("protonet", 20),
    "heads/mask_layer": ("head mask", 50),
}


class FakeView:
    """A float graph of :data:`LAYERS`."""

    def __init__(self) -> None:
        self.model = onnx.ModelProto(producer_name="float")
        self.layers = {
            name: Layer(name, group, (place,), f"{name}.weight", count, count)
            for place, (name, (group, count)) in enumerate(LAYERS.items())
        }


class FakeJudge:
    """Each quantized layer costs what `drops` says, a pair in `together` that much more; runs are counted."""

    def __init__(self, drops: Mapping[str, float], together: Mapping[tuple[str, str], float] | None = None) -> None:
        self.drops, self.together = drops, together or {}
        self.ids, self.digest = [1, 2, 3], "pictures"
        self.runs: list[tuple[str, ...]] = []
        self.explained: list[tuple[str, ...]] = []
        self.interrupt_at = 10**9
        self.floor = 0.0  # what quantizing anything at all costs

    def score(self, model: onnx.ModelProto | bytes, *, as_written: bool = False) -> Score:
        if len(self.runs) == self.interrupt_at:
            raise KeyboardInterrupt
        if isinstance(model, bytes):
            assert not as_written
            self.runs.append(("float",))
            return Score(FLOAT_AP, 60.0, hashlib.sha256(model).hexdigest(), 3)
        assert as_written, "graphs for TensorRT are judged as they are written"
        kept = json.loads(model.producer_name)
        self.runs.append(tuple(kept))
        return Score(FLOAT_AP - self.drop(kept), 59.0, hashlib.sha256(model.SerializeToString()).hexdigest(), 3)

    def drop(self, kept: Collection[str]) -> float:
        quantized = [name for name in LAYERS if name not in kept]
        pairs = sum(more for (one, other), more in self.together.items() if one in quantized and other in quantized)
        return sum(self.drops.get(name, 0.0) for name in quantized) + pairs + self.floor

    def hybrids(self, reference: bytes, model: onnx.ModelProto | bytes) -> dict[str, float]:
        assert not isinstance(model, bytes)
        kept = json.loads(model.producer_name)
        self.explained.append(tuple(kept))
        return {"box": FLOAT_AP, "class": FLOAT_AP, "mask": FLOAT_AP - self.drop(kept)}


def write(kept: Collection[str]) -> onnx.ModelProto:
    return onnx.ModelProto(producer_name=json.dumps([name for name in LAYERS if name in kept]))


def made(judge: FakeJudge, folder: Path, **options: Any) -> Search:
    digest = options.pop("digest", "ranges")
    return Search(cast(GraphView, FakeView()), cast(Judge, judge), write, digest, folder / "search.json", **options)


def run(drops: Mapping[str, float], max_drop: float, folder: Path, **together: Any) -> Plan:
    return made(FakeJudge(drops, together.get("pairs")), folder).run(max_drop)


def test_nothing_is_kept_where_everything_may_be_quantized(tmp_path: Path) -> None:
    judge = FakeJudge({"protonet/0": 0.1})
    plan = made(judge, tmp_path).run(0.2, sensitivity=False)
    assert plan.met
    assert plan.chosen.kept == ()
    assert judge.runs == [("float",), ()]
    assert plan.chosen.decision == "taken"


def test_rows_of_modules(tmp_path: Path) -> None:
    """Each module alone: all other layers are in floats, and what it costs is told with graph and pictures."""
    drops = {"backbone/layers.0.0.conv1": 0.4, "backbone/layers.0.0.conv2": 0.2, "heads/mask_layer": 0.1, "backbone/conv1": -0.05}
    judge = FakeJudge(drops)
    plan = made(judge, tmp_path).run(1.0)
    rows = {row.name: row for row in plan.rows if row.kind == "module"}
    assert list(rows) == ["backbone stem", "backbone stage 1", "protonet", "head mask"]
    assert {name: round(row.drop, 6) for name, row in rows.items()} == {
        "backbone stem": -0.05,
        "backbone stage 1": 0.6,
        "protonet": 0.0,
        "head mask": 0.1,
    }
    stage = rows["backbone stage 1"]
    assert set(stage.kept) == set(LAYERS) - {"backbone/layers.0.0.conv1", "backbone/layers.0.0.conv2"}
    assert stage.share == pytest.approx(400 / 680)
    assert stage.pictures == 3
    assert stage.sha256 == hashlib.sha256(write(stage.kept).SerializeToString()).hexdigest()
    assert stage.parts == pytest.approx({"box": 0.0, "class": 0.0, "mask": 0.6})
    assert rows["protonet"].parts == {}, "not worth telling"
    assert {row.decision for row in rows.values()} == {"INT8"}
    assert plan.full.parts["mask"] == pytest.approx(0.65)


def test_the_cheapest_layers_are_kept(tmp_path: Path) -> None:
    """protonet costs 1.1, all but 0.1 of it by its small last layer: that alone stays in floats."""
    plan = run({"protonet/0": 0.1, "protonet/10": 1.0, "backbone/layers.0.0.conv2": 0.15}, 0.3, tmp_path)
    assert plan.met
    assert plan.complete
    assert plan.chosen.kept == ("protonet/10",)
    assert plan.chosen.drop == pytest.approx(0.25)
    assert plan.chosen.share == pytest.approx(20 / 680)
    decisions = {row.name: row.decision for row in plan.rows if row.kind != "set"}
    assert decisions["protonet"] == "1 of 2 layers FP16"
    assert decisions["protonet/10"] == "FP16"
    assert decisions["protonet/0"] == "INT8"
    assert [row.kept for row in plan.rows if row.decision == "taken"] == [("protonet/10",)]


def test_what_costs_together_is_found_by_running_it(tmp_path: Path) -> None:
    """Alone neither costs anything; the sets are judged as a whole."""
    pairs = {("backbone/conv1", "heads/mask_layer"): 2.0}
    plan = run({}, 0.3, tmp_path, pairs=pairs)
    assert plan.met
    assert plan.chosen.kept in (("backbone/conv1",), ("heads/mask_layer",))


def test_random_costs_are_met_without_waste(tmp_path: Path) -> None:
    """The drop is allowed, and no kept layer can be quantized after all."""
    random = np.random.default_rng(0)
    for trial in range(40):
        drops = {name: float(value) for name, value in zip(LAYERS, random.exponential(0.3, len(LAYERS)), strict=True)}
        folder = tmp_path / str(trial)
        folder.mkdir()
        judge = FakeJudge(drops)
        plan = made(judge, folder).run(0.4)
        assert plan.met
        assert plan.chosen.drop <= 0.4
        assert judge.drop(plan.chosen.kept) == pytest.approx(plan.chosen.drop)
        for name in plan.chosen.kept:
            fewer = [other for other in plan.chosen.kept if other != name]
            assert judge.drop(fewer) > 0.4 or not fewer, (trial, name)


def test_a_drop_that_cannot_be_met_takes_the_least(tmp_path: Path) -> None:
    judge = FakeJudge(dict.fromkeys(LAYERS, 0.25))
    judge.floor = 0.5
    plan = made(judge, tmp_path).run(0.3)
    assert not plan.met
    assert plan.complete
    assert plan.chosen.kept == tuple(LAYERS)
    assert plan.chosen.drop == 0.5


def test_a_drop_of_just_as_much_is_allowed(tmp_path: Path) -> None:
    """Keeping protonet's last layer alone is cheaper than both its layers, and leaves exactly what is allowed."""
    plan = run({"protonet/0": 0.125, "protonet/10": 1.0, "backbone/layers.0.0.conv2": 0.125}, 0.25, tmp_path)
    assert plan.met
    assert plan.chosen.drop == 0.25
    assert plan.chosen.kept == ("protonet/10",)


def test_nothing_is_run_for_nothing(tmp_path: Path) -> None:
    """With a drop that is allowed already, modules are told and no set is tried; with one that is not, no set dearer than one that does."""
    plan = run({"protonet/10": 0.25}, 0.25, tmp_path)
    assert [row.name for row in plan.rows if row.kind == "set"] == ["everything quantized"]
    (tmp_path / "other").mkdir()
    drops = {"protonet/0": 0.5, "protonet/10": 0.5, "heads/mask_layer": 0.0625}
    plan = run(drops, 0.3, tmp_path / "other")
    assert [row.name for row in plan.rows if row.kind == "set"] == [
        "everything quantized",
        "protonet kept too",
        "the worst layer kept",
        "protonet/0 quantized after all",
        "protonet/10 quantized after all",
    ]


def test_a_second_run_takes_what_is_known(tmp_path: Path) -> None:
    drops = {"protonet/0": 0.1, "protonet/10": 1.0}
    first = run(drops, 0.3, tmp_path)
    judge = FakeJudge(drops)
    again = made(judge, tmp_path).run(0.3)
    assert judge.runs == []
    assert judge.explained == []
    assert [row.to_json() for row in again.rows] == [row.to_json() for row in first.rows]


@pytest.mark.parametrize("stop", [0, 1, 3, 6, 9])
def test_an_interrupted_search_goes_on(tmp_path: Path, stop: int) -> None:
    drops = {"protonet/0": 0.1, "protonet/10": 1.0, "backbone/layers.0.0.conv2": 0.15}
    (tmp_path / "whole").mkdir()
    whole = run(drops, 0.3, tmp_path / "whole")
    judge = FakeJudge(drops)
    judge.interrupt_at = stop
    with pytest.raises(KeyboardInterrupt):
        made(judge, tmp_path).run(0.3)
    judge.interrupt_at = 10**9
    plan = made(judge, tmp_path).run(0.3)
    assert [row.to_json() for row in plan.rows] == [row.to_json() for row in whole.rows]
    assert len(set(judge.runs)) == len(judge.runs), "nothing is run twice"


@pytest.mark.parametrize("change", ["ranges", "pictures", "damaged", "schema", "odd entries"])
def test_results_of_something_else_are_not_taken(tmp_path: Path, change: str) -> None:
    drops = {"protonet/0": 0.1}
    run(drops, 0.3, tmp_path)
    judge = FakeJudge(drops)
    file = tmp_path / "search.json"
    if change == "pictures":
        judge.digest = "other pictures"
    elif change == "damaged":
        file.write_text(file.read_text()[:-20])
    elif change != "ranges":
        found = json.loads(file.read_text())
        if change == "schema":
            found["schema"] = 99
        else:
            found["known"]["float"] = {"mask_ap": "many"}
        file.write_text(json.dumps(found))
    made(judge, tmp_path, digest="others" if change == "ranges" else "ranges").run(0.3)
    assert ("float",) in judge.runs


def test_the_budget_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes a second here: with 5.5 of them the float graph, the whole and three modules are run, with more time the rest."""
    now = [0.0]
    monkeypatch.setattr(search_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    judge = FakeJudge({"protonet/10": 1.0})
    plain = judge.score

    def slow(model: onnx.ModelProto | bytes, *, as_written: bool = False) -> Score:
        now[0] += 1.0
        return plain(model, as_written=as_written)

    monkeypatch.setattr(judge, "score", slow)
    plan = made(judge, tmp_path, budget=5.5).run(0.3)
    assert not plan.complete
    assert not plan.met
    assert plan.seconds == 5.0
    assert len(judge.runs) == 5
    assert plan.chosen.kept == ()
    (tmp_path / "short").mkdir()
    hasty = made(judge, tmp_path / "short", budget=0.5).run(0.3)
    assert hasty.full.mask_ap == FLOAT_AP - 1.0, "the float graph and the whole are always run"
    later = made(judge, tmp_path, budget=60.0).run(0.3)
    assert later.complete
    assert later.met
    assert later.chosen.kept == ("protonet/10",)
