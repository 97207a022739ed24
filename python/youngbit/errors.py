"""Exceptions of the package.

Errors that a kernel would answer with a number are ``OSError`` with that
``errno``. What is wrong before anything is asked of the model, such as a size
that is no size, is ``ValueError`` or ``TypeError``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath

__all__ = ["FormatError", "PolicyError", "TraceError", "missing"]


class FormatError(ValueError):
    """A text cannot be read: a scenario, a recording, or a histogram.

    Attributes:
        source: The file, or what else the text is.
        line: The line, from 1.
        column: The column in it, from 1, in bytes.
        problem: What was expected there, and what was found.

    """

    def __init__(self, source: str, line: int, column: int, problem: str) -> None:
        self.source = source
        self.line = line
        self.column = column
        self.problem = problem
        super().__init__(source, line, column, problem)

    def __str__(self) -> str:
        return f"{self.source}: line {self.line}, column {self.column}: {self.problem}"


_PLACE = re.compile(r"line (\d+), column (\d+): (.*)", re.DOTALL)


@contextmanager
def format_errors(source: str) -> Iterator[None]:
    """Turn what the core says about a text into `FormatError`."""
    try:
        yield
    except OSError as error:
        place = _PLACE.fullmatch(error.strerror or "")
        if place is None:
            raise
        raise FormatError(source, int(place[1]), int(place[2]), place[3]) from None


class TraceError(ValueError):
    """A trace file is not what it should be.

    Attributes:
        path: The file.
        where: The line, byte offset, array or event that is wrong.
        found: What is there.
        expected: What belongs there.

    """

    path: str
    where: str
    found: str
    expected: str

    def __init__(self, path: str | PathLike[str], where: str, found: str, expected: str) -> None:
        self.path = fspath(path)
        self.where = where
        self.found = found
        self.expected = expected
        super().__init__(self.path, where, found, expected)

    def __str__(self) -> str:
        return f"{self.path}: {self.where}: found {self.found}, expected {self.expected}"


class PolicyError(Exception):
    """A policy of the user's own raised, or answered what is no answer.

    What it raised is the ``__cause__``.

    Attributes:
        policy: Its name in the description, ``FILE.py:NAME`` or ``MODULE:NAME``.
        place: File, line and function; empty for an answer, whose function
            ``problem`` names.
        problem: The kind of the exception and what it says.

    """

    policy: str
    place: str
    problem: str

    def __init__(self, policy: str, place: str, problem: str) -> None:
        self.policy = policy
        self.place = place
        self.problem = problem
        super().__init__(policy, place, problem)

    def __str__(self) -> str:
        return ": ".join(filter(None, (f"policy {self.policy}", self.place, self.problem)))


def missing(what: str, package: str, extra: str) -> ImportError:
    """Return the error for an optional package that is not installed."""
    return ImportError(f"{what} needs {package}: pip install 'youngbit[{extra}]'")
