"""The command, as users and their scripts run it."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from youngbit import defaults, traces

DATA = Path(__file__).parent / "data"
SECONDS = r"\d+\.\d{9}s"

STEPS = [
    "Populating memory",
    "Writing to populated memory",
    "Reading from populated memory",
]
LRU_STEPS = [
    *STEPS,
    "lru_gen: Aging",
    "lru_gen: Aging",
    "Writing to idle memory",
    "lru_gen: Aging",
    "lru_gen: Aging",
    "Reading from idle memory",
    "lru_gen: Aging",
]
IDLE_STEPS = [
    *STEPS,
    "Mark memory idle",
    "Writing to idle memory",
    "Mark memory idle",
    "Reading from idle memory",
]


def run(*arguments: str, code: int = 0, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "youngbit", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        **options,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "panicked" not in done.stderr
    assert "Traceback" not in done.stderr
    return done


def result(*arguments: str, code: int = 0) -> dict:
    found = json.loads(run(*arguments, "--json", "-", code=code).stdout)
    assert found["schema"].startswith("youngbit/")
    assert found["build"]["version"]
    return found


def layout(text: str) -> list[str]:
    """What a script that parses the selftest sees."""
    return [m[1].rstrip() for m in re.finditer(rf"^(.{{30}}): {SECONDS}$", text, re.MULTILINE)]


def selftest(command: str) -> str:
    """What the series' own selftest printed for a command, on a real kernel."""
    blocks = (DATA / "selftest-v7.txt").read_text().split("=== [")
    [found] = [block for block in blocks if f" {command}\n" in block and "enabled=0x000f" in block]
    return found.split("\n", 1)[1].split("=== rc=")[0]


def shape(text: str) -> list[str]:
    """The text with its numbers blanked."""
    text = re.sub(r"0x[0-9a-f]+", "0xN", text)
    text = re.sub(r"Created memcg at .*", "Created memcg", text)
    return re.sub(r"\d+(\.\d+)?s|(?<=passes:)\d+", "N", text).splitlines()


@pytest.mark.parametrize("mode", ["--live", "--inline"])
@pytest.mark.parametrize(
    ("command", "steps"), [("-l -v 2 -b 16M", LRU_STEPS), ("-v 2 -b 16M", IDLE_STEPS)]
)
def test_access_tracking_prints_what_the_selftest_printed(command, steps, mode):
    done = run("access-tracking", *command.split(), mode)
    assert layout(done.stdout) == steps
    assert shape(done.stdout) == shape(selftest(f"access_tracking_perf_test {command}"))
    assert done.stderr == ""


def test_benchmark_prints_what_the_selftest_printed():
    done = run("access-tracking", "-l", "-p", "-v", "2", "-b", "16M")
    expected = selftest("access_tracking_perf_test -l -p -v 2 -b 16M")
    assert shape(done.stdout) == shape(expected)


@pytest.mark.parametrize(
    "options",
    [
        ["-v", "1", "-b", "8M"],
        ["-v", "2", "-b", "8M", "-o"],
        ["-b", "8M", "-s", "2m"],
        ["-b", "8M", "--format", "npt"],
        ["-b", "8M", "--no-ad"],
        ["-b", "8M", "--protocol", "v9"],
        ["-b", "8M", "--protocol", "baseline"],
        ["-b", "8M", "--tlb", "0"],
        ["-b", "8M", "--capabilities", "0xb"],
        ["-b", "8M", "--mmu", "shadow"],
        ["-b", "8M", "--mmu", "shadow", "--alias", "3", "-v", "2"],
        ["-b", "8M", "--mmu", "shadow", "--protocol", "baseline"],
        ["-b", "8M", "--mmu", "shadow", "--protocol", "v9", "--no-ad"],
        ["-b", "8M", "--mmu", "nested"],
        ["-b", "8M", "--mmu", "nested", "--protocol", "v9", "--l1-no-ad"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("mode", ["--live", "--inline"])
def test_lru_gen_is_verified(options, mode):
    found = result("access-tracking", "-l", *options, mode)
    assert found["verdict"] == "pass"
    assert found["reason"] is None
    assert [step["name"] for step in found["steps"]] == LRU_STEPS
    a, b, c, d, e = found["majority_generations"]
    assert a == b < c == d < e
    assert len(found["generations"]) == 5


@pytest.mark.parametrize("options", [["--capabilities", "0x7"], ["--capabilities", "0x3"]])
@pytest.mark.parametrize("mode", ["--live", "--inline"])
def test_without_the_capability_pages_do_not_get_younger(options, mode):
    done = run("access-tracking", "-l", "-b", "16M", *options, mode, code=1)
    assert layout(done.stdout) == LRU_STEPS[:7]
    assert done.stderr.splitlines()[0] == "==== Test Assertion Failure ===="
    assert done.stderr.splitlines()[-1] == "  pages did not get younger"
    found = result("access-tracking", "-l", "-b", "16M", *options, mode, code=1)
    assert (found["verdict"], found["failed_check"]) == ("fail", 3)
    assert found["reason"] == "pages did not get younger"
    before, _, after = found["majority_generations"]
    assert f"generation {before}, and are in {after}" in found["detail"]


def skipped(mask: str, command: str) -> tuple[list[str], int]:
    """What the selftest printed on a kernel with a mask, and its exit status."""
    blocks = (DATA / "selftest-v7.txt").read_text().split("=== [")
    [found] = [each for each in blocks if f"enabled=0x{int(mask, 16):04x} {command}\n" in each]
    printed, status = found.split("\n", 1)[1].split("=== rc=")
    return printed.splitlines(), int(status.split()[0])


@pytest.mark.parametrize("mask", ["0x0", "0x1", "0x9", "0xd"])
@pytest.mark.parametrize("mode", ["--live", "--inline"])
def test_lru_gen_is_skipped_where_the_selftest_is(mask, mode):
    lines, status = skipped(mask, "access_tracking_perf_test -l -v 1 -b 16M")
    assert lines[-1].startswith("1..0 # SKIP - ")
    assert status == 4
    options = ["-l", "-v", "1", "-b", "16M", "--capabilities", mask, mode]
    done = run("access-tracking", *options, code=4)
    assert done.stdout.splitlines() == lines
    assert done.stderr == ""
    found = result("access-tracking", *options, code=4)
    assert (found["verdict"], found["failed_check"], found["steps"]) == ("skip", None, [])
    assert f"1..0 # SKIP - {found['reason']}" == lines[-1]


def test_the_benchmark_is_skipped_too_and_page_idle_is_not():
    done = run("access-tracking", "-l", "-p", "-b", "8M", "--capabilities", "0xd", code=4)
    assert done.stdout.splitlines()[1:] == ["1..0 # SKIP - lru_gen does not support MM_WALK"]
    run("access-tracking", "-b", "8M", "--capabilities", "0x0")
    against = ["-l", "-p", "-b", "8M", "--against", "baseline", "--capabilities", "0x1"]
    done = run("access-tracking", *against, code=2)
    assert "capabilities: lru_gen does not support MM_WALK" in done.stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--capabilities", "0x7"], "capability 0x8 is off"),
        (["--aging-asks", "none"], "aging asks no secondary MMU"),
        (["--protocol", "baseline", "--capabilities", "0x7"], None),
        ([], None),
    ],
)
def test_the_benchmark_says_that_passes_do_not_ask_the_vm(options, why):
    found = result("access-tracking", "-l", "-p", "-b", "32M", *options)
    if why is None:
        assert found["warnings"] == []
        assert found["counters"]["mm_leaf_total"] == 0 or found["aging"]["asked"] > 0
        return
    warning = f"WARNING: {why}: passes do not ask the VM, and the guest's accesses are not seen."
    assert found["warnings"] == [warning]
    assert found["aging"]["asked"] == 0
    assert warning in run("access-tracking", "-l", "-p", "-b", "8M", *options).stdout.splitlines()


def test_memory_that_fits_the_tlb_seems_to_stay_old():
    found = result("access-tracking", "-l", "-b", "4M", "--tlb", "1536", code=1)
    assert found["reason"] == "pages did not get younger"
    assert found["counters"]["tlb_hits"] > 0
    result("access-tracking", "-l", "-b", "64M", "--tlb", "1536")


@pytest.mark.parametrize(
    "options", [["--mmu", "shadow", "--no-ad"], ["--mmu", "nested", "--l1-no-ad"]], ids=" ".join
)
def test_rmaps_without_ad_bits_stay_young_as_on_a_real_kernel(options):
    done = run("access-tracking", "-l", "-b", "16M", *options, code=1)
    assert layout(done.stdout) == LRU_STEPS[:5]
    real = (DATA / "selftest-v7.txt").read_text().splitlines()[-2]
    assert done.stderr.splitlines()[-1] == real == "  unexpected gen change: 4 vs. 3"
    # The accurate notifier does age them.
    asked = result("access-tracking", "-l", "-b", "8M", *options, "--aging-asks", "accurate")
    assert asked["verdict"] == "pass"


@pytest.mark.parametrize("mode", ["", "-l", "-l -p"], ids=["idle", "lru_gen", "benchmark"])
@pytest.mark.parametrize("protocol", ["baseline", "v7", "v9"])
@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_aliases_lengthen_the_chains_of_reverse_maps(mmu, protocol, mode):
    options = [*mode.split(), "--mmu", mmu, "--protocol", protocol, "-v", "2", "-b", "8M"]
    found = result("access-tracking", *options, "--alias", "3")
    assert found["verdict"] == "pass"
    counters = found["counters"]
    if "-p" not in mode:
        # Each SPTE was met through a chain; populating alone makes one a page.
        assert counters["rmap_sptes"] > 1.5 * counters["rmap_locks"]
        once = result("access-tracking", *options)["counters"]
        assert counters["sptes_aged"] > once["sptes_aged"]


def test_baseline_that_asks_nothing_fails_as_before_the_series():
    arguments = ["-l", "-b", "8M", "--protocol", "baseline", "--aging-asks", "none"]
    found = result("access-tracking", *arguments, code=1)
    assert found["reason"] == "pages did not get younger"
    assert found["parameters"]["protocol"] == "baseline"


def test_inline_runs_repeat():
    arguments = ["access-tracking", "-l", "-b", "4M", "--inline", "--seed", "5"]
    one, two = result(*arguments), result(*arguments)
    for found in (one, two):
        del found["counters"]["mmu_lock_wait_ns"]
        del found["counters"]["lru_lock_wait_ns"]
        for generations in found["generations"]:
            for generation in generations:
                del generation["age_ms"]
    for key in ("generations", "counters", "majority_generations", "parameters"):
        assert one[key] == two[key], key


def test_json_of_the_benchmark():
    # Long enough that an aging thread on a busy machine has its turn.
    found = result("access-tracking", "-l", "-p", "-b", "256M")
    assert found["vcpu_wall_seconds"] > 0
    aging = found["aging"]
    assert aging["passes"] > 0
    assert aging["total_seconds"] == pytest.approx(aging["passes"] * aging["average_seconds"])
    assert found["counters"]["guest_accesses"] == 65536


def test_json_goes_to_a_file_whole(tmp_path):
    path = tmp_path / "out.json"
    done = run("access-tracking", "-l", "-b", "4M", "--json", path)
    assert layout(done.stdout) == LRU_STEPS
    assert json.loads(path.read_text())["verdict"] == "pass"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    run("access-tracking", "-l", "-b", "4M", "--json", tmp_path / "no" / "out.json", code=2)


def test_replay_without_a_tlb_is_exact():
    found = result("replay", "--tlb", "0", "--every", "5000")
    trace = traces.shipped()
    assert found["trace"]["pages"] == trace.nr_pages
    assert len(found["passes"]) == -(-len(trace) // 5000)
    for each in found["passes"]:
        assert each["precision"] == 1.0
        assert each["recall"] == 1.0
        assert each["true_pages"] == each["estimated_pages"] > 0
    assert found["counters"]["guest_accesses"] == len(trace)


def test_replay_with_a_tlb_misses_what_the_tlb_hides():
    found = result("replay", "--every", "5000", "--tlb", "1536")
    assert all(each["precision"] == 1.0 for each in found["passes"])
    assert any(each["recall"] < 0.5 for each in found["passes"])


def test_replay_prints_a_table_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    done = run("replay", "--every", "10000", "--plot", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert len(path.read_bytes()) > 10_000
    assert "precision" in done.stdout
    assert len(done.stdout.splitlines()) == 2 + 7 + 1
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_replay_of_other_formats(tmp_path):
    found = result("replay", DATA / "lackey.txt", "--every", "3", "--tlb", "0")
    assert found["trace"]["pages"] == 6
    path = tmp_path / "t.csv"
    path.write_text("time,page,write\n1,7,0\n2,9,1\n3,7,0\n")
    found = result("replay", path, "--every", "2", "--tlb", "0")
    assert [each["true_pages"] for each in found["passes"]] == [2, 1]
    assert [each["estimated_pages"] for each in found["passes"]] == [2, 1]


def test_info():
    done = run("info")
    assert done.stdout.startswith("youngbit  ")
    found = result("info")
    assert found["cpu"]["count"] >= 1
    assert found["features"]["protocols"] == list(defaults.PROTOCOLS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["access-tracking", "-p"], "-p specified without -l"),
        (["access-tracking", "-l", "-p", "--inline"], "-p is always live"),
        (["access-tracking", "-b", "lots"], "'lots' is not a size"),
        (["access-tracking", "-b", "5000"], "multiple of the backing"),
        (["access-tracking", "-b", "3M", "-s", "2m"], "multiple of the backing"),
        (["access-tracking", "-v", "0"], "not in the range"),
        (["access-tracking", "-v", "1,0"], "not in the range"),
        (["access-tracking", "-v", "1,2"], "several numbers of vCPUs need --against"),
        (["access-tracking", "-l", "--against", "v9"], "compares what -p measures"),
        (["access-tracking", "-l", "-p", "--against", "v7"], "the protocol is v7 already"),
        (["access-tracking", "-s", "8k"], "'8k' is not one of"),
        (["access-tracking", "--protocol", "v8"], "'v8' is not one of"),
        (["access-tracking", "--capabilities", "all"], "'all' is not a number"),
        (["access-tracking", "--seed", "-1"], "negative"),
        (["access-tracking", "--tlb", "1001"], "power of two"),
        (["access-tracking", "--no-ad", "--format", "npt", "-b", "4M"], "EPT"),
        (["access-tracking", "--alias", "2"], "--alias: 2 of a page have no effect with mmu tdp"),
        (
            ["access-tracking", "-l", "-p", "--against", "v9", "--alias", "2"],
            "--alias: 2 of a page",
        ),
        (["access-tracking", "--l1-no-ad"], "--l1-no-ad: off has no effect with mmu tdp"),
        (
            ["access-tracking", "--mmu", "shadow", "--format", "ept", "--l1-no-ad"],
            "expected mmu nested",
        ),
        (
            ["access-tracking", "--mmu", "shadow", "--no-ad", "--alias", "2"],
            "aliases need a guest page table",
        ),
        (["access-tracking", "--frobnicate"], "No such option"),
        (["access-tracking", "extra"], "unexpected extra argument"),
        (["replay", "/nonexistent.npz"], "does not exist"),
        (["replay", "--every", "0"], "not in the range"),
        (["replay", "--plot", "/nonexistent/plot.png"], "no directory"),
        (["replay", "--json", "/"], "is a directory"),
        (["nothing"], "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_usage(arguments, says):
    done = run(*arguments, code=2)
    assert says in done.stderr
    assert done.stdout == ""


def test_a_bad_trace_names_file_and_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("time,page,write\n1,2\n")
    done = run("replay", path, code=2)
    assert done.stderr == (
        f"youngbit: {path}: line 2: found `1,2`, expected two numbers and 0 or 1,"
        " separated by commas, as `1200,5120,1`\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["access-tracking", "-l", "-b", "4G", "--json", "out.json"],
        ["access-tracking", "-l", "-b", "4G", "--inline", "--json", "out.json"],
        ["access-tracking", "-l", "-p", "-b", "16G", "--json", "out.json"],
    ],
    ids=["live", "inline", "benchmark"],
)
def test_ctrl_c_stops_at_once_and_leaves_no_file(arguments, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "youngbit", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # The heading is printed when the machine is there and the run begins.
        for line in process.stdout:
            if line.startswith(("guest physical", "Populating")):
                break
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "youngbit: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_two_protocols_side_by_side():
    arguments = ["access-tracking", "-l", "-p", "-v", "1,2", "-b", "4M", "--repeat", "2"]
    found = result(*arguments, "--protocol", "baseline", "--against", "v7")
    assert (found["schema"], found["schema_version"]) == ("youngbit/contention", 1)
    assert (found["parameters"]["against"], found["parameters"]["populated"]) == ("v7", 0.5)
    assert [point["vcpus"] for point in found["points"]] == [1, 2]
    for point in found["points"]:
        assert list(point["runs"]) == ["baseline", "v7"]
        for runs in point["runs"].values():
            assert len(runs) == 2
        for one, other in zip(*point["runs"].values(), strict=True):
            # What the ratio rests on: one lock for each page asked about, and none.
            assert one["aging_mmu_locks"] == one["asked"]
            assert other["aging_mmu_locks"] == 0
            assert 0 <= one["empty_passes"] <= one["passes"]
        # Half of the guest was there before: a pass comes to all of that half.
        for one in itertools.chain(*point["runs"].values()):
            assert one["asked"] >= one["passes"] * point["vcpus"] * 512
        wall = [[run["vcpu_wall_seconds"] for run in runs] for runs in point["runs"].values()]
        ratios = sorted(one / other for one, other in zip(*wall, strict=True))
        spread = point["ratios"]["vcpu_wall_seconds"]
        assert (spread["least"], spread["greatest"]) == pytest.approx((ratios[0], ratios[1]))


def test_two_protocols_are_printed_with_their_counts():
    done = run(
        *("access-tracking", "-l", "-p", "-b", "4M", "--mmu", "shadow", "--repeat", "1"),
        *("--protocol", "baseline", "--against", "v9"),
    )
    assert "1 vCPUs" in done.stdout
    assert "mmu_lock taken 0 times by aging" in done.stdout.replace("\n            ", " ")
    assert "baseline / v9: vCPU wall time" in done.stdout
