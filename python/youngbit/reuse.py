"""How far apart the uses of pages are, and what a memory of any size would miss.

The *distance* of an access is how many different other pages were used since
its page was used last; its *time* is how many accesses ago that was. First uses
have neither: they are -1.

>>> from youngbit import access
>>> stream = access.arrays([0, 1, 2, 0, 0, 1])
>>> distances(stream).tolist()
[-1, -1, -1, 2, 0, 2]
>>> times(stream).tolist()
[-1, -1, -1, 3, 1, 4]
>>> lru_misses(stream, [1, 2, 3]).ratios.tolist()
[0.8333333333333334, 0.8333333333333334, 0.5]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _core
from .oracle import optimal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .access import Recorded

__all__ = ["MissRatios", "distances", "lru_misses", "optimal_misses", "sizes_for", "times"]


@dataclass(frozen=True, eq=False)
class MissRatios:
    """What a way of reclaiming misses with memories of several sizes."""

    #: What to call it.
    name: str
    #: Sizes of the memory in pages, rising.
    pages: npt.NDArray[np.int64] = field(repr=False)
    #: For each size the share of accesses that found their page absent; first
    #: uses are absent everywhere.
    ratios: npt.NDArray[np.float64] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {"name": self.name, "pages": self.pages.tolist(), "ratios": self.ratios.tolist()}


def distances(stream: Recorded) -> npt.NDArray[np.int64]:
    """Return each access's reuse distance, in pages; -1 for a first use."""
    return _core.reuse_distances(stream.pages)


def times(stream: Recorded) -> npt.NDArray[np.int64]:
    """Return how many accesses ago each access's page was used last; -1 for a first use."""
    pages = stream.pages
    order = np.argsort(pages, kind="stable")
    again = pages[order[1:]] == pages[order[:-1]]
    found = np.full(len(pages), -1, dtype=np.int64)
    found[order[1:][again]] = (order[1:] - order[:-1])[again]
    return found


def sizes_for(stream: Recorded, count: int = 32) -> npt.NDArray[np.int64]:
    """Return sizes of memory worth comparing: even steps up to the stream's footprint."""
    if count < 1:
        raise ValueError(f"count: {count} is below 1")
    footprint = len(np.unique(stream.pages))
    return np.unique(np.linspace(1, max(footprint, 1), count).round().astype(np.int64))


def lru_misses(stream: Recorded, pages: npt.ArrayLike | None = None) -> MissRatios:
    """Return what an LRU list would miss, exactly, for all sizes from one reading.

    Args:
        stream: The accesses; at least one.
        pages: Sizes of memory in pages; otherwise `sizes_for`.

    Raises:
        ValueError: Without accesses, or for sizes that are none or do not rise.

    """
    at = _sizes(stream, pages)
    found = distances(stream)
    reused = np.sort(found[found >= 0])
    hits = np.searchsorted(reused, at, side="left")
    return MissRatios("LRU", at, (len(found) - hits) / len(found))


def optimal_misses(stream: Recorded, pages: npt.ArrayLike | None = None) -> MissRatios:
    """Return what Belady's MIN would miss, which no way of reclaiming on demand betters.

    Args:
        stream: The accesses; at least one.
        pages: Sizes of memory in pages; otherwise `sizes_for`. The stream is run
            through once for each.

    Raises:
        ValueError: As `lru_misses`.

    """
    at = _sizes(stream, pages)
    first = len(np.unique(stream.pages))
    count = len(stream)
    missed = [
        first + sum(tick.refaults for tick in optimal(stream, size, every=count, window=1))
        for size in _list(at)
    ]
    return MissRatios("optimal (MIN)", at, np.array(missed) / count)


def _list(sizes: npt.NDArray[np.int64]) -> Sequence[int]:
    return [int(size) for size in sizes]


def _sizes(stream: Recorded, pages: npt.ArrayLike | None) -> npt.NDArray[np.int64]:
    if not len(stream):
        raise ValueError("stream: no accesses")
    if pages is None:
        return sizes_for(stream)
    sizes = np.asarray(pages)
    if sizes.ndim != 1 or not sizes.size or not np.issubdtype(sizes.dtype, np.integer):
        raise ValueError("pages: expected a list of whole numbers")
    if sizes[0] < 1 or (np.diff(sizes) <= 0).any():
        raise ValueError("pages: expected sizes of at least 1 that rise")
    return sizes.astype(np.int64)
