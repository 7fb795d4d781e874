"""One self-contained HTML page on an evaluation: tables, plots and the worst pictures; it loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_deploy import __version__
from yolact_deploy.data.coco import CocoDataset
from yolact_deploy.errors import MissingDependencyError
from yolact_deploy.evaluation.plots import COLOURS, POINTS, ap_curves, score_scatter
from yolact_deploy.evaluation.records import ArtifactEvaluation, Evaluation, mask_differences
from yolact_deploy.evaluation.report_pictures import BUDGET, shown_pictures
from yolact_deploy.files import refuse_overwrite, write_text

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["is_report", "need_report", "render_report", "write_report"]

_TEMPLATE = "report.html.j2"
_MARK = '<meta name="generator" content="yolact-deploy evaluate'
_HEAD = 2048  # bytes within which the mark stands
_LISTED = 500
_STAGE_COLOURS = ("#74a9cf", "#a6bddb", "#d0743c", "#8c6bb1", "#66a61e", "#999999")


def need_report(path: Path | None = None, *, force: bool = False) -> None:
    """Before a long evaluation: can the page be made, and may it be written to `path`?

    Raises :class:`MissingDependencyError` where the extra ``report`` is not installed and :class:`yolact_deploy.errors.OutputError`
    where `path` exists, is no report and `force` is off.
    """
    for package in ("jinja2", "matplotlib"):
        try:
            import_module(package)
        except ImportError:
            raise MissingDependencyError.of(package, "report", "The HTML report") from None
    if path is not None:
        refuse_overwrite(path, ours=is_report(path), force=force)


def is_report(path: Path) -> bool:
    """Whether the file is a page that :func:`write_report` wrote: it says so at its beginning."""
    try:
        with open(path, "rb") as handle:
            return _MARK.encode() in handle.read(_HEAD)
    except OSError:
        return False


def write_report(path: Path, evaluation: Evaluation, dataset: CocoDataset, *, force: bool = False, pictures: int = 6) -> None:
    """Write the page on `evaluation`, UTF-8, whole or not at all, a few MB at most.

    Args:
        path: the file; one that is no report of this command is replaced only by `force`.
        evaluation: its stores are read again for the pictures.
        dataset: what it was evaluated on; of pictures that cannot be read the overlays lie on grey.
        force: replace a foreign file.
        pictures: of each artifact, at most.

    Raises :class:`MissingDependencyError` without the extra ``report``, :class:`yolact_deploy.errors.OutputError` for a foreign file
    or one that cannot be written.
    """
    need_report(path, force=force)
    write_text(path, render_report(evaluation, dataset, pictures=pictures))


def render_report(evaluation: Evaluation, dataset: CocoDataset, *, pictures: int = 6) -> str:
    """The page's text; the same for the same evaluation."""
    import jinja2

    loader = jinja2.FunctionLoader(lambda name: resources.files("yolact_deploy.evaluation").joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalize
    )
    environment.filters |= {"points": _points, "signed": _signed, "small": _small}
    environment.filters |= {"percent": _percent, "share": _share, "counted": _counted}
    artifacts = evaluation.artifacts
    return environment.get_template(_TEMPLATE).render(
        version=__version__,
        evaluation=evaluation,
        facts=evaluation.dataset,
        artifacts=artifacts,
        colours=[COLOURS[place % len(COLOURS)] for place in range(len(artifacts))],
        differences=[mask_differences(evaluation, place) for place in range(len(artifacts))],
        curves=_markup(ap_curves(artifacts, "ap")),
        scatters=[_scatter(artifact, place) for place, artifact in enumerate(artifacts)],
        points=POINTS,
        pictures=_pictures(evaluation, dataset, pictures),
        speeds=_speeds(artifacts),
        stages=_stages(artifacts),
        listed=_LISTED,
    )


def _markup(svg: str) -> Markup:
    from markupsafe import Markup

    return Markup(svg)  # made here, without any text of users


def _scatter(artifact: ArtifactEvaluation, place: int) -> Markup | None:
    parity = artifact.parity
    return (
        _markup(score_scatter(parity, COLOURS[place % len(COLOURS)], f"scores{place}")) if parity is not None and parity.partners else None
    )


def _pictures(evaluation: Evaluation, dataset: CocoDataset, most: int) -> list[tuple[Any, str] | None]:
    """For each artifact its pictures and what they are; None for the reference of others, which stands beside each of them."""
    alone = len(evaluation.artifacts) == 1
    shown = [alone or artifact.name != evaluation.reference for artifact in evaluation.artifacts]
    share = BUDGET // max(sum(shown), 1)
    return [
        shown_pictures(evaluation, dataset, artifact, most, share) if wanted else None
        for artifact, wanted in zip(evaluation.artifacts, shown, strict=True)
    ]


def _stages(artifacts: Sequence[ArtifactEvaluation]) -> dict[str, str]:
    """Colour of each stage that any artifact was timed in."""
    names = dict.fromkeys(stage for artifact in artifacts for stage in artifact.milliseconds)
    return {name: _STAGE_COLOURS[place % len(_STAGE_COLOURS)] for place, name in enumerate(names)}


def _speeds(artifacts: Sequence[ArtifactEvaluation]) -> list[tuple[float, list[tuple[str, float, float]]]]:
    """For each artifact its milliseconds together, and of each stage its name, milliseconds and percent of the slowest artifact's sum."""
    totals = [sum(artifact.milliseconds.values()) for artifact in artifacts]
    slowest = max(totals, default=0.0) or 1.0
    return [
        (total, [(stage, spent, 100 * spent / slowest) for stage, spent in artifact.milliseconds.items()])
        for artifact, total in zip(artifacts, totals, strict=True)
    ]


def _finalize(value: Any) -> Any:
    return "–" if value is None else value


def _points(value: float | None, digits: int = 2) -> str:
    """Percent points, milliseconds …; a dash where there is no number."""
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None, digits: int = 2) -> str:
    """A difference with its sign; zero has none."""
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if not float(f"{value:.{digits}f}") else text


def _small(value: float | None) -> str:
    """A difference of scores: ``0.0123`` or ``−1.1e-07``."""
    if value is None:
        return "–"
    text = f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.1e}"
    return "0" if not value else text.replace("-", "−", 1) if value < 0 else text


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _percent(value: float | None, digits: int = 1) -> str:
    """A share of 0 … 1; 100 % only where it is whole."""
    if value is None:
        return "–"
    text = f"{100 * value:.{digits}f}"
    return "<100 %" if value < 1 and float(text) == 100 else f"{text} %"


def _share(part: int, whole: int) -> str:
    """``3 of 17 (17.6 %)``; without a percentage of nothing."""
    return f"{part} of {whole}" + (f" ({_percent(part / whole)})" if whole else "")
