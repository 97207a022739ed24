"""A recorded program, in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["PAGE_LIMIT", "Block", "Trace", "joined"]

#: Pages have smaller numbers: an address has 57 bits.
PAGE_LIMIT = 1 << 45


class Block(NamedTuple):
    """Some events of a trace, in time order."""

    time: npt.NDArray[np.uint64]
    page: npt.NDArray[np.uint64]
    write: npt.NDArray[np.bool_]

    @property
    def events(self) -> int:
        """How many."""
        return len(self.time)

    def where(self, kept: npt.NDArray[np.bool_] | slice) -> Block:
        """Return some of the events."""
        return Block(self.time[kept], self.page[kept], self.write[kept])


@dataclass(frozen=True, eq=False)
class Trace:
    """A recorded program, one entry an event, in time order.

    Attributes:
        time: When: instructions executed before the event, or the recording's own unit.
        page: Which page of the process: address divided by 4096.
        write: Whether the page was written.
        window: Within this much time a page appears once; 0 if that is not so.
        source: Where the trace comes from.
        vms: The first page of each virtual machine, of a trace that was merged of
            several programs; otherwise empty.

    """

    time: npt.NDArray[np.uint64] = field(repr=False)
    page: npt.NDArray[np.uint64] = field(repr=False)
    write: npt.NDArray[np.bool_] = field(repr=False)
    window: int
    source: str
    vms: tuple[int, ...] = ()

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

    def split(self) -> list[Trace]:
        """Return the programs that the trace was merged of, each with pages from 0."""
        if not self.vms:
            return [self]
        firsts = np.array(self.vms, dtype=np.uint64)
        owner = np.searchsorted(firsts, self.page, side="right") - 1
        parts = []
        for number, first in enumerate(firsts):
            mine = owner == number
            if mine.any():
                source = f"{self.source}, VM {number}"
                columns = self.time[mine], self.page[mine] - first, self.write[mine]
                parts.append(Trace(*columns, self.window, source))
        return parts

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


def joined(blocks: Iterable[Block], window: int, source: str, vms: tuple[int, ...] = ()) -> Trace:
    """Return the trace that blocks make, with arrays that cannot be written to."""
    parts = list(blocks)
    if len(parts) == 1:
        [columns] = parts
    else:
        columns = Block(
            np.concatenate([part.time for part in parts] or [np.empty(0, np.uint64)]),
            np.concatenate([part.page for part in parts] or [np.empty(0, np.uint64)]),
            np.concatenate([part.write for part in parts] or [np.empty(0, np.bool_)]),
        )
    for column in columns:
        column.setflags(write=False)
    return Trace(*columns, window, source, vms)
