"""Fixtures that more than one file of tests takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from browser import Browser, running


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """A real browser; the test is skipped where there is none."""
    yield from running(tmp_path_factory.mktemp("browser"))
