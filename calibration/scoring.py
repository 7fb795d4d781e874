"""The mask AP of a graph that is in memory: what the search asks a hundred times, on pictures that are prepared once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from yolact_deploy.assembly import Heads, detect, detections_from_nms
from yolact_deploy.classes import ClassList
from yolact_deploy.data.coco import CocoDataset
from yolact_deploy.detections import Detections
from yolact_deploy.errors import ConfigError, DatasetError, ModelFileError
from yolact_deploy.evaluation.jobs import ClassMap
from yolact_deploy.evaluation.metrics import GroundTruth, measure
from yolact_deploy.manifest import Manifest
from yolact_deploy.pictures import read_picture
from yolact_deploy.postprocess import PostprocessSettings
from yolact_deploy.preprocess import prepare

__all__ = ["HEADS", "Judge", "Score", "open_session", "rounds_float16"]

HEADS = ("boxes", "scores", "coefficients", "prototypes")

IouKind = Literal["bbox", "segm"]


@dataclass(frozen=True)
class Score:
    """What a graph reaches: AP in percent points on `pictures` pictures, and the SHA-256 of the graph as it was run."""

    mask_ap: float
    box_ap: float
    sha256: str
    pictures: int


class _Found:
    """Detections by picture, as :func:`measure` asks for them."""

    def __init__(self) -> None:
        self.detections: dict[int, Detections] = {}

    def results(self, iou_type: IouKind, image_ids: Sequence[int]) -> list[dict[str, Any]]:
        entries = [entry for image_id in sorted(image_ids) for entry in self.detections[image_id].to_coco(image_id, iou_type=iou_type)]
        if iou_type == "segm":
            for entry in entries:
                del entry["bbox"]
        return entries


def open_session(model: bytes, threads: int = 0, *, as_written: bool = False) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU; :class:`ModelFileError` where it refuses the graph.

    `as_written` leaves out its optimizations. Those for Q/DQ pairs make integer kernels of them, which is what the graph for its CPU
    is for; of the graph for TensorRT they make something that TensorRT does not, and with float16 they lose exactness on the way.
    """
    options = onnxruntime.SessionOptions()
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - its exceptions share no public base
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelFileError(f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {reason}", "Export it again.") from None


@lru_cache(maxsize=1)
def rounds_float16() -> bool:
    """Whether this ONNX Runtime quantizes float16 as the standard says; 1.24 cuts fractions off, which costs points of AP."""
    values, scale = np.array([0.75, -0.75, 1.25], np.float16), np.array(1, np.float16)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("QuantizeLinear", ["values", "scale", "zero"], ["steps"])],
        "rounding",
        [onnx.helper.make_tensor_value_info("values", onnx.TensorProto.FLOAT16, [3])],
        [onnx.helper.make_tensor_value_info("steps", onnx.TensorProto.INT8, [3])],
        [onnx.numpy_helper.from_array(scale, "scale"), onnx.numpy_helper.from_array(np.array(0, np.int8), "zero")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    (steps,) = open_session(model.SerializeToString(), 1, as_written=True).run(None, {"values": values})
    return bool(np.asarray(steps).tolist() == [1, -1, 1])


class Judge:
    """Annotated pictures, prepared once and kept in a file, and COCO's figures of any graph on them.

    Args:
        manifest: of the float graph; its classes are matched to the data set's by name.
        pictures: paths, with (width, height) of each.
        truth: image id (1 … N, in the order of `pictures`) to COCO's ground truth.
        classes: of the ground truth.
        digest: of pictures and annotations, for who keeps results.
        folder: where the prepared pictures are kept, as ``inputs.npy``.
        mask_iou: the mask-IoU net of a variant with mask rescoring.
    """

    def __init__(
        self,
        manifest: Manifest,
        pictures: Sequence[Path],
        truth: GroundTruth,
        classes: ClassList,
        digest: str,
        folder: Path,
        *,
        mask_iou: Path | None = None,
        threads: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        if not pictures:
            raise DatasetError("There is no picture to measure on.", "Name a data set with pictures.")
        self.manifest, self.truth, self.classes, self.threads = manifest, truth, classes, threads
        self.class_map = ClassMap.of(manifest.classes, classes, "The model")
        limits = manifest.thresholds
        self.settings = PostprocessSettings(limits.score, limits.iou, limits.top_k, limits.max_detections)
        self.ids = list(range(1, len(pictures) + 1))
        self.digest = digest
        self.sizes: list[tuple[int, int]] = []
        self.images = self._prepared(pictures, folder, progress)
        self._mask_iou = None if mask_iou is None else open_session(mask_iou.read_bytes(), threads)

    @classmethod
    def of_dataset(cls, manifest: Manifest, dataset: CocoDataset, image_ids: Sequence[int], folder: Path, **options: Any) -> Judge:
        """Of these pictures of an annotated set."""
        wanted = set(image_ids)
        images = sorted((image for image in dataset.images if image.id in wanted), key=lambda image: image.id)
        original = [image.id for image in images]
        place = {image_id: number for number, image_id in enumerate(original, 1)}

        def truth(image_ids: Sequence[int]) -> dict[str, Any]:
            found = dataset.ground_truth([original[number - 1] for number in image_ids])
            for entry in found["images"]:
                entry["id"] = place[entry["id"]]
            for entry in found["annotations"]:
                entry["image_id"] = place[entry["image_id"]]
            return found

        digest = hashlib.sha256(f"{dataset.sha256}:{original}".encode()).hexdigest()
        return cls(manifest, [dataset.picture_path(image) for image in images], truth, dataset.classes, digest, folder, **options)

    @classmethod
    def of_float_model(cls, manifest: Manifest, model: bytes, pictures: Sequence[Path], folder: Path, **options: Any) -> Judge:
        """Of pictures without annotations: what the float model finds there above a score of 0.3 is the truth."""
        digest = hashlib.sha256(hashlib.sha256(model).digest() + json.dumps([str(path) for path in pictures]).encode()).hexdigest()
        judge = cls(manifest, pictures, lambda ids: {}, manifest.classes, digest, folder, **options)
        session = open_session(model, judge.threads)
        found = {number: detections.above(0.3) for number, detections in judge.detections(session)}
        if not any(map(len, found.values())):
            raise DatasetError(
                f"The model finds nothing above a score of 0.3 in {len(pictures)} pictures: there is nothing to compare INT8 with.",
                "Give pictures like those that it was trained on, or --annotations.",
            )
        judge.truth = _truth_of(found, manifest.classes)
        return judge

    def _prepared(self, pictures: Sequence[Path], folder: Path, progress: Callable[[int, int], None]) -> NDArray[Any]:
        spec = self.manifest.inputs[0]
        shape, file = (len(pictures), *(int(side) for side in spec.shape[1:])), folder / "inputs.npy"
        folder.mkdir(parents=True, exist_ok=True)
        images = np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(spec.dtype), shape=shape)
        for place, path in enumerate(pictures):
            picture = read_picture(path)
            self.sizes.append((picture.shape[1], picture.shape[0]))
            images[place] = prepare(picture, self.manifest.input)
            progress(place + 1, len(pictures))
        return images

    def close(self) -> None:
        """Let go of the file of prepared pictures."""
        self.images = np.zeros(0)

    def score(self, model: onnx.ModelProto | bytes, *, as_written: bool = False) -> Score:
        """AP of `model`, run in ONNX Runtime on the CPU; for `as_written` see :func:`open_session`."""
        data = model if isinstance(model, bytes) else model.SerializeToString()
        found = _Found()
        found.detections = dict(self.detections(open_session(data, self.threads, as_written=as_written)))
        return self._scored(found, hashlib.sha256(data).hexdigest())

    def hybrids(self, reference: bytes, model: onnx.ModelProto | bytes) -> dict[str, float]:
        """Mask AP where only boxes, only scores, or only masks (coefficients and prototypes) are `model`'s, the rest the reference's.

        Both run as they are written. Empty for graphs with NMS inside, whose heads cannot be mixed.
        """
        if self.manifest.postprocess != "none":
            return {}
        data = model if isinstance(model, bytes) else model.SerializeToString()
        sessions = [open_session(one, self.threads, as_written=one is data) for one in (reference, data)]
        parts = {"box": ("boxes",), "class": ("scores",), "mask": ("coefficients", "prototypes")}
        found = {part: _Found() for part in parts}
        for (ids, ours), (_, theirs) in zip(self._outputs(sessions[0]), self._outputs(sessions[1]), strict=True):
            for part, names in parts.items():
                mixed = {**ours, **{name: theirs[name] for name in names}}
                for place, number in enumerate(ids):
                    found[part].detections[number] = self._detect({name: mixed[name][place] for name in HEADS}, number)
        return {part: self._scored(kept, "").mask_ap for part, kept in found.items()}

    def detections(self, session: onnxruntime.InferenceSession) -> list[tuple[int, Detections]]:
        """Each picture's number and what is found in it, post-processed while the next ones run."""
        waiting = []
        with ThreadPoolExecutor(1) as pool:
            for ids, outputs in self._outputs(session):
                for place, number in enumerate(ids):
                    one = {name: values[place] for name, values in outputs.items()}
                    waiting.append((number, pool.submit(self._detect, one, number)))
            return [(number, future.result()) for number, future in waiting]

    def _outputs(self, session: onnxruntime.InferenceSession) -> Any:
        """(numbers, outputs by name) of each batch."""
        axis = self.manifest.inputs[0].shape[0]
        batch = axis if isinstance(axis, int) else 1
        names = [spec.name for spec in self.manifest.outputs]
        for start in range(0, len(self.ids), batch):
            ids, images = self.ids[start : start + batch], np.ascontiguousarray(self.images[start : start + batch])
            if len(ids) < batch:
                images = np.concatenate([images, np.repeat(images[-1:], batch - len(ids), axis=0)])
            values = session.run(names, {self.manifest.inputs[0].name: images})
            yield ids, dict(zip(names, values, strict=True))

    def _detect(self, outputs: dict[str, NDArray[Any]], number: int) -> Detections:
        width, height = self.sizes[number - 1]
        classes = self.manifest.classes
        mask_iou = self._rescore if self._mask_iou is not None else None
        if self.manifest.postprocess != "none":
            return detections_from_nms(outputs, width, height, classes, mask_iou=mask_iou)
        heads = Heads(*(outputs[name].astype(np.float32, copy=False) for name in HEADS))
        size = self.manifest.input.size
        return detect(heads, width, height, classes, self.settings, mask_iou=mask_iou, input_size=size)

    def _rescore(self, masks: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._mask_iou is None:
            raise ConfigError("There is no mask-IoU net.", "Export a YOLACT++ checkpoint.")
        (found,) = self._mask_iou.run(None, {"masks": masks})
        result: NDArray[np.float32] = found
        return result

    def _scored(self, found: _Found, sha256: str) -> Score:
        found.detections = {number: self.class_map.apply(one, self.classes) for number, one in found.detections.items()}
        box, mask = (measure(self.truth, self.classes, found, kind, self.ids).ap for kind in ("bbox", "segm"))
        if box is None or mask is None:
            raise DatasetError("AP is not defined on these pictures: nothing is annotated.", "Give pictures with annotated objects.")
        return Score(mask, box, sha256, len(self.ids))


def _truth_of(found: dict[int, Detections], classes: ClassList) -> GroundTruth:
    """Detections as COCO's ground truth."""
    annotations: dict[int, list[dict[str, Any]]] = {}
    count = 0
    for number, detections in sorted(found.items()):
        for result in detections.to_coco(number):
            area = float(coco_mask.area(result["segmentation"]))
            if area:  # nothing matches an empty mask
                count += 1
                entry = {name: result[name] for name in ("image_id", "category_id", "bbox", "segmentation")}
                annotations.setdefault(number, []).append({**entry, "id": count, "iscrowd": 0, "area": area})

    def truth(image_ids: Sequence[int]) -> dict[str, Any]:
        return {
            "images": [{"id": number, "width": found[number].width, "height": found[number].height} for number in image_ids],
            "annotations": [entry for number in image_ids for entry in annotations.get(number, [])],
            "categories": [{"id": key, "name": name} for key, name in zip(classes.category_ids, classes.names, strict=True)],
        }

    return truth
