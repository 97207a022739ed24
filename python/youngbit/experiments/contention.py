"""Aging by two protocols beside vCPUs that fault: the selftest's ``-p``, in turns.

Times of two runs on one machine cannot be compared, and two that follow each
other can. So both protocols run in turn, again and again, each time on a host of
its own; what is given are medians, and ratios of neighbouring runs.

Half of the guest is populated before a run. In an empty guest most passes are the
first ones, over next to nothing: a pass takes so much less time than the faults that
the guest grows by a tenth from one to the next, and their average says how fast the
guest was, not how long a pass takes. The thread that ages has a processor of its own
where the system allows it: beside many vCPUs it would lose it, and when would be up
to the scheduler.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .. import defaults
from .._core import build_info
from ..units import Protocol
from ._parts import ignore
from .access_tracking import AccessTracking, AccessTrackingResult

__all__ = ["Contention", "ContentionPoint", "ContentionResult", "ContentionRun", "Spread"]

SCHEMA = "youngbit/contention"
SCHEMA_VERSION = 1

#: The share of the guest that is populated before a run.
POPULATED = 0.5


@dataclass(frozen=True)
class Spread:
    """Several values of one figure."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return what the values, of which there is at least one, spread over."""
        return cls(statistics.median(values), min(values), max(values))

    def to_dict(self) -> dict[str, float]:
        """Return a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class ContentionRun:
    """One run of one protocol."""

    #: The slowest vCPU.
    vcpu_wall_seconds: float
    #: Processor time of all vCPUs, ``None`` where the system does not say.
    vcpu_cpu_seconds: float | None
    #: Aging passes.
    passes: int
    #: Of them, those that asked about no page.
    empty_passes: int
    #: Wall time of all passes.
    aging_seconds: float
    #: Processor time of all passes, likewise.
    aging_cpu_seconds: float | None
    #: Pages that they asked about.
    asked: int
    #: Times that the passes took ``mmu_lock``.
    aging_mmu_locks: int
    #: Times that vCPUs or passes had to wait for it.
    mmu_lock_waits: int
    #: How long they waited, all together.
    mmu_lock_wait_seconds: float
    #: How long vCPUs waited for the LRU lock, which both protocols take.
    lru_lock_wait_seconds: float

    @property
    def average_pass_seconds(self) -> float | None:
        """Wall time of a pass that asked about pages; ``None`` if none did."""
        passes = self.passes - self.empty_passes
        return self.aging_seconds / passes if passes else None

    @property
    def page_seconds(self) -> float | None:
        """Wall time for each page that a pass asked about."""
        return self.aging_seconds / self.asked if self.asked else None

    @property
    def page_cpu_seconds(self) -> float | None:
        """Processor time for each page that a pass asked about."""
        if self.aging_cpu_seconds is None or not self.asked:
            return None
        return self.aging_cpu_seconds / self.asked

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return asdict(self) | {name: getattr(self, name) for name in FIGURES}

    @classmethod
    def of(cls, result: AccessTrackingResult) -> ContentionRun:
        """Return what a benchmark run found."""
        aging, counters = result.aging, result.run_counters
        if aging is None or result.vcpu_wall_seconds is None:
            raise ValueError("result: not of a benchmark")
        return cls(
            vcpu_wall_seconds=result.vcpu_wall_seconds,
            vcpu_cpu_seconds=aging.vcpu_cpu_seconds,
            passes=len(aging.seconds),
            empty_passes=aging.asked.count(0),
            aging_seconds=sum(aging.seconds),
            aging_cpu_seconds=aging.cpu_seconds,
            asked=sum(aging.asked),
            aging_mmu_locks=aging.counters["mmu_lock_write"],
            mmu_lock_waits=counters["mmu_lock_contended"],
            mmu_lock_wait_seconds=counters["mmu_lock_wait_ns"] / 1e9,
            lru_lock_wait_seconds=counters["lru_lock_wait_ns"] / 1e9,
        )


#: The figures whose ratio is given, and what they are called.
FIGURES = {
    "average_pass_seconds": "average pass",
    "page_seconds": "a page of a pass",
    "page_cpu_seconds": "a page of a pass, processor time",
    "vcpu_wall_seconds": "vCPU wall time",
}


@dataclass
class ContentionPoint:
    """All runs with one number of vCPUs."""

    vcpus: int
    #: By protocol, in the order in which they were made.
    runs: dict[str, list[ContentionRun]]

    def spread(self, protocol: str, figure: str) -> Spread | None:
        """Return how a figure of a protocol spreads, if any run has it."""
        values = [getattr(run, figure) for run in self.runs[protocol]]
        found = [value for value in values if value is not None]
        return Spread.of(found) if found else None

    def ratio(self, protocol: str, against: str, figure: str) -> Spread | None:
        """Return the ratios of neighbouring runs, if any two have the figure."""
        pairs = zip(self.runs[protocol], self.runs[against], strict=True)
        values = [(getattr(one, figure), getattr(other, figure)) for one, other in pairs]
        ratios = [one / other for one, other in values if one is not None and other]
        return Spread.of(ratios) if ratios else None

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        protocol, against = self.runs
        ratios = {figure: self.ratio(protocol, against, figure) for figure in FIGURES}
        return {
            "vcpus": self.vcpus,
            "runs": {name: [run.to_dict() for run in runs] for name, runs in self.runs.items()},
            "ratios": {
                figure: None if ratio is None else ratio.to_dict()
                for figure, ratio in ratios.items()
            },
        }


@dataclass
class ContentionResult:
    """What the runs found."""

    parameters: dict[str, Any]
    processors: int
    points: list[ContentionPoint] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict; ``docs/json.md`` specifies it."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "parameters": self.parameters,
            "seed": self.parameters["seed"],
            "build": build_info(),
            "processors": self.processors,
            "points": [point.to_dict() for point in self.points],
        }


@dataclass(frozen=True)
class Contention:
    """Two protocols side by side; `run` runs them.

    Attributes:
        experiment: What is run, but for the protocol and the number of vCPUs.
        protocol: The one whose figures are divided.
        against: The one by whose they are divided.
        vcpus: Numbers of vCPUs, each a point of its own.
        repetitions: Runs of each protocol at each point that count; one of each
            before them does not.

    """

    experiment: AccessTracking
    protocol: Protocol
    against: Protocol
    vcpus: tuple[int, ...]
    repetitions: int = defaults.CONTENTION_REPETITIONS

    def __post_init__(self) -> None:
        if not self.experiment.benchmark:
            raise ValueError("--against compares what -p measures")
        if self.experiment.skipped is not None:
            raise ValueError(f"capabilities: {self.experiment.skipped}")
        if self.protocol == self.against:
            raise ValueError(f"--against {self.against}: the protocol is {self.protocol} already")
        if self.repetitions < 1:
            raise ValueError(f"repetitions: expected at least 1, not {self.repetitions}")

    def run(
        self,
        *,
        running: Callable[[int, str, int], None] = ignore,
        measured: Callable[[ContentionPoint], None] = ignore,
    ) -> ContentionResult:
        """Run it.

        Args:
            running: Called before each run with vCPUs, protocol and repetition,
                which is 0 for the one that does not count.
            measured: Called when all runs with one number of vCPUs are done.

        Raises:
            ValueError: For a parameter that is none of the choices.
            OSError: If a machine cannot be made, or memory runs out.

        """
        parameters = asdict(self.experiment) | {
            "protocol": self.protocol,
            "against": self.against,
            "vcpus": list(self.vcpus),
            "repetitions": self.repetitions,
            "populated": POPULATED,
        }
        processors = os.cpu_count() or 1
        if hasattr(os, "sched_getaffinity"):
            processors = len(os.sched_getaffinity(0))
        result = ContentionResult(parameters, processors)
        for vcpus in self.vcpus:
            point = ContentionPoint(vcpus, {self.protocol: [], self.against: []})
            for repetition in range(self.repetitions + 1):
                for protocol, runs in point.runs.items():
                    running(vcpus, protocol, repetition)
                    one = replace(self.experiment, vcpus=vcpus, protocol=protocol)
                    run = ContentionRun.of(one.run(populated=POPULATED, apart=True))
                    if repetition > 0:
                        runs.append(run)
            result.points.append(point)
            measured(point)
        return result
