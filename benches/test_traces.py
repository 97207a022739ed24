"""How fast traces are read: 4 million accesses of each format, a block at a time."""

from __future__ import annotations

import numpy as np
import pytest

from youngbit import traces

EVENTS = 4_000_000


@pytest.fixture(scope="module")
def trace():
    rng = np.random.default_rng(5)
    hot = rng.integers(0, 2000, EVENTS, dtype=np.uint64)
    cold = rng.integers(0, 1 << 20, EVENTS, dtype=np.uint64)
    page = np.where(rng.random(EVENTS) < 0.8, hot, cold)
    time = np.cumsum(rng.integers(0, 900, EVENTS, dtype=np.uint64))
    return traces.Trace(time, page, rng.random(EVENTS) < 0.3, 0, "made up")


@pytest.mark.parametrize("ending", ["npz", "csv", "parquet", "oracleGeneral", "oracleGeneral.zst"])
def test_read(benchmark, trace, tmp_path_factory, ending):
    path = tmp_path_factory.mktemp("traces") / f"trace.{ending}"
    traces.write(trace, path)

    def read():
        events = 0
        with traces.open_trace(path) as reader:
            for block in reader:
                events += block.events
        return events

    assert benchmark.pedantic(read, rounds=5, warmup_rounds=1) == EVENTS
    benchmark.extra_info["accesses_per_second"] = EVENTS / benchmark.stats.stats.median


def test_read_lackey(benchmark, tmp_path):
    path = tmp_path / "lackey.txt"
    line = "".join(f"I  {0x4000000 + n * 4 % 65536:08x},4\n L {0x1FFF000000 + n * 64:x},8\n"
                   for n in range(100_000))  # fmt: skip
    path.write_text(line * 5)

    def read():
        with traces.open_trace(path, "lackey") as reader:
            return sum(block.events for block in reader)

    assert benchmark.pedantic(read, rounds=3, warmup_rounds=1) > 1000
    benchmark.extra_info["lines_per_second"] = 1_000_000 / benchmark.stats.stats.median
