"""The order of the post-processing kernels and the blocks that each runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .workspace import HeadShapes

__all__ = ["Launch", "kernel_names", "launches", "rescore"]

# The constants of the same names in kernels/blocks.cuh.
_SELECT_PRIORS = 32
_ASSEMBLE_WIDTH, _ASSEMBLE_HEIGHT, _ASSEMBLE_DETECTIONS = 16, 8, 32
_RESCORE_THREADS = 128
_BITS_BLOCKS = 32
_DELIVER_BLOCKS = 64


@dataclass(frozen=True)
class Launch:
    """One kernel: its stage, its name, blocks, threads of a block, bytes of dynamic shared memory."""

    stage: str
    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int = 0


def launches(
    shapes: HeadShapes, batch: int, groups: int, slots: int, *, half_scores: bool, half_prototypes: bool, rle: bool, bits: bool
) -> Iterator[Launch]:
    """From head outputs to masks for `batch` pictures; `groups` and `slots` are G and D of ``problem.cuh``.

    Mask rescoring, where there is any, belongs between ``assemble`` and what follows; see :func:`rescore`.
    """
    scores, prototypes = ("half" if half else "float" for half in (half_scores, half_prototypes))
    tiles = -(-shapes.width // _ASSEMBLE_WIDTH) * -(-shapes.height // _ASSEMBLE_HEIGHT)
    padded = 32 if shapes.prototypes <= 32 else 64
    yield Launch("select", f"select_{scores}", (-(-shapes.priors // _SELECT_PRIORS), batch, 1), 256)
    yield Launch("rank", f"rank_{scores}", (groups, batch, 1), 256)
    yield Launch("suppress", "suppress", (groups, batch, 1), 512)
    yield Launch("best", "best", (batch, 1, 1), 1024)
    yield Launch("assemble", f"assemble_{prototypes}_{padded}", (tiles, -(-slots // _ASSEMBLE_DETECTIONS), batch), 128)
    if bits:
        yield Launch("bits", "pack_bits", (_BITS_BLOCKS, slots, batch), 256)
    if rle:
        yield Launch("rle", "encode_rle", (slots, batch, 1), 256, shapes.outline_bytes)
        yield Launch("deliver", "deliver", (_DELIVER_BLOCKS, 1, 1), 256)


def rescore(batch: int, slots: int) -> Launch:
    """Mask scores from what the mask-IoU net said."""
    return Launch("rescore", "rescore", (-(-slots // _RESCORE_THREADS), batch, 1), _RESCORE_THREADS)


def kernel_names(shapes: HeadShapes) -> set[str]:
    """All that may be launched for head outputs of these shapes, whatever their dtypes."""
    names = {rescore(1, 1).kernel}
    for half in (False, True):
        names |= {launch.kernel for launch in launches(shapes, 1, 1, 1, half_scores=half, half_prototypes=half, rle=True, bits=True)}
    return names
