"""The working set over time: what estimators say, beside the truth."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..sizes import PAGE_SIZE
from . import canvas

if TYPE_CHECKING:
    from ..experiments import EstimateResult, ReplayResult

__all__ = ["estimate_working_sets", "replay_working_set", "working_set_over_time"]

MIB = 1 << 20
_LEGEND_COLUMNS = 3


def working_set_over_time(
    time: npt.ArrayLike,
    truth: npt.ArrayLike,
    estimates: Mapping[str, npt.ArrayLike],
    path: str | os.PathLike[str],
    *,
    begin: float = 0.0,
    unit: str = "guest accesses",
    title: str = "Working set over time",
) -> None:
    """Draw pages touched in each interval, and what each estimator took for touched.

    Below stands by how much each is wrong, in percent of the truth.

    Args:
        time: Where the intervals end.
        truth: Pages touched in each interval.
        estimates: By name, pages that an estimator took for touched.
        path: The file, PNG or SVG by its suffix; it appears whole or not at all.
        begin: Where the first interval begins.
        unit: What time is counted in.
        title: Above the picture.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the suffix is neither, or lengths differ.

    """
    canvas.format_of(path)
    edges = np.concatenate(([begin], np.asarray(time, dtype=np.float64)))
    true = np.asarray(truth, dtype=np.float64)
    found = {name: np.asarray(pages, dtype=np.float64) for name, pages in estimates.items()}
    for name, pages in {"truth": true, **found}.items():
        if pages.shape != (len(edges) - 1,):
            raise ValueError(f"{name}: {pages.size} values for {len(edges) - 1} intervals")
    figure = canvas.new(9, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    mib = PAGE_SIZE / MIB
    upper.stairs(true * mib, edges, fill=True, color="#cccccc", label="truth")
    for number, (name, pages) in enumerate(found.items()):
        # Those that agree lie on each other: the first is the widest, so that all are
        # seen. The first colour for the first estimator in both parts.
        style: dict[str, Any] = {"lw": 1.2 + (len(found) - 1 - number)}
        [line] = upper.plot([], [], label=name, **style)
        style["color"] = line.get_color()
        upper.stairs(pages * mib, edges, baseline=None, **style)
        error = np.divide(
            100.0 * (pages - true), true, out=np.full(len(true), np.nan), where=true > 0
        )
        lower.stairs(error, edges, baseline=None, **style)
    lower.axhline(0.0, color="black", lw=0.8)
    # Room for the legend, above what is drawn.
    rows = -(-(1 + len(found)) // _LEGEND_COLUMNS)
    most = max(float(each.max(initial=0)) for each in (true, *found.values()))
    upper.set_ylim(0, (1.1 + 0.09 * rows) * most * mib or 1)
    upper.set_title(title)
    upper.set_ylabel("touched in the interval, MiB")
    upper.legend(loc="upper left", ncols=_LEGEND_COLUMNS, fontsize="small")
    lower.set_ylabel("error, % of truth")
    lower.set_xlabel(unit)
    canvas.save(figure, path)


def replay_working_set(result: ReplayResult, path: str | os.PathLike[str]) -> None:
    """Draw the working set of a replay: the estimate of aging beside the truth.

    Args:
        result: The replay.
        path: The file, PNG or SVG by its suffix; it appears whole or not at all.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the suffix is neither.

    """
    canvas.format_of(path)
    working_set_over_time(
        [each.accesses for each in result.passes],
        [each.true_pages for each in result.passes],
        {"aging": [each.estimated_pages for each in result.passes]},
        path,
        title=f"Working set of {canvas.short(result.trace['source'])}, aged every"
        f" {result.parameters['every']:,} accesses",
    )


def estimate_working_sets(result: EstimateResult, path: str | os.PathLike[str]) -> None:
    """Draw the working set over time: the truth, and what each estimator says of it.

    Arguments and errors as `replay_working_set`.
    """
    intervals = result.estimators[0].intervals
    every = result.parameters["every"]
    working_set_over_time(
        [each.accesses for each in intervals],
        [each.true_pages for each in intervals],
        {
            each.name: [interval.estimated_pages for interval in each.intervals]
            for each in result.estimators
        },
        path,
        begin=result.parameters["warm_up"] * every,
        title=f"Working set of {canvas.short(result.workload['name'])} in {every:,} accesses",
    )
