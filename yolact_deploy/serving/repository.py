"""Writing a model repository for Triton Inference Server: every model's folder whole, or none of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy import __version__
from yolact_deploy.errors import ConfigError, OutputError
from yolact_deploy.files import sha256_of
from yolact_deploy.serving.config import BACKENDS, config_text
from yolact_deploy.serving.models import RepositoryOptions, ServedModel, name_of, read_models

__all__ = ["ABOUT", "RepositoryModel", "RepositoryOptions", "write_repository"]

ABOUT = "yolact_deploy.json"
"""The file in each model's folder that says what is in it; Triton reads the configuration, labels that it names and versions only."""
_WRITER = "yolact-deploy triton-repository"


@dataclass(frozen=True)
class RepositoryModel:
    """A model that was written.

    Attributes:
        name: that clients call it by.
        folder: of the model.
        files: in it.
        config: text of its ``config.pbtxt``.
        max_batch_size: of the configuration.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    config: str
    max_batch_size: int


def write_repository(
    models: Sequence[Path],
    folder: Path,
    *,
    names: Sequence[str] = (),
    options: RepositoryOptions | None = None,
    force: bool = False,
) -> list[RepositoryModel]:
    """Write each of `models`, an ONNX file or an engine of TensorRT, as ``<folder>/<name>``; other models in `folder` stay.

    `names` are one for each of `models`, or none: then the files'. A folder that this function wrote, and in which nothing was changed
    since, is replaced; another one only with `force`, which removes all that is in it.

    Raises :class:`ModelFileError` for a file that cannot be served, :class:`ConfigError` for names or options that contradict each other
    or a model, :class:`MissingDependencyError` without tritonclient, :class:`OutputError` where folders may not or cannot be written.
    """
    options = options or RepositoryOptions()
    if names and len(names) != len(models):
        raise ConfigError(f"{len(names)} names were given for {len(models)} models.", "Give --name once for each MODEL, in their order.")
    called = list(names) or [name_of(path) for path in models]
    served = [one for path, name in zip(models, called, strict=True) for one in read_models(path, name, options)]
    _check_distinct(served)
    for model in served:
        _check_replaceable(folder / model.settings.name, force=force)
    contents = {model.settings.name: _contents(model) for model in served}
    _write(folder, contents)
    return [
        RepositoryModel(
            model.settings.name,
            folder / model.settings.name,
            tuple(folder / model.settings.name / file for file in contents[model.settings.name]),
            contents[model.settings.name]["config.pbtxt"].decode("utf-8"),
            model.settings.max_batch_size,
        )
        for model in served
    ]


def _check_distinct(served: list[ServedModel]) -> None:
    names = [model.settings.name for model in served]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"Two models would be called {twice}.", "Give each a name of its own: --name A --name B.")


def _contents(model: ServedModel) -> dict[str, bytes]:
    """The files of a model's folder, by their place in it."""
    files = {"config.pbtxt": config_text(model.settings).encode("utf-8")}
    if model.labels:
        files["labels.txt"] = "".join(f"{name}\n" for name in model.labels).encode("utf-8")
    files[f"1/{BACKENDS[model.settings.backend][1]}"] = model.content
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    about = {"written by": _WRITER, "version": __version__, "model": model.settings.name, "files": digests, **model.about}
    files[ABOUT] = (json.dumps(about, indent=1) + "\n").encode("ascii")
    return files


def _check_replaceable(target: Path, *, force: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OutputError(
            f"{target} is {'a link' if target.is_symlink() else 'a file'}, a folder was wanted.", "Remove it, or give --name."
        )
    if force or not target.exists():
        return
    try:
        foreign = _foreign(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be read: {error.strerror or error}.", "Choose another folder.") from None
    if foreign:
        raise OutputError(
            f"{target} exists, and {foreign}.",
            "Choose another folder or --name, or pass --force to remove what is in it and write it anew.",
        )


def _foreign(target: Path) -> str:
    """What in `target` this module did not write; empty where it wrote all of it."""
    try:
        about = json.loads((target / ABOUT).read_bytes())
        digests = dict(about["files"])
        ours = about["written by"] == _WRITER
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        ours, digests = False, {}
    if not ours:
        return "was not written by this command"
    for path in sorted(target.rglob("*")):
        place = path.relative_to(target).as_posix()
        if place in (ABOUT, "1") or (path.is_dir() and not path.is_symlink() and any(name.startswith(f"{place}/") for name in digests)):
            continue
        if place not in digests or path.is_symlink():
            return f"{place} in it was not written by this command"
        if sha256_of(path) != digests[place]:
            return f"{place} in it was changed since"
    return ""


def _write(folder: Path, contents: dict[str, dict[str, bytes]]) -> None:
    """Put every model's files into one hidden folder beside them, then each model's folder into its place; on any failure, back."""
    made = _missing_parents(folder)
    stage = folder / f".yolact_deploy.{secrets.token_hex(8)}.part"
    try:
        stage.mkdir(parents=True)
        for name, files in contents.items():
            for place, content in files.items():
                _put(stage / "new" / name / place, content)
        (stage / "old").mkdir()
        with _undone(folder, stage, list(contents)):
            for name in contents:
                target = folder / name
                if target.exists():
                    os.replace(target, stage / "old" / name)
                os.replace(stage / "new" / name, target)
        made = []
    except OSError as error:
        raise OutputError(
            f"{folder} could not be written: {error.strerror or error}.", "Free some space or choose another folder; nothing was changed."
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


@contextlib.contextmanager
def _undone(folder: Path, stage: Path, names: list[str]) -> Iterator[None]:
    """Where the block fails or is interrupted, put the old folders back and take the new ones away."""
    try:
        yield
    except BaseException:
        for name in names:
            if not (stage / "new" / name).exists():
                shutil.rmtree(folder / name, ignore_errors=True)
            if (stage / "old" / name).exists():
                os.replace(stage / "old" / name, folder / name)
        raise


def _missing_parents(folder: Path) -> list[Path]:
    """The folders that will have to be made, the innermost first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
