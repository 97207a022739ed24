"""The commands on traces, and what the documents say of them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from youngbit import traces
from youngbit._interrupts import on_interrupt
from youngbit.commands.main import main
from youngbit.traces.recorder import record

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
ESTIMATORS = (ROOT / "docs" / "estimators.md").read_text()
TRACES = (ROOT / "docs" / "traces.md").read_text()
README = (ROOT / "README.md").read_text()

needs_valgrind = pytest.mark.skipif(
    shutil.which("valgrind") is None, reason="valgrind is not installed"
)


def youngbit(*arguments, code=0, **options):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "youngbit", *map(str, arguments)],
        capture_output=True, text=True, timeout=110, check=False, **options,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command in this process, which starts faster than another would."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["youngbit", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as exited:
            status = exited.code or 0
        done = capsys.readouterr()
        assert status == code, done.err
        return done

    return run


def first_contact(text, before):
    block = re.search(rf"{before}.*?```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


FIRST_CONTACT = {
    "README.md": first_contact(README, "in five commands"),
    "docs/traces.md": first_contact(TRACES, "## Five commands"),
}


@needs_valgrind
@pytest.mark.parametrize("page", FIRST_CONTACT)
def test_first_contact_is_five_commands(page, tmp_path):
    """From a program of one's own to a heat map and an accuracy table, as documented."""
    (tmp_path / "README.md").write_text(README)
    said = []
    assert len(FIRST_CONTACT[page]) == 5
    for command in FIRST_CONTACT[page]:
        assert command[0] == "youngbit"
        # What the program itself prints may be any bytes.
        said.append(youngbit(*command[1:], cwd=tmp_path, errors="replace").stdout)
    trace = traces.read(tmp_path / "mine.npz")
    assert trace.nr_pages > 20
    assert f"({trace.nr_pages * 4}K)" in said[1]
    assert re.search(r"MGLRU, secondary MMUs walked \(v7\) +1\.0000 +0\.\d{4} ", said[2])
    assert "belady" in said[4]
    pictures = [command[command.index(option) + 1] for command in FIRST_CONTACT[page][1:]
                for option in ("-o", "--plot") if option in command]  # fmt: skip
    assert pictures
    for picture in pictures:
        start = b"\x89PNG" if picture.endswith(".png") else b"<?xml"
        assert (tmp_path / picture).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("command", "output"), re.findall(r"```\n\$ youngbit (.*?)\n(.*?)```", ESTIMATORS, re.DOTALL)
)
def test_outputs_shown_are_outputs_given(command, output):
    done = youngbit(*shlex.split(command))
    assert [line.rstrip() for line in done.stdout.splitlines()] == output.splitlines()


@pytest.mark.parametrize("text", [ESTIMATORS, TRACES], ids=["estimators", "traces"])
def test_python_in_the_documents_runs(tmp_path, text):
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        subprocess.run(
            [sys.executable, "-W", "error", "-c", block], cwd=tmp_path, timeout=60, check=True
        )


def test_tools(tmp_path, command):
    shipped = traces.shipped()
    traces.write(shipped, tmp_path / "a.npz")
    for arguments, check in (
        (("convert", "a.npz", "b.parquet"), lambda t: len(t) == len(shipped)),
        (("convert", "b.parquet", "c.oracleGeneral.zst"), lambda t: t.nr_pages == 3286),
        (("cut", "a.npz", "d.npz", "--time", "1000000:100000000"),
         lambda t: t.time[0] >= 10**6 and t.time[-1] < 10**8 and t.window == 600_000),
        (("cut", "a.npz", "e.csv", "--events", ":100"), lambda t: len(t) == 100),
        (("sample", "a.npz", "f.npz", "--share", "0.1"), lambda t: 250 < t.nr_pages < 410),
        (("remap", "a.npz", "g.npz"), lambda t: int(t.page.max()) == 3285),
        (("merge", "a.npz", "f.npz", "h.npz"), lambda t: len(t.split()) == 2 and t.window),
        (("convert", "a.npz", "i.damon"), lambda t: t.nr_pages == 3286),
        (("convert", "a.npz", "j.csv", "--divide-time", "1000"),
         lambda t: int(t.time[-1]) == 266056),
    ):  # fmt: skip
        done = command("trace", *arguments)
        target = next(each for each in reversed(arguments) if Path(each).suffix and "." in each
                      and (tmp_path / each).exists() and each != "a.npz")  # fmt: skip
        assert f"Wrote {target}" in done.out
        assert check(traces.read(tmp_path / target)), arguments
    done = command("trace", "convert", DATA / "lackey.txt", "k.npz", "--window", "0")
    assert len(traces.read(tmp_path / "k.npz")) == 10
    stats = json.loads(command("trace", "stats", "h.npz", "--json", "-").out)
    assert stats["vms"] == 2
    assert stats["schema"] == "youngbit/trace-stats"
    both, [first, second] = traces.read(tmp_path / "h.npz"), traces.read(tmp_path / "h.npz").split()
    np.testing.assert_array_equal(first.page, shipped.frames)
    assert len(first) + len(second) == len(both)


def test_what_cannot_be_done_is_said_and_leaves_nothing(tmp_path, command):
    (tmp_path / "bad.csv").write_text("time,page,write\n5,1,0\n4,1,0\n")
    traces.write(traces.shipped(), tmp_path / "a.npz")
    names = {"a.npz", "bad.csv"}
    for arguments, message in (
        (("convert", "bad.csv", "b.npz"), "bad.csv: line 3: found `4,1,0`, expected a time"),
        (("convert", "a.npz", "b.gif"), "--to"),
        (("convert", "a.npz", "none/b.npz"), "no directory"),
        (("convert", "none.npz", "b.npz"), "none.npz"),
        (("cut", "a.npz", "b.npz", "--time", "5:5"), "is empty"),
        (("cut", "a.npz", "b.npz", "--time", "now:"), "is not a range"),
        (("cut", "a.npz", "b.npz", "--address", "0x7fffffffffff:"), "nothing is left"),
        (("sample", "a.npz", "b.npz", "--share", "0"), "0"),
        (("merge", "a.npz", "b.npz"), "at least two"),
        (("stats", "a.npz", "--from", "csv"), "header"),
    ):
        done = command("trace", *arguments, code=2)
        assert message in done.err, done.err
        assert "Traceback" not in done.err
        assert {each.name for each in tmp_path.iterdir()} == names


@pytest.mark.parametrize(("by", "window"), [("1000", 600), ("7", 0), ("1200000", 0)])
def test_windows_are_divided_with_times(tmp_path, command, by, window):
    """What the file says of its windows is so: a page is there once in each."""
    traces.write(traces.shipped(), tmp_path / "a.npz")
    command("trace", "convert", "a.npz", "b.npz", "--divide-time", by)
    trace = traces.read(tmp_path / "b.npz")
    assert trace.window == window
    if window:
        pairs = np.stack([trace.time // np.uint64(window), trace.page])
        assert np.unique(pairs, axis=1).shape[1] == len(trace)


def test_pipes_are_not_merged(tmp_path, command):
    """Each trace is read twice: a pipe would be waited for for ever."""
    traces.write(traces.shipped(), tmp_path / "a.npz")
    os.mkfifo(tmp_path / "p.csv")
    done = command("trace", "merge", "a.npz", "p.csv", "b.npz", code=2)
    assert "p.csv: is no file" in done.err
    done = command("trace", "merge", "a.npz", "a.npz", "b.gif", code=2)
    assert "--to" in done.err
    done = command("trace", "merge", "a.npz", "a.npz", "b.damon", "--interval", "100000000")
    assert "The format has no place for all but pages and intervals" in done.out


@needs_valgrind
def test_record_says_what_went_wrong(tmp_path, command):
    done = command("record", "-o", "a.npz", "--", "no-such-program", code=2)
    assert "no-such-program: there is no such program" in done.err
    done = command("record", "-o", "a.gif", "--", "true", code=2)
    assert "a format that can be written" in done.err
    done = command("record", "-o", "a.npz", code=2)
    assert "COMMAND" in done.err
    assert not list(tmp_path.iterdir())
    command("record", "--window", "0", "--max-instructions", "50000", "-o", "a.npz", "--", "false")
    assert int(traces.read(tmp_path / "a.npz").time[-1]) == 49_999


@needs_valgrind
def test_of_a_program_that_forks_it_alone_is_recorded(tmp_path):
    script = 'printf -v held "%*s" 300000 ""'
    whole = record(["bash", "-c", script], tmp_path / "a.npz")
    forked = record(["bash", "-c", f"({script}); :"], tmp_path / "b.npz")
    assert whole.became is forked.became is None
    pages = [traces.read(tmp_path / name).nr_pages for name in ("a.npz", "b.npz")]
    assert pages[0] > pages[1] + 60, pages


@needs_valgrind
def test_a_program_that_becomes_another_is_told(tmp_path, command):
    """As a script is that begins with ``#!/usr/bin/env``: of it env alone is recorded."""
    program = tmp_path / "program"
    program.write_text("#!/usr/bin/env sh\nsleep 1\n")
    program.chmod(0o755)
    done = command("record", "-o", "a.npz", "--", str(program))
    shell = os.path.realpath(shutil.which("sh"))
    assert f"The program went on as {shell}, which is not recorded" in done.err
    assert "went on" not in command("record", "-o", "a.npz", "--", "sh", "-c", "sleep 1; :").err


@needs_valgrind
def test_a_recording_that_its_format_has_no_place_for_is_kept(tmp_path, command, monkeypatch):
    monkeypatch.setattr("youngbit.traces.recorder._LAST_TIME", {"oracle": 5_000})
    done = command("record", "-o", "a.oracleGeneral", "--window", "0", "--", "true")
    assert "was stopped there: oracleGeneral has 32 bits" in done.err
    assert int(traces.read(tmp_path / "a.oracleGeneral").time[-1]) == 5_000
    done = command("record", "-o", "a.npz", "--window", "0", "--", "true")
    assert "stopped" not in done.err


def test_record_without_valgrind(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="valgrind is not installed"):
        record(["true"], tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_does_what_it_is_told():
    done = []
    with on_interrupt(lambda: done.append("told")):
        signal.raise_signal(signal.SIGINT)
        done.append("whole")
    assert done == ["told", "whole"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_step_in_another_thread_leaves_interrupts_alone():
    seen = []

    def step():
        with on_interrupt(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=step)
    thread.start()
    thread.join(timeout=30)
    assert seen == [signal.getsignal(signal.SIGINT)]


def interrupted(arguments, cwd, wait, **options):
    """Start the command, wait, and press Ctrl-C for it alone."""
    with subprocess.Popen(
        [sys.executable, "-m", "youngbit", *map(str, arguments)], cwd=cwd,
        stderr=subprocess.PIPE, text=True, **options,
    ) as child:  # fmt: skip
        try:
            wait(child)
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=20)
        except BaseException:
            child.kill()
            raise
    return child.returncode, said


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def sleeps_in(what):
    """Whether a process waits in a function of the kernel's, as its name begins."""

    def wait(child):
        until(lambda: Path(f"/proc/{child.pid}/wchan").read_text().startswith(what))

    return wait


@pytest.mark.parametrize("name", ["p.csv", "p.txt", "p.perf"])
def test_ctrl_c_ends_the_wait_for_a_writer(tmp_path, name):
    os.mkfifo(tmp_path / name)
    code, said = interrupted(["trace", "stats", name], tmp_path, sleeps_in("wait_for_partner"))
    assert (code, said.strip()) == (130, "youngbit: interrupted")


@pytest.mark.parametrize("name", ["p.csv", "p.txt", "-"])
def test_ctrl_c_ends_the_wait_for_a_line(tmp_path, name):
    os.mkfifo(tmp_path / "p.csv")
    os.mkfifo(tmp_path / "p.txt")
    fifo = tmp_path / ("p.csv" if name == "-" else name)
    end = os.open(fifo, os.O_RDWR)
    try:
        os.write(end, b"time,page,write\n1,2" if fifo.suffix == ".csv" else b"I  1000,4\n L 2")
        form = ["--from", "csv"] if name == "-" else []
        code, said = interrupted(
            ["trace", "stats", name, *form],
            tmp_path,
            sleeps_in(("do_poll", "do_sys_poll", "poll_schedule_timeout")),
            stdin=end,
        )
    finally:
        os.close(end)
    assert (code, said.strip()) == (130, "youngbit: interrupted")


@needs_valgrind
def test_a_short_recording_that_is_interrupted_is_kept_whole(tmp_path):
    """The program waits, nobody tells it of Ctrl-C, and it touched less than a block of pages."""
    os.mkfifo(tmp_path / "never")
    script = 'BEGIN { for (i = 0; i < 2000; i++) a[i] = i; print "full" > "done"; close("done");'
    script += ' getline < "never" }'

    def wait(_):
        until(lambda: (tmp_path / "done").exists() and (tmp_path / "done").read_text())

    code, said = interrupted(
        ["record", "-o", "a.npz", "--window", 1000, "--", "awk", script], tmp_path, wait
    )
    assert code == 130, said
    assert "what was recorded is written" in said
    trace = traces.read(tmp_path / "a.npz")
    assert 100 < len(trace) < 1 << 16
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.npz", "done", "never"]


@needs_valgrind
def test_a_recording_that_cannot_be_written_ends_its_program(tmp_path, monkeypatch):
    def full(self, block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("youngbit.traces._write._Npz.add", full)
    with pytest.raises(OSError, match="No space"):
        record(["awk", "BEGIN { while (1) i++ }"], tmp_path / "a.npz", window=0)
    assert not list(tmp_path.iterdir())


@needs_valgrind
def test_a_recording_interrupted_at_once_is_kept(tmp_path):
    def interrupt(events):
        signal.raise_signal(signal.SIGINT)

    made = record(
        ["awk", "BEGIN { while (1) i++ }"], tmp_path / "a.npz", window=0, progress=interrupt
    )
    assert made.interrupted
    assert made.exit_status is None
    assert len(traces.read(tmp_path / "a.npz")) == made.events > 0


@needs_valgrind
def test_an_interrupted_recording_is_kept(tmp_path):
    command = [sys.executable, "-m", "youngbit", "record", "--window", "0", "-o", "a.npz", "--",
               "awk", "BEGIN { while (1) i++ }"]  # fmt: skip
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        columns = Path(f"/proc/{child.pid}/fd")

        def has_grown():
            sizes = []
            for each in columns.iterdir():
                with suppress(FileNotFoundError):
                    if "(deleted)" in str(each.readlink()):
                        sizes.append(each.stat().st_size)
            return max(sizes, default=0) > 500_000

        try:
            # The temporary file grows once a block has been read.
            until(has_grown)
            os.killpg(child.pid, signal.SIGINT)
            _, said = child.communicate(timeout=60)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    assert child.returncode == 130, said
    assert "what was recorded is written" in said
    assert len(traces.read(tmp_path / "a.npz")) > 60_000
    assert [each.name for each in tmp_path.iterdir()] == ["a.npz"]
