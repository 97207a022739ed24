"""Running sweeps: what is not finished, anywhere, and every finished run kept at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from .._core import build_info
from ..sizes import parse_size
from . import describe, store
from .experiment import KINDS
from .plan import Point, Sweep
from .results import Results, load
from .worker import Task

__all__ = ["Progress", "run_sweep"]


@dataclass
class Progress:
    """How far a sweep is."""

    #: Runs of the sweep.
    runs: int
    #: Runs that were finished before.
    before: int = 0
    #: Runs that this time finished.
    done: int = 0
    #: Of all finished runs those that failed.
    failed: int = 0


def _ignore(_: Progress) -> None:
    pass


def _refused(point: Point, experiment: str) -> store.Outcome:
    """Return the row of a point whose experiment contradicts itself."""
    values = {}
    for key, value in point.values.items():
        found = describe.lookup(KINDS[experiment].type, tuple(key.split(".")))
        if found is not None and "*" not in key and isinstance(value, (bool, int, float, str)):
            type_, unit, _ = found
            values[key] = (
                parse_size(str(value)) if unit == "bytes"
                else float(value) if type_ == "double" else value
            )  # fmt: skip
    row = {
        "run": point.run,
        "experiment": experiment,
        **values,
        "status": "failed",
        "error": f"ValueError: {point.error}",
        "passes": 0,
    }
    return point.run, row, {}


def run_sweep(
    sweep: Sweep,
    results: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    dask: str | None = None,
    base: str | os.PathLike[str] | None = None,
    retry_failed: bool = False,
    progressed: Callable[[Progress], None] = _ignore,
) -> Results:
    """Run what is not finished of a sweep, and return all of it.

    Each finished run is on the disk at once. A sweep that was interrupted or
    killed goes on where it stopped when it is given the same directory.

    Args:
        sweep: The sweep.
        results: Directory of its results; it is made if it is not there.
        jobs: Processes, otherwise one a processor.
        dask: Address of a Dask scheduler; its workers run it then.
        base: Where names of files in the experiment start.
        retry_failed: Run those again that failed.
        progressed: Called at the start, and after each run.

    Raises:
        ValueError: If the sweep or the directory is not what it should be.
        OSError: If the directory cannot be written, no worker can be started, or the cluster
            is gone.
        ImportError: Without pyarrow, or without Dask where that is asked for.
        KeyboardInterrupt: After Ctrl-C; what was finished is in the tables.

    """
    from . import pool

    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: {jobs} is below 1")
    if dask is None:
        pool.warm_up()
    store.arrow()
    sweep.check()
    with store.Store(results, sweep) as kept:
        progress = Progress(len(sweep), failed=list(kept.finished.values()).count("failed"))
        if retry_failed:
            again = {run for run, status in kept.finished.items() if status == "failed"}
            progress.failed -= len(again)
        else:
            again = set()
        skip = kept.finished.keys() - again
        progress.before = len(skip)
        progressed(progress)

        def finish(outcome: store.Outcome) -> None:
            kept.add(outcome)
            progress.done += 1
            progress.failed += outcome[1]["status"] == "failed"
            progressed(progress)

        where = None if base is None else str(Path(base).resolve())
        version = build_info()["version"]

        def tasks() -> Iterator[Task]:
            for point in sweep.all():
                if point.run in skip:
                    continue
                if point.experiment is None:
                    kind = point.values.get("experiment", sweep.experiment["experiment"])
                    finish(_refused(point, str(kind)))
                else:
                    yield Task(point.run, point.experiment, where, version)

        try:
            if dask is None:
                outcomes = pool.local(tasks(), jobs or os.cpu_count() or 1, sweep.timeout)
            else:
                outcomes = pool.dask(tasks(), dask)
            with closing(outcomes):
                for outcome in outcomes:
                    finish(outcome)
        finally:
            kept.compact()
    return load(results)
