"""What the C++ library refuses to load, in the words of the Python package."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engines.cpp.standin.made_heads import made_outputs
from tests.helpers.cpp_engines import VERSION, write_recorded_engine
from tests.helpers.cpp_library import CppLibrary, missing, run_commands
from tests.helpers.tiny import tiny_variant
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.gpu import Gpu
from yolact_deploy.engines.sidecar import check_machine, read_mask_iou, read_plan, read_sidecar, sidecar_path
from yolact_deploy.engines.versions import TensorRT
from yolact_deploy.errors import ModelFileError, YolactDeployError

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

MODEL_FILE = 2
REBUILD = "yolact-deploy build-engine a.onnx --sm 89"


def engine_in(folder: Path, *, plus: bool = False, backend: str = "tensorrt", mask_iou_columns: int = 4, **target: Any) -> Path:
    variant = tiny_variant(input_size=256, mask_rescoring=True) if plus else tiny_variant(input_size=64)
    outputs = made_outputs(variant, rows=1, postprocess="none")
    target.setdefault("rebuild", REBUILD)
    net = {"mask_iou_batch": BatchRange(1, 2, 4), "mask_iou": {"mean_columns": {"mask_ious": mask_iou_columns}}}
    more: dict[str, Any] = net if plus else {}
    return write_recorded_engine(folder, variant, outputs, name="a", postprocess="none", batch=1, backend=backend, target=target, **more)


def python_error(engine: Path, gpu: Gpu | None = None) -> YolactDeployError | None:
    """What Python's checks say, in the order in which loading makes them; None where they pass."""
    tensorrt = TensorRT("tensorrt", None, VERSION)
    try:
        sidecar = read_sidecar(engine)
        read_plan(engine, sidecar)
        assert sidecar is not None
        read_mask_iou(engine, *sidecar)
        check_machine(engine, sidecar[1], tensorrt, gpu or Gpu("Stub GPU 0", (8, 9), 0))
    except YolactDeployError as error:
        return error
    return None


def cpp_error(library: CppLibrary, engine: Path, **stub: Any) -> str:
    """What C++ says; empty where it loads. Nothing may be left behind."""
    answer, left = run_commands(library, [f"load path={engine}"], **stub)
    assert left == "", left
    if answer is None:
        return ""
    assert answer["code"] == MODEL_FILE, answer
    return str(answer["error"])


def edited(engine: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = sidecar_path(engine)
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def put(*keys: str, value: Any) -> Callable[[Path], None]:
    def change(engine: Path) -> None:
        def put_in(fields: dict[str, Any]) -> None:
            for key in keys[:-1]:
                fields = fields[key]
            fields[keys[-1]] = value

        edited(engine, put_in)

    return change


def written(content: bytes, *, sidecar: bool = False) -> Callable[[Path], None]:
    return lambda engine: (sidecar_path(engine) if sidecar else engine).write_bytes(content) and None


def cut(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes()[:-1])


def altered(engine: Path) -> None:
    content = bytearray(engine.read_bytes())
    content[-1] ^= 1
    engine.write_bytes(bytes(content))


SAME_WORDS: dict[str, Callable[[Path], object]] = {
    "no engine": lambda engine: engine.unlink(),
    "a folder": lambda engine: (engine.unlink(), engine.mkdir()),
    "an empty engine": written(b""),
    "a checkpoint": written(b"PK\x03\x04" + bytes(60)),
    "safetensors": written(b"\x10\0\0\0\0\0\0\0{" + bytes(60)),
    "an ONNX file": written(b"\x08\x07\x12\x04onnx" + bytes(60)),
    "nothing known": written(b"hello, hello, hello"),
    "a plan of the other backend": written(b"vtrt" + bytes(100)),
    "a plan that is cut short": cut,
    "a plan with more behind it": lambda engine: engine.write_bytes(engine.read_bytes() + b"x"),
    "a plan with another bit": altered,
    "a sidecar of no JSON": written(b"{nonsense", sidecar=True),
    "a sidecar of a list": written(b"[1, 2]", sidecar=True),
    "a sidecar without schema": written(b"{}", sidecar=True),
    "a newer schema": put("schema", value=2),
    "schema 0": put("schema", value=0),
    "an ONNX file's manifest": put("kind", value="onnx"),
    "another TensorRT": put("target", "tensorrt_version", value="10.3.0.26"),
    "an unknown TensorRT": put("target", "tensorrt_version", value="no number"),
    "a version that tells too little": put("target", "tensorrt_version", value="11"),
    "another build": put("target", "tensorrt_version", value="11.4.0.105"),
    "another GPU": put("target", "gpu", value="NVIDIA H100"),
    "another capability": put("target", "capabilities", value=["9.0", "8.6"]),
    "no GPU named, another capability": lambda engine: (
        put("target", "gpu", value="")(engine),
        put("target", "capabilities", value=["7.5"])(engine),
    ),
    "the same capability only": lambda engine: (
        put("target", "hardware_level", value="same-compute-capability")(engine),
        put("target", "capabilities", value=["8.6"])(engine),
    ),
}


@pytest.mark.parametrize("case", SAME_WORDS)
def test_says_what_python_says(library: CppLibrary, tmp_path: Path, case: str) -> None:
    engine = engine_in(tmp_path)
    SAME_WORDS[case](engine)
    wanted = python_error(engine)
    assert wanted is not None
    assert cpp_error(library, engine) == str(wanted)


@pytest.mark.parametrize(
    ("change", "capability"),
    [
        (put("target", "hardware_level", value="ampere+"), "7.5"),
        (put("target", "gpu", value="NVIDIA H100"), "8.9"),
        (put("target", "capabilities", value=[]), "8.9"),
    ],
)
def test_compares_the_gpu_as_python_does(library: CppLibrary, tmp_path: Path, change: Callable[[Path], None], capability: str) -> None:
    engine = engine_in(tmp_path)
    change(engine)
    major, minor = map(int, capability.split("."))
    wanted = python_error(engine, Gpu("Stub GPU 0", (major, minor), 0))
    assert wanted is not None
    assert cpp_error(library, engine, capability=capability) == str(wanted)


@pytest.mark.parametrize("change", [put("target", "hardware_level", value="ampere+"), put("target", "gpu", value="")])
def test_loads_what_python_loads(library: CppLibrary, tmp_path: Path, change: Callable[[Path], None]) -> None:
    engine = engine_in(tmp_path)
    change(engine)
    assert python_error(engine) is None
    assert cpp_error(library, engine) == ""


MASK_IOU: dict[str, Callable[[Path], object]] = {
    "missing": lambda net: net.unlink(),
    "altered": altered,
    "empty": written(b""),
    "of the other backend": written(b"vtrt" + bytes(100)),
}


@pytest.mark.parametrize("case", MASK_IOU)
def test_the_mask_iou_engine_is_checked_likewise(library: CppLibrary, tmp_path: Path, case: str) -> None:
    engine = engine_in(tmp_path, plus=True)
    MASK_IOU[case](engine.parent / json.loads(sidecar_path(engine).read_text())["mask_iou"]["file"])
    wanted = python_error(engine)
    assert wanted is not None
    assert cpp_error(library, engine) == str(wanted)


TENSORS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another shape": (lambda scores: scores.update(shape=[1, 7, 5]), "float32 [1, {priors}, 5], its sidecar says float32 [1, 7, 5]"),
    "another type": (lambda scores: scores.update(dtype="float16"), "float32 [1, {priors}, 5], its sidecar says float16 [1, {priors}, 5]"),
    "another name": (lambda scores: scores.update(name="zebras"), "float32 [1, {priors}, 5], its sidecar says missing"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_are_compared(library: CppLibrary, tmp_path: Path, case: str) -> None:
    change, told = TENSORS[case]
    engine = engine_in(tmp_path)
    (scores,) = [one for one in json.loads(sidecar_path(engine).read_text())["outputs"] if one["name"] == "scores"]
    edited(engine, lambda fields: [change(one) for one in fields["outputs"] if one["name"] == "scores"] and None)
    words = told.format(priors=scores["shape"][1])
    assert cpp_error(library, engine) == f"The tensor scores of {engine} is {words}. Rebuild it: {REBUILD}"


@pytest.mark.parametrize("columns", [3, 5])
def test_the_mask_iou_engine_has_to_fit(library: CppLibrary, tmp_path: Path, columns: int) -> None:
    engine = engine_in(tmp_path, plus=True, mask_iou_columns=columns)
    side = tiny_variant(input_size=256, mask_rescoring=True).prototype_size
    assert cpp_error(library, engine) == (
        f"a.maskiou.engine has the tensors float32 [B, 1, {side}, {side}]; float32 [B, {columns}]; "
        f"a mask-IoU net has float32 [B, 1, {side}, {side}]; float32 [B, 4]. Build both engines again."
    )


def test_without_a_sidecar_nothing_is_loaded(library: CppLibrary, tmp_path: Path) -> None:
    engine = engine_in(tmp_path)
    sidecar_path(engine).unlink()
    wanted = python_error(engine)
    assert isinstance(wanted, ModelFileError)
    assert cpp_error(library, engine) == str(wanted).replace(" Or pass --trust if you know who built it.", "")


def test_a_sidecar_that_is_no_utf8_is_told(library: CppLibrary, tmp_path: Path) -> None:
    engine = engine_in(tmp_path)
    sidecar_path(engine).write_bytes(b'{"schema": 1, "kind": "\xff"}')
    start = f"The sidecar {sidecar_path(engine)} cannot be read ("
    assert str(python_error(engine)).startswith(start)
    assert cpp_error(library, engine).startswith(start)


def test_a_lean_runtime_is_asked_for(library: CppLibrary, tmp_path: Path) -> None:
    engine = engine_in(tmp_path, version_compatible=True)
    assert cpp_error(library, engine) == (
        f"{engine} is a version-compatible engine, which brings no runtime of its own. "
        f"Name libnvinfer_lean.so of TensorRT {VERSION}: Options::lean_runtime."
    )


def test_one_library_runs_one_backend(library_of: Callable[[str], CppLibrary], tmp_path: Path) -> None:
    rtx = library_of("rtx")
    engine = engine_in(tmp_path)
    told = cpp_error(rtx, engine)
    assert told == (
        f"{engine} was built by TensorRT {VERSION}, TensorRT-RTX 1.7.1.116 was to run it. "
        f"Build this library for TensorRT. Rebuild it here: {REBUILD}"
    )


def test_rtx_tells_the_capability_to_build_for(library_of: Callable[[str], CppLibrary], tmp_path: Path) -> None:
    rtx = library_of("rtx")
    engine = engine_in(tmp_path, backend="tensorrt-rtx")
    assert cpp_error(rtx, engine, capability="8.6") == (
        f"{engine} was built for compute capability 8.9; this machine has Stub GPU 0, compute capability 8.6. "
        f"Rebuild it for this GPU: {REBUILD.replace('89', '86')}"
    )


def leaves(fields: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value of a document."""
    yield place
    items = fields.items() if isinstance(fields, dict) else enumerate(fields) if isinstance(fields, list) else ()
    for key, value in items:
        yield from leaves(value, (*place, key))


def without_reason(text: str) -> str:
    """A message that a reader's own words end, up to these."""
    return re.sub(r"(is damaged|does not describe an engine) \(.*", r"\1", text, flags=re.DOTALL)


VALUES: list[Any] = [None, True, 0, -1, 1.5, 10**30, float("nan"), "", "x" * 5000, [], {}, [[]], "é\U0001f600\udc80", 2**31, 1e308]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_sidecar_brings_it_down(library: CppLibrary, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Many sidecars in one process, each with a value replaced or left out: it loads or says why, and nothing stays."""
    engine = engine_in(tmp_path_factory.mktemp("engines"))
    text = sidecar_path(engine).read_text()
    places = [place for place in leaves(json.loads(text)) if place]
    commands, expected = [], []
    for number in range(25):
        fields = json.loads(text)
        place = data.draw(st.sampled_from(places))
        owner = fields
        for key in place[:-1]:
            owner = owner[key]
        if data.draw(st.booleans()):
            owner[place[-1]] = data.draw(st.sampled_from(VALUES))
        else:
            del owner[place[-1]]
        changed = engine.with_name(f"b{number}.engine")
        changed.write_bytes(engine.read_bytes())
        sidecar_path(changed).write_text(json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
        commands.append(f"load path={changed}")
        expected.append(place)
    *answers, left = run_commands(library, commands)
    assert left == "", left
    for answer, place in zip(answers, expected, strict=True):
        assert answer is None or answer["code"] == MODEL_FILE, (place, answer)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(0, 3000), min_size=20, max_size=20))
def test_no_cut_of_a_sidecar_brings_it_down(library: CppLibrary, tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    engine = engine_in(tmp_path_factory.mktemp("engines"))
    content = sidecar_path(engine).read_bytes()
    commands, wanted = [], []
    for number, length in enumerate(lengths):
        changed = engine.with_name(f"b{number}.engine")
        changed.write_bytes(engine.read_bytes())
        sidecar_path(changed).write_bytes(content[: length % len(content)])
        commands.append(f"load path={changed}")
        wanted.append(str(python_error(changed)))
    *answers, left = run_commands(library, commands)
    assert left == "", left
    assert [without_reason(answer["error"]) for answer in answers] == [without_reason(text) for text in wanted]
