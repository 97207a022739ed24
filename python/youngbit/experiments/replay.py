"""A recorded program as a guest, aged every so many accesses.

After each pass, the pages that it put in the youngest generation it knew are
the estimate of what the program touched since the pass before. The truth is in
the recording, so precision and recall are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .. import access, defaults
from ..generations import Generations
from ..machine import AgeStats, Host
from ..sizes import Pages
from ..traces import Trace
from ..units import Accesses, Mask, Protocol
from ._parts import head, ignore

__all__ = ["Replay", "ReplayPass", "ReplayResult"]

SCHEMA = "youngbit/replay"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ReplayPass:
    """One aging pass and what it said."""

    #: Number of the pass, from 0.
    number: int
    #: Accesses replayed so far.
    accesses: int
    #: Time of the last access, in the recording's unit.
    time: int
    #: Pages touched since the pass before.
    true_pages: int
    #: Pages that the pass took for touched.
    estimated_pages: int
    #: Pages that are both.
    correct_pages: int
    #: Generations after the pass.
    generations: Generations
    #: What the pass did and cost.
    aging: AgeStats

    @property
    def precision(self) -> float:
        """Which share of the estimate is true; 1 for an empty estimate."""
        return self.correct_pages / self.estimated_pages if self.estimated_pages else 1.0

    @property
    def recall(self) -> float:
        """Which share of the truth was found; 1 when nothing was touched."""
        return self.correct_pages / self.true_pages if self.true_pages else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "number": self.number,
            "accesses": self.accesses,
            "time": self.time,
            "true_pages": self.true_pages,
            "estimated_pages": self.estimated_pages,
            "precision": self.precision,
            "recall": self.recall,
            "generations": self.generations.to_dict(),
            "aging_seconds": self.aging.seconds,
            "aging_counters": {key: n for key, n in self.aging.counters.items() if n},
        }


@dataclass
class ReplayResult:
    """What a replay found."""

    parameters: dict[str, Any]
    trace: dict[str, Any]
    passes: list[ReplayPass] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict; ``docs/json.md`` specifies it."""
        return {
            **head(SCHEMA, SCHEMA_VERSION, self.parameters),
            "trace": self.trace,
            "passes": [each.to_dict() for each in self.passes],
            "counters": self.counters,
        }


@dataclass(frozen=True)
class Replay:
    """The parameters of a replay; `run` runs it.

    Attributes:
        every: Accesses between two aging passes.
        tlb_entries: Of the vCPU's modelled TLB; 0 makes every estimate exact.
        protocol: How the VM is aged.
        capabilities: Mask of ``lru_gen/enabled``.
        seed: Kept with the result; a recording has nothing random.

    """

    every: Accesses = defaults.REPLAY_EVERY
    tlb_entries: int = defaults.REPLAY_TLB_ENTRIES
    protocol: Protocol = defaults.PROTOCOL
    capabilities: Mask = defaults.CAPABILITIES
    seed: int = defaults.SEED

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every: {self.every} is below 1")

    def run(self, trace: Trace, *, passed: Callable[[ReplayPass], None] = ignore) -> ReplayResult:
        """Run it.

        Args:
            trace: The recorded program.
            passed: Called after each pass.

        Raises:
            OSError: If the machine cannot be made.

        """
        # Virtual time: one access takes as long as the recording says, so ages
        # in the table are those of the program, at one instruction a nanosecond.
        host = Host(
            Pages(trace.nr_pages + defaults.HOST_SLACK_PAGES),
            clock="virtual",
            capabilities=self.capabilities,
        )
        # Shared memory, so that a read of what nobody wrote finds a page: what
        # the program reads was there before it.
        vm = host.create_vm(
            Pages(trace.nr_pages),
            vcpus=1,
            kind="shmem",
            protocol=self.protocol,
            tlb_entries=self.tlb_entries,
        )
        lru = host.lru_gen(vm.memcg)
        stream = access.trace(trace)
        result = ReplayResult(asdict(self), trace.to_dict())
        clock = int(trace.time[0])
        for number, start in enumerate(range(0, len(trace), self.every)):
            part = stream[start : start + self.every]
            vm.run(part)
            end = start + len(part)
            now = int(trace.time[end - 1])
            host.advance((now - clock) / 1e9)
            clock = now
            aging = lru.age()
            # A walk promotes to the generation that was the youngest when it
            # began; faults since then went there too.
            estimated = vm.page_generations() >= aging.seq
            true = np.zeros(vm.nr_pages, dtype=bool)
            true[part.pages] = True
            each = ReplayPass(
                number=number,
                accesses=end,
                time=now,
                true_pages=int(np.count_nonzero(true)),
                estimated_pages=int(np.count_nonzero(estimated)),
                correct_pages=int(np.count_nonzero(true & estimated)),
                generations=lru.generations(),
                aging=aging,
            )
            result.passes.append(each)
            passed(each)
        result.counters = host.counters
        return result
