"""The best that reclaim could do, had it known the future."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _core

if TYPE_CHECKING:
    from .access import Recorded

__all__ = ["OracleTick", "optimal"]


@dataclass(frozen=True)
class OracleTick:
    """What the oracle did in one tick."""

    #: Pages evicted.
    evicted: int
    #: Of them used again within the window.
    hot: int
    #: Pages that came back.
    refaults: int


def optimal(
    stream: Recorded, capacity: int, *, every: int, window: int, within: int | None = None
) -> list[OracleTick]:
    """Evict what is used again last (Belady's MIN): no way of reclaiming has fewer refaults.

    >>> from youngbit import access
    >>> stream = access.arrays([0, 1, 2, 0, 1, 2, 0, 1, 2])
    >>> [tick.refaults for tick in optimal(stream, 2, every=3, window=3)]
    [0, 1, 2]

    Args:
        stream: The accesses.
        capacity: Pages that may stay.
        every: Accesses in a tick.
        window: An evicted page is hot if it is used again within so many accesses.
        within: None to evict whenever a page would be one too many; otherwise
            to evict at the end of each tick only, down to the capacity, and let so
            many pages in within a tick.

    """
    if capacity < 1 or every < 1:
        raise ValueError(f"capacity {capacity} and every {every}: expected at least 1")
    rows = _core.optimal(stream.pages, capacity, every, window, within)
    return [OracleTick(*row) for row in rows]
