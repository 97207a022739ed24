"""One page about a run or a sweep, whose figures can be pointed at and changed.

It shows what was varied, what came out against it, how each run went pass by
pass, what failed, and every column's unit and meaning: all that is needed to
read the figures is in the page.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import defaults
from . import heat_map
from .page import Page

if TYPE_CHECKING:
    from ..lab import Column, Results

__all__ = ["build"]

#: Generations in the order of a stack, and their colours.
_GENERATIONS = {f"pages_{age}": heat_map.AGE_COLOURS[age] for age in (3, 2, 1, 0)}
#: Columns of passes that only ever rise: nobody's first question.
_CLOCKS = ("time", "min_seq", "max_seq", "majority_seq")
_COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#666666")


@dataclass(frozen=True)
class _Runs:
    """The rows of a table, column by column, and what the columns are."""

    columns: dict[str, Column]
    values: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.values.values()), []))

    def of(self, *groups: str) -> list[str]:
        return [name for name, column in self.columns.items() if column.group in groups]

    def different(self, name: str) -> list[Any]:
        """Return the different values of a column, in the order of their rows."""
        return list(dict.fromkeys(self.values[name]))

    def is_number(self, name: str) -> bool:
        return self.columns[name].type in ("int64", "double")

    def label(self, name: str) -> str:
        unit = self.columns[name].unit
        return name if name == unit else f"{name}, {unit}"


def build(results: Results) -> Page:
    """Return the page about results, of a run or of a sweep, finished or not.

    Args:
        results: What ``youngbit.load`` returned.

    Raises:
        ImportError: If plotly is not installed.
        ValueError: If there is no finished run.

    """
    runs = _Runs(results.columns, results.to_arrow().to_pydict())
    # Lists of thousands of numbers a pass stay in Arrow until they are drawn.
    flat = [name for name, each in results.passes.columns.items() if "list" not in each.type]
    table = results.passes.to_arrow()
    passes = _Runs(results.passes.columns, table.select(flat).to_pydict())
    if not len(runs):
        raise ValueError("there is no finished run to report")
    failures = results.failures()
    varied = [
        name for name in runs.of("parameter") if name != "run" and len(runs.different(name)) > 1
    ]
    page = Page(_title(runs), lead=_lead(runs, varied, failures))
    if not results.complete:
        page.note("The sweep is not finished: what follows is of the runs that are.")
    if failures:
        page.heading("Runs that failed")
        page.table(["run", "error"], sorted(failures.items()))
    _varied(page, runs, varied)
    _outcomes(page, runs, varied)
    _maps(page, runs, passes, varied, table)
    _passes(page, runs, passes, varied)
    _about(page, results, runs, passes)
    return page


def _title(runs: _Runs) -> str:
    kinds = ", ".join(str(kind) for kind in runs.different("experiment"))
    return f"{kinds}: {len(runs)} runs" if len(runs) > 1 else f"{kinds}: one run"


def _lead(runs: _Runs, varied: Sequence[str], failures: dict[int, str]) -> str:
    ok = len(runs) - len(failures)
    said = f"{ok} of {len(runs)} runs came to an end." if failures else "No run failed."
    if varied:
        what = ", ".join(f"{name} ({len(runs.different(name))} values)" for name in varied)
        said += f" Varied: {what}."
    return said


def _varied(page: Page, runs: _Runs, varied: Sequence[str]) -> None:
    if varied:
        page.heading("What was varied")
        page.table(
            ["parameter", "values", "unit", "meaning"],
            [
                [name, _values(runs.different(name)), runs.columns[name].unit,
                 runs.columns[name].meaning]
                for name in varied
            ],
        )  # fmt: skip
    held = [name for name in runs.of("parameter") if name not in varied and name != "run"]
    page.table(
        ["parameter", "value", "unit"],
        [[name, str(_shown(runs.values[name][0])), runs.columns[name].unit] for name in held
         if runs.values[name][0] is not None],
        caption="The same in all runs" if len(runs) > 1 else "Parameters",
        folded=True,
    )  # fmt: skip


def _values(values: Sequence[Any]) -> str:
    shown = [str(_shown(value)) for value in values[: defaults.REPORT_VALUES]]
    more = len(values) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _shown(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _telling(runs: _Runs) -> list[str]:
    """Return the numeric columns that differ between runs, counters and times last."""
    found = [
        name
        for name in runs.of("result", "live", "timing")
        if runs.is_number(name)
        and name != "passes"
        and len([value for value in runs.different(name) if value is not None]) > 1
    ]
    return sorted(
        found, key=lambda name: ("counters." in name, runs.columns[name].group == "timing")
    )


def _outcomes(page: Page, runs: _Runs, varied: Sequence[str]) -> None:
    page.heading("What came out")
    telling = _telling(runs)
    settings = [name for name in varied if name != "seed"]
    _summary(page, runs, telling, settings)
    if len(runs) > 1 and telling:
        page.interactive(
            _explorer(runs, telling, varied),
            name="outcomes",
            caption="One point a run. The menus choose what is on either axis; the legend hides"
            " and shows; point at a run to see its number and its parameters.",
        )


def _summary(page: Page, runs: _Runs, telling: Sequence[str], settings: Sequence[str]) -> None:
    """Add a table with a row a setting: medians over its seeds, and how far they spread."""
    chosen = [name for name in telling if "counters." not in name]
    if len(runs) == 1:
        chosen = [
            name
            for name in runs.of("result", "live", "timing")
            if "counters." not in name and runs.values[name][0] is not None
        ]
        page.table(
            ["", "value", "unit", "meaning"],
            [
                [name, _shown(runs.values[name][0]), runs.columns[name].unit,
                 runs.columns[name].meaning]
                for name in chosen
            ],
        )  # fmt: skip
        return
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row in range(len(runs)):
        groups.setdefault(tuple(runs.values[name][row] for name in settings), []).append(row)
    rows = []
    for setting, members in groups.items():
        cells = [str(_shown(value)) for value in setting]
        for name in chosen:
            found = [runs.values[name][row] for row in members]
            cells.append(_median([value for value in found if value is not None]))
        rows.append([*cells, len(members)])
    page.table(
        [*settings, *chosen, "runs"],
        rows[: defaults.REPORT_ROWS],
        caption="Medians over the runs of each setting, and in parentheses the least and the most"
        + _left_out(len(rows)),
        folded=len(rows) > defaults.REPORT_VALUES,
    )


def _left_out(rows: int) -> str:
    return f"; the first {defaults.REPORT_ROWS} of {rows}" if rows > defaults.REPORT_ROWS else ""


def _median(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = statistics.median(values)
    if min(values) == max(values):
        return f"{middle:.4g}"
    # A dash would be one with the minus of an exponent.
    return f"{middle:.4g} ({min(values):.4g} to {max(values):.4g})"


def _plain(value: Any) -> str | int | float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else (
        None if value is None else str(value))  # fmt: skip


def _explorer(runs: _Runs, telling: Sequence[str], varied: Sequence[str]) -> Any:
    """Return a scatter of the runs with a menu for each axis."""
    from plotly.graph_objects import Figure, Scatter

    # First what has most values: an axis shows many, colours few.
    across = sorted(
        [*varied, "run"],
        key=lambda name: (name in ("seed", "run"), -len(runs.different(name))),
    )
    few = [name for name in varied if 1 < len(runs.different(name)) <= len(_COLOURS)]
    # What is not on the horizontal axis at first, and has few values, has the colours.
    colour = next((name for name in few if name not in ("seed", across[0])), None)
    kinds = runs.different(colour) if colour else [None]
    members = [
        [row for row in range(len(runs)) if colour is None or runs.values[colour][row] == kind]
        for kind in kinds
    ]
    texts = list(_settings(runs, varied).values())

    def is_category(name: str) -> bool:
        # Neither a size nor a text of digits is to be taken for the other; and a
        # parameter that some runs leave out has no place among numbers.
        return not runs.is_number(name) or (name in varied and None in runs.values[name])

    def taken(name: str) -> list[list[Any]]:
        shown = str if is_category(name) else _plain
        return [[shown(runs.values[name][row]) for row in rows] for rows in members]

    def axis(name: str) -> dict[str, Any]:
        kind = "category" if is_category(name) else "linear"
        return {"title.text": html.escape(runs.label(name)), "type": kind}

    first, upper = across[0], telling[0]
    figure = Figure(
        [
            Scatter(
                x=x, y=y, text=[texts[row] for row in rows], mode="markers",
                name="runs" if colour is None else html.escape(f"{colour} {_shown(kind)}"),
                marker={"color": _COLOURS[i], "size": 8, "opacity": 0.75},
                hovertemplate="%{text}<br><b>%{y}</b><extra></extra>",
            )
            for i, (kind, rows, x, y) in enumerate(
                zip(kinds, members, taken(first), taken(upper), strict=True)
            )
        ]
    )  # fmt: skip

    def menu(names: Sequence[str], which: str, at: float) -> dict[str, Any]:
        return {
            "buttons": [
                {
                    "label": html.escape(name),
                    "method": "update",
                    "args": [
                        {which: taken(name)},
                        {f"{which}axis.{key}": value for key, value in axis(name).items()},
                    ],
                }
                for name in names
            ],
            "x": at, "xanchor": "left", "y": 1.16, "yanchor": "top", "showactive": True,
        }  # fmt: skip

    figure.update_layout(
        template="plotly_white",
        height=520,
        margin={"t": 70, "r": 20},
        showlegend=colour is not None,
        xaxis={"title": {"text": axis(first)["title.text"]}, "type": axis(first)["type"]},
        yaxis={"title": {"text": axis(upper)["title.text"]}, "rangemode": "tozero"},
        updatemenus=[menu(telling[: defaults.REPORT_COLUMNS], "y", 0.0), menu(across, "x", 0.5)],
    )
    return figure


def _rows(page: Page, passes: _Runs, most: int) -> dict[int, list[int]]:
    """Return the rows of passes of each run that is shown, and say which are."""
    rows: dict[int, list[int]] = {}
    for row, run in enumerate(passes.values["run"]):
        rows.setdefault(run, []).append(row)
    shown = list(rows)[:most]
    if len(shown) < len(rows):
        page.text(f"The first {len(shown)} of {len(rows)} runs that have passes.")
    return {run: rows[run] for run in shown}


def _names(runs: _Runs, varied: Sequence[str]) -> dict[int, str]:
    """Return what menus and legends call each run: its settings too, if there is room."""
    names = {}
    for i, run in enumerate(runs.values["run"]):
        settings = ", ".join(f"{name} {_shown(runs.values[name][i])}" for name in varied)
        names[run] = f"run {run}: {settings}" if settings else f"run {run}"
    if max(map(len, names.values())) > defaults.REPORT_NAME:
        return {run: f"run {run}" for run in names}
    return names


def _settings(runs: _Runs, varied: Sequence[str]) -> dict[int, str]:
    """Return what is shown of each run where a line of it is pointed at."""
    return {
        run: "<br>".join(
            html.escape(f"{name} {_shown(runs.values[name][i])}") for name in ("run", *varied)
        )
        for i, run in enumerate(runs.values["run"])
    }


def _maps(page: Page, runs: _Runs, passes: _Runs, varied: Sequence[str], table: Any) -> None:
    if not (len(passes) and {"row_accesses", "row_ages"} <= passes.columns.keys()):
        return
    page.heading("Accesses, and the generation of each page")
    names = _names(runs, varied)
    at = {run: i for i, run in enumerate(runs.values["run"])}
    maps = [
        heat_map.Map(
            names[run],
            np.array([runs.values["start_time"][at[run]], *(passes.values["time"][i] for i in own)],
                     dtype=np.float64),
            runs.values["footprint_pages"][at[run]],
            np.array(table["row_accesses"].take(own).to_pylist()).T,
            np.array(table["row_ages"].take(own).to_pylist()).T,
        )
        for run, own in _rows(page, passes, defaults.REPORT_MAPS).items()
    ]  # fmt: skip
    page.interactive(
        heat_map.figure(
            maps,
            x="time of the trace",
            y="guest page of 4 KiB",
            buttons=_choose_run([each.name for each in maps], 2),
        ),
        name="heat-map",
        caption="Left: accesses to each row of pages between two aging passes; white is none."
        " Right: how many generations older than the pass the youngest page of the row is; white"
        " is not in memory. Drag to look closer; the menu chooses the run.",
    )


def _passes(page: Page, runs: _Runs, passes: _Runs, varied: Sequence[str]) -> None:
    if not len(passes):
        return
    page.heading("Pass by pass")
    names = _names(runs, varied)
    lines = [
        (names[run] + part, rows)
        for run, own in _rows(page, passes, defaults.REPORT_RUNS).items()
        for part, rows in _parts(passes, own)
    ]
    page.interactive(
        _over_passes(passes, lines, _settings(runs, varied)),
        name="passes",
        caption="One line a run, and a guest or a policy of it. The menu chooses what is shown;"
        " point at a line to see its settings.",
    )
    for columns, name, figure, caption in (
        (
            ["true_pages", "estimated_pages"],
            "working-set",
            _working_set,
            "Pages touched between two passes: the truth, and what aging took for it.",
        ),
        (
            list(_GENERATIONS),
            "generations",
            _generations,
            "Pages in each generation after each pass.",
        ),
    ):
        if all(column in passes.values for column in columns):
            page.interactive(
                figure(passes, lines), name=name, caption=f"{caption} The menu chooses the run."
            )


def _parts(passes: _Runs, rows: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Take the passes of a run apart by what has passes of its own: a guest, a policy."""
    for name in ("vm", "policy"):
        if name in passes.values:
            parts: dict[Any, list[int]] = {}
            for row in rows:
                parts.setdefault(passes.values[name][row], []).append(row)
            if len(parts) > 1:
                return [(f", {name} {which}", part) for which, part in parts.items()]
    return [("", list(rows))]


#: What a line is called, and the rows of its passes.
_Lines = Sequence["tuple[str, list[int]]"]


def _at(passes: _Runs) -> str:
    """Return what is on the horizontal axis: progress, or the size that each pass had."""
    return next(name for name in ("accesses", "capacity_pages", "number") if name in passes.values)


def _over_passes(passes: _Runs, lines: _Lines, settings: dict[int, str]) -> Any:
    from plotly.graph_objects import Figure, Scatter

    at = _at(passes)
    numeric = [
        name
        for name in passes.of("result", "live", "timing")
        if passes.is_number(name)
        and name not in (at, "number", "vm")
        and len(passes.different(name)) > 1
    ] or [at]
    numeric.sort(key=lambda name: ("counters." in name, name in _CLOCKS))
    first = numeric[0]
    figure = Figure(
        [
            Scatter(
                x=[passes.values[at][row] for row in rows],
                y=[_plain(passes.values[first][row]) for row in rows],
                name=html.escape(name),
                line={"color": _COLOURS[i % len(_COLOURS)]},
                meta=[settings[passes.values["run"][rows[0]]]],
                hovertemplate="%{fullData.name}<br>%{fullData.meta[0]}<br>%{x}: <b>%{y}</b>"
                "<extra></extra>",
            )
            for i, (name, rows) in enumerate(lines)
        ]
    )
    buttons = [
        {
            "label": html.escape(name),
            "method": "update",
            "args": [
                {"y": [[_plain(passes.values[name][row]) for row in rows]
                       for _, rows in lines]},
                {"yaxis.title.text": html.escape(passes.label(name))},
            ],
        }
        for name in numeric[: defaults.REPORT_COLUMNS]
    ]  # fmt: skip
    _lay_out(figure, passes.label(at), passes.label(first), buttons)
    figure.update_layout(showlegend=len(lines) > 1)
    return figure


def _lay_out(figure: Any, x: str, y: str, buttons: list[dict[str, Any]]) -> None:
    figure.update_layout(
        template="plotly_white",
        height=480,
        margin={"t": 70, "r": 20},
        xaxis={"title": {"text": html.escape(x)}},
        yaxis={"title": {"text": html.escape(y)}, "rangemode": "tozero"},
        updatemenus=[
            {"buttons": buttons, "x": 0.0, "xanchor": "left", "y": 1.18, "yanchor": "top"}
        ],
    )


def _choose_run(names: Sequence[str], traces: int) -> list[dict[str, Any]]:
    return [
        {
            "label": html.escape(name),
            "method": "restyle",
            "args": ["visible", [i == which for i in range(len(names)) for _ in range(traces)]],
        }
        for which, name in enumerate(names)
    ]


def _steps(passes: _Runs, at: str, rows: list[int]) -> tuple[list[Any], list[int]]:
    """Return where steps end, and the row of each: the first interval begins at 0."""
    return [0, *(passes.values[at][row] for row in rows)], [rows[0], *rows]


def _working_set(passes: _Runs, lines: _Lines) -> Any:
    from plotly.graph_objects import Figure, Scatter

    at = _at(passes)
    figure = Figure()
    for i, (_, rows) in enumerate(lines):
        x, steps = _steps(passes, at, rows)
        for name, shown, style in (
            (
                "true_pages",
                "truth",
                {"fill": "tozeroy", "line": {"color": "#999999", "shape": "vh"}, "mode": "lines"},
            ),
            (
                "estimated_pages",
                "aging",
                {"line": {"color": _COLOURS[0], "shape": "vh"}, "mode": "lines"},
            ),
        ):
            figure.add_trace(
                Scatter(x=x, y=[passes.values[name][row] for row in steps], name=shown,
                        visible=i == 0, **style)
            )  # fmt: skip
    _lay_out(
        figure, passes.label(at), "pages of 4 KiB", _choose_run([name for name, _ in lines], 2)
    )
    return figure


def _generations(passes: _Runs, lines: _Lines) -> Any:
    from plotly.graph_objects import Figure, Scatter

    at = _at(passes)
    figure = Figure()
    for i, (_, rows) in enumerate(lines):
        x, steps = _steps(passes, at, rows)
        for name, colour in _GENERATIONS.items():
            age = int(name[-1])
            figure.add_trace(
                Scatter(
                    x=x, y=[passes.values[name][row] for row in steps], stackgroup=str(i),
                    name="youngest" if age == 0 else f"youngest - {age}",
                    line={"color": colour, "shape": "vh", "width": 0}, fillcolor=colour,
                    visible=i == 0,
                )
            )  # fmt: skip
    _lay_out(
        figure,
        passes.label(at),
        "pages of 4 KiB",
        _choose_run([name for name, _ in lines], len(_GENERATIONS)),
    )
    return figure


def _about(page: Page, results: Results, runs: _Runs, passes: _Runs) -> None:
    page.heading("All of it")
    # Counters that counted nothing say nothing.
    names = [name for name in runs.columns if "counters." not in name or any(runs.values[name])]
    page.table(
        names,
        [
            [_shown(runs.values[name][row]) for name in names]
            for row in range(min(len(runs), defaults.REPORT_ROWS))
        ],
        caption="The table of runs" + _left_out(len(runs)),
        folded=True,
    )
    page.table(
        ["table", "column", "unit", "meaning"],
        [
            [table, name, of.columns[name].unit, of.columns[name].meaning]
            for table, of, chosen in (("runs", runs, names), ("passes", passes, passes.columns))
            for name in chosen
        ],
        caption="What the columns are",
        folded=True,
    )
    page.table(
        ["", "value"],
        list(_flat(results.environment)),
        caption="Version, build and machine",
        folded=True,
    )


def _flat(about: dict[str, Any], before: str = "") -> list[list[str]]:
    rows: list[list[str]] = []
    for key, value in about.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{before}{key}.")
        else:
            rows.append([f"{before}{key}", str(value)])
    return rows
