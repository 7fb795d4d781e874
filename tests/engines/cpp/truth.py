"""What the C++ library has to give, an engine's recorded rows through Python's own post-processing; and pictures as files for programs."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.engines.cuda.kernel_runs import GivenHeads, GivenRows, Runner
from tests.helpers.cpp_engines import chosen_rows, mask_ious
from tests.helpers.host_driver import HostDriver
from yolact_deploy.assembly import Heads, detect, detections_from_nms
from yolact_deploy.classes import ClassList
from yolact_deploy.detections import Detections
from yolact_deploy.engines.cuda.driver import Stream
from yolact_deploy.manifest import InputSpec
from yolact_deploy.postprocess import PostprocessSettings, select
from yolact_deploy.preprocess import prepare

__all__ = ["NMS", "Recorded", "noise", "picture_line", "same"]

NMS = ("fast", "cross-class", "traditional")  # in the order of yolact::Nms
_FIELDS = ("x1", "y1", "x2", "y2", "score", "mask_score", "label", "prior")
Array = NDArray[Any]


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """RGB [height, width, 3]."""
    return np.random.default_rng((seed, width, height)).integers(0, 256, (height, width, 3), np.uint8)


def picture_line(
    folder: Path, name: str, picture: NDArray[np.uint8], pitch: int = 0, *, bgr: bool = False, device: int | None = None
) -> str:
    """Writes a file and gives the command that makes it a picture; `pitch` bytes from a row to the next, the last row without a gap."""
    height, width = picture.shape[:2]
    rows = np.ascontiguousarray(picture[..., ::-1] if bgr else picture).reshape(height, -1)
    if pitch:
        wide = np.full((height, pitch), 0xEE, np.uint8)
        wide[:, : rows.shape[1]] = rows
        content = wide.tobytes()[: pitch * (height - 1) + rows.shape[1]]
    else:
        content = rows.tobytes()
    (folder / name).write_bytes(content)
    where = "" if device is None else f" space=1 device={device}"
    return f"picture file={folder / name} width={width} height={height} pitch={pitch} format={int(bgr)}{where}"


@dataclass(frozen=True)
class Recorded:
    """A recorded engine and what Python makes of its rows."""

    engine: Path
    outputs: Mapping[str, Array]
    spec: InputSpec
    half_input: bool = False
    choose: Any = "value"
    rescoring: bool = False

    @property
    def sidecar(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.engine.with_name(f"{self.engine.name}.json").read_text())
        return found

    @property
    def classes(self) -> ClassList:
        told = self.sidecar["classes"]
        return ClassList(tuple(told["names"]), tuple(told["category_ids"]))

    def settings(self, **changed: Any) -> PostprocessSettings:
        told = self.sidecar["thresholds"]
        names = {"score_threshold": "score", "iou_threshold": "iou", "top_k": "top_k", "max_detections": "max_detections"}
        return PostprocessSettings(**{**{field: told[name] for field, name in names.items()}, **changed})

    def row(self, picture: NDArray[np.uint8], place: int = 0) -> int:
        """The recorded row that a picture gets."""
        count = len(next(iter(self.outputs.values())))
        if self.choose == "index":
            return place % count
        prepared = prepare(picture, self.spec)
        return chosen_rows((prepared.astype(np.float16) if self.half_input else prepared)[None], count, self.choose)[0]

    def heads(self, picture: NDArray[np.uint8], place: int = 0) -> Heads:
        row = self.row(picture, place)
        return Heads(*(self.outputs[name][row].astype(np.float32) for name in ("boxes", "scores", "coefficients", "prototypes")))

    def priors(self, picture: NDArray[np.uint8], place: int = 0, **changed: Any) -> NDArray[np.int64]:
        """That each detection comes from."""
        heads = self.heads(picture, place)
        return select(heads.boxes, heads.scores, self.settings(**changed), self.spec.size).priors

    def detections(self, picture: NDArray[np.uint8], place: int = 0, **changed: Any) -> Detections:
        """Python's answer; `changed` are fields of the settings."""
        own = {name: rows[self.row(picture, place)] for name, rows in self.outputs.items()}
        height, width = picture.shape[:2]
        if self.rescoring:  # by sums over probabilities, whose last bits differ between NumPy and a GPU's fused multiply-add
            return self.on_gpu([picture], places=[place], **changed)[0]
        if "boxes" not in own:
            return detections_from_nms(own, width, height, self.classes)
        settings = self.settings(**changed)
        return detect(self.heads(picture, place), width, height, self.classes, settings, input_size=self.spec.size)

    def on_gpu(
        self, pictures: Sequence[NDArray[np.uint8]], driver: HostDriver | None = None, places: Sequence[int] = (), **changed: Any
    ) -> list[Detections]:
        """The answer of Python's GPU post-processing on a batch, whose kernels run on the CPU."""
        driver = driver or HostDriver()
        runner, places = Runner(driver, driver.load_module(driver.image)), places or range(len(pictures))
        rows = [self.row(picture, place) for place, picture in zip(places, pictures, strict=True)]
        given = {name.removeprefix("detections_"): values[rows] for name, values in self.outputs.items()}
        sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
        net = _MeanNet(given["prototypes"].shape[-2:], len(self.classes)) if self.rescoring else None
        if "boxes" in self.outputs:
            found = runner.run(GivenHeads(**given), sizes, self.settings(**changed), mask_iou=net, input_size=self.spec.size)
        else:
            found = runner.run_rows(GivenRows(len(self.classes) + 1, given), sizes, mask_iou=net)
        own = {"class_names": self.classes.names, "category_ids": self.classes.category_ids}
        return [replace(each.detections, **own) for each in found]


class _MeanNet:
    """The stand-in's mask-IoU net on host memory."""

    def __init__(self, shape: tuple[int, ...], columns: int) -> None:
        self._shape, self._columns = shape, columns
        self._answers = np.empty((0, columns), np.float32)

    def enqueue(self, masks: int, count: int, stream: Stream) -> int:
        size = count * int(np.prod(self._shape))
        given = np.ctypeslib.as_array((ctypes.c_float * size).from_address(masks)).reshape(count, 1, *self._shape)
        self._answers = np.ascontiguousarray(mask_ious(given, self._columns))
        return self._answers.ctypes.data


def same(found: Mapping[str, Any], wanted: Detections) -> None:
    """Whether a picture's answer is Python's, to the last bit and letter."""
    assert (found["width"], found["height"]) == (wanted.width, wanted.height)
    rows: Sequence[Any] = found["detections"]
    table = {name: np.array([row[place] for row in rows]) for place, name in enumerate(_FIELDS)}
    assert len(rows) == len(wanted)
    if rows:
        np.testing.assert_array_equal(np.stack([table[name] for name in _FIELDS[:4]], 1).astype(np.float32), wanted.boxes)
        np.testing.assert_array_equal(table["score"].astype(np.float32), wanted.scores)
        np.testing.assert_array_equal(table["mask_score"].astype(np.float32), wanted.mask_scores)
        np.testing.assert_array_equal(table["label"], wanted.labels)
    assert tuple(row[8].encode() for row in rows) in (wanted.counts, (b"",) * len(rows))
    if not rows or rows[0][8]:
        assert found["coco"] == json.dumps(wanted.to_coco(17)).replace("}}, {", "}},\n {")
    if found["bits"] is not None:
        assert_bits(found["bits"], -(-wanted.width // 32), wanted)
    if found["device"] is not None:
        assert (found["device"]["row_words"], found["device"]["count"]) == (-(-wanted.width // 32), len(wanted))
        assert_bits(found["device"]["masks"], -(-wanted.width // 32), wanted)
        np.testing.assert_array_equal(found["device"]["labels"], wanted.labels)


def assert_bits(masks: Sequence[str], row_words: int, wanted: Detections) -> None:
    assert len(masks) == len(wanted)
    for index, text in enumerate(masks):
        words = np.frombuffer(bytes.fromhex(text), np.uint8).reshape(wanted.height, 4 * row_words)
        pixels = np.unpackbits(words, axis=1, bitorder="little")
        np.testing.assert_array_equal(pixels[:, : wanted.width].astype(bool), wanted.bitmap(index))
        assert not pixels[:, wanted.width :].any()
