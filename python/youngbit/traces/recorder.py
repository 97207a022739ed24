"""Record a program with valgrind's lackey tool."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .._interrupts import on_interrupt
from ..errors import TraceError
from ._read import DEFAULT_WINDOW, format_of, open_trace
from ._write import writing

__all__ = ["Recording", "record"]

#: Events after which progress is told, about.
_BLOCK = 1 << 16
#: The last time that a format has a place for.
_ANY_TIME = (1 << 64) - 1
_LAST_TIME = {"oracle": (1 << 32) - 1}
#: Between two looks at what the process runs.
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Recording:
    """What came of a recording."""

    #: Events written.
    events: int
    #: Time of the last of them: instructions executed before it.
    last_time: int
    #: What the program exited with; None if it was stopped.
    exit_status: int | None
    #: Whether Ctrl-C ended it.
    interrupted: bool
    #: Another program that the process became (``exec``), and that was not recorded.
    became: str | None = None
    #: Whether it was stopped because the format has no place for later times.
    full: bool = False


def _ignore(_: int) -> None:
    pass


class _Images:
    """Looks on at what a process runs: valgrind says nothing when its program becomes another."""

    def __init__(self, pid: int) -> None:
        self._exe = Path(f"/proc/{pid}/exe")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        #: What it went on as after lackey, the last of several; None if that was not seen.
        self.became: str | None = None

    def _look(self) -> None:
        recorded = False
        while not self._over.wait(_LOOK_SECONDS):
            with suppress(OSError):
                image = self._exe.readlink()
                # Before lackey it is valgrind's launcher.
                lackey = image.name.startswith("lackey")
                if recorded and not lackey:
                    self.became = str(image)
                recorded = recorded or lackey

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def record(
    command: Sequence[str],
    path: str | os.PathLike[str],
    *,
    window: int = DEFAULT_WINDOW,
    max_instructions: int = 0,
    progress: Callable[[int], None] = _ignore,
) -> Recording:
    """Run a program under valgrind and write which pages it touches.

    Only the program itself is recorded, not what it starts, nor what it becomes: of a
    script that begins with ``#!/usr/bin/env python3`` that is ``env``. Ctrl-C ends the
    program, and what was recorded until then is written; so do more instructions than
    ``oracle`` has a place for, 2**32.

    Args:
        command: The program and its arguments.
        path: The trace, in a format that can be written.
        window: Within this many instructions a page is kept once; 0 keeps every
            access.
        max_instructions: Stop the program after this many; 0 lets it end.
        progress: Called now and then with the events so far.

    Raises:
        FileNotFoundError: If valgrind or the program is not there.
        TraceError: If valgrind printed something else than a recording.
        OSError: If the file cannot be written.

    """
    if not command:
        raise ValueError("command: expected a program to record")
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise FileNotFoundError(
            "valgrind is not installed, and records the program: apt install valgrind, or"
            " dnf install valgrind"
        )
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"{command[0]}: there is no such program")
    events, last_time = 0, 0
    interrupted = ended = full = False
    format = format_of(path)
    ours, theirs = os.pipe()
    with suppress(AttributeError, OSError):
        # lackey writes a line at a time: room for many saves many changes of process.
        fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 1 << 20)
    try:
        with subprocess.Popen(
            [valgrind, "-q", "--tool=lackey", "--trace-mem=yes", f"--log-fd={theirs}",
             "--child-silent-after-fork=yes", "--", *command],
            pass_fds=(theirs,),
        ) as child:  # fmt: skip
            os.close(theirs)
            theirs = -1
            images = _Images(child.pid)

            def stop() -> None:
                # What it wrote before is read to its end: nothing of it is lost.
                nonlocal interrupted
                interrupted = True
                child.kill()

            try:
                with (
                    open_trace(
                        f"/dev/fd/{ours}", "lackey", window=window,
                        max_instructions=max_instructions, block=_BLOCK,
                    ) as reader,
                    writing(path, window=window) as writer,
                    on_interrupt(stop),
                    images,
                ):  # fmt: skip
                    # Nobody else holds the reading end: when it is closed the
                    # program cannot wait for it.
                    os.close(ours)
                    ours = -1
                    for block in reader:
                        kept = block.where(block.time <= _LAST_TIME.get(format, _ANY_TIME))
                        if kept.events:
                            writer.add(kept)
                            events += kept.events
                            last_time = int(kept.time[-1])
                            progress(events)
                        # What there is is worth more than an error.
                        full = kept.events < block.events
                        if full:
                            break
                    else:
                        ended = not max_instructions
            except TraceError:
                if interrupted and not events:
                    raise KeyboardInterrupt from None
                raise
            finally:
                stopped = interrupted or (not ended and child.poll() is None)
                if stopped:
                    # While it waits to write a line it heeds nothing less.
                    child.kill()
            status = child.wait()
    finally:
        for end in (ours, theirs):
            if end >= 0:
                os.close(end)
    exit_status = None if stopped else status
    return Recording(events, last_time, exit_status, interrupted, images.became, full)
