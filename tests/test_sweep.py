"""Sweeps and their tables: what is run, what is kept, what survives."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import youngbit as yb
from youngbit import lab
from youngbit.lab import store

pytest.importorskip("pyarrow")

#: Runs of a few milliseconds.
QUICK = """
experiment = "aging"
vms = [{ memory = "4M", workload = { kind = "zipf", accesses = 4_000 } }]
schedule.every = 1_000
"""
#: Runs of some tenths of a second, so that there is a middle to be killed in.
SLOW = """
experiment = "aging"
vms = [{ memory = "64M", mmu = "nested", workload = { kind = "uniform", accesses = 200_000 } }]
schedule.every = 50_000
"""


def described(text: str, **tables: str) -> lab.Sweep:
    return lab.Sweep.from_toml(text + "\n[sweep]\n" + "".join(tables.values()))


def values(sweep: lab.Sweep) -> list[dict]:
    return list(sweep.combinations())


def found(results: lab.Results) -> list[dict]:
    """What was found, without wall times and places."""
    return results.group("parameter", "result").to_arrow().to_pylist()


# What is run.


def test_grid_list_random_and_seeds_multiply():
    sweep = lab.Sweep.from_toml(
        QUICK
        + """
        seed = 100
        [sweep]
        seeds = 2
        [sweep.grid]
        "vms.0.tlb_entries" = [0, 64]
        pressure.limit = [0.25, 0.5, 0.75]
        [[sweep.list]]
        pressure.by = "max"
        host.swappiness = 10
        [[sweep.list]]
        pressure.by = "none"
        [sweep.random]
        samples = 3
        warm_up = { low = 0, high = 5, whole = true }
        """.replace("seed = 100\n", "", 1)
    )
    points = values(sweep)
    assert len(points) == len(sweep) == 2 * 3 * 2 * 3 * 2
    assert len({json.dumps(each, sort_keys=True) for each in points}) >= 24
    assert points[0]["vms.0.tlb_entries"] == 0
    assert points[0]["pressure.limit"] == 0.25
    assert points[0]["host.swappiness"] == 10
    # Seeds are the innermost: two runs that follow each other differ in nothing else.
    assert points[1]["seed"] == points[0]["seed"] + 1
    assert {**points[1], "seed": 0} == {**points[0], "seed": 0}
    assert points == values(sweep)


def test_points_are_experiments():
    sweep = described(QUICK, grid='grid."vms.*.workload.exponent" = [0.5, 2]\n')
    exponents = [point.experiment.vms[0].workload.exponent for point in sweep.all()]
    assert exponents == [0.5, 2.0]
    whole = described(QUICK, grid="grid.vms = [[{ memory = '4M' }, {}], [{}]]\n")
    assert [len(point.experiment.vms) for point in whole.all()] == [2, 1]


def test_random_points_are_drawn_by_their_seed():
    text = """
    random.samples = 40
    random.seed = {}
    random."vms.0.workload.exponent" = {{ low = 0.01, high = 10, log = true }}
    random.warm_up = {{ low = 1, high = 3, whole = true }}
    random.pressure.by = {{ choice = ["none", "max"] }}
    """
    one, same, other = (values(described(QUICK, x=text.format(seed))) for seed in (1, 1, 2))
    assert one == same != other
    exponents = sorted(each["vms.0.workload.exponent"] for each in one)
    assert 0.01 <= exponents[0] < 0.1 < exponents[20] < 1.5 < exponents[-1] <= 10
    assert {each["warm_up"] for each in one} == {1, 2, 3}
    assert {each["pressure.by"] for each in one} == {"none", "max"}


@pytest.mark.parametrize("log", ["false", "true"])
def test_whole_numbers_are_drawn_between_low_and_high_only(log):
    drawn = f"{{ low = 1.4, high = 3.6, whole = true, log = {log} }}"
    text = f"random.samples = 200\nrandom.warm_up = {drawn}\n"
    assert {each["warm_up"] for each in values(described(QUICK, x=text))} == {2, 3}


def test_seeds_may_be_listed():
    assert [each["seed"] for each in values(described(QUICK, x="seeds = [7, 3]\n"))] == [7, 3]


def test_a_sweep_of_an_experiment_in_python():
    sweep = lab.Sweep.of(lab.ReplayDescription(), grid={"every": [1000, 2000]}, seeds=[1, 2])
    sweep.check()
    assert [p.experiment.every for p in sweep.all()] == [1000, 1000, 2000, 2000]
    assert sweep.keys == ["every", "seed"]


def test_what_is_run_has_a_fingerprint():
    one = described(QUICK, x="seeds = 3\n")
    assert one.fingerprint == described("# a comment\n" + QUICK, x="seeds = 3\n").fingerprint
    assert one.fingerprint != described(QUICK, x="seeds = 4\n").fingerprint
    # How long one waits changes no run.
    assert one.fingerprint == described(QUICK, x="seeds = 3\ntimeout = 9\n").fingerprint


# What is kept.


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """The results of a sweep, finished."""
    directory = tmp_path_factory.mktemp("kept") / "results"
    sweep = described(QUICK, x="seeds = 3\n", grid='grid."vms.0.tlb_entries" = [0, 64]\n')
    lab.run_sweep(sweep, directory, jobs=2)
    return directory


def test_rows_are_those_of_runs_in_this_process(kept):
    sweep = described(QUICK, x="seeds = 3\n", grid='grid."vms.0.tlb_entries" = [0, 64]\n')
    results = yb.load(kept)
    passes = results.passes.to_arrow()
    rows = found(results)
    assert len(rows) == 6
    for point, row in zip(sweep.all(), rows, strict=True):
        here = lab.run(point.experiment)
        assert {key: row[key] for key in here.found} == here.found
        assert row["run"] == point.run
        own = passes.filter([each == point.run for each in passes["run"].to_pylist()])
        assert own["true_pages"].to_pylist() == here.passes["true_pages"]


def test_tables_go_to_arrow_pandas_and_polars(kept):
    results = yb.load(kept)
    table = results.to_arrow()
    assert table is results.to_arrow()
    column = table["recall"]
    buffer = column.chunk(0).buffers()[1].address
    frame = results.to_pandas()
    assert frame.shape == table.shape
    assert frame["recall"].array._pa_array.chunk(0).buffers()[1].address == buffer
    assert frame["host.swappiness"].isna().all()
    polars = results.to_polars()
    assert polars.shape == table.shape
    assert polars["recall"].to_arrow().buffers()[1].address == buffer
    assert results.passes.to_polars()["true_pages"].sum() > 0
    assert len(results) == 6
    assert results.complete
    assert results.failures() == {}


def test_columns_say_what_they_are(kept):
    results = yb.load(kept)
    for table in (results, results.passes):
        arrow = table.to_arrow()
        assert set(table.columns) == set(arrow.column_names)
        for field in arrow.schema:
            column = table.columns[field.name]
            assert column.meaning
            assert field.metadata[b"unit"].decode() == column.unit
            assert field.metadata[b"meaning"].decode() == column.meaning
    assert results.columns["vms.0.memory"].unit == "bytes"
    assert results.columns["vms.0.workload.kind"].group == "parameter"
    assert results.columns["worker"].group == "place"
    assert results.environment["youngbit"]["version"] == yb.__version__
    assert results.environment["python"]
    assert results.sweep["grid"] == {"vms.0.tlb_entries": [0, 64]}
    names = results.to_arrow().column_names
    # Wall times and places stand apart, at the end.
    groups = [results.columns[name].group for name in names]
    assert groups.index("timing") > max(i for i, g in enumerate(groups) if g == "result")
    with pytest.raises(ValueError, match="none of parameter"):
        results.group("time")


def test_what_is_finished_is_not_run_again(kept):
    before = (kept / store.JOURNAL).read_bytes()
    sweep = described(QUICK, x="seeds = 3\n", grid='grid."vms.0.tlb_entries" = [0, 64]\n')
    seen = []
    results = lab.run_sweep(sweep, kept, progressed=lambda p: seen.append((p.before, p.done)))
    assert seen == [(6, 0)]
    assert (kept / store.JOURNAL).read_bytes() == before
    assert len(results) == 6


def test_the_journal_and_the_files_hold_the_same(kept, tmp_path):
    for name in (store.ABOUT, store.JOURNAL):
        (tmp_path / name).write_bytes((kept / name).read_bytes())
    journal, files = yb.load(tmp_path), yb.load(kept)
    assert journal.to_arrow().equals(files.to_arrow())
    assert journal.passes.to_arrow().equals(files.passes.to_arrow())
    # And without the journal, the files are enough to read.
    (tmp_path / store.JOURNAL).unlink()
    for name in (store.RUNS, store.PASSES):
        (tmp_path / name).write_bytes((kept / name).read_bytes())
    assert yb.load(tmp_path).to_arrow().equals(files.to_arrow())


POLICIES = """
import os, signal, sys
from youngbit.policy import Policy

class Kernel(Policy):
    pass

class Raises(Policy):
    def choose(self, view, swappiness, may_io, kernel):
        raise KeyError("mine")

class WrongType(Policy):
    def choose(self, view, swappiness, may_io, kernel):
        return 7

class Leaves(Policy):
    def choose(self, view, swappiness, may_io, kernel):
        sys.exit(3)

class Dies(Policy):
    def choose(self, view, swappiness, may_io, kernel):
        os.kill(os.getpid(), signal.SIGKILL)

class Hangs(Policy):
    def choose(self, view, swappiness, may_io, kernel):
        while True:
            pass

class NotThere:
    pass

class RaisesAtOnce(Policy):
    def __init__(self):
        raise RuntimeError("not today")
"""


def test_failures_are_rows_with_their_error(tmp_path):
    (tmp_path / "mine.py").write_text(POLICIES)
    names = ["Kernel", "Raises", "WrongType", "Leaves", "Dies", "Hangs", "NotThere", "Missing",
             "RaisesAtOnce", "Kernel2"]  # fmt: skip
    text = QUICK + 'pressure.by = "max"\n'
    listed = ", ".join(f'"mine.py:{name}"' for name in names).replace("Kernel2", "Policy")
    sweep = described(text, x="timeout = 1.0\n", grid=f"grid.policy = [{listed}]\n")
    results = lab.run_sweep(sweep, tmp_path / "results", jobs=2, base=tmp_path)
    errors = {names[run]: error for run, error in results.failures().items()}
    assert len(results) == len(names)
    expected = {
        "Raises": "PolicyError: policy mine.py:Raises: mine.py, line 10, in choose: KeyError",
        "WrongType": "PolicyError: policy mine.py:WrongType: TypeError: choose() returned 7",
        "Leaves": "PolicyError: policy mine.py:Leaves: mine.py, line 18, in choose: SystemExit: 3",
        "Dies": "ChildProcessError: the worker process died",
        "Hangs": "TimeoutError: the run took longer than 1 s",
        "NotThere": "ValueError: policy: mine.py has no subclass of youngbit.policy.Policy",
        "Missing": "ValueError: policy: mine.py has no subclass of youngbit.policy.Policy",
        "RaisesAtOnce": "PolicyError: policy mine.py:RaisesAtOnce: mine.py, line 34, in __init__:"
        " RuntimeError: not today",
    }
    assert errors.keys() == expected.keys()
    for name, error in expected.items():
        assert errors[name].startswith(error), (name, errors[name])
    rows = results.to_arrow().to_pylist()
    assert [row["status"] for row in rows].count("ok") == 2
    # A failed run has its parameters, and nothing that was found.
    assert rows[1]["policy"] == "mine.py:Raises"
    assert rows[1]["recall"] is None
    assert rows[0]["recall"] == rows[9]["recall"] > 0
    # They are finished, unless asked for again.
    seen = []
    lab.run_sweep(sweep, tmp_path / "results", progressed=lambda p: seen.append(p.before))
    assert seen == [10]
    (tmp_path / "mine.py").write_text(
        "from youngbit.policy import Policy\n"
        + "".join(f"class {name}(Policy): pass\n" for name in expected)
    )
    again = lab.run_sweep(sweep, tmp_path / "results", jobs=1, base=tmp_path, retry_failed=True)
    assert again.failures() == {}
    assert len(again) == 10


def test_a_value_that_no_run_can_have_is_an_error():
    text = "experiment = 'access-tracking'\nlive = false\nlru_gen = true\n[sweep.grid]\n"
    says = r"line 5, column 1: sweep\.grid\.benchmark: -p is always live"
    with pytest.raises(yb.FormatError, match=says):
        lab.Sweep.from_toml(text + "benchmark = [false, true]\n")
    # With what makes it possible it is a sweep, and the other combination a failed run.
    sweep = lab.Sweep.from_toml(text + "benchmark = [false, true]\nlive = [true, false]\n")
    assert [point.error is None for point in sweep.all()] == [True, True, True, False]


def test_contradictions_in_some_combinations_only(tmp_path):
    text = "experiment = 'aging'\nvms = [{ memory = '2M', workload = { kind = 'sequential' } }]\n"
    grid = """grid = { "vms.0.backing" = ["4k", "2m"], "vms.0.memory" = ["2M", "1M"] }\n"""
    sweep = described(text, grid=grid)
    results = lab.run_sweep(sweep, tmp_path / "results", jobs=1)
    assert len(results) == 4
    [(run, error)] = results.failures().items()
    assert run == 3
    assert "are not a multiple of the backing, 2m" in error
    row = results.to_arrow().to_pylist()[3]
    assert row["vms.0.backing"] == "2m"
    assert row["vms.0.memory"] == 1 << 20


# What survives.


def sweep_process(file: Path, directory: Path, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "youngbit", "sweep", file, "--results", directory, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_lines(directory: Path, count: int) -> None:
    journal = directory / store.JOURNAL
    for _ in range(6000):
        if journal.exists() and journal.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError("no run was finished")


def group_members(group: int) -> list[int]:
    """Processes of a process group that are not dead."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            members.append(int(stat.parent.name))
    return members


def gone(group: int) -> bool:
    for _ in range(1000):
        if not group_members(group):
            return True
        time.sleep(0.01)
    return False


def lines(directory: Path) -> list[bytes]:
    return (directory / store.JOURNAL).read_bytes().splitlines(keepends=True)


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path):
    file, directory = tmp_path / "it.toml", tmp_path / "results"
    file.write_text(SLOW + "\n[sweep]\nseeds = 8\n")
    process = sweep_process(file, directory)
    wait_for_lines(directory, 3)
    process.kill()
    process.wait(60)
    # Its workers end with it.
    assert gone(process.pid)
    process.communicate()
    before = lines(directory)
    whole = [line for line in before if line.endswith(b"\n")]
    assert 3 <= len(whole) < 8
    partial = yb.load(directory)
    assert len(partial) == len(whole)
    assert not partial.complete
    # A crash may leave half a line.
    with (directory / store.JOURNAL).open("ab") as journal:
        journal.write(whole[0][: len(whole[0]) // 2])
    assert len(yb.load(directory)) == len(whole)
    again = sweep_process(file, directory)
    out, err = again.communicate(timeout=100)
    assert again.returncode == 0, err
    assert f"{len(whole)} of 8 runs were finished before" in out
    after = lines(directory)
    assert after[: len(whole)] == whole
    assert sorted(json.loads(line)["run"] for line in after) == list(range(8))
    results = yb.load(directory)
    assert results.complete
    # A run that was begun twice is what it would have been.
    point = list(lab.Sweep.read(file).all())[7]
    assert {k: found(results)[7][k] for k in lab.run(point.experiment).found} == (
        lab.run(point.experiment).found
    )


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    file, directory = tmp_path / "it.toml", tmp_path / "results"
    (tmp_path / "mine.py").write_text(POLICIES)
    # The second policy hangs: nobody waits for it.
    file.write_text(
        QUICK + "pressure.by = 'max'\n[sweep]\n[sweep.grid]\n"
        "policy = ['mine.py:Kernel', 'mine.py:Hangs']\n"
    )
    process = sweep_process(file, directory)
    wait_for_lines(directory, 1)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.monotonic() - began < 20
    assert "1 of 2 runs are finished" in err
    assert "Traceback" not in err
    assert gone(process.pid)
    assert (directory / store.RUNS).exists()
    results = yb.load(directory)
    assert len(results) == 1
    assert not results.complete


def test_ctrl_c_ends_a_run_whose_policy_hangs(tmp_path):
    (tmp_path / "mine.py").write_text(
        POLICIES.replace(
            "        while True:", "        print('asked', flush=True)\n        while True:"
        )
    )
    (tmp_path / "it.toml").write_text(QUICK + "pressure.by = 'max'\npolicy = 'mine.py:Hangs'\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "youngbit", "run", tmp_path / "it.toml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert err.strip() == "youngbit: interrupted"


def test_a_sweep_over_kinds_has_the_columns_of_all(tmp_path):
    sweep = lab.Sweep(
        {"experiment": "replay"},
        points=[
            {"experiment": "replay", "every": 30_000},
            {"experiment": "access-tracking", "vcpu_bytes": "4M", "live": False, "lru_gen": True},
        ],
    )
    results = lab.run_sweep(sweep, tmp_path / "results", jobs=1)
    first, second = results.to_arrow().to_pylist()
    assert results.failures() == {}
    assert (first["experiment"], first["every"], first["verdict"]) == ("replay", 30_000, None)
    assert (second["every"], second["vcpu_bytes"], second["verdict"]) == (None, 4 << 20, "pass")


def test_tables_that_lack_a_run_are_not_read(tmp_path):
    row = {"experiment": "aging", "status": "ok"}
    with store.Store(tmp_path, described(QUICK, x="seeds = 2\n")) as kept:
        kept.add((0, row, {"number": [0]}))
        kept.compact()
        assert (len(yb.load(tmp_path)), yb.load(tmp_path).complete) == (1, False)
        kept.add((1, row, {"number": [0, 1]}))
        assert (len(yb.load(tmp_path)), yb.load(tmp_path).complete) == (2, True)
        assert len(yb.load(tmp_path).passes) == 3


def test_workers_that_cannot_start_are_said_without_a_traceback(tmp_path, monkeypatch, capsys):
    from youngbit.commands.main import main
    from youngbit.lab import pool

    (tmp_path / "it.toml").write_text("experiment = 'aging'\n[sweep]\nseeds = 1\n")
    # It takes one argument, so a process that begins with it ends there.
    monkeypatch.setattr(pool, "prepare", os._exit)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["youngbit", "sweep", "it.toml"])
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 2
    assert "youngbit: workers cannot start: one ended as it began" in capsys.readouterr().err


def test_two_sweeps_do_not_write_one_directory(tmp_path):
    sweep = described(QUICK, x="seeds = 2\n")
    with (
        store.Store(tmp_path / "results", sweep),
        pytest.raises(BlockingIOError, match="another sweep is writing"),
    ):
        lab.run_sweep(sweep, tmp_path / "results")


def test_a_failed_write_leaves_no_half_a_line(tmp_path, monkeypatch):
    sweep = described(QUICK, x="seeds = 2\n")
    row = {"run": 0, "experiment": "aging", "status": "ok"}
    with store.Store(tmp_path, sweep) as kept:
        kept.add((0, row, {}))
        whole = (tmp_path / store.JOURNAL).read_bytes()
        write = os.write

        def full(file, data):
            if len(data) < 10:
                raise OSError(28, "No space left on device")
            return write(file, data[:-5])

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            kept.add((1, {**row, "run": 1}, {}))
        monkeypatch.undo()
        assert (tmp_path / store.JOURNAL).read_bytes() == whole
        kept.add((1, {**row, "run": 1}, {}))
    assert len(yb.load(tmp_path)) == 2


DASK = """
import json, os, signal, sys
import dask, distributed
from youngbit import lab
from youngbit.lab import pool

if __name__ == "__main__":
    folder = sys.argv[1]
    dask.config.set({"distributed.scheduler.allowed-failures": 1})
    sweep = lab.Sweep.read(folder + "/it.toml")
    deadly = lab.Sweep.read(folder + "/deadly.toml")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
    ) as cluster, distributed.Client(cluster) as client:
        def at(count, action):
            done = []
            def progressed(progress):
                if progress.done == count and not done:
                    done.append(action())
            return progressed

        def run(sweep, name, progressed):
            return lab.run_sweep(
                sweep, folder + "/" + name, dask=cluster.scheduler_address,
                base=folder, progressed=progressed,
            )

        pids = list(client.run(os.getpid).values())
        results = run(sweep, "killed", at(2, lambda: os.kill(pids[0], signal.SIGKILL)))
        rows = results.to_arrow().to_pylist()
        about = {
            "killed": pids[0],
            "workers": sorted({int(row["worker"].rpartition(":")[2]) for row in rows}),
            "complete": results.complete,
            "failures": results.failures(),
            "deadly": run(deadly, "deadly", lambda _: None).failures(),
        }
        # Those who died are back before the cluster goes.
        client.wait_for_workers(2)
        client.close()
        pool._PATIENCE = 5
        try:
            run(sweep, "gone", at(2, cluster.close))
        except OSError as error:
            about["gone"] = str(error)
        print(json.dumps(about))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> tuple[Path, dict]:
    """What became of three sweeps on a Dask cluster of this machine."""
    pytest.importorskip("distributed")
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "it.toml").write_text(SLOW + "\n[sweep]\nseeds = 5\n")
    (folder / "mine.py").write_text(POLICIES)
    (folder / "deadly.toml").write_text(
        QUICK + "pressure.by = 'max'\npolicy = 'mine.py:Dies'\n[sweep]\nseeds = 1\n"
    )
    (folder / "cluster.py").write_text(DASK)
    done = subprocess.run(
        [sys.executable, folder / "cluster.py", folder],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_dask_with_a_worker_killed_in_the_middle(cluster, tmp_path):
    folder, about = cluster
    assert about["complete"]
    assert about["failures"] == {}
    assert len(about["workers"]) >= 2
    runs = [json.loads(line)["run"] for line in lines(folder / "killed")]
    assert sorted(runs) == list(range(5))
    here = lab.run_sweep(lab.Sweep.read(folder / "it.toml"), tmp_path / "here", jobs=2)
    there = yb.load(folder / "killed")
    assert found(there) == found(here)
    timed = [name for name, each in here.passes.columns.items() if each.group == "timing"]
    passes = [each.passes.to_arrow().drop_columns(timed) for each in (here, there)]
    assert passes[0].equals(passes[1])


def test_a_run_that_kills_every_worker_is_a_failed_one(cluster):
    [error] = cluster[1]["deadly"].values()
    assert error.startswith("ChildProcessError: workers died again and again: ")


def test_a_sweep_whose_cluster_went_away_goes_on_elsewhere(cluster):
    folder, about = cluster
    assert "the Dask cluster went away" in about["gone"]
    before = lines(folder / "gone")
    assert 2 <= len(before) < 5
    seen = []
    results = lab.run_sweep(
        lab.Sweep.read(folder / "it.toml"),
        folder / "gone",
        jobs=2,
        progressed=lambda progress: seen.append(progress.before),
    )
    assert seen[0] == len(before)
    assert lines(folder / "gone")[: len(before)] == before
    assert found(results) == found(yb.load(folder / "killed"))


def test_a_worker_of_another_version_refuses():
    from youngbit.lab.worker import Task, execute

    [point] = described(QUICK, x="seeds = 1\n").all()
    _, row, passes = execute(Task(0, point.experiment, None, "0.0.1"))
    assert row["status"] == "failed"
    assert row["error"] == (
        f"RuntimeError: the worker has youngbit {yb.__version__}, the sweep 0.0.1"
    )
    assert passes == {}


def test_dask_that_is_not_there(tmp_path, monkeypatch):
    from youngbit.lab import pool

    pytest.importorskip("distributed")
    monkeypatch.setattr(pool, "_PATIENCE", 0.5)
    sweep = described(QUICK, x="seeds = 2\n")
    with pytest.raises(OSError, match=r"127\.0\.0\.1:1: there is no Dask scheduler"):
        lab.run_sweep(sweep, tmp_path / "results", dask="tcp://127.0.0.1:1")


def test_the_command(tmp_path):
    file = tmp_path / "it.toml"
    file.write_text(QUICK + "\n[sweep]\nseeds = 2\n")

    def sweep(*options, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "youngbit", "sweep", file, *options],
            capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done

    listed = sweep("--dry-run").stdout.splitlines()
    assert len(listed) == 3
    assert not (tmp_path / "it.results").exists()
    about = json.loads(sweep("--json", "-", "--jobs", "1").stdout)
    assert about["schema"] == "youngbit/sweep-summary"
    assert (about["runs"], about["failed"], about["finished_before"]) == (2, 0, 0)
    text = sweep().stdout
    assert text == ("2 of 2 runs were finished before\n2 runs in it.results: 2 ok, 0 failed\n")
    assert re.search("passes", str(yb.load(tmp_path / "it.results").columns))
