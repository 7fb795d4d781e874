"""NMS and masks on the GPU: head outputs in device memory to detections, without the host in between."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.assembly import assembled
from yolact_deploy.classes import ClassList
from yolact_deploy.detections import Detections
from yolact_deploy.errors import ConfigError, DeviceError, ModelFileError
from yolact_deploy.postprocess import PostprocessSettings, Selection, rles_from_probabilities

from .arrays import DeviceView, device_array
from .compiler import cached_kernels
from .draw import DeviceMasks
from .driver import Driver, Module, Stream
from .found import Found
from .heads import GivenDetections, Heads
from .problem import NO_ROOM, Problem
from .stages import Launch, kernel_names, launches, rescore
from .workspace import MOST_PIXELS, HeadShapes, Workspace

__all__ = ["MaskIouNet", "Postprocessor"]

_DEFAULT_STREAM = 1  # CU_STREAM_LEGACY
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


def _checked_sizes(sizes: Sequence[tuple[int, int]], batch: int) -> list[tuple[int, int]]:
    if len(sizes) != batch:
        raise ConfigError(f"{len(sizes)} sizes were given for {batch} pictures.", "Give one (width, height) for each picture.")
    checked = [(operator.index(width), operator.index(height)) for width, height in sizes]
    for width, height in checked:
        if width < 1 or height < 1 or width * height >= MOST_PIXELS:
            raise ConfigError(
                f"A picture of {width} x {height} pixels was named, 1 x 1 to 2^31 - 1 pixels are wanted.", "Give width and height."
            )
    return checked


class Postprocessor:
    """NMS of any kind, mask assembly and COCO RLE for batches of up to `batch` pictures on one GPU.

    All memory is taken here, once. A call queues its work on one stream and returns; its results stay until the next call, so use one
    object for each stream that works at the same time, and one thread at a time.

    Args:
        shapes: of the head outputs, or of the detections of a graph with NMS inside, which :meth:`enqueue` takes.
        batch: the most pictures at once.
        settings: None for the defaults; those of a graph with NMS inside are in the graph.
        driver: the GPU; None opens number `device`.
        rle_bytes: room for the compressed masks of one picture. Masks that find none are encoded on the host, more slowly.
        bits: (width, height) of the largest picture whose masks are wanted as bits; takes D * height * ceil(width / 32) words a picture.
        mask_iou: rescores the masks (YOLACT++).
        module: the compiled kernels; None compiles them with NVRTC or takes them from the cache.
        input_size: of the network in pixels, in which traditional NMS measures boxes.

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
        input_size: int = 550,
    ) -> None:
        if driver is None:
            from .cuda_core import open_driver

            driver = open_driver(device)
        self.shapes, self.batch, self.settings = shapes, batch, settings or PostprocessSettings()
        self.driver, self._mask_iou = driver, mask_iou
        self._own: Stream | None = None
        self._last: Heads | None = None  # what the GPU may still read
        self.runs = 0
        self._release = contextlib.ExitStack()
        try:
            self.workspace = Workspace(
                driver,
                shapes,
                batch,
                self.settings,
                rle_bytes=rle_bytes,
                bits=bits,
                rescoring=mask_iou is not None,
                input_size=input_size,
            )
            self._release.callback(self.workspace.close)
            self._module = module or self._release.enter_context(driver.load_module(cached_kernels(driver.info.compute_capability)))
            self._kernels = {name: self._module.kernel(name) for name in kernel_names(shapes, self.settings.nms)}
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
            stream: the caller's; None for one of its own, which waits for the default stream and for what the arrays name.
            rle: make COCO RLE.
            bits: make bit-packed masks.

        Raises :class:`ConfigError` for what does not fit, :class:`DeviceError` where the GPU fails.
        """
        chosen = self._own_stream() if stream is None else self.driver.borrow_stream(stream)
        given, index = (boxes, scores, coefficients, prototypes), self.driver.info.index
        if stream is None:
            self._wait_for_default_stream(chosen)
        heads = Heads(*(device_array(array, device=index, stream=chosen, driver=self.driver) for array in given))
        self._check(heads, _checked_sizes(sizes, heads.batch), bits=bits)
        self.set_pictures(sizes, heads.batch)
        self._last = heads
        try:
            self.enqueue(heads, chosen, rle=rle, bits=bits)
        finally:
            self.queued(chosen)
        return Found(self, heads, chosen, {name for name, wanted in (("rle", rle), ("bits", bits)) if wanted})

    def _own_stream(self) -> Stream:
        if self._own is None:
            self._own = self._release.enter_context(self.driver.create_stream())
        return self._own

    def _wait_for_default_stream(self, stream: Stream) -> None:
        """Libraries that name no stream queue their work there, and a stream of one's own does not wait for it by itself."""
        with self.driver.borrow_stream(_DEFAULT_STREAM) as default, self.driver.create_event() as event:
            event.record(default)
            stream.wait(event)

    def set_pictures(self, sizes: Sequence[tuple[int, int]], batch: int) -> None:
        """Say the (width, height) of the pictures of the next run, once the GPU is done with the last one that :meth:`queued` told of."""
        checked = _checked_sizes(sizes, batch)
        if batch > self.batch:
            raise ConfigError(f"A batch of {batch} was given, this Postprocessor takes {self.batch}.", "Make one with a larger batch.")
        self._done.synchronize()
        self.workspace.pictures[:batch] = checked

    def queued(self, stream: Stream) -> None:
        """To be called after :meth:`enqueue`, or the launch of a graph that holds it, on `stream`: what the next run has to wait for."""
        self._done.record(stream)

    def enqueue(
        self,
        heads: Heads | GivenDetections,
        stream: Stream,
        *,
        rle: bool = True,
        bits: bool = False,
        mark: Callable[[str], None] | None = None,
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
        argument = bytes(problem)
        for launch in self._launches(heads, rle=rle, bits=bits):
            self._launch(launch, argument, stream)
            tell(launch.stage)
            if launch.stage == "assemble" and self._mask_iou is not None:
                problem.mask_iou = self._mask_iou.enqueue(problem.probabilities, heads.batch * workspace.slots, stream)
                argument = bytes(problem)
                self._launch(rescore(heads.batch, workspace.slots), argument, stream)
                tell("rescore")
        self.driver.copy_to_host(*workspace.staged_results, stream)
        tell("results")

    def _launches(self, heads: Heads | GivenDetections, *, rle: bool, bits: bool) -> Iterator[Launch]:
        half = {"half_scores": heads.half_scores, "half_prototypes": heads.half_prototypes}
        groups, slots = self.workspace.problem.groups, self.workspace.slots
        return launches(self.shapes, heads.batch, groups, slots, nms=self.settings.nms, **half, rle=rle, bits=bits)

    def _check(self, heads: Heads | GivenDetections, sizes: Sequence[tuple[int, int]], *, bits: bool) -> None:
        if heads.shapes != self.shapes or heads.batch > self.batch:
            raise ConfigError(
                f"A batch of {heads.batch} of {heads.shapes} was given, at most {self.batch} of {self.shapes} was wanted.",
                "Make a Postprocessor for these shapes.",
            )
        room = self.workspace.problem.bits_stride
        for width, height in sizes if bits else ():
            words = -(-width // 32) * height
            if words > room:
                found = f"The bits of a picture of {width} x {height} pixels are {words} words"
                raise ConfigError(f"{found}, there is room for {room}.", "Make a Postprocessor with larger bits.")

    def _problem(self, heads: Heads | GivenDetections, *, bits: bool) -> Problem:
        self._check(heads, self.workspace.pictures[: heads.batch].tolist(), bits=bits)
        problem = Problem.from_buffer_copy(self.workspace.problem)
        problem.batch = heads.batch
        heads.fill_in(problem)
        return problem

    def _launch(self, launch: Launch, argument: bytes, stream: Stream) -> None:
        kernel = self._kernels[launch.kernel]
        self.driver.launch(kernel, launch.grid, launch.threads, argument, stream, shared=launch.shared)

    def detections(self, batch: int, classes: ClassList) -> list[Detections]:
        """What the last run, which must be over and have made RLE, found in its first `batch` pictures.

        Raises :class:`ModelFileError` where a graph with NMS inside gave a label that `classes` does not name.
        """
        return [self._detections(picture, classes) for picture in range(batch)]

    def _detections(self, picture: int, classes: ClassList) -> Detections:
        count = int(self.workspace.result("counts")[picture])
        table = {name: self.workspace.result(name)[picture][:count].copy() for name in _TABLES}
        if self.shapes.graph != "none" and count and table["labels"].max() >= len(classes):
            raise ModelFileError(
                f"The graph finds the label {table['labels'].max()}, its manifest names {len(classes)} classes.",
                "Export the checkpoint again.",
            )
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

    def masks(self, picture: int) -> DeviceMasks:
        """Where one picture's bit-packed masks and labels are."""
        problem, first = self.workspace.problem, picture * self.workspace.slots
        places = {"bits": problem.bits + 4 * first * problem.bits_stride, "labels": problem.labels + 4 * first}
        return DeviceMasks(words=problem.bits_stride, count=problem.counts + 4 * picture, slots=self.workspace.slots, **places)

    def wait(self) -> None:
        """Wait until the last call is over."""
        self._done.synchronize()

    def close(self) -> None:
        """Wait for the last call and give everything back."""
        with contextlib.suppress(DeviceError):
            self._done.synchronize()
        self._release.close()
        self._last = None

    def __enter__(self) -> Postprocessor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
