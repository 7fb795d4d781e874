"""Sidecars for engines that another tool built: with real TensorRT-RTX plans where there is no GPU, with the fake where there is one."""

from __future__ import annotations

import hashlib
import platform
import shutil
from pathlib import Path

import onnx as onnx_package
import pytest

from tests.engines.test_plan_file import plan
from tests.export.artifacts import Artifacts
from tests.helpers.kernel_library import build_library
from tests.helpers.stub_cuda import missing, run_scenarios
from yolact_deploy.engines.adopt import AdoptResult, adopt_engine
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.builder import BuildResult, build_engine
from yolact_deploy.engines.gpu import gpus
from yolact_deploy.engines.options import BuildOptions
from yolact_deploy.engines.sidecar import read_plan, read_sidecar, sidecar_path
from yolact_deploy.errors import ConfigError, ModelFileError, OutputError, YolactDeployError
from yolact_deploy.files import sha256_of

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX, which builds these engines, is not installed")
without_gpu = pytest.mark.skipif(bool(gpus()), reason="what is said where there is no GPU")

ONE_TO_FOUR = BatchRange(1, 2, 4)
MODULE, OLD_DRIVER = "tests.engines.adopt_scenarios", "a_driver_that_is_too_old"
SCENARIOS = [
    "an_opened_engine_tells_its_batches_and_runs",
    "a_tensorrt_rtx_engine_keeps_its_capabilities",
    "an_engine_of_another_file",
    "a_rescoring_engine_and_its_net",
    "what_cannot_be_opened",
]


@pytest.fixture(scope="module")
def built(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """A TensorRT-RTX engine of a dynamic graph, for one capability."""
    options = BuildOptions(sm=((8, 9),), batch=ONE_TO_FOUR)
    return build_engine(artifacts.onnx(batch="dynamic"), options=options, folder=tmp_path_factory.mktemp("built"))


@pytest.fixture
def engine(built: BuildResult, tmp_path: Path) -> Path:
    """Its plan alone, as trtexec leaves it."""
    return Path(shutil.copy(built.path, tmp_path / "a.engine"))


@pytest.fixture
def tensorrt_plan(tmp_path: Path) -> Path:
    """What begins like a plan of TensorRT 10.16.1.11."""
    path = tmp_path / "t.engine"
    path.write_bytes(plan(b"ftrt"))
    return path


def refusal(error: type[YolactDeployError], engine: Path, *arguments: object, **options: object) -> YolactDeployError:
    with pytest.raises(error) as caught:
        adopt_engine(engine, *arguments, **options)
    assert not sidecar_path(engine).exists()
    return caught.value


@without_gpu
def test_the_header_tells_version_and_capability(engine: Path, built: BuildResult, artifacts: Artifacts) -> None:
    source = artifacts.onnx(batch="dynamic")
    result = adopt_engine(engine, source, batch=ONE_TO_FOUR)
    assert isinstance(result, AdoptResult)
    target = result.target
    assert (target.backend, target.tensorrt_version, target.capabilities) == ("tensorrt-rtx", rtx.__version__, ((8, 9),))
    assert (target.size, target.sha256) == (engine.stat().st_size, hashlib.sha256(engine.read_bytes()).hexdigest())
    assert (target.gpu, target.precision, target.batch) == ("", "unknown", ONE_TO_FOUR)
    assert target.rebuild == f"yolact-deploy build-engine {source.name} --backend tensorrt-rtx"
    assert target.options == {"adopted": True, "opened": False}
    assert target.build == {"machine": platform.machine(), "system": platform.system()}
    assert not result.opened
    assert result.sidecar == sidecar_path(engine)
    assert read_sidecar(engine) == (result.manifest, target)
    assert read_plan(engine, read_sidecar(engine)) == engine.read_bytes()
    ours = built.manifest
    for name in ("variant", "classes", "input", "inputs", "outputs", "source", "thresholds", "postprocess", "kind"):
        assert getattr(result.manifest, name) == getattr(ours, name)
    assert result.manifest.precision == {"all": "as its builder chose"}
    assert result.manifest.versions["tensorrt-rtx"] == rtx.__version__


@without_gpu
def test_a_dynamic_batch_has_to_be_said(engine: Path, artifacts: Artifacts) -> None:
    error = refusal(ConfigError, engine, artifacts.onnx(batch="dynamic"))
    assert "no GPU here to read the batches of the engine off" in error.message
    assert error.mend == "Pass --batch."
    result = adopt_engine(engine, artifacts.onnx(), batch=ONE_TO_FOUR)
    assert result.target.batch == BatchRange(1, 1, 1)  # the graph's own counts


@without_gpu
def test_a_capability_at_odds_with_the_header(engine: Path, artifacts: Artifacts) -> None:
    source = artifacts.onnx(batch="dynamic")
    error = refusal(ConfigError, engine, source, batch=ONE_TO_FOUR, sm=((8, 6),))
    assert error.message == f"The header of {engine} says that it was built for compute capability 8.9."
    assert error.mend == "Drop --sm."
    assert adopt_engine(engine, source, batch=ONE_TO_FOUR, sm=((8, 9),)).target.capabilities == ((8, 9),)


@without_gpu
def test_a_portable_engine(artifacts: Artifacts, tmp_path: Path) -> None:
    built = build_engine(artifacts.onnx(), tmp_path / "p.engine")
    built.sidecar.unlink()
    assert adopt_engine(built.path, artifacts.onnx()).target.where == "compute capability 8.0, 8.6, 8.9, 12.0 and newer"
    assert adopt_engine(built.path, artifacts.onnx(), sm=((8, 9),)).target.capabilities == ((8, 9),)


@without_gpu
def test_a_tensorrt_plan_needs_its_capability(tensorrt_plan: Path, artifacts: Artifacts) -> None:
    error = refusal(ConfigError, tensorrt_plan, artifacts.onnx())
    assert error.message == f"There is no GPU here to open {tensorrt_plan} on."
    assert error.mend == "Pass --sm, the compute capability that it was built for."
    result = adopt_engine(tensorrt_plan, artifacts.onnx(), sm=((8, 6),), tensorrt_version="9.9")
    assert (result.target.backend, result.target.tensorrt_version) == ("tensorrt", "10.16.1.11")  # the header's
    assert (result.target.capabilities, result.target.gpu) == (((8, 6),), "")


@without_gpu
def test_a_version_that_the_header_does_not_tell(tensorrt_plan: Path, artifacts: Artifacts) -> None:
    tensorrt_plan.write_bytes(plan(b"ftrt", version=(0, 0, 0, 0)))
    error = refusal(ConfigError, tensorrt_plan, artifacts.onnx(), sm=((8, 6),))
    assert error.message == f"The header of {tensorrt_plan} does not tell which TensorRT built it."
    assert error.mend == "Pass --tensorrt-version."
    result = adopt_engine(tensorrt_plan, artifacts.onnx(), sm=((8, 6),), tensorrt_version="8.5.3")
    assert result.target.tensorrt_version == "8.5.3"


@without_gpu
def test_only_an_adopted_sidecar_is_replaced(built: BuildResult, artifacts: Artifacts, tmp_path: Path) -> None:
    source, engine = artifacts.onnx(batch="dynamic"), Path(shutil.copy(built.path, tmp_path))
    sidecar = Path(shutil.copy(built.sidecar, tmp_path))
    before = sidecar.read_bytes()
    with pytest.raises(OutputError, match=r"exists and was not written by this command"):
        adopt_engine(engine, source, batch=ONE_TO_FOUR)
    assert sidecar.read_bytes() == before
    assert adopt_engine(engine, source, batch=ONE_TO_FOUR, force=True).target.precision == "unknown"
    assert adopt_engine(engine, source, batch=BatchRange(1, 3, 4)).target.batch == BatchRange(1, 3, 4)
    sidecar.write_text("mine")
    with pytest.raises(OutputError):
        adopt_engine(engine, source, batch=ONE_TO_FOUR)
    assert sidecar.read_text() == "mine"


def test_what_is_no_engine(artifacts: Artifacts, engine: Path, tmp_path: Path) -> None:
    assert "does not exist" in refusal(ModelFileError, tmp_path / "none.engine", artifacts.onnx()).message
    assert "is an ONNX file, an engine was wanted" in refusal(ModelFileError, artifacts.onnx(), artifacts.onnx()).message
    engine.write_bytes(engine.read_bytes()[:-1])
    assert "is cut short" in refusal(ModelFileError, engine, artifacts.onnx(batch="dynamic"), batch=ONE_TO_FOUR).message


def test_a_foreign_onnx_file(artifacts: Artifacts, engine: Path, tmp_path: Path) -> None:
    model = onnx_package.load(artifacts.onnx())
    del model.metadata_props[:]
    foreign = tmp_path / "foreign.onnx"
    onnx_package.save(model, foreign)
    assert "yolact-deploy" in str(refusal(ModelFileError, engine, foreign, batch=ONE_TO_FOUR))
    assert "does not exist" in refusal(ModelFileError, engine, tmp_path / "none.onnx").message


@without_gpu
def test_a_rescoring_engine_takes_its_net(artifacts: Artifacts, tmp_path: Path) -> None:
    source = artifacts.onnx(artifacts.plus)
    built = build_engine(source, tmp_path / "plus.engine")
    assert built.mask_iou_path is not None
    built.sidecar.unlink()
    error = refusal(ConfigError, built.path, source)
    assert "rescores its masks with a second net, whose engine was not named" in error.message
    result = adopt_engine(built.path, source, mask_iou=built.mask_iou_path)
    assert result.manifest.mask_iou == {"file": built.mask_iou_path.name, "sha256": sha256_of(built.mask_iou_path)}
    result.sidecar.unlink()
    other = tmp_path / "t.engine"
    other.write_bytes(plan(b"ftrt"))
    error = refusal(ModelFileError, built.path, source, mask_iou=other)
    assert error.message == f"{other} is a plan of TensorRT, its sidecar says TensorRT-RTX."
    (tmp_path / "sub").mkdir()
    elsewhere = Path(shutil.copy(built.mask_iou_path, tmp_path / "sub"))
    assert "lies in another folder" in refusal(ConfigError, built.path, source, mask_iou=elsewhere).message
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert adopt_engine(link / built.path.name, source, mask_iou=built.mask_iou_path).manifest.mask_iou["file"] == built.mask_iou_path.name


@pytest.fixture(scope="module")
def outcomes(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    if missing():
        pytest.skip(missing())
    files = {
        "none": artifacts.onnx(),
        "dynamic": artifacts.onnx(batch="dynamic"),
        "nms": artifacts.onnx(postprocess="nms", batch=1),
        "raw": artifacts.onnx(layout="raw", channels="bgr"),
        "plus": artifacts.onnx(artifacts.plus),
    }
    given = {"onnx": {kind: str(path) for kind, path in files.items()}, "folder": str(tmp_path_factory.mktemp("adopted"))}
    old = run_scenarios(MODULE, [OLD_DRIVER], given, version=12080)
    return {**run_scenarios(MODULE, SCENARIOS, given, kernels=build_library()), **old}


@pytest.mark.parametrize("name", [*SCENARIOS, OLD_DRIVER])
def test_with_a_gpu(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]
