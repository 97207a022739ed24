"""Everything at once on virtual machines, and what must hold afterwards.

Each round makes a machine from its seed, runs it while others age it, move its
memory, swap it out, log its writes and rewrite its page tables, and then checks
it and takes it apart.
"""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import _core, defaults
from ..units import Accesses, Mmu, Protocol, Seconds
from ._parts import ignore

__all__ = ["DEEDS", "Stress", "StressFailure", "StressResult"]

SCHEMA = "youngbit/mmu-stress"
SCHEMA_VERSION = 1

#: What is done to the machines, and counted.
DEEDS = {
    "aging_passes": "Passes of the multi-gen LRU's aging.",
    "clear_young": "Calls of the notifier clear_young.",
    "clear_flush_young": "Calls of the notifier clear_flush_young.",
    "test_young": "Calls of the notifier test_young.",
    "page_idle": "Ranges marked idle and then tested by page_idle.",
    "slots_moved": "Memslots moved.",
    "slots_deleted": "Memslots deleted.",
    "slots_created": "Memslots created.",
    "munmaps": "Ranges of memory unmapped.",
    "invalidations_watched": "Invalidations during which no write of the guest came through.",
    "invalidations": "Ranges invalidated without being unmapped.",
    "logging_switched_on": "Times that dirty logging was switched on.",
    "logging_switched_off": "Times that dirty logging was switched off.",
    "dirty_logs_harvested": "Dirty logs read and cleared.",
    "reclaims": "Rounds of reclaim.",
    "writebacks": "Rounds of writing dirty pages of files back.",
    "guest_ptes_unmapped": "Entries that the guest took out of its own page tables.",
    "guest_ptes_mapped": "Entries that the guest put into its own page tables.",
    "guest_tables_dropped": "Page tables that the guest dropped.",
    "guest_ptes_made_nx": "Pages that the guest forbade to execute, in its own page tables.",
    "guest_ptes_made_x": "Pages that the guest let be executed again.",
    "fetches": "Instruction fetches of the guest, of its accesses.",
    "fetches_refused": "Fetches that the guest's own page tables refused.",
    "guest_mode_changes": "Changes of the guest's paging mode.",
    "subscriptions": "Notifiers registered and unregistered.",
    "objects_replaced": "Objects replaced and freed after a grace period.",
}


@dataclass(frozen=True)
class StressFailure:
    """What was wrong, and with which machine."""

    #: Seed of the round.
    seed: int
    #: The machine that it made.
    machine: str
    #: What was wrong.
    what: str
    #: The command that repeats the round.
    repeat: str


@dataclass
class StressResult:
    """What was done, and whether it held."""

    experiment: Stress
    #: Rounds that came to an end, the last one perhaps early.
    rounds: int = 0
    accesses: int = 0
    wall_seconds: float = 0.0
    interrupted: bool = False
    deeds: Counter[str] = field(default_factory=Counter)
    counters: Counter[str] = field(default_factory=Counter)
    failure: StressFailure | None = None

    @property
    def verdict(self) -> str:
        """Return pass, or fail where something was wrong."""
        return "pass" if self.failure is None else "fail"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict; ``docs/json.md`` specifies it."""
        asked = self.experiment
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "mmu": asked.mmu,
            "protocol": asked.protocol,
            "threads": asked.threads,
            "agers": asked.agers,
            "seed": asked.seed,
            "accesses_a_round": asked.accesses,
            "seconds": round(self.wall_seconds, 3),
            "rounds": self.rounds,
            "accesses": self.accesses,
            "interrupted": self.interrupted,
            "deeds": dict(self.deeds),
            "counters": dict(self.counters),
            "failure": None if self.failure is None else asdict(self.failure),
        }


def _since(accessed: Callable[[int], None], before: int, now: int) -> None:
    accessed(before + now)


@dataclass(frozen=True)
class Stress:
    """Torture of virtual machines, each made from a seed; `run` runs it.

    Attributes:
        threads: vCPUs, each a thread.
        agers: Threads that age.
        duration: For how long rounds are begun; the last is cut short.
        rounds: So many rounds, however long they take, instead.
        accesses: Accesses of each vCPU in a round.
        seed: Seed of the first round; each next one's follows from it.
        mmu: Which MMU maps guest memory.
        protocol: How machines are aged.

    """

    threads: int = defaults.STRESS_THREADS
    agers: int = defaults.STRESS_AGERS
    duration: Seconds = defaults.STRESS_SECONDS
    rounds: int | None = None
    accesses: Accesses = defaults.STRESS_ACCESSES
    seed: int = defaults.SEED
    mmu: Mmu = defaults.MMU
    protocol: Protocol = defaults.PROTOCOL

    def __post_init__(self) -> None:
        for name, low, high in (
            ("threads", 1, defaults.STRESS_MAX_THREADS),
            ("agers", 0, defaults.STRESS_MAX_AGERS),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: {getattr(self, name)} is not between {low} and {high}")
        if not (math.isfinite(self.duration) and 0 < self.duration <= 1e6):
            raise ValueError(f"duration: {self.duration} is not above 0 and at most a million")
        for name in ("rounds", "accesses"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is below 1")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed: {self.seed} is negative or not below 2**63")

    def run(
        self,
        *,
        began: Callable[[StressResult], None] = ignore,
        accessed: Callable[[int], None] = ignore,
    ) -> StressResult:
        """Run it.

        Args:
            began: Called with the result before the first round; what is finished
                stands in it also after an interruption.
            accessed: Called now and then with the accesses made so far.

        Raises:
            KeyboardInterrupt: If it was interrupted.

        """
        result = StressResult(self)
        began(result)
        begin = time.monotonic()
        try:
            self._rounds(result, begin, accessed)
        except KeyboardInterrupt:
            result.interrupted = True
            raise
        finally:
            result.wall_seconds = time.monotonic() - begin
        return result

    def _rounds(self, result: StressResult, begin: float, accessed: Callable[[int], None]) -> None:
        at = self.seed
        while result.failure is None:
            left = self.duration - (time.monotonic() - begin)
            if result.rounds >= self.rounds if self.rounds is not None else left <= 0:
                return
            ran = _core.stress_round(
                self.mmu, self.protocol, self.threads, self.agers, self.accesses, at,
                left if self.rounds is None else 1e9,
                functools.partial(_since, accessed, result.accesses),
            )  # fmt: skip
            result.rounds += 1
            result.accesses += ran["accesses"]
            result.deeds.update(ran["deeds"])
            result.counters.update(ran["counters"])
            if ran["failure"] is not None:
                result.failure = StressFailure(at, ran["machine"], ran["failure"], self.repeat(at))
            if ran["interrupted"]:
                raise KeyboardInterrupt
            at = _core.next_seed(at)

    def repeat(self, seed: int) -> str:
        """Return the command that runs the round with this seed."""
        return (
            f"youngbit mmu-stress --mmu {self.mmu} --protocol {self.protocol}"
            f" --threads {self.threads} --agers {self.agers} --accesses {self.accesses}"
            f" --rounds 1 --seed {seed}"
        )
