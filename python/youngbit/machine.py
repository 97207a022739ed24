"""The machine: hosts, processes, guests, and the multi-gen LRU that ages them."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeAlias, cast, overload

import numpy as np
import numpy.typing as npt

from . import _core, defaults
from .access import Stream
from .notifier import MmuNotifier
from .sizes import PAGE_SIZE, Size, format_size, parse_pages, parse_size

__all__ = [
    "AgeStats",
    "Generation",
    "Generations",
    "Host",
    "LruGen",
    "Memcg",
    "Mm",
    "Registration",
    "RunStats",
    "TraceRecords",
    "Vm",
]

Kind: TypeAlias = Literal["anon", "shmem", "file"]
Mode: TypeAlias = Literal["inline", "live"]
Counters: TypeAlias = Mapping[str, int]


def _address(value: object, what: str) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{what}: expected a whole number, not bool")
    try:
        number = operator.index(cast("Any", value))
    except TypeError:
        raise TypeError(f"{what}: expected a whole number, not {type(value).__name__}") from None
    if not 0 <= number < 1 << 63:
        raise ValueError(f"{what}: {number} is not an address")
    return number


def _nonzero(counters: Counters) -> str:
    return ", ".join(f"{key}={value:,}" for key, value in counters.items() if value)


def _choice(value: object, choices: Sequence[str], what: str) -> str:
    if value not in choices:
        raise ValueError(f"{what}: {value!r} is none of {', '.join(map(repr, choices))}")
    return cast("str", value)


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

    @property
    def nr_pages(self) -> int:
        """Pages of both types."""
        return self.anon + self.file

    def to_dict(self) -> dict[str, int]:
        """Return a plain dict."""
        return {"seq": self.seq, "age_ms": self.age_ms, "anon": self.anon, "file": self.file}


class Generations(Sequence[Generation]):
    """The generations of an lruvec at one time, oldest first."""

    def __init__(self, generations: Sequence[Generation]) -> None:
        self._all = tuple(generations)

    @overload
    def __getitem__(self, index: int) -> Generation: ...
    @overload
    def __getitem__(self, index: slice) -> Generations: ...
    def __getitem__(self, index: int | slice) -> Generation | Generations:
        if isinstance(index, slice):
            return Generations(self._all[index])
        return self._all[index]

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

    def to_dict(self) -> list[dict[str, int]]:
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
        inside = ", ".join(f"{g.seq}: {g.anon}+{g.file}" for g in self._all)
        return f"Generations({{{inside}}})"


@dataclass(frozen=True)
class RunStats:
    """What a run of vCPUs did."""

    #: Wall time of the run.
    seconds: float
    #: Wall time of each vCPU.
    vcpu_seconds: tuple[float, ...]
    #: What was counted meanwhile, by the vCPUs and by whoever aged beside them.
    counters: Counters

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "seconds": self.seconds,
            "vcpu_seconds": list(self.vcpu_seconds),
            "counters": dict(self.counters),
        }

    def __str__(self) -> str:
        return f"run of {len(self.vcpu_seconds)} vCPUs: {self.seconds:.6f} s; " + _nonzero(
            self.counters
        )


@dataclass(frozen=True)
class AgeStats:
    """What one aging pass did and what it cost."""

    #: The youngest generation before the pass.
    seq: int
    #: The youngest generation after it.
    max_seq: int
    #: Wall time of the pass.
    seconds: float
    #: What was counted.
    counters: Counters

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "seq": self.seq,
            "max_seq": self.max_seq,
            "seconds": self.seconds,
            "counters": dict(self.counters),
        }

    def __str__(self) -> str:
        return (
            f"aging pass {self.seq} -> {self.max_seq}: {self.seconds:.6f} s;"
            f" {_nonzero(self.counters)}"
        )


@dataclass(frozen=True, eq=False)
class TraceRecords:
    """What one tracepoint recorded."""

    #: Names of the columns of `args`.
    names: tuple[str, ...]
    #: Nanoseconds on the host's clock, one a record.
    time_ns: npt.NDArray[np.uint64]
    #: One row a record.
    args: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.time_ns)

    def to_dict(self) -> dict[str, npt.NDArray[np.uint64]]:
        """Return one array a column, ``time_ns`` first."""
        columns = {name: self.args[:, i] for i, name in enumerate(self.names)}
        return {"time_ns": self.time_ns, **columns}


@dataclass(frozen=True)
class Memcg:
    """A memory cgroup."""

    #: Its number; 0 is the root.
    id: int
    #: Its path.
    name: str


class Host:
    """A machine: physical memory, memory cgroups, processes, a clock.

    Args:
        memory: Its size, or the sizes of its nodes.
        swap: Size of the swap device; 0 for none.
        clock: ``"real"``, or ``"virtual"``: time then passes only in `advance`,
            so that inline runs repeat to the last bit.
        capabilities: Mask of ``lru_gen/enabled``: 0x1 core, 0x2 mm walk, 0x4
            non-leaf young, 0x8 secondary MMU walk.

    Raises:
        ValueError: For a size or a clock that is none.
        OSError: If there cannot be such a host.
    """

    def __init__(
        self,
        memory: Size | Sequence[Size],
        *,
        swap: Size | Literal[0] = 0,
        clock: Literal["real", "virtual"] = "real",
        capabilities: int = defaults.CAPABILITIES,
    ) -> None:
        sizes = [memory] if isinstance(memory, str) or not isinstance(memory, Sequence) else memory
        nodes = [parse_pages(size, what="memory") for size in sizes]
        if not nodes:
            raise ValueError("memory: expected at least one node")
        _choice(clock, ("real", "virtual"), "clock")
        none = not isinstance(swap, (str, bool)) and swap == 0
        swap_pages = 0 if none else parse_pages(swap, what="swap")
        self._native = _core.Host(nodes, swap_pages, clock == "virtual")
        self._capabilities_set(capabilities)

    def __repr__(self) -> str:
        sizes = ", ".join(format_size(total * PAGE_SIZE) for total, _ in self._native.nodes())
        return f"Host(memory={sizes}, capabilities={self.capabilities:#06x})"

    def to_dict(self) -> dict[str, Any]:
        """Return the host's state as a plain dict."""
        return {
            "nodes": [{"pages": pages, "free": free} for pages, free in self._native.nodes()],
            "capabilities": self.capabilities,
            "memcgs": [
                {"id": number, "name": name, "pages": pages}
                for number, name, pages in self._native.memcgs()
            ],
        }

    @property
    def root(self) -> Memcg:
        """The root memory cgroup."""
        number, name, _ = self._native.memcgs()[0]
        return Memcg(number, name)

    @property
    def capabilities(self) -> int:
        """Mask of what is on in ``lru_gen/enabled``; unknown bits are ignored."""
        return self._native.capabilities

    @capabilities.setter
    def capabilities(self, mask: int) -> None:
        self._capabilities_set(mask)

    def _capabilities_set(self, mask: int) -> None:
        self._native.set_capabilities(_address(mask, "capabilities"))

    @property
    def time_ns(self) -> int:
        """Nanoseconds on the host's clock."""
        return self._native.now_ns()

    def advance(self, seconds: float) -> None:
        """Let virtual time pass; a real clock takes no notice."""
        if not 0 <= seconds < 1e9:
            raise ValueError(f"seconds: {seconds} is negative or beyond 30 years")
        self._native.advance_ns(round(seconds * 1e9))

    @property
    def counters(self) -> dict[str, int]:
        """Sums of what was counted, over all calls that have returned."""
        return self._native.counters()

    def create_memcg(self, name: str) -> Memcg:
        """Make a memory cgroup.

        Raises:
            OSError: ``EEXIST`` if the name is taken.
        """
        return Memcg(self._native.create_memcg(name), name)

    def create_mm(self, memcg: Memcg | None = None) -> Mm:
        """Make a process in a memory cgroup, otherwise in the root.

        Raises:
            OSError: ``ENOENT`` if the host has no such memory cgroup.
        """
        return Mm(self, self._native.create_mm(memcg.id if memcg else 0))

    def trace(self, *names: str) -> None:
        """Switch these tracepoints on and all others off."""
        self._native.set_tracepoints(list(names))

    @property
    def tracepoints(self) -> list[str]:
        """Names of the tracepoints that are on."""
        return self._native.tracepoints()

    def drain_trace(self) -> dict[str, TraceRecords]:
        """Take what was traced by calls that have returned, by tracepoint."""
        return {
            event: TraceRecords(tuple(names), times, rows)
            for event, (names, times, rows) in self._native.drain_trace().items()
        }


class Mm:
    """A process: an address space of its own; made by `Host.create_mm`."""

    def __init__(self, host: Host, native: _core.Mm) -> None:
        self._host = host
        self._native = native

    def __repr__(self) -> str:
        return f"Mm(id={self.id}, memcg={self.memcg.name!r})"

    @property
    def id(self) -> int:
        """Its number on the host."""
        return self._native.id

    @property
    def memcg(self) -> Memcg:
        """The memory cgroup that its faults are charged to."""
        number = self._native.memcg
        return Memcg(number, self._host._native.memcgs()[number][1])

    def mmap(
        self,
        length: Size,
        *,
        kind: Kind = "anon",
        address: int | None = None,
        backing: str = defaults.BACKING,
        locked: bool = False,
        read_only: bool = False,
        no_recency: bool = False,
    ) -> int:
        """Map fresh memory; return its address.

        Args:
            length: How much.
            kind: ``"anon"``, ``"shmem"`` or ``"file"``.
            address: Where; otherwise anywhere.
            backing: ``"4k"``; ``"2m"`` for transparent huge pages; ``"1g"`` for
                hugetlb pages.
            locked: As by ``mlock``.
            read_only: Not writable.
            no_recency: Accesses say nothing about recency (``MADV_RANDOM``).

        Raises:
            OSError: ``EINVAL``, ``EEXIST`` or ``ENOMEM``, as ``mmap``.
        """
        _choice(backing, tuple(defaults.BACKINGS), "backing")
        return self._native.mmap(
            parse_size(length, what="length"),
            kind,
            None if address is None else _address(address, "address"),
            backing == "2m",
            18 if backing == "1g" else 0,
            locked,
            read_only,
            no_recency,
        )

    def munmap(self, start: int, length: Size) -> None:
        """Unmap a range: notifiers first, then the pages."""
        self._native.munmap(_address(start, "start"), parse_size(length, what="length"))

    def touch(self, start: int, length: Size, *, write: bool = False) -> None:
        """Access every page of a range once, in order, as the process itself.

        Raises:
            OSError: ``EFAULT`` outside its memory, ``ENOMEM``.
        """
        start = _address(start, "start")
        self._native.touch(start, start + parse_size(length, what="length"), write)

    def resident(self, start: int, length: Size) -> tuple[int, int]:
        """Return how many pages of a range are mapped, and how many are young.

        Young by the process's own page tables; secondary MMUs are not asked.
        """
        start = _address(start, "start")
        return self._native.resident(start, start + parse_size(length, what="length"))

    def register(self, notifier: MmuNotifier) -> Registration:
        """Subscribe a notifier of your own to this process.

        Raises:
            TypeError: If it is no `MmuNotifier`, or an operation is no method.
        """
        if not isinstance(notifier, MmuNotifier):
            raise TypeError(f"notifier: expected an MmuNotifier, not {type(notifier).__name__}")
        return Registration(self._native.register(notifier))

    def clear_young(self, start: int, length: Size, *, fast_only: bool = False) -> bool:
        """Ask all notifiers whether a range was accessed, and clear; no TLB flush."""
        start = _address(start, "start")
        return self._native.clear_young(start, start + parse_size(length, what="length"), fast_only)

    def clear_flush_young(self, start: int, length: Size) -> bool:
        """Ask all notifiers whether a range was accessed, clear, and flush."""
        start = _address(start, "start")
        return self._native.clear_flush_young(start, start + parse_size(length, what="length"))

    def test_young(self, address: int, *, fast_only: bool = False) -> bool:
        """Ask notifiers until one says that a page was accessed; change nothing."""
        return self._native.test_young(_address(address, "address"), fast_only)

    @property
    def has_fast_young_notifiers(self) -> bool:
        """Whether any subscriber is fast."""
        return self._native.has_fast_young_notifiers()

    def exit(self) -> None:
        """End the process: notifiers are released, its memory is freed."""
        self._host._native.exit_mm(self._native)


class Registration:
    """A notifier's subscription; ends with `unregister` or a ``with`` block."""

    def __init__(self, native: _core.Registration) -> None:
        self._native = native

    @property
    def has_fast_aging(self) -> bool:
        """Whether it takes part in ``fast_only`` calls."""
        return self._native.has_fast_aging

    def unregister(self) -> None:
        """End it: ``release`` is called, and no callback runs after this returned.

        Raises:
            OSError: ``EINVAL`` if it ended before.
        """
        self._native.unregister()

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.unregister()


class Vm: ...


class LruGen: ...
