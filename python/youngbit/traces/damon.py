"""Records of DAMON, as ``damo record`` keeps them.

A record says of a region how often one page of it, drawn at random, was found
accessed. It is an estimate, not a list of accesses; read as a trace it is the
upper bound: every page of a region that was accessed at all.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..errors import TraceError
from ..sizes import PAGE_SIZE
from ._trace import PAGE_LIMIT, Block, Trace

__all__ = ["DamonRecord", "DamonWriter", "read_damon"]

#: Events that a record may be as a trace.
MOST_EVENTS = 1 << 28

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
        first = self.start[kept] // np.uint64(PAGE_SIZE)
        last = (self.end[kept] - np.uint64(1)) // np.uint64(PAGE_SIZE)
        counts = (last - first + np.uint64(1)).astype(np.float64)
        if counts.sum() > MOST_EVENTS:
            raise TraceError(
                self.source, "regions", f"{counts.sum():.0f} pages", f"at most {MOST_EVENTS}"
            )
        lengths = counts.astype(np.int64)
        # Each region's pages: a running number, less what the regions before have.
        begin = np.cumsum(lengths) - lengths
        within = np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(begin, lengths)
        page = np.repeat(first, lengths) + within.astype(np.uint64)
        time = np.repeat(self.time[kept], lengths)
        return Trace(time, page, np.zeros(len(page), np.bool_), 0, self.source)


def read_damon(path: str | os.PathLike[str], *, target: int | None = None) -> DamonRecord:
    """Read what ``damo record`` keeps: JSON, compressed or not, or text of ``perf script``.

    Args:
        path: The file.
        target: Which target, by its id, if there are several.

    Raises:
        TraceError: If the file is not such a record; it says what is wrong and where.
        OSError: If the file cannot be read.

    """
    name = os.fspath(path)
    data = Path(name).read_bytes()
    if not data:
        raise TraceError(name, "offset 0", "an empty file", "a DAMON record")
    if data[:1] == b"\x78":
        packed = zlib.decompressobj()
        try:
            data = packed.decompress(data)
        except zlib.error as error:
            raise TraceError(name, "offset 0", str(error), "a zlib stream") from None
        if not packed.eof:
            raise TraceError(name, "end of file", "the stream goes on", "a whole zlib stream")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise TraceError(name, f"offset {error.start}", "no text", "a DAMON record") from None
    rows = _json_rows(name, text) if text.lstrip()[:1] in ("[", "{") else _text_rows(name, text)
    targets = sorted({row[0] for row in rows})
    if target is None and len(targets) > 1:
        shown = ", ".join(map(str, targets[:8]))
        raise TraceError(name, "targets", f"several: {shown}", "one, or a choice of one")
    rows = [row for row in rows if target in (None, row[0])]
    if not rows:
        raise TraceError(name, "end of file", "no region", "at least one region")
    rows.sort(key=lambda row: row[1])
    _, time, start, end, accesses, age = (
        np.array(column, dtype=np.uint64) for column in zip(*rows, strict=True)
    )
    return DamonRecord(time, start, end, accesses, age, name)


_Row = tuple[int, int, int, int, int, int]


def _region(name: str, where: str, start: int, end: int) -> None:
    if not start < end <= PAGE_LIMIT * PAGE_SIZE:
        raise TraceError(name, where, f"a region from {start} to {end}", "one below 2**57")


def _text_rows(name: str, text: str) -> list[_Row]:
    rows = []
    last = 0
    lines = text.split("\n")
    if lines.pop():
        raise TraceError(name, f"line {len(lines) + 1}", "no line end", "a whole file")
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.search(" " + line.rstrip("\r"))
        where = f"line {number}"
        if match is None:
            raise TraceError(
                name, where, repr(line[:60]),
                "`... 1.5: damon:damon_aggregated: target_id=0 nr_regions=9 4096-8192: 3 2`",
            )  # fmt: skip
        seconds, _, fraction = match["time"].partition(".")
        time = int(seconds) * 10**9 + int(fraction.ljust(9, "0"))
        if time >= 1 << 63:
            raise TraceError(name, where, match["time"], "seconds below 2**33")
        if time < last:
            raise TraceError(name, where, match["time"], "a time not below that before")
        last = time
        if int(match["accesses"]) < 0:
            # damo marks the end of a lone snapshot so.
            continue
        start, end = int(match["start"]), int(match["end"])
        _region(name, where, start, end)
        counts = [min(max(int(match[key] or 0), 0), 1 << 32) for key in ("accesses", "age")]
        rows.append((int(match["target"]), time, start, end, counts[0], counts[1]))
    return rows


def _json_rows(name: str, text: str) -> list[_Row]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        found = str(error).split("\n")[0]
        raise TraceError(name, "JSON", found, "a whole JSON document") from None
    if isinstance(parsed, dict):
        # Written by later versions: the records are one of several things kept.
        parsed = _get(name, "document", parsed, "damo_records", dict)
        parsed = _get(name, "damo_records", parsed, "damon_records", dict)
        parsed = _get(name, "damon_records", parsed, "record_list", list)
    rows: list[_Row] = []
    for r, record in enumerate(parsed):
        where = f"record {r}"
        target = _number(name, where, _get(name, where, record, "target_id", object) or 0)
        for s, snapshot in enumerate(_get(name, where, record, "snapshots", list)):
            here = f"{where}, snapshot {s}"
            time = _number(name, here, _get(name, here, snapshot, "end_time", object))
            for n, region in enumerate(_get(name, here, snapshot, "regions", list)):
                at = f"{here}, region {n}"
                start = _number(name, at, _get(name, at, region, "start", object))
                end = _number(name, at, _get(name, at, region, "end", object))
                samples = _get(name, at, region, "nr_accesses", dict).get("samples")
                if samples is None:
                    raise TraceError(name, at, "nr_accesses without samples", "samples")
                if samples == -1:
                    continue
                age = _get(name, at, region, "age", dict).get("aggr_intervals")
                _region(name, at, start, end)
                rows.append(
                    (target, time, start, end,
                     _number(name, at, samples), _number(name, at, age or 0))
                )  # fmt: skip
    return rows


def _get(name: str, where: str, value: Any, key: str, kind: type) -> Any:
    if not isinstance(value, dict):
        raise TraceError(name, where, type(value).__name__, "an object")
    if key not in value:
        raise TraceError(name, where, f"no {key}", f"a field {key}")
    if not isinstance(value[key], kind):
        raise TraceError(name, f"{where}, {key}", type(value[key]).__name__, f"a {kind.__name__}")
    return value[key]


def _number(name: str, where: str, value: object) -> int:
    """Read a number; damo writes some as text, with commas."""
    if isinstance(value, str) and len(value) < 32 and _NUMBER.fullmatch(value):
        value = int(value.replace(",", ""))
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise TraceError(name, where, repr(value)[:40], "a whole number below 2**63")
    return value


class DamonWriter:
    """Writes a trace as a record, as if DAMON had watched every page.

    A snapshot covers an interval of the trace's time, which is taken for
    nanoseconds; its regions are the runs of pages that were accessed in it.
    """

    def __init__(self, path: str, file: IO[bytes], interval: int) -> None:
        if interval < 1:
            raise ValueError(f"{path}: a DAMON record needs an interval of time of at least 1")
        self.file = file
        self.interval = interval
        self.snapshots: list[dict[str, Any]] = []
        self.held: tuple[int, npt.NDArray[np.uint64]] | None = None

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
        gaps = np.flatnonzero(pages[1:] - pages[:-1] > 1) + 1
        runs = np.split(pages, gaps)
        self.snapshots.append(
            {
                "start_time": str(number * self.interval),
                "end_time": str((number + 1) * self.interval),
                "regions": [
                    {
                        "start": str(int(run[0]) * PAGE_SIZE),
                        "end": str((int(run[-1]) + 1) * PAGE_SIZE),
                        "nr_accesses": {"samples": 1, "percent": None},
                        "age": {"usec": None, "aggr_intervals": "0"},
                    }
                    for run in runs
                ],
                "total_bytes": str(len(pages) * PAGE_SIZE),
            }
        )

    def finish(self) -> None:
        """Write the record, compressed as damo does."""
        self._snapshot()
        micro = max(self.interval // 1000, 1)
        record = {
            "kdamond_idx": 0,
            "context_idx": 0,
            "intervals": {
                "sample_us": str(micro), "aggr_us": str(micro), "ops_update_us": str(micro),
            },
            "scheme_idx": None,
            "target_id": 0,
            "scheme_filters": [],
            "snapshots": self.snapshots,
        }  # fmt: skip
        self.file.write(zlib.compress(json.dumps([record]).encode()))
