"""``yolact-deploy predict``: pictures of every kind, folders with broken ones among them, results that COCO's tools read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from tests.cli.commands import PREFIX, complaint, invoke, ok, run
from tests.export.artifacts import Artifacts
from yolact_deploy.classes import COCO as COCO_CLASSES
from yolact_deploy.data import sample_picture
from yolact_deploy.drawing import is_overlay

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
LOW = ("--score-threshold", "0")


@pytest.fixture(scope="module")
def model(artifacts: Artifacts) -> Path:
    return artifacts.onnx(batch="dynamic", opset=17)


def save(path: Path, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sample_picture(160, 120, seed=seed)).save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_one_picture(model: Path, tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png")
    text = ok(invoke("predict", model, picture, "--save", tmp_path / "out", *LOW))
    overlay = tmp_path / "out" / "a.overlay.png"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [overlay.name]
    assert is_overlay(overlay)
    assert pixels(overlay).shape == (120, 160, 3)
    assert (pixels(overlay) != pixels(picture)).any()
    assert "Detector(yolact_nano 256px, 80 classes, onnxruntime on " in text
    assert "1 picture, 100 detections; a picture took: read " in text
    assert all(stage in text for stage in ("preprocess", "inference", "postprocess"))


def test_a_folder_with_a_broken_picture_is_done_but_for_that(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    files = [save(folder / "000000000001.png"), save(folder / "000000000012.jpg", seed=1), save(folder / "000000000007.bmp", seed=2)]
    (folder / "000000000003.jpg").write_bytes(files[1].read_bytes()[:300])
    (folder / "000000000004.png").touch()
    (folder / "notes.txt").write_text("no picture")
    done = run("predict", model, folder, "--save", "out", "--json", "found.json", *LOW, cwd=tmp_path)
    assert done.returncode == 1
    first, second, last = done.stderr.splitlines()
    assert first.startswith("yolact-deploy: skipped: ")
    assert "000000000003.jpg is truncated or damaged" in first
    assert "000000000004.png is empty (0 bytes)" in second
    assert last == f"{PREFIX}2 of 5 pictures could not be read and were skipped. See the lines above."
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "000000000001.overlay.png",
        "000000000012.overlay.jpg",
        "000000000007.bmp.overlay.png",
    }
    assert all(is_overlay(path) for path in (tmp_path / "out").iterdir())
    assert "3 pictures, 300 detections" in done.stdout
    assert "\x1b" not in done.stdout
    check_results(tmp_path / "found.json", {1, 7, 12})


def check_results(path: Path, images: set[int]) -> None:
    """COCO's own loader reads the file, masks and all."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": identifier, "width": 160, "height": 120} for identifier in images],
        "categories": [{"id": identifier, "name": name} for identifier, name in zip(COCO_CLASSES.category_ids, COCO_CLASSES.names)],
        "annotations": [],
    }
    truth.createIndex()
    results = truth.loadRes(str(path))
    entries = results.loadAnns(results.getAnnIds())
    assert {entry["image_id"] for entry in entries} == images
    assert {entry["category_id"] for entry in entries} <= set(COCO_CLASSES.category_ids)
    for entry in entries:
        assert results.annToMask(entry).shape == (120, 160)
        assert 0 < entry["score"] <= 1
        assert entry["bbox"][2] > 0 < entry["bbox"][3]
    assert len(entries) > 50


def test_the_real_command_is_quiet_where_it_is_asked_to_be(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.png")
    assert ok(run("predict", model, "in", "--save", "out", "--quiet", cwd=tmp_path)) == ""
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_no_overlays(model: Path, tmp_path: Path) -> None:
    ok(invoke("predict", model, save(tmp_path / "a.png"), "--no-overlays", "--save", tmp_path / "out", "--json", tmp_path / "a.json", *LOW))
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.json"}


def test_nothing_found_is_a_valid_empty_result(model: Path, tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png")
    arguments = ("--score-threshold", "1", "--save", tmp_path, "--json", tmp_path / "a.json")
    text = ok(invoke("predict", model, picture, *arguments))
    assert json.loads((tmp_path / "a.json").read_text()) == []
    np.testing.assert_array_equal(pixels(tmp_path / "a.overlay.png"), pixels(picture))
    assert is_overlay(tmp_path / "a.overlay.png")
    assert "1 picture, 0 detections" in text
    ok(invoke("predict", model, picture, *arguments))  # and it is known as one's own


def test_a_checkpoint_predicts_too(artifacts: Artifacts, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    arguments = (
        "--config",
        artifacts.plus_config,
        "--device",
        "cpu",
        "--threads",
        "2",
        "--no-overlays",
        "--json",
        tmp_path / "a.json",
        *LOW,
    )
    text = ok(invoke("predict", artifacts.plus_weights, tmp_path / "a.png", *arguments))
    assert "Detector(tiny_plus 256px, 5 classes, torch on cpu)" in text
    assert {entry["image_id"] for entry in json.loads((tmp_path / "a.json").read_text())} == {"a.png"}


def test_what_somebody_else_wrote_is_not_replaced(model: Path, tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png")
    foreign = save(tmp_path / "a.overlay.png", seed=5).read_bytes()
    message = complaint(invoke("predict", model, picture, "--save", tmp_path, "--quiet"))
    assert "a.overlay.png exists and was not written by this command" in message
    assert (tmp_path / "a.overlay.png").read_bytes() == foreign
    ok(invoke("predict", model, picture, "--save", tmp_path, "--force", *LOW))
    mine = (tmp_path / "a.overlay.png").read_bytes()
    assert mine != foreign
    ok(invoke("predict", model, picture, "--save", tmp_path, "--score-threshold", "1"))
    assert (tmp_path / "a.overlay.png").read_bytes() != mine


@pytest.mark.parametrize("content", ['{"images": []}', "[1, 2]", '[{"image_id": 1}]', "notes", "[" * 100_000])
def test_results_of_somebody_else_are_not_replaced(model: Path, tmp_path: Path, content: str) -> None:
    target = tmp_path / "a.json"
    target.write_text(content)
    arguments = ("predict", model, save(tmp_path / "a.png"), "--no-overlays", "--json", target, *LOW)
    assert "a.json exists and was not written by this command" in complaint(invoke(*arguments))
    assert target.read_text() == content
    ok(invoke(*arguments, "--force"))
    written = target.read_text()
    assert len(json.loads(written)) > 10
    ok(invoke(*arguments))
    assert target.read_text() == written


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--providers", "nonsense"), "has no provider nonsense; it has "),
        (("--providers", ","), "has no provider (none named)"),
        (("--device", "cpu"), "device cannot be given with an ONNX file"),
        (("--variant", "yolact_base"), "variant cannot be given with an ONNX file"),
        (("--save", "/dev/null/out"), "could not be written"),
        (("--json", "/dev/null/a.json"), "could not be written"),
    ],
)
def test_options_that_do_not_do(model: Path, tmp_path: Path, arguments: tuple[str, ...], wanted: str) -> None:
    picture = save(tmp_path / "a.png")
    message = complaint(invoke("predict", model, picture, "--save", tmp_path / "out", "--quiet", *arguments))
    assert wanted in message


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("missing.png", None, "does not exist"),
        ("empty.png", b"", "is empty (0 bytes)"),
        ("text.jpg", b"hello there", "is no picture: it starts with"),
        ("truncated.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is truncated or damaged"),
        ("in", None, "does not exist"),
    ],
)
def test_a_picture_that_cannot_be_read(model: Path, tmp_path: Path, name: str, content: bytes | None, wanted: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert wanted in complaint(invoke("predict", model, tmp_path / name, "--save", tmp_path / "out", "--quiet"))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_pictures(model: Path, tmp_path: Path) -> None:
    assert "holds no picture" in complaint(invoke("predict", model, tmp_path, "--quiet"))


def make(kind: str, path: Path) -> tuple[int, int]:
    """Write a picture of that kind; returns height and width as it is seen."""
    colour = Image.fromarray(sample_picture(60, 40))
    if kind == "one pixel":
        Image.new("RGB", (1, 1)).save(path)
        return 1, 1
    if kind == "very wide":
        Image.fromarray(np.tile(sample_picture(1000, 12), (1, 20, 1))).save(path)
        return 12, 20_000
    if kind == "very high":
        Image.fromarray(np.tile(sample_picture(9, 1000), (20, 1, 1))).save(path)
        return 20_000, 9
    if kind == "16-bit":
        Image.fromarray((np.arange(2400).reshape(40, 60) * 27).astype(np.uint16)).save(path)
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        colour.save(path, exif=exif)
        return 60, 40
    elif kind == "animated":
        colour.save(path, save_all=True, append_images=[colour.rotate(90), colour.rotate(180)])
    else:
        colour.convert({"grey": "L", "CMYK": "CMYK", "alpha": "RGBA", "palette": "P"}[kind]).save(path)
    return 40, 60


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("one pixel", "a.png"),
        ("very wide", "a.png"),
        ("very wide", "a.jpg"),
        ("very high", "a.png"),
        ("16-bit", "a.png"),
        ("grey", "a.jpg"),
        ("CMYK", "a.jpg"),
        ("alpha", "a.png"),
        ("alpha", "a.webp"),
        ("palette", "a.png"),
        ("rotated", "a.jpg"),
        ("animated", "a.gif"),
    ],
)
def test_pictures_of_every_kind(model: Path, tmp_path: Path, kind: str, name: str) -> None:
    size = make(kind, tmp_path / name)
    text = ok(invoke("predict", model, tmp_path / name, "--save", tmp_path / "out", "--json", tmp_path / "a.json", *LOW))
    assert "1 picture, 100 detections" in text
    (overlay,) = (tmp_path / "out").iterdir()
    assert pixels(overlay).shape == (*size, 3)
    entries = json.loads((tmp_path / "a.json").read_text())
    assert all(entry["segmentation"]["size"] == list(size) for entry in entries)


def test_models_that_do_not_do_are_one_line(artifacts: Artifacts, tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png")
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "cut.onnx").write_bytes(artifacts.onnx().read_bytes()[:100_000])
    wanted = {
        "no.onnx": "does not exist",
        "text.onnx": "no readable ONNX file",
        "cut.onnx": "no readable ONNX file",
        "a.png": "ends in .png",
    }
    for name, told in wanted.items():
        assert told in complaint(invoke("predict", tmp_path / name, picture, "--quiet"))


def test_pictures_whose_names_would_meet_keep_their_own_overlay_and_id(model: Path, tmp_path: Path) -> None:
    for index, name in enumerate(("1.jpg", "1.JPG", "1.png")):
        save(tmp_path / "in" / name, seed=index)
    ok(invoke("predict", model, tmp_path / "in", "--save", tmp_path / "out", "--json", tmp_path / "found.json", *LOW))
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert len({entry["image_id"] for entry in json.loads((tmp_path / "found.json").read_text())}) == 3


def test_overlays_saved_beside_the_pictures_are_not_taken_for_pictures(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for _ in range(2):
        assert "1 picture, " in ok(invoke("predict", model, tmp_path, "--save", tmp_path, *LOW))
