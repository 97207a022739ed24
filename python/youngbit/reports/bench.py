"""The report of ``youngbit bench``: figures, tables and what to think of them.

It needs matplotlib (``pip install youngbit[plot]``). A figure whose suite was
not run, or not to its end, is left out, and the page says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..experiments.bench import COMPLETE, BenchResult, kind_of
from .page import Page, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["build", "published"]

#: Colour and marker of each contestant: colour-blind readers tell them apart,
#: and so do those of a print without colours.
_STYLES = {
    "no aging": ("#7f7f7f", "o"),
    "v7 elsewhere": ("#bf812d", "P"),
    "v7": ("#1b7837", "^"),
    "v9": ("#2b83ba", "v"),
    "baseline": ("#d7301f", "s"),
    "flat scan": ("#000000", "."),
    "flat fetch_and": ("#7f7f7f", "."),
    "test": ("#2b83ba", "o"),
    "age, fetch_and": ("#1b7837", "^"),
    "age, compare-and-exchange": ("#762a83", "D"),
    "age, plain store under a lock": ("#d7301f", "s"),
}
_OTHERS = ("#762a83", "#8c510a", "#01665e", "#c51b7d", "#4d4d4d", "#bf812d", "#35978f")
_MARKERS = "DPX*<>p"
#: The series calls its two contestants so.
_NAMES = {"v7": "v7, lockless", "baseline": "baseline, locked", "v9": "v9"}

Row = dict[str, Any]


def published() -> dict[str, Any]:
    """Return the results of the series: source, columns, rows."""
    file = resources.files("youngbit").joinpath("data/published-series-v4.json")
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    data["rows"] = [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]
    return data


def _style(name: str) -> tuple[str, str]:
    """Colour and marker of a contestant, the same in every figure."""
    other = sum(map(ord, name))
    return _STYLES.get(name) or (_OTHERS[other % len(_OTHERS)], _MARKERS[other % len(_MARKERS)])


def _select(result: BenchResult, suite: str, metric: str, case: str = "") -> list[Row]:
    return [
        row
        for row in result.rows
        if row["suite"] == suite and row["metric"]["name"] == metric and case in row["case"]
    ]


def _ratio(row: Row, to: str) -> dict[str, Any] | None:
    return next((ratio for ratio in row["ratios"] if ratio["to"] == to), None)


def _by(rows: list[Row], key: str) -> dict[str, list[Row]]:
    """Rows by the value of a parameter, or of a field of the row itself."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        value = row[key] if key in row else row["parameters"].get(key)
        if value is not None:
            groups.setdefault(str(value), []).append(row)
    return groups


def _line(
    axes: Axes,
    name: str,
    points: list[tuple[float, float, float, float]],
    *,
    colour: str | None = None,
    **style: Any,
) -> None:
    """Draw medians, with a bar from the least to the most."""
    if not points:
        return
    points.sort()
    x = [point[0] for point in points]
    y = [point[1] for point in points]
    below = [max(point[1] - point[2], 0.0) for point in points]
    above = [max(point[3] - point[1], 0.0) for point in points]
    style.setdefault("marker", _style(name)[1])
    style.setdefault("lw", 1.6)
    axes.errorbar(
        x, y, yerr=(below, above), label=_NAMES.get(name, name), color=colour or _style(name)[0],
        capsize=3, ms=5, **style,
    )  # fmt: skip


def _powers(axes: Axes, values: list[float], text: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
    axes.minorticks_off()
    axes.set_xlabel(text)


def _log_y(axes: Axes) -> None:
    """Make the axis logarithmic, with numbers at 1, 2 and 5 of each ten."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=15))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def _shade(axes: Axes, rows: list[Row]) -> None:
    """Grey the counts of vCPUs at which threads outnumber processors."""
    crowded = [int(row["parameters"]["vcpus"]) for row in rows if row["oversubscribed"]]
    if not crowded:
        return
    left = min(crowded) / 2**0.5
    axes.axvspan(left, 1e6, color="0.93", zorder=0, label="more threads than processors")


Panels = dict[tuple[str, str], list[Row]]


def _panels(result: BenchResult, metric: str) -> Panels:
    """Rows of a figure by what faults are like, and by MMU."""
    panels: Panels = {}
    for row in _select(result, "contention", metric):
        panels.setdefault((kind_of(row), row["parameters"]["mmu"]), []).append(row)
    return panels


def _vcpus(row: Row) -> float:
    return float(row["parameters"]["vcpus"])


def _over_vcpus(panels: Panels, draw: Callable[[Axes, str, list[Row]], None]) -> Figure | None:
    """Draw panels over the number of vCPUs: a line of them a kind, a column an MMU."""
    if not panels:
        return None
    kinds = list(dict.fromkeys(kind for kind, _ in panels))
    mmus = list(dict.fromkeys(mmu for _, mmu in panels))
    figure = new_figure(max(5.5, 5.2 * len(mmus)), 4.0 * len(kinds) + 0.5)
    grid = figure.subplots(len(kinds), len(mmus), squeeze=False, sharey=True)
    counts = [_vcpus(row) for rows in panels.values() for row in rows]
    for line, kind in zip(grid, kinds, strict=True):
        for axes, mmu in zip(line, mmus, strict=True):
            rows = panels.get((kind, mmu))
            if not rows:
                axes.set_axis_off()
                continue
            _shade(axes, rows)
            draw(axes, mmu, rows)
            axes.set_title(f"{mmu} MMU, {kind}")
            _powers(axes, counts, "vCPUs")
            axes.set_xlim(min(counts) / 1.3, max(counts) * 1.3)
            axes.grid(alpha=0.3, which="both")
            axes.tick_params(labelleft=True)
    # One legend: the panels have the same contestants, and the first has all else.
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside lower center", ncols=3)
    return figure


def _pass_time(result: BenchResult) -> Figure | None:
    panels = _panels(result, "aging_pass_seconds")
    cpu = _panels(result, "aging_pass_cpu_seconds")

    def draw(axes: Axes, mmu: str, rows: list[Row]) -> None:
        for name, mine in _by(rows, "contestant").items():
            _line(
                axes,
                name,
                [(_vcpus(r), *(r[k] * 1e3 for k in ("median", "min", "max"))) for r in mine],
            )
        for name, mine in _by(cpu.get((kind_of(rows[0]), mmu), []), "contestant").items():
            points = [(_vcpus(r), *[r["median"] * 1e3] * 3) for r in mine]
            _line(axes, f"{_NAMES.get(name, name)}: processor time", points,
                  colour=_style(name)[0], marker="", ls=":", lw=1.2)  # fmt: skip
        _log_y(axes)
        axes.set_ylabel("an aging pass, milliseconds")

    return _over_vcpus(panels, draw)


def _pass_ratio(result: BenchResult) -> Figure | None:
    panels = _panels(result, "aging_pass_seconds")
    theirs = [
        (row["vcpus"], row["pass_s_locked"] / row["pass_s_lockless"]) for row in published()["rows"]
    ]

    def draw(axes: Axes, mmu: str, rows: list[Row]) -> None:
        points = [
            (_vcpus(row), ratio["median"], ratio["min"], ratio["max"])
            for row in rows
            if row["contestant"] == "baseline" and (ratio := _ratio(row, "v7"))
        ]
        _line(axes, "here", points, colour=_style("baseline")[0], marker="o")
        if mmu == "tdp":
            most = max((_vcpus(row) for row in rows), default=1.0)
            known = [point for point in theirs if point[0] <= most]
            axes.plot(
                [point[0] for point in known],
                [point[1] for point in known],
                color="black",
                ls="--",
                marker="s",
                ms=4,
                mfc="white",
                label="published, real kernel",
            )
        axes.axhline(1, color="black", lw=0.8)
        _log_y(axes)
        axes.set_ylabel("locked pass / lockless pass")

    return _over_vcpus(panels, draw)


def _slowdown(result: BenchResult) -> Figure | None:
    panels = _panels(result, "vcpu_wall_ns_per_page")

    def draw(axes: Axes, mmu: str, rows: list[Row]) -> None:
        for name, mine in _by(rows, "contestant").items():
            points = [
                (_vcpus(row), ratio["median"], ratio["min"], ratio["max"])
                for row in mine
                if (ratio := _ratio(row, "no aging"))
            ]
            _line(axes, name, points)
        if mmu == "tdp":
            most = max(_vcpus(row) for row in rows)
            known = [row for row in published()["rows"] if row["vcpus"] <= most]
            for key, name in (("locked", "baseline"), ("lockless", "v7")):
                axes.plot(
                    [row["vcpus"] for row in known],
                    [row[f"wall_s_{key}"] / row["wall_s_no_aging"] for row in known],
                    color=_style(name)[0], ls="--", lw=1, marker="s", ms=4, mfc="white",
                    label=f"published, {key}",
                )  # fmt: skip
        axes.axhline(1, color="black", lw=0.8)
        _log_y(axes)
        axes.set_ylabel("wall time of the guest / without aging")

    return _over_vcpus(panels, draw)


def _sizes(result: BenchResult) -> dict[str, dict[str, list[tuple[float, Row]]]]:
    """Cost per page by what was young, by variant: sizes in MiB, and rows."""
    found: dict[str, dict[str, list[tuple[float, Row]]]] = {}
    for row in _select(result, "aging", "ns_per_item", "by guest size"):
        if match := re.fullmatch(r"(?:(.*), )?(\d+) MiB(?:, (.*))?", row["contestant"]):
            variant = match[1] or match[3] or "v7"
            young = f"{row['parameters']['young_percent']}% young"
            lines = found.setdefault(young, {}).setdefault(variant, [])
            lines.append((float(match[2]), row))
    return found


def _cost_per_page(result: BenchResult) -> Figure | None:
    panels = _sizes(result)
    if not panels:
        return None
    figure = new_figure(max(5.5, 4.8 * len(panels)), 4.2)
    for axes, (young, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True
    ):
        sizes = []
        for name, points in lines.items():
            sizes += [size for size, _ in points]
            _line(axes, name, [(s, r["median"], r["min"], r["max"]) for s, r in points])
        _powers(axes, sizes, "guest memory, MiB")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("an aging pass, processor ns for each page")
        axes.tick_params(labelleft=True)
        axes.set_title(young)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def _percentile(metric: str) -> float | None:
    """99 for `fault_p99_ns`, 99.9 for `fault_p999_ns`, 100 for the maximum."""
    if metric == "fault_maximum_ns":
        return 100.0
    if match := re.fullmatch(r"fault_p(\d\d)(\d*)_ns", metric):
        return float(f"{match[1]}.{match[2] or 0}")
    return None


def _latency(result: BenchResult) -> Figure | None:
    rows = [
        row
        for row in result.rows
        if row["suite"] == "contention" and _percentile(row["metric"]["name"]) is not None
    ]
    if not rows:
        return None
    lines: Panels = {}
    for row in rows:
        lines.setdefault((kind_of(row), row["parameters"]["mmu"]), []).append(row)
    counts = sorted({int(_vcpus(row)) for row in rows})
    if len(counts) > 4:
        counts = [counts[0], counts[1], counts[-2], counts[-1]]
    percents = sorted({p for row in rows if (p := _percentile(row["metric"]["name"])) is not None})
    names = ["most" if percent == 100 else f"{percent:g}%" for percent in percents]
    figure = new_figure(max(6.0, 3.0 * len(counts)), 2.9 * len(lines) + 0.5)
    grid = figure.subplots(len(lines), len(counts), squeeze=False, sharey=True)
    for line, ((kind, mmu), of_line) in zip(grid, lines.items(), strict=True):
        for axes, count in zip(line, counts, strict=True):
            here = [row for row in of_line if _vcpus(row) == count]
            if not here:
                axes.set_axis_off()
                continue
            contestants = _by(here, "contestant")
            for number, (name, mine) in enumerate(contestants.items()):
                shift = 0.09 * (number - (len(contestants) - 1) / 2)
                points = [
                    (percents.index(p) + shift, r["median"], r["min"], r["max"])
                    for r in mine
                    if (p := _percentile(r["metric"]["name"])) is not None
                ]
                _line(axes, name, points)
            crowded = ", crowded" if any(row["oversubscribed"] for row in here) else ""
            title = f"{mmu}, {kind}\n{count} vCPU{'s' * (count > 1)}{crowded}"
            axes.set_title(title, fontsize="medium")
            axes.set_yscale("log")
            axes.set_xticks(range(len(names)), names)
            axes.grid(alpha=0.3)
        line[0].set_ylabel("latency of a guest's fault, ns")
        for axes in line:
            axes.set_xlabel("share of faults that were faster")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside lower center", ncols=4)
    return figure


def _spte(result: BenchResult) -> Figure | None:
    rows = _select(result, "spte", "ns_per_item")
    if not rows:
        return None
    most = max(int(row["parameters"]["entries"]) for row in rows)
    rows = [row for row in rows if int(row["parameters"]["entries"]) == most]
    panels = _by(rows, "setter")
    figure = new_figure(max(5.5, 4.8 * len(panels)), 4.4)
    drawn = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (setter, mine) in zip(drawn, panels.items(), strict=True):
        for name, points in _by(mine, "contestant").items():
            _line(
                axes,
                name,
                [
                    (float(r["parameters"]["young_percent"]), r["median"], r["min"], r["max"])
                    for r in points
                ],
                ls="--" if name.startswith("flat") else "-",
            )
        axes.set_title("beside a thread that sets bits" if setter == "true" else "alone")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks([0, 1, 10, 50, 100], ["0", "1", "10", "50", "100"])
        axes.set_xlabel("young entries, percent")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_yticks([0.1, 0.2, 0.5, 1, 2, 5, 10, 20])
        axes.minorticks_off()
        low = min(row["min"] for row in rows)
        axes.set_ylim(low / 1.3, max(row["max"] for row in rows) * 1.3)
        axes.set_ylabel("processor ns for each entry")
        axes.tick_params(labelleft=True)
        axes.grid(alpha=0.3, which="both")
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside lower center", ncols=3)
    return figure


def _walk(result: BenchResult) -> Figure | None:
    """Ratios of walks to their limits, with what is promised."""
    points = [
        (f"{row['case']}: {row['contestant']}", ratio)
        for row in _select(result, "walk", "ns_per_item")
        for ratio in row["ratios"]
        if ratio["to"].startswith("flat")
    ]
    if not points:
        return None
    figure = new_figure(9.0, 1.4 + 0.3 * len(points))
    axes = figure.subplots()
    for y, (_, ratio) in enumerate(points):
        axes.plot([ratio["min"], ratio["max"]], [y, y], color="#1b7837", lw=2, alpha=0.5)
        axes.plot(ratio["median"], y, "o", color="#1b7837",
                  label="lockless walk, median and spread" if y == 0 else None)  # fmt: skip
        if ratio["bound"] is not None:
            axes.plot(ratio["bound"], y, "|", color="#d7301f", ms=14, mew=2)
    bounds = [y for y, (_, ratio) in enumerate(points) if ratio["bound"] is not None]
    if bounds:
        axes.plot([], [], "|", color="#d7301f", ms=10, mew=2, label="promised at most")
    axes.axvline(1, color="black", lw=0.8, label="the limit: a loop over a flat array")
    axes.set_yticks(range(len(points)), [name for name, _ in points], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("time / limit")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize="small")
    return figure


#: Name, suite, function, heading, caption, text for who does not see it.
_FIGURES = (
    ("pass-time", "contention", _pass_time, "Aging passes while vCPUs fault",
     "Wall time of an aging pass, one following another, while vCPUs populate their memory;"
     " dotted: its processor time, which the scheduler has no part in. Bars go from the least"
     " repetition to the most.",
     "Time of an aging pass against the number of vCPUs, by MMU and protocol"),
    ("pass-ratio", "contention", _pass_ratio, "Locked against lockless passes",
     "How much longer a pass takes that holds mmu_lock, beside what the series published.",
     "Ratio of locked to lockless pass time against the number of vCPUs"),
    ("guest-slowdown", "contention", _slowdown, "What aging costs the guest",
     "Wall time of the slowest vCPU for each page, as a ratio to the same without aging, from"
     " repetitions that followed each other.",
     "Slowdown of the guest against the number of vCPUs, by MMU and protocol"),
    ("fault-latency", "contention", _latency, "Latency of guest faults while aging runs",
     "As the guest sees it; medians over repetitions, bars from the least to the most.",
     "Percentiles of fault latency by MMU, number of vCPUs and protocol"),
    ("cost-per-page", "aging", _cost_per_page, "Cost per page against guest size",
     "A whole pass through the per-page path: page-table walk, notifier, memslot, SPTE,"
     " generation; alone on the machine.",
     "Processor time per page against guest memory"),
    ("walk-limits", "walk", _walk, "Walks against the physical limit",
     "Range walks over page tables, and rmap chains, as a ratio to a loop over a flat array of"
     " as many words.",
     "Ratio of each walk to its limit"),
    ("spte-cost", "spte", _spte, "Ageing one entry",
     "What one entry costs in a flat array, by how many are young; dashed: the limits.",
     "Processor time per entry against the share of young entries"),
)  # fmt: skip


def _machine(page: Page, result: BenchResult) -> None:
    about, build, asked = result.machine, result.build, result.parameters
    guest = {True: ", a virtual machine", False: "", None: ""}[about["virtual_machine"]]
    caches = ", ".join(f"{name} {size}" for name, size in about["caches"].items())
    memory = about["memory_bytes"]
    rows = [
        ("processor", f"{about['cpu']}, {about['architecture']}{guest}"),
        ("processors", f"{about['processors']} of {about['processors_of_machine']} may be used"),
        ("caches", caches or None),
        ("memory", None if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("system", f"{about['system']}, Python {about['python']}"),
        ("frequency governor", about["governor"]),
        ("used by others meanwhile", None if result.others is None else
         f"{result.others['used']:.1%}, stolen by a hypervisor: {result.others['stolen']:.1%}"),
        ("build", f"youngbit {build['version']}, {build['profile']}, opt-level"
                  f" {build['opt_level']}, {build['rustc']}, {build['target']}"),
        ("run", f"{result.started}, {result.seconds:.0f} s, scale {asked['scale']},"
                f" seed {asked['seed']}"),
        ("suites", ", ".join(f"{name}: {state}" for name, state in result.suites.items())),
    ]  # fmt: skip
    page.table(["", ""], [row for row in rows if row[1] is not None], caption="Machine and run")


def _spread(values: dict[str, Any] | None, digits: int = 2) -> str | None:
    if values is None:
        return None
    median, least, most = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({least}-{most})"


def _comparison(page: Page, result: BenchResult) -> None:
    """Show the published table beside ours, as ratios."""
    data = published()
    theirs = {row["vcpus"]: row for row in data["rows"]}
    found = {(line["kind"], line["mmu"], line["vcpus"]): line for line in result.contention()}
    for kind in dict.fromkeys(kind for kind, _, _ in found):
        passes, guests = [], []
        counts = {count for each, _, count in found if each == kind}
        for count in sorted(counts | set(theirs)):
            ours = [found.get((kind, mmu, count), {}) for mmu in ("tdp", "shadow")]
            known: list[str | None] = [None, None, None]
            if count in theirs:
                row = theirs[count]
                known = [
                    f"{row['pass_s_locked'] / row['pass_s_lockless']:.2f}",
                    f"{row['wall_s_locked'] / row['wall_s_no_aging']:.2f}",
                    f"{row['wall_s_lockless'] / row['wall_s_no_aging']:.2f}",
                ]
            crowd = any(each.get("oversubscribed") for each in ours)
            note = "more threads than processors" if crowd else None
            here = [_spread(each.get("pass")) for each in ours]
            passes.append([str(count), known[0], *here, note])
            here = [_spread(each.get(f"guest_{key}")) for each in ours
                    for key in ("locked", "lockless")]  # fmt: skip
            guests.append([str(count), *known[1:], *here, note])
        page.table(
            ["vCPUs", "published", "here, tdp", "here, shadow", ""],
            passes,
            caption=f"{kind}: time of a locked pass / time of a lockless one, median (least to"
            f" most). Published: {data['source']}.",
        )
        page.table(
            ["vCPUs", "published, locked", "lockless", "tdp, locked", "lockless",
             "shadow, locked", "lockless", ""],
            guests,
            caption=f"{kind}: wall time of the guest while it is aged / without aging, median"
            " (least to most).",
        )  # fmt: skip


def _tables(page: Page, result: BenchResult) -> None:
    page.heading("Every figure, with what was counted")
    page.text("Each case was one contest: its contestants took turns, repetition by repetition.")
    for (suite, case), rows in result.cases().items():
        first = rows[0]
        place = "pinned" if first["pinned"] else "not pinned"
        crowd = ", more than processors" if first["oversubscribed"] else ""
        page.table(
            ["contestant", "figure", "median", "least", "most", "unit", "against"],
            [
                (
                    row["contestant"], row["metric"]["name"], row["median"], row["min"],
                    row["max"], "" if row["metric"]["unit"] == "1" else row["metric"]["unit"],
                    "; ".join(
                        f"{_spread(ratio)} x {ratio['to']}"
                        + ("" if ratio["bound"] is None else f", promised {ratio['bound']:g}")
                        for ratio in row["ratios"]
                    ),
                )
                for row in rows
            ],
            caption=f"{suite}: {case} ({len(first['samples'])} repetitions, {first['threads']}"
            f" threads{crowd}, {place})",
            folded=True,
        )  # fmt: skip
        counted = {row["contestant"]: row["counters"] for row in rows}
        keys = sorted({key for counters in counted.values() for key in counters})
        if keys:
            page.table(
                ["counter", *counted],
                [[key, *(counters.get(key, 0) for counters in counted.values())] for key in keys],
                caption=f"{suite}: {case}: counted in the last repetition",
                folded=True,
            )


def build(result: BenchResult) -> Page:
    """Make the page of a result; it has what the result has.

    Raises:
        ImportError: If matplotlib is not installed.

    """
    page = Page(
        "What lockless aging buys",
        lead="Aging of guest memory with mmu_lock held (baseline) and without it (v7), in one"
        " run, repetition against repetition. Compare ratios: times are this machine's.",
    )
    if not result.is_complete:
        stopped = ", ".join(n for n, state in result.suites.items() if state != COMPLETE)
        page.note(f"The run was stopped: {stopped} did not come to an end. What is here is whole.")
    _machine(page, result)
    if result.is_disturbed:
        page.note("The machine was busy with other work during the run: that is in the times.")
    if any(row["oversubscribed"] for row in result.rows):
        page.note(
            f"Where threads outnumbered the {result.machine['processors']} processors, wall times"
            " are the scheduler's as much as aging's: a thread that holds the lock, or waits in"
            " its queue, may not be running. Such cases are shaded or called crowded; processor"
            " time and lock waits are beside them."
        )
    drawn = set()
    for name, suite, draw, heading, caption, alt in _FIGURES:
        figure = draw(result)
        if figure is None:
            continue
        page.heading(heading)
        page.figure(figure, name=name, caption=caption, alt=alt)
        drawn.add(suite)
        if name == "pass-ratio":
            _comparison(page, result)
    missing = sorted({suite for _, suite, *_ in _FIGURES} - drawn)
    if missing:
        page.note(f"Without figures, for they have no results: {', '.join(missing)}.")
    promises = result.promises()
    if promises:
        page.heading("Promised ratios")
        page.table(
            ["case", "contestant", "against", "median (least to most)", "at most", "held"],
            [
                (row["case"], row["contestant"], ratio["to"], _spread(ratio), ratio["bound"],
                 ratio["median"] <= ratio["bound"])
                for row, ratio in promises
            ],
        )  # fmt: skip
    if result.rows:
        _tables(page, result)
    return page
