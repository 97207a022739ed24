"""DAMON records and the program that reads and writes them, ``damo``."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from youngbit import traces
from youngbit.traces import Block

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
