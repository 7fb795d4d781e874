"""Runs one artifact over the pictures of a data set into its store: a group of pictures in memory, interrupted and resumed at will."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_deploy.evaluation.jobs import Job, ModelSource, run_groups
from yolact_deploy.evaluation.store import ResultStore
from yolact_deploy.evaluation.workers import gathered, run_workers

if TYPE_CHECKING:
    from yolact_deploy.runtime import Detector

__all__ = ["Progress", "run_model"]

Progress = Callable[[int, int], None]
"""Called with the number of pictures done and of all."""


def run_model(
    source: ModelSource,
    detector: Detector,
    job: Job,
    path: Path,
    *,
    workers: int = 1,
    fresh: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[ResultStore, tuple[str, ...]]:
    """Run `job` into the store at `path`; also sentences on what an earlier run left there.

    Pictures that the store holds already are not run again, unless `fresh` or their files have changed. With several `workers`, each is
    a process with its own detector (threads shared out evenly) and its own part of the store; the parts are merged at the end, and by
    the next run where this one is interrupted. Raises what reading pictures and running the model raises;
    :class:`yolact_deploy.errors.YolactDeployError` where a worker dies.
    """
    store, told = ResultStore.resume(path, job.header, force=force)
    notes = [told] if told else []
    if fresh and len(store):
        store, notes = ResultStore.create(path, job.header), [f"{path} was begun anew."]
    store = gathered(store, fresh=fresh)
    wanted = {picture.image_id: picture for group in job.groups for picture in group}
    stale = [image_id for image_id, picture in wanted.items() if image_id in store and store.stamp(image_id) != picture.stamp]
    if stale:
        store = store.without(stale)
        notes.append(f"{len(stale)} pictures have changed since an earlier run and are run again.")
    left = job.left(store)
    done = sum(image_id in store for image_id in wanted)

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(wanted))

    if left and min(workers, len(left)) > 1:
        store = run_workers(source, replace(job, groups=left), store, min(workers, len(left)), tell)
    elif left:
        run_groups(detector, replace(job, groups=left), store, store, tell)
    return store, tuple(notes)
