"""The ONNX files that this folder's tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.artifacts import Artifacts, shared_artifacts


@pytest.fixture(scope="session")
def artifacts(run_folder: Path) -> Artifacts:
    return shared_artifacts(run_folder)
