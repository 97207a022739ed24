"""Experiments: policy over the machine, through public calls only."""

from __future__ import annotations

from .access_tracking import AccessTracking, AccessTrackingResult, CheckFailed
from .bench import Bench, BenchResult
from .reclaim import Reclaim, ReclaimResult, ReclaimRun, Workload
from .replay import Replay, ReplayPass, ReplayResult
from .scenario import Conformance, ConformanceResult, Scenario, ScenarioResult

__all__ = [
    "AccessTracking",
    "AccessTrackingResult",
    "Bench",
    "BenchResult",
    "CheckFailed",
    "Conformance",
    "ConformanceResult",
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
