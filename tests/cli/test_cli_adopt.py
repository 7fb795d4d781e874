"""`adopt`: what it prints, and what it asks for where there is no GPU to look."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.commands import complaint, invoke, ok
from tests.engines.test_plan_file import plan
from tests.export.artifacts import Artifacts
from yolact_deploy.engines.builder import BuildResult, build_engine
from yolact_deploy.engines.gpu import gpus
from yolact_deploy.engines.options import BuildOptions
from yolact_deploy.engines.sidecar import read_sidecar

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX, which builds these engines, is not installed")
pytestmark = pytest.mark.skipif(bool(gpus()), reason="what is said where there is no GPU")
CLOSED = "not opened: there is no GPU here to compare its tensors on"


@pytest.fixture(scope="module")
def built(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    folder = tmp_path_factory.mktemp("built")
    return build_engine(artifacts.onnx(batch="dynamic"), options=BuildOptions(sm=((8, 6), (8, 9))), folder=folder)


@pytest.fixture
def engine(built: BuildResult, tmp_path: Path) -> Path:
    return Path(shutil.copy(built.path, tmp_path / "a.engine"))


def test_what_it_prints(engine: Path, artifacts: Artifacts) -> None:
    source = artifacts.onnx(batch="dynamic")
    said = ok(invoke("adopt", engine, "--onnx", source, "--batch", "1:4"))
    assert said.splitlines() == [
        f"{engine}: TensorRT-RTX {rtx.__version__}, for compute capability 8.6, 8.9, batch 1:4:4; {CLOSED}",
        f"Saved {engine}.json",
    ]
    assert ok(invoke("adopt", engine, "--onnx", source, "--batch", "2", "--quiet")) == ""
    told = json.loads(ok(invoke("adopt", engine, "--onnx", source, "--batch", "1:4:8", "--json")))
    assert told == json.loads(Path(f"{engine}.json").read_text("utf-8"))
    assert told["target"]["batch"] == [1, 4, 8]
    facts = json.loads(ok(invoke("inspect", engine, "--json")))
    assert (facts["built as"], facts["precision"]) == ("unknown", {"all": "as its builder chose"})
    assert facts["build"]["adopted"] is True


def test_a_plan_of_tensorrt(artifacts: Artifacts, tmp_path: Path) -> None:
    engine = tmp_path / "t.engine"
    engine.write_bytes(plan(b"ftrt", version=(0, 0, 0, 0)))
    arguments = ("adopt", engine, "--onnx", artifacts.onnx())
    assert complaint(invoke(*arguments, "--sm", "86")) == (
        f"The header of {engine} does not tell which TensorRT built it. Pass --tensorrt-version."
    )
    assert complaint(invoke(*arguments, "--tensorrt-version", "8.6.1")) == (
        f"There is no GPU here to open {engine} on. Pass --sm, the compute capability that it was built for."
    )
    ok(invoke(*arguments, "--sm", "8.6", "--tensorrt-version", "8.6.1"))
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert (sidecar[1].title, sidecar[1].capabilities) == ("TensorRT 8.6.1", ((8, 6),))


def test_what_it_asks_for(engine: Path, artifacts: Artifacts) -> None:
    arguments = ("adopt", engine, "--onnx", artifacts.onnx(batch="dynamic"))
    assert complaint(invoke(*arguments)).endswith("has a dynamic one. Pass --batch.")
    assert "The batch is '1-4', a number or smallest:best:largest was wanted" in complaint(invoke(*arguments, "--batch", "1-4"))
    assert "The compute capability is 'new'" in complaint(invoke(*arguments, "--batch", "1", "--sm", "new"))
    assert complaint(invoke(*arguments, "--batch", "1", "--sm", "86")).endswith("for compute capability 8.6, 8.9. Drop --sm.")
    assert not Path(f"{engine}.json").exists()
    done = invoke("adopt", engine)
    assert done.exit_code == 2
    assert "--onnx" in done.stderr


def test_a_builds_sidecar_stays(built: BuildResult, artifacts: Artifacts, tmp_path: Path) -> None:
    engine, sidecar = Path(shutil.copy(built.path, tmp_path)), Path(shutil.copy(built.sidecar, tmp_path))
    arguments = ("adopt", engine, "--onnx", artifacts.onnx(batch="dynamic"), "--batch", "1:4:8")
    told = complaint(invoke(*arguments))
    assert f"{sidecar} exists and was not written by this command" in told
    assert "--force" in told
    assert sidecar.read_bytes() == built.sidecar.read_bytes()
    ok(invoke(*arguments, "--force"))
    ok(invoke(*arguments))


def test_a_rescoring_engine(artifacts: Artifacts, tmp_path: Path) -> None:
    source = artifacts.onnx(artifacts.plus)
    built = build_engine(source, tmp_path / "p.engine")
    built.sidecar.unlink()
    assert complaint(invoke("adopt", built.path, "--onnx", source)).endswith("as well and pass --mask-iou ENGINE.")
    ok(invoke("adopt", built.path, "--onnx", source, "--mask-iou", built.mask_iou_path))
    assert json.loads(built.sidecar.read_text("utf-8"))["mask_iou"]["file"] == "p.maskiou.engine"
