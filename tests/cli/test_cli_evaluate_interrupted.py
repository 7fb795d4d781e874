"""An evaluation that is interrupted, by Ctrl-C or a request to terminate, leaves no process behind and goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import complaint, ok, run, start
from tests.evaluation.models import Models, tiny_models
from yolact_deploy.evaluation.store import ResultStore

COUNT = 100


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return tiny_models(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many small pictures, so that there is time to interrupt."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for number in range(1, COUNT + 1):
        noise = generator.integers(0, 256, (150, 200, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{number}.png", compress_level=0)
    images = [{"id": number, "file_name": f"{number}.png", "width": 200, "height": 150} for number in range(1, COUNT + 1)]
    square = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
    square["segmentation"] = [[5, 5, 25, 5, 25, 25, 5, 25]]
    categories = [{"id": number, "name": name} for number, name in enumerate(("bird", "cat", "dog", "fish"), 1)]
    (folder / "many.json").write_text(json.dumps({"images": images, "annotations": [square], "categories": categories}))
    return folder / "many.json"


@pytest.fixture(scope="module")
def whole(models: Models, annotations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result files of an evaluation that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = ("evaluate", models.onnx, "--annotations", annotations, "--threads", 1, "--providers", "cpu")
    ok(run(*arguments, "--results", "out", "--quiet", cwd=folder))
    return folder / "out"


def running(group: int) -> list[str]:
    """The processes of that group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        state, _, its_group, *_ = rest.split()
        if int(its_group) == group and state != "Z":
            found.append(name)
    return found


@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGTERM)])
def test_an_interrupted_evaluation_goes_on(
    models: Models, annotations: Path, whole: Path, tmp_path: Path, workers: int, number: signal.Signals
) -> None:
    arguments = ("evaluate", models.onnx, "--annotations", annotations, "--threads", 1, "--providers", "cpu", "--workers", workers)
    process = start(*arguments, cwd=tmp_path, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    folder = tmp_path / "artifacts" / "evaluation"
    deadline = time.monotonic() + 120
    while sum(path.read_bytes().count(b"\n") for path in folder.glob("[!.]*.jsonl")) < 15:  # others get their names yet
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does it: to the workers too
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "yolact-deploy: error: Interrupted. Nothing was left half-written.\n")
    while running(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kept = sum(len(ResultStore.open(path)) for path in folder.glob("*.jsonl"))
    assert 10 < kept < COUNT
    told = ok(run(*arguments, "--results", "out", cwd=tmp_path))
    assert f"Saved out/{models.onnx.stem}.segm.json" in told
    if workers == 1:
        assert f"holds {kept} pictures of an earlier run" in told
    assert len(list(folder.iterdir())) == 1
    for path in whole.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_on_a_full_disk(models: Models, annotations: Path, tmp_path: Path) -> None:
    import resource

    def no_file_above_200_kb() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    arguments = ("evaluate", models.onnx, "--annotations", annotations, "--threads", 1, "--quiet")
    message = complaint(run(*arguments, cwd=tmp_path, preexec_fn=no_file_above_200_kb))
    assert "could not be written: File too large. Free some space and run the same command again" in message
    (path,) = (tmp_path / "artifacts" / "evaluation").iterdir()
    store = ResultStore.open(path)
    assert (store.damaged, 0 < len(store) < COUNT) == (0, True)
