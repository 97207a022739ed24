"""Every column of results: what it means and in which unit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

from .._core import counter_help

__all__ = [
    "COUNTERS",
    "REASON",
    "VERDICT",
    "Column",
    "Group",
    "Type",
    "column",
    "documented",
    "register",
]

#: What a column may be compared by.
Group: TypeAlias = Literal["parameter", "result", "live", "timing", "place"]
#: The Arrow type of a column.
Type: TypeAlias = Literal["int64", "double", "bool", "string", "list<int64>"]

#: Counters that are wall time.
TIMED_COUNTERS = frozenset({"mmu_lock_wait_ns", "lru_lock_wait_ns"})
#: What stands before the name of a counter.
COUNTERS = "counters."


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Its name in tables.
        type: Of its values, as Arrow calls it; any of them may be null.
        unit: What its numbers count.
        meaning: One sentence.
        group: parameter: what was asked for; result: what was found, the same wherever
            an inline run ran; live: counted while threads ran beside each other, and
            other in every run; timing: wall times; place: where and when it ran.

    """

    name: str
    type: Type
    unit: str
    meaning: str
    group: Group = "result"

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return asdict(self)


#: Of every kind that checks something: whether it held.
VERDICT = Column(
    "verdict", "string", "pass, fail, skip", "Whether what is checked held; skip: nothing was run."
)
#: What did not.
REASON = Column("reason", "string", "text", "What failed, or why nothing was run.")

_COLUMNS: dict[tuple[str, str], Column] = {}


def register(table: Literal["runs", "passes"], columns: list[Column]) -> None:
    """Add columns to a table, or to those that several kinds of experiments have.

    Raises:
        ValueError: If a column of this name means something else already.

    """
    for each in columns:
        known = _COLUMNS.setdefault((table, each.name), each)
        if known != each:
            raise ValueError(f"{table}.{each.name}: is {known}, and cannot be {each}")


@cache
def _helps() -> dict[str, str]:
    return dict(counter_help())


def column(table: Literal["runs", "passes"], name: str) -> Column:
    """Return what a column is.

    Counters are known by what stands before their names: ``counters.pgsteal``, and
    ``off.counters.pgsteal`` where an experiment has several runs.

    Raises:
        KeyError: If there is no such column.

    """
    if (table, name) in _COLUMNS:
        return _COLUMNS[table, name]
    before, dot, counter = name.rpartition(COUNTERS)
    if dot and counter in _helps() and before in ("", "off.", "on."):
        unit = "nanoseconds" if counter.endswith("_ns") else "count"
        group: Group = "timing" if counter in TIMED_COUNTERS else "result"
        return Column(name, "int64", unit, _helps()[counter], group)
    raise KeyError(f"{table}.{name}: no such column is documented")


def documented(table: Literal["runs", "passes"]) -> Iterator[Column]:
    """Yield every registered column of a table, counters aside."""
    for (where, _), each in _COLUMNS.items():
        if where == table:
            yield each


register(
    "runs",
    [
        Column("run", "int64", "number", "Which run of the sweep, from 0.", "parameter"),
        Column("experiment", "string", "text", "Kind of the experiment.", "parameter"),
        Column("status", "string", "ok, failed",
               "Whether the run came to an end; a check that failed is an end."),
        Column("error", "string", "text", "What went wrong in a run that failed."),
        Column("passes", "int64", "count", "Rows of the run in the table of passes."),
        Column("seconds", "double", "seconds", "Wall time of the run.", "timing"),
        Column("started", "string", "ISO 8601", "When the run started.", "place"),
        Column("worker", "string", "host:process", "Where it ran.", "place"),
    ],
)  # fmt: skip
register(
    "passes",
    [
        Column("run", "int64", "number", "Which run of the sweep, from 0.", "parameter"),
        Column("number", "int64", "number", "Which pass, from 0."),
    ],
)
