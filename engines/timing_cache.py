"""Kernel timings kept from one TensorRT build to the next, one file per GPU and version, shared by builds that run side by side."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from yolact_deploy.errors import OutputError
from yolact_deploy.files import atomic_output, cache_folder

from .gpu import Gpu
from .versions import TensorRT

__all__ = ["TimingCache", "default_folder", "file_name"]

_PATIENCE = 60.0  # seconds to wait for another build that reads or writes, which takes milliseconds


def default_folder() -> Path:
    """``yolact-deploy/timing`` in the user's cache folder."""
    return cache_folder("timing")


def file_name(tensorrt: TensorRT, gpu: Gpu) -> str:
    """Timings hold for one TensorRT and one GPU model: ``tensorrt-10.16.1.11.nvidia-h200.sm90.cache``."""
    model = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-") or "gpu"
    major, minor = gpu.compute_capability
    return f"{tensorrt.backend}-{tensorrt.version}.{model}.sm{major}{minor}.cache"


class TimingCache:
    """One file of timings.

    :meth:`load` gives a builder configuration what is in it; :meth:`store` adds what that build measured. Between the two other builds
    may have stored theirs: the file is read again under a lock, joined, and replaced whole, so nothing is lost and nothing is half.
    A file that this TensorRT does not accept is left alone until a build replaces it; :attr:`complaint` says so.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.complaint = ""

    def load(self, config: Any) -> None:
        """Set the cache of `config`, filled from the file where it fits. Raises :class:`OutputError` where the file cannot be reached."""
        self.complaint = ""
        with self._locked():
            known = self._bytes()
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, False):
            self.complaint = f"{self.path} was made by another TensorRT or GPU, or is damaged: it starts afresh."
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def store(self, config: Any) -> None:
        """Add the timings of `config` to the file. Raises :class:`OutputError` where it cannot be written."""
        measured = config.get_timing_cache()
        with self._locked():
            now = self._bytes()
            others = config.create_timing_cache(now) if now else None
            if others is not None:
                measured.combine(others, False)
            with atomic_output(self.path) as part:
                part.write_bytes(bytes(measured.serialize()))

    def _bytes(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise _unusable(self.path, error.strerror or str(error)) from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(f"{self.path}.lock", timeout=_PATIENCE)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise _unusable(self.path, f"another process has held {lock.lock_file} for {_PATIENCE:.0f} s") from None
        except OSError as error:
            raise _unusable(self.path, error.strerror or str(error)) from None
        try:
            yield
        finally:
            lock.release()


def _unusable(path: Path, reason: str) -> OutputError:
    return OutputError(f"The timing cache {path} cannot be used: {reason}.", "Name another file with --timing-cache, or 'none'.")
