"""What a calibration says of itself: in the manifests of both graphs, and in its report.

The report, ``NAME.calibration.json``: ``schema`` 1; ``method``, ``percentile``, ``pictures`` (``count``, ``seed``, ``sha256`` of their
hashes), ``model``, ``corrections``, ``kept`` (layers in floats), ``rest``, ``search``; ``files`` (name to SHA-256), ``seconds``,
``quantizers`` (name to who decided on its pairs and ranges: ``own``, ``modelopt 0.47.0``),
``held_bytes`` (of values in memory at once), ``findings`` of the doctor, ``skipped`` pictures, ``notes``; ``accuracy``: of each graph
``mask_ap``, ``box_ap``, ``drop`` in percent points, ``sha256`` of the graph as it was run (for both files that of the file) and
``pictures``, their number; ``rows`` of the
search: :class:`yolact_deploy.calibration.search.Row`; ``ranges`` by value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx

from yolact_deploy import __version__
from yolact_deploy.engines.source import GraphSource
from yolact_deploy.errors import YolactDeployError
from yolact_deploy.export.passes import module_precision
from yolact_deploy.manifest import METADATA_KEY
from yolact_deploy.onnx_file import read_manifest

from .options import Accuracy, CalibrationOptions
from .pictures import CalibrationPictures
from .ranges import Range
from .search import Plan
from .statistics import Statistics

__all__ = ["SCHEMA", "accuracy_entries", "is_report_or_graph", "range_entries", "report_of", "stamp", "summary"]

SCHEMA = 1
"""Version of the report's layout."""


def summary(
    source: GraphSource,
    options: CalibrationOptions,
    pictures: CalibrationPictures,
    statistics: Statistics,
    kept: Sequence[str],
    plan: Plan | None,
    digest: str,
    origin: Mapping[str, str],
) -> dict[str, Any]:
    """What both manifests and the report say; `digest` is of the ranges, `origin` words on where pictures come from."""
    seen = _digest_of(statistics)
    found: dict[str, Any] = {
        "method": options.method,
        "pictures": {"count": len(statistics.pictures), "seed": pictures.seed, "sha256": seen, **origin},
        "model": {"file": source.path.name, "sha256": source.sha256},
        "ranges_sha256": digest,
        "corrections": [name for name in ("equalization", "bias_correction") if getattr(options, name)],
        "kept": list(kept),
        "rest": options.rest,
    }
    if options.method == "percentile":
        found["percentile"] = options.percentile
    if plan is not None:
        found["search"] = {
            "max_drop": options.max_drop,
            "met": plan.met,
            "complete": plan.complete,
            "reference": asdict(plan.reference),
            "modules": [row.to_json() | {"kept": len(row.kept)} for row in plan.rows if row.kind == "module"],
            "chosen": plan.chosen.to_json() | {"kept": len(plan.chosen.kept)},
        }
    return found


def _digest_of(statistics: Statistics) -> str:
    return hashlib.sha256("\n".join(record.sha256 for record in statistics.pictures).encode()).hexdigest()


def stamp(graph: onnx.ModelProto, source: GraphSource, calibration: dict[str, Any]) -> None:
    """Write the manifest of the quantized `graph`, made from `source`, into it."""
    manifest = replace(
        source.manifest,
        precision=module_precision(graph),
        calibration=calibration,
        verification={},
        source={
            "file": source.path.name,
            "sha256": source.sha256,
            **{f"checkpoint_{key}": value for key, value in source.manifest.source.items()},
        },
        versions={**source.manifest.versions, "yolact_deploy": __version__},
    )
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, {METADATA_KEY: manifest.to_json()})
    graph.producer_name, graph.producer_version = "yolact-deploy", __version__


def accuracy_entries(accuracy: Sequence[Accuracy]) -> list[dict[str, Any]]:
    """Each graph's accuracy as JSON holds it."""
    return [{"name": row.name, "drop": row.drop, **asdict(row.score)} for row in accuracy]


def range_entries(statistics: Statistics, ranges: Mapping[str, Range], modelopt: Mapping[str, Range]) -> dict[str, Any]:
    """Of each value what was seen and what is kept, by us and, where it was asked, by ModelOpt."""
    return {
        name: {
            "node": value.node,
            "low": value.low,
            "high": value.high,
            "kept": [ranges[name].low, ranges[name].high],
            **({"modelopt": [modelopt[name].low, modelopt[name].high]} if name in modelopt else {}),
        }
        for name, value in statistics.values.items()
    }


def is_report_or_graph(path: Path) -> bool:
    """Whether an existing file is an earlier output of a calibration."""
    if not path.is_file():
        return False
    if path.suffix == ".json":
        try:
            return "ranges_sha256" in json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, RecursionError):
            return False
    try:
        return bool(read_manifest(path).calibration)
    except YolactDeployError:
        return False


def report_of(graph: Path, sha256: str) -> dict[str, Any]:
    """The report beside a quantized graph's file with this SHA-256; empty where there is none, or that of another file."""
    stem = graph.name.removesuffix(".onnx").removesuffix(".ort").removesuffix(".int8")
    try:
        found = json.loads(graph.with_name(f"{stem}.calibration.json").read_text(encoding="utf-8"))
        return dict(found) if found["schema"] == SCHEMA and found["files"][graph.name] == sha256 else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
