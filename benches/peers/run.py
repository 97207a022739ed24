"""Cache simulators from PyPI on the accesses that a youngbit guest makes.

    python benches/peers/run.py [--accesses N] [--pages N] [--room N] [--json FILE]

Everybody gets the same accesses and the same room in pages. Each peer is
installed into an environment of its own below ``out/peers``; one that cannot be
installed is skipped, with a message. Exit status 1 if a peer that was installed
fails, else 0.

What is compared: misses, which no machine changes, and requests a second. A
cache simulator looks an identifier up and moves it in a list. youngbit runs a
guest: page tables, TLB misses, faults, swap, and aging and eviction as the
kernel does them; it is slower for that, and its misses are MGLRU's.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np

import youngbit as yb
from youngbit import access, oracle
from youngbit._files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out" / "peers"
PEERS = {"libcachesim": "libcachesim==0.3.5", "cachetools": "cachetools==8.0.1",
         "cachebox": "cachebox==6.2.10"}  # fmt: skip
PEER = Path(__file__).with_name("peer.py")


def write_trace(pages: np.ndarray, path: Path) -> None:
    """Write oracleGeneral; the time of the next access is not known to anybody."""
    record = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
    assert record.itemsize == struct.calcsize("<IQIq")
    data = np.zeros(len(pages), dtype=record)
    data["time"] = np.arange(len(pages), dtype=np.uint32)
    # Identifiers from 1: some simulators keep 0 for themselves.
    data["id"] = pages.astype(np.uint64) + 1
    data["size"] = 1
    data["next"] = -1
    with atomic_write(path, "wb") as file:
        data.tofile(file)


def ours(stream: access.Recorded, pages: int, room: int, capabilities: int) -> dict[str, Any]:
    """Run a guest whose memory is limited to so many pages; reclaim is the kernel's."""
    host = yb.Host(yb.Pages(pages + 8192), swap=yb.Pages(pages + 8192), clock="virtual")
    vm = host.create_vm(yb.Pages(pages), tlb_entries=0)
    host.capabilities = capabilities
    vm.memcg.files["memory.max"].write(str(room * 4096))
    start = time.perf_counter()
    vm.run(stream)
    seconds = time.perf_counter() - start
    host.check()
    # Pages that come for the first time, and those that come back from swap.
    misses = len(np.unique(stream.pages)) + host.counters["pswpin"]
    return {
        "peer": "youngbit",
        "version": yb.__version__,
        "policy": f"MGLRU, {capabilities:#x}",
        "requests": len(stream),
        "misses": misses,
        "seconds": seconds,
    }


def belady(stream: access.Recorded, room: int) -> dict[str, Any]:
    """Count the misses of who knows the future: nobody has fewer."""
    every = len(stream)
    start = time.perf_counter()
    ticks = oracle.optimal(stream, room, every=every, window=every)
    return {
        "peer": "youngbit",
        "version": yb.__version__,
        "policy": "oracle (Belady)",
        "requests": len(stream),
        "misses": len(np.unique(stream.pages)) + sum(tick.refaults for tick in ticks),
        "seconds": time.perf_counter() - start,
    }


def install(name: str) -> Path | None:
    """Return the Python of a peer's environment; None, with a message, if there is none."""
    home = OUT / name
    python = home / "bin" / "python"
    done = home / f"installed-{PEERS[name]}"
    if done.exists():
        return python
    environment = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    try:
        venv.create(home, clear=True, with_pip=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run(
            [*command, PEERS[name]],
            env=environment, check=True, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        print(f"skipped {name}: cannot be installed: {said[-1] if said else error}")
        return None
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"skipped {name}: cannot be installed: {error}")
        return None
    done.touch()
    return python


def run_peer(python: Path, name: str, trace: Path, room: int) -> list[dict[str, Any]]:
    """Run a peer in its environment."""
    done = subprocess.run(
        [python, "-I", PEER, name, trace, str(room)],
        capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{name} failed: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def show(rows: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    """Print a table."""
    print(f"\n{'':<34} {'misses':>10} {'ratio':>7} {'M requests/s':>13} {'against youngbit':>17}")
    for row in sorted(rows, key=lambda row: row["misses"]):
        rate = row["requests"] / row["seconds"]
        base = reference["requests"] / reference["seconds"]
        print(
            f"{row['peer'] + ' ' + row['version'] + ', ' + row['policy']:<34}"
            f" {row['misses']:>10,} {row['misses'] / row['requests']:>7.4f} {rate / 1e6:>13.2f}"
            f" {rate / base:>16.2f}x"
        )


def main() -> int:
    """Compare."""
    parser = argparse.ArgumentParser(description="Cache simulators on the same accesses.")
    parser.add_argument("--accesses", type=int, default=2_000_000)
    parser.add_argument("--pages", type=int, default=200_000)
    parser.add_argument("--room", type=int, default=20_000, help="pages that may stay")
    parser.add_argument("--exponent", type=float, default=1.0, help="of Zipf's law")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peer", action="append", choices=sorted(PEERS), help="only this one")
    parser.add_argument("--json", metavar="FILE", help="write rows there too")
    options = parser.parse_args()
    if yb.build_info()["debug_assertions"]:
        parser.error("this is a debug build, whose times mean nothing: make build")
    if not 0 < options.room < options.pages:
        parser.error(f"--room: {options.room} is not below --pages")
    OUT.mkdir(parents=True, exist_ok=True)
    # Writes: anonymous memory that is only read takes none.
    drawn = access.zipf(options.exponent, accesses=options.accesses, seed=options.seed, write=True)
    stream = access.record(drawn, options.pages)
    print(
        f"{len(stream):,} accesses to {len(np.unique(stream.pages)):,} of {options.pages:,} pages"
        f" by Zipf's law ({options.exponent}), room for {options.room:,}, seed {options.seed};"
        f" one thread each"
    )
    trace = OUT / "trace.oracleGeneral"
    write_trace(stream.pages, trace)
    reference = ours(stream, options.pages, options.room, 0xF)
    rows = [
        reference,
        ours(stream, options.pages, options.room, 0x7),
        belady(stream, options.room),
    ]
    for name in options.peer or PEERS:
        python = install(name)
        if python is not None:
            rows += run_peer(python, name, trace, options.room)
    show(rows, reference)
    if options.json:
        with atomic_write(options.json) as file:
            json.dump({"parameters": vars(options), "rows": rows}, file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
