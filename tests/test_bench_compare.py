"""tools/bench_compare.py: revisions in turn, and what is called a change."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools" / "bench_compare.py"


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("bench_compare", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_compare"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_compare"]


def program(path: Path, name: str, figures: list[list[tuple[str, float, bool | None]]]) -> Path:
    """A program that prints other figures each time, and keeps a log of its runs."""
    lines = [
        [
            {
                "suite": "walk", "case": "c", "contestant": contestant, "median": value,
                "metric": {"name": "ns_per_item", "unit": "ns", "less_is_better": less},
            }
            for contestant, value, less in each
        ]
        for each in figures
    ]  # fmt: skip
    target = path / name
    target.write_text(
        f"#!{sys.executable}\nimport json, pathlib\n"
        f"log = pathlib.Path({str(path / 'log')!r})\n"
        "before = log.read_text() if log.exists() else ''\n"
        f"log.write_text(before + {name[0]!r})\n"
        f"for row in json.loads({json.dumps(lines)!r})[before.count({name[0]!r})]:\n"
        "    print(json.dumps(row))\n"
    )
    target.chmod(0o755)
    return target


def test_rounds_alternate_and_only_agreement_is_a_change(compare, tmp_path):
    def rounds(*columns):
        names = ("slow", "fast", "mixed", "little", "rate", "count")
        less = (True, True, True, True, False, None)
        return [
            list(zip(names, values, less, strict=True)) for values in zip(*columns, strict=True)
        ]

    constant = [[100] * 3] * 6
    a = program(tmp_path, "a", rounds(*constant))
    b = program(
        tmp_path,
        "b",
        rounds([120, 130, 110], [80, 70, 90], [150, 140, 99], [101, 104, 103], [50] * 3, [1] * 3),
    )
    seen = list(compare.measure([str(a)], [str(b)], 3))
    assert (tmp_path / "log").read_text() == "ababab"
    assert len(seen) == 3
    pairs = {pair.key[2]: pair for pair in seen[-1]}
    assert {name: pair.verdict for name, pair in pairs.items()} == {
        "slow": "slower",
        "fast": "faster",
        "mixed": "",
        "little": "",
        "rate": "slower",
    }
    assert pairs["slow"].ratios == [1.2, 1.3, 1.1]
    assert pairs["rate"].ratios == [2.0, 2.0, 2.0]
    changed = "\n".join(compare.table(seen[-1], ("old", "new"), False))
    assert "1.200 (1.100-1.300)" in changed
    assert "mixed" not in changed
    assert "5 figures in both; 3 shown" in changed
    assert "mixed" in "\n".join(compare.table(seen[-1], ("old", "new"), True))


def test_figures_of_one_side_only_are_left_out(compare, tmp_path):
    a = program(tmp_path, "a", [[("x", 1, True), ("y", 1, True)]])
    b = program(tmp_path, "b", [[("y", 2, True), ("z", 1, True)]])
    [pairs] = compare.measure([str(a)], [str(b)], 1)
    assert [pair.key[2] for pair in pairs] == ["y"]
    assert pairs[0].verdict == ""


def test_a_program_that_fails_is_said(compare, tmp_path):
    with pytest.raises(compare.Failed, match="exit status 1"):
        next(compare.measure(["false"], ["true"], 1))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-revision"], "no-such-revision"),
        (["--upload-pack=x"], "usage"),
        (["HEAD", "--rounds", "2"], "below 3"),
        ([], "required"),
    ],
)
def test_bad_usage(arguments, says):
    done = subprocess.run(
        [sys.executable, TOOL, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
