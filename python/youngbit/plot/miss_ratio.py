"""Miss-ratio curves: what ways of reclaiming miss, over sizes of memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..reuse import MissRatios
from ..sizes import PAGE_SIZE
from . import canvas

if TYPE_CHECKING:
    from ..experiments import PoliciesResult

__all__ = ["miss_ratio_curves", "policy_miss_ratios"]

MIB = 1 << 20
#: What nothing can miss less than.
_BOUNDS = ("optimal", "belady")


def miss_ratio_curves(
    curves: Iterable[MissRatios],
    path: str | os.PathLike[str],
    *,
    first_uses: float | None = None,
    title: str = "Misses over sizes of memory",
) -> None:
    """Draw a curve for each way of reclaiming.

    Args:
        curves: The curves, from `youngbit.reuse` or made of figures of your own.
        path: The file, PNG or SVG by its suffix; it appears whole or not at all.
        first_uses: The share of accesses that miss with any memory, drawn as a line.
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
        bound = curve.name.startswith(_BOUNDS)
        axes.plot(
            curve.pages * (PAGE_SIZE / MIB),
            curve.ratios * 100,
            label=curve.name,
            color="#666666" if bound else None,
            ls="--" if bound else "-",
            marker="." if len(curve.pages) <= 40 else None,
        )
    if first_uses is not None:
        axes.axhline(first_uses * 100, color="grey", lw=0.8, ls=":", label="first uses")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_title(title)
    axes.set_xlabel("memory that may stay, MiB")
    axes.set_ylabel("misses, % of accesses")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    canvas.save(figure, path)


def policy_miss_ratios(result: PoliciesResult, path: str | os.PathLike[str]) -> None:
    """Draw the miss ratio of each policy of a comparison.

    Args:
        result: The comparison.
        path: The file, PNG or SVG by its suffix; it appears whole or not at all.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the suffix is neither.

    """
    about = result.workload
    miss_ratio_curves(
        [
            MissRatios(name, np.array(sizes), np.array(ratios))
            for name in result.names
            for sizes, ratios in [result.curve(name)]
        ],
        path,
        first_uses=about["pages"] / max(about["accesses"], 1),
        title=f"Misses of {canvas.short(about['name'])}, {about['pages']:,} pages",
    )
