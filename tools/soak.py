"""Torture machines for an hour, and write down what was found.

Slices of every MMU and protocol in turn, each begun with a seed of its own,
which is drawn from the run's. Each slice is a line of out/soak.jsonl as soon as
it is over; the lines add up to docs/soak.md. A run that was interrupted goes on
with --resume, and two that share the file share the hour.

    python3 tools/soak.py                      an hour: 20 minutes for each MMU
    python3 tools/soak.py --minutes 3          3 minutes in all
    python3 tools/soak.py --resume             what is left of an interrupted run
    python3 tools/soak.py --under "nice -n 19" run each slice under a command
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent
MMUS = ("tdp", "shadow", "nested")
PROTOCOLS = ("baseline", "v7", "v9")
#: Accesses of a vCPU in a round, so that a round takes about a second: a guest
#: with page tables of its own that are rewritten makes far fewer.
ACCESSES = {"tdp": 4_000_000, "shadow": 200_000, "nested": 300_000}
SHOWN = (
    "kvm_page_faults",
    "fast_page_faults",
    "sptes_aged",
    "sptes_zapped",
    "shadow_pages_recycled",
    "pswpout",
    "pswpin",
    "poison_reads",
)


def slice_of(mmu: str, protocol: str, seconds: float, seed: int, under: list[str]) -> dict:
    """Run one slice; what it printed."""
    command = [*under, sys.executable, "-m", "youngbit", "mmu-stress", "--json", "-"]
    command += ["--mmu", mmu, "--protocol", protocol, "--seconds", str(seconds)]
    command += ["--seed", str(seed), "--accesses", str(ACCESSES[mmu])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        sys.exit(f"{shlex.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout)


def read(kept: Path) -> list[dict]:
    """The slices that are over."""
    return [json.loads(line) for line in kept.read_text().splitlines()]


def table(slices: list[dict]) -> list[str]:
    """Sums for each MMU."""
    sums: dict[str, Counter[str]] = {mmu: Counter() for mmu in MMUS}
    for one in slices:
        into = sums[one["mmu"]]
        into["seconds"] += one["seconds"]
        into["rounds (machines)"] += one["rounds"]
        into["guest accesses"] += one["accesses"]
        into["failures"] += one["failure"] is not None
        into.update(one["deeds"])
        into.update({name: one["counters"][name] for name in SHOWN})
    lines = ["| | " + " | ".join(MMUS) + " | all |", "|---|" + "---:|" * (len(MMUS) + 1)]
    for name in next(iter(sums.values())):
        row = [sums[mmu][name] for mmu in MMUS]
        cells = " | ".join(f"{n:,.0f}" for n in [*row, sum(row)])
        lines.append(f"| {name.replace('_', ' ')} | {cells} |")
    return lines


def found(slices: list[dict], minutes: float) -> str:
    """One line: what was found, and whether the run came to its end."""
    failed = sum(one["failure"] is not None for one in slices)
    text = "nothing" if not failed else f"{failed} failures"
    seconds = sum(one["seconds"] for one in slices)
    if seconds < minutes * 60:
        text += f"; the run was ended at {seconds / 60:.1f} of its {minutes:g} minutes"
    return text


def sources() -> str:
    """The commit of the sources, if they are a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def report(slices: list[dict], minutes: float) -> str:
    """The page that is kept."""
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(one["run"] for one in slices))
    seconds = sum(one["seconds"] for one in slices)
    accesses = sum(one["accesses"] for one in slices)
    failed = [one for one in slices if one["failure"] is not None]
    date = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    lines = [
        "# The last soak",
        "",
        "`make soak` tortures machines of every MMU and protocol (`youngbit mmu-stress`), and",
        "writes this page. Each row is a sum over all machines; what is checked of each is in the",
        "documentation of `rust/core/src/stress/`.",
        "",
        f"* date: {date}",
        f"* sources: {sources()}",
        f"* seed: {seeds}",
        f"* machine: {os.cpu_count()} cores, {platform.machine()}",
        f"* torture: {seconds / 60:.1f} minutes in {len(slices)} slices",
        f"* guest accesses: {accesses:,}",
        f"* found: {found(slices, minutes)}",
        "",
        *table(slices),
        "",
    ]
    for one in failed:
        failure = one["failure"]
        lines += [f"* {failure['what']}; {failure['machine']}; `{failure['repeat']}`"]
    if failed:
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Run all slices; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="in all")
    parser.add_argument("--slice", type=float, default=20.0, help="seconds of one slice")
    parser.add_argument("--seed", type=int, default=None, help="otherwise a fresh one")
    parser.add_argument("--under", type=shlex.split, default=[], help="run slices under this")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--kept", type=Path, default=ROOT / "out/soak.jsonl")
    parser.add_argument("--write", type=Path, default=ROOT / "docs/soak.md")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}", flush=True)
    dice = Random(seed)
    options.kept.parent.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        options.kept.write_text("")
    options.kept.touch()
    slices = read(options.kept)
    try:
        turns = itertools.cycle(itertools.product(PROTOCOLS, MMUS))
        for protocol, mmu in itertools.islice(turns, len(slices), None):
            if sum(one["seconds"] for one in slices) >= options.minutes * 60:
                break
            start = dice.getrandbits(63)
            one = slice_of(mmu, protocol, options.slice, start, options.under)
            with options.kept.open("a") as kept:
                kept.write(json.dumps({"run": seed, **one}) + "\n")
            slices = read(options.kept)
            print(
                f"{mmu} {protocol} seed {start}: {one['rounds']} rounds,"
                f" {one['accesses']:,} accesses: {one['failure'] or 'nothing lost'}",
                flush=True,
            )
            # After each slice: an interrupted run leaves what it has.
            whole = options.write.with_suffix(f".{os.getpid()}.part")
            whole.write_text(report(slices, options.minutes))
            whole.replace(options.write)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 1 if any(one["failure"] is not None for one in slices) else 0


if __name__ == "__main__":
    sys.exit(main())
