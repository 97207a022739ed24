"""A reclaim policy of one's own beside MGLRU, at equal memory."""

from __future__ import annotations

from youngbit import traces
from youngbit.experiments import ReclaimPolicies, reclaim


# The policy, in ten lines: first in, first out, but a page that was used since it came
# in goes round once more. It is called with each page, and says whether it was there.
def second_chance(capacity):
    used = {}  # oldest first, and whether each was used since it came in

    def access(page):
        there = page in used
        while not there and len(used) >= capacity:
            if used.pop(oldest := next(iter(used))):
                used[oldest] = False
        used[page] = there
        return there

    return access


result = ReclaimPolicies(sizes=(0.25, 0.5), algorithms=("mglru-off", "mglru", "belady")).run(
    reclaim.trace(traces.shipped()), own={"second chance": second_chance}
)
print("misses, share of accesses, with room for", result.sizes, "pages")
for name in result.names:
    print(f"{name:14}", *(f"{ratio:.4f}" for ratio in result.curve(name)[1]))
assert all(
    result.row("belady", size).misses <= result.row("second chance", size).misses
    for size in result.sizes
)
