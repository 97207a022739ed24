"""Reclaim policies side by side: the same accesses, the same memory.

MGLRU runs as a guest whose memory cgroup is limited, without the series and with
it; its misses are what the guest had to wait for. The algorithms of libcachesim
and Belady's bound run on the same pages. A miss is an access to a page that is
not in memory; the first access to a page always is one, every other is a refault.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .. import access, defaults
from ..errors import missing
from ..machine import Host
from ..oracle import optimal
from ..policy import Policy
from ..sizes import PAGE_SIZE, Pages
from ..traces import Block
from ..traces._write import writing
from ._parts import check_names, head, ignore
from .reclaim import Workload

__all__ = [
    "ALGORITHMS",
    "LIBCACHESIM",
    "Cache",
    "PoliciesResult",
    "PolicyRow",
    "ReclaimPolicies",
]

SCHEMA = "youngbit/policies"
SCHEMA_VERSION = 1

#: A cache of the user's own: made for a number of pages, then called with each
#: page that is accessed; it says whether the page was there, and has it after.
Cache: TypeAlias = "Callable[[int], Callable[[int], bool]]"

#: MGLRU's runs by name: the mask of ``lru_gen/enabled``.
_MGLRU: Mapping[str, int] = {
    "mglru-off": defaults.RECLAIM_OFF,
    "mglru": defaults.RECLAIM_ON,
}
#: Algorithms of libcachesim by name: its class.
LIBCACHESIM: Mapping[str, str] = {
    "lru": "LRU",
    "clock": "Clock",
    "s3-fifo": "S3FIFO",
    "sieve": "Sieve",
    "arc": "ARC",
}
#: Belady's bound, native.
_OPTIMAL = "belady"
#: All names, in the order they are shown.
ALGORITHMS = (*_MGLRU, *LIBCACHESIM, _OPTIMAL)


@dataclass(frozen=True)
class PolicyRow:
    """What one policy did with one size of memory."""

    policy: str
    #: Pages that may stay.
    size: int
    #: Accesses to pages that were not there.
    misses: int
    #: Of them those to pages that had been there before.
    refaults: int
    #: Misses as a share of accesses.
    miss_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return asdict(self)


@dataclass
class PoliciesResult:
    """The policies side by side."""

    parameters: dict[str, Any]
    workload: dict[str, Any]
    rows: list[PolicyRow] = field(default_factory=list)
    #: Policies that were left out, and why.
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        """Sizes, smallest first."""
        return sorted({row.size for row in self.rows})

    @property
    def names(self) -> list[str]:
        """Policies, in the order they ran."""
        return list(dict.fromkeys(row.policy for row in self.rows))

    def row(self, policy: str, size: int) -> PolicyRow:
        """Return what a policy did with a size."""
        for row in self.rows:
            if (row.policy, row.size) == (policy, size):
                return row
        raise KeyError((policy, size))

    def curve(self, policy: str) -> tuple[list[int], list[float]]:
        """Return a policy's miss-ratio curve: sizes, and the ratio for each."""
        return self.sizes, [self.row(policy, size).miss_ratio for size in self.sizes]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict; ``docs/estimators.md`` specifies it."""
        return {
            **head(SCHEMA, SCHEMA_VERSION, self.parameters),
            "workload": self.workload,
            "rows": [row.to_dict() for row in self.rows],
            "left_out": self.left_out,
        }


def _too_few(size: int, workload: Workload, name: str) -> str:
    return (
        f"{size} of {workload.nr_pages} pages may stay, {name} expects at least"
        f" {defaults.RECLAIM_LEAST_PAGES}"
    )


def _libcachesim() -> Any:
    try:
        import libcachesim
    except ImportError:
        raise missing("a cache algorithm", "libcachesim", "policies") from None
    return libcachesim


@dataclass(frozen=True)
class ReclaimPolicies:
    """The parameters of the comparison; `run` runs it.

    Attributes:
        sizes: What memory may stay, as shares of the footprint; otherwise eighths,
            those that MGLRU can reclaim by.
        algorithms: Names of those to compare, of `ALGORITHMS`; otherwise all,
            libcachesim's only if that is installed, and MGLRU only if the footprint is
            large enough for it.
        tlb_entries: Of the vCPU's modelled TLB, for MGLRU.
        seed: Kept with the result; nothing is random but the workload.

    """

    sizes: tuple[float, ...] | None = None
    algorithms: tuple[str, ...] | None = None
    tlb_entries: int = defaults.RECLAIM_TLB_ENTRIES
    seed: int = defaults.SEED

    def __post_init__(self) -> None:
        if self.sizes is not None and not self.sizes:
            raise ValueError("sizes: expected at least one")
        for share in self.sizes or ():
            if not 0.0 < share <= 1.0:
                raise ValueError(f"sizes: {share} is not above 0 and at most 1")
        if self.algorithms is not None:
            check_names("algorithms", self.algorithms)
        for name in self.algorithms or ():
            if name not in ALGORITHMS:
                raise ValueError(f"algorithms: {name!r} is none of {', '.join(ALGORITHMS)}")

    def run(
        self,
        workload: Workload,
        *,
        own: Mapping[str, Cache | Policy] | None = None,
        finished: Callable[[str], None] = ignore,
    ) -> PoliciesResult:
        """Run it.

        Args:
            workload: What is accessed.
            own: Policies of your own by name: a `Cache`, or a `youngbit.policy.Policy`
                that decides for MGLRU with the series.
            finished: Called after each policy and size.

        Raises:
            ValueError: If so little memory may stay that MGLRU has nothing to reclaim by.
            ImportError: If an algorithm is asked for whose package is not installed.
            OSError: If the machine cannot be made, or memory runs out.

        """
        shares = self.sizes or defaults.POLICY_SIZES
        sizes = sorted({max(int(workload.nr_pages * share), 1) for share in shares})
        least = defaults.RECLAIM_LEAST_PAGES
        chosen = self.algorithms or ALGORITHMS
        left_out: dict[str, str] = {}
        guests = [name for name, each in (own or {}).items() if isinstance(each, Policy)]
        guests += [name for name in chosen if name in _MGLRU]
        if self.sizes is None and guests:
            # The smallest sizes are left out rather than refused; or MGLRU itself is,
            # where nobody asked for it and the whole program is smaller than a batch.
            if sizes[-1] >= least:
                sizes = [size for size in sizes if size >= least]
            elif self.algorithms is None and guests[0] in _MGLRU:
                left_out = dict.fromkeys(guests, _too_few(sizes[-1], workload, "MGLRU"))
                chosen = tuple(name for name in chosen if name not in _MGLRU)
                guests = []
        if guests and sizes[0] < least:
            raise ValueError(f"sizes: {_too_few(sizes[0], workload, guests[0])}")
        # Refuse before the work is done.
        asked = [name for name in chosen if name in LIBCACHESIM]
        if asked:
            try:
                _libcachesim()
            except ImportError as error:
                if self.algorithms is not None:
                    raise
                left_out |= dict.fromkeys(asked, str(error))
                chosen = tuple(name for name in chosen if name not in LIBCACHESIM)
        parameters = asdict(self) | {"pages": sizes}
        result = PoliciesResult(parameters, workload.to_dict(), left_out=left_out)

        def add(name: str, size: int, misses: int) -> None:
            refaults = misses - workload.nr_pages
            result.rows.append(
                PolicyRow(name, size, misses, refaults, misses / max(len(workload), 1))
            )
            finished(name)

        for name in chosen:
            if name in _MGLRU:
                for size in sizes:
                    add(name, size, self._guest(workload, size, _MGLRU[name], None))
        self._cachesim([name for name in chosen if name in LIBCACHESIM], workload, sizes, add)
        if _OPTIMAL in chosen:
            stream = access.arrays(workload.pages)
            for size in sizes:
                ticks = optimal(stream, size, every=len(workload), window=1)
                add(_OPTIMAL, size, workload.nr_pages + sum(tick.refaults for tick in ticks))
        for name, each in (own or {}).items():
            for size in sizes:
                if isinstance(each, Policy):
                    misses = self._guest(workload, size, defaults.RECLAIM_ON, each)
                else:
                    misses = _own_misses(each, workload, size)
                add(name, size, misses)
        return result

    def _guest(
        self, workload: Workload, size: int, capabilities: int, policy: Policy | None
    ) -> int:
        """Return the misses of a guest under MGLRU whose memory cgroup is limited."""
        slack = workload.nr_pages + defaults.RECLAIM_SLACK_PAGES
        host = Host(Pages(slack), swap=Pages(slack), clock="virtual", capabilities=capabilities)
        vm = host.create_vm(Pages(workload.nr_pages), tlb_entries=self.tlb_entries)
        host.policy = policy
        vm.memcg.files["memory.max"].write(str(size * PAGE_SIZE))
        counters = vm.run(access.arrays(workload.pages, workload.writes)).counters
        # Every page of a guest that was evicted comes back from swap; one that
        # nobody evicted comes once.
        return workload.nr_pages + counters["workingset_refault_anon"]

    def _cachesim(
        self,
        names: Sequence[str],
        workload: Workload,
        sizes: Sequence[int],
        add: Callable[[str, int, int], None],
    ) -> None:
        if not names:
            return
        library = _libcachesim()
        with tempfile.TemporaryDirectory(prefix="youngbit-") as folder:
            path = str(Path(folder) / "pages.oracleGeneral")
            with writing(path) as writer:
                count = len(workload)
                writer.add(
                    Block(
                        np.zeros(count, dtype=np.uint64),
                        workload.pages.astype(np.uint64),
                        np.zeros(count, dtype=np.bool_),
                    )
                )
            for name in names:
                for size in sizes:
                    reader = library.TraceReader(
                        path,
                        library.TraceType.ORACLE_GENERAL_TRACE,
                        library.ReaderInitParam(ignore_obj_size=True),
                    )
                    # A table of its default size, 2**24, takes longer to make
                    # than most traces to run.
                    cache = getattr(library, LIBCACHESIM[name])(
                        cache_size=size, hashpower=max(size.bit_length() + 1, 8)
                    )
                    ratio, _ = cache.process_trace(reader)
                    add(name, size, round(ratio * count))


def _own_misses(make: Cache, workload: Workload, size: int) -> int:
    """Return the misses of a cache written in Python: a call for each access, slow."""
    cached = make(size)
    misses = 0
    for page in workload.pages.tolist():
        there = cached(page)
        if not isinstance(there, bool):
            raise TypeError(f"a cache said {there!r} of page {page}, expected True or False")
        misses += not there
    if misses < workload.nr_pages:
        raise ValueError(
            f"a cache missed {misses} times, but each of {workload.nr_pages} pages was new once"
        )
    return misses
