"""Pictures of traces, estimators and policies; they need matplotlib (``youngbit[plot]``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .plot import canvas
from .traces._read import missing

if TYPE_CHECKING:
    from .experiments import EstimateResult, HeatMapResult, PoliciesResult

__all__ = ["ENDINGS", "heat_map", "miss_ratio_curves", "working_sets"]

#: Endings of the pictures that can be written.
ENDINGS = canvas.FORMATS

_AGES = ("touched since the pass before", "1 generation older", "2 older", "3 older or more")
_AGE_COLOURS = ("#fde725", "#35b779", "#31688e", "#440154")


def _figure(width: float, height: float) -> Any:
    try:
        return canvas.new(width, height)
    except ImportError:
        raise missing("a picture", "matplotlib", "plot") from None


def heat_map(result: HeatMapResult, path: str | os.PathLike[str]) -> None:
    """Draw accesses over address and time, and the generation of each page beside them.

    Args:
        result: What was counted.
        path: The PNG or SVG file; it appears whole or not at all.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the file's ending is neither.

    """
    figure = _figure(12, 5.5)
    from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm
    from matplotlib.patches import Patch

    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    counts = np.ma.masked_equal(result.accesses, 0)
    drawn = left.pcolormesh(
        result.time_edges,
        result.page_edges,
        counts,
        norm=LogNorm(1, max(int(result.accesses.max()), 2)),
        cmap="inferno_r",
        rasterized=True,
    )
    width = (result.time_edges[1] - result.time_edges[0]) / 1e6
    height = (result.page_edges[-1] - result.page_edges[0]) / len(result.accesses)
    figure.colorbar(
        drawn,
        ax=left,
        location="bottom",
        aspect=40,
        label=f"events in {height:.3g} pages and {width:.3g} M of time, log",
    )
    left.set_title(f"Accesses: {result.trace['source']}")
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
    unit = "instructions" if result.trace["window"] else "time of the trace"
    for axes in (left, right):
        axes.set_xlabel(unit)
    canvas.save(figure, path)


def working_sets(result: EstimateResult, path: str | os.PathLike[str]) -> None:
    """Draw the working set over time: the truth, and each estimate of it.

    Arguments and errors as `heat_map`.
    """
    figure = _figure(10, 5)
    axes = figure.subplots()
    for each in result.estimators:
        x = [interval.accesses / 1000 for interval in each.intervals]
        sizes = [interval.estimated_pages for interval in each.intervals]
        axes.plot(x, sizes, label=f"{each.name}: {each.what}", lw=1.2, alpha=0.85)
    intervals = result.estimators[0].intervals
    axes.plot(
        [interval.accesses / 1000 for interval in intervals],
        [interval.true_pages for interval in intervals],
        label="truth", color="black", ls="--", lw=1.6,
    )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlabel("guest accesses, thousands")
    axes.set_ylabel(f"pages of 4 KiB in {result.parameters['every']:,} accesses")
    axes.set_title(f"Working set of {result.workload['name']}: truth and estimates")
    axes.legend(fontsize="small")
    canvas.save(figure, path)


def miss_ratio_curves(result: PoliciesResult, path: str | os.PathLike[str]) -> None:
    """Draw the miss ratio of each policy over the size of memory.

    Arguments and errors as `heat_map`.
    """
    figure = _figure(9, 5.5)
    axes = figure.subplots()
    for name in result.names:
        sizes, ratios = result.curve(name)
        thick = name.startswith("mglru")
        style = {"lw": 2.2 if thick else 1.2, "ls": ":" if name == "belady" else "-"}
        axes.plot(sizes, ratios, marker="o", ms=3, label=name, **style)
    first = result.workload["pages"] / max(result.workload["accesses"], 1)
    axes.axhline(first, color="grey", lw=0.8, ls="--", label="first touches")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("pages of 4 KiB that may stay in memory")
    axes.set_ylabel("misses, share of accesses")
    axes.set_title(f"Miss ratio of {result.workload['name']}, {result.workload['pages']:,} pages")
    axes.legend(fontsize="small")
    canvas.save(figure, path)
