"""Recorded programs: which pages a real process touched, and when.

Three formats are read: the ``.npz`` of the project's own recordings, CSV, and
the text that valgrind's lackey tool prints. ``docs/traces.md`` specifies them.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .errors import TraceError

__all__ = [
    "FORMATS",
    "SHIPPED",
    "Trace",
    "read",
    "read_csv",
    "read_lackey",
    "read_npz",
    "shipped",
    "write_npz",
]

#: Names of the formats, as `read` takes them.
FORMATS = ("npz", "csv", "lackey")
#: Name of the trace that comes with the package.
SHIPPED = "sort"
#: Instructions in a window of a recording, unless said otherwise.
DEFAULT_WINDOW = 100_000

_PAGE_LIMIT = 1 << 45
_COLUMNS = {"time": np.dtype(np.uint64), "page": np.dtype(np.uint64), "write": np.dtype(np.bool_)}


@dataclass(frozen=True, eq=False)
class Trace:
    """A recorded program, one entry an event, in time order.

    Attributes:
        time: When: instructions executed before the event, or the recording's own unit.
        page: Which page of the process: address divided by 4096.
        write: Whether the page was written.
        window: Within this much time a page appears once; 0 if that is not so.
        source: Where the trace comes from.

    """

    time: npt.NDArray[np.uint64] = field(repr=False)
    page: npt.NDArray[np.uint64] = field(repr=False)
    write: npt.NDArray[np.bool_] = field(repr=False)
    window: int
    source: str

    def __len__(self) -> int:
        return len(self.time)

    def __repr__(self) -> str:
        return (
            f"Trace({self.source!r}, events={len(self)}, pages={self.nr_pages},"
            f" window={self.window})"
        )

    @cached_property
    def _first_touch(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        unique, first, inverse = np.unique(self.page, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        rank = np.empty(len(order), dtype=np.uint32)
        rank[order] = np.arange(len(order), dtype=np.uint32)
        frames = rank[inverse.reshape(-1)]
        frames.setflags(write=False)
        return unique[order], frames

    @property
    def nr_pages(self) -> int:
        """How many different pages the program touched."""
        return len(self._first_touch[0])

    @property
    def frames(self) -> npt.NDArray[np.uint32]:
        """For each event its guest frame: pages are numbered by first touch."""
        return self._first_touch[1]

    @property
    def frame_pages(self) -> npt.NDArray[np.uint64]:
        """For each guest frame the page of the process that it stands for."""
        return self._first_touch[0]

    def to_dict(self) -> dict[str, Any]:
        """Return what the trace is, without its events."""
        return {
            "source": self.source,
            "events": len(self),
            "pages": self.nr_pages,
            "writes": int(np.count_nonzero(self.write)),
            "window": self.window,
            "first_time": int(self.time[0]),
            "last_time": int(self.time[-1]),
        }


def _checked(
    path: str,
    time: npt.NDArray[np.uint64],
    page: npt.NDArray[np.uint64],
    write: npt.NDArray[np.bool_],
    window: int,
) -> Trace:
    if len(time) == 0:
        raise TraceError(path, "end of file", "no event", "at least one event")
    for column in (time, page, write):
        column.setflags(write=False)
    return Trace(time, page, write, window, path)


def read_npz(path: str | os.PathLike[str]) -> Trace:
    """Read a ``.npz`` trace: arrays ``time``, ``page``, ``write``, scalar ``window``.

    Raises:
        TraceError: If the file is not such a trace; it says what is wrong and where.
        OSError: If the file cannot be read.

    """
    name = os.fspath(path)
    columns: dict[str, npt.NDArray[Any]] = {}
    try:
        with Path(name).open("rb") as file:
            head = file.read(4)
            if not head:
                raise TraceError(name, "offset 0", "an empty file", "an .npz archive")
            if head != b"PK\x03\x04":
                raise TraceError(name, "offset 0", repr(head), "an .npz archive, b'PK\\x03\\x04'")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                for key in (*_COLUMNS, "window"):
                    if key not in archive.files:
                        has = ", ".join(archive.files) or "nothing"
                        raise TraceError(name, f"array {key}", f"only {has}", f"an array {key}")
                    try:
                        columns[key] = archive[key]
                    except (ValueError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
                        raise TraceError(
                            name, f"array {key}", str(error) or "no data", "a whole array"
                        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        size = Path(name).stat().st_size
        raise TraceError(name, f"offset {size}", str(error), "a whole .npz archive") from None
    window = columns.pop("window")
    if window.shape != () or not np.issubdtype(window.dtype, np.integer) or int(window) < 0:
        raise TraceError(
            name,
            "array window",
            f"{window.dtype} of shape {window.shape}",
            "a number, not negative",
        )
    length = len(columns["time"]) if columns["time"].ndim == 1 else 0
    for key, dtype in _COLUMNS.items():
        column = columns[key]
        if column.dtype != dtype:
            raise TraceError(name, f"array {key}", f"type {column.dtype}", f"type {dtype}")
        if column.ndim != 1 or len(column) != length:
            raise TraceError(name, f"array {key}", f"shape {column.shape}", f"shape ({length},)")
    time, page, write = (columns[key] for key in _COLUMNS)
    backwards = np.flatnonzero(time[1:] < time[:-1])
    if len(backwards):
        at = int(backwards[0]) + 1
        raise TraceError(
            name, f"event {at}", f"time {time[at]}", f"a time not below {time[at - 1]}, sorted"
        )
    beyond = np.flatnonzero(page >= _PAGE_LIMIT)
    if len(beyond):
        at = int(beyond[0])
        raise TraceError(name, f"event {at}", f"page {page[at]}", "a page number below 2**45")
    return _checked(name, time, page, write, int(window))


def read_csv(path: str | os.PathLike[str]) -> Trace:
    """Read a CSV trace: header ``time,page,write``, then two numbers and 0 or 1 a line.

    Raises:
        TraceError: If the file is not such a trace; it says what is wrong and where.
        OSError: If the file cannot be read.

    """
    name = os.fspath(path)
    time, page, write, window, _ = _core.read_csv(name)
    return _checked(name, time, page, write, window)


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
    for value, what in ((window, "window"), (max_instructions, "max_instructions")):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{what}: expected a whole number, not {type(value).__name__}")
        if not 0 <= value < 1 << 63:
            raise ValueError(f"{what}: {value} is negative or not below 2**63")
    name = os.fspath(path)
    time, page, write, _, _ = _core.read_lackey(name, window, max_instructions)
    return _checked(name, time, page, write, window)


def read(path: str | os.PathLike[str], format: str | None = None) -> Trace:  # noqa: A002
    """Read a trace of any format.

    Args:
        path: The file.
        format: One of `FORMATS`; otherwise the ending of the name says it:
            ``.npz``, ``.csv``, or anything else for lackey.

    Raises:
        TraceError: If the file is not such a trace; it says what is wrong and where.
        OSError: If the file cannot be read.
        ValueError: If there is no such format.

    """
    name = os.fspath(path)
    if format is None:
        ending = Path(name).suffix.lower()
        format = {".npz": "npz", ".csv": "csv"}.get(ending, "lackey")  # noqa: A001
    if format == "npz":
        return read_npz(name)
    if format == "csv":
        return read_csv(name)
    if format == "lackey":
        return read_lackey(name)
    raise ValueError(f"format: {format!r} is none of {', '.join(FORMATS)}")


def write_npz(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace as ``.npz``, whole or not at all."""
    from ._files import atomic_write

    with atomic_write(path, "wb") as file:
        np.savez_compressed(
            file,
            time=trace.time,
            page=trace.page,
            write=trace.write,
            window=np.uint64(trace.window),
        )


def shipped(name: str = SHIPPED) -> Trace:
    """Return a trace that comes with the package.

    >>> shipped().nr_pages > 1000
    True
    """
    resource = resources.files(__package__).joinpath("data").joinpath(f"{name}.npz")
    with resources.as_file(resource) as path:
        if not path.is_file():
            raise ValueError(f"name: no trace {name!r} comes with the package")
        trace = read_npz(path)
    return Trace(trace.time, trace.page, trace.write, trace.window, f"youngbit:{name}")
