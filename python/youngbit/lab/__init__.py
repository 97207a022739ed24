"""The laboratory: experiments as data, sweeps of them, and tables of results.

An experiment is a frozen dataclass, written as TOML or in Python; ``run`` gives
one row and a table of passes. ``docs/experiments.md`` is the guide.
"""

from __future__ import annotations

from ..experiments.access_tracking import AccessTracking
from ..experiments.aging import Aging, Machine, Pressure, Schedule, VirtualMachine
from ..experiments.stress import Stress
from ..experiments.workloads import (
    HotCold,
    Sequential,
    TraceFile,
    TraceWorkload,
    Uniform,
    Zipf,
)
from .columns import Column, column
from .experiment import (
    KINDS,
    Experiment,
    Kind,
    Measured,
    Result,
    add_kind,
    from_toml,
    read,
    run,
    to_toml,
)
from .kinds import (
    EstimateDescription,
    HeatMapDescription,
    PoliciesDescription,
    ReclaimDescription,
    ReplayDescription,
)
from .live_kinds import ContentionDescription
from .plan import Range, Sweep
from .results import Results, Table, load
from .sweep import Progress, run_sweep

__all__ = [
    "KINDS",
    "AccessTracking",
    "Aging",
    "Column",
    "ContentionDescription",
    "EstimateDescription",
    "Experiment",
    "HeatMapDescription",
    "HotCold",
    "Kind",
    "Machine",
    "Measured",
    "PoliciesDescription",
    "Pressure",
    "Progress",
    "Range",
    "ReclaimDescription",
    "ReplayDescription",
    "Result",
    "Results",
    "Schedule",
    "Sequential",
    "Stress",
    "Sweep",
    "Table",
    "TraceFile",
    "TraceWorkload",
    "Uniform",
    "VirtualMachine",
    "Zipf",
    "add_kind",
    "column",
    "from_toml",
    "load",
    "read",
    "run",
    "run_sweep",
    "to_toml",
]
