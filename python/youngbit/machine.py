"""The machine: a host, and everything that is made on it."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from . import _core, defaults
from ._arguments import check_same_host, choice, whole
from .files import DebugFs, MemcgFiles, ProcFs, TextFile, numbers
from .lru_gen import MemcgHistogram, parse
from .memcg import LruGen, Memcg
from .mm import Kind, Mm, Registration
from .policy import Policy
from .results import (
    AgeStats,
    AgingRun,
    Counters,
    EvictStats,
    IdleStats,
    RunStats,
    TraceRecords,
)
from .sizes import PAGE_SIZE, Size, format_size, parse_pages
from .vm import Memslot, Mode, Vm

__all__ = [
    "AgeStats",
    "AgingRun",
    "Counters",
    "DebugFs",
    "EvictStats",
    "Host",
    "IdleStats",
    "InMemcg",
    "Kind",
    "LruGen",
    "Memcg",
    "MemcgFiles",
    "Memslot",
    "Mm",
    "Mode",
    "ProcFs",
    "Registration",
    "RunStats",
    "TextFile",
    "TraceRecords",
    "Vm",
]


#: What stands for a memory cgroup: itself, its name, or a process or VM in it.
InMemcg: TypeAlias = "Memcg | Mm | Vm | str"


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
        choice(clock, ("real", "virtual"), "clock")
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
        self._native.set_capabilities(whole(mask, "capabilities"))

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
        self._native.set_aging_asks(choice(asks, defaults.AGING_ASKS, "aging_asks"))
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
        return numbers(self.procfs["vmstat"].read())

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
        if policy is not None:
            policy.check_decisions()
        methods = [] if policy is None else policy.overridden()
        _core.set_policy(self._native, policy, methods)
        self._policy = policy

    @property
    def swap(self) -> tuple[int, int]:
        """Slots of the swap device, and how many of them are free."""
        return _core.swap(self._native)

    def fail_swap_writes(self, writes: int) -> None:
        """Let the next so many writes to swap fail with an input/output error."""
        _core.fail_swap_writes(self._native, whole(writes, "writes", at_most=(1 << 32) - 1))

    def fail_file_writes(self, writes: int) -> None:
        """Let the next so many pages written back to files fail with an input/output error.

        They stay dirty; `youngbit.mm.Mm.fsync` tells.
        """
        _core.fail_file_writes(self._native, whole(writes, "writes", at_most=(1 << 32) - 1))

    def check(self) -> None:
        """Check that no page, list entry, mapping or swap slot is lost or twice there.

        Only on a quiet host: while something runs, sizes lag behind lists.

        Raises:
            AssertionError: With the first thing that is wrong.

        """
        _core.check(self._native)

    def create_memcg(self, name: str) -> Memcg:
        """Make a memory cgroup.

        Args:
            name: Its path, with a slash before it or without.

        Raises:
            OSError: ``EINVAL`` if the name is no path or has a newline,
                ``EEXIST`` if it is taken.

        """
        number, path = self._native.create_memcg(name)
        return Memcg(number, path, self)

    def _memcg(self, given: InMemcg) -> Memcg:
        known = self._native.memcgs()
        if isinstance(given, str):
            for number, name, _ in known:
                if given and name == "/" + given.removeprefix("/"):
                    return Memcg(number, name, self)
            names = ", ".join(name for _, name, _ in known)
            raise FileNotFoundError(
                errno.ENOENT, f"memcg: no memory cgroup is named {given!r}; there are: {names}"
            )
        if not isinstance(given, (Memcg, Mm, Vm)):
            raise TypeError(
                "memcg: expected a Memcg, its name, or an Mm or a Vm in it, not"
                f" {type(given).__name__}"
            )
        check_same_host(self, given, given._host, "memcg")
        memcg = given if isinstance(given, Memcg) else given.memcg
        if not any(number == memcg.id for number, _, _ in known):
            raise FileNotFoundError(
                errno.ENOENT, f"memcg: no memory cgroup has number {memcg.id}, as {memcg!r} says"
            )
        return memcg

    def create_mm(self, memcg: InMemcg | None = None) -> Mm:
        """Make a process in a memory cgroup, otherwise in the root.

        Args:
            memcg: The memory cgroup: itself, its name, or who is in it.

        Raises:
            TypeError: If it is none of these.
            ValueError: If it is another host's.
            OSError: ``ENOENT`` if the host has no such memory cgroup.

        """
        return Mm(
            self, self._native.create_mm((self.root if memcg is None else self._memcg(memcg)).id)
        )

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
        memcg: InMemcg | None = None,
        mm: Mm | None = None,
    ) -> Vm:
        """Make a virtual machine, unless said otherwise in a process and cgroup of its own.

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
            memcg: Which memory cgroup: itself, its name, or who is in it; otherwise
                a new one, and with ``mm`` the process's.
            mm: A process to make it in, such as another VM's, whose memory
                `youngbit.vm.Vm.set_memory_region` can then show to this guest too.
                Guest memory is mapped in it. Otherwise a new one, which ends with the last VM in
                it.

        Raises:
            ValueError: For a parameter that is none of the choices; for a protocol
                whose kernel asks something else than the host's, unless what aging
                asks was chosen; for what is another host's.
            TypeError: For a memory cgroup or a process that is none.
            OSError: If there cannot be such a VM; ``EINVAL`` for a process that has
                ended.

        """
        pages = parse_pages(memory, what="memory")
        choice(mmu, defaults.MMUS, "mmu")
        choice(protocol, defaults.PROTOCOLS, "protocol")
        if direct is None:
            direct = mmu == "shadow" and not ad
        if format is None:
            format = "npt" if mmu == "shadow" and not direct else defaults.FORMAT
        choice(format, defaults.FORMATS, "format")
        choice(backing, tuple(defaults.BACKINGS), "backing")
        choice(kind, defaults.KINDS, "kind")
        chosen = aging_asks is not None
        if aging_asks is None:
            aging_asks = self._asks_of(protocol)
        choice(aging_asks, defaults.AGING_ASKS, "aging_asks")
        vcpus = whole(vcpus, "vcpus", at_least=1, at_most=defaults.MAX_VCPUS)
        levels = whole(levels, "levels")
        tlb_entries = whole(tlb_entries, "tlb_entries")
        ways = _tlb_ways(tlb_entries) if tlb_ways is None else whole(tlb_ways, "tlb_ways")
        aliases = whole(aliases, "aliases", at_least=1)
        if pages * PAGE_SIZE % defaults.BACKINGS[backing]:
            raise ValueError(f"memory: {memory!r} is not a multiple of the backing, {backing}")
        if mm is not None:
            if not isinstance(mm, Mm):
                raise TypeError(f"mm: expected an Mm, not {type(mm).__name__}")
            check_same_host(self, mm, mm._host, "mm")
            if memcg is not None and self._memcg(memcg) != mm.memcg:
                raise ValueError(
                    f"memcg: {self._memcg(memcg).name!r} is not that of the process,"
                    f" {mm.memcg.name!r}, which guest memory is charged to"
                )
            memcg = mm.memcg
        elif memcg is not None:
            memcg = self._memcg(memcg)
        else:
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
            None if mm is None else mm._native,
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
            aliases,
            tlb_entries,
            ways,
        )
        self._native.set_aging_asks(aging_asks)
        self._asks_chosen |= chosen
        self._first_protocol = self._first_protocol or protocol
        return Vm(self, native, parameters)

    def lru_gen(self, memcg: InMemcg | None = None, node: int = 0) -> LruGen:
        """Return the multi-gen LRU of a memory cgroup, otherwise the root's.

        Args:
            memcg: The memory cgroup: itself, its name, or who is in it.
            node: The node.

        Raises:
            TypeError: If it is none of these.
            ValueError: If it is another host's, or there is no such node.
            OSError: ``ENOENT`` if the host has no such memory cgroup.

        """
        if whole(node, "node") >= len(self._native.nodes()):
            raise ValueError(f"node: the host has no node {node}")
        return LruGen(self, self.root if memcg is None else self._memcg(memcg), node)

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
