"""Runs the post-processing kernels on host arrays, on a GPU or on the CPU behind the shim, and brings everything back to compare."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from tests.helpers.host_driver import HostDriver
from yolact_deploy.classes import ClassList
from yolact_deploy.detections import Detections
from yolact_deploy.engines.cuda.arrays import DeviceArray
from yolact_deploy.engines.cuda.driver import DeviceBuffer, Driver, Module, Stream
from yolact_deploy.engines.cuda.heads import GivenDetections, Heads
from yolact_deploy.engines.cuda.postprocessor import MaskIouNet, Postprocessor
from yolact_deploy.engines.cuda.workspace import HeadShapes
from yolact_deploy.postprocess import PostprocessSettings

__all__ = ["GivenHeads", "GivenRows", "Outcome", "Runner", "class_list", "coco_counts"]


@dataclass(frozen=True, eq=False)
class GivenHeads:
    """A batch's head outputs on the host: boxes [B, P, 4], scores [B, P, C], coefficients [B, P, K], prototypes [B, K, h, w]."""

    boxes: np.ndarray
    scores: np.ndarray
    coefficients: np.ndarray
    prototypes: np.ndarray

    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.boxes, self.scores, self.coefficients, self.prototypes


@dataclass(frozen=True, eq=False)
class GivenRows:
    """A batch's detections on the host as a graph with NMS inside gives them, by their names without ``detections_``.

    `outputs`: boxes [B, D, 4], scores [B, D], labels [B, D], and coefficients [B, D, K] with prototypes [B, K, h, w], or masks [B, D, h, w]
    and perhaps mask_scores [B, D]. `classes` is C, with background.
    """

    classes: int
    outputs: dict[str, np.ndarray]

    def of(self, picture: int) -> dict[str, np.ndarray]:
        """One picture's, as the graph names them."""
        return {name if name == "prototypes" else f"detections_{name}": array[picture] for name, array in self.outputs.items()}


@dataclass(frozen=True, eq=False)
class Outcome:
    """One picture's results, N detections: `boxes` [N, 4] relative, `probabilities` [N, h, w] with 0 outside the crop, `masks` bool."""

    priors: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    mask_scores: np.ndarray
    boxes: np.ndarray
    probabilities: np.ndarray
    masks: np.ndarray | None
    detections: Detections


def class_list(count: int) -> ClassList:
    """`count` names."""
    return ClassList(tuple(f"class {number}" for number in range(count)), tuple(range(1, count + 1)))


def coco_counts(masks: np.ndarray) -> tuple[bytes, ...]:
    """What pycocotools writes of masks [N, H, W]."""
    return tuple(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for mask in masks)


class Runner:
    """A driver with the kernels loaded."""

    def __init__(self, driver: Driver, module: Module) -> None:
        self.driver, self.module = driver, module

    def ordered(self, order: str, seed: int = 0) -> Runner:
        """The threads of each block in this order from now on; a GPU does as it likes."""
        if isinstance(self.driver, HostDriver):
            self.driver.order, self.driver.seed = order, seed
        return self

    @contextlib.contextmanager
    def uploaded(self, *arrays: np.ndarray, stream: Stream) -> Iterator[list[DeviceArray]]:
        with contextlib.ExitStack() as release:
            found = []
            for array in arrays:
                buffer: DeviceBuffer = release.enter_context(self.driver.allocate(max(array.nbytes, 1)))
                self.driver.copy_to_device(buffer.pointer, np.ascontiguousarray(array), stream)
                found.append(DeviceArray(buffer.pointer, array.shape, array.dtype, self.driver.info.index, buffer))
            stream.synchronize()  # whatever stream takes them next
            yield found

    def download(self, pointer: int, shape: tuple[int, ...], dtype: type, stream: Stream) -> np.ndarray:
        array = np.empty(shape, dtype)
        if array.size:
            self.driver.copy_to_host(array, pointer, stream)
            stream.synchronize()
        return array

    def postprocessor(self, given: GivenHeads, settings: PostprocessSettings | None = None, **options: object) -> Postprocessor:
        shapes = HeadShapes(*given.scores.shape[1:], *given.prototypes.shape[1:])
        return Postprocessor(shapes, settings=settings, driver=self.driver, module=self.module, **options)

    @contextlib.contextmanager
    def opened(
        self, given: GivenHeads, settings: PostprocessSettings | None = None, **options: object
    ) -> Iterator[tuple[Postprocessor, list[DeviceArray], Stream]]:
        """A postprocessor for `given`, which lies on the device, and a stream."""
        with (
            self.driver.create_stream() as stream,
            self.uploaded(*given.arrays(), stream=stream) as arrays,
            self.postprocessor(given, settings, **options) as post,
        ):
            yield post, arrays, stream

    def run(
        self,
        given: GivenHeads,
        sizes: Sequence[tuple[int, int]],
        settings: PostprocessSettings | None = None,
        *,
        bits: bool = True,
        batch: int | None = None,
        rle_bytes: int = 1 << 20,
        mask_iou: MaskIouNet | None = None,
        input_size: int = 550,
    ) -> list[Outcome]:
        """All stages on one batch; `batch` is the largest that the buffers are for."""
        largest = (max(width for width, _ in sizes), max(height for _, height in sizes)) if bits else None
        options = {"batch": batch or len(given.scores), "rle_bytes": rle_bytes, "bits": largest, "mask_iou": mask_iou}
        options["input_size"] = input_size
        with self.opened(given, settings, **options) as (post, arrays, stream):
            heads = Heads(*arrays)
            post.set_pictures(sizes, heads.batch)
            post.enqueue(heads, stream, bits=bits)
            stream.synchronize()
            found = post.detections(heads.batch, class_list(given.scores.shape[2] - 1))
            return [self._outcome(post, picture, found[picture], stream, bits) for picture in range(heads.batch)]

    def run_rows(
        self,
        given: GivenRows,
        sizes: Sequence[tuple[int, int]],
        *,
        batch: int | None = None,
        rle_bytes: int = 1 << 20,
        mask_iou: MaskIouNet | None = None,
    ) -> list[Outcome]:
        """The same for the detections of a graph with NMS inside."""
        largest = max(width for width, _ in sizes), max(height for _, height in sizes)
        with self.driver.create_stream() as stream, self.uploaded(*given.outputs.values(), stream=stream) as arrays:
            rows = GivenDetections(given.classes, **dict(zip(given.outputs, arrays, strict=True)))
            options = {"batch": batch or rows.batch, "rle_bytes": rle_bytes, "bits": largest, "mask_iou": mask_iou}
            with Postprocessor(rows.shapes, driver=self.driver, module=self.module, **options) as post:
                post.set_pictures(sizes, rows.batch)
                post.enqueue(rows, stream, bits=True)
                stream.synchronize()
                found = post.detections(rows.batch, class_list(given.classes - 1))
                return [self._outcome(post, picture, found[picture], stream, True) for picture in range(rows.batch)]

    def _outcome(self, post: Postprocessor, picture: int, found: Detections, stream: Stream, bits: bool) -> Outcome:
        problem, slots, count = post.workspace.problem, post.workspace.slots, len(found)
        tables = {name: post.workspace.result(name)[picture][:count].copy() for name in ("priors", "labels", "found_scores", "mask_scores")}
        boxes = post.workspace.result("found_boxes")[picture][:count].copy()
        plane = (post.shapes.height, post.shapes.width)
        pointer = problem.probabilities + 4 * picture * slots * plane[0] * plane[1]
        probabilities = self.download(pointer, (count, *plane), np.float32, stream)
        crops = self.download(problem.crops + 16 * picture * slots, (count, 4), np.int32, stream)
        for mask, (left, top, right, bottom) in zip(probabilities, crops, strict=True):
            kept = mask[top:bottom, left:right].copy()
            mask[:] = 0
            mask[top:bottom, left:right] = kept
        masks = None
        if bits:
            stride, words = problem.bits_stride, -(-found.width // 32)
            packed = self.download(problem.bits + 4 * picture * slots * stride, (count, stride), np.uint32, stream)
            rows = packed[:, : found.height * words].reshape(count, found.height, words)
            masks = np.unpackbits(rows.view(np.uint8), axis=2, bitorder="little").astype(bool)
            assert not masks[..., found.width :].any()
            masks = masks[..., : found.width]
        return Outcome(
            tables["priors"], tables["labels"], tables["found_scores"], tables["mask_scores"], boxes, probabilities, masks, found
        )
