"""Ctrl-C that ends a step its own way, rather than cutting it."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["on_interrupt"]


@contextmanager
def on_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """While the body runs, let Ctrl-C do this and raise nothing.

    For steps that would be left half done by an exception anywhere in them, and
    can be told to end. Only the main thread is ever interrupted; elsewhere, and
    where Ctrl-C is ignored, this does nothing.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
