"""The page about a run or a sweep, and what a real browser makes of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("plotly")
pytest.importorskip("pyarrow")

from plotly.graph_objects import Figure, Scatter

import youngbit as yb
from browser import Browser
from youngbit import defaults, lab
from youngbit.reports.heat_map import Map
from youngbit.reports.lab import build
from youngbit.reports.page import Page

EVIL = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"

SWEEP = """
experiment = "aging"
schedule.every = 2_000
vms = [{ memory = "4M", workload = { kind = "zipf", accesses = 8_000 } }]
[sweep]
seeds = 2
[sweep.grid]
"vms.0.tlb_entries" = [0, 64, 256]
host.capabilities = [0x7, 0xf]
"""


def command(*arguments, code=0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "youngbit", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """Twelve small runs."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "sweep.toml").write_text(SWEEP)
    command("sweep", folder / "sweep.toml", "--results", folder / "results", "--jobs", 1)
    return folder / "results"


@pytest.fixture(scope="module")
def page(swept) -> Path:
    path = swept.parent / "sweep.html"
    assert command("report", swept, "-o", path).stdout == f"Wrote {path}\n"
    return path


def test_the_page_loads_nothing_and_only_its_own_scripts_run(page):
    text = page.read_text()
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ")
    assert policy.count("sha256-") == text.count("<script>") == 5
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy
    assert not re.search(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=", text)
    assert [path.name for path in page.parent.glob("*.html")] == ["sweep.html"]


def test_the_page_says_what_was_varied_and_what_came_out(page, swept):
    text = page.read_text().partition("<script>")[0]
    assert "aging: 12 runs" in text
    assert "No run failed." in text
    for name in ("seed", "vms.0.tlb_entries", "host.capabilities"):
        assert f"<td>{name}</td>" in text
    # Without secondary MMU walks nothing of a guest is seen, with them and without a TLB all.
    results = yb.load(swept).to_arrow().to_pydict()
    recalls = dict(
        zip(
            zip(results["host.capabilities"], results["vms.0.tlb_entries"], strict=True),
            results["recall"],
            strict=True,
        )
    )
    assert recalls[0x7, 0] == 0.0
    assert recalls[0xF, 0] == 1.0
    assert 0.0 < recalls[0xF, 256] < 1.0
    for column, about in yb.load(swept).columns.items():
        if "counters." not in column:
            assert f"<td>{column}</td>" in text
            assert about.meaning.split("'")[0] in text.replace("&#x27;", "'")


def test_a_browser_draws_it_and_its_menus_work(page, swept, browser: Browser):
    opened = browser.open(page)
    assert opened.errors == []
    assert opened.requests == []
    for name in ("outcomes", "passes", "working-set", "generations"):
        box = browser.evaluate(
            f"(({{width, height}}) => [width, height])"
            f"(document.querySelector('#{name} .main-svg').getBoundingClientRect())"
        )
        assert min(box) > 200, name
    drawn = "document.querySelectorAll('#outcomes .point').length"
    assert browser.evaluate(drawn) == 12
    title = "document.querySelector('#outcomes .ytitle').textContent"
    first = browser.evaluate(title)
    # Open the menu of the vertical axis and choose its third entry.
    browser.evaluate(
        "document.querySelector('#outcomes .updatemenu-header')"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    browser.evaluate(
        "document.querySelectorAll('#outcomes .updatemenu-dropdown-button')[2]"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    browser.evaluate("new Promise(r => setTimeout(() => r(1), 300))")
    chosen = browser.evaluate(title)
    assert chosen != first
    assert browser.evaluate(drawn) == 12
    # What is drawn is what the table says, number for number.
    name = chosen.partition(",")[0]
    shown = browser.evaluate(
        "document.getElementById('outcomes').data.flatMap(trace => Array.from(trace.y))"
    )
    assert sorted(shown) == pytest.approx(sorted(yb.load(swept).to_arrow()[name].to_pylist()))


def test_the_first_picture_tells_the_settings_apart(page, browser: Browser):
    """What has most values is across, and what else was varied has the colours."""
    browser.open(page)
    assert browser.evaluate("document.querySelector('#outcomes .xtitle').textContent") == (
        "vms.0.tlb_entries, count"
    )
    names = browser.evaluate("document.getElementById('outcomes').data.map(each => each.name)")
    assert names == ["host.capabilities 7", "host.capabilities 15"]
    # A row of the table is a line of text: ranges of small numbers do not wrap.
    heights = browser.evaluate(
        "Array.from(document.querySelectorAll('table')[2].rows, row => row.offsetHeight)"
    )
    assert len(heights) == 7
    assert max(heights) < 45, heights


MANY = """
experiment = "aging"
schedule.every = 2_000
vms = [{ memory = "4M", workload = { kind = "zipf", accesses = 4_000 } }, { memory = "2M" }]
[sweep.grid]
"vms.*.tlb_entries" = [0, 64]
"vms.0.workload.exponent" = [0.8, 1.2]
[[sweep.list]]
seed = 1
[[sweep.list]]
host.swappiness = 100
"""


def test_many_settings_leave_room_for_the_lines(tmp_path, browser: Browser):
    """Their names do not cover the figure, and runs that leave a parameter out are there."""
    (tmp_path / "it.toml").write_text(MANY)
    command("sweep", tmp_path / "it.toml", "--results", tmp_path / "it", "--jobs", 1)
    command("report", tmp_path / "it", "-o", tmp_path / "it.html")
    opened = browser.open(tmp_path / "it.html")
    assert opened.errors == []
    width = "document.querySelector('#passes .{}').getBoundingClientRect().width"
    assert browser.evaluate(width.format("nsewdrag")) > 500
    assert browser.evaluate("document.getElementById('passes').data[0].name") == "run 0, vm 0"
    settings = browser.evaluate("document.getElementById('passes').data[0].meta[0]")
    for setting in ("run 0", "vms.1.tlb_entries 0", "vms.0.workload.exponent 0.8"):
        assert setting in settings.split("<br>")
    assert browser.evaluate("document.querySelectorAll('#outcomes .point').length") == 8
    across = "Array.from(new Set(document.getElementById('outcomes').data.flatMap(t => t.x)))"
    assert sorted(browser.evaluate(across)) == ["100", "None"]


def test_policies_are_drawn_over_sizes_of_memory(tmp_path, browser: Browser):
    (tmp_path / "it.toml").write_text(
        "experiment = 'policies'\nsizes = [0.25, 0.5, 0.75]\nalgorithms = ['lru', 'belady']\n"
    )
    command("run", tmp_path / "it.toml", "--results", tmp_path / "it")
    command("report", tmp_path / "it", "-o", tmp_path / "it.html")
    browser.open(tmp_path / "it.html")
    [lru, belady] = browser.evaluate(
        "document.getElementById('passes').data.map(t => [Array.from(t.x), Array.from(t.y)])"
    )
    assert lru[0] == belady[0] == [821, 1643, 2464]
    assert all(most >= least for most, least in zip(lru[1], belady[1], strict=True))


def test_a_heat_map_is_one_in_the_page_too(tmp_path, browser: Browser):
    experiment = lab.HeatMapDescription(rows=40, every=5_000)
    (tmp_path / "it.toml").write_text(
        lab.to_toml(experiment) + "[sweep]\ngrid.tlb_entries = [0, 256]\n"
    )
    command("sweep", tmp_path / "it.toml", "--results", tmp_path / "it", "--jobs", 1)
    command("report", tmp_path / "it", "-o", tmp_path / "it.html")
    opened = browser.open(tmp_path / "it.html")
    assert opened.errors == []
    assert opened.requests == []
    # An image each, of which one run's two are seen, as wide as half of the page.
    seen = (
        "Array.from(document.querySelectorAll('#heat-map .hm image'),"
        " image => image.getBoundingClientRect().width)"
    )
    assert len(browser.evaluate(seen)) == 2
    assert min(browser.evaluate(seen)) > 200
    passes = yb.load(tmp_path / "it").passes.to_arrow().to_pydict()

    def shown(number: int, name: str) -> list[list[int]]:
        rows = browser.evaluate(
            f"document.getElementById('heat-map')._fullData[{number}].{name}"
            ".map(row => Array.from(row, value => isNaN(value) ? -1 : value))"
        )
        return [list(column) for column in zip(*rows, strict=True)]

    def told(run: int, column: str) -> list[list[int]]:
        return [row for row, of in zip(passes[column], passes["run"], strict=True) if of == run]

    # A TLB hides accesses from aging; they are the same.
    assert told(0, "row_accesses") == told(1, "row_accesses")
    assert told(0, "row_ages") != told(1, "row_ages")
    assert shown(0, "customdata") == told(0, "row_accesses")
    assert shown(1, "z") == told(0, "row_ages")
    visible = "document.getElementById('heat-map').data.map(each => each.visible)"
    assert browser.evaluate(visible) == [True, True, False, False]
    browser.evaluate(
        "document.querySelector('#heat-map .updatemenu-header')"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    browser.evaluate(
        "document.querySelectorAll('#heat-map .updatemenu-dropdown-button')[1]"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    browser.evaluate("new Promise(r => setTimeout(() => r(1), 300))")
    assert browser.evaluate(visible) == [False, False, True, True]
    assert shown(2, "customdata") == told(1, "row_accesses")
    assert shown(3, "z") == told(1, "row_ages")


def test_a_map_of_many_passes_is_drawn_coarser_and_loses_no_access():
    rng = np.random.default_rng(3)
    accesses = rng.integers(0, 9, (4, 50))
    ages = rng.integers(-1, 5, (4, 50))
    fine = Map("run 0", np.arange(51.0), 16, accesses, ages)
    coarse = fine.coarser(7)
    np.testing.assert_array_equal(coarse.times, [0, 7, 14, 21, 28, 35, 42, 50])
    np.testing.assert_array_equal(coarse.accesses.sum(axis=1), accesses.sum(axis=1))
    np.testing.assert_array_equal(coarse.accesses[:, 0], accesses[:, :7].sum(axis=1))
    np.testing.assert_array_equal(coarse.ages[:, [0, -1]], ages[:, [6, 49]])
    assert fine.coarser(50) is fine


def test_text_stays_text(tmp_path, browser: Browser):
    page = Page("Evil")
    figure = Figure([Scatter(x=[1, 2], y=[1, 2], name=EVIL, text=[EVIL, EVIL])])
    figure.update_layout(title={"text": EVIL}, showlegend=True)
    page.interactive(figure, name="evil", caption=EVIL)
    [path] = page.write(tmp_path / "evil.html")
    opened = browser.open(path)
    assert browser.evaluate("typeof window.ran") == "undefined"
    assert browser.evaluate("document.querySelectorAll('#evil .main-svg').length") > 0
    assert opened.requests == []


def test_a_script_that_is_not_the_page_s_own_does_not_run(page, tmp_path, browser: Browser):
    text = page.read_text().replace("</body>", "<script>window.ran = 1</script></body>")
    (tmp_path / "changed.html").write_text(text)
    opened = browser.open(tmp_path / "changed.html")
    assert browser.evaluate("typeof window.ran") == "undefined"
    assert any("Content Security Policy" in error for error in opened.errors)


def test_one_run(tmp_path, browser: Browser):
    experiment = lab.Aging(
        vms=(lab.VirtualMachine(memory=4 << 20, workload=lab.Zipf(accesses=8_000)),),
        schedule=lab.Schedule(every=2_000),
    )
    (tmp_path / "one.toml").write_text(lab.to_toml(experiment))
    command("run", tmp_path / "one.toml", "--results", tmp_path / "one")
    command("report", tmp_path / "one", "-o", tmp_path / "one.html")
    opened = browser.open(tmp_path / "one.html")
    assert opened.errors == []
    assert browser.evaluate("document.title") == "aging: one run"
    assert browser.evaluate("document.querySelectorAll('.js-plotly-plot').length") == 3
    # A step for each pass, from 0 on.
    x = browser.evaluate("Array.from(document.getElementById('working-set').data[0].x)")
    assert x == [0, 2000, 4000, 6000, 8000]


def test_failed_and_missing_runs_are_said(swept, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    lines = (swept / "journal.jsonl").read_text().splitlines(keepends=True)
    failed = json.loads(lines[1])
    kept = {key: failed["row"][key] for key in failed["row"] if not key.startswith("counters")}
    failed["row"] = kept | {"status": "failed", "error": f"OSError: {EVIL}"}
    failed["passes"] = {}
    (broken / "journal.jsonl").write_text(lines[0] + json.dumps(failed) + "\n")
    (broken / "sweep.json").write_bytes((swept / "sweep.json").read_bytes())
    text = build(yb.load(broken)).to_html().partition("<script>")[0]
    assert "1 of 2 runs came to an end." in text
    assert "The sweep is not finished" in text
    assert "OSError: &lt;/script&gt;" in text
    assert "<img" not in text


def test_what_is_left_out_is_said(swept, monkeypatch):
    monkeypatch.setattr(defaults, "REPORT_RUNS", 3)
    monkeypatch.setattr(defaults, "REPORT_ROWS", 5)
    text = build(yb.load(swept)).to_html().partition("<script>")[0]
    assert "The first 3 of 12 runs that have passes." in text
    assert "The table of runs; the first 5 of 12" in text


def test_the_same_results_give_the_same_page(swept):
    assert build(yb.load(swept)).to_html() == build(yb.load(swept)).to_html()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{swept}", "-o", "report.txt"], "report.txt: the name of a page must end in .html"),
        (["{swept}", "-o", "/nowhere/x.html"], "no directory to write it to"),
        (["{folder}", "-o", "x.html"], "not a directory of results"),
        (["/nowhere", "-o", "x.html"], "does not exist"),
        (["{swept}"], "Missing option '-o'"),
    ],
    ids=["suffix", "no directory", "no results", "nothing there", "no name"],
)
def test_bad_usage(arguments, says, swept, tmp_path):
    given = [each.format(swept=swept, folder=tmp_path) for each in arguments]
    assert says in command("report", *given, code=2).stderr
