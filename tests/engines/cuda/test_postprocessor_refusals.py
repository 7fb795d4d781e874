"""What GPU post-processing refuses, before anything of it reaches the GPU."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engines.cuda.kernel_runs import Runner, class_list
from tests.engines.cuda.test_postprocessor import Foreign, random_heads
from yolact_deploy.engines.cuda.arrays import DeviceArray
from yolact_deploy.engines.cuda.heads import Heads
from yolact_deploy.engines.cuda.workspace import HeadShapes
from yolact_deploy.errors import ConfigError
from yolact_deploy.postprocess import PostprocessSettings

USUAL = {"boxes": (1, 60, 4), "scores": (1, 60, 5), "coefficients": (1, 60, 8), "prototypes": (1, 8, 20, 24)}


def _arrays(**changes: tuple[tuple[int, ...], type]) -> list[DeviceArray]:
    chosen = {name: changes.get(name, (shape, np.float32)) for name, shape in USUAL.items()}
    return [DeviceArray(64, shape, np.dtype(dtype), 0, None) for shape, dtype in chosen.values()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": ((1, 60, 4), np.float64)}, "boxes is float64, float32 or float16 was wanted"),
        ({"scores": ((1, 60, 5), np.int32)}, "scores is int32"),
        ({"boxes": ((60, 4), np.float32)}, r"\[60, 4\], \[1, 60, 5\].*\[B, P, 4\]"),
        ({"boxes": ((1, 60, 5), np.float32)}, r"\[1, 60, 5\]"),
        ({"boxes": ((1, 61, 4), np.float32)}, r"\[1, 61, 4\], .* do not fit"),
        ({"scores": ((2, 60, 5), np.float32)}, r"\[2, 60, 5\]"),
        ({"coefficients": ((1, 60, 9), np.float32)}, r"\[1, 60, 9\]"),
        ({"coefficients": ((1, 59, 8), np.float32)}, r"\[1, 59, 8\]"),
        ({"prototypes": ((2, 8, 20, 24), np.float32)}, r"\[2, 8, 20, 24\]"),
        ({"prototypes": ((1, 8, 20), np.float32)}, r"\[1, 8, 20\]"),
        ({"scores": ((1, 60, 1), np.float32)}, "classes is 1, at least 2 was wanted"),
        ({name: ((0, *shape[1:]), np.float32) for name, shape in USUAL.items()}, "of no picture, a batch of at least 1 was wanted"),
    ],
)
def test_head_outputs_that_do_not_fit(changes: dict[str, tuple[tuple[int, ...], type]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Heads(*_arrays(**changes))


@pytest.mark.parametrize(("pointer", "dtype"), [(0, np.float32), (66, np.float32), (65, np.float16)])
def test_addresses_that_a_gpu_would_fault_on(pointer: int, dtype: type) -> None:
    arrays = _arrays()
    arrays[2] = DeviceArray(pointer, arrays[2].shape, np.dtype(dtype), 0, None)
    with pytest.raises(ConfigError, match=f"coefficients begins at {pointer:#x}, a multiple of"):
        Heads(*arrays)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((0, 5, 8, 20, 24), "priors is 0"),
        ((60, 5, 65, 20, 24), "65 prototypes were given, the GPU's mask assembly takes 64"),
        ((1 << 31, 2, 8, 20, 24), "2147483648 priors were given"),
        ((1 << 22, 1025, 8, 20, 24), "2\\^32 scores or more"),
        ((60, 5, 8, 600, 600), "600 x 600 samples need .* bytes of shared memory"),
    ],
)
def test_sizes_that_the_kernels_do_not_take(shapes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HeadShapes(*shapes)
    assert HeadShapes(60, 5, 64, 512, 512).outline_bytes < 40_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PostprocessSettings(top_k=1025), "top_k is 1025, the GPU ranks at most 1024"),
        (PostprocessSettings(max_detections=1025), "max_detections is 1025"),
        (PostprocessSettings(nms="traditional", max_detections=1025), "max_detections is 1025"),
    ],
)
def test_settings_of_the_cpu_alone(runner: Runner, settings: PostprocessSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runner.postprocessor(random_heads(8), settings)


def test_calls_that_do_not_fit(runner: Runner) -> None:
    given = random_heads(9)
    with runner.opened(given, bits=(32, 20)) as (post, arrays, _):
        foreign = [Foreign(array) for array in arrays]
        for sizes, message in (
            ([], "0 sizes were given for 1 pictures"),
            ([(0, 5)], "0 x 5 pixels"),
            ([(5, -1)], "5 x -1 pixels"),
            ([(65536, 32768)], "65536 x 32768 pixels"),
            ([(np.int32(65536), np.int32(32768))], "65536 x 32768 pixels"),
        ):
            with pytest.raises(ConfigError, match=message):
                post(*foreign, sizes)
        with pytest.raises(ConfigError, match="The bits of a picture of 33 x 20 pixels are 40 words, there is room for 20"):
            post(*foreign, [(33, 20)], bits=True)
        with pytest.raises(TypeError, match="has neither"):
            post(given.boxes.tolist(), *foreign[1:], [(5, 5)])
        with pytest.raises(TypeError, match="integer"):
            post(*foreign, [(50.7, 40.2)])
        assert post(*foreign, [(20, 32)]).detections(class_list(4))  # nothing was broken by these


@pytest.mark.parametrize(
    ("other", "message"),
    [({"batch": 2}, r"A batch of 2 of .* was given"), ({"priors": 59}, r"priors=59.* was given, at most 1 of .*priors=60.* was wanted")],
)
def test_heads_of_another_network(runner: Runner, other: dict[str, int], message: str) -> None:
    given = random_heads(9, **other)
    sizes = [(5, 5)] * len(given.scores)
    with (
        runner.opened(random_heads(9)) as (post, _, stream),
        runner.uploaded(*given.arrays(), stream=stream) as arrays,
        pytest.raises(ConfigError, match=message),
    ):
        post(*map(Foreign, arrays), sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch of 0"),
        ({"batch": 1 << 16}, "batch of 65536"),
        ({"rle_bytes": 0}, "0 bytes of RLE"),
        ({"rle_bytes": 1 << 32}, r"2\^32 or more"),
        ({"bits": (0, 5)}, "0 x 5 pixels"),
        ({"input_size": 0}, "An input of 0 pixels was named"),
    ],
)
def test_options_out_of_range(runner: Runner, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runner.postprocessor(random_heads(9), **options)
