"""Recorded programs: which pages a real process touched, and when.

A `Trace` is arrays in memory; `open_trace` and `writing` take files of any size
a block at a time. ``docs/traces.md`` specifies the formats.
"""

from __future__ import annotations

import os
from importlib import resources

from . import tools
from ._read import DEFAULT_WINDOW, FORMATS, Reader, format_of, open_trace
from ._trace import Block, Trace
from ._write import WRITTEN, Writer, write, write_all, write_npz, writing
from .damon import DamonRecord, read_damon

__all__ = [
    "DEFAULT_WINDOW",
    "FORMATS",
    "SHIPPED",
    "WRITTEN",
    "Block",
    "DamonRecord",
    "Reader",
    "Trace",
    "Writer",
    "format_of",
    "open_trace",
    "read",
    "read_csv",
    "read_damon",
    "read_lackey",
    "read_npz",
    "shipped",
    "tools",
    "write",
    "write_all",
    "write_npz",
    "writing",
]

#: Name of the trace that comes with the package.
SHIPPED = "sort"


def read(path: str | os.PathLike[str], format: str | None = None) -> Trace:
    """Read a trace of any format into memory.

    Args:
        path: The file; ``-`` is standard input for text.
        format: One of `FORMATS`; otherwise the ending of the name says it:
            ``.npz``, ``.csv``, ``.parquet``, ``.oracleGeneral``, ``.perf``,
            ``.damon``, or anything else for lackey.

    Raises:
        TraceError: If the file is not such a trace; it says what is wrong and where.
        OSError: If the file cannot be read.
        ValueError: If there is no such format.
        ImportError: If the format needs a package that is not installed.

    """
    with open_trace(path, format) as reader:
        return reader.read()


def read_npz(path: str | os.PathLike[str]) -> Trace:
    """Read a ``.npz`` trace: arrays ``time``, ``page``, ``write``, scalar ``window``.

    Raises:
        TraceError: If the file is not such a trace; it says what is wrong and where.
        OSError: If the file cannot be read.

    """
    return read(path, "npz")


def read_csv(path: str | os.PathLike[str]) -> Trace:
    """Read a CSV trace: header ``time,page,write``, then two numbers and 0 or 1 a line.

    Raises:
        TraceError: If the file is not such a trace; it says what is wrong and where.
        OSError: If the file cannot be read.

    """
    return read(path, "csv")


def read_lackey(
    path: str | os.PathLike[str], *, window: int = DEFAULT_WINDOW, max_instructions: int = 0
) -> Trace:
    """Read what ``valgrind --tool=lackey --trace-mem=yes`` printed.

    Args:
        path: The file; ``-`` is standard input, so that valgrind can be piped in.
        window: Within this many instructions a page is kept once, at its first
            access; 0 keeps every access.
        max_instructions: Stop after this many; 0 reads to the end.

    Raises:
        TraceError: If the file is not such a text; it says what is wrong and where.
        OSError: If the file cannot be read.

    """
    with open_trace(path, "lackey", window=window, max_instructions=max_instructions) as reader:
        return reader.read()


def shipped(name: str = SHIPPED) -> Trace:
    """Return a trace that comes with the package.

    >>> shipped().nr_pages > 1000
    True
    """
    resource = resources.files("youngbit").joinpath("data").joinpath(f"{name}.npz")
    with resources.as_file(resource) as path:
        if not path.is_file():
            raise ValueError(f"name: no trace {name!r} comes with the package")
        trace = read_npz(path)
    return Trace(trace.time, trace.page, trace.write, trace.window, f"youngbit:{name}")
