"""Pictures: what is in them, and the files they become."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import youngbit as yb
from youngbit import plot, reuse, traces
from youngbit.experiments import HeatMap, Reclaim, Replay
from youngbit.experiments.reclaim import zipf

pytest.importorskip("matplotlib")

SVG = "{http://www.w3.org/2000/svg}"
CURVE = reuse.MissRatios("LRU", np.array([1, 256, 512]), np.array([1.0, 0.5, 0.25]))


@pytest.fixture(scope="module")
def replayed():
    return Replay(every=10_000, tlb_entries=0).run(traces.shipped())


@pytest.fixture(scope="module")
def reclaimed():
    return Reclaim().run(zipf(1000, 20_000, 1))


def pictures(replayed, reclaimed):
    """Every kind of picture: how to draw it, and texts that must be in it."""
    return {
        "generations": (
            lambda path: plot.generations_over_time(replayed, path),
            ["touched since the pass before", "guest accesses, thousands", "pages of 4 KiB"],
        ),
        "reclaim": (
            lambda path: plot.reclaim_over_time(reclaimed, path),
            ["0x8 on", "refaults", "guest accesses, thousands", "pages of 4 KiB in memory"],
        ),
        "working set": (
            lambda path: plot.replay_working_set(replayed, path),
            ["truth", "aging", "guest accesses", "touched in the interval, MiB"],
        ),
        "miss ratios": (
            lambda path: plot.miss_ratio_curves([CURVE], path),
            ["LRU", "memory that may stay, MiB", "misses, % of accesses"],
        ),
        "distributions": (
            lambda path: plot.distributions({"sort": [1, 2, 3000, -1]}, path, unit="pages"),
            ["sort", "pages", "accesses with at most that, %"],
        ),
    }


KINDS = sorted(pictures(None, None))


@pytest.mark.parametrize("kind", KINDS)
def test_axes_units_and_legends_are_there(kind, replayed, reclaimed, tmp_path):
    draw, texts = pictures(replayed, reclaimed)[kind]
    draw(tmp_path / "picture.svg")
    tree = ElementTree.parse(tmp_path / "picture.svg")
    written = "\n".join("".join(text.itertext()) for text in tree.iter(f"{SVG}text"))
    for text in texts:
        assert text in written, written


@pytest.mark.parametrize("kind", KINDS)
def test_suffix_says_the_format_and_nothing_else_is_left(kind, replayed, reclaimed, tmp_path):
    draw, _ = pictures(replayed, reclaimed)[kind]
    for name, magic in (("a.png", b"\x89PNG"), ("b.SVG", b"<?xml")):
        draw(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(magic)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.SVG"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["picture.jpg", "picture", "png", "picture.png.gz"])
def test_other_suffixes_are_refused_before_drawing(kind, name, tmp_path):
    draw, _ = pictures(None, None)[kind]
    with pytest.raises(ValueError, match=rf"{name}: .* expected \.png or \.svg"):
        draw(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_same_figures_give_the_same_bytes(tmp_path):
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        plot.miss_ratio_curves([CURVE], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "kept.svg"
    path.write_text("before")

    def breaks(self, file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", breaks)
    with pytest.raises(OSError, match="No space"):
        plot.miss_ratio_curves([CURVE], path)
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["kept.svg"]


def test_what_cannot_be_drawn_is_refused(tmp_path):
    path = tmp_path / "none.svg"
    with pytest.raises(ValueError, match="at least one"):
        plot.miss_ratio_curves([], path)
    with pytest.raises(ValueError, match="at least one"):
        plot.distributions({}, path, unit="pages")
    with pytest.raises(ValueError, match="'never' has no value"):
        plot.distributions({"never": [-1, -1]}, path, unit="pages")
    with pytest.raises(ValueError, match="aging: 3 values for 2 intervals"):
        plot.working_set_over_time([1, 2], [5, 5], {"aging": [1, 2, 3]}, path)
    assert not path.exists()


def test_working_set_draws_what_it_is_given(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("youngbit.plot.canvas.save", lambda figure, path: drawn.append(figure))
    plot.working_set_over_time(
        [10, 20, 30], [256, 512, 0], {"low": [128, 512, 0], "high": [512, 1024, 256]}, "x.png"
    )
    upper, lower = drawn[0].axes
    steps = [patch.get_data().values.tolist() for patch in upper.patches]
    # 256 pages of 4 KiB are 1 MiB.
    assert steps == [[1.0, 2.0, 0.0], [0.5, 2.0, 0.0], [2.0, 4.0, 1.0]]
    errors = [patch.get_data().values.tolist() for patch in lower.patches]
    assert errors[0][:2] == [-50.0, 0.0]
    assert errors[1][:2] == [100.0, 100.0]
    # Without truth there is no error to be a percentage of.
    assert np.isnan(errors[0][2])
    assert upper.get_ylim()[1] > 4.0


def drawn_by(monkeypatch, draw, *arguments, **options):
    """The figure that a function would have saved, laid out."""
    drawn = []
    monkeypatch.setattr("youngbit.plot.canvas.save", lambda figure, path: drawn.append(figure))
    draw(*arguments, "x.png", **options)
    [figure] = drawn
    figure.canvas.draw()
    return figure


def within(inner, outer) -> bool:
    return (
        inner.x0 >= outer.x0 - 1
        and inner.x1 <= outer.x1 + 1
        and inner.y0 >= outer.y0 - 1
        and inner.y1 <= outer.y1 + 1
    )


def test_estimators_that_agree_are_all_seen(monkeypatch):
    truth = [256, 512, 512]
    names = ["mglru", "mglru-primary", "page-idle", "damon", "bits", "bits-flush"]
    figure = drawn_by(
        monkeypatch,
        lambda path: plot.working_set_over_time(
            [1, 2, 3], truth, dict.fromkeys(names, truth), path
        ),
    )
    for axes in figure.axes:
        steps = [patch for patch in axes.patches if not patch.get_fill()]
        widths = [patch.get_linewidth() for patch in steps]
        # Drawn in this order: none hides the one before.
        assert len(widths) == len(names)
        assert all(a >= b + 1 for a, b in itertools.pairwise(widths))
    upper = figure.axes[0]
    legend = upper.get_legend().get_window_extent()
    assert legend.y0 > upper.transData.transform((0, 512 * 4096 / 2**20))[1]


def test_a_few_events_are_seen_on_white(monkeypatch):
    pages = np.arange(300, dtype=np.uint64) % np.uint64(90)
    trace = traces.Trace(np.arange(300, dtype=np.uint64), pages, pages > 40, 0, "few")
    figure = drawn_by(monkeypatch, plot.heat_map, HeatMap().run(trace))
    drawn = figure.axes[0].collections[0]
    assert drawn.get_array().shape == (90, 64)
    # Relative luminance: white is 1, and a contrast of 1.8 can be seen.
    red, green, blue, _ = drawn.cmap(drawn.norm(1.0))
    linear = [((each + 0.055) / 1.055) ** 2.4 for each in (red, green, blue)]
    luminance = np.dot(linear, [0.2126, 0.7152, 0.0722])
    assert 1.05 / (luminance + 0.05) > 1.8
    # The scale says how much is counted in a cell.
    [label] = [axes.get_xlabel() for axes in figure.axes if "events" in axes.get_xlabel()]
    assert label == "events in 1 page and 5 of the trace's time, logarithmic"


def test_titles_have_room_and_legends_hide_nothing(monkeypatch, reclaimed, replayed):
    name = "/home/somebody/with/a/long/path/to/where/traces/are/kept/" + "x" * 60 + "/mine.npz"
    reclaimed = dataclasses.replace(reclaimed, workload=reclaimed.workload | {"name": name})
    replayed = dataclasses.replace(replayed, trace=replayed.trace | {"source": name})
    shipped = traces.shipped()
    named = traces.Trace(shipped.time, shipped.page, shipped.write, shipped.window, name)
    for draw, result in (
        (plot.reclaim_over_time, reclaimed),
        (plot.generations_over_time, replayed),
        (plot.replay_working_set, replayed),
        (plot.heat_map, HeatMap().run(named)),
    ):
        figure = drawn_by(monkeypatch, draw, result)
        boxes = [axes.title.get_window_extent() for axes in figure.axes]
        assert all(within(box, figure.bbox) for box in boxes), draw
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2) if a.width), draw
        assert "/mine.npz" in figure.axes[0].get_title()
    figure = drawn_by(monkeypatch, plot.reclaim_over_time, reclaimed)
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        for line in axes.lines:
            points = line.get_transform().transform(line.get_xydata())
            assert not any(legend.contains(*point) for point in points), line


def test_shares_count_what_never_comes():
    values, shares = plot.share_at_most([3, -1, 3, 0])
    assert values.tolist() == [0.0, 3.0]
    assert shares.tolist() == [0.25, 0.75]


def test_lru_misses_are_those_of_an_lru_list():
    stream = yb.access.record(yb.access.zipf(1.0, accesses=3000, seed=5), 200)
    for size in (1, 7, 60, 200):
        stack: list[int] = []
        missed = 0
        for page in stream.pages.tolist():
            if page in stack:
                stack.remove(page)
            else:
                missed += 1
                del stack[: max(len(stack) - size + 1, 0)]
            stack.append(page)
        assert reuse.lru_misses(stream, [size]).ratios[0] == pytest.approx(missed / 3000)


def test_nothing_misses_less_than_the_optimum():
    stream = yb.access.trace(traces.shipped())
    sizes = reuse.sizes_for(stream, 6)
    lru, best = reuse.lru_misses(stream, sizes), reuse.optimal_misses(stream, sizes)
    assert (best.ratios <= lru.ratios).all()
    assert (best.ratios[1:-1] < lru.ratios[1:-1]).all()
    # With room for everything both miss first uses and nothing else.
    first = traces.shipped().nr_pages / len(stream)
    assert best.ratios[-1] == pytest.approx(first)
    assert lru.ratios[-1] == pytest.approx(first)


@pytest.mark.parametrize("sizes", [[], [0, 1], [2, 1], [[1]], [1.5]])
def test_sizes_that_are_none(sizes):
    stream = yb.access.arrays([0, 1])
    with pytest.raises(ValueError, match="pages: expected"):
        reuse.lru_misses(stream, sizes)
    with pytest.raises(ValueError, match="no accesses"):
        reuse.lru_misses(yb.access.arrays(np.array([], dtype=np.uint32)), [1])


def command(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "youngbit", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("kind", ["generations", "working-set", "miss-ratios", "reuse"])
def test_the_command_draws(kind, tmp_path):
    path = tmp_path / "picture.svg"
    done = command("plot", kind, "--every", "20000", "-o", path) if kind in (
        "generations", "working-set") else command("plot", kind, "-o", path)  # fmt: skip
    assert done.stdout == f"Wrote {path}\n"
    assert "youngbit:sort" in path.read_text()


@pytest.mark.parametrize(
    "arguments",
    [["plot", "reuse", "-o"], ["replay", "--plot"], ["reclaim", "--plot"]],
    ids=lambda value: value[0],
)
def test_the_command_refuses_other_suffixes_at_once(arguments):
    done = command(*arguments, "picture.pdf", code=2)
    assert "picture.pdf: the name of a picture ends in .pdf; expected .png or .svg" in done.stderr
    assert done.stdout == ""
