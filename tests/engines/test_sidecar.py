"""The checks before an engine is handed to TensorRT: whole, the one that the sidecar describes, and made for this machine."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engines.test_plan_file import plan
from tests.export.artifacts import Artifacts
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.builder import BuildResult, build_engine
from yolact_deploy.engines.gpu import Gpu
from yolact_deploy.engines.options import BuildOptions
from yolact_deploy.engines.sidecar import EngineTarget, check_machine, read_plan, read_sidecar, sidecar_path, write_sidecar
from yolact_deploy.engines.versions import TensorRT
from yolact_deploy.errors import ModelFileError, YolactDeployError

JSON = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
REBUILD = "yolact-deploy build-engine m.onnx --backend tensorrt"


@pytest.fixture(scope="module")
def original(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return build_engine(artifacts.onnx(), folder=tmp_path_factory.mktemp("sidecar"), options=BuildOptions(sm=((8, 9),)))


@pytest.fixture
def engine(original: BuildResult, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copy(original.sidecar, tmp_path)
    return Path(shutil.copy(original.path, tmp_path))


def refusal(engine: Path, *, trust: bool = False) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        read_plan(engine, read_sidecar(engine), trust=trust)
    return caught.value


def test_one_flipped_bit(engine: Path, original: BuildResult) -> None:
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)
    error = refusal(engine, trust=True)
    assert error.message == f"{engine} is not the engine that {engine.name}.json describes: its SHA-256 differs."
    assert error.mend == f"Copy both files again. Rebuild it: {original.target.rebuild}"


def test_a_plan_cut_short(engine: Path) -> None:
    content = engine.read_bytes()
    for changed in (content + b"x", content[:-1]):
        engine.write_bytes(changed)
        assert refusal(engine).message == f"The engine {engine} has {len(changed):,} bytes, its sidecar says {len(content):,}."
    sidecar_path(engine).unlink()
    told = f"The engine {engine} is cut short: it has {len(content) - 1:,} bytes of {len(content):,}."
    assert refusal(engine, trust=True).message == told
    engine.write_bytes(content[:30])
    assert "no sidecar" in refusal(engine).message


def test_a_tensorrt_plan_cut_short_is_told_by_the_sidecar(engine: Path, original: BuildResult) -> None:
    engine.write_bytes(plan(b"ftrt"))
    target = replace(original.target, backend="tensorrt", size=1000)
    write_sidecar(replace(original.manifest, target=target.to_dict()), sidecar_path(engine))
    assert refusal(engine).message == f"The engine {engine} has 256 bytes, its sidecar says 1,000."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty."),
        (b"\x08\x08\x12\x0dyolact", "is an ONNX file, an engine was wanted."),
        (b"PK\x03\x04", "is a checkpoint, an engine was wanted."),
        (b"hello", "is no TensorRT engine: it starts with none of their marks."),
        (plan(b"ftrt"), "is a plan of TensorRT, its sidecar says TensorRT-RTX."),
    ],
)
def test_another_kind_of_file(engine: Path, content: bytes, sentence: str) -> None:
    engine.write_bytes(content)
    assert refusal(engine, trust=True).message.endswith(sentence)


def test_without_a_sidecar(engine: Path) -> None:
    content = engine.read_bytes()
    sidecar_path(engine).unlink()
    assert read_sidecar(engine) is None
    error = refusal(engine)
    assert "has no sidecar" in error.message
    assert "adopt" in error.mend
    assert "--trust" in error.mend
    assert read_plan(engine, None, trust=True) == content


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda fields: fields.pop("target"), "is damaged"),
        (lambda fields: fields["target"].pop("sha256"), "does not describe an engine"),
        (lambda fields: fields["target"].update(batch=[8, 1, 1]), "does not describe an engine"),
        (lambda fields: fields["target"].update(batch=3), "does not describe an engine"),
        (lambda fields: fields["target"].update(capabilities=["new"]), "does not describe an engine"),
        (lambda fields: fields["target"].update(backend="openvino"), "does not describe an engine"),
        (lambda fields: fields["target"].update(sha256="ab"), "does not describe an engine"),
        (lambda fields: fields["target"].update(surprise=1), "does not describe an engine"),
        (lambda fields: fields["target"].update(rebuild=7), "does not describe an engine"),
        (lambda fields: fields["target"].update(hardware_level="any"), "does not describe an engine"),
        (lambda fields: fields["target"].update(hardware_level=[]), "does not describe an engine"),
        (lambda fields: fields["target"].update(options=3), "does not describe an engine"),
        (lambda fields: fields["target"].update(build=[]), "does not describe an engine"),
        (lambda fields: fields["target"].update(version_compatible="no"), "does not describe an engine"),
        (lambda fields: fields.update(kind="onnx"), "is the manifest of a file of kind onnx, an engine's was wanted"),
        (lambda fields: fields.update(schema=99), "has schema 99"),
    ],
)
def test_a_damaged_sidecar(engine: Path, change: object, sentence: str) -> None:
    path = sidecar_path(engine)
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(ModelFileError, match=sentence):
        read_sidecar(engine)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_hostile_sidecar_is_an_error_of_ours(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.engine.json").write_bytes(content)
    with pytest.raises(YolactDeployError):
        read_sidecar(tmp_path / "a.engine")


def target(**changes: object) -> EngineTarget:
    """A TensorRT engine of a GPU named A10."""
    usual = {
        "backend": "tensorrt",
        "tensorrt_version": "10.13.3.9",
        "precision": "fp16",
        "sha256": "0" * 64,
        "size": 1,
        "batch": BatchRange(1, 1, 1),
        "capabilities": ((8, 6),),
        "gpu": "A10",
        "rebuild": REBUILD,
    }
    return EngineTarget(**{**usual, **changes})


def installed(version: str, backend: str = "tensorrt") -> TensorRT:
    return TensorRT(backend, SimpleNamespace(), version)


A10, A40, H100, L4, ORIN = (
    Gpu(name, capability, 1 << 34)
    for name, capability in (("A10", (8, 6)), ("A40", (8, 6)), ("H100", (9, 0)), ("L4", (8, 9)), ("Orin", (8, 7)))
)
B60 = Gpu("B60", (13, 0), 1 << 34)
PORTABLE = {"backend": "tensorrt-rtx", "tensorrt_version": "1.7.1.116", "capabilities": (), "gpu": ""}


@pytest.mark.parametrize(
    ("changes", "gpu", "runs"),
    [
        ({}, A10, True),
        ({}, A40, False),
        ({}, L4, False),
        ({"hardware_level": "same-compute-capability"}, A40, True),
        ({"hardware_level": "same-compute-capability"}, L4, False),
        ({"hardware_level": "ampere+"}, L4, True),
        ({"hardware_level": "ampere+"}, H100, True),
        ({"hardware_level": "ampere+"}, Gpu("T4", (7, 5), 1), False),
        ({"gpu": ""}, A40, True),
        ({"gpu": ""}, L4, False),
        (PORTABLE, A40, True),
        (PORTABLE, L4, True),
        (PORTABLE, B60, True),
        (PORTABLE, H100, False),
        (PORTABLE, ORIN, False),
        (PORTABLE, Gpu("T4", (7, 5), 1), False),
        ({**PORTABLE, "capabilities": ((7, 5), (8, 9))}, L4, True),
        ({**PORTABLE, "capabilities": ((7, 5), (8, 9))}, A10, False),
        ({**PORTABLE, "capabilities": ((7, 5), (8, 9))}, B60, False),
    ],
)
def test_which_gpu_runs_it(changes: dict[str, object], gpu: Gpu, runs: bool) -> None:
    what = target(**changes)
    tensorrt = installed(what.tensorrt_version, what.backend)
    if runs:
        check_machine(Path("a.engine"), what, tensorrt, gpu)
        return
    with pytest.raises(ModelFileError, match=f"a.engine was built for .*; this machine has {gpu.name}, compute capability") as caught:
        check_machine(Path("a.engine"), what, tensorrt, gpu)
    assert caught.value.mend.startswith(f"Rebuild it for this GPU: {REBUILD}")


@pytest.mark.parametrize(
    ("changes", "gpu", "flags"),
    [
        ({"rebuild": f"{REBUILD} --sm 86 --detailed"}, L4, "--backend tensorrt --detailed"),
        ({**PORTABLE, "rebuild": f"{REBUILD}-rtx"}, H100, "--backend tensorrt"),
        ({**PORTABLE, "rebuild": f"{REBUILD}-rtx"}, Gpu("T4", (7, 5), 1), "--backend tensorrt-rtx --sm 75"),
        (
            {**PORTABLE, "capabilities": ((8, 6),), "rebuild": f"{REBUILD}-rtx --sm 86 --batch 1:1:8"},
            L4,
            "--backend tensorrt-rtx --batch 1:1:8 --sm 89",
        ),
        ({**PORTABLE, "capabilities": ((8, 6),), "rebuild": f"{REBUILD}-rtx --sm 86"}, B60, "--backend tensorrt-rtx --sm 130"),
    ],
)
def test_the_mend_for_another_gpu_is_for_that_gpu(changes: dict[str, object], gpu: Gpu, flags: str) -> None:
    what = target(**changes)
    with pytest.raises(ModelFileError) as caught:
        check_machine(Path("a.engine"), what, installed(what.tensorrt_version, what.backend), gpu)
    assert caught.value.mend == f"Rebuild it for this GPU: yolact-deploy build-engine m.onnx {flags}"


@pytest.mark.parametrize(
    ("changes", "version", "reads"),
    [
        ({}, "10.13.3.9", True),
        ({}, "10.13.3.10", False),
        ({}, "10.13.4.9", False),
        ({}, "11.4.0.106", False),
        ({"version_compatible": True}, "10.13.3.9", True),
        ({"version_compatible": True}, "11.4.0.106", True),
        ({"version_compatible": True}, "10.3.0", False),
        ({"version_compatible": True, "tensorrt_version": "8.5.3.1"}, "10.13.3.9", False),
        ({"version_compatible": True, "tensorrt_version": "8.6.1"}, "10.13.3.9", True),
        ({"version_compatible": True, "tensorrt_version": "8.6.1"}, "11.4.0.106", False),
        ({"tensorrt_version": "8.6.1"}, "8.6.1", True),
        ({"tensorrt_version": "8.6.1"}, "8.6.1.6", True),
        ({"tensorrt_version": ""}, "8.6.1", False),
        ({"tensorrt_version": "8"}, "8.6.1", False),
        (PORTABLE, "1.7.1.116", True),
        (PORTABLE, "1.7.1.120", True),
        (PORTABLE, "1.7.2.116", False),
        (PORTABLE, "1.6.1.116", False),
    ],
)
def test_which_version_reads_it(changes: dict[str, object], version: str, reads: bool) -> None:
    what = target(**changes)
    gpu = L4 if what.backend == "tensorrt-rtx" else A10
    if reads:
        check_machine(Path("a.engine"), what, installed(version, what.backend), gpu)
        return
    with pytest.raises(ModelFileError, match="is installed and does not read it"):
        check_machine(Path("a.engine"), what, installed(version, what.backend), gpu)


def test_an_engine_of_the_other_backend() -> None:
    with pytest.raises(ModelFileError, match=r"was built by TensorRT 10.13.3.9, TensorRT-RTX 1.7.1.116 was to run it"):
        check_machine(Path("a.engine"), target(), installed("1.7.1.116", "tensorrt-rtx"), A10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "A10"),
        ({"gpu": ""}, "compute capability 8.6"),
        ({"hardware_level": "ampere+"}, "A10 and any of compute capability 8.0 and newer"),
        ({"hardware_level": "same-compute-capability"}, "A10 and any of the same compute capability"),
        (PORTABLE, "compute capability 8.0, 8.6, 8.9, 12.0 and newer"),
        ({**PORTABLE, "capabilities": ((7, 5), (8, 9))}, "compute capability 7.5, 8.9"),
    ],
)
def test_where_it_runs_in_words(changes: dict[str, object], words: str) -> None:
    assert target(**changes).where == words


@given(st.integers(1, 9), st.integers(0, 9), st.lists(st.tuples(st.integers(5, 12), st.integers(0, 9)), max_size=3), st.booleans())
def test_a_target_is_read_back(optimum: int, more: int, capabilities: list[tuple[int, int]], compatible: bool) -> None:
    what = target(batch=BatchRange(1, optimum, optimum + more), capabilities=tuple(capabilities), version_compatible=compatible)
    assert EngineTarget.from_dict(json.loads(json.dumps(what.to_dict())), "here") == what
