from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import youngbit as yb
from youngbit import traces

DATA = Path(__file__).parent / "data"


def test_shipped_trace_is_real_and_small():
    trace = traces.shipped()
    path = Path(yb.__file__).parent / "data" / "sort.npz"
    assert path.stat().st_size < 300 << 10
    assert trace.nr_pages > 3000
    assert len(trace) > 50_000
    assert 0 < np.count_nonzero(trace.write) < len(trace)
    # Within a window a page appears once.
    keys = (trace.time // trace.window) * np.uint64(1 << 32) + trace.frames
    assert len(np.unique(keys)) == len(trace)


def test_frames_are_numbered_by_first_touch():
    trace = traces.Trace(
        time=np.arange(5, dtype=np.uint64),
        page=np.array([900, 7, 900, 12, 7], dtype=np.uint64),
        write=np.zeros(5, dtype=bool),
        window=0,
        source="here",
    )
    assert trace.frames.tolist() == [0, 1, 0, 2, 1]
    assert trace.frame_pages.tolist() == [900, 7, 12]
    assert trace.nr_pages == 3
    assert trace.to_dict()["events"] == 5


def test_lackey_text():
    trace = traces.read_lackey(DATA / "lackey.txt", window=0)
    first = 0x1FFF000738 >> 12
    assert trace.page.tolist() == [0x401A, 0x401A, first, 0x401B, first, 0x401B, 0x401C,
                                   first, first + 1, 0x4036]  # fmt: skip
    assert trace.time.tolist() == [0, 1, 1, 2, 2, 3, 3, 3, 3, 3]
    assert trace.write.tolist() == [False, False, True, False, True, False, False,
                                    False, False, True]  # fmt: skip
    windowed = traces.read_lackey(DATA / "lackey.txt", window=2)
    assert windowed.page.tolist() == [0x401A, first, 0x401B, first, 0x401C, first + 1, 0x4036]
    assert windowed.time.tolist() == [0, 1, 2, 2, 3, 3, 3]
    assert len(traces.read_lackey(DATA / "lackey.txt", window=0, max_instructions=1)) == 1


@pytest.mark.parametrize("ending", ["npz", "csv", "txt"])
def test_read_picks_the_format(tmp_path, ending):
    path = tmp_path / f"trace.{ending}"
    trace = traces.read_lackey(DATA / "lackey.txt")
    if ending == "npz":
        traces.write_npz(trace, path)
    elif ending == "csv":
        rows = zip(trace.time, trace.page, trace.write, strict=True)
        path.write_text("time,page,write\n" + "".join(f"{t},{p},{w:d}\n" for t, p, w in rows))
    else:
        shutil.copy(DATA / "lackey.txt", path)
    found = yb.traces.read(path)
    for column in ("time", "page", "write", "frames"):
        np.testing.assert_array_equal(getattr(found, column), getattr(trace, column))
    assert found.source == str(path)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_valgrind_prints_what_the_reader_reads(tmp_path):
    path = tmp_path / "true.txt"
    subprocess.run(
        ["valgrind", "--tool=lackey", "--trace-mem=yes", f"--log-file={path}", "/bin/true"],
        check=True,
        timeout=60,
    )
    trace = traces.read_lackey(path)
    assert trace.nr_pages > 20
    assert int(trace.time[-1]) > 10_000


def test_standard_input(tmp_path):
    code = "from youngbit import traces; print(len(traces.read_lackey('-', window=0)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=(DATA / "lackey.txt").read_bytes(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == b"10\n"


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "trace.npz"
    path.write_bytes(b"old")

    def fail(*_args, **_kwargs):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        traces.write_npz(traces.shipped(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
