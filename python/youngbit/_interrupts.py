"""Ctrl-C between two steps, not in the middle of one."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["uninterrupted"]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Run the body to its end; a Ctrl-C meanwhile is raised after it.

    For steps that leave things half done when they are cut: several columns of a
    file that grow together, and the count of what is in them. Only the main thread
    is ever interrupted, elsewhere this does nothing.

    Raises:
        KeyboardInterrupt: After the body, if Ctrl-C came meanwhile.

    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    came: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came:
        usual(signal.SIGINT, came[0])
