"""The exception tree: one root, a message, a mend, an exit code."""

from __future__ import annotations

import pickle

import pytest

from yolact_deploy import errors


def test_the_tree_is_what_is_exported() -> None:
    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert found == set(errors.__all__)
    assert all(issubclass(getattr(errors, name), errors.YolactDeployError) for name in found)


@pytest.mark.parametrize("name", errors.__all__)
def test_exit_codes(name: str) -> None:
    assert getattr(errors, name).exit_code == (3 if name == "BudgetMissedError" else 1)


def test_message_and_mend() -> None:
    error = errors.PictureError("Found a.", "Do b.")
    assert (error.message, error.mend, str(error)) == ("Found a.", "Do b.", "Found a. Do b.")
    assert str(errors.PictureError("Found a.")) == "Found a."


def test_a_missing_package_names_its_extra() -> None:
    error = errors.MissingDependencyError.of("torch", "torch", "Exporting")
    assert str(error) == 'Exporting needs torch, which is not installed. Run: pip install "yolact-deploy[torch]"'


def test_the_tree_drawing_names_every_error() -> None:
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in errors.__all__)


@pytest.mark.parametrize("error", [errors.PictureError("Found a.", "Do b."), errors.OutputError("Found a.")])
def test_errors_cross_process_borders(error: errors.YolactDeployError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: TID251 - our own bytes
    assert (type(again), again.message, again.mend, str(again)) == (type(error), error.message, error.mend, str(error))
