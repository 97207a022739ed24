"""A recorded program over address and time, and the generation of each page beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from .. import access, defaults
from ..machine import Host
from ..sizes import Pages
from ..traces import Trace
from ..units import Accesses, Choice, Mask, Protocol
from ._parts import head

__all__ = ["ABSENT", "HeatMap", "HeatMapResult", "interval", "laid_out", "page_edges"]

SCHEMA = "youngbit/heat-map"
SCHEMA_VERSION = 1

#: In `HeatMapResult.ages`: no page of the row is in memory.
ABSENT = -1


def interval(accesses: int) -> int:
    """Return how many accesses make an interval, unless said otherwise.

    >>> interval(1_000_000), interval(800)
    (4000, 50)
    """
    return min(defaults.REPLAY_EVERY, max(accesses // defaults.FEWEST_INTERVALS, 1))


def laid_out(trace: Trace, layout: str) -> npt.NDArray[np.uint32]:
    """Return the guest page of each event.

    Args:
        trace: The recorded program.
        layout: ``"touch"``: pages are numbered by first touch, as a guest that
            allocates on demand has them. ``"address"``: by address, so that what
            was side by side still is, with the gaps taken out.

    """
    if layout == "touch":
        return trace.frames
    if layout == "address":
        _, rank = np.unique(trace.page, return_inverse=True)
        pages: npt.NDArray[np.uint32] = rank.reshape(-1).astype(np.uint32)
        return pages
    raise ValueError(f"layout: {layout!r} is none of {', '.join(defaults.LAYOUTS)}")


def page_edges(nr_pages: int, rows: int) -> npt.NDArray[np.int64]:
    """Return where the rows of a map begin, in guest pages, and where the last ends.

    >>> page_edges(10, 4).tolist()
    [0, 2, 5, 7, 10]
    """
    return np.linspace(0, nr_pages, rows + 1).astype(np.int64)


@dataclass
class HeatMapResult:
    """What is drawn: counts by page and time, and ages by page and aging pass."""

    parameters: dict[str, Any]
    trace: dict[str, Any]
    #: Edges of the rows, in guest pages, and of the columns, in the trace's time.
    page_edges: npt.NDArray[np.int64] = field(repr=False)
    time_edges: npt.NDArray[np.float64] = field(repr=False)
    #: Events in each row and column.
    accesses: npt.NDArray[np.int64] = field(repr=False)
    #: Time of each aging pass, from the start of the trace on: one more than passes.
    pass_times: npt.NDArray[np.float64] = field(repr=False)
    #: For each row and pass how many events there were since the pass before.
    pass_accesses: npt.NDArray[np.int64] = field(repr=False)
    #: For each row and pass how many generations old its youngest page is; 0 was
    #: touched since the pass before, as far as aging saw. `ABSENT` without a page.
    ages: npt.NDArray[np.int64] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return {
            **head(SCHEMA, SCHEMA_VERSION, self.parameters),
            "trace": self.trace,
            **{
                name: getattr(self, name).tolist()
                for name in (
                    "page_edges",
                    "time_edges",
                    "accesses",
                    "pass_times",
                    "pass_accesses",
                    "ages",
                )
            },
        }


@dataclass(frozen=True)
class HeatMap:
    """The parameters of a heat map; `run` counts and ages.

    Attributes:
        every: Accesses between two aging passes; otherwise 4000, or as many as make 16
            passes of a shorter trace.
        tlb_entries: Of the vCPU's modelled TLB.
        protocol: How the VM is aged.
        capabilities: Mask of ``lru_gen/enabled``.
        layout: How pages become the guest's: by address without the gaps, or numbered by
            first touch.
        rows: Rows of the map, at most.
        columns: Columns of the map, at most; a short trace has an eighth of its events, or 64.
        seed: Kept with the result; a recording has nothing random.

    """

    every: Accesses | None = None
    tlb_entries: int = defaults.REPLAY_TLB_ENTRIES
    protocol: Protocol = defaults.PROTOCOL
    capabilities: Mask = defaults.CAPABILITIES
    layout: Annotated[str, Choice(defaults.LAYOUTS)] = "address"
    rows: int = defaults.HEAT_MAP_ROWS
    columns: int = defaults.HEAT_MAP_COLUMNS
    seed: int = defaults.SEED

    def __post_init__(self) -> None:
        for name in ("every", "rows", "columns"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is below 1")

    def run(self, trace: Trace) -> HeatMapResult:
        """Run it.

        Raises:
            OSError: If the machine cannot be made.

        """
        pages = laid_out(trace, self.layout)
        nr_pages = trace.nr_pages
        rows = min(self.rows, nr_pages)
        row_edges = page_edges(nr_pages, rows)
        first, last = float(trace.time[0]), float(trace.time[-1])
        columns = min(self.columns, max(len(trace) // 8, defaults.HEAT_MAP_FEWEST_COLUMNS))
        time_edges = np.linspace(first, max(last, first + 1), columns + 1)
        accesses, _, _ = np.histogram2d(
            pages, trace.time.astype(np.float64), bins=(row_edges, time_edges)
        )
        stream = access.arrays(pages, trace.write)
        host = Host(
            Pages(nr_pages + defaults.HOST_SLACK_PAGES),
            clock="virtual",
            capabilities=self.capabilities,
        )
        vm = host.create_vm(
            Pages(nr_pages), kind="shmem", protocol=self.protocol, tlb_entries=self.tlb_entries
        )
        lru = host.lru_gen(vm.memcg)
        times, ages, counts = [first], [], []
        row_of = np.searchsorted(row_edges, pages, side="right") - 1
        every = self.every or interval(len(stream))
        for start in range(0, len(stream), every):
            end = min(start + every, len(stream))
            vm.run(stream[start:end])
            aging = lru.age()
            generations = vm.page_generations()
            youngest = np.maximum.reduceat(generations, row_edges[:-1])
            ages.append(np.where(youngest < 0, ABSENT, np.maximum(aging.seq - youngest, 0)))
            counts.append(np.bincount(row_of[start:end], minlength=rows))
            times.append(float(trace.time[end - 1]))
        return HeatMapResult(
            parameters=asdict(self) | {"every": every},
            trace=trace.to_dict(),
            page_edges=row_edges,
            time_edges=time_edges,
            accesses=accesses.astype(np.int64),
            pass_times=np.maximum.accumulate(np.array(times)),
            pass_accesses=np.array(counts, dtype=np.int64).T,
            ages=np.array(ages, dtype=np.int64).T,
        )
