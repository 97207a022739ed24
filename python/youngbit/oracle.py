"""What reclaim could do, had it known the future, or the whole past."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _core

if TYPE_CHECKING:
    from .access import Recorded

__all__ = ["OracleTick", "least_recent", "optimal"]


@dataclass(frozen=True)
class OracleTick:
    """What the oracle did in one tick."""

    #: Pages evicted.
    evicted: int
    #: Of them used again within the window.
    hot: int
    #: Of those evicted, used within the window before.
    recent: int
    #: Pages that came back.
    refaults: int


def optimal(
    stream: Recorded,
    capacity: int,
    *,
    every: int,
    window: int,
    within: int | None = None,
    first: int | None = None,
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
        first: Accesses in the first tick; otherwise as many as in the others.

    """
    return _run(stream, capacity, every, window, within, first, least_recent=False)


def least_recent(
    stream: Recorded,
    capacity: int,
    *,
    every: int,
    window: int,
    within: int | None = None,
    first: int | None = None,
) -> list[OracleTick]:
    """Evict what was used least recently (LRU), knowing every access.

    Generations are an estimate of this. The arguments are those of `optimal`.

    >>> from youngbit import access
    >>> stream = access.arrays([0, 1, 2, 0, 1, 2, 0, 1, 2])
    >>> [tick.refaults for tick in least_recent(stream, 2, every=3, window=3)]
    [0, 3, 3]

    """
    return _run(stream, capacity, every, window, within, first, least_recent=True)


def _run(
    stream: Recorded,
    capacity: int,
    every: int,
    window: int,
    within: int | None,
    first: int | None,
    *,
    least_recent: bool,
) -> list[OracleTick]:
    if first is None:
        first = every
    if capacity < 1 or every < 1 or first < 1:
        raise ValueError(
            f"capacity {capacity}, every {every}, first {first}: expected at least 1 each"
        )
    rows = _core.run_oracle(stream.pages, capacity, first, every, window, within, least_recent)
    return [OracleTick(*row) for row in rows]
