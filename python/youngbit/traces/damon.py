"""Records of DAMON, as ``damo record`` keeps them.

A record says of a region how often one page of it, drawn at random, was found
accessed. It is an estimate, not a list of accesses; read as a trace it is the
upper bound: every page of a region that was accessed at all.

Records are read a part of a snapshot at a time, and written a snapshot at a time.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from ..errors import TraceError, missing
from ..sizes import PAGE_SIZE
from ._trace import PAGE_LIMIT, Block, Trace, joined

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["MOST_EVENTS", "DamonRecord", "DamonWriter", "damon_blocks", "read_damon"]

#: Events that a record may be as a trace in memory, and pages that a region may have.
MOST_EVENTS = 1 << 28
#: Regions that are held at a time.
_REGIONS = 1 << 12
#: Bytes of a packed file, and of what it was packed from, that are held at a time.
_PIECE = 1 << 16
#: Bytes of a line: perf's comments may be some thousands long.
_LONGEST_LINE = 1 << 20

_LINE = re.compile(
    r"\s(?P<time>\d+\.\d{1,9}): +damon:damon_aggregated: +target_id=(?P<target>\d+)"
    r" +nr_regions=\d+ +(?P<start>\d+)-(?P<end>\d+): +(?P<accesses>-?\d+)(?: +(?P<age>-?\d+))?\s*$"
)
_NUMBER = re.compile(r"\d+(,\d{3})*")


@dataclass(frozen=True, eq=False)
class DamonRecord:
    """Regions that DAMON saw, one entry a region and snapshot, in order of time.

    Attributes:
        time: When the snapshot ended, nanoseconds.
        start: First byte of the region.
        end: One past its last byte.
        nr_accesses: Samples of the aggregation interval that found it accessed.
        age: Aggregation intervals for which that has been so.
        source: The file.

    """

    time: npt.NDArray[np.uint64] = field(repr=False)
    start: npt.NDArray[np.uint64] = field(repr=False)
    end: npt.NDArray[np.uint64] = field(repr=False)
    nr_accesses: npt.NDArray[np.uint64] = field(repr=False)
    age: npt.NDArray[np.uint64] = field(repr=False)
    source: str

    def __len__(self) -> int:
        return len(self.time)

    def to_trace(self, *, at_least: int = 1) -> Trace:
        """Return an access to each page of each region, at the end of its snapshot.

        Args:
            at_least: Leave out regions with fewer accesses.

        Raises:
            TraceError: If that would be more than 2**28 events.

        """
        kept = self.nr_accesses >= at_least
        time, start, end = self.time[kept], self.start[kept], self.end[kept]
        _, counts = _extent(start, end)
        # As floats, for their sum may be beyond 64 bits.
        total = counts.astype(np.float64).sum()
        if total > MOST_EVENTS:
            raise TraceError(self.source, "regions", f"{total:.0f} pages", f"at most {MOST_EVENTS}")
        return joined(_pages(time, start, end, MOST_EVENTS), 0, self.source)


def read_damon(path: str | os.PathLike[str], *, target: int | None = None) -> DamonRecord:
    """Read what ``damo record`` keeps: JSON, compressed or not, or text of ``perf script``.

    In memory are the columns of the record, and no more of the file than a part.

    Args:
        path: The file.
        target: Which target, by its id, if there are several.

    Raises:
        TraceError: If the file is not such a record; it says what is wrong and where.
        OSError: If the file cannot be read.
        ImportError: If it is JSON and the package ijson is not installed.

    """
    name = os.fspath(path)
    columns = _Columns()
    with ExitStack() as stack:
        source = _Source(name, stack)
        for part in source.parts():
            if target is None or source.targets.get(part.owner, target) == target:
                columns.add(part)
    owner, time, *rows = columns.whole()
    if target is None:
        source.check_target()
        kept = np.ones(len(time), np.bool_)
    else:
        owners = [number for number, each in source.targets.items() if each == target]
        kept = np.isin(owner, np.array(owners, np.uint64))
    if not kept.any():
        raise _no_region(name)
    # There may be several records of one target, each in its own order of time.
    order = np.flatnonzero(kept)[np.argsort(time[kept], kind="stable")]
    start, end, nr_accesses, age = (column[order] for column in rows)
    return DamonRecord(time[order], start, end, nr_accesses, age, name)


def damon_blocks(name: str, stack: ExitStack, block: int) -> Iterator[Block]:
    """Read a record as a trace: an access to each page of each region that was accessed.

    Regions of text come in order of time, and are passed on as they come. Those of
    JSON may not, for a record follows another: a file on the disk without a name
    holds them until all are there, 16 bytes a region.

    Args:
        name: The file.
        stack: What closes it.
        block: Events in a block, at most.

    Raises:
        TraceError: As `read_damon`, and if a region has more than 2**28 pages.
        OSError: As `read_damon`.
        ImportError: As `read_damon`.

    """
    source = _Source(name, stack)
    parts = _accessed(source)
    for time, start, end in _gathered(_in_order(parts) if source.is_json else parts):
        _, counts = _extent(start, end)
        if int(counts.max()) > MOST_EVENTS:
            raise TraceError(name, "regions", f"{counts.max()} pages", f"at most {MOST_EVENTS}")
        yield from _pages(time, start, end, block)


_Column = npt.NDArray[np.uint64]
#: Of regions: when, their first byte, and one past their last.
_Extent = tuple[int, _Column, _Column]


def _extent(start: _Column, end: _Column) -> tuple[_Column, _Column]:
    """Return the first page of each region, and how many it has."""
    first = start // np.uint64(PAGE_SIZE)
    last = (end - np.uint64(1)) // np.uint64(PAGE_SIZE)
    return first, last - first + np.uint64(1)


def _pages(time: _Column, start: _Column, end: _Column, block: int) -> Iterator[Block]:
    """Give the pages of regions, so many at a time; a region may be of several blocks."""
    first, counts = _extent(start, end)
    after = np.cumsum(counts.astype(np.int64))
    total = int(after[-1]) if len(after) else 0
    for at in range(0, total, block):
        until = min(at + block, total)
        low, high = np.searchsorted(after, [at, until - 1], side="right")
        part = slice(int(low), int(high) + 1)
        begin = after[part] - counts[part].astype(np.int64)
        lengths = np.minimum(after[part], until) - np.maximum(begin, at)
        # A running number, less where the pages of each region begin in it.
        within = np.arange(at, until, dtype=np.int64) - np.repeat(begin, lengths)
        page = np.repeat(first[part], lengths) + within.astype(np.uint64)
        yield Block(np.repeat(time[part], lengths), page, np.zeros(until - at, np.bool_))


def _accessed(source: _Source) -> Iterator[_Extent]:
    """Give regions that were accessed; sure to be of one target only when it ends."""
    several = False
    known: set[int] = set()
    for part in source.parts():
        if part.owner not in known:
            known.add(part.owner)
            several = len({source.targets.get(each) for each in known} - {None}) > 1
        if not several:
            rows = part.rows[part.rows[:, 2] > 0]
            if len(rows):
                yield part.time, rows[:, 0], rows[:, 1]
    source.check_target()


def _in_order(parts: Iterable[_Extent]) -> Iterator[_Extent]:
    """Sort parts by time, on the disk."""
    with tempfile.TemporaryFile() as file:
        times, counts = array("Q"), array("Q")
        for time, start, end in parts:
            times.append(time)
            counts.append(len(start))
            file.write(start.tobytes() + end.tobytes())
        length = np.frombuffer(counts, np.uint64).astype(np.int64)
        offset = (np.cumsum(length) - length) * 16
        for at in np.argsort(np.frombuffer(times, np.uint64), kind="stable"):
            file.seek(int(offset[at]))
            start, end = np.frombuffer(file.read(int(length[at]) * 16), np.uint64).reshape(2, -1)
            yield times[at], start, end


def _gathered(parts: Iterable[_Extent]) -> Iterator[tuple[_Column, _Column, _Column]]:
    """Put parts together until they are some thousand regions: snapshots may be small."""
    held: list[_Extent] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part[1])
        if count >= _REGIONS:
            yield _together(held)
            held, count = [], 0
    if held:
        yield _together(held)


def _together(parts: list[_Extent]) -> tuple[_Column, _Column, _Column]:
    times, starts, ends = zip(*parts, strict=True)
    time = np.repeat(np.array(times, np.uint64), [len(start) for start in starts])
    return time, np.concatenate(starts), np.concatenate(ends)


class _Part(NamedTuple):
    """Regions of a snapshot, all of them or some.

    ``owner`` is the number of the record in JSON, and the target in text. A row
    is a region: start, end, nr_accesses, age.
    """

    owner: int
    time: int
    rows: _Column


class _Columns:
    """Columns of numbers that grow a piece at a time: owner, time, and those of a part."""

    PIECE = 1 << 16

    def __init__(self) -> None:
        self.pieces: list[_Column] = []
        self.used = self.PIECE

    def add(self, part: _Part) -> None:
        at = 0
        while at < len(part.rows):
            if self.used == self.PIECE:
                self.pieces.append(np.empty((6, self.PIECE), np.uint64))
                self.used = 0
            rows = part.rows[at : at + self.PIECE - self.used]
            to = self.pieces[-1][:, self.used : self.used + len(rows)]
            to[0], to[1], to[2:] = part.owner, part.time, rows.T
            at += len(rows)
            self.used += len(rows)

    def whole(self) -> list[_Column]:
        """Return the columns; nothing is left here."""
        empty = np.empty((6, 0), np.uint64)
        pieces = [*self.pieces[:-1], *(piece[:, : self.used] for piece in self.pieces[-1:])]
        self.pieces = []
        return [np.concatenate([each[row] for each in (empty, *pieces)]) for row in range(6)]


class _Inflated(RawIOBase):
    """What a zlib stream was packed from."""

    def __init__(self, name: str, file: BufferedReader) -> None:
        self.name = name
        self.file = file
        self.packed = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        while not self.packed.eof:
            data = self.packed.unconsumed_tail or self.file.read(_PIECE)
            try:
                plain = self.packed.decompress(data, len(view))
            except zlib.error as error:
                raise TraceError(self.name, "offset 0", str(error), "a zlib stream") from None
            if plain:
                view[: len(plain)] = plain
                return len(plain)
            if not data:
                raise TraceError(
                    self.name, "end of file", "the stream goes on", "a whole zlib stream"
                )
        return 0


class _Read:
    """What was read, and where its last piece was: the parser does not say how far it came."""

    def __init__(self, file: BufferedReader) -> None:
        self.file = file
        self.piece = b""
        self.end = 0

    def read(self, size: int) -> bytes:
        self.piece = self.file.read(size)
        self.end += len(self.piece)
        return self.piece

    def place(self, shown: list[str], before: int) -> str:
        """Return where the parser stopped: one past what it could not take.

        Args:
            shown: Of its message: some text, and below it an arrow.
            before: Bytes that it did not see.

        """
        end = before + self.end
        if not self.piece:
            return f"offset {end}"
        start = end - len(self.piece)
        text, arrow, *_ = *shown, "", ""
        near = text.strip().encode(errors="surrogateescape")
        piece = re.sub(rb"[\r\n]", b" ", self.piece)
        if near and piece.count(near) == 1 and "^" in arrow:
            # In bytes, as the arrow is.
            indent = len(text) - len(text.lstrip())
            at = piece.index(near) + arrow.index("^") - indent
            return f"offset {start + at}"
        return f"offsets {start} to {end}"


def _opened(name: str, stack: ExitStack) -> BufferedReader:
    return stack.enter_context(Path(name).open("rb"))


class _Source:
    """A record that is read a part at a time.

    Attributes:
        is_json: Whether it is JSON; otherwise it is text.
        targets: The target of each owner of parts that is known so far.

    """

    def __init__(self, name: str, stack: ExitStack) -> None:
        self.name = name
        self.targets: dict[int, int] = {}
        self._owners: set[int] = set()
        self._file = _opened(name, stack)
        head = self._file.peek(1)[:1]
        if not head:
            raise TraceError(name, "offset 0", "an empty file", "a DAMON record")
        if head == b"\x78":
            raw = _Inflated(name, self._file)
            self._file = stack.enter_context(BufferedReader(cast("Any", raw), _PIECE))
        # What is empty before the first character, for places in text.
        self._lines = self._offset = 0
        while (head := self._file.peek(1)) and not head.strip():
            self._lines += head.count(b"\n")
            self._offset += len(self._file.read(len(head)))
        self.is_json = head.lstrip()[:1] in (b"[", b"{")

    def parts(self) -> Iterator[_Part]:
        """Give the regions, in the file's order."""
        for part in self._json() if self.is_json else self._text():
            self._owners.add(part.owner)
            yield part

    def check_target(self) -> None:
        """Once all is read: raise if there is no region, or several targets."""
        if not self._owners:
            raise _no_region(self.name)
        targets = sorted({self.targets[owner] for owner in self._owners})
        if len(targets) > 1:
            shown = ", ".join(map(str, targets[:8]))
            raise TraceError(self.name, "targets", f"several: {shown}", "one, or a choice of one")

    def _text(self) -> Iterator[_Part]:
        flat: list[int] = []
        target = last = 0
        number, offset = self._lines, self._offset
        while data := self._file.readline(_LONGEST_LINE):
            number += 1
            where = f"line {number}"
            try:
                line = data.decode()
            except UnicodeDecodeError as error:
                at = f"offset {offset + error.start}"
                raise TraceError(self.name, at, "no text", "a DAMON record") from None
            offset += len(data)
            if not line.endswith("\n"):
                found = "no line end" if len(data) < _LONGEST_LINE else "a line without end"
                raise TraceError(self.name, where, found, "a whole file")
            if not line.strip() or line.startswith("#"):
                continue
            match = _LINE.search(" " + line)
            if match is None:
                raise TraceError(
                    self.name, where, repr(line.rstrip("\r\n")[:60]),
                    "`... 1.5: damon:damon_aggregated: target_id=0 nr_regions=9 4096-8192: 3 2`",
                )  # fmt: skip
            shown, its, first, end, accesses, age = match.groups("0")
            seconds, _, fraction = shown.partition(".")
            time = int(seconds) * 10**9 + int(fraction.ljust(9, "0"))
            if time >= 1 << 63:
                raise TraceError(self.name, where, shown, "seconds below 2**33")
            if time < last:
                raise TraceError(self.name, where, shown, "a time not below that before")
            if (time, int(its)) != (last, target) or len(flat) >= 4 * _REGIONS:
                yield from self._part(target, last, flat)
                flat.clear()
            last, target = time, int(its)
            self.targets[target] = target
            if int(accesses) < 0:
                # damo marks the end of a lone snapshot so.
                continue
            region = int(first), int(end)
            _check_region(self.name, where, *region)
            flat += (*region, *(min(max(int(each), 0), 1 << 32) for each in (accesses, age)))
        yield from self._part(target, last, flat)

    def _part(self, owner: int, time: int, flat: list[int]) -> Iterator[_Part]:
        if flat:
            yield _Part(owner, time, _rows(flat))

    def _json(self) -> Iterator[_Part]:
        try:
            import ijson
        except ImportError:
            raise missing("JSON of DAMON", "ijson", "damon") from None
        # What it raises beside its own: Python's limits of nesting and of numbers.
        broken = (ijson.JSONError, ArithmeticError, ValueError, RecursionError)
        read = _Read(self._file)
        events = ijson.basic_parse(read, buf_size=_PIECE)
        try:
            try:
                yield from self._document(events)
            except TraceError:
                # What is no whole document is that first, and no record second.
                _drain(events)
                raise
            _drain(events)
        except TraceError:
            raise
        except broken as error:
            said = error.args[0] if error.args else type(error).__name__
            text = said.decode(errors="surrogateescape") if isinstance(said, bytes) else str(said)
            found, *shown = text.split("\n")
            where = f"JSON, {read.place(shown, self._offset)}"
            raise TraceError(self.name, where, found, "a whole JSON document") from None

    def _document(self, events: _Events) -> Iterator[_Part]:
        event, value = next(events)
        if event == "start_map":
            # Written by later versions: the records are one of several things kept.
            where = "document"
            for key, kind in (
                ("damo_records", dict), ("damon_records", dict), ("record_list", list),
            ):  # fmt: skip
                for found, event, value in _members(events):
                    if found == key:
                        _check_kind(self.name, f"{where}, {key}", event, value, kind)
                        break
                    _skip(event, events)
                else:
                    raise _no_field(self.name, where, key)
                where = key
        for r, _ in self._objects("record {}", events):
            yield from self._record(r, events)

    def _objects(self, where: str, events: _Events) -> Iterator[tuple[int, str]]:
        """Give number and place of each object of an array, whose members are to be read."""
        for number, (event, value) in enumerate(events):
            if event == "end_array":
                return
            place = where.format(number)
            if event != "start_map":
                raise TraceError(self.name, place, _kind(event, value), "an object")
            yield number, place

    def _record(self, r: int, events: _Events) -> Iterator[_Part]:
        where = f"record {r}"
        snapshots = False
        for key, event, value in _members(events):
            if key == "target_id":
                self.targets[r] = _number(self.name, where, _built(event, value, events) or 0)
            elif key == "snapshots":
                _check_kind(self.name, f"{where}, snapshots", event, value, list)
                snapshots = True
                for _, here in self._objects(where + ", snapshot {}", events):
                    yield from self._snapshot(r, here, events)
            else:
                _skip(event, events)
        if r not in self.targets:
            raise _no_field(self.name, where, "target_id")
        if not snapshots:
            raise _no_field(self.name, where, "snapshots")

    def _snapshot(self, r: int, here: str, events: _Events) -> Iterator[_Part]:
        time = None
        regions = False
        # Of a snapshot that says its time last.
        waiting: list[_Column] = []
        for key, event, value in _members(events):
            if key == "end_time":
                time = _number(self.name, here, _built(event, value, events))
            elif key == "regions":
                _check_kind(self.name, f"{here}, regions", event, value, list)
                regions = True
                for rows in self._regions(here, events):
                    if time is None:
                        waiting.append(rows)
                    else:
                        yield _Part(r, time, rows)
            else:
                _skip(event, events)
        if time is None:
            raise _no_field(self.name, here, "end_time")
        if not regions:
            raise _no_field(self.name, here, "regions")
        for rows in waiting:
            yield _Part(r, time, rows)

    def _regions(self, here: str, events: _Events) -> Iterator[_Column]:
        name = self.name
        flat: list[int] = []
        for n, (event, value) in enumerate(events):
            if event == "end_array":
                break
            region = _built(event, value, events)
            at = f"{here}, region {n}"
            start = _number(name, at, _get(name, at, region, "start", object))
            end = _number(name, at, _get(name, at, region, "end", object))
            samples = _get(name, at, region, "nr_accesses", dict).get("samples")
            if samples is None:
                raise TraceError(name, at, "nr_accesses without samples", "samples")
            if samples == -1:
                continue
            age = _get(name, at, region, "age", dict).get("aggr_intervals")
            _check_region(name, at, start, end)
            flat += (start, end, _number(name, at, samples), _number(name, at, age or 0))
            if len(flat) >= 4 * _REGIONS:
                yield _rows(flat)
                flat.clear()
        if flat:
            yield _rows(flat)


def _rows(flat: list[int]) -> _Column:
    return np.array(flat, np.uint64).reshape(-1, 4)


def _no_region(name: str) -> TraceError:
    return TraceError(name, "end of file", "no region", "at least one region")


def _no_field(name: str, where: str, key: str) -> TraceError:
    return TraceError(name, where, f"no {key}", f"a field {key}")


def _check_region(name: str, where: str, start: int, end: int) -> None:
    if not start < end <= PAGE_LIMIT * PAGE_SIZE:
        raise TraceError(name, where, f"a region from {start} to {end}", "one below 2**57")


#: What ijson gives for a piece of JSON: what it is, and its value.
_Events = Iterator[tuple[str, Any]]
_OPENED = {"start_map": "dict", "start_array": "list"}


def _kind(event: str, value: object) -> str:
    return _OPENED.get(event) or type(value).__name__


def _check_kind(name: str, where: str, event: str, value: object, kind: type) -> None:
    found = _kind(event, value)
    if found != kind.__name__:
        raise TraceError(name, where, found, f"a {kind.__name__}")


def _members(events: _Events) -> Iterator[tuple[str, str, Any]]:
    """Give the members of an object: the name, and the event that its value begins with."""
    for event, key in events:
        if event == "end_map":
            return
        yield key, *next(events)


def _drain(events: _Events) -> None:
    for _ in events:
        pass


def _skip(event: str, events: _Events) -> None:
    """Read to the end of the value that begins with an event."""
    depth = int(event in _OPENED)
    while depth:
        event, _ = next(events)
        depth += (event in _OPENED) - (event in ("end_map", "end_array"))


def _built(event: str, value: Any, events: _Events) -> Any:
    """Return the whole value that begins with an event."""
    if event == "start_map":
        members = {}
        # Not through `_members`: most of the time goes here.
        for event, key in events:
            if event == "end_map":
                break
            event, value = next(events)
            members[key] = _built(event, value, events) if event in _OPENED else value
        return members
    if event == "start_array":
        items = []
        for event, value in events:
            if event == "end_array":
                break
            items.append(_built(event, value, events))
        return items
    return value


def _get(name: str, where: str, value: Any, key: str, kind: type) -> Any:
    if not isinstance(value, dict):
        raise TraceError(name, where, type(value).__name__, "an object")
    if key not in value:
        raise _no_field(name, where, key)
    if not isinstance(value[key], kind):
        raise TraceError(name, f"{where}, {key}", type(value[key]).__name__, f"a {kind.__name__}")
    return value[key]


def _number(name: str, where: str, value: object) -> int:
    """Read a number; damo writes some as text, with commas."""
    if (
        isinstance(value, str)
        and len(value) < 32
        and (value.isdecimal() or _NUMBER.fullmatch(value))
    ):
        value = int(value.replace(",", ""))
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise TraceError(name, where, repr(value)[:40], "a whole number below 2**63")
    return value


class DamonWriter:
    """Writes a trace as a record, as if DAMON had watched every page.

    A snapshot covers an interval of the trace's time, which is taken for
    nanoseconds; its regions are the runs of pages that were accessed in it. Held
    are the pages of one interval.
    """

    def __init__(self, path: str, file: IO[bytes], interval: int) -> None:
        if interval < 1:
            raise ValueError(f"{path}: a DAMON record needs an interval of time of at least 1")
        self.file = file
        self.interval = interval
        self.held: tuple[int, npt.NDArray[np.uint64]] | None = None
        # Compressed as damo does.
        self.packed = zlib.compressobj()
        micro = str(max(interval // 1000, 1))
        record = {
            "kdamond_idx": 0,
            "context_idx": 0,
            "intervals": {"sample_us": micro, "aggr_us": micro, "ops_update_us": micro},
            "scheme_idx": None,
            "target_id": 0,
            "scheme_filters": [],
            "snapshots": [],
        }
        head, self.tail = json.dumps([record]).rsplit("[]", 1)
        self._write(head + "[")
        self.between = ""

    def _write(self, text: str) -> None:
        self.file.write(self.packed.compress(text.encode()))

    def add(self, block: Block) -> None:
        """Take more events."""
        number = block.time // np.uint64(self.interval)
        edges = np.flatnonzero(number[1:] != number[:-1]) + 1
        for pages, at in zip(
            np.split(block.page, edges), number[np.concatenate([[0], edges])], strict=True
        ):
            if self.held is not None and self.held[0] == int(at):
                pages = np.concatenate([self.held[1], pages])
            else:
                self._snapshot()
            self.held = int(at), np.unique(pages)

    def _snapshot(self) -> None:
        if self.held is None:
            return
        number, pages = self.held
        gaps = np.flatnonzero(pages[1:] - pages[:-1] > 1)
        size = np.uint64(PAGE_SIZE)
        starts = pages[np.concatenate([[0], gaps + 1])] * size
        ends = (pages[np.append(gaps, len(pages) - 1)] + np.uint64(1)) * size
        self._write(
            f'{self.between}{{"start_time": "{number * self.interval}",'
            f' "end_time": "{(number + 1) * self.interval}", "regions": ['
        )
        for at in range(0, len(starts), _REGIONS):
            part = slice(at, at + _REGIONS)
            regions = ", ".join(
                f'{{"start": "{start}", "end": "{end}",'
                ' "nr_accesses": {"samples": 1, "percent": null},'
                ' "age": {"usec": null, "aggr_intervals": "0"}}'
                for start, end in zip(starts[part].tolist(), ends[part].tolist(), strict=True)
            )
            self._write((", " if at else "") + regions)
        self._write(f'], "total_bytes": "{len(pages) * PAGE_SIZE}"}}')
        self.between = ", "

    def finish(self) -> None:
        """Write the last snapshot and the record's end."""
        self._snapshot()
        self._write("]" + self.tail)
        self.file.write(self.packed.flush())
