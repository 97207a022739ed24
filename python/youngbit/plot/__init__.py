"""Pictures of experiments; they need matplotlib (``pip install youngbit[plot]``).

Every picture is a file, PNG or SVG by its suffix, and appears whole or not at
all. Anything else than these suffixes is a ``ValueError`` before anything is drawn.
"""

from __future__ import annotations

from .canvas import FORMATS, format_of
from .distribution import distributions, share_at_most
from .generations import generations_over_time
from .heat_map import heat_map
from .miss_ratio import miss_ratio_curves, policy_miss_ratios
from .reclaim import reclaim_over_time
from .working_set import (
    estimate_working_sets,
    replay_working_set,
    working_set_over_time,
)

__all__ = [
    "FORMATS",
    "distributions",
    "estimate_working_sets",
    "format_of",
    "generations_over_time",
    "heat_map",
    "miss_ratio_curves",
    "policy_miss_ratios",
    "reclaim_over_time",
    "replay_working_set",
    "share_at_most",
    "working_set_over_time",
]
