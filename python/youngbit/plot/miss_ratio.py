"""Miss-ratio curves: what ways of reclaiming miss, over sizes of memory."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..reuse import MissRatios
from ..sizes import PAGE_SIZE
from . import canvas

__all__ = ["miss_ratio_curves"]

MIB = 1 << 20


def miss_ratio_curves(
    curves: Iterable[MissRatios],
    path: str | os.PathLike[str],
    *,
    title: str = "Misses over sizes of memory",
) -> None:
    """Draw a curve for each way of reclaiming.

    Args:
        curves: The curves, from `youngbit.reuse` or made of figures of your own.
        path: The file, PNG or SVG by its suffix; it appears whole or not at all.
        title: Above the picture.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the suffix is neither, or there is no curve.

    """
    canvas.format_of(path)
    drawn = list(curves)
    if not drawn:
        raise ValueError("curves: expected at least one")
    figure = canvas.new(8, 5)
    axes = figure.subplots()
    for curve in drawn:
        bound = curve.name.startswith("optimal")
        axes.plot(
            curve.pages * (PAGE_SIZE / MIB),
            curve.ratios * 100,
            label=curve.name,
            color="#666666" if bound else None,
            ls="--" if bound else "-",
            marker="." if len(curve.pages) <= 40 else None,
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_title(title)
    axes.set_xlabel("memory that may stay, MiB")
    axes.set_ylabel("misses, % of accesses")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    canvas.save(figure, path)
