"""Experiments: policy over the machine, through public calls only."""

from __future__ import annotations

from .access_tracking import AccessTracking, AccessTrackingResult, CheckFailed
from .reclaim import Phase, Reclaim, ReclaimResult, ReclaimRun, Workload
from .replay import Replay, ReplayPass, ReplayResult
from .scenario import Conformance, ConformanceResult, Scenario, ScenarioResult

__all__ = [
    "AccessTracking",
    "AccessTrackingResult",
    "CheckFailed",
    "Conformance",
    "ConformanceResult",
    "Phase",
    "Reclaim",
    "ReclaimResult",
    "ReclaimRun",
    "Replay",
    "ReplayPass",
    "ReplayResult",
    "Scenario",
    "ScenarioResult",
    "Workload",
]
