"""Check the claims about lockless code, and that every mutant is caught.

Builds the model checks (`rust/core/tests/loom_protocols.rs`), runs every claim
on the code as it ships, then each mutant against the checks that must catch it,
and prints a table. Exits with 1 if a claim fails or a mutant gets away.

    python3 tools/protocols.py --set quick    at most 2 preemptions a run
    python3 tools/protocols.py                at most 3
    python3 tools/protocols.py --set full     as many as a budget allows
    python3 tools/protocols.py --markdown FILE    write the table there too

A check of a VM runs once for each protocol. A check stops at a number of
interleavings, the same on every machine, and then says so.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import resource
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
    # The protocols in which it is a fault, and one of the checks must catch it;
    # empty where the checks are of something that all protocols share.
    protocols: tuple[str, ...] = ()
    # A cost: (check, count, "mean" or "most", how many times the unmutated).
    cost: tuple[str, str, str, float] | None = None
    # A cost in time: shown by the test `costs`, run natively.
    latency: bool = False


PROTOCOLS = ("baseline", "v7", "v9")
LOCKLESS = ("v7", "v9")


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
        ["tdp::tdp_frozen_stays_frozen", "tdp::tdp_no_mapping_in_a_dead_table"],
        protocols=LOCKLESS,
    ),
    "unaligned-step": Mutant(
        "the lockless walk steps huge pages from an unaligned start",
        ["shadow::shadow_range_across_huge_pages"],
        protocols=LOCKLESS,
    ),
    "plain-leaf-write": Mutant(
        "a present leaf is zapped by a plain store",
        ["tdp::tdp_write_against_zap", "tdp::tdp_fast_page_fault_against_zap"],
        protocols=PROTOCOLS,
    ),
    "ad-off-plain": Mutant(
        "an SPTE without A/D bits is written by a plain store",
        [
            "shadow::shadow_access_is_passed_on_once",
            "tdp::tdp_fast_page_fault_against_access_track",
            "shadow::shadow_fast_page_fault_against_age",
        ],
        protocols=("baseline", "v9"),
    ),
    "cas-retry-forever": Mutant(
        "aging without A/D bits repeats its exchange until it succeeds",
        cost=("tdp::tdp_aging_tries_once::v7", "exchanges in one aging", "most", 2.0),
    ),
    "no-rcu-delay": Mutant(
        "unlinked tables are freed at once",
        [
            "tdp::tdp_slot_deleted_against_age",
            "tdp::tdp_fast_page_fault_against_exit",
            "shadow::shadow_fast_page_fault_against_exit",
        ],
        protocols=PROTOCOLS,
    ),
    "age-by-store": Mutant(
        "the accessed bit is cleared by load, mask, store",
        [
            "tdp::tdp_write_against_age",
            "tdp::tdp_fast_page_fault_against_age",
            "shadow::shadow_write_against_age",
            "nested::nested_l2_write_against_age",
        ],
        protocols=PROTOCOLS,
    ),
    "clear-unseen": Mutant(
        "the accessed bit is cleared where the first look found none, and not reported",
        ["tdp::tdp_read_against_age", "shadow::shadow_read_against_age"],
        protocols=PROTOCOLS,
    ),
    "zap-after-unlink": Mutant(
        "an SPTE leaves its chain before it is zapped",
        ["shadow::shadow_unlinked_spte_is_dead"],
        protocols=PROTOCOLS,
    ),
    "publish-before-init": Mutant(
        "a descriptor is linked before it is written",
        ["rmap::rmap_add_second", "rmap::rmap_add_beyond_two_descriptors"],
    ),
    "no-srcu-wait": Mutant(
        "a memslot set is edited while readers may be in it",
        [
            "tdp::tdp_slot_deleted_against_age",
            "tdp::tdp_slot_moved_against_age",
            "shadow::shadow_slot_deleted_against_age",
            "nested::nested_slot_deleted_against_age",
        ],
        protocols=PROTOCOLS,
    ),
    "seq-after-count": Mutant(
        "an invalidation lowers the count before it moves the sequence",
        ["tdp::invalidation_is_seen_without_mmu_lock"],
        protocols=PROTOCOLS,
    ),
    "no-unregister-wait": Mutant(
        "unregistering a notifier does not wait for calls under way",
        ["notifier::notifier_unregister_waits_for_callbacks"],
    ),
    "no-seq-check": Mutant(
        "a fault does not look at the invalidation sequence again",
        [
            "tdp::tdp_fault_against_munmap",
            "shadow::shadow_fault_against_munmap",
            "nested::nested_l2_fault_against_munmap",
        ],
        protocols=PROTOCOLS,
    ),
    "fault-by-store": Mutant(
        "a fault sets its SPTE by a plain store",
        ["tdp::tdp_fault_against_fault"],
        protocols=PROTOCOLS,
    ),
    "age-non-present": Mutant(
        "aging clears accessed bits of entries that are not present",
        ["tdp::spte_aging_leaves_non_present_alone"],
    ),
    "restore-writable": Mutant(
        "a read gives Writable back to an access-tracked SPTE",
        ["tdp::tdp_read_restores_only_r_and_x"],
        protocols=PROTOCOLS,
    ),
    "zap-drops-dirty": Mutant(
        "a zap does not pass Dirty on",
        [
            "tdp::tdp_write_against_zap",
            "shadow::shadow_write_against_zap",
            "nested::nested_l2_write_against_zap",
        ],
        protocols=PROTOCOLS,
    ),
    "free-by-loser": Mutant(
        "two threads that put a root both find that they were the last",
        ["tdp::tdp_destroyed_under_a_vcpu"],
        protocols=PROTOCOLS,
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
    # Bound of preemptions ("any" is none), interleavings, whether it ended.
    bounds: list[tuple[str, int, bool]] = field(default_factory=list)
    counts: dict[str, tuple[float, float]] = field(default_factory=dict)
    failure: str = ""
    at: str = ""
    steps: list[str] = field(default_factory=list)
    seconds: float = 0.0
    output: str = ""


def run(program: str, check: str, mutant: str, chosen: str, timeout: float) -> Run:
    """Run one check in a process of its own, with a mutant or none, and read what it reports."""
    environment = dict(os.environ, YOUNGBIT_MUTANT=mutant, YOUNGBIT_SET=chosen)
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
    if chosen != "quick":
        # A long run is seen to be alive.
        print(f"{result.seconds:7.1f} s  {check} {mutant}", file=sys.stderr, flush=True)
    if status == -1:
        result.failure = f"no end after {timeout:.0f} s"
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(" | ")]
        if line.startswith("CLAIM "):
            result.claim = parts[1]
        elif line.startswith(("CHECKED ", "STOPPED ")):
            ended = line.startswith("CHECKED ")
            result.bounds.append((parts[1].split()[1], int(parts[2].split()[0]), ended))
        elif line.startswith("COUNT "):
            runs = result.bounds[-1][1] if result.bounds else 1
            most, total = int(parts[3].split()[1]), int(parts[4].split()[1])
            result.counts[parts[2]] = (most, total / runs)
        elif line.startswith("FAILED "):
            result.at = f"preemptions: {parts[1].split()[1]}, interleaving {parts[2].split()[1]}"
            result.failure = re.sub(r"\s+", " ", " | ".join(parts[3:])).rstrip(" /")
        elif line.startswith("STEP "):
            result.steps.append(line[5:].rstrip())
    return result


def latencies(program: str, mutant: str) -> dict[str, int]:
    """The middle of five runs, by the slowest hundredth, with what all of them met."""
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
    sums = {name: sum(one[name] for one in found) for name in ("zaps", "met")}
    return next(one for one in found if one["p99_ns"] == middle) | sums


def base(check: str) -> str:
    """Give the name of a check without its protocol."""
    return check.rsplit("::", 1)[0] if check.endswith(tuple(f"::{p}" for p in PROTOCOLS)) else check


def protocol(check: str) -> str:
    """Give the protocol that a check runs on, or nothing."""
    return check.removeprefix(base(check)).removeprefix("::")


def reached(one: Run) -> str:
    """Say how far a check went."""
    if not one.bounds:
        return "nothing"
    bound, runs, ended = one.bounds[-1]
    limit = "any preemptions" if bound == "any" else f"<= {bound}"
    if ended:
        return f"{runs:,} ({limit})"
    whole = [b for b, _, done in one.bounds if done]
    before = f"all with <= {whole[-1]}" if whole else "none"
    return f"stopped at {runs:,} ({limit}); {before}"


def claims_table(plain: list[Run]) -> tuple[list[str], int]:
    """Tabulate the checks of the code as it ships; the lines, and how many are wrong."""
    lines = [
        "| claim | check | protocol | interleavings (preemptions) | |",
        "|---|---|---|---|---|",
    ]
    wrong = 0
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for one in sorted(plain, key=lambda one: (one.check.split("::")[0], one.claim, one.check)):
        verdict = "holds" if one.status == 0 else f"**FAILS**: {one.failure}"
        if one.status == 0 and one.bounds[-1][1] == 1:
            verdict = "**NOTHING INTERLEAVED**"
        if verdict != "holds":
            wrong += 1
            print("\n".join([f"WRONG: {one.check}: {verdict}", *one.steps[-60:]]))
            if one.status != 0 and not one.failure:
                print(one.output[-3000:])
        same = (one.claim, base(one.check), reached(one), verdict)
        rows.setdefault(same, []).append(protocol(one.check))
    for (claim, check, far, verdict), protocols in rows.items():
        lines.append(f"| {claim} | `{check}` | {', '.join(protocols)} | {far} | {verdict} |")
    return lines, wrong


def names_in_source() -> set[str]:
    """Give the names of the mutants that the core knows."""
    text = (ROOT / "rust/core/src/mutant.rs").read_text()
    return set(re.findall(r'=> "([a-z-]+)"', text))


def main() -> int:
    """Run every claim and every mutant; 1 if a claim fails or a mutant gets away."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", choices=("quick", "usual", "full"), default="usual")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=60, help="last steps to print of a catch")
    parser.add_argument("--only", default="", help="only checks and mutants named like this")
    options = parser.parse_args()
    begin = time.monotonic()
    timeout = 3600.0 if options.set == "full" else 900.0

    if missing := names_in_source() ^ MUTANTS.keys():
        sys.exit(f"mutants in only one of mutant.rs and protocols.py: {sorted(missing)}")
    models = cargo(["--profile", "loom", "--test", "loom_protocols"], "target/loom", "--cfg loom")
    costs = cargo(["--release", "--test", "costs"], "target", "")
    listed = subprocess.run([models[0], "--list"], stdout=subprocess.PIPE, text=True, check=True)
    checks = re.findall(r"^(\S+): test$", listed.stdout, re.M)
    built = time.monotonic()
    unknown = {check for m in MUTANTS.values() for check in m.checks} - {base(c) for c in checks}
    if unknown:
        sys.exit(f"no such check: {sorted(unknown)}")
    mutants = {n: m for n, m in MUTANTS.items() if options.only in n or not options.only}
    variants = {name: [c for c in checks if base(c) == name] for name in map(base, checks)}

    pool = concurrent.futures.ThreadPoolExecutor(options.jobs)
    chosen = [c for c in checks if options.only in c]
    plain = list(pool.map(lambda c: run(models[0], c, "", options.set, timeout), chosen))
    by_check = {one.check: one for one in plain}
    claims, wrong = claims_table(plain)

    jobs = []
    for name, mutant in mutants.items():
        for check in mutant.checks:
            jobs += [(name, c) for c in variants[check]]
        if mutant.cost:
            jobs.append((name, mutant.cost[0]))
    # A mutant is caught by few preemptions, and where it is no fault more would
    # only take long.
    caught = list(pool.map(lambda job: run(models[0], job[1], job[0], "quick", timeout), jobs))
    rows = ["| mutant | what it does | caught by | how |", "|---|---|---|---|"]
    traces: list[str] = []
    for name, mutant in mutants.items():
        mine = [one for job, one in zip(jobs, caught, strict=True) if job[0] == name]
        if mutant.cost:
            check, count, kind, factor = mutant.cost
            place = 0 if kind == "most" else 1
            whole = by_check.get(check) or run(models[0], check, "", "quick", timeout)
            before, after = whole.counts[count][place], mine[0].counts[count][place]
            shown = after >= before * factor
            how = f"{count}, {kind}: {after:.2f} for {before:.2f}"
            how += "" if shown else " **NOT SHOWN**"
            rows.append(f"| `{name}` | {mutant.what} | `{check}` (a cost) | {how} |")
            wrong += not shown
            continue
        if mutant.latency:
            quiet, loud = latencies(costs[0], ""), latencies(costs[0], name)
            # Not by the times: a busy machine makes them what it likes.
            shown = loud["met"] > 0 == quiet["met"]
            how = (
                f"{loud['met']} of {loud['zaps']} zaps met a holder without a processor, for"
                f" {quiet['met']} of {quiet['zaps']}; slowest hundredth:"
                f" {loud['p99_ns'] / 1e3:,.1f} us for {quiet['p99_ns'] / 1e3:,.1f} us, longest:"
                f" {loud['max_ns'] / 1e3:,.0f} us for {quiet['max_ns'] / 1e3:,.0f} us"
            )
            how += "" if shown else " **NOT SHOWN**"
            rows.append(f"| `{name}` | {mutant.what} | `costs` (a cost) | {how} |")
            wrong += not shown
            continue
        for one in mine:
            if one.status == -1 or (one.status != 0 and not one.failure):
                wrong += 1
                print(f"BROKEN: {name} by {one.check}: {one.failure or one.output[-2000:]}")
        caught_by = [one for one in mine if one.status not in {0, -1} and one.failure]
        seen_in = {protocol(one.check) for one in caught_by}
        # Each check, and each protocol in which it is a fault.
        missed = set(mutant.checks) - {base(one.check) for one in caught_by}
        missed |= set(mutant.protocols) - seen_in
        if missed:
            wrong += 1
            print(f"NOT CAUGHT: {name} by {sorted(missed)}")
        if unexpected := {p for p in seen_in if p} - set(mutant.protocols):
            wrong += 1
            print(f"CAUGHT: {name} in {sorted(unexpected)}, where it is said to be no fault")
        if not caught_by:
            rows.append(f"| `{name}` | {mutant.what} | | **NOT CAUGHT** |")
            continue
        first = caught_by[0]
        also = dict.fromkeys(base(one.check) for one in caught_by)
        where = f" in {', '.join(p for p in PROTOCOLS if p in seen_in)}" if mutant.protocols else ""
        by = ", ".join(f"`{check}`" for check in also)
        how = f"{first.failure} ({first.at}; {protocol(first.check) or 'all protocols'})"
        rows.append(f"| `{name}` | {mutant.what} | {by}{where} | {how} |")
        traces.append(f"#### `{name}`: {first.failure}")
        shown_steps = first.steps[-options.steps :] if options.steps else []
        cut = ["..."] if len(first.steps) > len(shown_steps) else []
        traces.append("\n".join(["```", *cut, *shown_steps, "```"]))

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = sum(runs for one in plain for _, runs, _ in one.bounds)
    stopped = sum(not ended for one in plain for _, _, ended in one.bounds)
    summary = (
        f"{len(plain)} checks of {len({one.claim for one in plain})} claims, "
        f"{total:,} interleavings, {stopped} stopped at a budget; "
        f"{len(mutants)} mutants; {wrong} wrong; "
        f"{time.monotonic() - built:.0f} s after {built - begin:.0f} s of building, "
        f"{used.ru_utime + used.ru_stime:.0f} s of processor time in all"
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
