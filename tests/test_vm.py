from __future__ import annotations

import errno
import json
import signal
import threading
import time

import numpy as np
import pytest

import youngbit as yb
from youngbit import access
from youngbit import vm as vm_module

MODES = ["inline", "live"]


def machine(memory="8M", *, host_options=None, **options) -> tuple[yb.Host, yb.Vm, yb.LruGen]:
    host = yb.Host("32M", **({"clock": "virtual"} | (host_options or {})))
    vm = host.create_vm(memory, **options)
    return host, vm, host.lru_gen(vm.memcg)


def touched(vm: yb.Vm, lru: yb.LruGen, stream, **options) -> set[int]:
    """The guest pages that aging says a stream touched."""
    lru.age()
    vm.run(stream, **options)
    stats = lru.age()
    return set(np.flatnonzero(vm.page_generations() == stats.seq).tolist())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {"mmu": "shadow"},
        {"mmu": "shadow", "direct": True},
        {"mmu": "shadow", "aliases": 16},
        {"mmu": "nested"},
    ],
    ids=str,
)
def test_rmaps_are_aged_too(mode, options):
    host, vm, lru = machine(tlb_entries=0, vcpus=2, **options)
    vm.run(access.sequential(write=True), mode=mode)
    assert touched(vm, lru, access.strided(5), mode=mode) >= {*range(0, 1024, 5)}
    pages = {page for page in range(2048) if page % 7 == 0}
    own = access.arrays(sorted(pages), False)
    assert touched(vm, lru, own, mode=mode) == pages
    assert host.counters["rmap_sptes"] > 0
    assert host.counters["poison_reads"] == 0


def test_two_dimensional_paging_never_sees_how_often_the_guest_maps_a_page():
    counters = []
    for aliases in (1, 3):
        host, vm, lru = machine(tlb_entries=0, aliases=aliases)
        vm.run(access.sequential(write=True))
        assert touched(vm, lru, access.strided(5)) >= {*range(0, 1024, 5)}
        counters.append(host.counters)
    assert counters[1]["rmap_sptes"] == 0
    assert counters[1]["sptes_aged"] == counters[0]["sptes_aged"] > 0


def test_a_nested_guest_and_its_guest_touch_the_same_pages():
    _, vm, lru = machine(mmu="nested", tlb_entries=0)
    vm.run(access.sequential(write=True))
    assert touched(vm, lru, access.strided(2)) == set(range(0, 2048, 2))
    vm.set_guest_mode(l2=False)
    assert touched(vm, lru, access.strided(3)) == set(range(0, 2048, 3))
    with pytest.raises(OSError, match="only a vCPU of a nested VM"):
        machine()[1].set_guest_mode(l2=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vcpus", [1, 3])
def test_only_vcpus_touch_guest_memory_and_aging_sees_it(mode, vcpus):
    host, vm, lru = machine(vcpus=vcpus, tlb_entries=0)
    stats = vm.run(access.sequential(write=True), mode=mode)
    assert stats.counters["guest_accesses"] == vm.nr_pages == 2048
    assert stats.counters["kvm_page_faults"] >= 2048
    assert len(stats.vcpu_seconds) == vcpus
    # The process itself never touched it: its own page tables are old.
    lru.age()
    assert vm.mm.resident(vm.address, "8M") == (2048, 0)
    first = access.sequential(region=(0, "1M"))
    assert touched(vm, lru, first, mode=mode) == set(range(256))
    assert lru.generations().nr_pages == 2048
    assert host.counters["poison_reads"] == 0


@pytest.mark.parametrize(
    ("stream", "pages", "accesses"),
    [
        (access.sequential(passes=2, region=("1M", "1M")), set(range(256, 512)), 512),
        (access.strided(512), {0, 512, 1024, 1536}, 4),
        (access.strided(512, offset=7), {7, 519, 1031, 1543}, 4),
        (access.strided(1024, passes=3), {0, 1024, 1, 1025, 2, 1026}, 6),
        (access.strided(3, passes=3), set(range(2048)), 2048),
        (access.strided(1000, passes=1001), set(range(2048)), 2051),
        (access.uniform(40_000, seed=3), set(range(2048)), 40_000),
        (access.arrays([5, 2000, 5], [True, False, False]), {5, 2000}, 3),
    ],
)
def test_streams_touch_what_they_say(stream, pages, accesses):
    _, vm, lru = machine(tlb_entries=0)
    populated = vm.run(access.sequential(write=True))
    assert populated.counters["dirty_set"] == 0  # born dirty
    assert touched(vm, lru, stream) == pages
    assert vm.run(stream).counters["guest_accesses"] == accesses


def test_zipf_and_hot_cold_are_skewed():
    _, vm, lru = machine(tlb_entries=0)
    vm.run(access.sequential(write=True))
    hot = access.hot_cold(accesses=20_000, hot_fraction=0.1, hot_probability=1.0, seed=1)
    assert touched(vm, lru, hot) == set(range(205))
    flat = access.zipf(1.0, accesses=1000, seed=1, shuffle=False)
    spread = access.zipf(1.0, accesses=1000, seed=1)
    low = touched(vm, lru, flat)
    assert {0, 1, 2, 3} <= low
    assert np.median(list(low)) < 600
    assert abs(np.median(list(touched(vm, lru, spread))) - 1024) < 250


def test_a_share_of_the_accesses_writes():
    _, vm, lru = machine(tlb_entries=0)
    # Reads find the zero page, which is nobody's; writes get pages of their own.
    vm.run(access.sequential())
    lru.age()
    assert lru.generations().nr_pages == 0
    vm.run(access.sequential(write=0.5, seed=1))
    assert 900 < lru.generations().nr_pages < 1150


def test_inline_runs_repeat_to_the_bit_and_seeds_matter():
    def run(seed):
        _, vm, lru = machine(vcpus=2, tlb_entries=96)
        total = []
        for stream in (
            access.sequential(write=True),
            access.zipf(0.8, accesses=5000, seed=seed, write=0.3),
            access.uniform(700, seed=seed),
        ):
            total.append(vm.run(stream).counters)
            total.append(lru.age().counters)
        return total, lru.generations(), vm.page_generations().tolist()

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_shares_and_overlap():
    _, vm, _ = machine(vcpus=2, tlb_entries=0)
    assert vm.run(access.sequential(write=True)).counters["guest_accesses"] == 2048
    assert vm.run(access.sequential(), overlap=True).counters["guest_accesses"] == 4096
    own = [access.sequential(region=(0, "4k")), access.sequential(region=("4k", "12k"))]
    assert vm.run(own).counters["guest_accesses"] == 4


def test_a_tlb_hit_sets_no_accessed_bit():
    host, vm, lru = machine("64k", tlb_entries=64)
    vm.run(access.sequential(write=True))
    lru.age()
    stats = vm.run(access.sequential())
    assert stats.counters["tlb_hits"] == 16
    stale = lru.age()
    assert stale.counters["notifier_young"] == 0
    # The flushing notifier flushes when it finds something young.
    assert vm.mm.clear_flush_young(vm.address, "64k") is False
    host, vm, lru = machine("64k", tlb_entries=64)
    vm.run(access.sequential(write=True))
    assert vm.mm.clear_flush_young(vm.address, "64k") is True
    assert host.counters["tlb_flushes"] == 1
    assert vm.run(access.sequential()).counters["tlb_hits"] == 0
    assert vm.mm.clear_flush_young(vm.address, "64k") is True


@pytest.mark.parametrize("backing", ["2m", "1g"])
def test_huge_pages_are_aged_whole(backing):
    size = {"2m": 4 << 20, "1g": 1 << 30}[backing]
    host = yb.Host(2 * size, clock="virtual")
    vm = host.create_vm(size, backing=backing, tlb_entries=0)
    stats = vm.run(access.strided(512, write=True))
    assert stats.counters["kvm_page_faults"] == {"2m": 2, "1g": 1}[backing]
    assert vm.mm.test_young(vm.address + 12345)
    assert vm.mm.clear_young(vm.address, "4k")
    assert not vm.mm.test_young(vm.address + (1 << 21) - 4096)


@pytest.mark.parametrize("protocol", ["baseline", "v7", "v9"])
@pytest.mark.parametrize("ad", [True, False])
def test_protocols_find_the_same_at_different_cost(protocol, ad):
    _, vm, lru = machine(protocol=protocol, ad=ad, tlb_entries=0)
    vm.run(access.sequential(write=True))
    locks = vm.run(access.sequential()).counters["mmu_lock_write"]
    assert locks == 0
    pages = touched(vm, lru, access.strided(3))
    assert pages == set(range(0, 2048, 3))
    cost = lru.age().counters
    if protocol == "baseline":
        assert cost["mmu_lock_write"] == 2048
        assert cost["notifier_clear_young_slow"] == 2048
    else:
        assert cost["mmu_lock_write"] == cost["mmu_lock_read"] == 0
        fast = "notifier_clear_young_fast" if protocol == "v7" else "notifier_clear_young_slow"
        assert cost[fast] == 2048


def test_page_idle():
    _, vm, _ = machine(tlb_entries=0)
    assert vm.mark_idle().to_dict() == {"marked": 0, "still_idle": 0, "absent": 2048}
    vm.run(access.sequential(write=True))
    assert vm.mark_idle().marked == 2048
    assert vm.test_idle().all()
    vm.run(access.sequential(region=(0, "1M")))
    idle = vm.test_idle()
    assert not idle[:256].any()
    assert idle[256:].all()
    assert vm.mark_idle(0, 512).to_dict() == {"marked": 256, "still_idle": 256, "absent": 0}


def test_tracepoints_are_arrays():
    host, vm, lru = machine("1M", tlb_entries=0)
    vm.run(access.sequential(write=True))
    assert host.drain_trace() == {}
    host.trace("kvm_age_hva", "kvm_tdp_mmu_spte_changed")
    assert host.tracepoints == ["kvm_age_hva", "kvm_tdp_mmu_spte_changed"]
    lru.age()
    found = host.drain_trace()
    ages = found["kvm_age_hva"].to_dict()
    assert ages["start"].tolist() == [vm.address + 4096 * i for i in range(256)]
    assert (ages["end"] - ages["start"] == 4096).all()
    assert (ages["fast_only"] == 1).all()
    assert len(found["kvm_tdp_mmu_spte_changed"]) == 256
    assert host.drain_trace() == {}


@pytest.mark.parametrize("mode", MODES)
def test_running_while_aging(mode):
    _, vm, lru = machine("16M", vcpus=2, tlb_entries=0, host_options={"clock": "real"})
    stats, passes = vm.run_while_aging(access.sequential(write=True, passes=20), lru)
    assert stats.counters["guest_accesses"] == 20 * 4096
    assert all(seconds >= 0 for seconds in passes)
    lru.age()
    assert lru.generations().nr_pages == 4096
    assert vm.run(access.sequential(), mode=mode).counters["kvm_page_faults"] == 0


def test_a_notifier_beside_the_vm_is_asked_too():
    class Device(yb.MmuNotifier):
        has_fast_aging = True

        def clear_young(self, start, end, fast_only):
            return start == self.page

    _, vm, lru = machine("1M", tlb_entries=0)
    vm.run(access.sequential(write=True))
    lru.age()
    device = Device()
    device.page = vm.address + 7 * 4096
    with vm.mm.register(device):
        stats = lru.age()
    assert np.flatnonzero(vm.page_generations() == stats.seq).tolist() == [7]


def test_what_is_returned_is_plain():
    _, vm, _ = machine(vcpus=2)
    stats = vm.run(access.sequential(write=True))
    json.dumps([stats.to_dict(), vm.to_dict(), vm.mark_idle().to_dict()])
    assert str(stats).startswith("run of 2 vCPUs: ")
    assert repr(vm).startswith("Vm(memory=8388608, vcpus=2, mmu='tdp', protocol='v7'")
    assert repr(vm.mm).startswith("Mm(id=")


def test_a_vm_that_goes_takes_its_process_with_it():
    host, vm, _ = machine()
    vm.run(access.sequential(write=True))
    free = host.to_dict()["nodes"][0]["free"]
    process = vm.mm
    del vm
    assert process.resident(1 << 32, "1M")[0] >= 0
    assert host.to_dict()["nodes"][0]["free"] == free
    del process
    assert host.to_dict()["nodes"][0]["free"] == free + 2048


@pytest.mark.parametrize("mode", MODES)
def test_ctrl_c_stops_a_run_that_would_take_days(mode):
    _, vm, lru = machine(vcpus=2)
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        vm.run(access.uniform(10**12, seed=1, write=True), mode=mode)
    # The model is whole: it ages and runs on.
    lru.age()
    assert lru.generations().nr_pages == 2048
    assert vm.run(access.sequential(), mode=mode).counters["guest_accesses"] == 2048


def test_threads_may_share_a_host():
    host = yb.Host("64M")
    vms = [host.create_vm("8M", vcpus=1, tlb_entries=0) for _ in range(3)]
    errors = []

    def work(vm):
        try:
            lru = host.lru_gen(vm.memcg)
            for _ in range(10):
                vm.run(access.sequential(write=True))
                lru.age()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[vm]) for vm in vms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for vm in vms:
        assert host.lru_gen(vm.memcg).generations().nr_pages == 2048
    assert host.counters["guest_accesses"] == 3 * 10 * 2048


def test_one_vm_is_run_by_one_thread_at_a_time():
    _, vm, _ = machine()
    running = threading.Event()
    errors = []

    def long_run():
        running.set()
        vm.run(access.uniform(3_000_000, seed=1, write=True))

    thread = threading.Thread(target=long_run)
    thread.start()
    running.wait()
    time.sleep(0.02)
    try:
        vm.run(access.sequential())
    except OSError as error:
        errors.append(error.errno)
    thread.join()
    assert errors in ([16], [])  # EBUSY, unless the run was over


def test_a_host_runs_one_kernel():
    """What aging asks is the host's: a VM whose kernel would ask something else is refused."""
    host = yb.Host("32M", clock="virtual")
    host.create_vm("4M", protocol="baseline")
    assert (host.aging_asks, host.capabilities) == ("accurate", 0x7)
    with pytest.raises(ValueError, match="'v7' is of a kernel whose aging asks 'fast_only', and"
                       " this host runs one whose aging asks 'accurate', as its first VM is of"
                       " protocol 'baseline'"):  # fmt: skip
        host.create_vm("4M", protocol="v7")
    assert [memcg["name"] for memcg in host.to_dict()["memcgs"]] == ["/", "/vm0"]
    # Kernels of these two ask the same.
    assert host.create_vm("4M", protocol="v9").to_dict()["aging_asks"] == "accurate"


@pytest.mark.parametrize("first", ["baseline", "v9"])
def test_a_vm_is_aged_whatever_the_host_had_before(first):
    host = yb.Host("32M", clock="virtual")
    host.create_vm("4M", protocol=first)
    vm = host.create_vm("4M", protocol="v7", aging_asks="fast_only", tlb_entries=0)
    assert (host.aging_asks, host.capabilities) == ("fast_only", 0xF)
    lru = host.lru_gen(vm.memcg)
    vm.run(access.sequential(write=True))
    lru.age()
    vm.run(access.sequential())
    stats = lru.age()
    assert stats.counters["notifier_clear_young_fast"] == stats.counters["mm_leaf_young"] == 1024


def test_what_aging_asks_holds_for_all_vms_once_it_is_chosen():
    host = yb.Host("32M", clock="virtual")
    host.aging_asks = "accurate"
    vms = [host.create_vm("4M", protocol=name) for name in ("v7", "baseline", "v9")]
    assert {vm.to_dict()["aging_asks"] for vm in vms} == {host.aging_asks} == {"accurate"}
    host.create_vm("4M", protocol="baseline", aging_asks="none")
    assert host.aging_asks == "none"
    host.create_vm("4M", protocol="v7")
    assert host.aging_asks == "none"


# Memslots, and several VMs of one process


def test_memslots_are_made_moved_and_deleted():
    host, vm, _ = machine("4M", tlb_entries=0)
    whole = yb.Memslot(0, 0, 4 << 20, vm.address, 0)
    assert vm.memslots() == [whole]
    more = vm.mm.mmap("2M")
    beyond = access.sequential(write=True, region=("8M", "2M"))
    with pytest.raises(OSError, match="guest's 1024 pages"):
        vm.run(beyond)
    vm.set_memory_region(7, guest_phys_addr=8 << 20, memory_size="2M", userspace_addr=more)
    slot = yb.Memslot(7, 8 << 20, 2 << 20, more, 0)
    assert vm.memslots() == [whole, slot]
    assert slot.to_dict()["guest_phys_addr"] == 8 << 20
    vm.run(beyond)
    assert vm.mm.resident(more, "2M")[0] == 512
    # A stream without a region stays in what the VM was made with.
    vm.run(access.sequential(write=True))
    assert vm.mm.resident(vm.address, "4M")[0] == 1024
    with pytest.raises(OSError) as caught:
        vm.run(access.sequential(region=("4M", "4M")))
    assert caught.value.errno == errno.EFAULT
    # Moved, the same memory is elsewhere.
    vm.set_memory_region(7, guest_phys_addr=16 << 20, memory_size="2M", userspace_addr=more)
    assert vm.memslots()[1].guest_phys_addr == 16 << 20
    faults = host.counters["pgfault"]
    vm.run(access.sequential(write=True, region=("16M", "2M")))
    assert host.counters["pgfault"] == faults
    with pytest.raises(OSError):
        vm.run(beyond)
    for flags in (vm_module.LOG_DIRTY_PAGES, 0):
        vm.set_memory_region(
            7, guest_phys_addr=16 << 20, memory_size="2M", userspace_addr=more, flags=flags
        )
        assert vm.memslots()[1].flags == flags
    vm.set_memory_region(7)
    assert vm.memslots() == [whole]
    with pytest.raises(OSError):
        vm.run(access.sequential(region=("16M", "2M")))
    vm.mm.munmap(more, "2M")
    host.check()


def test_a_memslot_that_is_read_only_cannot_be_written():
    _, vm, _ = machine("4M", tlb_entries=0)
    more = vm.mm.mmap("1M", kind="shmem")
    vm.set_memory_region(
        1, guest_phys_addr=4 << 20, memory_size="1M", userspace_addr=more, flags=vm_module.READONLY
    )
    vm.run(access.sequential(region=("4M", "1M")))
    with pytest.raises(OSError):
        vm.run(access.sequential(region=("4M", "1M"), write=True))


@pytest.mark.parametrize(
    ("change", "number", "says"),
    [
        ({"slot": 1, "guest_phys_addr": 0}, errno.EEXIST, "overlap"),
        ({"slot": 1, "guest_phys_addr": 5}, errno.EINVAL, "not a multiple"),
        ({"memory_size": "4M"}, errno.EINVAL, "size cannot change"),
        ({"userspace_addr": 1 << 40}, errno.EINVAL, "userspace_addr cannot change"),
        ({"flags": 2}, errno.EINVAL, "read-only cannot change"),
        ({"flags": 1 << 16}, errno.EINVAL, "flags 0x10000 unknown"),
        ({"slot": 32764}, errno.EINVAL, "slot numbers go from 0 to 32763"),
        ({"slot": 9, "memory_size": 0}, errno.EINVAL, "does not exist"),
    ],
)
@pytest.mark.parametrize("mmu", ["tdp", "shadow"])
def test_errors_of_memslots_are_the_kernels(change, number, says, mmu):
    _, vm, _ = machine("8M", mmu=mmu)
    before = vm.memslots()
    region = {"slot": 0, "guest_phys_addr": 0, "memory_size": "8M", "userspace_addr": vm.address}
    with pytest.raises(OSError, match=says) as caught:
        vm.set_memory_region(**(region | change))
    assert caught.value.errno == number
    assert vm.memslots() == before


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_the_slot_of_the_guests_own_page_tables_is_nobodys(mmu):
    _, vm, _ = machine("4M", mmu=mmu)
    assert vm.memslots() == [yb.Memslot(0, 0, 4 << 20, vm.address, 0)]
    with pytest.raises(OSError, match="own page tables") as caught:
        vm.set_memory_region(32763)
    assert caught.value.errno == errno.EINVAL
    vm.run(access.sequential(write=True))


@pytest.mark.parametrize("mmu", ["tdp", "shadow", "nested"])
def test_two_vms_of_a_process_see_the_same_memory(mmu):
    """What only the second guest touches gets younger: aging asks both."""
    host = yb.Host("32M", clock="virtual")
    first = host.create_vm("4M", mmu=mmu, tlb_entries=0)
    first.run(access.sequential(write=True))
    second = host.create_vm("1M", mmu=mmu, mm=first.mm, tlb_entries=0)
    assert second.mm.id == first.mm.id
    assert second.memcg == first.memcg
    assert second.address != first.address
    second.set_memory_region(
        1, guest_phys_addr=16 << 20, memory_size="4M", userspace_addr=first.address
    )
    faults = host.counters["pgfault"]
    shared = access.sequential(region=("16M", "4M"))
    second.run(shared)
    assert host.counters["pgfault"] - faults <= 16  # page tables of the guest's own
    lru = host.lru_gen(first)
    lru.age()
    second.run(access.sequential(region=("16M", "1M")))
    seq = lru.age().seq
    young = np.flatnonzero(first.page_generations() == seq)
    assert young.tolist() == list(range(256))


def test_a_process_ends_with_the_last_of_its_vms():
    host = yb.Host("32M", clock="virtual")
    first = host.create_vm("4M")
    first.run(access.sequential(write=True))
    second = host.create_vm("1M", mm=first.mm)
    second.run(access.sequential(write=True))
    memcg = first.memcg
    charged = memcg.to_dict()["pages"]
    assert charged >= 1280
    del first
    assert memcg.to_dict()["pages"] == charged
    second.run(access.sequential(write=True, passes=2))
    host.check()
    del second
    assert memcg.to_dict()["pages"] == 0
    host.check()


def test_a_process_that_was_made_without_a_vm_outlives_it():
    host = yb.Host("32M", clock="virtual")
    mm = host.create_mm(host.create_memcg("/vmm"))
    vm = host.create_vm("4M", mm=mm, memcg="/vmm")
    address = vm.address
    vm.run(access.sequential(write=True))
    del vm
    assert mm.resident(address, "4M")[0] == 1024
    assert mm.clear_young(address, "4M") is False
    host.create_memcg("/other")
    with pytest.raises(ValueError, match="'/other' is not that of the process, '/vmm'"):
        host.create_vm("4M", mm=mm, memcg="/other")
    mm.exit()
    with pytest.raises(OSError, match="has ended") as caught:
        host.create_vm("4M", mm=mm)
    assert caught.value.errno == errno.EINVAL


def test_a_vm_that_cannot_be_made_leaves_a_process_as_it_was():
    host = yb.Host("32M", clock="virtual")
    vm = host.create_vm("4M")
    vm.run(access.sequential(write=True))
    before = vm.mm.to_dict()
    with pytest.raises(OSError, match="EPT"):
        host.create_vm("4M", mm=vm.mm, format="npt", ad=False)
    assert vm.mm.to_dict() == before
    vm.run(access.sequential(write=True))
    host.check()
