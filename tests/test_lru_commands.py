"""The commands lru-gen, conformance and reclaim, as users and scripts run them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import youngbit as yb
from test_cli import run
from youngbit.experiments import Conformance, Reclaim, Scenario
from youngbit.experiments.reclaim import Workload, _Future, _Run, hot_cold, trace, zipf

DATA = Path(__file__).parent / "data" / "conformance"
SCENARIOS = DATA / "scenarios"


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def recording(folder: Path, name: str) -> list[dict]:
    return lines((folder / name).read_text())


@pytest.fixture
def one(tmp_path) -> Path:
    """A directory of one recording."""
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "linux-v7").mkdir()
    shutil.copy(SCENARIOS / "kv_d_evict_hot.scn", tmp_path / "scenarios")
    shutil.copy(DATA / "linux-v7" / "kv_d_evict_hot.enf.jsonl", tmp_path / "linux-v7")
    return tmp_path


def compare(directory: Path, code: int) -> dict:
    done = run("conformance", directory, "--json", "-", code=code)
    found = json.loads(done.stdout)
    assert found["schema"] == "youngbit/conformance"
    return found | {"stderr": done.stderr}


# lru-gen


def test_lru_gen_prints_what_is_there_after_each_step():
    done = run("lru-gen", SCENARIOS / "kv_d_evict_hot.scn")
    assert done.stderr == ""
    steps = done.stdout.split("\nstep ")
    assert len(steps) == len(recording(DATA / "linux-v7", "kv_d_evict_hot.enf.jsonl")) - 1
    evict = next(step for step in steps if "evict min 200 512" in step)
    assert "command     - 2 0 " in evict
    assert "generations " in evict
    assert "region      A: anon, 4096 pages, " in evict
    assert "region_age_hva_fast " in evict
    assert "pgsteal " in evict
    assert "notifier_clear_young_slow " in evict


def test_lru_gen_prints_errors_by_number():
    done = run("lru-gen", SCENARIOS / "d_errors.scn")
    assert "raw - %ID 0 %MAX 300 10  errno 22" in done.stdout
    assert "age 1 0  errno 34" in done.stdout


@pytest.mark.parametrize(
    ("folder", "name", "options"),
    [
        ("linux-v7", "kv_d_evict_hot.enf", []),
        ("linux-v7", "kv_d_evict_hot.en7", ["--capabilities", "7"]),
        ("linux-v7-shadow", "kv_a_half.enf", ["--mmu", "shadow"]),
        ("linux-v7-direct-rmap", "kv_d_evict_hot.enf", ["--mmu", "direct-rmap"]),
        ("linux-v7-no-ad", "kv_a_half.enf", ["--no-ad"]),
        ("linux-6.12", "d_errors.en7", ["--protocol", "baseline"]),
        (
            "linux-6.12-no-notify",
            "kv_a_half.en7",
            ["--protocol", "baseline", "--aging-asks", "none", "--capabilities", "0x7"],
        ),
    ],
)
def test_lru_gen_writes_recordings(folder, name, options, tmp_path):
    """Under a recording's conditions, with its keys, and equal by its rules."""
    theirs = recording(DATA / folder, f"{name}.jsonl")
    scenario = theirs[0]["scenario"]
    out = tmp_path / "out.jsonl"
    run("lru-gen", SCENARIOS / f"{scenario}.scn", *options, "--json", out)
    ours = lines(out.read_text())
    for key in ("scenario", "mmu", "page_size", "swap_pages", "secondary_mmu_walk"):
        assert ours[0][key] == theirs[0][key], key
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert set(mine) == set(other)
        for key in ("step", "op", "args", "errno"):
            assert mine[key] == other[key]
        assert list(mine["generations"]) == list(other["generations"])
        assert {n: set(r) for n, r in mine["regions"].items()} == {
            n: set(r) for n, r in other["regions"].items()
        }
        assert set(mine["memory_stat"]) == set(other["memory_stat"])
    # The run is a recording itself, and the model agrees with it.
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "model").mkdir()
    shutil.copy(SCENARIOS / f"{scenario}.scn", tmp_path / "scenarios")
    shutil.move(out, tmp_path / "model")
    assert compare(tmp_path, 0)["recordings"][0]["equal_steps"] == len(ours) - 1


def test_lru_gen_json_dash_prints_nothing_else():
    done = run("lru-gen", SCENARIOS / "c_idle.scn", "--json", "-")
    header, *steps = lines(done.stdout)
    assert header["kernel"] == "linux-v7"
    assert header["mmu"] == "none"
    assert [step["step"] for step in steps] == list(range(len(steps)))


BAD_SCENARIOS = {
    "operation": ("snap\nmop A\n", 'line 2, column 1: expected an operation, found "mop"'),
    "region": ("touch A 0 1 1 w\n", "line 1, column 7: expected a region mapped before"),
    "beyond": ("map A anon 8\ntouch A 0 9 1 w\n", "line 2, column 9: expected pages within"),
    "kind": ("map A rope 8\n", "line 1, column 7: expected anon, file, filernd or shmem"),
    "trailing": ("snap snap\n", "line 1, column 6: expected the end of the line"),
    "missing": ("age 1\n", "line 1, column 6: expected force_scan, found the end"),
    "path": ("map A anon 8 /mnt/f\n", "line 1, column 14: expected the end of the line"),
    "shmem": ("map S shmem 8 x\nmap F file 8 x\n", "line 2, column 14: expected a path that is"),
    "not-text": (b"snap\nsnap \xff\n", "line 2, column 1: expected text in UTF-8"),
}


@pytest.mark.parametrize("name", BAD_SCENARIOS)
def test_a_bad_scenario_is_named_by_file_line_and_column(name, tmp_path):
    text, message = BAD_SCENARIOS[name]
    file = tmp_path / "bad.scn"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = run("lru-gen", file, code=2)
    assert f"{file}: {message}" in done.stderr
    assert done.stdout == ""
    with pytest.raises(yb.FormatError) as caught:
        Scenario().run(file)
    assert f"line {caught.value.line}, column {caught.value.column}" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mmu", "mips"], "'mips' is not one of"),
        (["--protocol", "v8"], "'v8' is not one of"),
        (["--aging-asks", "accurate"], "asks fast_only, not accurate"),
        (["--capabilities", "all"], "'all' is not a number"),
        (["--capabilities", "0x100000000"], "is not a mask of 32 bits"),
        (["--json", "/nowhere/x.json"], "no directory to write it to"),
        (["--swap", "-1"], "-1 is not in the range"),
        (["--mmu", "shadow", "--no-ad"], "shadow paging always has them"),
    ],
    ids=str,
)
def test_lru_gen_refuses(options, message):
    done = run("lru-gen", SCENARIOS / "kv_a_half.scn", *options, code=2)
    assert message in done.stderr


def test_lru_gen_of_no_file(tmp_path):
    assert "does not exist" in run("lru-gen", tmp_path / "no.scn", code=2).stderr
    assert "is a directory" in run("lru-gen", tmp_path, code=2).stderr


def test_a_scenario_without_a_step(tmp_path):
    file = tmp_path / "empty.scn"
    file.write_text("# nothing to do\n\n")
    assert run("lru-gen", file).stdout == ""
    [header] = lines(run("lru-gen", file, "--json", "-").stdout)
    assert header["scenario"] == "empty"


# conformance


def test_every_recording_is_equal():
    done = run("conformance", DATA)
    *table, summary = done.stdout.splitlines()
    files = Conformance(DATA).files()
    assert summary == f"{len(files)} of {len(files)} recordings are equal"
    assert len(table) == len(files) + 1
    assert table[0].split() == ["recording", "steps", "equal", "first", "difference"]
    assert len(files) > 300


def test_conformance_json(one):
    found = compare(one, 0)
    [only] = found["recordings"]
    assert only["file"] == "linux-v7/kv_d_evict_hot.enf.jsonl"
    assert only["steps"] == only["equal_steps"] > 10
    assert only["first_difference"] is None
    assert found["equal"] == 1


def edit(directory: Path, change) -> Path:
    file = directory / "linux-v7" / "kv_d_evict_hot.enf.jsonl"
    objects = lines(file.read_text())
    change(objects)
    file.write_text("".join(json.dumps(each) + "\n" for each in objects))
    return file


def change_bin(objects):
    generations = objects[6]["generations"]
    generations[next(iter(generations))][0] += 40


def change_errno(objects):
    objects[3]["errno"] = 22


def change_calls(objects):
    step = next(o for o in objects if o.get("op") == "evict")
    step["trace"]["region_age_hva_slow"] += 100


def change_mask(objects):
    objects[0]["lru_gen_enabled"] = "0x0007"


def drop_step(objects):
    objects.pop()


def other_step(objects):
    objects[-1]["op"] = "snap"


@pytest.mark.parametrize(
    "change", [change_bin, change_errno, change_calls, change_mask, drop_step, other_step]
)
def test_what_differs_is_found(change, one):
    edit(one, change)
    [only] = compare(one, 1)["recordings"]
    assert only["first_difference"]
    assert only["compared"]
    if change is not drop_step:
        assert only["equal_steps"] < only["steps"]


def cut_line(directory):
    file = directory / "linux-v7" / "kv_d_evict_hot.enf.jsonl"
    text = file.read_text().splitlines()
    file.write_text("\n".join([*text[:4], text[4][:30]]))
    return f"{file}: line 5, column "


def no_header(directory):
    file = directory / "linux-v7" / "kv_d_evict_hot.enf.jsonl"
    file.write_text("")
    return f"{file}: line 1, column 1: expected a recording's conditions"


def no_scenario(directory):
    file = directory / "scenarios" / "kv_d_evict_hot.scn"
    file.unlink()
    return f"{file}: No such file"


def bad_scenario(directory):
    file = directory / "scenarios" / "kv_d_evict_hot.scn"
    file.write_text("vm\nfly\n")
    return f"{file}: line 2, column 1: expected an operation"


def no_machine(directory):
    edit(directory, lambda objects: objects[0].update(mmu="mips"))
    return 'mmu "mips": expected none, tdp, direct-rmap or shadow'


def other_pages(directory):
    edit(directory, lambda objects: objects[0].update(page_size=65536))
    return "page_size 65536: expected 4096"


def path_as_name(directory):
    file = edit(directory, lambda objects: objects[0].update(scenario="../../etc/passwd"))
    return f"{file}: line 1, column 1: expected a scenario's name"


@pytest.mark.parametrize(
    "spoil",
    [cut_line, no_header, no_scenario, bad_scenario, no_machine, other_pages, path_as_name],
)
def test_what_cannot_be_compared_is_not_equal(spoil, one):
    message = spoil(one)
    found = compare(one, 1)
    [only] = found["recordings"]
    assert not only["compared"]
    assert only["equal_steps"] == 0
    assert message in only["first_difference"]
    assert "kv_d_evict_hot.enf.jsonl" in found["stderr"]


def test_nothing_to_compare(tmp_path):
    assert "has no recordings" in run("conformance", tmp_path, code=2).stderr
    assert "does not exist" in run("conformance", tmp_path / "no", code=2).stderr


# reclaim


def small(kind: str) -> Workload:
    return {
        "zipf": lambda: zipf(4096, 200_000, 1),
        "hot-cold": lambda: hot_cold(4096, 200_000, 1),
        "trace": lambda: trace(yb.traces.shipped()),
    }[kind]()


@pytest.mark.parametrize("kind", ["zipf", "hot-cold", "trace"])
def test_the_capability_cuts_hot_evictions_and_refaults(kind):
    result = Reclaim().run(small(kind))
    for name in ("hot", "recent", "refaults", "swap_ins", "stall_seconds"):
        cut = result.cut(name)
        assert cut is not None, name
        assert cut > 0, (name, cut)
    assert result.causes() == []
    for phase in result.phases:
        # No way of reclaiming does better than the oracle.
        for run_ in (phase.off, phase.on, phase.lru):
            assert run_.total("refaults") >= phase.oracle.total("refaults")
            assert run_.total("hot") >= phase.oracle.total("hot")
            assert run_.missed_rounds == 0
    # Fast calls in aging take the place of accurate ones at eviction.
    assert result.counter("off", "notifier_clear_young_fast") == 0
    assert result.counter("on", "notifier_clear_young_fast") > 0
    assert result.counter("on", "pgscan") < result.counter("off", "pgscan") / 2


@pytest.mark.parametrize("pressure", ["proactive", "reclaim", "max", "high"])
def test_every_pressure_keeps_the_limit_and_loses_nothing(pressure):
    work = small("zipf")
    result = Reclaim(pressure=pressure, every=5000, phases=2).run(work)
    capacity = result.parameters["capacity"]
    has_agent = pressure in ("proactive", "reclaim")
    assert [phase.first for phase in result.phases] == ([10_000, 20_000] if has_agent else [5000])
    for phase in result.phases:
        for run_ in (phase.off, phase.on):
            assert run_.total("evicted") > 0
            assert run_.total("refaults") <= run_.total("evicted")
            assert run_.total("hot") <= run_.total("evicted")
            assert run_.total("recent") <= run_.total("evicted")
            rounds = [
                tick
                for tick in run_.ticks
                if not has_agent
                or (tick.accesses >= phase.first and (tick.accesses - phase.first) % 20_000 == 0)
            ]
            slack = 64 if pressure == "high" else 0
            assert rounds
            assert all(tick.resident <= capacity + slack for tick in rounds)
            assert run_.ticks[-1].accesses == len(work)
            # What was evicted and did not come back is not there.
            left = work.nr_pages - run_.total("evicted") + run_.total("refaults")
            assert run_.ticks[-1].resident == left
        for run_ in (phase.lru, phase.oracle):
            assert all(tick.resident <= capacity for tick in run_.ticks)


def test_reclaim_repeats_to_the_bit():
    first, second = (Reclaim(every=3000, phases=2).run(small("hot-cold")) for _ in range(2))
    for one_, other in zip(first.phases, second.phases, strict=True):
        assert one_.off.ticks == other.off.ticks
        assert one_.on.ticks == other.on.ticks
        assert one_.on.counters == other.on.counters
    assert first.last.on.ticks != first.phases[0].on.ticks


def test_reclaim_command(tmp_path):
    plot, out = tmp_path / "plot.png", tmp_path / "out.json"
    done = run("reclaim", "--workload", "trace", "--plot", plot, "--json", out)
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = {line[:24].strip(): line[24:].split() for line in done.stdout.splitlines()}
    assert " ".join(rows[""]) == "0x8 off 0x8 on cut from to exact LRU oracle"
    found = json.loads(out.read_text())
    assert found["schema"] == "youngbit/reclaim"
    for key, row in (("hot", "used soon after: hot"), ("refaults", "refaults")):
        off, on, cut, low, high, lru, oracle = rows[row]
        for text, name in ((off, "off"), (on, "on"), (lru, "lru"), (oracle, "oracle")):
            total = found[name][key]
            assert int(text.replace(",", "")) == total
            assert total == sum(phase[name][key] for phase in found["phases"])
        assert float(cut[:-1]) == pytest.approx(found["cut"][key] * 100, abs=0.06)
        cuts = [phase["cut"][key] * 100 for phase in found["phases"]]
        assert float(low[:-1]) == pytest.approx(min(cuts), abs=0.06)
        assert float(high[:-1]) == pytest.approx(max(cuts), abs=0.06)
    assert len(found["phases"]) == 8
    last = found["phases"][-1]
    assert last["first"] == found["parameters"]["every"] * found["parameters"]["round"]
    ticks = last["on"]["ticks"]
    assert len({len(column) for column in ticks.values()}) == 1
    assert sum(ticks["evicted"]) == last["on"]["evicted"] == last["on"]["counters"]["pgsteal"]
    assert found["workload"]["pages"] == 3286
    assert found["parameters"]["every"] == found["parameters"]["window"]
    assert found["build"]["version"]


def test_what_is_not_cut_is_explained(tmp_path):
    """A loop larger than memory defeats LRU, and so whatever tells ages."""
    file = tmp_path / "loop.csv"
    body = "".join(f"{n},{n % 600},{n % 3 == 0:d}\n" for n in range(12_000))
    file.write_text("time,page,write\n" + body)
    for pressure, what in (("proactive", "hot evictions"), ("max", "refaults")):
        done = run("reclaim", "--workload", file, "--phases", "2", "--pressure", pressure)
        [cause] = [line for line in done.stdout.splitlines() if "are not cut" in line]
        assert cause.startswith(f"{what} are not cut: exact LRU, which knows every access, has")


def test_a_capability_that_does_not_age_as_often_is_named():
    """Of a moving hot set, under a constant limit: by the counts of both runs."""
    result = Reclaim(pressure="max").run(small("hot-cold"))
    [phase] = result.phases
    causes = result.causes()
    assert causes
    for cause in causes:
        assert f"aged {phase.on.agings} times with it and {phase.off.agings} without" in cause
    assert phase.on.agings < phase.off.agings
    # And it is the cause: aged from beside, the run with it is the better one.
    aged = Reclaim(pressure="max", aged=True).run(small("hot-cold"))
    assert aged.last.on.agings > phase.on.agings
    for name in ("hot", "recent", "refaults"):
        assert aged.total("on", name) < aged.total("off", name), name


# What is hot: the classifier against plain loops


def a_workload(draw) -> Workload:
    pages = draw(st.lists(st.integers(0, 11), min_size=1, max_size=80))
    array = np.array(pages, dtype=np.uint32)
    return Workload.of("drawn", array, np.zeros(len(array), dtype=np.bool_), {})


@given(st.data())
def test_used_within_is_a_plain_loop(data):
    work = a_workload(data.draw)
    future = _Future(work)
    now = data.draw(st.integers(-10, len(work) + 10))
    window = data.draw(st.integers(1, 100))
    asked = data.draw(st.lists(st.integers(0, work.nr_pages - 1), unique=True))
    plain = sum(
        any(work.pages[at] == page for at in range(max(now, 0), min(now + window, len(work))))
        for page in asked
    )
    assert future.used_within(np.array(asked, dtype=np.int64), now, window) == plain


@given(st.data())
def test_pages_seen_is_a_plain_loop(data):
    work = a_workload(data.draw)
    seen = _Future(work).seen.tolist()
    assert seen == [len(set(work.pages[: at + 1].tolist())) for at in range(len(work))]


@given(st.data())
def test_interval_touches_its_share(data):
    """The shortest, to a 64th, whose intervals touch the share on average."""
    work = a_workload(data.draw)
    share = data.draw(st.floats(0.01, 1.0))
    interval = work.interval(share)

    def touched(every: int) -> float:
        parts = [work.pages[at : at + every] for at in range(0, len(work), every)]
        return sum(len(set(part.tolist())) for part in parts) / len(parts)

    assert 1 <= interval <= max(len(work), 1)
    if interval < len(work):
        assert touched(interval) >= share * work.nr_pages
    if interval > 2:
        assert touched(interval - 1) < share * work.nr_pages


@pytest.mark.parametrize("pressure", ["proactive", "reclaim", "max", "high"])
def test_with_an_endless_window_every_refault_was_a_hot_eviction(pressure):
    """Whatever comes back was evicted hot, and whatever was evicted hot comes back."""
    for work in (small("zipf"), small("trace")):
        endless = len(work)
        result = Reclaim(pressure=pressure, every=5000, window=endless, phases=2).run(work)
        for phase in result.phases:
            for name in ("off", "on", "lru", "oracle"):
                run_ = getattr(phase, name)
                assert run_.total("refaults") > 0
                assert run_.total("hot") == run_.total("refaults"), (phase.first, name)
            for name in ("off", "on"):
                # All were used before they went, but under a limit some in the same step.
                run_ = getattr(phase, name)
                if pressure in ("proactive", "reclaim"):
                    assert run_.total("recent") == run_.total("evicted")


@pytest.mark.parametrize("pressure", ["proactive", "max"])
def test_hot_evictions_are_those_of_a_plain_loop(pressure, monkeypatch):
    """One run, followed eviction by eviction."""
    work = small("trace")
    every, window = 3000, 3000
    experiment = Reclaim(pressure=pressure, every=every, window=window, phases=1)
    phase = experiment.run(work).last
    uses: dict[int, list[int]] = {}
    for at, page in enumerate(work.pages.tolist()):
        uses.setdefault(page, []).append(at)
    # The same run by hand, with each eviction, when it was, and who came back at once.
    capacity = int(work.nr_pages * experiment.limit)
    machine = _Run(experiment, work, _Future(work), 0xF, capacity, every, window)
    steps: list[tuple[list[int], set[int], int, int]] = []

    def classify(start: int, end: int) -> None:
        records = machine.host.drain_trace().get("kvm_unmap_hva_range")
        addresses = [] if records is None else records.args[:, 0].tolist()
        there = set(np.flatnonzero(machine.vm.page_generations() >= 0).tolist())
        gone = [(address - machine.vm.address) // 4096 for address in addresses]
        steps.append((gone, there, start, end))

    monkeypatch.setattr(machine, "classify", classify)
    machine.run(phase.first, "on", lambda _: None)
    assert sum(len(gone) for gone, *_ in steps) == phase.on.total("evicted") > 100
    hot = recent = 0
    for gone, there, start, end in steps:
        for n, page in enumerate(gone):
            hot += (
                page in gone[n + 1 :]
                or page in there
                or any(end <= at < end + window for at in uses[page])
            )
            recent += any(start - window <= at < start for at in uses[page])
    assert hot == phase.on.total("hot") > 0
    assert recent == phase.on.total("recent")


def test_reclaim_takes_any_trace_file(tmp_path):
    file = tmp_path / "loop.csv"
    body = "".join(f"{n},{n % 600},{n % 3 == 0:d}\n" for n in range(12_000))
    file.write_text("time,page,write\n" + body)
    found = json.loads(run("reclaim", "--workload", file, "--json", "-").stdout)
    assert found["workload"]["pages"] == 600
    assert found["off"]["refaults"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workload", "zip"], "none of zipf, hot-cold, trace, and no file"),
        (["--limit", "0"], "0"),
        (["--limit", "1.0"], "1.0"),
        (["--pressure", "kind"], "'kind' is not one of"),
        (["--every", "0"], "0 is not in the range"),
        (["--memory", "1M"], "128 of 256 pages may stay, expected at least 256"),
        (["--memory", "0"], "not positive"),
        (["--phases", "0"], "0 is not in the range"),
        (["--tlb", "67"], "tlb_entries: 67"),
        (["--plot", "/nowhere/x.png"], "no directory to write it to"),
        (["--workload", "/dev/null"], "/dev/null"),
    ],
    ids=str,
)
def test_reclaim_refuses(options, message):
    assert message in run("reclaim", "--accesses", "20000", *options, code=2).stderr


def test_oracle_is_refused_nonsense():
    stream = yb.access.arrays([1, 2, 3])
    with pytest.raises(ValueError, match="at least 1"):
        yb.oracle.optimal(stream, 0, every=1, window=1)
