"""``config.pbtxt``: what is written is what the schema reads, and what a server would refuse is refused here."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.made import settings
from yolact_deploy.errors import MissingDependencyError, ModelFileError
from yolact_deploy.manifest import TensorSpec
from yolact_deploy.serving.config import check_config, config_text, parse_config, valid_name

DTYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
dims = st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=5).map(tuple)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", fullmatch=True).filter(lambda name: ".." not in name)
tensors = st.builds(TensorSpec, st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), st.sampled_from(list(DTYPES)), dims)


def faults(**changes: Any) -> str:
    with pytest.raises(ModelFileError) as found:
        config_text(settings(**changes))
    return found.value.message


@given(name=names, found=st.lists(tensors, min_size=2, max_size=6, unique_by=lambda tensor: tensor.name), most=st.integers(1, 2**31 - 1))
def test_what_is_written_is_read(name: str, found: list[TensorSpec], most: int) -> None:
    config = parse_config(config_text(settings(name=name, inputs=tuple(found[:1]), outputs=tuple(found[1:]), max_batch_size=most)))
    assert (config.name, config.max_batch_size) == (name, most)
    read = [
        (one.name, type(one).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[one.data_type].name, tuple(one.dims))
        for one in (*config.input, *config.output)
    ]
    assert read == [(one.name, DTYPES[one.dtype], one.shape) for one in found]
    assert len(config.input) == 1
    assert config.HasField("dynamic_batching") == (most > 1)


@given(
    texts=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), st.text(st.characters(codec="utf-8"), max_size=20), max_size=4)
)
def test_any_text_is_a_parameter(texts: dict[str, str]) -> None:
    config = parse_config(config_text(settings(parameters=texts)))
    assert {name: value.string_value for name, value in config.parameters.items()} == texts


def test_names_of_classes_stay_legible() -> None:
    assert "Füße, 猫" in config_text(settings(parameters={"class_names": "Füße, 猫"}))


def test_the_batcher_and_the_instances() -> None:
    made = settings(preferred_batch=(2, 4, 8), queue_delay_us=700, instances=3, kind="KIND_GPU", gpus=(1, 0))
    config = parse_config(config_text(made))
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 700
    (group,) = config.instance_group
    assert (group.count, group.Kind.Name(group.kind), list(group.gpus)) == (3, "KIND_GPU", [1, 0])
    assert (config.backend, config.platform, config.version_policy.latest.num_versions) == ("onnxruntime", "onnxruntime_onnx", 1)
    plan = parse_config(config_text(settings(backend="tensorrt", kind="KIND_CPU")))
    assert (plan.backend, plan.platform, plan.instance_group[0].kind) == ("tensorrt", "tensorrt_plan", 2)
    assert not parse_config(config_text(settings(max_batch_size=1, preferred_batch=(1,)))).HasField("dynamic_batching")


def test_a_batch_that_clients_choose() -> None:
    free = TensorSpec("images", "uint8", (-1, 8, 8, 3))
    config = parse_config(config_text(settings(max_batch_size=0, inputs=(free,))))
    assert (list(config.input[0].dims), config.max_batch_size) == ([-1, 8, 8, 3], 0)
    assert "input images of [-1, 8, 8, 3]" in faults(inputs=(free,))
    assert "input images of [-1, 8, 8, 3]" in faults(max_batch_size=1, inputs=(free,))
    assert "of [8, -1]" in faults(max_batch_size=0, inputs=(TensorSpec("images", "uint8", (8, -1)),))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"name": "a/b"}, "the name 'a/b'"),
        ({"max_batch_size": -1}, "max_batch_size -1"),
        ({"inputs": ()}, "no input"),
        ({"outputs": ()}, "no output"),
        ({"inputs": (TensorSpec("boxes", "float32", (3,)),)}, "boxes twice"),
        ({"inputs": (TensorSpec("", "float32", (3,)),)}, "an input without a name"),
        ({"inputs": (TensorSpec("x", "float32", ()),)}, "input x of []"),
        ({"outputs": (TensorSpec("x", "float32", (0, 4)),)}, "output x of [0, 4]"),
        ({"inputs": (TensorSpec("x", "complex64", (3,)),)}, "x is complex64, which Triton does not know"),
        ({"inputs": (TensorSpec("x", "float32", ("batch", 3)),)}, "cannot be described to Triton"),
        ({"inputs": (TensorSpec("x", "float32", (2**70,)),)}, "cannot be described to Triton"),
        ({"parameters": {"a": "\ud800"}}, "cannot be described to Triton"),
        ({"preferred_batch": (4, 2)}, "preferred batches [4, 2] of at most 8"),
        ({"preferred_batch": (4, 4)}, "preferred batches [4, 4]"),
        ({"preferred_batch": (9,)}, "preferred batches [9]"),
        ({"preferred_batch": (0,)}, "preferred batches [0]"),
        ({"instances": 0}, "0 instances"),
        ({"gpus": (0,), "kind": "KIND_CPU"}, "GPUs with KIND_CPU"),
        ({"gpus": (0,)}, "GPUs with KIND_AUTO"),
        ({"gpus": (-1,), "kind": "KIND_GPU"}, "the GPUs [-1]"),
        ({"gpus": (1, 1), "kind": "KIND_GPU"}, "the GPUs [1, 1]"),
    ],
)
def test_what_a_server_would_refuse(changes: dict[str, Any], fault: str) -> None:
    assert fault in faults(**changes)


def test_faults_of_texts_by_others() -> None:
    text = config_text(settings())
    for old, new, fault in (
        ('backend: "onnxruntime"', 'backend: "tensorrt"', "backend 'tensorrt' with platform 'onnxruntime_onnx'"),
        ('backend: "onnxruntime"', 'backend: "python"', "backend 'python'"),
        ("data_type: TYPE_INT32", "", "output labels without a type"),
        ("max_batch_size: 8", "max_batch_size: 1", "dynamic batching of at most 1"),
        ('name: "m"', "", "configuration of a model: the name ''"),
    ):
        assert old in text
        with pytest.raises(ModelFileError) as found:
            check_config(parse_config(text.replace(old, new, 1)))
        assert fault in found.value.message
    check_config(parse_config(text))
    with pytest.raises(ModelFileError, match="This is no Triton model configuration"):
        parse_config("name: 3 max_batch")


@pytest.mark.parametrize("name", ["m", "9", "a.b-c_d", "M" * 128, "a.", "a-"])
def test_names(name: str) -> None:
    assert valid_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a..b", "../a", "a/b", "a@b", "a\\b", "a b", ".a", "-a", "_a", "a\n", "ä", "a" * 129, "a%2f", "*", "a:1"]
)
def test_bad_names(name: str) -> None:
    assert not valid_name(name)


def test_without_tritonclient(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("tritonclient"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingDependencyError) as found:
        config_text(settings())
    assert str(found.value) == (
        'Writing a Triton model repository needs tritonclient[grpc], which is not installed. Run: pip install "yolact-deploy[triton]"'
    )
