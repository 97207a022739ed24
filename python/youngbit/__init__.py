"""youngbit: a reference model of multi-gen LRU aging across secondary MMUs.

The machine, its page tables and its walks are native and run with real threads
and real atomics. From Python you build a host, run guests, age their memory,
and read what each pass found and cost.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import access, defaults, errors, lru_gen, oracle, reuse, sizes, traces
from ._core import build_info
from .damon import Damon
from .errors import FormatError, PolicyError, TraceError
from .generations import Generation, GenerationDetail, Generations
from .machine import (
    AgeStats,
    AgingRun,
    EvictStats,
    Host,
    IdleStats,
    LruGen,
    Memcg,
    Memslot,
    Mm,
    Registration,
    RunStats,
    TraceRecords,
    Vm,
)
from .notifier import MmuNotifier
from .sizes import Pages

if TYPE_CHECKING:
    from . import lab
    from .lab import load

__version__: str = build_info()["version"]

__all__ = [
    "AgeStats",
    "AgingRun",
    "Damon",
    "EvictStats",
    "FormatError",
    "Generation",
    "GenerationDetail",
    "Generations",
    "Host",
    "IdleStats",
    "LruGen",
    "Memcg",
    "Memslot",
    "Mm",
    "MmuNotifier",
    "Pages",
    "PolicyError",
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
    "lab",
    "load",
    "lru_gen",
    "oracle",
    "reuse",
    "sizes",
    "traces",
]


def __getattr__(name: str) -> Any:
    # The laboratory is imported by those who use it: it needs more than the machine does.
    if name == "lab":
        return importlib.import_module(".lab", __name__)
    if name == "load":
        return importlib.import_module(".lab", __name__).load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
