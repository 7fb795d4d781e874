"""The calibration's pictures: which are taken, in what order, what is remembered of them, and what an interrupted run goes on with."""

from __future__ import annotations

import gc
import hashlib
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.data.coco_files import read, write
from yolact_deploy.calibration import pictures as module
from yolact_deploy.calibration.pictures import CalibrationPictures, PictureRecord, fingerprint_of
from yolact_deploy.data import read_dataset, sample_picture
from yolact_deploy.drawing import save_picture
from yolact_deploy.errors import ConfigError, DatasetError
from yolact_deploy.manifest import InputSpec
from yolact_deploy.pictures import read_picture
from yolact_deploy.preprocess import prepare

SPEC = InputSpec(32)
RECORD = PictureRecord("sub/ä.png", "0f" * 32, 640, 480, 0xFEDC_BA98_7654_3210, (1.5, 0.0, 255.0))


def drawn(seed: int = 0, width: int = 40, height: int = 30) -> NDArray[np.uint8]:
    return sample_picture(width, height, seed)


def saved(path: Path, picture: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def folder_of(folder: Path, good: int, broken: int = 0) -> Path:
    """Pictures p00.png … and files b00.png … that are empty, truncated, or no pictures."""
    folder.mkdir(exist_ok=True)
    for index in range(good):
        saved(folder / f"p{index:02}.png", drawn(index))
    whole = saved(folder / "whole.png", drawn(99)).read_bytes()
    (folder / "whole.png").unlink()
    for index in range(broken):
        (folder / f"b{index:02}.png").write_bytes((b"", whole[: len(whole) // 2], b"no picture at all")[index % 3])
    return folder


def names(pictures: CalibrationPictures, **given: Any) -> list[str]:
    return [record.name for record, _ in pictures.stream(SPEC, **given)]


def tried(pictures: CalibrationPictures) -> list[str]:
    return [path.relative_to(pictures.folder).as_posix() for path in pictures.paths()]


def test_the_choice_is_that_of_the_sorted_names_and_the_seed(tmp_path: Path) -> None:
    pictures = CalibrationPictures.of_folder(folder_of(tmp_path, 12), 5, 3)
    order = [f"p{index:02}.png" for index in np.random.default_rng(3).permutation(12)]
    assert (pictures.found, pictures.seed, pictures.count, pictures.folder) == (12, 3, 5, tmp_path)
    assert pictures.paths() == [tmp_path / name for name in order]
    assert names(pictures) == order[:5]
    assert names(CalibrationPictures.of_folder(tmp_path, 5, 4)) != order[:5]
    assert names(CalibrationPictures.of_folder(tmp_path, None, 3)) == names(CalibrationPictures.of_folder(tmp_path, 99, 3)) == order
    assert CalibrationPictures.of_folder(tmp_path, 99, 3).count == 12
    assert repr(pictures).endswith("5 of 12 pictures, seed 3)")


def test_listing_order_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tried(CalibrationPictures.of_folder(folder_of(tmp_path, 9), None, 0))
    listed = module.list_pictures
    monkeypatch.setattr(module, "list_pictures", lambda place: listed(place)[::-1])
    assert tried(CalibrationPictures.of_folder(tmp_path, None, 0)) == wanted


def test_folders_below_are_searched_and_overlays_and_hidden_files_are_not(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.png", "a/deep/d.webp", ".hidden.png", ".folder/e.png", "a/own.overlay.png"):
        saved(tmp_path / name, drawn())
    (tmp_path / "note.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    save_picture(tmp_path / "a" / "c.overlay.png", drawn())
    assert sorted(tried(CalibrationPictures.of_folder(tmp_path, None, 0))) == ["a/c.png", "a/deep/d.webp", "a/own.overlay.png", "b.JPG"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    folder_of(tmp_path / "elsewhere", 2)
    folder_of(tmp_path / "set", 1)
    for name, target in (("a", "elsewhere"), ("b", "elsewhere"), ("round", "set")):
        (tmp_path / "set" / name).symlink_to(tmp_path / target)
    assert sorted(tried(CalibrationPictures.of_folder(tmp_path / "set", None, 0))) == ["a/p00.png", "a/p01.png", "p00.png"]


@pytest.mark.parametrize(("layout", "channels"), [("float", "rgb"), ("raw", "rgb"), ("raw", "bgr")])
def test_the_input_is_what_inference_prepares(tmp_path: Path, layout: Any, channels: Any) -> None:
    spec = InputSpec(24, layout, channels)
    pictures = CalibrationPictures.of_folder(folder_of(tmp_path, 3), None, 0)
    for (record, image), path in zip(pictures.stream(spec), pictures.paths(), strict=True):
        wanted = prepare(read_picture(path), spec)
        assert image.shape == (1, *wanted.shape)
        assert image.dtype == wanted.dtype
        np.testing.assert_array_equal(image[0], wanted)
        assert record.name == path.name


def test_the_record_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(drawn()).save(tmp_path / "turned.png", exif=exif)
    ((record, _),) = CalibrationPictures.of_folder(tmp_path, None, 0).stream(SPEC)
    upright = np.rot90(drawn(), -1)
    assert record == PictureRecord(
        "turned.png",
        hashlib.sha256((tmp_path / "turned.png").read_bytes()).hexdigest(),
        30,
        40,
        fingerprint_of(np.ascontiguousarray(upright)),
        record.mean,
    )
    np.testing.assert_allclose(record.mean, upright.reshape(-1, 3).mean(axis=0), atol=6e-4)
    assert list(CalibrationPictures.of_folder(tmp_path, None, 0).records()) == [record]


def test_what_cannot_be_read_is_skipped_and_the_next_takes_its_place(tmp_path: Path) -> None:
    pictures = CalibrationPictures.of_folder(folder_of(tmp_path, 8, 6), 6, 1)
    order = tried(pictures)
    good = [name for name in order if name.startswith("p")][:6]
    bad = [name for name in order[: order.index(good[-1])] if name.startswith("b")]
    assert len(bad) >= 3, "the seed shows nothing"
    assert pictures.skipped == []
    assert names(pictures) == good
    assert [name for name, _ in pictures.skipped] == bad
    for name, sentence in pictures.skipped:
        assert name in sentence
        assert any(reason in sentence for reason in ("is empty (0 bytes)", "is truncated or damaged", "is no picture")), sentence
    assert names(pictures) == good, "a second stream differs"
    assert len(pictures.skipped) == len(bad)


def test_fewer_come_where_fewer_can_be_read(tmp_path: Path) -> None:
    pictures = CalibrationPictures.of_folder(folder_of(tmp_path, 2, 5), 4, 0)
    assert pictures.count == 4
    assert sorted(names(pictures)) == ["p00.png", "p01.png"]
    assert len(pictures.skipped) == 5


def test_a_mended_picture_does_not_change_the_choice_of_a_second_stream(tmp_path: Path) -> None:
    pictures = CalibrationPictures.of_folder(folder_of(tmp_path, 3, 2), None, 0)
    first = names(pictures)
    for name, _ in pictures.skipped:
        saved(tmp_path / name, drawn())
    assert names(pictures) == first


def test_reading_errors_of_the_system_are_skipped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "sha256_of", refuse)
    with pytest.raises(DatasetError, match=r"None of the 2 pictures in .* can be read\. The first: The picture .* Permission denied"):
        names(CalibrationPictures.of_folder(folder_of(tmp_path, 2), None, 0))


def test_one_picture_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Any]] = []

    def watched(path: Path) -> NDArray[np.uint8]:
        gc.collect()
        assert [ref for ref in alive if ref() is not None] == [], "the picture before is still there"
        picture = read_picture(path)
        alive.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(module, "read_picture", watched)
    for _, image in CalibrationPictures.of_folder(folder_of(tmp_path, 4), None, 0).stream(SPEC):
        assert alive[-1]() is None, "the picture lives beside the input"
        alive.append(weakref.ref(image))
        del image
    assert len(alive) == 8


def test_of_dataset_takes_the_listed_pictures_alone(tmp_path: Path) -> None:
    images = [
        {"id": i, "file_name": name, "width": 40, "height": 30}
        for i, name in ((1, "b.png"), (2, "sub/a.png"), (3, "gone.png"), (4, "b.png"))
    ]
    for name in ("b.png", "sub/a.png", "unlisted.png"):
        saved(tmp_path / name, drawn())
    pictures = CalibrationPictures.of_dataset(read(tmp_path, images=images), None, 0)
    assert (pictures.found, pictures.count, pictures.folder) == (3, 3, tmp_path)
    assert tried(pictures) == [["b.png", "gone.png", "sub/a.png"][index] for index in np.random.default_rng(0).permutation(3)]
    assert sorted(names(pictures)) == ["b.png", "sub/a.png"]
    ((name, sentence),) = pictures.skipped
    assert name == "gone.png"
    assert "does not exist" in sentence


def test_a_dataset_without_any_picture(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "gone.png", "width": 4, "height": 3}]
    dataset = read_dataset(write(tmp_path, {"images": images, "annotations": [], "categories": [{"id": 1, "name": "x"}]}), tmp_path)
    with pytest.raises(DatasetError, match=r"None of the 1 pictures .* The first: The picture .*gone\.png does not exist"):
        names(CalibrationPictures.of_dataset(dataset, None, 0))


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere does not exist\. Name the folder"):
        CalibrationPictures.of_folder(tmp_path / "nowhere", None, 0)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DatasetError, match=r"a\.txt is no folder"):
        CalibrationPictures.of_folder(tmp_path / "a.txt", None, 0)
    with pytest.raises(DatasetError, match=r"hold no picture \(\.bmp .*\)\. Name a folder"):
        CalibrationPictures.of_folder(tmp_path, None, 0)
    folder_of(tmp_path / "broken", 0, 3)
    pictures = CalibrationPictures.of_folder(tmp_path / "broken", 2, 0)
    first = tried(pictures)[0]
    with pytest.raises(DatasetError, match=rf"None of the 3 pictures in .*broken can be read\. The first: .*{first} is"):
        names(pictures)


def test_folders_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "open", 1)
    (tmp_path / "closed").mkdir()
    scandir, closed = module.os.scandir, {tmp_path / "closed"}

    def scan(place: Any) -> Any:
        if Path(place) in closed:
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr("os.scandir", scan)
    pictures = CalibrationPictures.of_folder(tmp_path, None, 0)
    assert names(pictures) == ["open/p00.png"]
    assert pictures.skipped == [("closed", f"The folder {tmp_path / 'closed'} cannot be listed: Permission denied.")]
    closed.add(tmp_path)
    with pytest.raises(DatasetError, match=r"cannot be listed: Permission denied\. Check"):
        CalibrationPictures.of_folder(tmp_path, None, 0)


@pytest.mark.parametrize(
    ("count", "seed", "sentence"), [(0, 0, "The count of calibration pictures is 0, at least 1"), (1, -1, "The seed is -1")]
)
def test_bad_numbers(tmp_path: Path, count: int, seed: int, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        CalibrationPictures.of_folder(folder_of(tmp_path, 1), count, seed)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("mixed") / "set", 7, 5)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(0, 50), st.integers(0, 9), st.booleans())
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(mixed: Path, count: int, seed: int, stop: int, told: bool) -> None:
    whole = CalibrationPictures.of_folder(mixed, count, seed)
    wanted = list(whole.stream(SPEC))
    before = CalibrationPictures.of_folder(mixed, count, seed)
    seen = [pair for pair, _ in zip(before.stream(SPEC), range(stop))]
    after = CalibrationPictures.of_folder(mixed, count, seed)
    opened: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_picture", lambda path: (opened.append(path.name), read_picture(path))[1])
        known = {record.name: record for record, _ in seen}
        seen += after.stream(SPEC, known=known, skip=list(known), failed=dict(before.skipped) if told else ())
    assert [record for record, _ in seen] == [record for record, _ in wanted]
    for (_, found), (_, image) in zip(seen, wanted, strict=True):
        np.testing.assert_array_equal(found, image)
    assert after.skipped == whole.skipped
    assert not set(opened) & set(known)
    assert not told or not set(opened) & set(dict(before.skipped))


def test_failed_without_reasons_is_passed_over_all_the_same(tmp_path: Path) -> None:
    pictures = CalibrationPictures.of_folder(folder_of(tmp_path, 5), 3, 0)
    order = tried(pictures)
    assert names(pictures, failed=[order[0], order[2]]) == [order[1], order[3], order[4]]
    assert pictures.skipped == [(order[0], "It could not be read before."), (order[2], "It could not be read before.")]


def test_a_longer_run_begins_with_the_shorter(tmp_path: Path) -> None:
    short, long = (CalibrationPictures.of_folder(folder_of(tmp_path, 9, 2), count, 0) for count in (3, 7))
    done = names(short)
    assert [*done, *names(long, skip=done)] == names(CalibrationPictures.of_folder(tmp_path, 7, 0))


def test_another_choice_cannot_be_resumed(tmp_path: Path) -> None:
    folder_of(tmp_path, 9)
    run = CalibrationPictures.of_folder(tmp_path, 4, 0)
    done, other = names(run), CalibrationPictures.of_folder(tmp_path, 4, 1)
    assert set(tried(other)[:4]) != set(done)
    with pytest.raises(DatasetError, match=r"which went past p0\d\.png without using it.* Calibrate with what that run was given"):
        names(other, skip=done)
    with pytest.raises(DatasetError, match="which used 4 pictures"):
        names(CalibrationPictures.of_folder(tmp_path, 3, 0), skip=done)
    (tmp_path / done[1]).unlink()
    with pytest.raises(DatasetError, match=f"which used {done[1]}, now missing"):
        names(CalibrationPictures.of_folder(tmp_path, 4, 0), skip=done)


def test_known_records_are_taken_over_and_altered_pictures_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = CalibrationPictures.of_folder(folder_of(tmp_path, 3), None, 0)
    known = {record.name: record for record in pictures.records()}
    with monkeypatch.context() as patch:
        patch.setattr(module, "fingerprint_of", lambda picture: pytest.fail("the record was made anew"))
        assert [record for record, _ in pictures.stream(SPEC, known)] == [known[name] for name in tried(pictures)]
    saved(tmp_path / "p01.png", drawn(50))
    with pytest.raises(DatasetError, match=r"p01\.png was altered while .* another SHA-256\. Start"):
        names(pictures, known=known)
    (tmp_path / "p01.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"p01\.png was altered while .* no longer be read\. Start"):
        names(pictures, known=known)


def test_records_go_through_json() -> None:
    found = json.loads(json.dumps(RECORD.to_json()))
    assert found["fingerprint"] == "fedcba9876543210"
    assert PictureRecord.from_json(found) == RECORD


@given(
    st.integers(0, 2**64 - 1),
    st.tuples(*[st.floats(0, 255)] * 3),
    st.integers(1, 10**6),
    st.text(min_size=1).filter(lambda t: "/" not in t),
)
def test_any_record_goes_through_json(fingerprint: int, mean: tuple[float, float, float], width: int, name: str) -> None:
    record = PictureRecord(name if name != ".." else "x", "ab" * 32, width, 7, fingerprint, mean)
    assert PictureRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


BAD = {
    "name": ["", 5, None, "/a.png", "../a.png", "a/../../b.png"],
    "sha256": ["", "0f" * 31, "0F" * 32, "zz" * 32, 5, None],
    "width": [0, -1, 1.5, True, "5", None],
    "height": [0, -1, 1.5, True, "5", None],
    "fingerprint": [5, "0" * 15, "0" * 17, "-" + "0" * 15, "0x" + "0" * 14, None],
    "mean": [
        [1, 2],
        [1, 2, 3, 4],
        [1, 2, "3"],
        [1, 2, True],
        [1, 2, -0.5],
        [1, 2, 255.5],
        [1, 2, float("nan")],
        [1, 2, 10**400],
        5,
        "abc",
        None,
    ],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_odd_records_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^the {key} of a picture's record is"):
        PictureRecord.from_json({**RECORD.to_json(), key: value})


@pytest.mark.parametrize("key", [*BAD, "more"])
def test_records_have_all_fields_and_no_others(key: str) -> None:
    found = RECORD.to_json()
    changed = {**found, "more": 1} if key == "more" else {other: value for other, value in found.items() if other != key}
    for odd in (changed, [changed], None, "text"):
        with pytest.raises(ValueError, match=r"^a picture's record is"):
            PictureRecord.from_json(odd)


def test_the_permutation_of_a_seed_stays_what_it_is() -> None:
    """It is part of what a seed means: other pictures would give other ranges."""
    assert np.random.default_rng(0).permutation(10).tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]


def test_the_fingerprint_compares_cells_with_their_left_neighbours() -> None:
    cells = np.full((8, 9), 100, np.uint8)
    cells[0, 1:], cells[7, 8] = 140, 200
    picture = np.repeat(np.kron(cells, np.ones((10, 10), np.uint8))[..., None], 3, axis=2)
    assert fingerprint_of(picture) == 1 << 63 | 1
    assert fingerprint_of(np.ascontiguousarray(picture[:, ::-1])) == 1, "0 is kept for blank pictures"


def test_little_is_enough_not_to_be_blank() -> None:
    dot = np.zeros((480, 640, 3), np.uint8)
    dot[200:210, 300:310, 2] = 255
    assert fingerprint_of(dot) != 0
    stripes = np.zeros((240, 320, 3), np.uint8)
    stripes[::2] = 20
    assert fingerprint_of(np.ascontiguousarray(np.repeat(stripes, 8, axis=0))) != 0
