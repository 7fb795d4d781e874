"""The ONNX files that this folder's tests read."""

from __future__ import annotations

import pytest

from tests.export.artifacts import Artifacts, shared_artifacts


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    return shared_artifacts(tmp_path_factory.getbasetemp())
