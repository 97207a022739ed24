"""What runs, aging passes and tracepoints leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

__all__ = [
    "AgeStats",
    "AgingRun",
    "Counters",
    "EvictStats",
    "IdleStats",
    "RunStats",
    "TraceRecords",
]

#: What was counted, by the names of ``Host.counters``.
Counters: TypeAlias = Mapping[str, int]


def _nonzero(counters: Counters) -> str:
    return ", ".join(f"{key}={value:,}" for key, value in counters.items() if value)


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
class EvictStats:
    """What evicting did and what it cost."""

    #: The youngest generation that was to go.
    seq: int
    #: Pages reclaimed.
    nr_reclaimed: int
    #: Wall time.
    seconds: float
    #: What was counted.
    counters: Counters

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "seq": self.seq,
            "nr_reclaimed": self.nr_reclaimed,
            "seconds": self.seconds,
            "counters": dict(self.counters),
        }

    def __str__(self) -> str:
        return (
            f"evicted to {self.seq}: {self.nr_reclaimed} pages in {self.seconds:.6f} s;"
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
