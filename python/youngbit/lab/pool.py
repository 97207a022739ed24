"""Where runs run: processes of this machine, or a Dask cluster."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import Any

from .store import Outcome
from .worker import Task, execute, execute_here, failure, hello, prepare

__all__ = ["dask", "local", "warm_up"]

#: Tasks that a process has: one that runs, and the next.
_AHEAD = 2
#: Seconds that a cluster has for its first worker to appear.
_PATIENCE = 30


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["youngbit.lab.worker", "youngbit.lab.kinds"])
    return context


def warm_up() -> None:
    """Let the process that all others come from import what they need, meanwhile."""
    _context()
    forkserver.ensure_running()


class _Slot:
    """An executor of one process, so that who dies takes nobody else's run along."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.tasks: deque[tuple[Task, Future[Outcome]]] = deque()
        self.context = _context()
        self.start()

    def start(self) -> None:
        self.begun = self.context.RawValue("d", 0.0)
        self.executor = ProcessPoolExecutor(
            1, mp_context=self.context, initializer=prepare, initargs=(self.begun, self.timeout)
        )
        self.hello = self.executor.submit(hello)

    def greet(self) -> None:
        """Wait until the process is there.

        Raises:
            ChildProcessError: If none can be started.

        """
        try:
            self.pid = self.hello.result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "workers cannot start: one ended as it began; what it printed says why. A script"
                " that sweeps needs if __name__ == '__main__' around what it does"
            ) from None

    def submit(self, task: Task) -> Future[Outcome]:
        future = self.executor.submit(execute_here, task)
        self.tasks.append((task, future))
        return future

    def why(self) -> str:
        """Return why the process died."""
        if self.timeout is not None and time.monotonic() - self.begun.value >= self.timeout:
            return f"TimeoutError: the run took longer than {self.timeout:g} s"
        return "ChildProcessError: the worker process died"

    def kill(self) -> None:
        if self.hello.done() and not self.hello.exception():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.hello.result(), signal.SIGKILL)
        self.executor.shutdown(wait=False, cancel_futures=True)


def local(
    tasks: Iterable[Task], jobs: int, timeout: float | None
) -> Generator[Outcome, None, None]:
    """Run tasks in so many processes; yield what becomes of each as it is done.

    A process that dies is one failed run, and another takes its place.

    Raises:
        ChildProcessError: If no process can be started.

    """
    todo = iter(tasks)
    first = list(itertools.islice(todo, jobs))
    todo = itertools.chain(first, todo)
    slots = [_Slot(timeout) for _ in first]
    running: dict[Future[Outcome], _Slot] = {}

    def feed(slot: _Slot) -> None:
        for task in itertools.islice(todo, _AHEAD - len(slot.tasks)):
            running[slot.submit(task)] = slot

    try:
        for slot in slots:
            slot.greet()
        # Deal them out one by one: few tasks are for all.
        for _ in range(_AHEAD):
            for slot in slots:
                for task in itertools.islice(todo, 1):
                    running[slot.submit(task)] = slot
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for slot in {running[future] for future in done}:
                outcomes = list(_collect(slot, running))
                feed(slot)
                yield from outcomes
    finally:
        for slot in slots:
            slot.kill()


def _collect(slot: _Slot, running: dict[Future[Outcome], _Slot]) -> Iterator[Outcome]:
    """Take what is done off a slot, in order; start it anew if its process died."""
    while slot.tasks and slot.tasks[0][1].done():
        task, future = slot.tasks.popleft()
        del running[future]
        error = future.exception()
        if error is None:
            yield future.result()
            continue
        if not isinstance(error, BrokenProcessPool):
            # What was found could not be brought here.
            yield failure(task, error)
            continue
        # They run in order, so this one was running, and the others were waiting.
        yield failure(task, slot.why())
        waiting = [task for task, _ in slot.tasks]
        for _, other in slot.tasks:
            del running[other]
        slot.tasks.clear()
        slot.executor.shutdown(wait=False)
        slot.start()
        slot.greet()
        for task in waiting:
            running[slot.submit(task)] = slot


def dask(tasks: Iterable[Task], address: str) -> Generator[Outcome, None, None]:
    """Run tasks on a Dask cluster; yield what becomes of each as it is done.

    What a worker that dies was running is run elsewhere; where that happens again
    and again, the run fails.

    Raises:
        ImportError: Without Dask's package distributed.
        OSError: If there is no such cluster, it has no workers, or it goes.

    """
    try:
        import distributed
    except ImportError as error:
        raise ImportError("--dask needs Dask: pip install 'youngbit[dask]'") from error
    try:
        client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise OSError(f"{address}: there is no Dask scheduler: {error}") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            raise OSError(f"{address}: the Dask cluster has no workers") from None
        todo = iter(tasks)
        running: dict[str, Task] = {}
        # Of this client: the process may have others, with loops of their own.
        ahead = distributed.as_completed(loop=client.loop)

        def feed() -> None:
            try:
                threads = sum(client.nthreads().values())
            except OSError as error:
                raise OSError(f"{address}: the Dask cluster went away: {error}") from None
            for task in itertools.islice(todo, max(0, _AHEAD * max(threads, 1) - len(running))):
                future = client.submit(execute, task, pure=False)
                running[future.key] = task
                ahead.add(future)

        feed()
        while running:
            future = ahead.next()
            task = running.pop(future.key)
            feed()
            try:
                # Waits again where a worker died that had the result.
                outcome = client.gather(future)
            except (concurrent.futures.CancelledError, distributed.CancelledError):
                raise OSError(f"{address}: the Dask cluster went away") from None
            except distributed.KilledWorker as error:
                outcome = failure(task, f"ChildProcessError: workers died again and again: {error}")
            except Exception as error:
                if client.status == "closed":
                    raise OSError(f"{address}: the Dask cluster went away: {error}") from None
                outcome = failure(task, error)
            yield outcome
