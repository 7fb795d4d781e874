"""Sharding an evaluation over processes: each has its own detector and its own part of the store, which are merged afterwards."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

from yolact_deploy import errors
from yolact_deploy.errors import DatasetError, YolactDeployError
from yolact_deploy.evaluation.jobs import Job, ModelSource, cores, run_groups
from yolact_deploy.evaluation.store import ResultStore, merge_stores

__all__ = ["gathered", "run_workers"]


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.part{number}{path.suffix}")


def gathered(store: ResultStore, *, fresh: bool = False) -> ResultStore:
    """`store` with what the workers of an interrupted run left beside it; their files are removed.

    Parts of another run (and all, where `fresh`) are removed unread. Files that are no parts are left alone.
    """
    parts, old = [], []
    for path in sorted(store.path.parent.glob(f"{store.path.stem}.part*{store.path.suffix}")):
        with contextlib.suppress(DatasetError):
            part = ResultStore.open(path)
            old.append(path)
            if not fresh and not store.header.difference(part.header):
                parts.append(part)
    if parts:
        store = merge_stores(store.path, store.header, [store, *parts])
    for path in old:
        path.unlink(missing_ok=True)
    return store


def run_workers(source: ModelSource, job: Job, store: ResultStore, workers: int, tell: Callable[[], None]) -> ResultStore:
    """Share the groups of `job` out among so many processes, in turn; returns the store with everything merged, by image id.

    `tell` is called after each picture. When a worker fails or dies the others are ended, what is finished stays for the next run,
    and the reason is raised: the worker's own error, or :class:`YolactDeployError` where it left none.
    """
    context = multiprocessing.get_context("spawn")
    threads = source.threads or max(1, cores() // workers)
    links: dict[Connection, BaseProcess] = {}
    try:
        with _no_interrupt():
            for number in range(workers):
                ours, theirs = context.Pipe(duplex=False)
                share = replace(job, groups=job.groups[number::workers])
                arguments = (theirs, source, threads, share, store.path, _part(store.path, number))
                process: BaseProcess = context.Process(target=_work, args=arguments, name=f"evaluation worker {number + 1}", daemon=True)
                process.start()
                theirs.close()
                links[ours] = process
        _follow(dict(links), tell)
    finally:
        for link, process in links.items():
            if process.is_alive():
                process.terminate()
            process.join()
            link.close()
    return gathered(store)


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes that start here ignore Ctrl-C from their first moment on: the terminal sends it to them too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(links: dict[Connection, BaseProcess], tell: Callable[[], None]) -> None:
    """Read what the workers report until each has said that it is through."""
    while links:
        for link in cast("list[Connection]", wait(list(links))):
            process = links[link]
            try:
                word, *rest = link.recv()
            except (EOFError, ConnectionError):
                process.join()
                raise YolactDeployError(
                    f"An {process.name} died ({_reason(process.exitcode)}).",
                    "Use fewer --workers if memory ran out; the same command goes on with the pictures that are left.",
                ) from None
            if word == "picture":
                tell()
            elif word == "failed":
                raise _error(*rest)
            else:
                del links[link]


def _reason(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _error(name: str, message: str, mend: str) -> YolactDeployError:
    kind = getattr(errors, name, YolactDeployError)
    found: YolactDeployError = kind(message, mend)
    return found


def _work(link: Any, source: ModelSource, threads: int, job: Job, done: Path, part: Path) -> None:
    """A worker process."""
    try:
        store = ResultStore.create(part, job.header)
        run_groups(source.open(threads), job, ResultStore.open(done), store, lambda: link.send(("picture",)))
        link.send(("through",))
    except YolactDeployError as error:
        link.send(("failed", type(error).__name__, error.message, error.mend))
    except Exception as error:  # noqa: BLE001 - told in the parent, which ends with it
        link.send(("failed", "YolactDeployError", f"A worker failed ({type(error).__name__}: {error}).", "Try --workers 1."))
