from __future__ import annotations

import errno
import json

import numpy as np
import pytest

import youngbit as yb


@pytest.fixture
def host() -> yb.Host:
    return yb.Host(memory="64M", swap="16M", clock="virtual")


@pytest.fixture
def mm(host) -> yb.Mm:
    return host.create_mm(host.create_memcg("/test"))


def pages(generations) -> dict[int, int]:
    return {g.seq: g.nr_pages for g in generations}


def test_memory_ages_and_gets_younger(host, mm):
    lru = host.lru_gen(mm.memcg)
    address = mm.mmap("4M")
    mm.touch(address, "4M", write=True)
    assert lru.generations().max_seq == 3
    host.advance(2)
    first = lru.age()
    assert (first.seq, first.max_seq) == (3, 4)
    assert first.counters["mm_leaf_young"] == 1024
    assert pages(lru.generations())[3] == 1024
    assert [g.age_ms for g in lru.generations()][-1] == 0
    lru.age()
    mm.touch(address, "1M")
    lru.age()
    assert pages(lru.generations()) == {3: 768, 4: 0, 5: 256, 6: 0}
    seqs = mm.page_generations(address, "4M")
    assert seqs.dtype == np.int64
    assert np.count_nonzero(seqs == 5) == 256
    assert (seqs[:256] == 5).all()


def test_results_are_plain_and_readable(host, mm):
    lru = host.lru_gen(mm.memcg)
    stats = lru.age()
    generations = lru.generations()
    assert json.loads(json.dumps(stats.to_dict()))["max_seq"] == 4
    assert json.loads(json.dumps(generations.to_dict()))[-1]["seq"] == 4
    assert generations.to_arrays()["seq"].tolist() == [g.seq for g in generations]
    assert str(generations).splitlines()[0].split() == ["seq", "age", "ms", "anon", "file"]
    assert str(stats).startswith("aging pass 3 -> 4: ")
    assert repr(generations).startswith("Generations(seq ")
    assert generations[1:].min_seq == generations[1].seq
    assert generations == lru.generations()


def test_a_python_notifier_makes_memory_young(host, mm):
    class Always(yb.MmuNotifier):
        has_fast_aging = True
        asked = 0

        def clear_young(self, start, end, fast_only):
            self.asked += 1
            assert fast_only
            return True

    lru = host.lru_gen(mm.memcg)
    address = mm.mmap("1M")
    mm.touch(address, "1M", write=True)
    lru.age()
    notifier = Always()
    with mm.register(notifier):
        lru.age()
        assert notifier.asked == 256
        assert pages(lru.generations())[4] == 256
        host.capabilities = 0x7
        lru.age()
        assert notifier.asked == 256
        assert pages(lru.generations())[4] == 256


def test_an_exception_reaches_the_caller_and_leaves_the_model_consistent(host, mm):
    class Failing(yb.MmuNotifier):
        has_fast_aging = True

        def clear_young(self, start, end, fast_only):
            raise ZeroDivisionError("mine")

    lru = host.lru_gen(mm.memcg)
    address = mm.mmap("1M")
    mm.touch(address, "1M", write=True)
    with mm.register(Failing()), pytest.raises(ZeroDivisionError, match="mine"):
        lru.age()
    assert lru.generations().nr_pages == 256
    lru.age()
    assert lru.generations().nr_pages == 256


def test_too_many_generations_without_force(host, mm):
    lru = host.lru_gen(mm.memcg)
    with pytest.raises(OSError, match="force_scan") as caught:
        lru.age(force_scan=False)
    assert caught.value.errno == errno.ERANGE


def test_text_files(host, mm):
    assert host.debugfs["enabled"].read() == "0x000f\n"
    host.debugfs["enabled"].write("7")
    assert host.capabilities == 7
    host.debugfs["min_ttl_ms"].write("1000\n")
    assert host.debugfs["min_ttl_ms"].read() == "1000\n"
    text = host.debugfs["lru_gen"]
    assert "/test" in text.read()
    text.write(f"+ {mm.memcg.id} 0 3 1 1")
    assert host.lru_gen(mm.memcg).generations().max_seq == 4
    for command in ("+ 99 0 4", f"+ {mm.memcg.id} 0 5", "* 0 0 0", f"+ {mm.memcg.id} 9 4"):
        with pytest.raises(OSError) as caught:
            text.write(command)
        assert caught.value.errno == errno.EINVAL, command
    with pytest.raises(KeyError):
        host.debugfs["nothing"]
    assert list(host.debugfs) == ["enabled", "min_ttl_ms", "lru_gen", "lru_gen_full"]


def test_only_a_kernel_that_asks_fast_only_has_capability_8(host):
    host.aging_asks = "accurate"
    host.capabilities = 0xF
    assert host.capabilities == 0x7
    assert host.debugfs["enabled"].read() == "0x0007\n"
    # What was asked for is not forgotten.
    host.aging_asks = "fast_only"
    assert host.capabilities == 0xF
    host.capabilities = 0x7
    host.aging_asks = "none"
    host.aging_asks = "fast_only"
    assert host.capabilities == 0x7


def test_a_batched_walk_asks_once_a_table_and_finds_the_same():
    """Beyond the series, and off: two hosts, one program, one of them batched."""
    seen = []
    for batched in (False, True):
        host = yb.Host("64M", clock="virtual")
        assert host.aging_batched is False
        host.aging_batched = batched
        assert host.aging_batched is batched
        vm = host.create_vm("16M", tlb_entries=0)
        lru = host.lru_gen(vm.memcg)
        vm.run(yb.access.sequential(write=True))
        lru.age()
        vm.run(yb.access.zipf(1.0, accesses=2000, seed=5))
        stats = lru.age()
        tables = stats.counters.get("notifier_clear_young_batch", 0)
        pages = stats.counters.get("notifier_clear_young_fast", 0)
        assert (0 < tables <= 9 and pages == 0) if batched else (tables == 0 and pages == 4096)
        found = {key: stats.counters[key] for key in ("mm_leaf_young", "mm_leaf_old", "sptes_aged")}
        assert 0 < found["mm_leaf_young"] < 4096
        seen.append((found, vm.page_generations().tolist()))
    assert seen[0] == seen[1]


def test_a_policy_of_ones_own(host):
    """When to age, which mm, which range: through public calls only."""

    class Device(yb.MmuNotifier):
        def __init__(self, pages):
            self.young = np.zeros(pages, dtype=bool)
            self.base = 0

        def clear_young(self, start, end, fast_only):
            part = slice((start - self.base) >> 12, (end - self.base) >> 12)
            was = bool(self.young[part].any())
            self.young[part] = False
            return was

    mms = [host.create_mm(host.create_memcg(f"/{i}")) for i in range(2)]
    devices = [Device(256) for _ in mms]
    for mm, device in zip(mms, devices, strict=True):
        device.base = mm.mmap("1M")
        mm.register(device)
    devices[0].young[:7] = True
    devices[1].young[40:42] = True
    hot = [
        sum(mm.clear_young(d.base + (page << 12), "4k") for page in range(64))
        for mm, d in zip(mms, devices, strict=True)
    ]
    assert hot == [7, 2]


def test_generations_by_number_and_by_position(host):
    lru = host.lru_gen()
    for _ in range(3):
        lru.age()
    generations = lru.generations()
    assert [each.seq for each in generations] == [3, 4, 5, 6]
    assert generations[3].seq == 6
    assert generations.by_seq(3) is generations[0]
    assert generations.by_seq(6) is generations[-1]
    with pytest.raises(KeyError, match="no generation has number 7; there are: 3, 4, 5, 6"):
        generations.by_seq(7)
    with pytest.raises(IndexError, match=r"position 6 of 4 generations; by_seq\(\) finds"):
        generations[6]
    assert repr(generations[1:3]) == "Generations(seq 4: 0+0, seq 5: 0+0)"
    assert repr(lru).endswith("Generations(seq 3: 0+0, seq 4: 0+0, seq 5: 0+0, seq 6: 0+0))")


def evictable() -> tuple[yb.Host, yb.Vm, yb.LruGen]:
    host = yb.Host("32M", swap="32M", clock="virtual")
    vm = host.create_vm("8M", tlb_entries=0)
    vm.run(yb.access.sequential(write=True))
    lru = host.lru_gen(vm)
    for _ in range(2):
        lru.age()
    return host, vm, lru


def test_evicting_does_what_the_command_does():
    """Two machines, one told by the text file, the other by the method."""
    seen = []
    for told in ("text", "method"):
        host, vm, lru = evictable()
        oldest = lru.generations().by_seq(3)
        assert oldest.nr_pages == 2048
        for swappiness, nr in ((200, 500), (60, None), (None, None)):
            if told == "method":
                before = vm.memcg.stat()["pgsteal"]
                stats = lru.evict(oldest.seq, swappiness, nr)
                assert stats.nr_reclaimed == vm.memcg.stat()["pgsteal"] - before
                assert stats.counters["pgsteal"] == stats.nr_reclaimed
                assert stats.seconds > 0
                assert str(stats).startswith(f"evicted to 3: {stats.nr_reclaimed} pages in ")
            else:
                words = (each for each in (swappiness, nr) if each is not None)
                host.debugfs["lru_gen"].write(f"- {vm.memcg.id} 0 3 {' '.join(map(str, words))}")
            seen.append((told, vm.memcg.stat(), vm.page_generations().tolist()))
        host.check()
    half = len(seen) // 2
    assert [each[1:] for each in seen[:half]] == [each[1:] for each in seen[half:]]
    assert 500 <= seen[0][1]["pgsteal"] < 600
    assert seen[1][1]["pgsteal"] == 2048


def test_evicting_has_the_commands_errors():
    host, vm, lru = evictable()
    for seq, swappiness in ((4, None), (5, 0), (99, 60), (3, 201)):
        with pytest.raises(OSError) as method:
            lru.evict(seq, swappiness)
        word = "" if swappiness is None else swappiness
        with pytest.raises(OSError) as command:
            host.debugfs["lru_gen"].write(f"- {vm.memcg.id} 0 {seq} {word}")
        assert method.value.errno == command.value.errno == errno.EINVAL
    # Nothing of guests' memory is a file's.
    assert lru.evict(3, swappiness=0).nr_reclaimed == 0
    assert vm.memcg.stat()["pgsteal"] == 0
