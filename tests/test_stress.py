"""The command ``mmu-stress``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from youngbit import _core
from youngbit.commands.stress import mmu_stress


def run(*arguments):
    return CliRunner().invoke(mmu_stress, arguments)


@pytest.mark.parametrize("mmu", ["tdp", "shadow", "nested"])
@pytest.mark.parametrize("protocol", ["baseline", "v7", "v9"])
def test_nothing_is_lost(mmu, protocol):
    done = run("--mmu", mmu, "--protocol", protocol, "--accesses", "40000", "--rounds", "2",
               "--seed", "7", "--json", "-")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["rounds"] == 2
    assert found["failure"] is None
    assert found["accesses"] >= 2 * 40000
    assert found["counters"]["poison_reads"] == 0
    assert found["counters"]["sptes_aged"] + found["counters"]["sptes_zapped"] > 0


def test_seconds_end_a_round():
    done = run("--seconds", "0.2", "--accesses", "1000000000", "--json", "-")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["rounds"] >= 1
    assert 0 < found["accesses"] < 2 * 1000000000


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threads", "0"],
        ["--threads", "65"],
        ["--seconds", "nan"],
        ["--seconds", "-1"],
        ["--seconds", "soon"],
        ["--mmu", "iommu"],
        ["--seed", "-1"],
        ["--json", "/no/such/directory/file"],
    ],
)
def test_what_cannot_be_is_refused(arguments):
    done = run(*arguments)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_a_failed_round_is_told_with_the_command_that_repeats_it(monkeypatch):
    real = _core.stress_round

    def broken(mmu, protocol, *rest):
        return {**real(mmu, protocol, *rest), "failure": "page 3 of kept is lost"}

    monkeypatch.setattr(_core, "stress_round", broken)
    done = run("--accesses", "1000", "--seed", "11", "--mmu", "shadow", "--json", "-")
    assert done.exit_code == 1
    found = json.loads(done.stdout)["failure"]
    assert found["what"] == "page 3 of kept is lost"
    assert found["repeat"] in done.stderr
    # The command as it is printed is one that runs.
    monkeypatch.setattr(_core, "stress_round", real)
    again = run(*found["repeat"].split()[2:])
    assert again.exit_code == 0, again.output
    assert "1 rounds" in again.stdout
    assert "seed 0xb" in again.stdout


def test_ctrl_c_ends_it_with_the_counts_so_far():
    with subprocess.Popen(
        [sys.executable, "-m", "youngbit", "mmu-stress", "--seconds", "600",
         "--accesses", "1000000000", "--json", "-"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        # Its vCPUs and agers are there when it is stopped, however slow the machine.
        while process.poll() is None and len([*Path(f"/proc/{process.pid}/task").iterdir()]) < 4:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    found = json.loads(out)
    assert found["interrupted"] is True
    assert found["failure"] is None
    assert found["rounds"] == 1
    assert "interrupted" in err
    assert "Traceback" not in err
