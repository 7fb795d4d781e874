"""Where masks begin and end down each column of a picture, found on the prototype grid without making the masks.

A mask is ``bilinear(probability) > 0.5``. Between four neighbouring samples that are all at most 0.5, or all above, no pixel
changes sides; only the other cells, those on the outline, are looked at. There the probability is interpolated along the picture's
columns; between two sample rows it is then linear in the picture's row, so it passes 0.5 at most once, at a row that follows by
solving for it. Where rounding could decide (the solution lies within float32 error of a row), each row of the cell is computed.
So the result is that of evaluating each pixel in float32, at a cost that follows the outline's length.

Rounding cannot carry a pixel between two samples of one side to the other side: the weights of `bilinear_axis` are multiples of
2**-24, and for all of these float32 interpolates 0.5 and 0.5 to 0.5, and the next float32 above with itself to more than 0.5 (a
test holds that); for other values it follows because rounding is monotone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.postprocess.interpolation import Axis, bilinear_axis

__all__ = ["Grid", "transitions"]

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

HALF = np.float32(0.5)
ROUNDING = 5e-7  # bounds the float32 error of interpolating values up to 1
COLUMNS_AT_ONCE = 1 << 17
ROWS_AT_ONCE = 1 << 19


@dataclass(frozen=True, eq=False)
class Grid:
    """A prototype grid over a picture: its axes and, for `transitions`, tables by prototype column and by padded row.

    Attributes:
        width, height: the picture's size in pixels.
        columns, rows: the two axes.
        left, right: float32 [w, widest], the weights of a column's pixels.
        firsts: int64 [h + 3]; the picture's rows of the padded row j are ``firsts[j] .. firsts[j + 1] - 1``.
    """

    width: int
    height: int
    columns: Axis
    rows: Axis
    left: Floats
    right: Floats
    firsts: Indices

    @classmethod
    def over(cls, size: tuple[int, int], width: int, height: int) -> Grid:
        """The grid of `size` (h, w) prototype samples over a picture of `width` x `height` pixels."""
        columns, rows = bilinear_axis(size[1], width), bilinear_axis(size[0], height)
        return cls(width, height, columns, rows, *columns.tables(), np.concatenate([[0], rows.starts, [height]]))


def transitions(probabilities: Floats, grid: Grid) -> Indices:
    """The places in column-major order at which each mask changes sides, the first of them from outside to inside.

    Args:
        probabilities: float32 [n, h, w] in [0, 1], the masks at prototype size; NaN counts as outside.
        grid: for (h, w).

    Returns:
        int64 [T], ascending: ``mask * (width * height + 1) + column * height + row``; of each mask an even number. A place equal
        to width * height is the end of a mask that reaches the last pixel.
    """
    padded = _padded(probabilities)
    masks, rows, columns = _outline_cells(padded)
    at_once = max(COLUMNS_AT_ONCE // grid.left.shape[1], 1)
    found = [np.zeros(0, np.int64)]
    for first in range(0, len(masks), at_once):
        portion = slice(first, first + at_once)
        found += _cell_transitions(padded, masks[portion], rows[portion], columns[portion], grid)
    places = np.sort(np.concatenate(found))
    return _without_pairs(places)


def _padded(probabilities: Floats) -> Floats:
    """float32 [n, h + 3, w + 1]: the last row and column repeated, as bilinear resizing does, and a row of zeros above and below."""
    n, h, w = probabilities.shape
    padded = np.zeros((n, h + 3, w + 1), np.float32)
    padded[:, 1 : h + 1, :w] = probabilities
    padded[:, h + 1] = padded[:, h]
    padded[:, :, w] = padded[:, :, w - 1]
    return padded


def _outline_cells(padded: Floats) -> tuple[Indices, Indices, Indices]:
    """Mask, row and column of each cell of 2 x 2 samples that are neither all outside nor all inside."""
    inside = padded > HALF
    some = inside[:, :-1] | inside[:, 1:]
    every = inside[:, :-1] & inside[:, 1:]
    mixed = (some[:, :, :-1] | some[:, :, 1:]) & ~(every[:, :, :-1] & every[:, :, 1:])
    masks, rows, columns = np.nonzero(mixed)
    return masks, rows, columns


def _cell_transitions(padded: Floats, masks: Indices, rows: Indices, columns: Indices, grid: Grid) -> list[Indices]:
    """The transitions within cells, in no order; those at a boundary between two cells come from both or cancel in pairs."""
    left, right = grid.left[columns], grid.right[columns]
    with np.errstate(invalid="ignore"):
        top = left * padded[masks, rows, columns, None] + right * padded[masks, rows, columns + 1, None]
        bottom = left * padded[masks, rows + 1, columns, None] + right * padded[masks, rows + 1, columns + 1, None]
        crossed = (top > HALF) != (bottom > HALF)
    cells, offsets = np.nonzero(crossed)
    pixel_columns = grid.columns.starts[columns[cells]] + offsets
    bases = (masks * (grid.width * grid.height + 1))[cells] + pixel_columns * grid.height
    crossings = _Crossings(bases, top[crossed], bottom[crossed], rows[cells])
    return crossings.transitions(grid)


@dataclass(frozen=True, eq=False)
class _Crossings:
    """E stretches of one picture column between two sample rows on different sides.

    `bases` are the places of the columns' first pixels, `top` and `bottom` the values at both ends, `rows` the padded upper rows.
    """

    bases: Indices
    top: Floats
    bottom: Floats
    rows: Indices

    def transitions(self, grid: Grid) -> list[Indices]:
        scale = grid.rows.scale
        top = self.top.astype(np.float64)
        change = self.bottom - top
        with np.errstate(divide="ignore", invalid="ignore"):
            solution = (self.rows - 0.5 + (0.5 - top) / change) / scale - 0.5
            change = np.abs(change)
            error = len(grid.rows.starts) * 2.0**-22 * change + ROUNDING
            certain = np.abs(solution - np.rint(solution)) * scale * change > error
        row = np.ceil(solution[certain]).astype(np.int64)
        upper = self.rows[certain]
        row = np.minimum(np.maximum(row, grid.firsts[upper]), grid.firsts[upper + 1])
        found = [self.bases[certain] + row]
        if not certain.all():
            rest = np.flatnonzero(~certain)
            at_once = max(ROWS_AT_ONCE // (grid.height + 2), 1)
            found += [self._row_by_row(rest[first : first + at_once], grid) for first in range(0, len(rest), at_once)]
        return found

    def _row_by_row(self, chosen: Indices, grid: Grid) -> Indices:
        """Every row computed: the sides of the sample row above, of the picture's rows, of the sample row below, compared in turn."""
        first = grid.firsts[self.rows[chosen]]
        lengths = grid.firsts[self.rows[chosen] + 1] - first + 2
        owner = np.repeat(np.arange(len(chosen)), lengths)
        step = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        row = first[owner] + step
        pixel = np.clip(row - 1, 0, grid.height - 1)
        top, bottom = self.top[chosen][owner], self.bottom[chosen][owner]
        with np.errstate(invalid="ignore"):
            inside = grid.rows.lower[pixel] * top + grid.rows.upper[pixel] * bottom > HALF
        inside = np.where(step == 0, top > HALF, np.where(step == lengths[owner] - 1, bottom > HALF, inside))
        changes = np.flatnonzero((inside[1:] != inside[:-1]) & (owner[1:] == owner[:-1]))
        return np.asarray(self.bases[chosen][owner[changes]] + row[changes], np.int64)


def _without_pairs(places: Indices) -> Indices:
    """Of places that occur several times, one where their number is odd: two changes at one place are none."""
    is_first = np.ones(len(places), bool)
    is_first[1:] = places[1:] != places[:-1]
    firsts = np.flatnonzero(is_first)
    if len(firsts) == len(places):
        return places
    occurrences = np.diff(firsts, append=len(places))
    return np.asarray(places[firsts[occurrences % 2 == 1]], np.int64)
