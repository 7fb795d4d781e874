"""A GPU that is missing, old, small or lost: what the C++ library says, that nothing stays behind, and what still works afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engines.cpp.standin.made_heads import made_outputs
from tests.engines.cpp.test_detect import recorded, written
from tests.engines.cpp.truth import Recorded, noise, picture_line, same
from tests.helpers.cpp_library import CppLibrary, compile_program, run_commands, run_program, with_images
from tests.helpers.tiny import tiny_variant
from yolact_deploy.errors import ConfigError
from yolact_deploy.manifest import InputSpec
from yolact_deploy.postprocess import PostprocessSettings

CONFIG, MODEL_FILE, DEVICE = 1, 2, 3
SMALL: dict[str, Any] = {"input_size": 64}
RESCORED: dict[str, Any] = {"input_size": 256, "mask_rescoring": True}
TITLE = "TensorRT 11.4.0.106"
ELSEWHERE = "Run it on a machine with a GPU; yolact-deploy doctor tells what is here."
LOST = "The GPU's state is lost for this process: start the program again."


def title(library: CppLibrary) -> str:
    """The library's TensorRT in words; version 8 tells three numbers of itself."""
    version = library.standin.version
    return f"TensorRT {version.rpartition('.')[0] if version.startswith('8.') else version}"


def refused(library: CppLibrary, line: str, **stub: Any) -> tuple[int, str]:
    answer, left = run_commands(library, [line], **stub)
    assert left == "", left
    assert answer is not None, line
    return answer["code"], answer["error"]


def played(library: CppLibrary, name: str, *engines: Recorded, **stub: Any) -> list[str]:
    """What a scenario of ``programs/failures.cpp`` prints."""
    program = compile_program(library, "failures")
    return run_program(library, [program, name, *(engine.engine for engine in engines)], timeout=60, **stub).splitlines()


@pytest.fixture
def engine(library: CppLibrary, tmp_path: Path) -> Recorded:
    return recorded(library, tmp_path, SMALL)


# No GPU that does


@pytest.mark.parametrize("driver", ["none", "another library"])
def test_without_a_driver(library: CppLibrary, engine: Recorded, tmp_path: Path, driver: str) -> None:
    compiler = shutil.which("gcc")
    assert compiler
    if driver == "none":
        (tmp_path / "libcuda.so.1").touch()  # found before a real one, and no library
    else:
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(tmp_path / "libcuda.so.1")]
        subprocess.run(command, input=b"int cuInit(unsigned flags) { return flags; }", check=True, timeout=60)
    environment = library.environment()
    environment["LD_LIBRARY_PATH"] = os.pathsep.join([str(tmp_path), environment["LD_LIBRARY_PATH"]])
    command = [str(compile_program(library, "failures")), "load", str(engine.engine)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    if driver == "none":
        assert done.stdout == f"{DEVICE} {TITLE} needs a GPU, no NVIDIA driver was found. {ELSEWHERE}\n"
    else:
        assert done.stdout.startswith(f"{DEVICE} NVIDIA's driver has no cu")
        assert done.stdout.endswith(". Update the driver to one for CUDA 12 or newer.\n")


NO_GPU: dict[str, tuple[dict[str, Any], str, str]] = {
    "a driver without a GPU": ({"devices": 0}, "", f"{TITLE} needs a GPU, the driver shows no GPU. {ELSEWHERE}"),
    "a driver that does not start": (
        {"init": 803},
        "",
        "NVIDIA's driver does not start (cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH). See `nvidia-smi`; after a driver's update, restart.",
    ),
    "an unknown error": (
        {"init": 4711},
        "",
        "NVIDIA's driver does not start (cuInit: CUDA error 4711). See `nvidia-smi`; after a driver's update, restart.",
    ),
    "an old driver": ({"version": 11080}, "", f"NVIDIA's driver supports CUDA 11.8; {TITLE} needs 12.0. Update NVIDIA's driver."),
    "a driver that counts none": ({"init": 0, "devices": 0}, "", f"{TITLE} needs a GPU, the driver shows no GPU. {ELSEWHERE}"),
    "the second of one": ({}, "device=1", "GPU 1 was asked for, this machine shows GPU 0. See `nvidia-smi` and CUDA_VISIBLE_DEVICES."),
    "the fourth of three": (
        {"devices": 3},
        "device=3",
        "GPU 3 was asked for, this machine shows GPU 0 to 2. See `nvidia-smi` and CUDA_VISIBLE_DEVICES.",
    ),
    "a negative one": ({}, "device=-1", "GPU -1 was asked for, this machine shows GPU 0. See `nvidia-smi` and CUDA_VISIBLE_DEVICES."),
    "one of another architecture": (
        {"capability": "9.0"},
        "",
        "GPU 0 (Stub GPU 0): this library holds no kernels for compute capability 9.0 (cuModuleLoadData: CUDA_ERROR_NO_BINARY_FOR_GPU). "
        "Build it with CMAKE_CUDA_ARCHITECTURES=90.",
    ),
}


@pytest.mark.parametrize("case", NO_GPU)
def test_no_gpu_that_does(library: CppLibrary, tmp_path: Path, case: str) -> None:
    stub, words, told = NO_GPU[case]
    engine = recorded(library, tmp_path, SMALL, target={"hardware_level": "ampere+"})
    assert refused(library, f"load path={engine.engine} {words}", **stub) == (DEVICE, told)


def test_the_oldest_driver_that_does(library: CppLibrary, engine: Recorded) -> None:
    assert run_commands(library, [f"load path={engine.engine}"], version=12000) == [None, ""]


def test_kernels_for_another_architecture_only(library: CppLibrary, engine: Recorded) -> None:
    for image in (b"STUB 75", b"no image"):
        other = with_images(library, [image])
        code, told = refused(other, f"load path={engine.engine}")
        assert code == DEVICE
        assert told.startswith(
            "GPU 0 (Stub GPU 0): this library holds no kernels for compute capability 8.9 (cuModuleLoadData: CUDA_ERROR_"
        )
        assert told.endswith("Build it with CMAKE_CUDA_ARCHITECTURES=89.")


# Memory that runs out


@pytest.mark.parametrize("fields", [SMALL, RESCORED], ids=["plain", "rescoring"])
@pytest.mark.parametrize("kind", ["plain", "address"])
def test_gpu_memory_that_ends_at_each_allocation(library_of: Callable[[str], CppLibrary], tmp_path: Path, kind: str, fields: Any) -> None:
    library = library_of(kind)
    engine = recorded(library, tmp_path, fields, weights=5000, memory=9000, batch=1)
    *messages, end = played(library, "device_memory", engine)
    assert end.endswith(" bytes do")
    own = [line for line in messages if "were asked for" in line]
    assert len(own) > 15
    for line in own:
        assert line.startswith("GPU 0 (Stub GPU 0): ")
        assert "bytes of GPU memory were asked for: CUDA_ERROR_OUT_OF_MEMORY, " in line
        assert line.endswith(" bytes are free. Close other programs, or use a smaller batch.")
    assert (
        f"{title(library)} cannot load {engine.engine.name} with 0 MiB free: CUDA error 2 for 5000 bytes of memory. Free memory of the GPU."
        in messages
    )
    assert any(
        line.startswith(f"{title(library)} cannot make an execution context with 0 MiB of GPU memory free, engine ") for line in messages
    )
    assert any(line.endswith("use fewer contexts, or rebuild it with a smaller --batch.") for line in messages)


@pytest.mark.parametrize("kind", ["plain", "address"])
def test_page_locked_memory_that_ends(library_of: Callable[[str], CppLibrary], tmp_path: Path, kind: str) -> None:
    library = library_of(kind)
    *messages, end = played(library, "pinned_memory", recorded(library, tmp_path, SMALL))
    assert end.endswith(" bytes do")
    assert len(messages) > 4
    for line in messages:
        assert " bytes of page-locked host memory were asked for: CUDA_ERROR_OUT_OF_MEMORY. Close other programs" in line


@pytest.mark.parametrize(
    ("name", "kind"), [("growing_device_memory", "plain"), ("growing_pinned_memory", "plain"), ("growing_pinned_memory", "address")]
)
def test_what_cannot_grow_leaves_the_detector_usable(library_of: Callable[[str], CppLibrary], tmp_path: Path, kind: str, name: str) -> None:
    library = library_of(kind)
    steps = played(library, name, recorded(library, tmp_path, SMALL, batch=1, memory=0))
    several, few = map(int, steps)
    assert several > 3
    assert few > 0


# TensorRT


def test_tensorrt_refuses_a_plan(library: CppLibrary, tmp_path: Path) -> None:
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "host code": (
            {"lines": ["host_code 1"]},
            "The plan holds host code, which setEngineHostCodeAllowed does not allow. Rebuild it on this machine.",
        ),
        "another version": (
            {"lines": ["version 10.3.0.26"]},
            f"The plan was made by version 10.3.0.26, version {TITLE.split()[1]} was expected. Rebuild it on this machine.",
        ),
        "nonsense": ({"lines": ["nonsense"]}, "The plan cannot be read: its line 'nonsense' is not known. Rebuild it on this machine."),
    }
    for number, (options, told) in enumerate(cases.values()):
        engine = recorded(library, tmp_path, SMALL, name=f"e{number}", **options)
        assert refused(library, f"load path={engine.engine}") == (MODEL_FILE, f"{TITLE} refuses the engine e{number}.engine: {told}")


def test_the_mask_iou_engine_is_refused_likewise(library: CppLibrary, tmp_path: Path) -> None:
    engine = recorded(library, tmp_path, RESCORED, mask_iou={"lines": ["host_code 1"]})
    code, told = refused(library, f"load path={engine.engine}")
    assert code == MODEL_FILE
    assert told.startswith(f"{TITLE} refuses the engine recorded.maskiou.engine: The plan holds host code")


@pytest.mark.parametrize("kind", ["plain", "address"])
def test_a_run_that_tensorrt_refuses(library_of: Callable[[str], CppLibrary], tmp_path: Path, kind: str) -> None:
    library = library_of(kind)
    reason = "enqueueV3: it fails because the plan says so"
    # 1: the first run. 2: the capture, which then is given up; 3: the run instead.
    for number, (lines, rounds) in enumerate([([1], [0]), ([2], []), ([2, 3], [1]), ([1, 2, 4], [0, 1])]):
        engine = recorded(library, tmp_path, SMALL, name=f"e{number}", lines=[f"fail enqueue {line}" for line in lines])
        doctor = "yolact-deploy doctor tells what is here."
        wanted = [f"{each} {title(library)} failed to run, engine e{number}.engine: {reason}. {doctor}" for each in rounds]
        assert played(library, "refused_runs", engine) == wanted, lines


# A GPU that is lost


@pytest.mark.parametrize("kind", ["plain", "address"])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_fault_is_told_from_then_on(library_of: Callable[[str], CppLibrary], tmp_path: Path, kind: str, failing: int) -> None:
    library = library_of(kind)
    engine = recorded(library, tmp_path, SMALL, lines=[f"fail run {failing}"])
    good, told = played(library, "fault", engine)
    assert int(good) == failing
    assert told.startswith("GPU 0 (Stub GPU 0): ")
    assert told.endswith(f" failed with CUDA_ERROR_LAUNCH_FAILED. {LOST}")


@pytest.mark.parametrize("kind", ["plain", "address"])  # ThreadSanitizer does not see how the C++ runtime counts an exception's owners
@pytest.mark.parametrize("failing", [1, 2, 5])
def test_a_fault_while_work_is_under_way(library_of: Callable[[str], CppLibrary], tmp_path: Path, kind: str, failing: int) -> None:
    library = library_of(kind)
    engine = recorded(library, tmp_path, SMALL, lines=[f"fail run {failing}"])
    failures = int(played(library, "fault_under_way", engine)[0])
    assert 12 - failing - 2 <= failures <= 12 - failing + 1


@pytest.mark.parametrize("kind", ["plain", "address"])
def test_a_fault_leaves_the_other_gpu_alone(library_of: Callable[[str], CppLibrary], tmp_path: Path, kind: str) -> None:
    library = library_of(kind)
    broken = recorded(library, tmp_path, SMALL, name="broken", lines=["fail run 1"])
    good = recorded(library, tmp_path, SMALL, name="good", target={"gpu": "Stub GPU 1"})
    assert played(library, "other_gpu", broken, good, devices=2) == []


# Labels and options out of range


@pytest.mark.parametrize("label", [4, 99, 2**31 - 1])
@pytest.mark.parametrize("postprocess", ["nms", "masks"])
def test_labels_out_of_range_in_a_graph_with_nms(library: CppLibrary, tmp_path: Path, postprocess: Any, label: int) -> None:
    variant = tiny_variant(**SMALL)
    outputs = made_outputs(variant, 1, postprocess)
    outputs["detections_labels"][0, 1] = label
    engine = written(library, tmp_path, variant, outputs, InputSpec.of(variant), postprocess)
    lines = [
        f"load path={engine.engine}",
        picture_line(tmp_path, "picture", noise(20, 20)),
        "detect pictures=0",
        "detect pictures=0 results=1",
    ]
    _, _, *answers, left = run_commands(library, lines)
    assert left == ""
    told = f"The graph finds the label {label}, its manifest names 4 classes. Export the checkpoint again."
    assert answers == [{"code": MODEL_FILE, "error": told}] * 2


def as_python(**changed: Any) -> str:
    with pytest.raises(ConfigError) as told:
        PostprocessSettings(**changed)
    return str(told.value)


OPTIONS: dict[str, str] = {
    "contexts=0": "0 contexts were asked for. Give 1 or more.",
    "contexts=-1": "-1 contexts were asked for. Give 1 or more.",
    "masks=8": "The forms of masks are 8. Combine Masks::rle, Masks::host_bits and Masks::device_bits.",
    "masks=-1": "The forms of masks are 4294967295. Combine",
    "rle=0": "Room for 0 bytes of RLE was asked for, at least 1 is wanted. Leave rle_bytes out.",
    "nms=7": "nms is 7, one of fast, cross-class, traditional was wanted. Choose one of these.",
    "nms=-1": "nms is -1, one of",
    "score=2": as_python(score_threshold=2.0),
    "score=-0.5": as_python(score_threshold=-0.5),
    "score=1.0000001": "score_threshold is 1.0000001192092896, a number",
    "score=nan": "score_threshold is NaN, a number from 0 to 1 was wanted. Set score_threshold to a value in that range.",
    "score=inf": "score_threshold is Infinity, a number",
    "iou=2": as_python(iou_threshold=2.0),
    "iou=nan": "iou_threshold is NaN, a number from 0 to 1 was wanted.",
    "top_k=0": as_python(top_k=0),
    "top_k=-3": as_python(top_k=-3),
    "top_k=1025": "top_k is 1025, the GPU ranks at most 1024. Set top_k to 1024 or less.",
    "top_k=5000 nms=1": "top_k is 5000, the GPU ranks at most 1024.",
    "max=0": as_python(max_detections=0),
    "max=1025": "max_detections is 1025, the GPU ranks at most 1024. Set max_detections to 1024 or less.",
    "max=1025 nms=2": "max_detections is 1025, the GPU ranks",
}
TAKEN = [
    "contexts=1",
    "masks=0",
    "masks=7",
    "rle=1",
    "score=0",
    "score=1",
    "iou=0",
    "iou=1",
    "top_k=1024",
    "max=1024",
    "top_k=5000 nms=2",
    "max=1",
]


@pytest.mark.parametrize("words", OPTIONS)
def test_options_out_of_range(library: CppLibrary, engine: Recorded, words: str) -> None:
    code, told = refused(library, f"load path={engine.engine} {words}")
    assert code == CONFIG
    assert told.startswith(OPTIONS[words])


def test_options_at_the_ends_of_their_range(library: CppLibrary, engine: Recorded, tmp_path: Path) -> None:
    picture = noise(30, 30)
    for words in TAKEN:
        lines = [f"load path={engine.engine} {words}", picture_line(tmp_path, "picture", picture), "detect pictures=0"]
        loaded, _, found, left = run_commands(library, lines)
        assert loaded is None, words
        assert isinstance(found, list), (words, found)
        assert left == ""
    loaded, _, found, left = run_commands(library, [f"load path={engine.engine}", *lines[1:]])
    same(found[0], engine.detections(picture))


@pytest.mark.parametrize("size", [2**32, 2**32 - 15, 2**40, 2**63 - 1])
def test_more_room_for_rle_than_can_be(library: CppLibrary, tmp_path: Path, size: int) -> None:
    engine = recorded(library, tmp_path, SMALL, batch=1)
    lines = [
        f"load path={engine.engine} rle={size}",
        picture_line(tmp_path, "picture", noise(9, 9)),
        "detect pictures=0",
        "detect pictures=0",
    ]
    loaded, _, *answers, left = run_commands(library, lines)
    assert (loaded, left) == (None, "")
    told = f"Room for {size} bytes of RLE in a batch was wanted, 1 to 2^32 - 16 can be had. "
    mend = "Set rle_bytes to a value in that range, or build the engine with a smaller --batch."
    assert answers == [{"code": CONFIG, "error": told + mend}] * 2


@pytest.mark.parametrize("words", ["nms=0", "score=0.1", "iou=0.5", "top_k=9", "max=9"])
@pytest.mark.parametrize("postprocess", ["nms", "masks"])
def test_settings_of_a_graph_with_nms_stay(library: CppLibrary, tmp_path: Path, postprocess: str, words: str) -> None:
    engine = recorded(library, tmp_path, SMALL, postprocess)
    told = f"The graph has its NMS inside (--postprocess {postprocess}), so its settings cannot be changed. Export with --postprocess none."
    assert refused(library, f"load path={engine.engine} {words}") == (CONFIG, told)
