"""A sampler of memory regions, as the kernel's DAMON is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _core, defaults
from ._arguments import whole

if TYPE_CHECKING:
    from .machine import Vm

__all__ = ["Damon", "Regions"]


@dataclass(frozen=True, eq=False)
class Regions:
    """What an aggregation interval found, one entry a region, without gaps between them."""

    #: First page, and one past the last.
    start: npt.NDArray[np.uint64] = field(repr=False)
    end: npt.NDArray[np.uint64] = field(repr=False)
    #: Sampling intervals in which the page that was drawn was accessed.
    nr_accesses: npt.NDArray[np.uint32] = field(repr=False)
    #: Aggregation intervals for which that has been so.
    age: npt.NDArray[np.uint32] = field(repr=False)

    def __len__(self) -> int:
        return len(self.start)

    def pages(self) -> npt.NDArray[np.uint32]:
        """Return for each page ``nr_accesses`` of its region."""
        return np.repeat(self.nr_accesses, (self.end - self.start).astype(np.int64))

    def to_dict(self) -> dict[str, Any]:
        """Return one array a column."""
        return {"start": self.start, "end": self.end,
                "nr_accesses": self.nr_accesses, "age": self.age}  # fmt: skip


class Damon:
    """Watches a guest's memory by regions; ages one page of each, whatever their size.

    Call `prepare` before and `check` after each sampling interval, and
    `aggregate` after some of them. Secondary MMUs are asked through the accurate
    notifiers, as DAMON asks them.

    >>> import youngbit as yb
    >>> host = yb.Host(memory="32M", clock="virtual")
    >>> vm = host.create_vm(memory="16M", tlb_entries=0)
    >>> damon = Damon(vm, seed=1)
    >>> for sample in range(20):
    ...     damon.prepare()
    ...     stats = vm.run(yb.access.sequential(write=True))
    ...     damon.check()
    >>> int(damon.aggregate().nr_accesses.min())
    20

    Args:
        vm: The guest.
        samples: Sampling intervals in an aggregation interval.
        regions: Fewest and most regions.
        seed: Of which page is drawn, and where regions are split.

    Raises:
        OSError: ``EINVAL`` for fewer than 3 regions, or more at least than at most.

    """

    def __init__(
        self,
        vm: Vm,
        *,
        samples: int = defaults.DAMON_SAMPLES,
        regions: tuple[int, int] = defaults.DAMON_REGIONS,
        seed: int = defaults.SEED,
    ) -> None:
        # Its memory goes with it.
        self._vm = vm
        least, most = (whole(number, "regions") for number in regions)
        self._native = _core.Damon(
            vm._native.mm, vm.address, vm.nr_pages, whole(samples, "samples", at_least=1),
            least, most, whole(seed, "seed"),
        )  # fmt: skip

    def prepare(self) -> None:
        """Draw a page of each region and make it old."""
        self._native.prepare()

    def check(self) -> None:
        """Ask of those pages whether they were accessed since."""
        self._native.check()

    def aggregate(self) -> Regions:
        """Merge regions that are alike, return what was found, and split them anew."""
        return Regions(*self._native.aggregate())

    @property
    def nr_regions(self) -> int:
        """How many regions there are now."""
        return self._native.nr_regions
