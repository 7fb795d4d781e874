"""The C interface as ctypes sees it, for a process of its own: ``python c_interface.py LIBRARY ENGINE OTHER`` plays all and prints JSON."""

from __future__ import annotations

import ctypes
import json
import sys
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint8, c_uint32, c_void_p
from typing import Any


class Options(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        *((name, c_int) for name in ("device", "contexts", "no_graphs", "masks", "settings", "nms")),
        *((name, c_float) for name in ("score_threshold", "iou_threshold")),
        *((name, c_int) for name in ("top_k", "max_detections")),
        ("rle_bytes", c_size_t),
        ("lean_runtime", c_char_p),
    )


class Image(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("data", c_void_p),
        ("width", c_int),
        ("height", c_int),
        ("pitch", c_size_t),
        ("format", c_int),
        ("space", c_int),
        ("chroma", c_void_p),
        ("chroma_pitch", c_size_t),
    )


class Detection(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        *((name, c_float) for name in ("x1", "y1", "x2", "y2", "score", "mask_score")),
        ("label", c_int),
        ("prior", c_int),
        ("rle", c_void_p),
        ("rle_length", c_size_t),
    )


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "yolact_version": (c_char_p, []),
    "yolact_last_error": (c_char_p, []),
    "yolact_load": (c_int, [c_char_p, POINTER(Options), POINTER(c_void_p)]),
    "yolact_free": (None, [c_void_p]),
    "yolact_detect": (c_int, [c_void_p, POINTER(Image), c_size_t, c_void_p, POINTER(c_void_p)]),
    "yolact_warm_up": (c_int, [c_void_p, c_int, c_int, c_int]),
    "yolact_results_free": (None, [c_void_p]),
    "yolact_pictures": (c_size_t, [c_void_p]),
    "yolact_count": (c_size_t, [c_void_p, c_size_t]),
    "yolact_get": (c_int, [c_void_p, c_size_t, c_size_t, POINTER(Detection)]),
    "yolact_bits": (c_int, [c_void_p, c_size_t, c_size_t, POINTER(POINTER(c_uint32)), POINTER(c_size_t)]),
    "yolact_device_bits": (c_int, [c_void_p, c_size_t, POINTER(c_void_p), POINTER(c_size_t), POINTER(c_void_p)]),
    "yolact_coco_json": (c_char_p, [c_void_p, c_size_t, c_char_p]),
    "yolact_class_name": (c_char_p, [c_void_p, c_int]),
    "yolact_category_id": (c_int64, [c_void_p, c_int]),
    "yolact_largest_batch": (c_int, [c_void_p]),
    "yolact_input_size": (c_int, [c_void_p]),
    "yolact_selftest": (c_int, [c_char_p, POINTER(Options), POINTER(c_int)]),
}


def options(**fields: Any) -> Options:
    """As YOLACT_OPTIONS_DEFAULT, with `fields` changed, which are told to be given."""
    told = ("nms", "score_threshold", "iou_threshold", "top_k", "max_detections")  # in the order of yolact_settings
    settings = sum(1 << place for place, name in enumerate(told) if name in fields)
    return Options(**{"size": ctypes.sizeof(Options), "settings": settings, **fields})


class Caller:
    """The library's functions, and what they answered to be told at the end."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments
        self.kept: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, f"yolact_{name}")

    def told(self, code: int) -> list[Any]:
        return [code, self.last_error().decode()] if code else [0, ""]

    def load(self, path: str, chosen: Options | None = None) -> tuple[list[Any], c_void_p]:
        detector = c_void_p(1)
        return self.told(self.library.yolact_load(path.encode(), chosen, byref(detector))), detector

    def image(self, width: int, height: int, level: int, **fields: Any) -> Image:
        pixels = (c_uint8 * (3 * width * height))(*[level, 0, 255 - level] * (width * height))
        self.kept.append(pixels)
        return Image(**{"size": ctypes.sizeof(Image), "data": ctypes.addressof(pixels), "width": width, "height": height, **fields})

    def detect(self, detector: c_void_p, images: list[Image], results: c_void_p, stream: int | None = None) -> list[Any]:
        return self.told(self.library.yolact_detect(detector, (Image * len(images))(*images), len(images), stream, byref(results)))

    def rows(self, results: c_void_p, picture: int) -> list[Any]:
        found, one = [], Detection(size=ctypes.sizeof(Detection))
        for index in range(self.count(results, picture)):
            assert self.get(results, picture, index, byref(one)) == 0
            numbers = [getattr(one, name) for name, _ in Detection._fields_[1:9]]
            found.append([*numbers, ctypes.string_at(one.rle, one.rle_length).decode()])
        return found


def play(library: str, engine: str, selftested: str) -> dict[str, Any]:
    caller, answers = Caller(library), {}
    answers["version"] = caller.version().decode()
    answers["no error"] = caller.last_error().decode()
    loaded, detector = caller.load(engine, options(masks=7, contexts=1))
    answers["load"] = loaded
    answers["facts"] = [caller.largest_batch(detector), caller.input_size(detector)]
    places = (-1, 0, 3, 4)
    answers["names"] = [(caller.class_name(detector, place) or b"").decode() for place in places]
    answers["categories"] = [caller.category_id(detector, place) for place in places]
    answers["warm up"] = [
        caller.told(caller.warm_up(detector, *given)) for given in ((8, 8, 1), (0, 8, 1), (8, 0, 1), (8, 8, 0), (8, 8, 5))
    ]
    results, images = c_void_p(), [caller.image(20, 30, 10), caller.image(50, 20, 200, format=1)]
    answers["detect"] = caller.detect(detector, images, results)
    first = results.value
    answers["pictures"] = [caller.pictures(results), caller.count(results, 0), caller.count(results, 1), caller.count(results, 2)]
    answers["rows"] = [caller.rows(results, picture) for picture in (0, 1)]
    answers["json"] = [(caller.coco_json(results, picture, b"17") or b"null").decode() for picture in (0, 1, 2)]
    bits, words, device, stride = POINTER(c_uint32)(), c_size_t(), c_void_p(), c_size_t()
    answers["bits"] = [
        caller.bits(results, 1, 0, byref(bits), byref(words)),
        words.value,
        bytes(bytearray(ctypes.string_at(bits, 80))).hex(),
    ]
    answers["device bits"] = [caller.device_bits(results, 1, byref(device), byref(stride), None), bool(device.value), stride.value]
    one, many = Detection(size=ctypes.sizeof(Detection)), caller.count(results, 0)
    answers["bad"] = [
        caller.told(caller.get(results, 2, 0, byref(one))),
        caller.told(caller.get(results, 0, many, byref(one))),
        caller.told(caller.get(None, 0, 0, byref(one))),
        caller.told(caller.get(results, 0, 0, None)),
        caller.told(caller.bits(results, 0, many, byref(bits), byref(words))),
        caller.told(caller.bits(results, 0, 0, None, byref(words))),
        caller.told(caller.bits(results, 0, 0, byref(bits), None)),
        caller.told(caller.bits(None, 0, 0, byref(bits), byref(words))),
        caller.told(caller.device_bits(results, 2, byref(device), byref(stride), None)),
        caller.told(caller.device_bits(results, 0, None, byref(stride), None)),
        caller.told(caller.device_bits(results, 0, byref(device), None, None)),
        [caller.coco_json(results, 0, None), caller.last_error().decode()],
        [caller.coco_json(None, 0, b"1"), caller.last_error().decode()],
        caller.told(caller.library.yolact_detect(None, None, 0, None, byref(c_void_p()))),
        caller.told(caller.library.yolact_detect(detector, (Image * 1)(images[0]), 1, None, None)),
        caller.told(caller.library.yolact_detect(detector, None, 1, None, byref(c_void_p()))),
        caller.told(caller.warm_up(None, 8, 8, 1)),
        caller.told(caller.library.yolact_load(None, None, byref(c_void_p()))),
        caller.told(caller.library.yolact_load(engine.encode(), None, None)),
        caller.told(caller.selftest(None, None, byref(c_int()))),
        caller.told(caller.selftest(engine.encode(), None, None)),
    ]
    answers["bad"].append(caller.told(caller.get(results, 0, 0, byref(Detection(size=8)))))
    labels = c_void_p()
    answers["labels"] = [caller.device_bits(results, 1, byref(device), byref(stride), byref(labels)), bool(labels.value)]
    answers["nothing"] = [caller.pictures(None), caller.count(None, 0), caller.largest_batch(None), caller.input_size(None)]
    answers["nothing"] += [caller.class_name(None, 0), caller.category_id(None, 0)]
    answers["again"] = [caller.detect(detector, images[1:], results), results.value == first, caller.rows(results, 0)]
    answers["refused"] = [caller.detect(detector, [caller.image(4, 4, 0, pitch=1)], results), caller.pictures(results)]
    answers["sizes"] = [
        caller.detect(detector, [caller.image(4, 4, 0, size=size)], results) for size in (0, ctypes.sizeof(Image) - 1, 1000)
    ]
    answers["none"] = [caller.told(caller.library.yolact_detect(detector, None, 0, None, byref(results))), caller.pictures(results)]
    answers["held"] = [caller.detect(detector, images[:1], results), caller.detect(detector, images[:1], c_void_p())]
    caller.results_free(results)
    answers["given back"] = [caller.detect(detector, images[:1], results := c_void_p())]
    caller.free(detector)
    answers["outlives"] = caller.rows(results, 0) == answers["rows"][0]
    caller.results_free(results)
    caller.free(None), caller.results_free(None)
    answers["loads"] = {}
    given: dict[str, dict[str, Any]] = {
        "contexts=-1": {"contexts": -1},
        "masks=8": {"masks": 8},
        "nms=3": {"nms": 3},
        "score=2": {"score_threshold": 2},
        "iou=2": {"iou_threshold": 2},
        "top_k=0": {"top_k": 0},
        "top_k=1025": {"top_k": 1025},
        "max=0": {"max_detections": 0},
        "max=1025": {"max_detections": 1025, "nms": 2},
        "device=3": {"device": 3},
        "rle": {"rle_bytes": 1 << 32},
        "size": {"size": 8},
        "lean": {"lean_runtime": b"nowhere.so"},
    }
    for name, fields in given.items():
        outcome, detector = caller.load(engine, options(**fields))
        if name == "rle":
            outcome = caller.detect(detector, images[:1], c_void_p())
            caller.free(detector)
        answers["loads"][name] = [*outcome, name == "rle" or detector.value is None]
    answers["missing file"] = caller.load("nowhere.engine")[0]
    answers["changed"] = []
    for fields in (
        {"nms": 1},
        {"nms": 2, "max_detections": 3},
        {"score_threshold": 0.7},
        {"iou_threshold": 0.1},
        {"top_k": 2},
        {"masks": 4},
        {"no_graphs": 1},
    ):
        loaded, detector = caller.load(engine, options(**fields))
        results = c_void_p()
        told = caller.detect(detector, images[:1], results)
        assert told == [0, ""], (fields, loaded, told)
        words_told = caller.told(caller.bits(results, 0, 0, byref(bits), byref(words)))
        device_told = caller.told(caller.device_bits(results, 0, byref(device), byref(stride), None))
        answers["changed"].append([loaded, caller.rows(results, 0), words_told, device_told])
        caller.results_free(results)
        caller.free(detector)
    passed = c_int(7)
    answers["selftest"] = [caller.told(caller.selftest(engine.encode(), None, byref(passed))), passed.value]
    if selftested:
        passed = c_int(7)
        answers["selftested"] = [caller.selftest(selftested.encode(), options(), byref(passed)), passed.value, caller.last_error().decode()]
    driver = ctypes.CDLL("libcuda.so.1")
    answers["left"] = [driver.stub_cuda_live(kind) for kind in range(7)]
    return answers


if __name__ == "__main__":
    sys.stdout.write(json.dumps(play(*sys.argv[1:])))
