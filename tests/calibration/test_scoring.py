"""The judge's AP is that of the evaluation, and mixing heads tells whose fault a drop is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.evaluation.models import Models, tiny_models
from yolact_deploy.calibration.scoring import Judge, open_session
from yolact_deploy.errors import DatasetError, ModelFileError
from yolact_deploy.evaluation import EvaluationOptions, evaluate
from yolact_deploy.onnx_file import read_manifest


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return tiny_models(tmp_path_factory.getbasetemp())


@pytest.fixture
def judge(models: Models, tmp_path: Path) -> Iterator[Judge]:
    made = Judge.of_dataset(read_manifest(models.onnx), models.dataset, _ids(models), tmp_path, threads=1)
    yield made
    made.close()


def _ids(models: Models) -> list[int]:
    return [image.id for image in models.dataset.images]


def _paths(models: Models) -> list[Path]:
    return [models.dataset.picture_path(image) for image in models.dataset.images]


def altered(models: Models, output: str, add: float) -> bytes:
    """The model with `add` put on one of its outputs."""
    model = onnx.load(models.onnx)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == output:
                node.output[place] = f"{output}_before"
    model.graph.initializer.append(numpy_helper.from_array(np.array(add, np.float32), "added"))
    model.graph.node.append(helper.make_node("Add", [f"{output}_before", "added"], [output], "outputs/Added"))
    found: bytes = model.SerializeToString()
    return found


def test_it_is_the_evaluation(models: Models, judge: Judge, tmp_path: Path) -> None:
    (wanted,) = evaluate(models.dataset, [models.onnx_source], EvaluationOptions(tmp_path / "stores")).artifacts
    data = models.onnx.read_bytes()
    found = judge.score(data)
    assert found.mask_ap == wanted.mask.ap
    assert found.box_ap == wanted.box.ap
    assert found.pictures == len(models.dataset) == 12
    assert found.sha256 == wanted.sha256
    assert judge.score(onnx.load(models.onnx)).mask_ap == found.mask_ap


def test_some_pictures_are_those(models: Models, tmp_path: Path) -> None:
    few = (5, 17, 901)
    (wanted,) = evaluate(models.dataset, [models.onnx_source], EvaluationOptions(tmp_path / "stores", limit=4)).artifacts
    judge = Judge.of_dataset(read_manifest(models.onnx), models.dataset, sorted(_ids(models))[:4], tmp_path / "inputs", threads=1)
    assert judge.score(models.onnx.read_bytes()).mask_ap == wanted.mask.ap
    other = Judge.of_dataset(read_manifest(models.onnx), models.dataset, few, tmp_path / "inputs", threads=1)
    assert other.score(models.onnx.read_bytes()).pictures == 3
    assert other.digest != judge.digest


@pytest.mark.parametrize(("output", "add", "part"), [("boxes", 0.03, "box"), ("coefficients", 0.3, "mask"), ("prototypes", 0.5, "mask")])
def test_hybrids_name_the_head(models: Models, tmp_path: Path, output: str, add: float, part: str) -> None:
    """What is wrong in one head shows there and nowhere else."""
    data = models.onnx.read_bytes()
    judge = Judge.of_float_model(read_manifest(models.onnx), data, _paths(models), tmp_path, threads=1)
    float_ap = judge.score(data).mask_ap
    wrong = altered(models, output, add)
    parts = judge.hybrids(data, wrong)
    assert set(parts) == {"box", "class", "mask"}
    for name, value in parts.items():
        if name == part:
            assert value == judge.score(wrong, as_written=True).mask_ap
            assert value != float_ap
        else:
            assert value == float_ap


def test_without_annotations_the_float_model_is_the_truth(models: Models, tmp_path: Path) -> None:
    data = models.onnx.read_bytes()
    judge = Judge.of_float_model(read_manifest(models.onnx), data, _paths(models), tmp_path, threads=1)
    own = judge.score(data)
    assert own.mask_ap > 90
    assert judge.score(altered(models, "boxes", 0.05)).mask_ap < own.mask_ap
    truth = judge.truth(judge.ids)
    assert len({entry["id"] for entry in truth["annotations"]}) == len(truth["annotations"]) > 0
    assert 0 not in {entry["id"] for entry in truth["annotations"]}, "COCOeval takes 0 for no match"


def test_a_model_that_finds_nothing_has_no_truth(models: Models, tmp_path: Path) -> None:
    paths = _paths(models)[:2]
    with pytest.raises(DatasetError, match=r"finds nothing above a score of 0\.3 in 2 pictures"):
        Judge.of_float_model(read_manifest(models.onnx), altered(models, "scores", -1.0), paths, tmp_path)


def test_no_pictures(models: Models, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no picture to measure on"):
        Judge.of_dataset(read_manifest(models.onnx), models.dataset, [], tmp_path)


def test_nothing_annotated(models: Models, tmp_path: Path) -> None:
    judge = Judge.of_dataset(read_manifest(models.onnx), models.dataset, [4, 900], tmp_path)
    with pytest.raises(DatasetError, match="AP is not defined on these pictures"):
        judge.score(models.onnx.read_bytes())


def test_broken_graphs_are_told(models: Models) -> None:
    with pytest.raises(ModelFileError, match="cannot load the model"):
        open_session(b"no graph")


def test_as_written_is_not_optimized(models: Models) -> None:
    plain, written = (open_session(models.onnx.read_bytes(), 1, as_written=kind) for kind in (False, True))
    image = np.random.default_rng(0).normal(0, 1, (1, 3, 64, 64)).astype(np.float32)
    for one, other in zip(plain.run(None, {"images": image}), written.run(None, {"images": image}), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    names = [session.get_session_options().graph_optimization_level.name for session in (plain, written)]
    assert names == ["ORT_ENABLE_ALL", "ORT_DISABLE_ALL"]
