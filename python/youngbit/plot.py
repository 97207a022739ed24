"""Pictures of experiments; they need matplotlib (``pip install youngbit[plot]``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from . import defaults
from ._files import atomic_write

if TYPE_CHECKING:
    from .experiments import ReplayResult

__all__ = ["generations_over_time"]


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
    x = np.array([each.accesses for each in passes]) / 1000
    rank = np.zeros((4, len(passes)), dtype=np.int64)
    for i, each in enumerate(passes):
        # The youngest is always empty after a pass: the walk promoted to the one before it.
        for age, generation in enumerate(reversed(each.generations[-4:])):
            rank[age, i] = generation.nr_pages

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    names = ("youngest", "second youngest: touched since the last pass", "third", "oldest")
    colours = ("#fde725", "#5ec962", "#21918c", "#3b528b")
    width = float(x[0]) if len(x) == 1 else float(np.diff(x, prepend=0.0).max())
    base = np.zeros(len(passes), dtype=np.int64)
    for age in (3, 2, 1, 0):
        upper.bar(
            x - width / 2, rank[age], width, bottom=base, color=colours[age], label=names[age]
        )
        base += rank[age]
    upper.set_ylabel("pages of 4 KiB")
    upper.set_title(f"Generations after each aging pass: {result.trace['source']}")
    upper.legend(loc="lower right", fontsize="small")
    lower.step(x, [each.true_pages for each in passes], where="mid", label="touched (truth)")
    lower.step(
        x, [each.estimated_pages for each in passes], where="mid", ls="--", label="estimated"
    )
    lower.set_xlabel("guest accesses, thousands")
    lower.set_ylabel("pages of 4 KiB")
    lower.set_ylim(bottom=0)
    lower.legend(fontsize="small")
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=defaults.PLOT_DPI)
