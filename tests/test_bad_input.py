"""Bad input: each case gives a clear typed error, and none a panic or a hang."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import youngbit as yb
from youngbit import access, traces
from youngbit.sizes import parse_pages, parse_size


def host(**options) -> yb.Host:
    return yb.Host("32M", clock="virtual", **options)


def mm() -> yb.Mm:
    return host().create_mm()


def vm(**options) -> yb.Vm:
    return host().create_vm(options.pop("memory", "4M"), **options)


class NotAMethod(yb.MmuNotifier):
    test_young = "yes"


class Raising(yb.MmuNotifier):
    def clear_young(self, start, end, fast_only):
        raise RuntimeError("no")


def raising_pass():
    process = mm()
    at = process.mmap("1M")
    process.register(Raising())
    process.clear_young(at, "4k")


def unregister_twice():
    process = mm()
    registration = process.register(Raising())
    registration.unregister()
    registration.unregister()


#: What is done, what it raises, and what the message says.
CASES: dict[str, tuple[Callable[[], object], type[BaseException], str]] = {
    # Sizes.
    "size-no-number": (lambda: parse_size("G"), ValueError, "'G' is not a size"),
    "size-negative-text": (lambda: parse_size("-1G"), ValueError, "not a size"),
    "size-unit": (lambda: parse_size("1X"), ValueError, "'1X' is not a size"),
    "size-fraction": (lambda: parse_size("1.5G"), ValueError, "not a size"),
    "size-empty": (lambda: parse_size(""), ValueError, "not a size"),
    "size-zero": (lambda: parse_size(0), ValueError, "not positive"),
    "size-negative": (lambda: parse_size(-4096), ValueError, "not positive"),
    "size-huge": (lambda: parse_size("999999999T"), ValueError, "beyond"),
    "size-float": (lambda: parse_size(1.5), TypeError, "not float"),
    "size-none": (lambda: parse_size(None), TypeError, "not NoneType"),
    "size-bool": (lambda: parse_size(True), TypeError, "not a size"),
    "pages-odd": (lambda: parse_pages(4097), ValueError, "multiple of the page size"),
    # Hosts.
    "host-no-memory": (lambda: yb.Host([]), ValueError, "at least one node"),
    "host-clock": (lambda: yb.Host("4M", clock="slow"), ValueError, "'slow' is none of"),
    "host-swap": (lambda: yb.Host("4M", swap="lots"), ValueError, "swap: 'lots'"),
    "host-capabilities": (lambda: host(capabilities=-1), ValueError, "capabilities"),
    "host-capabilities-text": (lambda: host(capabilities="all"), TypeError, "capabilities"),
    "host-tracepoint": (lambda: host().trace("kvm_nothing"), ValueError, "kvm_age_hva"),
    "host-advance": (lambda: host().advance(-1), ValueError, "negative"),
    "host-asks": (lambda: setattr(host(), "aging_asks", "nicely"), ValueError, "'nicely'"),
    "host-node": (lambda: host().lru_gen(node=1), ValueError, "no node 1"),
    "host-node-negative": (lambda: host().lru_gen(node=-1), ValueError, "node: -1 is negative"),
    "host-capabilities-bool": (lambda: host(capabilities=True), TypeError, "not bool"),
    "host-writes": (
        lambda: host().fail_swap_writes(1 << 32),
        ValueError,
        "writes: 4294967296 is above 4294967295; expected a whole number from 0 to 4294967295",
    ),
    "lru-memcg-type": (lambda: host().lru_gen(7), TypeError, "expected a Memcg, its name.*not int"),
    "lru-memcg-name": (
        lambda: host().lru_gen("/nothing"),
        FileNotFoundError,
        "no memory cgroup is named '/nothing'; there are: /$",
    ),
    "lru-memcg-empty": (lambda: host().lru_gen(""), FileNotFoundError, "is named ''"),
    "lru-memcg-number": (lambda: host().lru_gen(yb.Memcg(9, "?")), FileNotFoundError, "number 9"),
    "lru-evict-young": (lambda: host().lru_gen().evict(3), OSError, "two youngest end at 3"),
    "lru-evict-swappiness": (lambda: host().lru_gen().evict(0, 201), OSError, "at most 200"),
    "lru-evict-negative": (lambda: host().lru_gen().evict(-1), ValueError, "seq: -1 is negative"),
    "memcg-twice": (
        lambda: [h.create_memcg("/a") for h in [host()] * 2],
        FileExistsError,
        "named",
    ),
    "memcg-unknown": (lambda: host().create_mm(yb.Memcg(9, "?")), FileNotFoundError, "number 9"),
    "file-unknown": (lambda: host().debugfs["lru"], KeyError, "lru"),
    "file-command": (
        lambda: host().debugfs["lru_gen"].write("+ x"),
        OSError,
        "expected a memcg number",
    ),
    "file-read-only": (lambda: host().debugfs["lru_gen_full"].write("x"), OSError, "read only"),
    "age-without-force": (
        lambda: host().lru_gen().age(force_scan=False),
        OSError,
        "needs force_scan",
    ),
    # Processes.
    "mmap-odd": (lambda: mm().mmap(4097), OSError, "multiple of 0x1000"),
    "mmap-misaligned": (lambda: mm().mmap("4k", address=5), OSError, "multiple"),
    "mmap-kind": (lambda: mm().mmap("4k", kind="rope"), ValueError, "'rope'"),
    "mmap-backing": (lambda: mm().mmap("4k", backing="3k"), ValueError, "'3k'"),
    "mmap-beyond": (lambda: mm().mmap("4k", address=1 << 60), OSError, "beyond"),
    "mmap-overlap": (
        lambda: [m.mmap("4k", address=1 << 32) for m in [mm()] * 2],
        FileExistsError,
        "overlaps",
    ),
    "munmap-odd": (lambda: mm().munmap(3, "4k"), OSError, "whole pages"),
    "touch-nothing": (lambda: mm().touch(1 << 33, "4k"), OSError, "0x200000000"),
    "touch-address": (lambda: mm().touch("there", "4k"), TypeError, "start"),
    "touch-negative": (
        lambda: mm().touch(-4096, "4k"),
        ValueError,
        "start: -4096 is negative; expected a whole number from 0$",
    ),
    "touch-huge": (lambda: mm().touch(1 << 63, "4k"), ValueError, r"is not below 2\*\*63"),
    "mmap-address": (lambda: mm().mmap("4k", address=-1), ValueError, "address: -1 is negative"),
    "write-byte": (lambda: mm().write(0, "4k", -1), ValueError, "byte: -1 is negative; .* to 255"),
    "generations-odd": (lambda: mm().page_generations(7, "4k"), OSError, "whole pages"),
    # Notifiers.
    "notifier-type": (lambda: mm().register(object()), TypeError, "not object"),
    "notifier-class": (lambda: mm().register(yb.MmuNotifier), TypeError, "not type"),
    "notifier-attribute": (lambda: mm().register(NotAMethod()), TypeError, "expected a method"),
    "notifier-raises": (raising_pass, RuntimeError, "^no$"),
    "notifier-twice": (unregister_twice, OSError, "not registered"),
    # Streams.
    "stream-write": (lambda: access.sequential(write=1.5), ValueError, "between 0 and 1"),
    "stream-write-text": (lambda: access.sequential(write="y"), TypeError, "write"),
    "stream-passes": (lambda: access.sequential(passes=0), ValueError, "below 1"),
    "stream-stride": (lambda: access.strided(0), ValueError, "stride"),
    "stream-offset": (lambda: access.strided(2, offset=-1), ValueError, "offset"),
    "stream-accesses": (lambda: access.uniform(0, seed=1), ValueError, "accesses"),
    "stream-accesses-float": (lambda: access.uniform(1.0, seed=1), TypeError, "accesses"),
    "stream-seed": (lambda: access.uniform(1, seed=-1), ValueError, "seed"),
    "stream-no-seed": (lambda: access.uniform(1), TypeError, "seed"),
    "stream-region": (lambda: access.sequential(region="1M"), TypeError, "pair"),
    "stream-region-odd": (lambda: access.sequential(region=(1, "4k")), ValueError, "multiple"),
    "zipf-zero": (lambda: access.zipf(0, accesses=1, seed=1), ValueError, "exponent"),
    "zipf-nan": (lambda: access.zipf(float("nan"), accesses=1, seed=1), ValueError, "exponent"),
    "phases-none": (lambda: access.hot_cold(seed=1), TypeError, "either"),
    "phases-empty": (lambda: access.hot_cold([], seed=1), ValueError, "at least one"),
    "phases-type": (lambda: access.hot_cold([1], seed=1), TypeError, "Phase"),
    "phases-beyond": (
        lambda: access.hot_cold([access.Phase(1, 0.9, 0.5, 1.0)], seed=1),
        ValueError,
        "beyond the region",
    ),
    "arrays-2d": (lambda: access.arrays([[1]]), ValueError, "one dimension"),
    "arrays-float": (lambda: access.arrays([1.5]), TypeError, "whole numbers"),
    "arrays-negative": (lambda: access.arrays([-1]), ValueError, "from 0"),
    "arrays-flags": (lambda: access.arrays([1, 2], [True]), ValueError, "1 flags for 2"),
    "arrays-flag-type": (lambda: access.arrays([1], [1]), TypeError, "booleans"),
    # Virtual machines.
    "vm-mmu": (lambda: vm(mmu="magic"), ValueError, "'magic'"),
    "vm-protocol": (lambda: vm(protocol="v8"), ValueError, "'v8'"),
    "vm-format": (lambda: vm(format="arm"), ValueError, "'arm'"),
    "vm-npt-without-ad": (lambda: vm(format="npt", ad=False), OSError, "EPT"),
    "vm-levels": (lambda: vm(levels=3), OSError, "4 or 5 levels"),
    "vm-no-vcpus": (
        lambda: vm(vcpus=0),
        ValueError,
        "vcpus: 0 is below 1; expected a whole number from 1 to 512",
    ),
    "vm-negative-vcpus": (
        lambda: vm(vcpus=-1),
        ValueError,
        "vcpus: -1 is negative; expected a whole number from 1 to 512",
    ),
    "vm-many-vcpus": (lambda: vm(vcpus=10**6), ValueError, "vcpus: 1000000 is above 512"),
    "vm-negative-levels": (lambda: vm(levels=-4), ValueError, "levels: -4 is negative"),
    "vm-aliases": (lambda: vm(aliases=0), ValueError, "aliases: 0 is below 1"),
    "vm-memcg-type": (lambda: vm(memcg=1), TypeError, "expected a Memcg, its name.*not int"),
    "vm-mm-type": (lambda: vm(mm=1), TypeError, "mm: expected an Mm, not int"),
    "vm-slot-flags": (lambda: vm().set_memory_region(0, flags=4), OSError, "flags 0x4 unknown"),
    "vm-slot-number": (lambda: vm().set_memory_region(-1), ValueError, "slot: -1 is negative"),
    "vm-slot-space": (
        lambda: vm().set_memory_region(1 << 16, memory_size="4k"),
        OSError,
        r"1 address space\(s\)",
    ),
    "vm-slot-gone": (lambda: vm().set_memory_region(5), OSError, "does not exist"),
    "vm-aging-type": (
        lambda: vm().run_while_aging(access.sequential(), host().root),
        TypeError,
        "lru: expected a LruGen, not Memcg",
    ),
    "vm-backing": (lambda: vm(memory="3M", backing="2m"), ValueError, "multiple of the backing"),
    "vm-tlb": (lambda: vm(tlb_entries=1001), ValueError, "power of two"),
    "vm-tlb-ways": (lambda: vm(tlb_entries=64, tlb_ways=3), OSError, "TLB"),
    "vm-mode": (lambda: vm().run(access.sequential(), mode="warp"), ValueError, "'warp'"),
    "vm-stream": (lambda: vm().run([1]), TypeError, "expected a Stream"),
    "vm-streams": (lambda: vm(vcpus=2).run([access.sequential()]), ValueError, "1 streams for 2"),
    "vm-region": (
        lambda: vm().run(access.sequential(region=("4M", "4k"))),
        OSError,
        "guest's",
    ),
    "vm-recorded": (lambda: vm().run(access.arrays([5000])), OSError, "page 5000"),
    "vm-idle-range": (lambda: vm().mark_idle(1024, 1), ValueError, "some of the guest's"),
    "vm-out-of-memory": (
        lambda: vm(memory="64M").run(access.sequential(write=True)),
        OSError,
        "out of host memory",
    ),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    action, kind, says = CASES[case]
    with pytest.raises(kind, match=says) as caught:
        action()
    # Nothing native may surface as a panic, which is a BaseException of PyO3's.
    assert isinstance(caught.value, Exception)
    if type(caught.value) is OSError:
        assert caught.value.errno in (errno.EINVAL, errno.EFAULT, errno.ENOMEM, errno.ERANGE)


def npz(**arrays) -> bytes:
    whole = {
        "time": np.arange(3, dtype=np.uint64),
        "page": np.arange(3, dtype=np.uint64),
        "write": np.zeros(3, dtype=bool),
        "window": np.uint64(1),
    } | arrays
    file = io.BytesIO()
    np.savez_compressed(file, **{k: v for k, v in whole.items() if v is not None})
    return file.getvalue()


def pickled() -> bytes:
    return npz(time=np.array([object()] * 3))


def foreign_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return file.getvalue()


def corrupt(data: bytes) -> bytes:
    middle = len(data) // 3
    return data[:middle] + bytes(64) + data[middle + 64 :]


GOOD = npz()
#: Name, content, where the error is, what it says.
TRACES: dict[str, tuple[str, bytes, str, str]] = {
    "npz-empty": ("t.npz", b"", "offset 0", "an empty file"),
    "npz-text": ("t.npz", b"time,page,write\n", "offset 0", "an .npz archive"),
    "npz-truncated": ("t.npz", GOOD[: len(GOOD) // 2], "", "a whole"),
    "npz-head-only": ("t.npz", GOOD[:10], "", "a whole"),
    "npz-corrupt": ("t.npz", corrupt(GOOD), "", "a whole array"),
    "npz-foreign": ("t.npz", foreign_zip(), "array time", "an array time"),
    "npz-pickled": ("t.npz", pickled(), "array time", "type uint64"),
    "npz-no-write": ("t.npz", npz(write=None), "array write", "an array write"),
    "npz-no-window": ("t.npz", npz(window=None), "array window", "an array window"),
    "npz-dtype": ("t.npz", npz(page=np.zeros(3)), "array page", "type uint64"),
    "npz-lengths": ("t.npz", npz(write=np.zeros(2, bool)), "array write", r"shape \(3,\)"),
    "npz-2d": ("t.npz", npz(page=np.zeros((3, 1), np.uint64)), "array page", "shape"),
    "npz-window-shape": ("t.npz", npz(window=np.zeros(2)), "array window", "a number"),
    "npz-unsorted": (
        "t.npz",
        npz(time=np.array([0, 2, 1], dtype=np.uint64)),
        "event 2",
        "sorted",
    ),
    "npz-page": (
        "t.npz",
        npz(page=np.array([0, 1, 1 << 45], dtype=np.uint64)),
        "event 2",
        "below",
    ),
    "npz-no-events": (
        "t.npz",
        npz(time=np.zeros(0, np.uint64), page=np.zeros(0, np.uint64), write=np.zeros(0, bool)),
        "end of file",
        "at least one event",
    ),
    "csv-empty": ("t.csv", b"", "line 1", "header"),
    "csv-header": ("t.csv", b"page,time\n1,2\n", "line 1", "header"),
    "csv-no-events": ("t.csv", b"time,page,write\n", "end of file", "at least one event"),
    "csv-short": ("t.csv", b"time,page,write\n1,2\n", "line 2", "two numbers"),
    "csv-words": ("t.csv", b"time,page,write\n1,2,0\none,2,0\n", "line 3", "two numbers"),
    "csv-float": ("t.csv", b"time,page,write\n1.5,2,0\n", "line 2", "two numbers"),
    "csv-unsorted": ("t.csv", b"time,page,write\n2,2,0\n1,2,0\n", "line 3", "not below"),
    "csv-truncated": ("t.csv", b"time,page,write\n1,2,0\n1,2", "line 3", "truncated"),
    "csv-binary": ("t.csv", bytes(range(256)) * 40, "line 1", "header"),
    "csv-null": ("t.csv", b"time,page,write\n\0,\0,\0\n", "line 2", "two numbers"),
    "lackey-empty": ("t.txt", b"", "end of file", "at least one event"),
    "lackey-banner": ("t.txt", b"==1== Lackey\n", "end of file", "at least one event"),
    "lackey-word": ("t.txt", b"hello\n", "line 1", "a line of lackey"),
    "lackey-letter": ("t.txt", b"I  1000,4\n X 1000,4\n", "line 2", "a line of lackey"),
    "lackey-size": ("t.txt", b"I  1000,0\n", "line 1", "a line of lackey"),
    "lackey-address": ("t.txt", b" L fffffffffffffff,4\n", "line 1", "below"),
    "lackey-truncated": ("t.txt", b"I  1000,4\n L 1ff", "line 2", "truncated"),
    "lackey-binary": ("t.txt", os.urandom(64).replace(b"\n", b"x") * 2000, "line 1", "expected"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", TRACES)
def test_bad_traces(case, tmp_path):
    name, content, where, expected = TRACES[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(yb.TraceError, match=expected or None) as caught:
        traces.read(path)
    error = caught.value
    assert error.path == str(path)
    assert where in error.where
    assert str(error).startswith(f"{path}: {error.where}: found ")


def test_files_that_are_not_there(tmp_path):
    for name in ("t.npz", "t.csv", "t.txt"):
        with pytest.raises(FileNotFoundError):
            traces.read(tmp_path / name)
        (tmp_path / name).mkdir()
        with pytest.raises(IsADirectoryError) as caught:
            traces.read(tmp_path / name)
        assert str(caught.value) == f"[Errno 21] Is a directory: '{tmp_path / name}'"


def test_arguments_of_readers(tmp_path):
    for path in (Path("x"), "x"):
        with pytest.raises(ValueError, match="'zip' is none of"):
            traces.read(path, "zip")
    with pytest.raises(ValueError, match="no trace 'gzip'"):
        traces.shipped("gzip")
    with pytest.raises(ValueError, match="negative"):
        traces.read_lackey("x", window=-1)
    with pytest.raises(TypeError, match="not float"):
        traces.read_lackey("x", window=0.5)
