"""Distributions: which share of the values is at most so large."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from . import canvas

__all__ = ["distributions", "share_at_most"]


def share_at_most(
    values: npt.ArrayLike,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the different values, rising, and the share of all that is at most each.

    Negative values stand for "never": they count among all and are no value, so
    the last share is below 1 where there are some.

    >>> [part.tolist() for part in share_at_most([1, 1, 4, -1])]
    [[1.0, 4.0], [0.5, 0.75]]
    """
    all_ = np.asarray(values, dtype=np.float64).ravel()
    there, counts = np.unique(all_[all_ >= 0], return_counts=True)
    return there, np.cumsum(counts) / max(all_.size, 1)


def distributions(
    samples: Mapping[str, npt.ArrayLike],
    path: str | os.PathLike[str],
    *,
    unit: str,
    what: str = "accesses",
    title: str = "Distribution",
) -> None:
    """Draw the cumulative distribution of each sample.

    Args:
        samples: Values by name; negative ones stand for "never" (a first use, a
            page that is not there), and keep a curve below 100%.
        path: The file, PNG or SVG by its suffix; it appears whole or not at all.
        unit: What the values are, with their unit.
        what: What there is a value of each.
        title: Above the picture.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the suffix is neither, or there is no value.

    """
    canvas.format_of(path)
    curves = {name: share_at_most(values) for name, values in samples.items()}
    if not curves:
        raise ValueError("samples: expected at least one")
    for name, (values, _) in curves.items():
        if not values.size:
            raise ValueError(f"samples: {name!r} has no value to draw")
    figure = canvas.new(8, 5)
    axes = figure.subplots()
    for name, (values, shares) in curves.items():
        at = np.concatenate((values[:1], values))
        axes.step(at, np.concatenate(([0.0], shares)) * 100, where="post", label=name)
    largest = max(float(values[-1]) for values, _ in curves.values())
    if largest > 100:
        # From a neighbour to the whole footprint: only a logarithm shows both.
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0)
    axes.set_ylim(0, 100)
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.set_ylabel(f"{what} with at most that, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    canvas.save(figure, path)
