"""Arbitrary bytes: an error with line and column, or what is meant; never a panic."""

# ruff: noqa: PT017 - a text may be refused, or not.

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import youngbit as yb
from youngbit import _core, lru_gen
from youngbit.errors import format_errors

DATA = Path(__file__).parent / "data" / "conformance"
PLACE = re.compile(r"line [1-9]\d*, column [1-9]\d*: expected ")

VOCABULARY = """
    memcg node + - 0 1 3 4 -1 200 201 99999999999999999999 0x10 x 5r 5R , ; # A B map anon file
    filernd shmem touch vtouch read vm vm2 vmslot vmdel vmre age evict min raw memset memory.max
    write check sleep snap w r 8 4096 %ID %MAX
"""
WORDS = st.sampled_from([*VOCABULARY.split(), "\n", "\r", "\t"])
SOUP = st.lists(WORDS, max_size=60).map(lambda words: " ".join(words).encode())
SEEDS = [file.read_bytes() for file in sorted((DATA / "scenarios").glob("*.scn"))]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A text that is nearly right."""
    text = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        text[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(text)


TEXT = st.one_of(st.binary(max_size=200), SOUP, mutated())
MANY = settings(max_examples=300, deadline=None)


def place(error: OSError) -> None:
    assert error.errno == errno.EINVAL
    assert PLACE.match(error.strerror), error.strerror


@MANY
@given(TEXT)
@example(b"\xff")
@example(b"map A anon 18446744073709551616")
@example(b"map A anon 4294967296\ntouch A 4294967295 4294967296 4294967296 w")
def test_scenarios(text):
    try:
        steps = _core.parse_scenario(text)
    except OSError as error:
        place(error)
        with pytest.raises(yb.FormatError), format_errors("x"):
            raise
    else:
        assert all(line >= 1 and op for line, op, _ in steps)
        # Saying the same again means the same.
        again = "\n".join(f"{op} {args}" for _, op, args in steps)
        assert [s[1:] for s in _core.parse_scenario(again.encode())] == [s[1:] for s in steps]


@MANY
@given(st.one_of(TEXT, st.lists(st.sampled_from([b"memcg 1 /a", b" node 0", b" 3 4 5 6",
       b" 4 4 5x 6x", b" 0 1r 2e 3p 1r 2e 3p", b" 0R 1T 2x 0R 1T 2x", b" 1 2"]), max_size=12)
       .map(b"\n".join)))  # fmt: skip
@example(b"memcg 1 /\n node 0\n 1 1 1 1\n 0 0 0 0")
@example(b"memcg 65536 /")
def test_histograms(text):
    try:
        found = lru_gen.parse(text)
    except yb.FormatError as error:
        assert error.line >= 1
        assert error.column >= 1
    else:
        assert lru_gen.parse(lru_gen.format(found)) == found


HOST = yb.Host("4M", swap="1M", clock="virtual")


@MANY
@given(TEXT, st.sampled_from(["lru_gen", "enabled", "min_ttl_ms", "lru_gen_full"]))
@example(b"+ 0 0 3 1 1 ; - 0 0 0", "lru_gen")
@example(b"+ 4294967296 0 3", "lru_gen")
@example(b"\0", "lru_gen")
def test_commands(text, name):
    try:
        HOST.debugfs[name].write(text)
    except OSError as error:
        assert error.errno in (errno.EINVAL, errno.ERANGE)
        if name != "lru_gen_full" and error.errno == errno.EINVAL:
            assert "column" in error.strerror or "generation" in error.strerror, error
    HOST.check()


@MANY
@given(TEXT, st.sampled_from(["memory.max", "memory.high", "memory.reclaim", "memory.stat"]))
@example(b"9" * 30 + b"T", "memory.max")
def test_memcg_files(text, name):
    memcg = HOST.root
    try:
        memcg.files[name].write(text)
    except OSError as error:
        assert error.errno in (errno.EINVAL, errno.EAGAIN)
        assert error.strerror
    HOST.check()


RECORDING = (DATA / "linux-v7" / "kv_a_half.enf.jsonl").read_bytes()
SCENARIO = (DATA / "scenarios" / "kv_a_half.scn").read_bytes()


@MANY
@given(st.data())
def test_recordings(data):
    text = bytearray(RECORDING)
    if data.draw(st.booleans()):
        text = bytearray(data.draw(TEXT))
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(text)))
            text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        name, steps = _core.recording_scenario(bytes(text))
    except OSError as error:
        place(error)
    else:
        assert isinstance(name, str)
        assert steps >= 0


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_recording_with_any_number_changed_is_compared(data):
    """Whatever the numbers are, there is a verdict or a clear error."""
    numbers = list(re.finditer(rb"(?<=[:\[,])\d+", RECORDING))
    which = data.draw(st.integers(0, len(numbers) - 1))
    value = str(data.draw(st.integers(0, 2**64 - 1))).encode()
    start, end = numbers[which].span()
    text = RECORDING[:start] + value + RECORDING[end:]
    try:
        steps, equal, difference = _core.replay_recording(text, SCENARIO)
    except OSError as error:
        assert error.errno in (errno.EINVAL, errno.ENOMEM), error
        assert error.strerror
    else:
        assert equal <= steps
        assert (difference is None) == (equal == steps)
