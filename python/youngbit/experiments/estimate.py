"""Ways of asking which pages were accessed, each on the same accesses, beside the truth.

A guest runs the same accesses once for each estimator, on a host of its own. At
the end of each interval the estimator says which pages it takes for touched in
the interval. The truth is in the stream of accesses, so every figure is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import access, defaults, units
from ..damon import Damon
from ..machine import Host, LruGen, Vm
from ..sizes import Pages
from ..units import Accesses, Mmu
from ._parts import check_names, head, ignore
from .heat_map import interval
from .reclaim import Workload

__all__ = ["ESTIMATORS", "Estimate", "EstimateResult", "EstimatorResult", "Interval"]

SCHEMA = "youngbit/estimate"
SCHEMA_VERSION = 1

Touched = npt.NDArray[np.bool_]


class _Estimator(Protocol):
    """One way of asking; made for a guest that has not run yet."""

    def during(self, run: Callable[[int, int], None], start: int, end: int) -> None:
        """Let the guest make accesses ``start`` to ``end``, in one piece or in several."""
        ...

    def estimate(self) -> Touched:
        """Say which pages were touched since the last time."""
        ...


class _Lru:
    """The multi-gen LRU: what an aging pass puts into the youngest generation it knew."""

    def __init__(self, host: Host, vm: Vm, _: Estimate) -> None:
        self.vm = vm
        self.lru: LruGen = host.lru_gen(vm.memcg)

    def during(self, run: Callable[[int, int], None], start: int, end: int) -> None:
        run(start, end)

    def estimate(self) -> Touched:
        # A walk promotes to the generation that was the youngest when it began;
        # faults since then went there too.
        seq = self.lru.age().seq
        found: Touched = self.vm.page_generations() >= seq
        return found


class _PageIdle:
    """Idle page tracking: mark every page, and ask at the end of the interval."""

    def __init__(self, _: Host, vm: Vm, __: Estimate) -> None:
        self.vm = vm

    def during(self, run: Callable[[int, int], None], start: int, end: int) -> None:
        run(start, end)

    def estimate(self) -> Touched:
        # What is not there cannot be idle, and was not touched.
        found: Touched = ~self.vm.test_idle() & (self.vm.page_generations() >= 0)
        self.vm.mark_idle()
        return found


class _Bits:
    """Accessed bits of every page, read and cleared; translations stay in the TLB."""

    flush = False

    def __init__(self, _: Host, vm: Vm, __: Estimate) -> None:
        self.vm = vm

    def during(self, run: Callable[[int, int], None], start: int, end: int) -> None:
        run(start, end)

    def estimate(self) -> Touched:
        return self.vm.scan_young(flush=self.flush)


class _BitsFlushed(_Bits):
    """The same, with the TLB flushed for each page that was young."""

    flush = True


class _Regions:
    """DAMON: regions, a page of each looked at in each sampling interval."""

    def __init__(self, _: Host, vm: Vm, parameters: Estimate) -> None:
        self.samples = parameters.damon_samples
        self.damon = Damon(
            vm, samples=self.samples, regions=parameters.damon_regions, seed=parameters.seed
        )

    def during(self, run: Callable[[int, int], None], start: int, end: int) -> None:
        edges = np.linspace(start, end, self.samples + 1).astype(int).tolist()
        for low, high in pairwise(edges):
            self.damon.prepare()
            run(low, high)
            self.damon.check()

    def estimate(self) -> Touched:
        found: Touched = self.damon.aggregate().pages() > 0
        return found


@dataclass(frozen=True)
class _Kind:
    """What an estimator is, and what it needs of the host."""

    make: Callable[[Host, Vm, Estimate], _Estimator]
    what: str
    capabilities: int = defaults.CAPABILITIES
    #: What aging asks secondary MMUs, otherwise as the protocol's kernel.
    asks: units.AgingAsks | None = None


#: The estimators by name.
ESTIMATORS: Mapping[str, _Kind] = {
    "mglru": _Kind(_Lru, "MGLRU, secondary MMUs walked (v7)"),
    # A kernel before the series asks whatever the capabilities are.
    "mglru-primary": _Kind(_Lru, "MGLRU without the series", defaults.RECLAIM_OFF, "none"),
    "page-idle": _Kind(_PageIdle, "page_idle"),
    "damon": _Kind(_Regions, "DAMON-like regions"),
    "bits": _Kind(_Bits, "accessed bits, TLB not flushed"),
    "bits-flush": _Kind(_BitsFlushed, "accessed bits, TLB flushed"),
}

#: What an estimator's cost is counted in.
COSTS = (
    "notifier_calls",
    "spte_atomics",
    "mmu_lock",
    "tlb_flushes",
    "guest_tlb_misses",
    "guest_faults",
)


def _cost(counters: Mapping[str, int]) -> dict[str, int]:
    def total(*names: str) -> int:
        return sum(counters[name] for name in names)

    return {
        "notifier_calls": total(
            "notifier_clear_young_fast", "notifier_clear_young_slow", "notifier_clear_flush_young",
            "notifier_test_young_fast", "notifier_test_young_slow",
        ),
        "spte_atomics": total("spte_fetch_and", "spte_cas"),
        "mmu_lock": total("mmu_lock_read", "mmu_lock_write"),
        "tlb_flushes": total("tlb_flushes"),
    }  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """What an estimator said of one interval."""

    #: Accesses made so far.
    accesses: int
    #: Pages touched in the interval.
    true_pages: int
    #: Pages that the estimator took for touched.
    estimated_pages: int
    #: Pages that are both.
    correct_pages: int
    #: Mean over the pages touched so far of the difference, in intervals, between
    #: when a page was last touched and when the estimator last took it for touched.
    age_error: float


@dataclass
class EstimatorResult:
    """What an estimator said, and what it cost."""

    name: str
    what: str
    intervals: list[Interval] = field(default_factory=list)
    #: Counts of `COSTS`, over all intervals; those of the guest are differences
    #: to a guest that nobody looks at.
    cost: dict[str, int] = field(default_factory=dict)

    def _total(self, name: str) -> int:
        return sum(getattr(each, name) for each in self.intervals)

    @property
    def precision(self) -> float:
        """Which share of all pages estimated were touched; 1 if there was none."""
        estimated = self._total("estimated_pages")
        return self._total("correct_pages") / estimated if estimated else 1.0

    @property
    def recall(self) -> float:
        """Which share of all pages touched were estimated; 1 if there was none."""
        true = self._total("true_pages")
        return self._total("correct_pages") / true if true else 1.0

    @property
    def working_set_error(self) -> float:
        """Mean of the difference of estimated to true size, as a share of the true size."""
        errors = [
            abs(each.estimated_pages - each.true_pages) / each.true_pages
            for each in self.intervals
            if each.true_pages
        ]
        return float(np.mean(errors)) if errors else 0.0

    @property
    def age_error(self) -> float:
        """Mean error of a page's age, in intervals."""
        return float(np.mean([each.age_error for each in self.intervals])) if self.intervals else 0

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "name": self.name,
            "what": self.what,
            "precision": self.precision,
            "recall": self.recall,
            "working_set_error": self.working_set_error,
            "age_error": self.age_error,
            "cost": self.cost,
            "intervals": {
                key: [getattr(each, key) for each in self.intervals]
                for key in ("accesses", "true_pages", "estimated_pages", "correct_pages",
                            "age_error")
            },
        }  # fmt: skip


@dataclass
class EstimateResult:
    """The estimators side by side."""

    parameters: dict[str, Any]
    workload: dict[str, Any]
    estimators: list[EstimatorResult] = field(default_factory=list)

    def __getitem__(self, name: str) -> EstimatorResult:
        for each in self.estimators:
            if each.name == name:
                return each
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict; ``docs/estimators.md`` specifies it."""
        return {
            **head(SCHEMA, SCHEMA_VERSION, self.parameters),
            "workload": self.workload,
            "estimators": [each.to_dict() for each in self.estimators],
        }


@dataclass(frozen=True)
class Estimate:
    """The parameters of the comparison; `run` runs it.

    Attributes:
        every: Accesses in an interval; otherwise 4000, or as many as make 16 intervals
            of a shorter workload.
        warm_up: Intervals at the start that no figure counts.
        tlb_entries: Of the vCPU's modelled TLB.
        mmu: Which MMU maps guest memory.
        protocol: How the VM is aged.
        estimators: Names of those to compare, of `ESTIMATORS`.
        damon_samples: Sampling intervals in an interval.
        damon_regions: Fewest and most regions.
        seed: Of DAMON's choice of pages.

    """

    every: Accesses | None = None
    warm_up: int = 0
    tlb_entries: int = defaults.REPLAY_TLB_ENTRIES
    mmu: Mmu = defaults.MMU
    protocol: units.Protocol = defaults.PROTOCOL
    estimators: tuple[str, ...] = tuple(ESTIMATORS)
    damon_samples: int = defaults.DAMON_SAMPLES
    damon_regions: tuple[int, int] = defaults.DAMON_REGIONS
    seed: int = defaults.SEED

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("warm_up", 0), ("damon_samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: {value} is below {least}")
        for each in self.estimators:
            if each not in ESTIMATORS:
                raise ValueError(f"estimators: {each!r} is none of {', '.join(ESTIMATORS)}")
        check_names("estimators", self.estimators)

    def run(
        self, workload: Workload, *, finished: Callable[[str], None] = ignore
    ) -> EstimateResult:
        """Run it.

        Args:
            workload: What the guest does.
            finished: Called after each estimator, with its name.

        Raises:
            ValueError: If the warm-up is longer than the workload.
            OSError: If the machine cannot be made.

        """
        every = self.every or interval(len(workload))
        intervals = -(-len(workload) // every)
        if self.warm_up >= intervals:
            raise ValueError(
                f"warm_up: {self.warm_up} of {intervals} intervals leave none to be counted"
            )
        result = EstimateResult(asdict(self) | {"every": every}, workload.to_dict())
        unwatched = self._unwatched(workload, every)
        for name in self.estimators:
            result.estimators.append(self._one(name, workload, every, unwatched))
            finished(name)
        return result

    def _machine(
        self, workload: Workload, capabilities: int, asks: units.AgingAsks | None = None
    ) -> tuple[Host, Vm]:
        # A guest's own page tables are pages of its process.
        tables = 0 if self.mmu == "tdp" else workload.nr_pages // 512 + 64
        host = Host(
            Pages(workload.nr_pages + tables + defaults.HOST_SLACK_PAGES),
            clock="virtual",
            capabilities=capabilities,
        )
        if asks is not None:
            host.aging_asks = asks
        # Shared memory, so that a read of what nobody wrote finds a page.
        vm = host.create_vm(
            Pages(workload.nr_pages),
            kind="shmem",
            mmu=self.mmu,
            protocol=self.protocol,
            tlb_entries=self.tlb_entries,
        )
        return host, vm

    def _unwatched(self, workload: Workload, every: int) -> Mapping[str, int]:
        """Return what a guest counts that nobody looks at, after the warm-up."""
        _, vm = self._machine(workload, defaults.CAPABILITIES)
        stream = access.arrays(workload.pages, workload.writes)
        start = self.warm_up * every
        vm.run(stream[:start])
        return vm.run(stream[start:]).counters

    def _one(
        self, name: str, workload: Workload, every: int, unwatched: Mapping[str, int]
    ) -> EstimatorResult:
        kind = ESTIMATORS[name]
        host, vm = self._machine(workload, kind.capabilities, kind.asks)
        stream = access.arrays(workload.pages, workload.writes)
        estimator = kind.make(host, vm, self)
        result = EstimatorResult(name, kind.what.replace("(v7)", f"({self.protocol})"))
        guest = dict.fromkeys(("tlb_misses", "kvm_page_faults", "tlb_flushes"), 0)
        start_of = host.counters
        during: dict[str, int] = dict.fromkeys(start_of, 0)

        def run(start: int, end: int) -> None:
            counted = vm.run(stream[start:end]).counters
            for key, value in counted.items():
                during[key] += value

        never = -1
        last_true = np.full(vm.nr_pages, never)
        last_estimated = np.full(vm.nr_pages, never)
        before = start_of
        for number, start in enumerate(range(0, len(stream), every)):
            if number == self.warm_up:
                before = host.counters
                during = dict.fromkeys(before, 0)
            end = min(start + every, len(stream))
            estimator.during(run, start, end)
            estimated = estimator.estimate()
            true = np.zeros(vm.nr_pages, dtype=np.bool_)
            true[workload.pages[start:end]] = True
            last_true[true] = number
            last_estimated[estimated] = number
            if number < self.warm_up:
                continue
            known = last_true != never
            result.intervals.append(
                Interval(
                    accesses=end,
                    true_pages=int(np.count_nonzero(true)),
                    estimated_pages=int(np.count_nonzero(estimated)),
                    correct_pages=int(np.count_nonzero(true & estimated)),
                    age_error=float(np.mean(np.abs(last_true - last_estimated)[known])),
                )
            )
        after = host.counters
        own = {key: after[key] - before[key] - during[key] for key in after}
        for key in guest:
            guest[key] = during[key] - unwatched[key]
        result.cost = {
            **_cost(own),
            "guest_tlb_misses": guest["tlb_misses"],
            "guest_faults": guest["kvm_page_faults"],
        }
        return result
