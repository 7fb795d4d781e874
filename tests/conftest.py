"""Fixtures that all rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports torch: more threads make small networks slower, and tests on a shared machine unsteady.
os.environ.setdefault("OMP_NUM_THREADS", "2")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """A folder of COCO photographs: ``images/``, ``instances_train.json``, ``instances_val.json``; it is not part of the project."""
    folder = Path(os.environ.get("YOLACT_DEPLOY_COCO_MINI", ROOT.parent / "shared" / "coco-mini"))
    if not (folder / "instances_val.json").is_file():
        pytest.skip(f"{folder} holds no photographs: name a folder with YOLACT_DEPLOY_COCO_MINI")
    return folder
