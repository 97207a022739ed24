"""Pictures of experiments; they need matplotlib (``pip install youngbit[plot]``).

Every picture is a file, PNG or SVG by its suffix, and appears whole or not at
all. Anything else than these suffixes is a ``ValueError`` before anything is drawn.
"""

from __future__ import annotations

from .canvas import FORMATS, format_of
from .distribution import distributions, share_at_most
from .generations import generations_over_time
from .miss_ratio import miss_ratio_curves
from .reclaim import reclaim_over_time
from .working_set import replay_working_set, working_set_over_time

__all__ = [
    "FORMATS",
    "distributions",
    "format_of",
    "generations_over_time",
    "miss_ratio_curves",
    "reclaim_over_time",
    "replay_working_set",
    "share_at_most",
    "working_set_over_time",
]
