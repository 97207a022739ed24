"""Estimators and policies beside the truth, and what is drawn of them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import youngbit as yb
from youngbit import access, defaults, traces
from youngbit.experiments import (
    ALGORITHMS,
    ESTIMATORS,
    Estimate,
    HeatMap,
    ReclaimPolicies,
    Workload,
    reclaim,
)
from youngbit.experiments.heat_map import ABSENT
from youngbit.plot import estimate_working_sets, heat_map, policy_miss_ratios


def youngbit(*arguments, code=0, **options):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "youngbit", *map(str, arguments)],
        capture_output=True, text=True, timeout=100, check=False, **options,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def workload(pages, writes=True):
    pages = np.array(pages, np.uint32)
    return Workload.of("test", pages, np.full(len(pages), writes), {})


@pytest.fixture(scope="module")
def shipped():
    return reclaim.trace(traces.shipped())


def test_without_a_tlb_all_who_look_at_every_page_know_the_truth(shipped):
    result = Estimate(tlb_entries=0).run(shipped)
    for name in ("mglru", "page-idle", "bits", "bits-flush"):
        each = result[name]
        assert (each.precision, each.recall) == (1.0, 1.0), name
        assert (each.working_set_error, each.age_error) == (0.0, 0.0), name
    # Without the series aging sees what faults, and nothing after.
    without = result["mglru-primary"]
    assert without.precision == 1.0
    assert without.recall < 0.3
    assert without.cost["notifier_calls"] == 0
    # Regions are an estimate in both directions.
    damon = result["damon"]
    assert 0.3 < damon.precision < 1.0
    assert 0.3 < damon.recall < 1.0
    assert damon.age_error > 0


def test_a_tlb_hides_accesses_unless_it_is_flushed_and_that_costs_the_guest():
    # The same 32 pages again and again: they stay in the TLB.
    result = Estimate(every=64, tlb_entries=64).run(workload([*range(32)] * 20))
    for name in ("mglru", "page-idle", "bits"):
        each = result[name]
        assert each.precision == 1.0
        assert each.recall == pytest.approx(1 / len(each.intervals))
        assert each.cost["tlb_flushes"] == 0
        assert each.cost["guest_tlb_misses"] == 0
        assert each.age_error > 1
    flushed = result["bits-flush"]
    assert (flushed.precision, flushed.recall, flushed.age_error) == (1.0, 1.0, 0.0)
    intervals = len(flushed.intervals)
    # Who flushes a page flushes all: each page is walked for once an interval.
    assert flushed.cost["tlb_flushes"] == 32 * intervals
    assert flushed.cost["guest_tlb_misses"] == 32 * (intervals - 1)


def test_figures_are_those_of_the_definition():
    # Two intervals of 4, pages 0 to 3 and then 0, 0, 1, 1; no TLB.
    found = Estimate(every=4, tlb_entries=0, estimators=("mglru-primary",)).run(
        workload([0, 1, 2, 3, 0, 0, 1, 1])
    )
    [each] = found.estimators
    assert [i.true_pages for i in each.intervals] == [4, 2]
    assert [i.estimated_pages for i in each.intervals] == [4, 0]
    assert each.precision == 1.0
    assert each.recall == 4 / 6
    assert each.working_set_error == (0 + 1) / 2
    # Pages 0 and 1 seem an interval older than they are.
    assert [i.age_error for i in each.intervals] == [0.0, 0.5]


def test_warm_up_is_not_counted(shipped):
    parameters = {"tlb_entries": 0, "estimators": ("mglru", "mglru-primary")}
    whole = Estimate(**parameters).run(shipped)
    later = Estimate(warm_up=3, **parameters).run(shipped)
    for name in parameters["estimators"]:
        assert whole[name].intervals[3:] == later[name].intervals
        assert later[name].cost["notifier_calls"] <= whole[name].cost["notifier_calls"]
    assert later["mglru-primary"].recall < whole["mglru-primary"].recall
    with pytest.raises(ValueError, match="leave none"):
        Estimate(warm_up=17).run(shipped)


def test_the_lock_is_taken_where_the_protocol_takes_it(shipped):
    names = ("mglru", "page-idle", "damon", "bits")
    locked = Estimate(protocol="baseline", estimators=names).run(shipped)
    lockless = Estimate(protocol="v7", estimators=names).run(shipped)
    for name in names:
        assert locked[name].cost["mmu_lock"] > 1000, name
        assert lockless[name].cost["mmu_lock"] == 0, name
        assert locked[name].recall == lockless[name].recall, name


@pytest.mark.parametrize("protocol", ["baseline", "v7", "v9"])
def test_without_the_series_nobody_is_asked_whatever_the_protocol(shipped, protocol):
    names = ("mglru", "mglru-primary")
    result = Estimate(protocol=protocol, tlb_entries=0, estimators=names).run(shipped)
    assert result["mglru"].recall == 1.0
    assert result["mglru"].what == f"MGLRU, secondary MMUs walked ({protocol})"
    assert result["mglru-primary"].recall < 0.3
    assert not any(result["mglru-primary"].cost.values())


def test_estimates_repeat(shipped):
    first, second = (Estimate().run(shipped).to_dict() for _ in range(2))
    assert first == second
    other = Estimate(seed=1).run(shipped).to_dict()
    assert other["estimators"][3] != first["estimators"][3]
    assert other["estimators"][0] == first["estimators"][0]


@pytest.mark.parametrize(
    ("argument", "value"),
    [("every", 0), ("warm_up", -1), ("damon_samples", 0), ("estimators", ()),
     ("estimators", ("guess",))],
)  # fmt: skip
def test_bad_estimates(argument, value):
    with pytest.raises(ValueError, match=argument):
        Estimate(**{argument: value})


def test_damon_covers_the_guest():
    host = yb.Host(memory="8M", clock="virtual")
    vm = host.create_vm(memory="4M", tlb_entries=0)
    damon = yb.Damon(vm, samples=5, regions=(4, 32), seed=3)
    vm.run(access.sequential(write=True))
    for _ in range(8):
        for _ in range(5):
            damon.prepare()
            vm.run(access.sequential(region=(0, "2M")))
            damon.check()
        found = damon.aggregate()
        assert found.start[0] == 0
        assert found.end[-1] == 1024
        np.testing.assert_array_equal(found.start[1:], found.end[:-1])
        assert len(found) <= 32
        assert damon.nr_regions >= len(found)
    assert (found.pages()[:512] > 0).mean() > 0.9
    assert (found.pages()[512:] == 0).mean() > 0.9
    for regions in ((2, 10), (10, 9)):
        with pytest.raises(OSError, match="3 to 1048576 regions"):
            yb.Damon(vm, regions=regions)


def test_scan_young_clears_what_it_tells():
    host = yb.Host(memory="8M", clock="virtual")
    vm = host.create_vm(memory="1M", tlb_entries=0)
    assert not vm.scan_young().any()
    vm.run(access.sequential(write=True))
    assert vm.scan_young().all()
    assert not vm.scan_young().any()
    vm.run(access.arrays([7, 9]))
    assert vm.scan_young(8, 100).tolist() == [page == 9 for page in range(8, 108)]
    assert np.flatnonzero(vm.scan_young()).tolist() == [7]


# Policies.


def test_belady_is_the_least_and_libcachesim_agrees(shipped, tmp_path):
    libcachesim = pytest.importorskip("libcachesim")
    path = tmp_path / "a.oracleGeneral"
    zero = np.zeros(len(shipped), np.uint64)
    traces.write(
        traces.Trace(zero, shipped.pages.astype(np.uint64), shipped.writes, 0, "test"), path
    )
    result = ReclaimPolicies().run(shipped)
    assert result.names == list(ALGORITHMS)
    for size in result.sizes:
        best = result.row("belady", size).misses
        for name in result.names:
            row = result.row(name, size)
            assert row.misses >= best, (name, size)
            assert row.refaults == row.misses - shipped.nr_pages >= 0
            assert row.miss_ratio == row.misses / len(shipped)
        # Its own Belady, from the next uses that were written for it.
        reader = libcachesim.TraceReader(
            str(path), libcachesim.TraceType.ORACLE_GENERAL_TRACE,
            libcachesim.ReaderInitParam(ignore_obj_size=True),
        )  # fmt: skip
        ratio, _ = libcachesim.Belady(cache_size=size, hashpower=14).process_trace(reader)
        assert round(ratio * len(shipped)) == best
    for name in ("mglru-off", "mglru", "lru", "belady"):
        ratios = result.curve(name)[1]
        assert ratios[0] > ratios[-1]


def test_what_mglru_evicts_comes_back_or_stays_away(shipped):
    """Misses of a guest are counted by refaults: each eviction is one, or an absence."""
    size = shipped.nr_pages // 4
    for mask in (defaults.RECLAIM_OFF, defaults.RECLAIM_ON):
        slack = yb.Pages(shipped.nr_pages + 8192)
        host = yb.Host(slack, swap=slack, clock="virtual", capabilities=mask)
        vm = host.create_vm(yb.Pages(shipped.nr_pages), tlb_entries=64)
        host.capabilities = mask
        vm.memcg.files["memory.max"].write(str(size * 4096))
        counters = vm.run(access.arrays(shipped.pages, shipped.writes)).counters
        present = int(np.count_nonzero(vm.page_generations() >= 0))
        assert present <= size
        evicted = counters["pgsteal"]
        assert evicted == counters["workingset_refault_anon"] + shipped.nr_pages - present
        name = "mglru" if mask == defaults.RECLAIM_ON else "mglru-off"
        row = ReclaimPolicies(sizes=(size / shipped.nr_pages,), algorithms=(name,)).run(shipped)
        assert row.rows[0].refaults == counters["workingset_refault_anon"]


def test_policies_of_ones_own(shipped):
    def everything(_capacity):
        seen = set()

        def cached(page):
            there = page in seen
            seen.add(page)
            return there

        return cached

    class Stubborn(yb.policy.Policy):
        asked = 0

        def choose(self, view, swappiness, may_io, kernel):
            self.asked += 1
            return kernel

    stubborn = Stubborn()
    result = ReclaimPolicies(sizes=(0.25,), algorithms=("mglru",)).run(
        shipped, own={"all": everything, "kernel's": stubborn}
    )
    size = result.sizes[0]
    assert result.row("all", size).refaults == 0
    assert stubborn.asked > 0
    assert result.row("kernel's", size).misses == result.row("mglru", size).misses
    plain = ReclaimPolicies(sizes=(0.25,), algorithms=("belady",))
    with pytest.raises(TypeError, match="expected True or False"):
        plain.run(shipped, own={"none": lambda _: lambda page: None})
    with pytest.raises(ValueError, match="was new once"):
        plain.run(shipped, own={"liar": lambda _: lambda page: True})
    with pytest.raises(RuntimeError, match="mine"):
        plain.run(shipped, own={"raises": lambda _: _raise})


def _raise(page):
    raise RuntimeError("mine")


def test_without_libcachesim_the_others_run(shipped, monkeypatch):
    monkeypatch.setitem(sys.modules, "libcachesim", None)
    result = ReclaimPolicies(sizes=(0.5,)).run(shipped)
    assert result.names == ["mglru-off", "mglru", "belady"]
    assert "youngbit[policies]" in result.left_out["sieve"]
    with pytest.raises(ImportError, match=r"pip install 'youngbit\[policies\]'"):
        ReclaimPolicies(sizes=(0.5,), algorithms=("lru",)).run(shipped)


def test_a_program_too_small_for_mglru_is_compared_without(tmp_path):
    """The first program that one records is small."""
    pages = np.arange(2000, dtype=np.uint64) * np.uint64(7919) % np.uint64(198)
    trace = traces.Trace(np.arange(2000, dtype=np.uint64), pages, pages % 2 == 0, 0, "small")
    result = ReclaimPolicies().run(reclaim.trace(trace))
    assert result.names == ["lru", "clock", "s3-fifo", "sieve", "arc", "belady"]
    assert result.left_out.keys() == {"mglru-off", "mglru"}
    assert "of 198 pages may stay" in result.left_out["mglru"]
    assert "at least 256" in result.left_out["mglru"]
    # Every size is there, for nobody needs more.
    assert len(result.sizes) == 7
    # What is asked for by name is refused rather than left out.
    with pytest.raises(ValueError, match="at least 256"):
        ReclaimPolicies(algorithms=("mglru", "belady")).run(reclaim.trace(trace))
    with pytest.raises(ValueError, match="kernel's expects at least 256"):
        ReclaimPolicies().run(reclaim.trace(trace), own={"kernel's": yb.policy.Policy()})
    traces.write(trace, tmp_path / "small.npz")
    done = youngbit("policies", tmp_path / "small.npz")
    assert "Left out: mglru-off, mglru. " in done.stdout


def test_bad_policies(shipped):
    for arguments in ({"sizes": ()}, {"sizes": (0.0,)}, {"sizes": (1.5,)}):
        with pytest.raises(ValueError, match="sizes"):
            ReclaimPolicies(**arguments)
    with pytest.raises(ValueError, match="algorithms: 'fifo' is none of"):
        ReclaimPolicies(algorithms=("fifo",))
    with pytest.raises(ValueError, match="at least 256"):
        ReclaimPolicies(sizes=(0.01,), algorithms=("mglru",)).run(shipped)


def test_a_policy_of_ones_own_is_ten_lines():
    source = (Path(__file__).parent.parent / "examples" / "own_policy.py").read_text()
    [policy] = [each for each in ast.parse(source).body if isinstance(each, ast.FunctionDef)]
    lines = source.splitlines()[policy.lineno - 1 : policy.end_lineno]
    assert len([line for line in lines if line.strip()]) == 10


# Pictures.


def test_a_heat_map_counts_every_event_and_knows_every_page():
    trace = traces.shipped()
    result = HeatMap(tlb_entries=0, rows=trace.nr_pages, columns=50).run(trace)
    assert result.accesses.sum() == len(trace)
    assert result.pass_accesses.shape == result.ages.shape
    assert result.ages.shape == (trace.nr_pages, len(result.pass_times) - 1)
    # Without a TLB what was touched since the pass before is of age 0, and no more.
    rank = np.unique(trace.page, return_inverse=True)[1]
    for number in range(result.ages.shape[1]):
        touched = np.zeros(trace.nr_pages, bool)
        touched[rank[number * 4000 : (number + 1) * 4000]] = True
        np.testing.assert_array_equal(result.ages[:, number] == 0, touched)
        counted = np.bincount(rank[number * 4000 : (number + 1) * 4000], minlength=len(touched))
        np.testing.assert_array_equal(result.pass_accesses[:, number], counted)
    absent = result.ages[:, 0] == ABSENT
    assert 0 < absent.sum() < trace.nr_pages
    coarse = HeatMap(rows=100, layout="touch").run(trace)
    assert coarse.ages.shape[0] == 100
    # Rows of a map are the same, whatever its columns are.
    by_row = [each.sum(axis=1) for each in (coarse.pass_accesses, coarse.accesses)]
    np.testing.assert_array_equal(*by_row)
    json.dumps(coarse.to_dict())
    with pytest.raises(ValueError, match="layout"):
        HeatMap(layout="random").run(trace)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_pictures_are_pictures_and_repeat(tmp_path, shipped, ending):
    trace = traces.shipped()
    estimate = Estimate(estimators=("mglru", "damon")).run(shipped)
    policies = ReclaimPolicies(sizes=(0.25, 0.5), algorithms=("mglru", "belady")).run(shipped)
    for number, (draw, result, unit) in enumerate(
        [
            (heat_map, HeatMap().run(trace), "guest page of 4 KiB"),
            (estimate_working_sets, estimate, "touched in the interval, MiB"),
            (policy_miss_ratios, policies, "memory that may stay, MiB"),
        ]
    ):
        path = tmp_path / f"{number}.{ending}"
        draw(result, path)
        data = path.read_bytes()
        if ending == "png":
            assert data.startswith(b"\x89PNG")
        else:
            text = "".join(ElementTree.fromstring(data).itertext())
            assert unit in text
            assert "accesses" in text
        draw(result, path)
        assert path.read_bytes() == data
    with pytest.raises(ValueError, match=r"expected \.png or \.svg"):
        heat_map(HeatMap().run(trace), tmp_path / "a.gif")
    assert len(list(tmp_path.iterdir())) == 3


# Commands.


def test_commands_print_and_write(tmp_path):
    small = ("--estimator", "mglru", "--estimator", "bits-flush", "--every", "8000")
    done = youngbit("estimate", *small, "--json", tmp_path / "e.json", "--plot", tmp_path / "e.png")
    assert "MGLRU, secondary MMUs walked" in done.stdout
    result = json.loads((tmp_path / "e.json").read_text())
    assert [each["name"] for each in result["estimators"]] == ["mglru", "bits-flush"]
    done = youngbit("policies", "--size", "0.5", "--algorithm", "belady", "--json", "-")
    assert json.loads(done.stdout)["rows"][0]["refaults"] == 434
    done = youngbit("policies", "--workload", "zipf", "--memory", "2M", "--accesses", "5000",
                    "--size", "0.6", "--algorithm", "mglru", "--algorithm", "lru")  # fmt: skip
    assert "mglru" in done.stdout
    for bad in (
        ("estimate", "--plot", "a.gif"),
        ("heatmap", "-o", "a.gif"),
        ("policies", "--size", "0"),
        ("estimate", "--estimator", "guess"),
        ("estimate", "nothing.npz"),
    ):
        assert youngbit(*bad, code=2, cwd=tmp_path).stderr
    assert not list(tmp_path.glob("*.gif"))


def test_every_estimator_is_described():
    text = (Path(__file__).parent.parent / "docs" / "estimators.md").read_text()
    for name in (*ESTIMATORS, *ALGORITHMS):
        assert f"`{name}`" in text, name
