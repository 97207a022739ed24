"""Fixtures that more than one file of tests takes."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from browser import Browser, running

# A shell that starts something in the background has it ignore Ctrl-C, and what
# that starts too; here it is pressed for programs that are to heed it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """A real browser; the test is skipped where there is none."""
    yield from running(tmp_path_factory.mktemp("browser"))
