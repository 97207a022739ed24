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


@pytest.mark.parametrize("pages", [1, 512, 1 << 18])
def test_a_returned_array(benchmark, guest, pages):
    """A call that returns an array of so many numbers, which the caller owns."""
    _, vm, _ = guest
    found = benchmark(vm.mm.page_generations, vm.address, yb.Pages(pages))
    assert len(found) == pages
    benchmark.extra_info["ns_an_element"] = benchmark.stats.stats.median / pages * 1e9


def test_an_empty_run(benchmark, guest):
    """What a run of one access costs: streams, statistics, counters."""
    _, vm, _ = guest
    stream = access.arrays([0])
    assert benchmark(vm.run, stream).counters["guest_accesses"] == 1


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


@pytest.mark.parametrize("notifier", ["none", "default", "python"])
def test_aging_that_asks_a_notifier(benchmark, notifier):
    """A pass over 16 MiB of a process, once a page: nobody, one whose methods
    are those of the base class, one with methods of its own."""

    class Device(yb.MmuNotifier):
        has_fast_aging = True
        calls = 0

        def clear_young(self, start, end, fast_only):
            Device.calls += 1
            return False

    kinds = {"default": yb.MmuNotifier, "python": Device}
    host = yb.Host("32M", clock="virtual")
    mm = host.create_mm(host.create_memcg("/device"))
    mm.touch(mm.mmap("16M"), "16M", write=True)
    lru = host.lru_gen(mm.memcg)
    lru.age()
    registration = mm.register(kinds[notifier]()) if notifier in kinds else None
    benchmark.pedantic(lru.age, rounds=9, warmup_rounds=1)
    if notifier == "python":
        assert Device.calls == 10 * 4096
    if registration is not None:
        registration.unregister()
    benchmark.extra_info["ns_a_page"] = benchmark.stats.stats.median / 4096 * 1e9
