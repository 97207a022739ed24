"""Heat maps that can be pointed at: accesses, and the generation of each page beside them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import defaults
from ..experiments.heat_map import ABSENT, page_edges

__all__ = ["AGE_COLOURS", "Map", "figure"]

#: Colours of ages in generations, the last also of what is older.
AGE_COLOURS = ("#fde725", "#21918c", "#3b528b", "#440154")
_AGE_NAMES = ("touched", "1 older", "2 older", "3 older<br>or more")
#: From few accesses to many; the lightest can be told from white, which is none.
_COUNTS = [[0.0, "#fac228"], [0.35, "#e8602d"], [0.7, "#932667"], [1.0, "#0d0829"]]


@dataclass(frozen=True)
class Map:
    """One run's: rows are pages, columns the time between two aging passes."""

    #: What the menu calls it.
    name: str
    #: Edges of the columns, in the trace's time, one more than there are columns.
    times: npt.NDArray[np.float64]
    #: Different pages that the guest has.
    nr_pages: int
    #: Accesses, rows by columns.
    accesses: npt.NDArray[np.int64]
    #: How many generations older each row's youngest page is, rows by columns.
    ages: npt.NDArray[np.int64]

    def coarser(self, columns: int) -> Map:
        """Return a map of at most so many columns: accesses add up, the last age stands."""
        have = len(self.times) - 1
        if have <= columns:
            return self
        ends = np.linspace(0, have, columns + 1).astype(np.int64)
        return Map(
            self.name,
            self.times[ends],
            self.nr_pages,
            np.add.reduceat(self.accesses, ends[:-1], axis=1),
            self.ages[:, ends[1:] - 1],
        )


def figure(maps: Sequence[Map], *, x: str, y: str, buttons: list[dict[str, Any]]) -> Any:
    """Draw two maps side by side for each run, of which one run is seen.

    Args:
        maps: One a run.
        x: What is across.
        y: What is up.
        buttons: Of the menu; each chooses a run's two.

    """
    from plotly.graph_objects import Figure, Heatmap

    drawn = Figure()
    for which, each in enumerate(maps):
        few = each.coarser(defaults.REPORT_MAP_COLUMNS)
        edges = page_edges(few.nr_pages, len(few.accesses))
        counted = np.where(few.accesses > 0, few.accesses, np.nan)
        top = max(float(np.nanmax(np.log10(counted), initial=0.0)), 1.0)
        ticks = list(range(int(top) + 1))
        same = {"x": few.times, "y": edges, "visible": which == 0}
        at = f"{html.escape(x)} %{{x}}<br>page %{{y}}<br>"
        drawn.add_trace(
            Heatmap(
                z=np.log10(counted).astype(np.float32),
                customdata=few.accesses.astype(np.int32),
                zmin=0.0, zmax=top, colorscale=_COUNTS, name="accesses",
                hovertemplate=f"{at}<b>%{{customdata}}</b> accesses<extra></extra>",
                colorbar={
                    "title": {"text": "accesses", "side": "right"}, "orientation": "h",
                    "x": 0.22, "len": 0.44, "y": -0.16, "yanchor": "top", "thickness": 12,
                    "tickvals": ticks, "ticktext": [f"{10**tick:,}" for tick in ticks],
                },
                **same,
            )
        )  # fmt: skip
        drawn.add_trace(
            Heatmap(
                z=np.where(few.ages == ABSENT, np.nan, few.ages).astype(np.float32),
                zmin=-0.5, zmax=len(AGE_COLOURS) - 0.5, xaxis="x2", name="generation",
                colorscale=[
                    [end / len(AGE_COLOURS), colour]
                    for age, colour in enumerate(AGE_COLOURS) for end in (age, age + 1)
                ],
                hovertemplate=f"{at}<b>%{{z}}</b> generations older<extra></extra>",
                colorbar={
                    "title": {"text": "generation", "side": "right"}, "orientation": "h",
                    "x": 0.78, "len": 0.44, "y": -0.16, "yanchor": "top", "thickness": 12,
                    "tickvals": list(range(len(AGE_COLOURS))), "ticktext": list(_AGE_NAMES),
                },
                **same,
            )
        )  # fmt: skip
    drawn.update_layout(
        template="plotly_white",
        height=620,
        margin={"t": 70, "r": 20, "b": 150},
        xaxis={"domain": [0.0, 0.47], "title": {"text": html.escape(x)}},
        xaxis2={
            "domain": [0.53, 1.0], "title": {"text": html.escape(x)}, "matches": "x",
            "anchor": "y",
        },
        yaxis={"title": {"text": html.escape(y)}},
        updatemenus=[
            {"buttons": buttons, "x": 0.0, "xanchor": "left", "y": 1.14, "yanchor": "top"}
        ],
    )  # fmt: skip
    return drawn
