"""Weights on int8 grids: scales that float16 holds, nearest steps, and the same steps from ONNX Runtime in float32 and in float16."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from yolact_deploy.calibration.weights import float16_above, snapped, weight_integers, weight_scales

HALF_MAX = 65504.0
SUBNORMAL = 2.0**-24
KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}

positive = st.floats(0, 1e30, exclude_min=True)
fitting = st.floats(2.0**-30, 2.0**15, width=32) | st.just(0.0)
signed = st.builds(lambda size, sign: size * sign, fitting, st.sampled_from([-1.0, 1.0]))
weights = st.tuples(st.integers(1, 4), st.integers(1, 3), st.sampled_from([(1, 1), (3, 3), (1, 2)])).flatmap(
    lambda given: st.lists(
        signed, min_size=given[0] * given[1] * given[2][0] * given[2][1], max_size=given[0] * given[1] * given[2][0] * given[2][1]
    ).map(lambda values: np.array(values, np.float32).reshape(given[0], given[1], *given[2]))
)


def above(value: float) -> float:
    found = float16_above(np.array([value]))
    assert found.dtype == np.float32
    assert found.shape == (1,)
    return float(found[0])


@lru_cache(maxsize=2)
def quantizer(dtype: np.dtype[np.floating]) -> Callable[[NDArray[np.floating], NDArray[np.floating]], NDArray[np.int8]]:
    """QuantizeLinear by output channel in ONNX Runtime, values and scales of that dtype."""
    kind = KINDS[dtype]
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], axis=0)],
        "quantize",
        [
            helper.make_tensor_value_info("x", kind, ["a", "b", "c", "d"]),
            helper.make_tensor_value_info("scale", kind, ["a"]),
            helper.make_tensor_value_info("zero", TensorProto.INT8, ["a"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT8, ["a", "b", "c", "d"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def quantize(values: NDArray[np.floating], scales: NDArray[np.floating]) -> NDArray[np.int8]:
        given = {"x": values.astype(dtype), "scale": scales.astype(dtype), "zero": np.zeros(len(scales), np.int8)}
        found: NDArray[np.int8] = session.run(None, given)[0]
        return found

    return quantize


@given(positive)
@example(1e-300)
@example(float(np.float32(1e-45)) / 127)
@example(SUBNORMAL)
@example(SUBNORMAL * 1.000001)
@example(2.0**-14 * (1 - 2.0**-20))
@example(1 + 2.0**-11)
@example(1 + 2.0**-30)
@example(1 + 2.0**-10)
@example(65519.0)
@example(HALF_MAX)
def test_the_least_float16_that_is_not_below(value: float) -> None:
    found = above(value)
    if value > HALF_MAX:
        assert found == np.float32(value)
        return
    half = np.float16(found)
    assert float(half) == found >= value
    assert float(np.nextafter(half, np.float16(0))) < value


def test_every_float16_is_its_own() -> None:
    halves = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(float16_above(halves.astype(np.float64)), halves.astype(np.float32))
    np.testing.assert_array_equal(float16_above(np.nextafter(halves.astype(np.float64), 0)), halves.astype(np.float32))
    beyond = float16_above(np.nextafter(halves[:-1].astype(np.float64), np.inf))
    np.testing.assert_array_equal(beyond, halves[1:].astype(np.float32))


@pytest.mark.parametrize("value", [65504.01, 65519.9, 65520.0, 1e6, 3e38])
def test_what_is_beyond_float16_stays(value: float) -> None:
    assert above(value) == np.float32(value)


def test_scales_are_those_of_each_output_channel() -> None:
    weight = np.zeros((4, 2, 3, 3), np.float32)
    weight[0, 1, 2, 0], weight[0, 0, 0, 0] = -127.0, 126.0
    weight[1, 0, 1, 1] = 254.0
    weight[3] = 127 * 0.1
    scales = weight_scales(weight)
    assert scales.dtype == np.float32
    assert scales.tolist() == [1.0, 2.0, 1.0, float(np.nextafter(np.float16(0.1), np.float16(1)))]
    assert float(np.float16(0.1)) < 0.1, "that is rounded up, not to the nearest"


@pytest.mark.parametrize("value", [1e-45, 1e-40, 1e-38, 1e-10, 127 * SUBNORMAL, 200 * SUBNORMAL, 1e-3, 127 * HALF_MAX, 1e9, 3e38])
def test_no_scale_is_zero_or_clips(value: float) -> None:
    weight = np.array([value, -value / 3, 0], np.float32).reshape(1, 3, 1, 1)
    scales = weight_scales(weight)
    assert scales[0] > 0
    steps = weight_integers(weight, scales)
    assert np.abs(steps.astype(np.int64)).max() <= 127
    np.testing.assert_allclose(snapped(steps, scales), weight, atol=float(scales[0]) * (0.5 + 1e-4), rtol=0)


def test_dead_channels_stay_zero() -> None:
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[1] = -0.0
    scales = weight_scales(weight)
    steps = weight_integers(weight, scales)
    assert scales.tolist() == [1, 1]
    assert not steps.any()
    assert not snapped(steps, scales).any()


def test_halves_go_to_the_even_step() -> None:
    halves = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 125.5, -126.5], np.float32).reshape(1, -1, 1, 1)
    steps = weight_integers(halves, np.ones(1, np.float32))
    assert steps.dtype == np.int8
    assert steps.reshape(-1).tolist() == [127, 0, 2, 2, 0, -2, -2, 126, -126]


def test_steps_are_clipped_to_127_of_either_sign() -> None:
    weight = np.array([1e9, -1e9, 127.4, -127.6, 127.6, -128.0, -127.5], np.float32).reshape(1, -1, 1, 1)
    assert weight_integers(weight, np.ones(1, np.float32)).reshape(-1).tolist() == [127, -127, 127, -127, 127, -127, -127]


@given(weights)
@example(np.full((1, 1, 1, 1), 1e-45, np.float32))
def test_steps_are_the_nearest(weight: NDArray[np.float32]) -> None:
    scales = weight_scales(weight)
    steps = weight_integers(weight, scales)
    assert steps.shape == weight.shape
    assert steps.dtype == np.int8
    for channel, scale, row in zip(weight, scales, steps, strict=True):
        assert np.float16(scale) == scale
        assert max(abs(int(step)) for step in row.flat) <= 127
        for value, step in zip(channel.flat, row.flat, strict=True):
            place = Fraction(float(value)) / Fraction(float(scale))
            assert abs(place - int(step)) <= Fraction(1, 2) + Fraction(1, 2**17), "float32's quotient is off by 2 ** -17 steps at most"
        largest = float(np.abs(channel).max())
        assert largest == 0 or scale >= Fraction(largest) / 127, "nothing is clipped"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("unit", [SUBNORMAL, 3 * SUBNORMAL, 2.0**-14, 2.0**-14 * 1.0009765625, 1e-3, 0.7, 1.9990234375, 300.0, 376.0])
def test_every_step_of_a_scale_comes_back(dtype: type[np.floating], unit: float) -> None:
    scales = np.array([unit, unit * 1.37], np.float16).astype(np.float32)
    steps = np.stack([np.arange(-127, 128, dtype=np.int8)] * 2)[:, :, None, None]
    values = snapped(steps, scales)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(quantizer(np.dtype(dtype))(values, scales), steps)
    if dtype is np.float32:
        np.testing.assert_array_equal(weight_integers(values, scales), steps)


@given(weights)
def test_quantizing_again_gives_the_same_steps(weight: NDArray[np.float32]) -> None:
    scales = weight_scales(weight)
    steps = weight_integers(weight, scales)
    values = snapped(steps, scales)
    np.testing.assert_array_equal(quantizer(np.dtype(np.float32))(weight, scales), steps, "the first time, as QuantizeLinear")
    for dtype in KINDS:
        np.testing.assert_array_equal(quantizer(dtype)(values, scales), steps)
    np.testing.assert_array_equal(weight_integers(values, scales), steps)
    np.testing.assert_array_equal(snapped(weight_integers(values, scales), scales), values)


@given(weights)
def test_snapped_weights_are_exact_in_float32(weight: NDArray[np.float32]) -> None:
    scales = weight_scales(weight)
    steps = weight_integers(weight, scales)
    assume(steps.any())
    values = snapped(steps, scales)
    assert values.dtype == np.float32
    exact = [Fraction(float(scale)) * int(step) for scale, row in zip(scales, steps, strict=True) for step in row.flat]
    assert [Fraction(float(value)) for value in values.flat] == exact


def test_vectors_have_scales_too() -> None:
    weight = np.array([[1.0, -2.0], [0.5, 0.25]], np.float32)
    scales = weight_scales(weight)
    assert scales.shape == (2,)
    steps = weight_integers(weight, scales)
    assert steps.shape == (2, 2)
    assert steps[0, 1] == -127
    assert steps[1, 0] == 127
