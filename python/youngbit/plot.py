"""Pictures of experiments; they need matplotlib (``pip install youngbit[plot]``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from . import defaults
from ._files import atomic_write

if TYPE_CHECKING:
    from .experiments import ReclaimResult, ReplayResult

__all__ = ["generations_over_time", "reclaim_over_time"]


def generations_over_time(result: ReplayResult, path: str | os.PathLike[str]) -> None:
    """Draw a replay: pages in each generation after each pass, estimate and truth.

    Args:
        result: The replay.
        path: The PNG file; it appears whole or not at all.

    Raises:
        ImportError: If matplotlib is not installed.

    """
    # Never a window: the backend is chosen with the canvas.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    passes = result.passes
    edges = np.array([0, *(each.accesses for each in passes)]) / 1000
    # After a pass the youngest generation is new and empty; what was touched is
    # in the one before it.
    layers = np.zeros((3, len(passes)), dtype=np.int64)
    for i, each in enumerate(passes):
        for age, generation in enumerate(reversed(each.generations[-4:-1])):
            layers[age, i] = generation.nr_pages

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    names = ("touched since the pass before", "one generation older", "oldest")
    colours = ("#fde725", "#21918c", "#3b528b")
    base = np.zeros(len(passes), dtype=np.int64)
    for age in (2, 1, 0):
        upper.stairs(
            base + layers[age],
            edges,
            baseline=base,
            fill=True,
            color=colours[age],
            label=names[age],
        )
        base += layers[age]
    upper.set_ylim(0, 1.2 * max(int(base.max()), 1))
    upper.set_ylabel("pages of 4 KiB")
    upper.set_title(f"Generations after each aging pass: {result.trace['source']}")
    upper.legend(loc="upper left", ncols=3, fontsize="small")
    lower.stairs([each.true_pages for each in passes], edges, baseline=None, label="touched, truth")
    lower.stairs(
        [each.estimated_pages for each in passes],
        edges,
        baseline=None,
        ls="--",
        label="touched, estimate of aging",
    )
    lower.set_xlabel("guest accesses, thousands")
    lower.set_ylabel("pages of 4 KiB")
    lower.set_ylim(bottom=0)
    lower.legend(fontsize="small")
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=defaults.PLOT_DPI)


def reclaim_over_time(result: ReclaimResult, path: str | os.PathLike[str]) -> None:
    """Draw a comparison: hot evictions, refaults and memory over time, run by run.

    Args:
        result: The comparison.
        path: The PNG file; it appears whole or not at all.

    Raises:
        ImportError: If matplotlib is not installed.

    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    hot, refaults, memory = figure.subplots(3, 1, sharex=True)
    runs = (
        (result.last.off, "0x8 off", "#d95f02", "-"),
        (result.last.on, "0x8 on", "#1b9e77", "-"),
        (result.last.lru, "exact LRU", "#7570b3", ":"),
        (result.last.oracle, "oracle", "#666666", "--"),
    )
    for run, name, colour, line in runs:
        x = np.array([0, *(tick.accesses for tick in run.ticks)]) / 1000
        style = {"label": name, "color": colour, "ls": line}
        for axes, key in ((hot, "hot"), (refaults, "refaults")):
            total = np.cumsum([0, *(getattr(tick, key) for tick in run.ticks)])
            axes.plot(x, total, **style)
        memory.plot(x[1:], [tick.resident for tick in run.ticks], **style)
    parameters = result.parameters
    memory.axhline(parameters["capacity"], color="black", lw=0.8, ls=":", label="limit")
    hot.set_title(
        f"Reclaim from {result.workload['name']}, {result.workload['pages']:,} pages:"
        f" secondary MMU walks off and on, pressure {parameters['pressure']}"
    )
    hot.set_ylabel(f"hot pages evicted,\nused within {parameters['window']:,}")
    refaults.set_ylabel("refaults")
    memory.set_ylabel("pages of 4 KiB in memory")
    memory.set_xlabel("guest accesses, thousands")
    for axes in (hot, refaults, memory):
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", fontsize="small")
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=defaults.PLOT_DPI)
