"""The command bench: what it measures is the core's, what it says is checked here."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from youngbit import _core
from youngbit.experiments import Bench, BenchResult, bench

SUITES = ["spte", "walk", "aging", "contention", "reclaim"]
ROOT = Path(__file__).parent.parent


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-u", "-m", "youngbit", "bench", *map(str, arguments)]


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr)
    assert "Traceback" not in done.stderr
    assert "panicked" not in done.stderr
    return done


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> tuple[str, BenchResult]:
    """All suites, as small as they get: what was printed, and the result."""
    path = tmp_path_factory.mktemp("bench") / "all.json"
    done = run("--smallest", "--repetitions", 2, "--seed", "0x7", "--json", path)
    assert done.stderr == ""
    return done.stdout, bench.read(path)


def test_every_suite_is_there_and_every_row_is_whole(everything):
    _, result = everything
    assert result.suites == dict.fromkeys(SUITES, "complete")
    assert result.is_complete
    assert result.parameters["seed"] == 7
    assert result.seconds > 0
    assert {row["suite"] for row in result.rows} == set(SUITES)
    for row in result.rows:
        assert list(row["metric"]) == ["name", "unit", "less_is_better"]
        assert len(row["samples"]) == 2
        assert row["min"] == min(row["samples"])
        assert row["max"] == max(row["samples"])
        assert row["median"] == pytest.approx(sum(row["samples"]) / 2)
        assert row["seed"] == 7
        assert isinstance(row["counters"], dict)
        assert isinstance(row["pinned"], bool)
        assert row["oversubscribed"] == (row["threads"] > result.machine["processors"])
        assert row["threads"] >= 1
        case = [r for r in result.rows if (r["suite"], r["case"]) == (row["suite"], row["case"])]
        names = {each["contestant"] for each in case}
        for ratio in row["ratios"]:
            assert set(ratio) == {"to", "median", "min", "max", "bound"}
            assert ratio["to"] in names - {row["contestant"]}
            assert ratio["min"] <= ratio["median"] <= ratio["max"]


def test_a_ratio_is_that_of_neighbouring_repetitions(everything):
    _, result = everything
    checked = 0
    for row in result.rows:
        for ratio in row["ratios"]:
            [other] = [
                r
                for r in result.rows
                if (r["suite"], r["case"], r["contestant"], r["metric"]["name"])
                == (row["suite"], row["case"], ratio["to"], row["metric"]["name"])
            ]
            if all(other["samples"]):
                pairs = [a / b for a, b in zip(row["samples"], other["samples"], strict=True)]
                assert ratio["min"] == pytest.approx(min(pairs))
                assert ratio["max"] == pytest.approx(max(pairs))
                checked += 1
    assert checked > 100


def test_counters_stand_beside_times(everything):
    _, result = everything
    for row in result.rows:
        # A loop over a flat array is no aging, and neither is none.
        protocol = row["contestant"].startswith(("v7", "v9", "baseline"))
        if row["suite"] in ("aging", "contention", "reclaim") and protocol:
            assert row["counters"], row
    locked = [r for r in result.rows if r["suite"] == "aging" and r["contestant"] == "baseline"]
    assert locked
    assert all(row["counters"]["mmu_lock_write"] > 0 for row in locked)


def test_machine_and_build_are_recorded(everything):
    text, result = everything
    assert result.machine["processors"] == len(os.sched_getaffinity(0))
    assert result.machine["cpu"]
    assert result.build == dict(_core.build_info())
    assert "seed 7" in text
    assert result.build["rustc"] in text
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", result.started)


def test_the_table_has_a_line_a_figure(everything):
    text, result = everything
    for (suite, case), rows in result.cases().items():
        assert f"{suite}: {case}\n" in text
        part = text.split(f"{suite}: {case}\n")[1]
        for row in rows:
            assert row["metric"]["name"] in part
        crowded = "the scheduler is part of every time" in part.splitlines()[0]
        assert crowded == rows[0]["oversubscribed"]
    assert text.count("What aging costs, locked and lockless") == 1
    held = re.findall(r"^(NOT held|held {4}) ", text, re.MULTILINE)
    assert len(held) == len(result.promises()) > 0


def test_json_round_trip_and_what_the_docs_say(everything):
    _, result = everything
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert BenchResult.from_dict(data) == result
    assert (data["schema"], data["schema_version"]) == ("youngbit/bench", 1)
    docs = (ROOT / "docs" / "json.md").read_text()
    section = docs.split("## `youngbit/bench`, version 1")[1].split("\n## ")[0]
    keys = {*data, *data["machine"], *data["rows"][0], *data["rows"][0]["metric"]}
    keys |= {"to", "bound"}
    common = {"schema", "schema_version", "build", "seed"}
    assert [key for key in sorted(keys - common) if f"`{key}`" not in section] == []


def test_a_result_is_printed_again(everything, tmp_path):
    text, result = everything
    path = tmp_path / "again.json"
    path.write_text(json.dumps(result.to_dict()))
    assert run("--from", path).stdout == text


def test_suites_are_run_in_their_order_and_once():
    assert Bench(suites=["walk", "spte", "walk"]).suites == ("spte", "walk")
    assert list(Bench().suites) == SUITES


def test_json_to_standard_output_is_alone_there():
    done = run("spte", "--smallest", "--only", "100% young", "--json", "-")
    result = BenchResult.from_dict(json.loads(done.stdout))
    assert result.suites == {"spte": "complete"}
    assert len(result.cases()) == 2
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["paging"], "'paging' is no suite: expected one of spte, walk, aging"),
        (["--repetitions", "0"], "not in the range"),
        (["--seed", "x"], "'x' is not a number"),
        (["--json", "/nonexistent/x.json"], "no directory"),
        (["--report", "/nonexistent/x.html"], "no directory"),
        (["--report", "x.txt"], "does not end in .html"),
        (["--from", "/nonexistent.json"], "does not exist"),
        (["--from", __file__], "test_bench.py: Extra data"),
        (["--from", __file__, "spte"], "--from measures nothing"),
        (["spte", "--smallest", "--only", "nothing"], "no case has 'nothing' in its name"),
        (["--huge"], "No such option"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_bad_usage(arguments, says):
    assert says in run(*arguments, code=2).stderr


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"schema": "youngbit/replay", "schema_version": 1}, "'youngbit/replay'"),
        ({"schema": "youngbit/bench", "schema_version": 9}, "version 9"),
        ({"schema": "youngbit/bench", "schema_version": 1}, "lacks parameters, machine"),
        ([1], "found a list"),
    ],
)
def test_a_file_that_is_no_result(tmp_path, data, says):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        bench.read(path)
    assert str(path) in str(raised.value)


def test_a_debug_build_is_refused(monkeypatch):
    info = dict(_core.build_info()) | {"debug_assertions": True}
    monkeypatch.setattr(bench, "build_info", lambda: info)
    with pytest.raises(ValueError, match="debug build"):
        Bench(suites=["spte"], scale="smallest").run()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": "tiny"}, "scale: 'tiny' is none of"),
        ({"suites": ["x"]}, "'x' is no suite"),
        ({"repetitions": 0}, "repetitions: 0 is below 1"),
    ],
)
def test_bad_parameters(options, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Bench(**options)


def test_native_names_are_checked():
    for names in (("x", "full"), ("spte", "x")):
        with pytest.raises(ValueError, match='"x" is no'):
            _core.bench_run(*names, 1, None, None, print, print)


def test_what_a_callback_raises_stops_the_run_and_keeps_whole_cases():
    experiment = Bench(suites=["spte", "walk"], scale="smallest", repetitions=1)
    result = experiment.prepare()
    cases = []

    def finished(rows):
        cases.append(rows[0]["case"])
        if len(cases) == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        experiment.run(result, finished=finished)
    assert result.suites == {"spte": "interrupted", "walk": "not run"}
    assert not result.is_complete
    assert [case for _, case in result.cases()] == cases
    assert len({len({r["contestant"] for r in rows}) for rows in result.cases().values()}) == 1


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    path = tmp_path / "out.json"
    process = subprocess.Popen(
        command("contention", "--smallest", "--repetitions", 60, "--json", path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            if line.startswith("contention: tdp, 1 vCPUs"):
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.splitlines() == ["youngbit: interrupted; what was finished is kept"]
    result = bench.read(path)
    assert result.suites == {"contention": "interrupted"}
    cases = result.cases()
    assert 1 <= len(cases) < 6
    for rows in cases.values():
        assert {row["contestant"] for row in rows} >= {"no aging", "v7", "baseline", "v9"}
        assert all(len(row["samples"]) == 60 for row in rows)
    assert [each.name for each in tmp_path.iterdir()] == ["out.json"]


def test_a_terminal_sees_progress_and_a_pipe_the_tables():
    terminal, other = pty.openpty()
    process = subprocess.Popen(
        command("spte", "--smallest", "--repetitions", 1),
        stdout=subprocess.PIPE,
        stderr=other,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(other)
    seen = b""
    try:
        while chunk := os.read(terminal, 1 << 16):
            seen += chunk
    except OSError:
        # What a terminal says when the other side has closed.
        pass
    output, _ = process.communicate(timeout=60)
    os.close(terminal)
    assert process.returncode == 0
    assert b"spte 4096 entries" in seen
    assert b"contestant" not in seen
    assert output.count(b"contestant") == 10
    assert b"\x1b" not in output
