"""An evaluation as one JSON document, for programs, and as rows of text, for people.

The document: ``schema`` 1; ``command``, ``date``, ``versions``, ``machine``, ``settings``; ``dataset`` as in
:class:`yolact_deploy.evaluation.records.DatasetFacts`, without the ids; ``reference`` and ``max_drop``; ``artifacts``, a list in the
order of the hops. Each of these holds ``name``, ``path``, ``kind``, ``sha256``, ``pictures``, ``detections``, ``bytes_per_picture``,
``milliseconds`` (by stage), ``notes``; ``box`` and ``mask``: ``ap``, ``ap50``, ``ap75``, ``by_threshold``, ``small``, ``medium``,
``large``, ``ar1``, ``ar10``, ``ar100``, ``ar_small``, ``ar_medium``, ``ar_large`` in percent points or null where they are not
defined, ``ground_truth``, ``detections``, ``notes`` and, where asked for, ``per_class``; ``difference``: mask AP less that of the
``reference`` and of the artifact ``before``, null where there is none; ``parity`` (to the reference), ``hop`` (to the artifact
before) and ``failures``: see their classes' ``to_json``, null where there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from yolact_deploy.evaluation.records import ArtifactEvaluation, Evaluation, Metrics, mask_differences

__all__ = ["SCHEMA", "failure_rows", "parity_rows", "per_class_rows", "summary_rows", "threshold_rows", "to_document"]

SCHEMA = 1
"""Version of the document's layout."""


def to_document(evaluation: Evaluation, *, per_class: bool = False) -> dict[str, Any]:
    """The whole evaluation, fit for :mod:`json`; see the module for its layout."""
    dataset = asdict(evaluation.dataset)
    del dataset["image_ids"]
    return {
        "schema": SCHEMA,
        "command": evaluation.command,
        "date": evaluation.date,
        "versions": evaluation.versions,
        "machine": evaluation.machine,
        "settings": evaluation.settings,
        "dataset": dataset,
        "reference": evaluation.reference,
        "max_drop": evaluation.max_drop,
        "artifacts": [_artifact(evaluation, place, per_class) for place in range(len(evaluation.artifacts))],
    }


def _artifact(evaluation: Evaluation, place: int, per_class: bool) -> dict[str, Any]:
    artifact = evaluation.artifacts[place]
    to_reference, to_hop = mask_differences(evaluation, place)
    names = ("name", "path", "kind", "sha256", "pictures", "detections", "bytes_per_picture", "milliseconds", "notes")
    return {
        **{name: getattr(artifact, name) for name in names},
        "box": _metrics(artifact.box, per_class),
        "mask": _metrics(artifact.mask, per_class),
        "difference": {"reference": to_reference, "before": to_hop},
        **{name: _json(getattr(artifact, name)) for name in ("parity", "hop", "failures")},
    }


def _metrics(metrics: Metrics, per_class: bool) -> dict[str, Any]:
    found = {**asdict(metrics), "ap50": metrics.ap50, "ap75": metrics.ap75}
    if not per_class:
        del found["per_class"]
    return found


def _json(record: Any) -> Any:
    return None if record is None else record.to_json()


def summary_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Each artifact's figures, a head first."""
    rows: list[tuple[str, ...]] = [("artifact", "kind", "box AP", "mask AP", "AP50", "AP75", "S", "M", "L", "AR100", "ms")]
    for artifact in evaluation.artifacts:
        mask = artifact.mask
        figures = (artifact.box.ap, mask.ap, mask.ap50, mask.ap75, mask.small, mask.medium, mask.large, mask.ar100)
        spent = f"{sum(artifact.milliseconds.values()):.1f}" if artifact.milliseconds else ""
        rows.append((artifact.name, artifact.kind, *map(_points, figures), spent))
    return rows


def parity_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """What each artifact but the first loses, a head first: mask AP less the reference's and less that of the hop before, and partners."""
    rows: list[tuple[str, ...]] = [
        ("mask AP", "to reference", "to hop before", "partners", "surplus", "without reason", "largest score difference")
    ]
    for place, artifact in enumerate(evaluation.artifacts):
        differences = map(_signed, mask_differences(evaluation, place))
        parity = artifact.parity
        if artifact.name == evaluation.reference:
            rows.append((artifact.name, "the reference", "", "", "", "", ""))
        elif parity is None:
            rows.append((artifact.name, *differences, "", "", "", ""))
        else:
            apart = parity.differences()
            largest = "" if apart is None else f"{apart['largest']:.1e}"
            counts = (f"{parity.partners} of {parity.reference}", str(parity.surplus), str(len(parity.unexplained)))
            rows.append((artifact.name, *differences, *counts, largest))
    return rows


def threshold_rows(artifacts: Sequence[ArtifactEvaluation]) -> list[tuple[str, ...]]:
    """Mask AP at each IoU threshold: a row of names, then one for each artifact."""
    names = list(artifacts[0].mask.by_threshold)
    return [
        ("mask AP at IoU", *names),
        *((artifact.name, *(_points(artifact.mask.by_threshold[name]) for name in names)) for artifact in artifacts),
    ]


def failure_rows(artifacts: Sequence[ArtifactEvaluation]) -> list[tuple[str, ...]]:
    """Leakage and localization failure of each, a head first: see :mod:`yolact_deploy.evaluation.failures`."""
    head = ("artifact", "matched", "leakage", "on other objects", "shared of exposed", "twins of near pairs", "merged")
    rows: list[tuple[str, ...]] = [head]
    for artifact in artifacts:
        found = artifact.failures
        if found is not None:
            rates = (found.leakage, found.leakage_on_others)
            counts = ((found.shared, found.exposed), (found.twins, found.near_pairs), (found.merged, found.detections))
            rows.append((artifact.name, str(found.matched), *map(_percent, rates), *(f"{part} of {whole}" for part, whole in counts)))
    return rows


def per_class_rows(artifacts: Sequence[ArtifactEvaluation]) -> list[tuple[str, ...]]:
    """Mask AP of each category, a head first: the category, its instances, each artifact's AP."""
    rows: list[tuple[str, ...]] = [("category", "instances", *(artifact.name for artifact in artifacts))]
    for name, found in artifacts[0].mask.per_class.items():
        rows.append((name, str(found.ground_truth), *(_points(artifact.mask.per_class[name].ap) for artifact in artifacts)))
    return rows


def _percent(value: float | None) -> str:
    return "not defined" if value is None else f"{100 * value:.1f} %"


def _points(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"
