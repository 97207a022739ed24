"""Reclaim through the public interface: files, policies, faults injected."""

# ruff: noqa: PT017 - what is wrong may be raised, or not.

from __future__ import annotations

import errno
import random
import re
import threading
from pathlib import Path

import numpy as np
import pytest

import youngbit as yb
from youngbit import access, lru_gen


def machine(
    memory: str = "4M", *, host: str = "32M", swap: str = "16M", **options
) -> tuple[yb.Host, yb.Vm]:
    made = yb.Host(host, swap=swap, clock="virtual")
    return made, made.create_vm(memory, tlb_entries=0, **options)


def evict(host: yb.Host, memcg: yb.Memcg, nr: int) -> None:
    lru = host.lru_gen(memcg)
    lru.age()
    lru.age()
    oldest = lru.generations().max_seq - 2
    host.debugfs["lru_gen"].write(f"- {memcg.id} 0 {oldest} 200 {nr}")


# Files


def test_memcg_files():
    host, vm = machine()
    vm.run(access.sequential(write=True))
    files = vm.memcg.files
    assert list(files) == [
        "memory.current",
        "memory.high",
        "memory.max",
        "memory.reclaim",
        "memory.stat",
    ]
    assert files["memory.current"].read() == f"{4 << 20}\n"
    assert files["memory.max"].read() == files["memory.high"].read() == "max\n"
    files["memory.max"].write("3M\n")
    assert files["memory.max"].read() == f"{3 << 20}\n"
    assert int(files["memory.current"].read()) <= 3 << 20
    before = vm.memcg.stat()["pgsteal"]
    assert before >= 256
    files["memory.reclaim"].write(b"512K swappiness=200")
    assert vm.memcg.stat()["pgsteal"] >= before + 128
    assert host.vmstat()["pswpout"] == vm.memcg.stat()["pgsteal"]
    files["memory.high"].write("1M")
    assert int(files["memory.current"].read()) <= 1 << 20
    files["memory.high"].write("max")
    host.procfs["sys/vm/swappiness"].write("100\n")
    assert host.procfs["sys/vm/swappiness"].read() == "100\n"
    assert vm.memcg == yb.Memcg(vm.memcg.id, vm.memcg.name)
    assert [memcg.path for memcg in host.histograms()] == ["/", vm.memcg.name]
    host.check()


def test_errors_have_the_kernels_numbers():
    host, vm = machine()
    files, lru = vm.memcg.files, host.debugfs["lru_gen"]
    number = vm.memcg.id
    cases = [
        (files["memory.max"], "lots", errno.EINVAL, "memory.max"),
        (files["memory.max"], "4M 4M", errno.EINVAL, "memory.max"),
        (files["memory.max"], b"\xff", errno.EINVAL, "not text"),
        (files["memory.stat"], "0", errno.EINVAL, "only read"),
        (files["memory.reclaim"], "1M swappiness=201", errno.EINVAL, "memory.reclaim"),
        (files["memory.reclaim"], "max", errno.EINVAL, "memory.reclaim"),
        (files["memory.reclaim"], "1M", errno.EAGAIN, "0 of 256 pages"),
        (host.procfs["vmstat"], "0", errno.EINVAL, "only read"),
        (host.procfs["sys/vm/swappiness"], "201", errno.EINVAL, "0 to 200"),
        (host.debugfs["enabled"], "maybe", errno.EINVAL, "column 1"),
        (host.debugfs["min_ttl_ms"], "-1", errno.EINVAL, "milliseconds"),
        (host.debugfs["lru_gen_full"], "0", errno.EINVAL, "read only"),
        (lru, f"+ {number} 0 3 1 0", errno.ERANGE, "force_scan"),
        (lru, f"+ {number} 0 4", errno.EINVAL, "4"),
        (lru, f"- {number} 0 2", errno.EINVAL, "two youngest"),
        (lru, f"- {number} 0 0 201", errno.EINVAL, "at most 200"),
        (lru, f"+ {number} 0 3 1 1 1", errno.EINVAL, "end of the line"),
        (lru, f"+ {number} 1 3", errno.EINVAL, "node"),
        (lru, "+ 77 0 3", errno.EINVAL, "memcg"),
        (lru, "+ 0 0 3", errno.EINVAL, "memcg"),
        (lru, "", errno.EINVAL, "a command"),
        (lru, f"- {number} 0 0, ! {number} 0 0", errno.EINVAL, r"column 10: expected \+ or -"),
    ]
    for file, text, number_, message in cases:
        with pytest.raises(OSError, match=message) as caught:
            file.write(text)
        assert caught.value.errno == number_, (file, text)
    with pytest.raises(OSError, match="only written") as caught:
        files["memory.reclaim"].read()
    assert caught.value.errno == errno.EINVAL
    for mapping in (files, host.procfs):
        with pytest.raises(KeyError):
            mapping["nothing"]
    with pytest.raises(ValueError, match="of no host"):
        _ = yb.Memcg(1, "/").files
    with pytest.raises(ValueError, match="of no host"):
        yb.Memcg(1, "/").remove()


def test_names_of_memory_cgroups_are_paths():
    host = yb.Host("16M")
    assert (host.root.id, host.root.name) == (1, "/")
    job = host.create_memcg("job")
    assert (job.id, job.name) == (2, "/job")
    assert host.create_mm(job).memcg == job
    assert host.create_mm().memcg == host.root
    for name, number in [
        ("/job", errno.EEXIST), ("/", errno.EEXIST), ("", errno.EINVAL),
        ("a\nb", errno.EINVAL), ("a\0b", errno.EINVAL), ("//a", errno.EINVAL),
        ("a/../b", errno.EINVAL),
    ]:  # fmt: skip
        with pytest.raises(OSError, match="memory cgroup") as caught:
            host.create_memcg(name)
        assert caught.value.errno == number, name


def test_memory_cgroups_are_removed_when_nothing_is_in_them():
    host = yb.Host("16M", clock="virtual")
    memcg = host.create_memcg("/job")
    below = host.create_memcg("/job/below")
    mm = host.create_mm(memcg)
    mm.touch(mm.mmap("1M", kind="file"), "1M")
    vm = host.create_vm("1M", memcg=memcg)

    def refused(each, number, what):
        with pytest.raises(OSError, match=what) as caught:
            each.remove()
        assert caught.value.errno == number

    refused(host.root, errno.EBUSY, "is the root")
    refused(memcg, errno.EBUSY, '"/job/below" below it')
    below.remove()
    refused(below, errno.ENOENT, "no memory cgroup has number")
    refused(memcg, errno.EBUSY, r"has 2 process\(es\)")
    mm.exit()
    refused(memcg, errno.EBUSY, r"has 1 process\(es\)")
    del vm
    memcg.remove()
    for use in (memcg.remove, memcg.stat, lambda: host.create_mm(memcg)):
        with pytest.raises(OSError, match=f"number {memcg.id}") as caught:
            use()
        assert caught.value.errno == errno.ENOENT
    # What it cached is there still, and nothing that could be told to do something.
    [root, dying] = host.histograms()
    assert (root.id, dying.id, dying.path) == (1, 0, "/job")
    assert dying.totals().nr_pages == 256
    assert mm.memcg == memcg
    assert host.create_memcg(memcg.name).id != memcg.id
    host.check()


#: As Linux 6.12 printed it, with a path that has spaces, and two nodes.
REAL = """\
memcg     1 /
 node     0
        694   13954652          0       13452 
        695    6954652         12        1802 
        696     954652          0           0 
        697        652       8129       91022 
 node     1
          0  999954652          0           0 
          1  999954652          0           0 
memcg   312 /machine.slice/a guest's own.scope
 node     0
       2104       3600      32768           0 
       2105          0       1024         -0 
"""  # noqa: W291


def test_what_a_real_machine_printed_becomes_the_same_objects():
    text = REAL.replace("-0", " 0")
    root, guest = lru_gen.parse(text)
    assert (root.id, root.path, list(root.nodes)) == (1, "/", [0, 1])
    assert guest.path == "/machine.slice/a guest's own.scope"
    assert guest.nodes[0].to_dict()[0] == {"seq": 2104, "age_ms": 3600, "anon": 32768, "file": 0}
    assert isinstance(guest.nodes[0], yb.Generations)
    assert root.nodes[0].max_seq == 697
    assert root.nodes[0].nr_pages == 13452 + 12 + 1802 + 8129 + 91022
    assert root.totals()[0] == yb.Generation(0, 999954652, 0, 0)
    assert guest.to_dict()["nodes"][0]["node"] == 0
    with pytest.raises(yb.FormatError, match=r'<text>: line 13, column 43: .*"-0"') as caught:
        lru_gen.parse(REAL)
    assert (caught.value.line, caught.value.column) == (13, 43)


@pytest.mark.parametrize("asks", ["none", "accurate", "fast_only"])
def test_text_and_objects_are_the_same(asks, tmp_path):
    host = yb.Host(["16M", "4M"], swap="4M", clock="virtual")
    host.aging_asks = asks
    mm = host.create_mm(host.create_memcg("/a b"))
    address = mm.mmap("2M", kind="file")
    mm.touch(address, "2M")
    for _ in range(5):
        host.lru_gen(mm.memcg).age()
        host.advance(1.5)
    for name in ("lru_gen", "lru_gen_full"):
        text = host.debugfs[name].read()
        found = host.histograms(full=name == "lru_gen_full")
        assert lru_gen.format(found) == text
        file = tmp_path / name
        file.write_text(text)
        assert lru_gen.read(file) == found
    detail = found[1].nodes[0][0].detail
    assert len(detail.tiers) == 4
    letters = "".join(letter for _, letter in detail.walk)
    assert letters == ("tyfa" if asks == "accurate" else "loynfa")
    assert detail.to_dict()["tiers"][0][0][1] == "r"


# Policies


def pressed(policy: lru_gen.Policy | None, **options) -> tuple[yb.Host, yb.Vm]:
    host, vm = machine("8M", **options)
    host.policy = policy
    vm.memcg.files["memory.max"].write("4M")
    vm.run(access.sequential(write=True))
    vm.run(access.zipf(1.0, accesses=20_000, seed=3, write=0.3))
    host.check()
    return host, vm


class Asked(lru_gen.Policy):
    """The kernel's decisions, and a look at what it is shown."""

    def __init__(self):
        self.views = []

    def choose(self, view, swappiness, may_io, kernel):
        assert (swappiness, may_io) == (60, True)
        assert kernel[0] in ("anon", "file")
        self.views.append(view)
        return super().choose(view, swappiness, may_io, kernel)

    def tier(self, view, kind, kernel):
        assert 0 <= kernel <= 3
        assert len(view.positions(kind)) == 4
        return kernel

    def should_age(self, view, can_swap, kernel):
        assert can_swap is True
        return kernel


def test_a_policy_that_agrees_with_the_kernel_changes_nothing():
    policy = Asked()
    asked, plain = pressed(policy), pressed(None)
    assert asked[0].counters == plain[0].counters
    assert asked[1].page_generations().tolist() == plain[1].page_generations().tolist()
    assert asked[0].policy is policy
    view = policy.views[-1]
    assert view.memcg == asked[1].memcg.id
    assert view.node == 0
    assert view.pages[-1][0] == view.max_seq
    assert view.min_seq[0] == view.pages[0][0]
    assert sum(anon for _, anon, _ in view.pages) <= 1024
    with pytest.raises(ValueError, match='"rope" is none of'):
        view.positions("rope")


class Eager(lru_gen.Policy):
    def should_age(self, view, can_swap, kernel):
        return True


class Never(lru_gen.Policy):
    def should_age(self, view, can_swap, kernel):
        return False


def test_when_to_age_can_be_decided():
    ages = {}
    for policy in (Never(), Eager(), None):
        host, vm = machine("8M")
        host.policy = policy
        vm.run(access.sequential(write=True))
        try:
            vm.memcg.files["memory.reclaim"].write("1M")
        except BlockingIOError:
            # Nothing ever grows old enough to go; nor does it when every try at
            # it makes a new generation instead.
            assert policy is not None
        ages[type(policy)] = host.lru_gen(vm.memcg).generations().max_seq
        host.check()
    assert ages[Eager] > ages[type(None)] >= ages[Never]


class Files(lru_gen.Policy):
    def choose(self, view, swappiness, may_io, kernel):
        return "file", None


class Anon(lru_gen.Policy):
    def choose(self, view, swappiness, may_io, kernel):
        return "anon", 3


@pytest.mark.parametrize(("policy", "kept"), [(Files(), "anon"), (Anon(), "file")])
def test_which_type_goes_can_be_decided(policy, kept):
    host = yb.Host("32M", swap="16M", clock="virtual")
    mm = host.create_mm(host.create_memcg("/both"))
    where = {}
    for kind in ("anon", "file"):
        where[kind] = mm.mmap("4M", kind=kind)
        mm.touch(where[kind], "4M", write=kind == "anon")
    host.policy = policy
    evict(host, mm.memcg, 512)
    resident = {kind: mm.resident(at, "4M")[0] for kind, at in where.items()}
    assert resident[kept] == 1024
    assert sum(resident.values()) <= 2048 - 512
    host.check()


class Nothing(lru_gen.Policy):
    def tier(self, view, kind, kernel):
        return 0


def test_tiers_can_be_protected():
    def descriptors(policy) -> int:
        host = yb.Host("32M", clock="virtual")
        host.policy = policy
        mm = host.create_mm(host.create_memcg("/files"))
        at = mm.mmap("2M", kind="file")
        mm.touch(at, "2M")
        evict(host, mm.memcg, 256)
        return mm.resident(at, "2M")[0]

    # Pages of tier 0 only: what the kernel would take goes all the same.
    assert descriptors(Nothing()) == descriptors(None) < 512


class Broken(lru_gen.Policy):
    def __init__(self, answer, *names):
        self.answer = answer
        for name in names:
            setattr(self, name, self.reply)

    def reply(self, *_):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("name", "answer", "raised", "message"),
    [
        ("choose", ("rope", 1), TypeError, r"choose\(\) returned \('rope', 1\), expected"),
        ("choose", ("anon", 4), TypeError, "a tier, 0 to 3"),
        ("choose", None, TypeError, "returned None"),
        ("tier", 4, TypeError, r"tier\(\) returned 4, expected a tier, 0 to 3"),
        ("tier", True, TypeError, "returned True"),
        ("tier", -1, TypeError, "returned -1"),
        ("should_age", 1, TypeError, r"should_age\(\) returned 1, expected a bool"),
        ("choose", ZeroDivisionError("mine"), ZeroDivisionError, "mine"),
        ("tier", KeyboardInterrupt("mine"), KeyboardInterrupt, "mine"),
        ("should_age", ValueError("mine"), ValueError, "mine"),
    ],
    ids=str,
)
def test_what_a_policy_gets_wrong_is_raised(name, answer, raised, message):
    host, vm = machine("8M")
    vm.run(access.sequential(write=True))
    host.policy = Broken(answer, name)
    with pytest.raises(raised, match=message):
        vm.memcg.files["memory.max"].write("2M")
    host.check()
    host.policy = None
    vm.memcg.files["memory.max"].write("2M")
    assert int(vm.memcg.files["memory.current"].read()) <= 2 << 20
    host.check()


def test_a_policy_cannot_call_into_the_machine():
    class Recursive(lru_gen.Policy):
        def choose(self, view, swappiness, may_io, kernel):
            host.lru_gen(vm.memcg).age()
            return kernel

    host, vm = machine("8M")
    vm.run(access.sequential(write=True))
    host.policy = Recursive()
    with pytest.raises(OSError, match="cannot call into the machine") as caught:
        vm.memcg.files["memory.max"].write("2M")
    assert caught.value.errno == errno.EBUSY
    host.check()


def test_the_documented_policy_runs():
    text = (Path(__file__).parent.parent / "docs" / "policies.md").read_text()
    [block] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(block, "policies.md", "exec"), {})


def test_a_policy_is_checked():
    host, _ = machine()
    for wrong in (object(), Asked, "kernel"):
        with pytest.raises(TypeError, match="expected a Policy"):
            host.policy = wrong


def test_a_policy_is_asked_by_live_guests_too():
    host, vm = machine("8M", vcpus=2)
    host.policy = policy = Asked()
    vm.memcg.files["memory.max"].write("4M")
    vm.run(access.zipf(1.0, accesses=50_000, seed=1, write=True), mode="live")
    assert policy.views
    host.check()


# Faults injected


def test_out_of_frames_without_swap():
    host, vm = machine("32M", host="16M", swap="4M")
    with pytest.raises(OSError, match="memory") as caught:
        vm.run(access.sequential(write=True))
    assert caught.value.errno == errno.ENOMEM
    assert host.counters["oom"] > 0
    host.check()
    # What is there still works.
    there = (vm.page_generations() >= 0).nonzero()[0]
    assert len(there) > 2048
    vm.run(access.arrays(there, True))
    host.check()


def test_out_of_swap_keeps_what_cannot_go():
    host, vm = machine("8M", swap="2M")
    vm.run(access.sequential(write=True))
    with pytest.raises(OSError, match=r"\d+ of 1536 pages were reclaimed") as caught:
        vm.memcg.files["memory.reclaim"].write("6M")
    assert caught.value.errno == errno.EAGAIN
    total, free = host.swap
    assert total == 512
    # A last batch is not begun without room for all of it.
    assert free < 64
    assert (vm.page_generations() >= 0).sum() == 2048 - (total - free)
    host.check()
    vm.run(access.sequential(write=True))
    assert (vm.page_generations() >= 0).all()
    host.check()


def test_a_limit_that_cannot_be_kept_is_out_of_memory():
    host, vm = machine("8M", swap="1M")
    vm.memcg.files["memory.max"].write("4M")
    with pytest.raises(OSError, match="at its limit of 1024 pages") as caught:
        vm.run(access.sequential(write=True))
    assert caught.value.errno == errno.ENOMEM
    host.check()


def test_failing_writeback_loses_nothing():
    host, vm = machine("8M")
    vm.run(access.sequential(write=True))
    host.fail_swap_writes(300)
    evict(host, vm.memcg, 1024)
    host.check()
    swapped = host.counters["pswpout"]
    # Those that failed are in memory still, and go the next time.
    lru = host.lru_gen(vm.memcg)
    assert lru.generations().nr_pages == 2048 - swapped > 300
    host.fail_swap_writes(0)
    for _ in range(4):
        evict(host, vm.memcg, 1024)
    assert host.counters["pswpout"] > swapped
    host.check()
    vm.run(access.sequential())
    assert (vm.page_generations() >= 0).all()
    host.check()
    with pytest.raises(ValueError, match="is above 4294967295"):
        host.fail_swap_writes(1 << 32)


class Raises(yb.MmuNotifier):
    has_fast_aging = True

    def __init__(self, name: str, after: int):
        self.left = after
        setattr(self, name, self.fail)

    def clear_young(self, start, end, fast_only):
        return False

    def invalidate_range_start(self, start, end):
        pass

    def fail(self, *_):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("no")
        return False


@pytest.mark.parametrize("name", ["clear_young", "invalidate_range_start"])
@pytest.mark.parametrize("after", [0, 1, 63, 64, 200])
@pytest.mark.parametrize("how", ["evict", "reclaim", "max", "guest"])
def test_a_notifier_that_raises_while_reclaim_runs(name, after, how):
    host, vm = machine("8M")
    vm.run(access.sequential(write=True))
    lru = host.lru_gen(vm.memcg)
    lru.age()
    lru.age()
    vm.run(access.strided(3))
    if how == "guest":
        vm.memcg.files["memory.max"].write("8M")
    other = vm.mm.mmap("4M")
    reclaims = {
        "evict": lambda: evict_now(host, vm, 1024),
        "reclaim": lambda: vm.memcg.files["memory.reclaim"].write("4M"),
        "max": lambda: vm.memcg.files["memory.max"].write("4M"),
        "guest": lambda: vm.mm.touch(other, "4M", write=True),
    }
    with vm.mm.register(Raises(name, after)), pytest.raises(RuntimeError, match=r"^no$"):
        reclaims[how]()
    host.check()
    vm.memcg.files["memory.max"].write("max")
    evict(host, vm.memcg, 512)
    vm.run(access.sequential())
    assert (vm.page_generations() >= 0).all()
    host.check()


@pytest.mark.parametrize(
    ("value", "reads"),
    [
        (3 << 20, f"{3 << 20}\n"),
        (np.int64(3 << 20), f"{3 << 20}\n"),
        (yb.Pages(768), f"{3 << 20}\n"),
        (b"3M", f"{3 << 20}\n"),
        (bytearray(b"3M\n"), f"{3 << 20}\n"),
    ],
    ids=repr,
)
def test_a_limit_may_be_a_number(value, reads):
    _, vm = machine()
    for name in ("memory.max", "memory.high"):
        vm.memcg.files[name].write(value)
        assert vm.memcg.files[name].read() == reads


def test_numbers_for_other_files():
    host, vm = machine()
    host.procfs["sys/vm/swappiness"].write(7)
    assert host.procfs["sys/vm/swappiness"].read() == "7\n"
    host.debugfs["enabled"].write(0x7)
    assert host.capabilities == 0x7
    with pytest.raises(OSError, match='"-1" is not what it takes') as caught:
        vm.memcg.files["memory.max"].write(-1)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("value", [None, True, 1.5, ["3M"], {}], ids=repr)
def test_what_is_no_text_is_not_written(value):
    host, vm = machine()
    for file in (vm.memcg.files["memory.max"], host.debugfs["lru_gen"], host.debugfs["enabled"],
                 host.procfs["sys/vm/swappiness"]):  # fmt: skip
        with pytest.raises(TypeError, match=f"not {type(value).__name__}"):
            file.write(value)


def test_errors_quote_a_part_of_what_was_written():
    host, vm = machine()
    for file in (vm.memcg.files["memory.max"], vm.memcg.files["memory.reclaim"],
                 host.debugfs["lru_gen"], host.debugfs["enabled"], host.debugfs["min_ttl_ms"],
                 host.procfs["sys/vm/swappiness"]):  # fmt: skip
        with pytest.raises(OSError, match=r'"x{40}"') as caught:
            file.write("x" * (1 << 20))
        assert caught.value.errno == errno.EINVAL
        assert len(str(caught.value)) < 200


def evict_now(host: yb.Host, vm: yb.Vm, nr: int) -> None:
    oldest = host.lru_gen(vm.memcg).generations().max_seq - 2
    host.debugfs["lru_gen"].write(f"- {vm.memcg.id} 0 {oldest} 200 {nr}")


# Conservation


class Program:
    """Random operations on a machine; after each, nothing is lost or twice there."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        mmu = self.random.choice(["tdp", "tdp", "shadow", "nested"])
        self.host = yb.Host("12M", swap=self.random.choice(["1M", "16M"]), clock="virtual")
        # One kernel for both, whatever protocols they are of.
        self.host.aging_asks = self.random.choice(["fast_only", "accurate"])
        self.vms = [
            self.host.create_vm(
                "2M",
                vcpus=2,
                mmu=mmu,
                protocol=self.random.choice(["v7", "v9", "baseline"]),
                kind=self.random.choice(["anon", "shmem", "file"]),
                tlb_entries=self.random.choice([0, 64]),
            )
            for _ in range(2)
        ]

    def step(self, mode: str) -> None:
        pick = self.random
        vm = pick.choice(self.vms)
        lru = self.host.lru_gen(vm.memcg)
        youngest = lru.generations().max_seq
        kind = pick.randrange(8)
        try:
            if kind <= 2:
                stream = access.zipf(
                    0.8,
                    accesses=pick.randrange(1, 1500),
                    seed=pick.randrange(99),
                    write=pick.random(),
                )
                vm.run(stream, mode=mode, overlap=True)
            elif kind == 3:
                self.host.debugfs["lru_gen"].write(
                    f"+ {vm.memcg.id} 0 {youngest} {pick.randrange(2)} {pick.randrange(2)}"
                )
            elif kind == 4:
                nr, swappiness = pick.randrange(700), pick.choice([0, 1, 60, 200])
                back = pick.randrange(2, 4)
                self.host.debugfs["lru_gen"].write(
                    f"- {vm.memcg.id} 0 {max(youngest - back, 0)} {swappiness} {nr}"
                )
            elif kind == 5:
                file = pick.choice(["memory.max", "memory.high"])
                vm.memcg.files[file].write(pick.choice(["max", "max", "1M", "3M", "512K"]))
            elif kind == 6:
                vm.memcg.files["memory.reclaim"].write(f"{pick.randrange(1024)}K")
            else:
                self.host.capabilities = pick.choice([1, 3, 7, 0xF])
                self.host.fail_swap_writes(pick.choice([0, 0, 5]))
        except OSError as error:
            assert error.errno in (errno.ENOMEM, errno.EAGAIN, errno.EINVAL, errno.ERANGE), error


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("mode", ["inline", "live"])
def test_random_programs_lose_nothing(seed, mode):
    program = Program(seed)
    for _ in range(25):
        program.step(mode)
        program.host.check()
    assert program.host.counters["poison_reads"] == 0


def test_live_guests_agers_and_reclaimers_lose_nothing():
    host = yb.Host("24M", swap="32M")
    vms = [host.create_vm("8M", vcpus=2, tlb_entries=0) for _ in range(2)]
    done = threading.Event()
    failures: list[BaseException] = []

    def press() -> None:
        pick = random.Random(5)
        try:
            while not done.is_set():
                vm = pick.choice(vms)
                youngest = host.lru_gen(vm.memcg).generations().max_seq
                for command in (
                    f"+ {vm.memcg.id} 0 {youngest} 1 1",
                    f"- {vm.memcg.id} 0 {max(youngest - 2, 0)} 200 {pick.randrange(500)}",
                ):
                    try:
                        host.debugfs["lru_gen"].write(command)
                    except OSError as error:
                        # The other presser was faster.
                        assert error.errno in (errno.EINVAL, errno.ERANGE), error
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=press) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for vm in vms:
            vm.memcg.files["memory.max"].write("5M")
        stream = access.zipf(0.9, accesses=60_000, seed=2, write=0.5)
        guests = [
            threading.Thread(target=vm.run, args=(stream,), kwargs={"mode": "live"}) for vm in vms
        ]
        for guest in guests:
            guest.start()
        for guest in guests:
            guest.join()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures
    host.check()
    assert host.counters["pswpin"] > 0
    assert host.counters["poison_reads"] == 0
    for vm in vms:
        assert int(vm.memcg.files["memory.current"].read()) <= 5 << 20
