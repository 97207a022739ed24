"""Tools on traces: cut, sample, number anew, merge, count.

Each takes blocks of events and gives blocks, so that a trace larger than memory
can go through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..sizes import PAGE_SIZE
from ._trace import Block

__all__ = ["Numbering", "TraceStats", "cut", "merge", "remap", "sample", "stats"]

_HUGE = 512


class Numbering:
    """Numbers pages by first touch, over as many blocks as come."""

    def __init__(self) -> None:
        #: How many pages have a number.
        self.count = 0
        self._pages = np.empty(0, dtype=np.uint64)
        self._numbers = np.empty(0, dtype=np.uint64)

    @property
    def pages(self) -> npt.NDArray[np.uint64]:
        """The pages that have a number, sorted."""
        return self._pages

    def of(self, page: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Return the number of each page; new pages get the next ones.

        >>> numbering = Numbering()
        >>> numbering.of(np.array([7, 3, 7], dtype=np.uint64)).tolist()
        [0, 1, 0]
        >>> numbering.of(np.array([9, 3], dtype=np.uint64)).tolist()
        [2, 1]
        """
        unique, first, inverse = np.unique(page, return_index=True, return_inverse=True)
        at = np.searchsorted(self._pages, unique)
        known = np.zeros(len(unique), dtype=np.bool_)
        if self.count:
            known = self._pages[np.minimum(at, self.count - 1)] == unique
        fresh = np.flatnonzero(~known)
        if len(fresh):
            order = np.argsort(first[fresh], kind="stable")
            numbers = np.empty(len(fresh), dtype=np.uint64)
            numbers[order] = np.arange(self.count, self.count + len(fresh), dtype=np.uint64)
            self._pages = np.insert(self._pages, at[fresh], unique[fresh])
            self._numbers = np.insert(self._numbers, at[fresh], numbers)
            self.count += len(fresh)
        numbered = self._numbers[np.searchsorted(self._pages, unique)]
        return numbered[inverse.reshape(-1)]


def remap(blocks: Iterable[Block]) -> Iterator[Block]:
    """Number pages by first touch: sparse addresses become dense."""
    numbering = Numbering()
    for block in blocks:
        yield Block(block.time, numbering.of(block.page), block.write)


def cut(
    blocks: Iterable[Block],
    *,
    time: tuple[int, int | None] = (0, None),
    address: tuple[int, int | None] = (0, None),
    events: tuple[int, int | None] = (0, None),
) -> Iterator[Block]:
    """Keep what lies in half-open ranges of time, address in bytes, and number of event."""
    seen = 0
    for block in blocks:
        kept = np.ones(block.events, dtype=np.bool_)
        at = np.arange(seen, seen + block.events, dtype=np.uint64)
        # A page is in if any byte of it is.
        pages = (
            address[0] // PAGE_SIZE,
            None if address[1] is None else -(-address[1] // PAGE_SIZE),
        )
        for column, (low, high) in ((block.time, time), (block.page, pages), (at, events)):
            kept &= column >= np.uint64(low)
            if high is not None:
                kept &= column < np.uint64(high)
        seen += block.events
        yield block.where(kept)
        past = (events[1], seen), (time[1], int(block.time[-1]) if block.events else 0)
        if any(end is not None and now >= end for end, now in past):
            return


def sample(blocks: Iterable[Block], share: float, seed: int) -> Iterator[Block]:
    """Keep a share of the pages with all their events, drawn by hash of page and seed."""
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share: {share} is not above 0 and at most 1")
    limit = np.uint64(min(int(share * 2.0**64), (1 << 64) - 1))
    for block in blocks:
        yield block.where(_hash(block.page, seed) <= limit)


def _hash(page: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """Mix as splitmix64 does."""
    mixed = page + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % (1 << 64))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return cast("npt.NDArray[np.uint64]", mixed ^ (mixed >> np.uint64(31)))


def merge(
    traces: Sequence[Iterable[Block]], pages: Sequence[int]
) -> tuple[Iterator[Block], tuple[int, ...]]:
    """Run several programs side by side, each in a virtual machine of its own.

    Events keep their times and are sorted by them. Each program's pages are
    numbered by first touch, from the first page of its VM on; VMs begin at
    multiples of 2 MiB.

    Args:
        traces: The programs.
        pages: How many pages each of them touches.

    Returns:
        The events, and the first page of each VM.

    """
    firsts, first = [], 0
    for count in pages:
        firsts.append(first)
        first += -(-count // _HUGE) * _HUGE
    return _merged([iter(trace) for trace in traces], firsts), tuple(firsts)


def _merged(traces: list[Iterator[Block]], firsts: list[int]) -> Iterator[Block]:
    numberings = [Numbering() for _ in traces]
    waiting: list[Block | None] = [None] * len(traces)
    ended = [False] * len(traces)
    while True:
        for number, trace in enumerate(traces):
            held = waiting[number]
            if not ended[number] and (held is None or not held.events):
                block = next(trace, None)
                if block is None:
                    ended[number] = True
                    waiting[number] = None
                else:
                    own = numberings[number].of(block.page) + np.uint64(firsts[number])
                    waiting[number] = Block(block.time, own, block.write)
        blocks = [block for block in waiting if block is not None and block.events]
        if all(ended):
            if not blocks:
                return
            until = max(block.time[-1] for block in blocks)
        else:
            # What is not read yet is not earlier than what was read last.
            until = min(
                block.time[-1] if block is not None and block.events else np.uint64(0)
                for block, done in zip(waiting, ended, strict=True)
                if not done
            )
        parts = []
        for number, block in enumerate(waiting):
            if block is not None and block.events:
                count = int(np.searchsorted(block.time, until, side="right"))
                parts.append(block.where(slice(0, count)))
                waiting[number] = block.where(slice(count, None))
        if parts:
            time = np.concatenate([part.time for part in parts])
            order = np.argsort(time, kind="stable")
            page = np.concatenate([part.page for part in parts])
            write = np.concatenate([part.write for part in parts])
            yield Block(time[order], page[order], write[order])


@dataclass(frozen=True)
class TraceStats:
    """What is in a trace."""

    #: Events.
    events: int
    #: Events that write.
    writes: int
    #: Different pages.
    pages: int
    #: Different pages that are written.
    written_pages: int
    #: Time of the first event and of the last.
    first_time: int
    last_time: int
    #: The lowest page and the highest.
    first_page: int
    last_page: int
    #: Runs of pages without a gap.
    runs: int
    #: Events in an interval of those that follow.
    every: int
    #: Different pages in an interval: mean and maximum over whole intervals.
    working_set_mean: float
    working_set_max: int

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return asdict(self)


def stats(blocks: Iterable[Block], every: int) -> TraceStats:
    """Count what is in a trace.

    Args:
        blocks: The trace; at least one event.
        every: Events in an interval of the working set.

    """
    if every < 1:
        raise ValueError(f"every: {every} is below 1")
    pages, written = Numbering(), Numbering()
    events = writes = 0
    sets: list[int] = []
    held = np.empty(0, dtype=np.uint64)
    first_time = last_time = None
    for block in blocks:
        if not block.events:
            continue
        if first_time is None:
            first_time = int(block.time[0])
        last_time = int(block.time[-1])
        events += block.events
        writes += int(np.count_nonzero(block.write))
        numbers = pages.of(block.page)
        written.of(block.page[block.write])
        numbers = np.concatenate([held, numbers])
        whole = len(numbers) // every
        for part in numbers[: whole * every].reshape(whole, every):
            sets.append(len(np.unique(part)))
        held = numbers[whole * every :]
    if first_time is None or last_time is None:
        raise ValueError("a trace without events")
    if not sets:
        sets.append(len(np.unique(held)))
    known = pages.pages
    return TraceStats(
        events=events,
        writes=writes,
        pages=pages.count,
        written_pages=written.count,
        first_time=first_time,
        last_time=last_time,
        first_page=int(known[0]),
        last_page=int(known[-1]),
        runs=1 + int(np.count_nonzero(known[1:] - known[:-1] > 1)),
        every=every,
        working_set_mean=float(np.mean(sets)),
        working_set_max=max(sets),
    )
