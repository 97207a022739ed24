"""Reclaim from a guest without and with secondary MMU walks, beside two oracles.

One VM has more memory than may stay. The same accesses run with capability 0x8
off, with it on, and past two oracles: one knows the future and evicts what is
used again last; the other knows the whole past and evicts what was used least
recently, which is what generations are an estimate of. What is counted is what
reclaim got wrong: hot pages evicted, which the guest used again within the
window, and refaults.

When a round falls is chance, and on a short recording a round that falls on a
change of phase decides the result. So everything runs several times, the first
round earlier or later by a share of a round, and what counts is the sum.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from .. import access, defaults
from ..machine import Host, LruGen, Vm
from ..oracle import OracleTick, least_recent, optimal
from ..sizes import PAGE_SIZE, Pages
from ..traces import Trace
from ..units import Accesses, Choice, Mask, Microseconds, Mmu, Share
from ._parts import head, ignore
from .heat_map import laid_out

__all__ = [
    "Phase",
    "Reclaim",
    "ReclaimResult",
    "ReclaimRun",
    "Tick",
    "Workload",
    "hot_cold",
    "trace",
    "zipf",
]

SCHEMA = "youngbit/reclaim"
SCHEMA_VERSION = 2

UNMAPPED = "kvm_unmap_hva_range"


@dataclass(frozen=True, eq=False)
class Workload:
    """What a guest does, access by access."""

    #: What it is called.
    name: str
    #: The pages, one after the other.
    pages: npt.NDArray[np.uint32] = field(repr=False)
    #: Whether each is written. The first access to a page always is: a guest
    #: clears a page before it uses it.
    writes: npt.NDArray[np.bool_] = field(repr=False)
    #: The footprint.
    nr_pages: int
    #: Where it comes from.
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pages)

    @classmethod
    def of(
        cls,
        name: str,
        pages: npt.NDArray[np.uint32],
        writes: npt.NDArray[np.bool_],
        about: dict[str, Any],
    ) -> Workload:
        """Make one of arrays; pages without an access are left out."""
        if not len(pages):
            raise ValueError(f"{name}: no accesses")
        used, first, frames = np.unique(pages, return_index=True, return_inverse=True)
        writes = np.array(writes, dtype=np.bool_)
        writes[first] = True
        dense: npt.NDArray[np.uint32] = frames.astype(np.uint32)
        return cls(name, dense, writes, len(used), about | {"accesses": len(pages)})

    def to_dict(self) -> dict[str, Any]:
        """Return what is plain about it."""
        return {"name": self.name, "pages": self.nr_pages, **self.about}

    def interval(self, share: float) -> int:
        """Return in how many accesses this share of the footprint is touched, on average."""
        order = np.argsort(self.pages, kind="stable")
        same = self.pages[order[1:]] == self.pages[order[:-1]]
        before = np.full(len(self), -1, dtype=np.int64)
        before[order[1:][same]] = order[:-1][same]
        at = np.arange(len(self))

        def touched(every: int) -> float:
            # A page counts where it was not touched earlier in the interval.
            return float(np.count_nonzero(before < at // every * every)) / -(-len(self) // every)

        low, high = 1, len(self)
        while high - low > max(low // 64, 1):
            middle = (low + high) // 2
            low, high = (middle, high) if touched(middle) < share * self.nr_pages else (low, middle)
        return high


def _made(name: str, stream: access.Zipf | access.HotCold, pages: int) -> Workload:
    made = access.record(stream, pages)
    return Workload.of(name, made.pages, made.writes, stream.to_dict())


def zipf(pages: int, accesses: int, seed: int) -> Workload:
    """Pages drawn by Zipf's law."""
    stream = access.zipf(
        defaults.ZIPF_EXPONENT, accesses=accesses, seed=seed, write=defaults.WRITE_SHARE
    )
    return _made("zipf", stream, pages)


def hot_cold(pages: int, accesses: int, seed: int) -> Workload:
    """A hot part that moves from phase to phase."""
    stream = access.hot_cold(
        accesses=accesses,
        hot_fraction=defaults.HOT_FRACTION,
        hot_probability=defaults.HOT_PROBABILITY,
        nr_phases=defaults.HOT_PHASES,
        seed=seed,
        write=defaults.WRITE_SHARE,
    )
    return _made("hot-cold", stream, pages)


def trace(recorded: Trace, layout: str = "touch") -> Workload:
    """Return a recorded program as a workload; `heat_map.laid_out` says what a layout is."""
    about = recorded.to_dict() | {"layout": layout}
    pages = laid_out(recorded, layout)
    return Workload.of(Path(about["source"]).name, pages, recorded.write, about)


@dataclass(frozen=True)
class Tick:
    """What happened between two agings, the second of them included."""

    #: Accesses made so far.
    accesses: int
    #: Pages in memory at the end.
    resident: int
    #: Pages evicted.
    evicted: int
    #: Of them those that the guest used again within the window.
    hot: int
    #: Of those evicted, the ones it had used within the window before: reclaim
    #: did not know.
    recent: int
    #: Pages that came back.
    refaults: int
    #: Pages read from swap.
    swap_ins: int
    #: Modelled time that the guest waited for pages and was throttled.
    stall_seconds: float


@dataclass
class ReclaimRun:
    """One of the runs."""

    #: Mask of ``lru_gen/enabled``; None for an oracle.
    capabilities: int | None
    ticks: list[Tick] = field(default_factory=list)
    #: Wall time of the guest, with what it reclaimed itself, and of commands.
    guest_seconds: float = 0.0
    command_seconds: float = 0.0
    #: Rounds that could not get down to the limit.
    missed_rounds: int = 0
    #: Generations made.
    agings: int = 0
    counters: dict[str, int] = field(default_factory=dict)

    def total(self, name: str) -> float:
        """Return the sum of a column of ticks."""
        total: float = sum(getattr(tick, name) for tick in self.ticks)
        return total

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        names = ("evicted", "hot", "recent", "refaults", "swap_ins", "stall_seconds")
        return {
            "capabilities": self.capabilities,
            **{name: self.total(name) for name in names},
            "guest_seconds": self.guest_seconds,
            "command_seconds": self.command_seconds,
            "missed_rounds": self.missed_rounds,
            "agings": self.agings,
            "ticks": {
                key: [getattr(tick, key) for tick in self.ticks]
                for key in ("accesses", "resident", *names)
            },
            "counters": self.counters,
        }


@dataclass
class Phase:
    """The runs whose first round is after the same number of accesses."""

    #: Accesses before the first round, or under a constant limit the first tick.
    first: int
    off: ReclaimRun
    on: ReclaimRun
    #: Knows the whole past.
    lru: ReclaimRun
    #: Knows the future.
    oracle: ReclaimRun

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {"first": self.first} | {run: getattr(self, run).to_dict() for run in RUNS}


RUNS = ("off", "on", "lru", "oracle")


@dataclass
class ReclaimResult:
    """The runs side by side."""

    parameters: dict[str, Any]
    workload: dict[str, Any]
    #: From the earliest first round to the latest, a whole round in.
    phases: list[Phase]

    @property
    def last(self) -> Phase:
        """The phase whose first round is a whole round in; it is the one that is drawn."""
        return self.phases[-1]

    def total(self, run: str, name: str) -> float:
        """Return the sum of a column of ticks over a run, ``"off"`` say, of all phases."""
        total: float = sum(getattr(phase, run).total(name) for phase in self.phases)
        return total

    def counter(self, run: str, name: str) -> int:
        """Return a counter's sum over a run of all phases."""
        return sum(getattr(phase, run).counters.get(name, 0) for phase in self.phases)

    def cut(self, name: str) -> float | None:
        """By which share the capability cuts a total; None where there was nothing."""
        return _share(self.total("off", name), self.total("on", name))

    def cuts(self, name: str) -> list[float | None]:
        """Return the same for each phase."""
        return [_share(phase.off.total(name), phase.on.total(name)) for phase in self.phases]

    def causes(self) -> list[str]:
        """Return what the counts say about each total that the capability does not cut."""
        return [
            f"{what} are not cut: {self._cause(name)}"
            for name, what in (("hot", "hot evictions"), ("refaults", "refaults"))
            if (cut := self.cut(name)) is not None and cut <= 0
        ]

    def _cause(self, name: str) -> str:
        off, lru = self.total("off", name), self.total("lru", name)
        if lru >= off:
            return (
                f"exact LRU, which knows every access, has {lru:,} where the run without has"
                f" {off:,}; when a page was last used does not tell whether it will be"
            )
        recent = {run: self.total(run, "recent") for run in ("off", "on", "lru")}
        agings = {run: sum(getattr(p, run).agings for p in self.phases) for run in ("off", "on")}
        told = (
            f"exact LRU has {lru:,}, and evicts {recent['lru']:,} pages used within the window"
            f" before; with 0x8 it is {recent['on']:,}, without {recent['off']:,}"
        )
        by_reclaim = self.parameters["pressure"] != "proactive"
        if recent["on"] > recent["lru"] and by_reclaim and agings["on"] < agings["off"]:
            return (
                f"{told}: reclaim aged {agings['on']:,} times with it and {agings['off']:,}"
                " without, for it scans fewer pages and runs short of old ones less often"
            )
        if recent["on"] > recent["lru"]:
            return f"{told}: uses that aging did not see (a TLB hid them) or saw too late"
        folded = self.counter("on", "folios_aged")
        return (
            f"{told}: those were kept, but {folded:,} times a page was folded into the next"
            " generation, which turns the order of a list round, and the older ones went"
            " in that order"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict; ``docs/json.md`` specifies it."""
        names = ("evicted", "hot", "recent", "refaults", "swap_ins", "stall_seconds")
        cuts = ("hot", "refaults", "swap_ins")
        return {
            **head(SCHEMA, SCHEMA_VERSION, self.parameters),
            "workload": self.workload,
            **{run: {name: self.total(run, name) for name in names} for run in RUNS},
            "cut": {name: self.cut(name) for name in cuts},
            "causes": self.causes(),
            "phases": [
                phase.to_dict() | {"cut": {name: self.cuts(name)[n] for name in cuts}}
                for n, phase in enumerate(self.phases)
            ],
        }


def _share(off: float, on: float) -> float | None:
    return (off - on) / off if off else None


class _Future:
    """Which access to a page comes next, after a given one."""

    def __init__(self, workload: Workload) -> None:
        self.size = len(workload) + 1
        order = np.argsort(workload.pages, kind="stable")
        # Sorted by page, then by time, in one number.
        self.keys = workload.pages[order].astype(np.int64) * self.size + order
        first = np.zeros(len(workload), dtype=np.int64)
        first[np.unique(workload.pages, return_index=True)[1]] = 1
        #: Pages used so far, by access.
        self.seen = np.cumsum(first)

    def used_within(self, pages: npt.NDArray[np.int64], now: int, window: int) -> int:
        """Return how many of the pages are used in ``[now, now + window)``."""
        base = pages * self.size
        start, end = max(now, 0), min(now + window, self.size - 1)
        first = np.searchsorted(self.keys, base + start)
        return int(np.count_nonzero(first < np.searchsorted(self.keys, base + end)))


@dataclass(frozen=True)
class Reclaim:
    """The parameters of the comparison; `run` runs it.

    Attributes:
        limit: What memory may stay, as a share of the footprint.
        pressure: ``"proactive"``: an agent ages by a ``+`` command each interval,
            and each round evicts down to the limit by ``-``. ``"reclaim"``: each
            round it writes what is too much to ``memory.reclaim``.  ``"max"`` and
            ``"high"``: the limit is ``memory.max`` or ``memory.high``, and the guest
            reclaims as it faults.
        aged: Whether an agent ages each interval whoever reclaims; with
            ``"proactive"`` it does anyway.
        every: Accesses in an interval; otherwise as many as touch a third of the
            footprint.
        round: Intervals in a round.
        window: A page is hot if it is used again within so many accesses after
            it was evicted; otherwise an interval. Under a constant limit that is
            known to a sixteenth of an interval.
        phases: How often everything runs, each time with the first round later
            by that share of a round; once where there are no rounds.
        capabilities_off: Mask of the first run.
        capabilities_on: Mask of the second.
        mmu: Which MMU maps guest memory.
        tlb_entries: Of the vCPU's modelled TLB.
        swap_in_us: What a guest waits for a page from swap, in microseconds.
        seed: Kept with the result; what is random was drawn with the workload.

    """

    limit: Share = defaults.RECLAIM_LIMIT
    pressure: Annotated[str, Choice(defaults.RECLAIM_PRESSURES)] = "proactive"
    aged: bool = False
    every: Accesses | None = None
    round: int = defaults.RECLAIM_ROUND
    window: Accesses | None = None
    phases: int = defaults.RECLAIM_PHASES
    capabilities_off: Mask = defaults.RECLAIM_OFF
    capabilities_on: Mask = defaults.RECLAIM_ON
    mmu: Mmu = defaults.MMU
    tlb_entries: int = defaults.RECLAIM_TLB_ENTRIES
    swap_in_us: Microseconds = defaults.RECLAIM_SWAP_IN_US
    seed: int = defaults.SEED

    def __post_init__(self) -> None:
        if self.pressure not in defaults.RECLAIM_PRESSURES:
            known = ", ".join(defaults.RECLAIM_PRESSURES)
            raise ValueError(f"pressure: {self.pressure!r} is none of {known}")
        if not 0.0 < self.limit < 1.0:
            raise ValueError(f"limit: {self.limit} is not between 0 and 1")
        for name in ("every", "window", "round", "phases"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is below 1")
        if not 0 <= self.swap_in_us < 1e9:
            raise ValueError(f"swap_in_us: {self.swap_in_us} is negative or beyond 1000 s")

    @property
    def _has_agent(self) -> bool:
        return self.pressure in ("proactive", "reclaim")

    def run(self, workload: Workload, *, ticked: Callable[[str], None] = ignore) -> ReclaimResult:
        """Run it.

        Args:
            workload: What the guest does.
            ticked: Called after each interval, with the name of the run.

        Raises:
            ValueError: If so little memory may stay that there is nothing to reclaim by.
            OSError: If the machine cannot be made, or memory runs out.

        """
        capacity = int(workload.nr_pages * self.limit)
        if capacity < defaults.RECLAIM_LEAST_PAGES:
            raise ValueError(
                f"{workload.name}: {capacity} of {workload.nr_pages} pages may stay, expected at"
                f" least {defaults.RECLAIM_LEAST_PAGES}"
            )
        every = self.every or self._interval(workload)
        window = self.window or every
        future = _Future(workload)
        period = every * self.round if self._has_agent else every
        phases = []
        # Without rounds there is nothing to shift.
        count = self.phases if self._has_agent else 1
        for n in range(1, count + 1):
            first = max(1, period * n // count)
            off, on = (
                _Run(self, workload, future, mask, capacity, every, window).run(first, name, ticked)
                for name, mask in (("off", self.capabilities_off), ("on", self.capabilities_on))
            )
            lru, oracle = (
                self._oracle(choose, workload, capacity, first, period, window, future)
                for choose in (least_recent, optimal)
            )
            phases.append(Phase(first, off, on, lru, oracle))
        parameters = asdict(self) | {"every": every, "window": window, "capacity": capacity}
        return ReclaimResult(parameters, workload.to_dict(), phases)

    def _interval(self, workload: Workload) -> int:
        longest = len(workload) // (self.round * defaults.RECLAIM_MIN_ROUNDS)
        return max(1, min(workload.interval(defaults.RECLAIM_TOUCHED), longest))

    def _oracle(
        self,
        choose: Callable[..., list[OracleTick]],
        workload: Workload,
        capacity: int,
        first: int,
        period: int,
        window: int,
        future: _Future,
    ) -> ReclaimRun:
        limit = workload.nr_pages if self._has_agent else None
        run = ReclaimRun(None)
        start = time.perf_counter()
        ticks = choose(
            access.arrays(workload.pages),
            capacity,
            first=first,
            every=period,
            window=window,
            within=limit,
        )
        run.command_seconds = time.perf_counter() - start
        seen = future.seen
        gone = 0
        for number, tick in enumerate(ticks):
            end = min(first + number * period, len(workload))
            gone += tick.evicted - tick.refaults
            run.ticks.append(
                Tick(
                    accesses=end,
                    resident=int(seen[end - 1]) - gone,
                    evicted=tick.evicted,
                    hot=tick.hot,
                    recent=tick.recent,
                    refaults=tick.refaults,
                    swap_ins=tick.refaults,
                    stall_seconds=tick.refaults * self.swap_in_us / 1e6,
                )
            )
        return run


class _Run:
    """One run of the workload on a host of its own."""

    def __init__(
        self,
        experiment: Reclaim,
        workload: Workload,
        future: _Future,
        mask: int,
        capacity: int,
        every: int,
        window: int,
    ) -> None:
        self.experiment = experiment
        self.future = future
        self.capacity = capacity
        self.every = every
        self.window = window
        pages = workload.nr_pages
        tables = 0
        if experiment.mmu != "tdp":
            # The guest's own page tables are pages of its process.
            tables = pages // 512 + 64
        self.host = Host(
            Pages(pages + tables + defaults.RECLAIM_SLACK_PAGES),
            swap=Pages(pages + tables + defaults.RECLAIM_SLACK_PAGES),
            clock="virtual",
            capabilities=mask,
        )
        self.vm: Vm = self.host.create_vm(
            Pages(pages), vcpus=1, mmu=experiment.mmu, tlb_entries=experiment.tlb_entries
        )
        self.memcg = self.vm.memcg
        self.lru: LruGen = self.host.lru_gen(self.memcg)
        self.stream = access.arrays(workload.pages, workload.writes)
        self.result = ReclaimRun(mask)
        #: Hot and recently used pages evicted in this interval.
        self.found = [0, 0]
        self.host.trace(UNMAPPED)
        if experiment.pressure in ("max", "high"):
            self.memcg.files[f"memory.{experiment.pressure}"].write(str(capacity * PAGE_SIZE))

    def run(self, first: int, name: str, ticked: Callable[[str], None]) -> ReclaimRun:
        experiment = self.experiment
        youngest = self.lru.generations().max_seq
        has_agent = experiment._has_agent
        # Agings are at multiples of an interval before and after the first round.
        start, end = 0, first % self.every or self.every
        while start < len(self.stream):
            end = min(end, len(self.stream))
            before = self.host.counters
            self.found = [0, 0]
            # An agent evicts at the end; a guest by itself at any time.
            step = end - start if has_agent else -(-self.every // defaults.RECLAIM_STEPS)
            for at in range(start, end, step):
                part = self.stream[at : min(at + step, end)]
                self.result.guest_seconds += self.vm.run(part).seconds
                if not has_agent:
                    self.classify(at, at + len(part))
            began = time.perf_counter()
            if experiment.aged or experiment.pressure == "proactive":
                self.age()
            if has_agent and end >= first and (end - first) % (self.every * experiment.round) == 0:
                if experiment.pressure == "proactive":
                    self.evict()
                else:
                    self.reclaim()
            self.result.command_seconds += time.perf_counter() - began
            if has_agent:
                self.classify(end, end)
            self.result.ticks.append(self.tick(end, before))
            ticked(name)
            start, end = end, end + self.every
        self.result.counters = self.host.counters
        self.result.agings = self.lru.generations().max_seq - youngest
        return self.result

    @property
    def excess(self) -> int:
        usage = int(self.memcg.files["memory.current"].read()) // PAGE_SIZE
        return usage - self.capacity

    def age(self) -> None:
        youngest = self.lru.generations().max_seq
        self.host.debugfs["lru_gen"].write(f"+ {self.memcg.id} 0 {youngest} 1 1")

    def evict(self) -> None:
        for attempt in range(defaults.RECLAIM_TRIES):
            excess = self.excess
            if excess <= 0:
                return
            if attempt:
                # What was left was young; it must grow old first.
                self.age()
            oldest = self.lru.generations().max_seq - 2
            self.host.debugfs["lru_gen"].write(f"- {self.memcg.id} 0 {oldest} 200 {excess}")
        self.result.missed_rounds += self.excess > 0

    def reclaim(self) -> None:
        excess = self.excess
        if excess <= 0:
            return
        try:
            self.memcg.files["memory.reclaim"].write(f"{excess * PAGE_SIZE} swappiness=200")
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            self.result.missed_rounds += 1

    def tick(self, end: int, before: dict[str, int]) -> Tick:
        now = self.host.counters

        def since(name: str) -> int:
            return now[name] - before[name]

        swap_ins = since("pswpin")
        stall = swap_ins * self.experiment.swap_in_us / 1e6
        hot, recent = self.found
        return Tick(
            accesses=end,
            resident=int(np.count_nonzero(self.vm.page_generations() >= 0)),
            evicted=since("pgsteal"),
            hot=hot,
            recent=recent,
            refaults=since("workingset_refault_anon"),
            swap_ins=swap_ins,
            stall_seconds=stall + since("memory_high_throttle_ns") / 1e9,
        )

    def classify(self, start: int, end: int) -> None:
        """Count the evictions between two accesses of pages used soon after, or just before.

        A page that was unmapped, and is there again or was unmapped again, was
        used again in between; only the last time that a page went is to be
        looked up.
        """
        records = self.host.drain_trace().get(UNMAPPED)
        if records is None:
            return
        pages = (records.args[:, 0].astype(np.int64) - self.vm.address) // PAGE_SIZE
        present = self.vm.page_generations() >= 0
        # A guest's page tables lie elsewhere in the process.
        pages = pages[(pages >= 0) & (pages < len(present))]
        times = np.bincount(pages, minlength=len(present))
        gone = np.flatnonzero((times > 0) & ~present)
        again = int(times.sum()) - len(gone)
        self.found[0] += again + self.future.used_within(gone, end, self.window)
        self.found[1] += self.future.used_within(pages, start - self.window, self.window)
