"""The machine: hosts, processes, guests, and the multi-gen LRU that ages them."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, SupportsIndex, TypeAlias, cast, overload

import numpy as np
import numpy.typing as npt

from . import _core, defaults
from .access import Stream
from .generations import Generation, Generations
from .lru_gen import MemcgHistogram, parse
from .notifier import MmuNotifier
from .policy import Policy
from .sizes import PAGE_SIZE, Pages, Size, format_size, parse_pages, parse_size

__all__ = [
    "AgeStats",
    "AgingRun",
    "DebugFs",
    "Host",
    "IdleStats",
    "LruGen",
    "Memcg",
    "MemcgFiles",
    "Mm",
    "ProcFs",
    "Registration",
    "RunStats",
    "TextFile",
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


def _tlb_ways(entries: int) -> int:
    """Return the associativity nearest to the default that divides into 2**n sets."""
    fitting = [
        ways
        for ways in range(1, defaults.TLB_MAX_WAYS + 1)
        if entries % ways == 0 and (entries // ways).bit_count() <= 1
    ]
    if not fitting:
        raise ValueError(
            f"tlb_entries: {entries} is not a power of two times an associativity of at most"
            f" {defaults.TLB_MAX_WAYS}"
        )
    return min(fitting, key=lambda ways: abs(ways - defaults.TLB_WAYS))


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
class AgingRun(Sequence[float]):
    """The aging passes that were made while vCPUs ran; a sequence of their seconds."""

    #: Wall time of each pass.
    seconds: tuple[float, ...]
    #: Pages that each pass asked secondary MMUs about; 0 where whatever it tried
    #: to lock was taken.
    asked: tuple[int, ...]
    #: Processor time of the thread that aged, ``None`` where the system does not say.
    cpu_seconds: float | None
    #: Processor time of all vCPUs, likewise.
    vcpu_cpu_seconds: float | None
    #: What the passes counted.
    counters: Counters

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[float, ...]: ...
    def __getitem__(self, index: int | slice) -> float | tuple[float, ...]:
        return self.seconds[index]

    def __len__(self) -> int:
        return len(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "seconds": list(self.seconds),
            "asked": list(self.asked),
            "cpu_seconds": self.cpu_seconds,
            "vcpu_cpu_seconds": self.vcpu_cpu_seconds,
            "counters": dict(self.counters),
        }

    def __str__(self) -> str:
        return (
            f"{len(self.seconds)} aging passes in {sum(self.seconds):.6f} s,"
            f" {sum(self.asked)} pages asked about; {_nonzero(self.counters)}"
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


@dataclass(frozen=True)
class IdleStats:
    """What marking pages idle found."""

    #: Pages that were not idle and now are.
    marked: int
    #: Pages that were idle still: not accessed, as far as anyone knows.
    still_idle: int
    #: Pages without memory behind them.
    absent: int

    def to_dict(self) -> dict[str, int]:
        """Return a plain dict."""
        return {"marked": self.marked, "still_idle": self.still_idle, "absent": self.absent}


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
    _host: Host | None = field(default=None, repr=False, compare=False)

    @property
    def files(self) -> MemcgFiles:
        """Its text files, by name."""
        if self._host is None:
            raise ValueError(f"memory cgroup {self.name!r} is of no host")
        return MemcgFiles(self._host, self)

    def stat(self) -> dict[str, int]:
        """Return ``memory.stat``: sizes in bytes, and counts of events."""
        return _numbers(self.files["memory.stat"].read())


def _numbers(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


class Host:
    """A machine: physical memory, memory cgroups, processes, a clock.

    Args:
        memory: Its size, or the sizes of its nodes.
        swap: Size of the swap device; 0 for none.
        clock: ``"real"``, or ``"virtual"``: time then passes only in `advance`,
            so that inline runs repeat to the last bit.
        capabilities: Mask of ``lru_gen/enabled``: 0x1 core, 0x2 mm walk, 0x4
            non-leaf young, 0x8 secondary MMU walk.

    A host runs one kernel, which is what `aging_asks` says. Unless it was set, the
    first VM decides, by its protocol.

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
        self._policy: Policy | None = None
        #: Whether `aging_asks` was set; otherwise the protocol of the first VM.
        self._asks_chosen = False
        self._first_protocol: str | None = None
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
        return Memcg(number, name, self)

    @property
    def capabilities(self) -> int:
        """Mask of what is on in ``lru_gen/enabled``; unknown bits are ignored.

        What was asked for and the kernel has: 0x8 is off as long as `aging_asks`
        is not ``"fast_only"``, and on again, if it was asked for, when it is.
        """
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

    @property
    def aging_asks(self) -> str:
        """What MGLRU's aging asks secondary MMUs: none, accurate or fast_only.

        Unless it is set, the first VM's protocol decides. Once it is set, VMs of
        every protocol can be made, whatever their own kernel would ask. Only
        kernels that ask ``"fast_only"`` have capability 0x8.
        """
        return self._native.aging_asks

    @aging_asks.setter
    def aging_asks(self, asks: str) -> None:
        self._native.set_aging_asks(_choice(asks, defaults.AGING_ASKS, "aging_asks"))
        self._asks_chosen = True

    def _asks_of(self, protocol: str) -> str:
        """Return what aging asks with a VM of a protocol for which nobody chose it."""
        own, now = defaults.PROTOCOL_ASKS[protocol], self.aging_asks
        if self._asks_chosen:
            return now
        if self._first_protocol is not None and own != now:
            raise ValueError(
                f"protocol: {protocol!r} is of a kernel whose aging asks {own!r}, and this host"
                f" runs one whose aging asks {now!r}, as its first VM is of protocol"
                f" {self._first_protocol!r}; make a host for each, or say what aging_asks is"
            )
        return own

    @property
    def aging_batched(self) -> bool:
        """Whether the aging walk asks secondary MMUs once a PTE table.

        False, as in the series, unless it is set: the walk asks once a page.
        What a batched walk does differently is in ``docs/fidelity.md``.
        """
        return self._native.aging_batched

    @aging_batched.setter
    def aging_batched(self, batched: bool) -> None:
        self._native.set_aging_batched(batched)

    @property
    def debugfs(self) -> DebugFs:
        """The text files of MGLRU, by name."""
        return DebugFs(self)

    @property
    def procfs(self) -> ProcFs:
        """The files below ``/proc`` that reclaim has: vmstat and swappiness."""
        return ProcFs(self)

    def vmstat(self) -> dict[str, int]:
        """Return ``/proc/vmstat``: pages, and counts of events."""
        return _numbers(self.procfs["vmstat"].read())

    def histograms(self, *, full: bool = False) -> list[MemcgHistogram]:
        """Return the generations of every memory cgroup.

        Args:
            full: With what ``lru_gen_full`` tells.

        """
        return parse(self.debugfs["lru_gen_full" if full else "lru_gen"].read())

    @property
    def policy(self) -> Policy | None:
        """What decides for reclaim; None for the kernel's own decisions."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy | None) -> None:
        if not (policy is None or isinstance(policy, Policy)):
            raise TypeError(f"policy: expected a Policy, not {type(policy).__name__}")
        methods = [] if policy is None else policy.overridden()
        _core.set_policy(self._native, policy, methods)
        self._policy = policy

    @property
    def swap(self) -> tuple[int, int]:
        """Slots of the swap device, and how many of them are free."""
        return _core.swap(self._native)

    def fail_swap_writes(self, writes: int) -> None:
        """Let the next so many writes to swap fail with an input/output error."""
        if _address(writes, "writes") >= 1 << 32:
            raise ValueError(f"writes: {writes} is not below 2**32")
        _core.fail_swap_writes(self._native, writes)

    def fail_file_writes(self, writes: int) -> None:
        """Let the next so many pages written back to files fail with an input/output error.

        They stay dirty; `Mm.fsync` tells.
        """
        if _address(writes, "writes") >= 1 << 32:
            raise ValueError(f"writes: {writes} is not below 2**32")
        _core.fail_file_writes(self._native, writes)

    def check(self) -> None:
        """Check that no page, list entry, mapping or swap slot is lost or twice there.

        Only on a quiet host: while something runs, sizes lag behind lists.

        Raises:
            AssertionError: With the first thing that is wrong.

        """
        _core.check(self._native)

    def create_memcg(self, name: str) -> Memcg:
        """Make a memory cgroup.

        Raises:
            OSError: ``EEXIST`` if the name is taken.

        """
        return Memcg(self._native.create_memcg(name), name, self)

    def create_mm(self, memcg: Memcg | None = None) -> Mm:
        """Make a process in a memory cgroup, otherwise in the root.

        Raises:
            OSError: ``ENOENT`` if the host has no such memory cgroup.

        """
        return Mm(self, self._native.create_mm(memcg.id if memcg else 0))

    def create_vm(
        self,
        memory: Size,
        *,
        vcpus: int = defaults.VCPUS,
        mmu: str = defaults.MMU,
        protocol: str = defaults.PROTOCOL,
        aging_asks: str | None = None,
        ad: bool = True,
        format: str | None = None,
        levels: int = defaults.LEVELS,
        backing: str = defaults.BACKING,
        kind: Kind = "anon",
        direct: bool | None = None,
        l1_ad: bool = True,
        aliases: int = 1,
        tlb_entries: int = defaults.TLB_ENTRIES,
        tlb_ways: int | None = None,
        memcg: Memcg | None = None,
    ) -> Vm:
        """Make a virtual machine in a process and a memory cgroup of its own.

        Args:
            memory: Guest memory.
            vcpus: How many vCPUs.
            mmu: Which MMU maps guest memory, one of ``defaults.MMUS``.
            protocol: How it is aged: ``"baseline"``, ``"v7"`` or ``"v9"``.
            aging_asks: What MGLRU's aging asks on this host from now on:
                ``"none"``, ``"accurate"`` or ``"fast_only"``. Otherwise what
                `aging_asks` was set to, and if it was not, what the protocol's
                kernel asks.
            ad: Whether the page tables have accessed and dirty bits.
            format: Of the page-table entries: ``"ept"`` or ``"npt"``; otherwise
                EPT, and for shadow paging legacy, which is NPT's.
            levels: Of the page tables: 4 or 5.
            backing: Size of the host's pages behind guest memory: ``"4k"``,
                ``"2m"`` or ``"1g"``.
            kind: Of the memory behind the guest's: ``"anon"``, ``"shmem"`` or
                ``"file"``. A read of anonymous memory that was never written
                finds the zero page, which is nobody's and does not age; the
                others have a page for it.
            direct: For the shadow MMU: map guest frames directly, as KVM does
                with nested paging when the TDP MMU is switched off, instead of
                shadowing the guest's page tables. Otherwise so without A/D bits,
                which shadow paging always has.
            l1_ad: For a nested VM: whether its guest gives its own guest page
                tables with A/D bits. Nothing to any other.
            aliases: At how many addresses a guest with page tables of its own
                maps each page; accesses take turns. Nothing to the TDP MMU, which
                maps guest frames and never sees how the guest does.
            tlb_entries: Of each vCPU's modelled TLB; 0 for none.
            tlb_ways: Its associativity: the entries are this times a power of
                two. Otherwise about 12, whatever fits.
            memcg: Which memory cgroup; otherwise a new one.

        Raises:
            ValueError: For a parameter that is none of the choices; for a protocol
                whose kernel asks something else than the host's, unless what aging
                asks was chosen.
            OSError: If there cannot be such a VM.

        """
        pages = parse_pages(memory, what="memory")
        _choice(mmu, defaults.MMUS, "mmu")
        _choice(protocol, defaults.PROTOCOLS, "protocol")
        if direct is None:
            direct = mmu == "shadow" and not ad
        if format is None:
            format = "npt" if mmu == "shadow" and not direct else defaults.FORMAT
        _choice(format, defaults.FORMATS, "format")
        _choice(backing, tuple(defaults.BACKINGS), "backing")
        _choice(kind, defaults.KINDS, "kind")
        chosen = aging_asks is not None
        if aging_asks is None:
            aging_asks = self._asks_of(protocol)
        _choice(aging_asks, defaults.AGING_ASKS, "aging_asks")
        for value, what in ((vcpus, "vcpus"), (levels, "levels"), (tlb_entries, "tlb_entries")):
            _address(value, what)
        ways = _tlb_ways(tlb_entries) if tlb_ways is None else _address(tlb_ways, "tlb_ways")
        if not 1 <= vcpus <= defaults.MAX_VCPUS:
            raise ValueError(f"vcpus: {vcpus} is not between 1 and {defaults.MAX_VCPUS}")
        if pages * PAGE_SIZE % defaults.BACKINGS[backing]:
            raise ValueError(f"memory: {memory!r} is not a multiple of the backing, {backing}")
        if memcg is None:
            taken = {name for _, name, _ in self._native.memcgs()}
            number = next(n for n in range(1 << 16) if f"/vm{n}" not in taken)
            memcg = self.create_memcg(f"/vm{number}")
        parameters = {
            "memory": pages * PAGE_SIZE,
            "vcpus": vcpus,
            "mmu": mmu,
            "protocol": protocol,
            "aging_asks": aging_asks,
            "ad": bool(ad),
            "format": format,
            "levels": levels,
            "backing": backing,
            "kind": kind,
            "direct": bool(direct),
            "l1_ad": bool(l1_ad),
            "aliases": aliases,
            "tlb_entries": tlb_entries,
            "tlb_ways": ways,
        }
        native = self._native.create_vm(
            memcg.id,
            pages,
            vcpus,
            mmu,
            protocol,
            bool(ad),
            format,
            levels,
            tuple(defaults.BACKINGS).index(backing) + 1,
            kind,
            bool(direct),
            bool(l1_ad),
            _address(aliases, "aliases"),
            tlb_entries,
            ways,
        )
        self._native.set_aging_asks(aging_asks)
        self._asks_chosen |= chosen
        self._first_protocol = self._first_protocol or protocol
        return Vm(self, native, parameters)

    def lru_gen(self, memcg: Memcg | None = None, node: int = 0) -> LruGen:
        """Return the multi-gen LRU of a memory cgroup, otherwise the root's."""
        if not 0 <= _address(node, "node") < len(self._native.nodes()):
            raise ValueError(f"node: the host has no node {node}")
        return LruGen(self, memcg or self.root, node)

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


class DebugFs(Mapping[str, "TextFile"]):
    """The text files of MGLRU, in the kernel's layout."""

    NAMES = ("enabled", "min_ttl_ms", "lru_gen", "lru_gen_full")

    def __init__(self, host: Host) -> None:
        self._host = host

    def __getitem__(self, name: str) -> TextFile:
        if name not in self.NAMES:
            raise KeyError(name)
        return TextFile(self._host, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


class MemcgFiles(Mapping[str, "TextFile"]):
    """The text files of a memory cgroup, in the kernel's layout."""

    NAMES = ("memory.current", "memory.high", "memory.max", "memory.reclaim", "memory.stat")

    def __init__(self, host: Host, memcg: Memcg) -> None:
        self._host = host
        self._memcg = memcg

    def __getitem__(self, name: str) -> TextFile:
        if name not in self.NAMES:
            raise KeyError(name)
        return _MemcgFile(self._host, self._memcg, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


class ProcFs(Mapping[str, "TextFile"]):
    """The files below ``/proc`` that reclaim has."""

    NAMES = ("vmstat", "sys/vm/swappiness")

    def __init__(self, host: Host) -> None:
        self._host = host

    def __getitem__(self, name: str) -> TextFile:
        if name not in self.NAMES:
            raise KeyError(name)
        return _ProcFile(self._host, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


def _written(text: object) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, (bytes, bytearray)):
        return bytes(text)
    # bytes() of a number is that many null bytes, and True is a number.
    if not isinstance(text, bool) and isinstance(text, SupportsIndex):
        number = operator.index(text)
        return str(number * PAGE_SIZE if isinstance(text, Pages) else number).encode()
    raise TypeError(f"text: expected a text or a whole number, not {type(text).__name__}")


class TextFile:
    """One text file; made by `Host.debugfs`, `Host.procfs` and `Memcg.files`."""

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        #: Its name.
        self.name = name

    def __repr__(self) -> str:
        return f"TextFile({self.name!r})"

    def read(self) -> str:
        """Return what it reads as.

        Raises:
            OSError: ``EINVAL`` for a file that is only written.

        """
        return self._host._native.read_file(self.name)

    def write(self, text: str | bytes | SupportsIndex) -> None:
        """Write to it; ``lru_gen`` takes commands.

        Args:
            text: What to write. A number is written in decimal; `Pages` as what
                they are in bytes, which is what limits are in.

        Raises:
            TypeError: If it is neither text nor a whole number.
            OSError: With the kernel's ``errno``.

        """
        self._write(_written(text))

    def _write(self, data: bytes) -> None:
        self._host._native.write_file(self.name, data)


class _MemcgFile(TextFile):
    def __init__(self, host: Host, memcg: Memcg, name: str) -> None:
        super().__init__(host, name)
        self._memcg = memcg

    def read(self) -> str:
        return _core.memcg_read(self._host._native, self._memcg.id, self.name)

    def _write(self, data: bytes) -> None:
        _core.memcg_write(self._host._native, self._memcg.id, self.name, data)


class _ProcFile(TextFile):
    def read(self) -> str:
        return _core.proc_read(self._host._native, self.name)

    def _write(self, data: bytes) -> None:
        _core.proc_write(self._host._native, self.name, data)


class Mm:
    """A process: an address space of its own; made by `Host.create_mm`."""

    def __init__(self, host: Host, native: _core.Mm, owner: Vm | None = None) -> None:
        self._host = host
        self._native = native
        # A VM's process ends with the VM: whoever holds the one keeps the other.
        self._owner = owner

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
        return Memcg(number, self._host._native.memcgs()[number][1], self._host)

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
        _choice(kind, defaults.KINDS, "kind")
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

    def read(self, start: int, length: Size) -> bytes:
        """Read mapped pages of files or shared memory by file descriptor.

        No page table and no accessed bit takes part: what is read is counted in
        references, and those make tiers.

        Returns:
            What the pages hold: one byte a page.

        Raises:
            OSError: ``EBADF`` where no file is mapped, ``ENOMEM``.

        """
        start = _address(start, "start")
        return self._native.read_pages(start, start + parse_size(length, what="length"))

    def write(self, start: int, length: Size, byte: int = 0) -> None:
        """Write mapped pages of files or shared memory by file descriptor.

        The pages become dirty; writing is not counted as using them.

        Args:
            start: Where the first page is mapped.
            length: How much to write; whole pages are.
            byte: What the pages hold from now on.

        Raises:
            ValueError: For what is no byte.
            OSError: ``EBADF`` where no file is mapped, ``ENOMEM``.

        """
        start = _address(start, "start")
        if _address(byte, "byte") > 0xFF:
            raise ValueError(f"byte: {byte} is not below 256")
        self._native.write_pages(start, start + parse_size(length, what="length"), byte)

    def fsync(self, address: int) -> int:
        """Write back the dirty pages of the file that is mapped at an address.

        Returns:
            How many were written.

        Raises:
            OSError: ``EIO``, once, after writing back some page failed, whoever
                tried; ``EBADF`` where no file is mapped.

        """
        return self._native.fsync(_address(address, "address"))

    def resident(self, start: int, length: Size) -> tuple[int, int]:
        """Return how many pages of a range are mapped, and how many are young.

        Young by the process's own page tables; secondary MMUs are not asked.
        """
        start = _address(start, "start")
        return self._native.resident(start, start + parse_size(length, what="length"))

    def page_generations(self, start: int, length: Size) -> npt.NDArray[np.int64]:
        """Return for each page of a range the number of its generation.

        -1 stands for a page that is not there or on no list.
        """
        return self._native.page_generations(
            _address(start, "start"), parse_pages(length, what="length")
        )

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


class Vm:
    """A virtual machine and its guest memory; made by `Host.create_vm`."""

    def __init__(self, host: Host, native: _core.Vm, parameters: dict[str, Any]) -> None:
        self._host = host
        self._native = native
        self._parameters = parameters

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self._parameters.items())
        return f"Vm({inside})"

    def to_dict(self) -> dict[str, Any]:
        """Return what the VM was made as."""
        return dict(self._parameters)

    @property
    def mm(self) -> Mm:
        """The process whose memory the guest sees."""
        return Mm(self._host, self._native.mm, self)

    @property
    def memcg(self) -> Memcg:
        """The memory cgroup that guest memory is charged to."""
        return self.mm.memcg

    @property
    def nr_pages(self) -> int:
        """Guest memory in pages of 4 KiB."""
        return self._native.nr_pages

    @property
    def nr_vcpus(self) -> int:
        """How many vCPUs."""
        return self._native.nr_vcpus

    @property
    def address(self) -> int:
        """Where in the process guest memory begins."""
        return self._native.address

    @property
    def guest_physical(self) -> tuple[int, int]:
        """First byte of guest memory, and one past the last, as the guest counts."""
        return self._native.guest_physical

    def run(
        self,
        stream: Stream | Sequence[Stream],
        *,
        mode: Mode = "inline",
        overlap: bool = False,
    ) -> RunStats:
        """Run the vCPUs until each has made its accesses.

        Args:
            stream: What each vCPU does, or one stream a vCPU.
            mode: ``"inline"``: one vCPU after another in this thread, the same to
                the last bit each time. ``"live"``: one thread a vCPU, and one
                kswapd a node.
            overlap: Give each vCPU all of guest memory; otherwise each has its
                share, unless its stream names a region.

        Raises:
            OSError: If a stream leaves guest memory, or memory runs out.
            KeyboardInterrupt: Within a tenth of a second of Ctrl-C; what was
                accessed stays accessed.

        """
        _choice(mode, ("inline", "live"), "mode")
        seconds, vcpus, counters = self._native.run(self._streams(stream), mode == "live", overlap)
        return RunStats(seconds, tuple(vcpus), counters)

    def run_while_aging(
        self,
        stream: Stream | Sequence[Stream],
        lru: LruGen,
        *,
        overlap: bool = False,
        can_swap: bool = True,
        force_scan: bool = True,
        apart: bool = False,
    ) -> tuple[RunStats, AgingRun]:
        """Run one thread a vCPU, and age in a loop in this thread until all are done.

        Args:
            stream: What the vCPUs touch, one for each or one for all.
            lru: What is aged.
            overlap: Let each vCPU touch the memory of all.
            can_swap: As `LruGen.age`.
            force_scan: As `LruGen.age`.
            apart: Keep this thread on one processor and the vCPUs on the others,
                where there are others and the system allows it.

        Returns:
            What the run did, and the aging passes.

        Raises:
            OSError: As `run` and `LruGen.age`.

        """
        seconds, vcpus, counters, passes, processor, aged = self._native.run_while_aging(
            self._streams(stream),
            overlap,
            lru.memcg.id,
            lru.node,
            can_swap,
            force_scan,
            apart,
        )
        vcpu_cpu, aging_cpu = processor or (None, None)
        aging = AgingRun(
            tuple(each for each, _ in passes),
            tuple(asked for _, asked in passes),
            aging_cpu,
            vcpu_cpu,
            aged,
        )
        return RunStats(seconds, tuple(vcpus), counters), aging

    def _streams(self, stream: Stream | Sequence[Stream]) -> list[Stream]:
        streams = [stream] * self.nr_vcpus if isinstance(stream, Stream) else list(stream)
        for i, each in enumerate(streams):
            if not isinstance(each, Stream):
                raise TypeError(f"stream[{i}]: expected a Stream, not {type(each).__name__}")
        if len(streams) != self.nr_vcpus:
            raise ValueError(f"stream: {len(streams)} streams for {self.nr_vcpus} vCPUs")
        return streams

    def page_generations(self) -> npt.NDArray[np.int64]:
        """Return for each guest page the number of its generation.

        -1 stands for a page that is not there or on no list.
        """
        return self._native.page_generations()

    def set_guest_mode(self, *, l2: bool) -> None:
        """Let every vCPU of a nested VM run the guest's guest (as at first), or the guest.

        Raises:
            OSError: ``EOPNOTSUPP`` if the VM is not nested.

        """
        self._native.set_guest_mode(l2)

    def mark_idle(self, first_page: int = 0, nr_pages: int | None = None) -> IdleStats:
        """Mark pages idle through ``page_idle``; those that are idle still stay so.

        Args:
            first_page: First guest page.
            nr_pages: How many; otherwise all that follow.

        """
        return IdleStats(*self._native.mark_idle(*self._range(first_page, nr_pages)))

    def test_idle(self, first_page: int = 0, nr_pages: int | None = None) -> npt.NDArray[np.bool_]:
        """Return for each guest page whether ``page_idle`` says that it is idle."""
        return self._native.test_idle(*self._range(first_page, nr_pages))

    def scan_young(
        self, first_page: int = 0, nr_pages: int | None = None, *, flush: bool = False
    ) -> npt.NDArray[np.bool_]:
        """Return for each guest page whether it was accessed since the last time; clear that.

        Reads the accessed bits of the process and, through the accurate
        notifiers, of the guest, a page at a time.

        Args:
            first_page: First guest page.
            nr_pages: How many; otherwise all that follow.
            flush: Flush the TLB for each page that was accessed. Otherwise
                accesses through what it still holds are not seen.

        """
        first, count = self._range(first_page, nr_pages)
        start = self.address + first * PAGE_SIZE
        found, _ = _core.scan_young(self._native.mm, start, count, flush)
        return found

    def _range(self, first_page: int, nr_pages: int | None) -> tuple[int, int]:
        first = _address(first_page, "first_page")
        count = self.nr_pages - first if nr_pages is None else _address(nr_pages, "nr_pages")
        if count <= 0 or first + count > self.nr_pages:
            raise ValueError(
                f"pages {first} to {first + count}: expected some of the guest's {self.nr_pages}"
            )
        return first, count


class LruGen:
    """The multi-gen LRU of one memory cgroup on one node; made by `Host.lru_gen`."""

    def __init__(self, host: Host, memcg: Memcg, node: int) -> None:
        self._host = host
        self.memcg = memcg
        self.node = node

    def __repr__(self) -> str:
        return f"LruGen(memcg={self.memcg.name!r}, node={self.node}, {self.generations()!r})"

    def generations(self) -> Generations:
        """Return the generations as they are now, oldest first."""
        rows = self._host._native.generations(self.memcg.id, self.node)
        return Generations([Generation(*row) for row in rows])

    def age(self, *, can_swap: bool = True, force_scan: bool = True) -> AgeStats:
        """Make one aging pass: walk the page tables, then make a new generation.

        Args:
            can_swap: Whether anonymous memory is aged.
            force_scan: Visit every process and every page table, whether or not
                it ran or looks worth it.

        Raises:
            OSError: ``ERANGE`` without ``force_scan`` when all generations exist.
            Exception: What a notifier raised, after the pass.

        """
        return AgeStats(*self._host._native.age(self.memcg.id, self.node, can_swap, force_scan))
