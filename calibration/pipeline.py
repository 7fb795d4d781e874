"""The whole calibration: pictures, statistics, ranges, corrections, the search, both graphs, and how exact each of them is."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from yolact_deploy.engines.conversion import int8_with_float16
from yolact_deploy.engines.source import read_source
from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.export.passes import convert_to_float16
from yolact_deploy.files import atomic_outputs, refuse_overwrite, sha256_of
from yolact_deploy.onnx_file import read_onnx

from .collect import Collector, collect
from .correction import corrected_biases, equalize
from .doctor import Finding, examine_confidence, examine_pictures, examine_statistics
from .document import SCHEMA, accuracy_entries, is_report_or_graph, range_entries, stamp, summary
from .graph import GraphView, float_graph
from .modelopt import Opinion, check_modelopt, quantize_with_modelopt
from .options import Accuracy, CalibrationOptions, CalibrationResult, Progress, artifact_paths
from .pictures import CalibrationPictures, PictureRecord
from .placement import calibrated_values, place_onnxruntime, place_tensorrt
from .ranges import Range, find_range
from .scoring import Judge, rounds_float16
from .search import Plan, Search
from .statistics import Statistics
from .weights import weight_integers, weight_scales
from .writing import write_onnxruntime, write_tensorrt

__all__ = ["Calibrator"]


class Calibrator:
    """One model being calibrated, step by step; :meth:`run` takes them all.

    `folder` keeps statistics, search results and prepared pictures for later runs.
    Raises :class:`ModelFileError` and :class:`ConfigError` for a model that is none of ours, or not float32, and
    :class:`MissingDependencyError` where ModelOpt is asked for and not installed.
    """

    def __init__(self, model: Path, folder: Path, options: CalibrationOptions, progress: Progress = lambda what, done, total: None) -> None:
        self.path, self.folder, self.options, self.progress = model, folder, options, progress
        if options.quantizer == "modelopt":
            check_modelopt()
        float_graph(read_onnx(model), model)
        self.source = read_source(model)
        self.model, self.manifest, self.sha256 = self.source.model, self.source.manifest, self.source.sha256
        self.view = GraphView(self.model)
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.held_bytes = 0
        self.kept_by_hand = self._layers_of(options.keep)

    def run(
        self,
        pictures: CalibrationPictures,
        output: Path | None = None,
        *,
        search: Judge | None = None,
        report: Judge | None = None,
        measured: Sequence[PictureRecord] = (),
        origin: Mapping[str, str] | None = None,
    ) -> CalibrationResult:
        """Calibrate with `pictures` and write both graphs and the report.

        `search` decides what the search keeps, `report` tells the accuracy of what is written; `measured` are the pictures of the latter,
        which the doctor compares with; `origin` says in words where the pictures come from.
        """
        paths = artifact_paths(self.path, output, self.folder.parent)
        for path in paths:
            refuse_overwrite(path, ours=is_report_or_graph(path), force=self.options.force)
        statistics = self._statistics(pictures, self.view, self.sha256, "")
        findings = self._findings(pictures, statistics, measured)
        if self.options.equalization:
            statistics = self._equalized(pictures, statistics)
        ranges = self._ranges(statistics)
        weights, biases = self._weights(statistics)
        digest = _digest(ranges, biases, self.options)

        def write(kept: Collection[str]) -> onnx.ModelProto:
            return write_tensorrt(self.view, place_tensorrt(self.view, self._all_kept(kept)), ranges, rounded=weights, biases=biases)

        plan = None if search is None else self._search(search, write, digest)
        kept = self._all_kept(plan.chosen.kept if plan else ())
        fast = write_onnxruntime(self.view, place_onnxruntime(self.view, kept), ranges, rounded=weights, biases=biases)
        told = summary(self.source, self.options, pictures, statistics, kept, plan, digest, dict(origin or {}))
        opinion = self._opinion(pictures, statistics, kept) if self.options.quantizer == "modelopt" else None
        made = {"tensorrt": write(kept) if opinion is None else opinion.model, "onnxruntime": fast}
        own: dict[str, Any] = {"quantizer": "own"}
        facts = {"tensorrt": own if opinion is None else opinion.facts, "onnxruntime": own}
        for target, graph in made.items():
            stamp(graph, self.source, {**told, **facts[target], "target": target})
        graphs = {target: graph.SerializeToString() for target, graph in made.items()}  # measured and written: the same bytes
        accuracy = self._accuracy(report, graphs if opinion is None else {**graphs, "own": write(kept).SerializeToString()})
        skipped = tuple(pictures.skipped)
        document = {
            "schema": SCHEMA,
            **told,
            "seconds": {name: round(spent, 2) for name, spent in self.seconds.items()},
            "held_bytes": self.held_bytes,
            "findings": [asdict(finding) for finding in findings],
            "skipped": [list(entry) for entry in skipped],
            "notes": self.notes,
            "accuracy": accuracy_entries(accuracy),
            "rows": [] if plan is None else [row.to_json() for row in plan.rows],
            "ranges": range_entries(statistics, ranges, {} if opinion is None else opinion.ranges),
            "quantizers": {path.name: facts[target]["quantizer"] for path, target in zip(paths, made, strict=False)},
        }
        self._write(paths, graphs, document)
        return CalibrationResult(*paths, tuple(findings), skipped, kept, plan, tuple(accuracy), tuple(self.notes), document)

    def _all_kept(self, kept: Collection[str]) -> tuple[str, ...]:
        wanted = {*kept, *self.kept_by_hand}
        return tuple(name for name in self.view.layers if name in wanted)

    def _layers_of(self, names: Sequence[str]) -> tuple[str, ...]:
        """Layers by name, or all of a module (``backbone stage 1``, ``protonet``)."""
        found: list[str] = []
        for name in names:
            layers = [layer.name for layer in self.view.layers.values() if name in (layer.name, layer.group)]
            if not layers:
                groups = ", ".join(dict.fromkeys(layer.group for layer in self.view.layers.values()))
                raise ConfigError(f"There is no layer or module {name!r}; modules are {groups}.", "Mend --keep.")
            found += layers
        return tuple(dict.fromkeys(found))

    def _statistics(self, pictures: CalibrationPictures, view: GraphView, sha256: str, kind: str) -> Statistics:
        values = calibrated_values(view)
        nodes = [(name, view.nodes[view.producers[name]].name if name in view.producers else "the input") for name in values]
        statistics = Statistics.empty(sha256, nodes)
        file = self.folder / f"{self.path.stem}{kind}.{sha256[:8]}.npz"
        if file.exists() and not self.options.fresh:
            statistics = self._resumed(file, statistics, pictures)
        collector = Collector(view, self.manifest, list(values), threads=self.options.threads)
        start = time.perf_counter()
        what = "running the float network" + (", channels equalized" if kind else "")
        collect(collector, pictures, statistics, save_to=file, progress=lambda done, total: self.progress(what, done, total))
        self.seconds[what] = time.perf_counter() - start
        self.held_bytes = collector.held_bytes
        return statistics

    def _resumed(self, file: Path, empty: Statistics, pictures: CalibrationPictures) -> Statistics:
        """What an earlier run left in `file`, where it began as this one does."""
        try:
            found = Statistics.load(file)
        except ModelFileError as error:
            self.notes.append(f"{error.message} They are gathered anew.")
            return empty
        order = {path: place for place, path in enumerate(pictures.paths())}
        reason = ""
        if not found.fits(empty):
            reason = "they are of another version of this package"
        elif len(found.pictures) > pictures.count or any(pictures.folder / record.name not in order for record in found.pictures):
            reason = "they are of other pictures"
        elif any(not _unchanged(pictures.folder / record.name, record) for record in found.pictures):
            reason = "pictures have changed"
        else:
            places = [order[pictures.folder / record.name] for record in found.pictures]
            if places != sorted(places) or (places and places[-1] + 1 - len(places) > len(order) - pictures.count):
                reason = "they are of other pictures"
        if reason:
            self.notes.append(f"The statistics in {file} are not used, {reason}; they are gathered anew.")
            return empty
        if found.pictures:
            self.notes.append(f"{len(found.pictures)} of {pictures.count} pictures were run before: {file} (--fresh runs them again).")
        return found

    def _findings(self, pictures: CalibrationPictures, statistics: Statistics, measured: Sequence[PictureRecord]) -> list[Finding]:
        return [
            *examine_pictures(statistics.pictures, pictures.found, self.manifest.input, measured),
            *examine_confidence(statistics.best, statistics.swapped_best),
            *examine_statistics(statistics.values.values(), [record.name for record in statistics.pictures]),
        ]

    def _equalized(self, pictures: CalibrationPictures, statistics: Statistics) -> Statistics:
        """The graph with its channels equalized takes the float graph's place, and is seen over the same pictures."""
        model, channels = equalize(self.view, statistics)
        self.notes.append(f"Equalized {channels} channels: the float graph's outputs are the same.")
        self.view = GraphView(model)
        return self._statistics(pictures, self.view, hashlib.sha256(model.SerializeToString()).hexdigest(), ".equalized")

    def _ranges(self, statistics: Statistics) -> dict[str, Range]:
        method, percentile = self.options.method, self.options.percentile
        found = {}
        for place, (name, value) in enumerate(statistics.values.items()):
            self.progress("finding ranges", place, len(statistics.values))
            found[name] = find_range(value.histogram, value.low, value.high, method, percentile)
        return found

    def _weights(
        self, statistics: Statistics
    ) -> tuple[dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]], dict[int, NDArray[np.float32]]]:
        weights = {}
        for layer in self.view.layers.values():
            values = self.view.weight(layer)
            scales = weight_scales(values)
            weights[layer.weight] = weight_integers(values, scales), scales
        if not self.options.bias_correction:
            return weights, {}
        return weights, corrected_biases(self.view, place_tensorrt(self.view), weights, statistics)

    def _opinion(self, pictures: CalibrationPictures, statistics: Statistics, kept: Collection[str]) -> Opinion:
        """ModelOpt's, of the pictures that the statistics are of."""
        paths = [pictures.folder / record.name for record in statistics.pictures]
        start = time.perf_counter()
        what = "running ModelOpt"
        opinion = quantize_with_modelopt(
            self.view, self.manifest.input, paths, self.options.method, kept, lambda done, total: self.progress(what, done, total)
        )
        self.seconds[what] = time.perf_counter() - start
        left = [name for name in opinion.left if name not in kept]
        self.notes.append(
            f"ModelOpt {opinion.version} chose pairs and ranges of the graph for TensorRT"
            + (f", and left in floats: {', '.join(left)}." if left else ".")
            + " The graph for ONNX Runtime is of our own ranges."
        )
        if self.options.method == "entropy":
            self.notes.append("ModelOpt's entropy counts in 128 bins, too few to find good ranges: compare it with --method minmax.")
        return opinion

    def _search(self, judge: Judge, write: Callable[[Collection[str]], onnx.ModelProto], digest: str) -> Plan:
        file = self.folder / f"{self.path.stem}.{self.sha256[:8]}.search.json"
        if self.options.fresh:
            file.unlink(missing_ok=True)
        search = Search(
            self.view, judge, write, digest, file, budget=self.options.budget, progress=lambda what: self.progress(f"trying: {what}", 0, 0)
        )
        wanted = self.options.max_drop
        plan = search.run(float("inf") if wanted is None else wanted, sensitivity=self.options.sensitivity)
        self.seconds["search"] = plan.seconds
        if not plan.complete:
            self.notes.append("The search's budget is spent: the same command goes on from what is found, --budget gives it more time.")
        if wanted is not None and not plan.met:
            self.notes.append(f"No set with a drop of at most {wanted:g} points was found; the one with the least is taken.")
        return plan

    def _accuracy(self, judge: Judge | None, graphs: Mapping[str, bytes]) -> list[Accuracy]:
        if judge is None:
            return []
        names = [value.name for value in (*self.model.graph.input, *self.model.graph.output)]
        float16 = onnx.ModelProto()
        float16.CopyFrom(self.model)
        tensorrt = graphs["tensorrt"]
        rows: list[tuple[str, Callable[[], onnx.ModelProto | bytes], bool]] = [
            ("FP32", lambda: self.model, False),
            ("FP16", lambda: convert_to_float16(float16, names), False),
            ("INT8 for TensorRT, FP32 between", lambda: tensorrt, True),
            ("INT8 for ONNX Runtime", lambda: graphs["onnxruntime"], False),
        ]
        if "own" in graphs:
            rows.append(("INT8 for TensorRT by --quantizer own, FP32 between", lambda: graphs["own"], True))
        if self.options.rest == "float16" and not rounds_float16():
            self.notes.append(
                "The graph for TensorRT is not measured with FP16 between its pairs: "
                f"ONNX Runtime {onnxruntime.__version__} rounds float16 wrongly there."
            )
        elif self.options.rest == "float16":
            rows.insert(3, ("INT8 for TensorRT, FP16 between", lambda: int8_with_float16(onnx.load_model_from_string(tensorrt)), True))
        found: list[Accuracy] = []
        start = time.perf_counter()
        for place, (name, make, as_written) in enumerate(rows):
            self.progress(f"measuring {name}", place, len(rows))
            try:
                score = judge.score(make(), as_written=as_written)
            except ConfigError as error:  # float16 that cannot hold the weights
                self.notes.append(f"{name}: {error.message}")
                continue
            found.append(Accuracy(name, score, (found[0].score.mask_ap if found else score.mask_ap) - score.mask_ap))
        self.seconds["measuring"] = time.perf_counter() - start
        return found

    def _write(self, paths: tuple[Path, Path, Path], graphs: Mapping[str, bytes], document: dict[str, Any]) -> None:
        with atomic_outputs(*paths) as parts:
            parts[0].write_bytes(graphs["tensorrt"])
            parts[1].write_bytes(graphs["onnxruntime"])
            document["files"] = {path.name: sha256_of(part) for path, part in zip(paths[:2], parts[:2], strict=True)}
            parts[2].write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
        net = self.source.mask_iou
        if net is not None and net.parent.resolve() != paths[0].parent.resolve():
            shutil.copyfile(net, paths[0].with_name(net.name))


def _digest(ranges: Mapping[str, Range], biases: Mapping[int, NDArray[np.float32]], options: CalibrationOptions) -> str:
    """Of all that decides how a layer is quantized."""
    digest = hashlib.sha256(json.dumps({name: [found.low, found.high] for name, found in ranges.items()}).encode())
    for place, bias in sorted(biases.items()):
        digest.update(str(place).encode() + bias.tobytes())
    digest.update(json.dumps(options.keep).encode())
    return digest.hexdigest()


def _unchanged(path: Path, record: PictureRecord) -> bool:
    try:
        return sha256_of(path) == record.sha256
    except OSError:
        return False
