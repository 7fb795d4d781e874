"""Writing artifacts so that an interruption, a full disk or a second run never leaves a half file or destroys a foreign one.

And where to keep what can be made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

from yolact_deploy.errors import OutputError

__all__ = ["atomic_output", "atomic_outputs", "cache_folder", "refuse_overwrite", "sha256_of", "write_text"]


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def cache_folder(name: str) -> Path:
    """``yolact-deploy/name`` in the user's cache folder, as the system has it; perhaps not there yet."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "yolact-deploy" / name


def refuse_overwrite(path: Path, *, ours: bool, force: bool) -> None:
    """Raise :class:`OutputError` where `path` exists, is not `ours` (this command's own output) and `force` is off."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder, a file name was wanted.", "Name a file inside it.")
    if path.exists() and not (ours or force):
        raise OutputError(f"{path} exists and was not written by this command.", "Choose another name, or pass --force to replace it.")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


@contextlib.contextmanager
def atomic_outputs(*paths: Path) -> Iterator[list[Path]]:
    """Yield a temporary path beside each of `paths`; rename all of them into place when the block ends well.

    Whatever goes wrong inside (an error, Ctrl-C, a full disk), the temporary files are removed and the old files stay. An
    :class:`OSError` becomes an :class:`OutputError`. The folders are made when missing.
    """
    temporary: list[Path] = []
    try:
        try:
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.part{path.suffix}")
                temporary.append(part)  # before it is made: Ctrl-C may come between the two
                os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            yield temporary
            for part in temporary:
                with open(part, "rb+") as opened:
                    os.fsync(opened.fileno())
                os.chmod(part, 0o666 & ~_umask())
            for part, path in zip(temporary, paths, strict=True):
                os.replace(part, path)
        except OSError as error:
            names = ", ".join(str(path) for path in paths)
            raise OutputError(
                f"{names} could not be written: {_reason(error)}.", "Free some space or choose another folder; nothing was changed."
            ) from error
    finally:
        for part in temporary:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """:func:`atomic_outputs` for one file."""
    with atomic_outputs(path) as (part,):
        yield part


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_output(path) as part:
        part.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
