"""What runs in workers: one experiment, and whatever becomes of it."""

from __future__ import annotations

import datetime
import faulthandler
import os
import platform
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from .._core import build_info
from .experiment import Experiment, failed, run
from .store import Outcome

__all__ = ["Task", "execute", "failure", "hello", "prepare"]


@dataclass(frozen=True)
class Task:
    """One run of a sweep."""

    #: Its number.
    run: int
    experiment: Experiment
    #: Where names of files in it start.
    base: str | None
    #: Of youngbit, where the sweep was started.
    version: str


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def failure(task: Task, error: str | BaseException, **rest: Any) -> Outcome:
    """Return the row of a run that did not come to an end."""
    return task.run, {"run": task.run, **failed(task.experiment, error).row, **rest}, {}


def execute(task: Task) -> Outcome:
    """Run an experiment; what it raises becomes its row."""
    started = _now()
    begun = time.perf_counter()
    place = {"started": started, "worker": f"{platform.node()}:{os.getpid()}"}
    try:
        version = build_info()["version"]
        if version != task.version:
            raise RuntimeError(f"the worker has youngbit {version}, the sweep {task.version}")
        result = run(task.experiment, base=None if task.base is None else Path(task.base))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # A policy may raise anything, SystemExit too; the sweep goes on.
        return failure(task, error, seconds=time.perf_counter() - begun, **place)
    return task.run, {"run": task.run, **result.row, **place}, result.passes


# What follows is for processes of a pool of our own.

_begun: Any = None
_timeout: float | None = None


def prepare(begun: Any, timeout: float | None) -> None:
    """Make a process a worker.

    Args:
        begun: Shared with the sweep: when the run began, on the monotonic clock.
        timeout: After so many seconds of a run the process ends.

    """
    global _begun, _timeout
    _begun, _timeout = begun, timeout
    # Ctrl-C is for the sweep, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    """End with the sweep, however that ended."""
    connection.wait([sentinel])
    os._exit(1)


def hello() -> int:
    """Return the number of the process."""
    return os.getpid()


def execute_here(task: Task) -> Outcome:
    """Run an experiment in a process that `prepare` made a worker."""
    _begun.value = time.monotonic()
    if _timeout is None:
        return execute(task)
    # Ends the process from a thread of its own, whatever Python and the core do.
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(_timeout, exit=True, file=nowhere)
        try:
            return execute(task)
        finally:
            faulthandler.cancel_dump_traceback_later()
