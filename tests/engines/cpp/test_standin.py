"""The stand-in for TensorRT that the C++ library is tested on: it plays its plans, tells misuse, and declares what TensorRT declares."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.cpp.standin.made_heads import golden_outputs, made_heads, made_outputs
from tests.helpers.cpp_engines import (
    RTX_VERSION,
    SOURCES,
    VERSION,
    StandIn,
    build_standin,
    chosen_rows,
    compile_program,
    made_manifest,
    mask_ious,
    missing,
    plan_bytes,
    write_lean_runtime,
    write_recorded_engine,
)
from tests.helpers.kernel_library import KERNELS, build_library, find_kernels
from tests.helpers.tiny import tiny_variant
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.gpu import Gpu
from yolact_deploy.engines.plan_file import identify
from yolact_deploy.engines.sidecar import check_machine, read_mask_iou, read_plan, read_sidecar
from yolact_deploy.engines.versions import TensorRT
from yolact_deploy.manifest import InputSpec
from yolact_deploy.variants import Variant, get_variant

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

CHECKS = SOURCES / "checks"
CLANG = next(filter(shutil.which, ["clang++", *(f"clang++-{version}" for version in range(30, 13, -1))]), "clang++")
DYNAMIC = BatchRange(1, 2, 4)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "TensorRT 8": {"version": "8.6.1.6"},
    "TensorRT-RTX": {"rtx": True},
    "address": {"sanitize": "address,undefined"},
    "thread": {"sanitize": "thread"},
    "clang": {"compiler": CLANG},
}


class Made:
    """A stand-in with the program of scenarios, and a folder for engines."""

    def __init__(self, standin: StandIn, folder: Path) -> None:
        self.standin, self.folder = standin, folder
        self.program = compile_program(standin, [CHECKS / "program.cpp"], folder / "program")

    def run(self, scenario: str, *words: object, **settings: Any) -> None:
        command = [str(self.program), scenario, *map(str, words)]
        environment = self.standin.environment(**settings)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, f"{scenario} ended with {done.returncode}:\n{done.stderr[-4000:]}"

    def engine(self, variant: Variant | None = None, **options: Any) -> Path:
        variant = variant or tiny_variant(input_size=64)
        backend = "tensorrt-rtx" if self.standin.rtx else "tensorrt"
        given = {"batch": DYNAMIC, "backend": backend, "version": self.standin.version, **options}
        name = hashlib.sha256(json.dumps([variant.to_dict(), {key: str(value) for key, value in given.items()}]).encode()).hexdigest()[:8]
        return write_recorded_engine(self.folder, variant, made_heads(variant, 3), name=name, **given)


def sanitizer_runs(name: str, folder: Path) -> bool:
    """Whether there is this sanitizer and the kernel's memory map suits it; GCC 13's and older do not start on every kernel."""
    (folder / "empty.cpp").write_text("int main() { return 0; }\n")
    command = ["g++", f"-fsanitize={name}", "-o", str(folder / "empty"), str(folder / "empty.cpp")]
    built = subprocess.run(command, capture_output=True, timeout=100, check=False).returncode == 0
    return built and subprocess.run([str(folder / "empty")], capture_output=True, timeout=100, check=False).returncode == 0


def made(kind: str, folder: Path) -> Made:
    options = KINDS[kind]
    if reason := missing(options.get("compiler", "g++")):
        pytest.skip(reason)
    if "sanitize" in options and not sanitizer_runs(options["sanitize"], folder):
        pytest.skip(f"programs with -fsanitize={options['sanitize']} do not run here")
    return Made(build_standin(**options), folder)


@pytest.fixture(scope="module", params=KINDS)
def any_standin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(request.param, tmp_path_factory.mktemp("standin"))


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made("plain", tmp_path_factory.mktemp("plain"))


def images(count: int, size: int = 64, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(0, 2, (count, 3, size, size)).astype(np.float32)


def outputs_of(made: Made, engine: Path, given: np.ndarray[Any, Any], wanted: dict[str, Any], scenario: str = "run") -> dict[str, Any]:
    """What the engine gives for a batch; `wanted` tells dtypes and shapes."""
    folder = made.folder / f"{engine.stem} {scenario}"
    folder.mkdir(exist_ok=True)
    (folder / "input").write_bytes(given.tobytes())
    made.run(scenario, engine, folder / "input", folder)
    found = {name: np.frombuffer((folder / name).read_bytes(), rows.dtype) for name, rows in wanted.items()}
    return {name: values.reshape(len(given), *wanted[name].shape[1:]) for name, values in found.items()}


@pytest.mark.parametrize("choose", ["index", "input", "value"])
@pytest.mark.parametrize("scenario", ["run", "replay"])
def test_each_picture_gets_its_row(any_standin: Made, scenario: str, choose: Any) -> None:
    given, recorded = images(4), made_heads(tiny_variant(input_size=64), 3)
    found = outputs_of(any_standin, any_standin.engine(choose=choose), given, recorded, scenario)
    rows = chosen_rows(given, 3, choose)
    assert choose == "index" or rows != chosen_rows(given, 3, "index")
    for name, values in recorded.items():
        np.testing.assert_array_equal(found[name], values[rows])


@pytest.mark.parametrize("scenario", ["wrong_calls", "freed_memory", "early_ends", "wrong_order", "threads", "many_contexts"])
def test_misuse(any_standin: Made, scenario: str) -> None:
    any_standin.run(scenario, any_standin.engine())


def test_failures_that_a_plan_asks_for(any_standin: Made) -> None:
    any_standin.run("failures", any_standin.engine(lines=("fail enqueue 2", "fail run 3")))
    any_standin.run("not_capturable", any_standin.engine(lines=("capturable 0",)))


def test_what_is_allowed(any_standin: Made) -> None:
    lean = write_lean_runtime(any_standin.folder / "lean.so", "10.3.0.26")
    any_standin.run("allowances", any_standin.engine(version="10.3.0.26", lines=("host_code 1", "warning this is a warning")), lean)


def test_versions(any_standin: Made) -> None:
    numbers = {VERSION: 110400, "8.6.1.6": 8601, RTX_VERSION: 10701}
    any_standin.run("version", numbers[any_standin.standin.version])


def test_the_kernels_are_there(standin: Made) -> None:
    library, (name, *_) = build_library(), find_kernels(KERNELS)
    standin.run("kernels", name, kernels=library)


def test_without_a_gpu(standin: Made) -> None:
    standin.run("no_gpu", devices=0)


@pytest.mark.parametrize(("field", "told"), [("weights", "CUDA error 2 for 9000000 bytes of memory"), ("memory", "an execution context")])
def test_without_memory(standin: Made, field: str, told: str) -> None:
    size: Any = {field: 9_000_000}
    standin.run("refused", standin.engine(**size), told, memory=8_000_000)


def test_static_engines_and_other_types(standin: Made) -> None:
    variant = tiny_variant(input_size=64)
    heads = made_heads(variant)
    recorded = {name: values.astype(np.float16) if name in ("coefficients", "prototypes") else values for name, values in heads.items()}
    spec = InputSpec.of(variant, "raw", "bgr")
    engine = write_recorded_engine(standin.folder, variant, recorded, spec, name="raw", batch=3, precision="fp16", choose="value")
    given = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8)
    found = outputs_of(standin, engine, given, recorded)
    for name, values in recorded.items():
        np.testing.assert_array_equal(found[name], values[given[:, 0, 0, 0] % 2])
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    manifest, target = sidecar
    assert (manifest.inputs[0].dtype, manifest.inputs[0].shape, manifest.input) == ("uint8", (3, 64, 64, 3), spec)
    assert (target.batch, target.precision) == (BatchRange(3, 3, 3), "fp16")


@pytest.mark.parametrize("size", [2, 4])
def test_a_mask_iou_engine(any_standin: Made, size: int) -> None:
    side = any_standin.standin
    masks = np.random.default_rng(2).uniform(0, 1, (size, 1, 69, 69)).astype(np.float32)
    engine = any_standin.folder / f"maskiou{size}.engine"
    backend: Any = "tensorrt-rtx" if side.rtx else "tensorrt"
    inputs, columns = {"masks": ("float32", (1, 69, 69))}, {"mask_ious": 80}
    engine.write_bytes(plan_bytes(inputs, {}, DYNAMIC, mean_columns=columns, backend=backend, version=side.version))
    wanted = mask_ious(masks, 80)
    found = outputs_of(any_standin, engine, masks, {"mask_ious": wanted})
    np.testing.assert_array_equal(found["mask_ious"], wanted)


def test_damaged_plans(any_standin: Made) -> None:
    whole = any_standin.engine().read_bytes()
    text = whole.index(b"end\n")
    broken = {
        "": b"",
        "mark": b"onnx" + whole[4:],
        "head": whole[:64],
        "text": whole[: text - 5],
        "data": whole[:-1],
        "shape": whole.replace(b"LINEAR -1", b"LINEAR -2", 1),
        "type": whole.replace(b"FLOAT", b"TRIPLE", 1),
        "format": whole.replace(b"LINEAR", b"ROUND", 1),
        "line": whole.replace(b"rows", b"cows", 1),
        "number": whole.replace(b"rows 3", b"rows x", 1),
        "large": whole.replace(b"rows 3", b"rows 9999999999", 1),
        "profile": whole.replace(b"profile images 1 2 4", b"profile images 3 2 4", 1),
        "no profile": whole.replace(b"profile images", b"profile boxes", 1),
        "name": whole.replace(b"data boxes", b"data foxes", 1),
        "offset": whole.replace(b"data boxes 0", b"data boxes 9999999", 1),
    }
    for name, content in broken.items():
        assert content != whole, name
        path = any_standin.folder / "broken.engine"
        path.write_bytes(content)
        any_standin.run("refused", path, "The plan cannot be read")


def test_cut_plans_are_refused_wherever_they_are_cut(tmp_path: Path) -> None:
    sanitized = made("address", tmp_path)
    whole = sanitized.engine().read_bytes()
    end = whole.index(b"end\n")
    for length in [*range(64, end, 37), end + 4]:
        (tmp_path / "cut.engine").write_bytes(whole[:length])
        sanitized.run("refused", tmp_path / "cut.engine", "The plan cannot be read")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("postprocess", ["none", "nms", "masks"])
@pytest.mark.parametrize("rescoring", [False, True])
def test_sidecars_pass_the_projects_checks(tmp_path: Path, backend: Any, postprocess: Any, rescoring: bool) -> None:
    variant = tiny_variant(input_size=256 if rescoring else 64, mask_rescoring=rescoring)
    outputs = made_outputs(variant, 2, postprocess)
    engine = write_recorded_engine(tmp_path, variant, outputs, postprocess=postprocess, batch=DYNAMIC, backend=backend)
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    manifest, target = sidecar
    version = RTX_VERSION if backend == "tensorrt-rtx" else VERSION
    check_machine(engine, target, TensorRT(backend, None, version), Gpu("Stub GPU 0", (8, 9), 4 << 30))
    assert read_plan(engine, sidecar) == engine.read_bytes()
    assert identify(engine).version == version
    assert manifest.postprocess == postprocess
    assert [spec.shape for spec in manifest.outputs] == [("batch", *rows.shape[1:]) for rows in outputs.values()]
    separate = rescoring and postprocess != "masks"
    assert (read_mask_iou(engine, manifest, target) is not None) == separate
    assert ("detections_mask_scores" in outputs) == (rescoring and postprocess == "masks")
    if postprocess != "none":
        assert np.count_nonzero(outputs["detections_labels"] >= 0) > 0


def test_a_manifest_of_ones_own(tmp_path: Path) -> None:
    variant = tiny_variant(input_size=64)
    heads = made_heads(variant)
    engine = write_recorded_engine(tmp_path, made_manifest(variant, heads, batch=DYNAMIC), heads, batch=DYNAMIC, target={"gpu": "other"})
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert sidecar[1].gpu == "other"


def test_the_golden_heads(standin: Made) -> None:
    variant, recorded = get_variant("yolact_resnet50"), golden_outputs()
    assert recorded["boxes"].shape == (2, variant.prior_count, 4)
    engine = write_recorded_engine(standin.folder, variant, recorded, name="golden")
    found = outputs_of(standin, engine, images(1, variant.input_size), recorded)
    np.testing.assert_array_equal(found["scores"][0], recorded["scores"][0])
    assert "".join((standin.standin.root / "include" / "NvInferVersion.h").read_text().split("\n")[1:3]).endswith("TRT_MAJOR_ENTERPRISE")


# Against the real headers


def cuda_include() -> Path | None:
    """A folder with CUDA's headers, which the real ones include: $CUDA_INCLUDE, CUDA's usual place or NVIDIA's wheel."""
    named = [Path(os.environ["CUDA_INCLUDE"])] if "CUDA_INCLUDE" in os.environ else []
    usual = [Path("/usr/local/cuda/include"), *Path(sysconfig.get_path("purelib")).glob("nvidia/*/include")]
    return next((folder for folder in [*named, *usual] if (folder / "cuda_runtime_api.h").is_file()), None)


def syntax(compiler: str, *flags: str) -> None:
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *flags, str(CHECKS / "signatures.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def compilers() -> list[str]:
    return [name for name in ("g++", CLANG) if shutil.which(name)]


def test_the_standins_signatures(any_standin: Made) -> None:
    syntax(any_standin.standin.compiler, *any_standin.standin.compile_flags)


def test_the_real_signatures() -> None:
    """$TENSORRT_INCLUDE is a folder with TensorRT's own headers, or several with colons between."""
    given = os.environ.get("TENSORRT_INCLUDE")
    if not given:
        pytest.skip("TENSORRT_INCLUDE names no folder with TensorRT's headers")
    cuda = cuda_include()
    if cuda is None:
        pytest.skip("CUDA's headers, which TensorRT's include, are not here; CUDA_INCLUDE may name them")
    for folder in given.split(os.pathsep):
        assert (Path(folder) / "NvInferRuntime.h").is_file(), folder
        for compiler in compilers():
            syntax(compiler, "-isystem", folder, "-isystem", str(cuda))
