"""Run the sweep of sweep.toml, and print what it found as a table."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import youngbit as yb
from youngbit import lab


def main(results: str) -> None:
    """Sweep, and print recall by TLB and capabilities, the mean over seeds."""
    sweep = lab.Sweep.read(Path(__file__).with_suffix(".toml"))
    lab.run_sweep(sweep, results)
    rows = yb.load(results).to_arrow().to_pylist()
    print("TLB entries  recall without 0x8  with 0x8")
    for entries in sweep.grid["vms.0.tlb_entries"]:
        mean = {}
        for mask in (0x7, 0xF):
            found = [
                row["recall"]
                for row in rows
                if (row["vms.0.tlb_entries"], row["host.capabilities"]) == (entries, mask)
            ]
            mean[mask] = sum(found) / len(found)
        print(f"{entries:>11}  {mean[0x7]:>18.4f}  {mean[0xF]:>8.4f}")


# Processes of a pool import this file too: only the first one sweeps.
if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as directory:
            main(directory)
