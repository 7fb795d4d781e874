"""The models that this folder's tests run."""

from __future__ import annotations

import pytest

from tests.evaluation.models import Models, tiny_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return tiny_models(tmp_path_factory.getbasetemp())
