from __future__ import annotations

import errno
import json
import signal
import threading

import numpy as np
import pytest

import youngbit as yb


class Counting(yb.MmuNotifier):
    """Remembers how it was called and answers as told."""

    def __init__(self, young: object = False):
        self.young = young
        self.calls: list[tuple] = []

    def clear_flush_young(self, start, end):
        self.calls.append(("clear_flush_young", start, end))
        return self.young

    def clear_young(self, start, end, fast_only):
        self.calls.append(("clear_young", start, end, fast_only))
        return self.young

    def test_young(self, address, fast_only):
        self.calls.append(("test_young", address, fast_only))
        return self.young

    def invalidate_range_start(self, start, end):
        self.calls.append(("invalidate_range_start", start, end))

    def invalidate_range_end(self, start, end):
        self.calls.append(("invalidate_range_end", start, end))

    def release(self):
        self.calls.append(("release",))


@pytest.fixture
def host() -> yb.Host:
    return yb.Host(memory="16M", clock="virtual")


@pytest.fixture
def mm(host) -> yb.Mm:
    return host.create_mm(host.create_memcg("/test"))


def test_host_describes_itself(host):
    assert repr(host) == "Host(memory=16M, capabilities=0x000f)"
    assert host.to_dict()["nodes"][0]["pages"] == 4096
    json.dumps(host.to_dict())
    assert yb.Host(["16M", yb.Pages(1024)]).to_dict()["nodes"][1]["pages"] == 1024


def test_capabilities_ignore_unknown_bits(host):
    host.capabilities = 0xFFF7
    assert host.capabilities == 0x7


def test_virtual_time(host):
    assert host.time_ns == 0
    host.advance(1.5)
    assert host.time_ns == 1_500_000_000


def test_memory_is_mapped_touched_and_unmapped(host, mm):
    address = mm.mmap("1M")
    assert mm.resident(address, "1M") == (0, 0)
    mm.touch(address, "64k", write=True)
    assert mm.resident(address, "1M") == (16, 16)
    free = host.to_dict()["nodes"][0]["free"]
    mm.munmap(address, "1M")
    assert mm.resident(address, "1M") == (0, 0)
    assert host.to_dict()["nodes"][0]["free"] == free + 16
    assert host.counters["pgfault"] == 16
    assert mm.memcg == yb.Memcg(2, "/test")


def test_huge_pages(mm):
    address = mm.mmap("4M", backing="2m")
    mm.touch(address, "4k", write=True)
    assert mm.resident(address, "4M") == (512, 512)


def test_a_notifier_is_asked_and_told(mm):
    address = mm.mmap("1M")
    mm.touch(address, "8k", write=True)
    notifier = Counting(young=True)
    with mm.register(notifier):
        assert mm.clear_young(address, "4k") is True
        assert mm.clear_flush_young(address, "8k") is True
        assert mm.test_young(address) is True
        mm.munmap(address, "4k")
    assert notifier.calls == [
        ("clear_young", address, address + 4096, False),
        ("clear_flush_young", address, address + 8192),
        ("test_young", address, False),
        ("invalidate_range_start", address, address + 4096),
        ("invalidate_range_end", address, address + 4096),
        ("release",),
    ]
    assert mm.clear_young(address, "4k") is False
    assert len(notifier.calls) == 6


def test_missing_operations_are_skipped(mm):
    class OnlyTest(yb.MmuNotifier):
        def test_young(self, address, fast_only):
            return True

    address = mm.mmap("1M")
    with mm.register(OnlyTest()) as registration:
        assert mm.clear_young(address, "4k") is False
        assert mm.test_young(address) is True
        assert not registration.has_fast_aging
    assert repr(OnlyTest()) == "OnlyTest(operations=['test_young'], has_fast_aging=False)"


def test_fast_only_skips_those_that_are_not_fast(mm):
    class Fast(Counting):
        has_fast_aging = True

    address = mm.mmap("1M")
    slow, fast = Counting(young=True), Fast()
    with mm.register(slow):
        assert not mm.has_fast_young_notifiers
        with mm.register(fast) as registration:
            assert registration.has_fast_aging
            assert mm.has_fast_young_notifiers
            assert mm.clear_young(address, "4k", fast_only=True) is False
            assert mm.clear_young(address, "4k") is True
        assert not mm.has_fast_young_notifiers
    assert fast.calls[0] == ("clear_young", address, address + 4096, True)
    assert len(slow.calls) == 2


def test_what_a_notifier_raises_is_raised_by_the_call(mm):
    class Failing(yb.MmuNotifier):
        def clear_young(self, start, end, fast_only):
            raise LookupError("no such page here")

    address = mm.mmap("1M")
    with mm.register(Failing()):
        with pytest.raises(LookupError, match="no such page here") as caught:
            mm.clear_young(address, "4k")
        assert caught.traceback[-1].name == "clear_young"
        assert mm.clear_flush_young(address, "4k") is False


def test_ctrl_c_ends_a_notifier_that_hangs(host, mm):
    class Hanging(yb.MmuNotifier):
        def __init__(self):
            self.called = threading.Event()

        def clear_young(self, start, end, fast_only):
            self.called.set()
            while True:
                pass

    def interrupt():
        if notifier.called.wait(60):
            signal.raise_signal(signal.SIGINT)

    address = mm.mmap("1M")
    notifier = Hanging()
    with mm.register(notifier):
        waiting = threading.Thread(target=interrupt)
        waiting.start()
        with pytest.raises(KeyboardInterrupt):
            mm.clear_young(address, "4k")
        waiting.join()
    # The model is whole: without the notifier it answers and gives its memory back.
    assert mm.clear_young(address, "4k") is False
    mm.munmap(address, "1M")


@pytest.mark.parametrize("nonsense", [None, 1, "yes", np.bool_(True)])
def test_an_answer_that_is_no_bool_is_an_error(mm, nonsense):
    address = mm.mmap("1M")
    with (
        mm.register(Counting(young=nonsense)),
        pytest.raises(TypeError, match=r"clear_young\(\) returned .*, expected a bool"),
    ):
        mm.clear_young(address, "4k")


def test_a_callback_cannot_call_into_the_machine(mm):
    class Curious(yb.MmuNotifier):
        def clear_young(self, start, end, fast_only):
            mm.munmap(start, "4k")
            return True

    address = mm.mmap("1M")
    with mm.register(Curious()), pytest.raises(OSError, match="locks") as caught:
        mm.clear_young(address, "4k")
    assert caught.value.errno == errno.EBUSY


def test_exit_releases_notifiers_and_memory(host, mm):
    address = mm.mmap("1M")
    mm.touch(address, "1M", write=True)
    notifier = Counting()
    mm.register(notifier)
    mm.exit()
    assert notifier.calls[-1] == ("release",)
    assert host.to_dict()["memcgs"][1]["pages"] == 0


def test_errors_of_the_machine_are_oserrors(host, mm):
    address = mm.mmap("1M", address=1 << 30)
    with pytest.raises(FileExistsError) as caught:
        mm.mmap("1M", address=address)
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(OSError, match="overlaps"):
        mm.mmap("1M", address=address)
    with pytest.raises(FileExistsError):
        host.create_memcg("/test")
    with pytest.raises(OSError) as caught:
        mm.touch(1 << 40, "4k")
    assert caught.value.errno == errno.EFAULT
    big = mm.mmap("64M")
    with pytest.raises(OSError) as caught:
        mm.touch(big, "64M", write=True)
    assert caught.value.errno == errno.ENOMEM


def test_build_info():
    info = yb.build_info()
    assert info["version"] == yb.__version__
    assert info["rustc"].startswith("rustc ")


# Whose an object is


def two_hosts() -> list[yb.Host]:
    return [yb.Host(size, clock="virtual") for size in ("16M", "32M")]


FOREIGN = {
    "lru_gen-memcg": lambda here, there: here.lru_gen(there.memcg),
    "lru_gen-mm": lambda here, there: here.lru_gen(there.mm),
    "lru_gen-vm": lambda here, there: here.lru_gen(there),
    "create_mm": lambda here, there: here.create_mm(there.memcg),
    "create_vm-memcg": lambda here, there: here.create_vm("1M", memcg=there.memcg),
    "create_vm-mm": lambda here, there: here.create_vm("1M", mm=there.mm),
    "run_while_aging": lambda here, there: here.create_vm("1M").run_while_aging(
        yb.access.sequential(), there._host.lru_gen(there)
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_another_hosts_is_refused(case):
    """Its number means something else here: this host has a memory cgroup 1 too."""
    here, there = two_hosts()
    here.create_memcg("/mine")
    vm = there.create_vm("1M")
    with pytest.raises(ValueError, match=r"is of another host, Host\(memory=32M, .*and not of"
                       r" this, Host\(memory=16M"):  # fmt: skip
        FOREIGN[case](here, vm)
    assert here.counters["pgfault"] == 0
    assert len(here._native.memcgs()) == (3 if case == "run_while_aging" else 2)


def test_a_memory_cgroup_by_its_name_and_by_who_is_in_it():
    host = yb.Host("32M", clock="virtual")
    vm = host.create_vm("1M")
    mm = host.create_mm("/vm0")
    assert mm.memcg == vm.memcg
    for who in (vm, vm.mm, mm, vm.memcg, "/vm0", yb.Memcg(vm.memcg.id, "/vm0")):
        lru = host.lru_gen(who)
        assert lru.memcg == vm.memcg
        assert lru.age().max_seq == lru.generations().max_seq
        assert host.create_vm("1M", memcg=who).memcg == vm.memcg
    assert host.lru_gen().memcg == host.lru_gen("/").memcg == host.root


# What things say of themselves


def test_everything_of_a_machine_is_a_plain_dict_too(host, mm):
    address = mm.mmap("1M")
    mm.touch(address, "64k", write=True)
    with mm.register(Counting()) as registration:
        assert registration.to_dict() == {
            "mm": mm.id,
            "notifier": "Counting",
            "operations": [*yb.MmuNotifier.OPERATIONS],
            "has_fast_aging": False,
        }
        assert repr(registration).startswith("Registration(Counting(operations=['clear_flush")
    assert mm.memcg.to_dict() == {"id": 2, "name": "/test", "pages": 16}
    assert yb.Memcg(3, "/elsewhere").to_dict() == {"id": 3, "name": "/elsewhere"}
    assert mm.to_dict() == {
        "id": mm.id,
        "memcg": {"id": 2, "name": "/test", "pages": 16},
        "has_fast_young_notifiers": False,
    }
    lru = host.lru_gen(mm)
    assert lru.to_dict() == {
        "memcg": {"id": 2, "name": "/test", "pages": 16},
        "node": 0,
        "generations": lru.generations().to_dict(),
    }
    vm = host.create_vm("1M")
    for each in (host, mm, mm.memcg, lru, registration, vm, vm.memslots()[0],
                 lru.generations(), lru.generations()[0], lru.age(), lru.evict(0),
                 vm.run(yb.access.sequential()), vm.mark_idle(), host.histograms()[0]):  # fmt: skip
        assert json.loads(json.dumps(each.to_dict())) == each.to_dict()


# Slips of the pen in subclasses


def test_a_notifier_without_operations_is_refused(mm):
    with pytest.raises(
        TypeError, match=r"^MmuNotifier has no operation: expected some of clear_fl"
    ):
        mm.register(yb.MmuNotifier())

    class Fast(yb.MmuNotifier):
        has_fast_aging = True

        def touched(self):
            return []

    with pytest.raises(TypeError, match="Fast has no operation"):
        mm.register(Fast())


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("clear_yuong", "clear_young"),
        ("clearYoung", "clear_young"),
        ("test_yong", "test_young"),
        ("invalidate_range_strat", "invalidate_range_start"),
        ("realease", "release"),
    ],
)
def test_an_operation_misspelt_is_refused(mm, name, meant):
    typo = type("Typo", (Counting,), {name: lambda self, start, end, fast_only: True})
    with pytest.raises(TypeError, match=f"^Typo.{name}: nobody calls it, and MmuNotifier has"
                       f" {meant};"):  # fmt: skip
        mm.register(typo())
    assert not mm.clear_young(mm.mmap("4k"), "4k")


def test_methods_of_ones_own_are_ones_own(mm):
    class Own(Counting):
        released = False

        def young_pages(self):
            return 0

        @property
        def test_yuong(self):
            raise AssertionError("nobody asked for it")

        def _clear_yuong(self):
            return 0

        def clear(self):
            return 0

        def clear_young(self, *args):
            return False

        def test_young(self, address, fast_only, note=None):
            return False

    address = mm.mmap("4k")
    with mm.register(Own()):
        assert mm.clear_young(address, "4k") is mm.test_young(address) is False


@pytest.mark.parametrize(
    ("name", "method", "called"),
    [
        ("clear_young", lambda self, start, end: True, "(start, end, fast_only)"),
        ("test_young", lambda self, address, fast_only, more: True, "(address, fast_only)"),
        ("test_young", lambda self, address, *, fast_only: True, "(address, fast_only)"),
        ("release", lambda self, mm: None, "()"),
    ],
)
def test_an_operation_with_other_parameters_is_refused(mm, name, method, called):
    wrong = type("Wrong", (Counting,), {name: method})
    with pytest.raises(TypeError, match=rf"^Wrong\.{name}\(.*\): is called with ") as caught:
        mm.register(wrong())
    assert str(caught.value).endswith(f"is called with {called}")


def test_a_decision_misspelt_or_with_other_parameters_is_refused(host):
    class Typo(yb.lru_gen.Policy):
        def chooose(self, view, swappiness, may_io, kernel):
            return kernel

    class Short(yb.lru_gen.Policy):
        def tier(self, view, kind):
            return 0

    with pytest.raises(TypeError, match=r"^Typo.chooose: nobody calls it, and Policy has choose;"):
        host.policy = Typo()
    with pytest.raises(TypeError, match=r"^Short.tier\(view, kind\): is called with \(view, kind,"):
        host.policy = Short()
    assert host.policy is None

    class Fine(yb.lru_gen.Policy):
        def tier(self, *args):
            return args[-1]

    host.policy = Fine()
    assert host.policy.overridden() == ["tier"]
