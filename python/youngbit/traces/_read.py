"""Readers of trace files, a block of events at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from .. import _core
from ..errors import TraceError, missing
from ._trace import PAGE_LIMIT, Block, Trace, joined

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "BLOCK",
    "DEFAULT_WINDOW",
    "FORMATS",
    "ORACLE",
    "Reader",
    "format_of",
    "missing",
    "open_trace",
    "pyarrow",
]

#: Names of the formats.
FORMATS = ("npz", "csv", "parquet", "oracle", "lackey", "perf", "damon")
#: Instructions in a window of a recording, unless said otherwise.
DEFAULT_WINDOW = 100_000
#: Events in a block, about.
BLOCK = 1 << 20

#: A record of libCacheSim's oracleGeneral.
ORACLE = np.dtype([("time", "<u4"), ("page", "<u8"), ("size", "<u4"), ("next", "<i8")])

_COLUMNS = {"time": np.dtype(np.uint64), "page": np.dtype(np.uint64), "write": np.dtype(np.bool_)}
_ENDINGS = {
    ".npz": "npz",
    ".csv": "csv",
    ".parquet": "parquet",
    ".oraclegeneral": "oracle",
    ".oraclegeneral.bin": "oracle",
    ".oraclegeneral.zst": "oracle",
    ".oraclegeneral.bin.zst": "oracle",
    ".oraclegeneral.zstd": "oracle",
    ".perf": "perf",
    ".damon": "damon",
    ".damon.txt": "damon",
    ".damon.json": "damon",
}


def format_of(path: str | os.PathLike[str]) -> str:
    """Return the format that a file's ending says; lackey for any other."""
    name = Path(path).name.lower()
    for ending, known in _ENDINGS.items():
        if name.endswith(ending):
            return known
    return "lackey"


def pyarrow(what: str) -> ModuleType:
    """Import pyarrow for something, or say how to have it."""
    try:
        import pyarrow
    except ImportError:
        raise missing(what, "pyarrow", "lab") from None
    return cast("ModuleType", pyarrow)


class Reader(Iterator[Block]):
    """A trace file that is read a block at a time; made by `open_trace`.

    Attributes:
        source: The file.
        format: One of `FORMATS`.
        window: Within this much time a page appears once; 0 if that is not so.
        vms: The first page of each virtual machine, of a merged trace.

    """

    def __init__(
        self,
        source: str,
        format: str,
        blocks: Iterator[Block],
        window: int,
        vms: tuple[int, ...] = (),
        skipped: Callable[[], int] = lambda: 0,
        most: int | None = None,
    ) -> None:
        self.source = source
        self.format = format
        self.window = window
        self.vms = vms
        self._blocks = blocks
        self._skipped = skipped
        self._most = most

    def __next__(self) -> Block:
        return next(self._blocks)

    @property
    def skipped(self) -> int:
        """Samples left out so far, because they are not the program's."""
        return self._skipped()

    def read(self) -> Trace:
        """Return all that is left as one trace.

        Raises:
            TraceError: If the file is not such a trace, or a DAMON record of more
                than 2**28 pages.

        """
        return joined(self._bounded(), self.window, self.source, self.vms)

    def _bounded(self) -> Iterator[Block]:
        events = 0
        for block in self:
            events += block.events
            if self._most is not None and events > self._most:
                raise TraceError(
                    self.source, "regions", f"{events} pages or more", f"at most {self._most}"
                )
            yield block


@contextmanager
def open_trace(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    window: int = DEFAULT_WINDOW,
    max_instructions: int = 0,
    any_page: bool = False,
    block: int = BLOCK,
) -> Iterator[Reader]:
    """Open a trace of any format, to be read a block at a time.

    Memory is bounded by the size of a block. JSON of ``damon`` is sorted on the disk
    first, where temporary files are.

    Args:
        path: The file; ``-`` is standard input for text.
        format: One of `FORMATS`; otherwise the ending of the name says it.
        window: For lackey: within this many instructions a page is kept once, at
            its first access; 0 keeps every access.
        max_instructions: For lackey: stop after this many; 0 reads to the end.
        any_page: Let page numbers of 64 bits pass, as hashed ids of cache traces
            are; they must be numbered anew before anything runs on them.
        block: Events in a block, about.

    Raises:
        TraceError: If the file is not such a trace; it says what is wrong and where.
        OSError: If the file cannot be read.
        ValueError: If there is no such format.
        ImportError: If the format needs a package that is not installed.

    """
    for value, what in ((window, "window"), (max_instructions, "max_instructions")):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{what}: expected a whole number, not {type(value).__name__}")
        if not 0 <= value < 1 << 63:
            raise ValueError(f"{what}: {value} is negative or not below 2**63")
    name = os.fspath(path)
    format = format_of(name) if format is None else format
    with ExitStack() as stack:
        if format in ("csv", "lackey", "perf"):
            kept = window if format == "lackey" else 0
            native = _core.TraceReader(name, format, kept, max_instructions)
            blocks = _native(native, block)
            reader = Reader(name, format, blocks, kept, skipped=lambda: native.skipped)
        elif format == "npz":
            reader = _npz(name, stack, block)
        elif format == "parquet":
            reader = _parquet(name, stack, block)
        elif format == "oracle":
            reader = Reader(name, format, _oracle(name, stack, block), 0)
        elif format == "damon":
            from .damon import MOST_EVENTS, damon_blocks

            # A few bytes of a record may be any number of pages.
            reader = Reader(name, format, damon_blocks(name, stack, block), 0, most=MOST_EVENTS)
        else:
            raise ValueError(f"format: {format!r} is none of {', '.join(FORMATS)}")
        first = min(reader.vms, default=0)
        reader._blocks = _checked(name, reader._blocks, any_page, first)
        yield reader


def _checked(name: str, blocks: Iterator[Block], any_page: bool, first: int) -> Iterator[Block]:
    """Pass blocks on, once it is sure that they are a trace; no page is before the first VM's."""
    seen = 0
    last = np.uint64(0)
    for block in blocks:
        if not block.events:
            continue
        time, page, _ = block
        if time[0] < last:
            raise _unsorted(name, seen, time[0], last)
        backwards = np.flatnonzero(time[1:] < time[:-1])
        if len(backwards):
            at = int(backwards[0]) + 1
            raise _unsorted(name, seen + at, time[at], time[at - 1])
        if not any_page and int(page.max()) >= PAGE_LIMIT:
            at = int(np.flatnonzero(page >= PAGE_LIMIT)[0])
            raise TraceError(
                name, f"event {seen + at}", f"page {page[at]}", "a page number below 2**45"
            )
        if int(page.min()) < first:
            at = int(np.flatnonzero(page < first)[0])
            raise TraceError(
                name, f"event {seen + at}", f"page {page[at]}",
                f"a page of a VM, of which the first begins at {first}",
            )  # fmt: skip
        seen += block.events
        last = time[-1]
        yield block
    if not seen:
        raise TraceError(name, "end of file", "no event", "at least one event")


def _unsorted(name: str, at: int, time: np.uint64, last: np.uint64) -> TraceError:
    return TraceError(name, f"event {at}", f"time {time}", f"a time not below {last}, sorted")


def _native(reader: _core.TraceReader, block: int) -> Iterator[Block]:
    while (columns := reader.read(block)) is not None:
        time, page, write, _ = columns
        yield Block(time, page, write)


def _opened(name: str, stack: ExitStack) -> BufferedReader:
    return stack.enter_context(Path(name).open("rb"))


def _check_seekable(name: str, file: BufferedReader, what: str) -> None:
    if not file.seekable():
        raise TraceError(name, "offset 0", "a pipe", f"a file: {what} is read from its end")


# What zipfile, zlib and numpy raise for bytes that are no archive is not
# documented, and grows with their versions.
_BROKEN = (Exception,)


def _npz(name: str, stack: ExitStack, block: int) -> Reader:
    file = _opened(name, stack)
    _check_seekable(name, file, "an .npz archive")
    head = file.read(4)
    if not head:
        raise TraceError(name, "offset 0", "an empty file", "an .npz archive")
    if head != b"PK\x03\x04":
        raise TraceError(name, "offset 0", repr(head), "an .npz archive, b'PK\\x03\\x04'")
    size = os.fstat(file.fileno()).st_size
    try:
        archive = stack.enter_context(ZipFile(file))
        names = {entry.removesuffix(".npy") for entry in archive.namelist()}
    except _BROKEN as error:
        raise TraceError(
            name, f"offset {size}", str(error) or type(error).__name__, "a whole .npz archive"
        ) from None
    columns: dict[str, _Column] = {}
    for key in (*_COLUMNS, "window"):
        if key not in names:
            has = ", ".join(sorted(names)) or "nothing"
            raise TraceError(name, f"array {key}", f"only {has}", f"an array {key}")
        columns[key] = _Column(name, key, archive, stack)
    length = columns["time"].length
    for key, dtype in _COLUMNS.items():
        column = columns[key]
        if column.dtype != dtype:
            raise TraceError(name, f"array {key}", f"type {column.dtype}", f"type {dtype}")
        if len(column.shape) != 1 or column.length != length:
            raise TraceError(name, f"array {key}", f"shape {column.shape}", f"shape ({length},)")
    window = columns["window"].scalar()
    vms: tuple[int, ...] = ()
    if "vms" in names:
        vms = _Column(name, "vms", archive, stack).whole_numbers()

    def blocks() -> Iterator[Block]:
        for at in range(0, length, block):
            count = min(block, length - at)
            yield Block(*(columns[key].take(count) for key in _COLUMNS))
        for key in _COLUMNS:
            columns[key].finish()

    return Reader(name, "npz", blocks(), window, vms)


class _Column:
    """An array of an archive, read from its start to its end."""

    def __init__(self, path: str, key: str, archive: ZipFile, stack: ExitStack) -> None:
        self.path, self.key = path, key
        try:
            self.file = stack.enter_context(archive.open(f"{key}.npy"))
            version = np.lib.format.read_magic(cast("BinaryIO", self.file))
            if version == (1, 0):
                header = np.lib.format.read_array_header_1_0(cast("BinaryIO", self.file))
            elif version == (2, 0):
                header = np.lib.format.read_array_header_2_0(cast("BinaryIO", self.file))
            else:
                raise ValueError(f"version {version} of the .npy format")
            self.shape, _, self.dtype = header
        except _BROKEN as error:
            raise self.error(error) from None
        self.length = int(self.shape[0]) if len(self.shape) == 1 else 0

    def error(self, error: Exception) -> TraceError:
        found = str(error).split("\n")[0] or type(error).__name__
        return TraceError(self.path, f"array {self.key}", found, "a whole array")

    def take(self, count: int) -> npt.NDArray[Any]:
        size = count * self.dtype.itemsize
        try:
            data = self.file.read(size)
        except _BROKEN as error:
            raise self.error(error) from None
        if len(data) != size:
            found = f"{len(data)} of {size} bytes"
            raise TraceError(self.path, f"array {self.key}", found, "a whole array")
        if self.dtype == np.bool_:
            # Any other byte would be neither true nor false to numpy.
            return cast("npt.NDArray[Any]", np.frombuffer(data, np.uint8) != 0)
        return np.frombuffer(data, self.dtype)

    def finish(self) -> None:
        """Read past the end, where the check sum is looked at."""
        try:
            more = self.file.read(1)
        except _BROKEN as error:
            raise self.error(error) from None
        if more:
            raise TraceError(
                self.path, f"array {self.key}", "more bytes", f"{self.length} elements only"
            )

    def scalar(self) -> int:
        where = f"array {self.key}"
        wanted = "a number, not negative"
        if self.shape != () or self.dtype.kind not in "iu":
            found = f"{self.dtype} of shape {self.shape}"
            raise TraceError(self.path, where, found, wanted)
        value = int(self.take(1)[0])
        if value < 0:
            raise TraceError(self.path, where, str(value), wanted)
        self.finish()
        return value

    def whole_numbers(self) -> tuple[int, ...]:
        values: list[int] = []
        if len(self.shape) == 1 and self.dtype.kind in "iu" and self.length <= 1 << 16:
            values = self.take(self.length).tolist()
            self.finish()
        if not _are_firsts(values):
            raise TraceError(
                self.path, f"array {self.key}", f"{self.dtype} of shape {self.shape}", _FIRSTS
            )
        return tuple(values)


_FIRSTS = "the first page of each VM, rising"


def _are_firsts(values: Sequence[int]) -> bool:
    return bool(values) and values[0] >= 0 and list(values) == sorted(set(values))


def _parquet(name: str, stack: ExitStack, block: int) -> Reader:
    arrow = pyarrow("Parquet")
    from pyarrow import parquet

    file = _opened(name, stack)
    _check_seekable(name, file, "a Parquet file")
    try:
        table = parquet.ParquetFile(file)
        schema = table.schema_arrow
    except (arrow.ArrowException, OSError, ValueError) as error:
        found = str(error).split("\n")[0]
        raise TraceError(name, "footer", found, "a Parquet file") from None
    for key, dtype in _COLUMNS.items():
        found = schema.names.count(key)
        if not found:
            has = ", ".join(schema.names) or "nothing"
            raise TraceError(name, f"column {key}", f"only {has}", f"a column {key}")
        if found > 1:
            raise TraceError(name, f"column {key}", f"{found} of that name", "one")
        kind = schema.field(key).type
        if arrow.types.is_dictionary(kind):
            kind = kind.value_type
        if not (
            arrow.types.is_integer(kind) or (dtype == np.bool_ and arrow.types.is_boolean(kind))
        ):
            wanted = "true or false" if dtype == np.bool_ else "whole numbers"
            raise TraceError(name, f"column {key}", f"type {kind}", wanted)
    metadata = schema.metadata or {}
    window, vms = 0, tuple[int, ...]()
    try:
        window = int(metadata.get(b"youngbit.window", b"0"))
        text = metadata.get(b"youngbit.vms", b"").decode()
        vms = tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise TraceError(name, "metadata", "youngbit.window or .vms", "whole numbers") from None
    if not 0 <= window < 1 << 64:
        raise TraceError(
            name, "metadata youngbit.window", str(window), "a number, not negative, below 2**64"
        )
    if vms and not _are_firsts(vms):
        raise TraceError(name, "metadata youngbit.vms", text, _FIRSTS)

    def blocks() -> Iterator[Block]:
        seen = 0
        try:
            for batch in table.iter_batches(batch_size=block, columns=list(_COLUMNS)):
                columns = []
                for key, dtype in _COLUMNS.items():
                    column = batch.column(key)
                    if column.null_count:
                        raise TraceError(
                            name, f"column {key}, from row {seen}", "a null", "a value in each row"
                        )
                    wanted = arrow.bool_() if dtype == np.bool_ else arrow.uint64()
                    values = column.cast(wanted).to_numpy(zero_copy_only=False)
                    columns.append(np.ascontiguousarray(values))
                yield Block(*columns)
                seen += batch.num_rows
        except (arrow.ArrowException, OSError) as error:
            found = str(error).split("\n")[0]
            raise TraceError(name, f"rows from {seen}", found, "a whole Parquet file") from None

    return Reader(name, "parquet", blocks(), window, vms)


def _oracle(name: str, stack: ExitStack, block: int) -> Iterator[Block]:
    file = _opened(name, stack)
    head = file.peek(4)[:4]
    packed = head == b"\x28\xb5\x2f\xfd"
    if name.lower().endswith((".zst", ".zstd")) and not packed:
        found = repr(head) if head else "an empty file"
        raise TraceError(name, "offset 0", found, "a zstd stream, b'(\\xb5/\\xfd'")
    read: Callable[[int], bytes] = file.read
    broken: tuple[type[Exception], ...] = ()
    if packed:
        arrow = pyarrow("zstd")
        # Left to itself it would close the file twice.
        stream = stack.enter_context(arrow.CompressedInputStream(file, "zstd"))
        read, broken = stream.read, (arrow.ArrowException, OSError)
    at = 0
    while True:
        try:
            data = read(block * ORACLE.itemsize)
            # A decompressor may hand out less than it will have.
            while lacking := -len(data) % ORACLE.itemsize:
                rest = read(lacking)
                if not rest:
                    break
                data += rest
        except broken as error:
            found = str(error).split("\n")[0]
            raise TraceError(name, f"event {at}", found, "a whole zstd stream") from None
        if not data:
            return
        records = len(data) // ORACLE.itemsize
        if len(data) % ORACLE.itemsize:
            raise TraceError(
                name,
                f"offset {(at + records) * ORACLE.itemsize}",
                f"{len(data) % ORACLE.itemsize} bytes",
                f"records of {ORACLE.itemsize} bytes",
            )
        rows = np.frombuffer(data, ORACLE)
        at += records
        yield Block(
            rows["time"].astype(np.uint64),
            rows["page"].astype(np.uint64),
            np.zeros(len(rows), np.bool_),
        )
