"""``selftest`` and ``inspect`` where there is a GPU, on the fake TensorRT; test_cli_selftest.py runs each in another process."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.cli.commands import invoke, ok
from tests.helpers.fake_engines import install, write_engine
from tests.helpers.stub_cuda import NOTHING, live
from yolact_deploy.cli.common import demo_picture
from yolact_deploy.engines.selftest import selftest_path, tolerance_of
from yolact_deploy.engines.sidecar import read_sidecar, sidecar_path, write_sidecar
from yolact_deploy.files import sha256_of
from yolact_deploy.runtime.selftesting import make_selftest

install("tensorrt")


def made(onnx: str, folder: str, *, shift: float = 0.0) -> Path:
    """An engine with a self-test whose expected scores, but the last, are `shift` above what it finds."""
    place = Path(folder) / f"shifted by {shift}"
    place.mkdir()
    engine = write_engine(Path(onnx), place)
    test = make_selftest(Path(onnx), demo_picture()[64:448], tolerance_of("fp16"), threads=1)
    scores = test.expected.scores + np.float32(shift)
    scores[-1] -= np.float32(shift)
    path = selftest_path(engine)
    path.write_text(replace(test, expected=replace(test.expected, scores=np.minimum(scores, np.float32(1)))).to_json(), "utf-8")
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    target = replace(sidecar[1], selftest={"file": path.name, "sha256": sha256_of(path)})
    write_sidecar(replace(sidecar[0], target=target.to_dict()), sidecar_path(engine))
    return engine


def assert_given_back() -> None:
    gc.collect()
    assert live() == NOTHING


def a_right_engine(onnx: str, folder: str) -> None:
    engine = made(onnx, folder)
    checked = json.loads(ok(invoke("selftest", engine, "--json")))["checked"]
    assert checked > 3
    assert ok(invoke("selftest", engine)) == f"{engine} passed: {checked} detections found as expected\n"
    assert ok(invoke("selftest", engine, "--quiet", "--device", "cuda:0", "--postprocess", "cpu")) == ""
    assert json.loads(ok(invoke("selftest", engine, "--json"))) == {"passed": True, "checked": checked, "problems": []}
    told = json.loads(ok(invoke("inspect", engine, "--json")))["self-test"]
    assert told.startswith(f"{engine.name}.selftest.json: {checked} detections to be found in a 512 x 384 picture, by ONNX Runtime ")
    assert_given_back()


def a_wrong_engine(onnx: str, folder: str) -> None:
    engine = made(onnx, folder, shift=-0.2)
    done = invoke("selftest", engine)
    assert (done.exit_code, done.stdout) == (1, "")
    *problems, last = done.stderr.splitlines()
    assert len(problems) > 2
    assert all(problem.startswith(("expected detection ", "found detection ")) for problem in problems)
    assert last.startswith(f"{engine} failed: {len(problems)} problems, ")
    assert last.endswith(" detections had to be found")
    as_json = invoke("selftest", engine, "--json")
    assert (as_json.exit_code, as_json.stderr) == (1, "")
    facts = json.loads(as_json.stdout)
    assert (facts["passed"], facts["problems"]) == (False, problems)
    quiet = invoke("selftest", engine, "--quiet")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (1, "", done.stderr)
    assert_given_back()
