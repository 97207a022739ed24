"""Files that are written whole or not at all, and targets that are no files."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from youngbit import traces
from youngbit._files import atomic_write


def youngbit(*arguments, code=0, **options):
    done = subprocess.run(
        [sys.executable, "-m", "youngbit", *map(str, arguments)],
        capture_output=True, timeout=100, check=False, **options,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    return done


@pytest.fixture
def full(tmp_path) -> Path:
    """A device of our own that has no space left: never the machine's."""
    path = tmp_path / "full"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))
        path.open("wb").close()
    except OSError as error:
        pytest.skip(f"cannot make a device: {error}")
    return path


def drained(path: Path) -> tuple[threading.Thread, list[bytes]]:
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()), daemon=True)
    reader.start()
    return reader, got


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_device_stays_a_device(full):
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(full, "wb") as file:
        file.write(bytes(1 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert stat.S_ISCHR(full.stat().st_mode)
    assert names(full.parent) == ["full"]


def test_a_pipe_stays_a_pipe_and_gets_everything(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader, got = drained(path)
    with atomic_write(path, "wb") as file:
        file.write(bytes(300_000))
    reader.join(20)
    assert [len(each) for each in got] == [300_000]
    assert stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.parametrize("ending", ["npz", "csv", "parquet", "oracleGeneral.zst", "perf", "damon"])
def test_every_format_can_be_written_to_a_pipe(tmp_path, ending):
    trace = traces.shipped()
    path, kept = tmp_path / f"pipe.{ending}", tmp_path / f"kept.{ending}"
    os.mkfifo(path)
    reader, got = drained(path)
    traces.write(trace, path, interval=10_000_000)
    reader.join(20)
    kept.write_bytes(got[0])
    traces.write(trace, tmp_path / f"file.{ending}", interval=10_000_000)
    same, file = traces.read(kept), traces.read(tmp_path / f"file.{ending}")
    assert (same.page == file.page).all()
    assert (same.time == file.time).all()
    assert names(tmp_path) == sorted([f"pipe.{ending}", f"kept.{ending}", f"file.{ending}"])


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "real"
    real.write_text("before")
    link = tmp_path / "link"
    link.symlink_to(real)
    with atomic_write(link) as file:
        file.write("after")
    assert link.is_symlink()
    assert real.read_text() == "after"
    # And one that leads to nothing yet.
    (tmp_path / "new").symlink_to("elsewhere/new")
    with atomic_write(tmp_path / "new") as file:
        file.write("made")
    assert (tmp_path / "elsewhere" / "new").read_text() == "made"
    assert names(tmp_path / "elsewhere") == ["new", "real"]


def test_who_may_read_a_file_is_kept(tmp_path):
    path = tmp_path / "private"
    path.write_text("before")
    path.chmod(0o600)
    with atomic_write(path) as file:
        file.write("after")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "new") as file:
            file.write("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "kept"
    path.write_text("before")

    def half(file):
        file.write("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), atomic_write(path) as file:
        half(file)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["kept"]


def test_what_cannot_be_made_is_named(tmp_path):
    path = tmp_path / "no" / "file"
    with pytest.raises(FileNotFoundError) as caught, atomic_write(path):
        pass
    assert caught.value.filename == str(path)
    with pytest.raises(IsADirectoryError) as caught, atomic_write(tmp_path):
        pass
    assert caught.value.filename == str(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["trace", "convert", "s.csv", "{}", "--to", "csv"],
        ["trace", "convert", "s.csv", "{}", "--to", "npz"],
        ["trace", "convert", "s.csv", "{}", "--to", "parquet"],
        ["trace", "convert", "s.csv", "{}", "--to", "oracle"],
        ["trace", "convert", "s.csv", "{}", "--to", "damon"],
        ["trace", "stats", "s.csv", "--json", "{}"],
        ["heatmap", "s.csv", "-o", "{}.png"],
        ["heatmap", "s.csv", "-o", "{}.svg"],
        ["aging", "--memory", "1M", "--accesses", "9", "--warm-up", "0", "--json", "{}"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_full_disk_is_said(tmp_path, full, arguments):
    (tmp_path / "s.csv").write_text("time,page,write\n" + "".join(
        f"{n},{n * 7919 % 4001},0\n" for n in range(20_000)))  # fmt: skip
    for ending in (".png", ".svg"):
        (tmp_path / f"full{ending}").symlink_to(full)
    before = names(tmp_path)
    given = [each.format(full) for each in arguments]
    done = youngbit(*given, code=2, cwd=tmp_path)
    assert b"No space left on device" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert stat.S_ISCHR(full.stat().st_mode)
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["info"], ["aging", "--print-experiment"],
     ["trace", "stats", "s.csv"], ["trace", "stats", "s.csv", "--json", "-"]],
    ids=lambda arguments: " ".join(arguments),
)  # fmt: skip
def test_standard_output_that_is_full_is_an_error(tmp_path, full, arguments):
    (tmp_path / "s.csv").write_text("time,page,write\n1,2,0\n")
    with full.open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "youngbit", *arguments],
            stdout=out, stderr=subprocess.PIPE, text=True, timeout=60, check=False, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_trace_goes_through_a_pipeline(tmp_path):
    """To standard output, with nothing else there."""
    traces.write(traces.shipped(), tmp_path / "s.npz")
    # As /dev/stdout is, but ours.
    (tmp_path / "out").symlink_to("/proc/self/fd/1")
    made = youngbit("trace", "convert", "s.npz", "out", "--to", "csv", cwd=tmp_path)
    assert made.stdout.startswith(b"time,page,write\n")
    assert b"Wrote out: 67,167 events" in made.stderr
    assert (tmp_path / "out").is_symlink()
    read = youngbit("trace", "stats", "-", "--from", "csv", "--json", "-", input=made.stdout)
    assert json.loads(read.stdout)["events"] == 67_167
    done = youngbit("trace", "convert", "s.npz", "-", "--to", "csv", code=2, cwd=tmp_path)
    assert b"/dev/stdout" in done.stderr
    assert names(tmp_path) == ["out", "s.npz"]
