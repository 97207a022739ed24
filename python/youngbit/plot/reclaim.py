"""A comparison of reclaim over time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from . import canvas

if TYPE_CHECKING:
    from ..experiments import ReclaimResult

__all__ = ["reclaim_over_time"]


def reclaim_over_time(result: ReclaimResult, path: str | os.PathLike[str]) -> None:
    """Draw a comparison: hot evictions, refaults and memory over time, run by run.

    Args:
        result: The comparison.
        path: The file, PNG or SVG by its suffix; it appears whole or not at all.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the suffix is neither.

    """
    canvas.format_of(path)
    figure = canvas.new(9, 8)
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
        f"Reclaim from {canvas.short(result.workload['name'])},"
        f" {result.workload['pages']:,} pages:\n"
        f"secondary MMU walks off and on, pressure {parameters['pressure']}"
    )
    hot.set_ylabel(f"hot pages evicted,\nused within {parameters['window']:,}")
    refaults.set_ylabel("refaults")
    memory.set_ylabel("pages of 4 KiB in memory")
    memory.set_xlabel("guest accesses, thousands")
    # Sums begin at nothing and memory does not: one leaves room above, the other below.
    for axes, where in ((hot, "upper left"), (refaults, "upper left"), (memory, "lower right")):
        axes.set_ylim(bottom=0)
        axes.legend(loc=where, fontsize="small")
    canvas.save(figure, path)
