"""The order of the post-processing kernels and the blocks that each runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from yolact_deploy.postprocess.settings import NmsKind

from .workspace import HeadShapes

__all__ = ["Launch", "kernel_names", "launches", "rescore"]

# The constants of the same names in kernels/blocks.cuh.
_SELECT_THREADS, _SELECT_PRIORS = 256, 32
_RANK_THREADS = 256
_SUPPRESS_THREADS = 512
_GREEDY_THREADS = 512
_BEST_THREADS = 1024
_GIVEN_THREADS, _GIVEN_BLOCKS = 256, 8
_ASSEMBLE_THREADS = 128
_ASSEMBLE_WIDTH, _ASSEMBLE_HEIGHT, _ASSEMBLE_DETECTIONS = 16, 8, 32
_RESCORE_THREADS = 128
_BITS_THREADS, _BITS_BLOCKS = 256, 32
_RLE_THREADS = 256
_DELIVER_THREADS, _DELIVER_BLOCKS = 256, 64


@dataclass(frozen=True)
class Launch:
    """One kernel: its stage, its name, blocks, threads of a block, bytes of dynamic shared memory."""

    stage: str
    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int = 0


def launches(
    shapes: HeadShapes,
    batch: int,
    groups: int,
    slots: int,
    *,
    nms: NmsKind,
    half_scores: bool,
    half_prototypes: bool,
    rle: bool,
    bits: bool,
) -> Iterator[Launch]:
    """From what the network's graph gives to masks for `batch` pictures; `groups` and `slots` are G and D of ``problem.cuh``.

    Mask rescoring, where there is any, belongs between ``assemble`` and what follows; see :func:`rescore`.
    """
    if shapes.graph == "none":
        yield from _nms(shapes, batch, groups, nms, "half" if half_scores else "float")
    else:
        yield Launch("given", "given", (batch, 1, 1), _GIVEN_THREADS)
    if shapes.graph == "masks":
        yield Launch("masks", "given_masks", (_GIVEN_BLOCKS, slots, batch), _GIVEN_THREADS)
    else:
        tiles = -(-shapes.width // _ASSEMBLE_WIDTH) * -(-shapes.height // _ASSEMBLE_HEIGHT)
        padded = 32 if shapes.prototypes <= 32 else 64
        kernel = f"assemble_{'half' if half_prototypes else 'float'}_{padded}"
        yield Launch("assemble", kernel, (tiles, -(-slots // _ASSEMBLE_DETECTIONS), batch), _ASSEMBLE_THREADS)
    if bits:
        yield Launch("bits", "pack_bits", (_BITS_BLOCKS, slots, batch), _BITS_THREADS)
    if rle:
        yield Launch("rle", "encode_rle", (slots, batch, 1), _RLE_THREADS, shapes.outline_bytes)
        yield Launch("deliver", "deliver", (_DELIVER_BLOCKS, 1, 1), _DELIVER_THREADS)


def _nms(shapes: HeadShapes, batch: int, groups: int, nms: NmsKind, scores: str) -> Iterator[Launch]:
    yield Launch("select", f"select_{scores}", (-(-shapes.priors // _SELECT_PRIORS), batch, 1), _SELECT_THREADS)
    if nms == "traditional":
        yield Launch("greedy", f"greedy_{scores}", (groups, batch, 1), _GREEDY_THREADS)
    else:
        yield Launch("rank", f"rank_{scores}", (groups, batch, 1), _RANK_THREADS)
        yield Launch("suppress", "suppress", (groups, batch, 1), _SUPPRESS_THREADS)
    yield Launch("best", "best", (batch, 1, 1), _BEST_THREADS)


def rescore(batch: int, slots: int) -> Launch:
    """Mask scores from what the mask-IoU net said."""
    return Launch("rescore", "rescore", (-(-slots // _RESCORE_THREADS), batch, 1), _RESCORE_THREADS)


def kernel_names(shapes: HeadShapes, nms: NmsKind) -> set[str]:
    """All that may be launched for head outputs of these shapes, whatever their dtypes."""
    names = {rescore(1, 1).kernel}
    for half in (False, True):
        made = launches(shapes, 1, 1, 1, nms=nms, half_scores=half, half_prototypes=half, rle=True, bits=True)
        names |= {launch.kernel for launch in made}
    return names
