"""Where results are kept: a journal that grows by a line a run, and Parquet made of it.

A run is finished when its line is in the journal and on the disk. The line's
end is the last byte written, so that what a crash leaves of a line is no line.
Parquet files are written whole, at the end or when a sweep is interrupted, and
say how much of the journal they hold.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from .. import defaults
from .._core import build_info
from .._files import atomic_write
from ..experiments.bench import machine
from .columns import COUNTERS, Column, Type, column
from .experiment import KINDS, describe_column
from .plan import Sweep

__all__ = ["Outcome", "Store", "arrow", "environment"]

SCHEMA = "youngbit/sweep"
SCHEMA_VERSION = 1
ABOUT = "sweep.json"
JOURNAL = "journal.jsonl"
RUNS = "runs.parquet"
PASSES = "passes.parquet"
#: Key of our metadata in Parquet files.
KEY = b"youngbit"

#: How a run ended.
Outcome = tuple[int, dict[str, Any], dict[str, list[Any]]]


def arrow() -> Any:
    """Return pyarrow.

    Raises:
        ImportError: That says which extra is missing.

    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("tables need pyarrow: pip install 'youngbit[lab]'") from error
    return pyarrow


def _arrow_type(name: Type) -> Any:
    pa = arrow()
    if name == "list<int64>":
        return pa.list_(pa.int64())
    return {
        "int64": pa.int64, "double": pa.float64, "bool": pa.bool_, "string": pa.string,
    }[name]()  # fmt: skip


def environment() -> dict[str, Any]:
    """Return what a table says about where it was made."""
    return {"youngbit": build_info(), **machine()}


class Store:
    """A directory of results, for one who writes it.

    Args:
        directory: It is made if it is not there.
        sweep: What is run; a directory of another sweep is refused.

    Raises:
        ValueError: If the directory has results of another sweep, or something else.
        BlockingIOError: If another sweep writes there.
        OSError: If it cannot be written.

    """

    def __init__(self, directory: str | os.PathLike[str], sweep: Sweep) -> None:
        self.directory = Path(directory)
        self.sweep = sweep
        #: Status by number of each run that is finished.
        self.finished: dict[int, str] = {}
        self.directory.mkdir(parents=True, exist_ok=True)
        self._check()
        self._file = os.open(
            self.directory / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666
        )
        try:
            self._lock()
            for _, _, outcome in read_journal(self.directory):
                self.finished[outcome["run"]] = outcome["row"]["status"]
            # What is behind the last whole line was never a run.
            self._end = journal_end(self.directory)
            os.ftruncate(self._file, self._end)
        except BaseException:
            os.close(self._file)
            raise

    def _check(self) -> None:
        about = self.directory / ABOUT
        if about.exists():
            known = read_about(self.directory)
            if known["fingerprint"] != self.sweep.fingerprint:
                raise ValueError(
                    f"{self.directory}: has results of another sweep, of"
                    f" {known['runs']} runs of {known['sweep']['experiment'].get('experiment')};"
                    " give each sweep a directory of its own"
                )
            version = build_info()["version"]
            made = known["environment"]["youngbit"]["version"]
            if made != version:
                raise ValueError(
                    f"{self.directory}: was begun by youngbit {made}, and this is {version}"
                )
            if not (self.directory / JOURNAL).exists():
                raise ValueError(
                    f"{self.directory / JOURNAL}: is gone, so nobody knows which runs are finished"
                )
            return
        others = [each.name for each in self.directory.iterdir() if not each.name.startswith(".")]
        if others:
            raise ValueError(
                f"{self.directory}: has {sorted(others)[0]}, and no {ABOUT}: not a directory of"
                " results, and not an empty one"
            )
        with atomic_write(about) as file:
            json.dump(
                {
                    "schema": SCHEMA,
                    "schema_version": SCHEMA_VERSION,
                    "fingerprint": self.sweep.fingerprint,
                    "runs": len(self.sweep),
                    "sweep": self.sweep.to_dict(),
                    "environment": environment(),
                    "created": datetime.datetime.now(datetime.timezone.utc).isoformat(),
                },
                file,
                indent=1,
            )
            file.write("\n")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                None, f"{self.directory}: another sweep is writing its results there"
            ) from None

    def add(self, outcome: Outcome) -> None:
        """Keep a finished run; it is on the disk when this returns."""
        run, row, passes = outcome
        text = json.dumps({"run": run, "row": row, "passes": passes}, separators=(",", ":"))
        data = memoryview(text.encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except BaseException:
            # Half a line must not be continued by the next.
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(text.encode()) + 1
        self.finished[run] = row["status"]

    def compact(self) -> None:
        """Write the Parquet files from the journal."""
        write_parquet(self.directory)

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._file)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_about(directory: Path) -> dict[str, Any]:
    """Return what a directory of results says about itself.

    Raises:
        ValueError: If it is not such a directory.
        OSError: If it cannot be read.

    """
    path = directory / ABOUT
    try:
        found = json.loads(path.read_bytes())
        keys = {"schema", "fingerprint", "runs", "sweep", "environment"}
        if not (isinstance(found, dict) and found.get("schema") == SCHEMA and keys <= found.keys()):
            raise ValueError(f"expected an object of schema {SCHEMA}")
        if found["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"version {found['schema_version']} is not {SCHEMA_VERSION}")
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not of a directory of results: {error}") from None
    return found


def journal_end(directory: Path) -> int:
    """Return where the last whole line of the journal ends."""
    with (directory / JOURNAL).open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
    return 0


def read_journal(directory: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield the lines of a journal: where each begins, its number, and the run.

    What is left of a line that was never finished is passed over.

    Raises:
        ValueError: If a line is not a run.

    """
    path = directory / JOURNAL
    with path.open("rb") as file:
        offset = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                found = json.loads(line)
                run, status, passes = found["run"], found["row"]["status"], found["passes"]
                if type(run) is not int or type(status) is not str or type(passes) is not dict:
                    raise ValueError("expected a number, a row and passes")
            except (ValueError, KeyError, TypeError) as error:
                problem = str(error) or type(error).__name__
                raise ValueError(f"{path}: line {number}: is not a finished run: {problem}") from (
                    None
                )
            yield offset, number, found
            offset += len(line)


_ORDER = {"parameter": 0, "result": 1, "live": 1, "timing": 3, "place": 4}


def _column(table: Literal["runs", "passes"], name: str, kinds: list[str]) -> Column:
    for kind in kinds:
        with contextlib.suppress(KeyError):
            return describe_column(table, name, kind)
    return column(table, name)


def _schema(
    table: Literal["runs", "passes"],
    names: Iterable[str],
    kinds: list[str],
    metadata: dict[str, Any],
) -> Any:
    pa = arrow()
    columns = [_column(table, name, kinds) for name in names]
    # Parameters, what was found, counters, wall times, place.
    columns.sort(
        key=lambda each: 2 if COUNTERS in each.name and each.group == "result"
        else _ORDER[each.group]
    )  # fmt: skip
    fields = [
        pa.field(
            each.name,
            _arrow_type(each.type),
            metadata={"unit": each.unit, "meaning": each.meaning, "group": each.group},
        )
        for each in columns
    ]
    about = metadata | {"columns": [each.to_dict() for each in columns]}
    return pa.schema(fields, metadata={KEY: json.dumps(about).encode()})


class _Tables:
    """A journal as Arrow tables, a batch of runs at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        about = read_about(directory)
        self.end = journal_end(directory)
        runs: dict[str, None] = dict.fromkeys(["run"])
        passes: dict[str, None] = dict.fromkeys(["run"])
        kinds: dict[str, None] = {}
        #: Where the line of each run begins; a later line supersedes.
        self.lines: dict[int, int] = {}
        #: Runs of the first batch as they were read: few runs are read once only.
        self.held: dict[int, dict[str, Any]] = {}
        for offset, _, found in read_journal(directory):
            if found["run"] < defaults.SWEEP_BATCH:
                self.held[found["run"]] = found
            runs |= dict.fromkeys(found["row"])
            passes |= dict.fromkeys(found["passes"])
            kinds[found["row"].get("experiment")] = None
            self.lines[found["run"]] = offset
        metadata = {
            **about,
            "journal": self.end,
            "complete": len(self.lines) == about["runs"],
        }
        known = [kind for kind in kinds if kind in KINDS]
        self.runs = _schema("runs", runs, known, metadata)
        self.passes = _schema("passes", passes, known, metadata)

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Yield tables of runs and of their passes, by number of the run."""
        pa = arrow()
        order = sorted(self.lines)
        with (self.directory / JOURNAL).open("rb") as file:
            for start in range(0, len(order), defaults.SWEEP_BATCH):
                rows: list[dict[str, Any]] = []
                columns: dict[str, list[Any]] = {name: [] for name in self.passes.names}
                for run in order[start : start + defaults.SWEEP_BATCH]:
                    found = self.held.pop(run, None)
                    if found is None:
                        file.seek(self.lines[run])
                        found = json.loads(file.readline())
                    rows.append(found["row"] | {"run": run})
                    length = max(map(len, found["passes"].values()), default=0)
                    for name, values in columns.items():
                        if name == "run":
                            values += [run] * length
                        else:
                            values += found["passes"].get(name) or [None] * length
                yield (
                    pa.Table.from_pylist(rows, schema=self.runs),
                    pa.Table.from_pydict(columns, schema=self.passes),
                )


def write_parquet(directory: Path) -> None:
    """Write the Parquet files of a directory from its journal, each whole or not at all."""
    pq = arrow().parquet
    tables = _Tables(directory)
    # The table of runs is the one that says that both are up to date.
    with (
        atomic_write(directory / RUNS, "wb") as runs,
        atomic_write(directory / PASSES, "wb") as passes,
        pq.ParquetWriter(runs, tables.runs) as runs_writer,
        pq.ParquetWriter(passes, tables.passes) as passes_writer,
    ):
        for some_runs, some_passes in tables.batches():
            runs_writer.write_table(some_runs)
            passes_writer.write_table(some_passes)


def journal_tables(directory: Path) -> tuple[Any, Any]:
    """Return the tables of a journal that no Parquet file holds yet."""
    pa = arrow()
    tables = _Tables(directory)
    both = list(tables.batches())
    return (
        pa.concat_tables([tables.runs.empty_table(), *(runs for runs, _ in both)]),
        pa.concat_tables([tables.passes.empty_table(), *(passes for _, passes in both)]),
    )
