"""Memory cgroups, and the multi-gen LRU of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._arguments import whole
from .files import MemcgFiles, numbers
from .generations import Generation, Generations
from .results import AgeStats, EvictStats

if TYPE_CHECKING:
    from .machine import Host

__all__ = ["LruGen", "Memcg"]


@dataclass(frozen=True)
class Memcg:
    """A memory cgroup."""

    #: Its number; the root's is 1.
    id: int
    #: Its path, with a slash before it.
    name: str
    _host: Host | None = field(default=None, repr=False, compare=False)

    @property
    def files(self) -> MemcgFiles:
        """Its text files, by name."""
        if self._host is None:
            raise ValueError(f"memory cgroup {self.name!r} is of no host")
        return MemcgFiles(self._host, self)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict; with the pages charged, if it is of a host."""
        plain: dict[str, Any] = {"id": self.id, "name": self.name}
        if self._host is not None:
            known = {number: pages for number, _, pages in self._host._native.memcgs()}
            plain["pages"] = known.get(self.id, 0)
        return plain

    def stat(self) -> dict[str, int]:
        """Return ``memory.stat``: sizes in bytes, and counts of events."""
        return numbers(self.files["memory.stat"].read())

    def remove(self) -> None:
        """Remove it, as ``rmdir`` does.

        File and shmem pages that it is still charged with stay until they are
        freed or reclaimed; it is then gone from all lists.

        Raises:
            OSError: ``EBUSY`` for the root, and while processes, VMs or memory
                cgroups are in it; ``ENOENT`` if it was removed before.

        """
        if self._host is None:
            raise ValueError(f"memory cgroup {self.name!r} is of no host")
        self._host._native.remove_memcg(self.id)


class LruGen:
    """The multi-gen LRU of one memory cgroup on one node; made by `Host.lru_gen`."""

    def __init__(self, host: Host, memcg: Memcg, node: int) -> None:
        self._host = host
        self.memcg = memcg
        self.node = node

    def __repr__(self) -> str:
        return f"LruGen(memcg={self.memcg.name!r}, node={self.node}, {self.generations()!r})"

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict, with the generations as they are now."""
        return {
            "memcg": self.memcg.to_dict(),
            "node": self.node,
            "generations": self.generations().to_dict(),
        }

    def generations(self) -> Generations:
        """Return the generations as they are now, oldest first."""
        rows = self._host._native.generations(self.memcg.id, self.node)
        return Generations([Generation(*row) for row in rows])

    def age(self, *, can_swap: bool = True, force_scan: bool = True) -> AgeStats:
        """Make one aging pass: walk the page tables, then make a new generation.

        Args:
            can_swap: Whether anonymous memory is aged.
            force_scan: Visit every process and every page table, whether or not
                it ran or looks worth it.

        Raises:
            OSError: ``ERANGE`` without ``force_scan`` when all generations exist.
            Exception: What a notifier raised, after the pass.

        """
        return AgeStats(*self._host._native.age(self.memcg.id, self.node, can_swap, force_scan))

    def evict(
        self, seq: int, swappiness: int | None = None, nr_to_reclaim: int | None = None
    ) -> EvictStats:
        """Evict generations up to one, as the command ``-`` of ``lru_gen`` does.

        Args:
            seq: The youngest generation that is to go.
            swappiness: 0 to 200, 0 to take file pages only; otherwise the memory
                cgroup's own.
            nr_to_reclaim: Stop when so many pages are reclaimed; some more may go,
                in whole batches.

        Raises:
            OSError: ``EINVAL`` for one of the two youngest generations, or a
                swappiness above 200.
            Exception: What a notifier or a policy raised, after the model is
                consistent.

        """
        reclaimed, seconds, counters = self._host._native.evict(
            self.memcg.id,
            self.node,
            whole(seq, "seq"),
            None if swappiness is None else whole(swappiness, "swappiness", at_most=(1 << 32) - 1),
            None if nr_to_reclaim is None else whole(nr_to_reclaim, "nr_to_reclaim"),
        )
        return EvictStats(seq, reclaimed, seconds, counters)
