"""What the builder and the sessions ask of TensorRT 8.6, 10.3, 10.16 and 11.4, each by its own bindings (see `bindings/`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.engines.bindings.run import VERSIONS, run_in
from tests.export.artifacts import Artifacts
from yolact_deploy.engines.sidecar import read_plan, read_sidecar
from yolact_deploy.files import sha256_of

OLD = "8.6.1"
PROBES = "tests.engines.building_probes"
GPU = "NVIDIA GeForce RTX 3080"
Build = Callable[..., dict[str, Any]]

versions = pytest.mark.parametrize("version", VERSIONS)
modern = pytest.mark.parametrize("version", [version for version in VERSIONS if version != OLD])


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A whole build on one version: source, options, and what TensorRT does there."""
    folder = tmp_path / "built"
    folder.mkdir()

    def run(version: str, source: Path, options: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
        said: dict[str, Any] = run_in(version, f"{PROBES}:build", str(source), str(folder), options or {}, settings)
        return said

    return run


@pytest.fixture(scope="session")
def quantized(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 file with its pictures quantized and dequantized again."""
    model = onnx.load(artifacts.onnx())
    scale, zero = (onnx.numpy_helper.from_array(array, name) for array, name in ((np.float32(0.1), "scale"), (np.int8(0), "zero")))
    model.graph.initializer.extend([scale, zero])
    for node in model.graph.node:
        node.input[:] = ["dequantized" if name == "images" else name for name in node.input]
    for place, (kind, name, result) in enumerate((("Quantize", "images", "quantized"), ("Dequantize", "quantized", "dequantized"))):
        node = onnx.helper.make_node(f"{kind}Linear", [name, "scale", "zero"], [result], name=f"input/{kind}Linear")
        model.graph.node.insert(place, node)
    path = tmp_path_factory.mktemp("quantized") / "nano.onnx"
    onnx.save(model, path)
    return path


def fine(said: dict[str, Any]) -> dict[str, Any]:
    assert "error" not in said, said["error"]
    return said


def asked(said: dict[str, Any], name: str) -> list[Any]:
    """The arguments of each call, or the values of each assignment, of that name in the journal."""
    found = [arguments for _, entry, arguments in said["journal"] if entry == name]
    return [next(iter(arguments.values())) if len(arguments) == 1 else arguments for arguments in found]


def flags(said: dict[str, Any]) -> list[str]:
    return [flag.removeprefix("BuilderFlag.") for flag in asked(said, "IBuilderConfig.set_flag")]


@versions
def test_networks_are_made_as_the_version_knows_them(version: str, artifacts: Artifacts, build: Build) -> None:
    said = fine(build(version, artifacts.onnx()))
    wanted = {"8.6.1": 1 << 0, "10.3": 1 << 1, "10.16": 1 << 1, "11.4": 1 << 0}  # EXPLICIT_BATCH, then STRONGLY_TYPED, which moved
    assert asked(said, "Builder.create_network") == [wanted[version]]
    model = onnx.load(artifacts.onnx())
    assert asked(said, "OnnxParser.parse") == [f"{len(model.SerializeToString())} bytes"]
    assert len(asked(said, "Builder.build_serialized_network")) == 1


@pytest.mark.parametrize(("precision", "old"), [("fp32", []), ("fp16", ["FP16"]), ("int8", ["INT8"])])
@versions
def test_precision_flags_are_set_on_8_alone(
    version: str, precision: str, old: list[str], artifacts: Artifacts, quantized: Path, build: Build
) -> None:
    source = quantized if precision == "int8" else artifacts.onnx(fp16=precision == "fp16")
    said = fine(build(version, source))
    assert said["sidecar"]["target"]["precision"] == precision
    assert asked(said, "IBuilderConfig.clear_flag") == ["BuilderFlag.TF32"]
    verbosity = asked(said, "IBuilderConfig.profiling_verbosity")
    features = [entry for entry in said["journal"] if entry[1] == "IBuilderConfig.set_preview_feature"]
    if version == OLD:
        assert flags(said) == ["OBEY_PRECISION_CONSTRAINTS", *old]
        assert verbosity == ["ProfilingVerbosity.DETAILED"]
        assert [list(entry[2].values()) for entry in features] == [["PreviewFeature.PROFILE_SHARING_0806", True]]
    else:
        assert flags(said) == verbosity == features == []
        assert not any(name in ("ILayer.precision", "ILayer.set_output_type") for _, name, _ in said["journal"])


@versions
def test_profiles_workspace_level_and_verbosity(version: str, artifacts: Artifacts, build: Build) -> None:
    options = {"batch": [1, 4, 16], "workspace": 64, "optimization_level": 2, "detailed": True, "tf32": True}
    said = fine(build(version, artifacts.onnx(batch="dynamic"), options))
    shapes = {"input": "images", "min": [1, 3, 256, 256], "opt": [4, 3, 256, 256], "max": [16, 3, 256, 256]}
    assert asked(said, "IOptimizationProfile.set_shape") == [shapes]
    assert asked(said, "IBuilderConfig.add_optimization_profile") == ["<IOptimizationProfile>"]
    assert asked(said, "IBuilderConfig.set_memory_pool_limit") == [{"pool": "MemoryPoolType.WORKSPACE", "pool_size": 64 << 20}]
    assert asked(said, "IBuilderConfig.builder_optimization_level") == [2]
    assert asked(said, "IBuilderConfig.clear_flag") == []
    assert asked(said, "IBuilderConfig.profiling_verbosity") == ["ProfilingVerbosity.DETAILED"]
    names = [name for _, name, _ in said["journal"]]
    built = names.index("Builder.build_serialized_network")
    assert max(place for place, name in enumerate(names) if name.startswith(("IBuilderConfig", "IOptimizationProfile"))) < built


@versions
def test_nothing_is_set_that_was_not_asked_for(version: str, artifacts: Artifacts, build: Build) -> None:
    said = fine(build(version, artifacts.onnx()))
    for name in ("set_memory_pool_limit", "builder_optimization_level", "hardware_compatibility_level", "set_timing_cache"):
        assert asked(said, f"IBuilderConfig.{name}") == []
    assert asked(said, "Builder.create_optimization_profile") == []  # the batch is fixed


@versions
def test_a_profile_that_is_refused(version: str, artifacts: Artifacts, build: Build) -> None:
    said = build(version, artifacts.onnx(batch="dynamic"), {}, **{"refuses the profile": True})
    message = f"TensorRT {VERSIONS[version]} refuses the batches 1:1:8: it gives no reason."
    assert said["error"] == ["EngineBuildError", message, "Change --batch."]


@pytest.mark.parametrize(("level", "member"), [("ampere+", "AMPERE_PLUS"), ("same-compute-capability", "SAME_COMPUTE_CAPABILITY")])
@versions
def test_hardware_levels(version: str, level: str, member: str, artifacts: Artifacts, build: Build) -> None:
    said = build(version, artifacts.onnx(), {"hardware_level": level})
    if level != "ampere+" and version in ("8.6.1", "10.3"):
        message = f"TensorRT {VERSIONS[version]} does not know the hardware compatibility {level}."
        assert said["error"][:2] == ["ConfigError", message]
        assert said["files"] == []
    else:
        assert asked(fine(said), "IBuilderConfig.hardware_compatibility_level") == [f"HardwareCompatibilityLevel.{member}"]
        assert said["sidecar"]["target"]["hardware_level"] == level
        assert f"--hardware-compatible {level}" in said["sidecar"]["target"]["rebuild"]


@versions
def test_version_compatible_engines_bring_no_runtime(version: str, artifacts: Artifacts, build: Build) -> None:
    said = fine(build(version, artifacts.onnx(), {"version_compatible": True}))
    assert [flag for flag in flags(said) if "RUNTIME" in flag or "VERSION" in flag] == ["VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"]
    assert said["sidecar"]["target"]["version_compatible"] is True


@versions
def test_timings_are_loaded_and_stored(version: str, artifacts: Artifacts, build: Build, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "timing.cache"
    first = fine(build(version, artifacts.onnx(), {"timing_cache": str(cache)}, measures="one"))
    assert asked(first, "IBuilderConfig.create_timing_cache") == ["0 bytes"]
    assert asked(first, "IBuilderConfig.set_timing_cache") == [{"cache": "<ITimingCache>", "ignore_mismatch": False}]
    assert cache.read_text() == "one"
    second = fine(build(version, artifacts.onnx(), {"timing_cache": str(cache)}, measures="two"))
    assert asked(second, "IBuilderConfig.create_timing_cache") == ["3 bytes", "3 bytes"]  # before the build, and as it is after it
    assert asked(second, "ITimingCache.combine") == [{"input_cache": "<ITimingCache>", "ignore_mismatch": False}]
    assert cache.read_text() == "one\ntwo"
    assert second["notes"] == []
    cache.write_bytes(b"damaged beyond use")
    third = fine(build(version, artifacts.onnx(), {"timing_cache": str(cache)}, measures="three"))
    assert third["notes"] == [f"{cache} was made by another TensorRT or GPU, or is damaged: it starts afresh."]
    assert cache.read_text() == "three"
    assert {path.name for path in cache.parent.iterdir()} <= {"timing.cache", "timing.cache.lock"}


def test_timings_lie_in_the_users_cache(artifacts: Artifacts, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fine(build("11.4", artifacts.onnx(), {"timing_cache": None}, measures="one"))
    assert [path.name for path in tmp_path.rglob("*.cache")] == ["tensorrt-11.4.0.106.nvidia-geforce-rtx-3080.sm86.cache"]


@pytest.mark.parametrize("version", [OLD, "11.4"])
def test_both_plans_of_a_plus_file_share_the_timings(version: str, artifacts: Artifacts, build: Build, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"damaged")
    said = fine(build(version, artifacts.onnx(artifacts.plus), {"precision": "fp16", "timing_cache": str(cache)}, measures="both"))
    assert said["seconds"] == ["engine", "mask-IoU net"]
    assert flags(said) == (["OBEY_PRECISION_CONSTRAINTS", "FP16", "OBEY_PRECISION_CONSTRAINTS"] if version == OLD else [])
    assert len(said["notes"]) == 1  # the first plan put it right
    assert asked(said, "IOptimizationProfile.set_shape")[0]["max"][0] == 100
    assert said["sidecar"]["mask_iou"]["file"] == f"{Path(said['name']).stem}.maskiou.engine"
    assert len(said["files"]) == 3
    pinned = said["sidecar"]["target"]["build"].get("pinned_layers", {"float16": 0})
    assert (pinned["float16"] > 50) == (version == OLD)  # of the engine: the small net stays float32


def test_timings_that_cannot_be_kept_do_not_cost_the_engine(artifacts: Artifacts, build: Build, tmp_path: Path) -> None:
    cache = str(tmp_path / "t.cache")
    said = fine(build("10.16", artifacts.onnx(), {"timing_cache": cache}, **{"folder in the cache's place": cache}))
    assert said["whole"]
    (note,) = said["notes"]
    assert note.startswith(f"The timing cache {cache} cannot be used: ")


@modern
def test_progress_is_told_and_cancelling_reaches_tensorrt(version: str, artifacts: Artifacts, build: Build) -> None:
    said = fine(build(version, artifacts.onnx()))
    assert asked(said, "IBuilderConfig.progress_monitor") == ["<Monitor>"]
    assert said["seen"] == [[True, True, True]]
    building = [(step.removeprefix("building the engine"), done) for step, done in said["told"] if step.startswith("building")]
    steps, done = zip(*building, strict=True)
    assert steps == ("", *[": Building"] * 2, *[": Tactics"] * 2, *[": Timing"] * 3, ": Tactics", ": Building")
    assert done == (0, 0, 0.25, 0.25, 0.375, 0.375, 0.5, 0.5, 0.5, 1)
    for seconds in (0, 0.4):  # while the thread starts, and while it is waited for
        stopped = build(version, artifacts.onnx(), {}, interrupt=seconds)
        assert stopped["error"][0] == "KeyboardInterrupt"
        assert stopped["seen"] == [[True, True, True, False]]
        assert stopped["files"] == [said["name"], f"{said['name']}.json"]  # of the first build


def test_8_has_no_monitor_and_builds_without(artifacts: Artifacts, build: Build) -> None:
    said = fine(build(OLD, artifacts.onnx()))
    assert (said["seen"], said["told"][-1]) == ([], ["building the engine", 0.0])


@versions
def test_parse_errors(version: str, artifacts: Artifacts, build: Build) -> None:
    errors = [
        ("NonZero", "nms/NonZero", "No importer registered for op: NonZero. "),
        ("NonZero", "nms/NonZero", "No importer registered for op: NonZero."),
    ]
    said = build(version, artifacts.onnx(), {}, **{"parse errors": errors})
    where = "" if version == OLD else "NonZero nms/NonZero: "
    message = f"TensorRT {VERSIONS[version]} cannot read the graph: {where}No importer registered for op: NonZero."
    assert said["error"] == ["EngineBuildError", message, "Export with another --opset, or --postprocess none."]
    assert said["files"] == []
    two = build(version, artifacts.onnx(), {}, **{"parse errors": [("A", "a", "first"), ("B", "b", "second")]})
    assert two["error"][1].endswith(
        "cannot read the graph: first; second." if version == OLD else "cannot read the graph: A a: first; B b: second."
    )
    none = build(version, artifacts.onnx(), {}, **{"parse errors": []})
    assert none["error"][1].endswith("cannot read the graph: it gives no reason.")


@versions
def test_a_builder_that_does_not_start(version: str, artifacts: Artifacts, build: Build) -> None:
    said = build(version, artifacts.onnx(), {}, **{"no builder": True})
    kind, message, mend = said["error"]
    assert (kind, mend) == ("EngineBuildError", "yolact-deploy doctor tells what is here.")
    assert message == f"TensorRT {VERSIONS[version]} cannot start: CUDA initialization failure with error: 35."


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("[resizingAllocator.cpp::allocate::74] Error Code 1: Cuda Runtime (out of memory)", "Use a smaller --batch or --workspace"),
        ("Requested amount of GPU memory (1024 bytes) could not be allocated. OutOfMemory", "Use a smaller --batch or --workspace"),
        ("Error Code 10: Could not find any implementation for node backbone/Conv.", "Pass --verbose"),
        ("A memory format was refused", "Pass --verbose"),
        ("Name out of range, cannot allocate", "Pass --verbose"),
    ],
)
@pytest.mark.parametrize("version", [OLD, "11.4"])
def test_a_build_that_fails(version: str, text: str, mend: str, artifacts: Artifacts, build: Build) -> None:
    said = build(version, artifacts.onnx(), {}, fails=True, says=[["ERROR", text], ["WARNING", "out of memory of no weight"]])
    kind, message, told = said["error"]
    assert kind == "EngineBuildError"
    assert message == f"TensorRT {VERSIONS[version]} could not build the engine: {text.rstrip('.')}."
    assert told.startswith(mend)
    assert said["files"] == []


def test_opset_20_is_refused_on_8_by_name(artifacts: Artifacts, build: Build) -> None:
    source = artifacts.onnx(opset=20)
    said = build(OLD, source)
    assert said["error"] == ["ConfigError", f"{source} has opset 20, TensorRT 8.6.1 reads up to 17.", "Export with --opset 17."]
    assert asked(said, "Builder") == []
    fine(build("10.3", source))


@versions
def test_the_sidecar(version: str, artifacts: Artifacts, build: Build, tmp_path: Path) -> None:
    source = artifacts.onnx(fp16=True, batch="dynamic")
    options = {"batch": [1, 2, 4], "workspace": 128, "optimization_level": 4, "sm": [[8, 6]], "backend": "tensorrt"}
    said = fine(build(version, source, options))
    full = VERSIONS[version]
    short = ".".join(full.split(".")[:2])
    assert said["name"] == f"{source.stem}.fp16.trt{short}-sm86.engine"
    assert said["files"] == [said["name"], f"{said['name']}.json"]
    assert said["reason"] == f"TensorRT {full}: as asked for."
    target = said["sidecar"]["target"]
    path = tmp_path / "built" / said["name"]
    assert target["rebuild"] == (
        f"yolact-deploy build-engine {source.name} --backend tensorrt --sm 86 --batch 1:2:4 --workspace 128 --optimization-level 4"
    )
    assert (target["backend"], target["tensorrt_version"], target["gpu"]) == ("tensorrt", full, GPU)
    assert (target["capabilities"], target["batch"], target["sha256"]) == (["8.6"], [1, 2, 4], sha256_of(path))
    assert target["build"]["driver"] == "CUDA 13.0"
    assert said["sidecar"]["versions"]["tensorrt"] == full
    assert read_plan(path, read_sidecar(path)) == path.read_bytes()


def test_auto_takes_tensorrt_for_the_gpu_here(artifacts: Artifacts, build: Build) -> None:
    said = fine(build("10.16", artifacts.onnx()))
    assert said["reason"] == f"TensorRT 10.16.1.11: it is installed and this machine has a GPU, {GPU}."
    refused = build("10.16", artifacts.onnx(), {"backend": "tensorrt", "sm": [[8, 9]]})
    assert refused["error"][0] == "ConfigError"
    assert f"({GPU}, compute capability 8.6, 10.0 GiB); compute capability 8.9 was asked for" in refused["error"][1]


MEASURED = {
    "Layers": [
        {
            "Name": "backbone/a + backbone/b",
            "LayerType": "CaskConvolution",
            "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}],
        },
        {"Name": "decode/Mul", "LayerType": "ElementWise", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]},
    ]
}


def test_8_pins_the_layers_and_tells_what_it_made_of_them(artifacts: Artifacts, build: Build) -> None:
    source = artifacts.onnx(fp16=True)
    said = fine(build(OLD, source, {}, layers=MEASURED))
    pinned = said["sidecar"]["target"]["build"]["pinned_layers"]
    assigned = asked(said, "ILayer.precision")
    assert pinned == {"float32": assigned.count("DataType.FLOAT"), "float16": assigned.count("DataType.HALF"), "free": 0}
    assert pinned["float16"] > 20
    assert pinned["float32"] > 5
    names = [name for _, name, _ in said["journal"]]
    last = max(place for place, name in enumerate(names) if name == "ILayer.precision")
    assert names.index("OnnxParser.parse") < last < names.index("Builder.build_serialized_network")
    assert said["sidecar"]["precision"] == {"backbone": "float16", "decode": "float32"}
    assert asked(said, "Runtime.deserialize_cuda_engine") == ["128 bytes"]


@modern
def test_later_versions_run_the_types_of_the_graph(version: str, artifacts: Artifacts, build: Build) -> None:
    source = artifacts.export(fp16=True)
    said = fine(build(version, source.path, {}, layers=MEASURED))
    assert "pinned_layers" not in said["sidecar"]["target"]["build"]
    assert said["sidecar"]["precision"] == json.loads(source.manifest.to_json())["precision"]
    assert asked(said, "Runtime") == []  # nothing is loaded that is not needed


def test_8_inspects_an_engine_of_many_batches_at_its_best_one(artifacts: Artifacts, build: Build) -> None:
    said = fine(build(OLD, artifacts.onnx(batch="dynamic"), {"batch": [1, 2, 4]}, layers=MEASURED, **{"dynamic engine": True}))
    assert asked(said, "IExecutionContext.set_input_shape") == [{"name": "images", "shape": [2, 3, 256, 256]}]
    assert asked(said, "EngineInspector.execution_context") == ["<IExecutionContext>"]
    names = [name for _, name, _ in said["journal"]]
    assert names.index("IExecutionContext.set_input_shape") < names.index("EngineInspector.execution_context")
    assert names.index("EngineInspector.execution_context") < names.index("EngineInspector.get_engine_information")


@versions
def test_an_engine_runs_with_every_name_of_its_version(version: str) -> None:
    said = fine(run_in(version, f"{PROBES}:run_engine", {"sizes": [2, 2, 2, 3, 3]}))
    assert said["batch"] == "1:2:4"
    assert said["tensors"] == [["x", "float32", [3]], ["y", "float32", [3]]]
    two, three = ([[2.0 * (3 * row + column) for column in range(3)] for row in range(size)] for size in (2, 3))
    assert said["outputs"] == [two, two, two, three, three]
    assert said["launches"] == [2, 1]  # recorded in the second run of a size
    assert said["outside"] == []  # TensorRT works on the right GPU
    assert asked(said, "Runtime.engine_host_code_allowed") == [False]
    profile = [entry[2] for entry in said["journal"] if entry[1] == "IExecutionContext.set_optimization_profile_async"]
    assert [list(arguments.values()) for arguments in profile] == [[0, 77]]
    shapes = [entry[2] for entry in said["journal"] if entry[1] == "IExecutionContext.set_input_shape"]
    assert [list(arguments.values())[-1] for arguments in shapes] in ([[2, 3], [3, 3]], [["x", [2, 3]], ["x", [3, 3]]])
    assert asked(said, "IExecutionContext.execute_async_v3") == [77] * 4  # two of them while recording


@versions
def test_an_engine_of_one_batch_size_needs_no_shapes(version: str) -> None:
    said = fine(run_in(version, f"{PROBES}:run_engine", {"rows": 2, "sizes": [2], "stream": 1234}))
    assert said["batch"] == "2:2:2"
    assert asked(said, "IExecutionContext.set_input_shape") == asked(said, "IExecutionContext.set_optimization_profile_async") == []
    assert asked(said, "IExecutionContext.execute_async_v3") == [1234]


@versions
def test_lean_runtimes(version: str) -> None:
    said = fine(run_in(version, f"{PROBES}:run_engine", {"lean runtime": "libnvinfer_lean.so.8"}))
    assert asked(said, "Runtime.load_runtime") == ["libnvinfer_lean.so.8"]
    names = [name for _, name, _ in said["journal"]]
    assert (
        names.index("Runtime.engine_host_code_allowed")
        < names.index("Runtime.load_runtime")
        < names.index("Runtime.deserialize_cuda_engine")
    )
    refused = run_in(version, f"{PROBES}:run_engine", {"lean runtime": "none.so", "no lean runtime": True})
    assert refused["error"][0] == "ModelFileError"
    assert refused["error"][1].startswith(f"TensorRT {VERSIONS[version]} cannot load the lean runtime none.so: it gives no reason")


@pytest.mark.parametrize("version", [OLD, "11.4"])
def test_engines_that_do_not_load_or_run(version: str) -> None:
    refused = run_in(version, f"{PROBES}:run_engine", {"refused": True})
    assert refused["error"][0] == "ModelFileError"
    assert refused["error"][1].startswith(f"TensorRT {VERSIONS[version]} refuses the engine doubling.engine: it gives no reason")
    failed = run_in(version, f"{PROBES}:run_engine", {"execution fails": True})
    assert failed["error"][:2] == ["DeviceError", f"TensorRT {VERSIONS[version]} failed to run, engine doubling.engine."]
