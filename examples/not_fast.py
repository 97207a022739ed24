"""The price of `fast_only`: memory of a secondary MMU that is not fast looks idle.

A device touches its pages all the time but takes a lock to say so. The series'
aging walk leaves it alone, so nothing keeps its pages young; the accurate
notifier asks it.
"""

from __future__ import annotations

import youngbit as yb


class Device(yb.MmuNotifier):
    """Touches every page, always."""

    def clear_young(self, start: int, end: int, fast_only: bool) -> bool:
        return True


for asks in ("fast_only", "accurate"):
    host = yb.Host("16M")
    host.aging_asks = asks
    mm = host.create_mm(host.create_memcg("/device"))
    address = mm.mmap("4M")
    mm.touch(address, "4M", write=True)
    lru = host.lru_gen(mm.memcg)
    with mm.register(Device()):
        for _ in range(3):
            stats = lru.age()
    young = int((mm.page_generations(address, "4M") == stats.seq).sum())
    print(f"{asks:<10} {young:>5} of 1024 pages young, asked {stats.counters['notifier_young']}")
