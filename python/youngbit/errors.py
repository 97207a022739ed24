"""Exceptions of the package.

Errors that a kernel would answer with a number are ``OSError`` with that
``errno``. What is wrong before anything is asked of the model, such as a size
that is no size, is ``ValueError`` or ``TypeError``.
"""

from __future__ import annotations

from os import PathLike, fspath

__all__ = ["TraceError"]


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
