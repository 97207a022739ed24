"""What the laboratory adds to the experiments that it runs.

`make bench` runs these. Ratios are of one run: the same experiments in this process beside
the sweep, and processor time beside wall time.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest

import youngbit as yb
from youngbit import lab
from youngbit.lab import store

RUNS = 200


def sweep(accesses: int) -> lab.Sweep:
    vm = lab.VirtualMachine(memory=16 << 20, workload=lab.Zipf(accesses=accesses))
    experiment = lab.Aging(vms=(vm,), schedule=lab.Schedule(every=accesses // 10))
    return lab.Sweep.of(experiment, seeds=range(RUNS))


def machine_seconds() -> tuple[float, float]:
    """Seconds that processors worked, for anybody, and seconds that there were."""
    line = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, line.split()[1:9])
    busy = user + nice + system + irq + softirq
    return busy / 100, (busy + idle + iowait + steal) / 100


def test_overhead_of_a_run(benchmark, tmp_path):
    """A sweep on one process, less the same runs here: seconds a run, start-up included."""
    plan = sweep(20_000)
    here = []
    for point in plan.all():
        begun = time.perf_counter()
        lab.run(point.experiment)
        here.append(time.perf_counter() - begun)
    wall = []

    def once():
        begun = time.perf_counter()
        lab.run_sweep(plan, tmp_path / str(len(wall)), jobs=1)
        wall.append(time.perf_counter() - begun)

    benchmark.pedantic(once, rounds=3)
    inside = [
        yb.load(tmp_path / str(i)).to_arrow()["seconds"].to_pylist() for i in range(len(wall))
    ]
    overhead = [(each - sum(runs)) / RUNS for each, runs in zip(wall, inside, strict=True)]
    benchmark.extra_info |= {
        "run_here_ms": statistics.median(here) * 1e3,
        "run_in_worker_ms": statistics.median(inside[0]) * 1e3,
        "overhead_ms": [each * 1e3 for each in overhead],
    }
    print(benchmark.extra_info)
    assert statistics.median(overhead) < 0.02


def test_processors_are_busy(benchmark, tmp_path):
    """A sweep on two processes, on an idle machine of two processors: share of both that work."""
    plan = sweep(200_000)
    found = []

    def once():
        (used, there), begun = machine_seconds(), time.perf_counter()
        results = lab.run_sweep(plan, tmp_path / str(len(found)), jobs=2)
        wall = time.perf_counter() - begun
        used_after, there_after = machine_seconds()
        runs = sum(results.to_arrow()["seconds"].to_pylist())
        found.append(
            {
                "wall": wall,
                "in_runs": runs / wall / 2,
                "busy": (used_after - used) / (there_after - there),
            }
        )

    benchmark.pedantic(once, rounds=2)
    benchmark.extra_info["sweeps"] = found
    print(found)
    assert max(each["busy"] for each in found) > 0.9


def test_loading_ten_thousand_rows(benchmark, tmp_path):
    plan = lab.Sweep.of(sweep(20_000).all().__next__().experiment, seeds=range(10_000))
    result = lab.run(next(plan.all()).experiment)
    few = {name: values[:2] for name, values in result.passes.items()}
    with pytest.MonkeyPatch.context() as patch, store.Store(tmp_path, plan) as kept:
        # Ten thousand syncs are the disk's time, and this is about reading.
        patch.setattr(store.os, "fsync", lambda _: None)
        for run in range(10_000):
            kept.add((run, result.row | {"seed": run}, few))
    begun = time.perf_counter()
    store.write_parquet(tmp_path)
    benchmark.extra_info["compact_seconds"] = time.perf_counter() - begun
    results = benchmark(yb.load, tmp_path)
    assert len(results) == 10_000
    print(benchmark.extra_info)
    assert benchmark.stats.stats.median < 0.1
