"""Writers of trace files, a block of events at a time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, Protocol
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import numpy.typing as npt

from .. import _core
from .._files import atomic_write, scratch_directory
from ._read import BLOCK, ORACLE, format_of, pyarrow
from ._trace import Block, Trace
from .tools import Numbering

__all__ = ["WRITTEN", "Writer", "write", "write_npz", "writing"]

#: Names of the formats that can be written.
WRITTEN = ("npz", "csv", "parquet", "oracle", "perf", "damon")

_COPY = 1 << 20


class Writer(Protocol):
    """Takes a trace a block at a time; made by `writing`."""

    def add(self, block: Block) -> None:
        """Take more events, not before those that it has."""
        ...

    def finish(self) -> None:
        """Write what had to wait for the last event."""
        ...


@contextmanager
def writing(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    window: int = 0,
    vms: tuple[int, ...] = (),
    interval: int = 0,
) -> Iterator[Writer]:
    """Write a trace a block at a time; a file appears whole or not at all.

    ``oracle`` has no place for writes, ``csv``, ``perf``, ``oracle`` and ``damon`` none
    for ``window`` and ``vms``: those are lost. Of ``damon`` the pages of one interval are
    held in memory.

    Args:
        path: The file.
        format: One of ``WRITTEN``; otherwise the ending of the name says it.
        window: Within this much time a page appears once; 0 if that is not so.
        vms: The first page of each virtual machine, of a merged trace.
        interval: For damon: time in a snapshot.

    Raises:
        ValueError: If the format is none that can be written, or has no place for
            a time.
        OSError: If the file cannot be written.
        ImportError: If the format needs a package that is not installed.

    """
    name = os.fspath(path)
    format = format_of(name) if format is None else format
    if format not in WRITTEN:
        raise ValueError(
            f"format: {format!r} of {name} is none that can be written: {', '.join(WRITTEN)}"
        )
    with ExitStack() as stack:
        file = stack.enter_context(atomic_write(name, "wb"))
        writer: Writer
        if format == "npz":
            writer = _Npz(name, file, stack, window, vms)
        elif format == "csv":
            writer = _Text(file, _core.format_csv, b"time,page,write\n")
        elif format == "perf":
            writer = _Text(file, _core.format_perf)
        elif format == "parquet":
            writer = _Parquet(file, stack, window, vms)
        elif format == "oracle":
            writer = _Oracle(name, file, stack)
        else:
            from .damon import DamonWriter

            writer = DamonWriter(name, file, interval)
        yield writer
        writer.finish()


def write(
    trace: Trace,
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    interval: int = 0,
) -> None:
    """Write a trace, whole or not at all; arguments and errors as `writing`."""
    with writing(path, format, window=trace.window, vms=trace.vms, interval=interval) as writer:
        for at in range(0, len(trace), BLOCK):
            part = slice(at, at + BLOCK)
            writer.add(Block(trace.time, trace.page, trace.write).where(part))


def write_npz(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace as ``.npz``, whole or not at all."""
    write(trace, path, "npz")


def _beside(path: str, stack: ExitStack) -> IO[bytes]:
    """Return a file without a name on the disk that the trace is written to."""
    return stack.enter_context(tempfile.TemporaryFile(dir=scratch_directory(path)))


class _Npz:
    """Columns go to files of their own first: an archive wants them one by one."""

    def __init__(
        self, path: str, file: IO[bytes], stack: ExitStack, window: int, vms: tuple[int, ...]
    ) -> None:
        self.file = file
        self.columns = {key: _beside(path, stack) for key in Block._fields}
        self.window = window
        self.vms = vms
        self.events = 0

    def add(self, block: Block) -> None:
        for key, column in zip(Block._fields, block, strict=True):
            self.columns[key].write(column.tobytes())
        self.events += block.events

    def finish(self) -> None:
        # Nothing but the data decides the bytes: no time, no system.
        with ZipFile(self.file, "w", ZIP_DEFLATED) as archive:
            for key, dtype in zip(Block._fields, (np.uint64, np.uint64, np.bool_), strict=True):
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    header = {
                        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                        "fortran_order": False,
                        "shape": (self.events,),
                    }
                    np.lib.format.write_array_header_1_0(member, header)
                    self.columns[key].seek(0)
                    shutil.copyfileobj(self.columns[key], member, _COPY)
            extra: dict[str, Any] = {"window": np.uint64(self.window)}
            if self.vms:
                extra["vms"] = np.array(self.vms, dtype=np.uint64)
            for key, value in extra.items():
                with archive.open(f"{key}.npy", "w") as member:
                    np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=False)


class _Text:
    def __init__(self, file: IO[bytes], format: Callable[..., bytes], head: bytes = b"") -> None:
        self.file = file
        self.format = format
        file.write(head)

    def add(self, block: Block) -> None:
        self.file.write(self.format(*map(np.ascontiguousarray, block)))

    def finish(self) -> None:
        pass


class _Parquet:
    def __init__(
        self, file: IO[bytes], stack: ExitStack, window: int, vms: tuple[int, ...]
    ) -> None:
        self.arrow = pyarrow("Parquet")
        from pyarrow import parquet

        metadata = {"youngbit.window": str(window)}
        if vms:
            metadata["youngbit.vms"] = ",".join(map(str, vms))
        fields = [
            ("time", self.arrow.uint64()),
            ("page", self.arrow.uint64()),
            ("write", self.arrow.bool_()),
        ]
        self.schema = self.arrow.schema(fields, metadata=metadata)
        self.writer = stack.enter_context(
            parquet.ParquetWriter(file, self.schema, compression="zstd")
        )

    def add(self, block: Block) -> None:
        columns = [self.arrow.array(column) for column in block]
        self.writer.write_table(self.arrow.table(columns, schema=self.schema))

    def finish(self) -> None:
        self.writer.close()


class _LeftOpen:
    """A file that others may close without closing it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write
        self.flush = file.flush
        self.closed = False

    def close(self) -> None:
        self.closed = True


class _Oracle:
    """Writes when each page is used next where that use turns up."""

    def __init__(self, path: str, file: IO[bytes], stack: ExitStack) -> None:
        self.path = path
        self.file = file
        self.arrow = pyarrow("zstd") if path.lower().endswith((".zst", ".zstd")) else None
        self.rows = _beside(path, stack)
        self.numbering = Numbering()
        self.last = np.empty(0, dtype=np.int64)
        self.events = 0

    def add(self, block: Block) -> None:
        if int(block.time[-1]) >= 1 << 32:
            raise ValueError(
                f"{self.path}: time {block.time[-1]}: oracleGeneral has 32 bits for a time;"
                " divide it, or cut the trace"
            )
        count = block.events
        numbers = self.numbering.of(block.page).astype(np.int64)
        at = np.arange(self.events, self.events + count)
        rows = np.empty(count, dtype=ORACLE)
        rows["time"], rows["page"], rows["size"] = block.time, block.page, 4096
        rows["next"] = -1
        order = np.argsort(numbers, kind="stable")
        pages = numbers[order]
        same = pages[1:] == pages[:-1]
        rows["next"][order[:-1][same]] = at[order[1:][same]]
        self.rows.write(rows.tobytes())

        # The first use of a page in this block is what its last use before waits for.
        grown = np.full(self.numbering.count, -1, dtype=np.int64)
        grown[: len(self.last)] = self.last
        self.last = grown
        first = np.ones(count, dtype=np.bool_)
        first[1:] = ~same
        firsts = order[first]
        before = self.last[numbers[firsts]]
        waiting = before >= 0
        self._patch(before[waiting], at[firsts[waiting]])
        final = np.ones(count, dtype=np.bool_)
        final[:-1] = ~same
        self.last[pages[final]] = at[order[final]]
        self.events += count

    def _patch(self, rows: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> None:
        if len(rows):
            self.rows.flush()
            mapped: np.memmap[Any, Any] = np.memmap(self.rows, ORACLE, "r+")
            mapped["next"][rows] = values
            mapped.flush()
            # A map moves the file's position.
            self.rows.seek(0, os.SEEK_END)

    def finish(self) -> None:
        self.rows.seek(0)
        if self.arrow is None:
            shutil.copyfileobj(self.rows, self.file, _COPY)
            return
        sink = self.arrow.PythonFile(_LeftOpen(self.file), "w")
        with self.arrow.CompressedOutputStream(sink, "zstd") as packed:
            shutil.copyfileobj(self.rows, packed, _COPY)


def write_all(blocks: Iterable[Block], writer: Writer) -> int:
    """Hand blocks to a writer; return how many events there were."""
    events = 0
    for block in blocks:
        if block.events:
            writer.add(block)
            events += block.events
    return events
