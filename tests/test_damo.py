"""DAMON records and the program that reads and writes them, ``damo``."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

import youngbit as yb
from youngbit import traces
from youngbit.traces import Block
from youngbit.traces import damon as implementation

DATA = Path(__file__).parent / "data" / "damon"
INTERVAL = 5_000_000
DAMO = shutil.which("damo")
needs_damo = pytest.mark.skipif(DAMO is None, reason="damo is not installed: pip install damo")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    path = tmp_path_factory.mktemp("damon") / "ours.damon"
    trace = traces.shipped()
    with traces.writing(path, interval=INTERVAL) as writer:
        kept = Block(*(column[:6000] for column in (trace.time, trace.page, trace.write)))
        traces.write_all([kept], writer)
    return path


def assert_equal(one, other):
    a, b = traces.read_damon(one), traces.read_damon(other)
    assert len(a) > 100
    for name in ("time", "start", "end", "nr_accesses", "age"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("name", ["converted.damon", "converted.damon.txt"])
def test_what_damo_wrote_of_a_record_of_ours_is_that_record(ours, name):
    assert_equal(ours, DATA / name)


def damo(*arguments):
    done = subprocess.run([DAMO, *map(str, arguments)], capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_damo
@pytest.mark.parametrize("format_", ["json", "json_compressed", "perf_script"])
def test_damo_converts_a_record_of_ours(ours, tmp_path, format_):
    converted = tmp_path / "converted.damon"
    damo("convert_record_format", "--record_file", ours, "--format", format_,
         "--output_file", converted)  # fmt: skip
    assert_equal(ours, converted)


@needs_damo
def test_damo_reports_the_regions_of_a_record_of_ours(ours):
    record = traces.read_damon(ours)
    shown = damo("report", "access", "--raw_form", "--input", ours)
    # Of each region: first byte, one past its last, size, samples, age.
    found = re.findall(r"^([0-9a-f]{12})-([0-9a-f]{12}) \(.*\) +(\d+) +(\d+)$", shown, re.MULTILINE)
    assert [[int(start, 16), int(end, 16), int(n), int(age)] for start, end, n, age in found] == [
        list(map(int, row))
        for row in zip(record.start, record.end, record.nr_accesses, record.age, strict=True)
    ]


@needs_damo
def test_damo_finds_the_working_set_of_a_record_of_ours(ours):
    record = traces.read_damon(ours)
    shown = damo("report", "wss", "--input", ours, "--raw_number",
                 "--exclude_samples", 0)  # fmt: skip
    sizes = [int((record.end - record.start)[record.time == time].sum())
             for time in np.unique(record.time)]  # fmt: skip
    largest = re.search(r"^ *100 +([\d,]+)", shown, re.MULTILINE)
    assert largest is not None
    assert int(largest[1].replace(",", "")) == max(sizes)


def regions(snapshot, count):
    """Regions with a page between them, two thirds of them accessed."""
    return [(8192 * (snapshot + n), 8192 * (snapshot + n) + 4096, n % 3) for n in range(count)]


def as_text(snapshots, count):
    return "".join(
        f"kdamond.0 46568 [027] {1 + s}.842179: damon:damon_aggregated: target_id=0"
        f" nr_regions={count} {start}-{end}: {samples} {s}\n"
        for s in range(snapshots)
        for start, end, samples in regions(s, count)
    ).encode()


def as_json(*records):
    """Records of a target and snapshots: a time, and regions."""
    return json.dumps([
        {"target_id": target, "snapshots": [
            {"end_time": str(time), "regions": [
                {"start": f"{start:,}", "end": f"{end:,}",
                 "nr_accesses": {"samples": samples, "percent": None},
                 "age": {"usec": None, "aggr_intervals": "3"}}
                for start, end, samples in rows]}
            for time, rows in snapshots]}
        for target, snapshots in records]).encode()  # fmt: skip


# How far memory grows at the most, beyond what reading a small record takes.
GROWS = """
import sys
from youngbit import traces

def highest():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

def read(path):
    with traces.open_trace(path) as reader:
        return sum(block.events for block in reader)

read(sys.argv[1])
before = highest()
events = read(sys.argv[2])
streamed = highest()
record = traces.read_damon(sys.argv[2])
print(events, len(record), streamed - before, highest() - before)
"""


@pytest.mark.parametrize("guise", ["text", "json", "json packed"])
def test_a_record_larger_than_memory_needs_little_of_it(tmp_path, guise):
    small, large = tmp_path / "small.damon", tmp_path / "large.damon"
    for path, snapshots in ((small, 1), (large, 50)):
        if guise == "text":
            data = as_text(snapshots, 1000)
        else:
            data = as_json((0, [(s, regions(s, 1000)) for s in range(snapshots)]))
        path.write_bytes(zlib.compress(data) if guise == "json packed" else data)
    assert len(data) > 5 << 20
    done = subprocess.run([sys.executable, "-c", GROWS, small, large], capture_output=True,
                          text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    events, length, streamed, whole = map(int, done.stdout.split())
    assert events == 50 * 666
    assert length == 50_000
    # KiB. What is read at a time; and, of 50,000 regions, the columns thrice.
    assert streamed < 2 << 10
    assert whole < 10 << 10


def test_a_record_is_written_in_little_memory(tmp_path):
    count = 60_000
    rows = np.arange(count, dtype=np.uint64)
    tracemalloc.start()
    with traces.writing(tmp_path / "a.damon", interval=1000) as writer:
        for at in range(0, count, 1000):
            part = rows[at : at + 1000]
            writer.add(Block(part, part * np.uint64(2), np.zeros(1000, np.bool_)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20
    assert len(traces.read_damon(tmp_path / "a.damon")) == count


@pytest.mark.parametrize("limit", [1, 7, 1 << 12])
def test_however_little_is_held_the_record_is_the_same(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(implementation, "_REGIONS", limit)
    monkeypatch.setattr(implementation, "_PIECE", 10 * limit)
    monkeypatch.setattr(implementation._Columns, "PIECE", limit)
    rows = [regions(s, 20) for s in range(5)]
    paths = [tmp_path / name for name in ("a.damon.txt", "a.damon.json", "a.damon")]
    data = as_json((0, [(int((1 + s) * 1e9 + 842_179_000), rows[s]) for s in range(5)]))
    for path, content in zip(paths, (as_text(5, 20), data, zlib.compress(data)), strict=True):
        path.write_bytes(b"\n \n" + content if content[:1] != b"\x78" else content)
        record = traces.read_damon(path)
        found = zip(record.start, record.end, record.nr_accesses, strict=True)
        assert list(found) == [row for each in rows for row in each]
        with traces.open_trace(path, block=limit) as reader:
            blocks = list(reader)
        trace = record.to_trace()
        assert np.array_equal(np.concatenate([each.page for each in blocks]), trace.page)
        assert np.array_equal(np.concatenate([each.time for each in blocks]), trace.time)
        assert max(each.events for each in blocks) <= limit
    trace = traces.Trace(trace.time, trace.page, trace.write, 0, "made up")
    traces.write(trace, tmp_path / "b.damon", interval=10**9)
    assert np.array_equal(traces.read(tmp_path / "b.damon").page, trace.page)


def test_a_region_larger_than_a_block_is_in_several(tmp_path):
    path = tmp_path / "a.damon"
    path.write_bytes(as_json((0, [(7, [(4096, 4096 * 11, 1), (4096 * 20, 4096 * 22, 1)])])))
    with traces.open_trace(path, block=4) as reader:
        assert [block.page.tolist() for block in reader] == [
            [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 20, 21],
        ]  # fmt: skip


def test_records_of_one_target_are_merged_in_order_of_time(tmp_path):
    path = tmp_path / "a.damon"
    one = (3, [(10, [(0, 4096, 1)]), (30, [(4096, 8192, 1)])])
    other = (3, [(20, [(8192, 12288, 1)]), (5, [(12288, 16384, 1)])])
    path.write_bytes(as_json(one, other))
    assert traces.read_damon(path).time.tolist() == [5, 10, 20, 30]
    assert traces.read(path).page.tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize("text", [False, True], ids=["json", "text"])
def test_one_target_of_several_is_chosen(tmp_path, text):
    path = tmp_path / "a.damon"
    snapshots = [(10, [(0, 4096, 1)]), (30, [(4096, 8192, 1)])]
    if text:
        path.write_text(
            "".join(
                f"k 1 [0] 0.{n}: damon:damon_aggregated: target_id={target} nr_regions=1"
                f" {4096 * target}-{4096 * (target + 1)}: 1 1\n"
                for n in range(1, 3)
                for target in (9, 4, 7)
            )
        )
    else:
        path.write_bytes(as_json((9, snapshots), (4, snapshots[1:]), (7, snapshots)))
    assert len(traces.read_damon(path, target=4)) == (2 if text else 1)
    with pytest.raises(yb.TraceError, match=r"several: 4, 7, 9, expected one"):
        traces.read_damon(path)
    with pytest.raises(yb.TraceError, match=r"several: 4, 7, 9, expected one"):
        traces.read(path)
    with pytest.raises(yb.TraceError, match="no region"):
        traces.read_damon(path, target=5)


def test_members_come_in_any_order(tmp_path):
    path = tmp_path / "a.damon"
    rows = as_json((4, [(10, [(0, 4096, 1)])]), (5, [(20, [(4096, 8192, 1)])]))
    turned = [
        {"other": [{"deep": [1, {}]}], "snapshots": [
            {key: each[key] for key in ("regions", "end_time")} for each in record["snapshots"]
        ], "target_id": record["target_id"]}
        for record in json.loads(rows)
    ]  # fmt: skip
    kept = {"a": {"record_list": 5}, "damo_records": {"damon_records": {"record_list": turned}}}
    path.write_text(json.dumps({**kept, "z": [{}]}))
    assert traces.read_damon(path, target=5).start.tolist() == [4096]
    with pytest.raises(yb.TraceError, match=r"several: 4, 5, expected one"):
        traces.read(path)
    path.write_text(json.dumps({"damo_records": {"damon_records": {"record_list": turned[:1]}}}))
    assert traces.read(path).time.tolist() == [10]


PLACES = {
    "no-list": ({"damo_records": {"damon_records": {}}}, "damon_records", "no record_list"),
    "list-is-none": ({"damo_records": []}, "document, damo_records", "found list"),
    "no-target": ([{"snapshots": []}], "record 0", "no target_id"),
    "no-snapshots": ([{"target_id": 0}], "record 0", "no snapshots"),
    "snapshots-number": ([{"snapshots": 4.5}], "record 0, snapshots", "a list"),
    "snapshot-text": ([{"snapshots": ["a"]}], "record 0, snapshot 0", "found str"),
    "no-time": ([{"snapshots": [{"regions": []}]}], "record 0, snapshot 0", "no end_time"),
    "no-regions": ([{"snapshots": [{"end_time": 1}]}], "record 0, snapshot 0", "no regions"),
    "regions-none": (
        [{"snapshots": [{"end_time": 1, "regions": None}]}],
        "record 0, snapshot 0, regions", "found NoneType",
    ),
    "region-list": (
        [{"snapshots": [{"end_time": 1, "regions": [[]]}]}],
        "record 0, snapshot 0, region 0", "an object",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES)
def test_what_is_no_record_is_said_with_its_place(tmp_path, case):
    content, where, said = PLACES[case]
    path = tmp_path / "a.damon"
    path.write_text(json.dumps(content))
    with pytest.raises(yb.TraceError, match=said) as caught:
        traces.read(path)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda data: data[:300], "JSON, offset 300"),
        (lambda data: b"\n " + data.replace(b"}}, {", b"}}, !{", 1), "JSON, offset 191"),
        (lambda data: data[:300] + b"\xff" + data[300:], "JSON, offset 301"),
        (lambda data: data + b" x", "JSON, offset 10755"),
        (lambda data: b"[" + (b"{}, " * 10 + b"; ") * 9, "JSON, offsets 0 to 379"),
    ],
    ids=["cut", "character", "not UTF-8", "more", "anywhere"],
)  # fmt: skip
def test_what_is_no_json_is_said_with_its_offset(tmp_path, change, where):
    path = tmp_path / "a.damon"
    path.write_bytes(change(as_json((0, [(7, regions(0, 80))]))))
    with pytest.raises(yb.TraceError, match="expected a whole JSON document") as caught:
        traces.read(path)
    assert caught.value.where == where


def test_a_line_without_end_is_refused(tmp_path):
    path = tmp_path / "a.damon.txt"
    path.write_bytes(as_text(1, 2) + b"# " + b"a" * (1 << 20) + b"\n")
    with pytest.raises(yb.TraceError, match="line 3: found a line without end"):
        traces.read(path)


def test_a_record_of_more_pages_than_a_trace_may_have_is_read_in_blocks_only(tmp_path, monkeypatch):
    path = tmp_path / "a.damon"
    path.write_bytes(as_json((0, [(n, [(0, 4096 * 9, 1)]) for n in range(4)])))
    monkeypatch.setattr(implementation, "MOST_EVENTS", 30)
    with pytest.raises(yb.TraceError, match="regions: found 36 pages or more, expected at most 30"):
        traces.read(path)
    with pytest.raises(yb.TraceError, match="regions: found 36 pages, expected at most 30"):
        traces.read_damon(path).to_trace()
    with traces.open_trace(path) as reader:
        assert sum(block.events for block in reader) == 36


def test_without_ijson_json_says_how_to_have_it_and_text_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ijson", None)
    path = tmp_path / "a.damon"
    path.write_bytes(as_json((0, [(1, [(0, 4096, 1)])])))
    with pytest.raises(ImportError, match=r"needs ijson: pip install 'youngbit\[damon\]'"):
        traces.read(path)
    path.write_bytes(as_text(1, 3))
    assert len(traces.read_damon(path)) == 3
