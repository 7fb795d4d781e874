"""`inspect` of an engine: from its header and sidecar, and where there is a GPU from the engine itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.commands import complaint, invoke, ok
from tests.export.artifacts import Artifacts
from tests.helpers.kernel_library import build_library
from tests.helpers.stub_cuda import missing, run_scenarios
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.builder import BuildResult, build_engine
from yolact_deploy.engines.gpu import gpus
from yolact_deploy.engines.options import BuildOptions
from yolact_deploy.files import sha256_of

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX, which builds these engines, is not installed")
without_gpu = pytest.mark.skipif(bool(gpus()), reason="what is said where there is no GPU")
SCENARIOS = [
    "inspecting_tells_layers",
    "inspecting_an_engine_that_keeps_names_alone",
    "inspecting_another_machines_engine",
    "inspecting_without_a_sidecar",
    "adopting_and_predicting",
]


@pytest.fixture(scope="module")
def built(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    options = BuildOptions(sm=((8, 9),), batch=BatchRange(1, 2, 4), workspace=256)
    return build_engine(artifacts.onnx(batch="dynamic"), options=options, folder=tmp_path_factory.mktemp("built"))


@pytest.fixture
def engine(built: BuildResult, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copy(built.sidecar, tmp_path / "a.engine.json")
    return Path(shutil.copy(built.path, tmp_path / "a.engine"))


@without_gpu
def test_an_engine_and_its_sidecar(built: BuildResult, artifacts: Artifacts) -> None:
    source = artifacts.onnx(batch="dynamic")
    facts = json.loads(ok(invoke("inspect", built.path, "--json")))
    assert facts["file"] == str(built.path)
    assert facts["kind"] == f"engine of TensorRT-RTX {rtx.__version__}"
    assert facts["size"].endswith(" MB")
    assert (facts["runs on"], facts["batch"], facts["built as"]) == ("compute capability 8.9", "1:2:4", "fp32")
    assert facts["built on"] == "a machine without using a GPU"
    assert facts["variant"] == "yolact_nano"
    assert facts["tensors"]["images"] == "input float32 ['batch', 3, 256, 256]"
    assert facts["tensors"]["scores"] == "output float32 ['batch', 4092, 81]"
    assert facts["precision"]["backbone"] == "float32"
    assert facts["made from"]["file"] == source.name
    assert facts["made from"]["checkpoint_sha256"] == sha256_of(artifacts.weights)
    assert facts["made with"]["tensorrt-rtx"] == rtx.__version__
    assert facts["build"]["workspace_mib"] == 256
    assert "optimization_level" not in facts["build"]
    assert facts["build"]["seconds"] > 0
    assert facts["rebuild"] == built.target.rebuild
    assert facts["SHA-256"] == f"{sha256_of(built.path)} (as the file's)"
    assert facts["layers"] == "not read: this machine has no GPU"
    assert "sidecar" not in facts
    text = ok(invoke("inspect", built.path))
    for told in ("input float32 ['batch', 3, 256, 256]", "80 in all", "compute capability 8.9", built.target.sha256, "workspace_mib: 256"):
        assert told in text


@without_gpu
def test_without_a_sidecar(engine: Path) -> None:
    Path(f"{engine}.json").unlink()
    facts = json.loads(ok(invoke("inspect", engine, "--json")))
    assert set(facts) == {"file", "kind", "size", "sidecar"}
    assert facts["sidecar"] == "none: the engine runs only with --trust, or after yolact-deploy adopt"
    assert facts["kind"] == f"engine of TensorRT-RTX {rtx.__version__}"
    assert json.loads(ok(invoke("inspect", engine, "--trust", "--json")))["layers"] == "not read: this machine has no GPU"
    assert complaint(invoke("inspect", engine, "--layers")) == (
        f"The layers of {engine} cannot be listed: it has no sidecar, and --trust was not given. Leave out --layers, or mend that."
    )
    assert "this machine has no GPU" in complaint(invoke("inspect", engine, "--layers", "--trust"))


@without_gpu
def test_layers_need_a_gpu(engine: Path) -> None:
    told = complaint(invoke("inspect", engine, "--layers"))
    assert told == f"The layers of {engine} cannot be listed: this machine has no GPU. Leave out --layers, or mend that."


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda content: content[:-1], "bytes, its sidecar says"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "its SHA-256 differs"),
        (lambda content: b"", "is empty"),
        (lambda content: b"text", "is no TensorRT engine"),
        (lambda content: b"ftrt" + content[4:], "is a plan of TensorRT, its sidecar says TensorRT-RTX"),
    ],
)
def test_damage_is_told(engine: Path, damage: object, sentence: str) -> None:
    engine.write_bytes(damage(engine.read_bytes()))
    for options in ((), ("--trust",), ("--json",)):
        assert sentence in complaint(invoke("inspect", engine, *options))


def test_a_damaged_sidecar_and_other_files(engine: Path, artifacts: Artifacts, tmp_path: Path) -> None:
    Path(f"{engine}.json").write_text("{")
    assert "is damaged" in complaint(invoke("inspect", engine))
    shutil.copy(artifacts.onnx(), tmp_path / "renamed.plan")
    assert "is an ONNX file, an engine was wanted" in complaint(invoke("inspect", tmp_path / "renamed.plan"))
    assert "does not exist" in complaint(invoke("inspect", tmp_path / "none.trt"))


@pytest.fixture(scope="module")
def outcomes(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    if missing():
        pytest.skip(missing())
    given = {"onnx": str(artifacts.onnx(batch="dynamic")), "folder": str(tmp_path_factory.mktemp("engines"))}
    return run_scenarios("tests.cli.engine_scenarios", SCENARIOS, given, kernels=build_library())


@pytest.mark.parametrize("name", SCENARIOS)
def test_on_a_gpu(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]
