"""COCO's figures: equal to pycocotools run by hand on the written files, and defined where there is nothing to measure."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.made import by_hand, filled_store, header_of, make_dataset
from yolact_deploy.data import CocoDataset, read_dataset
from yolact_deploy.evaluation import metrics
from yolact_deploy.evaluation.metrics import measure
from yolact_deploy.evaluation.records import Metrics
from yolact_deploy.evaluation.store import IouType, ResultStore

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
TYPES: tuple[IouType, ...] = ("bbox", "segm")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return make_dataset(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def store(dataset: CocoDataset) -> ResultStore:
    return filled_store(dataset.annotations.parent / "store.jsonl", dataset)


def measured(dataset: CocoDataset, store: ResultStore, iou_type: IouType, image_ids: list[int] | None = None) -> Metrics:
    ids = [image.id for image in dataset.images] if image_ids is None else image_ids
    return measure(dataset.ground_truth, dataset.classes, store, iou_type, ids)


def twelve(found: Metrics) -> list[float]:
    """The figures in the order of COCOeval's twelve lines, as fractions."""
    values = (found.ap, found.ap50, found.ap75, found.small, found.medium, found.large)
    recalls = (found.ar1, found.ar10, found.ar100, found.ar_small, found.ar_medium, found.ar_large)
    return [-1 if value is None else value / 100 for value in (*values, *recalls)]


@pytest.mark.parametrize("iou_type", TYPES)
@pytest.mark.parametrize("group", [1, 5, 64])
def test_the_twelve_lines_equal_pycocotools(
    dataset: CocoDataset, store: ResultStore, iou_type: IouType, group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_GROUP", group)
    store.write_results(tmp_path / "found.json", iou_type)
    expected = by_hand(dataset.annotations, tmp_path / "found.json", iou_type)
    found = measured(dataset, store, iou_type)
    np.testing.assert_allclose(twelve(found), expected.stats, rtol=0, atol=1e-12)
    assert len(set(expected.stats)) == 12  # so that none stands for another
    assert 0.05 < expected.stats[0] < 0.9
    for place, threshold in enumerate(np.arange(0.5, 1.0, 0.05)):
        precision = expected.eval["precision"][place, :, :, 0, 2]
        assert found.by_threshold[f"{threshold:.2f}"] == pytest.approx(100 * precision[precision > -1].mean(), abs=1e-10)


@pytest.mark.parametrize("iou_type", TYPES)
def test_each_class_equals_pycocotools(dataset: CocoDataset, store: ResultStore, iou_type: IouType, tmp_path: Path) -> None:
    store.write_results(tmp_path / "found.json", iou_type)
    expected = by_hand(dataset.annotations, tmp_path / "found.json", iou_type)
    found = measured(dataset, store, iou_type).per_class
    assert list(found) == ["cat", "dog", "fish", "bird"]  # by category id
    content = json.loads(dataset.annotations.read_text())
    for place, (name, identifier) in enumerate(zip(dataset.classes.names, dataset.classes.category_ids)):
        precision = expected.eval["precision"][:, :, place, 0, 2]
        truth = [entry for entry in content["annotations"] if entry["category_id"] == identifier and not entry["iscrowd"]]
        assert found[name].ground_truth == len(truth)
        of_pictures = Counter(entry["image_id"] for entry in store.results(iou_type) if entry["category_id"] == identifier)
        assert found[name].detections == sum(min(count, 100) for count in of_pictures.values())
        for value, rows in ((found[name].ap, precision), (found[name].ap50, precision[0]), (found[name].ap75, precision[5])):
            if truth:
                assert value == pytest.approx(100 * rows.mean(), abs=1e-10)
            else:
                assert value is None


def test_some_pictures_alone(dataset: CocoDataset, store: ResultStore, tmp_path: Path) -> None:
    ids = [901, 1, 17]
    store.write_results(tmp_path / "found.json", "segm")
    expected = by_hand(dataset.annotations, tmp_path / "found.json", "segm", ids)
    np.testing.assert_allclose(twelve(measured(dataset, store, "segm", ids)), expected.stats, rtol=0, atol=1e-12)
    with pytest.raises(KeyError):
        measured(dataset, store.of([1, 17]), "segm", ids)


def test_the_order_of_the_ids_does_not_matter(dataset: CocoDataset, store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_GROUP", 1)  # equal scores in several pictures are ranked by id
    ids = [image.id for image in dataset.images]
    assert measured(dataset, store, "bbox", ids[::-1]) == measured(dataset, store, "bbox")


def test_masks_are_ranked_by_mask_scores_and_boxes_by_scores(dataset: CocoDataset, store: ResultStore, tmp_path: Path) -> None:
    plain = filled_store(tmp_path / "plain.jsonl", dataset, rescored=False)
    assert measured(dataset, plain, "bbox") == measured(dataset, store, "bbox")
    assert measured(dataset, plain, "segm").ap != measured(dataset, store, "segm").ap


def empty_store(dataset: CocoDataset, path: Path) -> ResultStore:
    store = filled_store(path.with_suffix(".full"), dataset)
    result = ResultStore.create(path, header_of(dataset))
    for image_id, found in store:
        result.append(image_id, found[:0])
    return result


@pytest.mark.parametrize("iou_type", TYPES)
def test_nothing_found_is_zero_and_said(dataset: CocoDataset, tmp_path: Path, iou_type: IouType) -> None:
    found = measured(dataset, empty_store(dataset, tmp_path / "s.jsonl"), iou_type)
    assert twelve(found) == [0] * 12
    assert set(found.by_threshold.values()) == {0.0}
    assert "Nothing was found in the 12 pictures: AP is 0 for that reason." in found.notes


@pytest.mark.parametrize("iou_type", TYPES)
@pytest.mark.parametrize("empty", [False, True])
def test_no_ground_truth_is_not_defined_and_said(
    dataset: CocoDataset, store: ResultStore, tmp_path: Path, iou_type: IouType, empty: bool
) -> None:
    store = empty_store(dataset, tmp_path / "s.jsonl") if empty else store
    found = measured(dataset, store, iou_type, [4, 900])
    assert twelve(found) == [-1] * 12
    assert set(found.by_threshold.values()) == {None}
    assert found.notes[0] == "No instance counts in the 2 pictures: AP and AR are not defined."
    assert (found.notes[1:] == ("Nothing was found in the 2 pictures.",)) is empty
    assert found.detections == (0 if empty else 6)


def test_crowds_alone_are_no_ground_truth(dataset: CocoDataset, store: ResultStore, tmp_path: Path) -> None:
    content: dict[str, Any] = json.loads(dataset.annotations.read_text())
    content["annotations"] = [{**entry, "iscrowd": 1} for entry in content["annotations"]]
    (tmp_path / "images").mkdir()
    (tmp_path / "crowds.json").write_text(json.dumps(content))
    crowds = read_dataset(tmp_path / "crowds.json")
    found = measured(crowds, store, "segm")
    assert (found.ap, found.ground_truth) == (None, 0)


def test_categories_without_instances_are_named(dataset: CocoDataset, store: ResultStore) -> None:
    notes = measured(dataset, store, "segm").notes
    assert notes == ("1 of 4 categories have no instance in these pictures and are left out of the means: fish.",)


def test_pycocotools_stays_silent(dataset: CocoDataset, store: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    measured(dataset, store, "segm")
    assert capsys.readouterr() == ("", "")
