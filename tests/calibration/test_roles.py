"""Which pictures do what: what is searched on is not what the accuracy is told on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.made import make_dataset
from tests.evaluation.models import Models, tiny_models
from yolact_deploy.calibration.roles import Part, Roles, assign_roles, opened
from yolact_deploy.data import CocoDataset
from yolact_deploy.engines.source import read_source
from yolact_deploy.errors import ConfigError, DatasetError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return make_dataset(tmp_path_factory.mktemp("annotated"), pictures=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return make_dataset(tmp_path_factory.mktemp("other"), seed=5, pictures=True)


def roles(
    images: Path | None,
    report: CocoDataset | None,
    search: CocoDataset | None,
    *,
    count: int = 100,
    measured: int = 500,
    seed: int = 0,
    searching: bool = False,
) -> Roles:
    return assign_roles(images, report, search, count=count, measured=measured, seed=seed, searching=searching)


def test_a_folder_and_annotations(dataset: CocoDataset, other: CocoDataset) -> None:
    """Without a search the accuracy is told on all annotated pictures."""
    found = roles(other.folder, dataset, None, count=5)
    assert found.pictures.folder == other.folder
    assert found.pictures.count == 5
    assert found.report.dataset is dataset
    assert found.report.image_ids == tuple(sorted(image.id for image in dataset.images))
    assert found.search is None
    assert found.notes == ()
    assert found.report.truth == "annotations"


@pytest.mark.parametrize("seed", [0, 1])
def test_a_search_takes_half(dataset: CocoDataset, other: CocoDataset, seed: int) -> None:
    found = roles(other.folder, dataset, None, searching=True, seed=seed)
    assert found.search is not None
    assert len(found.report.image_ids) == len(found.search.image_ids) == 6
    assert not set(found.report.image_ids) & set(found.search.image_ids)
    assert not set(found.report.paths) & set(found.search.paths)
    assert "divided" in found.notes[0]
    again = roles(other.folder, dataset, None, searching=True, seed=seed)
    assert again.report == found.report
    assert roles(other.folder, dataset, None, searching=True, seed=7).report != found.report


def test_a_set_for_the_search(dataset: CocoDataset, other: CocoDataset) -> None:
    found = roles(None, dataset, other, searching=True, measured=7)
    assert found.search is not None
    assert found.report.dataset is dataset
    assert found.search.dataset is other
    assert len(found.report.image_ids) == len(found.search.image_ids) == 7
    assert found.pictures.folder == other.folder, "not what the accuracy is told on"
    assert found.pictures.found == 12


def test_annotations_alone(dataset: CocoDataset) -> None:
    """The calibration takes what the accuracy is not told on."""
    found = roles(None, dataset, None, measured=4)
    assert len(found.report.image_ids) == 4
    assert found.pictures.found == 8
    assert not set(found.report.paths) & set(found.pictures.paths())


def test_a_folder_alone(other: CocoDataset) -> None:
    """The float model stands in for annotations, on pictures that are not calibrated with."""
    found = roles(other.folder, None, None, count=5, searching=True)
    assert found.report.dataset is None
    assert found.report.truth == "what the float model finds"
    taken = set(found.pictures.paths()[:5])
    assert len(found.report.paths) == 7
    assert not taken & set(found.report.paths)
    all_taken = roles(other.folder, None, None, count=100)
    assert len(all_taken.report.paths) == 12, "where all are calibrated with, these"


def test_the_search_of_a_folder_alone_has_pictures_of_its_own(other: CocoDataset) -> None:
    found = roles(other.folder, None, None, count=5, measured=3, searching=True)
    assert found.search is not None
    assert len(found.report.paths) == len(found.search.paths) == 3
    assert not set(found.report.paths) & set(found.search.paths)


def test_missing_pictures_are_told(tmp_path: Path, other: CocoDataset) -> None:
    dataset = make_dataset(tmp_path, pictures=True)
    (dataset.folder / "17.png").unlink()
    found = roles(other.folder, dataset, None)
    assert 17 not in found.report.image_ids
    assert "1 of 12 annotated pictures are not in" in found.notes[0]
    for path in dataset.folder.iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="None of the annotated pictures"):
        roles(other.folder, dataset, None)


def test_nothing_to_calibrate_with() -> None:
    with pytest.raises(ConfigError, match="No pictures were named"):
        roles(None, None, None)


def test_too_few_to_divide(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, pictures=True)
    for image in dataset.images[3:]:
        dataset.picture_path(image).unlink()
    with pytest.raises(DatasetError, match="3 annotated pictures cannot serve"):
        roles(None, dataset, None)


def test_records_are_of_the_part(dataset: CocoDataset) -> None:
    found = roles(None, dataset, None, measured=4)
    assert {record.name for record in found.report.records()} == {path.name for path in found.report.paths}
    assert Part(None, (), ()).records() == []


def test_opened_leaves_nothing(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    models: Models = tiny_models(tmp_path_factory.getbasetemp())
    part = roles(models.dataset.folder, models.dataset, None, measured=3).report
    with opened(part, read_source(models.onnx), tmp_path, threads=1) as judge:
        assert judge is not None
        assert judge.images.shape == (3, 3, 64, 64)
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    with opened(None, read_source(models.onnx), tmp_path) as nothing:
        assert nothing is None
