"""Reports: pages that hold everything, and what a real browser makes of them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from browser import Browser
from youngbit.experiments import Bench, BenchResult
from youngbit.reports.page import Page

pytest.importorskip("matplotlib")

from youngbit.reports.bench import build, published
from youngbit.reports.page import new_figure

FIGURES = [
    "pass-time",
    "pass-ratio",
    "guest-slowdown",
    "fault-latency",
    "cost-per-page",
    "walk-limits",
    "spte-cost",
]


class Loads(HTMLParser):
    """Collects what a page would load, and checks that tags close."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(page: Page) -> Loads:
    parser = Loads()
    parser.feed(page.to_html())
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return Bench(scale="smallest", repetitions=2).run()


@pytest.fixture(scope="module")
def page(result) -> Page:
    return build(result)


def parts(result: BenchResult, *suites: str) -> BenchResult:
    data = json.loads(json.dumps(result.to_dict()))
    data["rows"] = [row for row in data["rows"] if row["suite"] in suites]
    data["suites"] = dict.fromkeys(suites, "complete")
    return BenchResult.from_dict(data)


def test_all_figures_are_there_and_nothing_is_loaded(page):
    assert page.figures == FIGURES
    loads = parsed(page).loads
    assert len(loads) == len(FIGURES)
    assert all(load.startswith("data:image/svg+xml;base64,") for load in loads)
    text = page.to_html()
    assert "<script" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_the_published_table_stands_beside_ours(page):
    rows = published()["rows"]
    assert [row["vcpus"] for row in rows] == [1, 2, 4, 8, 16, 32, 64, 112]
    text = page.to_html()
    for row in rows:
        assert f">{row['pass_s_locked'] / row['pass_s_lockless']:.2f}</td>" in text
    assert f">{4.347 / 0.251:.2f}</td>" in text


@pytest.mark.parametrize("suites", [[], ["spte"], ["aging", "walk"], ["contention"], ["reclaim"]])
def test_a_report_has_what_was_run(result, suites):
    page = build(parts(result, *suites))
    parsed(page)
    expected = {
        "contention": FIGURES[:4],
        "aging": FIGURES[4:5],
        "walk": FIGURES[5:6],
        "spte": FIGURES[6:],
        "reclaim": [],
    }
    assert page.figures == [f for f in FIGURES if any(f in expected[name] for name in suites)]
    missing = {"aging", "contention", "spte", "walk"} - set(suites)
    said = re.search(r"they have no results: ([a-z, ]+)\.", page.to_html())
    assert (set(said[1].split(", ")) if said else set()) == missing


def test_a_run_that_was_stopped_says_so(result):
    stopped = parts(result, "spte")
    stopped.suites = {"spte": "complete", "walk": "interrupted", "aging": "not run"}
    assert "walk, aging did not come to an end" in build(stopped).to_html()


def test_pngs_stand_beside_the_page(page, tmp_path):
    written = page.write(tmp_path / "r.html", pngs=True)
    names = ["r.html", *(f"r-{name}.png" for name in FIGURES)]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for path in written[1:]:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_page_comes_out_the_same_each_time(result):
    only = parts(result, "aging")
    assert build(only).to_html() == build(only).to_html()


def test_text_is_text():
    evil = '<script>alert("x")</script>&\'"'
    page = Page(evil, lead=evil)
    page.heading(evil)
    page.text(evil)
    page.note(evil)
    page.table([evil], [[evil], [1.5], [None], [True], [262144]], caption=evil)
    page.table([evil], [[evil]], caption=evil, folded=True)
    figure = new_figure()
    figure.subplots().plot([1, 2])
    page.figure(figure, name="a", caption=evil, alt=evil)
    text = page.to_html()
    parsed(page)
    assert "<script" not in text
    assert "<td>yes</td>" in text
    assert "262,144" in text


def test_what_a_page_refuses(tmp_path):
    page = Page("x")
    figure = new_figure()
    page.figure(figure, name="a", caption="", alt="")
    for name in ("a", "A", "a b", "../a", ""):
        with pytest.raises(ValueError, match=r"name|figure"):
            page.figure(figure, name=name, caption="", alt="")
    with pytest.raises(ValueError, match="a row of 1 cells under 2 columns"):
        page.table(["a", "b"], [[1]])
    with pytest.raises(ValueError, match="level: 1"):
        page.heading("x", 1)
    with pytest.raises(OSError, match="No such file"):
        page.write(tmp_path / "no" / "x.html")


IMAGES = (
    "[...document.images].map("
    "i => [i.alt, i.complete, i.naturalWidth, i.clientWidth, i.clientHeight])"
)


def faults(browser: Browser, path: Path, figures: int) -> list[str]:
    """What is wrong with a page in a browser."""
    opened = browser.open(path)
    found = [f"console: {text}" for text in opened.errors]
    found += [f"request: {url}" for url in opened.requests]
    images = browser.evaluate(IMAGES)
    if len(images) != figures:
        found.append(f"{len(images)} images, expected {figures}")
    for alt, complete, *sizes in images:
        if not complete or min(sizes) < 100:
            found.append(f"image {alt!r}: {sizes}")
    width = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    if width[0] > width[1]:
        found.append(f"the page is {width[0]} wide in a window of {width[1]}")
    return found


def test_a_browser_shows_the_report(page, browser, tmp_path):
    path = page.write(tmp_path / "r.html")[0]
    assert faults(browser, path, len(FIGURES)) == []
    assert browser.evaluate("document.title") == "What lockless aging buys"
    assert browser.evaluate("document.querySelectorAll('table').length") > 10
    browser.screenshot(tmp_path / "seen.png")
    assert (tmp_path / "seen.png").stat().st_size > 50_000


def test_a_browser_would_see_what_is_wrong(page, browser, tmp_path):
    text = page.to_html()
    policy = re.search(r"<meta http-equiv=[^>]*>", text)[0]
    wrong = {
        "an image that is none": text.replace("base64,PD", "base64,AA", 1),
        "a script that fails": text.replace(policy, "").replace(
            "</body>", "<script>nothing()</script></body>"
        ),
        "a style from elsewhere": text.replace(policy, "").replace(
            "</head>", '<link rel="stylesheet" href="http://127.0.0.1:9/x.css"></head>'
        ),
        "a script that may not run": text.replace("</body>", "<script>1</script></body>"),
        "a figure too few": re.sub(r"<figure id=.*?</figure>", "", text, count=1, flags=re.DOTALL),
    }
    for what, broken in wrong.items():
        assert broken != text, what
        path = tmp_path / "wrong.html"
        path.write_text(broken)
        assert faults(browser, path, len(FIGURES)) != [], what
