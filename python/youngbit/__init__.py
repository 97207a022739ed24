"""youngbit: a reference model of multi-gen LRU aging across secondary MMUs.

The machine, its page tables and its walks are native and run with real threads
and real atomics. From Python you build a host, run guests, age their memory,
and read what each pass found and cost.
"""

from __future__ import annotations

from . import access, defaults, errors, lru_gen, oracle, sizes, traces
from ._core import build_info
from .errors import FormatError, TraceError
from .machine import (
    AgeStats,
    AgingRun,
    Generation,
    GenerationDetail,
    Generations,
    Host,
    IdleStats,
    LruGen,
    Memcg,
    Mm,
    Registration,
    RunStats,
    TraceRecords,
    Vm,
)
from .notifier import MmuNotifier
from .sizes import Pages

__version__: str = build_info()["version"]

__all__ = [
    "AgeStats",
    "AgingRun",
    "FormatError",
    "Generation",
    "GenerationDetail",
    "Generations",
    "Host",
    "IdleStats",
    "LruGen",
    "Memcg",
    "Mm",
    "MmuNotifier",
    "Pages",
    "Registration",
    "RunStats",
    "TraceError",
    "TraceRecords",
    "Vm",
    "__version__",
    "access",
    "build_info",
    "defaults",
    "errors",
    "lru_gen",
    "oracle",
    "sizes",
    "traces",
]
