"""The whole evaluation: which pictures, which artifacts, what was lost, and that all of it is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.made import by_hand, filled_store
from tests.evaluation.models import Models
from yolact_deploy.data import CocoDataset, read_dataset
from yolact_deploy.errors import BudgetMissedError, ConfigError, DatasetError, ModelFileError
from yolact_deploy.evaluation.document import (
    SCHEMA,
    failure_rows,
    parity_rows,
    per_class_rows,
    summary_rows,
    threshold_rows,
    to_document,
)
from yolact_deploy.evaluation.harness import EvaluationOptions, artifact_names, check_drop, evaluate, in_order, kind_of
from yolact_deploy.evaluation.jobs import ModelSource
from yolact_deploy.evaluation.records import Evaluation, mask_differences

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def files(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ONNX file's own results, with the annotations as results, whole and half, and with objects moved a little."""
    folder = tmp_path_factory.mktemp("files")
    found = evaluate(models.dataset, [models.onnx_source], EvaluationOptions(folder / "stores"))
    found.artifacts[0].store.write_results(folder / "own.segm.json", "segm")
    truth = models.dataset.ground_truth()["annotations"]
    perfect = [{key: entry[key] for key in ("image_id", "category_id", "segmentation", "bbox")} for entry in truth if not entry["iscrowd"]]
    (folder / "perfect.json").write_text(json.dumps([{**entry, "score": 0.9} for entry in perfect]))
    moved = filled_store(folder / "moved.jsonl", models.dataset).results("segm")
    (folder / "moved.json").write_text(json.dumps(moved))
    (folder / "half.json").write_text(json.dumps([{**entry, "score": 0.9} for entry in perfect[::2]]))
    return folder


@pytest.fixture(scope="module")
def evaluation(models: Models, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    options = EvaluationOptions(tmp_path_factory.mktemp("stores"))
    sources = [models.checkpoint_source, models.onnx_source, ModelSource(files / "own.segm.json"), ModelSource(files / "moved.json")]
    return evaluate(models.dataset, sources, options, reference=models.checkpoint_source)


@pytest.fixture
def own_data(models: Models, tmp_path: Path) -> CocoDataset:
    shutil.copytree(models.dataset.folder.parent, tmp_path / "data")
    return read_dataset(tmp_path / "data" / "annotations.json")


def of_files(models: Models, folder: Path, *names: str, reference: str | None = None, **options: Any) -> Evaluation:
    sources = [ModelSource(folder / name) for name in names]
    first = None if reference is None else ModelSource(folder / reference)
    return evaluate(models.dataset, sources, EvaluationOptions(folder / "stores", **options), reference=first)


def test_names_kinds_and_hashes(models: Models, evaluation: Evaluation) -> None:
    found = [(artifact.name, artifact.kind) for artifact in evaluation.artifacts]
    assert found == [
        ("tiny_1_2.safetensors", "PyTorch"),
        ("tiny_1_2.onnx", "ONNX FP32"),
        ("own.segm", "results file"),
        ("moved", "results file"),
    ]
    assert evaluation.reference == "tiny_1_2.safetensors"
    assert len({artifact.sha256 for artifact in evaluation.artifacts}) == 4
    assert {"yolact-deploy", "python", "numpy", "pycocotools", "onnxruntime", "torch"} <= set(evaluation.versions)
    assert {"system", "cores", "driver"} <= set(evaluation.machine)
    assert evaluation.date.endswith("+00:00")


def test_figures_are_those_of_the_written_files(models: Models, evaluation: Evaluation, tmp_path: Path) -> None:
    for artifact in evaluation.artifacts:
        for iou_type, found in (("bbox", artifact.box), ("segm", artifact.mask)):
            assert (found.ap or 0) > 5 or artifact.name != "moved"
            artifact.store.write_results(tmp_path / "found.json", iou_type)
            assert found.ap == pytest.approx(
                100 * by_hand(models.dataset.annotations, tmp_path / "found.json", iou_type).stats[0], abs=1e-9
            )


def test_the_facts_of_the_data_set(models: Models, evaluation: Evaluation) -> None:
    facts = evaluation.dataset
    content = json.loads(models.dataset.annotations.read_text())["annotations"]
    assert (facts.pictures, facts.unannotated, facts.left_out, facts.missing) == (12, 2, 0, ())
    assert facts.instances == sum(not entry["iscrowd"] for entry in content)
    assert facts.crowds == sum(entry["iscrowd"] for entry in content) > 0
    assert facts.categories == ("cat", "dog", "fish", "bird")
    assert not facts.like_original


def test_each_hop_is_compared(evaluation: Evaluation) -> None:
    first, onnx, file, _ = evaluation.artifacts
    assert (first.parity, first.hop) == (None, None)
    assert onnx.parity.passed
    assert onnx.parity.reference == first.store.detection_count - sum(int((found.scores <= 0.3).sum()) for _, found in first.store)
    assert onnx.hop is onnx.parity
    assert (file.hop.partners, file.hop.reference) == (onnx.parity.candidate, onnx.parity.candidate)
    assert file.milliseconds == {}
    assert set(onnx.milliseconds) == {"read", "preprocess", "inference", "postprocess"}
    assert onnx.failures.pictures == 12
    assert first.notes[-1] == "Pictures ran 8 at a time: each one's milliseconds are its share."


def test_differences_of_mask_ap(models: Models, files: Path) -> None:
    found = of_files(models, files, "half.json", "moved.json", reference="perfect.json")
    assert [artifact.name for artifact in found.artifacts] == ["perfect", "half", "moved"]
    perfect, half, moved = (artifact.mask.ap or 0 for artifact in found.artifacts)
    assert perfect == pytest.approx(100)
    assert 10 < half < 90
    assert mask_differences(found, 0) == (None, None)
    assert mask_differences(found, 1) == (half - perfect, half - perfect)
    assert mask_differences(found, 2) == (moved - perfect, moved - half)
    last = found.artifacts[2]
    assert last.parity is not None
    assert last.hop is not None
    assert (last.parity.reference, last.hop.reference) == (found.artifacts[0].detections, found.artifacts[1].detections)
    assert last.parity.reference > last.hop.reference
    alone = of_files(models, files, "perfect.json", "half.json")
    assert alone.reference is None
    assert mask_differences(alone, 1) == (None, half - perfect)
    assert alone.artifacts[1].parity is None


def test_hops_are_explained_by_the_model_before(models: Models, files: Path, tmp_path: Path) -> None:
    sources = [ModelSource(models.onnx), ModelSource(files / "moved.json")]
    found = evaluate(models.dataset, sources, EvaluationOptions(tmp_path), reference=ModelSource(files / "half.json"))
    last = found.artifacts[2]
    assert last.parity is not None
    assert last.hop is not None
    assert last.hop.lone
    assert last.hop.explained
    assert not last.parity.explained, "a results file has no head outputs"
    assert any("cannot be had" in note for note in last.parity.notes)


def test_a_drop_beyond_the_budget(models: Models, files: Path) -> None:
    found = of_files(models, files, "half.json", reference="perfect.json", max_drop=0.3)
    drop = 100 - (found.artifacts[1].mask.ap or 0)
    with pytest.raises(
        BudgetMissedError, match=rf"below the reference perfect more than the allowed 0\.3 points: half by {drop:.2f}\."
    ) as caught:
        check_drop(found)
    assert caught.value.exit_code == 3
    check_drop(replace(found, max_drop=drop + 1e-6))
    check_drop(replace(found, max_drop=None))
    with pytest.raises(BudgetMissedError):
        check_drop(replace(found, max_drop=drop - 1e-6))
    better = of_files(models, files, "perfect.json", reference="half.json", max_drop=0.0)
    check_drop(better)


def test_a_drop_without_ground_truth_is_no_success(models: Models, files: Path) -> None:
    found = of_files(models, files, "half.json", reference="perfect.json", max_drop=1.0)
    bare = replace(found.artifacts[1], mask=replace(found.artifacts[1].mask, ap=None))
    with pytest.raises(DatasetError, match="The drop of half cannot be told"):
        check_drop(replace(found, artifacts=(found.artifacts[0], bare)))


def test_pictures_without_annotations(models: Models, files: Path) -> None:
    found = of_files(models, files, "moved.json", like_original=True)
    assert (found.dataset.pictures, found.dataset.unannotated, found.dataset.left_out) == (10, 0, 2)
    assert not {4, 900} & set(found.dataset.image_ids)
    with_all = of_files(models, files, "moved.json")
    assert (found.artifacts[0].mask.ap or 0) > (with_all.artifacts[0].mask.ap or 0)  # what is found there is wrong
    assert found.artifacts[0].notes[-2].startswith("Results for 2 pictures that are not evaluated")


def test_a_limit(models: Models, files: Path) -> None:
    found = of_files(models, files, "own.segm.json", limit=4)
    assert found.dataset.image_ids == (1, 2, 4, 5)
    assert found.artifacts[0].pictures == len(found.artifacts[0].store) == 4
    assert of_files(models, files, "own.segm.json", limit=2, like_original=True).dataset.image_ids == (1, 2)
    assert len(of_files(models, files, "own.segm.json", limit=99).dataset.image_ids) == 12


def test_a_limit_uses_a_longer_runs_store(models: Models, tmp_path: Path) -> None:
    evaluate(models.dataset, [models.onnx_source], EvaluationOptions(tmp_path))
    told: list[str] = []
    found = evaluate(models.dataset, [models.onnx_source], EvaluationOptions(tmp_path, limit=3), say=told.append)
    assert (found.artifacts[0].detections, found.artifacts[0].pictures) == (300, 3)
    assert "holds 12 pictures of an earlier run" in told[1]


def test_missing_pictures(models: Models, own_data: CocoDataset, tmp_path: Path) -> None:
    for image_id in (5, 901):
        own_data.picture_path(own_data.image(image_id)).unlink()
    with pytest.raises(DatasetError, match=r"2 of 12 pictures are not in .*images; the first is 5\.png\..*--skip-missing"):
        evaluate(own_data, [models.onnx_source], EvaluationOptions(tmp_path))
    found = evaluate(own_data, [models.onnx_source], EvaluationOptions(tmp_path, skip_missing=True)).dataset
    assert (found.missing, found.pictures) == (("5.png", "901.png"), 10)
    assert evaluate(own_data, [models.onnx_source], EvaluationOptions(tmp_path, limit=3)).dataset.missing == ()
    (tmp_path / "none.json").write_text("[]")
    assert evaluate(own_data, [ModelSource(tmp_path / "none.json")], EvaluationOptions(tmp_path)).dataset.pictures == 12
    for image in own_data.images:
        own_data.picture_path(image).unlink(missing_ok=True)
    with pytest.raises(DatasetError, match="leaves no picture to evaluate: 12 are missing"):
        evaluate(own_data, [models.onnx_source], EvaluationOptions(tmp_path, skip_missing=True))


def test_nothing_found_and_nothing_annotated_are_said(models: Models, own_data: CocoDataset, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[]")
    found = evaluate(own_data, [ModelSource(tmp_path / "none.json")], EvaluationOptions(tmp_path))
    assert found.artifacts[0].mask.ap == 0
    assert any("Nothing was found in the 12 pictures" in note for note in found.artifacts[0].notes)
    content = json.loads(own_data.annotations.read_text())
    own_data.annotations.write_text(json.dumps({**content, "annotations": []}))
    bare = evaluate(read_dataset(own_data.annotations), [models.onnx_source], EvaluationOptions(tmp_path), reference=models.onnx_source)
    assert (bare.artifacts[0].mask.ap, bare.artifacts[0].box.ap) == (None, None)
    assert bare.artifacts[0].notes[0] == "No instance counts in the 12 pictures: AP and AR are not defined."
    assert summary_rows(bare)[1][2] == "not defined"
    json.dumps(to_document(bare), allow_nan=False)


def test_what_cannot_be_evaluated(models: Models, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No model was given"):
        evaluate(models.dataset, [], EvaluationOptions(tmp_path))
    with pytest.raises(ModelFileError, match="does not exist or is no file"):
        evaluate(models.dataset, [ModelSource(tmp_path / "none.onnx")], EvaluationOptions(tmp_path))
    (tmp_path / "a.tflite").touch()
    with pytest.raises(ModelFileError, match=r"ends in \.tflite"):
        evaluate(models.dataset, [ModelSource(tmp_path / "a.tflite")], EvaluationOptions(tmp_path))


def test_an_artifact_of_another_data_set(models: Models, own_data: CocoDataset, tmp_path: Path) -> None:
    content = json.loads(own_data.annotations.read_text())
    for place, category in enumerate(content["categories"]):
        category["name"] = f"tool {place}"
    own_data.annotations.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"tiny_1_2\.onnx and the data set have no class in common: it finds bird, cat, dog, fish;"):
        evaluate(read_dataset(own_data.annotations), [models.onnx_source], EvaluationOptions(tmp_path))


def test_the_document(evaluation: Evaluation) -> None:
    found = json.loads(json.dumps(to_document(evaluation, per_class=True), allow_nan=False))
    assert found["schema"] == SCHEMA
    assert "image_ids" not in found["dataset"]
    assert found["artifacts"][0]["difference"] == {"reference": None, "before": None}
    last = found["artifacts"][3]
    assert last["mask"]["ap"] == evaluation.artifacts[3].mask.ap
    assert last["mask"]["ap50"] == last["mask"]["by_threshold"]["0.50"]
    assert last["mask"]["ap75"] == last["mask"]["by_threshold"]["0.75"]
    assert set(last["mask"]["per_class"]) == {"cat", "dog", "fish", "bird"}
    assert last["parity"]["partners"] == evaluation.artifacts[3].parity.partners
    assert last["failures"]["pictures"] == 12
    assert "per_class" not in to_document(evaluation)["artifacts"][0]["mask"]
    assert "store" not in last


def test_the_rows(evaluation: Evaluation) -> None:
    for rows in (summary_rows(evaluation), parity_rows(evaluation)):
        assert [row[0] for row in rows[1:]] == ["tiny_1_2.safetensors", "tiny_1_2.onnx", "own.segm", "moved"]
        assert len({len(row) for row in rows}) == 1
    assert parity_rows(evaluation)[1][1] == "the reference"
    for rows in (threshold_rows(evaluation.artifacts), failure_rows(evaluation.artifacts), per_class_rows(evaluation.artifacts)):
        assert len({len(row) for row in rows}) == 1
    assert threshold_rows(evaluation.artifacts)[0][1:] == tuple(f"{0.5 + 0.05 * step:.2f}" for step in range(10))
    assert [row[0] for row in per_class_rows(evaluation.artifacts)] == ["category", "cat", "dog", "fish", "bird"]
    assert per_class_rows(evaluation.artifacts)[3][1:3] == ("0", "not defined")
    ap = evaluation.artifacts[3].mask
    assert summary_rows(evaluation)[4][3:6] == tuple(f"{value:.2f}" for value in (ap.ap, ap.ap50, ap.ap75))


def sources(*names: str) -> list[ModelSource]:
    return [ModelSource(Path(name)) for name in names]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("a.pth", "b.onnx"), ["a", "b"]),
        (("a.pth", "a.onnx", "b.onnx"), ["a.pth", "a.onnx", "b"]),
        (("x/a.onnx", "y/a.onnx", "x/a.onnx"), ["a.onnx", "a.onnx-2", "a.onnx-3"]),
        (("a.onnx", "a.onnx", "a.onnx-2.json"), ["a.onnx", "a.onnx-3", "a.onnx-2"]),
    ],
)
def test_names_stay_apart(paths: tuple[str, ...], names: list[str]) -> None:
    assert artifact_names(sources(*paths)) == names


def test_the_same_file_twice_is_evaluated_twice(models: Models, tmp_path: Path) -> None:
    found = evaluate(models.dataset, [models.onnx_source] * 2, EvaluationOptions(tmp_path, limit=2), reference=models.onnx_source)
    assert [artifact.name for artifact in found.artifacts] == ["tiny_1_2.onnx", "tiny_1_2.onnx-2"]
    assert found.artifacts[0].store.path != found.artifacts[1].store.path
    assert found.artifacts[1].parity.passed


def test_the_reference_comes_first_and_once() -> None:
    a, b, c = sources("a.pth", "b.onnx", "c.onnx")
    assert in_order([b, c], a) == [a, b, c]
    assert in_order([b, a, c], a) == [a, b, c]
    also_a = ModelSource(Path("x/../a.pth"))
    assert in_order([b, a, c], also_a) == [also_a, b, c]
    assert in_order([b, b], b) == [b, b]
    assert in_order([b, c], None) == [b, c]


_WITHOUT_TORCH = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "onnxscript", "onnx_ir"):
            raise ImportError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from pathlib import Path
from yolact_deploy import YolactDeployError
from yolact_deploy.data import read_dataset
from yolact_deploy.evaluation import EvaluationOptions, ModelSource, evaluate, to_document

annotations, folder, model, weights = map(Path, sys.argv[1:])
source = ModelSource(model, providers=("cpu",))
found = evaluate(read_dataset(annotations), [source, source], EvaluationOptions(folder), reference=source)
try:
    evaluate(read_dataset(annotations), [ModelSource(weights)], EvaluationOptions(folder))
    message = ""
except YolactDeployError as error:
    message = str(error)
print(json.dumps({"document": to_document(found), "message": message}))
"""


def test_onnx_files_are_evaluated_without_torch(models: Models, evaluation: Evaluation, tmp_path: Path) -> None:
    arguments = map(str, (models.dataset.annotations, tmp_path, models.onnx, models.weights))
    done = subprocess.run([sys.executable, "-c", _WITHOUT_TORCH, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["document"]["artifacts"][1]["mask"]["ap"] == pytest.approx(evaluation.artifacts[1].mask.ap, abs=0.01)
    assert answer["document"]["artifacts"][1]["parity"]["missing"] == 0
    assert "torch" not in answer["document"]["versions"]
    assert answer["message"].startswith("Running the checkpoint tiny_1_2.safetensors needs torch, which is not installed.")


def test_kinds(models: Models) -> None:
    manifest = models.onnx_source.open().manifest
    kinds = [
        ({"all": "float32"}, "onnxruntime", "ONNX FP32"),
        ({"backbone": "float16", "head": "float16+float32"}, "onnxruntime", "ONNX FP16"),
        ({"backbone": "int8", "head": "float16"}, "onnxruntime", "ONNX INT8"),
        ({"all": "float32"}, "torch", "PyTorch"),
    ]
    for precision, backend, words in kinds:
        assert kind_of(replace(manifest, precision=precision), backend) == words
    built = replace(manifest, precision={"backbone": "float16"}, target={"precision": "fp16"})
    assert kind_of(built, "tensorrt") == "TensorRT FP16"
    assert kind_of(replace(built, target={"precision": "unknown"}), "tensorrt") == "TensorRT"
