"""What the C++ library detects equals what Python finds in the same outputs: boxes, scores, labels, priors, masks and COCO's JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from tests.engines.cpp.standin.made_heads import golden_outputs, made_outputs
from tests.engines.cpp.truth import NMS, Recorded, noise, picture_line, same
from tests.helpers.cpp_engines import write_recorded_engine
from tests.helpers.cpp_library import CppLibrary, run_commands, with_images
from tests.helpers.tiny import tiny_variant
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.manifest import InputSpec
from yolact_deploy.variants import Variant, get_variant

DYNAMIC = BatchRange(1, 2, 4)
SMALL: dict[str, Any] = {"input_size": 64}
RESCORED: dict[str, Any] = {"input_size": 256, "mask_rescoring": True}
HALF_FLOATS = ("boxes", "scores", "coefficients", "prototypes", "detections_boxes", "detections_coefficients", "detections_masks")
SIZES = [(97, 131), (32, 7), (1, 1), (64, 64)]


def recorded(
    library: CppLibrary,
    folder: Path,
    fields: dict[str, Any],
    postprocess: Any = "none",
    *,
    half: bool = False,
    raw: Literal["rgb", "bgr"] | None = None,
    **options: Any,
) -> Recorded:
    """An engine of a tiny variant; `raw` is the channel order of its uint8 input."""
    variant: Variant = tiny_variant(**fields)
    outputs = made_outputs(variant, 3, postprocess)
    if half:
        outputs = {name: rows.astype(np.float16) if name in HALF_FLOATS else rows for name, rows in outputs.items()}
    spec = InputSpec.of(variant, "raw", raw) if raw else InputSpec.of(variant)
    return written(library, folder, variant, outputs, spec, postprocess, **options)


def written(
    library: CppLibrary, folder: Path, variant: Variant, outputs: Any, spec: InputSpec, postprocess: Any = "none", **options: Any
) -> Recorded:
    standin = library.standin
    backend: Any = "tensorrt-rtx" if standin.rtx else "tensorrt"
    given = {"postprocess": postprocess, "batch": DYNAMIC, "choose": "value", "backend": backend, "version": standin.version, **options}
    engine = write_recorded_engine(folder, variant, outputs, spec, **given)
    half_input = given.get("input_dtype") == "float16"
    return Recorded(engine, outputs, spec, half_input, given["choose"], variant.mask_rescoring and postprocess != "masks")


def detect_all(library: CppLibrary, folder: Path, engine: Recorded, options: str = "", *, masks: int = 7, **changed: Any) -> list[Any]:
    """Detect in pictures of four sizes, each alone and all at once, and hold everything against Python; the first alone's answer."""
    pictures = [noise(width, height, seed) for seed, (width, height) in enumerate(SIZES)]
    lines = [f"load path={engine.engine} masks={masks} contexts=1 {options}"]
    lines += [picture_line(folder, f"{index}.raw", picture) for index, picture in enumerate(pictures)]
    lines += [f"detect results=1 pictures={index}" for index in range(len(pictures))] * 2 + ["detect results=1 pictures=0,1,2,3"]
    loaded, *answers, left = run_commands(library, lines)
    assert loaded is None
    assert left == ""
    alone, together = answers[len(pictures) : -1], answers[-1]
    wanted = [engine.detections(picture, **changed) for picture in pictures]
    for index, one in enumerate(wanted):
        for round_of in (0, len(pictures)):
            same(alone[round_of + index][0], one)
        if engine.choose == "value":
            same(together[index], one)
    return [alone[0][0], wanted[0], pictures[0]]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "floats": (SMALL, {}),
    "one class": ({**SMALL, "num_classes": 2}, {}),
    "81 classes": ({**SMALL, "num_classes": 81, "num_prototypes": 32}, {}),
    "64 prototypes": ({**SMALL, "num_prototypes": 64}, {}),
    "halves": (SMALL, {"half": True, "precision": "fp16"}),
    "half input": (SMALL, {"input_dtype": "float16", "precision": "fp16"}),
    "raw rgb": (SMALL, {"raw": "rgb"}),
    "raw bgr": (SMALL, {"raw": "bgr"}),
    "static": (SMALL, {"batch": 4}),
    "smallest of two": (SMALL, {"batch": BatchRange(2, 3, 4)}),
    "nms inside": (SMALL, {"postprocess": "nms"}),
    "nms inside, halves": (SMALL, {"postprocess": "nms", "half": True, "precision": "fp16"}),
    "masks inside": (SMALL, {"postprocess": "masks"}),
    "masks inside, halves": (SMALL, {"postprocess": "masks", "half": True, "precision": "fp16"}),
    "rescoring": (RESCORED, {}),
    "rescoring by threes": (RESCORED, {"mask_iou_batch": BatchRange(3, 3, 3), "batch": BatchRange(1, 1, 4)}),
    "rescoring at once": (RESCORED, {"mask_iou_batch": BatchRange(1, 64, 1024)}),
    "nms inside, rescoring": (RESCORED, {"postprocess": "nms"}),
    "masks inside, rescored": (RESCORED, {"postprocess": "masks"}),
}


@pytest.mark.parametrize("case", CASES)
def test_detections_equal_pythons(library: CppLibrary, tmp_path: Path, case: str) -> None:
    fields, options = CASES[case]
    engine = recorded(library, tmp_path, fields, **options)
    first, wanted, picture = detect_all(library, tmp_path, engine)
    assert len(wanted) > 2
    priors = [row[7] for row in first["detections"]]
    assert priors == (engine.priors(picture).tolist() if "boxes" in engine.outputs else [-1] * len(wanted))
    assert first["names"] == len(engine.classes)


@pytest.mark.parametrize("nms", range(3))
@pytest.mark.parametrize("half", [False, True])
def test_every_kind_of_nms(library: CppLibrary, tmp_path: Path, nms: int, half: bool) -> None:
    engine = recorded(library, tmp_path, {**SMALL, "num_classes": 9}, half=half, precision="fp16" if half else "fp32")
    first, wanted, picture = detect_all(library, tmp_path, engine, f"nms={nms}", nms=NMS[nms])
    assert len(wanted) > 2
    assert [row[7] for row in first["detections"]] == engine.priors(picture, nms=NMS[nms]).tolist()


@pytest.mark.parametrize("nms", range(3))
def test_changed_settings(library: CppLibrary, tmp_path: Path, nms: int) -> None:
    engine = recorded(library, tmp_path, {**SMALL, "num_classes": 9})
    changes = {
        "score=0.75": {"score_threshold": 0.75},
        "iou=0.05": {"iou_threshold": 0.05},
        "iou=0.9 top_k=3": {"iou_threshold": 0.9, "top_k": 3},
        "max=2": {"max_detections": 2},
        "score=1": {"score_threshold": 1.0},
    }
    counts = set()
    for text, fields in changes.items():
        counts.add(len(detect_all(library, tmp_path, engine, f"nms={nms} {text}", nms=NMS[nms], **fields)[1]))
    assert len(counts) > 2
    assert 0 in counts


@pytest.mark.parametrize(("high", "wide"), [(16, 13), (11, 16)])
def test_masks_that_are_not_square(library: CppLibrary, tmp_path: Path, high: int, wide: int) -> None:
    variant = tiny_variant(**SMALL)
    outputs = made_outputs(variant, 3)
    outputs["prototypes"] = np.ascontiguousarray(outputs["prototypes"][:, :, :high, :wide])
    engine = written(library, tmp_path, variant, outputs, InputSpec.of(variant))
    assert len(detect_all(library, tmp_path, engine)[1]) > 2


@pytest.mark.parametrize("nms", range(3))
def test_the_golden_heads(library: CppLibrary, tmp_path: Path, nms: int) -> None:
    variant = get_variant("yolact_resnet50")
    engine = written(library, tmp_path, variant, golden_outputs(), InputSpec.of(variant), batch=1, choose="index")
    picture = noise(213, 160)
    lines = [f"load path={engine.engine} nms={nms}", picture_line(tmp_path, "picture", picture), "detect pictures=0", "detect pictures=0"]
    _, _, *answers, left = run_commands(library, lines)
    assert left == ""
    wanted = engine.detections(picture, nms=NMS[nms])
    assert len(wanted) > 20
    for answer in answers:
        same(answer[0], wanted)
        assert [row[7] for row in answer[0]["detections"]] == engine.priors(picture, nms=NMS[nms]).tolist()


@pytest.mark.parametrize("kind", ["rtx", "address"])
@pytest.mark.parametrize("case", ["floats", "halves", "raw bgr", "smallest of two", "nms inside", "masks inside", "rescoring"])
def test_other_tensorrts_and_sanitizers(library_of: Callable[[str], CppLibrary], tmp_path: Path, kind: str, case: str) -> None:
    library = library_of(kind)
    fields, options = CASES[case]
    detect_all(
        library,
        tmp_path,
        recorded(library, tmp_path, fields, **options),
        "nms=2" if "inside" not in case else "",
        **({"nms": "traditional"} if "inside" not in case else {}),
    )


@pytest.mark.parametrize("masks", range(8))
def test_forms_of_masks(library: CppLibrary, tmp_path: Path, masks: int) -> None:
    engine = recorded(library, tmp_path, SMALL)
    first, wanted, _ = detect_all(library, tmp_path, engine, masks=masks)
    assert bool(first["detections"][0][8]) == bool(masks & 1)
    assert (first["bits"] is not None) == bool(masks & 2)
    assert (first["device"] is not None) == bool(masks & 4)
    assert any(wanted.bitmap(index).any() for index in range(len(wanted)))


def test_those_above_a_score(library: CppLibrary, tmp_path: Path) -> None:
    engine = recorded(library, tmp_path, SMALL)
    picture = noise(50, 40)
    wanted = engine.detections(picture)
    limits = [-1.0, 0.0, float(np.float32(wanted.scores[1])), float(np.float32(wanted.scores[-1])), 0.8, 1.0]
    lines = [f"load path={engine.engine} masks=7 contexts=1", picture_line(tmp_path, "picture", picture)]
    lines.append("detect results=1 pictures=0,0,0,0")  # what is behind the next detections then scores too
    lines += [f"detect results=1 pictures=0 above={limit!r}" for limit in limits]
    _, _, _, *answers, _ = run_commands(library, lines)
    assert len({len(answer[0]["detections"]) for answer in answers}) > 3
    for limit, answer in zip(limits, answers, strict=True):
        same(answer[0], wanted.above(limit))


def test_a_real_cubin_is_embedded_and_found(library: CppLibrary, tmp_path: Path) -> None:
    compiler = pytest.importorskip("yolact_deploy.engines.cuda.compiler")
    pytest.importorskip("cuda.bindings.nvrtc")
    built = with_images(library, [compiler.cached_kernels((8, 9))])
    engine = recorded(built, tmp_path, SMALL)
    detect_all(built, tmp_path, engine)
