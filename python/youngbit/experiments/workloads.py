"""What guests do, as descriptions: made-up accesses and recorded programs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias

import numpy as np

from .. import access, defaults, traces
from ..access import Recorded, Stream
from ..sizes import PAGE_SIZE, parse_pages
from ..units import Accesses, Choice, Share
from .heat_map import laid_out
from .reclaim import Workload
from .reclaim import trace as traced

__all__ = [
    "Guest",
    "HotCold",
    "Sequential",
    "TraceFile",
    "TraceWorkload",
    "Uniform",
    "Zipf",
    "accessed",
    "read_trace",
    "recorded",
]


@dataclass(frozen=True)
class Sequential:
    """Every page in order.

    Attributes:
        passes: How many times over the memory.
        write: The share of accesses that write.

    """

    tag: ClassVar[str] = "sequential"
    passes: int = 1
    write: Share = defaults.WRITE_SHARE

    def stream(self, seed: int) -> Stream:
        """Return the accesses of one vCPU."""
        return access.sequential(write=self.write, passes=self.passes, seed=seed)


@dataclass(frozen=True)
class Uniform:
    """Pages drawn at random, each as likely as any other.

    Attributes:
        accesses: Accesses of each vCPU, all together.
        write: The share of accesses that write.

    """

    tag: ClassVar[str] = "uniform"
    accesses: Accesses = defaults.RECLAIM_ACCESSES
    write: Share = defaults.WRITE_SHARE

    def stream(self, seed: int) -> Stream:
        """Return the accesses of one vCPU."""
        return access.uniform(self.accesses, write=self.write, seed=seed)


@dataclass(frozen=True)
class Zipf:
    """Pages drawn at random by Zipf's law.

    Attributes:
        accesses: Accesses of each vCPU, all together.
        exponent: Of Zipf's law, above 0 and at most 16; larger is more skewed.
        write: The share of accesses that write.

    """

    tag: ClassVar[str] = "zipf"
    accesses: Accesses = defaults.RECLAIM_ACCESSES
    exponent: float = defaults.ZIPF_EXPONENT
    write: Share = defaults.WRITE_SHARE

    def __post_init__(self) -> None:
        self.stream(0)

    def stream(self, seed: int) -> Stream:
        """Return the accesses of one vCPU."""
        return access.zipf(self.exponent, accesses=self.accesses, write=self.write, seed=seed)


@dataclass(frozen=True)
class HotCold:
    """Mostly a hot part of memory, which moves from phase to phase.

    Attributes:
        accesses: Accesses of each vCPU, all together.
        hot_fraction: How much of memory is hot.
        hot_probability: The share of accesses that goes to the hot part.
        phases: How many phases of equal length.
        write: The share of accesses that write.

    """

    tag: ClassVar[str] = "hot-cold"
    accesses: Accesses = defaults.RECLAIM_ACCESSES
    hot_fraction: Share = defaults.HOT_FRACTION
    hot_probability: Share = defaults.HOT_PROBABILITY
    phases: int = defaults.HOT_PHASES
    write: Share = defaults.WRITE_SHARE

    def __post_init__(self) -> None:
        self.stream(0)

    def stream(self, seed: int) -> Stream:
        """Return the accesses of one vCPU."""
        return access.hot_cold(
            accesses=self.accesses,
            hot_fraction=self.hot_fraction,
            hot_probability=self.hot_probability,
            nr_phases=self.phases,
            seed=seed,
            write=self.write,
        )


@dataclass(frozen=True)
class TraceFile:
    """A recorded program.

    Attributes:
        file: The trace file, from where the description is; "sort" is the one that
            comes with the package.
        format: Of the file, otherwise by its ending.

    """

    tag: ClassVar[str] = "trace"
    file: str = traces.SHIPPED
    format: Annotated[str, Choice(traces.FORMATS)] | None = None

    def __post_init__(self) -> None:
        if not self.file:
            raise ValueError("file: '' is no name of a file")

    def read(self, base: Path | None = None) -> traces.Trace:
        """Return the trace; a relative name starts at ``base``."""
        return read_trace(self.file, self.format, base)


@dataclass(frozen=True)
class TraceWorkload(TraceFile):
    """A recorded program, as what a guest does.

    Attributes:
        layout: How pages of the program become the guest's: numbered by first touch, or
            by address without the gaps.

    """

    layout: Annotated[str, Choice(defaults.LAYOUTS)] = "touch"


#: Any of them, chosen by the key ``kind``.
Guest: TypeAlias = Sequential | Uniform | Zipf | HotCold | TraceWorkload


@functools.lru_cache(maxsize=2)
def _read(path: Path, format_: str | None, _size: int, _mtime_ns: int) -> traces.Trace:
    return traces.read(path, format_)


@functools.lru_cache(maxsize=2)
def _shipped(name: str) -> traces.Trace:
    return traces.shipped(name)


def read_trace(file: str, format_: str | None = None, base: Path | None = None) -> traces.Trace:
    """Return a trace, the last two from memory: a sweep reads the same again and again.

    Raises:
        TraceError: If the file is not such a trace.
        OSError: If it cannot be read.

    """
    path = (base or Path()) / file
    if file == traces.SHIPPED and format_ is None and not path.exists():
        return _shipped(file)
    stat = path.stat()
    return _read(path, format_, stat.st_size, stat.st_mtime_ns)


def recorded(guest: Guest, pages: int | None, seed: int, base: Path | None) -> Recorded:
    """Return the accesses of one vCPU, all of them.

    Raises:
        ValueError: If a trace needs more pages than there are.

    """
    if isinstance(guest, TraceWorkload):
        trace = guest.read(base)
        if pages is not None and trace.nr_pages > pages:
            raise ValueError(
                f"memory: {guest.file} touches {trace.nr_pages} pages,"
                f" {trace.nr_pages * PAGE_SIZE} bytes, and there are {pages} pages"
            )
        return Recorded(laid_out(trace, guest.layout), trace.write)
    if pages is None:
        raise ValueError(f"memory: a guest of {guest.tag} accesses needs a size")
    return access.record(guest.stream(seed), pages)


def accessed(guest: Guest, memory: int, seed: int, base: Path | None) -> Workload:
    """Return the accesses of a guest with one vCPU, and what is known of them.

    Args:
        guest: What it does.
        memory: Its memory in bytes; a trace has its own footprint instead.
        seed: Of everything random.
        base: Where the name of a trace starts.

    """
    if isinstance(guest, TraceWorkload):
        return traced(guest.read(base), guest.layout)
    stream = guest.stream(seed)
    made = access.record(stream, parse_pages(memory, what="memory"))
    return Workload.of(guest.tag, made.pages, made.writes, stream.to_dict())


def vcpu_seed(seed: int, vm: int, vcpu: int) -> int:
    """Return a seed of its own for every vCPU; the first has the experiment's."""
    if vm == vcpu == 0:
        return seed
    return int(np.random.SeedSequence([seed, vm, vcpu]).generate_state(1, np.uint64)[0] >> 1)
