"""The report's plots as inline SVG: no text of users in them, the page's own text colour, the same bytes for the same numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.evaluation.parity import Parity
from yolact_deploy.evaluation.records import ArtifactEvaluation, Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "POINTS", "ap_curves", "score_scatter"]

COLOURS = ("#3b82f6", "#e8590c", "#2f9e44", "#ae3ec9", "#f59f00", "#0ca5b0", "#d6336c", "#868e96")
"""Of the artifacts, one after another and from the start again: they stand out from light and from dark paper."""
POINTS = 1000
"""Points in a scatter plot; those that differ most are always among them."""

_INK = "#010203"  # stands for the page's text colour until the SVG is finished
_MARKERS = "osD^vPX*"
_SETTINGS = {
    "svg.hashsalt": "yolact-deploy",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
}


def ap_curves(artifacts: Sequence[ArtifactEvaluation], name: str) -> str:
    """Box and mask AP over the IoU threshold, a line for each artifact, in the colours of :data:`COLOURS`.

    `name` keeps the ids of several plots on one page apart. Returns an ``<svg>`` element.
    """

    def draw(figure: Figure) -> None:
        boxes, masks = figure.subplots(1, 2, sharey=True)
        for axes, title, curves in (
            (boxes, "boxes", [_curve(artifact.box) for artifact in artifacts]),
            (masks, "masks", [_curve(artifact.mask) for artifact in artifacts]),
        ):
            for place, curve in enumerate(curves):
                # Lines of equal artifacts hide each other, so that the first are wider.
                width = 1.6 + 1.4 * (len(curves) - 1 - place)
                colour, marker = COLOURS[place % len(COLOURS)], _MARKERS[place % len(_MARKERS)]
                axes.plot(*curve, color=colour, marker=marker, linewidth=width, markersize=width + 2.5)
            axes.set_title(title)
            axes.set_xlabel("IoU threshold")
            axes.set_xlim(0.48, 0.97)
            axes.set_xticks(np.arange(0.5, 1.0, 0.1))
        found = [ap for one in artifacts for metrics in (one.box, one.mask) for ap in metrics.by_threshold.values() if ap is not None]
        boxes.set_ylim(0, max(1.0, 1.06 * max(found, default=0.0)))
        boxes.set_ylabel("AP")

    return _svg(draw, (7.4, 3.0), name)


def score_scatter(parity: Parity, colour: str, name: str) -> str:
    """The artifact's score of each pair of partners over the reference's, and the difference over the reference's.

    Of more than :data:`POINTS` pairs the most differing half of that number is drawn, and an even choice of the others.
    """

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        chosen = _chosen(parity)
        ours, theirs = parity.reference_scores[chosen].astype(np.float64), parity.candidate_scores[chosen].astype(np.float64)
        ends = [parity.score, 1.0]
        left.plot(ends, ends, color=_INK, linewidth=0.6)
        left.plot(ours, theirs, ".", color=colour, markersize=4, alpha=0.6)
        left.set_ylabel("score here")
        right.axhline(0, color=_INK, linewidth=0.6)
        right.plot(ours, theirs - ours, ".", color=colour, markersize=4, alpha=0.6)
        largest = float(np.abs(theirs - ours).max(initial=0.0))
        right.set_ylim(*(1.15 * side * max(largest, 1e-7) for side in (-1, 1)))
        right.set_ylabel("difference")
        right.ticklabel_format(axis="y", scilimits=(-2, 2))
        for axes in (left, right):
            axes.set_xlabel("score in the reference")
            axes.locator_params(axis="x", nbins=5)

    return _svg(draw, (7.4, 2.9), name)


def _curve(metrics: Metrics) -> tuple[list[float], list[float]]:
    """IoU thresholds and AP; NaN, which leaves a gap, where AP is not defined."""
    return [float(threshold) for threshold in metrics.by_threshold], [np.nan if ap is None else ap for ap in metrics.by_threshold.values()]


def _chosen(parity: Parity) -> NDArray[Any]:
    """Indices of the pairs to draw."""
    if parity.partners <= POINTS:
        return np.arange(parity.partners)
    order = np.argsort(-np.abs(parity.candidate_scores - parity.reference_scores), kind="stable")
    evenly = np.linspace(POINTS // 2, len(order) - 1, POINTS - POINTS // 2).astype(int)
    chosen: NDArray[Any] = order[np.concatenate([np.arange(POINTS // 2), evenly])]
    return chosen


def _svg(draw: Any, size: tuple[float, float], name: str) -> str:
    """What `draw` puts on a figure of `size` inches."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    settings: Any = {**_SETTINGS, **dict.fromkeys(names, _INK)}
    with mpl.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
            axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(text, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(text.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """An SVG file as an element of a page: no header, no addresses, ids that begin with `name`, the page's colour and its width."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg)
    svg = re.sub(r'\b([xy])="(-?\d+\.\d\d)\d+"', r'\1="\2"', svg)
    svg = re.sub(r'(<g clip-path="[^"]*")>((?:\s*<use [^>]*/>)+)', _with_one_style, svg)
    return svg.replace(_INK, "currentColor")


def _with_one_style(group: re.Match[str]) -> str:
    """A group of markers whose common style stands on the group, which halves the plot."""
    styles = set(re.findall(r' style="[^"]*"', group[2]))
    if len(styles) != 1:
        return group[0]
    (style,) = styles
    markers = re.sub(r">\s+<", "><", group[2].replace(style, "").strip())
    return f"{group[1]}{style}>{markers}"
