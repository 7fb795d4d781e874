"""The demo model that every command takes when none is named: its size, its description, its accuracy, and the tour with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import complaint, invoke, ok, run
from yolact_deploy.cli.common import demo_picture, demo_weights
from yolact_deploy.data import SHAPES
from yolact_deploy.drawing import is_overlay
from yolact_deploy.model import load_checkpoint
from yolact_deploy.model.embedded import read_embedded


def test_the_demo_weights_are_small_and_explain_themselves() -> None:
    path = demo_weights()
    assert path.stat().st_size <= 8_000_000
    found = load_checkpoint(path)
    assert found.variant.name == "yolact_nano"
    assert found.classes == SHAPES
    embedded = read_embedded(path)
    assert embedded is not None
    assert embedded.notes["iterations"] >= 1000
    note = (path.parent / "README.md").read_text(encoding="utf-8")
    for word in ("make-shapes", "train", "seed", "mask AP", str(embedded.notes["iterations"])):
        assert word in note.replace(",", "") or word in note


def test_predict_and_export_take_the_demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "taking the demo model" in ok(invoke("predict", "--json", "found.json"))
    assert is_overlay(tmp_path / "artifacts" / "predictions" / "drawn.overlay.png")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found
    assert {one["category_id"] for one in found} <= set(SHAPES.category_ids)
    assert "taking the demo model" in ok(invoke("export"))
    assert (tmp_path / "artifacts" / "yolact_nano_shapes.onnx").is_file()


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``evaluate`` says of the demo model, its ONNX FP32 and its ONNX FP16 on the default 200 pictures."""
    folder = tmp_path_factory.mktemp("demo")
    told = ok(run("evaluate", "--threads", 1, "--json", "--html", "page.html", cwd=folder))
    assert (folder / "page.html").stat().st_size < 8_000_000
    return dict(json.loads(told))


@pytest.mark.slow
def test_the_demo_model_is_accurate_and_its_exports_lose_nothing(proven: dict[str, Any]) -> None:
    assert proven["dataset"]["pictures"] == 200
    torch, onnx, half = proven["artifacts"]
    assert [one["kind"] for one in (torch, onnx, half)] == ["PyTorch", "ONNX FP32", "ONNX FP16"]
    assert torch["mask"]["ap"] >= 45
    assert abs(onnx["mask"]["ap"] - torch["mask"]["ap"]) < 0.02
    assert abs(half["mask"]["ap"] - torch["mask"]["ap"]) < 0.2
    for one in (onnx, half):
        parity = one["parity"]
        assert parity["reference"] > 500
        assert parity["partners"] + len(parity["excused"]) >= parity["reference"]
        assert parity["unexplained"] == []


@pytest.mark.slow
def test_the_tour_shows_real_detections_and_the_parity_table(tmp_path: Path) -> None:
    done = run("quickstart", "--pictures", 12, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = ("export to ONNX FP32, checked", "ONNX FP16", "predict, PyTorch", "build an engine FP16", "quickstart.overlay.png")
    for told in (*rows, "mask AP", "partners"):
        assert told in done.stdout, told
    overlay = tmp_path / "artifacts" / "quickstart.overlay.png"
    assert is_overlay(overlay)
    with Image.open(overlay) as image:
        drawn = np.asarray(image.convert("RGB"))
    assert drawn.shape == demo_picture().shape
    assert (drawn != demo_picture()).any(2).mean() > 0.01
    assert "<html" in (tmp_path / "artifacts" / "quickstart.html").read_text(encoding="utf-8")
    overlay.write_bytes(b"mine")
    message = complaint(invoke("quickstart", "-o", tmp_path / "artifacts"))
    assert "quickstart.overlay.png exists and was not written by this command" in message
