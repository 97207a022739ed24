"""The kinds of experiments that come with the package."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import defaults
from ..experiments.access_tracking import AGE, AccessTracking, majority_generation
from ..experiments.aging import Aging
from ..experiments.estimate import COSTS, ESTIMATORS, Estimate
from ..experiments.heat_map import ABSENT, HeatMap
from ..experiments.policies import ALGORITHMS, ReclaimPolicies
from ..experiments.reclaim import RUNS, Reclaim, ReclaimRun, Workload
from ..experiments.replay import Replay
from ..experiments.workloads import Guest, TraceFile, TraceWorkload, Zipf, accessed
from ..generations import Generations
from ..sizes import parse_size
from ..units import Bytes
from .columns import COUNTERS, REASON, VERDICT, Column, Type
from .experiment import Kind, Measured, Scalar, add_kind

__all__ = [
    "EstimateDescription",
    "HeatMapDescription",
    "PoliciesDescription",
    "ReclaimDescription",
    "ReplayDescription",
]

#: Generations that there can be.
_GENERATIONS = 4


@dataclass(frozen=True)
class ReplayDescription(Replay):
    """A replay of a trace that is named.

    Attributes:
        trace: The recorded program.

    """

    trace: TraceFile = field(default_factory=TraceFile)


@dataclass(frozen=True)
class HeatMapDescription(HeatMap):
    """Accesses of a named trace over address and time, and the age of each page.

    Attributes:
        trace: The recorded program.

    """

    trace: TraceFile = field(default_factory=TraceFile)


_RECLAIM_MEMORY = parse_size(defaults.RECLAIM_MEMORY)


@dataclass(frozen=True)
class ReclaimDescription(Reclaim):
    """The comparison of reclaim, with its workload.

    Attributes:
        memory: Guest memory; a trace has its own footprint instead.
        workload: What the guest does.

    """

    memory: Bytes = _RECLAIM_MEMORY
    workload: Guest = field(default_factory=Zipf)


@dataclass(frozen=True)
class EstimateDescription(Estimate):
    """Ways of asking which pages were accessed, side by side, with their workload.

    Attributes:
        memory: Guest memory; a trace has its own footprint instead.
        workload: What the guest does.

    """

    memory: Bytes = _RECLAIM_MEMORY
    workload: Guest = field(default_factory=TraceWorkload)


@dataclass(frozen=True)
class PoliciesDescription(ReclaimPolicies):
    """Reclaim policies side by side, with their workload.

    Attributes:
        memory: Footprint; a trace has its own instead.
        workload: What is accessed.

    """

    memory: Bytes = _RECLAIM_MEMORY
    workload: Guest = field(default_factory=TraceWorkload)


def _accessed(
    experiment: ReclaimDescription | EstimateDescription | PoliciesDescription, base: Path | None
) -> Workload:
    return accessed(experiment.workload, experiment.memory, experiment.seed, base)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _counters(counters: Any, before: str = "") -> dict[str, Scalar]:
    return {f"{before}{COUNTERS}{name}": value for name, value in counters.items()}


def _generations(generations: Generations) -> dict[str, Scalar]:
    youngest = [each.nr_pages for each in reversed(generations)]
    youngest += [0] * (_GENERATIONS - len(youngest))
    return {
        "min_seq": generations.min_seq,
        "max_seq": generations.max_seq,
        **{f"pages_{i}": youngest[i] for i in range(_GENERATIONS)},
    }


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def _access_tracking(experiment: AccessTracking, _base: Path | None, **callbacks: Any) -> Measured:
    result = experiment.run(**callbacks)
    seconds = [step.seconds for step in result.steps if step.name == AGE]
    rows: list[dict[str, Any]] = [
        {
            "number": number,
            "majority_seq": majority_generation(generations, result.test_pages),
            **_generations(generations),
            "aging_seconds": seconds[number],
        }
        for number, generations in enumerate([] if experiment.benchmark else result.generations)
    ]
    if experiment.benchmark:
        rows = [
            {"number": number, "aging_seconds": each}
            for number, each in enumerate(result.aging_passes)
        ]
        seconds = result.aging_passes
    failure = result.failure
    return Measured(
        {
            "verdict": result.verdict,
            "failed_check": None if failure is None else failure.check,
            "reason": result.reason,
            "test_pages": result.test_pages,
            "warnings": len(result.warnings),
            **_counters(result.counters),
            "guest_seconds": (
                sum(step.seconds for step in result.steps if step.name.startswith(_GUEST_STEPS))
                if result.vcpu_wall_seconds is None
                else result.vcpu_wall_seconds
            ),
            "aging_seconds": sum(seconds),
        },
        _columns(rows),
        result,
    )


_GUEST_STEPS = ("Populating", "Writing", "Reading")


def _estimates(rows: list[dict[str, Any]], passes: int) -> dict[str, Scalar]:
    """Return the sums of passes that count."""
    true = sum(row["true_pages"] for row in rows)
    estimated = sum(row["estimated_pages"] for row in rows)
    correct = sum(row["correct_pages"] for row in rows)
    error = sum(abs(row["estimated_pages"] - row["true_pages"]) for row in rows)
    return {
        "measured_passes": passes,
        "precision": _ratio(correct, estimated),
        "recall": _ratio(correct, true),
        "working_set_pages": true / passes if passes else None,
        "working_set_error": _ratio(error, true) if true else None,
    }


def _replay(experiment: ReplayDescription, base: Path | None, **callbacks: Any) -> Measured:
    result = experiment.run(experiment.trace.read(base), **callbacks)
    rows: list[dict[str, Any]] = [
        {
            "number": each.number,
            "accesses": each.accesses,
            "time": each.time,
            "true_pages": each.true_pages,
            "estimated_pages": each.estimated_pages,
            "correct_pages": each.correct_pages,
            "precision": each.precision,
            "recall": each.recall,
            **_generations(each.generations),
            "aging_seconds": each.aging.seconds,
            **_counters(each.aging.counters),
        }
        for each in result.passes
    ]
    return Measured(
        {
            **_estimates(rows, len(rows)),
            "footprint_pages": int(result.trace["pages"]),
            **_counters(result.counters),
            "aging_seconds": sum(row["aging_seconds"] for row in rows),
        },
        _columns(rows),
        result,
    )


_RECLAIMED = ("evicted", "hot", "recent", "refaults", "swap_ins")
#: The runs of reclaim that are of a kernel; the others know every access.
_KERNELS = ("off", "on")


def _reclaim(experiment: ReclaimDescription, base: Path | None, **callbacks: Any) -> Measured:
    result = experiment.run(_accessed(experiment, base), **callbacks)
    summary: dict[str, Scalar] = {
        "footprint_pages": int(result.workload["pages"]),
        "capacity_pages": int(result.parameters["capacity"]),
        "interval": int(result.parameters["every"]),
        "hot_window": int(result.parameters["window"]),
    }
    for name in RUNS:
        runs: list[ReclaimRun] = [getattr(phase, name) for phase in result.phases]
        summary |= {f"{name}.{key}": int(result.total(name, key)) for key in _RECLAIMED}
        summary[f"{name}.stall_seconds"] = result.total(name, "stall_seconds")
        if name in _KERNELS:
            summary[f"{name}.missed_rounds"] = sum(run.missed_rounds for run in runs)
            counted = {key for run in runs for key in run.counters}
            summary |= _counters({key: result.counter(name, key) for key in counted}, f"{name}.")
            summary[f"{name}.guest_seconds"] = sum(run.guest_seconds for run in runs)
        summary[f"{name}.command_seconds"] = sum(run.command_seconds for run in runs)
    summary |= {f"cut.{key}": result.cut(key) for key in ("hot", "refaults", "swap_ins")}
    rows = [
        {
            "number": number,
            "policy": name,
            "first_round": phase.first,
            "accesses": tick.accesses,
            "resident_pages": tick.resident,
            **{key: getattr(tick, key) for key in _RECLAIMED},
            "stall_seconds": tick.stall_seconds,
        }
        for phase in result.phases
        for name in RUNS
        for number, tick in enumerate(getattr(phase, name).ticks)
    ]
    return Measured(summary, _columns(rows), result)


def _aging(experiment: Aging, base: Path | None, **callbacks: Any) -> Measured:
    result = experiment.run(base=base, **callbacks)
    rows: list[dict[str, Any]] = [
        {
            "number": each.number,
            "vm": each.vm,
            "measured": each.measured,
            "accesses": each.accesses,
            "true_pages": each.true_pages,
            "estimated_pages": each.estimated_pages,
            "correct_pages": each.correct_pages,
            "precision": _ratio(each.correct_pages, each.estimated_pages),
            "recall": _ratio(each.correct_pages, each.true_pages),
            "resident_pages": each.resident_pages,
            **_generations(each.generations),
            "aging_seconds": each.aging.seconds,
            **_counters(each.counters),
        }
        for each in result.passes
    ]
    measured = [row for row in rows if row["measured"]]
    return Measured(
        {
            **_estimates(measured, len(measured)),
            "footprint_pages": sum(result.vm_pages),
            **_counters(result.counters),
            "guest_seconds": result.guest_seconds,
            "aging_seconds": sum(row["aging_seconds"] for row in measured),
        },
        _columns(rows),
        result,
    )


def _estimate(experiment: EstimateDescription, base: Path | None, **callbacks: Any) -> Measured:
    result = experiment.run(_accessed(experiment, base), **callbacks)
    summary: dict[str, Scalar] = {"footprint_pages": int(result.workload["pages"])}
    for each in result.estimators:
        for key in _ACCURACY:
            summary[f"{each.name}.{key}"] = float(getattr(each, key))
        summary |= {f"{each.name}.{key}": each.cost[key] for key in COSTS}
    rows = [
        {
            "number": experiment.warm_up + number,
            "estimator": each.name,
            "accesses": interval.accesses,
            "true_pages": interval.true_pages,
            "estimated_pages": interval.estimated_pages,
            "correct_pages": interval.correct_pages,
            "precision": _ratio(interval.correct_pages, interval.estimated_pages),
            "recall": _ratio(interval.correct_pages, interval.true_pages),
            "age_error": interval.age_error,
        }
        for each in result.estimators
        for number, interval in enumerate(each.intervals)
    ]
    return Measured(summary, _columns(rows), result)


def _policies(experiment: PoliciesDescription, base: Path | None, **callbacks: Any) -> Measured:
    result = experiment.run(_accessed(experiment, base), **callbacks)
    summary: dict[str, Scalar] = {
        "footprint_pages": int(result.workload["pages"]),
        "left_out": ", ".join(result.left_out) or None,
    }
    for name in result.names:
        ratios = result.curve(name)[1]
        summary[f"{name}.miss_ratio"] = sum(ratios) / len(ratios)
    rows: list[dict[str, Any]] = [
        {
            "number": number,
            "policy": row.policy,
            "capacity_pages": row.size,
            "misses": row.misses,
            "refaults": row.refaults,
            "miss_ratio": row.miss_ratio,
        }
        for number, row in enumerate(result.rows)
    ]
    return Measured(summary, _columns(rows), result)


#: Ages that a heat map tells apart; the last is this or older.
_AGES = 4


def _heat_map(experiment: HeatMapDescription, base: Path | None, **callbacks: Any) -> Measured:
    result = experiment.run(experiment.trace.read(base), **callbacks)
    absent = result.ages == ABSENT
    ages = result.ages.clip(max=_AGES - 1)
    rows: list[dict[str, Any]] = [
        {
            "number": number,
            "time": int(result.pass_times[number + 1]),
            **{f"rows_{age}": int((ages[:, number] == age).sum()) for age in range(_AGES)},
            "rows_absent": int(absent[:, number].sum()),
            "row_accesses": result.pass_accesses[:, number].tolist(),
            "row_ages": result.ages[:, number].tolist(),
        }
        for number in range(ages.shape[1])
    ]
    return Measured(
        {
            "footprint_pages": int(result.trace["pages"]),
            "interval": result.parameters["every"],
            "map_rows": len(ages),
            "start_time": int(result.pass_times[0]),
            "hottest_cell": int(result.accesses.max()),
        },
        _columns(rows),
        result,
    )


def _column(name: str, type_: Type, unit: str, meaning: str) -> Column:
    return Column(name, type_, unit, meaning)


def _wall(name: str, meaning: str) -> Column:
    return Column(name, "double", "seconds", meaning, "timing")


_AGING_SECONDS = _wall("aging_seconds", "Wall time of aging.")
_GUEST_SECONDS = _wall("guest_seconds", "Wall time of the guests.")
_FOOTPRINT = _column("footprint_pages", "int64", "pages", "Different pages that guests have.")
_ESTIMATES = [
    _column("measured_passes", "int64", "count", "Passes after the warm-up."),
    _column("precision", "double", "share",
            "Share of the pages taken for touched that were, over all measured passes."),
    _column("recall", "double", "share",
            "Share of the touched pages that were taken for it, over all measured passes."),
    _column("working_set_pages", "double", "pages",
            "Pages touched between two passes, the mean over measured passes."),
    _column("working_set_error", "double", "share",
            "Mean distance of the number of pages taken for touched from the number touched,"
            " as a share of the latter."),
]  # fmt: skip
_GENERATION_COLUMNS = [
    _column("min_seq", "int64", "number", "Number of the oldest generation after the pass."),
    _column("max_seq", "int64", "number", "Number of the youngest generation after the pass."),
    _column("pages_0", "int64", "pages", "Pages in the youngest generation, max_seq."),
    *[
        _column(f"pages_{i}", "int64", "pages", f"Pages in generation max_seq - {i}.")
        for i in range(1, _GENERATIONS)
    ],
]
_PASS_ESTIMATES = [
    _column("accesses", "int64", "accesses", "Accesses of each vCPU so far."),
    _column("true_pages", "int64", "pages", "Pages touched since the pass before."),
    _column("estimated_pages", "int64", "pages", "Pages that the pass took for touched."),
    _column("correct_pages", "int64", "pages", "Pages that are both."),
    _column("precision", "double", "share", "Share of the estimate that is true."),
    _column("recall", "double", "share", "Share of the truth that was found."),
]
_RESIDENT = _column("resident_pages", "int64", "pages", "Guest pages in memory at the end.")

add_kind(
    Kind("access-tracking", AccessTracking, _access_tracking),
    runs=[
        VERDICT,
        _column("failed_check", "int64", "number", "Which of the five checks failed, from 1."),
        REASON,
        _column("test_pages", "int64", "pages",
                "Pages of the test, of the larger of guest and host page size."),
        _column("warnings", "int64", "count", "Warnings of the selftest."),
        _GUEST_SECONDS,
        _AGING_SECONDS,
    ],
    passes=[
        _column("majority_seq", "int64", "number",
                "Generation that holds most of the test's pages after the pass."),
        *_GENERATION_COLUMNS,
        _AGING_SECONDS,
    ],
)  # fmt: skip
add_kind(
    Kind("replay", ReplayDescription, _replay),
    runs=[*_ESTIMATES, _FOOTPRINT, _AGING_SECONDS],
    passes=[
        *_PASS_ESTIMATES,
        _column("time", "int64", "the recording's", "Time of the last access."),
        *_GENERATION_COLUMNS,
        _AGING_SECONDS,
    ],
)
_WHOSE = {
    "off": "of the run without secondary MMU walks",
    "on": "of the run with secondary MMU walks",
    "lru": "of exact LRU, which knows every access",
    "oracle": "of the oracle, which knows the future",
}
_WHAT: dict[str, tuple[Type, str, str]] = {
    "evicted": ("int64", "pages", "Pages evicted"),
    "hot": ("int64", "pages", "Evicted pages that were used again within the window"),
    "recent": ("int64", "pages", "Evicted pages that had been used within the window before"),
    "refaults": ("int64", "pages", "Pages that came back"),
    "swap_ins": ("int64", "pages", "Pages read from swap"),
    "stall_seconds": ("double", "modelled seconds", "Time that the guest waited for pages"),
}
add_kind(
    Kind("reclaim", ReclaimDescription, _reclaim),
    runs=[
        _FOOTPRINT,
        _column("capacity_pages", "int64", "pages", "Pages that may stay in memory."),
        _column("interval", "int64", "accesses", "Accesses between two agings."),
        _column("hot_window", "int64", "accesses",
                "An evicted page is hot if it is used again within so many."),
        *[
            _column(f"{name}.{key}", type_, unit, f"{what}, {whose}.")
            for name, whose in _WHOSE.items()
            for key, (type_, unit, what) in _WHAT.items()
        ],
        *[
            _column(f"{name}.missed_rounds", "int64", "count",
                    f"Rounds that did not get down to the limit, {_WHOSE[name]}.")
            for name in _KERNELS
        ],
        *[
            _column(f"cut.{key}", "double", "share", f"{_WHAT[key][2]}: by which share on is"
                    " below off.")
            for key in ("hot", "refaults", "swap_ins")
        ],
        *[
            _wall(f"{name}.command_seconds", f"Wall time of reclaim by commands, {whose}.")
            for name, whose in _WHOSE.items()
        ],
        *[
            _wall(f"{name}.guest_seconds", f"Wall time of the guest, {_WHOSE[name]}.")
            for name in _KERNELS
        ],
    ],
    passes=[
        _PASS_ESTIMATES[0],
        _column("policy", "string", "text",
                "Which policy; of reclaim off, on, lru or oracle: which of its runs."),
        _column("first_round", "int64", "accesses",
                "Accesses before the first round: which of reclaim's phases."),
        _RESIDENT,
        *[
            _column(key, type_, unit, f"{what}.")
            for key, (type_, unit, what) in _WHAT.items()
        ],
    ],
)  # fmt: skip
add_kind(
    Kind("aging", Aging, _aging),
    runs=[*_ESTIMATES, _FOOTPRINT, _GUEST_SECONDS, _AGING_SECONDS],
    passes=[
        *_PASS_ESTIMATES,
        _column("vm", "int64", "number", "Which VM, from 0."),
        _column("measured", "bool", "true or false", "Whether it is after the warm-up."),
        _RESIDENT,
        *_GENERATION_COLUMNS,
        _AGING_SECONDS,
    ],
)

_ACCURACY = {
    "precision": ("share", "Share of the pages taken for touched that were"),
    "recall": ("share", "Share of the touched pages that were taken for it"),
    "working_set_error": ("share", "Mean error of the number of pages touched in an interval"),
    "age_error": ("intervals", "Mean error of when a page was last touched"),
}
_COSTS = {
    "notifier_calls": "Calls of MMU notifiers",
    "spte_atomics": "Atomic read-modify-writes of SPTEs",
    "mmu_lock": "Times that mmu_lock was taken",
    "tlb_flushes": "Remote TLB flushes",
    "guest_tlb_misses": "TLB misses of the guest, beyond those when nobody asks",
    "guest_faults": "Secondary MMU faults of the guest, beyond those when nobody asks",
}
add_kind(
    Kind("estimate", EstimateDescription, _estimate),
    runs=[
        _FOOTPRINT,
        *[
            _column(f"{name}.{key}", "double", unit, f"{what}, by {about.what}.")
            for name, about in ESTIMATORS.items()
            for key, (unit, what) in _ACCURACY.items()
        ],
        *[
            _column(f"{name}.{key}", "int64", "count", f"{_COSTS[key]}, by {about.what}.")
            for name, about in ESTIMATORS.items()
            for key in COSTS
        ],
    ],
    passes=[
        *_PASS_ESTIMATES,
        _column("estimator", "string", ", ".join(ESTIMATORS), "Which way of asking."),
        _column("age_error", "double", "intervals",
                "Mean error of when a page was last touched."),
    ],
)  # fmt: skip
add_kind(
    Kind("policies", PoliciesDescription, _policies),
    runs=[
        _FOOTPRINT,
        _column("left_out", "string", "text", "Policies that could not run: their package is not"
                " installed, or the footprint is too small for MGLRU."),
        *[
            _column(f"{name}.miss_ratio", "double", "share",
                    f"Misses as a share of accesses, of {name}, the mean over sizes.")
            for name in ALGORITHMS
        ],
    ],
    passes=[
        _column("capacity_pages", "int64", "pages", "Pages that may stay in memory."),
        _column("misses", "int64", "count", "Accesses to pages that were not there."),
        _column("miss_ratio", "double", "share", "Misses as a share of accesses."),
    ],
)  # fmt: skip
add_kind(
    Kind("heatmap", HeatMapDescription, _heat_map),
    runs=[
        _FOOTPRINT,
        _column("interval", "int64", "accesses", "Accesses between two agings."),
        _column("map_rows", "int64", "count", "Rows of the map that have pages."),
        _column("start_time", "int64", "the recording's", "Time of the first access."),
        _column("hottest_cell", "int64", "accesses", "Accesses in the cell that has most."),
    ],
    passes=[
        _column("time", "int64", "the recording's", "Time of the last access."),
        _column("rows_0", "int64", "count",
                "Rows of the map with a page that was touched since the pass before."),
        *[
            _column(f"rows_{age}", "int64", "count",
                    f"Rows whose youngest page is {age} generations older"
                    f"{', or more' if age == _AGES - 1 else ''}.")
            for age in range(1, _AGES)
        ],
        _column("rows_absent", "int64", "count", "Rows without a page in memory."),
        _column("row_accesses", "list<int64>", "accesses",
                "Accesses to each row of the map since the pass before."),
        _column("row_ages", "list<int64>", "generations",
                "How many generations older each row's youngest page is; -1 without one in"
                " memory."),
    ],
)  # fmt: skip
