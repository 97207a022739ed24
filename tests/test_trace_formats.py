"""Formats of traces: what is written is read, and what is wrong is said."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import youngbit as yb
from youngbit import traces
from youngbit.traces import Block, tools

DATA = Path(__file__).parent / "data"
#: Files that keep every column, and those that have no place for writes.
WHOLE = ("npz", "csv", "parquet", "perf")
ORACLE = ("oracleGeneral", "oracleGeneral.zst")


def made(time, page, write, window=0, vms=()):
    return traces.Trace(
        np.array(time, np.uint64), np.array(page, np.uint64), np.array(write, np.bool_),
        window, "made up", tuple(vms),
    )  # fmt: skip


@st.composite
def any_trace(draw, time_limit=(1 << 64) - 1):
    size = draw(st.integers(1, 40))
    step = st.one_of(st.integers(0, 5), st.integers(0, time_limit // 64))
    steps = draw(st.lists(step, min_size=size, max_size=size))
    pages = st.one_of(st.integers(0, 9), st.integers(0, (1 << 45) - 1))
    page = draw(st.lists(pages, min_size=size, max_size=size))
    write = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return made(np.cumsum(np.array(steps, np.uint64)), page, write, draw(st.integers(0, 1 << 62)))


def same(a, b, columns=("time", "page", "write")):
    for column in columns:
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column), column)
        assert getattr(a, column).dtype == getattr(b, column).dtype


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(trace=any_trace(), first=st.sampled_from(WHOLE), second=st.sampled_from(WHOLE))
def test_round_trips_keep_every_access(tmp_path, trace, first, second):
    traces.write(trace, tmp_path / f"a.{first}")
    once = traces.read(tmp_path / f"a.{first}")
    traces.write(once, tmp_path / f"b.{second}")
    twice = traces.read(tmp_path / f"b.{second}")
    same(twice, trace)
    assert once.window == (0 if first in ("csv", "perf") else trace.window)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    trace=any_trace(time_limit=(1 << 32) - 1),
    ending=st.sampled_from(ORACLE),
    block=st.integers(1, 50),
)
def test_oracle_keeps_times_and_pages_and_knows_the_next_use(tmp_path, trace, ending, block):
    path = tmp_path / f"a.{ending}"
    whole = Block(trace.time, trace.page, trace.write)
    with traces.writing(path) as writer:
        for at in range(0, len(trace), block):
            writer.add(whole.where(slice(at, at + block)))
    same(traces.read(path), trace, ("time", "page"))
    data = path.read_bytes()
    if ending.endswith("zst"):
        data = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    rows = list(struct.iter_unpack("<IQIq", data))
    pages = trace.page.tolist()
    for at, (_, page, size, after) in enumerate(rows):
        expected = next((n for n in range(at + 1, len(pages)) if pages[n] == page), -1)
        assert (page, size, after) == (pages[at], 4096, expected)


@pytest.mark.parametrize("ending", [*WHOLE, *ORACLE])
@pytest.mark.parametrize("block", [1, 1000, 1 << 20])
def test_blocks_make_the_whole(tmp_path, ending, block):
    shipped = traces.shipped()
    trace = made(shipped.time[:3000], shipped.page[:3000], shipped.write[:3000])
    path = tmp_path / f"a.{ending}"
    traces.write(trace, path)
    with traces.open_trace(path, block=block) as reader:
        blocks = list(reader)
    columns = [np.concatenate([getattr(each, key) for each in blocks]) for key in Block._fields]
    same(made(*columns), trace, ("time", "page") if ending in ORACLE else Block._fields)
    assert max(each.events for each in blocks) <= max(block, 1)


def test_a_file_larger_than_memory_needs_little_of_it(tmp_path):
    count = 2_000_000
    rows = np.zeros(count, traces._read.ORACLE)
    rows["time"] = np.arange(count)
    rows["page"] = np.arange(count) % 1000
    path = tmp_path / "a.oracleGeneral"
    rows.tofile(path)
    del rows
    tracemalloc.start()
    with (
        traces.open_trace(path, block=1 << 14) as reader,
        traces.writing(tmp_path / "b.npz") as writer,
    ):
        assert traces.write_all(tools.cut(reader, events=(10, None)), writer) == count - 10
    with traces.open_trace(tmp_path / "b.npz", block=1 << 14) as reader:
        assert tools.stats(reader, 1000).pages == 1000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_merged_programs_are_apart_and_in_order(tmp_path):
    a = made([1, 5, 9], [70, 80, 70], [True, False, False], window=4)
    b = made([2, 5, 6, 20], [70, 1, 70, 2], [False] * 4, window=4)
    for name, trace in (("a.npz", a), ("b.npz", b)):
        traces.write(trace, tmp_path / name)
    whole = [[Block(t.time, t.page, t.write)] for t in (a, b)]
    for block in (1, 2, 100):
        parts = [
            [blocks[0].where(slice(n, n + block)) for n in range(0, blocks[0].events, block)]
            for blocks in whole
        ]
        blocks, vms = tools.merge(parts, [2, 3])
        merged = list(blocks)
        time = np.concatenate([each.time for each in merged]).tolist()
        page = np.concatenate([each.page for each in merged]).tolist()
        assert time == [1, 2, 5, 5, 6, 9, 20]
        assert page == [0, 512, 1, 513, 512, 0, 514]
        assert vms == (0, 512)
    trace = made(time, page, [False] * 7, window=4, vms=vms)
    path = tmp_path / "m.npz"
    for path in (tmp_path / "m.npz", tmp_path / "m.parquet"):
        traces.write(trace, path)
        one, two = traces.read(path).split()
        assert one.page.tolist() == [0, 1, 0]
        assert two.time.tolist() == [2, 5, 6, 20]
        assert traces.read(path).vms == (0, 512)


@settings(deadline=None)
@given(trace=any_trace(), low=st.integers(0, 50), size=st.integers(1, 50))
def test_cut_keeps_what_is_inside(trace, low, size):
    block = Block(trace.time, trace.page, trace.write)
    halves = [block.where(slice(0, 5)), block.where(slice(5, None))]
    for key, column in (("time", trace.time), ("events", np.arange(len(trace)))):
        kept = np.concatenate([each.page for each in tools.cut(halves, **{key: (low, low + size)})])
        inside = (column >= low) & (column < low + size)
        np.testing.assert_array_equal(kept, trace.page[inside])
    address = (low * 4096 + 1, (low + size) * 4096)
    kept = np.concatenate([each.page for each in tools.cut([block], address=address)])
    inside = (trace.page >= low) & (trace.page < low + size)
    np.testing.assert_array_equal(kept, trace.page[inside])


def test_a_sample_has_about_its_share_of_pages_and_all_their_events():
    trace = traces.shipped()
    block = Block(trace.time, trace.page, trace.write)
    [half] = tools.sample([block], 0.5, seed=3)
    pages = np.unique(half.page)
    assert 0.45 < len(pages) / trace.nr_pages < 0.55
    assert half.events == np.isin(trace.page, pages).sum()
    [again] = tools.sample([block], 0.5, seed=3)
    np.testing.assert_array_equal(again.page, half.page)
    [other] = tools.sample([block], 0.5, seed=4)
    assert other.events != half.events
    [everything] = tools.sample([block], 1.0, seed=3)
    assert everything.events == block.events


def test_remap_is_the_order_of_first_touch():
    trace = traces.shipped()
    block = Block(trace.time, trace.page, trace.write)
    parts = [block.where(slice(n, n + 777)) for n in range(0, len(trace), 777)]
    mapped = np.concatenate([each.page for each in tools.remap(parts)])
    np.testing.assert_array_equal(mapped, trace.frames)


def test_stats_count_what_is_there():
    trace = made([3, 4, 9, 9], [7, 8, 7, 100], [True, False, True, False])
    found = tools.stats([Block(trace.time, trace.page, trace.write)], 2)
    assert found.to_dict() == {
        "events": 4, "writes": 2, "pages": 3, "written_pages": 1, "first_time": 3,
        "last_time": 9, "first_page": 7, "last_page": 100, "runs": 2, "every": 2,
        "working_set_mean": 2.0, "working_set_max": 2,
    }  # fmt: skip


# Samples after lines that perf printed on Intel and Arm processors: columns, padding, names of
# events and data sources are theirs; addresses, programs, the store and the IBS samples are not.
PERF_SAMPLES = {
    "intel-load": (
        "some-browser   4657 [002] 544966.882384:      10000 \tcpu_core/"
        "MEM_UOPS_RETIRED.LOAD_LATENCY/: 7ffd11122b0c     10268100142 |OP LOAD|LVL L1 hit"
        "|SNP None|TLB L1 or L2 hit|LCK No|BLK"
        "    N/A    5   7    0   7fad11122345 [unknown] (/usr/lib64/libglib-2.0.so.0.8000.3)\n",
        [(544966882384000, 0x7FFD11122, False)],
    ),
    "intel-store": (
        "          ls  9351 [001] 10212.123456:      1000       cpu/mem-stores/P:  7ffe00112a08"
        "          5080184 |OP STORE|LVL L1 hit|SNP N/A|TLB L1 or L2 hit|LCK No"
        "                  0      55d011123abc main+0x1c (/usr/bin/ls)\n",
        [(10212123456000, 0x7FFE00112, True)],
    ),
    "arm-spe": (
        "       memstress  3603 [020]   122.463754:          1            l1d-miss:   aaaa11123e88"
        "       8688000842 |OP LOAD|LVL L3 or L3 hit|SNP N/A|TLB Walker hit|LCK No|BLK  N/A"
        "               aaaa11100e88 [unknown] (/home/user/memstress)\n",
        [(122463754000, 0xAAAA11123, False)],
    ),
    "arm-spe-simd": (
        "  sve-test 4711 6516.714341:          1   memory:     ffff81112000  444000288100144"
        " |OP STORE SIMD|LVL L1 hit|SNP None|TLB Walker hit|LCK No|BLK  N/A|AFF PRED SG\n",
        [(6516714341000, 0xFFFF81112, True)],
    ),
    "amd-ibs": (
        "  stream  1234/1240  [003]   512.000100:     100000   ibs_op//:                0"
        "        26a080042 |OP LOAD|LVL N/A|SNP N/A|TLB N/A|LCK N/A|BLK  N/A"
        "  7f1001112222 copy+0x12\n"
        "  stream  1234/1240  [003]   512.000200:     100000   ibs_op//:     7f10a1112000"
        "        26a080042 |OP LOAD|LVL L1 hit|SNP N/A|TLB N/A|LCK N/A|BLK  N/A"
        "  7f1001112222 copy+0x12\n",
        [(512000200000, 0x7F10A1112, False)],
    ),
}


@pytest.mark.parametrize("name", PERF_SAMPLES)
def test_perf_samples_of_real_processors(tmp_path, name):
    text, events = PERF_SAMPLES[name]
    path = tmp_path / "a.perf"
    path.write_text(text)
    trace = traces.read(path)
    found = zip(trace.time.tolist(), trace.page.tolist(), trace.write.tolist(), strict=True)
    assert list(found) == events


# DAMON's records. The two texts are in the layout of the kernel's
# Documentation/admin-guide/mm/damon/usage.rst and of damo 3.4's json files.
DAMON_TEXT = (
    "kdamond.0 46568 [027] 79357.842179: damon:damon_aggregated: target_id=0 nr_regions=2"
    " 4096-12288: 5 864\n"
    "kdamond.0 46568 [027] 79357.842179: damon:damon_aggregated: target_id=0 nr_regions=2"
    " 12288-40960: 0 9\n"
    "kdamond.0 46568 [027] 79357.942179: damon:damon_aggregated: target_id=0 nr_regions=1"
    " 4096-8192: 1\n"
)


def damon_json(**changes):
    region = {
        "start": "4,096", "end": "12,288",
        "nr_accesses": {"samples": 5, "percent": None},
        "age": {"usec": None, "aggr_intervals": "864"},
    } | changes  # fmt: skip
    quiet = region | {"start": 12288, "end": 40960, "nr_accesses": {"samples": 0}}
    last = region | {"start": "4,096", "end": "8,192", "nr_accesses": {"samples": 1}}
    snapshots = [
        {"start_time": "79357742179000", "end_time": "79357842179000", "regions": [region, quiet]},
        {"start_time": "79357842179000", "end_time": "79357942179000", "regions": [last]},
    ]
    return json.dumps([{"target_id": 0, "snapshots": snapshots}]).encode()


@pytest.mark.parametrize(
    "data", [DAMON_TEXT.encode(), damon_json(), zlib.compress(damon_json())],
    ids=["perf script", "json", "compressed json"],
)  # fmt: skip
def test_damon_records(tmp_path, data):
    path = tmp_path / "record.damon"
    path.write_bytes(data)
    record = traces.read_damon(path)
    assert record.start.tolist() == [4096, 12288, 4096]
    assert record.end.tolist() == [12288, 40960, 8192]
    assert record.nr_accesses.tolist() == [5, 0, 1]
    trace = traces.read(path)
    assert trace.page.tolist() == [1, 2, 1]
    assert trace.time.tolist() == [79357842179000, 79357842179000, 79357942179000]
    assert record.to_trace(at_least=2).page.tolist() == [1, 2]


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(trace=any_trace(time_limit=1 << 20), interval=st.integers(1, 1000))
def test_damon_keeps_pages_and_intervals(tmp_path, trace, interval):
    path = tmp_path / "a.damon"
    traces.write(trace, path, interval=interval)
    found = traces.read(path)
    keys = {(int(t) // interval, int(p)) for t, p in zip(trace.time, trace.page, strict=True)}
    assert {
        (int(t) // interval - 1, int(p)) for t, p in zip(found.time, found.page, strict=True)
    } == keys
    assert len(found) == len(keys)


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(data)
    return sink.getvalue().to_pybytes()


def rows(*events):
    return b"".join(struct.pack("<IQIq", time, page, 4096, -1) for time, page in events)


def arrow(**columns):
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


def columns(**changes):
    return {"time": pa.array([1, 2], pa.uint64()), "page": pa.array([3, 4], pa.uint64()),
            "write": pa.array([True, False])} | changes  # fmt: skip


def arrow_with(key, value):
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns()).replace_schema_metadata({key: value}), sink)
    return sink.getvalue()


def twice():
    sink = io.BytesIO()
    names = [*columns(), "time"]
    parquet.write_table(pa.table([*columns().values(), pa.array([1, 2])], names=names), sink)
    return sink.getvalue()


def npz(**extra):
    arrays = {"time": np.arange(3, dtype=np.uint64), "page": np.arange(3, dtype=np.uint64),
              "write": np.zeros(3, np.bool_), "window": np.uint64(0)} | extra  # fmt: skip
    sink = io.BytesIO()
    np.savez_compressed(sink, **arrays)
    return sink.getvalue()


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def member(data, change):
    """An archive with one column that is not as long as its header says."""
    source = zipfile.ZipFile(io.BytesIO(data))
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            archive.writestr(name, change(content) if name == "page.npy" else content)
    return sink.getvalue()


MANY = rows(*((n, n % 9000) for n in range(20000)))
LINE = "cat 71 8.25: mem: 5000\n"

#: Name of the file, its bytes, a place and an expectation that the error names.
BAD = {
    "oracle-empty": ("a.oracleGeneral", b"", "end of file", "at least one event"),
    "oracle-cut": ("a.oracleGeneral", rows((1, 2), (2, 3))[:-1], "offset 24", "24 bytes"),
    "oracle-short": ("a.oracleGeneral", b"abc", "offset 0", "24 bytes"),
    "oracle-unsorted": ("a.oracleGeneral", rows((1, 2), (7, 2), (6, 2)), "event 2", "sorted"),
    "oracle-huge": ("a.oracleGeneral", rows((1, 2), (1, 1 << 45)), "event 1", r"2\*\*45"),
    "oracle-text": ("a.oracleGeneral", b"time,page,write\n1,2,0\n4,5,1\n", "", ""),
    "zstd-early": ("a.oracleGeneral.zst", zstd(MANY)[:-40], "event ", "whole zstd stream"),
    "zstd-head": ("a.oracleGeneral.zst", zstd(MANY)[:5], "event 0", ""),
    "zstd-broken": ("a.oracleGeneral.zst", flipped(zstd(MANY), 60), "event ", ""),
    "zstd-cut-inside": ("a.oracleGeneral.zst", zstd(MANY[:-5]), "offset 479976", "24 bytes"),
    "zstd-not": ("a.oracleGeneral.zst", MANY, "offset 0", "a zstd stream"),
    "zstd-empty": ("a.oracleGeneral.zst", b"", "offset 0", "a zstd stream"),
    "zstd-of-nothing": ("a.oracleGeneral.zst", zstd(b""), "end of file", "at least one event"),
    "parquet-empty": ("a.parquet", b"", "footer", "a Parquet file"),
    "parquet-not": ("a.parquet", b"PAR1 but not really" * 9, "footer", "a Parquet file"),
    "parquet-cut": ("a.parquet", arrow(**columns())[:-9], "footer", "a Parquet file"),
    "parquet-column": ("a.parquet", arrow(time=[1], page=[2]), "column write", "a column write"),
    "parquet-negative": ("a.parquet", arrow(**columns(page=pa.array([1, -4]))), "rows from 0", ""),
    "parquet-null": (
        "a.parquet", arrow(**columns(page=pa.array([1, None], pa.uint64()))), "column page",
        "a value in each row",
    ),
    "parquet-unsorted": (
        "a.parquet", arrow(**columns(time=pa.array([9, 2], pa.uint64()))), "event 1", "sorted",
    ),
    "parquet-text": (
        "a.parquet", arrow(**columns(time=pa.array(["1", "2"]))), "column time", "whole numbers",
    ),
    "parquet-fractions": (
        "a.parquet", arrow(**columns(page=pa.array([3.0, 4.0]))), "column page", "whole numbers",
    ),
    "parquet-write": (
        "a.parquet", arrow(**columns(write=pa.array(["no", "yes"]))), "column write", "true or",
    ),
    "parquet-twice": ("a.parquet", twice(), "column time", "one"),
    "parquet-window": (
        "a.parquet", arrow_with("youngbit.window", "-7"), "metadata youngbit.window", "negative",
    ),
    "parquet-window-huge": (
        "a.parquet", arrow_with("youngbit.window", "9" * 23), "metadata youngbit.window", "below",
    ),
    "parquet-vms": (
        "a.parquet", arrow_with("youngbit.vms", "9,3,-1"), "metadata youngbit.vms", "rising",
    ),
    "parquet-before-vms": (
        "a.parquet", arrow_with("youngbit.vms", "4,9"), "event 0", "the first begins at 4",
    ),
    "parquet-nothing": (
        "a.parquet", arrow(**{key: value[:0] for key, value in columns().items()}),
        "end of file", "at least one event",
    ),
    "npz-member-cut": ("a.npz", member(npz(), lambda c: c[:-3]), "array page", "a whole array"),
    "npz-member-long": ("a.npz", member(npz(), lambda c: c + b"more"), "array page", "3 elements"),
    "npz-crc": ("a.npz", flipped(npz(), 100), "array time", "a whole array"),
    "npz-vms": ("a.npz", npz(vms=np.array([5, 3])), "array vms", "rising"),
    "npz-before-vms": ("a.npz", npz(vms=np.array([1])), "event 0", "the first begins at 1"),
    "npz-vms-float": ("a.npz", npz(vms=np.array([0.5])), "array vms", "rising"),
    "npz-vms-empty": ("a.npz", npz(vms=np.array([], np.uint64)), "array vms", "rising"),
    "npz-window-2d": ("a.npz", npz(window=np.zeros((2, 2), int)), "array window", "a number"),
    "npz-big-endian": ("a.npz", npz(time=np.arange(3, dtype=">u8")), "array time", "uint64"),
    "perf-empty": ("a.perf", b"", "end of file", "at least one event"),
    "perf-comments": ("a.perf", b"# nothing\n\n", "end of file", "at least one event"),
    "perf-cut": ("a.perf", (LINE + LINE[:-4]).encode(), "line 2", "truncated"),
    "perf-no-address": ("a.perf", b"cat 71 8.2: mem:\n", "line 1", "perf script -F"),
    "perf-ip-only": ("a.perf", b"cat 71 8.2: mem: 401136 main+0x16 (/a)\n", "line 1", "-F"),
    "perf-atom-no-address": (
        "a.perf",
        b"gnome  5342 [023] 544951.816227:  10000 cpu_atom/MEM_UOPS_RETIRED.LOAD_LATENCY/:"
        b"   7f0a11122ae0  [unknown] (/usr/lib64/libx.so)\n",
        "line 1",
        "-F",
    ),
    "perf-data-src-only": (
        "a.perf",
        b"cat 71 8.2: arm_spe_0//: 68100142 |OP LOAD|LVL L1 hit|SNP None|TLB Walker hit|LCK No\n",
        "line 1",
        "perf script -F",
    ),
    "perf-no-time": ("a.perf", b"cat mem: 5000\n", "line 1", "a sample"),
    "perf-unsorted": ("a.perf", (LINE + LINE.replace("8.2", "8.1")).encode(), "line 2", "time"),
    "perf-huge": ("a.perf", b"cat 71 8.2: mem: 4000000000000000\n", "line 1", r"2\^57"),
    "perf-negative": ("a.perf", b"cat 71 8.2: mem: -5000\n", "line 1", "an address"),
    "perf-binary": ("a.perf", bytes(range(256)) * 40, "line ", ""),
    "perf-only-kernel": ("a.perf", b"cat 71 8.2: mem: ffffffff81755abc\n", "end of file", ""),
    "csv-mixed": ("a.csv", b"time,page,write\r\n1,2,0\n1,2,0\r2,3,0\n", "line 3", "two numbers"),
    "csv-last-time": ("a.csv", b"time,page,write\n18446744073709551615,2,0\n", "line 2", "time"),
    "csv-spaces": ("a.csv", b"time,page,write\n1, 2,0\n", "line 2", "two numbers"),
    "lackey-end": ("a.txt", b"I  1ffffffffffffff,4\n", "line 1", r"2\^57"),
    "lackey-negative": ("a.txt", b"I  -4,4\n", "line 1", "lackey"),
    "damon-empty": ("a.damon", b"", "offset 0", "a DAMON record"),
    "damon-zlib": ("a.damon", zlib.compress(damon_json())[:-8], "end of file", "whole zlib"),
    "damon-zlib-broken": ("a.damon", b"\x78\x9c" + b"\xff" * 30, "offset 0", "zlib"),
    "damon-json-cut": ("a.damon", damon_json()[:-7], "JSON", "whole JSON"),
    "damon-json-deep": ("a.damon", b"[" * 100_000, "JSON", "whole JSON"),
    "damon-nothing": ("a.damon", b"[]", "end of file", "at least one region"),
    "damon-number": ("a.damon", b"[5]", "record 0", "an object"),
    "damon-no-start": ("a.damon", damon_json(start=None), "record 0, snapshot 0", "whole number"),
    "damon-negative": ("a.damon", damon_json(start=-4096), "region 0", "whole number"),
    "damon-backwards": ("a.damon", damon_json(start="16,384"), "region 0", r"below 2\*\*57"),
    "damon-huge": ("a.damon", damon_json(end=str(1 << 60)), "region 0", r"2\*\*57"),
    "damon-vast": ("a.damon", damon_json(end=str(1 << 56)), "regions", "at most"),
    "damon-samples": ("a.damon", damon_json(nr_accesses={"percent": 1}), "region 0", "samples"),
    "damon-text": ("a.damon", b"hello\n", "line 1", "damon_aggregated"),
    "damon-text-cut": ("a.damon", DAMON_TEXT[:-3].encode(), "line 3", "whole file"),
    "damon-text-unsorted": (
        "a.damon", DAMON_TEXT.replace("79357.94", "79357.74").encode(), "line 3", "not below",
    ),
    "damon-targets": (
        "a.damon", DAMON_TEXT.replace("id=0", "id=1", 1).encode(), "targets", "a choice",
    ),
    "damon-not-text": ("a.damon", b"\xff\xfe\x00", "offset 0", "a DAMON record"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_place(case, tmp_path):
    name, data, where, expected = BAD[case]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(yb.TraceError, match=expected or None) as caught:
        traces.read(path)
    error = caught.value
    assert error.path == str(path)
    assert where in error.where
    assert str(path) in str(error)
    # A converter that fails half-way leaves nothing behind.
    with (
        pytest.raises(yb.TraceError),
        traces.open_trace(path, block=1) as reader,
        traces.writing(tmp_path / "out.npz") as writer,
    ):
        traces.write_all(reader, writer)
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_what_cannot_be_read_from_a_pipe_is_said(tmp_path, ending):
    path = tmp_path / f"pipe.{ending}"
    os.mkfifo(path)
    # Open at both ends, so that nobody waits.
    end = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(yb.TraceError, match=r"found a pipe, expected a file: .* from its end"):
            traces.read(path)
    finally:
        os.close(end)


def test_there_are_enough_of_them():
    assert len(BAD) >= 60


GOOD = {
    "npz": npz(),
    "csv": b"time,page,write\n1,2,0\n1,3,1\n",
    "parquet": arrow(**columns()),
    "oracle": rows((1, 2), (2, 3)),
    "oracle ": zstd(rows((1, 2), (2, 3))),
    "lackey": (DATA / "lackey.txt").read_bytes(),
    "perf": (LINE * 2).encode(),
    "damon": DAMON_TEXT.encode(),
    "damon ": damon_json(),
    "damon  ": zlib.compress(damon_json()),
}


@pytest.mark.parametrize("key", GOOD)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_bytes_are_a_trace_or_an_error(tmp_path, key, data):
    good = GOOD[key]
    if data.draw(st.booleans(), "arbitrary"):
        content = data.draw(st.binary(max_size=200))
    else:
        # Damaged rather than arbitrary: most of it is still understood.
        content = bytearray(good)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] = data.draw(st.integers(0, 255))
        content = bytes(content[: data.draw(st.integers(0, len(content)))])
    path = tmp_path / "fuzzed"
    path.write_bytes(content)
    try:
        trace = traces.read(path, key.strip())
    except yb.TraceError as caught:
        error = caught
    else:
        assert len(trace) > 0
        assert (trace.time[1:] >= trace.time[:-1]).all()
        assert int(trace.page.max()) < 1 << 45
        return
    assert str(path) in str(error)
    assert error.where


def test_what_a_format_has_no_place_for_is_said(tmp_path):
    late = made([1 << 32], [1], [False])
    with pytest.raises(ValueError, match="32 bits for a time"):
        traces.write(late, tmp_path / "a.oracleGeneral")
    with pytest.raises(ValueError, match="interval"):
        traces.write(late, tmp_path / "a.damon")
    with pytest.raises(ValueError, match="none that can be written"):
        traces.write(late, tmp_path / "a.txt")
    with pytest.raises(ValueError, match="none of npz"):
        traces.read(tmp_path / "a", "gif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["parquet", "oracleGeneral.zst"])
def test_a_missing_package_is_named(tmp_path, ending, monkeypatch):
    path = tmp_path / f"a.{ending}"
    trace = made([1], [1], [False])
    traces.write(trace, path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'youngbit\[lab\]'"):
        traces.read(path)
    with pytest.raises(ImportError, match=r"needs pyarrow"):
        traces.write(trace, tmp_path / f"b.{ending}")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
