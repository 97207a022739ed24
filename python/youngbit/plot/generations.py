"""A replay over time: the stack of generations, and estimate against truth."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from . import canvas

if TYPE_CHECKING:
    from ..experiments import ReplayResult

__all__ = ["generations_over_time"]


def generations_over_time(result: ReplayResult, path: str | os.PathLike[str]) -> None:
    """Draw a replay: pages in each generation after each pass, estimate and truth.

    Args:
        result: The replay.
        path: The file, PNG or SVG by its suffix; it appears whole or not at all.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the suffix is neither.

    """
    canvas.format_of(path)
    passes = result.passes
    edges = np.array([0, *(each.accesses for each in passes)]) / 1000
    # After a pass the youngest generation is new and empty; what was touched is
    # in the one before it.
    layers = np.zeros((3, len(passes)), dtype=np.int64)
    for i, each in enumerate(passes):
        for age, generation in enumerate(reversed(each.generations[-4:-1])):
            layers[age, i] = generation.nr_pages

    figure = canvas.new(9, 6)
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
    upper.set_title(f"Generations after each aging pass: {canvas.short(result.trace['source'])}")
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
    canvas.save(figure, path)
