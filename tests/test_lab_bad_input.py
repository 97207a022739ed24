"""Bad descriptions, sweeps and directories of results: each a clear error, with its line."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import youngbit as yb
from youngbit import lab
from youngbit.lab import describe, store

AGING = 'experiment = "aging"\n'

#: Text of a description, the line and column of what is wrong, and what the message says.
DESCRIPTIONS: dict[str, tuple[str | bytes, int, int, str]] = {
    # TOML that is none.
    "empty": ("", 1, 1, "expected a key 'experiment': access-tracking, aging"),
    "no-value": ("experiment =\n", 1, 13, "Invalid value"),
    "no-equals": (AGING + "seed 5\n", 2, 6, "Expected '=' after a key"),
    "open-string": ('experiment = "aging\n', 1, 20, "Illegal character"),
    "open-list": (AGING + "vms = [\n", 2, 8, "Invalid value|at the end"),
    "open-table": (AGING + "[host\n", 2, 6, "Expected ']'"),
    "twice": (AGING + "seed = 1\nseed = 2\n", 3, 9, "Cannot overwrite"),
    "table-twice": (AGING + "[host]\n[host]\n", 3, 6, "Cannot declare"),
    "binary": (b"experiment = \x00\xff\n", 1, 15, "expected UTF-8"),
    "utf-16": ('experiment = "aging"'.encode("utf-16"), 1, 1, "expected UTF-8"),
    "null": (b'experiment = "a\x00"\n', 1, 16, "Illegal character"),
    "deep": ("x = " + "[" * 100_000, 1, 1, "nested too deeply"),
    "json": ('{"experiment": "aging"}', 1, 1, "Invalid statement"),
    # Keys and kinds that are none.
    "no-kind": ("seed = 1\n", 1, 1, "expected a key 'experiment'"),
    "kind": ('experiment = "ageing"\n', 1, 1, "no experiment 'ageing'; did you mean 'aging'?"),
    "kind-type": ("experiment = 3\n", 1, 1, "there is no experiment 3"),
    "key": (AGING + "\n# why\nwarmup = 1\n", 4, 1, "warmup: .*did you mean 'warm_up'"),
    "key-far": (AGING + "colour = 1\n", 2, 1, "no such key; known are host, mode, policy"),
    "key-in-table": (AGING + "[host]\nswapiness = 1\n", 3, 1, r"host\.swapiness: .*'swappiness'"),
    "key-inline": (AGING + "host = { memry = 1 }\n", 2, 10, r"host\.memry: .*'memory'"),
    "key-dotted": (AGING + "schedule.evry = 1\n", 2, 10, r"schedule\.evry: .*'every'"),
    "key-in-list": (
        AGING + "[[vms]]\nvcpus = 1\n[[vms]]\nvcpu = 1\n",
        5,
        1,
        r"vms\.1\.vcpu: .*'vcpus'",
    ),
    "key-of-another-workload": (
        AGING + '[[vms]]\n[vms.workload]\nkind = "uniform"\nexponent = 1\n',
        5,
        1,
        r"vms\.0\.workload\.exponent: there is no such key; known are accesses, write",
    ),
    "aliases-tdp": (AGING + "[[vms]]\naliases = 2\n", 3, 1, "no effect with mmu tdp"),
    "l1-ad-shadow": (
        AGING + '[[vms]]\nmmu = "shadow"\nl1_ad = false\n',
        4,
        1,
        r"vms\.0\.l1_ad: .*mmu nested",
    ),
    "quoted-key": (AGING + '"host.memory" = "1G"\n', 2, 2, "no such key"),
    # Types.
    "text-for-number": (AGING + 'seed = "1"\n', 2, 1, "expected a whole number, found '1'"),
    "float-for-whole": (AGING + "seed = 1.0\n", 2, 1, "expected a whole number, found 1.0"),
    "bool-for-whole": (AGING + "seed = true\n", 2, 1, "a whole number, found true"),
    "whole-for-bool": (AGING + "schedule.force_scan = 1\n", 2, 10, "true or false, found 1"),
    "text-for-float": (AGING + 'pressure.limit = "0.5"\n', 2, 10, "expected a number"),
    "not-finite": (AGING + "pressure.limit = nan\n", 2, 10, "expected a finite number"),
    "too-large": (AGING + "seed = 9223372036854775808\n", 2, 1, r"below 2\*\*63"),
    "date": (AGING + "seed = 2026-01-01\n", 2, 1, "found date"),
    "table-for-number": (AGING + "seed = { a = 1 }\n", 2, 1, "a whole number, found a table"),
    "number-for-table": (AGING + "host = 5\n", 2, 1, "expected a table, found 5"),
    "table-for-list": (AGING + "[vms]\nvcpus = 1\n", 2, 2, "expected a list, found a table"),
    "list-of-numbers": (AGING + "vms = [1]\n", 2, 1, r"vms\.0: expected a table, found 1"),
    "size": (AGING + 'host.memory = "lots"\n', 2, 6, r"host\.memory: 'lots' is not a size"),
    "size-float": (AGING + "host.memory = 1.5\n", 2, 6, "a size such as '64M', found 1.5"),
    "size-negative": (AGING + "host.memory = -1\n", 2, 6, "-1 is not positive"),
    "choice": (AGING + 'mode = "fast"\n', 2, 1, "one of inline, live, found 'fast'"),
    "choice-type": (AGING + "mode = [1]\n", 2, 1, "one of inline, live, found a list"),
    "workload-kind": (
        AGING + '[[vms]]\nworkload = { kind = "zip" }\n',
        3,
        14,
        "'zip': did you mean 'zipf'",
    ),
    "workload-no-kind": (AGING + "[[vms]]\nworkload = {}\n", 3, 1, "expected a key 'kind'"),
    "workload-text": (AGING + '[[vms]]\nworkload = "zipf"\n', 3, 1, "a table with a kind"),
    # What contradicts itself.
    "range": (AGING + "pressure.limit = 1.5\n", 2, 10, "1.5 is not above 0 and at most 1"),
    "zero": (AGING + "schedule.every = 0\n", 2, 10, "0 is below 1"),
    "no-vms": (AGING + "vms = []\n", 2, 1, "at least one VM"),
    "vcpus": (AGING + "[[vms]]\nvcpus = 1000\n", 3, 1, "1000 is not between 1 and 512"),
    "trace-vcpus": (
        AGING + '[[vms]]\nvcpus = 2\nworkload = { kind = "trace" }\n',
        3,
        1,
        "a trace is one vCPU's accesses",
    ),
    "kernels": (
        AGING + "[[vms]]\n[[vms]]\nprotocol = 'baseline'\n",
        2,
        3,
        "vms: a host runs one kernel, and aging asks accurate and fast_only in those of protocols"
        " baseline and v7",
    ),
    "kernels-said": (
        AGING + "[[vms]]\naging_asks = 'none'\n[[vms]]\naging_asks = 'accurate'\n",
        2,
        3,
        "aging_asks of these are accurate and none; expected the same",
    ),
    "exponent": (
        AGING + '[[vms]]\nworkload = { kind = "zipf", exponent = 0 }\n',
        3,
        29,
        "0.0 is not above 0",
    ),
    "policy": (AGING + 'policy = "mine"\n', 2, 1, "neither FILE.py:NAME nor MODULE:NAME"),
    "backing": (
        AGING + '[[vms]]\nbacking = "2m"\nmemory = "3M"\n',
        4,
        1,
        "not a multiple of the backing, 2m",
    ),
    "benchmark": (
        'experiment = "access-tracking"\nbenchmark = true\n',
        1,
        1,
        "-p specified without -l",
    ),
    "reclaim-round": ('experiment = "reclaim"\nround = 0\n', 2, 1, "0 is below 1"),
    "a-sweep": (AGING + "[sweep]\nseeds = 2\n", 2, 2, "use youngbit sweep"),
    "byte-order-mark": ("\ufeff" + AGING, 1, 1, "byte order mark"),
    "key-empty": (AGING + "'' = 3\n", 2, 1, "^[^\\n]*: '': there is no such key"),
    "key-control": (AGING + '"a\\u0000b" = 3\n', 2, 1, r"'a\\x00b': there is no such key"),
    "no-file-name": ('experiment = "replay"\ntrace.file = ""\n', 2, 7, "'' is no name of a file"),
    "no-file-name-of-a-workload": (
        AGING + '[[vms]]\nworkload = { kind = "trace", file = "" }\n',
        3,
        30,
        "'' is no name of a file",
    ),
    "no-algorithm": ('experiment = "policies"\nalgorithms = []\n', 2, 1, "at least one"),
    "algorithm-twice": (
        'experiment = "policies"\nalgorithms = ["lru", "lru"]\n',
        2,
        1,
        "'lru' is there twice",
    ),
    "estimator-twice": (
        'experiment = "estimate"\nestimators = ["bits", "bits"]\n',
        2,
        1,
        "'bits' is there twice",
    ),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_bad_descriptions(case):
    text, line, column, says = DESCRIPTIONS[case]
    with pytest.raises(yb.FormatError, match=says) as caught:
        lab.from_toml(text, "it.toml")
    error = caught.value
    assert str(error).startswith(f"it.toml: line {line}, column "), error
    assert (error.line, error.column) == (line, column), error


SWEEPS: dict[str, tuple[str, int, str]] = {
    "no-sweep": ("", 1, "expected a table \\[sweep\\]"),
    "nothing": ("[sweep]\n", 2, "nothing is varied"),
    "not-a-table": ("sweep = 5\n", 2, "expected a table"),
    "key": ("[sweep]\nseed = 2\n", 3, "did you mean 'seeds'"),
    "grid-key": ("[sweep.grid]\n'schedule.evry' = [1]\n", 3, "did you mean 'every'"),
    "grid-value": ("[sweep.grid]\nseed = [1, 'x']\n", 3, "a whole number, found 'x'"),
    "grid-no-list": ("[sweep.grid]\nseed = 1\n", 3, "expected a list of values, found 1"),
    "grid-empty-list": ("[sweep.grid]\nseed = []\n", 3, "has no values"),
    "grid-empty": ("[sweep.grid]\n", 2, "expected keys with lists"),
    "grid-twice": ("[sweep.grid]\nseed = [1, 2, 1]\n", 3, "has 1 twice"),
    "grid-refused": ("[sweep.grid]\npressure.limit = [2, 3]\n", 3, "2.0 is not above 0"),
    "grid-index": (
        "[[vms]]\n[sweep.grid]\n'vms.3.vcpus' = [1]\n",
        4,
        "there are 1, numbered from 0",
    ),
    "grid-through-a-number": (
        "[sweep.grid]\n'seed.x' = [1]\n",
        3,
        "expected a whole number, found a table",
    ),
    "seeds-and-grid": ("[sweep]\nseeds = 2\ngrid.seed = [1]\n", 4, "by seeds and by grid"),
    "two-ways": (
        "[sweep]\ngrid.warm_up = [1]\n[[sweep.list]]\nwarm_up = 2\n",
        5,
        "by grid and by list",
    ),
    "seeds": ("[sweep]\nseeds = 'many'\n", 3, "how many, or a list"),
    "seeds-zero": ("[sweep]\nseeds = 0\n", 3, "0 is not a number of seeds"),
    "seeds-twice": ("[sweep]\nseeds = [3, 1, 3]\n", 3, "3 is there twice"),
    "seeds-negative": ("[sweep]\nseeds = [-1]\n", 3, "-1 is negative or not below 2\\*\\*63"),
    "seeds-beyond": (
        "seed = 9223372036854775806\n[sweep]\nseeds = 4\n",
        4,
        "9223372036854775808 is negative or not",
    ),
    "key-with-a-power": ("[sweep.grid]\n'vms.²' = [1]\n", 3, "vms.²: expected a list"),
    "key-empty": ("[sweep.grid]\n'' = [1]\n", 3, "'': there is no such key"),
    "random-no-whole": (
        "[sweep.random]\nsamples = 2\nwarm_up = { low = 0.5, high = 0.6, whole = true }\n",
        4,
        "no whole number from 0.5 to 0.6",
    ),
    "too-many": ("[sweep]\nseeds = 1000000\ngrid.warm_up = [1, 2]\n", 2, "more than 1000000"),
    "list": ("[sweep]\nlist = [1]\n", 3, "expected a table with keys"),
    "list-empty": ("[sweep]\nlist = []\n", 3, r"expected tables, \[\[sweep.list\]\]"),
    "list-value": (
        "[[sweep.list]]\nwarm_up = 1\n[[sweep.list]]\nwarm_up = 'x'\n",
        5,
        "a whole number, found 'x'",
    ),
    "random-samples": ("[sweep.random]\nwarm_up = { low = 1, high = 2 }\n", 2, "how many points"),
    "random-nothing": ("[sweep.random]\nsamples = 3\n", 2, "no keys to draw"),
    "random-value": ("[sweep.random]\nsamples = 3\nwarm_up = 2\n", 4, "expected { low"),
    "random-order": (
        "[sweep.random]\nsamples = 3\nwarm_up = { low = 3, high = 2, whole = true }\n",
        4,
        "3.0 is above high, 2.0",
    ),
    "random-log": (
        "[sweep.random]\nsamples = 3\npressure.limit = { low = 0, high = 1, log = true }\n",
        4,
        "0.0 is not positive, and log is on",
    ),
    "random-float-for-whole": (
        "[sweep.random]\nsamples = 3\nwarm_up = { low = 1, high = 2 }\n",
        4,
        "expected a whole number, found 1.0",
    ),
    "random-choice": ("[sweep.random]\nsamples = 3\nmode = { choice = [] }\n", 4, "choice = "),
    "timeout": ("[sweep]\nseeds = 2\ntimeout = 0\n", 4, "0.0 is not positive"),
    "base": ("colour = 1\n[sweep]\nseeds = 2\n", 2, "colour: there is no such key"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", SWEEPS)
def test_bad_sweeps(case):
    text, line, says = SWEEPS[case]
    with pytest.raises(yb.FormatError, match=says) as caught:
        lab.Sweep.from_toml(AGING + text, "it.toml")
    assert caught.value.line == line, caught.value


def test_a_line_is_found_in_long_descriptions():
    points = "".join(f"[[sweep.list]]\nseed = {i}\n\n# {i}\n" for i in range(2000))
    text = AGING + points.replace("seed = 1234\n", "seed = '1234'\n")
    with pytest.raises(yb.FormatError, match="found '1234'") as caught:
        lab.Sweep.from_toml(text)
    assert caught.value.line == 3 + 4 * 1234
    many = AGING + "[sweep]\nseeds = [\n" + "  1,\n" * 3000 + "  'x',\n]\ncolour = 1\n"
    assert describe.place(many.encode(), ("sweep", "colour")) == (3006, 1)
    assert describe.place(many.encode(), ("sweep", "seeds", 3000)) == (3, 1)


# Directories of results.

pytest.importorskip("pyarrow")


def plan(seeds: int = 2) -> lab.Sweep:
    vm = lab.VirtualMachine(memory=2 << 20, workload=lab.Sequential(passes=2))
    return lab.Sweep.of(lab.Aging(vms=(vm,)), seeds=range(seeds))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Results of two runs, without a pool."""
    directory = tmp_path_factory.mktemp("whole") / "results"
    with store.Store(directory, plan()) as kept:
        for point in plan().all():
            result = lab.run(point.experiment)
            kept.add((point.run, result.row, result.passes))
        kept.compact()
    return directory


def cut(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


#: What is done to a directory of results, and what loading it and going on with it say.
DIRECTORIES: dict[str, tuple[Callable[[Path], object], str | None, str | None]] = {
    "runs-cut": (lambda d: cut(d / store.RUNS), r"runs\.parquet: is not a whole Parquet", None),
    "runs-empty": (lambda d: cut(d / store.RUNS, 0), r"runs\.parquet: is not a whole", None),
    "passes-cut": (lambda d: cut(d / store.PASSES), r"passes\.parquet: is not a whole", None),
    "passes-text": (
        lambda d: (d / store.PASSES).write_text("number\n1\n"),
        r"passes\.parquet: is not a whole Parquet file",
        None,
    ),
    "runs-gone": (lambda d: (d / store.RUNS).unlink(), None, None),
    "journal-line": (
        lambda d: replace(d / store.JOURNAL, b'"run":0', b'"run":x'),
        None,
        r"journal\.jsonl: line 1: is not a finished run",
    ),
    "journal-shape": (
        lambda d: replace(d / store.JOURNAL, b'"status":"ok"', b'"statue":"ok"'),
        None,
        r"journal\.jsonl: line 1: is not a finished run",
    ),
    "journal-cut": (lambda d: cut(d / store.JOURNAL, 0.75), None, None),
    "journal-gone": (
        lambda d: (d / store.JOURNAL).unlink(),
        None,
        r"journal\.jsonl: is gone, so nobody knows",
    ),
    "about-cut": (
        lambda d: cut(d / store.ABOUT),
        None,
        r"sweep\.json: is not of a directory of results",
    ),
    "about-of-others": (
        lambda d: (d / store.ABOUT).write_text('{"name": "x"}'),
        None,
        r"sweep\.json: .*expected an object of schema youngbit/sweep",
    ),
    "about-of-the-future": (
        lambda d: replace(d / store.ABOUT, b'"schema_version": 1', b'"schema_version": 2'),
        None,
        r"sweep\.json: .*version 2 is not 1",
    ),
    "about-gone": (
        lambda d: (d / store.ABOUT).unlink(),
        r"has no sweep\.json",
        r"has journal\.jsonl, and no sweep\.json",
    ),
    "another-version": (
        lambda d: replace(d / store.ABOUT, yb.__version__.encode(), b"0.0.1"),
        None,
        r"was begun by youngbit 0\.0\.1",
    ),
    "only-about": (
        lambda d: [(d / n).unlink() for n in (store.JOURNAL, store.RUNS, store.PASSES)],
        "has neither journal.jsonl nor both tables",
        "is gone",
    ),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", DIRECTORIES)
def test_damaged_results(case, whole, tmp_path):
    damage, loading, going_on = DIRECTORIES[case]
    directory = tmp_path / "results"
    shutil.copytree(whole, directory)
    damage(directory)
    if loading is None:
        assert len(yb.load(directory)) in (1, 2)
    else:
        with pytest.raises(ValueError, match=loading):
            yb.load(directory)
    if going_on is None:
        with store.Store(directory, plan()) as kept:
            assert len(kept.finished) == (1 if case == "journal-cut" else 2)
            kept.compact()
        assert len(yb.load(directory)) == len(kept.finished)
    else:
        with pytest.raises(ValueError, match=going_on):
            store.Store(directory, plan())


def test_results_of_another_sweep(whole):
    with pytest.raises(ValueError, match="has results of another sweep, of 2 runs of aging"):
        lab.run_sweep(plan(3), whole)
    with pytest.raises(ValueError, match="has results of another sweep"):
        store.Store(whole, lab.Sweep.of(lab.ReplayDescription()))


def test_directories_that_are_none(tmp_path):
    (tmp_path / "a file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError):
        store.Store(tmp_path / "a file", plan())
    with pytest.raises(ValueError, match=r"has thesis\.tex, and no sweep\.json"):
        store.Store(tmp_path / "other", plan())
    assert [each.name for each in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"other: has no sweep\.json"):
        yb.load(tmp_path / "other")
    with pytest.raises(ValueError, match="is a file; results are a directory"):
        yb.load(tmp_path / "a file")
    with pytest.raises(FileNotFoundError) as caught:
        yb.load(tmp_path / "nowhere")
    assert caught.value.errno == errno.ENOENT


def test_a_table_of_others(whole, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(whole, tmp_path / "results")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "results" / store.RUNS)
    with pytest.raises(ValueError, match=r"runs\.parquet: is a table, and not one of youngbit"):
        yb.load(tmp_path / "results")


def test_arguments(tmp_path):
    with pytest.raises(TypeError, match=r"expected one of .*Aging.*, not dict"):
        lab.run({"experiment": "aging"})
    with pytest.raises(TypeError, match="is no dataclass"):
        lab.to_toml("aging")
    with pytest.raises(ValueError, match="jobs: 0 is below 1"):
        lab.run_sweep(plan(), tmp_path / "results", jobs=0)
    assert not (tmp_path / "results").exists()
    with pytest.raises(FileNotFoundError):
        lab.read(tmp_path / "nowhere.toml")
    for sweep, says in (
        (lab.Sweep({"experiment": "aging"}, samples=3), "no keys to draw"),
        (lab.Sweep({"experiment": "agin"}, seeds=[1]), "did you mean 'aging'"),
        (lab.Sweep({}, seeds=[1]), "expected a key 'experiment'"),
        (lab.Sweep({"experiment": "aging"}, random={"warm_up": [1]}), "'samples' is missing"),
        (lab.Sweep({"experiment": "aging"}, grid={"sed": [1]}), "did you mean 'seed'"),
    ):
        with pytest.raises(describe.Wrong, match=says):
            lab.run_sweep(sweep, tmp_path / "results")
        assert not (tmp_path / "results").exists()


RUNS: dict[str, tuple[lab.Aging | lab.ReplayDescription, type[Exception], str]] = {
    "no-trace": (
        lab.ReplayDescription(trace=lab.TraceFile("nowhere.npz")),
        FileNotFoundError,
        "nowhere.npz",
    ),
    "not-a-trace": (
        lab.ReplayDescription(trace=lab.TraceFile("bad.npz")),
        yb.TraceError,
        "bad.npz: offset 0: found .*expected an .npz archive",
    ),
    "trace-too-large": (
        lab.Aging(vms=(lab.VirtualMachine(memory=1 << 20, workload=lab.TraceWorkload()),)),
        ValueError,
        "memory: sort touches 3286 pages, 13459456 bytes, and there are 256 pages",
    ),
    "no-policy-file": (lab.Aging(policy="nowhere.py:Mine"), ValueError, "no file nowhere.py"),
    "no-policy-module": (lab.Aging(policy="no_such_module:Mine"), ValueError, "no_such_module"),
    "no-policy": (lab.Aging(policy="json:Mine"), ValueError, "json has no subclass of youngbit"),
    "policy-not-one": (lab.Aging(policy="json:JSONDecoder"), ValueError, "has no subclass"),
    "no-policy-submodule": (lab.Aging(policy="json.own:Mine"), ValueError, "no module json.own"),
    "policy-syntax": (
        lab.Aging(policy="bad.py:Mine"),
        yb.PolicyError,
        "^policy bad.py:Mine: bad.py, line 1: SyntaxError: invalid syntax$",
    ),
    "policy-import": (
        lab.Aging(policy="worse.py:Mine"),
        yb.PolicyError,
        "worse.py, line 2, in <module>: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "policy-package": (
        lab.Aging(policy="youngbit_test_package.policies:Mine"),
        yb.PolicyError,
        "__init__.py, line 1, in <module>: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "npt-without-ad": (
        lab.Aging(vms=(lab.VirtualMachine(format="npt", ad=False),)),
        OSError,
        "EPT",
    ),
    "levels": (lab.Aging(vms=(lab.VirtualMachine(levels=3),)), OSError, "4 or 5 levels"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", RUNS)
def test_runs_that_cannot_be(case, tmp_path, monkeypatch):
    experiment, kind, says = RUNS[case]
    (tmp_path / "bad.npz").write_text("time,page,write\n")
    (tmp_path / "bad.py").write_text("class Mine(:\n")
    (tmp_path / "youngbit_test_package").mkdir()
    (tmp_path / "youngbit_test_package" / "__init__.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "worse.py").write_text("\nimport no_such_module\n")
    with pytest.raises(kind, match=says):
        lab.run(experiment, base=tmp_path)


def test_a_result_says_when_it_cannot_be_kept(tmp_path):
    with store.Store(tmp_path, plan()) as kept, pytest.raises(TypeError, match="not JSON"):
        kept.add((0, {"status": "ok", "x": object()}, {}))
    assert json.loads((tmp_path / store.ABOUT).read_text())["runs"] == 2
    assert (tmp_path / store.JOURNAL).read_bytes() == b""
