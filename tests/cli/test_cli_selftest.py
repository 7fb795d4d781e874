"""``build-engine --with-selftest``, ``selftest`` and what ``inspect`` tells of both; real builds, and a stand-in GPU to run on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import complaint, invoke, ok, run
from tests.export.artifacts import Artifacts
from tests.helpers.kernel_library import build_library
from tests.helpers.stub_cuda import missing, run_scenarios
from yolact_deploy.cli.common import demo_picture, demo_weights
from yolact_deploy.engines.gpu import gpus
from yolact_deploy.engines.selftest import Selftest, read_selftest
from yolact_deploy.engines.sidecar import read_sidecar
from yolact_deploy.export import export_checkpoint
from yolact_deploy.model import load_checkpoint

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX, which builds these engines, is not installed")
SCENARIOS = ["a_right_engine", "a_wrong_engine"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(load_checkpoint(demo_weights()), tmp_path_factory.mktemp("demo") / "demo.onnx").path


@pytest.fixture(scope="module")
def built(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine = tmp_path_factory.mktemp("built") / "a.engine"
    said = ok(invoke("build-engine", demo, "--fp16", "--sm", "89", "--with-selftest", "-o", engine))
    assert f"Saved {engine}.selftest.json (0.3 MB)" in said
    assert f"yolact-deploy selftest {engine}" in said
    return engine


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for path in built.parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / built.name


def carried(engine: Path) -> Selftest:
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    return read_selftest(engine, sidecar[1])


def test_the_drawn_picture(built: Path) -> None:
    test = carried(built)
    assert test.picture.shape == (240, 320, 3)
    assert test.wanted >= 5
    assert len(set(test.expected.labels.tolist())) >= 3
    assert (test.tolerance.score, test.score_threshold) == (0.03, 0.3)
    assert re.fullmatch(r"ONNX Runtime [\d.]+ on a CPU from demo\.onnx", test.reference)


def test_json_names_the_file(demo: Path, tmp_path: Path) -> None:
    said = json.loads(ok(invoke("build-engine", demo, "--with-selftest", "-o", tmp_path / "a.engine", "--json")))
    assert said["files"][-1] == str(tmp_path / "a.engine.selftest.json")
    assert said["manifest"]["target"]["selftest"]["file"] == "a.engine.selftest.json"
    assert said["manifest"]["target"]["rebuild"].endswith(" --with-selftest")


def test_a_picture_of_ones_own(demo: Path, tmp_path: Path) -> None:
    Image.fromarray(demo_picture()).save(tmp_path / "my scene.png")
    engine = tmp_path / "a.engine"
    said = ok(invoke("build-engine", demo, "--selftest-picture", tmp_path / "my scene.png", "-o", engine))
    assert "the self-test keeps" not in said
    test = carried(engine)
    np.testing.assert_array_equal(test.picture, demo_picture())
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert sidecar[1].rebuild.endswith(" --selftest-picture 'my scene.png'")


def test_a_large_picture_is_made_smaller_and_that_is_said(demo: Path, tmp_path: Path) -> None:
    whole = np.repeat(np.repeat(demo_picture(), 4, 0), 5, 1)
    Image.fromarray(whole).save(tmp_path / "large.png", compress_level=1)
    engine = tmp_path / "a.engine"
    said = ok(invoke("build-engine", demo, "--selftest-picture", tmp_path / "large.png", "-o", engine))
    assert f"{tmp_path / 'large.png'} has 2560 x 2048 pixels, the self-test keeps 1280 x 1024" in said
    assert carried(engine).picture.shape == (1024, 1280, 3)


def test_a_picture_in_which_the_model_finds_nothing(artifacts: Artifacts, demo: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "black.png")
    told = complaint(invoke("build-engine", demo, "--selftest-picture", tmp_path / "black.png", "-o", tmp_path / "a.engine"))
    assert "finds nothing above 0.30 in the self-test's picture, so that it would tell nothing." in told
    assert told.endswith("Name a picture with objects that the model knows: --selftest-picture FILE.")
    assert "does not exist" in complaint(invoke("build-engine", demo, "--selftest-picture", tmp_path / "none.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["black.png"]


def test_inspect_tells(engine: Path, demo: Path, tmp_path: Path) -> None:
    test = carried(engine)
    facts = json.loads(ok(invoke("inspect", engine, "--json")))
    assert facts["self-test"] == f"a.engine.selftest.json: {test.wanted} detections to be found in a 320 x 240 picture, by {test.reference}"
    Path(f"{engine}.selftest.json").unlink()
    facts = json.loads(ok(invoke("inspect", engine, "--json")))
    assert facts["self-test"] == f"does not run: {engine} needs its self-test a.engine.selftest.json beside it, which is missing."
    ok(invoke("build-engine", demo, "-o", tmp_path / "b.engine", "--quiet"))
    assert json.loads(ok(invoke("inspect", tmp_path / "b.engine", "--json")))["self-test"] == "none"
    told = complaint(invoke("selftest", tmp_path / "b.engine"))
    assert told.startswith(f"{tmp_path / 'b.engine'} carries no self-test. Build it with: yolact-deploy build-engine demo.onnx ")
    assert told.endswith(" --with-selftest")


def test_what_is_wrong_with_the_file_is_told_before_a_gpu_is_asked_for(engine: Path) -> None:
    path = Path(f"{engine}.selftest.json")
    path.write_bytes(path.read_bytes()[:-2])
    assert "is not the self-test that a.engine was built with: its SHA-256 differs." in complaint(invoke("selftest", engine))
    assert "does not exist" in complaint(invoke("selftest", engine.with_name("none.engine")))
    assert "ends in .json, .engine was wanted" in complaint(invoke("selftest", path))
    assert invoke("selftest", engine, "--postprocess", "fpga").exit_code == 2


@pytest.mark.skipif(bool(gpus()), reason="what is said where there is no GPU")
def test_without_a_gpu(built: Path, tmp_path: Path) -> None:
    assert "needs a GPU, no NVIDIA driver was found." in complaint(run("selftest", built, cwd=tmp_path))


@pytest.fixture(scope="module")
def outcomes(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    if missing():
        pytest.skip(missing())
    given = {"onnx": str(demo), "folder": str(tmp_path_factory.mktemp("engines"))}
    return run_scenarios("tests.cli.selftest_scenarios", SCENARIOS, given, kernels=build_library())


@pytest.mark.parametrize("name", SCENARIOS)
def test_on_a_gpu(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]
