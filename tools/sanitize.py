"""Run the threaded tests under AddressSanitizer, LeakSanitizer and ThreadSanitizer.

    python3 tools/sanitize.py             both
    python3 tools/sanitize.py thread      one of them

Each ends with a verdict: the tests must pass, nothing may be reported, and each
fault on purpose (rust/core/tests/sanitizers.rs) must be. The installed toolchain
has the runtimes; RUSTC_BOOTSTRAP=1 opens its switch for them. Its standard
library is not instrumented, for which tools/tsan.supp makes up.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORT = re.compile(r"(WARNING|ERROR): (Address|Leak|Thread)Sanitizer: (.*)")


@dataclass(frozen=True)
class Kind:
    """One build, and what it is to find."""

    name: str
    flags: tuple[str, ...]
    options: dict[str, str]
    #: A test of sanitizers.rs, and what is said of it.
    faults: dict[str, str]


KINDS = (
    Kind(
        "address",
        ("-Zsanitizer=address", "-Cunsafe-allow-abi-mismatch=sanitizer"),
        {"ASAN_OPTIONS": "detect_leaks=1"},
        {
            "a_host_that_nobody_frees": "LeakSanitizer: detected memory leaks",
            "a_reader_that_keeps_a_value_past_its_section": "AddressSanitizer: heap-use-after-free",
        },
    ),
    Kind(
        "thread",
        # The cfg: fences and cells as ThreadSanitizer can follow them.
        (
            "-Zsanitizer=thread",
            "-Cunsafe-allow-abi-mismatch=sanitizer",
            "--cfg youngbit_tsan",
        ),
        {
            "TSAN_OPTIONS": f"suppressions={ROOT / 'tools/tsan.supp'} exitcode=66 history_size=4",
        },
        {"a_publication_without_release": "ThreadSanitizer: data race"},
    ),
)
#: The tests that start threads: a test program, and names to choose from it.
TESTS: dict[str, tuple[str, ...]] = {
    "sanitizers": (),
    "ownership": (),
    "stress": (),
    "notifier": (),
    "contention": (),
    "kvm": ("threads::", "vcpus::", "memslots::", "sptes::"),
    "aging": ("walkers_share", "concurrent_agers"),
    "reclaim": ("tasks_a_guest",),
    "mm": ("threads_",),
    "youngbit_core": ("sync::", "rmap::", "bench::", "stress::", "shadow::"),
}


def build(kind: Kind, under: list[str]) -> dict[str, Path]:
    """Build the tests; the programs by name."""
    host = subprocess.run(["rustc", "-vV"], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.search(r"^host: (.+)$", host, re.MULTILINE)
    if found is None:
        sys.exit("rustc -vV does not say for which machine it compiles")
    command = [*under, "cargo", "test", "--locked", "-p", "youngbit-core", "--no-run"]
    command += ["--target", found[1], "--message-format", "json-render-diagnostics"]
    for name in TESTS:
        command += ["--lib"] if name == "youngbit_core" else ["--test", name]
    env = {
        **os.environ,
        "RUSTC_BOOTSTRAP": "1",
        "RUSTFLAGS": " ".join(kind.flags),
        # Suppressions name functions in full, which lines alone do not give.
        "CARGO_PROFILE_DEV_DEBUG": "full",
        "CARGO_TARGET_DIR": str(ROOT / "target" / kind.name),
    }
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        one["target"]["name"]: Path(one["executable"])
        for one in told
        if one["reason"] == "compiler-artifact" and one["executable"]
    }


def run(kind: Kind, program: Path, chosen: list[str], under: list[str]) -> tuple[int, str]:
    """Run tests; how they ended and all they said."""
    command = [*under, str(program), *chosen]
    env = {**os.environ, **kind.options, "RUST_BACKTRACE": "0"}
    done = subprocess.run(
        command,
        cwd=ROOT / "rust/core",
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def check(kind: Kind, under: list[str]) -> bool:
    """Build, run, say what was found; whether all is well."""
    start = time.monotonic()
    programs = build(kind, under)
    well = True
    passed = 0
    for name, chosen in TESTS.items():
        code, text = run(kind, programs[name], list(chosen), under)
        reports = [match[0] for match in REPORT.finditer(text)]
        counted = re.search(r"test result: \w+\. (\d+) passed", text)
        tests = int(counted[1]) if counted else 0
        passed += tests
        right = code == 0 and not reports and tests > 0
        well &= right
        print(f"{kind.name}: {name}: {tests} tests, {len(reports)} reports", flush=True)
        if not right:
            print(text)
    for fault, said in kind.faults.items():
        _, text = run(kind, programs["sanitizers"], ["--ignored", "--exact", fault], under)
        found = said in text
        well &= found
        print(f"{kind.name}: {fault}: {'reported' if found else 'NOT REPORTED'}", flush=True)
        if not found:
            print(text)
    minutes = (time.monotonic() - start) / 60
    verdict = "nothing found" if well else "FAILED"
    print(f"{kind.name}: {verdict}: {passed} tests, {minutes:.1f} minutes", flush=True)
    return well


def main() -> int:
    """Run all; 1 if anything was found, or a fault was not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [kind.name for kind in KINDS]
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=" or ".join(names))
    parser.add_argument("--under", type=shlex.split, default=[], help="run under this command")
    told = parser.parse_args()
    unknown = set(told.kinds) - set(names)
    if unknown:
        parser.error(f"no sanitizer {', '.join(sorted(unknown))}: expected {', '.join(names)}")
    wanted = [kind for kind in KINDS if kind.name in (told.kinds or names)]
    verdicts = [check(kind, told.under) for kind in wanted]
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
