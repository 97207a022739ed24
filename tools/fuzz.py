"""Look for inputs that break a reader or the operations, guided by coverage.

Each target gets its time in turn, begun with the inputs that are kept in
``rust/core/tests/fuzz/inputs`` and those of earlier runs in ``out/fuzz``. An
input that fails is written to ``out/fuzz/found`` with the command that repeats
it; copied to the kept inputs, it is tried by every ``make test``.

    python3 tools/fuzz.py                     a minute each
    python3 tools/fuzz.py --seconds 5 lru_gen one of them, 5 seconds
    python3 tools/fuzz.py --keep              then keep the smallest set of inputs
                                              that reaches what all reach
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out/fuzz"
KEPT = ROOT / "rust/core/tests/fuzz/inputs"
WORDS = ROOT / "fuzz/words"
TARGETS = (
    "program",
    "scenario",
    "recording",
    "lru_gen",
    "trace_text",
    "memcg_files",
    "samplers",
)
#: Counters at every edge and comparisons that guide the fuzzer, as libFuzzer
#: wants them of LLVM; the options are stable.
COVERAGE = (
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "--cfg fuzzing",
)
#: Bytes of an input, at most.
LONGEST = 2048
#: A kept input may have so many.
LONGEST_KEPT = 1024


def build(under: list[str]) -> Path:
    """Build the fuzzer; where it is."""
    told = subprocess.run(["rustc", "-vV"], stdout=subprocess.PIPE, text=True, check=True)
    found = re.search(r"^host: (.+)$", told.stdout, re.MULTILINE)
    if found is None:
        sys.exit("rustc -vV does not say for which machine it compiles")
    target = ROOT / "target/fuzz"
    # A target of its own, even if it is the host: build scripts stay as they are.
    # Not --locked: its lock file follows what the core depends on.
    subprocess.run(
        [*under, "cargo", "build", "--release", "--target", found[1]],
        cwd=ROOT / "fuzz",
        env={**os.environ, "RUSTFLAGS": " ".join(COVERAGE), "CARGO_TARGET_DIR": str(target)},
        check=True,
    )
    return target / found[1] / "release/youngbit-fuzz"


def options(target: str) -> list[str]:
    """What libFuzzer is told for a target."""
    told = [f"-max_len={LONGEST}", "-timeout=20", "-rss_limit_mb=4096"]
    words = WORDS / target
    if words.exists():
        told.append(f"-dict={words}")
    return told


def fuzz(binary: Path, target: str, seconds: int, seed: int, under: list[str]) -> bool:
    """Fuzz one target; whether nothing was found."""
    corpus, found = OUT / target, OUT / "found"
    for folder in (corpus, found, KEPT / target):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(found.iterdir())
    command = [*under, str(binary), str(corpus), str(KEPT / target), *options(target)]
    command += [f"-max_total_time={seconds}", f"-seed={seed}", "-print_final_stats=1"]
    command += [f"-artifact_prefix={found}/{target}-"]
    env = {**os.environ, "YOUNGBIT_FUZZ": target, "RUST_BACKTRACE": "0"}
    done = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, check=False)
    text = done.stderr
    runs = re.findall(r"stat::number_of_executed_units: +(\d+)", text)
    reached = re.findall(r"cov: (\d+) ft: (\d+)", text)
    edges, features = reached[-1] if reached else ("0", "0")
    new = sorted(set(found.iterdir()) - before)
    # A slow input is told of, and is no failure.
    failed = done.returncode != 0 or not runs
    print(
        f"{target}: {int(runs[-1]) if runs else 0:,} runs, {edges} edges, {features} features: "
        f"{'FAILED' if failed else 'nothing found'}",
        flush=True,
    )
    if failed:
        print("\n".join(text.splitlines()[-25:]))
    for path in new:
        print(f"  {path.relative_to(ROOT)}: YOUNGBIT_FUZZ={target} {binary} {path}")
    return not failed


def keep(binary: Path, target: str, under: list[str]) -> None:
    """Keep the smallest set of inputs that reaches all that is reached."""
    new = OUT / f"{target}.kept"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    # By edges: how often each was taken would keep ten times as many.
    command = [*under, str(binary), "-set_cover_merge=1", "-use_counters=0", *options(target)]
    command += [f"-max_len={LONGEST_KEPT}", str(new), str(KEPT / target), str(OUT / target)]
    env = {**os.environ, "YOUNGBIT_FUZZ": target}
    done = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    # What once failed is kept whatever it reaches.
    for path in (KEPT / target).iterdir():
        if not path.name.startswith("found-"):
            path.unlink()
    for path in new.iterdir():
        shutil.copyfile(path, KEPT / target / path.name[:12])
    shutil.rmtree(new)
    print(f"{target}: {sum(1 for _ in (KEPT / target).iterdir())} inputs kept")


def main() -> int:
    """Fuzz; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=None, help="otherwise a fresh one")
    parser.add_argument("--under", type=shlex.split, default=[], help="run under this command")
    parser.add_argument("--keep", action="store_true", help="rewrite the inputs that are kept")
    told = parser.parse_args()
    unknown = set(told.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}: expected {', '.join(TARGETS)}")
    seed = told.seed if told.seed is not None else int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}", flush=True)
    binary = build(told.under)
    passed = True
    try:
        for target in told.targets or TARGETS:
            passed &= fuzz(binary, target, told.seconds, seed, told.under)
            if told.keep:
                keep(binary, target, told.under)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
