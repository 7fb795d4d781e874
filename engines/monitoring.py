"""Hearing what TensorRT says while it works: its log, its progress, and the way to stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .versions import TensorRT

__all__ = ["BuildProgress", "make_logger", "make_monitor"]

Listener = Callable[[str, float], None]
"""Told the phase and how much of the build is done, 0 … 1."""

_KEPT = 50  # messages


class Messages:
    """What TensorRT logged, the latest errors and warnings kept."""

    def __init__(self, listener: Callable[[str], None] | None = None) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.listener = listener

    def add(self, severity: int, text: str) -> None:
        """`severity` as TensorRT counts: 0 internal error, 1 error, 2 warning, 3 info, 4 verbose."""
        kept = self.errors if severity <= 1 else self.warnings if severity == 2 else None
        if kept is not None:
            kept.append(text)
            del kept[:-_KEPT]
        if self.listener is not None and severity <= 3:
            self.listener(text)


def make_logger(tensorrt: TensorRT, messages: Messages) -> Any:
    """An ``ILogger`` of that module that fills `messages`; it may be called from any thread."""

    class Logger(tensorrt.module.ILogger):  # type: ignore[misc, name-defined]  # the module is known only at run time
        def __init__(self) -> None:
            tensorrt.module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            messages.add(int(severity), msg)

    return Logger()


class BuildProgress:
    """Turns TensorRT's nested phases into one number, and carries the wish to stop.

    A phase's steps share the step of its parent that they belong to, so the number never falls; phases may come from several threads.
    """

    def __init__(self, listener: Listener | None = None) -> None:
        self.listener = listener
        self.cancelled = threading.Event()
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[float, float, int]] = {}  # start, share of one step, steps
        self._done = 0.0

    def check(self) -> None:
        """Raise :class:`KeyboardInterrupt` where the wish to stop was told."""
        if self.cancelled.is_set():
            raise KeyboardInterrupt

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins inside the current step of `parent`."""
        with self._lock:
            start, width = 0.0, 1.0
            if parent is not None and parent in self._phases:
                base, share, _ = self._phases[parent]
                start, width = max(base, min(self._done, base + share)), share
            self._phases[name] = (start, width / max(steps, 1), steps)
            self._tell(name, start)

    def step_complete(self, name: str, step: int) -> bool:
        """Step number `step` of a phase is done; False asks TensorRT to stop."""
        with self._lock:
            if name in self._phases:
                start, share, steps = self._phases[name]
                self._tell(name, start + share * min(step + 1, steps))
        return not self.cancelled.is_set()

    def phase_finish(self, name: str) -> None:
        """A phase ends, its steps done or left out."""
        with self._lock:
            if name in self._phases:
                start, share, steps = self._phases.pop(name)
                self._tell(name, start + share * steps)

    def _tell(self, name: str, done: float) -> None:
        self._done = max(self._done, min(done, 1.0))
        if self.listener is not None:
            self.listener(name, self._done)


def make_monitor(tensorrt: TensorRT, progress: BuildProgress) -> Any:
    """An ``IProgressMonitor`` of that module that tells `progress`; None where the version has none."""
    if not tensorrt.has_progress_monitor:
        return None

    class Monitor(tensorrt.module.IProgressMonitor):  # type: ignore[misc, name-defined]  # as above
        def __init__(self) -> None:
            tensorrt.module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.phase_start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step_complete(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.phase_finish(phase_name)

    return Monitor()
