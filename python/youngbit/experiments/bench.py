"""The suites of ``youngbit bench``: what is run, on what, and what it found.

The core measures. Here stands which suites are run and how much, what machine
and build they ran on, and the rows as plain data.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .. import defaults
from .._core import bench_run, bench_suites, build_info
from ._parts import ignore

__all__ = ["Bench", "BenchResult", "machine", "read"]

SCHEMA = "youngbit/bench"
SCHEMA_VERSION = 1

#: What became of a suite.
COMPLETE = "complete"
INTERRUPTED = "interrupted"
NOT_RUN = "not run"


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()[0].strip()
    except (OSError, IndexError, UnicodeDecodeError):
        return None


def _cpuinfo() -> dict[str, str]:
    """What ``/proc/cpuinfo`` says about the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def machine() -> dict[str, Any]:
    """What figures depend on and no seed repeats; what cannot be read is None.

    ``processors`` are those that this process may use.
    """
    cpu = _cpuinfo()
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index[0-9]*")):
        level, kind, size = (_first_line(f"{index}/{name}") for name in ("level", "type", "size"))
        if level and kind and size and kind != "Instruction":
            caches[f"L{level}"] = size
    affinity = getattr(os, "sched_getaffinity", None)
    total = os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        memory = None
    return {
        "cpu": cpu.get("model name") or platform.processor() or None,
        "architecture": platform.machine(),
        "processors": len(affinity(0)) if affinity else total,
        "processors_of_machine": total,
        "virtual_machine": "hypervisor" in cpu["flags"].split() if "flags" in cpu else None,
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "caches": caches,
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


class _Others:
    """How much of the machine somebody else used since this was made."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float, float] | None:
        """Processor seconds: everybody's, ours, stolen by a hypervisor, all there were."""
        try:
            line = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, line.split()[1:9])
            tick = os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return None
        busy = user + nice + system + irq + softirq
        total = busy + idle + iowait + steal
        return busy / tick, time.process_time(), steal / tick, total / tick

    def shares(self) -> dict[str, float] | None:
        """Shares of the machine's time that others used, and that was stolen."""
        now = self._now()
        if now is None or self._start is None:
            return None
        busy, ours, stolen, total = (b - a for a, b in zip(self._start, now, strict=True))
        if total <= 0:
            return None
        return {"used": max(busy - ours, 0.0) / total, "stolen": stolen / total}


@dataclass
class BenchResult:
    """What was measured; whole rows only, also of a run that was stopped."""

    parameters: dict[str, Any]
    machine: dict[str, Any]
    build: dict[str, Any]
    #: When it began, in UTC.
    started: str
    #: Wall time of all of it, set-up included.
    seconds: float = 0.0
    #: Shares of the machine's processor time that others ``used`` meanwhile, and
    #: that a hypervisor has ``stolen``; None where the system does not say.
    others: dict[str, float] | None = None
    #: What became of each suite that was asked for.
    suites: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every suite ran to its end."""
        return all(state == COMPLETE for state in self.suites.values())

    @property
    def is_disturbed(self) -> bool:
        """Whether others used so much of the machine that figures show it."""
        return self.others is not None and sum(self.others.values()) > defaults.BENCH_DISTURBED

    def cases(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Rows by suite and case, in the order in which they were measured."""
        cases: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.rows:
            cases.setdefault((row["suite"], row["case"]), []).append(row)
        return cases

    def promises(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Rows and those of their ratios that come with a bound."""
        return [
            (row, ratio)
            for row in self.rows
            for ratio in row["ratios"]
            if ratio["bound"] is not None
        ]

    def contention(self) -> list[dict[str, Any]]:
        """Ratios of the suite `contention`, by MMU, kind of case, and number of vCPUs.

        ``pass`` is the time of a locked pass over that of a lockless one, ``p99``
        the same of a guest's faults; ``guest_locked`` and ``guest_lockless`` are
        the guest's wall time over that without aging. None for what was not
        measured.
        """
        wanted = {
            ("aging_pass_seconds", "baseline"): ("pass", "v7"),
            ("vcpu_wall_ns_per_page", "baseline"): ("guest_locked", "no aging"),
            ("vcpu_wall_ns_per_page", "v7"): ("guest_lockless", "no aging"),
            ("fault_p99_ns", "baseline"): ("p99", "v7"),
        }
        lines: dict[tuple[str, str, int], dict[str, Any]] = {}
        for row in self.rows:
            if row["suite"] != "contention":
                continue
            mmu, vcpus = row["parameters"]["mmu"], int(row["parameters"]["vcpus"])
            kind = kind_of(row)
            line = lines.setdefault(
                (mmu, kind, vcpus),
                {
                    "mmu": mmu,
                    "vcpus": vcpus,
                    "kind": kind,
                    "oversubscribed": row["oversubscribed"],
                    **dict.fromkeys(key for key, _ in wanted.values()),
                },
            )
            key, to = wanted.get((row["metric"]["name"], row["contestant"]), (None, None))
            if key is not None:
                line[key] = next((each for each in row["ratios"] if each["to"] == to), None)
        return [lines[key] for key in sorted(lines, key=lambda key: (key[0] != "tdp", *key))]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict; ``docs/json.md`` specifies it."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "seed": self.parameters["seed"],
            **asdict(self),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BenchResult:
        """Make a result of what `to_dict` gave.

        Raises:
            ValueError: If it is something else.

        """
        schema = data.get("schema"), data.get("schema_version")
        if schema != (SCHEMA, SCHEMA_VERSION):
            raise ValueError(
                f"schema is {schema[0]!r}, version {schema[1]!r},"
                f" expected {SCHEMA!r}, version {SCHEMA_VERSION}"
            )
        names = ("parameters", "machine", "build", "started", "seconds", "others", "suites", "rows")
        missing = [name for name in names if name not in data]
        if missing:
            raise ValueError(f"a result of {SCHEMA} lacks {', '.join(missing)}")
        return cls(**{name: data[name] for name in names})


def kind_of(row: dict[str, Any]) -> str:
    """Return what a case is about, beside its MMU and vCPUs: the end of its name."""
    kind: str = row["case"].rpartition(", ")[2]
    return kind


def read(path: str | os.PathLike[str]) -> BenchResult:
    """Read a result that ``youngbit bench --json`` wrote.

    Raises:
        ValueError: If it is no such result; the message names the file.
        OSError: If it cannot be read.

    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError(f"found a {type(data).__name__}, expected an object")
        return BenchResult.from_dict(data)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def _row(line: str) -> dict[str, Any]:
    """Make plain data of a row of the core."""
    row: dict[str, Any] = json.loads(line)
    row["parameters"] = dict(row["parameters"])
    row["counters"] = dict(row["counters"])
    for ratio in row["ratios"]:
        ratio.setdefault("bound", None)
    return row


@dataclass(frozen=True)
class Bench:
    """What to measure; `run` measures it.

    Attributes:
        suites: Names of suites, run in the order of the core; none: all.
        scale: How much, of ``youngbit.defaults.BENCH_SCALES``.
        repetitions: Of each contestant; None: what the scale says.
        only: Only cases whose name contains this.
        seed: Of everything random.

    """

    suites: Sequence[str] = ()
    scale: str = defaults.BENCH_SCALE
    repetitions: int | None = None
    only: str | None = None
    seed: int = defaults.BENCH_SEED

    def __post_init__(self) -> None:
        known = bench_suites()
        for name in self.suites:
            if name not in known:
                raise ValueError(f"{name!r} is no suite: expected one of {', '.join(known)}")
        if self.scale not in defaults.BENCH_SCALES:
            raise ValueError(f"scale: {self.scale!r} is none of {', '.join(defaults.BENCH_SCALES)}")
        if self.repetitions is not None and self.repetitions < 1:
            raise ValueError(f"repetitions: {self.repetitions} is below 1")
        asked = [name for name in known if name in self.suites] or known
        object.__setattr__(self, "suites", tuple(asked))

    def prepare(self) -> BenchResult:
        """Make an empty result, which knows the machine; `run` fills it.

        Raises:
            ValueError: In a debug build, whose times mean nothing.

        """
        build = dict(build_info())
        if build["debug_assertions"]:
            raise ValueError(
                "this is a debug build, whose times mean nothing: build with --release, as"
                " `make build` does"
            )
        return BenchResult(
            parameters=asdict(self) | {"suites": list(self.suites)},
            machine=machine(),
            build=build,
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            suites=dict.fromkeys(self.suites, NOT_RUN),
        )

    def run(
        self,
        result: BenchResult | None = None,
        *,
        progress: Callable[[str], None] = ignore,
        finished: Callable[[list[dict[str, Any]]], None] = ignore,
    ) -> BenchResult:
        """Measure. An exception stops it and leaves whole cases in the result.

        Args:
            result: What to fill, of `prepare`; a caller keeps it who wants the
                rows of a run that was stopped.
            progress: Called before each repetition with what comes, outside of
                every timer.
            finished: Called with the rows of each case when it is over.

        Raises:
            ValueError: In a debug build.
            OSError: If memory ends, or a verification finds something wrong.

        """
        result = self.prepare() if result is None else result
        start = time.monotonic()
        others = _Others()
        case: list[dict[str, Any]] = []

        def keep() -> None:
            if case:
                rows = case.copy()
                case.clear()
                result.rows.extend(rows)
                result.seconds = time.monotonic() - start
                result.others = others.shares()
                finished(rows)

        def next_repetition(what: str) -> None:
            keep()
            progress(what)

        def row(line: str) -> None:
            case.append(_row(line))

        for name in self.suites:
            result.suites[name] = INTERRUPTED
            bench_run(
                name, self.scale, self.seed, self.repetitions, self.only, next_repetition, row
            )
            keep()
            result.suites[name] = COMPLETE
        result.seconds = time.monotonic() - start
        result.others = others.shares()
        return result
