"""Check the claims about lockless code, and that every mutant is caught.

Builds the model checks (`rust/core/tests/loom_protocols.rs`), runs every claim
on the code as it ships, then each mutant against the checks that must catch it,
and prints a table. Exits with 1 if a claim fails or a mutant gets away.

    python3 tools/protocols.py            the reduced set
    python3 tools/protocols.py --full     more preemptions per run
    python3 tools/protocols.py --markdown FILE    write the table there too
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Mutant:
    """What must catch a mutant: the first check is the one that is reported."""

    what: str
    checks: list[str] = field(default_factory=list)
    # A cost: (check, count, "mean" or "most", how many times the unmutated).
    cost: tuple[str, str, str, float] | None = None
    # A cost in time: shown by the test `costs`, run natively.
    latency: bool = False
    # Needs the bounds of the full set.
    full: bool = False


MUTANTS = {
    "unlock-relaxed": Mutant(
        "the read-only unlock of a chain is a relaxed store",
        ["rmap::rmap_remove_from_the_tail_empties_the_head", "rmap::rmap_zap_all"],
    ),
    "reread-head": Mutant(
        "the walk looks again at a head that was empty, and so not held",
        ["rmap::rmap_filled_and_emptied_again"],
    ),
    "pause-after-read": Mutant(
        "a waiter for a chain looks before it pauses",
        cost=("rmap::rmap_waiting_costs", "rmap_spins", "mean", 1.2),
    ),
    "preempt-on": Mutant("the holder of a chain can lose its processor", latency=True),
    "thaw-frozen": Mutant(
        "FROZEN contains the accessed bit",
        ["tdp::tdp_frozen_stays_frozen"],
    ),
    "unaligned-step": Mutant(
        "the lockless walk steps huge pages from an unaligned start",
        ["shadow::shadow_range_across_huge_pages"],
    ),
    "plain-leaf-write": Mutant(
        "a present leaf is zapped by a plain store",
        ["tdp::tdp_write_against_zap", "tdp::tdp_fast_page_fault_against_zap"],
    ),
    "ad-off-plain": Mutant(
        "an SPTE without A/D bits is written by a plain store",
        [
            "tdp::tdp_fast_page_fault_against_locked_age",
            "shadow::shadow_access_is_passed_on_once",
        ],
    ),
    "cas-retry-forever": Mutant(
        "aging without A/D bits repeats its exchange until it succeeds",
        cost=("tdp::tdp_aging_tries_once", "exchanges in one aging", "most", 2.0),
    ),
    "no-rcu-delay": Mutant(
        "unlinked tables are freed at once", ["tdp::tdp_slot_deleted_against_age"]
    ),
    "age-by-store": Mutant(
        "the accessed bit is cleared by load, mask, store",
        [
            "tdp::tdp_write_against_age",
            "tdp::tdp_fast_page_fault_against_age",
            "shadow::shadow_write_against_age",
        ],
    ),
    "zap-after-unlink": Mutant(
        "an SPTE leaves its chain before it is zapped",
        ["shadow::shadow_unlinked_spte_is_dead"],
    ),
    "publish-before-init": Mutant(
        "a descriptor is linked before it is written", ["rmap::rmap_add_second"]
    ),
    "no-srcu-wait": Mutant(
        "a memslot set is edited while readers may be in it",
        ["tdp::tdp_slot_deleted_against_age"],
    ),
    "seq-after-count": Mutant(
        "an invalidation lowers the count before it moves the sequence",
        ["tdp::invalidation_is_seen_without_mmu_lock"],
    ),
    "no-unregister-wait": Mutant(
        "unregistering a notifier does not wait for calls under way",
        ["notifier::notifier_unregister_waits_for_callbacks"],
    ),
    "no-seq-check": Mutant(
        "a fault does not look at the invalidation sequence again",
        ["tdp::tdp_fault_against_munmap"],
    ),
    "fault-by-store": Mutant(
        "a fault sets its SPTE by a plain store", ["tdp::tdp_fault_against_fault"]
    ),
    "age-non-present": Mutant(
        "aging clears accessed bits of entries that are not present",
        ["tdp::spte_aging_leaves_non_present_alone"],
    ),
    "restore-writable": Mutant(
        "a read gives Writable back to an access-tracked SPTE",
        ["tdp::tdp_read_restores_only_r_and_x"],
    ),
    "zap-drops-dirty": Mutant("a zap does not pass Dirty on", ["tdp::tdp_write_against_zap"]),
    "free-by-loser": Mutant(
        "two threads that put a root both find that they were the last",
        ["tdp::tdp_destroyed_under_a_vcpu"],
    ),
    "promote-isolated": Mutant(
        "a walker gives an isolated folio a generation",
        ["lru::lru_promotion_against_isolation"],
    ),
    "double-increment": Mutant(
        "two agers of one sequence both make a generation",
        ["lru::lru_one_generation_per_sequence"],
    ),
    "max-seq-relaxed": Mutant(
        "a new generation's number is a relaxed store",
        ["lru::lru_new_generation_is_seen_whole"],
    ),
}


def cargo(arguments: list[str], target: str, flags: str) -> list[str]:
    """Build tests; the executables."""
    environment = dict(os.environ, RUSTFLAGS=flags, CARGO_TARGET_DIR=str(ROOT / target))
    command = ["cargo", "test", "--locked", "-p", "youngbit-core", "--no-run"]
    command += ["--features", "mutants", "--message-format=json-render-diagnostics", *arguments]
    built = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if built.returncode != 0:
        sys.exit("the checks do not build")
    found = []
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message.get("executable"):
            found.append(message["executable"])
    return found


@dataclass
class Run:
    """One check, run once."""

    check: str
    status: int
    claim: str = ""
    bounds: list[tuple[int, int]] = field(default_factory=list)
    counts: dict[str, tuple[float, float]] = field(default_factory=dict)
    failure: str = ""
    at: str = ""
    steps: list[str] = field(default_factory=list)
    seconds: float = 0.0
    output: str = ""


def run(program: str, check: str, mutant: str, full: bool, timeout: float) -> Run:
    """Run one check in a process of its own, with a mutant or none, and read what it reports."""
    environment = dict(os.environ, YOUNGBIT_MUTANT=mutant)
    environment.pop("YOUNGBIT_FULL", None)
    if full:
        environment["YOUNGBIT_FULL"] = "1"
    begin = time.monotonic()
    try:
        done = subprocess.run(
            [program, "--exact", check, "--nocapture"],
            cwd=ROOT / "rust/core",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
        status, text = done.returncode, done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as late:
        status, text = -1, (late.stdout or b"").decode(errors="replace")
    result = Run(check, status, seconds=time.monotonic() - begin, output=text)
    if status == -1:
        result.failure = f"no end after {timeout:.0f} s"
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(" | ")]
        if line.startswith("CLAIM "):
            result.claim = parts[1]
        elif line.startswith("CHECKED "):
            bound = int(parts[1].split()[1])
            result.bounds.append((bound, int(parts[2].split()[0])))
        elif line.startswith("COUNT "):
            runs = result.bounds[-1][1] if result.bounds else 1
            most, total = int(parts[3].split()[1]), int(parts[4].split()[1])
            result.counts[parts[2]] = (most, total / runs)
        elif line.startswith("FAILED "):
            result.at = f"bound {parts[1].split()[1]}, interleaving {parts[2].split()[1]}"
            result.failure = re.sub(r"\s+", " ", " | ".join(parts[3:])).rstrip(" /")
        elif line.startswith("STEP "):
            result.steps.append(line[5:].rstrip())
    return result


def latencies(program: str, mutant: str) -> dict[str, int]:
    """The middle of five runs, by the slowest hundredth."""
    found = []
    for _ in range(5):
        done = subprocess.run(
            [program, "--nocapture"],
            cwd=ROOT / "rust/core",
            env=dict(os.environ, YOUNGBIT_MUTANT=mutant),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith("LATENCY"))
        found.append({part.split()[0]: int(part.split()[1]) for part in line.split(" | ")[1:]})
    middle = statistics.median_low([one["p99_ns"] for one in found])
    return next(one for one in found if one["p99_ns"] == middle)


def names_in_source() -> set[str]:
    """Give the names of the mutants that the core knows."""
    text = (ROOT / "rust/core/src/mutant.rs").read_text()
    return set(re.findall(r'=> "([a-z-]+)"', text))


def main() -> int:
    """Run every claim and every mutant; 1 if a claim fails or a mutant gets away."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="more preemptions per run")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=12, help="last steps to print of a catch")
    options = parser.parse_args()
    begin = time.monotonic()
    timeout = 1200.0 if options.full else 300.0

    if missing := names_in_source() ^ MUTANTS.keys():
        sys.exit(f"mutants in only one of mutant.rs and protocols.py: {sorted(missing)}")
    models = cargo(["--profile", "loom", "--test", "loom_protocols"], "target/loom", "--cfg loom")
    costs = cargo(["--release", "--test", "costs"], "target", "")
    listed = subprocess.run([models[0], "--list"], stdout=subprocess.PIPE, text=True, check=True)
    checks = re.findall(r"^(\S+): test$", listed.stdout, re.M)
    built = time.monotonic()
    unknown = {check for m in MUTANTS.values() for check in m.checks} - set(checks)
    if unknown:
        sys.exit(f"no such check: {sorted(unknown)}")

    wrong = 0
    pool = concurrent.futures.ThreadPoolExecutor(options.jobs)
    plain = list(pool.map(lambda c: run(models[0], c, "", options.full, timeout), checks))
    by_check = {one.check: one for one in plain}
    lines = ["| claim | check | interleavings (preemptions) | |", "|---|---|---|---|"]
    for one in sorted(plain, key=lambda one: (one.check.split("::")[0], one.claim)):
        bounds = ", ".join(f"{runs:,} ({bound})" for bound, runs in one.bounds)
        single = all(runs == 1 for _, runs in one.bounds)
        verdict = "holds" if one.status == 0 else f"**FAILS**: {one.failure}"
        bounds = "one thread" if single and one.bounds else bounds
        lines.append(f"| {one.claim} | `{one.check}` | {bounds} | {verdict} |")
        if one.status != 0:
            wrong += 1
            print("\n".join([f"FAILED: {one.check}: {one.failure}", *one.steps[-40:]]))
            if not one.failure:
                print(one.output[-3000:])
    claims = lines

    jobs = []
    for name, mutant in MUTANTS.items():
        for check in mutant.checks + ([mutant.cost[0]] if mutant.cost else []):
            jobs.append((name, check))
    caught = list(
        pool.map(
            lambda job: run(
                models[0], job[1], job[0], options.full or MUTANTS[job[0]].full, timeout
            ),
            jobs,
        )
    )
    rows = ["| mutant | what it does | caught by | how |", "|---|---|---|---|"]
    traces: list[str] = []
    for name, mutant in MUTANTS.items():
        mine = [one for job, one in zip(jobs, caught, strict=True) if job[0] == name]
        if mutant.cost:
            check, count, kind, factor = mutant.cost
            place = 0 if kind == "most" else 1
            before, after = by_check[check].counts[count][place], mine[0].counts[count][place]
            shown = after >= before * factor
            how = f"{count}, {kind}: {after:.2f} for {before:.2f}"
            how += "" if shown else " **NOT SHOWN**"
            rows.append(f"| `{name}` | {mutant.what} | `{check}` (a cost) | {how} |")
            wrong += not shown
            continue
        if mutant.latency:
            # A machine that is busy with other things can hide a cost, and
            # cannot make one again and again.
            for _ in range(3):
                quiet, loud = latencies(costs[0], ""), latencies(costs[0], name)
                shown = loud["p99_ns"] >= max(3 * quiet["p99_ns"], 500_000)
                if shown:
                    break
            how = (
                f"slowest hundredth of zaps: {loud['p99_ns'] / 1e3:,.0f} us "
                f"for {quiet['p99_ns'] / 1e3:,.1f} us"
            )
            how += "" if shown else " **NOT SHOWN**"
            rows.append(f"| `{name}` | {mutant.what} | `costs` (a cost) | {how} |")
            wrong += not shown
            continue
        escaped = [one for one in mine if one.status == 0 or not one.failure or one.status == -1]
        for one in escaped:
            wrong += 1
            print(f"NOT CAUGHT: {name} by {one.check} {one.failure}")
        first = mine[0]
        others = "".join(f", `{one.check}`" for one in mine[1:])
        how = f"{first.failure} ({first.at})" if not escaped else "**NOT CAUGHT**"
        rows.append(f"| `{name}` | {mutant.what} | `{first.check}`{others} | {how} |")
        traces.append(f"#### `{name}`: {first.failure}")
        shown_steps = first.steps[-options.steps :] if options.steps else []
        cut = ["..."] if len(first.steps) > len(shown_steps) else []
        traces.append("\n".join(["```", *cut, *shown_steps, "```"]))

    total = sum(runs for one in plain for _, runs in one.bounds)
    summary = (
        f"{len(plain)} checks of {len({one.claim for one in plain})} claims, "
        f"{total:,} interleavings; {len(MUTANTS)} mutants; {wrong} wrong; "
        f"{time.monotonic() - built:.0f} s after {built - begin:.0f} s of building"
    )
    text = "\n".join(["### Claims", "", *claims, "", "### Mutants", "", *rows, "", *traces, ""])
    print(text)
    print(summary)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text + "\n" + summary + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
