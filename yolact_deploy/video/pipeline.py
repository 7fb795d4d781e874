"""Decoding, detection and writing at the same time: two threads around the caller's, bounded queues between them, frames in order."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from yolact_deploy.detections import Detections
from yolact_deploy.errors import PictureError
from yolact_deploy.pictures import Picture
from yolact_deploy.video.source import Frame

__all__ = ["STAGES", "Outcome", "run_pipeline"]

STAGES = ("decode", "detect", "write")
_PATIENCE = 0.1  # seconds after which a waiting thread looks whether all is to stop
_T = TypeVar("_T")


@dataclass(eq=False)
class Outcome:
    """What became of a run.

    Attributes:
        frames: how many went through all stages.
        seconds: that it took.
        busy: seconds that each of :data:`STAGES` worked, waiting for the others left out.
        error: what ended the source early, after all frames before it were done; else None.
        interrupted: whether Ctrl-C ended it, after which the frames that were detected already were still written.
    """

    frames: int = 0
    seconds: float = 0.0
    busy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    error: PictureError | None = None
    interrupted: bool = False


def run_pipeline(
    source: Iterable[Frame],
    detect: Callable[[list[Picture]], list[Detections]],
    write: Callable[[Frame, Detections], None],
    *,
    group: int = 1,
    live: bool = False,
) -> Outcome:
    """Take every frame of `source` through `detect` and `write`, each stage in a thread of its own.

    `source` is iterated in one thread, `detect` is called in the caller's with `group` pictures (fewer at the end; with `live` only as
    many as wait there already), and `write` in another thread, frame by frame in order. At most 3 x `group` + 4 frames are in memory.
    A :class:`PictureError` of `source` ends the run well, and is in the result. Any other error in any stage stops all of them and
    is raised once, after the threads have ended; so is a second Ctrl-C.
    """
    return _Run(group, live).go(source, detect, write)


class _StoppedError(Exception):
    """Nothing more is wanted of the thread that meets this."""


class _Queue(Generic[_T]):
    """A bounded queue whose users are thrown out once `stop` is set."""

    def __init__(self, size: int, stop: threading.Event) -> None:
        self._items: queue.Queue[_T] = queue.Queue(size)
        self._stop = stop

    def put(self, item: _T) -> None:
        while not self._stop.is_set():
            try:
                return self._items.put(item, timeout=_PATIENCE)
            except queue.Full:
                continue
        raise _StoppedError

    def get(self) -> _T:
        while not self._stop.is_set():
            try:
                return self._items.get(timeout=_PATIENCE)
            except queue.Empty:
                continue
        raise _StoppedError

    def waiting(self) -> bool:
        return not self._items.empty()


class _Worker:
    """A thread that can be waited for through interruptions."""

    def __init__(self, name: str, work: Callable[..., None], *arguments: object) -> None:
        self._ended = threading.Event()
        self._work, self._arguments = work, arguments
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self) -> None:
        """Until it has ended, in short steps, between which Ctrl-C is heard on every system."""
        if self._thread.ident is None:
            return
        # Not by Thread.join, which up to Python 3.12 takes a running thread for an ended one once it was interrupted (bpo-45274).
        while not self._ended.wait(_PATIENCE):
            pass
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work(*self._arguments)
        finally:
            self._ended.set()


class _Run:
    """One run: its threads, its queues, and what went wrong in it."""

    def __init__(self, group: int, live: bool) -> None:
        self.group, self.live = group, live
        self.outcome = Outcome()
        self.stop = threading.Event()
        self.decoded: _Queue[Frame | None] = _Queue(group + 1, self.stop)
        self.found: _Queue[tuple[Frame, Detections] | None] = _Queue(group + 1, self.stop)
        self.failures: list[BaseException] = []

    def go(
        self,
        source: Iterable[Frame],
        detect: Callable[[list[Picture]], list[Detections]],
        write: Callable[[Frame, Detections], None],
    ) -> Outcome:
        began = time.perf_counter()
        decoder, writer = _Worker("decode", self._guarded, self._decode, source), _Worker("write", self._guarded, self._write, write)
        try:
            decoder.start()
            writer.start()
            try:
                self._detect(detect)
            except KeyboardInterrupt:
                self.outcome.interrupted = True
            self.found.put(None)
            writer.wait()
        except _StoppedError:
            pass  # a thread failed, and says why below
        finally:
            self.stop.set()
            decoder.wait()
            writer.wait()
        if self.failures:
            raise self.failures[0]
        self.outcome.seconds = time.perf_counter() - began
        return self.outcome

    def _guarded(self, stage: Callable[..., None], *arguments: object) -> None:
        """A thread's whole work: what goes wrong in it is kept for the caller and stops the others."""
        try:
            stage(*arguments)
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self.failures.append(error)
            self.stop.set()

    def _decode(self, source: Iterable[Frame]) -> None:
        frames = iter(source)
        while True:
            clock = time.perf_counter()
            try:
                frame = next(frames, None)
            except PictureError as error:
                self.outcome.error, frame = error, None
            self.outcome.busy["decode"] += time.perf_counter() - clock
            self.decoded.put(frame)
            if frame is None:
                return

    def _detect(self, detect: Callable[[list[Picture]], list[Detections]]) -> None:
        for batch in self._batches():
            clock = time.perf_counter()
            results = detect([frame.picture for frame in batch])
            self.outcome.busy["detect"] += time.perf_counter() - clock
            for pair in zip(batch, results, strict=True):
                self.found.put(pair)

    def _batches(self) -> Iterator[list[Frame]]:
        ended = False
        while not ended:
            batch: list[Frame] = []
            while len(batch) < self.group and (not batch or not self.live or self.decoded.waiting()):
                frame = self.decoded.get()
                if frame is None:
                    ended = True
                    break
                batch.append(frame)
            if batch:
                yield batch

    def _write(self, write: Callable[[Frame, Detections], None]) -> None:
        while (pair := self.found.get()) is not None:
            clock = time.perf_counter()
            write(*pair)
            self.outcome.busy["write"] += time.perf_counter() - clock
            self.outcome.frames += 1
