"""Files, nodes, limits of time and text of real kernels, from Python."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import youngbit as yb
from test_cli import run
from youngbit import _resources, defaults, lru_gen
from youngbit.experiments import AccessTracking

TEXT = Path(__file__).parent / "data" / "text"


def machine(memory="16M", **options) -> tuple[yb.Host, yb.Mm]:
    host = yb.Host(memory, clock="virtual", **options)
    return host, host.create_mm(host.create_memcg("/job"))


def cached(host: yb.Host, mm: yb.Mm) -> int:
    return sum(generation.file for generation in host.lru_gen(mm.memcg).generations())


def drop(host: yb.Host, mm: yb.Mm, pages: int, node: int = 0) -> None:
    """Age until nothing is young, and evict so many file pages."""
    lru = host.lru_gen(mm.memcg, node)
    for _ in range(3):
        lru.age()
    oldest = lru.generations().max_seq - 2
    host.debugfs["lru_gen"].write(f"- {mm.memcg.id} {node} {oldest} 0 {pages}")


# Accesses by file descriptor


def test_files_are_read_and_written_by_descriptor():
    host, mm = machine()
    at = mm.mmap("1M", kind="file")
    assert mm.read(at, "1M") == bytes(256)
    mm.write(at + 8192, 8192, 7)
    mm.touch(at, 4096)
    assert mm.read(at, 5 * 4096) == bytes([0, 0, 7, 7, 0])
    # A descriptor is no page table: only what was touched is mapped.
    assert mm.resident(at, "1M") == (1, 1)
    assert mm.fsync(at) == 2
    assert mm.fsync(at) == 0
    drop(host, mm, 512)
    assert cached(host, mm) == 0
    assert mm.read(at, 5 * 4096) == bytes([0, 0, 7, 7, 0])
    assert mm.memcg.stat()["workingset_refault_file"] == 5
    host.check()


def test_reads_by_descriptor_make_tiers_and_page_tables_do_not():
    """Read often, a page is protected at eviction; touched through a mapping, never."""
    host, mm = machine()
    mm.read(mm.mmap("64K", kind="file"), "64K")
    often, once = mm.mmap("64K", kind="file"), mm.mmap("64K", kind="file")
    for _ in range(6):
        mm.read(often, "64K")
    mm.read(once, "64K")
    # One generation, without aging first: both moving up and folding forget references.
    lru = host.lru_gen(mm.memcg)
    oldest = min(generation.seq for generation in lru.generations() if generation.file)
    host.debugfs["lru_gen"].write(f"- {mm.memcg.id} 0 {oldest} 0")
    assert cached(host, mm) == 16
    mm.read(often, "64K")
    assert mm.memcg.stat()["workingset_refault_file"] == 0
    mm.read(once, "64K")
    assert mm.memcg.stat()["workingset_refault_file"] == 16
    [_, job] = host.histograms(full=True)
    tiers = [
        generation.detail.tiers
        for generation in job.nodes[0]
        if generation.detail is not None and generation.detail.tiers
    ]
    # Protected pages of the last tier: the third number of file pages.
    assert sum(rows[3][5][0] for rows in tiers) == 16
    host.check()


def test_memory_of_no_file_is_no_file():
    _, mm = machine()
    at = mm.mmap("64K")
    for call in (lambda: mm.read(at, 4096), lambda: mm.write(at, 4096), lambda: mm.fsync(at)):
        with pytest.raises(OSError, match="no file or shared memory") as caught:
            call()
        assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="no file") as caught:
        mm.read(mm.mmap("64K", kind="file"), "128K")
    assert caught.value.errno == errno.EBADF
    with pytest.raises(
        ValueError, match="byte: 256 is above 255; expected a whole number from 0 to 255"
    ):
        mm.write(at, 4096, 256)


# Failing writeback of files


def test_a_failing_file_device_loses_nothing():
    host, mm = machine()
    at = mm.mmap("1M", kind="file")
    for page in range(256):
        mm.write(at + page * 4096, 4096, page | 1)
    host.fail_file_writes(100)
    with pytest.raises(OSError, match="100 times; those pages are dirty still") as caught:
        mm.fsync(at)
    assert caught.value.errno == errno.EIO
    # Dirty pages are not evicted, and go when the device works again.
    drop(host, mm, 512)
    assert cached(host, mm) == 100
    host.check()
    assert mm.fsync(at) == 100
    drop(host, mm, 512)
    assert cached(host, mm) == 0
    assert mm.read(at, "1M") == bytes(page | 1 for page in range(256))
    host.check()
    with pytest.raises(ValueError, match="above 4294967295"):
        host.fail_file_writes(1 << 32)


def test_a_limit_that_a_failing_device_does_not_keep():
    """Out of memory is an error; what was written is there."""
    host, mm = machine()
    at = mm.mmap("2M", kind="file")
    for page in range(200):
        mm.write(at + page * 4096, 4096, page)
    host.fail_file_writes((1 << 32) - 1)
    mm.memcg.files["memory.max"].write(str(256 * 4096))
    with pytest.raises(OSError, match="memory cgroup") as caught:
        mm.write(at + 200 * 4096, 312 * 4096, 1)
    assert caught.value.errno == errno.ENOMEM
    host.fail_file_writes(0)
    # Told once, to the first who asks.
    with pytest.raises(OSError, match="writing back failed") as caught:
        mm.fsync(at)
    assert caught.value.errno == errno.EIO
    assert mm.read(at, 200 * 4096) == bytes(range(200))
    host.check()


# Nodes


def test_each_node_has_its_own_generations():
    host, mm = machine(["8M", "8M"], swap="16M")
    at = mm.mmap("12M")
    mm.touch(at, "12M", write=True)
    nodes = [host.lru_gen(mm.memcg, node) for node in (0, 1)]
    filled = [node.generations().nr_pages for node in nodes]
    assert sum(filled) == 3072
    assert min(filled) > 512
    # One is aged, by object and by command; the other takes no notice.
    nodes[1].age()
    nodes[1].age()
    host.debugfs["lru_gen"].write(f"+ {mm.memcg.id} 1 5")
    assert [node.generations().max_seq for node in nodes] == [3, 6]
    [_, job] = lru_gen.parse(host.debugfs["lru_gen"].read())
    assert {node: g.max_seq for node, g in job.nodes.items()} == {0: 3, 1: 6}
    assert job.totals().nr_pages == 3072
    # The walk of one node meets the other's pages and leaves them alone.
    assert nodes[0].generations().nr_pages == filled[0]
    # The accessed bits that it cleared were its own pages'.
    host.debugfs["lru_gen"].write(f"- {mm.memcg.id} 1 4 200 256")
    after = [node.generations().nr_pages for node in nodes]
    assert after[0] == filled[0]
    assert filled[1] - 256 - 64 < after[1] <= filled[1] - 256
    host.check()
    assert [node["pages"] for node in host.to_dict()["nodes"]] == [2048, 2048]


def test_a_guest_over_two_nodes_is_aged_node_by_node():
    host = yb.Host(["4M", "8M"], clock="virtual")
    vm = host.create_vm("8M", tlb_entries=0)
    vm.run(yb.access.sequential(write=True))
    nodes = [host.lru_gen(vm.memcg, node) for node in (0, 1)]
    for node in nodes:
        node.age()
    vm.run(yb.access.strided(2))
    found = [node.age() for node in nodes]
    youngest = [node.generations()[-2].nr_pages for node in nodes]
    assert all(youngest)
    assert sum(youngest) == 1024
    assert sum(stats.counters["folios_promoted"] for stats in found) == 1024
    host.check()


def test_unknown_nodes_are_refused():
    host, mm = machine(["4M", "4M"])
    for command in (f"+ {mm.memcg.id} 2 3", f"- {mm.memcg.id} 2 0"):
        with pytest.raises(OSError, match="node") as caught:
            host.debugfs["lru_gen"].write(command)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(ValueError, match="no node 2"):
        host.lru_gen(mm.memcg, 2)


# min_ttl_ms


@pytest.mark.parametrize(("ttl", "seconds", "ooms"), [(0, 0, 0), (10_000, 1, 1), (10_000, 60, 0)])
def test_min_ttl_makes_too_young_a_working_set_an_event(ttl, seconds, ooms):
    """Background reclaim finds no oldest generation old enough."""
    host, mm = machine("16M", swap="32M")
    host.debugfs["min_ttl_ms"].write(str(ttl))
    assert host.debugfs["min_ttl_ms"].read() == f"{ttl}\n"
    at = mm.mmap("24M")
    # Up to where kswapd wakes, which is when time has passed.
    mm.touch(at, "12M", write=True)
    host.advance(seconds)
    before = host.counters
    mm.touch(at + (12 << 20), "6M", write=True)
    after = host.counters
    assert after["pageoutrun"] > before["pageoutrun"]
    assert (after["oom"] > before["oom"]) == bool(ooms)
    # It protects nothing by itself.
    assert after["pgsteal"] > before["pgsteal"]
    host.check()


# Text of real kernels


def test_vmstat_of_a_real_kernel_is_read():
    file = TEXT / "vmstat-6.18.txt"
    found = lru_gen.read_counters(file)
    lines = file.read_text().splitlines()
    assert [f"{name} {value}" for name, value in found.items()] == lines
    assert found["workingset_refault_file"] > 0
    # Every counter that the model prints has a real kernel's name.
    host, _ = machine()
    assert lru_gen.parse_counters(host.procfs["vmstat"].read()) == host.vmstat()
    # The kernel prints these by who reclaims, by zone and by type; the model the sums.
    sums = {name for name in host.vmstat() if name not in found}
    assert sums == {"allocstall", "pgscan", "pgsteal"}
    for name in sums:
        assert any(other.startswith(f"{name}_") for other in found)


def test_memory_stat_is_read_as_it_is_printed():
    host, mm = machine()
    mm.touch(mm.mmap("1M"), "1M", write=True)
    text = mm.memcg.files["memory.stat"].read()
    found = lru_gen.parse_counters(text)
    assert found == mm.memcg.stat()
    assert found["active_anon"] == 1 << 20
    host.check()


@pytest.mark.parametrize(
    ("text", "line", "column", "what"),
    [
        ("anon 1\n7 7\n", 2, 1, "a counter's name"),
        ("anon\n", 1, 6, "a number, found the end of the line"),
        ("anon 1 2\n", 1, 6, 'a number, found "1 2"'),
        ("anon 0x10\n", 1, 6, "a number"),
        ("anon 1\n\nfile 2\n", 2, 1, "the end of the line"),
        ("anon 1\nanon 2\n", 2, 1, "twice"),
        ("anon 111111111111111111111\n", 1, 6, "a number"),
        (b"\xff 1\n", 1, 1, "a counter's name"),
    ],
)
def test_mistakes_in_counters_are_located(text, line, column, what):
    with pytest.raises(yb.FormatError) as caught:
        lru_gen.parse_counters(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert what in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_as_counters(data):
    place = (1, 1)
    try:
        found = lru_gen.parse_counters(data)
    except yb.FormatError as error:
        place = (error.line, error.column)
    else:
        assert all(isinstance(value, int) for value in found.values())
    assert place >= (1, 1)


# What the machine must have


def test_a_guest_whose_model_does_not_fit_is_refused(monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(_resources, "_MEMINFO", meminfo)
    meminfo.write_text("MemTotal:  999 kB\nMemAvailable:  2097152 kB\n")
    assert _resources.available_memory() == 2 << 30
    # 48 bytes a page: two gigabytes hold the model of up to 170 GiB.
    _resources.check_memory(170 << 30, "tdp", "4k")
    with pytest.raises(OSError, match=r"171G needs 2052M .*48 bytes a page.* has 2G") as caught:
        AccessTracking(vcpu_bytes=171 << 30).run()
    assert caught.value.errno == errno.ENOMEM
    # Other MMUs and larger pages have other needs.
    _resources.check_memory(171 << 30, "tdp", "2m")
    with pytest.raises(OSError, match="76 bytes a page"):
        _resources.check_memory(170 << 30, "nested", "4k")
    for text in ("", "MemAvailable:\n", "MemAvailable: many kB\n"):
        meminfo.write_text(text)
        assert _resources.available_memory() is None
    _resources.check_memory(1 << 50, "tdp", "4k")


@pytest.mark.skipif(_resources.available_memory() is None, reason="nobody says what there is")
def test_access_tracking_refuses_more_than_the_machine_holds():
    done = run("access-tracking", "-l", "-b", "12T", code=2)
    assert "guest memory of 12T needs" in done.stderr
    assert "bytes a page" in done.stderr
    assert "available" in done.stderr


def test_what_the_model_of_a_page_takes_is_what_is_said():
    """A guest of 64 MiB, in a process of its own."""
    script = """
import youngbit as yb
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def guest(memory):
    host = yb.Host("80M")
    vm = host.create_vm(memory, tlb_entries=0)
    vm.run(yb.access.sequential(write=True))
    return host, vm
small = guest("1M")
before = resident()
large = guest("64M")
print((resident() - before) / (64 << 8))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    # What comes in larger pieces is beside it.
    assert 0.5 < float(done.stdout) / defaults.MODEL_BYTES["tdp"] < 2
