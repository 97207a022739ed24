"""Results as tables: Arrow, pandas, polars."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from . import store
from .columns import Column, Group

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
        """Return the columns of these groups: parameter, result, live, timing, place.

        Raises:
            ValueError: If there is no such group.

        """
        for each in groups:
            if each not in get_args(Group):
                raise ValueError(f"{each!r} is none of {', '.join(get_args(Group))}")
        chosen = {name: each for name, each in self.columns.items() if each.group in groups}
        return Table(chosen, self._arrow.select(list(chosen)))


@dataclass(frozen=True, eq=False)
class Results(Table):
    """A directory of results: the table of runs, and that of passes beside it.

    Attributes:
        sweep: What was run, as a plain dict.
        environment: Version and build of youngbit, and the machine that ran the sweep.
        complete: Whether every run is there.

    """

    sweep: dict[str, Any] = field(repr=False)
    environment: dict[str, Any] = field(repr=False)
    complete: bool
    _passes: Callable[[], Table] = field(repr=False)

    @cached_property
    def passes(self) -> Table:
        """One row a pass; ``run`` says whose. Read when it is asked for.

        Raises:
            ValueError: If the file is damaged.

        """
        return self._passes()

    def failures(self) -> dict[int, str]:
        """Return by number of the run what went wrong in those that failed."""
        pc = __import__("pyarrow.compute").compute
        failed = self._arrow.filter(pc.equal(self._arrow["status"], "failed"))
        return dict(zip(failed["run"].to_pylist(), failed["error"].to_pylist(), strict=True))


def _columns(schema: Any, path: Path) -> tuple[dict[str, Column], dict[str, Any]]:
    about = (schema.metadata or {}).get(store.KEY)
    if about is None:
        raise ValueError(f"{path}: is a table, and not one of youngbit's")
    found = json.loads(about)
    return {each["name"]: Column(**each) for each in found["columns"]}, found


def _read(path: Path, *, schema: bool = False) -> Any:
    pa = store.arrow()
    try:
        # Opened here: Arrow would take a name with a colon for the address of a service.
        with pa.memory_map(os.fspath(path)) as file:
            return pa.parquet.read_schema(file) if schema else pa.parquet.read_table(file)
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
    files = directory / store.RUNS, directory / store.PASSES
    if all(each.exists() for each in files):
        runs = _read(files[0])
        columns, about = _columns(runs.schema, files[0])
        pass_columns, beside = _columns(_read(files[1], schema=True), files[1])
        # Without a journal the files are all there is.
        now = store.journal_end(directory) if journal.exists() else about["journal"]
        if about["journal"] == beside["journal"] == now:
            return _results(columns, runs, about, lambda: Table(pass_columns, _read(files[1])))
    if not journal.exists():
        raise ValueError(f"{directory}: has neither {store.JOURNAL} nor both tables")
    runs, passes = store.journal_tables(directory)
    columns, about = _columns(runs.schema, journal)
    pass_columns, _ = _columns(passes.schema, journal)
    return _results(columns, runs, about, lambda: Table(pass_columns, passes))


def _results(
    columns: dict[str, Column], runs: Any, about: dict[str, Any], passes: Callable[[], Table]
) -> Results:
    complete = bool(about["complete"])
    return Results(columns, runs, about["sweep"], about["environment"], complete, passes)
