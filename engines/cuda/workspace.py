"""What GPU post-processing needs to know beforehand, and its buffers, sized once."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import ConfigError
from yolact_deploy.postprocess import PostprocessSettings

from .driver import DeviceBuffer, Driver, PinnedArray
from .problem import Problem

__all__ = ["MOST_PIXELS", "GraphKind", "HeadShapes", "Workspace", "check_settings", "detection_slots"]

GraphKind = Literal["none", "nms", "masks"]
"""What a network's graph does of the post-processing itself: ``Manifest.postprocess``."""

MOST_PIXELS = 2**31
"""A picture must have fewer."""

_LARGEST_K = 1024  # of kernels/blocks.cuh, as the next
_MOST_PROTOTYPES = 64
_MOST_OUTLINE_BYTES = 40_000  # dynamic shared memory that every GPU has beside the static part
_ENTRIES = 2**32
_MOST_PRIORS = 2**31
_MOST_PICTURES = 65_535  # blocks of a grid in y
_MOST_GIVEN = 65_535  # likewise
_WARP = 32


@dataclass(frozen=True)
class HeadShapes:
    """The sizes of a network's head outputs, the batch left out.

    Attributes:
        priors: P, at least 1; of a graph with NMS inside, how many detections of a picture it gives, pads included.
        classes: C with background, at least 2.
        prototypes: K, 1 … 64; 0 of a graph that assembles masks.
        height, width: h and w of the prototypes, or of the graph's masks.
        graph: what is in the graph: nothing after the heads, NMS, or NMS and mask assembly.

    Raises :class:`ConfigError` for sizes that the kernels do not take.
    """

    priors: int
    classes: int
    prototypes: int
    height: int
    width: int
    graph: GraphKind = "none"

    def __post_init__(self) -> None:
        lower = {"priors": 1, "classes": 2, "prototypes": int(self.graph != "masks"), "height": 1, "width": 1}
        for name, least in lower.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, at least {least} was wanted.", "Give the shapes of the head outputs.")
        mend = "Use the CPU's post-processing: postprocess='cpu'."
        if self.priors >= _MOST_PRIORS:
            raise ConfigError(f"{self.priors} priors were given, fewer than 2^31 were wanted.", mend)
        if self.graph != "none" and self.priors > _MOST_GIVEN:
            raise ConfigError(f"The graph gives {self.priors} detections, at most {_MOST_GIVEN} were wanted.", mend)
        if self.prototypes > _MOST_PROTOTYPES:
            raise ConfigError(f"{self.prototypes} prototypes were given, the GPU's mask assembly takes {_MOST_PROTOTYPES}.", mend)
        if self.priors * (self.classes - 1) >= _ENTRIES:
            raise ConfigError(f"{self.priors} priors of {self.classes} classes are 2^32 scores or more.", mend)
        if self.outline_bytes > _MOST_OUTLINE_BYTES:
            found = f"{self.height} x {self.width} samples need {self.outline_bytes:,} bytes of shared memory"
            raise ConfigError(f"Prototypes of {found}, {_MOST_OUTLINE_BYTES:,} can be had.", mend)

    @property
    def outline_bytes(self) -> int:
        """Dynamic shared memory of a block that walks outlines (``Outline::shared_bytes``)."""
        return 4 * (self.width * -(-self.height // 32) + self.height + 1)


def check_settings(settings: PostprocessSettings) -> None:
    """Raise :class:`ConfigError` for settings that only the CPU's post-processing follows."""
    for name in ("max_detections",) if settings.nms == "traditional" else ("top_k", "max_detections"):
        if getattr(settings, name) > _LARGEST_K:
            raise ConfigError(f"{name} is {getattr(settings, name)}, the GPU ranks at most {_LARGEST_K}.", "Use postprocess='cpu'.")


def detection_slots(shapes: HeadShapes, settings: PostprocessSettings) -> int:
    """D: how many detections a picture can have."""
    if shapes.graph != "none":
        return shapes.priors
    return settings.top_k if settings.nms == "cross-class" else settings.max_detections


class Workspace:
    """The buffers of one post-processing run at a time, and the :class:`Problem` that points to them.

    Attributes:
        shapes, batch, settings: what it is for; `batch` is the largest.
        slots: D, detections that a picture can have.
        device_bytes, pinned_bytes: what it holds.

    `input_size`, pixels of the network's input, is what traditional NMS measures boxes in; a graph with NMS inside needs no `settings`.
    `rle_bytes` of compressed masks are kept for each picture; `bits` is the largest picture (width, height) whose masks can be packed
    into bits, None for no such buffer.
    """

    def __init__(
        self,
        driver: Driver,
        shapes: HeadShapes,
        batch: int,
        settings: PostprocessSettings,
        *,
        rle_bytes: int,
        bits: tuple[int, int] | None = None,
        rescoring: bool = False,
        input_size: int = 550,
    ) -> None:
        inside = shapes.graph != "none"
        if not inside:
            check_settings(settings)
        if not 1 <= batch <= _MOST_PICTURES or rle_bytes < 1:
            asked = f"A batch of {batch} with {rle_bytes} bytes of RLE was asked for"
            raise ConfigError(f"{asked}, 1 … {_MOST_PICTURES} pictures with at least 1 byte are wanted.", "Give numbers in these ranges.")
        if input_size < 1:
            raise ConfigError(f"An input of {input_size} pixels was named, at least 1 was wanted.", "Give the network's input_size.")
        if bits is not None and min(bits) < 1:
            raise ConfigError(f"Room for bits of {bits[0]} x {bits[1]} pixels was asked for, at least 1 x 1 is wanted.", "Give a size.")
        self.shapes, self.batch, self.settings = shapes, batch, settings
        self.slots = detection_slots(shapes, settings)
        traditional = settings.nms == "traditional"
        groups = 0 if inside else 1 if settings.nms == "cross-class" else shapes.classes - 1
        top_k = settings.max_detections if traditional else settings.top_k
        arena = -(-rle_bytes * batch // 16) * 16
        if arena >= 2**32:
            raise ConfigError(f"{rle_bytes} bytes of RLE for each of {batch} pictures are 2^32 or more.", "Give a smaller rle_bytes.")
        stride = -(-bits[0] // 32) * bits[1] if bits else 0
        lists = batch * groups
        found = batch * self.slots
        samples = shapes.height * shapes.width
        layout: dict[str, int] = {
            "arena_used": 8,
            "candidate_counts": 4 * batch,
            "survivor_counts": 4 * batch,
            "candidates": 4 * batch * shapes.priors,
            "best_keys": 0 if inside else 8 * batch * shapes.priors,
            "ranked": 0 if traditional else 8 * lists * top_k,
            "ranked_counts": 0 if traditional else 4 * lists,
            "survivors": 8 * lists * top_k,
            "removed": 4 * lists * -(-shapes.priors // _WARP) if traditional else 0,
            "chosen_coefficients": 4 * found * shapes.prototypes,
            "crops": 16 * found,
            "probabilities": 4 * found * samples,
            "arena": arena,
            "bits": 4 * found * stride,
            "pictures": 8 * batch,
        }
        results: dict[str, int] = {
            "counts": 4 * batch,
            "found_boxes": 16 * found,
            **dict.fromkeys(("found_scores", "mask_scores", "labels", "priors", "rle_starts", "rle_lengths"), 4 * found),
        }
        counters = _places({name: layout.pop(name) for name in ("arena_used", "candidate_counts", "survivor_counts")})
        self._results = _places(results)
        self.device_bytes = counters.size + self._results.size + sum(layout.values())
        self.pinned_bytes = self._results.size + arena + 8 * batch
        self._release = contextlib.ExitStack()
        try:
            # A buffer each, so that whatever guards memory sees where one ends.
            own = {name: self._allocate(driver, size) for name, size in layout.items()}
            self.counters = (self._allocate(driver, counters.size), counters.size)
            self._results_pointer = self._allocate(driver, self._results.size)
            self._pinned: PinnedArray = self._release.enter_context(driver.allocate_pinned(self._results.size + 8 * batch))
            self._arena: PinnedArray = self._release.enter_context(driver.allocate_pinned(arena))
        except BaseException:
            self._release.close()
            raise
        own |= {name: self.counters[0] + start for name, start in counters.starts.items()}
        own |= {name: self._results_pointer + start for name, start in self._results.starts.items()}
        self.problem = Problem(
            **own,
            delivered=self._arena.array.ctypes.data,
            prior_count=shapes.priors,
            classes=shapes.classes,
            groups=groups,
            prototype_count=shapes.prototypes,
            height=shapes.height,
            width=shapes.width,
            top_k=top_k,
            max_detections=self.slots,
            score_threshold=settings.score_threshold,
            iou_threshold=settings.iou_threshold,
            fill=int(rescoring),
            arena_size=arena,
            bits_stride=stride,
            input_size=input_size,
        )

    @property
    def pictures(self) -> NDArray[np.int32]:
        """int32 [batch, 2] in page-locked memory: width and height of each picture."""
        return self._pinned.array[self._results.size :].view(np.int32).reshape(self.batch, 2)

    @property
    def arena(self) -> NDArray[np.uint8]:
        """The compressed masks as they arrive on the host."""
        return self._arena.array

    @property
    def staged_results(self) -> tuple[NDArray[np.uint8], int]:
        """Page-locked memory for the results' tables, and their device address."""
        return self._pinned.array[: self._results.size], self._results_pointer

    def result(self, name: str) -> NDArray[np.generic]:
        """One table of the results on the host: [batch] for ``counts``, else [batch, slots, …]."""
        dtypes = {"found_boxes": np.float32, "found_scores": np.float32, "mask_scores": np.float32, "labels": np.int32, "priors": np.int32}
        start = self._results.starts[name]
        table = self._pinned.array[start : start + self._results.sizes[name]].view(dtypes.get(name, np.uint32))
        if name == "counts":
            return table
        return table.reshape((self.batch, self.slots, 4) if name == "found_boxes" else (self.batch, self.slots))

    def _allocate(self, driver: Driver, size: int) -> int:
        """A device address; 0 for nothing."""
        if not size:
            return 0
        buffer: DeviceBuffer = self._release.enter_context(driver.allocate(size))
        return buffer.pointer

    def close(self) -> None:
        """Give the memory back; nothing may run on it any more."""
        self._release.close()


@dataclass(frozen=True)
class _Places:
    starts: dict[str, int]
    sizes: dict[str, int]
    size: int


def _places(sizes: dict[str, int]) -> _Places:
    """Where pieces of these sizes begin, one after the other at multiples of eight bytes, and the end of the last."""
    starts, end = {}, 0
    for name, size in sizes.items():
        starts[name] = end
        end += -(-size // 8) * 8
    return _Places(starts, dict(sizes), end)
