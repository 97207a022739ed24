"""The kinds of experiments that come with the package and always run live.

Several threads are in them whatever is asked for, so that their counters and
times differ from run to run; what was asked for, and whether it held, do not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .. import defaults
from ..experiments.access_tracking import AccessTracking
from ..experiments.contention import FIGURES, Contention
from ..experiments.stress import DEEDS, Stress
from ..units import Protocol
from .columns import COUNTERS, REASON, VERDICT, Column
from .experiment import Kind, Measured, Scalar, add_kind

__all__ = ["ContentionDescription"]


@dataclass(frozen=True)
class ContentionDescription(AccessTracking):
    """Two protocols in turn, each aged while its vCPUs fault: ``-p`` with ``--against``.

    Attributes:
        lru_gen: Has to be true.
        benchmark: Has to be true: it is what is compared.
        against: The protocol that ``protocol`` is held against.
        vcpu_counts: Numbers of vCPUs that are measured one after another, otherwise
            ``vcpus`` alone.
        repetitions: Runs of each protocol that count.

    """

    lru_gen: bool = True
    benchmark: bool = True
    against: Protocol = "baseline"
    vcpu_counts: tuple[int, ...] | None = None
    repetitions: int = defaults.CONTENTION_REPETITIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vcpu_counts == ():
            raise ValueError("vcpu_counts: expected at least one number")
        for each in self.vcpu_counts or ():
            if not 1 <= each <= defaults.MAX_VCPUS:
                raise ValueError(f"vcpu_counts: {each} is not between 1 and {defaults.MAX_VCPUS}")
        self.contention()

    def contention(self) -> Contention:
        """Return the experiment that compares.

        Raises:
            ValueError: If there is nothing to compare.

        """
        one = {each.name: getattr(self, each.name) for each in fields(AccessTracking)}
        counts = self.vcpu_counts or (self.vcpus,)
        return Contention(
            AccessTracking(**one), self.protocol, self.against, counts, self.repetitions
        )


#: What is kept of each run that counts: how it is called there, and a column.
_RUN = {
    "vcpu_wall_seconds": Column(
        "vcpu_wall_seconds", "double", "seconds", "Wall time of the slowest vCPU.", "timing"
    ),
    "vcpu_cpu_seconds": Column(
        "vcpu_cpu_seconds", "double", "seconds", "Processor time of all vCPUs.", "timing"
    ),
    "passes": Column("aging_passes", "int64", "count", "Aging passes.", "live"),
    "empty_passes": Column(
        "empty_passes", "int64", "count", "Of them, those that asked about no page.", "live"
    ),
    "aging_seconds": Column("aging_seconds", "double", "seconds", "Wall time of aging.", "timing"),
    "aging_cpu_seconds": Column(
        "aging_cpu_seconds", "double", "seconds", "Processor time of aging.", "timing"
    ),
    "asked": Column("asked", "int64", "pages", "Pages that the passes asked about.", "live"),
    "aging_mmu_locks": Column(
        "aging_mmu_locks", "int64", "count", "Times that aging took mmu_lock.", "live"
    ),
    "mmu_lock_waits": Column(
        "mmu_lock_waits", "int64", "count", "Times that anybody waited for mmu_lock.", "live"
    ),
    "mmu_lock_wait_seconds": Column(
        "mmu_lock_wait_seconds", "double", "seconds", "How long they waited for it.", "timing"
    ),
    "lru_lock_wait_seconds": Column(
        "lru_lock_wait_seconds",
        "double",
        "seconds",
        "How long vCPUs waited for the LRU lock, which both protocols take.",
        "timing",
    ),
}


def _contention(
    experiment: ContentionDescription, _base: Path | None, **callbacks: Any
) -> Measured:
    contention = experiment.contention()
    result = contention.run(**callbacks)
    rows: list[dict[str, Any]] = [
        {
            "vcpus": point.vcpus,
            "protocol": protocol,
            **{_RUN[name].name: getattr(run, name) for name in _RUN},
        }
        for point in result.points
        for protocol, runs in point.runs.items()
        for run in runs
    ]
    most = max(result.points, key=lambda point: point.vcpus)
    ratios = {
        figure: most.ratio(contention.protocol, contention.against, figure) for figure in FIGURES
    }
    summary: dict[str, Scalar] = {
        f"ratio.{figure}": None if ratio is None else ratio.median
        for figure, ratio in ratios.items()
    }
    passes = {
        name: [number if name == "number" else row[name] for number, row in enumerate(rows)]
        for name in ("number", *rows[0])
    }
    return Measured(summary, passes, result)


def _stress(experiment: Stress, _base: Path | None, **callbacks: Any) -> Measured:
    result = experiment.run(**callbacks)
    failure = result.failure
    return Measured(
        {
            "verdict": result.verdict,
            "failed_seed": None if failure is None else failure.seed,
            "reason": None if failure is None else f"{failure.what}; {failure.machine}",
            "done_rounds": result.rounds,
            "made_accesses": result.accesses,
            **{f"deeds.{name}": result.deeds.get(name, 0) for name in DEEDS},
            **{f"{COUNTERS}{name}": value for name, value in result.counters.items()},
        },
        {},
        result,
    )


add_kind(
    Kind("contention", ContentionDescription, _contention),
    runs=[
        Column(
            f"ratio.{figure}",
            "double",
            "ratio",
            f"{name[0].upper()}{name[1:]}: protocol / against, the median of neighbouring runs,"
            " with most vCPUs.",
            "timing",
        )
        for figure, name in FIGURES.items()
    ],
    passes=[
        Column("vcpus", "int64", "count", "How many vCPUs."),
        Column("protocol", "string", ", ".join(defaults.PROTOCOLS), "How the VM was aged."),
        *_RUN.values(),
    ],
)
add_kind(
    Kind("mmu-stress", Stress, _stress),
    runs=[
        VERDICT,
        REASON,
        Column("failed_seed", "int64", "number", "Seed of the round that failed."),
        Column("done_rounds", "int64", "count", "Rounds that were run.", "live"),
        Column("made_accesses", "int64", "accesses", "Accesses of all vCPUs.", "live"),
        *[Column(f"deeds.{name}", "int64", "count", what, "live") for name, what in DEEDS.items()],
    ],
    passes=[],
)
