"""What aging costs the guest: two vCPUs populate memory while a thread ages it.

Prints, for each protocol, the wall time of the slowest vCPU against a run
without aging, taken in turns so that the machine's mood cancels.
"""

from __future__ import annotations

import statistics
import sys

import youngbit as yb
from youngbit import defaults

SIZE = sys.argv[1] if len(sys.argv) > 1 else "256M"
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5


def populate(protocol: str, *, aging: bool) -> tuple[float, int]:
    host = yb.Host(yb.sizes.parse_size(SIZE) + (16 << 20))
    vm = host.create_vm(SIZE, vcpus=2, protocol=protocol, tlb_entries=0)
    stream = yb.access.sequential(write=True)
    if not aging:
        return max(vm.run(stream, mode="live").vcpu_seconds), 0
    stats, _ = vm.run_while_aging(stream, host.lru_gen(vm.memcg))
    return max(stats.vcpu_seconds), stats.counters["mmu_lock_wait_ns"]


for protocol in defaults.PROTOCOLS:
    ratios, waits = [], []
    for _ in range(ROUNDS):
        alone, _ = populate(protocol, aging=False)
        beside, wait = populate(protocol, aging=True)
        ratios.append(beside / alone)
        waits.append(wait / 1e6)
    print(
        f"{protocol:<10} vCPU time beside aging / alone: {statistics.median(ratios):.2f}"
        f"   waited for mmu_lock: {statistics.median(waits):.2f} ms"
    )
