"""Fast NMS and masks on the GPU: head outputs in device memory to detections, without the host in between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.assembly import assembled
from yolact_deploy.classes import ClassList
from yolact_deploy.detections import Detections
from yolact_deploy.errors import ConfigError, DeviceError
from yolact_deploy.postprocess import PostprocessSettings, Selection, rles_from_probabilities

from .arrays import DeviceArray, DeviceView, device_array
from .compiler import cached_kernels
from .driver import Driver, Kernel, Module, Stream
from .problem import NO_ROOM, Problem
from .stages import Launch, launches, rescore
from .workspace import MOST_PIXELS, HeadShapes, Workspace

__all__ = ["Found", "Heads", "MaskIouNet", "Postprocessor"]

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))
_TABLES = {
    "found_boxes": np.dtype(np.float32),
    **dict.fromkeys(("found_scores", "mask_scores"), np.dtype(np.float32)),
    **dict.fromkeys(("labels", "priors"), np.dtype(np.int32)),
    **dict.fromkeys(("rle_starts", "rle_lengths"), np.dtype(np.uint32)),
}
RLE_BYTES = 4 << 20
"""Room for the compressed masks of a picture: 100 masks of 42 KB, three times what the noisiest of 1280 x 960 pixels took."""


class MaskIouNet(Protocol):
    """The second network of the plus variants, on the device."""

    def enqueue(self, masks: int, count: int, stream: Stream) -> int:
        """Queue it on `count` masks, float32 [count, 1, h, w] from `masks` on; returns where float32 [count, C - 1] will be."""


class Heads:
    """Head outputs on the device: `boxes` [B, P, 4], `scores` [B, P, C], `coefficients` [B, P, K], `prototypes` [B, K, h, w].

    Each is float32 or float16. Raises :class:`ConfigError` for shapes or dtypes that do not belong together.
    """

    def __init__(self, boxes: DeviceArray, scores: DeviceArray, coefficients: DeviceArray, prototypes: DeviceArray) -> None:
        self.boxes, self.scores, self.coefficients, self.prototypes = boxes, scores, coefficients, prototypes
        named = {"boxes": boxes, "scores": scores, "coefficients": coefficients, "prototypes": prototypes}
        for name, array in named.items():
            if array.dtype not in _FLOATS:
                raise ConfigError(f"{name} is {array.dtype}, float32 or float16 was wanted.", "Convert it on the device.")
        found = [array.shape for array in named.values()]
        if [len(shape) for shape in found] != [3, 3, 3, 4]:
            raise ConfigError(f"The head outputs have the shapes {_told(found)}; [B, P, 4], [B, P, C], [B, P, K], [B, K, h, w] are wanted.")
        batch, priors, corners = boxes.shape
        prototype_count, height, width = prototypes.shape[1:]
        wanted = [(batch, priors, 4), (batch, priors, scores.shape[2]), (batch, priors, prototype_count), (batch, *prototypes.shape[1:])]
        if found != wanted or corners != 4:
            raise ConfigError(f"The head outputs have the shapes {_told(found)}, which do not fit; {_told(wanted)} would.")
        self.batch = batch
        self.shapes = HeadShapes(priors, scores.shape[2], prototype_count, height, width)


def _told(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)


class Postprocessor:
    """Fast NMS or cross-class Fast NMS, mask assembly and COCO RLE for batches of up to `batch` pictures on one GPU.

    All memory is taken here, once. A call queues its work on one stream and returns; its results stay until the next call, so use one
    object for each stream that works at the same time, and one thread at a time.

    Args:
        shapes: of the head outputs.
        batch: the most pictures at once.
        settings: None for the defaults; ``traditional`` NMS is the CPU's alone.
        driver: the GPU; None opens number `device`.
        rle_bytes: room for the compressed masks of one picture. Masks that find none are encoded on the host, more slowly.
        bits: (width, height) of the largest picture whose masks are wanted as bits; takes D * height * ceil(width / 32) words a picture.
        mask_iou: rescores the masks (YOLACT++).
        module: the compiled kernels; None compiles them with NVRTC or takes them from the cache.

    Attributes:
        device_bytes: GPU memory that it holds.

    Raises :class:`ConfigError` for sizes or settings that the kernels do not take, :class:`DeviceError` where memory does not suffice, and
    :class:`yolact_deploy.errors.MissingDependencyError` without NVRTC.
    """

    def __init__(
        self,
        shapes: HeadShapes,
        *,
        batch: int = 1,
        settings: PostprocessSettings | None = None,
        driver: Driver | None = None,
        device: int = 0,
        rle_bytes: int = RLE_BYTES,
        bits: tuple[int, int] | None = None,
        mask_iou: MaskIouNet | None = None,
        module: Module | None = None,
    ) -> None:
        if driver is None:
            from .cuda_core import open_driver

            driver = open_driver(device)
        self.shapes, self.batch, self.settings = shapes, batch, settings or PostprocessSettings()
        self.driver, self._mask_iou = driver, mask_iou
        self._kernels: dict[str, Kernel] = {}
        self._own: Stream | None = None
        self.runs = 0
        self._release = contextlib.ExitStack()
        try:
            self.workspace = Workspace(driver, shapes, batch, self.settings, rle_bytes=rle_bytes, bits=bits, rescoring=mask_iou is not None)
            self._release.callback(self.workspace.close)
            self._module = module or self._release.enter_context(driver.load_module(cached_kernels(driver.info.compute_capability)))
            self._done = self._release.enter_context(driver.create_event())
        except BaseException:
            self._release.close()
            raise

    @property
    def device_bytes(self) -> int:
        return self.workspace.device_bytes

    def __call__(
        self,
        boxes: object,
        scores: object,
        coefficients: object,
        prototypes: object,
        sizes: Sequence[tuple[int, int]],
        *,
        stream: object | None = None,
        rle: bool = True,
        bits: bool = False,
    ) -> Found:
        """Queue the post-processing of B pictures' head outputs and return without waiting.

        Args:
            boxes, scores, coefficients, prototypes: arrays on this GPU with ``__dlpack__`` or ``__cuda_array_interface__`` (torch, CuPy,
                PyCUDA, …): [B, P, 4] relative corners, [B, P, C] probabilities with background in column 0, [B, P, K] after tanh,
                [B, K, h, w] after ReLU; float32 or float16. They may be reused when `stream` is past this call.
            sizes: (width, height) in pixels of each picture.
            stream: the caller's; None for one of its own, which waits for the arrays.
            rle: make COCO RLE.
            bits: make bit-packed masks.

        Raises :class:`ConfigError` for what does not fit, :class:`DeviceError` where the GPU fails.
        """
        chosen = self._own_stream() if stream is None else self.driver.borrow_stream(stream)
        given, index = (boxes, scores, coefficients, prototypes), self.driver.info.index
        heads = Heads(*(device_array(array, device=index, stream=chosen, driver=self.driver) for array in given))
        self.set_pictures(sizes, heads.batch)
        self.enqueue(heads, chosen, rle=rle, bits=bits)
        self._done.record(chosen)
        return Found(self, heads, chosen, {name for name, wanted in (("rle", rle), ("bits", bits)) if wanted})

    def _own_stream(self) -> Stream:
        if self._own is None:
            self._own = self._release.enter_context(self.driver.create_stream())
        return self._own

    def set_pictures(self, sizes: Sequence[tuple[int, int]], batch: int) -> None:
        """Say the (width, height) of the pictures of the next run, once the GPU is done with the last one's."""
        if self.runs:
            self._done.synchronize()
        if len(sizes) != batch:
            raise ConfigError(f"{len(sizes)} sizes were given for {batch} pictures.", "Give one (width, height) for each picture.")
        if batch > self.batch:
            raise ConfigError(f"A batch of {batch} was given, this Postprocessor takes {self.batch}.", "Make one with a larger batch.")
        for width, height in sizes:
            if width < 1 or height < 1 or width * height >= MOST_PIXELS:
                raise ConfigError(f"A picture of {width} x {height} pixels was named, 1 x 1 to 2^31 - 1 pixels are wanted.")
        self.workspace.pictures[:batch] = sizes

    def enqueue(
        self, heads: Heads, stream: Stream, *, rle: bool = True, bits: bool = False, mark: Callable[[str], None] | None = None
    ) -> None:
        """Queue all stages, buffers to buffers; may be captured into a graph. Sizes are read from :meth:`set_pictures` when it runs.

        `mark` is called with a stage's name after its work was queued.
        """
        problem = self._problem(heads, bits=bits)
        workspace, tell = self.workspace, mark or (lambda stage: None)
        self.runs += 1
        self.driver.copy_to_device(problem.pictures, workspace.pictures[: heads.batch], stream)
        self.driver.clear(*workspace.counters, stream)
        tell("sizes")
        half = [array.dtype == _FLOATS[1] for array in (heads.scores, heads.prototypes)]
        argument = bytes(problem)
        for launch in launches(
            self.shapes, heads.batch, problem.groups, workspace.slots, half_scores=half[0], half_prototypes=half[1], rle=rle, bits=bits
        ):
            self._launch(launch, argument, stream)
            tell(launch.stage)
            if launch.stage == "assemble" and self._mask_iou is not None:
                problem.mask_iou = self._mask_iou.enqueue(problem.probabilities, heads.batch * workspace.slots, stream)
                argument = bytes(problem)
                self._launch(rescore(heads.batch, workspace.slots), argument, stream)
                tell("rescore")
        self.driver.copy_to_host(*workspace.staged_results, stream)
        tell("results")

    def _problem(self, heads: Heads, *, bits: bool) -> Problem:
        if heads.shapes != self.shapes or heads.batch > self.batch:
            raise ConfigError(
                f"A batch of {heads.batch} of {heads.shapes} was given, at most {self.batch} of {self.shapes} was wanted.",
                "Make a Postprocessor for these shapes.",
            )
        problem = Problem.from_buffer_copy(self.workspace.problem)
        problem.batch = heads.batch
        problem.boxes, problem.scores = heads.boxes.pointer, heads.scores.pointer
        problem.coefficients, problem.prototypes = heads.coefficients.pointer, heads.prototypes.pointer
        problem.half_inputs = (heads.boxes.dtype == _FLOATS[1]) | (heads.coefficients.dtype == _FLOATS[1]) << 1
        if bits:
            most = int((-(-self.workspace.pictures[: heads.batch, 0] // 32) * self.workspace.pictures[: heads.batch, 1]).max())
            if most > problem.bits_stride:
                raise ConfigError("A picture is larger than the room for its bit-packed masks.", "Make a Postprocessor with larger bits.")
        return problem

    def _launch(self, launch: Launch, argument: bytes, stream: Stream) -> None:
        kernel = self._kernels.get(launch.kernel)
        if kernel is None:
            kernel = self._kernels[launch.kernel] = self._module.kernel(launch.kernel)
        self.driver.launch(kernel, launch.grid, launch.threads, argument, stream, shared=launch.shared)

    def detections(self, batch: int, classes: ClassList) -> list[Detections]:
        """What the last run, which must be over and have made RLE, found in its first `batch` pictures."""
        return [self._detections(picture, classes) for picture in range(batch)]

    def _detections(self, picture: int, classes: ClassList) -> Detections:
        count = int(self.workspace.result("counts")[picture])
        table = {name: self.workspace.result(name)[picture][:count].copy() for name in _TABLES}
        width, height = (int(side) for side in self.workspace.pictures[picture])
        chosen = Selection(table["priors"].astype(np.int64), table["labels"].astype(np.int64), table["found_scores"], table["found_boxes"])
        counts = [
            self._rle_on_host(picture, slot, table["found_boxes"][slot]) if start == NO_ROOM else self.workspace.arena[start:end].tobytes()
            for slot, (start, end) in enumerate(zip(table["rle_starts"], table["rle_starts"] + table["rle_lengths"], strict=True))
        ]
        return assembled(chosen, table["mask_scores"], counts, width, height, classes)

    def _rle_on_host(self, picture: int, slot: int, box: NDArray[np.float32]) -> bytes:
        """A mask that found no room in the arena, from its probabilities."""
        height, width = self.shapes.height, self.shapes.width
        probabilities = np.empty((1, height, width), np.float32)
        place = (picture * self.workspace.slots + slot) * probabilities.nbytes
        stream = self._own_stream()
        self.driver.copy_to_host(probabilities, self.workspace.problem.probabilities + place, stream)
        stream.synchronize()
        size = self.workspace.pictures[picture]
        return rles_from_probabilities(probabilities, box[None], int(size[0]), int(size[1]))[0]

    def view(self, name: str, batch: int, stream: Stream | None = None) -> DeviceView:
        """A result on the device; names as in :class:`Found`."""
        pointer, slots = getattr(self.workspace.problem, name), self.workspace.slots
        shapes = {"counts": (batch,), "found_boxes": (batch, slots, 4), "bits": (batch, slots, self.workspace.problem.bits_stride)}
        return DeviceView(pointer, shapes.get(name, (batch, slots)), _TABLES.get(name, np.dtype(np.uint32)), self, stream)

    def wait(self) -> None:
        """Wait until the last call is over."""
        self._done.synchronize()

    def close(self) -> None:
        """Wait for the last call and give everything back."""
        with contextlib.suppress(DeviceError):
            if self.runs:
                self._done.synchronize()
        self._release.close()

    def __enter__(self) -> Postprocessor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Found:
    """What one call of a :class:`Postprocessor` finds; its next call overwrites it.

    On the device, as arrays with ``__cuda_array_interface__`` (``torch.as_tensor(found.boxes, device="cuda")``), valid for work on the
    stream of the call; entries from ``counts[b]`` on are undefined:

    Attributes:
        counts: uint32 [B], detections of each picture.
        boxes: float32 [B, D, 4], x1, y1, x2, y2 relative to the picture, as they were given.
        scores, mask_scores: float32 [B, D].
        labels: int32 [B, D], 0-based without background.
        priors: int32 [B, D], the prior that each comes from.
        bits: uint32 [B, D, words]; each mask begins with its rows of ceil(width / 32) words, pixel x in bit x % 32 of word x // 32.
    """

    def __init__(self, owner: Postprocessor, heads: Heads, stream: Stream, made: set[str]) -> None:
        self._owner, self._heads, self._stream, self._made = owner, heads, stream, made
        self._run = owner.runs

    def _view(self, name: str) -> DeviceView:
        self._current()
        return self._owner.view(name, self._heads.batch, self._stream)

    def _current(self) -> None:
        if self._owner.runs != self._run:
            raise DeviceError("These detections were overwritten by a later call.", "Read them before, or use a second Postprocessor.")

    @property
    def counts(self) -> DeviceView:
        return self._view("counts")

    @property
    def boxes(self) -> DeviceView:
        return self._view("found_boxes")

    @property
    def scores(self) -> DeviceView:
        return self._view("found_scores")

    @property
    def mask_scores(self) -> DeviceView:
        return self._view("mask_scores")

    @property
    def labels(self) -> DeviceView:
        return self._view("labels")

    @property
    def priors(self) -> DeviceView:
        return self._view("priors")

    @property
    def bits(self) -> DeviceView:
        self._want("bits")
        return self._view("bits")

    def _want(self, what: str) -> None:
        if what not in self._made:
            raise ConfigError(f"The call was told to make no {what}.", f"Call with {what}=True.")

    def synchronize(self) -> None:
        """Wait until everything is there."""
        self._current()
        self._owner.wait()

    def detections(self, classes: ClassList) -> list[Detections]:
        """Wait, and return the B pictures' :class:`Detections`; `classes` names the labels."""
        self._want("rle")
        self.synchronize()
        return self._owner.detections(self._heads.batch, classes)
