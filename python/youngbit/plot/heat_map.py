"""A recorded program over address and time, and the generation of each page beside it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from . import canvas

if TYPE_CHECKING:
    from ..experiments import HeatMapResult

__all__ = ["heat_map"]

_AGES = ("touched since the pass before", "1 generation older", "2 older", "3 older or more")
#: Where the colours of counts begin.
_LIGHTEST = 0.25
_AGE_COLOURS = ("#fde725", "#35b779", "#31688e", "#440154")


def heat_map(result: HeatMapResult, path: str | os.PathLike[str]) -> None:
    """Draw accesses over address and time, and the generation of each page beside them.

    Args:
        result: What was counted.
        path: The file, PNG or SVG by its suffix; it appears whole or not at all.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the suffix is neither.

    """
    canvas.format_of(path)
    figure = canvas.new(12, 5.5)
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm
    from matplotlib.patches import Patch
    from matplotlib.ticker import EngFormatter

    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    counts = np.ma.masked_equal(result.accesses, 0)
    drawn = left.pcolormesh(
        result.time_edges,
        result.page_edges,
        counts,
        norm=LogNorm(1, max(int(result.accesses.max()), 2)),
        # Its light end could not be told from white, which is no event at all.
        cmap=ListedColormap(colormaps["inferno_r"](np.linspace(_LIGHTEST, 1, 256))),
        rasterized=True,
    )
    unit = "instructions" if result.trace["window"] else "of the trace's time"
    width = result.time_edges[1] - result.time_edges[0]
    height = (result.page_edges[-1] - result.page_edges[0]) / len(result.accesses)
    pages = "1 page" if height == 1 else f"{height:.3g} pages"
    figure.colorbar(
        drawn,
        ax=left,
        location="bottom",
        aspect=40,
        label=f"events in {pages} and {width:,.0f} {unit}, logarithmic",
    )
    left.set_title(f"Accesses: {canvas.short(result.trace['source'])}")
    left.set_ylabel("guest page of 4 KiB, " + {
        "address": "by address, gaps taken out", "touch": "by first touch",
    }[result.parameters["layout"]])  # fmt: skip

    # A pass in no time at all has no width to be drawn in.
    edges = result.pass_times.copy()
    step = max(float(edges[-1] - edges[0]), 1.0) * 1e-9
    edges += np.arange(len(edges)) * step
    ages = np.ma.masked_less(np.minimum(result.ages, len(_AGES) - 1), 0)
    right.pcolormesh(
        edges,
        result.page_edges,
        ages,
        cmap=ListedColormap(_AGE_COLOURS),
        norm=BoundaryNorm(np.arange(len(_AGES) + 1) - 0.5, len(_AGES)),
        rasterized=True,
    )
    right.set_title(f"Generation of each page, aged every {result.parameters['every']:,} accesses")
    patches = [
        Patch(color=colour, label=name) for colour, name in zip(_AGE_COLOURS, _AGES, strict=True)
    ]
    patches.append(Patch(facecolor="white", edgecolor="grey", label="not in memory"))
    figure.legend(handles=patches, loc="outside lower center", ncols=5, fontsize="small")
    for axes in (left, right):
        axes.set_xlabel("instructions" if result.trace["window"] else "time of the trace")
        axes.xaxis.set_major_formatter(EngFormatter())
    canvas.save(figure, path)
