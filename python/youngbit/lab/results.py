"""Results as tables: Arrow, pandas, polars."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import store
from .columns import Column

__all__ = ["Results", "Table", "load"]


@dataclass(frozen=True, eq=False)
class Table:
    """One table of results.

    Attributes:
        columns: What each column is, by its name.

    """

    columns: dict[str, Column]
    _arrow: Any = field(repr=False)

    def __len__(self) -> int:
        return int(self._arrow.num_rows)

    def to_arrow(self) -> Any:
        """Return the `pyarrow.Table` itself; nothing is copied."""
        return self._arrow

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` over the same memory, its columns of Arrow types.

        Raises:
            ImportError: Without pandas.

        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        return self._arrow.to_pandas(types_mapper=pandas.ArrowDtype)

    def to_polars(self) -> Any:
        """Return a `polars.DataFrame` over the same memory.

        Raises:
            ImportError: Without polars.

        """
        try:
            import polars
        except ImportError as error:
            raise ImportError("to_polars needs polars: pip install polars") from error
        return polars.from_arrow(self._arrow, rechunk=False)

    def group(self, *groups: str) -> Table:
        """Return the columns of these groups: parameter, result, timing, place.

        Raises:
            ValueError: If there is no such group.

        """
        for each in groups:
            if each not in ("parameter", "result", "timing", "place"):
                raise ValueError(f"{each!r} is none of parameter, result, timing, place")
        chosen = {name: each for name, each in self.columns.items() if each.group in groups}
        return Table(chosen, self._arrow.select(list(chosen)))


@dataclass(frozen=True, eq=False)
class Results(Table):
    """A directory of results: the table of runs, and that of passes beside it.

    Attributes:
        passes: One row a pass; ``run`` says whose.
        sweep: What was run, as a plain dict.
        environment: Version and build of youngbit, and the machine that ran the sweep.
        complete: Whether every run is there.

    """

    passes: Table
    sweep: dict[str, Any] = field(repr=False)
    environment: dict[str, Any] = field(repr=False)
    complete: bool

    def failures(self) -> dict[int, str]:
        """Return by number of the run what went wrong in those that failed."""
        pc = __import__("pyarrow.compute").compute
        failed = self._arrow.filter(pc.equal(self._arrow["status"], "failed"))
        return dict(zip(failed["run"].to_pylist(), failed["error"].to_pylist(), strict=True))


def _table(of: Any, path: Path) -> tuple[dict[str, Column], dict[str, Any]]:
    about = (of.schema.metadata or {}).get(store.KEY)
    if about is None:
        raise ValueError(f"{path}: is a table, and not one of youngbit's")
    found = json.loads(about)
    return {each["name"]: Column(**each) for each in found["columns"]}, found


def _read(path: Path) -> Any:
    pa = store.arrow()
    try:
        return pa.parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        problem = str(error).splitlines()[0]
        raise ValueError(f"{path}: is not a whole Parquet file: {problem}") from None


def load(path: str | os.PathLike[str]) -> Results:
    """Return the results of a run or a sweep; also of one that is not finished.

    Args:
        path: The directory.

    Raises:
        ValueError: If it is no such directory, or one of its files is damaged.
        OSError: If it cannot be read.
        ImportError: Without pyarrow.

    """
    directory = Path(path)
    if directory.is_file():
        raise ValueError(f"{directory}: is a file; results are a directory, with {store.ABOUT}")
    if not directory.is_dir():
        raise FileNotFoundError(2, "no such directory", str(directory))
    if not (directory / store.ABOUT).exists():
        raise ValueError(f"{directory}: has no {store.ABOUT}: not a directory of results")
    journal = directory / store.JOURNAL
    tables = None
    if (directory / store.RUNS).exists() and (directory / store.PASSES).exists():
        runs = _read(directory / store.RUNS)
        passes = _read(directory / store.PASSES)
        _, about = _table(runs, directory / store.RUNS)
        _, beside = _table(passes, directory / store.PASSES)
        # Without a journal the files are all there is.
        now = store.journal_end(directory) if journal.exists() else about["journal"]
        if about["journal"] == beside["journal"] == now:
            tables = runs, passes
    if tables is None:
        if not journal.exists():
            raise ValueError(f"{directory}: has neither {store.JOURNAL} nor both tables")
        tables = store.journal_tables(directory)
    runs, passes = tables
    columns, about = _table(runs, directory / store.RUNS)
    pass_columns, _ = _table(passes, directory / store.PASSES)
    return Results(
        columns,
        runs,
        Table(pass_columns, passes),
        about["sweep"],
        about["environment"],
        bool(about["complete"]),
    )
