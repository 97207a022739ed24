"""The selftest of the series, ``access_tracking_perf_test``, on the model.

Guest memory is populated, written, read, idled and touched again by vCPUs
alone. Without ``lru_gen`` pages are idled through ``page_idle``. With it they
are idled by making new generations, and five checks verify that aging follows
the guest. With ``benchmark`` too, memory is populated while a thread ages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from .. import access, defaults
from .._resources import check_memory
from ..generations import Generations
from ..machine import AgingRun, Counters, Host, LruGen, Mode, Vm
from ..sizes import PAGE_SIZE, Pages, parse_size
from ..units import AgingAsks, Backing, Bytes, Format, Mask, Mmu, Protocol
from ._parts import check_guest_tables, head, ignore, vm_options

__all__ = [
    "AccessTracking",
    "AccessTrackingResult",
    "CheckFailed",
    "Step",
    "majority_generation",
    "not_asked",
]

SCHEMA = "youngbit/access-tracking"
SCHEMA_VERSION = 1

POPULATE = "Populating memory"
WRITE = "Writing to populated memory"
READ = "Reading from populated memory"
MARK_IDLE = "Mark memory idle"
AGE = "lru_gen: Aging"
WRITE_IDLE = "Writing to idle memory"
READ_IDLE = "Reading from idle memory"
POPULATE_ASYNC = "Populating memory (async)"

#: More pages than this share still idle after the guest touched all: a warning.
STILL_IDLE_SHARE = 0.1


class CheckFailed(AssertionError):
    """A check of ``lru_gen`` failed: aging did not follow the guest."""

    #: Which check, counted from 1.
    check: int
    #: What is wrong, in the selftest's words.
    reason: str
    #: What was found and what was expected.
    detail: str

    def __init__(self, check: int, reason: str, detail: str) -> None:
        self.check = check
        self.reason = reason
        self.detail = detail
        super().__init__(f"check {check} of 5: {reason}: {detail}")


@dataclass(frozen=True)
class Step:
    """One timed step."""

    #: Its name, the selftest's.
    name: str
    #: Wall time.
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return asdict(self)


@dataclass
class AccessTrackingResult:
    """What an experiment found."""

    parameters: dict[str, Any]
    test_pages: int
    guest_physical: tuple[int, int]
    steps: list[Step] = field(default_factory=list)
    #: Generations found after each aging pass.
    generations: list[Generations] = field(default_factory=list)
    #: Majority generations that the checks found.
    majority: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failure: CheckFailed | None = None
    #: Why nothing was run, in the selftest's words.
    skipped: str | None = None
    vcpu_wall_seconds: float | None = None
    aging_passes: list[float] = field(default_factory=list)
    #: With ``benchmark``: the passes, and what vCPUs and passes counted.
    aging: AgingRun | None = None
    run_counters: Counters = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """``"pass"``, ``"fail"``, or ``"skip"`` where nothing was run."""
        if self.skipped is not None:
            return "skip"
        return "pass" if self.failure is None else "fail"

    @property
    def reason(self) -> str | None:
        """What failed, or why nothing was run, in the selftest's words."""
        return self.skipped if self.failure is None else self.failure.reason

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict; ``docs/json.md`` specifies it."""
        found: dict[str, Any] = {
            **head(SCHEMA, SCHEMA_VERSION, self.parameters),
            "test_pages": self.test_pages,
            "guest_physical": list(self.guest_physical),
            "verdict": self.verdict,
            "reason": self.reason,
            "failed_check": None if self.failure is None else self.failure.check,
            "detail": None if self.failure is None else self.failure.detail,
            "warnings": self.warnings,
            "steps": [step.to_dict() for step in self.steps],
            "majority_generations": self.majority,
            "generations": [generations.to_dict() for generations in self.generations],
            "counters": self.counters,
        }
        if self.vcpu_wall_seconds is not None:
            found["vcpu_wall_seconds"] = self.vcpu_wall_seconds
            found["aging"] = {
                "passes": len(self.aging_passes),
                "total_seconds": sum(self.aging_passes),
                "average_seconds": (
                    sum(self.aging_passes) / len(self.aging_passes) if self.aging_passes else None
                ),
                "asked": 0 if self.aging is None else sum(self.aging.asked),
                "empty_passes": 0 if self.aging is None else self.aging.asked.count(0),
                "cpu_seconds": None if self.aging is None else self.aging.cpu_seconds,
            }
        return found


def majority_generation(generations: Generations, test_pages: int) -> int | None:
    """Return the generation that most of the test's pages are in.

    It is the oldest one, the youngest excepted, that holds more than half as
    many pages as the test has; ``None`` if there is none.
    """
    for generation in generations[:-1]:
        if generation.nr_pages * 2 > test_pages:
            return generation.seq
    return None


def not_asked(aging_asks: str, capabilities: int) -> str | None:
    """Return the warning that aging passes do not ask VMs, if they do not."""
    if aging_asks == "none":
        why = "aging asks no secondary MMU"
    elif aging_asks == "fast_only" and not capabilities & defaults.SECONDARY_MMU_WALK:
        why = "capability 0x8 is off"
    else:
        return None
    return f"WARNING: {why}: passes do not ask the VM, and the guest's accesses are not seen."


_VCPU_BYTES = parse_size(defaults.VCPU_BYTES)


@dataclass(frozen=True)
class AccessTracking:
    """The parameters of the experiment; `run` runs it.

    Attributes:
        lru_gen: Idle memory by making generations, and verify; needs capabilities
            0x1 and 0x2, and skips without.
        benchmark: Populate while aging in a loop; needs ``lru_gen``.
        vcpus: How many vCPUs.
        vcpu_bytes: Memory of each vCPU.
        overlap: Let each vCPU touch the memory of all.
        backing: Size of the host's pages behind guest memory.
        mmu: Which MMU.
        protocol: How the VM is aged.
        aging_asks: What MGLRU's aging asks, otherwise as the protocol's kernel.
        ad: Whether page tables have accessed and dirty bits.
        format: Of page-table entries, otherwise what the MMU has.
        l1_ad: Whether a nested guest's page tables have accessed and dirty bits;
            without is for mmu nested only.
        aliases: At how many addresses the guest maps each page; several are for mmu
            shadow and nested only, for tdp maps guest frames.
        capabilities: Mask of ``lru_gen/enabled``.
        tlb_entries: Of each vCPU's modelled TLB.
        seed: Of everything random.
        live: One thread a vCPU; otherwise one vCPU after another.

    """

    lru_gen: bool = False
    benchmark: bool = False
    vcpus: int = defaults.VCPUS
    vcpu_bytes: Bytes = _VCPU_BYTES
    overlap: bool = False
    backing: Backing = defaults.BACKING
    mmu: Mmu = defaults.MMU
    protocol: Protocol = defaults.PROTOCOL
    aging_asks: AgingAsks | None = None
    ad: bool = True
    format: Format | None = None
    l1_ad: bool = True
    aliases: int = 1
    capabilities: Mask = defaults.CAPABILITIES
    tlb_entries: int = defaults.ACCESS_TRACKING_TLB_ENTRIES
    seed: int = defaults.SEED
    live: bool = defaults.LIVE

    def __post_init__(self) -> None:
        if self.benchmark and not self.lru_gen:
            raise ValueError("-p specified without -l")
        if self.benchmark and not self.live:
            raise ValueError("-p is always live")
        if self.backing not in defaults.BACKINGS:
            raise ValueError(f"backing: {self.backing!r} is none of {', '.join(defaults.BACKINGS)}")
        page = defaults.BACKINGS[self.backing]
        if self.vcpu_bytes <= 0 or self.vcpu_bytes % page:
            raise ValueError(
                f"vCPU memory of {self.vcpu_bytes} bytes is not a multiple of the backing,"
                f" {self.backing}"
            )
        check_guest_tables(self.mmu, l1_ad=self.l1_ad, aliases=self.aliases)

    @property
    def test_pages(self) -> int:
        """How many pages the test has, of the larger of guest and host page size."""
        return self.vcpus * self.vcpu_bytes // defaults.BACKINGS[self.backing]

    @property
    def skipped(self) -> str | None:
        """What the multi-gen LRU lacks for ``lru_gen``, in the selftest's words, if it does.

        The selftest wants capability 0x8 too. Without it this one runs, and shows
        what the capability is for: ``docs/fidelity.md``.
        """
        if not self.lru_gen:
            return None
        if not self.capabilities & defaults.CORE:
            return "lru_gen is not enabled"
        if not self.capabilities & defaults.MM_WALK:
            return "lru_gen does not support MM_WALK"
        return None

    def run(
        self,
        *,
        populated: float = 0.0,
        apart: bool = False,
        started: Callable[[AccessTrackingResult], None] = ignore,
        stepped: Callable[[Step], None] = ignore,
        warned: Callable[[str], None] = ignore,
    ) -> AccessTrackingResult:
        """Run it.

        Args:
            populated: With ``benchmark``, the share of each vCPU's memory that is
                populated beforehand; the selftest has none.
            apart: With ``benchmark``, keep the thread that ages on a processor of
                its own; the selftest leaves that to the scheduler.
            started: Called when the VM is there.
            stepped: Called after each step.
            warned: Called for each warning.

        Raises:
            ValueError: For a parameter that is none of the choices.
            OSError: If the machine cannot be made, or memory runs out.

        """
        if not 0 <= populated < 1:
            raise ValueError(f"populated: expected a share below 1, not {populated}")
        run = _Run(self, started, stepped, warned)
        try:
            if self.skipped is not None:
                pass
            elif self.benchmark:
                run.benchmark(populated, apart=apart)
            elif self.lru_gen:
                run.verify()
            else:
                run.page_idle()
        except CheckFailed as failure:
            run.result.failure = failure
        run.result.counters = run.host.counters
        return run.result


class _Run:
    def __init__(
        self,
        experiment: AccessTracking,
        started: Callable[[AccessTrackingResult], None],
        stepped: Callable[[Step], None],
        warned: Callable[[str], None],
    ) -> None:
        self.experiment = experiment
        self.stepped = stepped
        self.warned = warned
        memory = experiment.vcpus * experiment.vcpu_bytes
        check_memory(memory, experiment.mmu, experiment.backing)
        page = defaults.BACKINGS[experiment.backing]
        # Huge pages need a host that has them whole.
        total = -(-memory // page) * page + max(defaults.HOST_SLACK_PAGES * PAGE_SIZE, 2 * page)
        if experiment.mmu != "tdp":
            # The guest's own page tables: a page for every 512, and the levels above.
            tables = memory // PAGE_SIZE // 512 + experiment.vcpus + 64
            total += tables * experiment.aliases * PAGE_SIZE
        self.host = Host(total, capabilities=experiment.capabilities)
        memcg = self.host.create_memcg("/access_tracking_perf_test")
        self.vm: Vm = self.host.create_vm(
            Pages(memory // PAGE_SIZE),
            **vm_options(experiment),
            memcg=memcg,
        )
        self.lru: LruGen = self.host.lru_gen(memcg)
        parameters = asdict(experiment) | {
            key: self.vm.to_dict()[key] for key in ("aging_asks", "format", "direct")
        }
        self.result = AccessTrackingResult(
            parameters, experiment.test_pages, self.vm.guest_physical, skipped=experiment.skipped
        )
        started(self.result)

    def step(self, name: str, seconds: float) -> None:
        step = Step(name, seconds)
        self.result.steps.append(step)
        self.stepped(step)

    def access(self, name: str, *, write: bool) -> None:
        stream = access.sequential(write=write, seed=self.experiment.seed)
        mode: Mode = "live" if self.experiment.live else "inline"
        stats = self.vm.run(stream, mode=mode, overlap=self.experiment.overlap)
        self.step(name, stats.seconds)

    def age(self) -> Generations:
        stats = self.lru.age(can_swap=True, force_scan=True)
        generations = self.lru.generations()
        self.result.generations.append(generations)
        self.step(AGE, stats.seconds)
        return generations

    def page_idle(self) -> None:
        self.access(POPULATE, write=True)
        self.access(WRITE, write=True)
        self.access(READ, write=False)
        self.mark_idle()
        self.access(WRITE_IDLE, write=True)
        self.mark_idle()
        self.access(READ_IDLE, write=False)

    def mark_idle(self) -> None:
        start = time.perf_counter()
        found = self.vm.mark_idle()
        self.step(MARK_IDLE, time.perf_counter() - start)
        pages = self.vm.nr_pages
        if found.still_idle >= pages * STILL_IDLE_SHARE:
            warning = (
                f"WARNING: Too many pages still idle ({found.still_idle} out of {pages}),"
                " this will affect performance results."
            )
            self.warn(warning)

    def warn(self, warning: str) -> None:
        self.result.warnings.append(warning)
        self.warned(warning)

    def majority(self, check: int, generations: Generations) -> int:
        found = majority_generation(generations, self.experiment.test_pages)
        if found is None:
            raise CheckFailed(
                check,
                "no generation holds most of the test's pages",
                f"none but the youngest holds more than half of {self.experiment.test_pages}"
                f" pages, found {generations!r}",
            )
        self.result.majority.append(found)
        return found

    def verify(self) -> None:
        test_pages = self.experiment.test_pages
        self.access(POPULATE, write=True)
        self.access(WRITE, write=True)
        self.access(READ, write=False)

        # 1: the first pass tracks at least all pages of the test.
        generations = self.age()
        if generations.nr_pages < test_pages:
            raise CheckFailed(
                1,
                "all test pages were not tracked by the first scan",
                f"found {generations.nr_pages} pages, expected at least {test_pages},"
                f" in {generations!r}",
            )
        before = self.majority(1, generations)

        # 2: nobody touched them, so they stay where they are.
        before = self.unchanged(2, before)
        # 3 and 4: written, they get younger, and then stay.
        self.access(WRITE_IDLE, write=True)
        before = self.younger(3, before)
        before = self.unchanged(4, before)
        # 5: read, they get younger.
        self.access(READ_IDLE, write=False)
        self.younger(5, before)

    def unchanged(self, check: int, before: int) -> int:
        generations = self.age()
        now = self.majority(check, generations)
        if now != before:
            raise CheckFailed(
                check,
                f"unexpected gen change: {now} vs. {before}",
                f"nothing touched the pages; most were in generation {before},"
                f" and are in {now}, of {generations!r}",
            )
        return now

    def younger(self, check: int, before: int) -> int:
        generations = self.age()
        now = self.majority(check, generations)
        if now <= before:
            raise CheckFailed(
                check,
                "pages did not get younger",
                f"the guest touched all pages; most were in generation {before}, and are in"
                f" {now}, of {generations!r}",
            )
        return now

    def benchmark(self, populated: float, *, apart: bool) -> None:
        # As the guest is shared out without regions.
        vcpus, pages = self.experiment.vcpus, self.vm.nr_pages
        shares = [(0, pages)] * vcpus
        if not self.experiment.overlap:
            ends = [pages * n // vcpus for n in range(vcpus + 1)]
            shares = [(start, end - start) for start, end in pairwise(ends)]
        seed = self.experiment.seed
        unasked = not_asked(self.host.aging_asks, self.host.capabilities)
        if unasked is not None:
            self.warn(unasked)

        def streams(regions: list[tuple[int, int]]) -> list[access.Stream]:
            return [
                access.sequential(write=True, seed=seed, region=(Pages(start), Pages(length)))
                for start, length in regions
            ]

        before = [int(size * populated) for _, size in shares]
        if any(before):
            filled = [(start, part) for (start, _), part in zip(shares, before, strict=True)]
            self.vm.run(streams(filled), mode="inline")
        rest = [
            (start + part, size - part) for (start, size), part in zip(shares, before, strict=True)
        ]
        stats, aging = self.vm.run_while_aging(streams(rest), self.lru, apart=apart)
        self.result.generations.append(self.lru.generations())
        self.result.vcpu_wall_seconds = max(stats.vcpu_seconds)
        self.result.aging_passes = list(aging.seconds)
        self.result.aging = aging
        self.result.run_counters = stats.counters
        self.step(POPULATE_ASYNC, self.result.vcpu_wall_seconds)
