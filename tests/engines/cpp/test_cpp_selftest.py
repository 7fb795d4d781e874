"""yolact::selftest says what Python's selftest says: of right engines and wrong ones, in the same words, and of damaged files."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.engines.cpp.standin.made_heads import made_heads
from tests.engines.cpp.test_detect import recorded, written
from tests.engines.cpp.truth import Recorded, noise
from tests.helpers.cpp_library import CppLibrary, compile_program, run_program
from tests.helpers.kernel_library import build_library as build_kernels
from tests.helpers.stub_cuda import c_library
from tests.helpers.tiny import tiny_variant
from yolact_deploy.assembly import Heads, detect
from yolact_deploy.classes import numbered_classes
from yolact_deploy.detections import Detections
from yolact_deploy.engines.selftest import Selftest, SelftestTolerance
from yolact_deploy.errors import YolactDeployError
from yolact_deploy.manifest import InputSpec
from yolact_deploy.postprocess import PostprocessSettings
from yolact_deploy.runtime import selftesting
from yolact_deploy.runtime.selftesting import SelftestResult

WIDTH, HEIGHT, CLASSES = 40, 30, 4
PICTURE = noise(WIDTH, HEIGHT)
TOLERANCE = SelftestTolerance(score=0.05, mask_iou=0.75, box_iou=0.5)
MODEL_FILE = 2
Thing = tuple[int, float, tuple[float, float, float, float], bool]  # label, score, box in pixels, whether its mask fills the box


VARIANT = tiny_variant(input_size=64, num_classes=CLASSES + 1)
BLANK = {name: np.zeros_like(values) for name, values in made_heads(VARIANT, 1).items()}


def outputs_of(things: Sequence[Thing]) -> dict[str, NDArray[Any]]:
    """Of a network that finds these: prototype 0 is 1 everywhere, so that masks are whole boxes or empty."""
    outputs = {name: values.copy() for name, values in BLANK.items()}
    outputs["scores"][..., 0] = 1
    outputs["prototypes"][:, 0] = 1
    for place, (label, score, box, full) in enumerate(things):
        outputs["boxes"][0, place] = np.array(box) / (WIDTH, HEIGHT, WIDTH, HEIGHT)
        outputs["scores"][0, place, [0, label + 1]] = 1 - score, score
        outputs["coefficients"][0, place, 0] = 8 if full else -8
    return outputs


def engine_of(library: CppLibrary, folder: Path, things: Sequence[Thing], **options: Any) -> Recorded:
    """An engine that finds these, whatever they overlap."""
    given = {"batch": 1, "choose": "index", **options}
    engine = written(library, folder, VARIANT, outputs_of(things), InputSpec.of(VARIANT), **given)
    sidecar = engine.sidecar
    sidecar["thresholds"]["iou"] = 1.0
    engine.engine.with_name(f"{engine.engine.name}.json").write_text(json.dumps(sidecar))
    return engine


def detections_of(things: Sequence[Thing]) -> Detections:
    """What such an engine finds."""
    heads = Heads(*(outputs_of(things)[name][0] for name in ("boxes", "scores", "coefficients", "prototypes")))
    return detect(heads, WIDTH, HEIGHT, numbered_classes(CLASSES), PostprocessSettings(iou_threshold=1.0), input_size=64)


def carrying(engine: Recorded, content: bytes, name: str = "", sha256: str | None = None) -> Recorded:
    """A copy of the engine beside it that carries this self-test."""
    copy = engine.engine.with_name(f"{name}.engine") if name else engine.engine
    sidecar = engine.sidecar
    copy.write_bytes(engine.engine.read_bytes())
    file = copy.with_name(f"{copy.name}.selftest.json")
    file.write_bytes(content)
    sidecar["target"]["selftest"] = {"file": file.name, "sha256": sha256 or hashlib.sha256(content).hexdigest()}
    copy.with_name(f"{copy.name}.json").write_text(json.dumps(sidecar))
    return Recorded(copy, engine.outputs, engine.spec, engine.half_input, engine.choose)


def document(expected: Detections, tolerance: SelftestTolerance = TOLERANCE, threshold: float = 0.3) -> bytes:
    return Selftest(PICTURE, expected, "by hand", threshold, tolerance).to_json().encode()


@dataclass
class Python:
    """Python's own ``selftest`` on recorded engines."""

    monkeypatch: pytest.MonkeyPatch

    def __call__(self, engine: Recorded, found: Detections | None = None) -> SelftestResult | str:
        def predict(picture: Any, *, channels: str, score_threshold: float) -> Detections:
            return (engine.detections(picture) if found is None else found).above(score_threshold)

        detector = SimpleNamespace(classes=engine.classes, predict=predict)
        self.monkeypatch.setattr(selftesting, "load", lambda path, **_: nullcontext(detector))
        try:
            return selftesting.selftest(engine.engine)
        except YolactDeployError as error:
            return str(error)


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> Python:
    return Python(monkeypatch)


def cpp(library: CppLibrary, *engines: Recorded, words: Sequence[str] = (), **options: Any) -> list[SelftestResult | str]:
    program = compile_program(library, "selftests")
    text = "".join(f"{engine.engine}\n" for engine in engines)
    *answers, left = map(json.loads, run_program(library, [program, *words], text, **options).splitlines())
    assert left == "", left
    results: list[SelftestResult | str] = []
    for answer in answers:
        if "error" in answer:
            assert answer["code"] == MODEL_FILE, answer
            results.append(answer["error"])
        else:
            results.append(SelftestResult(answer["passed"], answer["checked"], tuple(answer["problems"])))
            assert (answer["runs"], answer["captured"]) == ((2, 1) if answer["passed"] else (1, 0)), answer
    return results


# True engines


@pytest.mark.parametrize("kind", ["plain", "address", "rtx"])
@pytest.mark.parametrize("postprocess", ["none", "nms", "masks"])
def test_a_right_engine_passes(
    library_of: Callable[[str], CppLibrary], tmp_path: Path, python: Python, kind: str, postprocess: str
) -> None:
    library = library_of(kind)
    engine = recorded(library, tmp_path, {"input_size": 64}, postprocess, batch=1)
    engine = carrying(engine, document(engine.detections(PICTURE).above(0.3)))
    wanted = python(engine)
    assert isinstance(wanted, SelftestResult)
    assert wanted.passed
    assert wanted.checked > 3
    assert cpp(library, engine) == cpp(library, engine, words=["changed"]) == [wanted]


def test_the_second_run_counts_too(library: CppLibrary, tmp_path: Path, python: Python) -> None:
    """A kernel that is not run when the graph is replayed."""
    engine = engine_of(library, tmp_path, THINGS)
    engine = carrying(engine, document(detections_of(THINGS)))
    source = """
        #include <dlfcn.h>
        #include <string.h>
        typedef const char *Launch(const char *, unsigned, unsigned, unsigned, unsigned, unsigned, int, unsigned, const void *);
        static void *found(const char *name) { return dlsym(dlopen("KERNELS", RTLD_NOW), name); }
        long shim_argument_size(const char *name) { return ((long (*)(const char *))found("shim_argument_size"))(name); }
        const char *shim_launch(const char *name, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared, int order,
                                unsigned seed, const void *argument) {
            static int selected;
            if (!strncmp(name, "select", 6) && ++selected == 2) return 0;
            return ((Launch *)found("shim_launch"))(name, x, y, z, threads, shared, order, seed, argument);
        }
    """
    nothing = python(engine, detections_of([]))
    assert isinstance(nothing, SelftestResult)
    assert nothing.problems[0].endswith("has no partner; nearest: nothing was found")
    program = compile_program(library, "selftests")
    shim = c_library(source.replace("KERNELS", str(build_kernels())))
    answer, left = map(json.loads, run_program(library, [program], f"{engine.engine}\n", kernels=shim).splitlines())
    assert left == ""
    assert (answer["runs"], answer["captured"]) == (2, 1)
    assert (answer["passed"], answer["checked"], answer["problems"]) == (False, 2, list(nothing.problems))


def test_a_failing_gpu_is_an_error(library: CppLibrary, tmp_path: Path) -> None:
    engine = carrying(engine_of(library, tmp_path, THINGS, lines=["fail run 2"]), document(detections_of(THINGS)))
    answer = json.loads(run_program(library, [compile_program(library, "selftests")], f"{engine.engine}\n").splitlines()[0])
    assert answer["code"] == 3
    assert "CUDA_ERROR_LAUNCH_FAILED" in answer["error"]


# Wrong engines

BOX, OTHER = (4.0, 3.0, 24.0, 18.0), (25.0, 20.0, 39.0, 29.0)
THINGS: list[Thing] = [(1, 0.9, BOX, True), (2, 0.6, OTHER, True)]
WRONG: dict[str, tuple[list[Thing], list[Thing], dict[str, float], bool]] = {  # found, expected, tolerances, whether it passes
    "a score within": ([(1, 0.86, BOX, True), (2, 0.6, OTHER, True)], THINGS, {}, True),
    "a score over": ([(1, 0.84, BOX, True), (2, 0.6, OTHER, True)], THINGS, {}, False),
    "a better score": ([(1, 0.96, BOX, True), (2, 0.6, OTHER, True)], THINGS, {}, False),
    "a box within": ([(1, 0.9, (6, 3, 24, 18), True), (2, 0.6, OTHER, True)], THINGS, {}, True),
    "a box that is moved": ([(1, 0.9, (15, 12, 35, 27), True), (2, 0.6, OTHER, True)], THINGS, {}, False),
    "a box far away": ([(1, 0.9, (0, 0, 3, 2), True), (2, 0.6, OTHER, True)], THINGS, {}, False),
    "a mask that is cut": ([(1, 0.9, (4, 3, 17, 18), True), (2, 0.6, OTHER, True)], THINGS, {}, False),
    "a mask that is empty": ([(1, 0.9, BOX, False), (2, 0.6, OTHER, True)], THINGS, {}, False),
    "both masks empty": ([(1, 0.9, BOX, False)], [(1, 0.9, BOX, False)], {}, True),
    "another label": ([(3, 0.9, BOX, True), (2, 0.6, OTHER, True)], THINGS, {}, False),
    "labels that are swapped": ([(2, 0.9, BOX, True), (1, 0.6, OTHER, True)], THINGS, {}, False),
    "one missing": (THINGS[:1], THINGS, {}, False),
    "one too many": ([*THINGS, (0, 0.5, (1, 20, 9, 29), True)], THINGS, {}, False),
    "one too many that is weak": ([*THINGS, (0, 0.34, (1, 20, 9, 29), True)], THINGS, {}, True),
    "a weak one missing": (THINGS, [*THINGS, (0, 0.34, (1, 20, 9, 29), True)], {}, True),
    "a weak partner of a weak one": ([*THINGS, (0, 0.34, BOX, True)], [*THINGS, (0, 0.32, BOX, True)], {}, True),
    "all weak": ([(1, 0.31, BOX, True)], THINGS, {}, False),
    "nothing": ([], THINGS, {}, False),
    "all wrong": ([(0, 0.8, BOX, True), (3, 0.7, BOX, True), (1, 0.5, OTHER, True)], THINGS, {}, False),
    "two for one": ([(1, 0.9, (5, 3, 24, 18), True), (1, 0.88, BOX, True)], THINGS[:1], {}, False),
    "two for two": ([(1, 0.9, (5, 3, 24, 18), True), (1, 0.88, BOX, True)], [THINGS[0], (1, 0.89, (5, 3, 24, 18), True)], {}, True),
    "the first takes what the second needs": (
        [(1, 0.9, BOX, True), (1, 0.8, (4, 3, 14, 18), True)],
        [(1, 0.88, (5, 3, 24, 18), True), (1, 0.86, BOX, True)],
        {"mask_iou": 0.4, "box_iou": 0.4},
        False,
    ),
    "equal ones": ([THINGS[0]] * 3, [THINGS[0]] * 3, {}, True),
    "equal ones, one missing": ([THINGS[0]] * 2, [THINGS[0]] * 3, {}, False),
    "boxes without area": ([(1, 0.9, (4, 3, 4, 18), False)], [(1, 0.9, (9, 9, 9, 9), False)], {}, True),
    "a box without area": ([(1, 0.9, BOX, True)], [(1, 0.9, (9, 9, 9, 9), False)], {}, False),
    "everything goes": (
        [(1, 0.4, OTHER, True), (2, 1.0, (0, 0, 3, 3), True)],
        THINGS,
        {"mask_iou": 0.0, "box_iou": 0.0, "score": 0.6, "threshold": 0.1},
        True,
    ),
    "nothing may differ": (THINGS, THINGS, {"mask_iou": 1.0, "box_iou": 1.0, "score": 0.0}, False),
    "a high threshold": (THINGS, THINGS, {"threshold": 0.7}, True),
    "small numbers": ([(1, 0.90001, BOX, True)], THINGS[:1], {"score": 1e-6, "mask_iou": 1e-7}, False),
    "all of a picture": ([(0, 1.0, (0, 0, 40, 30), True)], [(0, 1.0, (0, 0, 40, 30), True)], {"score": 0.0, "mask_iou": 1.0}, True),
}  # fmt: skip


def tolerance_of(changed: dict[str, float]) -> tuple[SelftestTolerance, float]:
    fields = {"score": TOLERANCE.score, "mask_iou": TOLERANCE.mask_iou, "box_iou": TOLERANCE.box_iou, "threshold": 0.3, **changed}
    threshold = fields.pop("threshold")
    return SelftestTolerance(**fields), threshold


@pytest.mark.parametrize("case", WRONG)
def test_every_way_to_be_wrong(library: CppLibrary, tmp_path: Path, python: Python, case: str) -> None:
    found, expected, changed, passes = WRONG[case]
    engine = carrying(engine_of(library, tmp_path, found), document(detections_of(expected), *tolerance_of(changed)))
    wanted = python(engine)
    assert isinstance(wanted, SelftestResult), wanted
    if case != "nothing may differ":  # which hangs on the last bit
        assert wanted.passed == passes, wanted
    assert cpp(library, engine) == [wanted]


BOXES = st.tuples(*[st.sampled_from([0, 3, 4]), st.sampled_from([0, 2]), st.sampled_from([4, 19, 21, 40]), st.sampled_from([2, 18, 30])])
A_THING = st.tuples(st.sampled_from([0, 1]), st.sampled_from([0.31, 0.5, 0.52, 0.55, 0.9]), BOXES, st.sampled_from([True, True, False]))
SHARES = st.sampled_from([0.0, 0.3, 0.5, 0.9])


@settings(max_examples=8, phases=[Phase.generate], deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_pair_of_lists(library: CppLibrary, tmp_path_factory: pytest.TempPathFactory, python: Python, data: st.DataObject) -> None:
    folder, engines, wanted = tmp_path_factory.mktemp("engines"), [], []
    for number in range(12):
        found = data.draw(st.lists(A_THING, max_size=6))
        expected: list[Thing] = [*data.draw(st.lists(A_THING, max_size=4)), (0, 0.9, BOX, True)]
        expected += data.draw(st.lists(st.sampled_from(found), max_size=3)) if found else []
        tolerance = SelftestTolerance(data.draw(st.sampled_from([0.0, 0.03, 0.3])), data.draw(SHARES), data.draw(SHARES))
        engine = engine_of(library, folder, found, name=f"e{number}")
        engines.append(carrying(engine, document(detections_of(expected), tolerance)))
        wanted.append(python(engines[-1]))
    assert cpp(library, *engines) == wanted


def test_the_picture_is_the_files(library: CppLibrary, tmp_path: Path, python: Python) -> None:
    """Pixels choose what is found, so that a wrong byte order or size of base64 shows; sizes leave each rest of a division by three."""
    engines = []
    for number, (width, height) in enumerate([(1, 1), (5, 1), (7, 3), (2, 2), (31, 17)]):
        engine = recorded(library, tmp_path, {"input_size": 64}, name=f"p{number}")
        for level in (0, 90, 250):
            picture = np.full((height, width, 3), level, np.uint8)
            fields = json.loads(document(engine.detections(picture).above(0.3)))
            fields["picture"] = {"width": width, "height": height, "rgb": base64.b64encode(picture.tobytes()).decode()}
            engines.append(carrying(engine, json.dumps(fields).encode(), f"p{number}-{level}"))
    results = cpp(library, *engines)
    assert results == [python(engine) for engine in engines]
    assert all(isinstance(each, SelftestResult) and each.passed for each in results)
