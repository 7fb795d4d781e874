"""``yolact-deploy make-shapes``: what it prints, what it refuses, and what an interruption leaves."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from pathlib import Path

import pytest

from tests.cli.commands import complaint, invoke, ok, run, start
from tests.cli.test_cli_interrupted import contents, no_file_above
from yolact_deploy.data import read_dataset


def test_without_arguments_it_writes_into_the_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = ok(invoke("make-shapes", "--size", 64))
    data = read_dataset("artifacts/shapes/annotations.json")
    assert len(data) == 200
    objects = sum(len(data.instances(image.id)) for image in data.images)
    assert text == (
        f"Saved artifacts/shapes/annotations.json: 200 pictures of 64 px with {objects} objects of 8 classes, seed 0\n"
        "Pictures lie in artifacts/shapes/images\n"
    )
    assert data.missing_pictures() == []


def test_json_and_quiet(tmp_path: Path) -> None:
    told = json.loads(ok(invoke("make-shapes", tmp_path / "a", "--count", 3, "--seed", 5, "--json")))
    path = tmp_path / "a" / "annotations.json"
    data = read_dataset(path)
    assert told == {
        "annotations": str(path),
        "images": str(tmp_path / "a" / "images"),
        "count": 3,
        "objects": sum(len(data.instances(image.id)) for image in data.images),
        "seed": 5,
        "size": 256,
        "classes": ["disc", "ring", "square", "frame", "triangle", "star", "cross", "bar"],
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    info = json.loads(path.read_text())["info"]
    assert (info["seed"], info["size"], info["count"]) == (5, 256, 3)
    assert ok(invoke("make-shapes", tmp_path / "a", "--count", 2, "--quiet")) == ""
    assert len(read_dataset(path)) == 2


def test_what_it_refuses(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert complaint(invoke("make-shapes", tmp_path, "--count", 1)) == (
        f"{tmp_path} holds files that this command did not write. Choose another folder, or pass --force."
    )
    ok(invoke("make-shapes", tmp_path, "--count", 1, "--force"))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert "0 pictures were asked for" in complaint(invoke("make-shapes", tmp_path / "a", "--count", 0))
    assert invoke("make-shapes", tmp_path / "a", "--count", "many").exit_code == 2


def test_a_set_that_somebody_changed_is_not_replaced(tmp_path: Path) -> None:
    assert "Saved" in ok(invoke("make-shapes", tmp_path / "set", "--count", 2, "--size", 64))
    assert "Replaced" in ok(invoke("make-shapes", tmp_path / "set", "--count", 3, "--size", 64))
    path = tmp_path / "set" / "annotations.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"disc"', '"plate"'), encoding="utf-8")
    before = contents(tmp_path)
    assert "was changed since make-shapes wrote it" in complaint(invoke("make-shapes", tmp_path / "set", "--count", 2, "--size", 64))
    assert contents(tmp_path) == before
    ok(invoke("make-shapes", tmp_path / "set", "--count", 2, "--size", 64, "--force"))


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_the_old_set(tmp_path: Path, end: signal.Signals) -> None:
    ok(invoke("make-shapes", tmp_path / "set", "--count", 2, "--size", 64))
    before = contents(tmp_path)
    process = start("make-shapes", "set", "--count", "100000", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("set/.shapes-*/000003.png")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(end)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err == "yolact-deploy: error: Interrupted. Nothing was left half-written.\n"
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_the_old_set(tmp_path: Path) -> None:
    ok(invoke("make-shapes", tmp_path / "set", "--count", 2, "--size", 64))
    before = contents(tmp_path)
    done = run("make-shapes", "set", "--count", "2", cwd=tmp_path, preexec_fn=no_file_above(20_000))
    assert complaint(done).startswith("set could not be written: File too large.")
    assert contents(tmp_path) == before
