"""Compare two revisions: build both, run them in turn, pair what they measured.

    python tools/bench_compare.py REV [--with REV] [--rounds N] [--all] [SUITE ...]

REV is built in a worktree of its own below ``out/compare``, and stands against
the sources as they are here, or against another revision. Each round runs the
one, then the other (A B A B), so that what else the machine does falls on both.
A figure is said to have changed when every round agrees and the median ratio is
off by more than a share that two builds of one source show too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out" / "compare"
PROGRAM = "youngbit-suites"
#: Code that is laid out otherwise runs this much faster or slower by itself.
THRESHOLD = 0.05

Key = tuple[str, str, str, str]


class Failed(Exception):
    """What the user is told."""


def output(*command: str, cwd: Path = ROOT) -> str:
    """Run a command; return what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def build(source: Path, target: Path) -> Path:
    """Build the suites of a source tree, optimised; return the program."""
    if not (source / "benches" / "core" / "Cargo.toml").exists():
        raise Failed(f"{source}: this revision has no benches/core to build")
    command = ["cargo", "build", "--release", "--locked", "-p", "youngbit-benches"]
    command += ["--target-dir", str(target)]
    if subprocess.run(command, cwd=source, check=False).returncode != 0:
        raise Failed(f"{source}: does not build")
    return target / "release" / PROGRAM


def build_revision(revision: str) -> tuple[str, Path]:
    """Build a revision in a worktree of its own, once; return its name and the program."""
    commit = output("git", "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    name = commit[:12]
    program = OUT / f"{PROGRAM}-{name}"
    if not program.exists():
        tree = OUT / name
        output("git", "worktree", "prune")
        if not tree.exists():
            tree.parent.mkdir(parents=True, exist_ok=True)
            output("git", "worktree", "add", "--detach", str(tree), commit)
        try:
            # One target directory for all: what they depend on is built once.
            shutil.copy2(build(tree, OUT / "target"), program)
        finally:
            output("git", "worktree", "remove", "--force", str(tree))
    return name, program


def build_here() -> tuple[str, Path]:
    """Build the sources as they are; return a name and a copy of the program."""
    program = OUT / f"{PROGRAM}-here"
    OUT.mkdir(parents=True, exist_ok=True)
    # A copy, for a build meanwhile must not change what is compared.
    shutil.copy2(build(ROOT, ROOT / "target"), program)
    return "here", program


def rows(command: Sequence[str]) -> dict[Key, dict[str, Any]]:
    """Run a program once; return its figures that have a better and a worse."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: exit status {done.returncode}")
    found = {}
    for line in done.stdout.splitlines():
        row = json.loads(line)
        if row["metric"]["less_is_better"] is not None:
            key = row["suite"], row["case"], row["contestant"], row["metric"]["name"]
            found[key] = row
    return found


@dataclass
class Pair:
    """One figure of both."""

    key: Key
    unit: str
    less_is_better: bool
    before: list[float]
    after: list[float]

    @property
    def ratios(self) -> list[float]:
        """After over before, round by round; more than 1 is worse."""
        pairs = [(b, a) for b, a in zip(self.before, self.after, strict=True) if a > 0 and b > 0]
        return [a / b if self.less_is_better else b / a for b, a in pairs]

    @property
    def verdict(self) -> str:
        """`slower`, `faster`, or nothing where rounds disagree or little changed."""
        ratios = self.ratios
        if len(ratios) < 3 or abs(median(ratios) - 1) <= THRESHOLD:
            return ""
        if min(ratios) > 1:
            return "slower"
        return "faster" if max(ratios) < 1 else ""


def measure(
    before: Sequence[str],
    after: Sequence[str],
    rounds: int,
    told: Callable[[str], None] = lambda _: None,
) -> Iterator[list[Pair]]:
    """Run both in turn; yield all pairs so far after each round."""
    pairs: dict[Key, Pair] = {}
    for number in range(rounds):
        told(f"round {number + 1} of {rounds}")
        # One after the other, each round: never all of one, then all of the other.
        first, second = rows(before), rows(after)
        for key in first.keys() & second.keys():
            row = second[key]
            metric = row["metric"]
            pair = pairs.setdefault(
                key, Pair(key, metric["unit"], metric["less_is_better"], [], [])
            )
            pair.before.append(first[key]["median"])
            pair.after.append(row["median"])
        order = [key for key in second if key in pairs]
        whole = [pairs[key] for key in order if len(pairs[key].after) == number + 1]
        yield whole


def table(pairs: list[Pair], names: tuple[str, str], everything: bool) -> list[str]:
    """Lines to read: what changed, or everything."""
    shown = [pair for pair in pairs if everything or pair.verdict]
    lines = [
        f"{len(pairs)} figures in both; {len(shown)} shown."
        f" Ratios are {names[1]} / {names[0]}, turned round for rates: more than 1 is worse."
    ]
    if not shown:
        lines.append("No figure changed in every round.")
        return lines
    lines.append(f"{names[0]:>12} {names[1]:>12}  {'ratio (least-most)':<22} ")
    for pair in sorted(shown, key=lambda pair: -median(pair.ratios or [1.0])):
        ratios = pair.ratios or [float("nan")]
        spread = f"{median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        suite, case, contestant, metric = pair.key
        lines.append(
            f"{median(pair.before):>12.4g} {median(pair.after):>12.4g}  {spread:<22}"
            f" {pair.verdict:<6} {suite}: {case}: {contestant}: {metric}"
            f"{'' if pair.unit == '1' else f', {pair.unit}'}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; exit status 0 whatever was found, 2 if it could not be compared."""
    parser = argparse.ArgumentParser(description="Compare two revisions, run in turn.")
    parser.add_argument("revision", help="what to compare with")
    parser.add_argument("suites", nargs="*", help="suites; otherwise spte, walk, aging")
    parser.add_argument("--with", dest="other", help="a revision; otherwise the sources here")
    parser.add_argument("--rounds", type=int, default=5, help="at least 3 (default: 5)")
    parser.add_argument("--only", help="only cases whose name contains this")
    parser.add_argument("--scale", choices=("smallest", "quick", "large"), default="quick")
    parser.add_argument("--all", action="store_true", help="show what did not change too")
    options = parser.parse_args(arguments)
    if options.rounds < 3:
        parser.error(f"--rounds: {options.rounds} is below 3, and proves nothing")
    suites = options.suites or ["spte", "walk", "aging"]
    flags = [f"--{options.scale}", "--repetitions", "1"]
    flags += ["--only", options.only] if options.only else []
    try:
        old, before = build_revision(options.revision)
        new, after = build_revision(options.other) if options.other else build_here()
        pairs: list[Pair] = []
        try:
            for so_far in measure(
                [str(before), *suites, *flags],
                [str(after), *suites, *flags],
                options.rounds,
                lambda what: print(what, file=sys.stderr),
            ):
                pairs = so_far
        except KeyboardInterrupt:
            print("interrupted: these are the rounds that were finished", file=sys.stderr)
        print("\n".join(table(pairs, (old, new), options.all)))
    except Failed as error:
        print(f"bench-compare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
