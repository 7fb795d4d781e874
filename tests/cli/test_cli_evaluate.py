"""``yolact-deploy evaluate``: tables, JSON, result files, exit codes, and that an interruption costs nothing but time."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import complaint, invoke, ok, run
from tests.evaluation.made import by_hand, filled_store
from tests.evaluation.models import Models, tiny_models
from yolact_deploy.cli import evaluate as command
from yolact_deploy.evaluation.store import ResultStore

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return tiny_models(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to artifacts/ goes below `tmp_path`."""
    monkeypatch.chdir(tmp_path)


def on_data(models: Models, *arguments: object) -> tuple[object, ...]:
    return ("evaluate", *arguments, "--annotations", models.dataset.annotations, "--threads", "1")


def of_checkpoint(models: Models) -> tuple[object, ...]:
    return ("--config", models.config, "--classes", models.classes)


def document(models: Models, *arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ok(invoke(*on_data(models, *arguments), "--json")))
    return found


def test_a_checkpoint_and_its_onnx(models: Models) -> None:
    text = ok(invoke(*on_data(models, models.weights, models.onnx, "--reference", models.weights, "--per-class", *of_checkpoint(models))))
    for words in (
        "tiny_1_2.safetensors",
        "ONNX FP32",
        "box AP",
        "AP75",
        "0.95",
        "the reference",
        "leakage",
        "12 pictures with",
        "2 pictures without annotations evaluated like all others; --like-original leaves them out.",
        "tiny_1_2.onnx against the reference:",
        "fish",
    ):
        assert words in text, words
    assert "Speed of tiny_1_2.onnx: " in text
    assert "\x1b" not in text


def test_json_tells_everything(models: Models) -> None:
    found = document(models, models.onnx, "--reference", models.weights, *of_checkpoint(models))
    assert [artifact["kind"] for artifact in found["artifacts"]] == ["PyTorch", "ONNX FP32"]
    assert found["reference"] == found["artifacts"][0]["name"]
    assert found["dataset"]["unannotated"] == 2
    assert abs(found["artifacts"][1]["difference"]["reference"]) < 0.02
    assert found["artifacts"][1]["parity"]["unexplained"] == []
    assert "per_class" not in found["artifacts"][0]["mask"]
    assert "per_class" in document(models, models.onnx, "--per-class", "--limit", 2)["artifacts"][0]["mask"]


def test_result_files_give_the_same_figures(models: Models, tmp_path: Path) -> None:
    store = filled_store(tmp_path / "moved.jsonl", models.dataset)
    store.write_results(tmp_path / "moved.json", "segm")
    found = document(models, "moved.json", models.onnx, "--results", "out")["artifacts"][0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{name}.{iou_type}.json" for name in ("moved", "tiny_1_2") for iou_type in ("bbox", "segm")
    }
    for iou_type, figures in (("bbox", found["box"]), ("segm", found["mask"])):
        expected = by_hand(models.dataset.annotations, tmp_path / "out" / f"moved.{iou_type}.json", iou_type).stats
        assert expected[0] > 0.05
        names = ("ap", "ap50", "ap75", "small", "medium", "large", "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
        for name, value in zip(names, expected):
            assert figures[name] == pytest.approx(100 * value, abs=1e-9), name
    again = document(models, "out/moved.segm.json")["artifacts"][0]
    assert again["kind"] == "results file"
    assert again["mask"]["by_threshold"] == found["mask"]["by_threshold"]


def test_result_files_are_replaced_but_nothing_else(models: Models, tmp_path: Path) -> None:
    arguments = on_data(models, models.onnx, "--results", "out", "--limit", 2, "--quiet")
    assert ok(invoke(*arguments)) == ""
    ok(invoke(*arguments))
    (tmp_path / "out" / "tiny_1_2.segm.json").write_text("my notes")
    assert "tiny_1_2.segm.json exists and was not written by this command" in complaint(invoke(*arguments))
    ok(invoke(*arguments, "--force"))
    assert len(json.loads((tmp_path / "out" / "tiny_1_2.segm.json").read_text())) > 0


def test_a_drop_ends_with_3(models: Models, tmp_path: Path) -> None:
    truth = models.dataset.ground_truth()["annotations"]
    perfect = [{**{key: entry[key] for key in ("image_id", "category_id", "segmentation")}, "score": 0.9} for entry in truth]
    (tmp_path / "perfect.json").write_text(json.dumps(perfect))
    (tmp_path / "half.json").write_text(json.dumps(perfect[::2]))
    arguments = on_data(models, "half.json", "--reference", "perfect.json", "--max-drop", "0.3")
    done = invoke(*arguments)
    assert complaint(done, 3).startswith("Mask AP falls below the reference perfect more than the allowed 0.3 points: half by ")
    assert "partners" in done.stdout  # the table comes before the verdict
    ok(invoke(*on_data(models, "half.json", "--reference", "perfect.json", "--max-drop", "99")))
    assert complaint(invoke(*on_data(models, "half.json", "--max-drop", "1"))).startswith("--max-drop was given without a reference.")


def test_workers_and_the_real_command(models: Models, tmp_path: Path) -> None:
    arguments = (*on_data(models, models.onnx), "--providers", "cpu")
    one = run(*arguments, "--json", "--results", "one", cwd=tmp_path)
    two = run(*arguments, "--json", "--results", "two", "--workers", "2", "--fresh", cwd=tmp_path)
    files = [[path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("one", "two")]
    assert files[0] == files[1]
    found = json.loads(ok(one)), json.loads(ok(two))
    assert found[0]["artifacts"][0]["mask"] == found[1]["artifacts"][0]["mask"]
    assert found[1]["settings"]["workers"] == 2
    assert shlex.split(found[0]["command"])[:2] == ["yolact-deploy", "evaluate"]
    told = ok(run(*arguments, cwd=tmp_path))
    assert "holds 12 pictures of an earlier run, which are not run again." in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.onnx",), "The model none.onnx does not exist"),
        (("--images", "."), "--images was given without --annotations."),
        (("a.onnx", "--device", "cpu"), "No model takes --device: none ends in .pth, .pt, .safetensors, .engine, .plan, .trt."),
        (("a.onnx", "--trust"), "No model takes --trust: none ends in .engine, .plan, .trt."),
        (("a.pth", "--providers", "cpu"), "No model takes --providers: none ends in .onnx."),
        (("a.onnx", "--annotations", "none.json"), "The annotation file none.json does not exist."),
    ],
)
def test_what_cannot_be(arguments: tuple[str, ...], message: str, models: Models) -> None:
    given = arguments if {"--images", "--annotations"} & set(arguments) else (*arguments, "--annotations", str(models.dataset.annotations))
    assert complaint(invoke("evaluate", *given)).startswith(message)


def test_missing_pictures(models: Models, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = complaint(invoke(*on_data(models, models.onnx, "--images", "empty")))
    assert message.startswith("12 of 12 pictures are not in empty; the first is 1.png.")
    assert "12 are missing" in complaint(invoke(*on_data(models, models.onnx, "--images", "empty", "--skip-missing")))


def test_like_original_is_told(models: Models) -> None:
    text = ok(invoke(*on_data(models, models.onnx, "--like-original")))
    assert "Pictures without annotations were left out, as the original does: 2." in text
    assert "10 pictures with" in text


def test_the_page(models: Models, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    arguments = on_data(models, models.onnx, "--reference", models.weights, *of_checkpoint(models), "--html", "page.html")
    assert "Saved page.html" in ok(invoke(*arguments))
    assert "tiny_1_2.onnx" in (tmp_path / "page.html").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text("my notes")
    assert "page.html" in complaint(invoke(*arguments))
    assert (tmp_path / "page.html").read_text() == "my notes"


def test_without_arguments_the_demo_model_is_taken(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's own training and export have their own tests: here stand-ins take their places."""
    monkeypatch.setattr(command, "demo_models", lambda out, with_checkpoint: [models.onnx, models.onnx])
    monkeypatch.setattr(command, "shapes_set", lambda part, count, out: models.dataset)
    found = json.loads(ok(invoke("evaluate", "--json")))
    assert found["reference"] == "tiny_1_2.onnx"
    assert len(found["artifacts"]) == 2
    assert found["artifacts"][1]["parity"]["missing"] == 0


def test_stores_lie_in_artifacts(models: Models, tmp_path: Path) -> None:
    ok(invoke(*on_data(models, models.onnx, "--limit", 3)))
    (path,) = (tmp_path / "artifacts" / "evaluation").iterdir()
    assert ResultStore.open(path).image_ids == (1, 2, 4)
    path.write_text("my notes")
    assert "holds no detections of yolact-deploy evaluate" in complaint(invoke(*on_data(models, models.onnx)))
