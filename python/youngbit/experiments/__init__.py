"""Experiments: policy over the machine, through public calls only."""

from __future__ import annotations

from .access_tracking import AccessTracking, AccessTrackingResult, CheckFailed
from .bench import Bench, BenchResult
from .contention import Contention, ContentionPoint, ContentionResult, ContentionRun, Spread
from .estimate import ESTIMATORS, Estimate, EstimateResult, EstimatorResult
from .heat_map import HeatMap, HeatMapResult
from .policies import ALGORITHMS, PoliciesResult, PolicyRow, ReclaimPolicies
from .reclaim import Phase, Reclaim, ReclaimResult, ReclaimRun, Workload
from .replay import Replay, ReplayPass, ReplayResult
from .scenario import Conformance, ConformanceResult, Scenario, ScenarioResult
from .stress import Stress, StressFailure, StressResult

__all__ = [
    "ALGORITHMS",
    "ESTIMATORS",
    "AccessTracking",
    "AccessTrackingResult",
    "Bench",
    "BenchResult",
    "CheckFailed",
    "Conformance",
    "ConformanceResult",
    "Contention",
    "ContentionPoint",
    "ContentionResult",
    "ContentionRun",
    "Estimate",
    "EstimateResult",
    "EstimatorResult",
    "HeatMap",
    "HeatMapResult",
    "Phase",
    "PoliciesResult",
    "PolicyRow",
    "Reclaim",
    "ReclaimPolicies",
    "ReclaimResult",
    "ReclaimRun",
    "Replay",
    "ReplayPass",
    "ReplayResult",
    "Scenario",
    "ScenarioResult",
    "Spread",
    "Stress",
    "StressFailure",
    "StressResult",
    "Workload",
]
