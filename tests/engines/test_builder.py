"""Real builds with TensorRT-RTX, which needs no GPU: the plan, its header, its sidecar, and what is refused before a build."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import onnx
import pytest

from tests.export.artifacts import Artifacts
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.builder import BuildResult, build_engine
from yolact_deploy.engines.options import BuildOptions
from yolact_deploy.engines.plan_file import identify
from yolact_deploy.engines.sidecar import read_mask_iou, read_plan, read_sidecar
from yolact_deploy.engines.targets import Capability
from yolact_deploy.engines.versions import load_tensorrt
from yolact_deploy.errors import ConfigError, EngineBuildError, ModelFileError, OutputError
from yolact_deploy.files import sha256_of
from yolact_deploy.manifest import Manifest

RTX = "tensorrt-rtx"


@pytest.fixture(scope="module")
def built(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """A float16 engine for two capabilities, converted here from a float32 file with a dynamic batch."""
    options = BuildOptions("fp16", sm=((8, 6), (8, 9)), batch=BatchRange(1, 4, 16), detailed=True)
    return build_engine(artifacts.onnx(batch="dynamic"), options=options, folder=tmp_path_factory.mktemp("built"))


def test_files_and_their_names(built: BuildResult, artifacts: Artifacts) -> None:
    source = artifacts.onnx(batch="dynamic")
    assert built.path.name == f"{source.stem}.fp16.rtx-sm86-sm89.engine"
    assert built.sidecar.name == f"{built.path.name}.json"
    assert sorted(path.name for path in built.path.parent.iterdir()) == sorted([built.path.name, built.sidecar.name])
    assert built.mask_iou_path is None


def test_the_header_tells_what_was_built(built: BuildResult) -> None:
    found = identify(built.path)
    assert (found.kind, found.version) == (RTX, load_tensorrt(RTX).version)
    assert found.declared_size == found.size == built.path.stat().st_size
    assert found.capabilities == ((8, 6), (8, 9))


def test_the_sidecar_tells_where_it_runs_and_what_it_was_made_from(built: BuildResult, artifacts: Artifacts) -> None:
    sidecar = read_sidecar(built.path)
    assert sidecar is not None
    manifest, target = sidecar
    assert (manifest, target) == (built.manifest, built.target)
    source = artifacts.export(batch="dynamic")
    assert manifest.kind == "engine"
    assert manifest.classes == source.manifest.classes
    assert manifest.variant == source.manifest.variant
    assert manifest.source["file"] == source.path.name
    assert manifest.source["sha256"] == sha256_of(source.path)
    assert manifest.source["checkpoint_sha256"] == sha256_of(artifacts.weights)
    assert manifest.inputs[0].shape == ("batch", 3, 256, 256)
    assert [spec.dtype for spec in manifest.outputs] == ["float32"] * 4
    assert manifest.precision["backbone"] == manifest.precision["protonet"] == "float16"
    assert manifest.precision["decode"] == "float32"
    assert target.sha256 == hashlib.sha256(built.path.read_bytes()).hexdigest()
    assert target.size == built.path.stat().st_size
    assert (target.backend, target.precision, target.gpu) == (RTX, "fp16", "")
    assert target.batch == BatchRange(1, 4, 16)
    assert target.capabilities == ((8, 6), (8, 9))
    assert target.where == "compute capability 8.6, 8.9"
    wanted = f"yolact-deploy build-engine {source.path.name} --fp16 --backend tensorrt-rtx --sm 86,89 --batch 1:4:16 --detailed"
    assert target.rebuild == wanted
    assert read_plan(built.path, sidecar) == built.path.read_bytes()


def test_float16_made_here_is_compared_with_the_file(built: BuildResult) -> None:
    assert built.converted
    found = built.manifest.verification
    assert set(found["largest_relative_difference"]) == {"boxes", "scores", "coefficients", "prototypes"}
    assert all(0 < value < 0.03 for value in found["largest_relative_difference"].values())
    assert "float16 graph with the float32 file" in found["compared"]


def test_the_reason_for_the_backend(built: BuildResult) -> None:
    assert built.reason == f"{load_tensorrt(RTX)}: this machine has no GPU, and TensorRT-RTX builds without one."


def test_float16_from_the_file_is_as_large_as_float16_made_here(artifacts: Artifacts, tmp_path: Path) -> None:
    whole = build_engine(artifacts.onnx(), tmp_path / "fp32.engine")
    read = build_engine(artifacts.onnx(fp16=True), folder=tmp_path)
    made = build_engine(artifacts.onnx(), tmp_path / "made.engine", BuildOptions("fp16"))
    assert (whole.target.precision, read.target.precision, made.target.precision) == ("fp32", "fp16", "fp16")
    assert read.path.name.endswith(".fp16.rtx-portable.engine")
    assert not read.converted
    assert not whole.converted
    assert abs(read.target.size - made.target.size) < 0.02 * read.target.size
    assert read.target.size < 0.65 * whole.target.size
    assert whole.target.capabilities == ()
    assert whole.target.where == "compute capability 8.0, 8.6, 8.9, 12.0 and newer"
    assert identify(whole.path).capabilities == ()


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)])
def test_each_capability(capability: Capability, artifacts: Artifacts, tmp_path: Path) -> None:
    result = build_engine(artifacts.onnx(), folder=tmp_path, options=BuildOptions(sm=(capability,)))
    assert identify(result.path).capabilities == (capability,)
    assert result.path.name.endswith(f".fp32.rtx-sm{capability[0]}{capability[1]}.engine")


@pytest.mark.parametrize(("capability", "named"), [((9, 0), r"9\.0 \(H100, H200\)"), ((8, 7), r"8\.7 \(Jetson Orin\)"), ((10, 0), "10.0")])
def test_a_capability_that_cannot_be_is_refused_by_name(capability: Capability, named: str, artifacts: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"builds for compute capability 7\.5, 8\.0, .*; not for {named}"):
        build_engine(artifacts.onnx(), folder=tmp_path, options=BuildOptions(sm=((8, 9), capability)))
    assert list(tmp_path.iterdir()) == []


def test_the_mask_iou_net_becomes_its_own_engine(artifacts: Artifacts, tmp_path: Path) -> None:
    result = build_engine(artifacts.onnx(artifacts.plus), folder=tmp_path, options=BuildOptions("fp16"))
    assert result.mask_iou_path is not None
    assert result.mask_iou_path.name == f"{result.path.stem}.maskiou.engine"
    assert result.manifest.mask_iou == {"file": result.mask_iou_path.name, "sha256": sha256_of(result.mask_iou_path)}
    assert set(result.seconds) == {"engine", "mask-IoU net"}
    assert read_mask_iou(result.path, result.manifest, result.target) == result.mask_iou_path.read_bytes()
    result.mask_iou_path.write_bytes(result.path.read_bytes())
    with pytest.raises(ModelFileError, match=r"maskiou.engine is not the mask-IoU engine that .* was built with"):
        read_mask_iou(result.path, result.manifest, result.target)
    result.mask_iou_path.unlink()
    with pytest.raises(ModelFileError, match=r"needs its mask-IoU engine .* which is missing"):
        read_mask_iou(result.path, result.manifest, result.target)


def test_batches_that_do_not_fit_the_graph(artifacts: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has the fixed batch 1, 1:4:16 was asked for"):
        build_engine(artifacts.onnx(), folder=tmp_path, options=BuildOptions(batch=BatchRange(1, 4, 16)))
    result = build_engine(artifacts.onnx(), folder=tmp_path, options=BuildOptions(batch=BatchRange(1, 1, 1)))
    assert "--batch" not in result.target.rebuild
    assert result.manifest.inputs[0].shape[0] == 1
    assert build_engine(artifacts.onnx(batch="dynamic"), tmp_path / "d.engine").target.batch == BatchRange(1, 1, 8)


def test_what_rtx_does_not_have(artifacts: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no hardware-compatible builds"):
        build_engine(artifacts.onnx(), folder=tmp_path, options=BuildOptions(hardware_level="ampere+"))
    with pytest.raises(ConfigError, match="builds no version-compatible engines without a GPU"):
        build_engine(artifacts.onnx(), folder=tmp_path, options=BuildOptions(version_compatible=True))
    cache = tmp_path / "timing.cache"
    result = build_engine(artifacts.onnx(), folder=tmp_path, options=BuildOptions(timing_cache=cache))
    assert result.notes == (f"{load_tensorrt(RTX)} measures nothing while it builds, so the timing cache {cache} is not used.",)
    assert not cache.exists()


def test_builder_options_reach_the_sidecar(artifacts: Artifacts, tmp_path: Path) -> None:
    result = build_engine(artifacts.onnx(), folder=tmp_path, options=BuildOptions(workspace=256, optimization_level=1))
    assert result.target.options == {"workspace_mib": 256, "optimization_level": 1, "tf32": False, "detailed": False}
    assert result.target.rebuild.endswith("--workspace 256 --optimization-level 1")
    with pytest.raises(ConfigError, match="The workspace is 0 MiB"):
        BuildOptions(workspace=0)
    with pytest.raises(ConfigError, match="The optimization level is 6"):
        BuildOptions(optimization_level=6)


def test_progress_is_told(artifacts: Artifacts, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    build_engine(artifacts.onnx(), folder=tmp_path, progress=lambda step, done: told.append((step, done)))
    assert told[0] == ("reading", 0.0)
    steps = [done for step, done in told if step.startswith("building the engine: ")]
    assert steps == sorted(steps)
    assert steps[-1] == 1.0
    assert len(set(steps)) > 20


def test_what_tensorrt_says_is_heard(artifacts: Artifacts, tmp_path: Path) -> None:
    said: list[str] = []
    build_engine(artifacts.onnx(), folder=tmp_path, log=said.append)
    assert said


def test_a_build_that_fails_leaves_nothing_and_says_why(artifacts: Artifacts, tmp_path: Path) -> None:
    model = onnx.load(artifacts.onnx())
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "NonMaxSuppressionX"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(EngineBuildError, match=r"TensorRT-RTX .* cannot read the graph: .*NonMaxSuppressionX"):
        build_engine(tmp_path / "odd.onnx", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["odd.onnx"]


def test_a_foreign_file_is_not_replaced(artifacts: Artifacts, tmp_path: Path) -> None:
    output = tmp_path / "mine.engine"
    output.write_text("precious")
    with pytest.raises(OutputError, match=r"mine.engine exists and was not written by this command"):
        build_engine(artifacts.onnx(), output)
    assert output.read_text() == "precious"
    first = build_engine(artifacts.onnx(), output, force=True)
    again = build_engine(artifacts.onnx(fp16=True), output)
    assert again.target.sha256 != first.target.sha256
    assert read_sidecar(output) == (again.manifest, again.target)
    for name in ("a.onnx", "a.json", "a.bin", "a"):
        with pytest.raises(ConfigError, match=r"an engine's name was wanted"):
            build_engine(artifacts.onnx(), tmp_path / name)
    with pytest.raises(OutputError, match="is a folder"):
        build_engine(artifacts.onnx(), tmp_path)


def test_an_int8_engine_wants_qdq(artifacts: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--int8 wants a graph with Q/DQ pairs, .* is fp32") as caught:
        build_engine(artifacts.onnx(), folder=tmp_path, options=BuildOptions("int8"))
    assert caught.value.mend == f"Make one: yolact-deploy calibrate {artifacts.onnx()}"


def test_the_rebuild_command_is_one_that_the_command_line_takes(built: BuildResult, artifacts: Artifacts, tmp_path: Path) -> None:
    from tests.cli.commands import invoke, ok

    shutil.copy(artifacts.onnx(batch="dynamic"), tmp_path)
    words = built.target.rebuild.split()[1:]
    words[1] = str(tmp_path / words[1])
    said = json.loads(ok(invoke(*words, "--json", "-o", tmp_path / "again.engine")))
    again = Manifest.from_json(json.dumps(said["manifest"]), "again")
    assert again.target["rebuild"] == built.target.rebuild
    assert {key: again.target[key] for key in ("capabilities", "batch", "precision")} == {
        "capabilities": ["8.6", "8.9"],
        "batch": [1, 4, 16],
        "precision": "fp16",
    }
