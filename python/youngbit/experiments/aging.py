"""Aging and reclaim of any number of guests, beside the truth.

Every VM first writes all of its memory. Then its vCPUs make their accesses in
intervals; after each, all VMs are aged, and what the pass put in the youngest
generation it knew is the estimate of what was touched since the pass before.
The truth is in the accesses, so precision and recall are exact.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import numpy.typing as npt

from .. import access, defaults
from ..access import Recorded
from ..generations import Generations
from ..machine import AgeStats, Host, LruGen, Mode, Vm
from ..policy import Policy
from ..sizes import PAGE_SIZE, Pages
from ..units import (
    Accesses,
    AgingAsks,
    Backing,
    Bytes,
    Choice,
    Format,
    KindOfMemory,
    Mask,
    Mmu,
    Protocol,
    Seconds,
    Share,
)
from ._own_policy import OwnPolicy
from ._parts import check_guest_tables, ignore, vm_options
from .workloads import Guest, TraceWorkload, Zipf, recorded, vcpu_seed

__all__ = ["Aging", "AgingPass", "AgingResult", "Machine", "Pressure", "Schedule", "VirtualMachine"]


@dataclass(frozen=True)
class Machine:
    """The host.

    Attributes:
        memory: Of the host, otherwise what the VMs need.
        swap: Size of the swap device, otherwise as much as the VMs have where there
            is pressure, and none where there is not.
        capabilities: Mask of lru_gen/enabled.
        swappiness: 0 to 200, otherwise the kernel's.

    """

    memory: Bytes | None = None
    swap: Bytes | None = None
    capabilities: Mask = defaults.CAPABILITIES
    swappiness: int | None = None

    def __post_init__(self) -> None:
        if self.swappiness is not None and not 0 <= self.swappiness <= 200:
            raise ValueError(f"swappiness: {self.swappiness} is not between 0 and 200")
        if not 0 <= self.capabilities < 1 << 32:
            raise ValueError(f"capabilities: {self.capabilities} is not a mask of 32 bits")


@dataclass(frozen=True)
class VirtualMachine:
    """One VM and what its guest does.

    Attributes:
        memory: Guest memory, otherwise the footprint of the trace, or 64M.
        vcpus: How many vCPUs; each draws accesses of its own over all of memory.
        kind: Of the memory behind the guest's.
        mmu: Which MMU maps guest memory.
        protocol: How it is aged.
        aging_asks: What MGLRU's aging asks, otherwise as the protocol's kernel.
        ad: Whether page tables have accessed and dirty bits.
        format: Of page-table entries, otherwise what the MMU has.
        levels: Of the page tables, 4 or 5.
        backing: Size of the host's pages behind guest memory.
        l1_ad: Whether a nested guest's page tables have accessed and dirty bits;
            without is for mmu nested only.
        aliases: At how many addresses the guest maps each page; several are for mmu
            shadow and nested only, for tdp maps guest frames.
        tlb_entries: Of each vCPU's modelled TLB; 0 makes the estimate exact.
        workload: What each vCPU does.

    """

    memory: Bytes | None = None
    vcpus: int = defaults.VCPUS
    kind: KindOfMemory = "anon"
    mmu: Mmu = defaults.MMU
    protocol: Protocol = defaults.PROTOCOL
    aging_asks: AgingAsks | None = None
    ad: bool = True
    format: Format | None = None
    levels: int = defaults.LEVELS
    backing: Backing = defaults.BACKING
    l1_ad: bool = True
    aliases: int = 1
    tlb_entries: int = defaults.AGING_TLB_ENTRIES
    workload: Guest = field(default_factory=lambda: Zipf(accesses=defaults.AGING_ACCESSES))

    def __post_init__(self) -> None:
        if not 1 <= self.vcpus <= defaults.MAX_VCPUS:
            raise ValueError(f"vcpus: {self.vcpus} is not between 1 and {defaults.MAX_VCPUS}")
        page = defaults.BACKINGS[self.backing]
        if self.memory is not None and self.memory % page:
            raise ValueError(
                f"memory: {self.memory} bytes are not a multiple of the backing, {self.backing}"
            )
        if isinstance(self.workload, TraceWorkload) and self.vcpus > 1:
            raise ValueError(f"vcpus: a trace is one vCPU's accesses, not {self.vcpus}'s")
        check_guest_tables(self.mmu, l1_ad=self.l1_ad, aliases=self.aliases)


@dataclass(frozen=True)
class Schedule:
    """When memory is aged.

    Attributes:
        every: Accesses of each vCPU between two aging passes.
        seconds: Virtual time between two aging passes.
        force_scan: Whether a pass visits what does not look worth it.

    """

    every: Accesses = defaults.AGING_EVERY
    seconds: Seconds = 1.0
    force_scan: bool = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every: {self.every} is below 1")
        if not 0 <= self.seconds < 1e6:
            raise ValueError(f"seconds: {self.seconds} is negative or not below a million")


@dataclass(frozen=True)
class Pressure:
    """How memory is kept small.

    Attributes:
        by: none; max and high: the limit is memory.max or memory.high, and the guest
            reclaims as it faults; reclaim: what is too much after each pass is
            written to memory.reclaim.
        limit: What may stay in memory, as a share of each VM's.

    """

    by: Annotated[str, Choice(("none", "max", "high", "reclaim"))] = "none"
    limit: Share = defaults.RECLAIM_LIMIT

    def __post_init__(self) -> None:
        if not 0.0 < self.limit <= 1.0:
            raise ValueError(f"limit: {self.limit} is not above 0 and at most 1")


@dataclass(frozen=True)
class AgingPass:
    """One aging pass of one VM."""

    vm: int
    number: int
    #: Whether it counts: not a part of the warm-up.
    measured: bool
    #: Accesses of each vCPU so far.
    accesses: int
    true_pages: int
    estimated_pages: int
    correct_pages: int
    resident_pages: int
    generations: Generations
    aging: AgeStats
    #: What was counted on the host since the pass before, this one included.
    counters: dict[str, int]


@dataclass
class AgingResult:
    """What an experiment found."""

    experiment: Aging
    #: Pages of each VM.
    vm_pages: list[int]
    passes: list[AgingPass] = field(default_factory=list)
    #: What was counted on the host from the end of the warm-up.
    counters: dict[str, int] = field(default_factory=dict)
    #: Wall time of the guests after the warm-up.
    guest_seconds: float = 0.0


@dataclass(frozen=True)
class Aging:
    """The description; `run` runs it.

    Attributes:
        seed: Of everything random.
        mode: inline: one vCPU after another, the same to the bit each time; live: one
            thread a vCPU.
        warm_up: Aging passes of each VM at the start that the summary leaves out.
        policy: Python that decides for reclaim: FILE.py:NAME or MODULE:NAME, a
            subclass of youngbit.policy.Policy.
        host: The host.
        vms: The VMs.
        schedule: When memory is aged.
        pressure: How memory is kept small.

    """

    seed: int = defaults.SEED
    mode: Annotated[str, Choice(("inline", "live"))] = "inline"
    warm_up: int = defaults.AGING_WARM_UP
    policy: str | None = None
    host: Machine = Machine()
    vms: tuple[VirtualMachine, ...] = (VirtualMachine(),)
    schedule: Schedule = Schedule()
    pressure: Pressure = Pressure()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed: {self.seed} is negative or not below 2**63")
        if self.warm_up < 0:
            raise ValueError(f"warm_up: {self.warm_up} is negative")
        if not self.vms:
            raise ValueError("vms: expected at least one VM")
        self._check_kernel()
        if self.policy is not None and not all(self.policy.rpartition(":")[::2]):
            raise ValueError(f"policy: {self.policy!r} is neither FILE.py:NAME nor MODULE:NAME")

    def _check_kernel(self) -> None:
        """Refuse VMs of different kernels: the host runs one."""
        said = {vm.aging_asks for vm in self.vms if vm.aging_asks is not None}
        if len(said) > 1:
            raise ValueError(
                f"vms: a host runs one kernel, and aging_asks of these are {_listed(said)};"
                " expected the same"
            )
        own = {vm.protocol: defaults.PROTOCOL_ASKS[vm.protocol] for vm in self.vms}
        if not said and len(set(own.values())) > 1:
            raise ValueError(
                f"vms: a host runs one kernel, and aging asks {_listed(own.values())} in those of"
                f" protocols {_listed(own)}; say which by aging_asks of one"
            )

    def run(
        self, *, base: Path | None = None, passed: Callable[[AgingPass], None] = ignore
    ) -> AgingResult:
        """Run it.

        Args:
            base: Where the names of files start.
            passed: Called after each pass of each VM.

        Raises:
            ValueError: If the description contradicts itself.
            OSError: If the machine cannot be made, or memory runs out.
            PolicyError: What the policy raised or answered wrongly, with its place.

        """
        if self.policy is None:
            return _Run(self, base, None).run(passed)
        own = OwnPolicy(self.policy, base)
        with own.blamed():
            return _Run(self, base, own.policy).run(passed)


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(set(names)))


class _Guest:
    """A VM, its accesses and its multi-gen LRU."""

    def __init__(self, vm: Vm, lru: LruGen, streams: list[Recorded]) -> None:
        self.vm = vm
        self.lru = lru
        self.streams = streams
        self.length = max(map(len, streams))
        #: The youngest generation after the last pass of the schedule.
        self.since = 0


class _Run:
    def __init__(self, experiment: Aging, base: Path | None, policy: Policy | None) -> None:
        self.experiment = experiment
        streams = []
        sizes = []
        for number, each in enumerate(experiment.vms):
            pages = None if each.memory is None else each.memory // PAGE_SIZE
            if isinstance(each.workload, TraceWorkload):
                own = [recorded(each.workload, pages, 0, base)]
                pages = pages or each.workload.read(base).nr_pages
            else:
                pages = pages or Pages(defaults.AGING_PAGES)
                own = [
                    recorded(each.workload, pages, vcpu_seed(experiment.seed, number, vcpu), base)
                    for vcpu in range(each.vcpus)
                ]
            backing = defaults.BACKINGS[each.backing] // PAGE_SIZE
            sizes.append(-(-pages // backing) * backing)
            streams.append(own)
        self.host = self._host(sizes)
        self.guests = [
            self._guest(each, size, own)
            for each, size, own in zip(experiment.vms, sizes, streams, strict=True)
        ]
        self.result = AgingResult(experiment, sizes)
        if policy is not None:
            self.host.policy = policy

    def _host(self, sizes: list[int]) -> Host:
        described = self.experiment.host
        total = sum(sizes) + defaults.HOST_SLACK_PAGES
        for each, size in zip(self.experiment.vms, sizes, strict=True):
            if each.mmu != "tdp":
                # The guest's own page tables are pages of its process.
                total += (size // 512 + each.vcpus + 64) * each.aliases
            total += 2 * defaults.BACKINGS[each.backing] // PAGE_SIZE
        swap: Pages | int = described.swap or 0
        if described.swap is None and self.experiment.pressure.by != "none":
            swap = Pages(total)
        host = Host(
            Pages(total) if described.memory is None else described.memory,
            swap=swap if swap else 0,
            clock="virtual",
            capabilities=described.capabilities,
        )
        for vm in self.experiment.vms:
            if vm.aging_asks is not None:
                host.aging_asks = vm.aging_asks
        if described.swappiness is not None:
            host.procfs["sys/vm/swappiness"].write(str(described.swappiness))
        return host

    def _guest(self, described: VirtualMachine, pages: int, streams: list[Recorded]) -> _Guest:
        vm = self.host.create_vm(
            Pages(pages),
            **vm_options(described),
        )
        return _Guest(vm, self.host.lru_gen(vm.memcg), streams)

    def run(self, passed: Callable[[AgingPass], None]) -> AgingResult:
        experiment = self.experiment
        every = experiment.schedule.every
        for guest in self.guests:
            guest.vm.run(access.sequential(write=True))
            guest.since = guest.lru.age().max_seq
        self.limit()
        before = self.host.counters
        start = before
        for number in range(-(-max(guest.length for guest in self.guests) // every)):
            if number == experiment.warm_up:
                start = self.host.counters
            touched = [self.touch(guest, number) for guest in self.guests]
            self.host.advance(experiment.schedule.seconds)
            for vm, (guest, true) in enumerate(zip(self.guests, touched, strict=True)):
                if true is None:
                    continue
                aging = guest.lru.age(force_scan=experiment.schedule.force_scan)
                generations = guest.vm.page_generations()
                if self.experiment.pressure.by == "reclaim":
                    self.reclaim(guest)
                    resident = guest.vm.page_generations() >= 0
                else:
                    resident = generations >= 0
                now = self.host.counters
                # A pass promotes to the generation that was the youngest when it
                # began; faults since the pass before went there too. Reclaim may
                # have made more generations in between.
                estimated = generations >= guest.since
                guest.since = aging.max_seq
                each = AgingPass(
                    vm=vm,
                    number=number,
                    measured=number >= experiment.warm_up,
                    accesses=min((number + 1) * every, guest.length),
                    true_pages=int(np.count_nonzero(true)),
                    estimated_pages=int(np.count_nonzero(estimated)),
                    correct_pages=int(np.count_nonzero(true & estimated)),
                    resident_pages=int(np.count_nonzero(resident)),
                    generations=guest.lru.generations(),
                    aging=aging,
                    counters={key: now[key] - before[key] for key in now},
                )
                before = now
                self.result.passes.append(each)
                passed(each)
        end = self.host.counters
        self.result.counters = {key: end[key] - start[key] for key in end}
        return self.result

    def touch(self, guest: _Guest, number: int) -> npt.NDArray[np.bool_] | None:
        """Make the accesses of one interval; return which pages they touched."""
        every = self.experiment.schedule.every
        parts = [each[number * every : (number + 1) * every] for each in guest.streams]
        if not any(map(len, parts)):
            return None
        begun = time.perf_counter()
        guest.vm.run(parts, mode=cast("Mode", self.experiment.mode), overlap=True)
        if number >= self.experiment.warm_up:
            self.result.guest_seconds += time.perf_counter() - begun
        true = np.zeros(guest.vm.nr_pages, dtype=np.bool_)
        for part in parts:
            true[part.pages] = True
        return true

    def bytes(self, guest: _Guest) -> int:
        return int(guest.vm.nr_pages * self.experiment.pressure.limit) * PAGE_SIZE

    def limit(self) -> None:
        by = self.experiment.pressure.by
        if by in ("max", "high"):
            for guest in self.guests:
                guest.vm.memcg.files[f"memory.{by}"].write(str(self.bytes(guest)))

    def reclaim(self, guest: _Guest) -> None:
        files = guest.vm.memcg.files
        excess = int(files["memory.current"].read()) - self.bytes(guest)
        if excess > 0:
            try:
                files["memory.reclaim"].write(str(excess))
            except OSError as error:
                # Some of it could not be reclaimed; what is resident says so.
                if error.errno != errno.EAGAIN:
                    raise
