"""Experiments: policy over the machine, through public calls only."""

from __future__ import annotations

from .access_tracking import AccessTracking, AccessTrackingResult, CheckFailed
from .replay import Replay, ReplayPass, ReplayResult

__all__ = [
    "AccessTracking",
    "AccessTrackingResult",
    "CheckFailed",
    "Replay",
    "ReplayPass",
    "ReplayResult",
]
