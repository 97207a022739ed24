"""What the package costs on top of the core; `make bench` runs these."""

from __future__ import annotations

import pytest

import youngbit as yb
from youngbit import access


@pytest.fixture(scope="module")
def guest():
    if yb.build_info()["debug_assertions"]:
        pytest.skip("figures of a debug build mean nothing")
    host = yb.Host("1100M")
    vm = host.create_vm("1G", tlb_entries=0)
    vm.run(access.sequential(write=True))
    return host, vm, host.lru_gen(vm.memcg)


def test_a_getter(benchmark, guest):
    _, vm, _ = guest
    benchmark(lambda: vm.nr_pages)


def test_entering_and_leaving_python(benchmark, guest):
    """The native call itself, which leaves the interpreter and comes back."""
    _, vm, _ = guest
    native, address = vm.mm._native, vm.address
    benchmark(native.test_young, address, True)


def test_a_call_through_the_package(benchmark, guest):
    _, vm, _ = guest
    mm, address = vm.mm, vm.address
    benchmark(mm.test_young, address, fast_only=True)


def test_generations(benchmark, guest):
    _, _, lru = guest
    benchmark(lru.generations)


def test_counters(benchmark, guest):
    host, _, _ = guest
    benchmark(lambda: host.counters)


def test_page_generations_of_a_gib(benchmark, guest):
    _, vm, _ = guest
    assert len(benchmark(vm.page_generations)) == 1 << 18


def test_an_aging_pass_over_a_gib(benchmark, guest):
    _, vm, lru = guest
    stats = benchmark.pedantic(
        lru.age, setup=lambda: vm.run(access.sequential()) and None, rounds=10
    )
    assert stats.counters["notifier_young"] == 1 << 18


def test_a_million_guest_accesses(benchmark, guest):
    _, vm, _ = guest
    stream = access.uniform(1_000_000, seed=1)
    stats = benchmark.pedantic(vm.run, [stream], rounds=5)
    assert stats.counters["guest_accesses"] == 1_000_000


def test_a_notifier_in_python(benchmark, guest):
    class Nothing(yb.MmuNotifier):
        def test_young(self, address, fast_only):
            return False

    host, _, _ = guest
    mm = host.create_mm()
    address = mm.mmap("4k")
    with mm.register(Nothing()):
        benchmark(mm.test_young, address)
