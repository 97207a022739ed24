"""Long tests; `make soak` runs them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.soak

POPULATE = """
import json, resource, sys
import youngbit as yb
size = sys.argv[1]
host = yb.Host(yb.sizes.parse_size(size) + (64 << 20))
vm = host.create_vm(size, vcpus=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
vm.run(yb.access.sequential(write=True), mode="live")
lru = host.lru_gen(vm.memcg)
aged = lru.age()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "pages": lru.generations().nr_pages,
    "guest": vm.nr_pages,
    "resident": after * 1024,
    "grown": (after - before) * 1024,
    "young": aged.counters["notifier_young"],
}))
"""


def populated(size: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", POPULATE, size],
        capture_output=True,
        check=True,
        timeout=3600,
    )
    return json.loads(done.stdout)


@pytest.mark.timeout(4000)
def test_a_guest_of_64_gib_fits_in_a_gib():
    found = populated("64G")
    assert found["pages"] >= found["guest"] == 1 << 24
    assert found["young"] == 1 << 24
    assert found["resident"] < 1 << 30


@pytest.mark.timeout(600)
def test_a_guest_page_costs_at_most_48_bytes():
    found = populated("4G")
    assert found["grown"] / found["guest"] <= 48
