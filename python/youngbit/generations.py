"""How many pages each generation of the multi-gen LRU holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

__all__ = ["Generation", "GenerationDetail", "Generations"]


@dataclass(frozen=True)
class GenerationDetail:
    """What ``lru_gen_full`` tells of a generation besides its size.

    The numbers are as printed, each with the letter that stands behind it:
    ``R`` and ``T`` for averages, ``r``, ``e`` and ``p`` for what was refaulted,
    evicted and protected, ``x`` for what has no meaning.
    """

    #: Whether the generation is below the oldest of its type.
    anon_retired: bool
    file_retired: bool
    #: Per tier three numbers for anonymous pages, then three for file pages.
    tiers: tuple[tuple[tuple[int, str], ...], ...]
    #: What the aging walk counted.
    walk: tuple[tuple[int, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "anon_retired": self.anon_retired,
            "file_retired": self.file_retired,
            "tiers": [[list(number) for number in tier] for tier in self.tiers],
            "walk": [list(number) for number in self.walk],
        }


@dataclass(frozen=True)
class Generation:
    """One generation of an lruvec."""

    #: Sequence number; larger is younger.
    seq: int
    #: Milliseconds since it was made.
    age_ms: int
    #: Anonymous pages in it.
    anon: int
    #: File pages in it.
    file: int
    #: What ``lru_gen_full`` tells besides.
    detail: GenerationDetail | None = None

    @property
    def nr_pages(self) -> int:
        """Pages of both types."""
        return self.anon + self.file

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        plain = {"seq": self.seq, "age_ms": self.age_ms, "anon": self.anon, "file": self.file}
        return plain if self.detail is None else plain | {"detail": self.detail.to_dict()}


class Generations(Sequence[Generation]):
    """The generations of an lruvec at one time, oldest first.

    A sequence: ``[0]`` is the oldest and ``[-1]`` the youngest, whatever their
    numbers are; `by_seq` finds one by its number.
    """

    def __init__(self, generations: Sequence[Generation]) -> None:
        self._all = tuple(generations)

    @overload
    def __getitem__(self, index: int) -> Generation: ...
    @overload
    def __getitem__(self, index: slice) -> Generations: ...
    def __getitem__(self, index: int | slice) -> Generation | Generations:
        if isinstance(index, slice):
            return Generations(self._all[index])
        try:
            return self._all[index]
        except IndexError:
            raise IndexError(
                f"position {index} of {len(self._all)} generations; by_seq() finds one by its"
                " number"
            ) from None

    def by_seq(self, seq: int) -> Generation:
        """Return the generation with a number.

        Raises:
            KeyError: If there is none, with those that there are.

        """
        for generation in self._all:
            if generation.seq == seq:
                return generation
        found = ", ".join(str(generation.seq) for generation in self._all) or "none"
        raise KeyError(f"no generation has number {seq}; there are: {found}")

    def __len__(self) -> int:
        return len(self._all)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Generations) and self._all == other._all

    def __hash__(self) -> int:
        return hash(self._all)

    @property
    def min_seq(self) -> int:
        """Number of the oldest."""
        return self._all[0].seq

    @property
    def max_seq(self) -> int:
        """Number of the youngest."""
        return self._all[-1].seq

    @property
    def nr_pages(self) -> int:
        """Pages in all of them."""
        return sum(generation.nr_pages for generation in self._all)

    def to_dict(self) -> list[dict[str, Any]]:
        """Return a list of plain dicts."""
        return [generation.to_dict() for generation in self._all]

    def to_arrays(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return one array a column."""
        return {
            key: np.array([getattr(generation, key) for generation in self._all], dtype=np.int64)
            for key in ("seq", "age_ms", "anon", "file")
        }

    def __str__(self) -> str:
        lines = [f"{'seq':>8} {'age ms':>10} {'anon':>12} {'file':>12}"]
        lines += [f"{g.seq:>8} {g.age_ms:>10} {g.anon:>12} {g.file:>12}" for g in self._all]
        return "\n".join(lines)

    def __repr__(self) -> str:
        inside = ", ".join(f"seq {g.seq}: {g.anon}+{g.file}" for g in self._all)
        return f"Generations({inside})"
