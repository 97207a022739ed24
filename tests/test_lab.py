"""Experiments as data: descriptions, what runs of them give, and the commands."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import youngbit as yb
from youngbit import _core, defaults, lab, traces
from youngbit.commands.main import cli
from youngbit.lab import describe
from youngbit.lab.columns import COUNTERS, documented, register

SMALL = lab.Zipf(accesses=6_000)


def small(**options) -> lab.Aging:
    vm = options.pop("vm", {})
    schedule = lab.Schedule(every=options.pop("every", 1_000))
    machine = lab.VirtualMachine(memory=4 << 20, **({"workload": SMALL} | vm))
    return lab.Aging(**({"vms": (machine,), "schedule": schedule} | options))


#: One of every kind, small, that runs inline.
EXPERIMENTS = {
    "access-tracking": lab.AccessTracking(lru_gen=True, vcpu_bytes=4 << 20, live=False),
    "replay": lab.ReplayDescription(every=20_000),
    "reclaim": lab.ReclaimDescription(memory=8 << 20, workload=lab.Zipf(accesses=20_000)),
    "aging": small(),
    "estimate": lab.EstimateDescription(every=30_000),
    "policies": lab.PoliciesDescription(sizes=(0.25, 0.5), algorithms=("lru", "mglru", "belady")),
    "heatmap": lab.HeatMapDescription(every=20_000, rows=50, columns=60),
}
#: Those that always run live.
LIVE = {
    "contention": lab.ContentionDescription(vcpu_bytes=2 << 20, repetitions=1, vcpu_counts=(1, 2)),
    "mmu-stress": lab.Stress(rounds=1, accesses=2_000),
}
ALL = EXPERIMENTS | LIVE


def test_there_is_one_of_every_kind():
    assert ALL.keys() == lab.KINDS.keys()
    for name, kind in lab.KINDS.items():
        assert type(ALL[name]) is kind.type


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "youngbit", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def invoke(*arguments: object) -> str:
    """What a command prints, without a process of its own."""
    done = CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, (arguments, done.output)
    return done.stdout


def test_a_heat_map_that_is_run_is_drawn_as_its_command_draws_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it.toml").write_text(lab.to_toml(EXPERIMENTS["heatmap"]))
    assert invoke("run", "it.toml") == "Wrote heatmap.png\n"
    assert (tmp_path / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    # Where something else is asked for, that is all.
    (tmp_path / "heatmap.png").unlink()
    assert json.loads(invoke("run", "it.toml", "--json", "-"))["schema"] == "youngbit/heat-map"
    assert [each.name for each in tmp_path.iterdir()] == ["it.toml"]


def timeless(data):
    """Return a result without what a clock measured."""
    if isinstance(data, dict):
        return {
            key: timeless(value)
            for key, value in data.items()
            if not re.search(r"seconds|mmu_lock_wait_ns|age_ms", key) or "stall" in key
        }
    return [timeless(each) for each in data] if isinstance(data, list) else data


# Descriptions.


def reachable(cls: type) -> set[type]:
    found = {cls}
    for hint in describe._hints(cls).values():
        kinds, _ = describe._bare(hint)
        for kind in kinds if isinstance(kinds, tuple) else (kinds,):
            inner = getattr(kind, "__args__", (kind,))[0]
            if dataclasses.is_dataclass(inner):
                found |= reachable(inner)
    return found


@pytest.mark.parametrize("name", lab.KINDS)
def test_every_field_is_documented_and_none_is_the_default_of_what_may_be_none(name):
    classes = reachable(lab.KINDS[name].type)
    assert classes
    for cls in classes:
        assert describe.docs(cls).keys() == describe._hints(cls).keys(), cls
        made = cls()
        for field in dataclasses.fields(cls):
            # What TOML leaves out is the default, and TOML cannot say None.
            if type(None) in getattr(describe._hints(cls)[field.name], "__args__", ()):
                assert getattr(made, field.name) is None, (cls, field.name)


@pytest.mark.parametrize("name", lab.KINDS)
def test_toml_reads_back_as_an_equal_experiment(name):
    default = lab.KINDS[name].type()
    for experiment in (default, ALL[name], dataclasses.replace(default, seed=7)):
        assert lab.from_toml(lab.to_toml(experiment)) == experiment


def test_toml_of_everything_reads_back():
    experiment = lab.Aging(
        seed=1,
        mode="live",
        policy='a "quoted"\\ name\n\x7fü.py:Policy',
        host=lab.Machine(memory=1 << 30, swap=5 << 12, capabilities=7, swappiness=0),
        vms=(
            lab.VirtualMachine(workload=lab.TraceWorkload("x.csv", "csv", "address"), ad=False),
            lab.VirtualMachine(3 << 20, 2, "file", "shadow", "v9", "accurate", format="npt"),
            lab.VirtualMachine(workload=lab.HotCold(phases=3, hot_fraction=0.25)),
            lab.VirtualMachine(workload=lab.Sequential(passes=3)),
            lab.VirtualMachine(workload=lab.Uniform(write=0.0)),
        ),
        pressure=lab.Pressure("high", 0.75),
    )
    assert lab.from_toml(lab.to_toml(experiment)) == experiment


def test_sizes_are_text_or_bytes_and_masks_hexadecimal():
    text = 'experiment = "access-tracking"\nvcpu_bytes = {}\ncapabilities = 0x7\n'
    one = lab.from_toml(text.format('"8M"'))
    assert one == lab.from_toml(text.format(8 << 20))
    assert one.vcpu_bytes == 8 << 20
    assert one.capabilities == 7
    assert 'vcpu_bytes = "8M"' in lab.to_toml(one)
    assert "capabilities = 0x7 " in lab.to_toml(one)


def test_line_ends_do_not_matter():
    assert lab.from_toml('experiment = "replay"\r\nevery = 5\r\n').every == 5


# What runs give.


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_runs_repeat_and_every_column_is_documented(name):
    first, second = (lab.run(EXPERIMENTS[name]) for _ in range(2))
    assert first.found == second.found
    assert first.row["status"] == "ok"
    assert first.row["experiment"] == name
    assert first.row["seed"] == defaults.SEED
    assert first.row["passes"] == len(first.passes["number"]) > 0
    timed = {column for column in first.passes if lab.column("passes", column).group == "timing"}
    for column, values in first.passes.items():
        assert column in timed or values == second.passes[column], column
    # What a clock measures is nowhere else.
    assert {"seconds"} <= first.row.keys() - first.found.keys()
    modelled = re.compile(r".*\.stall_seconds|schedule\.seconds")
    assert not [key for key in first.found if "seconds" in key and not modelled.fullmatch(key)]
    assert_types_of_the_registry(first, name)


def assert_types_of_the_registry(result, name):
    types = {"int64": int, "double": float, "bool": bool, "string": str}
    for key, value in result.row.items():
        column = lab.experiment.describe_column("runs", key, name)
        assert value is None or type(value) is types[column.type], (key, value)
        assert column.unit
        assert column.meaning.endswith("."), column


@pytest.mark.parametrize("name", LIVE)
def test_live_kinds_repeat_what_was_asked_and_whether_it_held(name):
    first, second = (lab.run(LIVE[name]) for _ in range(2))
    assert first.row.keys() == second.row.keys()
    asked = lab.experiment.parameters(LIVE[name])
    same = [
        "experiment",
        "status",
        "passes",
        *asked,
        *(["verdict"] if "verdict" in first.row else []),
    ]
    assert {key: first.row[key] for key in same} == {key: second.row[key] for key in same}
    assert first.row["status"] == "ok"
    assert_types_of_the_registry(first, name)
    for result in (first, second):
        assert len(result.passes.get("number", [])) == result.row["passes"]


#: Runs of several threads, and what of them the guide says repeats to the bit.
THREADS = {
    "idle": (
        lab.AccessTracking(lru_gen=True, vcpus=2, vcpu_bytes=4 << 20),
        ("verdict", "failed_check", "reason", "test_pages"),
        ("majority_seq", "min_seq", "max_seq", "pages_0", "pages_1", "pages_2", "pages_3"),
    ),
    "benchmark": (
        lab.AccessTracking(lru_gen=True, benchmark=True, vcpus=2, vcpu_bytes=16 << 20),
        ("verdict", "test_pages"),
        None,
    ),
    "aging": (
        lab.Aging(
            vms=(lab.VirtualMachine(memory=8 << 20, vcpus=2, workload=lab.Zipf(accesses=40_000)),),
            schedule=lab.Schedule(every=10_000),
            mode="live",
        ),
        ("passes", "measured_passes"),
        ("vm", "number"),
    ),
}


@pytest.mark.parametrize("name", THREADS)
def test_of_several_threads_what_the_guide_says_repeats(name):
    experiment, row, passes = THREADS[name]
    first, second = (lab.run(experiment) for _ in range(2))
    for key in ("status", *row, "counters.guest_accesses"):
        assert first.row[key] == second.row[key], key
    for key in passes or ():
        assert first.passes[key] == second.passes[key], key
    section = GUIDE.partition("A column's group,")[2].partition("## A kind of your own")[0]
    assert all(f"`{key}`" in section for key in row)


def test_what_is_counted_while_threads_meet_is_no_result():
    table = lab.run(LIVE["contention"]).passes
    groups = {key: lab.column("passes", key).group for key in table}
    assert {key for key, group in groups.items() if group == "result"} == {
        "number", "vcpus", "protocol",
    }  # fmt: skip
    found = lab.run(LIVE["mmu-stress"])
    assert {key for key in found.found if key not in lab.experiment.parameters(LIVE["mmu-stress"])
            and not key.startswith(COUNTERS)} == {
        "experiment", "status", "error", "passes", "verdict", "reason", "failed_seed",
    }  # fmt: skip


def test_contention_has_a_row_of_each_run_that_counts():
    found = lab.run(LIVE["contention"])
    assert found.passes["vcpus"] == [1, 1, 2, 2]
    assert found.passes["protocol"] == ["v7", "baseline"] * 2
    assert all(seconds > 0 for seconds in found.passes["vcpu_wall_seconds"])
    ratio = found.passes["vcpu_wall_seconds"][2] / found.passes["vcpu_wall_seconds"][3]
    assert found.row["ratio.vcpu_wall_seconds"] == ratio
    with pytest.raises(ValueError, match="the protocol is v7 already"):
        lab.ContentionDescription(against="v7")
    with pytest.raises(ValueError, match="compares what -p measures"):
        lab.ContentionDescription(benchmark=False)


def test_stress_has_a_column_of_each_deed():
    found = lab.run(LIVE["mmu-stress"])
    assert found.row["verdict"] == "pass"
    assert found.row["done_rounds"] == 1
    assert found.row["made_accesses"] >= 2_000
    ran = _core.stress_round("tdp", "v7", 1, 0, 100, 1, 1.0, lambda _: None)
    assert [f"deeds.{name}" for name in ran["deeds"]] == [
        key for key in found.row if key.startswith("deeds.")
    ]


def test_columns_of_counters_are_those_of_the_core():
    row = lab.run(EXPERIMENTS["aging"]).row
    counters = {key.removeprefix(COUNTERS): key for key in row if key.startswith(COUNTERS)}
    assert list(counters) == [key for key, _ in _core.counter_help()]
    assert lab.column("runs", "counters.pgsteal").meaning == dict(_core.counter_help())["pgsteal"]
    # Of those in nanoseconds the time that a guest is throttled is modelled.
    assert {
        each
        for each in counters
        if each.endswith("_ns") and lab.column("runs", COUNTERS + each).group != "timing"
    } == {"memory_high_throttle_ns"}
    for name in ("counters.nothing", "nothing", "off.nothing"):
        with pytest.raises(KeyError, match="no such column"):
            lab.column("runs", name)


def test_a_column_means_one_thing():
    [known] = [each for each in documented("passes") if each.name == "true_pages"]
    register("passes", [known])
    with pytest.raises(ValueError, match="cannot be"):
        register("passes", [dataclasses.replace(known, unit="bytes")])


@dataclasses.dataclass(frozen=True)
class Own:
    """Of the user's own.

    Attributes:
        seed: Of everything random.
        size: How large.

    """

    seed: int = 1
    size: int = 2


@dataclasses.dataclass(frozen=True)
class Lists:
    """Of the user's own.

    Attributes:
        seed: Of everything random.
        names: Some names.
        ends: The first and the last.
        none: Nothing.

    """

    seed: int = 1
    names: tuple[str, ...] = ("a", "b")
    ends: tuple[float, float] = (0.5, 2.0)
    none: tuple[int, ...] = ()


def test_lists_of_scalars():
    text = describe.to_toml(Lists(), "lists")
    assert 'names = ["a", "b"]' in text
    assert "ends = [0.5, 2.0]" in text
    data = describe.parse(text.encode(), "it")
    del data["experiment"]
    assert describe.build(Lists, data) == Lists()
    assert describe.build(Lists, {"ends": [1, 2]}).ends == (1.0, 2.0)
    with pytest.raises(describe.Wrong, match="ends: expected 2 values, found 3"):
        describe.build(Lists, {"ends": [1, 2, 3]})
    with pytest.raises(describe.Wrong, match=r"names\.1: expected a text, found 2"):
        describe.build(Lists, {"names": ["a", 2]})
    assert describe.flatten(Lists())["names.1"] == "b"
    assert describe.lookup(Lists, ("names", "1")) == ("string", "text", "Some names.")


@pytest.fixture
def own():
    def added(measure, runs=()):
        lab.add_kind(lab.Kind("own", Own, measure), runs=list(runs), passes=[])

    yield added
    lab.KINDS.pop("own", None)
    lab.experiment.describe_column.cache_clear()


def test_a_kind_of_ones_own(own):
    own(
        lambda experiment, base: lab.Measured({"own_found": experiment.size * 2}),
        [lab.Column("own_found", "int64", "count", "Twice the size.")],
    )
    assert lab.run(lab.from_toml('experiment = "own"\nsize = 21')).row["own_found"] == 42
    with pytest.raises(ValueError, match="there is such a kind"):
        own(None)


def test_a_kind_must_document_what_it_finds(own):
    own(lambda experiment, base: lab.Measured({"undocumented": 1}))
    with pytest.raises(KeyError, match=r"runs\.undocumented"):
        lab.run(Own())


def test_a_result_is_no_parameter(own):
    own(lambda experiment, base: lab.Measured({"size": 1}))
    with pytest.raises(ValueError, match="size are parameters and results"):
        lab.run(Own())


# The experiment `aging`.


@pytest.mark.parametrize(
    "vm",
    [
        {},
        {"vcpus": 2},
        {"mmu": "shadow"},
        {"mmu": "nested", "vcpus": 2},
        {"kind": "shmem", "protocol": "v9"},
        {"workload": lab.HotCold(accesses=6_000)},
        {"workload": lab.Uniform(accesses=6_000)},
        {"workload": lab.Sequential(passes=6)},
        {"memory": 16 << 20, "workload": lab.TraceWorkload()},
    ],
    ids=str,
)
def test_estimates_without_a_tlb_are_exact(vm):
    vm = lab.VirtualMachine(**({"memory": 4 << 20, "workload": SMALL} | vm))
    every = 20_000 if isinstance(vm.workload, lab.TraceWorkload) else 1_000
    row = lab.run(lab.Aging(vms=(vm,), schedule=lab.Schedule(every=every))).row
    assert row["precision"] == row["recall"] == 1.0
    assert row["working_set_error"] == 0.0
    assert row["working_set_pages"] > 0


def test_a_tlb_hides_pages_and_capability_0x8_finds_them():
    plain = lab.run(small()).row
    tlb = lab.run(small(vm={"tlb_entries": 64})).row
    without = lab.run(small(host=lab.Machine(capabilities=0x7))).row
    assert tlb["recall"] < plain["recall"] == 1.0
    assert without["recall"] < 0.05


def test_truth_is_counted_from_the_accesses():
    experiment = small(vm={"workload": lab.Sequential(passes=2)}, every=512)
    found = lab.run(experiment)
    assert found.passes["true_pages"] == [512] * 4
    assert found.passes["accesses"] == [512, 1024, 1536, 2048]
    assert found.row[f"{COUNTERS}guest_accesses"] == 1024
    assert found.passes["measured"] == [False, False, True, True]
    assert found.row["measured_passes"] == 2


def test_without_a_warm_up_all_passes_count_and_with_a_long_one_none():
    assert lab.run(small(warm_up=0)).row["measured_passes"] == 6
    row = lab.run(small(warm_up=6)).row
    assert row["measured_passes"] == 0
    assert row["working_set_pages"] is None
    assert row["precision"] == 1.0


def test_vms_are_aged_side_by_side_with_accesses_of_their_own():
    vm = small().vms[0]
    found = lab.run(small(vms=(vm, vm, dataclasses.replace(vm, workload=lab.Sequential()))))
    by_vm = {
        number: [n for n, v in zip(found.passes["true_pages"], found.passes["vm"], strict=True)
                 if v == number]
        for number in range(3)
    }  # fmt: skip
    assert len(by_vm[0]) == len(by_vm[1]) == 6
    assert by_vm[0] != by_vm[1]
    # The third has fewer accesses, and is left alone when they are made.
    assert by_vm[2] == [1000, 24]


@pytest.mark.parametrize("by", ["max", "reclaim"])
def test_pressure_keeps_memory_small(by):
    found = lab.run(small(pressure=lab.Pressure(by, 0.5)))
    assert max(found.passes["resident_pages"]) <= 512
    assert found.row[f"{COUNTERS}pgsteal"] > 0
    assert lab.run(small()).row[f"{COUNTERS}pgsteal"] == 0


def test_generations_that_reclaim_makes_hide_no_touched_page():
    """Under pressure reclaim ages too: what was touched lies in several generations."""
    plain = small(pressure=lab.Pressure("max", 0.7), vm={"workload": lab.Uniform(accesses=9_000)},
                  every=1_000)  # fmt: skip
    found = lab.run(plain)
    made = [b - a for a, b in itertools.pairwise(found.passes["max_seq"])]
    assert max(made) > 1
    assert found.row["recall"] > 0.99


def test_high_throttles_and_reclaims():
    found = lab.run(small(pressure=lab.Pressure("high", 0.5)))
    assert found.row[f"{COUNTERS}pgsteal"] > 0


def test_live_runs_have_the_same_truth():
    inline = lab.run(small(vm={"vcpus": 2}))
    live = lab.run(small(vm={"vcpus": 2}, mode="live"))
    assert live.passes["true_pages"] == inline.passes["true_pages"]


def test_the_seed_decides():
    rows = [lab.run(small(seed=seed)).passes["true_pages"] for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]


def test_a_policy_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from youngbit.policy import Policy\n"
        "class Mine(Policy):\n"
        "    def choose(self, view, swappiness, may_io, kernel):\n"
        "        with open(__file__ + '.asked', 'a') as file: file.write('x')\n"
        "        return kernel\n"
    )
    pressed = small(pressure=lab.Pressure("max", 0.5))
    plain = lab.run(pressed)
    own = lab.run(dataclasses.replace(pressed, policy="mine.py:Mine"), base=tmp_path)
    assert (tmp_path / "mine.py.asked").read_text().startswith("x")
    assert own.passes["true_pages"] == plain.passes["true_pages"]
    assert own.row[f"{COUNTERS}pgsteal"] == plain.row[f"{COUNTERS}pgsteal"]


WRONG_POLICIES = """from youngbit.policy import Policy
class Raises(Policy):
    def choose(self, view, swappiness, may_io, kernel):
        return self.help(view)
    def help(self, view):
        return {}["best"]
class Exits(Policy):
    def should_age(self, view, can_swap, kernel):
        raise SystemExit(0)
class Answers(Policy):
    def tier(self, view, kind, kernel):
        return "hot"
class Short(Policy):
    def tier(self, view):
        return 0
class Unmade(Policy):
    def __init__(self):
        self.best = {}["best"]
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Raises", "wrong.py, line 6, in help: KeyError: 'best'"),
        ("Exits", "wrong.py, line 9, in should_age: SystemExit: 0"),
        ("Answers", "TypeError: tier() returned 'hot', expected a tier, 0 to 3"),
        ("Short", "TypeError: Short.tier(view): is called with (view, kind, kernel)"),
        ("Unmade", "wrong.py, line 18, in __init__: KeyError: 'best'"),
    ],
)
def test_what_a_policy_does_wrong_is_said_with_its_place(tmp_path, name, says):
    (tmp_path / "wrong.py").write_text(WRONG_POLICIES)
    experiment = small(pressure=lab.Pressure("max", 0.5), policy=f"wrong.py:{name}")
    (tmp_path / "it.toml").write_text(lab.to_toml(experiment))
    done = run("run", tmp_path / "it.toml", "--results", tmp_path / "kept", code=2)
    assert done.stdout == ""
    assert done.stderr == f"youngbit: policy wrong.py:{name}: {says}\n"
    # What a sweep would have in its table.
    kept = yb.load(tmp_path / "kept")
    assert kept.failures() == {0: f"PolicyError: policy wrong.py:{name}: {says}"}
    assert kept.to_arrow()["policy"].to_pylist() == [f"wrong.py:{name}"]
    with pytest.raises(yb.PolicyError) as caught:
        lab.run(experiment, base=tmp_path)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("name", ["none.py:X", "none_such:X", "os:path"])
def test_rows_name_no_type_of_ours_for_a_policy_that_is_not_there(tmp_path, name):
    (tmp_path / "it.toml").write_text(lab.to_toml(small(policy=name)))
    run("run", tmp_path / "it.toml", "--results", tmp_path / "kept", code=2)
    [error] = yb.load(tmp_path / "kept").failures().values()
    assert error.startswith("ValueError: policy: "), error


def test_what_is_wrong_elsewhere_is_not_blamed_on_a_policy(tmp_path):
    (tmp_path / "right.py").write_text(
        "from youngbit.policy import Policy\nclass Right(Policy):\n    pass\n"
    )
    experiment = small(policy="right.py:Right", host=lab.Machine(memory=1 << 20))
    with pytest.raises(OSError, match="out of host memory"):
        lab.run(experiment, base=tmp_path)

    def passed(_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        lab.run(small(policy="right.py:Right"), base=tmp_path, passed=passed)


def test_a_result_is_kept_before_it_is_shown_and_no_failure_replaces_it(tmp_path, monkeypatch):
    # Arrow would take such a name for an address.
    monkeypatch.chdir(tmp_path)
    path, kept = Path("it.toml"), "runs:1"
    (tmp_path / "mine.py").write_text(
        "from youngbit.policy import Policy\nclass Mine(Policy):\n    pass\n"
    )
    path.write_text(lab.to_toml(small(policy="mine.py:Mine")))
    done = run("run", path, "--results", kept, "--json", "/dev/full", code=2)
    assert "No space left" in done.stderr
    assert yb.load(kept).to_arrow()["status"].to_pylist() == ["ok"]
    (tmp_path / "mine.py").unlink()
    run("run", path, "--results", kept, code=2)
    assert yb.load(kept).to_arrow()["status"].to_pylist() == ["ok"]


def test_vms_of_one_kernel_differ_in_protocol_where_that_is_said():
    guests = [
        lab.VirtualMachine(memory=1 << 20, protocol=protocol, aging_asks=asks)
        for protocol, asks in (("v7", None), ("v9", None), ("baseline", "none"))
    ]
    found = lab.run(small(vms=tuple(guests)))
    # It holds for all of them, so nothing of a guest was seen.
    assert found.row["recall"] == 0.0


def test_swappiness_and_host_memory_are_the_hosts():
    pressed = small(pressure=lab.Pressure("max", 0.5), host=lab.Machine(swappiness=200))
    assert lab.run(pressed).row[f"{COUNTERS}pgsteal"] > 0
    with pytest.raises(OSError, match="out of host memory"):
        lab.run(small(host=lab.Machine(memory=1 << 20)))


# The commands.


@pytest.mark.parametrize(
    "command",
    [
        ["access-tracking", "-l", "-b", "4M", "--inline", "-v", "2", "--mmu", "nested"],
        ["access-tracking", "-b", "4M", "--inline", "--no-ad", "--seed", "0x10"],
        ["replay", "--every", "20000", "--tlb", "0"],
        ["replay", "TRACE", "--every", "50"],
        ["reclaim", "--memory", "8M", "--accesses", "20000", "--pressure", "max"],
        ["reclaim", "--workload", "hot-cold", "--memory", "8M", "--accesses", "20000"],
        ["reclaim", "--workload", "trace", "--every", "9000"],
        ["estimate", "TRACE", "--every", "100", "--warm-up", "1", "--layout", "address"],
        ["estimate", "--workload", "zipf", "--memory", "8M", "--accesses", "20000"],
        ["policies", "--size", "0.5", "--algorithm", "lru", "--algorithm", "mglru"],
        ["access-tracking", "-l", "-b", "4M", "--inline", "--mmu", "shadow", "--alias", "2"],
        ["access-tracking", "-l", "-b", "4M", "--inline", "--no-ad", "-s", "2m", "-o"],
        ["access-tracking", "-b", "4M", "--inline", "--mmu", "nested", "--l1-no-ad"],
        [
            "access-tracking",
            "-b",
            "4M",
            "--inline",
            "--format",
            "npt",
            "--tlb",
            "64",
            "--protocol",
            "v9",
            "--aging-asks",
            "none",
            "--capabilities",
            "0xf",
        ],
        ["aging", "--memory", "4M", "--accesses", "6000", "--every", "1000", "--vms", "2"],
        [
            "aging",
            "--memory",
            "4M",
            "--mmu",
            "shadow",
            "--protocol",
            "baseline",
            "--accesses",
            "6000",
            "--every",
            "2000",
            "--tlb",
            "64",
            "--capabilities",
            "0x7",
            "--seed",
            "3",
        ],
        ["heatmap", "-o", "PLOT", "--every", "20000", "--layout", "touch"],
        ["heatmap", "TRACE", "-o", "PLOT", "--tlb", "0"],
    ],
    ids=" ".join,
)
def test_run_does_what_the_command_does(command, tmp_path):
    trace = tmp_path / "a trace.csv"
    rows = "".join(f"{i},{i * 7 % 50},{i % 2}\n" for i in range(300))
    trace.write_text("time,page,write\n" + rows)
    named = {"TRACE": trace, "PLOT": tmp_path / "it.svg"}
    command = [str(named.get(each, each)) for each in command]
    own = json.loads(invoke(*command, "--json", "-"))
    text = invoke(*command, "--print-experiment")
    # The description is read from somewhere else, and names the same files.
    described = tmp_path / "elsewhere" / "described.toml"
    described.parent.mkdir()
    described.write_text(text)
    again = json.loads(invoke("run", described, "--json", "-"))
    assert timeless(again) == timeless(own)


@pytest.mark.parametrize(
    "command",
    [
        ["access-tracking", "-l", "-p", "-b", "4M", "-v", "2"],
        ["access-tracking", "-l", "-b", "4M", "-v", "2"],
        ["access-tracking", "-l", "-p", "-b", "2M", "-v", "1,2", "--against", "baseline",
         "--repeat", "1"],
        ["access-tracking", "-l", "-p", "-b", "2M", "--protocol", "v9", "--against", "v7",
         "--repeat", "1", "--mmu", "nested"],
        ["mmu-stress", "--rounds", "1", "--accesses", "2000", "--mmu", "shadow", "--seed", "5"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_run_asks_for_what_a_live_command_does(command, tmp_path):
    own = json.loads(invoke(*command, "--json", "-"))
    described = tmp_path / "described.toml"
    described.write_text(invoke(*command, "--print-experiment"))
    again = json.loads(invoke("run", described, "--json", "-"))
    assert again.keys() == own.keys()
    asked = ("schema", "parameters", "seed", "processors", "verdict", "failure", "mmu", "protocol",
             "threads", "agers", "accesses_a_round", "rounds")  # fmt: skip
    assert {key: own[key] for key in asked if key in own} == {
        key: again[key] for key in asked if key in again
    }
    assert [point["vcpus"] for point in again.get("points", [])] == [
        point["vcpus"] for point in own.get("points", [])
    ]


_VM = {"mmu": "shadow", "protocol": "v9"}
#: Commands with options that are none of the defaults, and what they describe.
OPTIONS = {
    "access-tracking -l -v 3 -b 6M -o -s 2m --mmu nested --protocol v9 --aging-asks none --no-ad"
    " --l1-no-ad --alias 2 --format npt --capabilities 0x7 --tlb 9 --seed 5 --inline":
    lab.AccessTracking(
        True, False, 3, 6 << 20, True, "2m", "nested", "v9", "none", False, "npt", False, 2, 7, 9,
        5, False,
    ),
    "access-tracking -l -p -v 2,5 -b 6M --mmu nested --against v9 --repeat 2 --tlb 9 --seed 5":
    lab.ContentionDescription(
        vcpus=2, vcpu_counts=(2, 5), vcpu_bytes=6 << 20, mmu="nested", against="v9", repetitions=2,
        tlb_entries=9, seed=5,
    ),
    "replay --every 9 --tlb 8 --protocol v9 --capabilities 0x7":
    lab.ReplayDescription(every=9, tlb_entries=8, protocol="v9", capabilities=7),
    "heatmap --every 9 --tlb 8 --protocol v9 --capabilities 0x7 --layout touch":
    lab.HeatMapDescription(
        every=9, tlb_entries=8, protocol="v9", capabilities=7, layout="touch"
    ),
    "reclaim --workload hot-cold --memory 8M --accesses 7 --limit 0.25 --pressure high --aged"
    " --every 9 --round 3 --window 5 --phases 2 --mmu shadow --tlb 8 --swap-in-us 4 --seed 5":
    lab.ReclaimDescription(
        memory=8 << 20, workload=lab.HotCold(7), limit=0.25, pressure="high", aged=True, every=9,
        round=3, window=5, phases=2, mmu="shadow", tlb_entries=8, swap_in_us=4.0, seed=5,
    ),
    "estimate --workload zipf --memory 8M --accesses 7000 --every 9 --warm-up 2 --tlb 8"
    " --mmu shadow --protocol v9 --estimator damon --estimator mglru --seed 5":
    lab.EstimateDescription(
        memory=8 << 20, workload=lab.Zipf(7000), every=9, warm_up=2, tlb_entries=8,
        estimators=("damon", "mglru"), seed=5, **_VM,
    ),
    "policies --layout address --size 0.25 --size 0.5 --algorithm mglru --tlb 8 --seed 5":
    lab.PoliciesDescription(
        workload=lab.TraceWorkload(layout="address"), sizes=(0.25, 0.5), algorithms=("mglru",),
        tlb_entries=8, seed=5,
    ),
    "aging --vms 2 --memory 8M --accesses 7 --every 9 --warm-up 1 --tlb 8 --mmu shadow"
    " --protocol v9 --capabilities 0x7 --seed 5":
    lab.Aging(
        seed=5, warm_up=1, host=lab.Machine(capabilities=7), schedule=lab.Schedule(every=9),
        vms=(lab.VirtualMachine(memory=8 << 20, tlb_entries=8, workload=lab.Zipf(7), **_VM),) * 2,
    ),
    "mmu-stress --threads 3 --agers 1 --seconds 2 --rounds 4 --accesses 7 --mmu shadow"
    " --protocol v9 --seed 5":
    lab.Stress(threads=3, agers=1, duration=2.0, rounds=4, accesses=7, seed=5, **_VM),
}  # fmt: skip


@pytest.mark.parametrize("command", OPTIONS)
def test_options_are_the_description(command):
    assert lab.from_toml(invoke(*command.split(), "--print-experiment")) == OPTIONS[command]


def test_every_kind_has_a_command_that_prints_it():
    """The kinds, and the command that is a description of each."""
    options = {"contention": ["access-tracking", "-l", "-p", "--against", "baseline"]}
    for name, kind in lab.KINDS.items():
        text = invoke(*options.get(name, [name]), "--print-experiment")
        assert type(lab.from_toml(text)) is kind.type


def test_run_draws_what_the_command_draws(tmp_path):
    pytest.importorskip("matplotlib")
    command = ["replay", "--every", "20000"]
    run(*command, "--plot", tmp_path / "own.svg")
    (tmp_path / "it.toml").write_text(run(*command, "--print-experiment").stdout)
    run("run", tmp_path / "it.toml", "--plot", tmp_path / "again.svg")
    assert (tmp_path / "own.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    (tmp_path / "aging.toml").write_text(lab.to_toml(small()))
    error = run("run", tmp_path / "aging.toml", "--plot", tmp_path / "no.svg", code=2).stderr
    assert "there is no picture of this kind of experiment" in error
    assert not (tmp_path / "no.svg").exists()


def test_run_keeps_what_it_printed(tmp_path):
    pytest.importorskip("pyarrow")
    described = tmp_path / "it.toml"
    described.write_text(lab.to_toml(small()))
    shown = run("run", described, "--results", tmp_path / "kept", "--json", tmp_path / "it.json")
    assert "precision          1.0000" in shown.stdout
    found = json.loads((tmp_path / "it.json").read_text())
    assert found["schema"] == "youngbit/run"
    kept = yb.load(tmp_path / "kept")
    [row] = kept.to_arrow().to_pylist()
    assert {key: row[key] for key in found["row"]} == found["row"]
    assert kept.passes.to_arrow()["true_pages"].to_pylist() == found["passes"]["true_pages"]


def test_run_fails_where_the_test_fails(tmp_path):
    described = tmp_path / "it.toml"
    experiment = lab.AccessTracking(lru_gen=True, vcpu_bytes=4 << 20, capabilities=0x7, live=False)
    described.write_text(lab.to_toml(experiment))
    assert "pages did not get younger" in run("run", described, code=1).stderr
    assert lab.run(experiment).row["verdict"] == "fail"


def test_traces_are_found_beside_the_description(tmp_path):
    traces.write_npz(traces.shipped(), tmp_path / "mine.npz")
    text = 'experiment = "replay"\nevery = 40000\ntrace.file = "mine.npz"\n'
    (tmp_path / "it.toml").write_text(text)
    found = json.loads(run("run", tmp_path / "it.toml", "--json", "-").stdout)
    assert found["trace"]["events"] == len(traces.shipped())
    named = lab.run(lab.read(tmp_path / "it.toml"), base=tmp_path)
    shipped = lab.run(lab.ReplayDescription(every=40000))
    assert named.row["trace.file"] == "mine.npz"
    assert {k: v for k, v in named.found.items() if k != "trace.file"} == {
        k: v for k, v in shipped.found.items() if k != "trace.file"
    }


def test_ratios_are_numbers():
    for name in EXPERIMENTS:
        for key, value in lab.run(EXPERIMENTS[name]).row.items():
            assert not isinstance(value, float) or math.isfinite(value), key


def test_the_core_install_is_enough_to_run(tmp_path):
    """What extras bring is imported by those who ask for tables only."""
    described = tmp_path / "it.toml"
    described.write_text(lab.to_toml(small()))
    script = (
        "import sys\n"
        "for name in ('pyarrow', 'distributed', 'pandas', 'polars', 'dask', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = ['youngbit', *{[*map(str, ['run', described])]!r}, *sys.argv[1:]]\n"
        "from youngbit.commands.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          timeout=100, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused = subprocess.run(
        [sys.executable, "-c", script, "--results", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert refused.returncode == 2
    assert refused.stderr == "youngbit: tables need pyarrow: pip install 'youngbit[lab]'\n"
    assert not Path(tmp_path / "out").exists()


def test_gpl_code_is_imported_by_those_who_ask_for_it_only():
    """libcachesim is GPL; everything of the package is imported without it."""
    script = (
        "import importlib, pkgutil, sys, youngbit\n"
        "for each in pkgutil.walk_packages(youngbit.__path__, 'youngbit.'):\n"
        "    if not each.name.endswith('__main__'):\n"
        "        importlib.import_module(each.name)\n"
        "from youngbit import lab\n"
        "lab.run(lab.PoliciesDescription(sizes=(0.5,), algorithms=('mglru', 'belady')))\n"
        "assert 'youngbit.experiments.policies' in sys.modules\n"
        "assert 'libcachesim' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)


# The guide.

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "experiments.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def test_the_reference_is_that_of_the_code():
    done = subprocess.run([sys.executable, ROOT / "tools" / "reference.py", "--check"], check=False)
    assert done.returncode == 0, "run tools/reference.py"
    for name in ("`vms`", "| `true_pages` | int64 | pages |", "### `reclaim`"):
        assert name in GUIDE


def test_descriptions_of_the_guide_can_be_read():
    one, sweep = blocks("toml")
    assert len(lab.from_toml(one).vms) == 2
    assert sweep == (ROOT / "examples" / "sweep.toml").read_text()
    assert len(sweep.splitlines()) == 10
    assert len(lab.Sweep.from_toml(sweep)) == 18
    # The error that the guide shows is the one for that description.
    with pytest.raises(yb.FormatError) as caught:
        lab.from_toml(one.replace("every =", "evry ="), "mine.toml")
    assert f"youngbit: {caught.value}\n" in GUIDE


def test_python_of_the_guide_runs():
    first, tables, last = blocks("python")
    for block in (first, last):
        done = subprocess.run([sys.executable, "-W", "error", "-c", block], check=False,
                              capture_output=True, text=True, timeout=100)  # fmt: skip
        assert done.returncode == 0, done.stderr
    for name in re.findall(r"results\.(\w+)", tables):
        assert name in {field.name for field in dataclasses.fields(lab.Results)} | {
            "to_pandas", "to_polars", "to_arrow", "group", "failures", "passes"
        }  # fmt: skip
