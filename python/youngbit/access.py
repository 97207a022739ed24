"""What vCPUs do to guest memory: descriptions of access streams.

A stream says which pages are touched, in which order, and whether they are
written. It is only a description; the accesses are made natively when the
stream runs. Everything random comes from the stream's own ``seed``: the same
stream makes the same accesses, whenever and wherever it runs. vCPU *i* of a
run draws from the seed and *i*; which pages are Zipf's hottest differs too.

``region`` limits a stream to a part of guest memory: ``(start, length)``, both
sizes as in `youngbit.sizes`. Without it, a partitioned run gives each vCPU its
share of guest memory, and an overlapping run gives each all of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _core
from ._arguments import whole
from .sizes import PAGE_SIZE, Size, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .traces import Trace

__all__ = [
    "HotCold",
    "Phase",
    "Recorded",
    "Sequential",
    "Stream",
    "Strided",
    "Uniform",
    "Zipf",
    "arrays",
    "hot_cold",
    "record",
    "sequential",
    "strided",
    "trace",
    "uniform",
    "zipf",
]

Region: TypeAlias = "tuple[Size, Size] | None"


def _fraction(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{what}: expected a number, not {type(value).__name__}")
    number = float(value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{what}: {value} is not between 0 and 1")
    return number


def _write_fraction(write: bool | float) -> float:
    return float(write) if isinstance(write, bool) else _fraction(write, "write")


def _region(region: Region) -> tuple[int, int] | None:
    """Return the region as first page and number of pages."""
    if region is None:
        return None
    if not isinstance(region, tuple) or len(region) != 2:
        raise TypeError("region: expected a pair (start, length)")
    start, length = region
    at = 0 if isinstance(start, int) and start == 0 else parse_size(start, what="region start")
    size = parse_size(length, what="region length")
    for value, what in ((at, "region start"), (size, "region length")):
        if value % PAGE_SIZE:
            raise ValueError(f"{what}: {value} is not a multiple of the page size")
    return at // PAGE_SIZE, size // PAGE_SIZE


@dataclass(frozen=True)
class Stream:
    """A description of guest accesses; see the functions of this module."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the description as a plain dict."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Sequential(Stream):
    """Every page of the region, in order, once or more."""

    kind = "sequential"
    write: float
    passes: int
    seed: int
    region: tuple[int, int] | None


@dataclass(frozen=True)
class Strided(Stream):
    """Every ``stride``-th page of the region, each pass one page further on."""

    kind = "strided"
    stride: int
    offset: int
    write: float
    passes: int
    seed: int
    region: tuple[int, int] | None


@dataclass(frozen=True)
class Uniform(Stream):
    """Pages drawn at random, each as likely as any other."""

    kind = "uniform"
    accesses: int
    seed: int
    write: float
    region: tuple[int, int] | None


@dataclass(frozen=True)
class Zipf(Stream):
    """Pages drawn at random with Zipf's law over ranks, ranks shuffled over pages."""

    kind = "zipf"
    exponent: float
    accesses: int
    seed: int
    write: float
    shuffle: bool
    region: tuple[int, int] | None


@dataclass(frozen=True)
class Phase:
    """A time during which one part of memory is hot."""

    #: How many accesses it lasts.
    accesses: int
    #: Where the hot part starts, as a fraction of the region.
    start: float
    #: How large the hot part is, as a fraction of the region.
    fraction: float
    #: The share of accesses that goes to the hot part.
    probability: float


@dataclass(frozen=True)
class HotCold(Stream):
    """Pages drawn uniformly from a hot part or from the rest, phase by phase."""

    kind = "hot_cold"
    phases: tuple[Phase, ...]
    seed: int
    write: float
    region: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Recorded(Stream):
    """Accesses given one by one as arrays."""

    kind = "recorded"
    pages: npt.NDArray[np.uint32] = field(repr=False)
    writes: npt.NDArray[np.bool_] = field(repr=False)

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, part: slice) -> Recorded:
        """Return a part of the stream; nothing is copied."""
        return Recorded(self.pages[part], self.writes[part])

    def __repr__(self) -> str:
        return f"Recorded(accesses={len(self.pages)})"

    def to_dict(self) -> dict[str, Any]:
        """Return what is plain about the stream: its kind and length."""
        return {"kind": self.kind, "accesses": len(self.pages)}


def sequential(
    *, write: bool | float = False, passes: int = 1, seed: int = 0, region: Region = None
) -> Sequential:
    """Touch every page in order.

    Args:
        write: Whether the accesses write; a number is the share that does.
        passes: How many times over the region.
        seed: Decides which accesses write when ``write`` is a share.
        region: Part of guest memory, ``(start, length)``.

    """
    return Sequential(
        _write_fraction(write),
        whole(passes, "passes", at_least=1),
        whole(seed, "seed"),
        _region(region),
    )


def strided(
    stride: int,
    *,
    offset: int = 0,
    write: bool | float = False,
    passes: int = 1,
    seed: int = 0,
    region: Region = None,
) -> Strided:
    """Touch every ``stride``-th page in order, starting at page ``offset``.

    Each further pass starts one page after the one before it, so that ``stride``
    passes touch every page once.

    Args:
        stride: Pages from one access to the next.
        offset: First page, relative to the region.
        write: Whether the accesses write; a number is the share that does.
        passes: How many times over the region.
        seed: Decides which accesses write when ``write`` is a share.
        region: Part of guest memory, ``(start, length)``.

    """
    return Strided(
        whole(stride, "stride", at_least=1),
        whole(offset, "offset"),
        _write_fraction(write),
        whole(passes, "passes", at_least=1),
        whole(seed, "seed"),
        _region(region),
    )


def uniform(
    accesses: int, *, seed: int, write: bool | float = False, region: Region = None
) -> Uniform:
    """Touch pages at random, all equally likely.

    Args:
        accesses: How many, for each vCPU.
        seed: Seed of the random numbers.
        write: Whether the accesses write; a number is the share that does.
        region: Part of guest memory, ``(start, length)``.

    """
    return Uniform(
        whole(accesses, "accesses", at_least=1),
        whole(seed, "seed"),
        _write_fraction(write),
        _region(region),
    )


def zipf(
    exponent: float,
    *,
    accesses: int,
    seed: int,
    write: bool | float = False,
    shuffle: bool = True,
    region: Region = None,
) -> Zipf:
    """Touch pages at random, the one of rank *k* in proportion to ``k ** -exponent``.

    Args:
        exponent: Positive; 1.0 is Zipf's law, larger is more skewed.
        accesses: How many, for each vCPU.
        seed: Seed of the random numbers, and of which page has which rank.
        write: Whether the accesses write; a number is the share that does.
        shuffle: Spread the ranks over the region; otherwise page 0 is the hottest.
        region: Part of guest memory, ``(start, length)``.

    """
    if isinstance(exponent, bool) or not isinstance(exponent, (int, float, np.floating)):
        raise TypeError(f"exponent: expected a number, not {type(exponent).__name__}")
    if not 0.0 < exponent <= 16.0:
        raise ValueError(f"exponent: {exponent} is not above 0 and at most 16")
    return Zipf(
        float(exponent),
        whole(accesses, "accesses", at_least=1),
        whole(seed, "seed"),
        _write_fraction(write),
        bool(shuffle),
        _region(region),
    )


def hot_cold(
    phases: Sequence[Phase] | None = None,
    *,
    accesses: int | None = None,
    hot_fraction: float = 0.1,
    hot_probability: float = 0.9,
    nr_phases: int = 1,
    seed: int,
    write: bool | float = False,
    region: Region = None,
) -> HotCold:
    """Touch mostly a hot part of memory, which may move from phase to phase.

    Either give ``phases``, or ``accesses`` and how many phases of equal length
    share them; the hot part then starts at evenly spaced places.

    Args:
        phases: The phases, one after another.
        accesses: Accesses of each vCPU, all phases together.
        hot_fraction: How much of the region is hot.
        hot_probability: The share of accesses that goes to the hot part.
        nr_phases: How many phases.
        seed: Seed of the random numbers.
        write: Whether the accesses write; a number is the share that does.
        region: Part of guest memory, ``(start, length)``.

    """
    if (phases is None) == (accesses is None):
        raise TypeError("hot_cold: give either phases or accesses")
    if phases is None:
        total = whole(accesses, "accesses", at_least=1)
        count = whole(nr_phases, "nr_phases", at_least=1)
        if count > total:
            raise ValueError(f"nr_phases: {count} phases cannot share {total} accesses")
        fraction = _fraction(hot_fraction, "hot_fraction")
        probability = _fraction(hot_probability, "hot_probability")
        ends = [total * i // count for i in range(count + 1)]
        room = 1.0 - fraction
        made = [
            Phase(ends[i + 1] - ends[i], room * i / max(count - 1, 1), fraction, probability)
            for i in range(count)
        ]
    else:
        made = list(phases)
        if not made:
            raise ValueError("phases: expected at least one phase")
    for i, phase in enumerate(made):
        if not isinstance(phase, Phase):
            raise TypeError(f"phases[{i}]: expected a Phase, not {type(phase).__name__}")
        whole(phase.accesses, f"phases[{i}].accesses", at_least=1)
        for name in ("start", "fraction", "probability"):
            _fraction(getattr(phase, name), f"phases[{i}].{name}")
        if phase.fraction == 0.0:
            raise ValueError(f"phases[{i}].fraction: no page is hot")
        if phase.start + phase.fraction > 1.0 + 1e-9:
            raise ValueError(f"phases[{i}]: the hot part ends beyond the region")
    return HotCold(tuple(made), whole(seed, "seed"), _write_fraction(write), _region(region))


def arrays(pages: npt.ArrayLike, writes: npt.ArrayLike | bool = False) -> Recorded:
    """Touch the pages of an array, one after another.

    Args:
        pages: Guest page numbers, below 2**32.
        writes: For each access whether it writes, or one answer for all.

    """
    numbers = np.asarray(pages)
    if numbers.ndim != 1:
        raise ValueError(f"pages: expected one dimension, not {numbers.ndim}")
    if numbers.size and not np.issubdtype(numbers.dtype, np.integer):
        raise TypeError(f"pages: expected whole numbers, not {numbers.dtype}")
    if numbers.size and (int(numbers.min()) < 0 or int(numbers.max()) >= 1 << 32):
        raise ValueError("pages: expected numbers from 0 to below 2**32")
    flags = np.asarray(writes)
    if flags.dtype != np.bool_:
        raise TypeError(f"writes: expected booleans, not {flags.dtype}")
    if flags.ndim == 0:
        flags = np.full(numbers.shape, bool(flags))
    elif flags.shape != numbers.shape:
        raise ValueError(f"writes: {flags.size} flags for {numbers.size} pages")
    return Recorded(np.ascontiguousarray(numbers, np.uint32), np.ascontiguousarray(flags))


def record(stream: Stream, pages: int) -> Recorded:
    """Return the accesses that a stream makes as the only vCPU of a guest.

    >>> record(strided(2), 5).pages.tolist()
    [0, 2, 4]

    Args:
        stream: The stream.
        pages: Pages of the guest, at most 2**32.

    Raises:
        OSError: If the stream leaves guest memory.

    """
    return Recorded(*_core.stream_accesses(stream, whole(pages, "pages", at_least=1)))


def trace(recorded: Trace) -> Recorded:
    """Replay a recorded program: each of its pages is the guest page it first touched as.

    Args:
        recorded: A trace, from `youngbit.traces`.

    """
    return Recorded(recorded.frames, recorded.write)
