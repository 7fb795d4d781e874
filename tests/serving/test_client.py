"""The client of ``docs/triton.md``, run against a stand-in for a server that answers from the repository as its configuration says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st

from tests.export.artifacts import Artifacts
from tests.house.tree import ROOT
from yolact_deploy.classes import ClassList
from yolact_deploy.detections import Detections
from yolact_deploy.errors import ModelFileError
from yolact_deploy.manifest import InputSpec, Manifest, TensorSpec, Thresholds
from yolact_deploy.onnx_file import read_manifest
from yolact_deploy.postprocess import PostprocessSettings
from yolact_deploy.runtime import load
from yolact_deploy.serving import ClientSpec, RepositoryOptions, write_repository
from yolact_deploy.serving.config import parse_config
from yolact_deploy.serving.parameters import bound_outputs, client_parameters
from yolact_deploy.variants import get_variant

PICTURE = np.random.default_rng(3).integers(0, 256, (90, 130, 3), np.uint8)


class Answer:
    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def as_numpy(self, name: str) -> np.ndarray | None:
        return self.arrays.get(name)


class Server:
    """A stand-in for Triton's HTTP client: shapes and types are held against the configuration as the server does."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.asked: list[tuple[str, list[str]]] = []

    def _config(self, model: str) -> Any:
        return parse_config((self.repository / model / "config.pbtxt").read_text(encoding="utf-8"))

    def get_model_config(self, model: str) -> dict[str, Any]:
        return MessageToDict(self._config(model), preserving_proto_field_name=True)

    def infer(self, model: str, inputs: list[Any], outputs: list[Any]) -> Answer:
        import onnxruntime

        config, given, batches = self._config(model), {}, set()
        types = {"FP32": (11, np.float32), "UINT8": (2, np.uint8)}  # the schema's numbers
        assert len(inputs) == len(config.input)
        for tensor, declared in zip(inputs, config.input, strict=True):
            number, dtype = types[tensor.datatype()]
            assert (tensor.name(), number) == (declared.name, declared.data_type)
            shape = list(tensor.shape())
            if config.max_batch_size:
                assert 1 <= shape[0] <= config.max_batch_size
                assert shape[1:] == list(declared.dims)
            else:
                assert shape == list(declared.dims)
            batches.add(shape[0])
            given[tensor.name()] = np.frombuffer(tensor._get_binary_data(), dtype).reshape(shape)
        names = [output.name() for output in outputs]
        assert set(names) <= {output.name for output in config.output}
        self.asked.append((model, names))
        session = onnxruntime.InferenceSession(str(self.repository / model / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
        found = dict(zip(names, session.run(names, given), strict=True))
        for output in config.output:
            if output.name in found:
                batched = [*batches] if config.max_batch_size else []
                assert list(found[output.name].shape) == [*batched, *output.dims]
        return Answer(found)


@pytest.fixture(scope="module")
def predict() -> Callable[[Any, str, np.ndarray], Detections]:
    """The documented function."""
    page = (ROOT / "docs" / "triton.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code: dict[str, Any] = {}
    exec(compile(first, "docs/triton.md", "exec"), code)
    compile(second, "docs/triton.md", "exec")
    found: Callable[[Any, str, np.ndarray], Detections] = code["predict"]
    return found


NANO: list[dict[str, Any]] = [
    {"batch": "dynamic"},
    {},
    {"batch": 3, "opset": 18, "postprocess": "nms", "layout": "raw"},
    {"batch": 1, "postprocess": "masks"},
    {"fp16": True, "fp16_io": True},
]
PLUS: list[dict[str, Any]] = [{}, {"batch": 1, "postprocess": "masks"}]


@pytest.mark.parametrize(("plus", "options"), [*((False, one) for one in NANO), *((True, one) for one in PLUS)], ids=str)
def test_the_client_finds_what_the_package_finds(
    plus: bool, options: dict[str, Any], artifacts: Artifacts, predict: Callable[[Any, str, np.ndarray], Detections], tmp_path: Path
) -> None:
    model = artifacts.onnx(artifacts.plus if plus else None, **options)
    written = write_repository([model], tmp_path / "models", names=["m"])
    server = Server(tmp_path / "models")
    found = predict(server, "m", PICTURE)
    wanted = load(model).predict(PICTURE, channels="rgb")
    assert len(found) == len(wanted) > 0
    assert found.counts == wanted.counts
    for name in ("boxes", "scores", "mask_scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert found.class_names == wanted.class_names
    kind = options.get("postprocess", "none")
    rescored = plus and kind != "masks"
    assert [one.name for one in written] == ["m", *(["m_maskiou"] if rescored else [])]
    assert [name for name, _ in server.asked] == [one.name for one in written]
    bound = server.asked[0][1]
    assert ("detections_mask_scores" in bound) == (plus and kind == "masks")
    assert ("prototypes" in bound) == (kind != "masks")


variant = get_variant("yolact_base")
labels = st.lists(st.text(st.characters(codec="utf-8")), min_size=80, max_size=80)
finite = st.floats(allow_nan=False, allow_infinity=False)


def manifest(**changes: Any) -> Manifest:
    names = bound_names(changes.get("postprocess", "none"))
    given: dict[str, Any] = {
        "kind": "onnx",
        "variant": variant,
        "classes": ClassList(tuple(map(str, range(80))), tuple(range(80))),
        "input": InputSpec.of(variant),
        "postprocess": "none",
        "inputs": (),
        "outputs": tuple(TensorSpec(name, "float32", (1,)) for name in names),
        "precision": {},
        "source": {},
        "versions": {},
    }
    return Manifest(**{**given, **changes})


def bound_names(kind: str) -> list[str]:
    detections = [f"detections_{name}" for name in ("boxes", "scores", "labels", "coefficients")]
    return {
        "none": ["boxes", "scores", "coefficients", "prototypes"],
        "nms": [*detections, "prototypes"],
        "masks": [*detections[:3], "detections_masks", "detections_mask_scores"],
    }[kind]


@given(
    spec=st.builds(
        InputSpec,
        st.integers(1, 4096),
        st.sampled_from(["float", "raw"]),
        st.sampled_from(["rgb", "bgr"]),
        st.tuples(finite, finite, finite),
        st.tuples(finite, finite, finite),
    ),
    names=labels,
    limits=st.builds(Thresholds, st.floats(0, 1), st.floats(0, 1), st.integers(1, 500), st.integers(1, 500)),
    kind=st.sampled_from(["none", "nms", "masks"]),
    smallest=st.integers(1, 64),
    net=st.sampled_from(["", "m_maskiou"]),
)
def test_parameters_are_read_as_they_were_written(
    spec: InputSpec, names: list[str], limits: Thresholds, kind: Any, smallest: int, net: str
) -> None:
    made = manifest(input=spec, classes=ClassList(tuple(names), tuple(range(80))), thresholds=limits, postprocess=kind)
    texts = client_parameters(made, smallest_batch=smallest, mask_iou_model=net)
    config = {"parameters": {name: {"string_value": text} for name, text in texts.items()}}
    settings = PostprocessSettings(limits.score, limits.iou, limits.top_k, limits.max_detections)
    assert ClientSpec.read(config) == ClientSpec(spec, made.classes, settings, kind, tuple(bound_names(kind)), smallest, net)
    assert ("mask_iou_model" in texts["left_to_do"]) == bool(net)


def test_the_documented_outputs(artifacts: Artifacts) -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", (ROOT / "docs" / "triton.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {kind: re.findall(r"`(\w+)`", told) for kind, told in rows} == {kind: bound_names(kind) for kind in ("none", "nms", "masks")}
    assert bound_outputs(read_manifest(artifacts.onnx(batch=1, postprocess="masks"))) == tuple(bound_names("masks")[:-1])


def test_a_manifest_without_its_outputs() -> None:
    with pytest.raises(ModelFileError, match=r"\(postprocess nms\) names no output detections_boxes, detections_scores"):
        client_parameters(manifest(postprocess="nms", outputs=()), smallest_batch=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"input_mean": "[1, 2]"},
        {"input_std": "[1]"},
        {"postprocess": "more"},
        {"top_k": "0"},
        {"class_names": "{"},
        {"category_ids": "[1]"},
        {"input_size": None},
    ],
)
def test_configurations_of_others(changes: dict[str, str | None]) -> None:
    texts = client_parameters(manifest(), smallest_batch=1)
    config: dict[str, Any] = {
        "parameters": {name: {"string_value": text} for name, text in {**texts, **changes}.items() if text is not None}
    }
    for bad in (config, {}, {"parameters": {}}, {"parameters": []}, {"parameters": {"a": 3}}):
        with pytest.raises(ModelFileError, match="has not the parameters of yolact-deploy") as found:
            ClientSpec.read(bad)
        assert "yolact-deploy triton-repository" in found.value.mend


def test_options_by_default() -> None:
    assert RepositoryOptions() == RepositoryOptions(1, (), None, (), None)
