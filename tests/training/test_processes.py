"""Several processes that train together, as torchrun starts them, on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.house.tree import ROOT
from yolact_deploy.training.processes import Processes, join

WORKER = """
import json, sys
from dataclasses import replace
from pathlib import Path

import torch

from tests.training.together import settings, trainer
from yolact_deploy.training.processes import join

torch.set_num_threads(1)
processes = join()
folder, poisoned = Path(sys.argv[1]), sys.argv[2] == "poisoned"
made = trainer(folder, settings(batch=6), processes)
step = made._step
reports, evaluated = [], []

def poison(images, targets):
    if poisoned and made.progress.iteration == 1 and processes.rank == 1:
        images = images * float("nan")
    return step(images, targets)

made._step = poison
assert not processes.all_agree(processes.rank == 0, torch.device("cpu"))
assert processes.all_agree(True, torch.device("cpu"))
made.run(reports.append, evaluate=lambda path: evaluated.append(path) or 7.0, evaluate_every=2)
assert len(evaluated) == (2 if processes.first else 0)
torch.save({"state": made.network.state_dict(), "skipped": made.progress.skipped}, folder / f"rank{processes.rank}.pt")
"""


def together(folder: Path, mode: str = "plain") -> list[dict[str, object]]:
    """Two processes train in `folder`; what each ended with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), mode],
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    told = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]  # noqa: TID251  # written just above


def test_processes_end_with_the_same_weights_and_one_checkpoint(tmp_path: Path) -> None:
    first, second = together(tmp_path)
    states = [found["state"] for found in (first, second)]
    learned = [key for key in states[0] if "running" not in key and "tracked" not in key]
    assert all(torch.equal(states[0][key], states[1][key]) for key in learned)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "best.safetensors",
        "resume.safetensors",
        "tiny_3_2.safetensors",
        "tiny_4_3.safetensors",
    ]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_a_step_that_is_not_finite_for_one_is_skipped_by_all(tmp_path: Path) -> None:
    first, second = together(tmp_path, "poisoned")
    assert first["skipped"] == second["skipped"] == 1
    states = [found["state"] for found in (first, second)]
    assert all(bool(torch.isfinite(value).all()) for state in states for value in state.values())
    assert torch.equal(states[0]["fpn.lat_layers.0.weight"], states[1]["fpn.lat_layers.0.weight"])


def test_alone_nothing_happens() -> None:
    alone, module = Processes(), nn.Linear(1, 1)
    assert alone.first
    assert alone.wrap(module, torch.device("cpu")) is module
    assert alone.all_agree(True, torch.device("cpu"))
    assert not alone.all_agree(False, torch.device("cpu"))
    alone.wait()


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert join() == Processes()
