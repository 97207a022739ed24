"""The working set of a guest over time, from aging alone, beside the truth."""

from __future__ import annotations

import numpy as np

import youngbit as yb

host = yb.Host("80M", clock="virtual")
vm = host.create_vm("64M", tlb_entries=64)
lru = host.lru_gen(vm.memcg)
vm.run(yb.access.sequential(write=True))
lru.age()

print(f"{'second':>6} {'estimate':>9} {'truth':>9}   pages of 4 KiB")
for second in range(12):
    # Every four seconds another tenth of memory becomes hot.
    start = (second // 4) * 0.3
    phase = yb.access.Phase(accesses=30_000, start=start, fraction=0.1, probability=0.98)
    pages = np.random.default_rng(second).integers(0, vm.nr_pages, 600)
    vm.run(yb.access.hot_cold([phase], seed=second))
    vm.run(yb.access.arrays(pages))
    host.advance(1.0)
    stats = lru.age()
    estimate = np.flatnonzero(vm.page_generations() == stats.seq)
    hot = np.arange(vm.nr_pages)[int(start * vm.nr_pages) :][: round(0.1 * vm.nr_pages)]
    print(f"{second:>6} {len(estimate):>9} {len(np.union1d(hot, pages)):>9}")
