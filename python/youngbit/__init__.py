"""youngbit: a reference model of multi-gen LRU aging across secondary MMUs.

The machine, its page tables and its walks are native and run with real threads
and real atomics. From Python you build a host, run guests, age their memory,
and read what each pass found and cost.
"""

from __future__ import annotations

from . import access, errors, sizes, traces
from ._core import build_info
from .errors import TraceError
from .notifier import MmuNotifier
from .sizes import Pages

__version__: str = build_info()["version"]

__all__ = [
    "MmuNotifier",
    "Pages",
    "TraceError",
    "__version__",
    "access",
    "build_info",
    "errors",
    "sizes",
    "traces",
]
